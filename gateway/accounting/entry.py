"""One attempt's entry in the ledger: opened before the upstream is called, settled once, whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from time import time_ns
from typing import NamedTuple, Protocol

import msgspec

from gateway.accounting.plausibility import Asked, doubt, is_ordinary, unreadable
from gateway.accounting.rates import PricedRates, total_input
from gateway.config.model import Endpoint
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamError
from gateway.ledger.identifiers import new_event_id
from gateway.ledger.record import (
    DOUBT,
    WORKER_LOST,
    begun_json,
    place_json,
    settled_json,
    start_json,
    write_begun,
    write_settled,
)
from gateway.ledger.spool import Spool, SpoolError
from gateway.protocols.base import NOT_JSON
from gateway.protocols.inbound import Inbound
from gateway.telemetry import Metrics
from gateway.tokens import count_tokens
from gateway.types import Caller, PriceStatus, Status, Usage, UsageEvent, UsageSource

_log = logging.getLogger(__name__)

_MAX_PLACES = 1024

_encode_answer = msgspec.json.Encoder().encode
_decode_answer = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Pricing(Protocol):
    """Where entries ask for rates: `accounting.prices.Prices`."""

    def rates_at(
        self,
        endpoint: Endpoint,
        upstream_model: str,
        at: float,
        input_tokens: int,
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
_NO_COST = Decimal(0)


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


class _Place(NamedTuple):
    """What the rows of one key, route, model and endpoint have in common, as the spool writes it."""

    endpoint: Endpoint
    upstream_model: str
    json: bytes | None  # None: something in it cannot be written as it is


class Books:
    """Where entries go: one worker's spool and metrics. `gateway`: the name of this one among those that share a
    database."""

    def __init__(self, spool: Spool, metrics: Metrics, *, gateway: str | None = None) -> None:
        self.spool = spool
        self.metrics = metrics
        self.gateway = gateway
        # Sixteen of the twenty values with which a row begins are the same for most requests; to encode them each time
        # would take as long as all the rest of a record.
        self._places: dict[tuple[str | bool | None, ...], _Place] = {}
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
        all_tags = {**context.tags, **tags} if tags else context.tags or None
        entry = Entry(self, context, attempt, endpoint, prices, self._place(context, endpoint), max_cost, all_tags)
        self.spool.begin(entry.event_id, entry.begun(), decision)
        return entry

    def _place(self, context: Context, endpoint: Endpoint) -> _Place:
        caller, inbound = context.caller, context.inbound
        model = inbound.model
        key = (
            *(caller.team, caller.project, caller.key_id, context.cost_center, context.route, context.policy),
            *(context.policy_version, context.domain, endpoint.id, model, inbound.wants_stream, context.organisation),
        )
        place = self._places.get(key)
        if place is not None and place.endpoint is endpoint:  # another one's after the configuration changed
            return place
        if len(self._places) >= _MAX_PLACES:  # clients choose models' names
            self._places.clear()
        upstream_model = endpoint.upstream_model(model)
        where = (endpoint.id, endpoint.provider.id, model, upstream_model, endpoint.region)
        json: bytes | None
        try:
            json = place_json((*key[:8], *where, inbound.wants_stream, context.organisation, self.gateway))
        except UnicodeEncodeError:
            json = None
        place = self._places[key] = _Place(endpoint, upstream_model, json)
        return place

    def decide(self, decision: bytes) -> None:
        """Keeps the decision of a request that no attempt follows. A disk that refuses it is counted, no more."""
        try:
            self.spool.decide(decision)
        except SpoolError as error:
            self.metrics.spool_error()
            _log.error("a decision is not recorded: %s", error)


def _time_of(microseconds: int) -> datetime:
    """Exact for some centuries: a float has 53 bits."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


