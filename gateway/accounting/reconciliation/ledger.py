"""The ledger in the meters of a comparison: what was used and what it cost, by the day on which attempts started.

What a row cost is divided over its meters by its own rates, exactly; what its rates do not explain (a price for each
request, an adjustment by hand) is of the meter `other`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from decimal import Context, Decimal
from typing import Any

import msgspec

from gateway.accounting.prices import unit_prices
from gateway.accounting.reconciliation.lines import METER_OF, Meter
from gateway.store.reconciliations import CorrectionSum, LedgerSum
from gateway.types import BUCKETS, Rates

EXACT = Context(prec=200)
_MILLION = -6


class Unknown(msgspec.Struct):
    """Attempts of which nobody knows what they used. `usd`: what they may have cost at most; `unbounded`: those of
    which not even that is known."""

    attempts: int = 0
    usd: Decimal = Decimal(0)
    unbounded: int = 0


class Cell(msgspec.Struct, kw_only=True):
    """One model on one day. Tokens and amounts by meter; amounts with all corrections.

    `unpriced`, `estimated`, `straddling`: tokens, within `tokens`, that have no cost, that were counted here, and of
    attempts that ended on a later day. `late_tokens`, `late`: more than what is booked on that day, because of late
    rows; `corrected`: likewise because of corrections; `adjusted`: within `amounts`, by hand.
    """

    tokens: dict[Meter, int] = msgspec.field(default_factory=lambda: defaultdict(int))
    unpriced: dict[Meter, int] = msgspec.field(default_factory=lambda: defaultdict(int))
    estimated: dict[Meter, int] = msgspec.field(default_factory=lambda: defaultdict(int))
    straddling: dict[Meter, int] = msgspec.field(default_factory=lambda: defaultdict(int))
    late_tokens: dict[Meter, int] = msgspec.field(default_factory=lambda: defaultdict(int))
    amounts: dict[Meter, Decimal] = msgspec.field(default_factory=lambda: defaultdict(Decimal))
    estimated_usd: dict[Meter, Decimal] = msgspec.field(default_factory=lambda: defaultdict(Decimal))
    late: dict[Meter, Decimal] = msgspec.field(default_factory=lambda: defaultdict(Decimal))
    corrected: dict[Meter, Decimal] = msgspec.field(default_factory=lambda: defaultdict(Decimal))
    adjusted: Decimal = Decimal(0)
    failed: Unknown = msgspec.field(default_factory=Unknown)
    lost: Unknown = msgspec.field(default_factory=Unknown)

    @property
    def is_used(self) -> bool:
        return any(self.tokens.values()) or any(self.amounts.values()) or bool(self.unknown_attempts)

    @property
    def unknown_attempts(self) -> int:
        return self.failed.attempts + self.lost.attempts


class Ledger(msgspec.Struct):
    """`cells`: by day and model; `hours`: tokens by model, meter and UTC hour."""

    cells: dict[tuple[date, str], Cell]
    hours: dict[tuple[str, Meter], dict[datetime, int]]

    def cell(self, day: date, model: str) -> Cell:
        """An empty one where there is none."""
        return self.cells.get((day, model)) or Cell()


Naming = Callable[[str], str]


def fold(
    attempts: Iterable[LedgerSum],
    changes: Iterable[CorrectionSum],
    model_of: Naming,
    day_of: Callable[[date], date],
) -> Ledger:
    """`model_of`: the group of an upstream model; `day_of`: of a day, where days are not compared one by one."""
    cells: dict[tuple[date, str], Cell] = defaultdict(Cell)
    hours: dict[tuple[str, Meter], dict[datetime, int]] = defaultdict(lambda: defaultdict(int))
    for found in attempts:
        model = model_of(found.model)
        day, booked = day_of(found.day), day_of(found.booked)
        _add_attempts(cells, hours, found, model, day, booked, day_of(found.ended))
    for change in changes:
        _add_change(cells, change, model_of, day_of)
    return Ledger(dict(cells), hours)


def _add_attempts(
    cells: dict[tuple[date, str], Cell],
    hours: dict[tuple[str, Meter], dict[datetime, int]],
    found: LedgerSum,
    model: str,
    day: date,
    booked: date,
    ended: date,
) -> None:
    cell = cells[day, model]
    tokens = by_meter(found.tokens)
    for meter, count in tokens.items():
        cell.tokens[meter] += count
        hours[model, meter][found.hour] += count
        if found.is_unpriced:
            cell.unpriced[meter] += count
        if found.usage_source == "estimated":
            cell.estimated[meter] += count
        if ended > day:
            cell.straddling[meter] += count
        if booked != day:
            cell.late_tokens[meter] += count
            cells[booked, model].late_tokens[meter] -= count
    if found.usage_source == "none" and found.is_unpriced:
        unknown = cell.lost if found.is_lost else cell.failed
        unknown.attempts += found.attempts
        unknown.usd = EXACT.add(unknown.usd, found.max_cost_usd)
        unknown.unbounded += found.unbounded
    if found.is_priced:
        for meter, amount in shares(found.tokens, found.prices, found.cost_usd).items():
            _add(cell.amounts, meter, amount)
            if found.usage_source == "estimated":
                _add(cell.estimated_usd, meter, amount)
            if booked != day:
                _add(cell.late, meter, amount)
                _add(cells[booked, model].late, meter, -amount)


def _add_change(
    cells: dict[tuple[date, str], Cell], change: CorrectionSum, model_of: Naming, day_of: Callable[[date], date]
) -> None:
    booked = day_of(change.booked)
    day = booked if change.day is None else day_of(change.day)
    model = model_of(change.model or "")
    cell = cells[day, model]
    amounts: Mapping[Meter, Decimal] = {"other": change.amount_usd}
    if change.kind == "price" and change.new is not None:
        before = shares(change.tokens, change.old, None)
        after = shares(change.tokens, change.new, None)
        split = {meter: EXACT.subtract(after.get(meter, Decimal(0)), before.get(meter, Decimal(0))) for meter in after}
        rest = change.amount_usd
        for amount in split.values():
            rest = EXACT.subtract(rest, amount)
        amounts = {**split, "other": rest}
    else:
        cell.adjusted = EXACT.add(cell.adjusted, change.amount_usd)
    for meter, amount in amounts.items():
        _add(cell.amounts, meter, amount)
        if booked != day:
            _add(cell.corrected, meter, amount)
            _add(cells[booked, model].corrected, meter, -amount)


def by_meter(tokens: Mapping[str, int]) -> dict[Meter, int]:
    found: dict[Meter, int] = defaultdict(int)
    for bucket, count in tokens.items():
        if count:
            found[METER_OF[bucket]] += count
    return found


def shares(tokens: Mapping[str, int], prices: Mapping[str, Any] | None, cost: Decimal | None) -> dict[Meter, Decimal]:
    """A cost (USD) divided over the meters by the rates; they add up to it exactly, the rest being of `other`. `cost`
    None: what the rates say. Without rates everything is of `other`."""
    found: dict[Meter, Decimal] = defaultdict(Decimal)
    rest = cost
    if prices:
        rates = msgspec.convert(prices, Rates)
        for bucket, rate in zip(BUCKETS, unit_prices(rates), strict=True):
            if tokens[bucket]:
                amount = EXACT.multiply(rate, tokens[bucket]).scaleb(_MILLION, EXACT)
                _add(found, METER_OF[bucket], amount)
                rest = None if rest is None else EXACT.subtract(rest, amount)
    if rest:
        _add(found, "other", rest)
    return found


def _add(amounts: dict[Meter, Decimal], meter: Meter, amount: Decimal) -> None:
    amounts[meter] = EXACT.add(amounts[meter], amount)
