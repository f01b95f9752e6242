"""The events of a stream, as both the decoder and the scanner know them.

Source: Anthropic API reference, "Streaming messages" (platform.claude.com/docs/en/build-with-claude/streaming).
`message_start`, then for each block `content_block_start`, deltas, `content_block_stop`; then `message_delta`,
`message_stop`. `ping` may stand anywhere, and events yet unknown too. `error` ends a stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError
from gateway.protocols.messages.answer import MAX_BLOCKS, StopDetails
from gateway.protocols.messages.blocks import Kind
from gateway.protocols.messages.mending import decode_mended
from gateway.protocols.messages.usage import is_absent


class Start(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw()


class Delta(msgspec.Struct):
    """Of a block (by `type`), or of the message (the fields that begin with `stop`)."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    citation: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None


class BlockStart(msgspec.Struct):
    """What a block begins with. Of a block of a kind not known here only `type` is read."""

    type: str
    id: str | None = None
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class StreamEvent(msgspec.Struct):
    type: str | None = None
    index: int | None = None
    message: msgspec.Raw = msgspec.Raw()
    content_block: msgspec.Raw = msgspec.Raw()
    delta: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


_T = TypeVar("_T")
_KNOWN_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
_decode_event = msgspec.json.Decoder(StreamEvent).decode
_decode_kind = msgspec.json.Decoder(Kind).decode
_decode_block = msgspec.json.Decoder(BlockStart).decode
_decode_delta = msgspec.json.Decoder(Delta).decode
_decode_start = msgspec.json.Decoder(Start).decode


def read_event(data: bytes, name: bytes = b"") -> StreamEvent | None:
    """One event; None: the `[DONE]` that servers of other makers end with. `name`: of the event's own line.

    Raises UpstreamProtocolError, and StreamError for an error.
    """
    if name == b"error":
        raise StreamError("upstream sent an error inside the stream")
    if data.startswith(b"[DONE]"):
        return None
    event = _decode(_decode_event, data)
    if event.type == "error" or not is_absent(event.error):
        raise StreamError("upstream sent an error inside the stream")
    if event.index is not None and not 0 <= event.index < MAX_BLOCKS:
        raise UpstreamProtocolError(f"a stream of more than {MAX_BLOCKS} blocks")
    return event


def read_start(event: StreamEvent) -> Start:
    return Start() if is_absent(event.message) else _decode(_decode_start, event.message)


def read_block_start(event: StreamEvent) -> BlockStart:
    kind = _decode(_decode_kind, event.content_block).type
    return _decode(_decode_block, event.content_block) if kind in _KNOWN_BLOCKS else BlockStart(kind)


def read_delta(event: StreamEvent) -> Delta:
    return Delta() if is_absent(event.delta) else _decode(_decode_delta, event.delta)


def _decode(decode: Callable[[bytes], _T], data: bytes) -> _T:
    try:
        return decode_mended(decode, data)
    except NOT_JSON as error:
        raise UpstreamProtocolError(f"an event of the stream is malformed: {error}") from None
