"""Anthropic's stream on its way to a client that speaks the same: bytes pass through, only usage and the end are read.

Once there is content, events that carry no signal are not parsed: pieces of text, thinking and input are most of all.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError, is_plain_end
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.protocols.messages.events import Delta, StreamEvent, read_block_start, read_delta, read_event, read_start
from gateway.protocols.messages.usage import is_absent, merge_usage, read_tier, read_usage
from gateway.protocols.soundness import first_broken, lone_data
from gateway.types import Usage

# Inside a JSON string quotes are escaped, so text that a model writes matches these only where it ends in such a word;
# then one event is parsed in vain.
_SIGNALS = (b'message_delta"', b'message_stop"', b'error"', b"event: error", b"event:error")
_EVENT_END = re.compile(rb"\n\r?\n")
_MAX_KEPT = 256 * 1024
_MAX_TEXT = 4 * 1024 * 1024


class _SilentDelta(msgspec.Struct):
    """An event that says nothing but words. Decoding refuses every other one."""

    type: Literal["content_block_delta"]
    error: None = None


_decode_silent = msgspec.json.Decoder(_SilentDelta).decode


class MessagesScanner:
    """See `protocols.base.StreamReader`.

    `usage` is set by the closing `message_delta`; of a stream that breaks off before it only the input is known, which
    `raw_usage` has.
    """

    def __init__(self) -> None:
        self.has_content = False
        self.is_finished = False
        self.is_empty = True
        self.usage: Usage | None = None
        self.raw_usage: msgspec.Raw | None = None
        self.finish_reason: str | None = None
        self._has_started = False
        self._tail = b""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._text: list[str] = []
        self._text_length = 0

    @property
    def service_tier(self) -> str | None:
        return read_tier(self.raw_usage)

    def feed(self, chunk: bytes) -> bytes:
        if self.has_content and not self._tail and (delta := lone_data(chunk)) is not None:
            try:
                _decode_silent(delta)
            except NOT_JSON:
                pass
            else:
                self._keep(chunk)
                return chunk
        data = self._tail + chunk if self._tail else chunk
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
        if end < 3:  # neither was found
            if len(data) > MAX_EVENT_BYTES:
                raise UpstreamProtocolError("an event of the stream is too long")
            self._tail = data
            return b""
        self._tail = data[end:]
        events = data[:end] if self._tail else data
        self._keep(events)  # first: what came before an error was written, too
        self._read_events(events)
        return events

    def finish(self) -> bytes:
        rest = b""
        if self._tail.strip():  # a last event without its blank line
            rest, self._tail = self._tail + b"\n\n", b""
            self._keep(rest)
            self._read_events(rest)
        if not self.is_finished and self.finish_reason is None:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        self._end()
        return rest

    def text(self) -> str:
        self._fold()
        return "".join(self._text)

    def _read_events(self, events: bytes) -> None:
        start = 0
        try:
            while start < len(events):
                if self.has_content:
                    signal = _next_signal(events, start)
                    begin = len(events) if signal is None else _begin_of_event(events, start, signal)
                    broken = first_broken(events[start:begin]) if begin > start else -1
                    if broken >= 0:
                        start += broken
                        raise UpstreamProtocolError("an event of the stream is not JSON")
                    if signal is None:
                        return
                    start = begin
                end = _EVENT_END.search(events, start)
                if end is None:
                    return  # blank lines beyond an event's own
                name, data = _fields_of(events[start : end.end()])
                if data and not self.is_finished:
                    self._read_event(name, data)
                start = end.end()
        except UpstreamError as error:
            error.before = events[:start]
            if isinstance(error, StreamError):
                error.body = error.body or events[start:]
            raise

    def _read_event(self, name: bytes, data: bytes) -> None:
        event = read_event(data, name)
        if event is None:
            return
        if event.type == "message_start":
            self._has_started = True
            self._count(read_start(event).usage)
        elif event.type == "content_block_start":
            self._has_started = True
            block = read_block_start(event)
            # Thinking whose text is left out says nothing more until it ends: that it has begun is all there is to see.
            self._see(block.type != "text" or bool(block.text))
        elif event.type == "content_block_delta":
            self._has_started = True
            self._see(_has_content(read_delta(event)))
        elif event.type == "message_delta":
            self._read_message_delta(event)
        elif event.type == "message_stop":
            if not self._has_started:
                raise UpstreamProtocolError("a stream without a message")
            self._end()

    def _read_message_delta(self, event: StreamEvent) -> None:
        self._has_started = True
        delta = read_delta(event)
        if delta.stop_reason is not None:
            self.finish_reason = delta.stop_reason
            self._see(not is_plain_end(delta.stop_reason))
        if not is_absent(event.usage):
            self._count(event.usage)
            if self.finish_reason is not None:
                self.usage = read_usage(self.raw_usage)

    def _see(self, is_content: bool) -> None:
        if is_content:
            self.has_content, self.is_empty = True, False

    def _count(self, usage: msgspec.Raw) -> None:
        if not is_absent(usage):
            self.raw_usage = merge_usage(self.raw_usage, usage)

    def _end(self) -> None:
        if not self.is_finished and self.usage is None:
            self.usage = read_usage(self.raw_usage)  # servers of other makers may count in `message_start` alone
        self.is_finished = self.has_content = True

    def _keep(self, events: bytes) -> None:
        self._kept.append(events)
        self._kept_bytes += len(events)
        if self._kept_bytes > _MAX_KEPT:
            self._fold()

    def _fold(self) -> None:
        """Turns the kept bytes into their text, which is far shorter. Past the bound no more is kept."""
        kept, self._kept, self._kept_bytes = b"".join(self._kept), [], 0
        if self._text_length > _MAX_TEXT:
            return
        for item in _EVENT_END.split(kept):
            text = _text_of(_fields_of(item)[1])
            if text:
                self._text.append(text)
                self._text_length += len(text)


def _begin_of_event(events: bytes, start: int, position: int) -> int:
    """Where the event begins in which `position` is; not before `start`."""
    lf, crlf = events.rfind(b"\n\n", start, position), events.rfind(b"\n\r\n", start, position)
    return max(start, lf + 2 if lf >= 0 else 0, crlf + 3 if crlf >= 0 else 0)


def _next_signal(events: bytes, start: int) -> int | None:
    found = [place for signal in _SIGNALS if (place := events.find(signal, start)) >= 0]
    return min(found) if found else None


def _fields_of(event: bytes) -> tuple[bytes, bytes]:
    """The name and the data of one server-sent event (WHATWG HTML, section 9.2); `data` lines are joined."""
    name, data = b"", []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    return name, data[0] if len(data) == 1 else b"\n".join(data)


def _has_content(delta: Delta) -> bool:
    return any((delta.text, delta.thinking, delta.partial_json, delta.signature)) or not is_absent(delta.content)


def _text_of(data: bytes) -> str:
    """All that the model wrote in one event."""
    if not data or b"content_block_" not in data:
        return ""
    try:
        event = read_event(data)
        if event is None:
            return ""
        if event.type == "content_block_start":
            block = read_block_start(event)
            return "".join(filter(None, (block.thinking, block.text, block.name)))
        delta = read_delta(event)
    except UpstreamError:
        return ""
    return "".join(filter(None, (delta.thinking, delta.text, delta.partial_json)))
