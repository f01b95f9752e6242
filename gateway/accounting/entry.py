"""One attempt's entry in the ledger: opened before the upstream is called, settled once, whatever happens."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from time import time_ns
from typing import Protocol

import msgspec

from gateway.accounting.plausibility import Asked, doubt, unreadable
from gateway.accounting.rates import PricedRates, total_input
from gateway.config.model import Endpoint
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamError
from gateway.ledger.record import DOUBT, WORKER_LOST
from gateway.ledger.spool import Spool, SpoolError
from gateway.protocols.base import NOT_JSON
from gateway.protocols.inbound import Inbound
from gateway.telemetry import Metrics
from gateway.tokens import count_tokens
from gateway.types import Caller, Status, Usage, UsageEvent

_log = logging.getLogger(__name__)
_random = random.Random()  # ids need to be unique, not secret
_LOW_62 = (1 << 62) - 1

_encode_answer = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Pricing(Protocol):
    """Where entries ask for rates: `accounting.prices.Prices`."""

    def rates_for(
        self,
        endpoint: Endpoint,
        upstream_model: str,
        at: datetime,
        input_tokens: int,
        *,
        team: str | None = None,
        service_tier: str | None = None,
    ) -> PricedRates | None: ...


class Charge(msgspec.Struct, frozen=True):
    """What an attempt used, as far as it is known.

    `usage` None: the upstream was asked and never answered, so nobody knows what it did. `text`: all that the model
    wrote, asked for only where its count is not believed (`Entry.reported`).
    """

    usage: Usage | None
    is_reported: bool
    raw_usage: msgspec.Raw | None = None
    text: Callable[[], str] | None = None


NOTHING = Charge(Usage(), is_reported=False)
"""The upstream refused or was never reached: it did no work, and bills none."""
UNKNOWN = Charge(None, is_reported=False)
NO_USAGE = Usage()


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
    organisation: str | None = None


class Books:
    """Where entries go: one worker's spool and metrics. `gateway`: the name of this one among those that share a
    database."""

    def __init__(self, spool: Spool, metrics: Metrics, *, gateway: str | None = None) -> None:
        self.spool = spool
        self.metrics = metrics
        self._gateway = gateway
        metrics.spool = lambda: spool.state

    def open(
        self,
        context: Context,
        attempt: int,
        endpoint: Endpoint,
        prices: Pricing,
        *,
        max_cost: Decimal | None = None,
        decision: bytes | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Entry:
        """Writes the entry's first record. Raises SpoolError: then nothing may be sent, it could not be accounted.

        `max_cost`: USD that the attempt may cost at most (None: nobody can tell). It stands on the row until the cost
        is known. `decision`: that of the request (`routing.explanation`), with its first attempt. `tags`: of this
        attempt alone.
        """
        all_tags = {**context.tags, **tags} if tags else dict(context.tags) if context.tags else None
        caller, model = context.caller, context.inbound.model
        now = datetime.now(UTC)
        event = UsageEvent(
            event_id=new_event_id(),
            request_id=context.request_id,
            attempt=attempt,
            started_at=now,
            ended_at=now,
            team=caller.team,
            project=caller.project,
            key_id=caller.key_id,
            cost_center=context.cost_center,
            route=context.route,
            policy=context.policy,
            policy_version=context.policy_version,
            domain=context.domain,
            endpoint=endpoint.id,
            provider=endpoint.provider.id,
            model=model,
            upstream_model=endpoint.upstream_model(model),
            region=endpoint.region,
            status="error",
            error_type=WORKER_LOST,
            stream=context.inbound.wants_stream,
            ttft_ms=None,
            duration_ms=0.0,
            organisation=context.organisation,
            gateway=self._gateway,
            max_cost_usd=max_cost,
            usage=NO_USAGE,
            usage_source="none",
            price_status="unpriced",
            cost_usd=None,
            prices=None,
            catalog_version=None,
            tags=all_tags,
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

    def __init__(self, books: Books, event: UsageEvent, inbound: Inbound, endpoint: Endpoint, prices: Pricing) -> None:
        self.charge: Charge = UNKNOWN  # what it was settled with, as far as it was believed
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

    def reported(
        self, usage: Usage, raw_usage: msgspec.Raw | None, *, answer: bytes = b"", text: Callable[[], str] | None = None
    ) -> Charge:
        """What the upstream says it used. Should that not be believed, the output is counted in what it wrote: `text`
        of a stream, or the whole `answer` as the client gets it."""
        if text is None and answer:
            text = partial(self._text_of, answer)
        return Charge(usage, is_reported=True, raw_usage=raw_usage, text=text)

    def settle(
        self,
        status: Status,
        charge: Charge,
        *,
        ttft: float | None,
        duration: float,
        error_type: str | None = None,
        service_tier: str | None = None,
    ) -> Decimal | None:
        """Prices the charge and writes the row. Seconds in, cost in USD out (None: unknown). `service_tier`: the one
        that the upstream says it billed.

        A disk that refuses the row does not take the client's answer away: what cannot be kept is logged and counted.
        """
        if self.is_settled:
            return self._event.cost_usd
        self.is_settled = True
        event = self._event
        charge = self._judge(status, charge)
        # Without `text`, which may lead back here: a cycle for each request would keep the collector busy.
        self.charge = Charge(charge.usage, charge.is_reported, charge.raw_usage)
        duration = max(0.0, duration)
        event.status = status
        event.error_type = error_type
        event.ended_at = event.started_at + timedelta(seconds=duration)  # the clock may have been set meanwhile
        event.ttft_ms = None if ttft is None else round(ttft * 1000, 3)
        event.duration_ms = round(duration * 1000, 3)
        event.raw_usage = charge.raw_usage
        event.service_tier = service_tier
        self._price(charge)
        if event.cost_usd is not None:
            event.max_cost_usd = None
        try:
            self._books.spool.settle(event)
        except SpoolError as error:
            self._books.metrics.spool_error()
            _log.error("usage event %s of request %s is not recorded: %s", event.event_id, event.request_id, error)
        self._books.metrics.attempt(event.endpoint, status, charge.usage, ttft)
        return event.cost_usd

    async def durable(self) -> None:
        """After `settle`, before the answer's last byte: waits for the disk, where the configuration says so."""
        try:
            await self._books.spool.durable()
        except SpoolError as error:
            self._books.metrics.spool_error()
            _log.error("usage event %s may not outlive a power cut: %s", self._event.event_id, error)

    def _judge(self, status: Status, charge: Charge) -> Charge:
        """The charge, or an estimate in its place where the upstream's count cannot be true."""
        usage, raw = charge.usage, charge.raw_usage
        if charge.is_reported and usage is not None:
            view = self._inbound.view
            asked = Asked(len(self._inbound.body), view.output_limit, view.choices, self._is_open_ended)
            reason = doubt(usage, raw, asked)
            if reason is None:
                return charge
            charge = self.estimate("" if charge.text is None else charge.text(), raw)
        elif status == "ok" and raw is not None:
            reason = unreadable(raw)
        else:
            return charge
        self.tag({DOUBT: reason})
        self._books.metrics.usage_doubted(self._event.endpoint)
        _log.warning(
            "endpoint `%s` counted what cannot be true for request %s, which is estimated: %s",
            self._event.endpoint,
            self._event.request_id,
            reason,
        )
        return charge

    def _is_open_ended(self) -> bool:
        """Whether the request may have more to it than its words."""
        view = self._inbound.view
        return bool(view.native_feature() or view.kept_state() or view.outline().media)

    def _text_of(self, answer: bytes) -> str:
        """All that the model wrote, of a whole answer in the client's protocol: one that says nothing of its usage is
        read for its words."""
        try:
            fields = _decode_answer(answer)
            fields.pop("usage", None)
            return self._inbound.protocol.scan_answer(_encode_answer(fields), PLAIN).text
        except (*NOT_JSON, UpstreamError):
            return ""

    def _price(self, charge: Charge) -> None:
        event, usage = self._event, charge.usage
        if usage is None:
            return
        event.usage = usage
        if usage.total == 0 and not charge.is_reported:
            event.price_status, event.cost_usd = "priced", Decimal(0)
            return
        event.usage_source = "reported" if charge.is_reported else "estimated"
        priced = self._prices.rates_for(
            self._endpoint,
            event.upstream_model,
            event.started_at,
            total_input(usage),
            team=event.team,
            service_tier=event.service_tier,
        )
        if priced is not None:
            event.price_status = "priced"
            event.cost_usd = priced.cost(usage)
            event.prices = priced.json
            event.catalog_version = priced.catalog_version
        elif self._books.metrics.unpriced(event.endpoint, event.upstream_model):
            _log.warning(
                "model `%s` of endpoint `%s` has no price: its attempts are unpriced until somebody states one",
                event.upstream_model,
                event.endpoint,
            )


class _Clock:
    """Milliseconds and random bits, as one number that only grows within a process."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        """122 bits: 48 of time, 74 of chance. When the clock stands still or is set back it counts on in small random
        steps from the last number: ids made later are larger, whatever the clock says."""
        now = time_ns() // 1_000_000 << 74 | _random.getrandbits(74)
        if now <= self._last:
            now = self._last + 1 + _random.getrandbits(40)
        self._last = now
        return now


_clock = _Clock()


def new_event_id() -> str:
    """A UUID of version 7 (RFC 9562, sections 5.7 and 6.2): ordered by time, so that rows land at the end of their
    index, and strictly ascending within a process."""
    bits = _clock.next()
    high, low = bits >> 62, bits & _LOW_62  # 60 and 62 of them, on both sides of the variant
    digits = "%032x" % ((high >> 12) << 80 | 7 << 76 | (high & 0xFFF) << 64 | 2 << 62 | low)
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_request_id() -> str:
    return f"req_{time_ns() // 1_000_000:011x}{_random.getrandbits(52):013x}"
