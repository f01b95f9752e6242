"""The two sides speak different protocols: through the canonical form, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.adapters.base import Call
from gateway.adapters.cutting import Cutter
from gateway.adapters.emulation import Emulation, ToolAsText, restore_answer
from gateway.canonical import (
    Answer,
    Event,
    Finished,
    PartAdded,
    Reasoning,
    ReasoningDelta,
    Refusal,
    RefusalDelta,
    Request,
    Started,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.config.rows import Dialect
from gateway.errors import UpstreamError
from gateway.protocols.base import ConversationProtocol, StreamDecoder, StreamReader, StreamWriter, Summary, Wire
from gateway.protocols.framing import as_utf8
from gateway.types import Usage
from gateway.upstream.request import UpstreamRequest

_MAX_TEXT = 4 * 1024 * 1024
"""Characters of an answer that are kept for counting its tokens."""
_PLAIN_FINISHES = ("stop", "unknown")


class Translation(Call):
    """`asked`: the client's request; `model`: what the upstream is asked for."""

    def __init__(
        self,
        *,
        protocol: ConversationProtocol,
        asked: Request,
        wire: Wire,
        emulation: Emulation,
        request: UpstreamRequest,
        model: str,
        dialect: Dialect,
        dropped: Sequence[str],
    ) -> None:
        self.request = request
        self.note = _note(protocol.wire, wire.name, dropped, emulation)
        self._protocol = protocol
        self._asked = asked
        self._wire = wire
        self._emulation = emulation
        self._model = model
        self._dialect = dialect

    def read_answer(self, body: bytes) -> tuple[bytes, Summary]:
        answer = self._wire.read_answer(as_utf8(body), self._dialect)
        answer.model = answer.model or self._model
        if self._emulation.uses_tool:
            answer = restore_answer(answer)
        finish = answer.choices[0].raw_finish if answer.choices else None
        text = "" if answer.usage is not None else _written(answer)
        nothing, tier = not _says_anything(answer), answer.service_tier
        summary = Summary(answer.usage, answer.raw_usage, finish, text, is_empty=nothing, service_tier=tier)
        return self._protocol.write_answer(answer, self._asked), summary

    def open_stream(self) -> StreamReader:
        return TranslatingReader(
            self._wire.open_decoder(self._dialect),
            self._protocol.open_writer(self._asked),
            self._model,
            ToolAsText() if self._emulation.uses_tool else None,
            Cutter(self._wire.name),
        )


class TranslatingReader:
    """See `protocols.base.StreamReader`."""

    def __init__(
        self,
        decoder: StreamDecoder,
        writer: StreamWriter,
        model: str,
        tool_as_text: ToolAsText | None,
        cutter: Cutter,
    ) -> None:
        self.has_content = False
        self.is_finished = False
        self.is_empty = True
        self.usage: Usage | None = None
        self.raw_usage: msgspec.Raw | None = None
        self.finish_reason: str | None = None
        self.service_tier: str | None = None
        self._decoder = decoder
        self._writer = writer
        self._model = model
        self._tool_as_text = tool_as_text
        self._cutter = cutter
        self._has_started = False
        self._text: list[str] = []
        self._text_length = 0

    def feed(self, chunk: bytes) -> bytes:
        shown = b""
        try:
            for piece in self._cutter.cut(chunk):
                shown += self._show(self._decoder.feed(piece))
        except UpstreamError as error:
            error.before = shown
            raise
        if self._decoder.is_finished and not self.is_finished:
            shown += self._end()
        return shown

    def finish(self) -> bytes:
        shown = self._show(self._decoder.finish())
        return shown if self.is_finished else shown + self._end()

    def text(self) -> str:
        return "".join(self._text)

    def _end(self) -> bytes:
        self.is_finished = self.has_content = True
        return self._start() + self._writer.end()

    def _start(self) -> bytes:
        """A stream whose upstream never named itself starts all the same."""
        if self._has_started:
            return b""
        self._has_started = True
        return self._writer.write(Started(model=self._model))

    def _show(self, events: Iterable[Event]) -> bytes:
        if self._tool_as_text is not None:
            events = self._tool_as_text.restore(events)
        return b"".join([self._show_event(event) for event in events])

    def _show_event(self, event: Event) -> bytes:
        if isinstance(event, Started):
            if self._has_started:
                return b""
            self._has_started = True
            return self._writer.write(Started(event.id, event.model or self._model, event.created))
        self._learn(event)
        return self._start() + self._writer.write(event)

    def _learn(self, event: Event) -> None:
        if isinstance(event, UsageReported):
            self.usage, self.raw_usage = event.usage, event.raw
            self.service_tier = event.service_tier or self.service_tier
        elif isinstance(event, Finished):
            self.finish_reason = event.raw
        text = _text_of(event)
        if text or isinstance(event, (ToolCallStarted, PartAdded)) or _is_cut_short(event):
            self.has_content, self.is_empty = True, False
        if text and self._text_length < _MAX_TEXT:
            self._text.append(text)
            self._text_length += len(text)


def _text_of(event: Event) -> str:
    if isinstance(event, (TextDelta, ReasoningDelta, RefusalDelta)):
        return event.text
    if isinstance(event, ToolCallStarted):
        return event.name
    return event.arguments if isinstance(event, ToolCallDelta) else ""


def _is_cut_short(event: Event) -> bool:
    """Whether an answer that ends so means something also without content: it was filtered, refused or too long."""
    return isinstance(event, Finished) and event.finish not in _PLAIN_FINISHES


def _says_anything(answer: Answer) -> bool:
    return any(
        choice.finish not in _PLAIN_FINISHES
        or any(not isinstance(part, (Text, Reasoning, Refusal)) or part.text for part in choice.parts)
        for choice in answer.choices
    )


def _written(answer: Answer) -> str:
    """Everything that the model wrote."""
    pieces = []
    for choice in answer.choices:
        for part in choice.parts:
            if isinstance(part, (Text, Reasoning, Refusal)):
                pieces.append(part.text)
            elif isinstance(part, ToolCall):
                pieces += [part.name, part.arguments]
    return "".join(pieces)


def _note(client: str, upstream: str, dropped: Sequence[str], emulation: Emulation) -> str:
    words = [f"{client}>{upstream}"]
    if dropped:
        words.append(f"dropped={','.join(dropped)}")
    if emulation.by is not None:
        words.append(f"emulated=json_schema:{emulation.by}")
    return "; ".join(words)
