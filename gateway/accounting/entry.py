"""One attempt's entry in the ledger: opened before the upstream is called, settled once, whatever happens."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from time import time_ns

import msgspec

from gateway.accounting.prices import PriceBook, total_input
from gateway.config.model import Endpoint
from gateway.ledger.record import WORKER_LOST
from gateway.ledger.spool import Spool, SpoolError
from gateway.protocols.inbound import Inbound
from gateway.telemetry import Metrics
from gateway.tokens import count_tokens
from gateway.types import Caller, Status, Usage, UsageEvent

_log = logging.getLogger(__name__)
_random = random.Random()  # ids need to be unique, not secret
_LOW_62 = (1 << 62) - 1


class Charge(msgspec.Struct, frozen=True):
    """What an attempt used, as far as it is known.

    `usage` None: the upstream was asked and never answered, so nobody knows what it did.
    """

    usage: Usage | None
    is_reported: bool
    raw_usage: msgspec.Raw | None = None


NOTHING = Charge(Usage(), is_reported=False)
"""The upstream refused or was never reached: it did no work, and bills none."""
UNKNOWN = Charge(None, is_reported=False)


class Context(msgspec.Struct, frozen=True):
    """What is the same for all attempts of a request. `tags`: go on each of their rows."""

    request_id: str
    inbound: Inbound
    caller: Caller
    cost_center: str | None
    route: str
    policy: str
    policy_version: str
    domain: str | None
    tags: Mapping[str, str] = {}


class Books:
    """Where entries go: one worker's spool and metrics, and the prices in force."""

    def __init__(self, spool: Spool, metrics: Metrics) -> None:
        self.spool = spool
        self.metrics = metrics

    def open(
        self,
        context: Context,
        attempt: int,
        endpoint: Endpoint,
        prices: PriceBook,
        *,
        decision: bytes | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Entry:
        """Writes the entry's first record. Raises SpoolError: then nothing may be sent, it could not be accounted.

        `decision`: that of the request (`routing.explanation`), with its first attempt. `tags`: of this attempt alone.
        """
        all_tags = {**context.tags, **tags} if tags else dict(context.tags)
        now = datetime.now(UTC)
        event = UsageEvent(
            event_id=new_event_id(),
            request_id=context.request_id,
            attempt=attempt,
            started_at=now,
            ended_at=now,
            team=context.caller.team,
            project=context.caller.project,
            key_id=context.caller.key_id,
            cost_center=context.cost_center,
            route=context.route,
            policy=context.policy,
            policy_version=context.policy_version,
            domain=context.domain,
            endpoint=endpoint.id,
            provider=endpoint.provider.id,
            model=context.inbound.model,
            upstream_model=endpoint.upstream_model(context.inbound.model),
            region=endpoint.region,
            status="error",
            error_type=WORKER_LOST,
            stream=context.inbound.wants_stream,
            ttft_ms=None,
            duration_ms=0.0,
            usage=Usage(),
            usage_source="none",
            price_status="unpriced",
            cost_usd=None,
            prices=None,
            catalog_version=None,
            tags=all_tags or None,
        )
        self.spool.begin(event, decision)
        return Entry(self, event, context.inbound, endpoint, prices)

    def decide(self, decision: bytes) -> None:
        """Keeps the decision of a request that no attempt follows. A disk that refuses it is counted, no more."""
        try:
            self.spool.decide(decision)
        except SpoolError as error:
            self.metrics.spool_error()
            _log.error("a decision is not recorded: %s", error)


class Entry:
    """Settles exactly once; a second call does nothing."""

    def __init__(
        self, books: Books, event: UsageEvent, inbound: Inbound, endpoint: Endpoint, prices: PriceBook
    ) -> None:
        self._books = books
        self._event = event
        self._inbound = inbound
        self._endpoint = endpoint
        self._prices = prices
        self.is_settled = False

    def tag(self, tags: Mapping[str, str]) -> None:
        """Adds tags to a row that is not settled yet."""
        if tags:
            self._event.tags = {**(self._event.tags or {}), **tags}

    def estimate(self, text: str, raw_usage: msgspec.Raw | None = None) -> Charge:
        """What the upstream must have used to write `text`, counted here because it did not say."""
        model = self._event.upstream_model
        usage = Usage(
            input_tokens=self._inbound.estimate_tokens(model), output_tokens=count_tokens(text, model) if text else 0
        )
        return Charge(usage, is_reported=False, raw_usage=raw_usage)

    def settle(
        self, status: Status, charge: Charge, *, ttft: float | None, duration: float, error_type: str | None = None
    ) -> Decimal | None:
        """Prices the charge and writes the row. Seconds in, cost in USD out (None: unknown).

        A disk that refuses the row does not take the client's answer away: the loss is logged and counted.
        """
        if self.is_settled:
            return self._event.cost_usd
        self.is_settled = True
        event = self._event
        event.status = status
        event.error_type = error_type
        event.ended_at = datetime.now(UTC)
        event.ttft_ms = None if ttft is None else round(ttft * 1000, 3)
        event.duration_ms = round(duration * 1000, 3)
        event.raw_usage = charge.raw_usage
        self._price(charge)
        try:
            self._books.spool.settle(event)
        except SpoolError as error:
            self._books.metrics.spool_error()
            _log.error("usage event %s of request %s is not recorded: %s", event.event_id, event.request_id, error)
        self._books.metrics.attempt(event.endpoint, status, charge.usage, ttft)
        return event.cost_usd

    def _price(self, charge: Charge) -> None:
        event, usage = self._event, charge.usage
        if usage is None:
            return
        event.usage = usage
        if usage.total == 0 and not charge.is_reported:
            event.price_status, event.cost_usd = "priced", Decimal(0)
            return
        event.usage_source = "reported" if charge.is_reported else "estimated"
        priced = self._prices.rates_for(self._endpoint, event.upstream_model, event.started_at, total_input(usage))
        if priced is not None:
            event.price_status = "priced"
            event.cost_usd = priced.cost(usage)
            event.prices = priced.json
            event.catalog_version = priced.catalog_version


def new_event_id() -> str:
    """A UUID of version 7 (RFC 9562, section 5.7): ordered by time, so that rows land at the end of their index."""
    bits = _random.getrandbits(74)
    digits = f"{time_ns() // 1_000_000:012x}7{bits >> 62:03x}{0b10 << 62 | bits & _LOW_62:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_request_id() -> str:
    return f"req_{time_ns() // 1_000_000:011x}{_random.getrandbits(52):013x}"
