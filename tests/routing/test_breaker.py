"""The life of a circuit breaker, second by second of a clock that only the test moves."""

from __future__ import annotations

import pytest

from gateway.routing.breaker import (
    BASE_OPEN,
    FIRST_SHARE,
    FORGET_AFTER,
    JITTER,
    MAX_OPEN,
    OPEN_AFTER,
    PROBE_PATIENCE,
    RETURN_SECONDS,
    RETURN_SUCCESSES,
    WINDOW,
    Breaker,
)


class Life:
    """A breaker and its clock."""

    def __init__(self, name: str = "a:0") -> None:
        self.breaker = Breaker(name)
        self.now = 1000.0

    def fail(self, times: int = 1, retry_after: float | None = None) -> None:
        for _ in range(times):
            self.breaker.tick(self.now)
            self.breaker.fail(self.now, retry_after)

    def succeed(self, times: int = 1, ttft: float = 0.5, took: float = 0.0) -> None:
        for _ in range(times):
            self.breaker.tick(self.now)
            self.breaker.succeed(self.now, ttft, self.now - took)

    def attempt(self, *, is_good: bool) -> None:
        """A whole attempt that takes no time."""
        self.breaker.tick(self.now)
        self.breaker.start(self.now)
        if is_good:
            self.succeed()
        else:
            self.fail()
        self.breaker.finish()

    def wait(self, seconds: float) -> str:
        self.now += seconds
        self.breaker.tick(self.now)
        return self.breaker.state

    def open_seconds(self) -> float:
        return self.breaker.open_until - self.now

    def wait_until_half_open(self) -> None:
        assert self.wait(self.open_seconds()) == "half_open"


def opened() -> Life:
    life = Life()
    life.fail(OPEN_AFTER)
    assert life.breaker.state == "open"
    return life


def test_only_failures_in_a_row_open_it() -> None:
    life = Life()
    for _ in range(2):
        life.fail(OPEN_AFTER - 1)
        life.succeed(3)
    assert (life.breaker.state, life.breaker.failures_in_a_row) == ("closed", 0)
    life.fail(OPEN_AFTER - 1)
    assert (life.breaker.state, life.breaker.failures_in_a_row) == ("closed", OPEN_AFTER - 1)
    life.fail()
    assert life.breaker.state == "open"


