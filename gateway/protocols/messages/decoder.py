"""A stream of Anthropic's events as canonical ones."""

from __future__ import annotations

import msgspec

from gateway.canonical import (
    Citation,
    CitationAdded,
    Event,
    Finished,
    Opaque,
    PartAdded,
    ReasoningDelta,
    ReasoningEnded,
    RefusalDelta,
    Seal,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.protocols.base import NOT_JSON
from gateway.protocols.framing import SseEvent, SseSplitter
from gateway.protocols.messages.answer import FINISHES
from gateway.protocols.messages.blocks import WIRE, read_citations
from gateway.protocols.messages.events import (
    BlockStart,
    Delta,
    StreamEvent,
    read_block_start,
    read_delta,
    read_event,
    read_start,
)
from gateway.protocols.messages.mending import decode_mended
from gateway.protocols.messages.usage import is_absent, merge_usage, read_tier, read_usage

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MessagesDecoder:
    """See `protocols.base.StreamDecoder`."""

    def __init__(self) -> None:
        self.is_finished = False
        self._splitter = SseSplitter()
        self._has_started = False
        self._blocks: dict[int, _Block] = {}  # under way, by their index
        self._calls = 0
        self._usage: msgspec.Raw | None = None
        self._is_usage_told = True
        self._finish: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for item in self._splitter.feed(chunk):
            self._read(item, events)
        return events

    def finish(self) -> list[Event]:
        events: list[Event] = []
        for item in self._splitter.finish():
            self._read(item, events)
        if not self.is_finished and self._finish is None:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        if not self.is_finished:
            self._stop(events)
        return events

    def _read(self, item: SseEvent, events: list[Event]) -> None:
        if self.is_finished:
            return
        event = read_event(item.data, item.name)
        if event is None:
            return
        if event.type == "content_block_delta":
            self._read_delta(event, events)
        elif event.type == "content_block_start":
            self._start_block(event, events)
        elif event.type == "content_block_stop":
            self._stop_block(event.index, events)
        elif event.type == "message_start":
            self._start(event, events)
        elif event.type == "message_delta":
            self._read_message_delta(event, events)
        elif event.type == "message_stop":
            if not self._has_started:
                raise UpstreamProtocolError("a stream without a message")
            self._stop(events)

    def _start(self, event: StreamEvent, events: list[Event]) -> None:
        self._has_started = True
        start = read_start(event)
        self._tell_usage_later(start.usage)
        events.append(Started(start.id, start.model))

    def _start_block(self, event: StreamEvent, events: list[Event]) -> None:
        self._has_started = True
        start = read_block_start(event)
        index = len(self._blocks) if event.index is None else event.index
        self._stop_block(index, events)
        block = self._blocks[index] = _Block(start, msgspec.Raw(bytes(event.content_block)))
        if start.type == "tool_use":
            block.call = self._calls
            self._calls += 1
            events.append(ToolCallStarted(block.call, start.id or f"call_{block.call}", start.name or ""))
        elif start.type == "redacted_thinking":
            events.append(ReasoningEnded(Seal(start.data or "", WIRE), is_redacted=True))
        elif start.type == "text" and start.text:
            events += block.read(Delta(text=start.text))
        elif start.type == "thinking":
            block.signature = start.signature or ""
            if start.thinking:
                events += block.read(Delta(thinking=start.thinking))

    def _read_delta(self, event: StreamEvent, events: list[Event]) -> None:
        block = self._blocks.get(event.index or 0)
        if block is None:
            raise UpstreamProtocolError("a delta of a block that was not begun")
        events += block.read(read_delta(event))

    def _stop_block(self, index: int | None, events: list[Event]) -> None:
        block = self._blocks.pop(index or 0, None)
        if block is not None:
            events += block.end()

    def _read_message_delta(self, event: StreamEvent, events: list[Event]) -> None:
        self._has_started = True
        delta = read_delta(event)
        self._tell_usage_later(event.usage)
        if delta.stop_reason is not None:
            self._stop_blocks(events)
            if delta.stop_details is not None and delta.stop_details.explanation:
                events.append(RefusalDelta(delta.stop_details.explanation))
            self._finish = delta.stop_reason
            finish = FINISHES.get(delta.stop_reason, "unknown")
            events.append(Finished(finish, delta.stop_reason, delta.stop_sequence))
        if not is_absent(event.usage) and self._finish is not None:
            self._tell_usage(events)

    def _stop(self, events: list[Event]) -> None:
        self._stop_blocks(events)
        self.is_finished = True
        if not self._is_usage_told:  # servers of other makers may count in `message_start` alone
            self._tell_usage(events)

    def _stop_blocks(self, events: list[Event]) -> None:
        for index in sorted(self._blocks):
            self._stop_block(index, events)

    def _tell_usage_later(self, usage: msgspec.Raw) -> None:
        """Counts at the start say nothing of the output: a stream that breaks off has no usage."""
        if not is_absent(usage):
            self._usage = merge_usage(self._usage, usage)
            self._is_usage_told = False

    def _tell_usage(self, events: list[Event]) -> None:
        self._is_usage_told = True
        events.append(UsageReported(read_usage(self._usage), self._usage, read_tier(self._usage)))


class _Block:
    """One block under way. `call`: which tool call it is, counted from 0."""

    def __init__(self, start: BlockStart, raw: msgspec.Raw) -> None:
        self.signature = ""
        self.call = 0
        self._start = start
        self._raw = raw
        self._pieces: list[str] = []  # of the input of a call
        self._content: msgspec.Raw | None = None  # of a compaction
        self._citations: list[Citation] = []
        self._has_text = False

    def read(self, delta: Delta) -> list[Event]:
        """By the fields that are there: the block's type says which belong to it."""
        kind = self._start.type
        if kind == "text":
            return self._read_text(delta)
        if kind == "thinking":
            self.signature = delta.signature or self.signature
            if not delta.thinking:
                return []
            self._has_text = True
            return [ReasoningDelta(delta.thinking)]
        if delta.partial_json:
            self._pieces.append(delta.partial_json)
            return [ToolCallDelta(self.call, delta.partial_json)] if kind == "tool_use" else []
        if not is_absent(delta.content):
            self._content = msgspec.Raw(bytes(delta.content))
        return []

    def _read_text(self, delta: Delta) -> list[Event]:
        if not is_absent(delta.citation):
            self._citations += read_citations(msgspec.Raw(b"[%b]" % bytes(delta.citation)))
        if not delta.text:
            return []
        begins_part, self._has_text = not self._has_text, True
        return [TextDelta(delta.text, begins_part=begins_part)]

    def end(self) -> list[Event]:
        """What is told when the block is whole. Citations come before the text they belong to, so they wait."""
        kind = self._start.type
        if kind == "text":
            return [CitationAdded(citation) for citation in self._citations] if self._has_text else []
        if kind == "thinking":
            seal = Seal(self.signature, WIRE) if self.signature else None
            return [ReasoningEnded(seal)] if self._has_text or seal is not None else []
        if kind == "tool_use":
            return [] if self._pieces else [ToolCallDelta(self.call, self._whole_input())]
        return [] if kind == "redacted_thinking" else [PartAdded(Opaque(self._whole(), WIRE))]

    def _whole_input(self) -> str:
        """The input of a call that came with its first event."""
        text = bytes(self._start.input).decode("utf-8", "replace")
        return text if text.startswith("{") else "{}"

    def _whole(self) -> msgspec.Raw:
        """A block of another kind as it would stand in a whole answer."""
        added: dict[str, msgspec.Raw] = {}
        if self._pieces:
            added["input"] = msgspec.Raw("".join(self._pieces).encode("utf-8", "replace"))
        if self._content is not None:
            added["content"] = self._content
        try:
            for value in added.values():
                msgspec.json.decode(value)
            return msgspec.Raw(msgspec.json.encode(decode_mended(_decode_fields, self._raw) | added))
        except NOT_JSON:
            return self._raw
