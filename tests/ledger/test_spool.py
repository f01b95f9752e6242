from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from gateway.ledger.record import HEADER, Line, read_event, read_event_id, read_line
from gateway.ledger.segment import Saved, is_held, process_segments, save, saved_of, segments_by_process
from gateway.ledger.spool import Spool, SpoolError
from gateway.types import UsageEvent
from tests.ledger.conftest import begin, settle

NewEvent = Callable[..., UsageEvent]


def lines(path: Path) -> list[Line]:
    head, *records = path.read_bytes().splitlines(keepends=True)
    assert head == HEADER
    found = [read_line(record) for record in records]
    first = (found[0].number or 0) if found else 0
    assert [line.number for line in found] == list(range(first, first + len(found)))
    return [line for line in found if line.kind != "Z"]


def all_lines(directory: Path) -> list[Line]:
    return [line for own in segments_by_process(directory).values() for s in own for line in lines(s.path)]


def values(events: Iterable[UsageEvent]) -> list[dict[str, object]]:
    return [msgspec.structs.asdict(event) for event in events]


def read_values(lines: Iterable[Line]) -> list[dict[str, object]]:
    return values(read_event(line.json) for line in lines)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", "worker-0")
    yield opened
    opened.close()


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """A disk that is full: no file grows beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_records_are_in_the_file_when_the_calls_return(tmp_path: Path, spool: Spool, new_event: NewEvent) -> None:
    event = new_event()
    begin(spool, event)
    assert [line.kind for line in all_lines(tmp_path / "spool")] == ["S"]
    settled = msgspec.structs.replace(event, status="ok", error_type=None)
    settle(spool, settled)
    start, end = all_lines(tmp_path / "spool")
    assert (start.kind, end.kind) == ("S", "E")
    assert read_values([start, end]) == values([event, settled])


def test_one_write_for_each_record(spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write

    def counted(fd: int, data: bytes) -> int:
        written.append(data)
        return write(fd, data)

    monkeypatch.setattr(os, "write", counted)
    begin(spool, new_event())
    settle(spool, new_event())
    assert [read_line(data).kind for data in written] == ["S", "E"]


def test_partial_writes_are_completed(
    tmp_path: Path, spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    events = [new_event() for _ in range(3)]
    for event in events:
        settle(spool, event)
    assert read_values(all_lines(tmp_path / "spool")) == values(events)


def test_files_are_private(tmp_path: Path, spool: Spool) -> None:
    (segment,) = (tmp_path / "spool").glob("*.spool")
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert segment.stat().st_mode & 0o777 == 0o600


def test_a_new_segment_begins_at_the_size_and_only_the_newest_is_held(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w", segment_bytes=4096)
    events = [new_event() for _ in range(80)]
    for event in events:
        settle(spool, event)
    (own,) = segments_by_process(tmp_path).values()
    assert [segment.number for segment in own] == list(range(1, len(own) + 1))
    assert len(own) > 5
    assert all(segment.path.stat().st_size <= 4096 for segment in own)
    spool.sync()
    assert [is_held(segment.path) for segment in own] == [False] * (len(own) - 1) + [True]
    spool.close()
    assert not is_held(own[-1].path)
    assert read_values(all_lines(tmp_path)) == values(events)


def test_a_record_larger_than_a_segment_has_one_of_its_own(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w", segment_bytes=100)
    for _ in range(3):
        settle(spool, new_event())
    (own,) = segments_by_process(tmp_path).values()
    assert [len(lines(segment.path)) for segment in own] == [1, 1, 1]
    spool.close()


def test_segments_are_ordered_by_number_not_by_text(tmp_path: Path) -> None:
    for number in ("000002", "1000000", "999999"):
        (tmp_path / f"w-1-20260101T000000.000000Z-7-{number}.spool").touch()
    (tmp_path / "shipper.lock").touch()
    (tmp_path / "w-1-20260101T000000.000000Z-7-000003.new").touch()
    found = segments_by_process(tmp_path)
    assert list(found) == ["w-1-20260101T000000.000000Z-7"]
    assert [s.number for s in found["w-1-20260101T000000.000000Z-7"]] == [2, 999999, 1000000]


def test_a_full_disk_raises_and_leaves_whole_records(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w")
    first, second, third = new_event(), new_event(), new_event()
    settle(spool, first)
    (segment,) = tmp_path.glob("*.spool")
    size = segment.stat().st_size
    with file_size_limit(size + 50), pytest.raises(SpoolError, match="File too large"):
        begin(spool, second)  # 50 bytes fit, then the disk is full
    assert segment.stat().st_size == size
    settle(spool, third)
    assert read_values(all_lines(tmp_path)) == values([first, third])
    spool.close()


def test_half_a_record_that_cannot_be_taken_back_spoils_no_other(
    tmp_path: Path, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "w")

    def refuse(fd: int, size: int) -> None:
        raise OSError("no")

    (segment,) = tmp_path.glob("*.spool")
    event = new_event()
    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", refuse)
        with file_size_limit(segment.stat().st_size + 50), pytest.raises(SpoolError):
            begin(spool, new_event())
    settle(spool, event)
    _, half, whole = segment.read_bytes().splitlines(keepends=True)
    assert len(half) == 51
    assert read_values([read_line(whole)]) == values([event])
    spool.close()


def test_a_directory_that_cannot_be_made_is_a_spool_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError):
        Spool(tmp_path / "file" / "spool", "w")


@pytest.mark.parametrize("worker", ["", "../w", "a/b", "-w", "w" * 65])
def test_worker_names_stay_in_the_directory(tmp_path: Path, worker: str) -> None:
    with pytest.raises(ValueError, match="worker name"):
        Spool(tmp_path, worker)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_spool_refuses(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w")
    spool.close()
    spool.close()
    spool.sync()
    with pytest.raises(SpoolError, match="closed"):
        settle(spool, new_event())


def test_pending_bytes_are_those_after_the_saved_offset(tmp_path: Path, new_event: NewEvent) -> None:
    spool, other = Spool(tmp_path, "w", segment_bytes=2048), Spool(tmp_path, "x")
    settle(other, new_event())
    for _ in range(6):
        settle(spool, new_event())
    own = [own for process, own in segments_by_process(tmp_path).items() if process.startswith("w-")][0]
    sizes = [segment.path.stat().st_size for segment in own]
    assert spool.pending_bytes == sum(sizes)
    save(own[0].path, Saved(sizes[0], 5))
    save(own[1].path, Saved(20, 6))
    assert spool.pending_bytes == sum(sizes) - sizes[0] - 20
    assert process_segments(tmp_path, own[0].process) == own
    spool.close()
    other.close()


@pytest.mark.parametrize("spoiled", [b"", b"x", b"-5 1", b"999999999 3", b"5 x"])
def test_a_spoiled_offset_means_from_the_start(tmp_path: Path, spoiled: bytes) -> None:
    path = tmp_path / "w-t-1-000001.spool"
    path.write_bytes(b"x" * 100)
    save(path, Saved(60, 3))
    assert saved_of(path) == (60, 3)
    path.with_suffix(".offset").write_bytes(spoiled)
    assert saved_of(path) == (0, None)


def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records which file each fdatasync was for."""
    seen: list[str] = []
    fdatasync = os.fdatasync

    def record(fd: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name[-12:])
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", record)
    return seen


