"""Each selection's order. Draws are tested against their distribution, with seeded generators."""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import Any, get_args

import pytest

from gateway.config.model import Policy, Select
from gateway.routing.placement import seed_of
from gateway.routing.select import (
    ALIKE,
    OPTIMISTIC_TTFT,
    SELECTIONS,
    Asked,
    Prospect,
    Selection,
    by_cost,
    by_latency,
    by_throughput,
    choose_sticky,
    uniform,
)

DRAWS = 20_000


def prospect(
    name: str,
    cost: int | None = 1,
    ttft: float | None = 1.0,
    pace: float | None = 0.01,
    *,
    waited: float = 0.0,
    in_flight: int = 0,
    capacity: float = 64.0,
) -> Prospect:
    load = in_flight / capacity
    seconds = -1.0
    if ttft is not None and (pace is not None or not waited):
        seconds = (ttft + (pace or 0.0) * waited) * (1.0 + load)
    return Prospect(name, 0, cost, ttft, pace, seconds, in_flight, load, seed=seed_of(name))


def ordered(
    select: Select | Selection, pool: list[Prospect], *, seed: int = 0, waited: float = 0.0, **policy: Any
) -> list[str]:
    selection = SELECTIONS[select] if isinstance(select, str) else select
    selection(pool, Asked(Policy(id="p", endpoints=(), **policy), waited, Random(seed)))
    return [one.endpoint for one in pool]


def test_every_selection_of_the_configuration_is_there() -> None:
    assert set(SELECTIONS) == set(get_args(Select))


@pytest.mark.parametrize("select", [*get_args(Select), by_throughput])
def test_a_selection_neither_loses_nor_adds(select: Any) -> None:
    pool = [prospect("a"), prospect("b", None, None, None), prospect("c", 0, 0.0, 0.0), prospect("d")]
    assert sorted(ordered(select, pool)) == ["a", "b", "c", "d"]
    assert ordered(select, []) == []
    nothing_known = [prospect(name, None, None, None) for name in "abc"]
    assert sorted(ordered(select, nothing_known, waited=10.0)) == ["a", "b", "c"]


def test_priority_is_the_order_as_written() -> None:
    assert ordered("priority", [prospect("b", 9), prospect("a"), prospect("c", None)]) == ["b", "a", "c"]


# Cost


def test_cost_is_cheapest_first_and_unknown_last() -> None:
    pool = [prospect("unknown", None, 0.1), prospect("dear", 2), prospect("free", 0, 9.0), prospect("cheap", 1)]
    assert ordered("cost", pool) == ["free", "cheap", "dear", "unknown"]


def test_at_the_same_cost_the_faster_goes_first() -> None:
    pool = [prospect("slow", 1, 2.0), prospect("dear", 2, 0.1), prospect("fast", 1, 0.5), prospect("same", 1, 0.5)]
    assert ordered("cost", pool) == ["fast", "same", "slow", "dear"]
    new = prospect("new", 1, None)
    assert ordered("cost", [prospect("slow", 1, 2.0), new, prospect("fast", 1, 1.5)])[0] == "new"


# Latency


def test_latency_is_fastest_first() -> None:
    pool = [prospect("slow", ttft=3.0), prospect("fast", ttft=1.0), prospect("middle", ttft=2.0)]
    assert ordered("latency", pool) == ["fast", "middle", "slow"]


def test_whoever_waits_for_the_whole_answer_waits_for_its_tokens() -> None:
    """100 tokens: 1 + 1 against 0.5 + 5 seconds."""

    def pool(waited: float) -> list[Prospect]:
        return [prospect("a", ttft=1.0, pace=0.01, waited=waited), prospect("b", ttft=0.5, pace=0.05, waited=waited)]

    assert ordered("latency", pool(0.0))[0] == "b"
    assert ordered("latency", pool(100.0), waited=100.0)[0] == "a"


def test_what_was_never_measured_is_tried_once() -> None:
    known = {"ok": 1.0, "slow": 2.0, "slower": 4.0}  # the median is 2
    for in_flight, place in ((0, 0), (1, 2)):
        pool = [prospect(name, ttft=ttft) for name, ttft in known.items()]
        pool[0].seconds = pool[0].ttft = 1.3
        assert ordered("latency", [prospect("new", ttft=None, in_flight=in_flight), *pool]).index("new") == place


def test_a_new_one_without_pace_counts_with_a_usual_one() -> None:
    """100 tokens. Its TTFT is known (1 s); the pace is taken as half of the usual 0.1 s."""
    pool = [
        prospect("a", ttft=1.0, pace=0.1, waited=100.0),
        prospect("new", ttft=1.0, pace=None, waited=100.0),
        prospect("b", ttft=1.0, pace=0.04, waited=100.0),
        prospect("c", ttft=1.0, pace=0.2, waited=100.0),
    ]
    assert ordered("latency", pool, waited=100.0) == ["b", "new", "a", "c"]
    assert [round(one.score, 6) for one in pool] == [5.0, 6.0, 11.0, 21.0]


