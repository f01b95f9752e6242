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


def offset_of(path: Path) -> int:
    """How many bytes of the segment are in the table for good. 0 when nothing is known, or after a power cut spoiled
    the file: shipping again is harmless, skipping is not."""
    try:
        offset = int(path.with_suffix(OFFSET_SUFFIX).read_bytes())
        return offset if 0 <= offset <= path.stat().st_size else 0
    except (FileNotFoundError, ValueError):
        return 0


def save_offset(path: Path, offset: int) -> None:
    """Replaces the offset in one step. Not synced: see `offset_of`."""
    saved = path.with_suffix(OFFSET_SUFFIX)
    fresh = path.with_suffix(OFFSET_SUFFIX + "-new")
    fresh.write_bytes(b"%d\n" % offset)
    fresh.replace(saved)


def delete(path: Path) -> None:
    """Removes a shipped segment and its offset; the offset first, so that a crash in between leaves no stray file."""
    path.with_suffix(OFFSET_SUFFIX).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


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
