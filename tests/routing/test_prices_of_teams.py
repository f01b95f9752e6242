"""Decisions by cost where contracts are for some teams: each team's own prices, and nobody else's."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from gateway.accounting.prices import PriceBook
from gateway.config.model import Endpoint
from gateway.routing.planner import Planner
from gateway.routing.prospects import PriceTable
from gateway.types import Outlook, PriceCard
from tests.configuration import make_endpoint
from tests.gateway_fixtures import configuration_of
from tests.routing.test_plan import facts

CHEAP, DEAR = PriceCard(1.0, 1.0, 1.0), PriceCard(2.0, 2.0, 2.0)


class Quotes:
    """Counts what it is asked. `payments` has a contract."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    def __call__(self, endpoint: Endpoint, model: str, at: float, tokens: int, **who: Any) -> PriceCard:
        self.asked.append(who.get("team"))
        return CHEAP if who.get("team") == "payments" else DEAR


def card(table: PriceTable, team: str, at: float = 0.0) -> PriceCard | None:
    table.turn_to(at, team)
    return table.card(make_endpoint("e"), "m", 10)


def test_each_team_has_its_own_prices() -> None:
    quotes = Quotes()
    table = PriceTable(quotes, ["pay*"])
    assert [card(table, team) for team in ("payments", "hr", "payments", "payouts")] == [CHEAP, DEAR, CHEAP, DEAR]
    assert quotes.asked == ["payments", None, "payouts"]  # what was asked once holds for the minute
    card(table, "payments", at=60.0)
    assert quotes.asked[3:] == ["payments"]


def test_without_contracts_of_teams_nobody_is_asked_by_name() -> None:
    quotes = Quotes()
    table = PriceTable(quotes)
    assert [card(table, team) for team in ("payments", "hr")] == [DEAR, DEAR]
    assert quotes.asked == [None]


def test_teams_take_a_bounded_place() -> None:
    table = PriceTable(Quotes(), ["*"])
    for n in range(1000):
        assert card(table, f"team-{n}") == DEAR
    assert len(table._by_team) <= 256


@pytest.mark.parametrize(("team", "first"), [("payments", "b"), ("hr", "a")])
def test_the_cheapest_for_this_team_comes_first(team: str, first: str) -> None:
    chosen = configuration_of(
        {
            "providers": {name: {"adapter": "openai", "base_url": f"https://{name}.example/v1"} for name in ("p", "q")},
            "endpoints": {
                "a": {"provider": "p", "model": "m", "price": {"input": 2, "output": 2}},
                "b": {"provider": "q", "model": "m", "price": {"input": 3, "output": 3}},
            },
            "routes": [{"match": {"model": "*"}, "policy": "cheap"}],
            "policies": {"cheap": {"endpoints": ["a", "b"], "select": "cost"}},
            "contracts": {"deal": {"provider": "q", "teams": ["pay*"], "discount": "50%"}},
        }
    )
    planner = Planner(chosen, PriceBook().under(chosen).quote)
    asked = msgspec.structs.replace(facts(), team=team)
    plan = planner.plan(chosen.routes[0], asked, outlook=Outlook(), now=0.0, rng=Random(0))
    assert plan.candidates[0].endpoint == first
