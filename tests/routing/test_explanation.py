"""A decision as it is kept, described and told in a header."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any

import msgspec
import pytest

from gateway.accounting.prices import PriceBook
from gateway.routing.explanation import (
    MAX_DECISION,
    MAX_HEADER,
    decision_header,
    describe,
    describe_decision,
    describe_plan,
    read_decision,
)
from gateway.routing.facts import Facts
from gateway.routing.plan import Dropped, Plan
from gateway.routing.planner import Planner
from gateway.routing.wishes import Wishes
from gateway.types import Candidate, Outlook, Shift
from tests.recorded_traffic import configuration, facts

BOTH = configuration({"endpoints": ["dear", "cheap"], "require": {"region": ["eu"]}})


def decided(asked: Facts) -> Plan:
    planner = Planner(BOTH, PriceBook().quote)
    route = planner.match(asked)
    assert route is not None
    return planner.plan(route, asked, outlook=Outlook(version="v7"), now=0.0, rng=Random(0), with_costs=True)


EVERYTHING: dict[str, Any] = {
    "counted_tokens": 990,
    "output_limit": 300,
    "choices": 2,
    "surface": "messages",
    "wire": "messages",
    "native_feature": "`thinking`",
    "kept_state": "`container`",
    "domain": "finance",
    "complexity": "complex",
    "project": "checkout",
    "session": "s-1",
    "prefix": "0123456789abcdef",
    "tags": {"env": "prod"},
    "data_class": "secret",
    "team_class": "internal",
    "wishes": Wishes(order=("a",), max_price=(Decimal("1.5"), None, None), sort="price"),
    "parameters": frozenset({"seed"}),
    "priority": 7,
    "budget_left": Decimal("12.50"),
}


def test_all_that_routing_reads_comes_back_and_no_header() -> None:
    asked = facts(**EVERYTHING, headers={"authorization": "Bearer secret-of-the-client"})
    unset = {name for name in Facts.__struct_fields__ if getattr(asked, name) == getattr(facts(), name)}
    assert unset == {"model", "stream", "input_tokens", "needs", "team", "key_id", "at"}  # no field is forgotten here
    content = describe_decision(decided(asked), asked, "req_1")
    assert b"secret-of-the-client" not in content and b"\n" not in content
    back = read_decision(content).facts
    assert msgspec.structs.asdict(back) == {**msgspec.structs.asdict(asked), "headers": {}}


def test_the_plan_comes_back() -> None:
    asked = facts()
    plan = decided(asked)
    decision = read_decision(describe_decision(plan, asked, "req_1"))
    assert decision.candidates == plan.candidates and decision.dropped == plan.dropped
    assert [one.endpoint for one in decision.candidates] == ["cheap"]
    assert decision.candidates[0].expected_cost == Decimal("0.001012")  # 1000 x 0.5 + 512 x 1
    assert (decision.endpoint, decision.refusal, decision.escape) == ("cheap", None, None)
    assert decision.at.timestamp() == asked.at
    assert (decision.outlook_version, decision.policy_version) == ("v7", BOTH.version)


def test_a_refusal_and_an_escape() -> None:
    plan = msgspec.structs.replace(decided(facts()), candidates=(), shift=Shift("esc_1", "dear", "cheap"))
    decision = read_decision(describe_decision(plan, facts(), "req_1", "policy_violation"))
    assert (decision.endpoint, decision.refusal, decision.escape) == (None, "policy_violation", "esc_1")


@pytest.mark.parametrize(
    "model", ["gpt\0mini", "a\ud800b", "x" * 2_000_000, "\0" * 200_000, "\\u0000", "\N{GRINNING FACE}" * 50_000]
)
def test_hostile_names_are_stored_and_bounded(model: str) -> None:
    asked = facts(model=model, tags={f"tag-{n}": "v" * 5000 for n in range(100)})
    content = describe_decision(decided(asked), asked, "req_1")
    assert len(content) <= MAX_DECISION
    assert "\0" not in read_decision(content).facts.model
    assert "\0" not in json.dumps(json.loads(content), ensure_ascii=False)


def test_a_policy_of_many_endpoints_is_cut_and_stays_readable() -> None:
    plan = msgspec.structs.replace(
        decided(facts()),
        candidates=tuple(Candidate(f"endpoint-{n}", n * 10**12, 0.1) for n in range(2000)),
        dropped=tuple(Dropped(f"endpoint-{n}", "require", "x" * 1000) for n in range(2000)),
    )
    content = describe_decision(plan, facts(), "req_1")
    assert len(content) <= MAX_DECISION
    assert read_decision(content).candidates[0].endpoint == "endpoint-0"


def test_a_record_of_an_older_version_is_still_read() -> None:
    """Only what has no default is needed."""
    facts_then = {"model": "m", "stream": False, "input_tokens": 1, "needs": [], "team": "t", "key_id": "k"}
    old = {
        "request_id": "req_1",
        "at": "2026-01-01T00:00:00Z",
        "team": "t",
        "route": "r",
        "policy": "p",
        "select": "cost",
        "policy_version": "v",
        "endpoint": None,
        "facts": {**facts_then, "a_field_of_later": 1},
    }
    assert read_decision(json.dumps(old)).facts.model == "m"
    with pytest.raises(msgspec.ValidationError):
        read_decision(b'{"request_id": "req_1"}')


def test_descriptions_have_plain_digits() -> None:
    plan = msgspec.structs.replace(
        decided(facts()), candidates=(Candidate("cheap", 100_000, None, True, None, "canary"),)
    )
    (candidate,) = describe_plan(plan, facts(), BOTH.endpoints)["candidates"]
    assert candidate == {
        "endpoint": "cheap",
        "provider": "p",
        "upstream_model": "small",
        "region": "eu",
        "expected_cost_usd": "0.0000001",
        "expected_ttft_s": None,
        "expected_seconds_per_token": None,
        "ejected": True,
        "placed_by": "canary",
    }
    described = describe(read_decision(describe_decision(plan, facts(), "req_1")))
    json.dumps(described)
    assert described["dropped"] == [
        {"endpoint": "dear", "reason": "require", "detail": "region is us, policy `main` requires eu"}
    ]


def test_the_header_is_one_line_of_ascii() -> None:
    asked = facts(domain="f\N{LATIN SMALL LETTER U WITH DIAERESIS}r\r\nx: y\x7f")
    value = decision_header(decided(asked), asked)
    assert all(0x20 <= byte < 0x7F for byte in value)
    told = json.loads(value)
    assert (told["route"], told["policy"], told["version"]) == ("all", "main", BOTH.version)
    (candidate,) = told["candidates"]
    assert (candidate["endpoint"], Decimal(candidate["cost"]), candidate["ttft"]) == (
        "cheap",
        Decimal("0.001012"),
        None,
    )
    assert told["dropped"] == [["dear", "require"]]


@pytest.mark.parametrize(("candidates", "dropped"), [(500, 0), (0, 500), (300, 300), (1, 1)])
def test_the_header_is_bounded_and_says_what_is_missing(candidates: int, dropped: int) -> None:
    plan = msgspec.structs.replace(
        decided(facts()),
        candidates=tuple(Candidate(f"endpoint-{n}", n * 10**12, 0.1) for n in range(candidates)),
        dropped=tuple(Dropped(f"endpoint-{n}", "require", "x") for n in range(dropped)),
    )
    value = decision_header(plan, facts())
    assert len(value) <= MAX_HEADER
    told = json.loads(value)
    shown = len(told["candidates"]) + len(told["dropped"])
    assert shown + told.get("cut", 0) == candidates + dropped
    assert shown == 2 or shown > 20
    huge = facts(domain="\N{GRINNING FACE}" * 3000)
    assert len(decision_header(plan, huge)) <= MAX_HEADER
