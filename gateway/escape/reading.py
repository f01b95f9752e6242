"""The plan of an escape out of the database: what was recorded, judged by the code that routes real requests."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import Engine

from gateway.accounting.catalogue_desk import prices_in_force
from gateway.accounting.prices import Prices, total_input
from gateway.config.model import Configuration, Endpoint, Match, Route
from gateway.escape.plan import EscapePlan, Latency, Obstacle, Served, find_pairs, make_escape_plan
from gateway.routing.explanation import read_decision
from gateway.routing.facts import Facts
from gateway.routing.plan import Dropped
from gateway.routing.planner import Planner
from gateway.store.escapes import ServedRow, latency_of, read_served
from gateway.types import Outlook, Usage


def plan_escape(
    engine: Engine, configuration: Configuration, source: str, target: str, since: datetime, until: datetime
) -> EscapePlan:
    """From what was recorded of `since` <= t < `until`. Takes about 0.1 ms a request.

    Raises `InvalidRequest` for ids that are no endpoints, `StoreError`.
    """
    pairs = find_pairs(configuration, source, target)
    sources = [pair.source for pair in pairs]
    found = latency_of(engine, [*sources, *(pair.target for pair in pairs)], since, until)
    prices = prices_in_force(engine, configuration)
    rules = Rules(configuration, prices)

    def price(endpoint: Endpoint, model: str, at: datetime, usage: Usage) -> Decimal | None:
        priced = prices.rates_for(endpoint, model, at, total_input(usage))
        return None if priced is None else priced.cost(usage)

    return make_escape_plan(
        configuration,
        source,
        target,
        served(engine, configuration, sources, since, until),
        since=since,
        until=until,
        judge=rules.judge,
        price=price,
        latency={endpoint: Latency(**figures) for endpoint, figures in found.items()},
    )


def served(
    engine: Engine, configuration: Configuration, sources: list[str], since: datetime, until: datetime
) -> Iterator[Served]:
    for row in read_served(engine, sources, since, until):
        facts = _recorded_facts(row)
        yield Served(
            request_id=row.request_id,
            at=row.started_at,
            endpoint=row.endpoint,
            policy=row.policy,
            project=row.project,
            facts=_facts_of_row(row, configuration.endpoints[row.endpoint]) if facts is None else facts,
            usage=row.usage,
            cost_usd=row.cost_usd,
            is_whole=facts is not None,
        )


def _recorded_facts(row: ServedRow) -> Facts | None:
    if row.decision is None:
        return None
    try:
        return read_decision(row.decision).facts
    except msgspec.DecodeError:  # written by another version
        return None


def _facts_of_row(row: ServedRow, source: Endpoint) -> Facts:
    return Facts(
        model=row.model,
        stream=row.stream,
        input_tokens=total_input(row.usage),
        needs=frozenset({"stream"}) if row.stream else frozenset(),
        team=row.team,
        key_id=row.key_id,
        project=row.project,
        domain=row.domain,
        wire=source.speaks[0],
    )


class Rules:
    """The rules of routing, asked about one endpoint alone."""

    def __init__(self, configuration: Configuration, prices: Prices) -> None:
        self._configuration = configuration
        self._prices = prices
        self._today = Planner(configuration, prices.quote)
        self._alone: dict[str, Planner] = {}

    def judge(self, facts: Facts, policy: str, target: Endpoint) -> Obstacle | None:
        """As `plan.Judge`. A policy that exists no more is replaced by that of the route which matches today."""
        if policy in self._configuration.policies:
            route: Route | None = Route(name="", match=Match(), policy=policy)
        else:
            route = self._today.match(facts)
        if route is None:
            return "route", "no route matches it today"
        # What a budget had left then says nothing of the time after the move.
        facts = replace(facts, budget_left=None)
        plan = self._only(target).plan(route, facts, outlook=Outlook(), now=0.0, rng=Random(0))
        if plan.candidates:
            return None
        return describe_obstacle(plan.dropped[0], facts, route.policy, target)

    def _only(self, target: Endpoint) -> Planner:
        """Of the configuration with `target` in the place of all endpoints of each policy, and usable."""
        known = self._alone.get(target.id)
        if known is None:
            usable = replace(target, provider=replace(target.provider, missing=None))
            alone: dict[str, Any] = {
                "endpoints": (target.id,),
                "select": "priority",
                "weights": {},
                "sticky": "none",
                "canaries": (),
                "shadow": None,
                "fallback": None,
            }
            configuration = replace(
                self._configuration,
                endpoints={**self._configuration.endpoints, target.id: usable},
                policies={id: replace(policy, **alone) for id, policy in self._configuration.policies.items()},
            )
            known = self._alone[target.id] = Planner(configuration, self._prices.quote)
        return known


def describe_obstacle(dropped: Dropped, facts: Facts, policy: str, target: Endpoint) -> Obstacle:
    """The feature that is in the way, in the same words for all requests that have it."""
    match dropped.reason:
        case "capability":
            feature = ", ".join(sorted(facts.needs - target.capabilities))
        case "protocol":
            feature = facts.native_feature or f"`{facts.surface}`"
        case "context_window":
            feature = f"more than {target.context_window} tokens of context"
        case "data_class":
            feature = f"data of the class `{facts.data_class}`"
        case "wish":
            feature = "the client's own `provider` wishes"
        case "allow":
            feature = f"not on the list of team `{facts.team}`"
        case "require":
            feature = dropped.detail
        case reason:
            feature = f"`{reason}` of policy `{policy}`"
    return dropped.reason, feature
