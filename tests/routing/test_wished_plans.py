"""Plans of clients with wishes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.model import (
    AS_ASKED,
    Canary,
    Configuration,
    Policy,
)
from gateway.config.rows import PLAIN
from gateway.routing.plan import Plan
from gateway.routing.wishes import Wishes
from gateway.types import EndpointHealth, Shift
from tests.routing.test_plan import PROVIDERS, configuration, facts, order, placed, plan, reasons, with_policies

# Wishes


def wish(chosen: Configuration, wishes: Wishes, **rest: Any) -> Plan:
    asked = {name: rest.pop(name) for name in ("wire", "parameters") if name in rest}
    return plan(chosen, facts(stream=True, wishes=wishes, **asked), **rest)


@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        (Wishes(only=("b",)), ["b"]),
        (Wishes(only=("q", "a")), ["a", "c"]),
        (Wishes(ignore=("q", "a")), ["b"]),
        (Wishes(only=("nobody",)), []),
        (Wishes(order=("c", "b")), ["c", "b", "a"]),
        (Wishes(order=("p",)), ["a", "b", "c"]),
        (Wishes(order=("c", "b"), allow_fallbacks=False), ["c", "b"]),
        (Wishes(order=("nobody",), allow_fallbacks=False), []),
        (Wishes(allow_fallbacks=False), ["a"]),
        (Wishes(zdr=True), ["b"]),
        (Wishes(data_collection="deny"), ["c"]),
        (Wishes(enforce_distillable_text=True), ["a"]),
        (Wishes(quantizations=("fp8", "unknown")), ["b", "c"]),
        (Wishes(sort="price"), ["c", "b", "a"]),
        (Wishes(sort="latency"), ["b", "c", "a"]),
        (Wishes(sort="throughput"), ["c", "b", "a"]),
        (Wishes(max_price=(None, None, Decimal("0.2"))), ["b", "c"]),
        (Wishes(preferred_max_latency=1.5), ["b", "c", "a"]),
        (Wishes(preferred_min_throughput=100.0), ["c", "a", "b"]),
    ],
)
def test_each_wish(wishes: Wishes, left: list[str]) -> None:
    chosen = configuration(
        a={"quantization": "int4", "distillable": True},
        b={"zdr": True},
        c={"provider": "q", "quantization": "fp8", "data_collection": False},
    )
    health = {
        "a": EndpointHealth(ttft=2.0, seconds_per_token=0.05),
        "b": EndpointHealth(ttft=0.1, seconds_per_token=0.02),
        "c": EndpointHealth(ttft=0.5, seconds_per_token=0.005),
    }
    costs = {"a": Decimal("0.3"), "b": Decimal("0.2"), "c": Decimal("0.1")}
    made = wish(chosen, wishes, health=health, costs=costs)
    assert order(made) == left
    assert set(reasons(made).values()) <= {"wish"}


def test_wishes_do_not_widen() -> None:
    chosen = configuration({"require": {"region": ("eu",)}}, a={"region": "us"}, b={"region": "eu"})
    made = wish(chosen, Wishes(only=("a",)))
    assert (order(made), reasons(made)) == ([], {"a": "require", "b": "wish"})
    assert order(wish(chosen, Wishes(order=("a",)))) == ["b"]


def test_an_order_brings_no_fallback_before_the_policys_own() -> None:
    chosen = configuration({"endpoints": ("a", "b"), "fallback": "other"}, a={}, b={}, c={}, d={})
    chosen = with_policies(chosen, Policy(id="other", endpoints=("c", "d")))
    assert order(wish(chosen, Wishes(order=("d", "b")))) == ["b", "a", "d", "c"]
    late = {"a": EndpointHealth(ttft=2.0)}
    assert order(wish(chosen, Wishes(preferred_max_latency=1.0), health=late)) == ["b", "a", "c", "d"]


def test_an_unknown_price_is_over_what_the_client_would_pay() -> None:
    made = wish(configuration(), Wishes(max_price=(Decimal(1), None, None)), costs={"a": Decimal(0)})
    assert order(made) == ["a"]


def test_parameters_that_would_be_lost_can_be_refused() -> None:
    picky = replace(PROVIDERS["q"], dialect=replace(PLAIN, unsupported=("top_k",)))
    chosen = configuration(a={}, b={"provider": "q"}, c={"speaks": ("messages",)})
    chosen = replace(chosen, endpoints={**chosen.endpoints, "b": replace(chosen.endpoints["b"], provider=picky)})
    wishes = Wishes(require_parameters=True)
    assert order(wish(chosen, wishes, parameters=frozenset({"top_k"}))) == ["a", "c"]
    assert order(wish(chosen, wishes, parameters=frozenset({"seed"}))) == ["a", "b"]  # c is translated, and has no seed
    assert order(wish(chosen, wishes, parameters=frozenset({"temperature"}))) == ["a", "b", "c"]


def test_a_client_that_orders_or_sorts_does_not_stick_and_is_no_canary() -> None:
    chosen = configuration({"sticky": "session", "canaries": (Canary(endpoint="c", share=1.0),)})
    for number in range(20):
        asked = facts(session=f"s{number}", wishes=Wishes(order=("b",)))
        assert (order(plan(chosen, asked))[0], placed(plan(chosen, asked))) == ("b", "wish")
        asked = facts(session=f"s{number}", wishes=Wishes(sort="price"))
        assert order(plan(chosen, asked, costs={"a": Decimal(1), "b": Decimal(0)}))[0] == "b"
    assert order(plan(chosen, facts(wishes=Wishes(ignore=("b",))))) == ["c", "a"]


def test_an_escape_moves_those_who_order_but_not_those_who_want_nothing_else() -> None:
    shift = Shift(escape_id="e", source="a", target="c", share=1.0)
    chosen = configuration({"endpoints": ("a", "b")})
    assert order(wish(chosen, Wishes(order=("a",)), shifts=(shift,))) == ["c", "a", "b"]
    assert order(wish(chosen, Wishes(only=("a",)), shifts=(shift,))) == ["a"]


def openrouter() -> Configuration:
    row = {"model": AS_ASKED, "provider": "q"}
    chosen = configuration(own={}, open=row)
    provider = replace(PROVIDERS["q"], adapter="openrouter")
    return replace(chosen, endpoints={**chosen.endpoints, "open": replace(chosen.endpoints["open"], provider=provider)})


@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        (Wishes(only=("azure",)), ["open"]),  # a name of OpenRouter's
        (Wishes(only=("azure", "own")), ["own"]),
        (Wishes(only=("open",)), ["open"]),
        (Wishes(ignore=("q",)), ["own"]),
        (Wishes(zdr=True, quantizations=("fp8",)), ["open"]),
    ],
)
def test_what_is_sent_on_to_openrouter_is_upheld_there(wishes: Wishes, left: list[str]) -> None:
    assert order(wish(openrouter(), wishes)) == left


def test_what_is_translated_for_openrouter_is_upheld_here() -> None:
    assert order(wish(openrouter(), Wishes(zdr=True), wire="messages")) == []
