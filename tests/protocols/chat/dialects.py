"""The dialects in which the recorded providers speak chat completions."""

from __future__ import annotations

from gateway.config.rows import PLAIN, Dialect

DIALECTS = {
    "gemini": Dialect(reasoning_tokens="total"),
    "mistral": Dialect(audio_tokens="outside", limit_name="max_tokens", demand_word="any"),
    "openrouter": Dialect(thinking="object", reasoning_replay="reasoning_details", cache_marks=True),
    "perplexity": Dialect(reasoning_tokens="outside", limit_name="max_tokens"),
    "snowflake": Dialect(thinking="object", reasoning_replay="reasoning_details", cache_marks=True),
    "xai": Dialect(reasoning_tokens="outside"),
    "deepseek": Dialect(thinking="switch", limit_name="max_tokens", reasoning_replay="reasoning_content"),
    "zai": Dialect(thinking="switch", limit_name="max_tokens", reasoning_replay="reasoning_content"),
    "alibaba": Dialect(thinking="enable", limit_name="max_tokens"),
}


def dialect_of(provider: str) -> Dialect:
    return DIALECTS.get(provider, PLAIN)
