"""OpenAI's exports: usage of the organisation (completions, embeddings) and its costs.

Sources: the API reference of `GET /v1/organization/usage/completions`, `.../usage/embeddings` and
`GET /v1/organization/costs` (developers.openai.com/api/reference), and the CSV files that the usage dashboard exports,
whose columns are the fields of those answers, flattened: `amount_value`, `amount_currency`, `start_time_iso`, ...

`input_tokens` holds text, audio and images, cached tokens (`input_cached_tokens`) and those written to a cache
(`input_cache_write_tokens`); `output_tokens` holds reasoning. Costs name model and meter in one text, `line_item`:
`gpt-4o-mini-2024-07-18, cached input`, `priority | gpt-5.2, output, long context`, or a tool: `web search tool calls`.
Days are UTC.
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

_BUCKET = frozenset({"object", "start_time", "end_time", "start_time_iso", "end_time_iso"})
_GROUPS = frozenset(
    {"project_id", "user_id", "api_key_id", "project_name", "user_email", "organization_id", "organization_name"}
    | {"api_key_name", "api_key_redacted", "api_source"}
)
# Parts of `input_tokens` and `output_tokens`, which are compared as a whole.
_PARTS = frozenset(
    f"{side}{cached}_{kind}_tokens"
    for side in ("input", "output")
    for cached in ("", "_cached")
    for kind in ("text", "audio", "image")
)
USAGE_FIELDS = (
    _BUCKET
    | _GROUPS
    | _PARTS
    | {"model", "batch", "service_tier", "num_model_requests"}
    | {"input_tokens", "output_tokens", "input_cached_tokens", "input_uncached_tokens", "input_cache_write_tokens"}
)
COSTS_FIELDS = (
    _BUCKET
    | _GROUPS
    | {"amount", "amount_value", "amount_currency", "line_item", "quantity", "quantity_unit", "model", "service_tier"}
)
_TOKENS = ("organization.usage.completions.result", "organization.usage.embeddings.result", "bucket", None, "")


def is_usage(fields: frozenset[str]) -> bool:
    return {"start_time", "input_tokens"} <= fields or {"start_time", "num_model_requests"} <= fields


def is_costs(fields: frozenset[str]) -> bool:
    return "start_time" in fields and bool({"amount", "amount_value"} & fields)


def read_usage(record: Mapping[str, Any], zone: tzinfo, left_out: Counter[str]) -> list[Line]:
    """Raises Unreadable."""
    day, days = _days(record, zone)
    kind = record.get("object")
    if kind not in _TOKENS:
        left_out[f"usage that is not of tokens: {str(kind)[:60]}"] += 1
        return [Line(day, None, None, "other", None, None, days=days)]
    total = tokens_of(record.get("input_tokens"), "input_tokens")
    output = tokens_of(record.get("output_tokens"), "output_tokens")
    if total is None and output is None:
        return [Line(day, None, None, "other", None, None, days=days)]
    read = tokens_of(record.get("input_cached_tokens"), "input_cached_tokens") or Decimal(0)
    written = tokens_of(record.get("input_cache_write_tokens"), "input_cache_write_tokens")
    fresh = (total or Decimal(0)) - read - (written or 0)
    if fresh < 0:
        raise Unreadable("more cached tokens than `input_tokens`")
    counts: list[tuple[Meter, Decimal | None]] = [
        ("input", fresh),
        ("cache_read", read),
        ("cache_write", written),
        ("output", output),
    ]
    account, model = _account(record), name_of(record.get("model"))
    return [Line(day, account, model, meter, count, None, days=days) for meter, count in counts if count is not None]


def read_costs(record: Mapping[str, Any], zone: tzinfo, left_out: Counter[str]) -> list[Line]:
    """Raises Unreadable."""
    day, days = _days(record, zone)
    given = record.get("amount")
    value, currency = record.get("amount_value"), record.get("amount_currency")
    if isinstance(given, Mapping):
        value, currency = given.get("value"), given.get("currency")
    elif given is not None:
        value = given
    amount = amount_of(value, "amount")
    if amount is None:
        return [Line(day, None, None, "other", None, None, days=days)]
    model, meter = meter_of(name_of(record.get("line_item")))
    quantity = None
    if record.get("quantity") not in (None, "") and meter not in ("other", "total"):
        if str(record.get("quantity_unit") or "tokens").lower() == "tokens":
            quantity = tokens_of(record["quantity"], "quantity")
        else:
            left_out[f"quantities in `{str(record['quantity_unit'])[:40]}`"] += 1
    return [Line(day, _account(record), model, meter, quantity, amount, currency_of(currency), days)]


def meter_of(item: str | None) -> tuple[str | None, Meter]:
    """Model and meter of a line item."""
    if item is None:
        return None, "total"
    name, *words = [part.strip() for part in item.split(" | ")[-1].split(",")]
    said = " ".join(words).lower()
    if "cached" in said:
        return name, "cache_read"
    if "cache write" in said:
        return name, "cache_write"
    if "output" in said:
        return name, "output"
    if "input" in said:
        return name, "input"
    return None, "other"


def _days(record: Mapping[str, Any], zone: tzinfo) -> tuple[Any, int]:
    start = record.get("start_time") or record.get("start_time_iso")
    if start in (None, ""):
        raise Unreadable("there is no `start_time`")
    return day_of(start, "start_time", zone), days_between(start, record.get("end_time"))


def _account(record: Mapping[str, Any]) -> str | None:
    return name_of(record.get("project_name")) or name_of(record.get("project_id"))
