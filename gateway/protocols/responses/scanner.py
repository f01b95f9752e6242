"""A stream of the Responses API on its way to a client that speaks it: bytes pass, and only what matters is read.

Source: OpenAI API reference, "Streaming events" (platform.openai.com/docs/api-reference/responses-streaming).

Content is the first delta or output item. From then on an event is parsed only where a signal stands in it: the end of
the response, which also has the usage, or an error. The signals may stand in a model's text as well; then an event is
parsed for nothing.
"""

from __future__ import annotations

import re

import msgspec

from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.protocols.base import NOT_JSON, StreamError
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.protocols.raw import is_empty
from gateway.protocols.responses.answer import is_hollow, read_envelope, says_nothing
from gateway.protocols.responses.decoding import read
from gateway.protocols.responses.usage import copy_usage, read_usage
from gateway.protocols.soundness import first_broken, lone_data
from gateway.types import Usage

_SIGNALS = (b"response.completed", b"response.incomplete", b"response.failed", b'"error"', b"event: error")
_ENDS = frozenset({"response.completed", "response.incomplete"})
_ITEMS = frozenset({"response.output_item.added", "response.output_item.done"})
_EVENT_END = re.compile(rb"\n\r?\n")
_MAX_EVENT = 8 * MAX_EVENT_BYTES  # pictures travel in events here, and again in the last one
_MAX_KEPT = 256 * 1024
_MAX_TEXT = 4 * 1024 * 1024


class _Event(msgspec.Struct):
    type: str = ""
    delta: msgspec.Raw = msgspec.Raw()
    item: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Silent(msgspec.Struct):
    """An event that may say nothing but words. Decoding refuses those in which there is more to read."""

    type: str
    response: None = None
    error: None = None


_decode_silent = msgspec.json.Decoder(_Silent).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_text = msgspec.json.Decoder(str).decode


class ResponsesScanner:
    """See `base.StreamReader`."""

    def __init__(self) -> None:
        self.has_content = False
        self.is_finished = False
        self.is_empty = True
        self.usage: Usage | None = None
        self.raw_usage: msgspec.Raw | None = None
        self.finish_reason: str | None = None
        self.service_tier: str | None = None
        self._held: list[bytes] = []  # an event that has not ended; joining at each chunk would cost the square
        self._held_bytes = 0
        self._edge = b""  # its last bytes, where a blank line may have begun
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._text: list[str] = []
        self._text_length = 0

    def feed(self, chunk: bytes) -> bytes:
        if self.has_content and not self._held and not self.is_finished and (data := lone_data(chunk)) is not None:
            try:
                is_silent = _decode_silent(data).type.endswith(".delta")
            except NOT_JSON:
                is_silent = False
            if is_silent:
                self._keep(chunk)
                return chunk
        edge = self._edge + chunk
        end = max(edge.rfind(b"\n\n") + 2, edge.rfind(b"\n\r\n") + 3) - len(self._edge)
        if end < 3 - len(self._edge):  # neither was found
            self._hold(chunk, edge)
            return b""
        events = b"".join((*self._held, chunk[:end])) if self._held or end < len(chunk) else chunk
        self._held, self._held_bytes, self._edge = [], 0, b""
        if end < len(chunk):
            self._hold(chunk[end:], chunk[end:])
        self._keep(events)  # first: what came before an error was written, too
        self._read_events(events)
        return events

    def finish(self) -> bytes:
        rest, self._held = b"".join(self._held), []
        if rest.strip():  # a last event without its blank line
            rest += b"\n\n"
            self._keep(rest)
            self._read_events(rest)
        if not self.is_finished:
            raise UpstreamDisconnected("the stream ended before the answer was whole", received=True)
        return rest

    def text(self) -> str:
        self._fold()
        return "".join(self._text)

    def _hold(self, piece: bytes, edge: bytes) -> None:
        self._held.append(piece)
        self._held_bytes += len(piece)
        self._edge = edge[-2:]
        if self._held_bytes > _MAX_EVENT:
            raise UpstreamProtocolError("an event of the stream is too long")

    def _read_events(self, events: bytes) -> None:
        start = 0
        try:
            while start < len(events) and not self.is_finished:
                if self.has_content:
                    signals = [at for signal in _SIGNALS if (at := events.find(signal, start)) >= 0]
                    begin = _begin_of_event(events, start, min(signals)) if signals else len(events)
                    broken = first_broken(events[start:begin]) if begin > start else -1
                    if broken >= 0:
                        start += broken
                        raise UpstreamProtocolError("an event of the stream is not JSON")
                    if not signals:
                        return
                    start = begin
                end = _EVENT_END.search(events, start)
                if end is None:
                    return  # blank lines beyond an event's own
                self._read_event(events[start : end.end()])
                start = end.end()
        except UpstreamError as error:
            error.before = events[:start]
            raise

    def _read_event(self, event: bytes) -> None:
        name, data = _split(event)
        if not data or data == b"[DONE]":
            return
        found = read(_decode_event, data, "an event of the stream")
        kind = found.type or name
        if kind in _ENDS or kind == "response.failed":
            self._read_end(found)
        if kind in ("error", "response.failed") or not is_empty(found.error):
            raise StreamError("upstream sent an error inside the stream", data)
        if kind in _ENDS:
            self.has_content = self.is_finished = True
            self.finish_reason = self.finish_reason or kind.removeprefix("response.")
        elif (kind in _ITEMS and not is_hollow(found.item)) or (kind.endswith(".delta") and not is_empty(found.delta)):
            self.has_content, self.is_empty = True, False

    def _read_end(self, event: _Event) -> None:
        if not is_empty(event.response):
            response = read_envelope(event.response)
            self.finish_reason, self.service_tier = response.status, response.service_tier
            self.is_empty = self.is_empty and says_nothing(response)
            self.usage, self.raw_usage = read_usage(response.usage), copy_usage(response.usage)

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
        for event in _EVENT_END.split(kept):
            text = _delta_in(event)
            self._text.append(text)
            self._text_length += len(text)


def _begin_of_event(events: bytes, start: int, position: int) -> int:
    """Where the event begins in which `position` is."""
    for blank in (b"\n\n", b"\n\r\n"):
        found = events.rfind(blank, start, position)
        if found >= 0:
            start = found + len(blank)
    return start


def _delta_in(event: bytes) -> str:
    """What the model wrote in one event: every kind of delta that is text."""
    _, data = _split(event)
    try:
        found = _decode_event(data)
        is_text = found.type.endswith(".delta") and bytes(found.delta)[:1] == b'"'
        return _decode_text(found.delta) if is_text else ""
    except NOT_JSON:
        return ""


def _split(event: bytes) -> tuple[str, bytes]:
    """Name and data of one server-sent event (WHATWG HTML, section 9.2), its lines in any order."""
    name, data = b"", []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    return name.decode("ascii", "replace"), b"\n".join(data)