def test_where_nothing_is_known_all_are_taken_alike() -> None:
    firsts = Counter(ordered("latency", [prospect(n, ttft=None) for n in "abc"], seed=seed)[0] for seed in range(300))
    assert set(firsts) == {"a", "b", "c"} and min(firsts.values()) > 50
    pool = [prospect("idle", ttft=None)]
    ordered("latency", pool)
    assert pool[0].score == OPTIMISTIC_TTFT


def test_a_busy_endpoint_is_slower() -> None:
    pool = [prospect("busy", ttft=1.0, in_flight=32), prospect("idle", ttft=1.3)]
    assert ordered("latency", pool) == ["idle", "busy"]  # 1.5 s against 1.3 s
    pool = [prospect("large", ttft=1.0, in_flight=32, capacity=1000.0), prospect("idle", ttft=1.3)]
    assert ordered("latency", pool) == ["large", "idle"]


def test_of_two_that_are_alike_the_less_busy_one_goes_first() -> None:
    for seed in range(20):
        pool = [prospect("busy", ttft=1.0, in_flight=3), prospect("idle", ttft=1.04), prospect("slow", ttft=2.0)]
        assert ordered("latency", pool, seed=seed) == ["idle", "busy", "slow"]


def test_those_that_are_alike_share_the_requests() -> None:
    """Five are alike, one is just not. Everybody is as busy: of two that are drawn the faster goes first."""
    times = {name: 1.0 + place / 100 for place, name in enumerate("abcde")} | {"f": ALIKE * 1.0 + 0.001}
    firsts = Counter(
        ordered("latency", [prospect(name, ttft=ttft) for name, ttft in times.items()], seed=seed)[0]
        for seed in range(2000)
    )
    # The best of two out of five: 4, 3, 2, 1 and 0 of 10 pairs.
    assert firsts["e"] == firsts["f"] == 0
    for name, share in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True):
        assert abs(firsts[name] / 2000 - share) < 0.05


def test_throughput_is_most_tokens_a_second_first() -> None:
    pool = [prospect("slow", pace=0.1), prospect("fast", pace=0.01), prospect("middle", pace=0.02)]
    assert ordered(by_throughput, pool) == ["fast", "middle", "slow"]


# Balanced


@pytest.mark.parametrize(
    ("balance", "first"),
    [
        ({"cost": 1.0}, "cheap"),
        ({"latency": 1.0}, "quick"),
        ({"throughput": 1.0}, "fast"),
        ({"load": 1.0}, "idle"),
        ({"cost": 1.0, "latency": 1.0}, "middle"),
        ({"cost": 5.0, "latency": 1.0}, "cheap"),
    ],
)
def test_balance_weighs_what_it_is_told_to(balance: dict[str, float], first: str) -> None:
    pool = [
        prospect("cheap", 10, 5.0, 0.1, in_flight=5),
        prospect("quick", 100, 1.0, 0.1, in_flight=5),
        prospect("fast", 100, 5.0, 0.01, in_flight=5),
        prospect("idle", 100, 5.0, 0.1),
        prospect("middle", 40, 2.0, 0.1, in_flight=5),
    ]
    assert ordered("balanced", pool, balance=balance)[0] == first


def test_balance_is_relative_to_the_lowest_and_the_highest() -> None:
    pool = [prospect("a", 10, 4.0), prospect("b", 30, 2.0), prospect("c", 20, 1.0)]
    assert ordered("balanced", pool, balance={"cost": 2.0, "latency": 1.0}) == ["a", "c", "b"]
    lowest = pool[0].score
    relative = {one.endpoint: round(one.score - lowest, 6) for one in pool}
    assert relative == {"a": 0.0, "c": 0.0, "b": round(2 + 1 / 3 - 1, 6)}  # a: 0 + 1, c: 1 + 0, b: 2 + 1/3


def test_balance_puts_unknown_prices_last_where_price_matters() -> None:
    def pool() -> list[Prospect]:
        return [prospect("unknown", None, 0.1), prospect("known", 5, 9.0), prospect("other", 6, 8.0)]

    assert ordered("balanced", pool())[-1] == "unknown"
    assert ordered("balanced", pool(), balance={"latency": 1.0})[0] == "unknown"
    assert ordered("balanced", [prospect("a", None, 2.0), prospect("b", None, 1.0)]) == ["b", "a"]


def test_balance_of_equals_and_of_nothing() -> None:
    assert ordered("balanced", [prospect("a", 0, 0.0), prospect("b", 0, 0.0)]) == ["a", "b"]
    pool = [prospect("free", 0, 1.0), prospect("dear", 10, 1.0)]
    ordered("balanced", pool, balance={"cost": 1.0})
    assert pool[0].strain == 0.0 and pool[1].strain > 100


