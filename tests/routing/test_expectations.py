"""What a plan expects of a request: tokens, costs, prices."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import pytest

from gateway.config.model import (
    Endpoint,
)
from gateway.routing.facts import DEFAULT_OUTPUT_TOKENS
from gateway.routing.planner import Planner
from gateway.routing.wishes import Wishes
from gateway.types import EndpointHealth, Outlook, PriceCard, Rates, RouteHabits
from tests.routing.test_plan import configuration, facts, plan


def quote_rates(endpoint: Endpoint, model: str, at: float, input_tokens: int) -> PriceCard | None:
    assert endpoint.rates is not None
    return PriceCard(float(endpoint.rates.input), float(endpoint.rates.output), float(endpoint.rates.cache_read or 0))


def rated(input: str, output: str, cache_read: str = "0") -> dict[str, Any]:
    return {"rates": Rates(Decimal(input), Decimal(output), cache_read=Decimal(cache_read))}


@pytest.mark.parametrize(
    ("fields", "habits", "cost"),
    [
        ({}, None, "0.0002"),  # 100 in, the limit of 50 out
        ({"output_limit": None}, None, f"{(100 + 2 * DEFAULT_OUTPUT_TOKENS) / 10**6}"),
        ({"output_limit": None}, RouteHabits(output_tokens=30.5), "0.000161"),
        ({"output_limit": 4000}, RouteHabits(output_tokens=30.5), "0.000161"),
        ({"output_limit": 20}, RouteHabits(output_tokens=30.5), "0.00014"),
        ({"output_limit": None, "choices": 3}, RouteHabits(output_tokens=30.0), "0.00028"),
        ({}, RouteHabits(input_ratio=1.5), "0.00025"),
        ({"counted_tokens": 300}, RouteHabits(input_ratio=1.5), "0.0004"),  # exact: nothing to mend
        ({"surface": "embeddings"}, None, "0.0001"),
    ],
)
def test_the_expected_cost_of_a_request(fields: dict[str, Any], habits: RouteHabits | None, cost: str) -> None:
    chosen = configuration(a=rated("1", "2"))
    made = plan(chosen, facts(**fields), habits=habits, quote=quote_rates)
    assert made.candidates[0].expected_cost == Decimal(cost)


def test_cached_input_costs_less() -> None:
    """Half of the input at a tenth of the price is 55% of the full one."""
    chosen = configuration(a=rated("10", "0", "1"))
    made = plan(chosen, health={"a": EndpointHealth(cache_share=0.5)}, quote=quote_rates)
    assert made.candidates[0].expected_cost == Decimal("0.00055")


def test_the_plan_says_what_it_expects() -> None:
    made = plan(configuration(), facts(output_limit=None), habits=RouteHabits(output_tokens=20.4, input_ratio=0.5))
    assert (made.input_tokens, made.output_tokens, made.outlook_version) == (50, 20, "7")


def test_prices_are_asked_for_once_a_minute_and_once_a_tier() -> None:
    asked: list[tuple[float, int]] = []

    def quote(endpoint: Endpoint, model: str, at: float, input_tokens: int) -> PriceCard | None:
        asked.append((at, input_tokens))
        if input_tokens > 200:
            return PriceCard(2.0, 0.0, 0.0, above=200)
        return PriceCard(1.0, 0.0, 0.0, up_to=200.0)

    chosen = configuration({"select": "cost"}, a={})
    planner = Planner(chosen, quote)
    costs = []
    for at, tokens in ((0.0, 100), (59.9, 200), (59.9, 201), (59.9, 10_000), (60.0, 10_000)):
        made = planner.plan(
            chosen.routes[0], facts(at=at, input_tokens=tokens), outlook=Outlook(), now=0.0, rng=Random(1)
        )
        costs.append(made.candidates[0].expected_cost)
    assert asked == [(0.0, 100), (0.0, 201), (60.0, 10_000)]
    assert costs == [Decimal(units) / 10**6 for units in (100, 200, 402, 20_000, 20_000)]


def test_costs_are_not_worked_out_for_nobody() -> None:
    def fail(*_: object) -> PriceCard | None:
        raise AssertionError("asked for a price")

    chosen = configuration()
    planner = Planner(chosen, fail)
    made = planner.plan(chosen.routes[0], facts(), outlook=Outlook(), now=0.0, rng=Random(1))
    assert [candidate.expected_cost for candidate in made.candidates] == [None, None, None]
    with pytest.raises(AssertionError, match="asked for a price"):
        planner.plan(chosen.routes[0], facts(wishes=Wishes(sort="price")), outlook=Outlook(), now=0.0, rng=Random(1))
