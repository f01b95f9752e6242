"""Ids of what is written down: ordered by time, unique over all workers without asking anyone."""

from __future__ import annotations

import random
from time import time_ns

_random_bits = random.Random().getrandbits  # ids need to be unique, not secret
_MOST_IN_A_MILLISECOND = 1 << 12


class EventIds:
    """UUIDs of version 7 (RFC 9562, sections 5.7 and 6.2, method 1): ordered by time, so that rows land at the end of
    their index, and strictly ascending within a process."""

    def __init__(self) -> None:
        self._millisecond = 0
        self._count = 0  # within it
        self._head = ""  # what the ids of this millisecond begin with

    def next(self, now: int) -> str:
        """`now`: microseconds since the epoch. While the clock stands still or is set back, it counts on."""
        millisecond = now // 1000
        self._count += 1
        if millisecond > self._millisecond:
            self._enter(millisecond)
        elif self._count == _MOST_IN_A_MILLISECOND:
            self._enter(self._millisecond + 1)
        low = "%016x" % (1 << 63 | _random_bits(62))  # the highest two bits are the variant
        return f"{self._head}{self._count:03x}-{low[:4]}-{low[4:]}"

    def _enter(self, millisecond: int) -> None:
        self._millisecond = millisecond
        self._count = _random_bits(11)  # the lower half: there is room to count on
        self._head = f"{millisecond >> 16:08x}-{millisecond & 0xFFFF:04x}-7"


new_event_id = EventIds().next


def new_request_id() -> str:
    return "req_%024x" % (time_ns() // 1_000_000 << 52 | _random_bits(52))
