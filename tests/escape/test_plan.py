"""The plan of an escape: from rows and decisions in a real PostgreSQL, judged by the rules of routing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, insert

from gateway.accounting.prices import PriceBook
from gateway.config.model import Configuration
from gateway.errors import InvalidRequest
from gateway.escape.plan import EscapePlan, Pair, find_pairs
from gateway.escape.reading import plan_escape
from gateway.escape.report import describe_plan, plan_summary, suggest_edit
from gateway.routing.explanation import describe_decision
from gateway.routing.facts import Facts
from gateway.routing.planner import Planner
from gateway.routing.wishes import Wishes
from gateway.store.tables import decisions, usage_events
from gateway.types import Outlook
from tests.escape.conftest import START

PLAIN = {
    "model": "gpt",
    "stream": False,
    "input_tokens": 100,
    "needs": frozenset(),
    "team": "shop",
    "key_id": "key-1",
    "at": START.timestamp(),
}


class Traffic:
    """Requests that `a` served, decided by the real rules and put into the ledger."""

    def __init__(self, engine: Engine, configuration: Configuration, make: Callable[..., dict[str, Any]]) -> None:
        self._engine, self._make = engine, make
        self._planner = Planner(configuration, PriceBook().quote)
        self._number = 0

    def add(self, count: int = 1, *, decided: bool = True, row: dict[str, Any] | None = None, **facts: Any) -> None:
        for _ in range(count):
            self._number += 1
            request_id = f"req-{self._number}"
            found = Facts(**{**PLAIN, **facts})
            fields = {
                "request_id": request_id,
                "started_at": START + timedelta(seconds=self._number),
                "endpoint": "a",
                "team": found.team,
                "project": found.project,
                "model": found.model,
                "stream": found.stream,
                "policy": "main",
                "input_tokens": 1000,
                "output_tokens": 500,
                "cost_usd": Decimal("0.002"),
                "ttft_ms": 100.0,
                **(row or {}),
            }
            with self._engine.begin() as connection:
                connection.execute(insert(usage_events), [self._make(**fields)])
                if decided:
                    connection.execute(insert(decisions), [self._decision(request_id, found)])

    def _decision(self, request_id: str, facts: Facts) -> dict[str, Any]:
        route = self._planner.match(facts)
        assert route is not None
        plan = self._planner.plan(route, facts, outlook=Outlook(), now=0.0, rng=Random(0))
        body = msgspec.json.decode(describe_decision(plan, facts, request_id))
        names = ("request_id", "team", "route", "policy", "policy_version", "endpoint", "refusal")
        return {**{name: body[name] for name in names}, "at": START, "body": body}


@pytest.fixture
def traffic(engine: Engine, configuration: Configuration, usage_event: Callable[..., dict[str, Any]]) -> Traffic:
    return Traffic(engine, configuration, usage_event)


def plan(engine: Engine, configuration: Configuration, source: str = "a", target: str = "b") -> EscapePlan:
    return plan_escape(engine, configuration, source, target, START, START + timedelta(days=1))


def test_what_moves_and_what_it_costs(engine: Engine, configuration: Configuration, traffic: Traffic) -> None:
    traffic.add(8)
    traffic.add(2, row={"cost_usd": None, "price_status": "unpriced"})
    traffic.add(1, row={"started_at": START - timedelta(days=2)})  # too old
    traffic.add(1, row={"endpoint": "c"})
    traffic.add(1, row={"status": "error"})
    traffic.add(1, row={"tags": {"hatchway.role": "shadow"}})
    found = plan(engine, configuration)
    assert (found.requests, found.movable, found.share, found.breaks) == (10, 10, 1.0, [])
    costs = found.costs
    # 1,000 in at 2 USD and 500 out at 4 USD per million: 0.004 USD each, where 0.002 were paid.
    assert (costs.requests, costs.now_usd, costs.then_usd) == (8, Decimal("0.016"), Decimal("0.032"))
    assert (costs.ratio, costs.unpriced_now, costs.unpriced_then) == (2.0, 2, 0)
    assert found.latency["a"].ttft_p50 == 100.0
    assert "b" not in found.latency
    assert any("latency is not known" in note for note in found.notes)
    described = msgspec.json.decode(msgspec.json.encode(describe_plan(found)))
    assert Decimal(described["costs"]["then_usd"]) == Decimal("0.032")
    assert described["movable_share"] == 1.0
    assert any("10 requests were served by a; 10 of them (100 %) could move" in line for line in plan_summary(found))


@pytest.mark.parametrize(
    ("facts", "reason", "words"),
    [
        ({"needs": frozenset({"vision", "tools"})}, "capability", "vision"),
        ({"native_feature": "the tool `web_search`", "wire": "responses"}, "protocol", "web_search"),
        ({"kept_state": "previous_response_id"}, "kept_state", "previous_response_id"),
        ({"input_tokens": 5000}, "context_window", "1000 tokens"),
        ({"data_class": "secret"}, "data_class", "secret"),
        ({"wishes": Wishes(only=("a",))}, "wish", "wishes"),
    ],
)
def test_what_would_break(
    engine: Engine, configuration: Configuration, traffic: Traffic, facts: dict[str, Any], reason: str, words: str
) -> None:
    traffic.add(3)
    traffic.add(5, team="vision", project="app", **facts)
    found = plan(engine, configuration)
    assert (found.requests, found.movable) == (8, 3)
    (one,) = found.breaks
    assert (one.reason, one.requests, one.teams, one.projects) == (reason, 5, {"vision": 5}, {"app": 5})
    assert words in one.feature
    assert one.models == {"gpt": 5}
    assert one.examples == ["req-4", "req-5", "req-6"]
    assert [(seat.team, seat.requests, seat.movable) for seat in found.seats] == [("vision", 5, 0), ("shop", 3, 3)]


def test_requirements_of_the_policy(engine: Engine, configuration: Configuration, traffic: Traffic) -> None:
    traffic.add(2, model="european", row={"policy": "europe"})
    traffic.add(2, row={"policy": "one that was removed"})
    found = plan(engine, configuration)
    (one,) = found.breaks
    assert (one.reason, one.requests, found.movable) == ("require", 2, 2)
    assert "eu" in one.feature


def test_translation_and_models_asked_for(engine: Engine, configuration: Configuration, traffic: Traffic) -> None:
    traffic.add(3, wire="chat")
    traffic.add(1, wire="messages", surface="messages")
    found = plan(engine, configuration, target="c")
    assert (found.movable, found.translated) == (4, {"chat": 3})
    found = plan(engine, configuration, target="priceless")
    assert found.costs.unpriced_then == 4
    assert found.costs.requests == 0
    assert any("no price is known" in note for note in found.notes)
    assert "cost: unknown, no request has a price at both" in list(plan_summary(found))


def test_rows_without_decisions_are_said_to_be_so(
    engine: Engine, configuration: Configuration, traffic: Traffic
) -> None:
    traffic.add(4, decided=False, stream=True)
    found = plan(engine, configuration)
    assert (found.requests, found.movable, found.without_facts) == (4, 4, 4)
    assert any("ledger rows alone" in note for note in found.notes)


def test_a_target_whose_key_is_not_set_is_judged_as_if_it_were(
    engine: Engine, configuration: Configuration, traffic: Traffic
) -> None:
    traffic.add(2)
    found = plan(engine, configuration, target="keyless")
    assert found.movable == 2
    assert any("UNSET_API_KEY" in note for note in found.notes)


def test_nothing_recorded(engine: Engine, configuration: Configuration) -> None:
    found = plan(engine, configuration)
    assert (found.requests, found.share) == (0, None)
    assert list(plan_summary(found)) == ["a served no request in this time: nothing can be said"]


def test_endpoints_meant_by_providers(configuration: Configuration) -> None:
    assert find_pairs(configuration, "a", "claude") == [Pair("a", "c")]
    assert find_pairs(configuration, "claude", "a") == [Pair("c", "a")]
    assert find_pairs(configuration, "a2", "two") == [Pair("a2", "b")]  # the same model
    for source, target in (("a", "two"), ("nobody", "b"), ("a", "nobody"), ("a", "a")):
        with pytest.raises(InvalidRequest, match="hint:"):
            find_pairs(configuration, source, target)


def test_the_edit_that_makes_it_last(configuration: Configuration) -> None:
    assert suggest_edit(configuration, (Pair("a", "b"),)) == [
        "policies.main.endpoints: [a, c] -> [b, c]",
        "policies.europe.endpoints: [a, c, a2] -> [b, c, a2]",
    ]
    assert suggest_edit(configuration, (Pair("a", "c"),))[0] == "policies.main.endpoints: [a, c] -> [c]"
