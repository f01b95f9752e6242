"""Token counts of chat completions as disjoint buckets, and back.

OpenAI (platform.openai.com/docs/api-reference/chat/object): `prompt_tokens` includes cached, cache-written, audio and
image tokens, `completion_tokens` includes reasoning and audio tokens. Departures:

DeepSeek    names its cached tokens `prompt_cache_hit_tokens`, inside the prompt (api-docs.deepseek.com/guides/kv_cache)
Mistral     also `num_cached_tokens`; audio of the prompt is outside `prompt_tokens` (dialect `audio_tokens: outside`)
Moonshot, SGLang  name them `cached_tokens` beside the counts
LiteLLM, Alibaba  name written ones `cache_creation_input_tokens`, inside the prompt, with their lifetimes
                  (alibabacloud.com/help/en/model-studio/context-cache)
xAI         `completion_tokens` excludes reasoning (docs.x.ai/docs/guides/reasoning; `reasoning_tokens: outside`)
Gemini      its OpenAI endpoint counts thinking in the total alone (`reasoning_tokens: total`)
OpenRouter  over Gemini the same tokens can be read and written at once, and both are charged (openrouter.ai/docs/
            guides/best-practices/prompt-caching): the one case in which buckets sum to more than the total
Perplexity  `reasoning_tokens` and `citation_tokens` stand beside the counts and in none of them, not even the total;
            citations are read by the model and priced as input (docs.perplexity.ai/getting-started/pricing)

Where reasoning is itemised the total tells whether it is inside: a total that says otherwise than the dialect is right.
Cached tokens may be those of pictures and recordings as well, so what is left of the prompt bounds both.
"""

from __future__ import annotations

import msgspec

from gateway.config.rows import PLAIN, Dialect
from gateway.protocols.base import MAX_TOKENS, NOT_JSON
from gateway.protocols.raw import is_empty
from gateway.types import Usage


class _Lifetimes(msgspec.Struct):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _Details(msgspec.Struct):
    """Of the prompt or of the completion; each has some of these."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_creation_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _Lifetimes | None = None
    cache_creation_token_details: _Lifetimes | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: int | None = None
    num_cached_tokens: int | None = None
    cached_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    citation_tokens: int | None = None
    num_search_queries: int | None = None


class _UsualDetails(msgspec.Struct, forbid_unknown_fields=True):
    cached_tokens: int = 0
    audio_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class _Usual(msgspec.Struct, forbid_unknown_fields=True):
    """The counts as OpenAI has them, and most who follow it. Decoding refuses all others, which take longer to read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _UsualDetails | None = None
    completion_tokens_details: _UsualDetails | None = None


_NO_DETAILS = _Details()
_NONE = _UsualDetails()
_decode_usual = msgspec.json.Decoder(_Usual).decode
_decode = msgspec.json.Decoder(_Usage).decode


def read_usage(raw: msgspec.Raw, dialect: Dialect = PLAIN) -> Usage | None:
    """A provider's usage object as disjoint buckets; None when it is absent or its counts contradict each other."""
    if len(raw) < 6 and is_empty(raw):
        return None
    try:
        usual = _decode_usual(raw)
    except NOT_JSON:
        pass
    else:
        prompt_details = usual.prompt_tokens_details or _NONE
        details = usual.completion_tokens_details or _NONE
        cached, reasoning, total = prompt_details.cached_tokens, details.reasoning_tokens, usual.total_tokens
        uncached, output = usual.prompt_tokens - cached, usual.completion_tokens - reasoning
        if (
            not (prompt_details.audio_tokens or details.audio_tokens)
            and total == usual.prompt_tokens + usual.completion_tokens  # so that reasoning is inside, in any dialect
            and 0 <= cached <= MAX_TOKENS
            and 0 <= reasoning <= MAX_TOKENS
            and 0 <= uncached <= MAX_TOKENS
            and 0 <= output <= MAX_TOKENS
        ):
            return Usage(uncached, cached, 0, 0, 0, 0, output, reasoning, 0)
    return _read_unusual(raw, dialect)


