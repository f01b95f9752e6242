"""OpenRouter's exports: single generations, its activity by day, and the CSV files of both.

Sources: the reference of `GET /api/v1/generation` and `GET /api/v1/activity` (openrouter.ai/docs/api), and the CSV
files of the logs and activity pages. Credits are USD. What is billed are native tokens (`native_tokens_...`); the CSV
of the logs calls them `tokens_prompt`, `tokens_completion`. Prompts hold cached tokens, completions hold reasoning. The
cost is of the whole generation. Usage of a key of one's own (BYOK) is paid to its provider and not part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import tzinfo
from decimal import Decimal
from typing import Any

from gateway.accounting.reconciliation.lines import Line, Meter, Unreadable, amount_of, day_of, name_of, tokens_of

_NAMES: Mapping[str, str] = {
    "Date": "date",
    "Slug": "model",
    "Usage": "usage",
    "BYOK Usage": "byok_usage_inference",
    "Requests": "requests",
    "Prompt Tokens": "prompt_tokens",
    "Completion Tokens": "completion_tokens",
    "Reasoning Tokens": "reasoning_tokens",
}
_PROMPT = ("native_tokens_prompt", "prompt_tokens", "tokens_prompt")
_COMPLETION = ("native_tokens_completion", "completion_tokens", "tokens_completion")
_CACHED = ("native_tokens_cached", "tokens_cached", "cached_tokens")
_COST = ("total_cost", "cost_total", "usage")
FIELDS = frozenset(
    {*_NAMES, *_NAMES.values(), *_PROMPT, *_COMPLETION, *_CACHED, *_COST, "created_at", "model_permaslug", "id"}
    | {"generation_id", "upstream_id", "cost_web_search", "cost_cache", "cost_file_processing", "tokens_reasoning"}
    | {
        "native_tokens_reasoning",
        "native_tokens_completion_images",
        "provider_name",
        "variant",
        "cancelled",
        "streamed",
    }
    | {"user", "finish_reason", "finish_reason_raw", "finish_reason_normalized", "native_finish_reason", "app_name"}
    | {"generation_time", "generation_time_ms", "time_to_first_token_ms", "latency", "moderation_latency", "app_id"}
    | {"api_key_disabled", "api_key_name", "endpoint_id", "cache_discount", "upstream_inference_cost", "is_byok"}
    | {"origin", "external_user", "api_type", "router", "num_media_prompt", "num_input_audio_prompt", "byok_requests"}
    | {"num_media_completion", "num_search_results", "provider_responses", "object", "session_id", "request_id"}
)


def is_activity(fields: frozenset[str]) -> bool:
    known = {_NAMES.get(field, field) for field in fields}
    return bool({"created_at", "date"} & known) and bool({*_PROMPT} & known) and bool({*_COST} & known)


def read_activity(record: Mapping[str, Any], zone: tzinfo, left_out: Counter[str]) -> list[Line]:
    """Raises Unreadable."""
    given = {_NAMES.get(name, name): value for name, value in record.items()}
    start = given.get("created_at") or given.get("date")
    if not start:
        raise Unreadable("there is no `created_at` and no `date`")
    # Midnight of a `date` is a day, not a moment.
    day = day_of(str(start).removesuffix(" 00:00:00") if "created_at" not in given else start, "created_at", zone)
    model = name_of(given.get("model_permaslug")) or name_of(given.get("model"))
    account = name_of(given.get("api_key_name"))
    prompt, cached = _first(given, _PROMPT), _first(given, _CACHED)
    completion = _first(given, _COMPLETION)
    if amount_of(given.get("byok_usage_inference"), "byok_usage_inference"):
        left_out["usage of keys of one's own, paid to their provider"] += 1
    lines = []
    counts: list[tuple[Meter, Decimal | None]] = [("prompt", prompt), ("output", completion)]
    if prompt is not None and cached is not None:
        if cached > prompt:
            raise Unreadable("more cached tokens than tokens of the prompt")
        counts = [("input", prompt - cached), ("cache_read", cached), ("output", completion)]
    lines = [Line(day, account, model, meter, count, None) for meter, count in counts if count is not None]
    costs = [amount_of(given[name], name) for name in _COST if name in given]
    amount = next((cost for cost in costs if cost is not None), None)
    if amount is not None:
        lines.append(Line(day, account, model, "total", None, amount))
    return lines or [Line(day, None, None, "other", None, None)]


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> Decimal | None:
    counts = (tokens_of(record[name], name) for name in names if name in record)
    return next((count for count in counts if count is not None), None)
