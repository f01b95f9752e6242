"""Each selection's order. Draws by weight are tested against their distribution, with seeded generators."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from random import Random
from typing import Any, get_args

import pytest

from gateway.config.model import Policy, Select
from gateway.routing.select import OPTIMISTIC_TTFT, SELECTIONS
from gateway.types import Candidate

DRAWS = 20_000


def pool(**candidates: tuple[str | None, float | None]) -> list[Candidate]:
    return [Candidate(name, None if cost is None else Decimal(cost), ttft) for name, (cost, ttft) in candidates.items()]


def ordered(select: Select, candidates: list[Candidate], seed: int = 0, **policy: Any) -> list[str]:
    chosen = Policy(id="p", endpoints=tuple(c.endpoint for c in candidates), select=select, **policy)
    return [c.endpoint for c in SELECTIONS[select](candidates, chosen, Random(seed))]


def test_every_selection_of_the_configuration_is_there() -> None:
    assert set(SELECTIONS) == set(get_args(Select))


@pytest.mark.parametrize("select", get_args(Select))
def test_a_selection_neither_loses_nor_adds(select: Select) -> None:
    candidates = pool(a=("1", 1.0), b=(None, None), c=("0", 0.0), d=("1", 1.0))
    assert sorted(ordered(select, candidates)) == ["a", "b", "c", "d"]
    assert ordered(select, []) == []


def test_priority_is_the_order_as_written() -> None:
    assert ordered("priority", pool(b=("9", 9.0), a=("1", 1.0), c=(None, None))) == ["b", "a", "c"]


def test_cost_is_cheapest_first_and_unknown_last() -> None:
    candidates = pool(unknown=(None, 0.1), dear=("2", 0.1), free=("0", 9.0), cheap=("0.5", 1.0), same=("0.50", 0.1))
    assert ordered("cost", candidates) == ["free", "cheap", "same", "dear", "unknown"]


def test_latency_is_fastest_first_and_unknown_between() -> None:
    below, above = OPTIMISTIC_TTFT - 0.1, OPTIMISTIC_TTFT + 0.1
    candidates = pool(slow=("1", above), new=("1", None), fast=("1", below), same=("1", above))
    assert ordered("latency", candidates) == ["fast", "new", "slow", "same"]


def test_balance_weighs_cost_against_latency() -> None:
    # shares of the highest: a 1 + 0.1, b 0.2 + 0.2, c 0.1 + 1
    assert ordered("balanced", pool(a=("10", 1.0), b=("2", 2.0), c=("1", 10.0)))[0] == "b"
    # 1 + 0.5, 0.5 + 0.8
    assert ordered("balanced", pool(a=("2", 1.0), b=("1", 1.6), c=("2", 2.0))) == ["b", "a", "c"]


def test_balance_without_prices_or_times() -> None:
    assert ordered("balanced", pool(a=(None, 0.1), b=("5", 9.0))) == ["b", "a"]
    assert ordered("balanced", pool(a=(None, 2.0), b=(None, 1.0))) == ["b", "a"]
    assert ordered("balanced", pool(a=("0", 0.0), b=("0", 0.0))) == ["a", "b"]


def first_shares(weights: dict[str, float]) -> dict[str, float]:
    candidates = pool(**dict.fromkeys(weights, (None, None)))
    policy = Policy(id="p", endpoints=tuple(weights), select="weighted", weights=weights)
    rng = Random(20_240_601)
    firsts = Counter(SELECTIONS["weighted"](candidates, policy, rng)[0].endpoint for _ in range(DRAWS))
    return {name: firsts[name] / DRAWS for name in weights}


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0, "b": 1.0},
        {"a": 1.0, "b": 3.0},
        {"a": 70.0, "b": 20.0, "c": 10.0},
        {"a": 0.001, "b": 0.001},
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
    """After a (weight 6) there remain b (3) and c (1): b comes second in three of four cases. About 12,000 cases, one
    standard deviation 0.004."""
    candidates = pool(a=(None, None), b=(None, None), c=(None, None))
    policy = Policy(id="p", endpoints=("a", "b", "c"), weights={"a": 6.0, "b": 3.0, "c": 1.0})
    rng = Random(3)
    orders = [[c.endpoint for c in SELECTIONS["weighted"](candidates, policy, rng)] for _ in range(DRAWS)]
    seconds = [order[1] for order in orders if order[0] == "a"]
    assert len(seconds) > 10_000
    assert abs(seconds.count("b") / len(seconds) - 0.75) < 0.02


def test_a_weight_that_is_left_out_is_one() -> None:
    candidates = pool(a=(None, None), b=(None, None))
    policy = Policy(id="p", endpoints=("a", "b"), weights={"a": 3.0})
    rng = Random(4)
    firsts = sum(SELECTIONS["weighted"](candidates, policy, rng)[0].endpoint == "a" for _ in range(DRAWS))
    assert abs(firsts / DRAWS - 0.75) < 5 * (0.25 / DRAWS) ** 0.5


def test_weight_zero_comes_last_in_the_policys_order() -> None:
    candidates = pool(z=(None, None), a=(None, None), y=(None, None), b=(None, None))
    for seed in range(200):
        order = ordered("weighted", candidates, seed, weights={"z": 0.0, "y": 0.0, "a": 1e-6})
        assert order[2:] == ["z", "y"]
        assert set(order[:2]) == {"a", "b"}
