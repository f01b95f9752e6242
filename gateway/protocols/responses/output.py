"""The items of an answer, becoming canonical events: delta by delta, or whole.

Source: OpenAI API reference, "Responses", the response object's `output` and its streaming events
(platform.openai.com/docs/api-reference/responses/object, .../responses-streaming).

Servers differ in what they repeat. Deltas are remembered, and whatever a `done` event or the final response has beyond
them is given out then: nothing is lost where deltas are left out, nothing comes twice. Where the whole contradicts its
deltas, these stand: the client has seen them. Items are told apart by their place (`output_index`); some servers give
the same item another id in every event.

One item of reasoning is one part: its summaries and its text one after the other, sealed by `encrypted_content`. One
with neither is left out, it is a reference to what the provider keeps. A custom tool's input, which is any text,
becomes the tool call's arguments as a JSON string. Items of server-side tools, and unknown ones, are opaque.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.canonical import (
    Citation,
    CitationAdded,
    Event,
    LogprobsAdded,
    Opaque,
    PartAdded,
    ReasoningDelta,
    ReasoningEnded,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from gateway.errors import UpstreamProtocolError
from gateway.protocols.responses.decoding import read
from gateway.protocols.seal import unpack_seal

MAX_INDEX = 1024
"""No answer has more items, and no item more parts; an index beyond it is an upstream's mistake."""

Channel = Literal["text", "refusal", "summary", "reasoning", "arguments", "input"]
"""What an item is written in: the parts of a message, of a reasoning item, the arguments or input of a call."""


class _Head(msgspec.Struct):
    type: str = ""


class Annotation(msgspec.Struct):
    """Of a text. Only an address of the web has a canonical form; what names a file means something to its provider."""

    type: str = ""
    url: str | None = None
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class _Content(msgspec.Struct):
    type: str = ""
    text: str | None = None
    refusal: str | None = None
    annotations: list[Annotation] | None = None
    logprobs: list[msgspec.Raw] | None = None


class _Message(msgspec.Struct):
    role: str | None = None
    content: str | list[_Content] | None = None


class _Reasoning(msgspec.Struct):
    id: str | None = None
    summary: list[_Content] | None = None
    content: list[_Content] | None = None
    encrypted_content: str | None = None


class _Call(msgspec.Struct):
    """`arguments`: text of a JSON object; some servers send the object itself. `input`: of a custom tool."""

    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw()
    input: str | None = None


class _Draft(msgspec.Struct):
    """An item so far. `given`: the pieces given out, by channel and place. `call`: the index of the tool call."""

    type: str
    given: dict[tuple[Channel, int], list[str]] = {}
    citations: dict[int, int] = {}
    call: int | None = None
    has_logprobs: bool = False
    is_done: bool = False


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_reasoning = msgspec.json.Decoder(_Reasoning).decode
_decode_call = msgspec.json.Decoder(_Call).decode
_decode_annotation = msgspec.json.Decoder(Annotation).decode
_decode_text = msgspec.json.Decoder(str).decode
_CALLS = frozenset({"function_call", "custom_tool_call"})


