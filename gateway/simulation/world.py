"""What an endpoint would have answered: what it did answer, where that was recorded, and else what its profile says.

Draws depend on seed, request and endpoint alone. So two configurations that send a request to the same endpoint see
the same answer, and their difference is that of the decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from statistics import NormalDist

import msgspec

from gateway.accounting.prices import PriceBook, Prices, total_input
from gateway.config.model import Endpoint
from gateway.simulation.profiles import Behaviour, Profile
from gateway.simulation.traffic import Arrival, total_output
from gateway.store.decisions import RecordedAttempt
from gateway.types import Usage

_UNKNOWN = Behaviour()
_normal = NormalDist().inv_cdf
_CALLERS_MISTAKES = frozenset(
    f"status_{status}" for status in (400, 404, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422)
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Of one endpoint to one request. Seconds and USD; None: unknown.

    `ttft`: to the first content, or to all of an answer that is not streamed. `counts`: whether a failure is the
    endpoint's. `is_reported`: the provider counted the tokens of `usage`.
    """

    ok: bool
    ttft: float | None
    seconds_per_token: float | None
    duration: float
    usage: Usage
    cost: Decimal | None
    is_reported: bool = True
    counts: bool = True


class World:
    """`profiles`: by endpoint, with windows in seconds since the epoch. `prices`: those in force at each request."""

    def __init__(self, profiles: Mapping[str, Profile], prices: Prices | PriceBook, seed: int = 0) -> None:
        self.profiles = profiles
        self._prices = prices
        self._seed = seed

    def answer(self, arrival: Arrival, endpoint: Endpoint) -> Answer:
        """What the endpoint answers to this request; nothing was recorded of that."""
        behaviour = self._behaviour(endpoint, arrival.at)
        luck, deviate = self._draw(arrival, endpoint)
        ttft = behaviour.draw_ttft(deviate)
        if luck < behaviour.failures:
            return Answer(
                ok=False, ttft=None, seconds_per_token=None, duration=ttft or 0.0, usage=Usage(), cost=Decimal(0)
            )
        pace = behaviour.seconds_per_token
        rest = (pace or 0.0) * arrival.output_tokens
        usage = _usage(arrival, behaviour.cache_share)
        if ttft is not None and not arrival.facts.stream:
            ttft, rest, pace = ttft + rest, 0.0, None
        return Answer(
            ok=True,
            ttft=ttft,
            seconds_per_token=pace,
            duration=(ttft or 0.0) + rest,
            usage=usage,
            cost=self.price(arrival, endpoint, usage),
            is_reported=arrival.is_counted,
        )

    def recorded(self, arrival: Arrival, endpoint: Endpoint, attempt: RecordedAttempt) -> Answer:
        """What it did answer, at the prices of the configuration that is simulated."""
        usage, seconds = attempt.usage, attempt.duration_ms / 1000
        ttft = None if attempt.ttft_ms is None else attempt.ttft_ms / 1000
        written = total_output(usage)
        has_pace = attempt.stream and ttft is not None and written > 1
        return Answer(
            ok=attempt.status in ("ok", "cancelled"),
            ttft=ttft,
            seconds_per_token=max(seconds - ttft, 0.0) / written if has_pace and ttft is not None else None,
            duration=seconds,
            usage=usage,
            cost=attempt.cost_usd if attempt.usage_source == "none" else self.price(arrival, endpoint, usage),
            is_reported=attempt.usage_source == "reported",
            counts=attempt.error_type not in _CALLERS_MISTAKES,
        )

    def price(self, arrival: Arrival, endpoint: Endpoint, usage: Usage) -> Decimal | None:
        at = datetime.fromtimestamp(arrival.at, UTC)
        model = endpoint.upstream_model(arrival.facts.model)
        priced = self._prices.rates_for(endpoint, model, at, total_input(usage))
        return None if priced is None else priced.cost(usage)

    def _behaviour(self, endpoint: Endpoint, at: float) -> Behaviour:
        profile = self.profiles.get(endpoint.id)
        return _UNKNOWN if profile is None else profile.at(at)

    def _draw(self, arrival: Arrival, endpoint: Endpoint) -> tuple[float, float]:
        """A uniform number and a standard normal one."""
        digest = blake2b(f"{self._seed}\0{arrival.request_id}\0{endpoint.id}".encode(), digest_size=16).digest()
        first, second = int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
        return first / 2**64, _normal((second / 2**64) * (1 - 2e-12) + 1e-12)


def _usage(arrival: Arrival, cache_share: float) -> Usage:
    cached = round(arrival.input_tokens * cache_share)
    return Usage(
        input_tokens=arrival.input_tokens - cached, cache_read_tokens=cached, output_tokens=arrival.output_tokens
    )
