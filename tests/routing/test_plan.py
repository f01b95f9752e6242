"""Plans: which route holds, which endpoints are dropped and why, and in what order the others are tried."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.model import (
    AS_ASKED,
    Allow,
    Configuration,
    Endpoint,
    Limits,
    Match,
    Policy,
    Provider,
    Route,
    Team,
)
from gateway.config.rows import PLAIN, Row
from gateway.routing.facts import Facts
from gateway.routing.plan import Plan
from gateway.routing.planner import Planner
from gateway.routing.prospects import Quote
from gateway.types import EndpointHealth, Outlook, PriceCard, RouteHabits, Shift

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
SELECTS = ["priority", "cost", "latency", "balanced", "weighted"]


def facts(**fields: Any) -> Facts:
    values: dict[str, Any] = dict(
        model="gpt-mini", stream=False, input_tokens=100, output_limit=50, needs=frozenset(), team="t", key_id="k"
    )
    return Facts(**{**values, **fields})


def configuration(policy: Mapping[str, Any] | None = None, **endpoints: Mapping[str, Any]) -> Configuration:
    """One policy, `main`, over all the endpoints, which are of provider `p` unless they say otherwise."""
    row = {"capabilities": ROW.capabilities, "speaks": ROW.speaks, "model": "m"}
    named = {
        id: Endpoint(
            id=id,
            provider=PROVIDERS[fields.get("provider", "p")],
            **{**row, **{name: value for name, value in fields.items() if name != "provider"}},
        )
        for id, fields in (endpoints or {"a": {}, "b": {}, "c": {}}).items()
    }
    return Configuration(
        version="v1",
        providers=PROVIDERS,
        endpoints=named,
        routes=(Route(name="r", match=Match(), policy="main"),),
        policies={"main": Policy(**{"id": "main", "endpoints": tuple(named), **(policy or {})})},
    )


def with_policies(chosen: Configuration, *policies: Policy) -> Configuration:
    return replace(chosen, policies={**chosen.policies, **{policy.id: policy for policy in policies}})


def plan(
    chosen: Configuration,
    asked: Facts | None = None,
    *,
    health: Mapping[str, EndpointHealth] | None = None,
    costs: Mapping[str, Decimal | None] | None = None,
    quote: Quote | None = None,
    habits: RouteHabits | None = None,
    shifts: tuple[Shift, ...] = (),
    now: float = 100.0,
    seed: int = 1,
    rng: Random | None = None,
) -> Plan:
    """`costs`: of the request, by endpoint, whatever its tokens; left out: no price is known."""

    def by_costs(endpoint: Endpoint, model: str, at: float, input_tokens: int) -> PriceCard | None:
        cost = (costs or {}).get(endpoint.id)
        return None if cost is None else PriceCard(0.0, 0.0, 0.0, request=float(cost))

    outlook = Outlook(endpoints=health or {}, routes={} if habits is None else {"r": habits}, version="7")
    return Planner(chosen, quote or by_costs).plan(
        chosen.routes[0],
        asked or facts(),
        outlook=outlook,
        now=now,
        rng=rng or Random(seed),
        shifts=shifts,
        with_costs=True,
    )


def order(made: Plan) -> list[str]:
    return [candidate.endpoint for candidate in made.candidates]


def placed(made: Plan) -> str | None:
    """What put the first candidate there."""
    return made.candidates[0].placed_by


def reasons(made: Plan) -> dict[str, str]:
    return {dropped.endpoint: dropped.reason for dropped in made.dropped}


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
    """It takes the input and what the client asks for; without a limit of output nobody knows more."""
    chosen = configuration(a={"context_window": 150}, b={"context_window": 151}, c={})
    made = plan(chosen, facts(input_tokens=101))
    assert (order(made), reasons(made)) == (["b", "c"], {"a": "context_window"})
    assert order(plan(chosen, facts(input_tokens=150, output_limit=None))) == ["a", "b", "c"]
    assert order(plan(chosen, facts(input_tokens=151, output_limit=-1))) == ["b", "c"]


def test_an_exact_count_goes_before_a_rough_one() -> None:
    chosen = configuration(a={"context_window": 150})
    assert order(plan(chosen, facts(input_tokens=120, counted_tokens=100))) == ["a"]
    assert order(plan(chosen, facts(input_tokens=80, counted_tokens=101))) == []


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        (facts(input_tokens=1000, output_limit=None), True),
        (facts(input_tokens=715, output_limit=None), True),
        (facts(input_tokens=714, output_limit=None), False),
        (facts(input_tokens=1666, output_limit=None), True),
        (facts(input_tokens=1667, output_limit=None), False),
        (facts(input_tokens=100, output_limit=900), True),
        (facts(input_tokens=1000, counted_tokens=990), False),  # it was counted
    ],
)
def test_what_is_near_a_window_is_worth_counting(asked: Facts, needed: bool) -> None:
    """Where a rough count may be wrong by 40%."""
    chosen = configuration(a={"context_window": 1000}, b={})
    planner = Planner(chosen, lambda *_: None)
    assert planner.needs_count(chosen.routes[0], asked) is needed
    assert not Planner(configuration(a={}), lambda *_: None).needs_count(chosen.routes[0], asked)


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


# Constraints that fail closed


@pytest.mark.parametrize(
    ("require", "fields", "left"),
    [
        ({"license": ("mit", "apache-2.0")}, {"license": "apache-2.0"}, True),
        ({"license": ("mit",)}, {"license": "gpl-3.0"}, False),
        ({"license": ("mit",)}, {}, False),
        ({"quantization": ("fp8",)}, {"quantization": "int4"}, False),
        ({"zdr": ("true",)}, {"zdr": True}, True),
        ({"zdr": ("true",)}, {}, False),
        ({"freshness": ("live",)}, {"freshness": "real-time"}, True),
        ({"freshness": ("live",)}, {"freshness": "live"}, True),
        ({"freshness": ("live",)}, {"freshness": "static"}, False),
        ({"freshness": ("static",)}, {}, False),
    ],
)
def test_each_requirement(require: dict[str, tuple[str, ...]], fields: dict[str, Any], left: bool) -> None:
    made = plan(configuration({"require": require}, a=fields))
    assert reasons(made) == ({} if left else {"a": "require"})


def test_classed_data_goes_only_where_it_may() -> None:
    chosen = configuration(
        a={}, b={"data_classes": frozenset({"health", "card"})}, c={"data_classes": frozenset({"x"})}
    )
    made = plan(chosen, facts(data_class="card"))
    assert (order(made), reasons(made)) == (["b"], {"a": "data_class", "c": "data_class"})
    # The team's own class holds beside the one that the request names: a header can narrow, and never widen.
    made = plan(chosen, facts(data_class="x", team_class="card"))
    assert (order(made), reasons(made)) == ([], {"a": "data_class", "b": "data_class", "c": "data_class"})
    assert order(plan(chosen, facts(data_class="health", team_class="card"))) == ["b"]
    assert order(plan(chosen)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("allow", "left"),
    [
        (Allow(), ["a", "b", "c"]),
        (Allow(endpoints=("a", "x*")), ["a"]),
        (Allow(providers=("q",)), ["b"]),
        (Allow(regions=("eu*",)), ["a"]),  # the region of c is not known
        (Allow(models=("open-*",)), ["c"]),
        (Allow(endpoints=("*",), providers=("p",), regions=("us",)), []),
    ],
)
def test_a_team_may_use_what_is_on_its_lists(allow: Allow, left: list[str]) -> None:
    chosen = configuration(a={"region": "eu-west"}, b={"provider": "q", "region": "us"}, c={"model": "open-1"})
    chosen = replace(chosen, teams={"t": Team(id="t", allow=allow)})
    made = plan(chosen)
    assert order(made) == left
    assert set(reasons(made).values()) <= {"allow"}
    assert order(plan(chosen, facts(team="others"))) == ["a", "b", "c"]


def test_a_list_of_models_judges_the_model_that_is_sent_on() -> None:
    chosen = replace(configuration(a={"model": AS_ASKED}), teams={"t": Team(id="t", allow=Allow(models=("gpt-*",)))})
    planner = Planner(chosen, lambda *_: None)
    for _ in range(2):
        for model, left in (("gpt-mini", ["a"]), ("claude", [])):
            made = planner.plan(
                chosen.routes[0], facts(model=model), outlook=Outlook(), now=0.0, rng=Random(1), with_costs=True
            )
            assert order(made) == left


def test_a_ceiling_on_prices_drops_what_is_dearer_or_unknown() -> None:
    limits = Limits(max_price=(Decimal(2), Decimal(8)))
    rates = {"a": (2.0, 8.0), "b": (2.01, 1.0), "c": (1.0, 8.01), "d": None}

    def quote(endpoint: Endpoint, *_: object) -> PriceCard | None:
        known = rates[endpoint.id]
        return None if known is None else PriceCard(*known, cache_read=0.0)

    made = plan(configuration({"limits": limits}, a={}, b={}, c={}, d={}), quote=quote)
    assert (order(made), reasons(made)) == (["a"], {"b": "max_price", "c": "max_price", "d": "max_price"})
    assert (
        "`limits.max_price.input`" in made.dropped[0].detail and "`limits.max_price.output`" in made.dropped[1].detail
    )


def test_a_floor_of_throughput_drops_what_is_known_to_be_slower() -> None:
    health = {"a": EndpointHealth(seconds_per_token=0.051), "b": EndpointHealth(seconds_per_token=0.05)}
    made = plan(configuration({"limits": Limits(min_tokens_per_second=20.0)}), health=health)
    assert (order(made), reasons(made)) == (["b", "c"], {"a": "min_throughput"})
    assert "19.6" in made.dropped[0].detail


def test_a_hard_budget_leaves_what_it_pays_for() -> None:
    costs = {"a": Decimal("0.02"), "b": Decimal("0.03"), "c": None, "d": Decimal(0)}
    chosen = configuration(a={}, b={}, c={}, d={})
    made = plan(chosen, facts(budget_left=Decimal("0.02")), costs=costs)
    assert (order(made), reasons(made)) == (["a", "d"], {"b": "budget", "c": "budget"})
    for spent in (Decimal(0), Decimal(-3)):
        assert order(plan(chosen, facts(budget_left=spent), costs=costs)) == ["d"]
    assert order(plan(chosen, facts(budget_left=None), costs=costs)) == ["a", "b", "c", "d"]


# State that one provider keeps


def test_kept_state_stays_with_the_policys_provider() -> None:
    speaks = {"speaks": ("responses",)}
    chosen = configuration(
        {"endpoints": ("a",), "fallback": "other"}, a=speaks, b={**speaks, "provider": "q"}, c=speaks
    )
    chosen = with_policies(chosen, Policy(id="other", endpoints=("b", "c")))
    asked = facts(surface="responses", wire="responses", kept_state="previous_response_id")
    shift = Shift(escape_id="e", source="a", target="b", share=1.0)
    made = plan(chosen, asked, shifts=(shift,))
    assert (order(made), reasons(made), made.shift) == (["a", "c"], {"b": "kept_state"}, None)


# Order


def test_ejected_endpoints_come_last_the_soonest_to_return_first() -> None:
    health = {
        "a": EndpointHealth(ejected_until=600.0),
        "b": EndpointHealth(ejected_until=100.0),  # just over
        "c": EndpointHealth(ejected_until=500.0),
        "d": EndpointHealth(),
    }
    made = plan(configuration(a={}, b={}, c={}, d={}), health=health)
    assert order(made) == ["b", "d", "c", "a"]
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


# Fallback policies


def test_the_endpoints_of_a_fallback_come_after_the_policys_own() -> None:
    chosen = configuration({"endpoints": ("b", "a"), "fallback": "other"}, a={}, b={}, c={}, d={}, e={})
    other = Policy(id="other", endpoints=("c", "a", "d"), select="cost", fallback="last")
    chosen = with_policies(chosen, other, Policy(id="last", endpoints=("e",), fallback="main"))
    costs = {"a": Decimal(3), "b": Decimal(9), "c": Decimal(2), "d": Decimal(1)}
    made = plan(chosen, costs=costs)
    assert order(made) == ["b", "a", "d", "c", "e"]
    assert [one.placed_by for one in made.candidates] == [None, None, "fallback", "fallback", "fallback"]
    ejected = {"b": EndpointHealth(ejected_until=200.0), "d": EndpointHealth(ejected_until=200.0)}
    assert order(plan(chosen, costs=costs, health=ejected)) == ["a", "c", "e", "b", "d"]


def test_what_a_policy_requires_and_limits_holds_in_its_fallback() -> None:
    chosen = configuration(
        {
            "endpoints": ("a",),
            "require": {"region": ("eu",)},
            "limits": Limits(max_cost_usd=Decimal("0.5")),
            "fallback": "other",
        },
        a={"region": "us"},
        b={"region": "us"},
        c={"region": "eu"},
        d={"region": "eu", "license": "mit"},
        e={"region": "eu", "license": "mit"},
    )
    other = Policy(id="other", endpoints=("b", "c", "d", "e"), require={"license": ("mit",)})
    made = plan(with_policies(chosen, other), costs={"c": Decimal(0), "d": Decimal(1), "e": Decimal("0.1")})
    assert order(made) == ["e"]
    assert reasons(made) == {"a": "require", "b": "require", "c": "require", "d": "max_cost"}
