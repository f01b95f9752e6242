"""What a client asks of routing: OpenRouter's `provider` object and the suffixes `:floor` and `:nitro` of a model.

Source: OpenRouter's documentation, "Provider routing" (openrouter.ai/docs/guides/routing/provider-routing). Where it
names providers, ids of providers and of endpoints of the configuration are meant. Wishes narrow and order what policy
allows; they never widen it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """`max_price`: USD per million tokens of input and of output, and USD per request.

    `preferred_max_latency` (seconds of TTFT) and `preferred_min_throughput` (tokens per second) put endpoints last that
    miss them; they exclude none.
    """

    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow_fallbacks: bool = True
    require_parameters: bool = False
    data_collection: Literal["allow", "deny"] = "allow"
    zdr: bool = False
    enforce_distillable_text: bool = False
    quantizations: tuple[str, ...] = ()
    sort: Literal["price", "throughput", "latency"] | None = None
    max_price: tuple[Decimal | None, Decimal | None, Decimal | None] = (None, None, None)
    preferred_max_latency: float | None = None
    preferred_min_throughput: float | None = None