class Output:
    """The items of one answer. Every method returns the events that its argument adds."""

    def __init__(self) -> None:
        self.has_refusal = False
        self._calls = 0
        self._drafts: dict[int, _Draft] = {}
        self._thinking: int | None = None  # the reasoning item under way

    @property
    def has_calls(self) -> bool:
        return self._calls > 0

    @property
    def length(self) -> int:
        """One more than the last place seen."""
        return max(self._drafts, default=-1) + 1

    def is_under_way(self, index: int, raw: msgspec.Raw) -> bool:
        """Whether an item of this kind began in this place and has not been finished."""
        draft = self._drafts.get(index)
        return draft is not None and not draft.is_done and draft.type in ("", read(_decode_head, raw).type)

    def add(self, index: int, raw: msgspec.Raw) -> list[Event]:
        """An item begins. Raises UpstreamProtocolError, as all of these do."""
        draft = self._draft(index, read(_decode_head, raw).type)
        events = self._leave(index)
        if draft.type in _CALLS:
            events += self._start_call(draft, read(_decode_call, raw))
        return events

    def extend(self, index: int, channel: Channel, place: int, piece: str) -> list[Event]:
        """A delta. Calls whose name did not come yet wait for the whole item."""
        draft = self._draft(index, "")
        if not 0 <= place <= MAX_INDEX:
            raise UpstreamProtocolError("an item with too many parts")
        if not piece or (channel in ("arguments", "input") and draft.call is None):
            return []
        events = self._leave(index)
        pieces = draft.given.setdefault((channel, place), [])
        pieces.append(piece)
        if channel == "text":
            return [*events, TextDelta(piece, begins_part=len(pieces) == 1)]
        if channel == "refusal":
            self.has_refusal = True
            return [*events, RefusalDelta(piece)]
        if draft.call is not None:
            return [*events, ToolCallDelta(draft.call, piece if channel == "arguments" else _escaped(piece))]
        self._thinking = index
        return [*events, ReasoningDelta(piece)]

    def complete(self, index: int, channel: Channel, place: int, whole: str) -> list[Event]:
        """The whole of what `extend` gave in pieces: the rest of it, where there is any."""
        given = "".join(self._draft(index, "").given.get((channel, place), ()))
        return self.extend(index, channel, place, whole.removeprefix(given)) if whole.startswith(given) else []

    def cite(self, index: int, place: int, raw: msgspec.Raw) -> list[Event]:
        """An annotation of a text."""
        draft = self._draft(index, "")
        draft.citations[place] = draft.citations.get(place, 0) + 1
        return _cited(read(_decode_annotation, raw))

    def add_logprobs(self, index: int, items: list[msgspec.Raw] | None) -> list[Event]:
        if not items:
            return []
        self._draft(index, "").has_logprobs = True
        return [LogprobsAdded(msgspec.Raw(msgspec.json.encode(items)))]

    def finish(self, index: int, raw: msgspec.Raw) -> list[Event]:
        """A whole item: what was not given out of it yet."""
        kind = read(_decode_head, raw).type
        draft = self._draft(index, kind)
        if draft.is_done:
            return []
        draft.is_done = True
        if kind == "message":
            return self._finish_message(index, draft, read(_decode_message, raw))
        if kind == "reasoning":
            return self._finish_reasoning(index, read(_decode_reasoning, raw))
        if kind in _CALLS:
            return self._finish_call(index, draft, read(_decode_call, raw))
        return [*self._leave(index), PartAdded(Opaque(msgspec.Raw(bytes(raw)), "responses"))]

    def end(self) -> list[Event]:
        """No item is under way any more."""
        return self._leave(-1)

    def _draft(self, index: int, kind: str) -> _Draft:
        if not 0 <= index <= MAX_INDEX:
            raise UpstreamProtocolError("an answer with too many items")
        draft = self._drafts.get(index)
        if draft is None:
            draft = self._drafts[index] = _Draft(kind)
        elif kind and not draft.type:
            draft.type = kind
        return draft

    def _leave(self, index: int) -> list[Event]:
        """Ends the reasoning of another item: parts stand one after the other. Its seal, if it comes later, will be a
        part of its own."""
        if self._thinking is None or self._thinking == index:
            return []
        self._thinking = None
        return [ReasoningEnded()]

    def _start_call(self, draft: _Draft, call: _Call) -> list[Event]:
        if draft.call is not None or not call.name:
            return []
        if self._calls > MAX_INDEX:
            raise UpstreamProtocolError("an answer with too many tool calls")
        draft.call, self._calls = self._calls, self._calls + 1
        events: list[Event] = [ToolCallStarted(draft.call, call.call_id or call.id or "", call.name)]
        return events if draft.type == "function_call" else [*events, ToolCallDelta(draft.call, '"')]

    def _finish_message(self, index: int, draft: _Draft, message: _Message) -> list[Event]:
        if message.role not in (None, "assistant"):
            return []  # a compacted conversation repeats what the user said
        contents = message.content or []
        if isinstance(contents, str):
            contents = [_Content("output_text", contents)]
        events: list[Event] = []
        logprobs: list[msgspec.Raw] = []
        for place, content in enumerate(contents):
            if content.type == "refusal":
                events += self.complete(index, "refusal", place, content.refusal or "")
            elif content.text:
                events += self.complete(index, "text", place, content.text)
                for annotation in (content.annotations or ())[draft.citations.get(place, 0) :]:
                    events += _cited(annotation)
                logprobs += content.logprobs or ()
        return events if draft.has_logprobs else events + self.add_logprobs(index, logprobs)

    def _finish_reasoning(self, index: int, item: _Reasoning) -> list[Event]:
        events: list[Event] = []
        for place, summary in enumerate(item.summary or ()):
            events += self.complete(index, "summary", place, summary.text or "")
        for place, content in enumerate(item.content or ()):
            events += self.complete(index, "reasoning", place, content.text or "")
        seal = unpack_seal(item.encrypted_content, "responses") if item.encrypted_content else None
        if self._thinking == index:
            self._thinking = None
            return [*events, ReasoningEnded(seal, item.id)]
        if seal is None:
            return events
        return [*events, *self._leave(index), ReasoningEnded(seal, item.id, is_redacted=True)]

    def _finish_call(self, index: int, draft: _Draft, call: _Call) -> list[Event]:
        events = self._leave(index) + self._start_call(draft, call)
        if draft.call is None:
            raise UpstreamProtocolError("a tool call without a name")
        if draft.type == "function_call":
            return events + self.complete(index, "arguments", 0, _text_of(call.arguments))
        return [*events, *self.complete(index, "input", 0, call.input or ""), ToolCallDelta(draft.call, '"')]


def read_citation(annotation: Annotation) -> Citation | None:
    if annotation.url is None:
        return None
    return Citation(annotation.url, annotation.title, annotation.start_index, annotation.end_index)


def _cited(annotation: Annotation) -> list[Event]:
    citation = read_citation(annotation)
    return [] if citation is None else [CitationAdded(citation)]


def _text_of(raw: msgspec.Raw) -> str:
    """Arguments as text, whether they came as text or as the object itself."""
    if len(raw) == 0 or bytes(raw) == b"null":
        return ""
    if bytes(raw)[:1] == b'"':
        return read(_decode_text, raw)
    return bytes(raw).decode("utf-8", "replace")


def _escaped(piece: str) -> str:
    """A piece of text as a piece of a JSON string."""
    return msgspec.json.encode(piece).decode()[1:-1]
