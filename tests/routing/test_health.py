"""Health: failures are slow, endpoints that fail are left alone for longer and longer, and recover."""

from __future__ import annotations

from random import Random

import pytest

from gateway.config.model import Limits, Policy
from gateway.routing.health import (
    BASE_EJECTION,
    DECAY,
    EJECT_AFTER,
    FORGET_AFTER,
    MAX_EJECTION,
    PENALTY_TTFT,
    SWEEP_EVERY,
    HealthBook,
)
from gateway.routing.select import by_latency
from gateway.types import Candidate, EndpointHealth
from tests.routing.test_plan import configuration, order, plan


def state(book: HealthBook, now: float = 0.0) -> EndpointHealth:
    return book.snapshot(now)["a"]


def fail(book: HealthBook, times: int, now: float = 1000.0) -> None:
    for _ in range(times):
        book.fail("a", now)


def test_nothing_is_known_of_what_was_never_used() -> None:
    assert HealthBook().snapshot(0.0) == {}


def test_the_mean_decays() -> None:
    book = HealthBook()
    book.succeed("a", 1.0, 1.0)
    assert state(book).ttft == 1.0
    book.succeed("a", 2.0, 2.0)
    assert state(book).ttft == pytest.approx((1 - DECAY) * 1.0 + DECAY * 2.0)


def test_a_fast_refusal_does_not_draw_traffic() -> None:
    """An endpoint that answers 429 at once must not look like the fastest one."""
    book = HealthBook()
    for now in range(20):
        book.succeed("steady", float(now), 0.8)
        book.succeed("refusing", float(now), 0.3)
    before = [Candidate(name, None, book.snapshot(0.0)[name].ttft) for name in ("steady", "refusing")]
    policy = Policy(id="p", endpoints=("steady", "refusing"))
    assert by_latency(before, policy, Random(0))[0].endpoint == "refusing"
    book.fail("refusing", 30.0, retry_after=0.0)
    after = [Candidate(name, None, book.snapshot(0.0)[name].ttft) for name in ("steady", "refusing")]
    assert by_latency(after, policy, Random(0))[0].endpoint == "steady"
    book.fail("never used", 30.0)
    assert book.snapshot(0.0)["never used"].ttft == PENALTY_TTFT


def test_ejection_after_failures_in_a_row_only() -> None:
    book = HealthBook()
    fail(book, EJECT_AFTER - 1)
    book.succeed("a", 1000.0, 0.1)
    fail(book, EJECT_AFTER - 1)
    assert (state(book).ejected_until, state(book).failures_in_a_row) == (0.0, EJECT_AFTER - 1)
    fail(book, 1)
    assert state(book).ejected_until == 1000.0 + BASE_EJECTION


def test_ejection_grows_and_is_bounded() -> None:
    book = HealthBook()
    fail(book, EJECT_AFTER - 1)
    now, lengths = 1000.0, []
    for _ in range(12):
        book.fail("a", now)
        lengths.append(state(book).ejected_until - now)
        now = state(book).ejected_until
    assert lengths[:4] == [BASE_EJECTION, 2 * BASE_EJECTION, 4 * BASE_EJECTION, 8 * BASE_EJECTION]
    assert lengths[-1] == MAX_EJECTION and max(lengths) == MAX_EJECTION


def test_one_success_ends_an_ejection_and_its_growth() -> None:
    book = HealthBook()
    fail(book, EJECT_AFTER + 3)
    book.succeed("a", 1001.0, 0.1)
    assert (state(book).ejected_until, state(book).failures_in_a_row) == (0.0, 0)
    fail(book, EJECT_AFTER, 2000.0)
    assert state(book).ejected_until == 2000.0 + BASE_EJECTION


def test_what_the_upstream_asked_for_is_kept() -> None:
    book = HealthBook()
    book.fail("a", 1000.0, retry_after=42.0)
    assert state(book).ejected_until == 1042.0
    book.fail("a", 1001.0, retry_after=1.0)  # a shorter one does not shorten
    assert state(book).ejected_until == 1042.0


def test_what_the_upstream_asks_for_is_bounded() -> None:
    book = HealthBook()
    book.fail("a", 1000.0, retry_after=86_400.0)
    assert state(book).ejected_until == 1000.0 + MAX_EJECTION


@pytest.mark.parametrize("retry_after", [0.0, 1.0])
def test_a_short_wait_does_not_prevent_ejection(retry_after: float) -> None:
    book = HealthBook()
    for _ in range(EJECT_AFTER):
        book.fail("a", 1000.0, retry_after=retry_after)
    assert state(book).ejected_until == 1000.0 + BASE_EJECTION


def test_in_flight_is_counted_through_success_and_failure() -> None:
    book = HealthBook()
    book.start("a")
    book.start("a")
    book.succeed("a", 1.0, 0.1)
    assert state(book).in_flight == 2
    book.finish("a")
    book.fail("a", 1.0)
    assert state(book).in_flight == 1
    book.finish("a")
    assert state(book).in_flight == 0


def test_an_endpoint_over_a_latency_ceiling_is_heard_of_again() -> None:
    """One failure puts it over the ceiling; without traffic its mean would stay there for ever."""
    chosen = configuration({"limits": Limits(max_ttft=3.0)}, a={})
    book = HealthBook()
    book.fail("a", 1000.0)
    assert order(plan(chosen, health=book.snapshot(1001.0), now=1001.0)) == []
    later = 1000.0 + FORGET_AFTER + SWEEP_EVERY
    assert order(plan(chosen, health=book.snapshot(later), now=later)) == ["a"]
    assert book.snapshot(later)["a"].failures_in_a_row == 1  # only the time is forgotten
    book.succeed("a", later, 0.2)
    assert book.snapshot(later)["a"].ttft == 0.2


def test_what_is_observed_again_and_again_is_not_forgotten() -> None:
    book = HealthBook()
    for now in range(0, 1000, 10):
        book.succeed("a", float(now), 0.4)
        assert book.snapshot(now + 9.0)["a"].ttft == pytest.approx(0.4)