def test_sync_covers_full_segments_and_only_what_is_dirty(
    tmp_path: Path, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = synced(monkeypatch)
    spool = Spool(tmp_path, "w", segment_bytes=100)
    for _ in range(3):
        settle(spool, new_event())
    assert seen == []  # never on the request path
    spool.sync()
    assert seen == ["000001.spool", "000002.spool", "000003.spool"]
    assert not spool.is_dirty
    spool.sync()
    assert len(seen) == 3
    settle(spool, new_event())
    assert spool.is_dirty
    spool.close()
    assert seen[3:] == ["000003.spool", "000004.spool"]


def test_a_failed_sync_is_tried_again(spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    settle(spool, new_event())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(SpoolError, match="cannot sync"):
            spool.sync()
    assert spool.is_dirty
    spool.sync()
    assert not spool.is_dirty


async def test_run_sync_syncs_while_running_and_once_more_when_cancelled(
    spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = synced(monkeypatch)
    task = asyncio.create_task(spool.run_sync(0.001))
    settle(spool, new_event())
    async with asyncio.timeout(10):
        while not seen:  # noqa: ASYNC110  a sync sets no event
            await asyncio.sleep(0.001)
    task.cancel()
    settle(spool, new_event())  # after the last round, before the task has seen its end
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not spool.is_dirty


async def test_run_sync_goes_on_after_a_failure(
    spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0
    fdatasync = os.fdatasync

    def refuse_twice(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise OSError(5, "Input/output error")
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", refuse_twice)
    settle(spool, new_event())
    task = asyncio.create_task(spool.run_sync(0.001))
    async with asyncio.timeout(10):
        while calls < 3:  # noqa: ASYNC110  a sync sets no event
            await asyncio.sleep(0.001)
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # once, not for every round
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_run_sync_ends_cancelled_even_when_the_last_sync_fails(
    spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    settle(spool, new_event())
    task = asyncio.create_task(spool.run_sync(3600))
    await asyncio.sleep(0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert "Input/output error" in caplog.text


def test_ids_can_be_read_alone(tmp_path: Path, spool: Spool, new_event: NewEvent) -> None:
    event = new_event()
    begin(spool, event)
    (line,) = all_lines(tmp_path / "spool")
    assert read_event_id(line.json) == event.event_id


def test_a_decision_and_its_first_attempt_are_one_write(
    tmp_path: Path, spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = os.write

    def counted(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", counted)
    event = new_event()
    begin(spool, event, b'{"request_id":"req_1"}')
    assert len(sizes) == 1
    spool.decide(b'{"request_id":"req_2"}')
    assert len(sizes) == 2
    found = all_lines(tmp_path / "spool")
    assert [line.kind for line in found] == ["D", "S", "D"]
    assert [found[0].json, found[2].json] == [b'{"request_id":"req_1"}', b'{"request_id":"req_2"}']
    assert read_event(found[1].json).event_id == event.event_id


def test_a_disk_that_is_full_takes_neither_decision_nor_attempt(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w")
    decision = b'{"request_id":"' + b"x" * 500 + b'"}'
    with file_size_limit(len(HEADER) + 600):  # room for the decision alone
        with pytest.raises(SpoolError):
            begin(spool, new_event(), decision)
    assert all_lines(tmp_path) == []
    begin(spool, new_event(), decision)
    assert [line.kind for line in all_lines(tmp_path)] == ["D", "S"]
    spool.close()
