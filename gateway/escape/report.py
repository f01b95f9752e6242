"""What is said of an escape: while it runs, and when it is over. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec

from gateway.config.model import Configuration
from gateway.escape.guards import Sample, Verdict
from gateway.escape.plan import EscapePlan, Pair
from gateway.escape.steps import RUNNING, Escape, describe_step, percent


def describe(escape: Escape) -> dict[str, Any]:
    """JSON-ready: the state, the present step, the steps before it, and what happened."""
    step = escape.step
    return {
        "id": escape.escape_id,
        "from": escape.request.source,
        "to": escape.request.target,
        "pairs": msgspec.to_builtins(escape.pairs),
        "state": "paused" if escape.is_paused else "held" if escape.blind_since else escape.state,
        "author": escape.author,
        "started_at": escape.started_at.isoformat(),
        "ended_at": None if escape.ended_at is None else escape.ended_at.isoformat(),
        "reason": escape.reason,
        "step": escape.position + 1,
        "steps": len(escape.steps),
        "kind": step.kind,
        "share": step.share if escape.state in (*RUNNING, "finished") and not escape.is_paused else 0.0,
        "step_started_at": escape.step_started_at.isoformat(),
        "step_ends_after": (escape.step_started_at + timedelta(seconds=step.seconds)).isoformat(),
        "step_requests": step.requests,
        "target": describe_sample(escape.target),
        "source": describe_sample(escape.source),
        "verdict": msgspec.to_builtins(escape.verdict),
        "results": [
            {
                "kind": result.step.kind,
                "share": result.step.share,
                "started_at": result.started_at.isoformat(),
                "ended_at": result.ended_at.isoformat(),
                "target": describe_sample(result.target),
                "source": describe_sample(result.source),
                "verdict": msgspec.to_builtins(result.verdict),
            }
            for result in escape.results
        ],
        "guards": msgspec.to_builtins(escape.request.guards),
        "events": msgspec.to_builtins(escape.events),
    }


def describe_sample(sample: Sample) -> dict[str, Any]:
    """Costs as plain digits; None where nothing is known."""

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "requests": sample.requests,
        "failures": sample.failures,
        "error_rate": share(sample.failures, sample.requests),
        "ttft_p50_ms": sample.ttft_median,
        "ttft_p95_ms": sample.ttft_p95,
        "judged": sample.judged,
        "validity": share(sample.judged - sample.invalid, sample.judged),
        "cost_usd": None if sample.cost_mean is None else f"{sample.cost_mean:f}",
        "unpriced": sample.unpriced,
        "similarity": sample.similarity_mean,
    }


def findings(verdict: Verdict | None) -> list[str]:
    """What each guard says, a line each."""
    return [] if verdict is None else [f"{one.guard}: {one.state} ({one.detail})" for one in verdict.findings]


def report_lines(escape: Escape) -> Iterator[str]:
    """The whole story for people."""
    request = escape.request
    yield f"escape {escape.escape_id} from {request.source} to {request.target}: {escape.state}"
    if escape.reason:
        yield f"reason: {escape.reason}"
    yield f"started {escape.started_at:%Y-%m-%d %H:%M:%S} by {escape.author}"
    if escape.ended_at is not None:
        yield f"ended {escape.ended_at:%Y-%m-%d %H:%M:%S}"
    for number, result in enumerate(escape.results, 1):
        yield f"step {number}, {describe_step(result.step)}:"
        yield f"  target: {sample_line(result.target)}"
        yield f"  source: {sample_line(result.source)}"
        yield from (f"  {line}" for line in findings(result.verdict))
    for event in escape.events:
        yield f"{event.at:%Y-%m-%d %H:%M:%S} {event.what}"


def sample_line(sample: Sample) -> str:
    parts = [f"{sample.requests} requests, {sample.failures} failed"]
    if sample.ttft_median is not None and sample.ttft_p95 is not None:
        parts.append(f"TTFT {sample.ttft_median:.0f} ms, 95 % under {sample.ttft_p95:.0f} ms")
    if sample.cost_mean is not None:
        parts.append(f"{sample.cost_mean:.6f} USD a request")
    if sample.judged:
        parts.append(f"{sample.judged - sample.invalid} of {sample.judged} answers usable")
    if sample.similarity_mean is not None:
        parts.append(f"similarity {sample.similarity_mean:.2f}")
    return ", ".join(parts)


def suggest_edit(configuration: Configuration, pairs: tuple[Pair, ...]) -> list[str]:
    """What to change in the YAML so that it says what a finished escape does: a line for each policy."""
    to = {pair.source: pair.target for pair in pairs}
    lines = []
    for policy in configuration.policies.values():
        if not any(endpoint in to for endpoint in policy.endpoints):
            continue
        after = list(dict.fromkeys(to.get(endpoint, endpoint) for endpoint in policy.endpoints))
        lines.append(f"policies.{policy.id}.endpoints: [{', '.join(policy.endpoints)}] -> [{', '.join(after)}]")
    return lines


# Plans


def describe_plan(plan: EscapePlan) -> dict[str, Any]:
    """JSON-ready; costs as plain digits."""
    costs = plan.costs
    return {
        "from": plan.source,
        "to": plan.target,
        "pairs": msgspec.to_builtins(plan.pairs),
        "since": plan.since.isoformat(),
        "until": plan.until.isoformat(),
        "requests": plan.requests,
        "movable": plan.movable,
        "movable_share": plan.share,
        "without_facts": plan.without_facts,
        "translated": plan.translated,
        "breaks": [msgspec.to_builtins(found) for found in plan.breaks],
        "costs": {
            "requests": costs.requests,
            "now_usd": f"{costs.now_usd:f}" if costs.requests else None,
            "then_usd": f"{costs.then_usd:f}" if costs.requests else None,
            "ratio": costs.ratio,
            "unpriced_now": costs.unpriced_now,
            "unpriced_then": costs.unpriced_then,
        },
        "latency": msgspec.to_builtins(plan.latency),
        "seats": [msgspec.to_builtins(seat) for seat in plan.seats],
        "notes": plan.notes,
    }


def plan_summary(plan: EscapePlan) -> Iterator[str]:
    """The first lines of a plan for people; tables follow."""
    if not plan.requests:
        yield f"{plan.source} served no request in this time: nothing can be said"
        return
    share = percent(plan.share or 0.0)
    yield f"{plan.requests} requests were served by {plan.source}; {plan.movable} of them ({share}) could move"
    for wire, count in sorted(plan.translated.items()):
        yield f"{count} of them would be translated from `{wire}`"
    costs = plan.costs
    if costs.requests:
        ratio = f" ({costs.ratio:.2f} times)" if costs.ratio is not None else ""
        now, then = f"{costs.now_usd:.6f} USD", f"{costs.then_usd:.6f} USD"
        yield f"cost of {costs.requests} requests: {now}, at {plan.target} {then}{ratio}"
    else:
        yield "cost: unknown, no request has a price at both"
