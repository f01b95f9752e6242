"""Anthropic's token counts as disjoint buckets, and back.

Source: Anthropic API reference, "Messages", `usage`; guides "Prompt caching", "Streaming", "Compaction" and "Advisor
tool" (platform.claude.com/docs).

- `input_tokens` excludes what was read from the cache (`cache_read_input_tokens`) and written to it
  (`cache_creation_input_tokens`, split by lifetime in `cache_creation`; a write of no stated lifetime is of 5 minutes:
  `message_delta` repeats the total alone, which has grown if server tools ran).
- `output_tokens` includes thinking, which newer models itemise in `output_tokens_details.thinking_tokens`.
- In a stream the counts of `message_delta` are totals and override those of `message_start`, input counts too.
- `iterations` of type `compaction` are billed at the model's rates and are not in the counts above: they are added.
  Those of type `advisor_message`, and of a model that another one fell back to, have another model's prices; they are
  left to `raw_usage`.
"""

from __future__ import annotations

import msgspec

from gateway.protocols.base import MAX_TOKENS, NOT_JSON
from gateway.types import Usage

MAX_ITERATIONS = 1024


class _CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: int = 0
    ephemeral_1h_input_tokens: int = 0


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Iteration(msgspec.Struct):
    type: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None


class _Counts(_Iteration, kw_only=True):
    input_tokens: int
    output_tokens: int
    output_tokens_details: _OutputDetails | None = None
    iterations: list[_Iteration] | None = None


class _Tier(msgspec.Struct):
    service_tier: str | None = None
    speed: str | None = None


_decode_counts = msgspec.json.Decoder(_Counts).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_tier = msgspec.json.Decoder(_Tier).decode

FAST = "fast"
# Anthropic's word for the tier that served, and the one that OpenAI's clients know it by.
_TIERS = {"standard": "default", "priority": "priority", "batch": "batch"}


def is_absent(raw: msgspec.Raw) -> bool:
    """Absent, null or an empty object."""
    return bytes(raw) in (b"", b"null", b"{}")


def kept(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A copy of its own, so that a row does not keep a whole answer's bytes alive."""
    return None if is_absent(raw) else msgspec.Raw(bytes(raw))


def read_usage(raw: msgspec.Raw | None) -> Usage | None:
    """None when it is absent, incomplete, or its counts contradict each other."""
    if raw is None or is_absent(raw):
        return None
    try:
        counts = _decode_counts(raw)
    except NOT_JSON:
        return None
    thinking = (counts.output_tokens_details.thinking_tokens if counts.output_tokens_details else None) or 0
    extra = [item for item in (counts.iterations or ())[:MAX_ITERATIONS] if item.type == "compaction"]
    rows = [_buckets(item) for item in (counts, *extra)]
    if any(row is None for row in rows):
        return None
    plain, read, written_5m, written_1h, output = (sum(column) for column in zip(*filter(None, rows), strict=True))
    parts = (plain, read, written_5m, written_1h, output - thinking, thinking)
    if min(parts) < 0 or max(parts) > MAX_TOKENS:
        return None
    return Usage(
        input_tokens=plain,
        cache_read_tokens=read,
        cache_write_5m_tokens=written_5m,
        cache_write_1h_tokens=written_1h,
        output_tokens=output - thinking,
        reasoning_tokens=thinking,
    )


def _buckets(counts: _Iteration) -> tuple[int, int, int, int, int] | None:
    """Input, cache reads, writes of 5 minutes and of 1 hour, output; None where they contradict each other."""
    written = counts.cache_creation_input_tokens
    split = counts.cache_creation or _CacheCreation()
    short, long = split.ephemeral_5m_input_tokens, split.ephemeral_1h_input_tokens
    if written is not None:
        if written < short + long:
            return None
        short = written - long
    row = (counts.input_tokens, counts.cache_read_input_tokens or 0, short, long, counts.output_tokens)
    return row if min(row) >= 0 and max(row) <= MAX_TOKENS else None


def merge_usage(start: msgspec.Raw | None, delta: msgspec.Raw) -> msgspec.Raw | None:
    """The usage of a stream so far: `delta` (of `message_delta`) over `start` (of what came before), field by field."""
    if start is None or is_absent(delta):
        return start if start is not None else kept(delta)
    try:
        before, after = _decode_fields(start), _decode_fields(delta)
    except NOT_JSON:
        return kept(delta)
    fields = before | {name: value for name, value in after.items() if bytes(value) != b"null"}
    return msgspec.Raw(msgspec.json.encode(fields))


def read_tier(raw: msgspec.Raw | None) -> str | None:
    """The tier that served, in OpenAI's words; `fast` for the fast mode, which has prices of its own."""
    if raw is None or is_absent(raw):
        return None
    try:
        read = _decode_tier(raw)
    except NOT_JSON:
        return None
    tier = FAST if read.speed == FAST else read.service_tier
    return None if tier is None else _TIERS.get(tier, tier)


def write_usage(usage: Usage | None, service_tier: str | None = None) -> dict[str, object]:
    """Anthropic's `usage` object, which an answer must have: zeros where nothing is known."""
    usage = usage or Usage()
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    fields: dict[str, object] = {
        "input_tokens": usage.input_tokens + usage.input_audio_tokens + usage.input_image_tokens,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens + usage.reasoning_tokens + usage.output_audio_tokens,
    }
    if written:
        fields["cache_creation"] = {
            "ephemeral_5m_input_tokens": usage.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        }
    if usage.reasoning_tokens:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    tier = next((word for word, name in _TIERS.items() if name == service_tier), None)
    if tier is not None:
        fields["service_tier"] = tier
    return fields
