"""The runner over a real PostgreSQL, with rows that tests put into the ledger and a clock that they turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from gateway.config.model import Configuration
from gateway.errors import InvalidRequest, NotFound, StoreError
from gateway.escape import run
from gateway.escape.record import from_row
from gateway.escape.run import BLIND_SECONDS, EscapeRunner
from gateway.escape.steps import Escape, EscapeRequest
from gateway.publication import Publication
from gateway.store.escapes import find_escape
from tests.escape.conftest import TEXT, Clock, Ledger, compile_text

REQUEST = EscapeRequest(
    source="a", target="b", shadow_share=0.1, shadow_requests=20, ramp=(0.25, 1.0), step_seconds=60.0, step_requests=30
)


class Desk:
    """A runner, its publication, and what was pushed."""

    def __init__(self, engine: Engine, folder: Path, configuration: Configuration, clock: Clock) -> None:
        self.engine, self.clock, self.configuration = engine, clock, configuration
        self.publication = Publication(folder / "home")
        self.pushed: list[list[tuple[float, float]]] = []
        self.is_current = True
        self.runner = self.new_runner()

    def new_runner(self, owner: str = "here") -> EscapeRunner:
        return EscapeRunner(
            self.engine,
            self.publication,
            configuration=lambda: self.configuration,
            push=self.push,
            owner=owner,
            is_current=lambda: self.is_current,
            wall=self.clock,
        )

    async def push(self) -> None:
        self.pushed.append(self.shares)

    @property
    def shares(self) -> list[tuple[float, float]]:
        """As workers see them: moved, copied."""
        return [(shift.share, shift.shadow_share) for shift in self.publication.read_shifts()]

    def stored(self, escape_id: str) -> Escape:
        row = find_escape(self.engine, escape_id)
        assert row is not None
        return from_row(row)


@pytest.fixture
async def desk(engine: Engine, tmp_path: Path, configuration: Configuration, clock: Clock) -> AsyncIterator[Desk]:
    yield Desk(engine, tmp_path, configuration, clock)


async def begin_ramp(desk: Desk, ledger: Ledger, clock: Clock) -> str:
    """An escape whose copies were sound, at 25 %."""
    escape_id = await desk.runner.start(REQUEST, "dana")
    clock.turn(1)
    ledger.moved(escape_id, 25, role="shadow")
    ledger.kept(escape_id, 200)
    clock.turn(1)
    await desk.runner.tend()
    assert desk.shares == [(0.25, 0.0)]
    return escape_id


async def test_an_escape_that_finishes(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    escape_id = await desk.runner.start(REQUEST, "dana")
    assert desk.shares == [(0.0, 0.1)]
    clock.turn(1)
    ledger.moved(escape_id, 19, role="shadow")
    ledger.kept(escape_id, 200)
    await desk.runner.tend()
    assert desk.shares == [(0.0, 0.1)]  # one copy is missing
    ledger.moved(escape_id, 1, role="shadow")
    clock.turn(1)
    await desk.runner.tend()
    assert desk.shares == [(0.25, 0.0)]
    clock.turn(30)
    ledger.moved(escape_id, 40)
    ledger.kept(escape_id, 120)
    await desk.runner.tend()
    assert desk.shares == [(0.25, 0.0)]  # enough requests, but the time is not over
    (escape,) = desk.runner.status()
    assert (escape.target.requests, escape.source.requests) == (40, 120)
    clock.turn(30)
    await desk.runner.tend()
    assert desk.shares == [(1.0, 0.0)]
    clock.turn(60)
    ledger.moved(escape_id, 100)
    await desk.runner.tend()
    (escape,) = desk.runner.status()
    assert (escape.state, desk.shares) == ("finished", [(1.0, 0.0)])
    # The source got nothing in the last step: the whole escape's numbers stand in.
    assert escape.results[-1].source.requests == 320
    assert desk.pushed == [[(0.0, 0.1)], [(0.25, 0.0)], [(1.0, 0.0)]]
    assert desk.stored(escape_id) == escape
    await desk.runner.tend()
    assert desk.shares == [(1.0, 0.0)]  # until somebody stops it
    await desk.runner.stop(escape_id[:6], "dana")
    assert desk.shares == []
    assert desk.stored(escape_id).state == "stopped"


@pytest.mark.parametrize(
    ("rows", "guard"),
    [
        ({"failed": 12}, "errors"),
        ({"ttft_ms": 900.0}, "ttft"),
        ({"cost_usd": 1}, "cost"),
    ],
)
async def test_a_bad_target_is_halted_and_undone(
    desk: Desk, ledger: Ledger, clock: Clock, rows: dict[str, Any], guard: str
) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, 40, **rows)
    ledger.kept(escape_id, 120)
    await desk.runner.tend()
    assert desk.shares == []
    escape = desk.stored(escape_id)
    assert escape.state == "halted"
    verdict = escape.results[-1].verdict
    assert verdict is not None
    assert [finding.guard for finding in verdict.findings if finding.state == "broken"] == [guard]
    await desk.runner.tend()
    assert [one.state for one in desk.runner.status()] == ["halted"]
    await desk.runner.start(REQUEST, "dana")  # and may be tried again


async def test_a_target_that_turns_bad_late_is_halted(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, 1000)
    ledger.kept(escape_id, 100)
    clock.turn(1)
    await desk.runner.tend()
    assert desk.shares == [(0.25, 0.0)]
    clock.turn(1)
    ledger.moved(escape_id, 5, failed=5)
    await desk.runner.tend()
    assert desk.shares == []
    assert "4 of the last 4 failed" in (desk.stored(escape_id).reason or "")


async def test_unusable_answers_halt_it(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, 20)
    ledger.add(10, "b", {"hatchway.escape": escape_id, "hatchway.role": "escape", "hatchway.valid": "no:empty"})
    await desk.runner.tend()
    assert desk.stored(escape_id).state == "halted"


async def test_copies_that_differ_halt_it(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    guards = msgspec.structs.replace(REQUEST.guards, min_similarity=0.8)
    escape_id = await desk.runner.start(msgspec.structs.replace(REQUEST, guards=guards), "dana")
    clock.turn(1)
    tags = {"hatchway.escape": escape_id, "hatchway.role": "shadow"}
    for number in range(25):
        ledger.add(1, "b", {**tags, "hatchway.similarity": f"0.{30 + number % 5}"})
    ledger.add(1, "b", {**tags, "hatchway.similarity": "none of that"})
    ledger.kept(escape_id, 100)
    await desk.runner.tend()
    escape = desk.stored(escape_id)
    assert (escape.state, escape.target.compared) == ("halted", 25)
    assert escape.target.similarity_mean == pytest.approx(0.32)


async def test_only_the_two_groups_are_measured(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    tags = {"hatchway.escape": escape_id, "hatchway.role": "escape"}
    ledger.moved(escape_id, 5)
    ledger.add(3, "b")  # its own traffic
    ledger.add(3, "b", {**tags, "hatchway.escape": "esc-other"})
    ledger.add(3, "b", {**tags, "hatchway.role": "shadow"})
    ledger.add(3, "b", tags, status="cancelled")
    ledger.add(3, "b", tags, status="error", error_type="worker_lost")
    ledger.kept(escape_id, 10)
    ledger.kept(escape_id, 2, attempt=2)  # after the target had failed
    ledger.add(2, "a", {"hatchway.escape": escape_id, "hatchway.role": "hedge"})
    ledger.add(2, "a")  # what the target could not have served
    ledger.add(2, "a", {"hatchway.escape": "esc-other"})
    ledger.kept(escape_id, 2, status="timeout", error_type="timeout_ttft")
    await desk.runner.tend()
    (escape,) = desk.runner.status()
    assert (escape.target.requests, escape.target.failures, escape.target.judged) == (5, 0, 5)
    assert (escape.source.requests, escape.source.failures, escape.source.timed) == (12, 2, 10)


async def test_it_is_stopped_at_once_even_while_the_ledger_is_away(
    desk: Desk, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)

    def away(*_: Any, **__: Any) -> None:
        raise StoreError("PostgreSQL has gone")

    with monkeypatch.context() as gone:
        gone.setattr(run, "save_escape", away)
        gone.setattr(run, "measure_target", away)
        await desk.runner.stop(escape_id, "dana")
        assert desk.shares == []
        await desk.runner.tend()
        assert desk.stored(escape_id).state == "ramp"
    # A gateway that starts before it could be written down does not go on.
    second = desk.new_runner()
    await second.load()
    assert [one.state for one in second.status()] == ["stopped"]
    await desk.runner.tend()
    assert desk.stored(escape_id).state == "stopped"


@pytest.mark.parametrize(("slow", "seen"), [("measure_target", 5), ("measure_target", 100), ("save_escape", 100)])
async def test_it_is_stopped_while_a_step_is_being_judged_or_written_down(
    desk: Desk, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch, slow: str, seen: int
) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, seen)
    ledger.kept(escape_id, 100)
    clock.turn(60)
    begun, released = threading.Event(), threading.Event()
    original = getattr(run, slow)

    def waits(*arguments: Any, **named: Any) -> Any:
        if not begun.is_set():
            begun.set()
            assert released.wait(20)
        return original(*arguments, **named)

    monkeypatch.setattr(run, slow, waits)
    look = asyncio.ensure_future(desk.runner.tend())
    assert await asyncio.to_thread(begun.wait, 20)
    stop = asyncio.ensure_future(desk.runner.stop(escape_id, "dana"))
    async with asyncio.timeout(20):
        while desk.shares:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)
    released.set()
    await asyncio.gather(look, stop)
    await desk.runner.tend()
    assert desk.shares == []
    assert desk.stored(escape_id).state == "stopped"


async def test_while_the_ledger_cannot_be_read_nothing_rises_and_later_nothing_is_moved(
    desk: Desk, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, 100)
    ledger.kept(escape_id, 100)
    clock.turn(60)

    def away(*_: Any, **__: Any) -> None:
        raise StoreError("PostgreSQL has gone")

    with monkeypatch.context() as gone:
        gone.setattr(run, "measure_target", away)
        gone.setattr(run, "save_escape", away)
        await desk.runner.tend()
        assert desk.shares == [(0.25, 0.0)]
        clock.turn(BLIND_SECONDS)
        await desk.runner.tend()
        assert desk.shares == [(0.0, 0.0)]
        clock.turn(1000)
        await desk.runner.tend()
    await desk.runner.tend()
    assert desk.shares == [(0.25, 0.0)]  # the same step, from its beginning
    await desk.runner.tend()
    (escape,) = desk.runner.status()
    assert (escape.target.requests, escape.blind_since) == (0, None)
    assert desk.stored(escape_id).position == 1


async def test_rows_that_do_not_arrive_count_as_a_ledger_that_is_away(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, 100)
    ledger.kept(escape_id, 100)
    clock.turn(60)
    desk.is_current = False
    await desk.runner.tend()
    assert desk.shares == [(0.25, 0.0)]
    desk.is_current = True
    await desk.runner.tend()
    await desk.runner.tend()
    assert desk.shares == [(1.0, 0.0)]


async def test_no_step_is_taken_that_cannot_be_written_down(
    desk: Desk, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, 100)
    ledger.kept(escape_id, 100)
    clock.turn(60)

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(run, "save_escape", full)
        await desk.runner.tend()
        assert desk.shares == [(0.25, 0.0)]
        with pytest.raises(StoreError):
            await desk.runner.start(EscapeRequest(source="c", target="a2"), "dana")
        assert len(desk.runner.status()) == 1


async def test_a_new_control_plane_goes_on_at_the_same_step(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    ledger.moved(escape_id, 100)
    ledger.kept(escape_id, 100)
    second = desk.new_runner("a new container")  # what was published is of this home all the same
    await second.load()
    assert desk.shares == [(0.25, 0.0)]
    clock.turn(60)
    await second.tend()
    assert desk.shares == [(1.0, 0.0)]
    desk.publication = Publication(desk.publication.home.parent / "another home")
    stranger = desk.new_runner()
    await stranger.load()
    assert stranger.status() == []


async def test_one_escape_for_each_source(desk: Desk, ledger: Ledger, clock: Clock) -> None:
    await begin_ramp(desk, ledger, clock)
    for source, target, words in (
        ("a", "c", "already moves"),
        ("c", "a", "already moves"),
        ("b", "c", "no policy"),
        ("idle", "c", "no policy"),
        ("c", "keyless", "UNSET_API_KEY"),
        ("a", "a", "to itself"),
        ("a", "nobody", "no endpoint and no provider"),
        ("two", "one", "not clear which"),
    ):
        with pytest.raises(InvalidRequest, match=words) as refused:
            await desk.runner.start(EscapeRequest(source=source, target=target), "dana")
        assert refused.value.code == "escape_refused"
        assert "hint:" in refused.value.message
    for unknown in ("", "esc-nobody", "a"):
        with pytest.raises(NotFound):
            await desk.runner.stop(unknown, "dana")


async def test_two_starts_at_the_same_time(desk: Desk) -> None:
    answers = await asyncio.gather(
        *(desk.runner.start(REQUEST, name) for name in ("dana", "erik")), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["InvalidRequest", "str"]


async def test_a_configuration_that_moves_on_ends_it(desk: Desk, ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    escape_id = await begin_ramp(desk, ledger, clock)
    desk.configuration = compile_text(tmp_path, TEXT.replace("endpoints: [a, c", "endpoints: [b, c"))
    await desk.runner.tend()
    assert (desk.stored(escape_id).state, desk.shares) == ("closed", [])
    desk.configuration = compile_text(tmp_path, TEXT)
    escape_id = await desk.runner.start(REQUEST, "dana")
    without = "\n".join(line for line in TEXT.splitlines() if not line.startswith("  b:"))
    desk.configuration = compile_text(tmp_path, without)
    await desk.runner.tend()
    assert (desk.stored(escape_id).state, desk.shares) == ("halted", [])


async def test_the_loop_survives_and_ends_with_its_owner(
    desk: Desk, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(run, "LOAD_SECONDS", 0.01)
    task = asyncio.ensure_future(desk.runner.run())
    escape_id = await desk.runner.start(REQUEST, "dana")
    ledger.moved(escape_id, 25, role="shadow")
    ledger.kept(escape_id, 100)
    async with asyncio.timeout(20):
        while desk.shares != [(0.25, 0.0)]:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.shares == [(0.25, 0.0)]
