"""What could not go into the table, kept for a person to look at: `spool/rejected/<segment>.jsonl`."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import msgspec

FOLDER = "rejected"


class Reject(msgspec.Struct, omit_defaults=True):
    """One line of such a file. `offset`: where in the segment it stood. A crash of the shipper may write it twice."""

    segment: str
    offset: int
    reason: str
    is_mended: bool = False  # the row is in the table, without what PostgreSQL refused
    line: str | None = None  # as it stood in the segment
    line_base64: str | None = None  # the same, when it is not text


def reject(segment: Path, offset: int, reason: str, line: bytes, *, is_mended: bool = False) -> Reject:
    try:
        return Reject(segment.name, offset, reason, is_mended, line=line.decode())
    except UnicodeDecodeError:
        return Reject(segment.name, offset, reason, is_mended, line_base64=base64.b64encode(line).decode())


def write_rejects(directory: Path, rejects: list[Reject]) -> None:
    """Appends and syncs: once the offset has moved on, these files hold the only copy. Raises: `OSError`."""
    if not rejects:
        return
    folder = directory / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    by_segment: dict[str, list[Reject]] = {}
    for entry in rejects:
        by_segment.setdefault(entry.segment, []).append(entry)
    for segment, entries in by_segment.items():
        path = folder / Path(segment).with_suffix(".jsonl").name
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(fd, "ab") as file:
            file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
            file.flush()
            os.fsync(fd)
