"""A stream becomes a whole answer, and a whole answer a stream."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.canonical import (
    Answer,
    Choice,
    CitationAdded,
    Event,
    Finished,
    LogprobsAdded,
    Media,
    Opaque,
    Part,
    PartAdded,
    Reasoning,
    ReasoningDelta,
    ReasoningEnded,
    Refusal,
    RefusalDelta,
    Started,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)


def visible_text(parts: Iterable[Part]) -> str:
    """The text parts joined, without a separator."""
    return "".join(part.text for part in parts if isinstance(part, Text))


def tool_calls(parts: Iterable[Part]) -> list[ToolCall]:
    return [part for part in parts if isinstance(part, ToolCall)]


class Folding:
    """A stream becoming a whole answer. `add` takes events as they come; `answer` may be asked at any time."""

    def __init__(self) -> None:
        self._choices: dict[int, _Draft] = {}
        self._answer = Answer(choices=[])

    def add(self, event: Event) -> None:
        if isinstance(event, Started):
            answer = self._answer
            answer.id, answer.model = event.id or answer.id, event.model or answer.model
            answer.created = answer.created if event.created is None else event.created
        elif isinstance(event, UsageReported):
            self._answer.usage, self._answer.raw_usage = event.usage, event.raw
            self._answer.service_tier = event.service_tier or self._answer.service_tier
        else:
            self._choices.setdefault(event.choice, _Draft()).add(event)

    def answer(self) -> Answer:
        self._answer.choices = [self._choices[index].choice() for index in sorted(self._choices)]
        return self._answer


class _Draft:
    """One choice of a stream so far. Texts are kept in pieces: joining at each event would cost the square."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._pieces: list[str] = []  # of the text, refusal or reasoning part under way
        self._calls: dict[int, tuple[ToolCall, list[str]]] = {}
        self._logprobs: list[msgspec.Raw] = []
        self._has_ended = False  # the last part: the next piece begins a new one
        self._choice = Choice(parts=[], finish="unknown")

    def add(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._extend(Text, event.text, begins_part=event.begins_part)
        elif isinstance(event, ReasoningDelta):
            self._extend(Reasoning, event.text)
        elif isinstance(event, RefusalDelta):
            self._extend(Refusal, event.text)
        elif isinstance(event, ToolCallDelta):
            if event.index in self._calls:
                self._calls[event.index][1].append(event.arguments)
        elif isinstance(event, ToolCallStarted):
            call = ToolCall(event.id, event.name, "", event.seal)
            self._calls[event.index] = call, []
            self._append(call)
        elif isinstance(event, Finished):
            choice = self._choice
            choice.finish, choice.raw_finish, choice.stop_sequence = event.finish, event.raw, event.stop_sequence
        elif isinstance(event, LogprobsAdded):
            self._logprobs += msgspec.json.decode(event.items, type=list[msgspec.Raw])
        else:
            self._add_to_part(event)

    def _add_to_part(self, event: Event) -> None:
        last = self._parts[-1] if self._parts else None
        if isinstance(event, ReasoningEnded):
            if not isinstance(last, Reasoning) or self._has_ended or event.is_redacted:
                last = Reasoning("", is_redacted=event.is_redacted)
                self._append(last)
            last.seal, last.id = event.seal, event.id
            self._has_ended = True
        elif isinstance(event, CitationAdded):
            if isinstance(last, Text):
                last.citations = (*last.citations, event.citation)
        elif isinstance(event, PartAdded):
            self._append(event.part)

    def _extend(
        self, kind: type[Text] | type[Reasoning] | type[Refusal], piece: str, begins_part: bool = False
    ) -> None:
        last = self._parts[-1] if self._parts else None
        if type(last) is not kind or self._has_ended or begins_part:
            self._append(kind(""))
        self._pieces.append(piece)

    def _append(self, part: Part) -> None:
        self._join()
        self._has_ended = False
        self._parts.append(part)

    def _join(self) -> None:
        if self._pieces:
            last = self._parts[-1]
            assert isinstance(last, (Text, Reasoning, Refusal)), "pieces belong to such a part"
            last.text += "".join(self._pieces)
            self._pieces.clear()

    def choice(self) -> Choice:
        self._join()
        for call, pieces in self._calls.values():
            call.arguments += "".join(pieces)
            pieces.clear()
        self._choice.parts = [part for part in self._parts if not (isinstance(part, Text) and not part.text)]
        self._choice.logprobs = msgspec.Raw(msgspec.json.encode(self._logprobs)) if self._logprobs else None
        return self._choice


def fold(events: Iterable[Event]) -> Answer:
    """A whole stream as one answer."""
    folding = Folding()
    for event in events:
        folding.add(event)
    return folding.answer()


def unfold(answer: Answer) -> list[Event]:
    """A whole answer as the shortest stream that folds back to it."""
    events: list[Event] = [Started(answer.id, answer.model, answer.created)]
    for index, choice in enumerate(answer.choices):
        calls = 0
        for part in choice.parts:
            if isinstance(part, ToolCall):
                events.append(ToolCallStarted(calls, part.id, part.name, part.seal, index))
                events.append(ToolCallDelta(calls, part.arguments, index))
                calls += 1
            else:
                events += _events_of(part, index)
        if choice.logprobs is not None:
            events.append(LogprobsAdded(choice.logprobs, index))
        events.append(Finished(choice.finish, choice.raw_finish, choice.stop_sequence, index))
    if answer.raw_usage is not None or answer.usage is not None or answer.service_tier is not None:
        events.append(UsageReported(answer.usage, answer.raw_usage, answer.service_tier))
    return events


def _events_of(part: Part, choice: int) -> list[Event]:
    if isinstance(part, Text):
        events: list[Event] = [TextDelta(part.text, choice, begins_part=True)]
        return events + [CitationAdded(citation, choice) for citation in part.citations]
    if isinstance(part, Refusal):
        return [RefusalDelta(part.text, choice)]
    if isinstance(part, Reasoning):
        end = ReasoningEnded(part.seal, part.id, part.is_redacted, choice)
        return [end] if part.is_redacted else [ReasoningDelta(part.text, choice), end]
    if isinstance(part, (Media, Opaque)):
        return [PartAdded(part, choice)]
    return []  # results of tools and calls: the former stand in requests only, the latter are counted by the caller
