"""JSON objects out of bytes in any cut: the elements of an array, as streams come without `alt=sse`, or bare ones."""

from __future__ import annotations

import re

from gateway.errors import UpstreamProtocolError
from gateway.protocols.framing import MAX_EVENT_BYTES

_BETWEEN = re.compile(rb"[^\s,\[\]]")
_IN_OBJECT = re.compile(rb'["{}]')
_IN_TEXT = re.compile(rb'["\\]')


class DocumentSplitter:
    """Takes the outermost objects; what separates them is left out."""

    def __init__(self) -> None:
        self._buffer = bytearray()  # the object under way, and what has not been looked at
        self._at = 0
        self._depth = 0
        self._in_text = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises UpstreamProtocolError for what is no array of objects, and for an object over the limit."""
        self._buffer += chunk
        found: list[bytes] = []
        while self._step(found):
            pass
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise UpstreamProtocolError("an event of the stream is too long")
        return found

    @property
    def is_inside(self) -> bool:
        """Whether an object is under way."""
        return self._depth > 0

    def _step(self, found: list[bytes]) -> bool:
        """Goes on to the next byte that means something; False: there is none yet."""
        pattern = _BETWEEN if not self._depth else _IN_TEXT if self._in_text else _IN_OBJECT
        mark = pattern.search(self._buffer, self._at)
        if mark is None:
            self._at = len(self._buffer)
            if not self._depth:
                self._drop(self._at)
            return False
        at, byte = mark.start(), mark[0]
        if byte == b"\\":
            if at + 1 == len(self._buffer):
                self._at = at
                return False
            self._at = at + 2
            return True
        self._at = at + 1
        if not self._depth:
            self._drop(at)
            self._at = 1
            if byte != b"{":
                raise UpstreamProtocolError("the stream is neither server-sent events nor a JSON array")
            self._depth = 1
        elif byte == b'"':
            self._in_text = not self._in_text
        else:
            self._depth += 1 if byte == b"{" else -1
            if not self._depth:
                found.append(bytes(self._buffer[: at + 1]))
                self._drop(at + 1)
        return True

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._at = 0
