"""Anthropic's exports: usage of messages and costs.

Sources: the reference of `GET /v1/organizations/usage_report/messages` and `GET /v1/organizations/cost_report`
(platform.claude.com/docs/en/api/admin), and the CSV files of the console's usage and cost pages.

Input is `uncached_input_tokens`, apart from what is read from a cache and what is written to one, by lifetime; output
holds thinking. In the cost report's JSON an amount is in hundredths of its currency (`"123.45"` is 1.2345 USD), in the
console's CSV (`cost_usd`) in USD, rounded to cents. Costs of the priority tier are not in the report. Days are UTC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import tzinfo
from decimal import Decimal
from typing import Any

from gateway.accounting.reconciliation.lines import (
    Line,
    Meter,
    Unreadable,
    amount_of,
    currency_of,
    day_of,
    days_between,
    name_of,
    tokens_of,
)

_BUCKET = frozenset({"starting_at", "ending_at", "usage_date_utc"})
_GROUPS = frozenset(
    {"api_key_id", "api_key", "api_key_status", "workspace_id", "workspace", "account_id", "service_account_id"}
    | {"model", "model_version", "service_tier", "context_window", "usage_type", "inference_geo", "speed"}
)
_COUNTS: Mapping[str, Meter] = {
    "uncached_input_tokens": "input",
    "cache_read_input_tokens": "cache_read",
    "output_tokens": "output",
    "usage_input_tokens_no_cache": "input",
    "usage_input_tokens_cache_read": "cache_read",
    "usage_input_tokens_cache_write_5m": "cache_write_5m",
    "usage_input_tokens_cache_write_1h": "cache_write_1h",
    "usage_output_tokens": "output",
}
_CREATION: Mapping[str, Meter] = {
    "ephemeral_5m_input_tokens": "cache_write_5m",
    "ephemeral_1h_input_tokens": "cache_write_1h",
}
_TOKEN_TYPES: Mapping[str, Meter] = {
    "uncached_input_tokens": "input",
    "cache_read_input_tokens": "cache_read",
    "cache_creation.ephemeral_5m_input_tokens": "cache_write_5m",
    "cache_creation.ephemeral_1h_input_tokens": "cache_write_1h",
    "output_tokens": "output",
    "input_no_cache": "input",
    "input_cache_read": "cache_read",
    "input_cache_write_5m": "cache_write_5m",
    "input_cache_write_1h": "cache_write_1h",
    "output": "output",
}
USAGE_FIELDS = _BUCKET | _GROUPS | _COUNTS.keys() | {"cache_creation", "server_tool_use", "web_search_count"}
COST_FIELDS = (
    _BUCKET
    | _GROUPS
    | {"amount", "currency", "cost_usd", "list_price_usd", "description", "cost_type", "token_type", "model_name"}
)


def is_usage(fields: frozenset[str]) -> bool:
    return bool({"starting_at", "usage_date_utc"} & fields) and bool(_COUNTS.keys() & fields)


def is_cost(fields: frozenset[str]) -> bool:
    return bool({"starting_at", "usage_date_utc"} & fields) and bool({"amount", "cost_usd"} & fields)


def read_usage(record: Mapping[str, Any], zone: tzinfo, left_out: Counter[str]) -> list[Line]:
    """Raises Unreadable."""
    day, days = _days(record, zone)
    counts: list[tuple[Meter, Decimal | None]] = [
        (meter, tokens_of(record[name], name)) for name, meter in _COUNTS.items() if name in record
    ]
    creation = record.get("cache_creation")
    if isinstance(creation, Mapping):
        counts += [(meter, tokens_of(creation.get(name), name)) for name, meter in _CREATION.items()]
    elif creation is not None:
        raise Unreadable("`cache_creation` is no object")
    tools = record.get("server_tool_use")
    searches = tools.get("web_search_requests") if isinstance(tools, Mapping) else record.get("web_search_count")
    if tokens_of(searches, "web_search_requests"):
        left_out["counts of web searches"] += 1
    account = name_of(record.get("workspace")) or name_of(record.get("workspace_id"))
    model = name_of(record.get("model")) or name_of(record.get("model_version"))
    lines = [Line(day, account, model, meter, count, None, days=days) for meter, count in counts if count is not None]
    return lines or [Line(day, None, None, "other", None, None, days=days)]


def read_cost(record: Mapping[str, Any], zone: tzinfo, left_out: Counter[str]) -> list[Line]:
    """Raises Unreadable."""
    day, days = _days(record, zone)
    amount = amount_of(record.get("cost_usd"), "cost_usd")
    if amount is None:
        amount = amount_of(record.get("amount"), "amount")
        amount = None if amount is None else amount.scaleb(-2)
    if amount is None:
        return [Line(day, None, None, "other", None, None, days=days)]
    account = name_of(record.get("workspace")) or name_of(record.get("workspace_id"))
    kind, model = name_of(record.get("token_type")), name_of(record.get("model"))
    meter: Meter = "total"
    if kind is not None:
        meter = _TOKEN_TYPES.get(kind, "other")
    elif str(record.get("cost_type") or "tokens") not in ("tokens", "token"):
        meter = "other"
    return [
        Line(
            day,
            account,
            None if meter == "other" else model,
            meter,
            None,
            amount,
            currency_of(record.get("currency")),
            days,
        )
    ]


def _days(record: Mapping[str, Any], zone: tzinfo) -> tuple[Any, int]:
    start = record.get("starting_at") or record.get("usage_date_utc")
    if not start:
        raise Unreadable("there is no `starting_at`")
    return day_of(start, "starting_at", zone), days_between(start, record.get("ending_at"))
