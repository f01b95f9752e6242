"""What a planner remembers makes it quick and changes nothing: the same arguments make the same plan."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.accounting.catalogue import Catalogue
from gateway.accounting.prices import Prices
from gateway.config.model import (
    AS_ASKED,
    Allow,
    Canary,
    Configuration,
    Contract,
    Endpoint,
    Limits,
    Policy,
    Route,
    Shadow,
    Team,
)
from gateway.config.model import Match as Conditions
from gateway.config.sheets import Meters, PriceSheet, PriceWindow
from gateway.routing.facts import Facts
from gateway.routing.plan import Plan
from gateway.routing.planner import Planner
from gateway.routing.wishes import read_wishes
from gateway.types import EndpointHealth, Outlook, Rates, RouteHabits, Shift
from tests.configuration import make_endpoint, make_provider

NOW = 1000.0
AT = 1_780_000_000.0
IDS = tuple(f"e{number}" for number in range(6))
PROVIDERS = (make_provider("p"), make_provider("q", "anthropic"), make_provider("no", missing="`K` is not set"))
WISHES = (
    b'{"order": ["e3", "q"]}',
    b'{"ignore": ["e1"], "sort": "price"}',
    b'{"max_price": {"prompt": 1}}',
    b'{"allow_fallbacks": false, "preferred_max_latency": 0.5}',
)
EMPTY = Catalogue(source="none", providers=())
NOBODY = Shift(escape_id="x", source="nobody", target="e0", share=1.0, shadow_share=1.0)


def configurations(rng: Random) -> Configuration:
    def flip(share: float) -> bool:
        return rng.random() < share

    endpoints: dict[str, Endpoint] = {}
    for id in IDS:
        endpoints[id] = make_endpoint(
            id,
            rng.choices(PROVIDERS, (5, 5, 1))[0],
            model=rng.choice((AS_ASKED, "m", "n")),
            region=rng.choice((None, "eu", "us")),
            sheet=_sheet(rng) if flip(0.9) else None,
            context_window=rng.choice((None, 300, 5000)),
            data_classes=frozenset({"internal"} if flip(0.5) else ()),
            max_in_flight=rng.choice((None, 4)),
        )
    policies = {}
    for id, fallback in (("main", "rest" if flip(0.4) else None), ("rest", None)):
        policies[id] = Policy(
            id=id,
            endpoints=tuple(rng.sample(IDS, rng.choice((1, 2, 5)))),
            select=rng.choice(("cost", "latency", "balanced", "weighted", "priority")),
            require={"region": ("eu",)} if flip(0.1) else {},
            limits=Limits(
                max_cost_usd=Decimal("0.002") if flip(0.2) else None,
                max_ttft=1.0 if flip(0.2) else None,
                max_price=(Decimal(2), None) if flip(0.2) else (None, None),
            ),
            sticky=rng.choice(("none", "none", "session", "team")),
            canaries=(Canary(endpoint="e4", share=0.3, by="session"),) if flip(0.2) else (),
            shadow=Shadow(endpoint="e5", share=0.5) if flip(0.2) else None,
            fallback=fallback,
        )
    return Configuration(
        version="v1",
        providers={provider.id: provider for provider in PROVIDERS},
        endpoints=endpoints,
        routes=(
            Route(name="short", match=Conditions(max_input_tokens=100), policy="rest"),
            Route(name="all", match=Conditions(), policy="main"),
        ),
        policies=policies,
        teams={"strict": Team(id="strict", data_class="internal", allow=Allow(models=("m", "gpt*")))},
        contracts=(
            Contract(id="c", provider="p", teams=("str*",), discount=Decimal("0.5")),
            Contract(id="d", provider="q", models=("gpt*",), discount=Decimal("0.3")),
        ),
    )


def _sheet(rng: Random) -> PriceSheet:
    """Of some the price changes at noon."""
    morning, evening = (
        Meters(input=Decimal(rng.randrange(400)) / 100, output=Decimal(rng.randrange(900)) / 100) for _ in "ab"
    )
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC).time()
    late = PriceWindow(meters=evening, begins=noon, ends=noon.replace(hour=23))
    return PriceSheet(
        windows=(PriceWindow(meters=morning), late) if rng.random() < 0.5 else (PriceWindow(meters=morning),)
    )


def outlooks(rng: Random, before: Outlook) -> Outlook:
    """Some endpoints are as before, some have changed, some are not known any more."""
    endpoints = dict(before.endpoints)
    for id in IDS:
        if rng.random() < 0.1:
            endpoints.pop(id, None)
        elif rng.random() < 0.4:
            endpoints[id] = EndpointHealth(
                ttft=rng.choice((None, 0.1, 0.9, 1.5)),
                in_flight=rng.randrange(4),
                ejected_until=rng.choice((0.0, 0.0, 0.0, NOW + 5)),
                seconds_per_token=rng.choice((None, 0.01, 0.03)),
                cache_share=rng.choice((None, 0.0, 0.5)),
                admitted=rng.choice((1.0, 1.0, 0.5)),
            )
    routes = (
        {"all": RouteHabits(output_tokens=90.0, input_ratio=1.3, by_size={12: 300.0})} if rng.random() < 0.5 else {}
    )
    return Outlook(endpoints, routes, str(rng.random()))


def requests(rng: Random) -> Facts:
    team = rng.choice(("strict", "other"))
    own_class = rng.choice((None, "internal"))  # a recorded request has that of its time
    return Facts(
        model=rng.choice(("m", "gpt", "claude")),
        stream=rng.random() < 0.5,
        input_tokens=rng.choice((10, 70, 250, 4000)),
        needs=frozenset(rng.choice(((), ("stream",), ("logprobs", "n")))),
        team=team,
        key_id="k",
        output_limit=rng.choice((None, None, 60, -1)),
        choices=rng.choice((1, 3)),
        native_feature=rng.choice((None, None, None, "`modalities`")),
        kept_state=rng.choice((None, None, None, None, "previous_response_id")),
        session=rng.choice((None, "s1", "s2")),
        data_class=rng.choice((None, "internal")),
        team_class=own_class,
        wishes=read_wishes(rng.choice(WISHES), None) if rng.random() < 0.2 else None,
        budget_left=rng.choice((None, None, Decimal("0.001"), Decimal(5))),
        at=AT + rng.choice((0.0, 20.0, 70.0, 30_000.0)),
    )


def plan(planner: Planner, facts: Facts, outlook: Outlook, seed: int, shifts: Sequence[Shift] = ()) -> tuple[Any, ...]:
    """And what chance has in store afterwards: as much was drawn."""
    rng = Random(seed)
    route = planner.match(facts)
    assert route is not None
    wants_costs = seed % 2 == 0
    made = planner.plan(route, facts, outlook=outlook, now=NOW, rng=rng, shifts=shifts, with_costs=wants_costs)
    return made, planner.needs_count(route, facts), rng.random()


def planner_of(configuration: Configuration) -> Planner:
    return Planner(configuration, Prices(lambda: EMPTY, contracts=configuration.contracts).quote)


@pytest.mark.parametrize("seed", range(30))
def test_a_planner_that_has_decided_before_decides_as_a_new_one(seed: int) -> None:
    rng, outlook = Random(seed), Outlook()
    configuration = configurations(rng)
    old = planner_of(configuration)
    for number in range(15):
        outlook, facts = outlooks(rng, outlook), requests(rng)
        assert plan(old, facts, outlook, number) == plan(planner_of(configuration), facts, outlook, number)


@pytest.mark.parametrize("seed", range(30, 50))
def test_the_short_way_ends_where_the_long_one_does(seed: int) -> None:
    """A shift of what nobody asks is looked at, and changes nothing."""
    rng, outlook = Random(seed), Outlook()
    planner = planner_of(configurations(rng))
    for number in range(15):
        outlook, facts = outlooks(rng, outlook), requests(rng)
        assert plan(planner, facts, outlook, number) == plan(planner, facts, outlook, number, shifts=(NOBODY,))


def test_what_is_dropped_for_all_requests_of_a_kind_is_one_object() -> None:
    endpoints = {"a": make_endpoint("a", PROVIDERS[0]), "b": make_endpoint("b", PROVIDERS[2])}
    configuration = Configuration(
        version="v1",
        providers={},
        endpoints={**endpoints, "c": make_endpoint("c", PROVIDERS[0], context_window=10)},
        routes=(Route(name="r", match=Conditions(), policy="main"),),
        policies={"main": Policy(id="main", endpoints=("a", "b"))},
    )
    planner = planner_of(configuration)
    facts = Facts(model="m", stream=False, input_tokens=50, needs=frozenset(), team="t", key_id="k")
    first: Plan = plan(planner, facts, Outlook(), 0)[0]
    again: Plan = plan(planner, replace(facts, input_tokens=60, session="s"), Outlook(), 1)[0]
    assert [one.endpoint for one in first.dropped] == ["b"]
    assert again.dropped is first.dropped


def test_a_price_by_the_clock_is_asked_of_the_clock() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    day = PriceWindow(meters=Meters(input=Decimal(1), output=Decimal(2)))
    late = PriceWindow(
        meters=Meters(input=Decimal(3), output=Decimal(4)), begins=noon.time(), ends=noon.time().replace(hour=23)
    )
    prices = Prices(lambda: EMPTY)
    changing, fixed = (make_endpoint(sheet=PriceSheet(windows=windows)) for windows in ((day, late), (day,)))

    def at(endpoint: Endpoint, moment: datetime) -> Rates | None:
        found = prices.rates_at(endpoint, "m", moment.timestamp(), 10, "team", None)
        assert found is prices.rates_for(endpoint, "m", moment, 10, team="team")
        return None if found is None else found.rates

    assert at(changing, noon.replace(hour=11, minute=59)) == Rates(Decimal(1), Decimal(2))
    assert at(changing, noon) == Rates(Decimal(3), Decimal(4))
    assert at(fixed, noon) == at(fixed, noon.replace(hour=1)) == Rates(Decimal(1), Decimal(2))
    assert prices.rates_at(fixed, "m", 1e9, 10, "team") is prices.rates_at(fixed, "m", 0.0, 10, "team")
    assert prices.rates_at(make_endpoint(), "m", 0.0, 10) is None
