"""What is wrong with a spool, and what could not go into the table: kept for a person to look at.

`spool/rejected/<segment>.jsonl`, one line each. What PostgreSQL refused can be tried again (`retry`).
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

FOLDER = "rejected"


class Reject(msgspec.Struct, omit_defaults=True):
    """One line of such a file. `offset`: where in the segment it stood. A crash of the shipper may write it twice."""

    segment: str
    offset: int
    reason: str
    is_mended: bool = False  # the row is in the table, without what PostgreSQL refused
    missing: str | None = None  # numbers of lines that did not come, as `7` or `7-9`
    is_misplaced: bool = False  # it stood where it does not belong, and was not taken
    line: str | None = None  # as it stood in the segment
    line_base64: str | None = None  # the same, when it is not text

    @property
    def content(self) -> bytes | None:
        """The line, where one was set aside."""
        if self.line is not None:
            return self.line.encode()
        return None if self.line_base64 is None else base64.b64decode(self.line_base64)


def reject(
    segment: Path,
    offset: int,
    reason: str,
    line: bytes | None,
    *,
    is_mended: bool = False,
    missing: str | None = None,
    is_misplaced: bool = False,
) -> Reject:
    entry = Reject(segment.name, offset, reason, is_mended, missing, is_misplaced)
    if line is not None:
        try:
            entry.line = line.decode()
        except UnicodeDecodeError:
            entry.line_base64 = base64.b64encode(line).decode()
    return entry


def write_rejects(directory: Path, rejects: list[Reject]) -> None:
    """Appends and syncs: once the offset has moved on, these files hold the only copy. Raises: `OSError`."""
    if not rejects:
        return
    folder = directory / FOLDER
    by_segment: dict[str, list[Reject]] = {}
    for entry in rejects:
        by_segment.setdefault(entry.segment, []).append(entry)
    with locked(directory):
        for segment, entries in by_segment.items():
            fd = os.open(_file_of(folder, segment), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _write(fd, entries)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """While these files are written: a shipper adds to them, an operator takes away. Waits. Raises: `OSError`."""
    folder = directory / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def read_rejects(directory: Path) -> Iterator[Reject]:
    """All of them, each once, by segment and in the order in which they were found. A torn line is passed over."""
    for path in sorted((directory / FOLDER).glob("*.jsonl")):
        seen: set[bytes] = set()
        with open(path, "rb") as file:
            for line in file:
                if line in seen:
                    continue
                seen.add(line)
                try:
                    yield msgspec.json.decode(line, type=Reject)
                except msgspec.DecodeError:
                    continue


def replace_rejects(directory: Path, segment: str, entries: list[Reject]) -> None:
    """What is kept of one segment from now on; the file goes when nothing is. Raises: `OSError`."""
    path = _file_of(directory / FOLDER, segment)
    if not entries:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_suffix(".new")
    _write(os.open(fresh, os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC, 0o600), entries)
    fresh.replace(path)


def _file_of(folder: Path, segment: str) -> Path:
    return folder / Path(segment).with_suffix(".jsonl").name


def _write(fd: int, entries: list[Reject]) -> None:
    with open(fd, "ab") as file:
        file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
        file.flush()
        os.fsync(fd)
