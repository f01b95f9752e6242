"""Differences between an export and the ledger, each divided into causes that add up to it to the last digit.

A cause is claimed as far as numbers of the ledger or of the export bear it out, in a fixed order, the certain ones
first. What is left is `unexplained`. Tokens are explained before money: money follows from tokens times a price, and
only what is then left can be a matter of prices. Positive: the provider has more than the ledger.

    late           rows that count on another day than that on which they started, their month having been closed
    corrections    corrections booked on another day than the attempts they are of, or of no attempt at all
    boundary       the provider counts an attempt on a neighbouring day
    cache          the provider counts as cached (or not) what the ledger counts the other way, on the same day
    estimated      tokens that the gateway counted itself, at most as many again
    rounding       no more than the digits leave open that the export prints
    failed         attempts that failed or were cancelled before anybody told what they used, up to their upper bound
    lost           attempts of a process that died, up to their upper bound
    outside        more tokens than all attempts explain: traffic that did not pass the gateway
    missing        a model or day of which the export has no line at all
    unpriced       tokens that both count and that the ledger has no price for
    unmetered      charges that are not for tokens
    price          the same tokens at another price
    unexplained    the rest
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import get_args
from zoneinfo import ZoneInfo

import msgspec

from gateway.accounting.reconciliation.counts import Count, Kind, count_tokens
from gateway.accounting.reconciliation.ledger import EXACT, Cell, Ledger
from gateway.accounting.reconciliation.lines import LEAVES, Meter
from gateway.accounting.reconciliation.sides import NO_MODEL, Side, Value

KINDS: tuple[Kind, ...] = get_args(Kind)
_STEP = Decimal(1).scaleb(-12)
"""USD. Amounts that follow from a quotient are rounded to it; what that leaves is rounding, not a difference."""
_ZERO = Decimal(0)


class Cause(msgspec.Struct, kw_only=True):
    """`usd`, `tokens` None: it is not one of that kind."""

    kind: Kind
    tokens: Decimal | None = None
    usd: Decimal | None = None


class Difference(msgspec.Struct, kw_only=True):
    """One meter of one model on one day. `ledger_tokens`, `ledger_usd`: as booked, which is what reports show. None:
    the export does not say so much; then there is nothing to compare."""

    day: date
    model: str
    meter: Meter
    provider_tokens: Decimal | None = None
    ledger_tokens: int | None = None
    provider_usd: Decimal | None = None
    ledger_usd: Decimal | None = None
    causes: list[Cause] = msgspec.field(default_factory=list)

    @property
    def tokens(self) -> Decimal | None:
        if self.provider_tokens is None or self.ledger_tokens is None:
            return None
        return EXACT.subtract(self.provider_tokens, Decimal(self.ledger_tokens))

    @property
    def usd(self) -> Decimal | None:
        if self.provider_usd is None or self.ledger_usd is None:
            return None
        return EXACT.subtract(self.provider_usd, self.ledger_usd)


def find_differences(
    side: Side, ledger: Ledger, days: Sequence[date], zone: ZoneInfo | None
) -> tuple[list[Difference], int | None]:
    """What differs in the given days, each with causes that add up to it; also what does not differ, without causes.

    `zone`: of the days, None where they are not compared one by one. The second: by how many hours the provider's days
    seem to begin later than those of `zone`, None where they do not.
    """
    inside = frozenset(days)
    pairs = sorted(pair for pair in {*side.tokens, *side.money, *ledger.cells} if pair[0] in inside)
    counts, shift = count_tokens(side, ledger, pairs, days, zone)
    found: list[Difference] = []
    for pair in pairs:
        found += _Pair(pair, side, ledger, counts.get(pair, {})).differences()
    return found, shift


class _Pair:
    """One model on one day."""

    def __init__(self, pair: tuple[date, str], side: Side, ledger: Ledger, counts: dict[Meter, Count]) -> None:
        self._day, self._model = pair
        self._side, self._counts = side, counts
        self._cell = ledger.cell(*pair)
        self._is_in_export = pair in side.tokens or pair in side.money
        self._billed = side.money.get(pair, {})
        self._rows: dict[Meter, Difference] = {}

    def differences(self) -> list[Difference]:
        for meter, count in self._counts.items():
            row = self._row(meter)
            row.provider_tokens, row.ledger_tokens = count.provider, count.booked
            row.causes = [Cause(kind=kind, tokens=tokens) for kind, tokens in count.causes.items()]
        if self._side.has_money:
            for meter, leaves in self._money_cells().items():
                self._explain_money(meter, leaves)
        return [row for row in self._rows.values() if _says_anything(row)]

    def _row(self, meter: Meter) -> Difference:
        if meter not in self._rows:
            self._rows[meter] = Difference(day=self._day, model=self._model, meter=meter)
        return self._rows[meter]

    def _money_cells(self) -> dict[Meter, list[Meter]]:
        """Meters of the comparison -> those of the ledger in them. Where the export has one amount for all tokens, it
        is for what the ledger calls other, too."""
        cells: dict[Meter, list[Meter]] = {}
        if self._model != NO_MODEL:
            fold = self._side.money_fold(self._model)
            for leaf in LEAVES:
                cells.setdefault(fold[leaf], []).append(leaf)
        cells.setdefault("total" if "total" in cells else "other", []).append("other")
        return cells

    def _explain_money(self, meter: Meter, leaves: list[Meter]) -> None:
        cell, billed = self._cell, self._billed.get(meter, Value())
        held = _sum(cell.amounts[leaf] for leaf in leaves if leaf in cell.amounts)
        late = _sum(cell.late[leaf] for leaf in leaves if leaf in cell.late)
        corrected = _sum(cell.corrected[leaf] for leaf in leaves if leaf in cell.corrected)
        adjusted = cell.adjusted if "other" in leaves else _ZERO
        row = self._row(meter)
        row.provider_usd = billed.value
        row.ledger_usd = EXACT.subtract(EXACT.subtract(held, late), corrected)
        causes = _Causes(row)
        causes.add("late", late)
        causes.add("corrections", EXACT.subtract(corrected, adjusted))
        rest = EXACT.add(EXACT.subtract(billed.value, held), adjusted)
        if meter == "other":
            causes.add("unmetered" if rest > 0 else "unexplained", rest)
        elif not self._is_in_export:
            causes.add("missing", rest)
        elif self._side.has_tokens:
            self._explain_by_tokens(causes, rest, billed, leaves)
        else:
            self._explain_alone(causes, rest, billed, leaves)

    def _explain_by_tokens(self, causes: _Causes, rest: Decimal, billed: Value, leaves: list[Meter]) -> None:
        slack, is_priced = billed.slack, False
        for count in self._counts.values():
            if not set(count.leaves) <= set(leaves):
                continue
            is_priced = is_priced or count.priced > 0
            if count.unit is None:
                continue
            slack = EXACT.add(slack, _usd(count.unit * Fraction(count.slack)))
            known = dict(count.causes)
            if count.unpriced and billed.value > 0:
                known["unpriced"] = Decimal(count.unpriced)
            for kind, tokens in known.items():
                if kind == "late":
                    continue  # its money is known to the last digit
                amount = _usd(count.unit * Fraction(tokens))
                slack = EXACT.add(slack, _STEP)
                causes.add(kind, amount)
                rest = EXACT.subtract(rest, amount)
        if abs(rest) <= slack:
            causes.add("rounding", rest)
        else:
            causes.add("price" if is_priced else "unexplained", rest)

    def _explain_alone(self, causes: _Causes, rest: Decimal, billed: Value, leaves: list[Meter]) -> None:
        """Money without counts: only what the ledger itself knows of its rows can be claimed."""
        cell = self._cell
        if abs(rest) <= billed.slack:
            causes.add("rounding", rest)
            return
        if not cell.is_used:
            causes.add("outside", rest)
            return
        used, unpriced = _count(cell.tokens, leaves), _count(cell.unpriced, leaves)
        if rest > 0 and unpriced and unpriced == used:
            causes.add("unpriced", rest)
            return
        estimated = abs(_sum(cell.estimated_usd[leaf] for leaf in leaves if leaf in cell.estimated_usd))
        bounds: tuple[tuple[Kind, Decimal], ...] = (("estimated", estimated), *_bounds(cell))
        for kind, bound in bounds:
            claimed = min(rest, bound) if rest > 0 else max(rest, -bound) if kind == "estimated" else _ZERO
            causes.add(kind, claimed)
            rest = EXACT.subtract(rest, claimed)
        causes.add("unexplained", rest)


class _Causes:
    """The causes of a row; money is added to the cause that the tokens have given it."""

    def __init__(self, row: Difference) -> None:
        self._row = row

    def add(self, kind: Kind, usd: Decimal) -> None:
        if not usd:
            return
        for cause in self._row.causes:
            if cause.kind == kind:
                cause.usd = usd if cause.usd is None else EXACT.add(cause.usd, usd)
                return
        self._row.causes.append(Cause(kind=kind, usd=usd))


def _bounds(cell: Cell) -> tuple[tuple[Kind, Decimal], ...]:
    return ("failed", cell.failed.usd), ("lost", cell.lost.usd)


def _usd(amount: Fraction) -> Decimal:
    exact = EXACT.divide(Decimal(amount.numerator), Decimal(amount.denominator))
    return exact.quantize(_STEP, rounding=ROUND_HALF_EVEN, context=EXACT)


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    total = _ZERO
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total


def _count(tokens: dict[Meter, int], leaves: list[Meter]) -> int:
    return sum(tokens[leaf] for leaf in leaves if leaf in tokens)


def _says_anything(row: Difference) -> bool:
    numbers = (row.provider_tokens, row.ledger_tokens, row.provider_usd, row.ledger_usd)
    return bool(row.causes) or any(numbers)