def _read_unusual(raw: msgspec.Raw, dialect: Dialect) -> Usage | None:
    try:
        counts = _decode(raw)
    except NOT_JSON:
        return None
    prompt = counts.prompt_tokens_details or _NO_DETAILS
    cached = (
        prompt.cached_tokens
        or counts.prompt_cache_hit_tokens
        or counts.num_cached_tokens
        or counts.cached_tokens
        or counts.cache_read_input_tokens
        or 0
    )
    written_5m, written_1h = _written(counts, prompt)
    audio, image = prompt.audio_tokens or 0, prompt.image_tokens or 0
    citations = counts.citation_tokens or 0
    total_input = counts.prompt_tokens + (audio if dialect.audio_tokens == "outside" else 0)
    uncached = total_input - cached - written_5m - written_1h
    if uncached < 0 and cached == written_5m:
        uncached = total_input - cached
    if uncached < 0 or min(audio, image, citations) < 0 or audio + image > total_input:
        return None
    audio = min(audio, uncached)
    image = min(image, uncached - audio)
    output, reasoning, audio_out = _output(counts, dialect)
    parts = (uncached + citations, cached, written_5m, written_1h, output, reasoning, audio_out)
    if min(parts) < 0 or max(parts) > MAX_TOKENS:
        return None
    # In the order of the fields: named ones take three times as long.
    return Usage(
        uncached - audio - image + citations, cached, written_5m, written_1h, audio, image, output, reasoning, audio_out
    )


def copy_usage(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A copy of its own, so that a row does not keep a whole answer's bytes alive."""
    return None if len(raw) < 6 and is_empty(raw) else raw.copy()


def usage_object(usage: Usage) -> dict[str, object]:
    """The buckets as OpenAI counts them."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    media = usage.input_audio_tokens + usage.input_image_tokens
    prompt_tokens = usage.input_tokens + usage.cache_read_tokens + written + media
    completion_tokens = usage.output_tokens + usage.reasoning_tokens + usage.output_audio_tokens
    prompt = {"cached_tokens": usage.cache_read_tokens, "audio_tokens": usage.input_audio_tokens}
    if written:
        prompt["cache_write_tokens"] = written
    if usage.input_image_tokens:
        prompt["image_tokens"] = usage.input_image_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.output_audio_tokens,
        },
    }


def _written(counts: _Usage, prompt: _Details) -> tuple[int, int]:
    """Tokens written to a cache for five minutes, where no lifetime is said, and for an hour."""
    written = (
        prompt.cache_write_tokens
        or prompt.cache_creation_tokens
        or prompt.cache_creation_input_tokens
        or counts.cache_creation_input_tokens
        or 0
    )
    lifetimes = prompt.cache_creation or prompt.cache_creation_token_details
    for_an_hour = 0 if lifetimes is None else lifetimes.ephemeral_1h_input_tokens or 0
    return written - for_an_hour, for_an_hour


def _output(counts: _Usage, dialect: Dialect) -> tuple[int, int, int]:
    """Visible, reasoning and audio tokens."""
    details = counts.completion_tokens_details or _NO_DETAILS
    completion, audio = counts.completion_tokens, details.audio_tokens or 0
    itemised = details.reasoning_tokens
    reasoning = itemised or counts.reasoning_tokens or 0
    researches = counts.citation_tokens is not None or counts.num_search_queries is not None
    is_inside = dialect.reasoning_tokens != "outside" and not (researches and itemised is None)
    total = counts.total_tokens
    if total is not None and not reasoning and dialect.reasoning_tokens == "total":
        reasoning = max(0, total - counts.prompt_tokens - completion)
        is_inside = False
    elif total is not None and itemised:
        beside = total - counts.prompt_tokens - completion
        is_inside = beside == 0 or (is_inside and beside != itemised)
    return completion - audio - (reasoning if is_inside else 0), reasoning, audio
