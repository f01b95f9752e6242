"""Requests as the gateway records them, for tests of what reads the records: decided by the planner itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from gateway.accounting.prices import PriceBook, total_input
from gateway.config.compiler import compile_configuration
from gateway.config.document import Document
from gateway.config.model import Configuration
from gateway.routing.explanation import describe_decision
from gateway.routing.facts import Facts
from gateway.routing.planner import Planner
from gateway.store.decisions import Recorded, RecordedAttempt
from gateway.types import Outlook, Usage

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENDPOINTS: Mapping[str, Mapping[str, Any]] = {
    "dear": {"provider": "p", "model": "large", "region": "us", "price": {"input": 1, "output": 2}},
    "cheap": {
        "provider": "p",
        "model": "small",
        "region": "eu",
        "price": {"input": 0.5, "output": 1, "cache_read": 0.1},
    },
}


def document(policy: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """One policy for all models; `changes` replace sections."""
    return {
        "version": 1,
        "providers": {"p": {"adapter": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}},
        "endpoints": ENDPOINTS,
        "routes": [{"name": "all", "match": {"model": "*"}, "policy": "main"}],
        "policies": {"main": policy},
        **changes,
    }


def configuration(policy: Mapping[str, Any], **changes: Any) -> Configuration:
    return compile_configuration(Document(document(policy, **changes)), {})


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "model": "gpt",
        "stream": True,
        "input_tokens": 1000,
        "needs": frozenset({"stream"}),
        "team": "payments",
        "key_id": "key-1",
        "at": START.timestamp(),
    }
    return Facts(**{**values, **changes})


def attempt(endpoint: str, **changes: Any) -> RecordedAttempt:
    """A plain one: 1000 tokens in, 100 out, 200 ms to the first of them and 2 s in all."""
    started = changes.pop("started_at", START)
    values: dict[str, Any] = {
        "attempt": 1,
        "started_at": started,
        "ended_at": started + timedelta(seconds=2),
        "endpoint": endpoint,
        "provider": "p",
        "upstream_model": ENDPOINTS[endpoint]["model"],
        "status": "ok",
        "error_type": None,
        "stream": True,
        "ttft_ms": 200.0,
        "duration_ms": 2000.0,
        "usage": Usage(input_tokens=1000, output_tokens=100),
        "usage_source": "reported",
        "cost_usd": None,
        "tags": {},
    }
    return RecordedAttempt(**{**values, **changes})


def priced(configuration: Configuration, one: RecordedAttempt) -> Decimal | None:
    endpoint = configuration.endpoints[one.endpoint]
    rates = PriceBook().rates_for(endpoint, one.upstream_model, one.started_at, total_input(one.usage))
    return None if rates is None else rates.cost(one.usage)


def record(
    configuration: Configuration,
    number: int = 0,
    attempts: Sequence[RecordedAttempt] | None = None,
    *,
    refusal: str | None = None,
    **changes: Any,
) -> Recorded:
    """The `number`-th request, a second after the one before. `attempts` None: the first candidate served it.

    Attempts with usage and without a cost are priced by the configuration.
    """
    at = START + timedelta(seconds=number)
    asked = facts(at=at.timestamp(), **changes)
    planner = Planner(configuration, PriceBook().quote)
    route = planner.match(asked)
    assert route is not None
    plan = planner.plan(route, asked, outlook=Outlook(), now=0.0, rng=Random(number), with_costs=True)
    request_id = f"req_{number:05d}"
    if attempts is None:
        attempts = [attempt(plan.candidates[0].endpoint, started_at=at)] if plan.candidates else []
    made = [
        one
        if one.cost_usd is not None or one.usage_source == "none"
        else RecordedAttempt(**{**_fields(one), "cost_usd": priced(configuration, one)})
        for one in attempts
    ]
    return Recorded(at, request_id, describe_decision(plan, asked, request_id, refusal), made)


def _fields(one: RecordedAttempt) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}
