"""A plan as data, for operators: the same words on the command line, in JSON and in the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.config.model import Endpoint
from gateway.routing.facts import Facts
from gateway.routing.plan import Plan


def describe_plan(plan: Plan, facts: Facts, endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """JSON-ready. Costs in USD as strings (None: unknown), TTFT in seconds (None: never measured)."""
    return {
        "model": facts.model,
        "domain": facts.domain,
        "input_tokens": facts.input_tokens,
        "output_tokens": facts.output_tokens,
        "route": plan.route.name,
        "policy": plan.policy.id,
        "select": plan.policy.select,
        "policy_version": plan.policy_version,
        "candidates": [
            {
                "endpoint": candidate.endpoint,
                "provider": endpoints[candidate.endpoint].provider.id,
                "upstream_model": endpoints[candidate.endpoint].upstream_model(facts.model),
                "region": endpoints[candidate.endpoint].region,
                "expected_cost_usd": None if candidate.expected_cost is None else f"{candidate.expected_cost:f}",
                "expected_ttft_s": candidate.expected_ttft,
                "ejected": candidate.ejected,
            }
            for candidate in plan.candidates
        ],
        "dropped": [
            {"endpoint": dropped.endpoint, "reason": dropped.reason, "detail": dropped.detail}
            for dropped in plan.dropped
        ],
    }
