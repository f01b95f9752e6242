"""What goes before the policy's own order: stickiness, canaries, escapes, returning endpoints; and shadows."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.model import (
    Canary,
    Configuration,
    Policy,
    Shadow,
)
from gateway.routing.placement import WORTH_STICKING
from gateway.routing.plan import Plan
from gateway.types import EndpointHealth, Shift
from tests.routing.test_plan import SELECTS, configuration, facts, order, placed, plan, reasons, with_policies

# Stickiness


def stuck(made: Plan) -> str:
    assert placed(made) == "sticky"
    return made.candidates[0].endpoint


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(
    ("sticky", "field"), [("session", "session"), ("prefix", "prefix"), ("key", "key_id"), ("team", "team")]
)
def test_what_belongs_together_stays_together(select: str, sticky: str, field: str) -> None:
    chosen = configuration({"select": select, "sticky": sticky}, **{name: {} for name in "abcdef"})
    firsts = {}
    for number in range(60):
        asked = facts(**{field: f"value-{number}"})
        (firsts[number],) = {stuck(plan(chosen, asked, seed=seed)) for seed in range(3)}
    assert set(firsts.values()) == set("abcdef")


def test_nothing_sticks_to_a_fallback_while_the_policys_own_can_serve() -> None:
    chosen = configuration({"endpoints": ("a", "b"), "sticky": "session", "fallback": "other"}, a={}, b={}, c={}, d={})
    chosen = with_policies(chosen, Policy(id="other", endpoints=("c", "d")))
    sessions = [facts(session=f"s{number}") for number in range(40)]
    assert {stuck(plan(chosen, asked)) for asked in sessions} == {"a", "b"}
    ejected = {name: EndpointHealth(ejected_until=200.0) for name in "ab"}
    assert {stuck(plan(chosen, asked, health=ejected)) for asked in sessions} == {"c", "d"}


def test_without_a_session_nothing_sticks() -> None:
    assert placed(plan(configuration({"sticky": "session"}))) is None


def test_an_endpoint_that_leaves_moves_only_what_it_had() -> None:
    chosen = configuration({"sticky": "session"}, **{name: {} for name in "abcd"})
    gone = {"c": EndpointHealth(ejected_until=200.0)}
    before = {n: stuck(plan(chosen, facts(session=f"s{n}"))) for n in range(400)}
    after = {n: stuck(plan(chosen, facts(session=f"s{n}"), health=gone)) for n in range(400)}
    assert all(after[n] == before[n] for n in before if before[n] != "c")
    assert {after[n] for n in before if before[n] == "c"} == {"a", "b", "d"}
    shares = Counter(before.values())
    assert all(60 < shares[name] < 140 for name in "abcd")  # 100 each, a standard deviation of 8.7


def test_sticking_keeps_weights() -> None:
    chosen = configuration(
        {"sticky": "session", "select": "weighted", "weights": {"a": 3.0, "b": 1.0, "c": 0.0}}, a={}, b={}, c={}
    )
    shares = Counter(stuck(plan(chosen, facts(session=f"s{n}"))) for n in range(1000))
    assert shares["c"] == 0 and 680 < shares["a"] < 820  # 750, a standard deviation of 13.7


@pytest.mark.parametrize("select", ["cost", "latency", "balanced"])
def test_nothing_sticks_to_what_is_far_worse(select: str) -> None:
    """One is a little worse than twice as dear and slow as the best, one a little better."""
    factor = {"a": 1.0, "b": WORTH_STICKING * 0.99, "c": WORTH_STICKING * 1.01}
    costs = {name: Decimal(str(round(value, 4))) for name, value in factor.items()}
    health = {name: EndpointHealth(ttft=value, seconds_per_token=value / 100) for name, value in factor.items()}
    chosen = configuration({"select": select, "sticky": "session"})
    firsts = {stuck(plan(chosen, facts(session=f"s{n}"), costs=costs, health=health)) for n in range(100)}
    assert firsts == {"a", "b"}


# Canaries and shadows


def test_a_canary_gets_its_share() -> None:
    chosen = configuration({"endpoints": ("a", "b"), "canaries": (Canary(endpoint="c", share=0.2),)})
    rng = Random(5)
    made = [plan(chosen, rng=rng) for _ in range(2000)]
    tried = [one for one in made if order(one) == ["c", "a", "b"] and placed(one) == "canary"]
    assert 320 < len(tried) < 480  # 400, a standard deviation of 17.9
    assert all(order(one) == ["a", "b"] and placed(one) is None for one in made if one not in tried)


@pytest.mark.parametrize(("by", "field"), [("session", "session"), ("key", "key_id"), ("team", "team")])
def test_a_canary_keeps_together_what_belongs_together(by: Any, field: str) -> None:
    chosen = configuration({"canaries": (Canary(endpoint="c", share=0.3, by=by),)})
    hits = 0
    for number in range(400):
        (first,) = {order(plan(chosen, facts(**{field: f"v{number}"}), seed=seed))[0] for seed in range(3)}
        hits += first == "c"
    assert 75 < hits < 165  # 120, a standard deviation of 9.2


def test_a_larger_share_keeps_whom_the_smaller_one_had() -> None:
    def tried(share: float) -> set[int]:
        chosen = configuration({"canaries": (Canary(endpoint="c", share=share, by="session"),)})
        return {n for n in range(300) if order(plan(chosen, facts(session=f"s{n}")))[0] == "c"}

    assert set() < tried(0.05) < tried(0.3) < tried(1.0) == set(range(300))
    assert tried(0.0) == set()


def test_canaries_together_get_their_sum() -> None:
    canaries = (Canary(endpoint="b", share=0.5), Canary(endpoint="c", share=0.5))
    chosen, rng = configuration({"endpoints": ("a",), "canaries": canaries}), Random(6)
    firsts = Counter(order(plan(chosen, rng=rng))[0] for _ in range(500))
    assert firsts["a"] == 0 and 190 < firsts["b"] < 310


def test_a_canary_that_may_not_serve_is_told() -> None:
    canaries = (Canary(endpoint="c", share=1.0),)
    chosen = configuration(
        {"endpoints": ("a",), "require": {"region": ("eu",)}, "canaries": canaries}, a={"region": "eu"}, b={}, c={}
    )
    made = plan(chosen)
    assert (order(made), reasons(made)) == (["a"], {"c": "require"})


def test_an_ejected_canary_is_not_tried() -> None:
    chosen = configuration({"endpoints": ("a", "b"), "canaries": (Canary(endpoint="c", share=1.0),)})
    assert order(plan(chosen, health={"c": EndpointHealth(ejected_until=200.0)})) == ["a", "b"]
    chosen = configuration({"canaries": (Canary(endpoint="c", share=1.0),)})
    assert order(plan(chosen, health={"c": EndpointHealth(ejected_until=200.0)})) == ["a", "b", "c"]


def test_a_share_is_copied_to_a_shadow() -> None:
    chosen = configuration({"endpoints": ("a", "b"), "shadow": Shadow(endpoint="c", share=0.5)})
    rng = Random(7)
    shadows = Counter(plan(chosen, rng=rng).shadows for _ in range(400))
    assert set(shadows) == {(), ("c",)} and 150 < shadows[("c",)] < 250
    assert order(plan(chosen)) == ["a", "b"]


def test_nobody_is_the_shadow_of_itself_or_gets_what_it_may_not() -> None:
    shadow = Shadow(endpoint="a", share=1.0)
    assert plan(configuration({"shadow": shadow})).shadows == ()
    chosen = configuration(
        {"endpoints": ("b",), "require": {"region": ("eu",)}, "shadow": shadow}, a={"region": "us"}, b={"region": "eu"}
    )
    assert plan(chosen).shadows == ()
    assert plan(with_region(chosen, "a", "eu")).shadows == ("a",)


def with_region(chosen: Configuration, id: str, region: str) -> Configuration:
    return replace(chosen, endpoints={**chosen.endpoints, id: replace(chosen.endpoints[id], region=region)})


# Escapes


def test_an_escape_moves_its_share() -> None:
    chosen = configuration({"endpoints": ("a", "b")})
    shift = Shift(escape_id="e", source="a", target="c", share=0.25)
    rng = Random(8)
    made = [plan(chosen, shifts=(shift,), rng=rng) for _ in range(1000)]
    moved = [one for one in made if placed(one) == "escape"]
    assert 180 < len(moved) < 320  # 250, a standard deviation of 13.7
    assert all(order(one) == ["c", "a", "b"] for one in moved)
    assert all(order(one) == ["a", "b"] for one in made if one not in moved)
    assert all(one.shift == shift for one in made)  # also those that stay: they are what the others are compared with


def test_an_escape_keeps_sessions_together() -> None:
    chosen = configuration({"endpoints": ("a",)})
    shift = Shift(escape_id="e", source="a", target="b", share=0.5)
    moved = 0
    for number in range(200):
        asked = facts(session=f"s{number}")
        (first,) = {order(plan(chosen, asked, shifts=(shift,), seed=seed))[0] for seed in range(4)}
        moved += first == "b"
    assert 65 < moved < 135


def test_an_escape_moves_only_what_its_source_would_get() -> None:
    shift = Shift(escape_id="e", source="b", target="c", share=1.0, shadow_share=1.0)
    made = plan(configuration({"endpoints": ("a", "b")}), shifts=(shift,))
    assert (order(made), made.shift, made.shadows) == (["a", "b"], None, ())


def test_an_escape_never_goes_where_policy_does_not_allow() -> None:
    shift = Shift(escape_id="e", source="a", target="b", share=1.0, shadow_share=1.0)
    chosen = configuration(
        {"endpoints": ("a",), "require": {"region": ("eu",)}}, a={"region": "eu"}, b={"region": "us"}
    )
    made = plan(chosen, shifts=(shift,))
    assert (order(made), reasons(made), made.shift, made.shadows) == (["a"], {"b": "require"}, None, ())
    assert order(plan(with_region(chosen, "b", "eu"), shifts=(shift,))) == ["b", "a"]


def test_an_escape_copies_what_it_does_not_move() -> None:
    chosen, rng = configuration({"endpoints": ("a",)}), Random(9)
    shift = Shift(escape_id="e", source="a", target="b", share=0.5, shadow_share=1.0)
    for _ in range(50):
        made = plan(chosen, shifts=(shift,), rng=rng)
        assert made.shadows == (() if order(made)[0] == "b" else ("b",))


# Gradual return


def test_an_endpoint_returns_step_by_step() -> None:
    chosen, rng = configuration(), Random(10)
    health = {"a": EndpointHealth(admitted=0.25)}
    made = [plan(chosen, health=health, rng=rng) for _ in range(1000)]
    served = sum(order(one)[0] == "a" for one in made)
    assert 180 < served < 320
    assert all(one.candidates[-1].ejected for one in made if order(one) == ["b", "c", "a"])
