"""Token counts of the Responses API as disjoint buckets, and back.

OpenAI (platform.openai.com/docs/api-reference/responses/object): `input_tokens` includes cached and cache-written
tokens, `output_tokens` includes reasoning. Azure, Bedrock Mantle and DeepSeek count the same way. Departures:

xAI         reasoning is inside the output here, though its chat completions count it outside: a dialect's
            `reasoning_tokens` is said of chat alone, and not asked here (docs.x.ai/docs/guides/reasoning)
OpenRouter  over Gemini the same tokens can be read and written at once, and both are charged
            (openrouter.ai/docs/guides/best-practices/prompt-caching)

Where reasoning is itemised the total tells whether it is inside: it is outside where only that adds up. Writes are not
told apart by lifetime: both of OpenAI's (30 minutes, 12 hours) go where writes of no stated lifetime go.
"""

from __future__ import annotations

import msgspec

from gateway.protocols.base import MAX_TOKENS, NOT_JSON
from gateway.types import Usage


class _Details(msgspec.Struct):
    """Of the input or of the output; each has some of these."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Counts(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


_NO_DETAILS = _Details()
_decode = msgspec.json.Decoder(_Counts).decode


def read_usage(raw: msgspec.Raw) -> Usage | None:
    """A `usage` object as disjoint buckets; None when it is absent or its counts contradict each other."""
    try:
        counts = _decode(raw)
    except NOT_JSON:
        return None
    given = counts.input_tokens_details or _NO_DETAILS
    cached, written = given.cached_tokens or 0, given.cache_write_tokens or 0
    audio, image = given.audio_tokens or 0, given.image_tokens or 0
    uncached = counts.input_tokens - cached - written
    if uncached < 0 and cached == written:
        uncached = counts.input_tokens - cached
    if min(uncached, audio, image) < 0 or audio + image > counts.input_tokens:
        return None
    audio = min(audio, uncached)  # those of a cached picture or recording are in the cached ones
    image = min(image, uncached - audio)
    output, reasoning, audio_out = _output(counts)
    parts = (uncached, cached, written, output, reasoning, audio_out)
    if min(parts) < 0 or max(parts) > MAX_TOKENS:
        return None
    return Usage(
        input_tokens=uncached - audio - image,
        cache_read_tokens=cached,
        cache_write_5m_tokens=written,
        input_audio_tokens=audio,
        input_image_tokens=image,
        output_tokens=output,
        reasoning_tokens=reasoning,
        output_audio_tokens=audio_out,
    )


def copy_usage(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A copy of its own, so that a row does not keep a whole answer's bytes alive."""
    return None if len(raw) == 0 or bytes(raw) == b"null" else msgspec.Raw(bytes(raw))


def usage_object(usage: Usage) -> dict[str, object]:
    """The buckets as OpenAI counts them."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    media = usage.input_audio_tokens + usage.input_image_tokens
    input_tokens = usage.input_tokens + usage.cache_read_tokens + written + media
    output_tokens = usage.output_tokens + usage.reasoning_tokens + usage.output_audio_tokens
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": written},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": input_tokens + output_tokens,
    }


def _output(counts: _Counts) -> tuple[int, int, int]:
    """Visible, reasoning and audio tokens."""
    details = counts.output_tokens_details or _NO_DETAILS
    reasoning, audio = details.reasoning_tokens or 0, details.audio_tokens or 0
    beside = 0 if counts.total_tokens is None else counts.total_tokens - counts.input_tokens - counts.output_tokens
    is_outside = reasoning > 0 and beside == reasoning
    return counts.output_tokens - audio - (0 if is_outside else reasoning), reasoning, audio
