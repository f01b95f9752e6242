"""The way of an escape through its steps. No clock but the one that is given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.escape.guards import Finding, Guards, Sample, Verdict
from gateway.escape.plan import Pair
from gateway.escape.record import from_row, owner_of, to_row
from gateway.escape.steps import (
    ACTIVE,
    Escape,
    EscapeRequest,
    Step,
    advance,
    begin,
    end,
    go_blind,
    see_again,
    shifts_of,
    steps_of,
)
from gateway.types import Shift

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PAIRS = (Pair("a", "b"),)
PASS = Verdict("pass", ())
WAIT = Verdict("wait", (), missing=7)
BROKEN = Verdict("broken", (Finding("errors", "broken", 0.5, 0.02, "5 of 10 failed"),))


def request(**fields: Any) -> EscapeRequest:
    plain: dict[str, Any] = {"source": "a", "target": "b", "ramp": (0.1, 1.0), "step_seconds": 60.0}
    return EscapeRequest(**{**plain, **fields})


def new(**fields: Any) -> Escape:
    return begin("esc-1", request(**fields), PAIRS, "dana", START)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def look(escape: Escape, verdict: Verdict, seconds: float) -> Escape:
    return advance(escape, Sample(requests=10), Sample(requests=90), verdict, after(seconds))


def shift(share: float, shadow: float = 0.0) -> list[Shift]:
    return [Shift(escape_id="esc-1", source="a", target="b", share=share, shadow_share=shadow)]


def test_lengths_of_steps() -> None:
    assert steps_of(EscapeRequest(source="a", target="b", ramp=(1.0,))) == (
        Step("shadow", 0.05, 600.0, 50),
        Step("ramp", 1.0, 600.0, 50),
    )
    given_requests = EscapeRequest(source="a", target="b", ramp=(1.0,), shadow_share=0.0, step_requests=20)
    assert steps_of(given_requests) == (Step("ramp", 1.0, 0.0, 20),)
    given_time = EscapeRequest(source="a", target="b", ramp=(1.0,), shadow_seconds=30.0, step_seconds=5.0)
    assert steps_of(given_time) == (Step("shadow", 0.05, 30.0, 50), Step("ramp", 1.0, 5.0, 50))


def test_from_copies_to_everything() -> None:
    escape = new(shadow_seconds=30.0)
    assert (escape.state, shifts_of(escape)) == ("shadow", shift(0.0, 0.05))
    assert look(escape, PASS, 29).position == 0
    escape = look(escape, PASS, 30)
    assert (escape.state, shifts_of(escape), escape.step_started_at) == ("ramp", shift(0.1), after(30))
    assert look(escape, WAIT, 500).position == 1
    escape = look(escape, PASS, 90)
    assert (escape.state, shifts_of(escape)) == ("ramp", shift(1.0))
    escape = look(escape, PASS, 150)
    assert (escape.state, shifts_of(escape), escape.ended_at) == ("finished", shift(1.0), after(150))
    assert [(result.step.share, result.target.requests) for result in escape.results] == [
        (0.05, 10),
        (0.1, 10),
        (1.0, 10),
    ]
    escape = end(escape, "stopped", after(999), "by dana")
    assert (escape.state, shifts_of(escape), len(escape.results)) == ("stopped", [], 3)


def test_a_broken_guard_brings_everything_back() -> None:
    escape = look(new(shadow_share=0.0), BROKEN, 1)
    assert (escape.state, shifts_of(escape), escape.reason) == ("halted", [], "5 of 10 failed")
    assert escape.results[0].verdict == BROKEN
    assert "halted" in escape.events[-1].what


def test_a_step_is_held_while_nothing_can_be_measured_and_paused_later() -> None:
    escape = new(shadow_share=0.0)
    held = go_blind(escape, after(1), 60)
    assert (held.state, shifts_of(held), held.blind_since) == ("ramp", shift(0.1), after(1))
    assert go_blind(held, after(60), 60) is held
    assert see_again(held, after(30)).step_started_at == START
    paused = go_blind(held, after(61), 60)
    assert paused.is_paused
    assert shifts_of(paused) == shift(0.0)  # and not none: it goes on some time
    assert go_blind(paused, after(999), 60) is paused
    seen = see_again(paused, after(1000))
    assert (seen.step_started_at, seen.blind_since, shifts_of(seen)) == (after(1000), None, shift(0.1))
    assert see_again(escape, after(5)) is escape


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ramp": ()}, "ramp"),
        ({"ramp": (0.5, 0.5)}, "ramp"),
        ({"ramp": (0.5, 0.1)}, "ramp"),
        ({"ramp": (0.0, 1.0)}, "ramp"),
        ({"ramp": (1.5,)}, "ramp"),
        ({"ramp": (float("nan"),)}, "ramp"),
        ({"ramp": tuple(n / 100 for n in range(1, 100))}, "ramp"),
        ({"shadow_share": 1.5}, "shadow"),
        ({"shadow_seconds": -1.0}, "shadow"),
        ({"step_seconds": float("inf")}, "step"),
        ({"step_seconds": float("nan")}, "step"),
        ({"step_requests": 3}, "step_requests"),
        ({"shadow_requests": 10**9}, "shadow_requests"),
        ({"guards": Guards(max_error_rate=2.0)}, "max_error_rate"),
        ({"guards": Guards(max_cost_ratio=-1.0)}, "max_cost_ratio"),
        ({"guards": Guards(min_similarity=float("nan"))}, "min_similarity"),
    ],
)
def test_wrong_requests_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="hint:") as refused:
        request(**fields).check()
    assert refused.value.param == param
    request().check()


MOVES = st.lists(st.sampled_from(["pass", "wait", "broken", "blind", "see", "stop"]), max_size=30)


@given(MOVES, st.floats(0.0, 200.0))
def test_whatever_happens_no_more_is_moved_than_the_step_says(moves: list[str], pace: float) -> None:
    escape, now = new(), 0.0
    for move in moves:
        now += pace
        before = escape
        if escape.state not in ("shadow", "ramp"):
            break
        match move:
            case "blind":
                escape = go_blind(escape, after(now), 60)
            case "see":
                escape = see_again(escape, after(now))
            case "stop":
                escape = end(escape, "stopped", after(now), None)
            case _:
                escape = look(escape, {"pass": PASS, "wait": WAIT, "broken": BROKEN}[move], now)
        moved = sum(one.share for one in shifts_of(escape))
        assert moved <= escape.step.share
        if escape.state not in ACTIVE:
            assert moved == 0
        if moved > sum(one.share for one in shifts_of(before)) and not before.is_paused:
            assert move == "pass" and escape.position == before.position + 1
        assert from_row(to_row(escape, "home")) == escape_without_blindness(escape)


def escape_without_blindness(escape: Escape) -> Escape:
    """Whether the ledger can be read is not written into it."""
    return msgspec.structs.replace(escape, blind_since=None, is_paused=False)


def test_a_row_knows_its_gateway() -> None:
    assert owner_of(to_row(new(), "host:/home")) == "host:/home"
