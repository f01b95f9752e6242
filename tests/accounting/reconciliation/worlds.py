"""Small ledgers and the exports of a provider that saw something else, with known differences."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from gateway.accounting.prices import unit_prices
from gateway.accounting.reconciliation.lines import METER_OF, Meter, Source
from gateway.accounting.reconciliation.reading import Export, Key, Sum, places_of
from gateway.accounting.reconciliation.result import Reconciliation, compare
from gateway.store.reconciliations import CorrectionSum, LedgerSum
from gateway.types import BUCKETS, Rates

ZONE = ZoneInfo("UTC")
FIRST = date(2026, 3, 1)
RATES = {"input": "2", "output": "8", "cache_read": "0.5"}
USAGE: Source = "openai-usage"
COSTS: Source = "openai-costs"


def price_of(bucket: str, rates: Mapping[str, str] = RATES) -> Decimal:
    """USD for one token."""
    stated = Rates(**{name: Decimal(value) for name, value in rates.items()})
    return unit_prices(stated)[BUCKETS.index(bucket)] / 10**6


def cost_of(tokens: Mapping[str, int], rates: Mapping[str, str] = RATES) -> Decimal:
    return sum((price_of(bucket, rates) * count for bucket, count in tokens.items()), Decimal(0))


def attempts(tokens: Mapping[str, int] | None = None, *, day: int = 0, hour: int = 12, **changes: Any) -> LedgerSum:
    """Attempts that are alike: priced, reported, on one day."""
    counted = {bucket: (tokens or {}).get(bucket, 0) for bucket in BUCKETS}
    on = FIRST + timedelta(days=day)
    priced = not changes.get("is_unpriced")
    given: dict[str, Any] = {
        "hour": datetime(on.year, on.month, on.day, hour, tzinfo=UTC),
        "day": on,
        "ended": on,
        "booked": on,
        "model": "gpt-4o-mini",
        "status": "ok",
        "is_lost": False,
        "usage_source": "reported",
        "is_priced": priced,
        "is_unpriced": not priced,
        "prices": RATES if priced else None,
        "attempts": 1,
        "tokens": counted,
        "cost_usd": cost_of(counted) if priced else Decimal(0),
        "max_cost_usd": Decimal(0),
        "unbounded": 0,
    }
    return LedgerSum(**{**given, **changes})


def unknown(bound: str | None, **changes: Any) -> LedgerSum:
    """An attempt of which nobody knows what it used."""
    return attempts(
        is_unpriced=True,
        usage_source="none",
        status="timeout",
        max_cost_usd=Decimal(bound or 0),
        unbounded=0 if bound else 1,
        **changes,
    )


def correction(amount: str, **changes: Any) -> CorrectionSum:
    given: dict[str, Any] = {
        "kind": "price",
        "day": FIRST,
        "booked": FIRST,
        "model": "gpt-4o-mini",
        "old": None,
        "new": None,
        "tokens": dict.fromkeys(BUCKETS, 0),
        "attempts": 1,
        "amount_usd": Decimal(amount),
    }
    return CorrectionSum(**{**given, **changes})


class Provider:
    """What the provider counts and bills."""

    def __init__(self, *, counts: bool = True, bills: bool = True, places: int | None = None) -> None:
        self.export = Export()
        self._counts, self._bills, self._places = counts, bills, places
        for source in [USAGE] * counts + [COSTS] * bills:
            self.export.files[source] = source

    def saw(
        self,
        tokens: Mapping[str, int] | None = None,
        *,
        day: int = 0,
        model: str = "gpt-4o-mini-2024-07-18",
        rates: Mapping[str, str] = RATES,
        usd: Mapping[str, str] | None = None,
    ) -> Provider:
        on = FIRST + timedelta(days=day)
        self.cover(day)
        for bucket, count in (tokens or {}).items():
            meter = METER_OF[bucket]
            if self._counts:
                self._add(Key(USAGE, on, None, model, meter), quantity=Decimal(count))
            if self._bills and usd is None:
                self._bill(on, model, meter, price_of(bucket, rates) * count)
        for meter_name, amount in (usd or {}).items():
            self._bill(on, None if meter_name == "other" else model, meter_name, Decimal(amount))  # type: ignore[arg-type]
        return self

    def cover(self, day: int) -> Provider:
        on = FIRST + timedelta(days=day)
        export = self.export
        export.first = on if export.first is None else min(export.first, on)
        export.last = on if export.last is None else max(export.last, on)
        return self

    def _bill(self, on: date, model: str | None, meter: Meter, amount: Decimal) -> None:
        if self._places is not None:
            amount = amount.quantize(Decimal(1).scaleb(self._places))
        places = self.export.amount_places
        places[COSTS] = min(places.get(COSTS, 0), places_of(amount))
        self._add(Key(COSTS, on, None, model, meter), amount=amount)

    def _add(self, key: Key, *, quantity: Decimal | None = None, amount: Decimal | None = None) -> None:
        found = self.export.sums.setdefault(key, Sum())
        found.lines += 1
        if quantity is not None:
            found.quantity = (found.quantity or 0) + quantity
        if amount is not None:
            found.amount = (found.amount or Decimal(0)) + amount


def run(
    provider: Provider, rows: list[LedgerSum], changes: list[CorrectionSum] | None = None, **options: Any
) -> Reconciliation:
    export = provider.export
    assert export.first is not None and export.last is not None
    given = {"zone": ZONE, "first": export.first, "last": export.last, **options}
    return compare(export, rows, changes or [], **given)


def causes(result: Reconciliation) -> dict[str, tuple[int | None, Decimal | None]]:
    """Each cause with its tokens and its money."""
    return {
        kind: (None if total.provider_tokens is None else int(total.provider_tokens), total.provider_usd)
        for kind, total in result.causes.items()
    }


def check_sums(result: Reconciliation) -> None:
    """The causes of every line add up to its difference, and those of all to that of all, to the last digit."""
    for row in result.differences:
        tokens = sum((cause.tokens for cause in row.causes if cause.tokens is not None), Decimal(0))
        usd = sum((cause.usd for cause in row.causes if cause.usd is not None), Decimal(0))
        assert tokens == (row.tokens or 0), row
        assert usd == (row.usd or 0), row
    for name, total in (("provider_tokens", result.total.tokens), ("provider_usd", result.total.usd)):
        found = sum((getattr(cause, name) or Decimal(0) for cause in result.causes.values()), Decimal(0))
        assert found == (total or 0)
