"""What a client is told when constraints leave nobody, from the plan to the words."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.model import Allow, Limits, Team
from gateway.errors import GatewayError, InvalidRequest, NotFound, PermissionDenied, RateLimited
from gateway.routing.refusal import explain_no_candidates
from gateway.routing.wishes import Wishes
from gateway.types import EndpointHealth
from tests.routing.test_plan import configuration, facts, plan

COSTS = {"a": Decimal("0.3"), "b": Decimal("0.4")}
HEALTH = {name: EndpointHealth(ttft=2.0, seconds_per_token=0.1) for name in "ab"}


EU = {"require": {"region": ("eu",)}}
POLICY, WISHES = (PermissionDenied, "policy_violation"), (NotFound, "no_endpoint_for_wishes")
BUDGET = (RateLimited, "budget_exceeded")


def refuse(policy: dict[str, Any] | None = None, team: Team | None = None, **asked: Any) -> GatewayError:
    chosen = configuration(policy or {}, a={"context_window": 1000}, b={"context_window": 1000})
    if team is not None:
        chosen = replace(chosen, teams={team.id: team})
    made = plan(chosen, facts(**asked), costs=COSTS, health=HEALTH)
    assert made.candidates == ()
    return explain_no_candidates(made)


def of(policy: dict[str, Any] | None = None, **asked: Any) -> Callable[[], GatewayError]:
    return partial(refuse, policy, **asked)


def limits(**fields: Any) -> dict[str, Any]:
    return {"limits": Limits(**fields)}


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        (of(EU), POLICY, "requires eu"),
        (of(data_class="health"), POLICY, "data of the class `health`"),
        (of(team=Team(id="t", allow=Allow(providers=("q",)))), POLICY, "team `t` may not use the provider `p`"),
        (of(limits(max_cost_usd=Decimal("0.1"))), POLICY, "`limits.max_cost_usd`, 0.1 USD"),
        (of(limits(max_ttft=0.001)), POLICY, "`limits.max_ttft`, 0.001 s"),
        (of(limits(min_tokens_per_second=5000)), POLICY, "`limits.min_tokens_per_second`, 5000"),
        (of(EU, wishes=Wishes(only=("a",))), POLICY, "requires eu"),
        (of(budget_left=Decimal("0.25")), BUDGET, "0.25 USD are left"),
        (of(budget_left=Decimal(-1)), BUDGET, "0 USD are left"),
        (of(wishes=Wishes(only=("azure",))), WISHES, "`provider.only` names `azure`"),
        (of(wishes=Wishes(zdr=True)), WISHES, "`provider.zdr`"),
        (of(wishes=Wishes(max_price=(None, None, Decimal(0)))), WISHES, "`provider.max_price.request`"),
        (of(input_tokens=5000), (InvalidRequest, "context_length_exceeded"), "window is 1000"),
        (of(needs=frozenset({"seed"})), (InvalidRequest, "unsupported_by_endpoints"), "cannot do seed"),
    ],
)
def test_the_refusal_names_the_constraint(
    asked: Callable[[], GatewayError], kind: tuple[type[GatewayError], str], words: str
) -> None:
    error = asked()
    assert (type(error), error.code) == kind
    assert 400 <= error.status < 500
    assert words in error.message
    assert "`a`" in error.message and "`b`" in error.message


def test_a_wish_is_the_fields_fault() -> None:
    assert refuse(wishes=Wishes(ignore=("p",))).param == "provider"


def test_a_mixture_of_what_requests_cannot_do_is_400() -> None:
    chosen = configuration(a={"context_window": 10}, b={"capabilities": frozenset()})
    error = explain_no_candidates(plan(chosen, facts(needs=frozenset({"tools"}))))
    assert (error.status, error.code) == (400, "context_length_exceeded")
