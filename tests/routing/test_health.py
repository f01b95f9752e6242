"""The book of one worker: failures are slow, what was slow gets a second chance, and what others learned is taken up.

Breakers: `test_breaker.py`. Several books: `tests/test_learning.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import msgspec
import pytest

from gateway.config.model import Learning
from gateway.routing.breaker import FORGET_AFTER, OPEN_AFTER, WINDOW
from gateway.routing.health import CHANGED, PENALTY_TTFT, REFRESH_EVERY, SWEEP_EVERY, HealthBook
from gateway.routing.statistics import Frozen, Learned, Observation, Published, read_learned
from gateway.types import EndpointHealth, Outlook, RouteHabits, size_of

NOW, WALL = 5000.0, 1_700_000_000.0
"""The same moment on both clocks."""


class Worker:
    """A book and its clocks, which move together."""

    def __init__(self, worker: str = "0", learning: Learning = Learning()) -> None:  # noqa: B008 - immutable
        self.book = HealthBook(learning, worker, process=f"p{worker}")
        self.seconds = 0.0

    @property
    def wall(self) -> float:
        return WALL + self.seconds

    def outlook(self) -> Outlook:
        return self.book.outlook(NOW + self.seconds, self.wall)

    def state(self, endpoint: str = "a") -> EndpointHealth:
        return self.outlook().endpoints[endpoint]

    def succeed(self, ttft: float = 0.5, endpoint: str = "a", **changes: object) -> None:
        observation = Observation(
            wall=self.wall,
            route="chat",
            ttft=ttft,
            seconds_per_token=0.02,
            output_tokens=50,
            choices=1,
            input_tokens=100,
            cached_tokens=20,
            rough_input_tokens=80,
            is_reported=True,
        )
        self.outlook()
        self.book.start(endpoint)
        self.book.succeed(endpoint, NOW + self.seconds, msgspec.structs.replace(observation, **changes))
        self.book.finish(endpoint)

    def fail(self, endpoint: str = "a", retry_after: float | None = None) -> None:
        self.outlook()
        self.book.start(endpoint)
        self.book.fail(endpoint, NOW + self.seconds, self.wall, retry_after=retry_after)
        self.book.finish(endpoint)

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


def publication(*parts: Learned, version: str = "0123456789ab", at: float = WALL, **more: object) -> bytes:
    base = Learned(half_life=600.0)
    return msgspec.json.encode(Published(version, at, base, list(parts), **more))  # type: ignore[arg-type]


@pytest.fixture
def worker() -> Iterator[Worker]:
    yield Worker()


def test_nothing_is_known_of_what_was_never_used(worker: Worker) -> None:
    assert worker.outlook() == Outlook()


def test_one_success(worker: Worker) -> None:
    worker.succeed(0.5)
    assert worker.state() == EndpointHealth(
        ttft=pytest.approx(0.5, rel=0.051),
        ttft_p95=pytest.approx(0.5, rel=0.051),
        seconds_per_token=pytest.approx(0.02, rel=0.051),
        cache_share=pytest.approx(0.2),
        samples=pytest.approx(1.0),
    )
    assert worker.outlook().routes == {
        "chat": RouteHabits(
            output_tokens=50.0,
            input_ratio=pytest.approx(1.25),
            samples=pytest.approx(1.0),
            by_size={size_of(80): pytest.approx(50.0)},
        )
    }


def test_expected_ttft_is_the_learned_median_while_nothing_changes(worker: Worker) -> None:
    draw = Random(1)
    for _ in range(300):
        worker.succeed(draw.uniform(0.4, 0.6))
        worker.wait(0.1)
    seen = {round(worker.state().ttft or 0, 6)}
    for _ in range(20):
        worker.succeed(draw.uniform(0.4, 0.6))
        worker.wait(REFRESH_EVERY)
        seen.add(round(worker.state().ttft or 0, 6))
    assert len(seen) == 1  # noise of the newest ten moves nothing
    assert seen.pop() == pytest.approx(0.5, rel=0.051)


def test_an_endpoint_that_becomes_slow_is_seen_at_once(worker: Worker) -> None:
    for _ in range(1000):
        worker.succeed(0.5)
    for _ in range(WINDOW // 2):
        worker.succeed(3.0)
    assert worker.state().ttft == 3.0
    for _ in range(WINDOW // 2 + 1):
        worker.succeed(0.5)
    assert worker.state().ttft == pytest.approx(0.5, rel=0.051)


def test_one_slow_answer_is_no_slow_endpoint(worker: Worker) -> None:
    for _ in range(WINDOW):
        worker.succeed(0.5)
    worker.succeed(60.0)
    assert worker.state().ttft == pytest.approx(0.5, rel=0.051)


@pytest.mark.parametrize("ttft", [0.5 * CHANGED * 1.1, 0.5 / CHANGED / 1.1])
def test_beyond_the_factor_the_newest_are_believed(worker: Worker, ttft: float) -> None:
    for _ in range(100):
        worker.succeed(0.5)
    worker.wait(FORGET_AFTER)
    worker.succeed(ttft)
    assert worker.state().ttft == ttft


def test_a_fast_refusal_does_not_draw_traffic(worker: Worker) -> None:
    """An endpoint that answers 429 at once must not look like the fastest one."""
    for _ in range(20):
        worker.succeed(0.8, "steady")
        worker.succeed(0.3, "refusing")
    assert (worker.state("refusing").ttft or 0) < (worker.state("steady").ttft or 0)
    worker.fail("refusing")
    worker.fail("refusing", retry_after=0.0)
    assert (worker.state("refusing").ttft or 0) > (worker.state("steady").ttft or 0)
    assert worker.state("refusing").ttft == pytest.approx(0.8 * 0.3 + 0.2 * PENALTY_TTFT, rel=0.02)
    worker.fail("never used before")
    assert worker.state("never used before").ttft == PENALTY_TTFT


def test_an_endpoint_that_was_slow_is_heard_of_again(worker: Worker) -> None:
    """One failure puts it over a ceiling; without traffic it would stay there for ever."""
    worker.fail()
    assert worker.state().ttft == PENALTY_TTFT
    worker.wait(FORGET_AFTER - SWEEP_EVERY - 1)
    assert worker.state().ttft == PENALTY_TTFT
    worker.wait(2 * SWEEP_EVERY)
    assert worker.state().ttft is None
    assert worker.state().failures_in_a_row == 1  # only the time is forgotten
    worker.succeed(0.2)
    assert worker.state().ttft == pytest.approx(0.2, rel=0.051)


def test_its_second_chance_counts_though_it_was_slow_for_long(worker: Worker) -> None:
    for _ in range(1000):
        worker.succeed(8.0)
    worker.wait(FORGET_AFTER + SWEEP_EVERY)
    assert worker.state().ttft is None
    worker.succeed(0.2)
    assert worker.state().ttft == 0.2


def test_what_is_observed_again_and_again_is_not_forgotten(worker: Worker) -> None:
    for _ in range(100):
        worker.succeed(0.4)
        worker.wait(FORGET_AFTER / 4)
        assert worker.state().ttft == pytest.approx(0.4, rel=0.051)


def test_quantiles_are_of_successes_alone(worker: Worker) -> None:
    for _ in range(3):
        worker.succeed(0.5)
        worker.fail()
        worker.fail()
    worker.wait(REFRESH_EVERY)
    state = worker.state()
    assert state.ttft_p95 == pytest.approx(0.5, rel=0.051)
    assert state.failure_share == pytest.approx(6 / 9)


def test_in_flight_is_counted_through_success_and_failure(worker: Worker) -> None:
    for endpoint in ("a", "a", "b"):
        worker.book.start(endpoint)
    assert (worker.state("a").in_flight, worker.state("b").in_flight) == (2, 1)
    worker.succeed()
    worker.fail()
    assert worker.state("a").in_flight == 2
    worker.book.finish("a")
    worker.book.finish("a")
    assert (worker.state("a").in_flight, worker.state("b").in_flight) == (0, 1)


def test_a_breaker_as_the_plan_sees_it(worker: Worker) -> None:
    worker.succeed()
    for _ in range(OPEN_AFTER):
        worker.fail()
    state = worker.state()
    assert state.ejected_until > NOW
    assert (state.failures_in_a_row, state.ttft) == (OPEN_AFTER, None)
    assert worker.book.states(NOW) == {"a": "open"}
    worker.wait(state.ejected_until - NOW)
    assert (worker.state().ejected_until, worker.state().admitted) == (0.0, 1.0)
    worker.book.start("a")
    assert worker.state().admitted == 0.0
    worker.book.finish("a")
    worker.succeed()
    assert 0 < worker.state().admitted < 1
    for _ in range(20):
        worker.wait(1.0)
        worker.succeed()
    assert (worker.state().admitted, worker.book.states(NOW + worker.seconds)) == (1.0, {"a": "closed"})


def test_time_brings_an_open_breaker_on_though_nobody_uses_the_endpoint(worker: Worker) -> None:
    worker.fail(retry_after=10.0)
    assert worker.state().ejected_until == NOW + 10.0
    worker.wait(9.0)
    assert worker.state().ejected_until == NOW + 10.0
    worker.wait(1.0)
    assert worker.state().ejected_until == 0.0
    assert worker.book.states(NOW + worker.seconds) == {"a": "half_open"}


def test_a_stream_that_began_before_the_outage_does_not_end_it(worker: Worker) -> None:
    worker.fail(retry_after=10.0)
    worker.wait(5.0)
    worker.succeed(1.0, seconds_per_token=0.1, output_tokens=50)  # began six seconds ago
    assert worker.state().ejected_until == NOW + 10.0
    worker.succeed(1.0, seconds_per_token=0.05, output_tokens=50)
    assert worker.book.states(NOW + worker.seconds) == {"a": "returning"}


def test_learned_numbers_outlast_the_newest_attempts_and_end_with_their_age() -> None:
    worker = Worker(learning=Learning(max_age=3600.0))
    for _ in range(4):
        worker.succeed(0.5)
    worker.wait(1800.0)
    state = worker.state()
    assert state.ttft is None
    assert state.cache_share == pytest.approx(0.2)
    assert state.samples == pytest.approx(4 / 8)
    worker.wait(1801.0)
    assert worker.state() == EndpointHealth()
    assert worker.outlook().routes == {}
    assert read_learned(worker.book.export(worker.wall)).endpoints == {}


def test_an_export_is_what_this_worker_alone_has_seen(worker: Worker) -> None:
    worker.succeed(0.5)
    other = Worker("1")
    other.succeed(0.5)
    worker.book.absorb(publication(read_learned(other.book.export(WALL))))
    export = read_learned(worker.book.export(WALL))
    assert (export.process, export.worker, export.observed) == ("p0", "0", 1)
    assert export.endpoints["a"].samples == 1.0


def test_two_processes_of_one_worker_have_different_names() -> None:
    names = {read_learned(HealthBook(worker="3").export(WALL)).process for _ in range(2)}
    assert len(names) == 2


def test_what_others_learned_is_taken_up_and_one_s_own_part_is_not(worker: Worker) -> None:
    other = Worker("1")
    for _ in range(3):
        other.succeed(2.0, cached_tokens=0)
    worker.succeed(2.0, cached_tokens=100)
    parts = [read_learned(one.book.export(WALL)) for one in (worker, other)]
    for _ in range(2):  # again is not twice
        worker.book.absorb(publication(*parts))
    state = worker.state()
    assert state.samples == pytest.approx(4.0)
    assert state.cache_share == pytest.approx(0.25)
    assert worker.outlook().routes["chat"].samples == pytest.approx(4.0)
    assert worker.outlook().version == "0123456789ab"
    assert (state.in_flight, state.failures_in_a_row) == (0, 0)


def test_another_worker_s_newest_attempts_count_until_they_are_old(worker: Worker) -> None:
    other = Worker("1")
    for _ in range(20):
        other.succeed(0.5)
    other.wait(FORGET_AFTER)
    for _ in range(3):
        other.succeed(2.0)
    worker.seconds = other.seconds
    worker.book.absorb(publication(read_learned(other.book.export(other.wall)), at=other.wall))
    assert worker.state().ttft == pytest.approx(2.0, rel=0.051)
    worker.wait(FORGET_AFTER + SWEEP_EVERY)
    assert worker.state().ttft is None
    assert worker.state().ttft_p95 == pytest.approx(2.0, rel=0.051)


def test_another_worker_s_failures_make_it_slow_here_but_do_not_open_it(worker: Worker) -> None:
    other = Worker("1")
    other.fail()
    other.fail()
    worker.book.absorb(publication(read_learned(other.book.export(WALL))))
    assert worker.state().ttft == PENALTY_TTFT
    assert worker.state().failures_in_a_row == 0


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"version":"v","at":0,"base":{"half_life":-1}}'])
def test_bad_bytes_change_nothing(worker: Worker, content: bytes) -> None:
    other = Worker("1")
    other.succeed()
    worker.succeed()
    worker.book.absorb(publication(read_learned(other.book.export(WALL))))
    before = worker.outlook()
    with pytest.raises(ValueError, match="learned numbers"):
        worker.book.absorb(content)
    assert worker.outlook() is before
    assert worker.state().samples == pytest.approx(2.0)


def test_frozen_numbers_hold_whatever_is_observed(worker: Worker) -> None:
    held = {"ttft": 0.1, "cache_share": 0.7, "output_tokens": 10.0, "input_ratio": 2.0}
    names = {"ttft": "a", "cache_share": "a", "output_tokens": "chat", "input_ratio": "chat"}
    frozen = [Frozen(number, names[number], value, WALL, "") for number, value in held.items()]  # type: ignore[arg-type]
    worker.book.absorb(publication(frozen=frozen))
    for _ in range(3):
        worker.succeed(4.0)
    state, habits = worker.state(), worker.outlook().routes["chat"]
    assert (state.ttft, state.cache_share) == (pytest.approx(0.1), 0.7)
    assert (habits.output_tokens, habits.input_ratio) == (10.0, 2.0)
    worker.fail()  # an endpoint that fails is avoided all the same
    assert worker.state().ttft == pytest.approx(0.75 * 0.1 + 0.25 * PENALTY_TTFT)
    worker.book.absorb(publication())
    worker.wait(REFRESH_EVERY)
    assert worker.state().cache_share == pytest.approx(0.2)
    assert worker.outlook().routes["chat"].output_tokens == pytest.approx(50.0)


def test_what_is_frozen_elsewhere_holds_here_too(worker: Worker) -> None:
    other = Worker("1")
    other.succeed(4.0)
    frozen = [Frozen("ttft", "a", 0.1, WALL, "")]
    worker.book.absorb(publication(read_learned(other.book.export(WALL)), frozen=frozen))
    assert worker.state().ttft == 0.1


@pytest.mark.parametrize("names", [("a", "chat"), ()])
def test_reset_forgets_and_closes(worker: Worker, names: tuple[str, ...]) -> None:
    other = Worker("1")
    for one in (worker, other):
        one.succeed()
        one.succeed(endpoint="b", route="other")
    worker.book.absorb(publication(read_learned(other.book.export(WALL)), frozen=[Frozen("ttft", "a", 9.0, WALL, "")]))
    worker.fail(retry_after=100.0)
    worker.book.start("a")
    worker.book.reset(names)
    assert worker.state("a") == EndpointHealth(in_flight=1)
    assert worker.book.states(NOW)["a"] == "closed"
    assert "chat" not in worker.outlook().routes
    assert ("other" in worker.outlook().routes) == bool(names)
    assert (worker.state("b").samples > 0) == bool(names)
    worker.succeed(0.3)
    assert worker.state("a").ttft == pytest.approx(0.3, rel=0.051)
    assert worker.state("a").samples == pytest.approx(1.0)


@pytest.mark.parametrize("forgotten", [{"a": WALL + 5}, {"": WALL + 5}])
def test_an_operator_s_reset_comes_with_the_publication(worker: Worker, forgotten: dict[str, float]) -> None:
    worker.succeed()
    worker.fail(retry_after=100.0)
    worker.wait(5.0)
    worker.book.absorb(publication(forgotten=forgotten))
    assert worker.state() == EndpointHealth()
    worker.succeed(0.3)
    worker.fail(retry_after=100.0)
    worker.book.absorb(publication(forgotten=forgotten))  # said once more: done already
    assert worker.state().samples == pytest.approx(2.0)
    assert worker.book.states(NOW + worker.seconds) == {"a": "open"}


def test_learning_switched_off_leaves_the_newest_attempts_and_the_breaker() -> None:
    worker = Worker()
    worker.succeed(0.5)
    worker.book.configure(Learning(enabled=False))
    assert worker.state() == EndpointHealth(ttft=0.5)
    assert worker.outlook().routes == {}
    other = Worker("1")
    other.succeed()
    worker.book.absorb(publication(read_learned(other.book.export(WALL))))
    worker.succeed(0.7)
    for _ in range(OPEN_AFTER):
        worker.fail()
    assert worker.state().ejected_until > NOW
    assert (worker.state().samples, worker.outlook().version) == (0.0, "")
    assert read_learned(worker.book.export(WALL)).endpoints == {}
    worker.book.configure(Learning())
    worker.wait(FORGET_AFTER)
    worker.succeed(0.2)
    assert worker.state().samples == pytest.approx(1.0)


def test_another_half_life_holds_from_now_on() -> None:
    worker = Worker(learning=Learning(half_life=100.0))
    for _ in range(16):
        worker.succeed()
    worker.wait(200.0)
    worker.outlook()
    worker.book.configure(Learning(half_life=10.0))
    assert worker.state().samples == pytest.approx(4.0)
    worker.wait(20.0)
    assert worker.state().samples == pytest.approx(1.0)