# Weights


def first_shares(weights: dict[str, float]) -> dict[str, float]:
    rng = Random(20_240_601)
    policy = Policy(id="p", endpoints=tuple(weights), select="weighted", weights=weights)
    firsts: Counter[str] = Counter()
    for _ in range(DRAWS):
        pool = [prospect(name) for name in weights]
        SELECTIONS["weighted"](pool, Asked(policy, 0.0, rng))
        firsts[pool[0].endpoint] += 1
    return {name: firsts[name] / DRAWS for name in weights}


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0, "b": 1.0},
        {"a": 70.0, "b": 20.0, "c": 10.0},
        {"a": 0.0001, "b": 0.0003},
        {"a": 1e6, "b": 1e6, "c": 2e6},
    ],
)
def test_weighted_draws_in_proportion(weights: dict[str, float]) -> None:
    """A share's standard deviation is at most sqrt(0.25 / DRAWS) = 0.0035; five of them happen by chance once in a
    million, and the seed is fixed."""
    shares = first_shares(weights)
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(shares[name] - weight / total) < 5 * (0.25 / DRAWS) ** 0.5


def test_the_second_is_drawn_in_proportion_to_what_is_left() -> None:
    """After a (weight 6) there remain b (3) and c (1): b comes second in three of four cases. About 6,000 cases, one
    standard deviation 0.006."""
    policy = Policy(id="p", endpoints=("a", "b", "c"), weights={"a": 6.0, "b": 3.0, "c": 1.0})
    rng = Random(3)
    seconds = []
    for _ in range(10_000):
        pool = [prospect(name) for name in "abc"]
        SELECTIONS["weighted"](pool, Asked(policy, 0.0, rng))
        if pool[0].endpoint == "a":
            seconds.append(pool[1].endpoint)
    assert len(seconds) > 5_000
    assert abs(seconds.count("b") / len(seconds) - 0.75) < 0.03


def test_a_weight_that_is_left_out_is_one() -> None:
    firsts = Counter(
        ordered("weighted", [prospect("a"), prospect("b")], seed=seed, weights={"a": 3.0})[0] for seed in range(2000)
    )
    assert abs(firsts["a"] / 2000 - 0.75) < 0.05


def test_weight_zero_comes_last_in_the_policys_order() -> None:
    for seed in range(200):
        pool = [prospect(name) for name in "zayb"]
        order = ordered("weighted", pool, seed=seed, weights={"z": 0.0, "y": 0.0, "a": 1e-6})
        assert order[2:] == ["z", "y"]
        assert set(order[:2]) == {"a", "b"}


# Hashing


def test_numbers_made_of_hashes() -> None:
    assert 0.0 < uniform(0) < 1e-18 and uniform(2**63) == 0.5 and uniform(2**64 - 1) == 1.0


@pytest.mark.parametrize("size", [2, 3, 20])
def test_keys_are_shared_out_evenly(size: int) -> None:
    pool = [prospect(f"e{number}") for number in range(size)]
    firsts = Counter(
        one.endpoint for n in range(6000) if (one := choose_sticky(pool, seed_of(f"k{n}"), {})) is not None
    )
    deviation = (6000 / size * (1 - 1 / size)) ** 0.5
    assert all(abs(firsts[one.endpoint] - 6000 / size) < 5 * deviation for one in pool)


def test_the_choice_of_a_key_does_not_depend_on_the_order() -> None:
    pool = [prospect(name) for name in "abcdefg"]
    for key in map(seed_of, map(str, range(100))):
        chosen = choose_sticky(pool, key, {})
        assert chosen is not None and choose_sticky(pool[::-1], key, {}) is chosen
        assert choose_sticky([one for one in pool if one is not chosen], key, {}) is not None
        assert choose_sticky([*pool[:3], chosen], key, {}) is chosen
    assert choose_sticky([], 1, {}) is None
    assert choose_sticky([prospect("a")], 1, {"a": 0.0}) is None


def test_keys_are_chosen_in_proportion_to_weights() -> None:
    pool, weights = [prospect(name) for name in "abc"], {"a": 2.0, "b": 1.0, "c": 1.0}
    firsts = Counter(
        one.endpoint for n in range(8000) if (one := choose_sticky(pool, seed_of(f"k{n}"), weights)) is not None
    )
    for name, weight in weights.items():
        assert abs(firsts[name] / 8000 - weight / 4) < 0.03


def test_strain_tells_how_many_times_worse() -> None:
    pool = [prospect("a", 10, 1.0), prospect("b", 25, 3.0), prospect("c", None, None)]
    ordered(by_cost, pool)
    assert [one.strain for one in pool] == [10, 25, math.inf]
    ordered(by_latency, pool)
    assert sorted(one.strain for one in pool) == [1.0, 1.5, 3.0]
