"""Slots and queues. Time is the test's: the loop's clock moves only when a test moves it."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from gateway.admission import LONGEST_RETRY_AFTER, Admission, FairQueue, Shed
from gateway.config.model import Configuration, Server
from gateway.errors import RateLimited
from gateway.telemetry import Metrics
from tests.configuration import make_endpoint
from tests.gateway_fixtures import Call, Gateway, Upstream, completion, endpoints, hang, key_record, until


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        await settle()


@pytest_asyncio.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock


async def settle() -> None:
    """Everything that can happen without time passing has happened."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Requests at one queue. `served`: names of those that got in, in that order."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.served: list[str] = []
        self.shed: list[str] = []
        self.errors: dict[str, Shed] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, team: str | None = None, **how: Any) -> None:
        """Each name comes, of the team that its first letter names."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._enter(name, team or name[0], how))
            await settle()

    async def _enter(self, name: str, team: str, how: dict[str, Any]) -> None:
        try:
            await self.queue.enter(team, **how)
        except Shed as error:
            self.shed.append(name)
            self.errors[name] = error
        else:
            self.served.append(name)

    async def go(self, count: int = 1) -> list[str]:
        """So many leave, one after the other; who got in for them."""
        before = len(self.served)
        for _ in range(count):
            self.queue.leave()
            await settle()
        return self.served[before:]


def one_slot(*, max_waiting: int = 1000, max_wait: float = 10.0) -> FairQueue:
    """Taken by somebody."""
    queue = FairQueue(1, max_waiting=max_waiting, max_wait=max_wait)
    assert queue.try_enter()
    return queue


async def enter_now(queue: FairQueue, team: str = "a") -> bool:
    """Whether there is a slot at once."""
    task = asyncio.create_task(queue.enter(team))
    await settle()
    if task.done():
        task.result()
        return True
    task.cancel()
    await settle()
    return False


# Slots


async def test_without_a_limit_everybody_is_served_at_once_and_counted() -> None:
    queue = FairQueue(None, max_waiting=0, max_wait=0.0)
    for _ in range(1000):
        await queue.enter("a")
    assert (queue.in_flight, queue.waiting, queue.is_full) == (1000, 0, False)


async def test_as_many_as_the_limit_are_served_and_the_next_waits_for_a_leaving(clock: Clock) -> None:
    queue = FairQueue(2, max_waiting=10, max_wait=10.0)
    crowd = Crowd(queue)
    await crowd.come("a1", "a2", "a3", "a4")
    assert crowd.served == ["a1", "a2"]
    assert (queue.in_flight, queue.waiting, queue.is_full) == (2, 2, True)
    assert not queue.try_enter()
    assert await crowd.go() == ["a3"]
    assert await crowd.go() == ["a4"]
    assert (queue.in_flight, queue.waiting) == (2, 0)
    await crowd.go(2)
    assert (queue.in_flight, queue.is_full) == (0, False)


async def test_leaving_more_often_than_entering_is_a_mistake() -> None:
    queue = FairQueue(1, max_waiting=0, max_wait=0.0)
    with pytest.raises(RuntimeError, match="without `enter`"):
        queue.leave()


async def test_a_freed_slot_is_not_taken_before_those_who_wait(clock: Clock) -> None:
    queue = one_slot()
    crowd = Crowd(queue)
    await crowd.come("a1")
    queue.leave()
    assert not queue.try_enter(), "it is the waiter's, though that has not run yet"
    await settle()
    assert crowd.served == ["a1"]


# Fairness


async def test_a_team_with_a_hundred_waiting_delays_no_other(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come(*(f"a{number}" for number in range(100)))
    await crowd.come("b1", "c1")
    assert set(await crowd.go(3)) == {"a0", "b1", "c1"}


async def test_it_delays_no_other_either_after_it_has_waited_for_long(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_wait=100.0))
    await crowd.come(*(f"a{number}" for number in range(100)))
    for _ in range(4):
        await clock.advance(20.0)
        await crowd.go()
    await crowd.come("b1")
    assert "b1" in await crowd.go(2)


async def test_teams_take_turns_and_inside_a_team_the_first_comes_first(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come(*(f"a{number}" for number in range(6)))
    await crowd.come("b0", "b1", "b2")
    served = await crowd.go(9)
    assert [name for name in served if name[0] == "a"] == [f"a{number}" for number in range(6)]
    assert [name for name in served if name[0] == "b"] == ["b0", "b1", "b2"]
    assert Counter(name[0] for name in served[:6]) == {"a": 3, "b": 3}


async def test_teams_share_by_weight(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come(*(f"a{number}" for number in range(60)), weight=3.0)
    await crowd.come(*(f"b{number}" for number in range(60)), weight=1.0)
    for _ in range(5):
        share = Counter(name[0] for name in await crowd.go(8))
        assert share == {"a": 6, "b": 2}


async def test_a_team_that_was_away_has_saved_up_nothing(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come("b0")
    await crowd.come(*(f"a{number}" for number in range(60)))
    await crowd.go(40)
    await crowd.come(*(f"b{number}" for number in range(1, 20)))
    assert Counter(name[0] for name in await crowd.go(11)) == {"a": 5, "b": 6}


# Priority


async def test_the_highest_priority_is_served_first(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come("a1", priority=1)
    await crowd.come("a5", priority=5)
    await crowd.come("a9", priority=9)
    assert await crowd.go(3) == ["a9", "a5", "a1"]


async def test_the_lowest_priority_gets_its_turn_although_higher_ones_never_cease(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_wait=10.0))
    await crowd.come("a0", "a1", priority=0)
    for second in range(10):
        await crowd.come(f"b{second}", f"c{second}", priority=9)
        await clock.advance(0.95)
        await crowd.go()
    assert "a0" in crowd.served
    assert "a1" not in crowd.served, "one turn for the level, and then it starts from below again"
    assert crowd.served.index("a0") >= 8, "not before it has risen so far"


async def test_priority_comes_before_who_came_first_and_before_shares(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come("a0", priority=4)
    await crowd.come(*(f"b{number}" for number in range(5)), priority=5)
    assert await crowd.go(5) == [f"b{number}" for number in range(5)]


# Shedding


async def test_a_full_queue_refuses_the_next(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=2))
    await crowd.come("a1", "a2", "a3")
    assert crowd.shed == ["a3"]
    error = crowd.errors["a3"]
    assert isinstance(error, RateLimited)
    assert (error.status, error.code) == (429, "overloaded")
    assert await crowd.go(2) == ["a1", "a2"]


async def test_where_nobody_may_wait_who_finds_no_slot_is_refused(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=0))
    await crowd.come("a1")
    assert crowd.shed == ["a1"]
    assert crowd.queue.waiting == 0
    assert seconds_of(crowd.errors["a1"]) == 1, "nothing is known of how fast they leave"


async def test_a_higher_priority_takes_the_place_of_the_newest_of_the_team_with_most_waiting(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=5))
    await crowd.come("a1", priority=3)
    await crowd.come("b1", "b2", "b3", priority=3)
    await crowd.come("c1", priority=7)
    await crowd.come("d1", priority=5)
    assert crowd.shed == ["b3"]
    assert crowd.queue.waiting == 5
    assert (await crowd.go(5))[:2] == ["c1", "d1"]


async def test_a_lower_priority_takes_nobodys_place(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=3))
    await crowd.come("a1", "a2", "a3", priority=5)
    await crowd.come("b1", priority=4)
    assert crowd.shed == ["b1"]


async def test_a_team_that_fills_the_queue_keeps_no_other_out(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=4))
    await crowd.come("a1", "a2", "a3", "a4")
    await crowd.come("b1", "b2")
    assert crowd.shed == ["a4", "a3"]
    await crowd.come("b3", "a5")
    assert crowd.shed == ["a4", "a3", "b3", "a5"], "from equal shares nobody gains"


async def test_weights_count_in_a_full_queue_too(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=4))
    await crowd.come("a1", "a2", "a3", weight=3.0)
    await crowd.come("b1", weight=1.0)
    await crowd.come("b2", weight=1.0)
    await crowd.come("a4", weight=3.0)
    assert crowd.shed == ["b2", "a4"]


async def test_who_waits_too_long_is_shed_and_the_others_are_not(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_wait=10.0))
    await crowd.come("a1")
    await clock.advance(6.0)
    await crowd.come("a2")
    await clock.advance(4.5)
    assert crowd.shed == ["a1"]
    assert "waited too long" in crowd.errors["a1"].message
    assert await crowd.go() == ["a2"]
    await clock.advance(60.0)
    assert crowd.shed == ["a1"], "who was served is not timed any more"
    assert crowd.queue.in_flight == 1


async def test_waiting_ends_when_the_requests_own_time_is_over(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_wait=10.0))
    await crowd.come("a1", due=clock.now + 2.0)
    await crowd.come("a2")
    await clock.advance(2.5)
    assert crowd.shed == ["a1"]
    assert crowd.queue.waiting == 1


def seconds_of(error: Shed) -> int:
    [(name, value)] = error.headers
    assert name == b"retry-after"
    return int(value)


async def test_retry_after_is_how_long_those_ahead_will_take(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=10, max_wait=1000.0))
    await crowd.come(*(f"a{number}" for number in range(10)))
    for number in range(5):
        await clock.advance(2.0)
        await crowd.go()
        await crowd.come(f"a1{number}")
    await crowd.come("a20")
    assert seconds_of(crowd.errors["a20"]) == 22, "ten before it and its own, two seconds each"
    await crowd.come("a21", priority=0)
    assert seconds_of(crowd.errors["a21"]) == 22
    await crowd.come("c1", "c2", "c3", priority=9)
    assert crowd.shed[-3:] == ["a14", "a13", "a12"]
    assert seconds_of(crowd.errors["a12"]) == 20, "those who are worth more are before it as well"


async def test_retry_after_grows_while_nobody_leaves_and_ends_at_its_bound(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=2, max_wait=1000.0))
    await crowd.come("a1", "a2")
    for seconds, expected in ((0.1, 1), (2.9, 9), (100.0, LONGEST_RETRY_AFTER)):
        await clock.advance(seconds)
        await crowd.come("a3")
        assert seconds_of(crowd.errors["a3"]) == expected


# Those who do not wait for their turn


async def test_who_goes_away_while_waiting_frees_the_place(clock: Clock) -> None:
    crowd = Crowd(one_slot(max_waiting=2))
    await crowd.come("a1", "a2")
    crowd.tasks["a1"].cancel()
    await settle()
    assert crowd.queue.waiting == 1
    await crowd.come("a3")
    assert crowd.shed == []
    assert await crowd.go(2) == ["a2", "a3"]


async def test_a_slot_given_to_somebody_who_goes_in_that_moment_goes_to_the_next(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come("a1", "a2")
    crowd.queue.leave()
    crowd.tasks["a1"].cancel()
    await settle()
    assert crowd.served == ["a2"]
    assert (crowd.queue.in_flight, crowd.queue.waiting) == (1, 0)


async def test_who_has_gone_and_not_run_since_is_passed_over(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come("a1", "a2")
    crowd.tasks["a1"].cancel()
    crowd.queue.leave()
    await settle()
    assert crowd.served == ["a2"]
    assert (crowd.queue.in_flight, crowd.queue.waiting) == (1, 0)


# New limits


async def test_a_larger_limit_lets_those_in_who_wait_and_none_lets_in_all(clock: Clock) -> None:
    crowd = Crowd(one_slot())
    await crowd.come("a1", "a2", "a3", "a4")
    crowd.queue.resize(2, max_waiting=10, max_wait=10.0)
    await settle()
    assert crowd.served == ["a1"]
    crowd.queue.resize(None, max_waiting=10, max_wait=10.0)
    await settle()
    assert crowd.served == ["a1", "a2", "a3", "a4"]
    assert crowd.queue.in_flight == 5


async def test_a_smaller_limit_holds_when_enough_have_left_and_waiters_keep_their_places(clock: Clock) -> None:
    queue = FairQueue(3, max_waiting=10, max_wait=10.0)
    crowd = Crowd(queue)
    await crowd.come("a1", "a2", "a3", "a4", "a5")
    queue.resize(1, max_waiting=0, max_wait=1.0)
    assert await crowd.go(2) == []
    assert queue.in_flight == 1
    assert await crowd.go() == ["a4"]
    await clock.advance(5.0)
    assert crowd.shed == [], "the time given when it came still holds"
    assert await crowd.go() == ["a5"]


# The worker's gate and the endpoints' queues


def configuration(endpoints: dict[str, int | None] | None = None, **server: Any) -> Configuration:
    found = {id: make_endpoint(id, max_in_flight=limit) for id, limit in (endpoints or {}).items()}
    return Configuration(version="v", providers={}, endpoints=found, routes=(), policies={}, server=Server(**server))


def admission(*args: Any, workers: int = 1, **server: Any) -> tuple[Admission, Metrics]:
    metrics = Metrics()
    found = Admission(metrics)
    found.configure(configuration(*args, **server), workers)
    return found, metrics


async def fill(gate: Admission) -> int:
    """How many get in at once."""
    for number in range(50):
        try:
            await gate.enter("a")
        except Shed:
            return number
    return 50


@pytest.mark.parametrize(("limit", "workers", "part"), [(10, 1, 10), (10, 3, 3), (2, 4, 1), (None, 2, 50)])
async def test_each_worker_has_its_part_of_the_limit(limit: int | None, workers: int, part: int) -> None:
    gate, _ = admission(max_in_flight=limit, max_waiting=0, workers=workers)
    assert await fill(gate) == part
    assert gate.in_flight == part


async def test_places_in_the_queue_are_divided_too(clock: Clock) -> None:
    gate, _ = admission(max_in_flight=1, max_waiting=5, workers=2)
    tasks = [asyncio.create_task(gate.enter("a")) for _ in range(5)]
    await settle()
    assert gate.waiting == 3
    assert [task.done() for task in tasks] == [True, False, False, False, True]
    assert isinstance(tasks[4].exception(), Shed)
    for _ in range(4):
        gate.leave()
        await settle()
    assert (gate.waiting, gate.in_flight) == (0, 0)


def metric(metrics: Metrics, sample: str) -> float:
    lines = (line.rpartition(" ") for line in metrics.exposition().decode().splitlines())
    return next((float(value) for name, _, value in lines if name == sample), 0.0)


async def test_who_is_shed_is_counted_at_the_gate_where_it_happened(clock: Clock) -> None:
    gate, metrics = admission({"x": 1}, max_in_flight=1, max_waiting=1, max_wait=3.0)
    await gate.enter("a")
    waiting = asyncio.create_task(gate.enter("a"))
    await settle()
    with pytest.raises(Shed):
        await gate.enter("a")
    await clock.advance(3.5)
    assert isinstance(waiting.exception(), Shed)
    await gate.enter_endpoint("x", "a")
    gone = asyncio.create_task(gate.enter_endpoint("x", "a"))
    await settle()
    with pytest.raises(Shed):
        await gate.enter_endpoint("x", "a")
    gone.cancel()
    await settle()
    assert metric(metrics, 'hatchway_shed_requests_total{gate="server"}') == 2
    assert metric(metrics, 'hatchway_shed_requests_total{gate="x"}') == 1


async def test_whoever_need_not_wait_comes_in_without_waiting(clock: Clock) -> None:
    gate, _ = admission(max_in_flight=2)
    assert gate.try_enter() and gate.try_enter()
    assert not gate.try_enter()
    assert gate.in_flight == 2
    waiting = asyncio.create_task(gate.enter("a"))
    await settle()
    gate.leave()
    assert not gate.try_enter()  # the slot is given to who waits
    await waiting
    gate.leave()
    gate.leave()
    assert gate.try_enter()


async def test_an_endpoint_is_full_at_its_own_limit(clock: Clock) -> None:
    gate, _ = admission({"x": 2, "free": None})
    for _ in range(2):
        assert not gate.is_full("x")
        await gate.enter_endpoint("x", "a")
    assert gate.is_full("x")
    assert not gate.try_enter_endpoint("x")
    assert not gate.is_full("free") and gate.try_enter_endpoint("free")
    assert not gate.is_full("unknown")
    waiting = asyncio.create_task(gate.enter_endpoint("x", "b"))
    await settle()
    assert gate.waiting == 1
    gate.leave_endpoint("x")
    await settle()
    assert waiting.done() and gate.is_full("x")


async def test_requests_of_before_count_in_a_limit_that_is_set_later(clock: Clock) -> None:
    gate, _ = admission({"x": None})
    for _ in range(3):
        await gate.enter_endpoint("x", "a")
    gate.configure(configuration({"x": 2}), 1)
    assert gate.is_full("x")
    gate.leave_endpoint("x")
    assert gate.is_full("x")
    gate.leave_endpoint("x")
    assert not gate.is_full("x")


async def test_an_endpoint_that_is_gone_still_serves_those_who_know_it(clock: Clock) -> None:
    gate, _ = admission({"x": 1})
    await gate.enter_endpoint("x", "a")
    waiting = asyncio.create_task(gate.enter_endpoint("x", "a"))
    await settle()
    gate.configure(configuration({}), 1)
    await settle()
    assert waiting.done() and waiting.exception() is None
    for _ in range(2):
        gate.leave_endpoint("x")
    gate.configure(configuration({}), 1)
    await gate.enter_endpoint("x", "a")
    gate.leave_endpoint("x")


async def test_waiters_keep_their_places_in_a_new_configuration(clock: Clock) -> None:
    gate, _ = admission(max_in_flight=1)
    await gate.enter("a")
    tasks = [asyncio.create_task(gate.enter("a")) for _ in range(3)]
    await settle()
    changed = replace(configuration(), server=Server(max_in_flight=2, max_waiting=0))
    gate.configure(changed, 1)
    await settle()
    assert [task.done() for task in tasks] == [True, False, False]
    for _ in range(2):
        gate.leave()
    await settle()
    assert [task.exception() for task in tasks] == [None, None, None]


# What a client sees


async def test_a_busy_gateway_says_429_in_the_clients_protocol_and_leaves_a_row(tmp_path: Path) -> None:
    upstream = Upstream((hang,))
    await upstream.start()
    gateway = Gateway(endpoints(upstream), tmp_path, [key_record()])
    await gateway.start()
    try:
        limits = Server(max_in_flight=1, max_waiting=0)
        gateway.pipeline.admission.configure(replace(gateway.pipeline.snapshot.configuration, server=limits), 1)
        first = asyncio.create_task(gateway.ask())
        await until(lambda: upstream.calls)
        refused = await gateway.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= LONGEST_RETRY_AFTER
        [row] = gateway.records()
        assert (row.status, row.error_type, row.endpoint, row.cost_usd) == ("shed", "overloaded", "a", Decimal(0))
        gateway.cancel_requests()
        await asyncio.gather(first, return_exceptions=True)
        await until(lambda: gateway.pipeline.admission.in_flight == 0)
        assert len(upstream.calls) == 1
    finally:
        await gateway.stop()
        await upstream.stop()


async def test_a_full_endpoint_is_passed_by_and_the_last_one_is_waited_for(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def slow(call: Call) -> None:
        await release.wait()
        await call.answer(200, completion())

    upstreams = [Upstream((slow,)), Upstream((slow,))]
    for upstream in upstreams:
        await upstream.start()
    document = endpoints(*upstreams)
    for name in "ab":
        document["endpoints"][name]["max_in_flight"] = 1
    gateway = Gateway(document, tmp_path, [key_record()])
    await gateway.start()
    try:
        gate = gateway.pipeline.admission
        gate.configure(gateway.pipeline.snapshot.configuration, 1)
        tasks = [asyncio.create_task(gateway.ask()) for _ in range(4)]
        await until(lambda: gate.waiting == 2 and all(upstream.calls for upstream in upstreams))
        release.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.status_code for answer in answers] == [200] * 4
        assert (gate.waiting, gate.in_flight, gate.is_full("a"), gate.is_full("b")) == (0, 0, False, False)
        assert len(await gateway.settled(4)) == 4
    finally:
        await gateway.stop()
        for upstream in upstreams:
            await upstream.stop()


# Whatever happens, in any order


class Slots(RuleBasedStateMachine):
    """Slots are neither lost nor given twice, and none is free while somebody waits."""

    @initialize(limit=st.integers(1, 4), max_waiting=st.integers(0, 6))
    def begin(self, limit: int, max_waiting: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.loop.time = lambda: self.now  # type: ignore[method-assign]  # the test's clock
        self.limit: int | None = limit
        self.queue = FairQueue(limit, max_waiting=max_waiting, max_wait=8.0)
        self.tasks: list[asyncio.Task[None]] = []
        self.inside = 0

    def settle(self) -> None:
        async def nothing() -> None:
            await settle()

        self.loop.run_until_complete(nothing())
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.inside += 1

    @rule(
        team=st.sampled_from("abc"),
        priority=st.integers(0, 9),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        at_once=st.booleans(),
    )
    def come(self, team: str, priority: int, weight: float, at_once: bool) -> None:
        self.tasks.append(self.loop.create_task(self.queue.enter(team, priority=priority, weight=weight)))
        if at_once:
            self.settle()

    @precondition(lambda self: self.inside)
    @rule(settles=st.booleans())
    def leave(self, settles: bool) -> None:
        self.inside -= 1
        self.queue_leave()
        if settles:
            self.settle()

    def queue_leave(self) -> None:
        async def leave() -> None:
            self.queue.leave()

        self.loop.run_until_complete(leave())

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), leaves_first=st.booleans())
    def cancel(self, data: st.DataObject, leaves_first: bool) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        leaves = leaves_first and self.inside > 0
        if leaves:
            self.inside -= 1

        async def both() -> None:
            if leaves:
                self.queue.leave()
            task.cancel()

        self.loop.run_until_complete(both())
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    @rule(limit=st.none() | st.integers(1, 4), max_waiting=st.integers(0, 6))
    def resize(self, limit: int | None, max_waiting: int) -> None:
        async def resize() -> None:
            self.queue.resize(limit, max_waiting=max_waiting, max_wait=8.0)

        self.limit = limit
        self.loop.run_until_complete(resize())
        self.settle()

    @invariant()
    def slots_are_those_that_were_taken(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.settle()
        assert self.queue.in_flight == self.inside
        assert self.queue.waiting == len(self.tasks)
        assert not self.tasks or (self.limit is not None and self.inside >= self.limit)

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        while self.inside:
            self.inside -= 1
            self.queue_leave()
            self.settle()
        assert (self.queue.in_flight, self.queue.waiting, self.tasks) == (0, 0, [])
        self.loop.close()


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
