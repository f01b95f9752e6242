"""Whole answers of the Responses API, read to the canonical form or only looked at on their way to the client.

Source: OpenAI API reference, "The response object", "Compact a response", "Get input token counts"
(platform.openai.com/docs/api-reference/responses: .../object, .../compact, .../input-tokens).

The provider's own word for the end is `status`. `incomplete` is a normal end: `incomplete_details.reason` says which.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.canonical import (
    Answer,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import MAX_TOKENS, NOT_JSON, StreamError, Summary
from gateway.protocols.raw import is_empty
from gateway.protocols.responses.decoding import read
from gateway.protocols.responses.output import Output
from gateway.protocols.responses.usage import copy_usage, read_usage


class _IncompleteDetails(msgspec.Struct):
    reason: str | None = None


class Envelope(msgspec.Struct):
    """A response object, or a compaction, which has no status."""

    id: str | None = None
    model: str | None = None
    created_at: int | float | None = None
    status: str | None = None
    incomplete_details: _IncompleteDetails | None = None
    output: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    service_tier: str | None = None
    error: msgspec.Raw = msgspec.Raw()

    @property
    def created(self) -> int | None:
        return None if self.created_at is None else int(self.created_at)


class _Part(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str | None = None
    content: list[_Part] | None = None


class _Count(msgspec.Struct):
    input_tokens: int


_decode = msgspec.json.Decoder(Envelope).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_count = msgspec.json.Decoder(_Count).decode
_REASONS: dict[str | None, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}
_UNFINISHED = frozenset({"queued", "in_progress"})  # of a response in the background


def read_envelope(data: bytes | msgspec.Raw) -> Envelope:
    """Raises UpstreamProtocolError."""
    return read(_decode, data, "a response")


def read_answer(body: bytes) -> Answer:
    """A response, or a compaction. Raises UpstreamProtocolError when it is none or not finished, StreamError for a
    failed one and for an error in its place."""
    envelope = _read_sound(body)
    if envelope.status in _UNFINISHED:
        raise UpstreamProtocolError("a response that is not finished")
    output = Output()
    events: list[Event] = [Started(envelope.id, envelope.model, envelope.created)]
    for index, item in enumerate(envelope.output or ()):
        events += output.finish(index, item)
    return fold(events + ending(envelope, output))


def scan_answer(body: bytes) -> Summary:
    """As `read_answer`, but that a response in the background need not be finished."""
    envelope = _read_sound(body)
    usage = read_usage(envelope.usage)
    output = Output()
    items = enumerate(envelope.output or ())
    text = "" if usage is not None else written_text(event for at, item in items for event in output.finish(at, item))
    raw, nothing = copy_usage(envelope.usage), says_nothing(envelope)
    return Summary(usage, raw, envelope.status, text, is_empty=nothing, service_tier=envelope.service_tier)


def says_nothing(envelope: Envelope) -> bool:
    """Whether it ended in order and has nothing but messages without a word."""
    return envelope.status == "completed" and all(map(is_hollow, envelope.output or ()))


def is_hollow(item: msgspec.Raw) -> bool:
    """A message without a word: begun, or empty for good."""
    try:
        found = _decode_item(item)
    except NOT_JSON:
        return False
    return found.type == "message" and not any(part.text or part.refusal for part in found.content or ())


def read_count(body: bytes) -> int:
    """The answer of `POST /responses/input_tokens`, in tokens. Raises UpstreamProtocolError."""
    count = read(_decode_count, body, "a token count").input_tokens
    if not 0 <= count <= MAX_TOKENS:
        raise UpstreamProtocolError("a token count out of range")
    return count


def ending(envelope: Envelope, output: Output) -> list[Event]:
    """The last events: how it ended, and what it used."""
    usage = UsageReported(read_usage(envelope.usage), copy_usage(envelope.usage), envelope.service_tier)
    reports = [] if usage.raw is None and usage.service_tier is None else [usage]
    return [*output.end(), Finished(_finish(envelope, output), envelope.status), *reports]


def written_text(events: Iterable[Event]) -> str:
    """All that the model wrote, also its thoughts and the arguments of its calls."""
    pieces = []
    for event in events:
        if isinstance(event, (TextDelta, ReasoningDelta, RefusalDelta)):
            pieces.append(event.text)
        elif isinstance(event, ToolCallStarted):
            pieces.append(event.name)
        elif isinstance(event, ToolCallDelta):
            pieces.append(event.arguments)
    return "".join(pieces)


def _read_sound(body: bytes) -> Envelope:
    envelope = read_envelope(body)
    if not is_empty(envelope.error) or envelope.status == "failed":
        raise StreamError("upstream answered 200 with an error", body)
    if envelope.output is None or envelope.status == "cancelled":
        raise UpstreamProtocolError("not a response")
    return envelope


def _finish(envelope: Envelope, output: Output) -> FinishReason:
    if envelope.status == "incomplete":
        details = envelope.incomplete_details
        return _REASONS.get(None if details is None else details.reason, "unknown")
    if output.has_calls:
        return "tool_calls"
    return "refusal" if output.has_refusal else "stop"
