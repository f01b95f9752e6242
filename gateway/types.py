"""The values that cross module borders: who calls, what is asked, what was counted, what is written down.

Only definitions, no behaviour beyond arithmetic on themselves. Everything here is immutable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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


Complexity = Literal["simple", "moderate", "complex"]
"""How much a request asks of a model, as far as its words show."""
Freshness = Literal["static", "live", "real-time"]
"""Whether a model answers from what it was trained on, with searched sources, or with data of this moment; ordered."""


Period = Literal["day", "week", "month", "quarter", "year"]
"""Of a budget: calendar periods in its own time zone; weeks begin on Monday."""
Role = Literal["key", "admin", "operator", "finance", "developer"]
"""What a key or a person may do. `key`: an application's, which may only call models."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """`hard`: nothing that costs money is begun that might pass it. `zone`: IANA name of the time zone in which its
    periods begin. `alerts`: shares of it (1 is all of it) at which its owners are told."""

    usd: Decimal
    per: Period = "month"
    hard: bool = False
    zone: str = "UTC"
    alerts: tuple[Decimal, ...] = (Decimal("0.5"), Decimal("0.8"), Decimal(1))


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """By calendar minute (UTC), over all workers and gateways of one database; None: no limit."""

    requests: int | None = None
    tokens: int | None = None


NO_LIMIT = RateLimit()


class Caller(msgspec.Struct, frozen=True):
    """The identity that pays for a request. `models`: globs of the models it may ask for; empty means all. `scopes`:
    surfaces that it may call; empty means all. `budget` and `limits` are the key's own."""

    key_id: str
    team: str
    project: str | None = None
    models: tuple[str, ...] = ()
    is_admin: bool = False
    scopes: tuple[str, ...] = ()
    cost_center: str | None = None
    budget: Budget | None = None
    limits: RateLimit = NO_LIMIT


class Usage(msgspec.Struct, frozen=True, gc=False):
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


class PriceCard(msgspec.Struct, frozen=True):
    """Prices for comparing endpoints before a call, in floats: what is written down is reckoned with `Rates`.

    USD per million tokens, `request` in USD. They hold where there are more than `above` input tokens, and at most
    `up_to`.
    """

    input: float
    output: float
    cache_read: float
    request: float = 0.0
    above: int = -1
    up_to: float = math.inf


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
    organisation: str | None = None
    gateway: str | None = None  # which of several gateways on one database wrote the row
    service_tier: str | None = None  # the one that was billed, as the provider names it
    max_cost_usd: Decimal | None = None  # what it may have cost at most, where the cost is not known
    late_at: datetime | None = None  # set by the database: when it came, its month being closed by then
    usage: Usage
    usage_source: UsageSource
    price_status: PriceStatus
    cost_usd: Decimal | None
    prices: msgspec.Raw | None  # JSON of the rates used
    catalog_version: str | None
    tags: dict[str, str] | None = None
    raw_usage: msgspec.Raw | None = None  # the upstream's own usage object, verbatim


class EndpointHealth(msgspec.Struct, gc=False):
    """What is known of an endpoint from its own traffic. `in_flight` is counted on; for the rest another one is made.

    None: not known. `ttft`: expected time to first content in seconds (a decayed median, or that of the newest attempts
    where they disagree), failures counted as slow. `ejected_until`: on the loop's clock, in seconds. `in_flight`: of
    this worker alone.
    """

    ttft: float | None = None
    in_flight: int = 0
    failures_in_a_row: int = 0
    ejected_until: float = 0.0
    ttft_p95: float | None = None
    seconds_per_token: float | None = None  # between first content and the end, for each output token
    cache_share: float | None = None  # of the input tokens, those that the provider read from its cache
    failure_share: float = 0.0  # of the recent attempts, decayed
    admitted: float = 1.0  # of the requests it would get, those it may take while it returns from an ejection
    samples: float = 0.0  # decayed count of observations behind these numbers


class RouteHabits(msgspec.Struct, frozen=True):
    """What was learned of the requests of one route. None: not known.

    `by_size`: as `output_tokens`, by `size_of` the roughly counted input: long questions get other answers than short
    ones.
    """

    output_tokens: float | None = None  # mean, of each choice
    input_ratio: float | None = None  # input tokens as providers count them, for each one roughly counted
    samples: float = 0.0
    by_size: Mapping[int, float] = {}

    def output_for(self, rough_input: int) -> float | None:
        """Expected output tokens of each choice."""
        return self.by_size.get(size_of(rough_input), self.output_tokens)


def size_of(tokens: int) -> int:
    """A class of sizes, two for each doubling: 0 for none, 40 for a million."""
    return int(2 * math.log2(tokens + 1)) if tokens > 0 else 0


class Outlook(msgspec.Struct, frozen=True):
    """Everything learned that a decision reads. `version`: of the learned numbers, for explanations."""

    endpoints: Mapping[str, EndpointHealth] = {}
    routes: Mapping[str, RouteHabits] = {}
    version: str = ""


class Shift(msgspec.Struct, frozen=True):
    """Traffic being moved from one endpoint to another by an escape (shares from 0 to 1).

    `share`: of the requests that `source` would get first, those that `target` gets instead, `source` being next.
    `shadow_share`: of those, the ones of which `target` gets a copy whose answer nobody sees.
    """

    escape_id: str
    source: str
    target: str
    share: float = 0.0
    shadow_share: float = 0.0


COST_UNIT = Decimal(1).scaleb(-12)
"""USD. Expected costs are compared as whole numbers of it: as exact as a rate of six decimals, and quick."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An endpoint that may serve a request. `cost` in `COST_UNIT`, `expected_ttft` in seconds; None: unknown.

    `ejected`: tried only when nothing else is left. `placed_by`: what put it before others, where that was not the
    policy's selection: `canary`, `sticky`, `wish`, `escape`, `fallback`.
    """

    endpoint: str
    cost: int | None
    expected_ttft: float | None
    ejected: bool = False
    expected_seconds_per_token: float | None = None
    placed_by: str | None = None

    @property
    def expected_cost(self) -> Decimal | None:
        """In USD."""
        return None if self.cost is None else (self.cost * COST_UNIT).normalize()


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An active key as workers hold it. `hash`: SHA-256 of the secret, hex; whoever uses it checks `expires_at`."""

    hash: str
    key_id: str
    team: str
    project: str | None = None
    models: tuple[str, ...] = ()
    role: Role = "key"
    expires_at: datetime | None = None
    scopes: tuple[str, ...] = ()
    cost_center: str | None = None
    budget: Budget | None = None
    limits: RateLimit = NO_LIMIT
