"""Whether the lines of a segment are those that its process wrote, in its order, all of them and no other."""

from __future__ import annotations

from typing import NamedTuple

from gateway.ledger.record import End

MAX_GAPS = 1000
"""Of one segment that are remembered. What comes late for one that is forgotten is set aside."""


class Finding(NamedTuple):
    """What is wrong. `missing`: the numbers of lines that did not come; `is_kept_out`: the line must not count."""

    reason: str
    missing: str | None = None
    is_kept_out: bool = False


class Sequence:
    """The numbers of one segment's lines. `expected`: the next one; None: not known yet, any will do."""

    def __init__(self, expected: int | None) -> None:
        self.expected = expected
        self.end: End | None = None  # of the segment, once it has come
        self._first: int | None = None  # from the start of the segment, where it was not known
        self._is_open = expected is None
        self._gaps: list[tuple[int, int]] = []  # first and last number, both missing

    def take(self, number: int) -> Finding | None:
        """Of one line, in the order of the file. None: it is the one that was expected."""
        if self.end is not None:
            return Finding("a line after the end of its segment", is_kept_out=True)
        expected, self.expected = self.expected, number + 1
        if expected is None:
            self._first = number
            return None
        if number == expected:
            return None
        if number > expected:
            if len(self._gaps) < MAX_GAPS:
                self._gaps.append((expected, number - 1))
            return Finding("lines are missing before this one", missing=shown(expected, number - 1))
        self.expected = expected
        if self._fill(number):
            return Finding(f"a line that comes late: {number} after {expected - 1}")
        return Finding(f"a line with a number that another one has: {number}", is_kept_out=True)

    def finish(self, number: int, end: End) -> Finding | None:
        """Of the line that ends the segment, after `take`."""
        self.end = end
        start = number - end.records
        if self._is_open and self._first is not None and start < self._first:
            return Finding("lines are missing from the start of this segment", missing=shown(start, self._first - 1))
        return None

    def _fill(self, number: int) -> bool:
        """Whether this one was missing."""
        for position, (first, last) in enumerate(self._gaps):
            if first <= number <= last:
                self._gaps[position : position + 1] = [
                    gap for gap in ((first, number - 1), (number + 1, last)) if gap[0] <= gap[1]
                ]
                return True
        return False


def shown(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
