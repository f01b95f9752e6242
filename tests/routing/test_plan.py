"""Plans: which route holds, which endpoints are dropped and why, and in what order the others are tried."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from gateway.config.model import Configuration, Endpoint, Limits, Match, Policy, Provider, Route
from gateway.config.rows import PLAIN, Row
from gateway.routing.facts import Facts
from gateway.routing.plan import Plan, make_plan, match_route
from gateway.types import EndpointHealth

ROW = Row(
    title="P",
    speaks=("chat",),
    capabilities=frozenset({"stream", "tools", "json_schema", "vision", "audio", "files"}),
    source="https://p",
)
PROVIDERS = {
    id: Provider(id=id, adapter="openai", row=ROW, dialect=PLAIN, base_url=f"http://{id}", missing=missing)
    for id, missing in (("p", None), ("q", None), ("keyless", "`K` is not set"))
}


def facts(**fields: Any) -> Facts:
    values: dict[str, Any] = dict(
        model="gpt-mini", stream=False, input_tokens=100, output_limit=50, needs=frozenset(), team="t", key_id="k"
    )
    return Facts(**{**values, **fields})


def configuration(policy: Mapping[str, Any] | None = None, **endpoints: Mapping[str, Any]) -> Configuration:
    row = {"capabilities": ROW.capabilities, "speaks": ROW.speaks}
    named = {
        id: Endpoint(
            id=id,
            provider=PROVIDERS[fields.get("provider", "p")],
            model="m",
            **{**row, **_without_provider(fields)},
        )
        for id, fields in (endpoints or {"a": {}, "b": {}, "c": {}}).items()
    }
    return Configuration(
        version="v1",
        providers=PROVIDERS,
        endpoints=named,
        routes=(Route(name="r", match=Match(), policy="main"),),
        policies={"main": Policy(id="main", endpoints=tuple(named), **(policy or {}))},
    )


def _without_provider(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "provider"}


def plan(
    chosen: Configuration,
    asked: Facts | None = None,
    *,
    health: Mapping[str, EndpointHealth] | None = None,
    costs: Mapping[str, Decimal | None] | None = None,
    now: float = 100.0,
    seed: int = 1,
) -> Plan:
    return make_plan(
        chosen,
        chosen.routes[0],
        asked or facts(),
        health=health or {},
        quote=lambda endpoint, _: (costs or {}).get(endpoint.id),
        now=now,
        rng=Random(seed),
    )


def order(made: Plan) -> list[str]:
    return [candidate.endpoint for candidate in made.candidates]


def reasons(made: Plan) -> dict[str, str]:
    return {dropped.endpoint: dropped.reason for dropped in made.dropped}


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
        (Match(model=("gpt-*",), team=("other",)), facts(), False),  # all must hold
    ],
)
def test_each_condition_of_a_route(match: Match, asked: Facts, holds: bool) -> None:
    chosen = configuration()
    only = Configuration(
        version="v",
        providers={},
        endpoints={},
        routes=(Route(name="this", match=match, policy="main"),),
        policies=chosen.policies,
    )
    assert (match_route(only, asked) is not None) is holds


def test_the_first_route_wins() -> None:
    routes = tuple(
        Route(name=name, match=Match(model=(glob,)), policy="main")
        for name, glob in (("no", "claude"), ("first", "gpt-*"), ("second", "*"))
    )
    chosen = Configuration(version="v", providers={}, endpoints={}, routes=routes, policies={})
    found = match_route(chosen, facts())
    assert found is not None and found.name == "first"


# Drops


def test_an_endpoint_without_its_key_is_dropped() -> None:
    made = plan(configuration(a={"provider": "keyless"}, b={}))
    assert (order(made), reasons(made)) == (["b"], {"a": "missing_key"})
    assert "`K` is not set" in made.dropped[0].detail


@pytest.mark.parametrize(
    ("require", "left"),
    [
        ({"region": ("eu",)}, ["a"]),
        ({"region": ("eu", "us")}, ["a", "b"]),
        ({"provider": ("q",)}, ["b"]),
        ({"region": ("eu",), "provider": ("q",)}, []),
    ],
)
def test_a_requirement_fails_closed(require: dict[str, tuple[str, ...]], left: list[str]) -> None:
    made = plan(configuration({"require": require}, a={"region": "eu"}, b={"region": "us", "provider": "q"}, c={}))
    assert order(made) == left
    assert set(reasons(made).values()) == {"require"}
    assert set(reasons(made)) == {"a", "b", "c"} - set(left)


def test_what_an_endpoint_cannot_do_is_not_asked_of_it() -> None:
    chosen = configuration(
        a={"capabilities": frozenset({"tools"})}, b={"capabilities": frozenset({"tools", "vision", "stream"})}
    )
    made = plan(chosen, facts(needs=frozenset({"vision", "tools"})))
    assert (order(made), reasons(made)) == (["b"], {"a": "capability"})
    assert made.dropped[0].detail == "cannot do vision"


def test_what_one_protocol_alone_has_stays_within_it() -> None:
    chosen = configuration(a={}, b={"speaks": ("chat", "responses")}, c={"speaks": ("responses",)})
    asked = facts(surface="responses", wire="responses", native_feature="the tool `web_search`")
    made = plan(chosen, asked)
    assert (order(made), reasons(made)) == (["b", "c"], {"a": "protocol"})
    assert made.dropped[0].detail == "the request has the tool `web_search`, which only the `responses` protocol has"
    assert order(plan(chosen, facts(surface="responses", wire="responses"))) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("surface", "wire", "speaks", "serves"),
    [
        ("messages", "messages", ("chat",), True),
        ("completions", "completions", ("chat",), True),
        ("completions", "completions", ("completions",), True),
        ("chat", "chat", ("completions",), False),
        ("chat", "chat", ("embeddings",), False),
        ("count_tokens", "messages", ("embeddings",), True),
    ],
)
def test_surfaces_and_the_protocols_that_serve_them(surface: Any, wire: Any, speaks: Any, serves: bool) -> None:
    made = plan(configuration(a={"speaks": speaks}), facts(surface=surface, wire=wire))
    assert reasons(made) == ({} if serves else {"a": "protocol"})


def test_state_that_one_provider_keeps_needs_one_provider() -> None:
    asked = facts(surface="responses", wire="responses", kept_state="previous_response_id", native_feature="x")
    speaks = {"speaks": ("responses",)}
    assert order(plan(configuration(a=speaks, b=speaks, c={}), asked)) == ["a", "b"]
    made = plan(configuration(a=speaks, b={**speaks, "provider": "q"}, c={}), asked)
    assert (order(made), reasons(made)) == ([], {"a": "kept_state", "b": "kept_state", "c": "protocol"})


def test_a_window_that_is_too_small_is_dropped() -> None:
    chosen = configuration(a={"context_window": 100}, b={"context_window": 101}, c={})
    made = plan(chosen, facts(input_tokens=101))
    assert (order(made), reasons(made)) == (["b", "c"], {"a": "context_window"})


def test_a_price_ceiling_drops_what_is_dearer_or_unknown() -> None:
    limits = Limits(max_cost_usd=Decimal("0.05"))
    costs = {"a": Decimal("0.05"), "b": Decimal("0.050001"), "c": None}
    made = plan(configuration({"limits": limits}), costs=costs)
    assert (order(made), reasons(made)) == (["a"], {"b": "max_cost", "c": "max_cost"})
    assert "unknown" in made.dropped[1].detail


def test_an_absurd_cost_can_be_told() -> None:
    limits = Limits(max_cost_usd=Decimal("0.05"))
    made = plan(configuration({"limits": limits}, a={}), costs={"a": Decimal(10) ** 40})
    assert reasons(made) == {"a": "max_cost"}


def test_without_a_ceiling_an_unknown_price_is_no_reason() -> None:
    assert order(plan(configuration(), costs={"a": Decimal(1)})) == ["a", "b", "c"]


def test_a_latency_ceiling_drops_what_is_known_to_be_slower() -> None:
    health = {"a": EndpointHealth(ttft=3.1), "b": EndpointHealth(ttft=3.0)}
    made = plan(configuration({"limits": Limits(max_ttft=3.0)}), health=health)
    assert (order(made), reasons(made)) == (["b", "c"], {"a": "max_ttft"})


def test_the_first_reason_is_given_and_every_endpoint_is_accounted_for() -> None:
    chosen = configuration(
        {"require": {"region": ("eu",)}, "limits": Limits(max_cost_usd=Decimal(0))},
        a={"provider": "keyless", "region": "us"},
        b={"region": "us", "context_window": 1},
        c={"region": "eu", "context_window": 1},
        d={"region": "eu"},
    )
    made = plan(chosen)
    assert reasons(made) == {"a": "missing_key", "b": "require", "c": "context_window", "d": "max_cost"}
    assert made.candidates == ()


# Order


def test_ejected_endpoints_come_last_in_the_policys_order() -> None:
    health = {
        "a": EndpointHealth(ejected_until=100.1),
        "b": EndpointHealth(ejected_until=100.0),  # just over
        "c": EndpointHealth(ejected_until=500.0),
        "d": EndpointHealth(),
    }
    made = plan(configuration(a={}, b={}, c={}, d={}), health=health)
    assert order(made) == ["b", "d", "a", "c"]
    assert [candidate.ejected for candidate in made.candidates] == [False, False, True, True]


@pytest.mark.parametrize("select", ["priority", "cost", "latency", "balanced", "weighted"])
def test_ejection_goes_before_every_selection(select: str) -> None:
    health = {"a": EndpointHealth(ttft=0.01, ejected_until=101.0), "b": EndpointHealth(ttft=9.0)}
    costs = {"a": Decimal("0.01"), "b": Decimal(1)}
    made = plan(configuration({"select": select}, a={}, b={}), health=health, costs=costs)
    assert order(made) == ["b", "a"]


def test_all_ejected_is_still_a_plan() -> None:
    health = {name: EndpointHealth(ejected_until=200.0) for name in "abc"}
    assert order(plan(configuration(), health=health)) == ["a", "b", "c"]


def test_candidates_carry_what_is_expected_of_them() -> None:
    made = plan(configuration(a={}), health={"a": EndpointHealth(ttft=0.7)}, costs={"a": Decimal("0.02")})
    assert (made.candidates[0].expected_cost, made.candidates[0].expected_ttft) == (Decimal("0.02"), 0.7)
    assert (made.policy_version, made.route.name, made.policy.id) == ("v1", "r", "main")


@pytest.mark.parametrize("select", ["priority", "cost", "latency", "balanced", "weighted"])
def test_the_same_input_makes_the_same_plan(select: str) -> None:
    chosen = configuration({"select": select}, **{name: {} for name in "abcdefgh"})
    health = {"a": EndpointHealth(ttft=2.0), "b": EndpointHealth(ejected_until=101.0)}
    costs = {"c": Decimal(1), "d": Decimal(2)}
    made = [plan(chosen, health=health, costs=costs, seed=5) for _ in range(3)]
    assert made[0] == made[1] == made[2]
    assert health == {"a": EndpointHealth(ttft=2.0), "b": EndpointHealth(ejected_until=101.0)}
    if select == "weighted":
        assert len({tuple(order(plan(chosen, health=health, costs=costs, seed=seed))) for seed in range(20)}) > 10
