"""For any configuration and any request: whoever is in a plan meets every constraint, however it got there.

The constraints are said here a second time, in other words than in the source.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from fnmatch import fnmatchcase
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.model import (
    Allow,
    Canary,
    Configuration,
    Endpoint,
    Limits,
    Match,
    Policy,
    Route,
    Shadow,
    Team,
)
from gateway.routing.facts import Facts
from gateway.routing.plan import REASONS, Plan
from gateway.routing.planner import Planner
from gateway.routing.wishes import Wishes
from gateway.types import Capability, EndpointHealth, Outlook, PriceCard, Shift
from tests.routing.test_plan import PROVIDERS, SELECTS, facts

IDS = [f"e{number}" for number in range(6)]
TIERS = ("static", "live", "real-time")
CAPABLE: frozenset[Capability] = frozenset({"stream", "tools"})
PRICES = {**{id: Decimal(place) / 10 for place, id in enumerate(IDS)}, "e5": None}
"""USD for a request, whatever it is."""


class Draw(Random):
    """Draws configurations and requests: most constraints are there now and then, so that most plans have somebody."""

    def one(self, *values: Any) -> Any:
        return self.choice(values)

    def rarely(self, value: Any, otherwise: Any = None) -> Any:
        return value if self.random() < 0.08 else otherwise

    def some(self, *values: Any) -> tuple[Any, ...]:
        return tuple(self.sample(values, self.randrange(1, min(3, len(values)) + 1)))

    def endpoint(self, id: str) -> Endpoint:
        return Endpoint(
            id=id,
            provider=PROVIDERS[self.one("p", "p", "p", "q", "q", "q", "keyless")],
            model=self.one("m", "open-1"),
            region=self.one(None, "eu", "eu", "us"),
            license=self.one(None, "mit"),
            freshness=self.one(None, *TIERS),
            data_classes=frozenset(self.some("health", "card", "x")),
            quantization=self.one(None, "fp8"),
            zdr=self.one(True, False),
            data_collection=self.one(True, False),
            distillable=self.one(True, False),
            context_window=self.one(None, 120, 1000),
            capabilities=CAPABLE - {self.rarely("tools"), self.rarely("stream")},
            speaks=self.one(("chat",), ("chat",), ("chat",), ("messages", "chat"), ("embeddings",)),
        )

    def policy(self, id: str, fallback: str | None) -> Policy:
        require = {
            "region": ("eu",),
            "license": ("mit",),
            "freshness": (self.one(*TIERS),),
            "zdr": ("true",),
            "provider": ("p",),
        }
        return Policy(
            id=id,
            endpoints=tuple(self.sample(IDS, self.randrange(1, 5))),
            select=self.one(*SELECTS),
            require={name: values for name, values in require.items() if self.rarely(True)},
            limits=Limits(max_cost_usd=self.rarely(Decimal("0.2"))),
            sticky=self.one("none", "session"),
            canaries=(Canary(endpoint=self.one(*IDS), share=self.one(0.0, 0.5, 1.0)),),
            shadow=Shadow(endpoint=self.one(*IDS), share=self.one(0.0, 1.0)),
            fallback=fallback,
        )

    def configuration(self) -> Configuration:
        allow = Allow(
            endpoints=self.rarely(self.some("e1", "e[2-5]", "*"), ()),
            providers=self.rarely(self.some("p", "q"), ()),
            regions=self.rarely(self.some("e*", "us"), ()),
            models=self.rarely(("open-*",), ()),
        )
        return Configuration(
            version="v",
            providers=PROVIDERS,
            endpoints={id: self.endpoint(id) for id in IDS},
            routes=(Route(name="r", match=Match(), policy="main"),),
            policies={"main": self.policy("main", self.one(None, "other")), "other": self.policy("other", None)},
            teams={"t": Team(id="t", allow=allow)},
        )

    def wishes(self) -> Wishes:
        return Wishes(
            order=self.one((), (), self.some(*IDS, "q")),
            only=self.rarely(self.some(*IDS, "q"), ()),
            ignore=self.rarely(self.some(*IDS, "q"), ()),
            allow_fallbacks=self.rarely(False, True),
            data_collection=self.rarely("deny", "allow"),
            zdr=self.rarely(True, False),
            enforce_distillable_text=self.rarely(True, False),
            quantizations=self.rarely(("fp8",), ()),
            sort=self.one(None, None, "price", "latency"),
        )

    def request(self) -> Facts:
        return facts(
            needs=frozenset({self.rarely("tools"), self.rarely("stream")} - {None}),
            input_tokens=self.one(10, 100, 500),
            data_class=self.rarely("card"),
            team=self.one("t", "u"),
            session=self.one(None, "s1", "s2"),
            native_feature=self.rarely("a feature"),
            wishes=self.one(None, self.wishes()),
            budget_left=self.rarely(self.one(Decimal("0.25"), Decimal(0))),
        )

    def outlook(self) -> Outlook:
        states = {
            id: EndpointHealth(
                ttft=self.one(None, 0.5, 2.0),
                ejected_until=self.rarely(200.0, 0.0),
                admitted=self.rarely(0.5, 1.0),
                in_flight=self.randrange(9),
            )
            for id in IDS
        }
        return Outlook(endpoints=states)

    def shifts(self) -> tuple[Shift, ...]:
        return tuple(
            Shift(escape_id=str(number), source=self.one(*IDS), target=self.one(*IDS), share=0.5, shadow_share=0.5)
            for number in range(self.randrange(4))
        )


def quote(endpoint: Endpoint, *_: object) -> PriceCard | None:
    price = PRICES[endpoint.id]
    return None if price is None else PriceCard(0.0, 0.0, 0.0, request=float(price))


@settings(max_examples=500)
@given(st.integers(0, 2**64))
def test_nobody_serves_who_may_not(seed: int) -> None:
    _check(*_draw(seed))


def test_most_of_what_is_drawn_is_served_and_by_every_means() -> None:
    """Else the test above would say little."""
    means: Counter[str | None] = Counter()
    reasons: Counter[str] = Counter()
    shadows = 0
    for seed in range(600):
        made = _check(*_draw(seed))
        means[made.candidates[0].placed_by if made.candidates else "nobody"] += 1
        reasons.update({dropped.reason for dropped in made.dropped})
        shadows += len(made.shadows)
    assert means["nobody"] < 300 and shadows > 20
    assert all(means[by] > 4 for by in (None, "sticky", "canary", "escape", "fallback", "wish")), means
    wanted = {"missing_key", "require", "data_class", "allow", "wish", "protocol", "capability", "context_window"}
    assert wanted | {"max_cost", "budget"} <= reasons.keys()


@settings(max_examples=100)
@given(st.integers(0, 2**64))
def test_what_is_remembered_of_others_changes_nothing(seed: int) -> None:
    draw = Draw(seed)
    chosen, outlook, shifts = draw.configuration(), draw.outlook(), draw.shifts()
    used = Planner(chosen, quote)
    for number in range(12):
        asked = draw.request()
        fresh = Planner(chosen, quote)
        route = fresh.match(asked)
        assert route is not None and used.match(asked) == route
        plans = [
            planner.plan(route, asked, outlook=outlook, now=100.0, rng=Random(number), shifts=shifts)
            for planner in (fresh, used)
        ]
        assert plans[0] == plans[1]


def _draw(seed: int) -> tuple[Configuration, Facts, Outlook, tuple[Shift, ...], int]:
    draw = Draw(seed)
    return draw.configuration(), draw.request(), draw.outlook(), draw.shifts(), seed


def _check(chosen: Configuration, asked: Facts, outlook: Outlook, shifts: tuple[Shift, ...], seed: int) -> Plan:
    planner, route = Planner(chosen, quote), chosen.routes[0]

    def decide() -> Plan:
        return planner.plan(route, asked, outlook=outlook, now=100.0, rng=Random(seed), shifts=shifts)

    made = decide()
    assert made == decide()  # what it remembers changes nothing
    main = chosen.policies["main"]
    ids = [candidate.endpoint for candidate in made.candidates]
    assert len(set(ids)) == len(ids)
    for id in (*ids, *made.shadows):
        of_fallback = (
            id not in main.endpoints and main.fallback is not None and id in chosen.policies["other"].endpoints
        )
        placed = {candidate.endpoint: candidate.placed_by for candidate in made.candidates}.get(id)
        holds = [main]
        if of_fallback and placed == "fallback":
            holds.append(chosen.policies["other"])
        for one in holds:
            _check_policy(one, chosen.endpoints[id])
        _check_request(asked, chosen.endpoints[id])
        _check_team(chosen.teams.get(asked.team), chosen.endpoints[id])
        if asked.wishes is not None:
            _check_wishes(asked.wishes, chosen.endpoints[id])
    if asked.wishes is not None and not asked.wishes.allow_fallbacks:
        assert len(ids) <= max(1, len(chosen.endpoints) if asked.wishes.order else 1)
    told = {dropped.endpoint for dropped in made.dropped}
    assert {dropped.reason for dropped in made.dropped} <= set(REASONS)
    assert told.isdisjoint(ids)
    if asked.wishes is None or asked.wishes.allow_fallbacks or asked.wishes.order:
        assert set(main.endpoints) <= told | set(ids)  # each is accounted for
    return made


def _check_policy(policy: Policy, endpoint: Endpoint) -> None:
    require = policy.require
    assert "region" not in require or endpoint.region == "eu"
    assert "license" not in require or endpoint.license == "mit"
    assert "provider" not in require or endpoint.provider.id == "p"
    assert "zdr" not in require or endpoint.zdr
    if "freshness" in require:
        assert endpoint.freshness is not None
        assert TIERS.index(endpoint.freshness) >= TIERS.index(require["freshness"][0])
    if policy.limits.max_cost_usd is not None:
        price = PRICES[endpoint.id]
        assert price is not None and price <= policy.limits.max_cost_usd


def _check_request(asked: Facts, endpoint: Endpoint) -> None:
    assert endpoint.provider.missing is None
    assert asked.data_class is None or asked.data_class in endpoint.data_classes
    assert asked.needs <= endpoint.capabilities
    assert "chat" in endpoint.speaks  # what speaks `embeddings` alone has no conversations
    assert endpoint.context_window is None or asked.input_tokens + 50 <= endpoint.context_window
    if asked.budget_left is not None:
        price = PRICES[endpoint.id]
        assert price is not None and price <= asked.budget_left


def _check_team(team: Team | None, endpoint: Endpoint) -> None:
    if team is None:
        return
    for globs, value in (
        (team.allow.endpoints, endpoint.id),
        (team.allow.providers, endpoint.provider.id),
        (team.allow.regions, endpoint.region),
        (team.allow.models, endpoint.model),
    ):
        assert not globs or (value is not None and any(fnmatchcase(value, glob) for glob in globs))


def _check_wishes(wishes: Wishes, endpoint: Endpoint) -> None:
    names = {endpoint.id, endpoint.provider.id}
    assert not wishes.only or names & set(wishes.only)
    assert not names & set(wishes.ignore)
    assert wishes.allow_fallbacks or not wishes.order or names & set(wishes.order)
    assert wishes.data_collection == "allow" or not endpoint.data_collection
    assert not wishes.zdr or endpoint.zdr
    assert not wishes.enforce_distillable_text or endpoint.distillable
    assert not wishes.quantizations or endpoint.quantization in wishes.quantizations