class Entry:
    """Settles exactly once; a second call does nothing.

    `charge`, `status`, `error_type` and `cost` (USD; None: unknown) are what it was settled with, as far as the charge
    was believed.
    """

    __slots__ = (
        "_attempt",
        "_books",
        "_catalog_version",
        "_context",
        "_endpoint",
        "_max_cost",
        "_place",
        "_price_json",
        "_prices",
        "_service_tier",
        "_start",
        "_started",
        "_tags",
        "_usage_source",
        "charge",
        "cost",
        "error_type",
        "event_id",
        "is_priced",
        "is_settled",
        "status",
    )

    def __init__(
        self,
        books: Books,
        context: Context,
        attempt: int,
        endpoint: Endpoint,
        prices: Pricing,
        place: _Place,
        max_cost: Decimal | None,
        tags: Mapping[str, str] | None,
    ) -> None:
        started = time_ns() // 1000
        self.event_id = new_event_id(started)
        self.charge: Charge = UNKNOWN
        self.status: Status = "error"
        self.error_type: str | None = WORKER_LOST
        self.cost: Decimal | None = None
        self.is_settled = False
        self.is_priced = False
        self._books = books
        self._context = context
        self._attempt = attempt
        self._endpoint = endpoint
        self._prices = prices
        self._place = place
        self._max_cost = max_cost
        self._tags = tags
        self._started = started  # microseconds since the epoch
        self._start: bytes | None = None
        self._service_tier: str | None = None
        self._usage_source: UsageSource = "none"
        self._price_json: msgspec.Raw | None = None
        self._catalog_version: str | None = None

    def begun(self) -> bytes:
        """The record with which it begins."""
        place, started_at = self._place.json, _time_of(self._started)
        try:
            if place is not None:
                request_id = self._context.request_id
                start = start_json(self.event_id, request_id, self._attempt, started_at, place)
                json = begun_json(start, self._max_cost, self._tags)
                self._start = start
                return json
        except ValueError:
            pass
        return write_begun(self._event(started_at, None, 0.0))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Adds tags to a row that is not settled yet."""
        if tags:
            self._tags = {**(self._tags or {}), **tags}

    def estimate(self, text: str, raw_usage: msgspec.Raw | None = None) -> Charge:
        """What the upstream must have used to write `text`, counted here because it did not say."""
        model, inbound = self._place.upstream_model, self._context.inbound
        usage = Usage(
            input_tokens=inbound.estimate_tokens(model), output_tokens=count_tokens(text, model) if text else 0
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
            return self.cost
        self.is_settled = True
        charge = self._judge(status, charge)
        # Without `text`, which may lead back here: a cycle for each request would keep the collector busy.
        self.charge = charge if charge.text is None else Charge(charge.usage, charge.is_reported, charge.raw_usage)
        duration = max(0.0, duration)
        self.status = status
        self.error_type = error_type
        self._service_tier = service_tier
        self._price(charge)
        try:
            self._books.spool.settle(self.event_id, self._settled(ttft, duration))
        except SpoolError as error:
            self._books.metrics.spool_error()
            message = "usage event %s of request %s is not recorded: %s"
            _log.error(message, self.event_id, self._context.request_id, error)
        self._books.metrics.attempt(
            self._endpoint,
            self._context.inbound.protocol.surface,
            self._place.upstream_model,
            status,
            charge.usage,
            ttft,
            duration,
            self._context.inbound.wants_stream,
            error_type,
        )
        return self.cost

    @property
    def waits_for_disk(self) -> bool:
        """Whether `durable` has to be awaited after `settle`."""
        return self._books.spool.waits_for_disk

    async def durable(self) -> None:
        """After `settle`, before the answer's last byte: waits for the disk, where the configuration says so."""
        try:
            await self._books.spool.durable()
        except SpoolError as error:
            self._books.metrics.spool_error()
            _log.error("usage event %s may not outlive a power cut: %s", self.event_id, error)

    def _settled(self, ttft: float | None, duration: float) -> bytes:
        """The record with which it ends. Seconds in."""
        passed = round(duration * 1e6)
        ended_at = _time_of(self._started + passed)  # the clock may have been set meanwhile
        ttft_ms = None if ttft is None else round(ttft * 1e6) / 1000
        duration_ms = passed / 1000
        if self._start is not None:
            usage, cost = self.charge.usage or NO_USAGE, self.cost
            end = (
                ended_at,
                self.status,
                self.error_type,
                ttft_ms,
                duration_ms,
                self._service_tier,
                self._max_cost if cost is None else None,
                usage.input_tokens,
                usage.cache_read_tokens,
                usage.cache_write_5m_tokens,
                usage.cache_write_1h_tokens,
                usage.input_audio_tokens,
                usage.input_image_tokens,
                usage.output_tokens,
                usage.reasoning_tokens,
                usage.output_audio_tokens,
                self._usage_source,
                "priced" if self.is_priced else "unpriced",
                cost,
                self._catalog_version,
            )
            try:
                return settled_json(self._start, end, self._price_json, self._tags, self.charge.raw_usage)
            except ValueError:
                pass
        return write_settled(self._event(ended_at, ttft_ms, duration_ms))

    def _event(self, ended_at: datetime, ttft_ms: float | None, duration_ms: float) -> UsageEvent:
        """The whole row, as it stands: for the few in which something cannot be stored as it is."""
        context, endpoint = self._context, self._endpoint
        caller, inbound = context.caller, context.inbound
        price_status: PriceStatus = "priced" if self.is_priced else "unpriced"
        return UsageEvent(
            event_id=self.event_id,
            request_id=context.request_id,
            attempt=self._attempt,
            started_at=_time_of(self._started),
            ended_at=ended_at,
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
            model=inbound.model,
            upstream_model=self._place.upstream_model,
            region=endpoint.region,
            status=self.status,
            error_type=self.error_type,
            stream=inbound.wants_stream,
            ttft_ms=ttft_ms,
            duration_ms=duration_ms,
            organisation=context.organisation,
            gateway=self._books.gateway,
            service_tier=self._service_tier,
            max_cost_usd=self._max_cost if self.cost is None else None,
            usage=self.charge.usage or NO_USAGE,
            usage_source=self._usage_source,
            price_status=price_status,
            cost_usd=self.cost,
            prices=self._price_json,
            catalog_version=self._catalog_version,
            tags=dict(self._tags) if self._tags else None,
            raw_usage=self.charge.raw_usage,
        )

    def _judge(self, status: Status, charge: Charge) -> Charge:
        """The charge, or an estimate in its place where the upstream's count cannot be true."""
        usage, raw = charge.usage, charge.raw_usage
        if charge.is_reported and usage is not None:
            size = len(self._context.inbound.body)
            if is_ordinary(usage, raw, size):
                return charge
            view = self._context.inbound.view
            asked = Asked(size, view.output_limit, view.choices, self._is_open_ended)
            reason = doubt(usage, raw, asked)
            if reason is None:
                return charge
            charge = self.estimate("" if charge.text is None else charge.text(), raw)
        elif status == "ok" and raw is not None:
            reason = unreadable(raw)
        else:
            return charge
        self.tag({DOUBT: reason})
        self._books.metrics.usage_doubted(self._endpoint.id)
        _log.warning(
            "endpoint `%s` counted what cannot be true for request %s, which is estimated: %s",
            self._endpoint.id,
            self._context.request_id,
            reason,
        )
        return charge

    def _is_open_ended(self) -> bool:
        """Whether the request may have more to it than its words."""
        view = self._context.inbound.view
        return bool(view.native_feature() or view.kept_state() or view.outline().media)

    def _text_of(self, answer: bytes) -> str:
        """All that the model wrote, of a whole answer in the client's protocol: one that says nothing of its usage is
        read for its words."""
        try:
            fields = _decode_answer(answer)
            fields.pop("usage", None)
            return self._context.inbound.protocol.scan_answer(_encode_answer(fields), PLAIN).text
        except (*NOT_JSON, UpstreamError):
            return ""

    def _price(self, charge: Charge) -> None:
        usage = charge.usage
        if usage is None:
            return
        if not charge.is_reported and usage.total == 0:
            self.is_priced, self.cost = True, _NO_COST
            return
        self._usage_source = "reported" if charge.is_reported else "estimated"
        endpoint, model = self._endpoint, self._place.upstream_model
        team, at = self._context.caller.team, self._started / 1e6
        priced = self._prices.rates_at(endpoint, model, at, total_input(usage), team, self._service_tier)
        if priced is not None:
            self.is_priced, self.cost = True, priced.cost(usage)
            self._price_json, self._catalog_version = priced.json, priced.catalog_version
        elif self._books.metrics.unpriced(endpoint.id, model):
            _log.warning(
                "model `%s` of endpoint `%s` has no price: its attempts are unpriced until somebody states one",
                model,
                endpoint.id,
            )
