"""Reads of a stream cut where its events end, so that what came before a failure is decoded before it.

A decoder that raises gives nothing of that read back. Fed one event at a time, it has told everything by then.
"""

from __future__ import annotations

from gateway.types import WireName

_LINES: frozenset[WireName] = frozenset({"ollama"})  # one event a line; the others but `converse` end with a blank one


class Cutter:
    """`cut` joins to the same bytes. Cuts are best effort: decoders take any."""

    def __init__(self, wire: WireName) -> None:
        self._is_binary = wire == "converse"
        self._end = b"\n" if wire in _LINES else b"\n\n"
        self._missing = 0  # bytes of the frame under way
        self._prelude = b""  # of its length, where that was cut

    def cut(self, chunk: bytes) -> list[bytes]:
        if self._is_binary:
            return self._cut_frames(chunk)
        first = chunk.find(self._end)
        if first < 0 or first + len(self._end) == len(chunk):
            return [chunk]
        *events, rest = chunk.split(self._end)
        pieces = [event + self._end for event in events]
        return [*pieces, rest] if rest else pieces

    def _cut_frames(self, chunk: bytes) -> list[bytes]:
        """A frame begins with its whole length: four bytes, big-endian (see `protocols.converse.eventstream`)."""
        pieces, start = [], 0
        while start < len(chunk):
            if self._missing == 0:
                prelude = self._prelude + chunk[start : start + 4 - len(self._prelude)]
                if len(prelude) < 4:
                    self._prelude = prelude
                    pieces.append(chunk[start:])
                    break
                # A length that cannot be is the decoder's to refuse.
                self._missing = max(int.from_bytes(prelude), 4) - len(self._prelude)
                self._prelude = b""
            piece = chunk[start : start + self._missing]
            self._missing -= len(piece)
            start += len(piece)
            pieces.append(piece)
        return pieces
