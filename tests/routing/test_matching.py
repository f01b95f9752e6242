"""Which route holds: each condition, windows, and what is remembered of earlier requests."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.config.model import (
    Match,
    Route,
    Window,
)
from gateway.routing.facts import Facts
from gateway.routing.matching import RouteTable
from tests.routing.test_plan import facts

# Routes


@pytest.mark.parametrize(
    ("match", "asked", "holds"),
    [
        (Match(), facts(), True),
        (Match(model=("gpt-mini",)), facts(), True),
        (Match(model=("gpt-*", "x")), facts(), True),
        (Match(model=("GPT-*",)), facts(), False),
        (Match(model=("gpt-?ini",)), facts(), True),
        (Match(model=("gpt-[mn]ini",)), facts(), True),
        (Match(model=("mini",)), facts(), False),
        (Match(model=("*",)), facts(model="a/b/c"), True),
        (Match(model=("gpt-[1]",)), facts(model="gpt-[1]"), True),  # a name is itself, whatever a glob makes of it
        (Match(domain=("law", "finance")), facts(domain="finance"), True),
        (Match(domain=("law",)), facts(domain="finance"), False),
        (Match(domain=("law",)), facts(domain=None), False),
        (Match(team=("pay*",)), facts(team="payments"), True),
        (Match(team=("pay*",)), facts(team="research"), False),
        (Match(key=("k", "l")), facts(key_id="l"), True),
        (Match(key=("k*",)), facts(key_id="k1"), False),  # ids, no globs
        (Match(header={"x-tier": "gold*"}), facts(headers={"x-tier": "gold-1"}), True),
        (Match(header={"x-tier": "gold"}), facts(headers={"x-tier": "silver"}), False),
        (Match(header={"x-tier": "*"}), facts(), False),
        (Match(header={"x-a": "1", "x-b": "2"}), facts(headers={"x-a": "1"}), False),
        (Match(stream=True), facts(stream=True), True),
        (Match(stream=True), facts(stream=False), False),
        (Match(stream=False), facts(stream=False), True),
        (Match(max_input_tokens=100), facts(input_tokens=100), True),
        (Match(max_input_tokens=100), facts(input_tokens=101), False),
        (Match(max_input_tokens=0), facts(input_tokens=1), False),
        (Match(min_input_tokens=100), facts(input_tokens=100), True),
        (Match(min_input_tokens=100), facts(input_tokens=99), False),
        (Match(complexity=("complex", "moderate")), facts(complexity="moderate"), True),
        (Match(complexity=("complex",)), facts(), False),
        (Match(project=("shop-*",)), facts(project="shop-eu"), True),
        (Match(project=("shop-*",)), facts(project="desk"), False),
        (Match(project=("*",)), facts(), False),
        (Match(tag={"env": "prod*"}), facts(tags={"env": "prod-1", "app": "x"}), True),
        (Match(tag={"env": "prod"}), facts(tags={"env": "test"}), False),
        (Match(tag={"env": "*"}), facts(), False),
        (Match(data_class=("health", "card")), facts(data_class="card"), True),
        (Match(data_class=("health",)), facts(), False),
        (Match(model=("gpt-*",), team=("other",)), facts(), False),  # all must hold
    ],
)
def test_each_condition_of_a_route(match: Match, asked: Facts, holds: bool) -> None:
    table = RouteTable([Route(name="this", match=match, policy="main")])
    assert (table.find(asked) is not None) is holds
    assert (table.find(asked) is not None) is holds  # also when it remembers


def test_the_first_route_wins() -> None:
    routes = tuple(
        Route(name=name, match=Match(model=(glob,)), policy="main")
        for name, glob in (("no", "claude"), ("first", "gpt-*"), ("second", "*"))
    )
    found = RouteTable(routes).find(facts())
    assert found is not None and found.name == "first"


# Windows

MON_9 = datetime(2026, 6, 1, 9, 0, tzinfo=UTC).timestamp()  # a Monday, 11:00 in Berlin
HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize(
    ("window", "at", "is_open"),
    [
        (Window(), MON_9, True),
        (Window(start=540, end=600), MON_9, True),
        (Window(start=540, end=600), MON_9 - 1, False),
        (Window(start=540, end=600), MON_9 + HOUR, False),  # the end is not in it
        (Window(start=540, end=600, zone="Europe/Berlin"), MON_9, False),
        (Window(start=660, end=661, zone="Europe/Berlin"), MON_9, True),
        (Window(days=frozenset({0})), MON_9, True),
        (Window(days=frozenset({1})), MON_9, False),
        (Window(days=frozenset({0}), start=1320, end=360), MON_9 + 13 * HOUR, True),  # Monday 22:00
        (
            Window(days=frozenset({0}), start=1320, end=360),
            MON_9 + 20 * HOUR,
            True,
        ),  # Tuesday 05:00, it began on Monday
        (Window(days=frozenset({0}), start=1320, end=360), MON_9 - 4 * HOUR, False),  # Monday 05:00, began on Sunday
        (Window(days=frozenset({0}), start=1320, end=360), MON_9, False),
        (Window(since=datetime(2026, 6, 1).date()), MON_9, True),
        (Window(since=datetime(2026, 6, 2).date()), MON_9, False),
        (Window(until=datetime(2026, 6, 1).date()), MON_9, True),
        (Window(until=datetime(2026, 6, 1).date()), MON_9 + DAY, False),
    ],
)
def test_a_route_holds_while_its_window_is_open(window: Window, at: float, is_open: bool) -> None:
    route = Route(name="night", match=Match(window=window), policy="main")
    table = RouteTable([route])
    for _ in range(2):  # also when it remembers the minute
        assert (table.find(facts(at=at)) is not None) is is_open


def test_a_window_is_looked_at_again_in_the_next_minute() -> None:
    table = RouteTable([Route(name="r", match=Match(window=Window(start=540, end=541)), policy="main")])
    found = [table.find(facts(at=MON_9 + second)) is not None for second in (-1, 0, 59, 60, 0)]
    assert found == [False, True, True, False, True]


def test_what_a_route_table_remembers_of_one_caller_is_not_another_ones() -> None:
    routes = [
        Route(name=f"{team}-{key}", match=Match(team=(team,), key=(key,)), policy="p") for team in "tu" for key in "kl"
    ]
    table = RouteTable(routes)
    for _ in range(2):
        for team in "tu":
            for key in "kl":
                found = table.find(facts(team=team, key_id=key))
                assert found is not None and found.name == f"{team}-{key}"
    assert table.find(facts(team="v")) is None
