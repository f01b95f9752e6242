"""One request in hindsight: what was decided for it, beside what happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import msgspec
from sqlalchemy import Engine

from gateway.routing.explanation import describe, read_decision
from gateway.store.decisions import find_json
from gateway.store.usage import requests
from gateway.types import BUCKETS

_SHOWN = ("attempt", "endpoint", "provider", "upstream_model", "region", "status", "error_type", "stream")


def look_up(engine: Engine, request_id: str, *, team: str | None = None) -> dict[str, Any] | None:
    """JSON-ready: `{request_id, decision, attempts}`; None: nothing is known of that request.

    `decision` is None where none was kept. Costs are strings of plain digits (None: unknown), times in milliseconds or
    RFC 3339. `team`: what is another team's is as good as not there. Raises `StoreError`.
    """
    content = find_json(engine, request_id)
    decision = None if content is None else _describe(content)
    rows = requests(engine, request_id)
    if team is not None:
        rows = [row for row in rows if row["team"] == team]
        decision = decision if decision is not None and decision.get("team") == team else None
    if decision is None and not rows:
        return None
    return {"request_id": request_id, "decision": decision, "attempts": [_attempt(row) for row in rows]}


def _describe(content: bytes) -> dict[str, Any]:
    try:
        return describe(read_decision(content))
    except msgspec.ValidationError:  # of a version that described decisions otherwise: shown as it is
        body: dict[str, Any] = json.loads(content)
        return body


def _attempt(row: Mapping[str, Any]) -> dict[str, Any]:
    cost = row["cost_usd"]
    return {
        **{name: row[name] for name in _SHOWN},
        "started_at": row["started_at"].astimezone(UTC).isoformat(),
        "ttft_ms": row["ttft_ms"],
        "duration_ms": row["duration_ms"],
        "tokens": {bucket: row[bucket] for bucket in BUCKETS if row[bucket]},
        "usage_source": row["usage_source"],
        "cost_usd": None if cost is None else f"{cost:f}",
        "tags": row["tags"] or {},
    }
