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
Capability = Literal["stream", "tools", "json_schema", "vision", "audio", "files", "logprobs", "n"]


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
