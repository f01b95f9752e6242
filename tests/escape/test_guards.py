"""Guards: what halts a step, what lets it pass, and what is not enough for either."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.escape.guards import ALPHA, LEAST, PATIENCE, Guards, Sample, Verdict, evidence, judge

OFF = Guards(max_error_rate=None, max_ttft_ratio=None, min_validity=None, max_cost_ratio=None)
ERRORS = Guards(max_error_rate=0.02, max_ttft_ratio=None, min_validity=None, max_cost_ratio=None)


def errors(failures: int, requests: int, needed: int = 50, source: Sample | None = None) -> Verdict:
    return judge(ERRORS, Sample(requests=requests, failures=failures), source or Sample(), needed)


@pytest.mark.parametrize(
    ("failures", "requests", "state"),
    [
        (1, 3, "wait"),  # one failure of three proves nothing
        (0, 3, "wait"),  # nor do three successes
        (3, 3, "broken"),
        (0, 49, "wait"),
        (0, 50, "pass"),
        (1, 50, "pass"),
        (2, 50, "wait"),  # 4 %, which 2 % may look like
        (2, 100, "pass"),
        (10, 100, "broken"),
        (1000, 1000, "broken"),
    ],
)
def test_errors(failures: int, requests: int, state: str) -> None:
    assert errors(failures, requests).state == state


def test_a_step_needs_its_requests_and_never_fewer_than_the_least() -> None:
    assert errors(0, 49).missing == 1
    assert errors(0, LEAST - 1, needed=1).state == "wait"
    assert errors(0, LEAST, needed=1).state == "pass"


def test_the_sources_own_errors_are_allowed() -> None:
    assert errors(10, 100, source=Sample(requests=100, failures=10)).state == "pass"
    assert errors(10, 100, source=Sample(requests=20, failures=20)).state == "broken"  # of too few to excuse anything
    assert errors(60, 100, source=Sample(requests=100, failures=10)).state == "broken"


def test_what_stays_unclear_is_decided_in_the_end() -> None:
    seen = 50 * PATIENCE
    just_over = round(seen * 0.024)
    assert errors(just_over, seen - 1).state == "wait"
    assert errors(just_over, seen).state == "broken"


def test_a_target_that_turns_bad_late_is_halted_all_the_same() -> None:
    """Four failures in a row are 0.4 % of a thousand: the breaker ejects it, and no more come."""

    def late(failures: int, good: int = 16, source: Sample | None = None) -> Verdict:
        recent = (True,) * failures + (False,) * good
        return judge(ERRORS, Sample(requests=1000, failures=failures, recent=recent), source or Sample(), 50)

    assert late(3).state == "pass"
    assert late(4).state == "broken"
    assert "4 of the last 4 failed" in late(4).findings[0].detail
    assert late(4, source=Sample(requests=100, failures=60)).state == "pass"


def test_recent_errors_of_a_sound_target_hardly_ever_halt_it() -> None:
    rng = Random(3)
    recent: tuple[bool, ...] = ()
    halted = 0
    for _ in range(20_000):
        recent = (rng.random() < 0.02, *recent)[:20]
        if recent[0]:
            halted += judge(ERRORS, Sample(requests=1000, failures=20, recent=recent), Sample(), 50).state == "broken"
    assert halted <= 3


def test_no_errors_allowed() -> None:
    guards = Guards(max_error_rate=0.0, max_ttft_ratio=None, min_validity=None, max_cost_ratio=None)
    assert judge(guards, Sample(requests=50), Sample(), 50).state == "pass"
    assert judge(guards, Sample(requests=50, failures=1), Sample(), 50).state == "broken"
    anything = Guards(max_error_rate=1.0, max_ttft_ratio=None, min_validity=None, max_cost_ratio=None)
    assert judge(anything, Sample(requests=50, failures=50), Sample(), 50).state == "pass"


def test_a_sound_target_is_hardly_ever_halted_however_often_one_looks() -> None:
    """2 % fail where 2 % are allowed: after each of 1,000 requests somebody looks."""
    rng = Random(1)
    runs = 1000
    halted = 0
    for _ in range(runs):
        failed = [seen for seen in range(1, 1001) if rng.random() < 0.02]
        # Between two failures the evidence only falls.
        halted += any(evidence(bad, seen, 0.02) >= 1 / ALPHA for bad, seen in enumerate(failed, 1))
    assert halted <= runs * ALPHA * 2


def test_a_bad_target_is_halted_soon() -> None:
    rng = Random(2)
    for share, most in ((1.0, 3), (0.5, 40), (0.1, 400)):
        for _ in range(50):
            bad = seen = 0
            while evidence(bad, seen, 0.02) < 1 / ALPHA:
                seen += 1
                bad += rng.random() < share
            assert seen <= most


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0, 1))
def test_more_failures_are_never_better(bad: int, good: int, allowed: float) -> None:
    assert evidence(bad + 1, bad + good + 1, allowed) >= evidence(bad, bad + good, allowed) * (1 - 1e-9)
    assert evidence(bad, bad + good + 1, allowed) <= evidence(bad, bad + good, allowed) * (1 + 1e-9)


def sample(n: int = 100, ttft: float | None = None, width: float = 0.0, cost: str | None = None, **more: Any) -> Sample:
    fields: dict[str, Any] = {"requests": n}
    if ttft is not None:
        fields |= {"timed": n, "ttft_median": ttft, "ttft_low": ttft - width, "ttft_high": ttft + width}
    if cost is not None:
        fields |= {"priced": n, "cost_mean": Decimal(cost), "cost_deviation": Decimal(cost) / 4}
    return Sample(**{**fields, **more})


def state_of(guards: Guards, target: Sample, source: Sample) -> str:
    (finding,) = judge(guards, target, source, 50).findings
    return finding.state


def test_latency() -> None:
    guards = Guards(max_error_rate=None, max_ttft_ratio=1.5, min_validity=None, max_cost_ratio=None)
    source = sample(ttft=100, width=10)
    assert state_of(guards, sample(ttft=140, width=10), source) == "pass"
    assert state_of(guards, sample(ttft=170, width=10), source) == "wait"  # 160 is within 1.5 of 110
    assert state_of(guards, sample(ttft=190, width=10), source) == "broken"
    assert state_of(guards, sample(n=5, ttft=900, width=10), source) == "wait"
    for nothing in (Sample(), sample(n=5, ttft=100, width=1), sample(ttft=0.0)):
        assert state_of(guards, sample(ttft=900, width=1), nothing) == "unknown"


def test_cost() -> None:
    guards = Guards(max_error_rate=None, max_ttft_ratio=None, min_validity=None, max_cost_ratio=1.2)
    source = sample(cost="0.0010")
    assert state_of(guards, sample(cost="0.0011"), source) == "pass"
    assert state_of(guards, sample(cost="0.00125"), source) == "wait"
    assert state_of(guards, sample(cost="0.0020"), source) == "broken"
    assert state_of(guards, sample(unpriced=100), source) == "unknown"
    assert state_of(guards, sample(cost="0.0020"), sample(cost="0")) == "unknown"


def test_validity_and_similarity() -> None:
    guards = Guards(max_error_rate=None, max_ttft_ratio=None, min_validity=0.98, max_cost_ratio=None)
    assert state_of(guards, sample(judged=100, invalid=1), Sample()) == "pass"
    assert state_of(guards, sample(judged=100, invalid=20), Sample()) == "broken"
    assert state_of(guards, sample(judged=100, invalid=20), sample(judged=100, invalid=20)) == "pass"
    assert state_of(guards, sample(), Sample()) == "unknown"
    guards = Guards(
        max_error_rate=None, max_ttft_ratio=None, min_validity=None, max_cost_ratio=None, min_similarity=0.7
    )
    for mean, state in ((0.75, "pass"), (0.69, "wait"), (0.5, "broken")):
        found = sample(compared=100, similarity_mean=mean, similarity_deviation=0.2)
        assert state_of(guards, found, Sample()) == state


def test_one_broken_guard_is_enough_and_unknown_ones_hold_nothing_up() -> None:
    good = sample(ttft=100, width=1, cost="0.001")
    assert judge(Guards(), good, good, 50).state == "pass"
    assert judge(Guards(), sample(), Sample(), 50).state == "pass"
    bad = sample(ttft=100, width=1, cost="0.1")
    assert judge(Guards(), bad, good, 50).state == "broken"
    assert judge(OFF, bad, good, 50) == Verdict("pass", (), 0)


@given(
    st.builds(
        Sample,
        requests=st.integers(0, 10_000),
        timed=st.integers(0, 100),
        ttft_median=st.none() | st.floats(0, 1e6),
        ttft_low=st.none() | st.floats(0, 1e6),
        ttft_high=st.none() | st.floats(0, 1e6),
        judged=st.integers(0, 100),
        priced=st.integers(0, 100),
        cost_mean=st.none() | st.decimals(0, 100, places=6),
        cost_deviation=st.none() | st.decimals(0, 100, places=6),
        compared=st.integers(0, 100),
        similarity_mean=st.none() | st.floats(0, 1),
        similarity_deviation=st.none() | st.floats(0, 1),
    ),
    st.integers(0, 1000),
)
def test_any_sample_can_be_judged(found: Sample, needed: int) -> None:
    guards = Guards(min_similarity=0.5)
    verdict = judge(guards, found, found, needed)
    assert len(verdict.findings) == 5
    if verdict.state == "pass":
        assert found.requests >= max(needed, LEAST)
        assert all(finding.state in ("pass", "unknown") for finding in verdict.findings)
