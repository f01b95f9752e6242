"""Records that the disk would not take, in bounded memory until it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gateway.ledger.record import Kind

MAX_HELD = 4096
MAX_HELD_BYTES = 32 * 1024 * 1024


class Record(NamedTuple):
    kind: Kind
    json: bytes


class Hold:
    """In the order in which they came, by `key`: an attempt that is settled takes the place of what it began as. What
    comes when it is full is not kept, and counted."""

    def __init__(self, *, most: int = MAX_HELD, most_bytes: int = MAX_HELD_BYTES) -> None:
        self.overflowed = 0
        self.is_empty = True  # asked before every write
        self._most = most
        self._most_bytes = most_bytes
        self._size = 0
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        """What was held at this moment; each may be removed meanwhile."""
        return iter(list(self._records.items()))

    def add(self, key: str, record: Record) -> bool:
        """False: there is no room."""
        before = self._records.get(key)
        grown = self._size + len(record.json) - (0 if before is None else len(before.json))
        if grown > self._most_bytes or (before is None and len(self._records) >= self._most):
            self.overflowed += 1
            return False
        self._records[key] = record
        self._size = grown
        self.is_empty = False
        return True

    def remove(self, key: str) -> None:
        self._size -= len(self._records.pop(key).json)
        self.is_empty = not self._records
