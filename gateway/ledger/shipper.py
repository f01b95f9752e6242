"""Carries the spools of all workers into PostgreSQL: at least once from the file, exactly once in the table."""

from __future__ import annotations

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import BinaryIO, NamedTuple

import psycopg

from gateway.errors import StoreError
from gateway.ledger import segment as segments
from gateway.ledger.backlog import Backlog, measure
from gateway.ledger.batch import Connection, Row, Table
from gateway.ledger.record import (
    FIRST_HEADER,
    HEADER,
    MAX_LINE,
    OLD_HEADERS,
    BadRecord,
    Line,
    read_end,
    read_event,
    read_event_id,
    read_line,
)
from gateway.ledger.rejects import Reject, reject, write_rejects
from gateway.ledger.rows import DECISIONS, EVENTS, PROMPTS, decision_values, end_values, event_values, prompt_values
from gateway.ledger.segment import Saved, Segment
from gateway.ledger.sequence import Finding, Sequence

LOCK_FILE = "shipper.lock"
BATCH_ROWS = 2000
BATCH_BYTES = 8 * 1024 * 1024
READ_BYTES = 256 * 1024
"""Read from a file at once."""

_FORMAT = HEADER.split()[0] + b" "
_HEADERS = (HEADER, *OLD_HEADERS)
_log = logging.getLogger(__name__)


class ShipperBusy(Exception):
    """Another shipper works on this directory."""


class Shipped(NamedTuple):
    """What one round did. `rejected`, `torn`, `mended` and `damaged` have a line each in `spool/rejected/`."""

    rows: int = 0  # new usage events in their table
    bytes: int = 0  # read from the spool and dealt with
    pending_bytes: int = 0  # left: written since, or of a line that is not complete yet
    rejected: int = 0  # corrupt lines, and rows that PostgreSQL refuses
    torn: int = 0  # last lines of dead workers that were cut off
    lost: int = 0  # attempts of dead workers that were never settled, shipped as they began
    mended: int = 0  # rows shipped without a value that PostgreSQL refuses
    decisions: int = 0  # new ones in their table
    prompts: int = 0  # likewise
    damaged: int = 0  # places where lines are missing, or stand where they do not belong
    unclosed: int = 0  # dead workers that did not end their spool: killed, or its end was cut off


@dataclass
class _Progress:
    """How far one segment has come. Everything before `read` is in the table, rejected, or in `unsettled`."""

    segment: Segment
    read: int
    saved: Saved
    sequence: Sequence
    is_numbered: bool = False
    knows_end: bool = True  # its last line was read by this shipper, or will be
    # event id -> where its `S` stands: offset and number, in the order written
    unsettled: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    @property
    def confirmed(self) -> Saved:
        """Where reading has to begin after a restart: no `S` whose `E` has not been seen may be skipped."""
        return Saved(*next(iter(self.unsettled.values()), (self.read, self.sequence.expected)))


@dataclass
class _Round:
    """What has been read and not yet written."""

    rows: list[Row] = field(default_factory=list)
    decisions: list[Row] = field(default_factory=list)
    prompts: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    size: int = 0  # bytes of all
    done: Counter[str] = field(default_factory=Counter)  # by field of `Shipped`

    def add_reject(self, path: Path, offset: int, reason: str, line: bytes) -> None:
        self.rejects.append(reject(path, offset, reason, line))
        self.size += len(line)

    def add_finding(self, path: Path, offset: int, found: Finding, line: bytes) -> None:
        self.done["damaged"] += 1
        kept = line if found.is_kept_out else None
        self.rejects.append(
            reject(path, offset, found.reason, kept, missing=found.missing, is_misplaced=found.is_kept_out)
        )
        self.size += len(line)