def test_more_than_half_of_the_newest_attempts_opens_it() -> None:
    life = Life()
    for _ in range(WINDOW // 2):
        life.succeed()
        life.fail()
    assert life.breaker.state == "closed"  # just half
    life.succeed()
    life.fail(2)  # two in a row at most, and six of ten
    assert life.breaker.state == "open"


def test_a_few_attempts_are_no_majority() -> None:
    life = Life()
    life.fail(2)
    life.succeed()
    life.fail(2)
    assert life.breaker.state == "closed"


def test_what_lies_long_back_does_not_count() -> None:
    life = Life()
    for _ in range(WINDOW // 2):
        life.fail()
        life.succeed()
    life.wait(FORGET_AFTER)
    assert life.breaker.recent() is None
    life.succeed()
    life.fail(2)
    assert life.breaker.state == "closed"


def test_openings_grow_and_are_bounded() -> None:
    life = opened()
    lengths = [life.open_seconds()]
    for _ in range(9):
        life.wait_until_half_open()
        life.attempt(is_good=False)
        assert life.breaker.state == "open"
        lengths.append(life.open_seconds())
    for number, length in enumerate(lengths):
        longest = min(BASE_OPEN * 2**number, MAX_OPEN)
        assert longest * (1 - JITTER) <= length <= longest


def test_openings_are_jittered_by_name_and_repeatable() -> None:
    lengths = {}
    for name in ("a:0", "a:1", "b:0", "a:0"):
        life = Life(name)
        life.fail(OPEN_AFTER)
        assert lengths.setdefault(name, life.open_seconds()) == life.open_seconds()
    assert len(set(lengths.values())) == 3


def test_one_outage_is_one_opening_however_many_requests_it_hits() -> None:
    life = opened()
    until = life.breaker.open_until
    life.fail(100)
    life.wait(1.0)
    life.fail(100)
    assert life.breaker.open_until == until


def test_one_probe_at_a_time() -> None:
    life = opened()
    assert life.wait(life.open_seconds() - 0.001) == "open"
    life.wait_until_half_open()
    assert (life.breaker.open_until, life.breaker.admitted(life.now)) == (0.0, 1.0)
    life.breaker.start(life.now)
    assert life.breaker.admitted(life.now) == 0.0
    life.breaker.finish()  # neither served nor failed: the client went away
    assert (life.breaker.state, life.breaker.admitted(life.now)) == ("half_open", 1.0)


def test_a_probe_that_takes_long_does_not_keep_the_next_one_back_for_ever() -> None:
    life = opened()
    life.wait_until_half_open()
    life.breaker.start(life.now)
    life.wait(PROBE_PATIENCE - 0.1)
    assert life.breaker.admitted(life.now) == 0.0
    life.wait(0.1)
    assert life.breaker.admitted(life.now) == 1.0
    life.breaker.start(life.now)
    assert life.breaker.admitted(life.now) == 0.0


@pytest.mark.parametrize("finished_first", [True, False])
def test_a_failed_probe_opens_it_whatever_is_said_first(finished_first: bool) -> None:
    life = opened()
    life.wait_until_half_open()
    life.breaker.start(life.now)
    if finished_first:
        life.breaker.finish()
    life.fail()
    assert life.breaker.state == "open"
    assert life.open_seconds() > BASE_OPEN


def test_a_straggler_s_failure_is_not_the_probe_s() -> None:
    life = opened()
    life.wait_until_half_open()
    life.fail()  # sent before it opened, timed out now
    assert (life.breaker.state, life.breaker.admitted(life.now)) == ("half_open", 1.0)


def test_a_straggler_s_success_does_not_show_that_it_is_back() -> None:
    life = opened()
    life.wait(1.0)
    life.succeed(took=1.1)
    assert life.breaker.state == "open"
    assert life.breaker.failures_in_a_row == OPEN_AFTER
    life.wait_until_half_open()
    life.succeed(took=60.0)
    assert life.breaker.state == "half_open"


def test_as_the_last_resort_it_may_show_that_it_is_back() -> None:
    life = opened()
    life.wait(1.0)
    life.succeed(took=0.9)
    assert (life.breaker.state, life.breaker.open_until) == ("returning", 0.0)


def test_traffic_comes_back_gradually() -> None:
    life = opened()
    life.wait_until_half_open()
    life.attempt(is_good=True)
    assert (life.breaker.state, life.breaker.failures_in_a_row) == ("returning", 0)
    shares = [life.breaker.admitted(life.now)]
    assert shares[0] == pytest.approx(FIRST_SHARE)
    for _ in range(int(RETURN_SECONDS) - 1):
        life.wait(1.0)
        life.attempt(is_good=True)
        shares.append(life.breaker.admitted(life.now))
    assert shares == sorted(shares) and len(set(shares)) == len(shares) and shares[-1] < 1
    assert life.wait(1.0) == "closed"
    assert life.breaker.admitted(life.now) == 1.0


def test_time_alone_brings_no_traffic_back() -> None:
    life = opened()
    life.wait_until_half_open()
    life.attempt(is_good=True)
    assert life.wait(RETURN_SECONDS) == "returning"
    assert life.breaker.admitted(life.now) == pytest.approx(FIRST_SHARE + (1 - FIRST_SHARE) / RETURN_SUCCESSES)
    assert life.wait(FORGET_AFTER - RETURN_SECONDS) == "closed"  # nobody came, and nothing failed


def test_successes_alone_bring_no_traffic_back() -> None:
    life = opened()
    life.wait_until_half_open()
    for _ in range(100):
        life.attempt(is_good=True)
    assert life.breaker.admitted(life.now) == pytest.approx(FIRST_SHARE)


def test_a_failure_on_the_way_back_opens_it_for_longer() -> None:
    life = opened()
    life.wait_until_half_open()
    life.attempt(is_good=True)
    life.wait(1.0)
    life.fail()
    assert life.breaker.state == "open"
    assert life.open_seconds() > BASE_OPEN


def test_a_full_return_forgives_earlier_openings() -> None:
    life = opened()
    first = life.open_seconds()
    for _ in range(3):
        life.wait_until_half_open()
        life.attempt(is_good=False)
    life.wait_until_half_open()
    for _ in range(RETURN_SUCCESSES):
        life.attempt(is_good=True)
    assert life.wait(RETURN_SECONDS) == "closed"
    life.fail(OPEN_AFTER)
    assert life.open_seconds() == pytest.approx(first)


def test_what_the_upstream_asks_for_opens_it_at_once() -> None:
    life = Life()
    life.fail(retry_after=42.0)
    assert (life.breaker.state, life.open_seconds()) == ("open", 42.0)
    life.wait(1.0)
    life.fail(retry_after=1.0)
    assert life.open_seconds() == 41.0  # a shorter time does not shorten
    life.fail(retry_after=60.0)
    assert life.open_seconds() == 60.0


def test_what_the_upstream_asks_for_is_bounded() -> None:
    life = Life()
    life.fail(retry_after=86_400.0)
    assert life.open_seconds() == MAX_OPEN


def test_no_time_is_no_word() -> None:
    life = Life()
    life.fail(OPEN_AFTER - 1, retry_after=0.0)
    assert life.breaker.state == "closed"
    life.fail(retry_after=0.0)
    assert life.breaker.state == "open"
    assert life.open_seconds() >= BASE_OPEN * (1 - JITTER)


def test_short_words_in_a_row_do_not_prevent_an_opening() -> None:
    life = Life()
    for _ in range(OPEN_AFTER):
        life.fail(retry_after=0.01)
        life.wait(0.01)
        life.attempt(is_good=True)
        life.wait(FORGET_AFTER)
    assert life.breaker.state == "closed"
    life.fail(OPEN_AFTER - 1)
    life.fail(retry_after=1.0)
    assert life.open_seconds() >= BASE_OPEN * (1 - JITTER)


def test_a_rate_limit_on_the_way_back_is_taken_at_its_word() -> None:
    life = Life()
    for _ in range(10):
        life.fail(retry_after=1.0)
        assert life.open_seconds() == 1.0
        life.wait_until_half_open()
        life.attempt(is_good=True)
        life.wait(0.5)
    life.wait(FORGET_AFTER)
    life.fail(OPEN_AFTER)
    assert life.open_seconds() <= BASE_OPEN  # the first real opening


def test_the_newest_attempts() -> None:
    life = Life()
    assert life.breaker.recent() is None
    life.fail()
    assert life.breaker.recent() == (None, 1.0)
    for ttft in (0.1, 0.2, 9.0):
        life.succeed(ttft=ttft)
    assert life.breaker.recent() == (0.2, pytest.approx(0.25))
    for _ in range(WINDOW):
        life.succeed(ttft=3.0)
    assert life.breaker.recent() == (3.0, 0.0)
    life.wait(FORGET_AFTER - 0.1)
    assert life.breaker.recent() == (3.0, 0.0)
    life.wait(0.1)
    assert life.breaker.recent() is None


def test_an_endpoint_that_comes_back_is_not_judged_by_its_outage() -> None:
    life = opened()
    assert life.breaker.recent() is None
    life.wait_until_half_open()
    life.attempt(is_good=True)
    assert life.breaker.recent() == (0.5, 0.0)
