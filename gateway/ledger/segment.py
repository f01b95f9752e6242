"""Files of the spool directory: their names, who still writes them, and how far each has been shipped."""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".spool"
OFFSET_SUFFIX = ".offset"


class Segment(NamedTuple):
    """One file: the `number`-th of the worker process `process` (`<worker>-<start time>-<pid>`)."""

    process: str
    number: int
    path: Path


class Saved(NamedTuple):
    """Where reading goes on: a byte of a segment, and the number of the line there. None: not known."""

    offset: int
    number: int | None


def segments_by_process(directory: Path) -> dict[str, list[Segment]]:
    """All segments in the order in which they were written. A directory that does not exist has none."""
    found: defaultdict[str, list[Segment]] = defaultdict(list)
    for segment in _segments(directory):
        found[segment.process].append(segment)
    return {process: sorted(segments) for process, segments in sorted(found.items())}


def process_segments(directory: Path, process: str) -> list[Segment]:
    """The segments of one worker process, in order."""
    return sorted(segment for segment in _segments(directory) if segment.process == process)


def is_held(path: Path) -> bool:
    """Whether a worker holds the lock of this segment. Raises: `OSError`, `FileNotFoundError` when it is gone."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def saved_of(path: Path) -> Saved:
    """How much of the segment is in the table for good. Nothing where nothing is known, or after a power cut spoiled
    the file: shipping again is harmless, skipping is not."""
    try:
        offset, *number = map(int, path.with_suffix(OFFSET_SUFFIX).read_bytes().split())
        if 0 <= offset <= path.stat().st_size:
            return Saved(offset, number[0] if number and number[0] > 0 else None)
    except (FileNotFoundError, ValueError):
        pass
    return Saved(0, None)


def save(path: Path, saved: Saved) -> None:
    """Replaces what was saved in one step. Not synced: see `saved_of`."""
    fresh = path.with_suffix(OFFSET_SUFFIX + "-new")
    fresh.write_bytes(b"%d %d\n" % (saved.offset, saved.number or 0))
    fresh.replace(path.with_suffix(OFFSET_SUFFIX))


def delete(path: Path) -> None:
    """Removes a shipped segment. What was saved stays until the next segment goes too: it says with which number that
    one has to begin. `sweep` removes it."""
    path.unlink(missing_ok=True)


def number_after(path: Path) -> int | None:
    """The number with which the segment after this one has to begin, if this one was shipped and deleted. None: it was
    not, or its process wrote no numbers."""
    try:
        _, number = map(int, path.with_suffix(OFFSET_SUFFIX).read_bytes().split())
    except (FileNotFoundError, ValueError):
        return None
    return number or None


def neighbour(segment: Segment, step: int) -> Path:
    """Where the segment stands, or stood, that is `step` after this one."""
    return segment.path.with_name(f"{segment.process}-{segment.number + step:06d}{SUFFIX}")


def was_shipped(path: Path) -> bool:
    """Whether this segment, which is not there, was deleted by a shipper."""
    return path.with_suffix(OFFSET_SUFFIX).exists()


def sweep(directory: Path) -> None:
    """Removes what was saved of deleted segments that no later segment follows."""
    names = set(os.listdir(directory))
    for name in names:
        stem, suffix = os.path.splitext(name)
        process, _, number = stem.rpartition("-")
        if suffix != OFFSET_SUFFIX or not number.isdecimal() or stem + SUFFIX in names:
            continue
        if f"{process}-{int(number) + 1:06d}{SUFFIX}" not in names:
            (directory / name).unlink(missing_ok=True)


def total_size(directory: Path) -> int:
    """Bytes of all segments, shipped or not."""
    size = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                try:
                    size += entry.stat().st_size
                except FileNotFoundError:
                    continue  # shipped and deleted since the directory was listed
    return size


def _segments(directory: Path) -> Iterator[Segment]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(SUFFIX):
            process, _, number = name.removesuffix(SUFFIX).rpartition("-")
            if process and number.isdecimal():
                yield Segment(process, int(number), directory / name)
