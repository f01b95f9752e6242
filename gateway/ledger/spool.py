"""The worker's append-only spool: what the ledger will say is on disk before the client has its last byte."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import NamedTuple

from gateway.config.model import LedgerSettings
from gateway.ledger.hold import Hold, Record
from gateway.ledger.record import HEADER, Kind, write_end, write_lines
from gateway.ledger.segment import process_segments, saved_of, total_size

SEGMENT_BYTES = 32 * 1024 * 1024
LEAST_SEGMENT_BYTES = 64 * 1024
SHARE_OF_SEGMENT = 8
"""Shipped segments are deleted whole, so none may be much of what all of them may have."""
SHARE_FOR_ENDS = 16
"""Of the bound: kept free for the ends of attempts that were let begin."""
MEASURE_SECONDS = 1.0
REMEASURE_SECONDS = 0.1
"""While it is full."""
SYNC_SECONDS = 0.05

_log = logging.getLogger(__name__)
_WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Records = tuple[tuple[Kind, bytes], ...]


class SpoolError(Exception):
    """A record could not be written or synced: disk full, bound reached, I/O error. It is not accounted."""


class SpoolState(NamedTuple):
    is_full: bool  # the disk takes nothing, or the bound is reached
    held: int  # records in memory that wait for the disk
    lost: int  # records that found room nowhere


class Spool:
    """Appends usage events, decisions and prompts to files that the shipper carries into PostgreSQL. One for each
    worker.

    Files are `DIRECTORY/<worker>-<start time>-<pid>-<n>.spool`, in the format of `record.py`; a new segment begins when
    `segment_bytes` would be passed. The segment being written is held by `flock`: that is how the shipper tells a
    living worker from a dead one, so a process that forks without exec must not keep a Spool open in the child.

    Durability: one `write` per call, complete when `begin`, `settle`, `decide` or `keep` returns. The kernel then owns
    the bytes, so they survive the death of the worker by any signal. They do not yet survive a power cut or a kernel
    crash: `sync` bounds that loss to what was written since the last one (about `settings.sync` seconds of `run_sync`);
    where that is 0, `durable` waits for the disk, and whoever waits at the same time shares one sync.

    A disk that is full, or all spools together at `settings.max_bytes` (`sharers`: how many workers share it): with
    `refuse`, nothing more begins; with `continue`, it goes on in memory. What has begun is settled in memory either
    way. What is held there is written, in its order, as soon as the disk takes it.

    `begin`, `settle`, `decide`, `keep` and `relieve` belong to one thread (the event loop's); `sync` and `close` may be
    called from others.
    """

    def __init__(
        self,
        directory: Path,
        worker: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        settings: LedgerSettings | None = None,
        sharers: int = 1,
        hold: Hold | None = None,
    ) -> None:
        """Opens the first segment; the directory is created, private to the user.

        Raises: `ValueError` for a worker name that cannot be part of a file name, `SpoolError` when the disk refuses.
        """
        if not _WORKER.fullmatch(worker):
            raise ValueError(f"worker name `{worker}` has to match `{_WORKER.pattern}`")
        self._directory = directory
        self.process = f"{worker}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
        self._most_segment_bytes = segment_bytes
        self._segment = 0
        self._next = 1  # the number of the next line
        self._records = 0  # lines in this segment
        self._fd = -1
        self._size = 0
        self._torn = False  # a failed write left half a line that could not be taken back
        self._dirty = False
        self._directory_dirty = False
        self._full: deque[int] = deque()  # rotated out, to be synced and closed
        self._sync_lock = Lock()
        self._synced = 0  # the last number that is on disk for certain
        self._syncing: asyncio.Task[None] | None = None
        self._held = Hold() if hold is None else hold
        self._is_full = False
        self._is_over = False  # it is full because of its bound
        self._room = 0
        self._measured_at = 0.0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SpoolError(f"cannot create spool directory: {error}") from error
        self.configure(LedgerSettings() if settings is None else settings, sharers)
        self._open_segment()

    def configure(self, settings: LedgerSettings, sharers: int = 1) -> None:
        """Takes up other settings while it runs."""
        self._settings = settings
        self._sharers = max(1, sharers)
        share = settings.max_bytes // self._sharers
        self._segment_bytes = min(self._most_segment_bytes, max(LEAST_SEGMENT_BYTES, share // SHARE_OF_SEGMENT))
        self._kept_free = share // SHARE_FOR_ENDS
        self._measure()

    @property
    def state(self) -> SpoolState:
        return SpoolState(self._is_full, len(self._held), self._held.overflowed)

    def begin(self, event_id: str, start: bytes, decision: bytes | None = None) -> None:
        """Writes `S`, before the upstream is called: the row that holds if this worker dies before `settle`.

        `start`: its JSON (`record.begun_json`). `decision`: that of the request, with its first attempt; it is written
        before it, by the same write.
        Raises: `SpoolError`, with `on_full: refuse` only or when the spool is closed; `ValueError` for a decision over
        MAX_RECORD.
        """
        try:
            if decision is None:
                self._append((("S", start),), self._kept_free)
            else:
                self._append((("D", decision), ("S", start)), self._kept_free)
        except SpoolError:
            if self._settings.on_full == "refuse" or self._fd < 0:
                raise
            if decision is not None:
                self._held.add(f"D {event_id}", Record("D", decision))
            self._hold(event_id, Record("S", start))

    def settle(self, event_id: str, end: bytes) -> None:
        """Writes `E`, the row as it is to stand, before the response's last byte leaves; `end`: its JSON
        (`record.settled_json`). While the disk refuses it, it is held in memory.

        Raises: `SpoolError` when there is no room in memory either, or the spool is closed.
        """
        try:
            self._append((("E", end),))
        except SpoolError:
            if self._fd < 0 or not self._hold(event_id, Record("E", end)):
                raise

    def decide(self, decision: bytes) -> None:
        """Writes `D` alone: the decision of a request that no attempt follows. Raises: `SpoolError`, `ValueError` when
        it is over MAX_RECORD."""
        self._append((("D", decision),), self._kept_free)

    def keep(self, prompt: bytes) -> None:
        """Writes `P`: what was asked and answered. Raises: `SpoolError`, `ValueError` when it is over MAX_RECORD."""
        self._append((("P", prompt),), self._kept_free)

    def relieve(self) -> None:
        """Writes what is held in memory, if the disk takes it now, and looks how full the spool is."""
        with suppress(SpoolError):
            if self._held:
                self._write_held()
        if self._is_over and self._room > self._kept_free:
            self._recover()  # a disk that was full is known to take more only when it has taken something

    @property
    def pending_bytes(self) -> int:
        """Bytes of this worker that the shipper has not confirmed. Reads the directory: not for each request."""
        pending = 0
        for segment in process_segments(self._directory, self.process):
            try:
                pending += max(0, segment.path.stat().st_size - saved_of(segment.path).offset)
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
            written = self._next - 1
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
            self._synced = written

    @property
    def waits_for_disk(self) -> bool:
        """Whether what is written counts as kept only when `durable` has returned."""
        return self._settings.sync <= 0

    async def durable(self) -> None:
        """With `sync: 0`, waits until everything written so far is on disk; else returns at once.

        Who comes while a sync runs waits for the next one, together with all others who do. Raises: `SpoolError`.
        """
        if self._settings.sync > 0:
            return
        written = self._next - 1
        while self._synced < written and self._fd >= 0:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.ensure_future(asyncio.to_thread(self.sync))
            await asyncio.shield(self._syncing)  # one that is cancelled leaves the sync to the others

    async def run_sync(self, interval: float | None = None) -> None:
        """Syncs every `interval` seconds (None: as the settings say) in a thread until cancelled, then once more. A
        failure is logged, not raised: records reach the shipper through the page cache anyway, and the next round tries
        again. Each round also writes what is held in memory, and now and then looks how full the spool is."""
        failed = False
        try:
            while True:
                await asyncio.sleep(interval or self._settings.sync or SYNC_SECONDS)
                if monotonic() - self._measured_at > MEASURE_SECONDS:
                    await asyncio.to_thread(self._measure)
                self.relieve()
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
        """Ends the segment, syncs, lets go of it and closes it. To the shipper the worker is gone: what began and was
        not settled ships as `worker_lost`."""
        if self._fd >= 0:
            self.relieve()
            if self._held:
                _log.error("%d ledger records were never written: the disk takes none", len(self._held))
            self._end_segment(is_last=True)
        try:
            self.sync()
        finally:
            with self._sync_lock:
                fd, self._fd = self._fd, -1
                if fd >= 0:
                    os.close(fd)
                while self._full:
                    os.close(self._full.popleft())

    # Writing

    def _append(self, records: _Records, kept_free: int = 0) -> None:
        """Writes the records by one write. Raises: `SpoolError`."""
        if self._fd < 0:
            raise SpoolError("the spool is closed")
        try:
            if not self._held.is_empty:
                self._write_held()
            lines = write_lines(self._next, records)
            size = len(lines)
            if size + kept_free <= self._room and size + self._size <= self._segment_bytes and not self._torn:
                self._put(lines)
                self._next += len(records)
                self._records += len(records)
            else:
                self._write(records, kept_free)
        except SpoolError as error:
            if not self._is_full:
                self._is_full = True
                _log.error("%s; %s", error, _CONSEQUENCES[self._settings.on_full])
            raise
        if self._is_full and (kept_free or not self._is_over):
            self._recover()  # an end that fits into what is kept for ends does not make room for what begins

    def _write_held(self) -> None:
        """Raises: `SpoolError`; what was written until then is held no more."""
        for key, record in self._held:
            self._write((record,), 0)
            self._held.remove(key)
        if not self._is_over:
            self._recover()

    def _recover(self) -> None:
        self._is_full = self._is_over = False
        _log.warning("the spool is written again; records that found room nowhere so far: %d", self._held.overflowed)

    def _hold(self, key: str, record: Record) -> bool:
        if self._held.add(key, record):
            return True
        if self._held.overflowed == 1:
            _log.error("ledger records are lost: the disk takes none, and those held in memory are too many")
        return False

    def _write(self, records: _Records, kept_free: int) -> None:
        """Also where the bound, the segment's end or half a line stand in the way. Raises: `SpoolError`."""
        lines = write_lines(self._next, records)
        size = len(lines)
        if self._room < size + kept_free:
            if monotonic() - self._measured_at > REMEASURE_SECONDS:
                self._measure()
            if self._room < size + kept_free:
                self._is_over = True
                raise SpoolError(f"the spool is full: it may have {self._settings.max_bytes} bytes")
        if self._size + size > self._segment_bytes and self._records:
            self._open_segment()  # which takes a number for the end of the last one
            self._write(records, 0)
            return
        self._put(b"\n" + lines if self._torn else lines)
        self._next += len(records)
        self._records += len(records)

    def _put(self, lines: bytes) -> None:
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
        self._room -= len(lines)
        self._dirty = True

    def _measure(self) -> None:
        """How much this worker may write until it looks again: its share of what is left for all."""
        try:
            self._room = (self._settings.max_bytes - total_size(self._directory)) // self._sharers
            self._measured_at = monotonic()
        except OSError as error:
            _log.error("the size of the spool is not known: %s", error)

    def _end_segment(self, *, is_last: bool) -> None:
        """Writes the line that tells a segment that is whole from one that was cut off. One without it is read too."""
        with suppress(SpoolError):
            end = write_end(self._next, self._records, is_last=is_last)
            self._put(b"\n" + end if self._torn else end)
            self._next += 1

    def _open_segment(self) -> None:
        """Begins the next segment; the old one is kept locked until `sync` has brought it to the disk.

        The file gets its name only when it is locked and has its header: a visible newest segment that can be locked
        belongs to a dead worker, at every instant.
        """
        number = self._segment + 1
        path = self._directory / f"{self.process}-{number:06d}.spool"
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
            self._end_segment(is_last=False)  # the next one is there: a death in between loses nothing
            self._full.append(self._fd)
        self._fd, self._segment, self._size, self._torn, self._records = fd, number, len(HEADER), False, 0
        self._directory_dirty = self._dirty = True


_CONSEQUENCES = {
    "refuse": "no request that costs anything is let begin",
    "continue": "requests are served, and what they cost is held in memory",
}


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
