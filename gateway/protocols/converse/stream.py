"""A stream of ConverseStream: its messages as events.

messageStart, then for each block contentBlockStart (only of calls, results and images), contentBlockDelta and
contentBlockStop, then messageStop, then metadata with the usage. Errors come as messages of the types `exception` and
`error`. Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Literal

import msgspec

from gateway.canonical import (
    CitationAdded,
    Event,
    Finished,
    Media,
    Opaque,
    PartAdded,
    ReasoningDelta,
    ReasoningEnded,
    Seal,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError
from gateway.protocols.converse.answer import (
    FINISHES,
    SERVER_TOOL,
    CitationBlock,
    MediaSource,
    Tier,
    read_citation,
    stop_sequence_of,
)
from gateway.protocols.converse.eventstream import Message, MessageSplitter
from gateway.protocols.converse.media import media_type_of
from gateway.protocols.converse.reading import MAX_BLOCKS, read_json
from gateway.protocols.converse.usage import kept, read_usage
from gateway.protocols.framing import MAX_EVENT_BYTES, as_utf8

_ERROR_NAME = re.compile(r"[A-Za-z]{1,64}")


class _ToolUseStart(msgspec.Struct):
    toolUseId: str
    name: str
    type: str | None = None


class _ImageStart(msgspec.Struct):
    format: str = ""


class _Start(msgspec.Struct):
    toolUse: _ToolUseStart | None = None
    toolResult: dict[str, Any] | None = None
    image: _ImageStart | None = None


class _ToolUseDelta(msgspec.Struct):
    input: str = ""


class _ReasoningDelta(msgspec.Struct):
    text: str | None = None
    signature: str | None = None
    redactedContent: str | None = None


class _ImageDelta(msgspec.Struct):
    source: MediaSource | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    toolUse: _ToolUseDelta | None = None
    toolResult: list[msgspec.Raw] | None = None
    reasoningContent: _ReasoningDelta | None = None
    citation: CitationBlock | None = None
    image: _ImageDelta | None = None


class _BlockStart(msgspec.Struct):
    contentBlockIndex: int
    start: _Start


class _BlockDelta(msgspec.Struct):
    contentBlockIndex: int
    delta: _Delta


class _BlockStop(msgspec.Struct):
    contentBlockIndex: int


class _MessageStop(msgspec.Struct):
    stopReason: str
    additionalModelResponseFields: Any = None


class _Metadata(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    serviceTier: Tier | None = None


_block_start = msgspec.json.Decoder(_BlockStart)
_block_delta = msgspec.json.Decoder(_BlockDelta)
_block_stop = msgspec.json.Decoder(_BlockStop)
_message_stop = msgspec.json.Decoder(_MessageStop)
_metadata = msgspec.json.Decoder(_Metadata)


class _Block(msgspec.Struct):
    """The block under way: what can be told only at its end."""

    index: int
    kind: Literal["text", "reasoning", "call", "opaque", "image", "new"] = "new"
    call: int = 0  # the call's number
    length: int = 0  # characters of its text so far
    citations: list[CitationBlock] = []
    signature: list[str] = []
    redacted: list[str] = []
    opaque: dict[str, Any] = {}
    pieces: list[str] = []  # of the input of a call that Bedrock answers, or of an image
    results: list[msgspec.Raw] = []
    format: str = ""


class ConverseDecoder:
    """Reads one stream."""

    def __init__(self) -> None:
        self.is_finished = False
        self._splitter = MessageSplitter()
        self._block: _Block | None = None
        self._blocks = 0
        self._calls = 0
        self._held = 0  # bytes kept for the block under way
        self._has_stopped = False
        self._has_usage = False

    def feed(self, chunk: bytes) -> list[Event]:
        """Raises UpstreamProtocolError, or StreamError for an error that the upstream sent."""
        events: list[Event] = []
        for message in self._splitter.feed(chunk):
            self._read(message, events)
        return events

    def finish(self) -> list[Event]:
        """Raises UpstreamDisconnected before the message has stopped; a stream that lacks only its usage is whole."""
        if not self._has_stopped:
            raise UpstreamDisconnected("the stream ended before the answer did", received=True)
        self.is_finished = True
        return []

    def _read(self, message: Message, events: list[Event]) -> None:
        name, payload = message.header(":event-type"), as_utf8(message.payload)
        check_for_error(message)
        if name == "contentBlockDelta":
            delta = read_json(_block_delta.decode, payload)
            self._read_delta(self._open(delta.contentBlockIndex, events), delta.delta, events)
        elif name == "contentBlockStart":
            start = read_json(_block_start.decode, payload)
            self._end_block(events)
            self._read_start(self._open(start.contentBlockIndex, events), start.start, events)
        elif name == "contentBlockStop":
            if (
                self._block is not None
                and read_json(_block_stop.decode, payload).contentBlockIndex == self._block.index
            ):
                self._end_block(events)
        elif name == "messageStart":
            events.append(Started())
        elif name == "messageStop":
            self._end_block(events)
            stop = read_json(_message_stop.decode, payload)
            sequence = stop_sequence_of(stop.additionalModelResponseFields)
            events.append(Finished(FINISHES.get(stop.stopReason, "unknown"), stop.stopReason, sequence))
            self._has_stopped = True
        elif name == "metadata":
            metadata = read_json(_metadata.decode, payload)
            tier = metadata.serviceTier.type if metadata.serviceTier is not None else None
            events.append(UsageReported(read_usage(metadata.usage), kept(metadata.usage), tier))
            self._has_usage = True
        self.is_finished = self._has_stopped and self._has_usage

    def _open(self, index: int, events: list[Event]) -> _Block:
        """The block of this index; one under way with another index has ended."""
        if self._block is None or self._block.index != index:
            self._end_block(events)
            self._blocks += 1
            if not 0 <= index <= MAX_BLOCKS or self._blocks > MAX_BLOCKS:
                raise UpstreamProtocolError("the upstream's answer has too many blocks")
            self._block = _Block(index)
        return self._block

    def _read_start(self, block: _Block, start: _Start, events: list[Event]) -> None:
        if start.toolUse is not None and start.toolUse.type == SERVER_TOOL:
            block.kind, block.opaque = "opaque", {"toolUse": msgspec.to_builtins(start.toolUse)}
        elif start.toolUse is not None:
            block.kind, block.call = "call", self._calls
            events.append(ToolCallStarted(self._calls, start.toolUse.toolUseId, start.toolUse.name))
            self._calls += 1
        elif start.toolResult is not None:
            block.kind, block.opaque = "opaque", {"toolResult": start.toolResult}
        elif start.image is not None:
            block.kind, block.format = "image", start.image.format

    def _read_delta(self, block: _Block, delta: _Delta, events: list[Event]) -> None:
        if delta.text is not None:
            if delta.text:
                events.append(TextDelta(delta.text, begins_part=not block.length))
            block.kind, block.length = "text", block.length + len(delta.text)
        elif delta.toolUse is not None:
            self._read_input(block, delta.toolUse.input, events)
        elif delta.reasoningContent is not None:
            self._read_reasoning(block, delta.reasoningContent, events)
        elif delta.citation is not None:
            self._hold(512)
            block.citations.append(delta.citation)
        elif delta.toolResult is not None:
            self._hold(sum(map(len, delta.toolResult)))
            block.results += delta.toolResult
        elif delta.image is not None and delta.image.source is not None and delta.image.source.bytes is not None:
            self._hold(len(delta.image.source.bytes))
            block.pieces.append(delta.image.source.bytes)

    def _read_input(self, block: _Block, piece: str, events: list[Event]) -> None:
        if block.kind == "call":
            if piece:
                events.append(ToolCallDelta(block.call, piece))
        elif block.kind == "opaque":
            self._hold(len(piece))
            block.pieces.append(piece)
        else:
            raise UpstreamProtocolError("a piece of a tool's input came before the call")

    def _read_reasoning(self, block: _Block, delta: _ReasoningDelta, events: list[Event]) -> None:
        block.kind = "reasoning"
        if delta.text:
            events.append(ReasoningDelta(delta.text))
            block.length += len(delta.text)
        if delta.signature is not None:
            self._hold(len(delta.signature))
            block.signature.append(delta.signature)
        if delta.redactedContent is not None:
            self._hold(len(delta.redactedContent))
            block.redacted.append(delta.redactedContent)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > MAX_EVENT_BYTES:
            raise UpstreamProtocolError("a block of the stream is too long")

    def _end_block(self, events: list[Event]) -> None:
        block, self._block, self._held = self._block, None, 0
        if block is None:
            return
        if block.kind == "reasoning":
            events += _end_reasoning(block)
        elif block.kind == "opaque":
            events.append(PartAdded(_opaque_of(block)))
        elif block.kind == "image" and block.pieces:
            data = _join_base64(block.pieces)
            events.append(PartAdded(Media("image", data=data, media_type=media_type_of("image", block.format))))
        found = (read_citation(citation, block.length or None) for citation in block.citations)
        events += [CitationAdded(citation) for citation in found if citation is not None]


def check_for_error(message: Message) -> None:
    """Raises StreamError for an error; its text is not repeated, as it may quote secrets."""
    kind = message.header(":message-type")
    name = message.header(":exception-type") or message.header(":error-code") or message.header(":event-type")
    if kind in ("exception", "error") or name.endswith("Exception"):
        known = f"`{name}`" if _ERROR_NAME.fullmatch(name) else "an error"
        raise StreamError(f"the upstream sent {known} in its stream")


def _end_reasoning(block: _Block) -> list[Event]:
    if block.redacted:
        return [ReasoningEnded(Seal(_join_base64(block.redacted), "converse"), is_redacted=True)]
    signature = "".join(block.signature)
    if not (signature or block.length):
        return []
    return [ReasoningEnded(Seal(signature, "converse") if signature else None)]


def _opaque_of(block: _Block) -> Opaque:
    """The block as a whole answer has it."""
    if "toolUse" in block.opaque:
        block.opaque["toolUse"]["input"] = _json_of("".join(block.pieces) or "{}")
    else:
        block.opaque["toolResult"]["content"] = block.results
    return Opaque(msgspec.Raw(msgspec.json.encode(block.opaque)), "converse")


def _json_of(text: str) -> Any:
    """The input as it is, or as a text if it is no JSON."""
    try:
        msgspec.json.decode(text)
    except (*NOT_JSON, UnicodeEncodeError):
        return text
    return msgspec.Raw(text.encode())


def _join_base64(pieces: list[str]) -> str:
    """Each piece is padded for itself. Raises UpstreamProtocolError."""
    if len(pieces) == 1:
        return pieces[0]
    try:
        return base64.b64encode(b"".join(base64.b64decode(piece, validate=True) for piece in pieces)).decode()
    except (binascii.Error, ValueError):
        raise UpstreamProtocolError("a block of bytes in the stream is not base64") from None
