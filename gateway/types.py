"""The values that cross module borders: who calls, what is asked, what was counted, what is written down.

Only definitions, no behaviour beyond arithmetic on themselves. Everything here is immutable.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec

Status = Literal["ok", "error", "cancelled", "timeout", "shed"]
UsageSource = Literal["reported", "estimated", "none"]
PriceStatus = Literal["priced", "unpriced"]
Capability = Literal[
    "stream",
    "tools",
    "parallel_tools",  # may be switched on or off
    "tool_choice",  # a tool can be demanded
    "json_schema",
    "vision",
    "audio",
    "files",
    "reasoning",  # effort or thinking can be asked for
    "cache_marks",
    "service_tier",
    "seed",
    "logprobs",
    "n",
    "embeddings",
]
"""What an endpoint can do."""

Surface = Literal["chat", "responses", "completions", "embeddings", "messages", "count_tokens"]
"""What an application may call: `/v1/chat/completions`, `/v1/responses`, ..."""
WireName = Literal[
    "chat", "responses", "completions", "embeddings", "messages", "gemini", "predict", "converse", "cohere", "ollama"
]
"""The wire formats. `chat` is OpenAI's chat completions, `messages` Anthropic's, `converse` Bedrock's, `embeddings`
OpenAI's, `predict` Vertex AI's for embeddings; `gemini`, `converse`, `cohere` and `ollama` have theirs with them."""
CONVERSATION_WIRES: frozenset[WireName] = frozenset(
    {"chat", "responses", "messages", "gemini", "converse", "cohere", "ollama"}
)
"""Those that any conversation can be translated into."""


class Caller(msgspec.Struct, frozen=True):
    """The identity that pays for a request. `models`: globs of the models it may ask for; empty means all."""

    key_id: str
    team: str
    project: str | None = None
    models: tuple[str, ...] = ()
    is_admin: bool = False


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one attempt in disjoint buckets: no token is in two of them, so they sum to the total.

    Providers count otherwise (OpenAI's prompt tokens include cached ones); each adapter converts, nobody else does.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_audio_tokens: int = 0

    @property
    def total(self) -> int:
        return sum(msgspec.structs.astuple(self))


BUCKETS: tuple[str, ...] = Usage.__struct_fields__


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """Prices in USD per million tokens. `None`: this bucket has no price of its own.

    A bucket without a price falls back as `accounting/prices.py` says; it is never taken as free.
    """

    input: Decimal
    output: Decimal
    cache_read: Decimal | None = None
    cache_write_5m: Decimal | None = None
    cache_write_1h: Decimal | None = None
    input_audio: Decimal | None = None
    input_image: Decimal | None = None
    reasoning: Decimal | None = None
    output_audio: Decimal | None = None
    request: Decimal | None = None  # USD per request, not per million


class UsageEvent(msgspec.Struct, kw_only=True):
    """One row of the ledger: one attempt at one endpoint. Field names are the columns of `usage_events`."""

    event_id: str  # UUID, time-ordered
    request_id: str
    attempt: int  # 1 for the first attempt of the request
    started_at: datetime  # UTC
    ended_at: datetime
    team: str
    project: str | None
    key_id: str
    cost_center: str | None
    route: str
    policy: str
    policy_version: str
    domain: str | None
    endpoint: str
    provider: str
    model: str  # as the client asked
    upstream_model: str  # as the upstream was asked
    region: str | None
    status: Status
    error_type: str | None
    stream: bool
    ttft_ms: float | None
    duration_ms: float
    usage: Usage
    usage_source: UsageSource
    price_status: PriceStatus
    cost_usd: Decimal | None
    prices: msgspec.Raw | None  # JSON of the rates used
    catalog_version: str | None
    tags: dict[str, str] | None = None
    raw_usage: msgspec.Raw | None = None  # the upstream's own usage object, verbatim


class EndpointHealth(msgspec.Struct, frozen=True):
    """What is known of an endpoint from its own traffic, as one worker saw it.

    `ttft`: decayed mean of the time to first content in seconds, failures counted as slow; None: never used.
    `ejected_until`: on the loop's clock, in seconds.
    """

    ttft: float | None = None
    in_flight: int = 0
    failures_in_a_row: int = 0
    ejected_until: float = 0.0


class Candidate(msgspec.Struct, frozen=True):
    """An endpoint that may serve a request. `expected_cost` in USD, `expected_ttft` in seconds; None: unknown."""

    endpoint: str
    expected_cost: Decimal | None
    expected_ttft: float | None
    ejected: bool = False


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An active key as workers hold it. `hash`: SHA-256 of the secret, hex; whoever uses it checks `expires_at`."""

    hash: str
    key_id: str
    team: str
    project: str | None = None
    models: tuple[str, ...] = ()
    role: Literal["key", "admin"] = "key"
    expires_at: datetime | None = None
