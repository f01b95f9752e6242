"""A disk that is full, a bound that is reached, and answers that wait for the disk."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.config.model import LedgerSettings
from gateway.ledger.hold import Hold, Record
from gateway.ledger.record import HEADER, read_event, read_line
from gateway.ledger.segment import Saved, save, segments_by_process, total_size
from gateway.ledger.spool import Spool, SpoolError
from gateway.types import UsageEvent
from tests.ledger.conftest import begin, settle
from tests.ledger.test_spool import all_lines, file_size_limit

NewEvent = Callable[..., UsageEvent]
CONTINUE = LedgerSettings(on_full="continue")
MIB = 1024 * 1024


def settled(event: UsageEvent) -> UsageEvent:
    return msgspec.structs.replace(event, status="ok", error_type=None)


def written(directory: Path) -> list[tuple[str, str]]:
    """Kind and event id of each line."""
    return [(line.kind, read_event(line.json).event_id) for line in all_lines(directory) if line.kind in "SE"]


def test_refuse_lets_nothing_begin_and_loses_no_end(
    tmp_path: Path, new_event: NewEvent, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, "w")
    begun = [new_event() for _ in range(3)]
    for event in begun:
        begin(spool, event)
    with file_size_limit(total_size(tmp_path) + 10):
        for event in begun:
            settle(spool, settled(event))
        with pytest.raises(SpoolError, match="File too large"):
            begin(spool, new_event())
        assert spool.state == (True, 3, 0)
        spool.relieve()
        assert spool.state == (True, 3, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # once, not for each
    spool.relieve()
    assert spool.state == (False, 0, 0)
    spool.close()
    assert written(tmp_path) == [("S", e.event_id) for e in begun] + [("E", e.event_id) for e in begun]


def test_continue_keeps_what_begins_in_memory_until_the_disk_takes_it(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w", settings=CONTINUE)
    first, second, third = new_event(), new_event(), new_event()
    with file_size_limit(total_size(tmp_path) + 10):
        begin(spool, first, b'{"request_id":"req_1"}')
        begin(spool, second)
        settle(spool, settled(first))
        assert spool.state == (True, 3, 0)  # a decision, a row that is settled, one that is not
        assert all_lines(tmp_path) == []
    begin(spool, third)
    assert spool.state == (False, 0, 0)
    spool.close()
    assert [line.kind for line in all_lines(tmp_path)] == ["D", "E", "S", "S"]
    assert written(tmp_path) == [("E", first.event_id), ("S", second.event_id), ("S", third.event_id)]


def test_what_finds_no_room_in_memory_is_counted(
    tmp_path: Path, new_event: NewEvent, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, "w", settings=CONTINUE, hold=Hold(most=2))
    events = [new_event() for _ in range(4)]
    with file_size_limit(total_size(tmp_path) + 10):
        for event in events:
            begin(spool, event)
        assert spool.state == (True, 2, 2)
        with pytest.raises(SpoolError):
            settle(spool, settled(events[3]))
        settle(spool, settled(events[0]))  # it has a place already
        assert spool.state == (True, 2, 3)
    assert "lost" in caplog.text
    spool.close()
    assert written(tmp_path) == [("E", events[0].event_id), ("S", events[1].event_id)]


def test_memory_is_bounded_in_bytes_too() -> None:
    hold = Hold(most=10, most_bytes=100)
    assert hold.add("a", Record("E", b"x" * 60))
    assert not hold.add("b", Record("E", b"x" * 60))
    assert hold.add("a", Record("E", b"x" * 90))
    assert not hold.add("b", Record("E", b"x" * 11))
    hold.remove("a")
    assert hold.add("b", Record("E", b"x" * 100))
    assert (len(hold), hold.overflowed) == (1, 2)


def test_what_is_still_held_when_the_spool_closes_is_said(
    tmp_path: Path, new_event: NewEvent, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, "w", settings=CONTINUE)
    with file_size_limit(total_size(tmp_path) + 10):
        begin(spool, new_event())
        spool.close()
    assert "1 ledger records were never written" in caplog.text


def test_the_spools_of_all_workers_have_one_bound(tmp_path: Path, new_event: NewEvent) -> None:
    bounded = LedgerSettings(max_bytes=MIB)
    spools = [Spool(tmp_path, f"w{n}", settings=bounded, sharers=2) for n in range(2)]
    begun = []
    refused = 0
    for number in range(6000):
        event = new_event()
        try:
            begin(spools[number % 2], event)
            begun.append((number % 2, event))
        except SpoolError as error:
            assert "it may have 1048576 bytes" in str(error)
            refused += 1
    assert refused > 100
    assert 0.5 * MIB < total_size(tmp_path) < MIB
    for place, event in begun[-20:]:
        settle(spools[place], settled(event))  # what was kept free is for these
    assert total_size(tmp_path) < MIB
    assert all(spool.state.held == 0 and spool.state.is_full for spool in spools)
    for spool in spools:
        spool.close()


async def test_a_bound_that_was_reached_holds_until_the_shipper_has_made_room(
    tmp_path: Path, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.ledger.spool.MEASURE_SECONDS", 0.0)
    spool = Spool(tmp_path, "w", settings=LedgerSettings(max_bytes=MIB))
    with pytest.raises(SpoolError):
        for _ in range(6000):
            begin(spool, new_event())
    assert spool.state.is_full
    segments = [segment.path for own in segments_by_process(tmp_path).values() for segment in own]
    assert len(segments) > 4  # each is a small share of the bound, so that room comes back in small steps
    for path in segments[:-1]:
        path.unlink()
    task = asyncio.create_task(spool.run_sync(0.001))
    async with asyncio.timeout(10):
        while spool.state.is_full:  # noqa: ASYNC110  room sets no event
            await asyncio.sleep(0.001)
    begin(spool, new_event())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    spool.close()


def test_settings_change_while_it_runs(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w")
    with file_size_limit(total_size(tmp_path) + 10):
        with pytest.raises(SpoolError):
            begin(spool, new_event())
        spool.configure(CONTINUE)
        begin(spool, new_event())
        spool.configure(LedgerSettings())
        with pytest.raises(SpoolError):
            begin(spool, new_event())
    spool.close()
    assert len(written(tmp_path)) == 1


def test_numbers_have_no_gap_after_failed_writes(tmp_path: Path, new_event: NewEvent) -> None:
    spool = Spool(tmp_path, "w", segment_bytes=3000)
    for number in range(12):
        if number % 3 == 1:
            with file_size_limit(len(HEADER)), pytest.raises(SpoolError):
                begin(spool, new_event())
        begin(spool, new_event())
    spool.close()
    numbers = [
        read_line(line).number
        for own in segments_by_process(tmp_path).values()
        for segment in own
        for line in segment.path.read_bytes().splitlines(keepends=True)[1:]
    ]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_answers_that_wait_for_the_disk_share_a_sync(
    tmp_path: Path, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "w", settings=LedgerSettings(sync=0.0))
    spool.sync()
    syncs = 0
    go = threading.Event()
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        assert go.wait(30)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)

    async def answer() -> None:
        settle(spool, new_event())
        await spool.durable()

    first = asyncio.create_task(answer())
    async with asyncio.timeout(10):
        while not syncs:  # noqa: ASYNC110  a sync sets no event
            await asyncio.sleep(0.001)
    others = [asyncio.create_task(answer()) for _ in range(20)]  # while the first sync is under way
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in (first, *others))
    others[0].cancel()
    go.set()
    await asyncio.gather(first, *others[1:])
    assert syncs == 2
    assert not spool.is_dirty
    await spool.durable()
    assert syncs == 2
    spool.close()


async def test_a_sync_that_fails_is_told_to_who_waits(
    tmp_path: Path, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "w", settings=LedgerSettings(sync=0.0))

    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    settle(spool, new_event())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(SpoolError, match="cannot sync"):
            await spool.durable()
    await spool.durable()
    spool.close()


async def test_nobody_waits_for_the_disk_where_the_settings_do_not_say_so(
    tmp_path: Path, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, "w")
    settle(spool, new_event())
    await spool.durable()
    assert spool.is_dirty
    spool.close()


def test_what_was_saved_of_a_segment_says_where_and_which_number(tmp_path: Path) -> None:
    path = tmp_path / "w-t-1-000001.spool"
    path.write_bytes(b"x" * 100)
    save(path, Saved(60, None))
    assert path.with_suffix(".offset").read_bytes() == b"60 0\n"
