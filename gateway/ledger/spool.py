"""The worker's append-only spool: what the ledger will say is on disk before the client has its last byte."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from gateway.ledger.record import HEADER, WORKER_LOST, write_decision, write_line
from gateway.ledger.segment import offset_of, process_segments
from gateway.types import UsageEvent

SEGMENT_BYTES = 32 * 1024 * 1024

_log = logging.getLogger(__name__)
_WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class SpoolError(Exception):
    """A record could not be written or synced: disk full, I/O error. The caller decides whether to serve without."""


class Spool:
    """Appends usage events and decisions to files that the shipper carries into PostgreSQL. One for each worker.

    Files are `DIRECTORY/<worker>-<start time>-<pid>-<n>.spool`, in the format of `record.py`; a new segment begins when
    `segment_bytes` would be passed. The segment being written is held by `flock`: that is how the shipper tells a
    living worker from a dead one, so a process that forks without exec must not keep a Spool open in the child.

    Durability: one `write` per call, complete when `begin`, `settle` or `decide` returns. The kernel then owns the
    bytes, so they survive the death of the worker by any signal. They do not yet survive a power cut or a kernel
    crash: `sync` bounds that loss to what was written since the last one (about `interval` of `run_sync`).

    `begin`, `settle` and `decide` belong to one thread (the event loop's); `sync` and `close` may be called from
    others.
    """

    def __init__(self, directory: Path, worker: str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Opens the first segment; the directory is created, private to the user.

        Raises: `ValueError` for a worker name that cannot be part of a file name, `SpoolError` when the disk refuses.
        """
        if not _WORKER.fullmatch(worker):
            raise ValueError(f"worker name `{worker}` has to match `{_WORKER.pattern}`")
        self._directory = directory
        self._process = f"{worker}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
        self._segment_bytes = segment_bytes
        self._number = 0
        self._fd = -1
        self._size = 0
        self._torn = False  # a failed write left half a line that could not be taken back
        self._dirty = False
        self._directory_dirty = False
        self._full: deque[int] = deque()  # rotated out, to be synced and closed
        self._sync_lock = Lock()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SpoolError(f"cannot create spool directory: {error}") from error
        self._open_segment()

    def begin(self, event: UsageEvent, decision: bytes | None = None) -> None:
        """Writes `S`, before the upstream is called: the row that holds if this worker dies before `settle`.

        `event` says so itself: status `error`, error_type `worker_lost`, usage_source `none`. `decision`: that of the
        request, with its first attempt; it is written before it, by the same write.
        Raises: `SpoolError`; `ValueError` for an event that would report something else.
        """
        if event.error_type != WORKER_LOST:
            raise ValueError(f"an event that begins has error_type `{WORKER_LOST}`, not `{event.error_type}`")
        line = write_line("S", event)
        self._append(line if decision is None else write_decision(decision) + line)

    def settle(self, event: UsageEvent) -> None:
        """Writes `E`, the row as it is to stand, before the response's last byte leaves. Raises: `SpoolError`."""
        self._append(write_line("E", event))

    def decide(self, decision: bytes) -> None:
        """Writes `D` alone: the decision of a request that no attempt follows. Raises: `SpoolError`."""
        self._append(write_decision(decision))

    @property
    def pending_bytes(self) -> int:
        """Bytes of this worker that the shipper has not confirmed. Reads the directory: not for each request."""
        pending = 0
        for segment in process_segments(self._directory, self._process):
            try:
                pending += max(0, segment.path.stat().st_size - offset_of(segment.path))
            except FileNotFoundError:
                continue  # shipped and deleted since the directory was listed
        return pending

    @property
    def is_dirty(self) -> bool:
        """Whether anything was written since the last `sync`."""
        return self._dirty or self._directory_dirty or bool(self._full)

    def sync(self) -> None:
        """Brings everything written so far to the disk (fdatasync). Blocking; any thread. Raises: `SpoolError`."""
        with self._sync_lock:
            if self._fd < 0:
                return
            try:
                while self._full:
                    fd = self._full.popleft()
                    try:
                        os.fdatasync(fd)
                    finally:
                        os.close(fd)
                # Cleared before the descriptor is read: a record written meanwhile sets it again.
                if self._dirty:
                    self._dirty = False
                    os.fdatasync(self._fd)
                if self._directory_dirty:
                    self._directory_dirty = False
                    _sync_directory(self._directory)
            except OSError as error:
                self._dirty = True
                raise SpoolError(f"cannot sync the spool: {error}") from error

    async def run_sync(self, interval: float = 0.05) -> None:
        """Syncs every `interval` seconds in a thread until cancelled, then once more. A failure is logged, not raised:
        records reach the shipper through the page cache anyway, and the next round tries again."""
        failed = False
        try:
            while True:
                await asyncio.sleep(interval)
                if not self.is_dirty:
                    continue
                try:
                    await asyncio.to_thread(self.sync)
                    failed = False
                except SpoolError as error:
                    if not failed:
                        _log.error("%s; a power cut now would lose recent usage events", error)
                    failed = True
        finally:
            try:
                self.sync()
            except SpoolError as error:
                _log.error("%s", error)

    def close(self) -> None:
        """Syncs, lets go of the segment and closes it. To the shipper the worker is gone: what began and was not
        settled ships as `worker_lost`."""
        try:
            self.sync()
        finally:
            with self._sync_lock:
                fd, self._fd = self._fd, -1
                if fd >= 0:
                    os.close(fd)
                while self._full:
                    os.close(self._full.popleft())

    def _append(self, lines: bytes) -> None:
        if self._fd < 0:
            raise SpoolError("the spool is closed")
        if self._size + len(lines) > self._segment_bytes and self._size > len(HEADER):
            self._open_segment()
        if self._torn:
            lines = b"\n" + lines
        self._write(lines)

    def _write(self, lines: bytes) -> None:
        try:
            written = os.write(self._fd, lines)
            while written < len(lines):
                written += os.write(self._fd, lines[written:])
        except OSError as error:
            # Half a line must not become the head of the next record. The shipper reads whole lines only, so what is
            # cut off here was never read.
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                self._torn = True
            raise SpoolError(f"cannot write to the spool: {error}") from error
        self._torn = False
        self._size += len(lines)
        self._dirty = True

    def _open_segment(self) -> None:
        """Begins the next segment; the old one is kept locked until `sync` has brought it to the disk.

        The file gets its name only when it is locked and has its header: a visible newest segment that can be locked
        belongs to a dead worker, at every instant.
        """
        number = self._number + 1
        path = self._directory / f"{self._process}-{number:06d}.spool"
        hidden = path.with_suffix(".new")
        fd = -1
        try:
            fd = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(fd, HEADER) != len(HEADER):
                raise OSError("no space for the header")
            os.rename(hidden, path)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
                hidden.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise SpoolError(f"cannot open a spool segment: {error}") from error
            raise
        if self._fd >= 0:
            self._full.append(self._fd)
        self._fd, self._number, self._size, self._torn = fd, number, len(HEADER), False
        self._directory_dirty = self._dirty = True


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
