"""Streams of a Gemini: server-sent events, each a response, or, where `alt=sse` was not heard, one JSON array of them.

There is no end mark. A stream is whole when each choice has a finish reason; not to miss what follows, it counts as
finished only when usage has come as well, or the connection has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.canonical import Event
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.framing import SseEvent, SseSplitter
from gateway.protocols.gemini.answer import AnswerReader
from gateway.protocols.gemini.documents import DocumentSplitter

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


class GeminiDecoder:
    """A `StreamDecoder`."""

    def __init__(self) -> None:
        self.is_finished = False
        self._reader = AnswerReader()
        self._splitter: SseSplitter | DocumentSplitter | None = None
        self._head = b""

    def feed(self, chunk: bytes) -> list[Event]:
        if self._splitter is None:
            chunk = self._open(chunk)
        if isinstance(self._splitter, SseSplitter):
            return self._read(_data(self._splitter.feed(chunk)))
        return self._read(self._splitter.feed(chunk)) if self._splitter is not None else []

    def finish(self) -> list[Event]:
        events: list[Event] = []
        if isinstance(self._splitter, SseSplitter):
            try:
                events = self._read(_data(self._splitter.finish()))
            except UpstreamProtocolError:
                raise _cut() from None  # an event without its end
        if not self._reader.is_whole or (isinstance(self._splitter, DocumentSplitter) and self._splitter.is_inside):
            raise _cut()
        self.is_finished = True
        return events + self._reader.finish()

    def _open(self, chunk: bytes) -> bytes:
        """Holds back what says nothing about the framing; afterwards it is known."""
        self._head = (self._head + chunk).lstrip(_BLANK)
        if _BOM.startswith(self._head[: len(_BOM)]):
            self._head = self._head.removeprefix(_BOM).lstrip(_BLANK) if len(self._head) >= len(_BOM) else self._head
            if not self._head or _BOM.startswith(self._head):
                return b""
        head, self._head = self._head, b""
        self._splitter = DocumentSplitter() if head[:1] in (b"[", b"{") else SseSplitter()
        return head

    def _read(self, documents: Iterable[bytes]) -> list[Event]:
        events = [event for document in documents for event in self._reader.read(document)]
        self.is_finished = self._reader.is_finished
        return events


def _data(events: Iterable[SseEvent]) -> Iterable[bytes]:
    for event in events:
        if event.name == b"error":
            raise StreamError("the upstream sent an error in its stream")
        data = event.data.strip()
        if data and data != b"[DONE]":  # which intermediaries add
            yield data


def _cut() -> UpstreamDisconnected:
    return UpstreamDisconnected("the stream ended before the answer was whole", received=True)
