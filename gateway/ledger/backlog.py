"""How much is in the spools that is not in the table, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.ledger.record import HEADER, MAX_LINE, BadRecord, read_event, read_line
from gateway.ledger.segment import is_held, saved_of, segments_by_process


class Backlog(NamedTuple):
    """`seconds`: the age of the oldest record that was not shipped. `size`: bytes of all spools, shipped or not."""

    bytes: int
    seconds: float
    size: int
    segments: int
    workers: int  # that write
    dead: int  # processes that left something behind


class _Timed(msgspec.Struct):
    """What of a decision or a prompt tells when it was made."""

    at: datetime


_decode = msgspec.json.Decoder(_Timed).decode


def measure(directory: Path, read: Mapping[Path, int] | None = None, now: datetime | None = None) -> Backlog:
    """`read`: how far each segment has been read, where that is known; else what was saved counts, by which an attempt
    under way keeps back everything after it. Raises: `OSError`."""
    now = datetime.now(UTC) if now is None else now
    pending = size = count = workers = dead = 0
    oldest: datetime | None = None
    for own in segments_by_process(directory).values():
        try:
            if is_held(own[-1].path):
                workers += 1
            else:
                dead += 1
        except FileNotFoundError:
            continue  # shipped and deleted since the directory was listed
        for segment in own:
            try:
                length = segment.path.stat().st_size
                offset = (read or {}).get(segment.path, -1)
                offset = saved_of(segment.path).offset if offset < 0 else offset
                if length > max(offset, len(HEADER)):
                    pending += length - offset
                    at = _time_at(segment.path, max(offset, len(HEADER)))
                    oldest = at if oldest is None else min(oldest, at)
            except FileNotFoundError:
                continue  # likewise
            size += length
            count += 1
    seconds = 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
    return Backlog(pending, seconds, size, count, workers, dead)


def _time_at(path: Path, offset: int) -> datetime:
    """Of the record there; where it cannot be read, when the file was last written."""
    with open(path, "rb") as file:
        file.seek(offset)
        try:
            line = read_line(file.readline(MAX_LINE))
            at = read_event(line.json).started_at if line.kind in ("S", "E") else _decode(line.json).at
            if at.tzinfo is not None:
                return at
        except (BadRecord, msgspec.DecodeError, UnicodeDecodeError):
            pass
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
