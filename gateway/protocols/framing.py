"""Cutting a stream of bytes into its messages: server-sent events and JSON lines. Bounded, whatever comes.

Source: WHATWG HTML, section 9.2 (server-sent events); ndjson.org.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.errors import UpstreamProtocolError

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""A message longer than this is an upstream's mistake, not content."""
_BOM = b"\xef\xbb\xbf"


def as_utf8(data: bytes) -> bytes:
    """The same, with what is not UTF-8 replaced by U+FFFD (WHATWG Encoding, "decode"): raw JSON out of it goes on to
    clients, and the JSON decoder does not look into what it skips."""
    if data.isascii():
        return data
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


class SseEvent(NamedTuple):
    """`name`: of the `event` line, empty where there is none. `data`: the `data` lines, joined by line feeds."""

    name: bytes
    data: bytes


class SseSplitter:
    """Server-sent events out of bytes in any cut; lines end in LF, CR LF or CR. Events without data are left out."""

    def __init__(self) -> None:
        self._lines = _Lines(splits_at_cr=True)
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._is_first = True

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Raises UpstreamProtocolError for an event over the limit."""
        events: list[SseEvent] = []
        for line in self._lines.feed(chunk):
            self._read(line, events)
        return events

    def finish(self) -> list[SseEvent]:
        """The stream has ended: a last event without its blank line counts, as servers that close early send it."""
        events: list[SseEvent] = []
        for line in (*self._lines.finish(), b""):
            self._read(line, events)
        return events

    def _read(self, line: bytes, events: list[SseEvent]) -> None:
        if self._is_first:
            self._is_first, line = False, line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(SseEvent(self._name, as_utf8(b"\n".join(self._data))))
            self._name, self._data, self._size = b"", [], 0
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            if self._size > MAX_EVENT_BYTES:
                raise UpstreamProtocolError("an event of the stream is too long")
            self._data.append(value)
        elif field == b"event":
            self._name = value


class LineSplitter:
    """JSON lines out of bytes in any cut; blank ones are left out."""

    def __init__(self) -> None:
        self._lines = _Lines(splits_at_cr=False)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises UpstreamProtocolError for a line over the limit."""
        return [as_utf8(line) for line in self._lines.feed(chunk) if line.strip()]

    def finish(self) -> list[bytes]:
        return [as_utf8(line) for line in self._lines.finish() if line.strip()]


class _Lines:
    """Whole lines without their ends. A line under way is kept in pieces: joining at each would cost the square."""

    def __init__(self, *, splits_at_cr: bool) -> None:
        self._splits_at_cr = splits_at_cr
        self._pieces: list[bytes] = []
        self._size = 0
        self._skips_lf = False  # the LF of a CR LF that was cut in two

    def feed(self, chunk: bytes) -> list[bytes]:
        if self._skips_lf and chunk:
            self._skips_lf, chunk = False, chunk.removeprefix(b"\n")
        if self._splits_at_cr and b"\r" in chunk:
            self._skips_lf = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = chunk.split(b"\n")
        if lines and self._pieces:
            lines[0] = b"".join((*self._pieces, lines[0]))
            self._pieces, self._size = [], 0
        if rest:
            self._pieces.append(rest)
            self._size += len(rest)
        if self._size > MAX_EVENT_BYTES or any(len(line) > MAX_EVENT_BYTES for line in lines):
            raise UpstreamProtocolError("a line of the stream is too long")
        return lines

    def finish(self) -> list[bytes]:
        rest, self._pieces, self._size = b"".join(self._pieces), [], 0
        return [rest] if rest else []
