"""Pricing again what is recorded: each attempt at the prices in force now, and a correction where that differs.

Nothing is edited, and a second run finds nothing to do. What finance adjusted by hand stays as it is: only the row's
own cost and its price corrections are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine

from gateway.accounting.catalogue_desk import prices_in_force
from gateway.accounting.prices import PricedRates, total_input
from gateway.config.model import Configuration, Endpoint
from gateway.store.audit import Author
from gateway.store.corrections import (
    BATCH,
    Attempt,
    Chosen,
    PriceChange,
    add_price_changes,
    correcting,
    count_attempts,
    read_attempts,
)

RatesFor = Callable[[Endpoint, Attempt], PricedRates | None]
"""The rates in force now for an attempt at an endpoint; None: nobody states a price."""
Progress = Callable[[str, int, int], None]
GROUPS = ("team", "model", "endpoint")
_EXACT = Context(prec=200)


class Sum(msgspec.Struct):
    """`attempts`: corrected; `first_prices`: of them, those that had no price."""

    attempts: int = 0
    first_prices: int = 0
    amount_usd: Decimal = Decimal(0)

    def add(self, change: PriceChange) -> None:
        self.attempts += 1
        self.first_prices += change.is_first_price
        self.amount_usd = _EXACT.add(self.amount_usd, change.amount_usd)


class Repricing(msgspec.Struct, kw_only=True):
    """What came of a run. `unpriced`: attempts that still have no price, by endpoint and upstream model; `kept`:
    attempts that nobody prices any more and that keep the price they have; `gone`: endpoints that the configuration
    has no more or that serve something else now: their attempts are priced by provider and model."""

    dry_run: bool
    examined: int = 0
    unchanged: int = 0
    kept: int = 0
    changed: Sum = msgspec.field(default_factory=Sum)
    unpriced: dict[str, int] = msgspec.field(default_factory=dict)
    gone: dict[str, int] = msgspec.field(default_factory=dict)
    by: dict[str, dict[str, Sum]] = msgspec.field(default_factory=lambda: {name: {} for name in GROUPS})

    def add(self, change: PriceChange) -> None:
        self.changed.add(change)
        for name, sums in self.by.items():
            sums.setdefault(change.attempt.dimensions[name] or "", Sum()).add(change)


def reprice(
    engine: Engine,
    configuration: Configuration,
    rates_for: RatesFor,
    chosen: Chosen,
    *,
    author: Author,
    reason: str,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Repricing:
    """Prices the chosen attempts and writes a correction for each whose cost changes, in batches.

    A batch stands or falls as a whole; what was written before a failure stays, and the next run goes on behind it.
    Attempts whose usage nobody knows are left alone. Raises StoreError.
    """
    result = Repricing(dry_run=dry_run)
    total = count_attempts(engine, chosen)
    last: Attempt | None = None
    while True:
        with engine.connect() if dry_run else correcting(engine) as connection:
            attempts = read_attempts(connection, chosen, last)
            changes = _changes(attempts, configuration, rates_for, result)
            if not dry_run:
                _write(connection, changes, author, reason)
        for change in changes:
            result.add(change)
        if progress is not None:
            progress("pricing", result.examined, max(total, result.examined))
        if len(attempts) < BATCH:
            return result
        last = attempts[-1]


def _write(connection: Connection, changes: list[PriceChange], author: Author, reason: str) -> None:
    if changes:
        add_price_changes(connection, changes, author, reason)


def _changes(
    attempts: list[Attempt], configuration: Configuration, rates_for: RatesFor, result: Repricing
) -> list[PriceChange]:
    found = []
    for attempt in attempts:
        result.examined += 1
        change = price_change(attempt, configuration, rates_for, result)
        if change is not None:
            found.append(change)
    return found


def price_change(
    attempt: Attempt, configuration: Configuration, rates_for: RatesFor, result: Repricing
) -> PriceChange | None:
    """What the prices in force now make of one attempt; None: they leave it as it is. Counts why in `result`."""
    names = attempt.dimensions
    endpoint, is_gone = endpoint_of(names, configuration)
    if is_gone:
        result.gone[names["endpoint"] or ""] = result.gone.get(names["endpoint"] or "", 0) + 1
    priced = None if endpoint is None else rates_for(endpoint, attempt)
    so_far = attempt.cost_so_far
    if priced is None:
        if so_far is None:
            label = f"{names['endpoint']} {names['upstream_model']}"
            result.unpriced[label] = result.unpriced.get(label, 0) + 1
        else:
            result.kept += 1
        return None
    now = priced.cost(attempt.usage)
    if so_far is not None and now == so_far:
        result.unchanged += 1
        return None
    return PriceChange(
        attempt=attempt,
        amount_usd=now if so_far is None else _EXACT.subtract(now, so_far),
        is_first_price=so_far is None,
        prices=_plain(priced),
        catalog_version=priced.catalog_version,
    )


def endpoint_of(names: Mapping[str, str | None], configuration: Configuration) -> tuple[Endpoint | None, bool]:
    """The endpoint whose prices hold for an attempt, and whether its own is gone.

    An endpoint that now asks another provider or model says nothing of what the attempt cost: then, and when it is no
    longer there, the provider's catalogue prices of the upstream model hold, as far as the provider is still known.
    """
    endpoint = configuration.endpoints.get(names["endpoint"] or "")
    asked, upstream = names["model"] or "", names["upstream_model"] or ""
    if (
        endpoint is not None
        and endpoint.provider.id == names["provider"]
        and endpoint.upstream_model(asked) == upstream
    ):
        return endpoint, False
    provider = configuration.providers.get(names["provider"] or "")
    if provider is None:
        return None, True
    gone = Endpoint(
        id=names["endpoint"] or "",
        provider=provider,
        model=upstream,
        region=names["region"],
        capabilities=frozenset(),
        speaks=(),
    )
    return gone, True


def _plain(priced: PricedRates) -> Mapping[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(priced.json)
    return decoded


def rates_in_force(engine: Engine, configuration: Configuration) -> RatesFor:
    """The prices that hold now. Raises StoreError."""
    prices = prices_in_force(engine, configuration)

    def rates_for(endpoint: Endpoint, attempt: Attempt) -> PricedRates | None:
        names = attempt.dimensions
        return prices.rates_for(
            endpoint,
            names["upstream_model"] or "",
            attempt.started_at,
            total_input(attempt.usage),
            team=names["team"],
            service_tier=names["service_tier"],
        )

    return rates_for