class Shipper:
    """One for each spool directory; a lock file keeps a second one out.

    `connect` opens a connection to a migrated database; it is kept between rounds and opened anew after a failure.
    An attempt is shipped when it is settled. One that began and was not settled waits until its worker is dead and all
    of the worker's segments are read, and is then shipped as it began. Memory is bounded by one batch and by the
    attempts in flight. A second thread waits for its turn: a caller that was cancelled leaves its round running.
    """

    def __init__(
        self,
        directory: Path,
        connect: Callable[[], Connection],
        *,
        batch_rows: int = BATCH_ROWS,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        self._directory = directory
        self._connect = connect
        self._batch_rows = batch_rows
        self._batch_bytes = batch_bytes
        self._connection: Connection | None = None
        self._lock = -1
        self._turn = Lock()
        self._progress: dict[Path, _Progress] = {}
        self._foreign: set[Path] = set()  # of another format version, reported once
        self._is_swept = False
        self._listed_at = -1  # when the directory had last changed, by its own clock, before it was listed

    def ship_once(self) -> Shipped:
        """Ships everything that is in the spool now. Blocking.

        Raises: `StoreError` when PostgreSQL cannot be reached or refuses altogether, `OSError` when the spool cannot
        be read or the offset not saved, `ShipperBusy`. Nothing is lost then: the next call begins again where the
        last saved offsets say.
        """
        with self._turn:
            self._take_lock()
            try:
                return self._ship()
            except psycopg.Error as error:
                self._reset()
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise StoreError(f"usage events cannot be written: {reason}\nhint: they wait in the spool") from error
            except BaseException:
                self._reset()
                raise

    @property
    def pending_bytes(self) -> int:
        """Bytes in the spool that are not shipped, without asking PostgreSQL."""
        return sum(
            max(0, _size(segment.path) - self._read_so_far(segment))
            for listed in segments.segments_by_process(self._directory).values()
            for segment in listed
            if segment.path not in self._foreign
        )

    @property
    def has_news(self) -> bool:
        """Whether anything was written since the last round, or a segment came or went, by the files alone; quicker to
        tell than to ship nothing. What a dead worker left behind is no news. Any thread."""
        try:
            if self._directory.stat().st_mtime_ns != self._listed_at:
                return True
            return any(path.stat().st_size > progress.read for path, progress in list(self._progress.items()))
        except OSError:
            return True

    def backlog(self) -> Backlog:
        """What waits in the spool, and how long, without asking PostgreSQL. Any thread. Raises: `OSError`."""
        return measure(self._directory, {path: progress.read for path, progress in list(self._progress.items())})

    def close(self) -> None:
        """Closes the connection and lets another shipper in. Waits for a round that is running."""
        with self._turn:
            self._reset()
            lock, self._lock = self._lock, -1
            if lock >= 0:
                os.close(lock)

    def __enter__(self) -> Shipper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ship(self) -> Shipped:
        if not self._is_swept:
            segments.sweep(self._directory)
            self._is_swept = True
        self._listed_at = self._directory.stat().st_mtime_ns
        dead = self._dead_processes()
        # Listed after the check: whatever a dead worker wrote is complete here.
        listed = segments.segments_by_process(self._directory)
        if self.pending_bytes and self._connection is None:
            self._connection = self._connect()  # before anything is read in vain
        current = _Round()
        for process, own in listed.items():
            for segment in own:
                is_final = process in dead or segment is not own[-1]
                self._read_segment(current, segment, is_final)
            if process in dead:
                self._check_end(current, own[-1])
                self._read_lost(current, own)
        self._flush(current)
        for process, own in listed.items():
            self._delete_shipped(own if process in dead else own[:-1])
        return Shipped(**current.done, pending_bytes=self.pending_bytes)

    def _dead_processes(self) -> set[str]:
        """Workers that write no more. A living one always holds its newest segment, so one that can be locked and is
        still the newest afterwards has no owner."""
        free: dict[str, Segment] = {}
        for process, own in segments.segments_by_process(self._directory).items():
            if not segments.is_held(own[-1].path):
                free[process] = own[-1]
        newest = {process: own[-1] for process, own in segments.segments_by_process(self._directory).items()}
        return {process for process, segment in free.items() if newest.get(process) == segment}

    def _read_segment(self, current: _Round, segment: Segment, is_final: bool) -> None:
        """Reads what is new, up to the size of this moment. `is_final`: nobody will add to it."""
        path = segment.path
        if path in self._foreign:
            return
        end = _size(path)
        progress = self._progress.get(path)
        if progress is not None and progress.read >= end:
            return
        with open(path, "rb", buffering=READ_BYTES) as file:
            if progress is None:
                progress = self._begin(current, segment, file)
                if progress is None:
                    return
                self._progress[path] = progress
            start = file.seek(progress.read)
            while progress.read < end:
                line = file.readline(MAX_LINE)
                size = len(line)
                if not line.endswith(b"\n") and size < MAX_LINE and not is_final:
                    break  # being written
                try:
                    waiting = self._take(current, progress, line)
                except BadRecord as error:
                    is_last = is_final and progress.read + size >= end
                    current.done["torn" if is_last else "rejected"] += 1
                    reason = f"torn tail: {error}" if is_last else str(error)
                    current.add_reject(path, progress.read, reason, line)
                    waiting = len(current.rejects)
                progress.read += size
                if waiting >= self._batch_rows or current.size >= self._batch_bytes:
                    self._flush(current)
            current.done["bytes"] += progress.read - start

    def _begin(self, current: _Round, segment: Segment, file: BinaryIO) -> _Progress | None:
        """Finds out where to go on. None: a file of another version of the format, which is left for who can read it.
        A header that is no header at all was damaged; the checksums tell which records were not."""
        head = file.readline(len(HEADER))
        if head.startswith(_FORMAT) and head not in _HEADERS:
            self._foreign.add(segment.path)
            _log.error("`%s` is of another format version and stays where it is", segment.path.name)
            return None
        is_numbered = head in _HEADERS and head != FIRST_HEADER
        saved = segments.saved_of(segment.path)
        if saved.offset:
            sequence = Sequence(saved.number)
            knows_end = saved.offset < _size(segment.path)
            return _Progress(segment, saved.offset, saved, sequence, is_numbered, knows_end)
        start = len(head) if head in _HEADERS else 0
        expected = None if head == FIRST_HEADER else self._first_number(current, segment)
        return _Progress(segment, start, saved, Sequence(expected), is_numbered)

    def _first_number(self, current: _Round, segment: Segment) -> int | None:
        """The number with which a segment that is read from its start has to begin. None: nobody can tell."""
        if segment.number == 1:
            return 1
        before = segments.neighbour(segment, -1)
        progress = self._progress.get(before)
        if progress is not None:
            return progress.sequence.expected
        if before in self._foreign:
            return None
        number = segments.number_after(before)
        if number is None:
            self._add_missing(current, segment, f"the segment before this one is missing: `{before.name}`")
        return number

    def _check_end(self, current: _Round, newest: Segment) -> None:
        """Of a dead process: whether it came to its end, as far as the newest segment tells."""
        progress = self._progress.get(newest.path)
        if progress is None or not progress.is_numbered or not progress.knows_end:
            return
        end = progress.sequence.end
        if end is None:
            current.done["unclosed"] += 1
        elif not end.is_last and not segments.was_shipped(segments.neighbour(newest, 1)):
            self._add_missing(current, newest, "the segment after this one is missing")

    def _add_missing(self, current: _Round, segment: Segment, reason: str) -> None:
        current.add_finding(segment.path, 0, Finding(reason), b"")

    def _take(self, current: _Round, progress: _Progress, line: bytes) -> int:
        """Takes one line, the next of its segment; returns how many of its kind are waiting to be written. Called for
        each line there is, so what is usual is told first. Raises `BadRecord`."""
        read = read_line(line)
        kind, json, number = read
        sequence = progress.sequence
        if number == sequence.expected and number is not None and sequence.end is None and kind != "Z":
            sequence.expected = number + 1
        elif not self._is_in_place(current, progress, read, line):
            return len(current.rejects)
        if kind == "S":
            progress.unsettled[read_event_id(json)] = (progress.read, number)
            return 0
        if kind == "E":
            rows, values = current.rows, end_values(json)
            self._pair(progress, read_event_id(json))
        elif kind == "D":
            rows, values = current.decisions, decision_values(json)
        elif kind == "P":
            rows, values = current.prompts, prompt_values(json)
        else:
            return 0
        rows.append(Row(values, line, progress.segment.path, progress.read))
        current.size += len(line)
        return len(rows)

    def _pair(self, progress: _Progress, event_id: str) -> None:
        """Forgets the `S` of an attempt that is settled. It may stand in an earlier segment than its `E`."""
        if progress.unsettled.pop(event_id, None) is None:
            for earlier in self._progress.values():
                if earlier.unsettled.pop(event_id, None) is not None:
                    return

    def _is_in_place(self, current: _Round, progress: _Progress, read: Line, line: bytes) -> bool:
        """Whether the line is to be taken; what is wrong with its place is reported. Raises `BadRecord`."""
        path, offset, sequence = progress.segment.path, progress.read, progress.sequence
        if read.number is None:
            if not progress.is_numbered:
                return True
            found: Finding | None = Finding("a line without a number among numbered ones", is_kept_out=True)
        else:
            found = sequence.take(read.number)
            if found is None and read.kind == "Z":
                found = sequence.finish(read.number, read_end(read.json))
        if found is None:
            return True
        current.add_finding(path, offset, found, line)
        return not found.is_kept_out

    def _read_lost(self, current: _Round, own: list[Segment]) -> None:
        """Adds what a dead worker began and did not settle."""
        for segment in own:
            progress = self._progress.get(segment.path)
            if progress is None or not progress.unsettled:
                continue
            with open(segment.path, "rb") as file:
                for event_id, (offset, _) in list(progress.unsettled.items()):
                    file.seek(offset)
                    line = file.readline(MAX_LINE)
                    del progress.unsettled[event_id]
                    try:
                        event = read_event(read_line(line).json)
                        current.rows.append(Row(event_values(event), line, segment.path, offset, is_start=True))
                        current.done["lost"] += 1
                    except BadRecord as error:
                        current.done["rejected"] += 1
                        current.add_reject(segment.path, offset, str(error), line)
                    current.size += len(line)
                    self._flush_if_full(current)

    def _flush_if_full(self, current: _Round) -> None:
        longest = max(len(current.rows), len(current.decisions), len(current.prompts))
        if longest + len(current.rejects) >= self._batch_rows or current.size >= self._batch_bytes:
            self._flush(current)

    def _flush(self, current: _Round) -> None:
        """Tables first, then the files of what they refused, then the offsets: a crash in between ships again."""
        current.done["rows"] += self._insert(current, EVENTS, current.rows)
        current.done["decisions"] += self._insert(current, DECISIONS, current.decisions)
        current.done["prompts"] += self._insert(current, PROMPTS, current.prompts)
        write_rejects(self._directory, current.rejects)
        if current.rejects:
            first = current.rejects[0]
            message = "%d records set aside in `rejected`; the first: `%s` at %d: %s"
            _log.warning(message, len(current.rejects), first.segment, first.offset, first.reason)
        current.rows, current.decisions, current.prompts, current.rejects, current.size = [], [], [], [], 0
        self._save_offsets()

    def _insert(self, current: _Round, table: Table, rows: list[Row]) -> int:
        """Returns how many are new; what the table refuses is added to the rejects."""
        if not rows:
            return 0
        if self._connection is None:
            self._connection = self._connect()
        inserted = table.insert(self._connection, rows)
        for refused in inserted.refused:
            row = rows[refused.position]
            current.rejects.append(reject(row.path, row.offset, refused.reason, row.line, is_mended=refused.is_mended))
            current.done["mended" if refused.is_mended else "rejected"] += 1
        return inserted.rows

    def _save_offsets(self) -> None:
        for path, progress in self._progress.items():
            confirmed = progress.confirmed
            if confirmed != progress.saved:
                segments.save(path, confirmed)
                progress.saved = confirmed

    def _delete_shipped(self, finished: list[Segment]) -> None:
        """Removes segments that nobody writes and that hold nothing more."""
        deleted = False
        for segment in finished:
            progress = self._progress.get(segment.path)
            if progress is not None and not progress.unsettled and progress.read >= _size(segment.path):
                segments.delete(segment.path)
                del self._progress[segment.path]
                deleted = True
        if deleted:
            segments.sweep(self._directory)

    def _read_so_far(self, segment: Segment) -> int:
        progress = self._progress.get(segment.path)
        return segments.saved_of(segment.path).offset if progress is None else progress.read

    def _take_lock(self) -> None:
        if self._lock >= 0:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ShipperBusy(
                f"another shipper works on `{self._directory}`\n"
                "hint: stop the other gateway, or give this one a `HATCHWAY_HOME` of its own"
            ) from None
        self._lock = fd

    def _reset(self) -> None:
        """Forgets what is only in memory: the saved offsets are the truth after a failure."""
        self._listed_at = -1
        self._progress.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # shipped and deleted by a round in another thread
