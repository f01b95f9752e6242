"""Tokens compared: why the provider counts more or fewer than the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from gateway.accounting.reconciliation.ledger import Ledger, Unknown
from gateway.accounting.reconciliation.lines import INPUT_SIDE, LEAVES, Meter
from gateway.accounting.reconciliation.sides import NO_MODEL, Side, Value

Pair = tuple[date, str]
Kind = Literal[
    "late",
    "corrections",
    "boundary",
    "cache",
    "estimated",
    "rounding",
    "failed",
    "lost",
    "outside",
    "missing",
    "unpriced",
    "unmetered",
    "price",
    "unexplained",
]
"""Causes; `difference` says what each means."""
SHIFTS = tuple(hours for hours in range(-12, 15) if hours)
"""Hours by which days of time zones may begin earlier or later."""
_WHOLE_SHIFT = Decimal("0.1")
"""A shift of all days is claimed where it leaves no more than this share of the differences."""
_ZERO = Decimal(0)


class Count(msgspec.Struct, kw_only=True):
    """Tokens of one meter, model and day. `held`: in the ledger, of attempts that started on that day; `booked`: as
    reports show them; `priced`, `unpriced`: of `held`; `unit`: USD for one token, the provider's own where its amounts
    tell it, else the ledger's, None where neither does; `rest`: what is not explained yet."""

    leaves: list[Meter]
    provider: Decimal
    slack: Decimal
    held: int
    booked: int
    unpriced: int
    estimated: int
    straddling: int
    unit: Fraction | None = None
    rest: Decimal = _ZERO
    causes: dict[Kind, Decimal] = msgspec.field(default_factory=dict)

    @property
    def priced(self) -> int:
        return self.held - self.unpriced

    def claim(self, kind: Kind, tokens: Decimal) -> None:
        if tokens:
            self.causes[kind] = self.causes.get(kind, _ZERO) + tokens
            self.rest -= tokens


Counts = dict[Pair, dict[Meter, Count]]


def count_tokens(
    side: Side, ledger: Ledger, pairs: Sequence[Pair], days: Sequence[date], zone: ZoneInfo | None
) -> tuple[Counts, int | None]:
    """Counts with their causes, which add up to `provider` - `booked`; nothing where the export has no tokens.

    The second: by how many hours the provider's days begin later, None where they do not.
    """
    if not side.has_tokens:
        return {}, None
    counts: Counts = {pair: _counts(side, ledger, pair) for pair in pairs if pair[1] != NO_MODEL}
    _set_units(side, ledger, counts)
    shift = None if zone is None else _claim_shift(ledger, counts, days, zone)
    if zone is not None and shift is None:
        _claim_midnight(ledger, counts, frozenset(days))
    for pair, meters in counts.items():
        _claim_cache(meters)
        _claim_rest(meters, ledger, pair, pair in side.tokens or pair in side.money)
    return counts, shift


def _counts(side: Side, ledger: Ledger, pair: Pair) -> dict[Meter, Count]:
    cell = ledger.cell(*pair)
    fold = side.tokens_fold(pair[1])
    said = side.tokens.get(pair, {})
    found: dict[Meter, Count] = {}
    for meter in dict.fromkeys(fold.values()):
        leaves = [leaf for leaf in LEAVES if fold[leaf] == meter]
        held, unpriced, estimated, straddling, late = (
            sum(tokens.get(leaf, 0) for leaf in leaves)
            for tokens in (cell.tokens, cell.unpriced, cell.estimated, cell.straddling, cell.late_tokens)
        )
        value = said.get(meter, Value())
        count = Count(
            leaves=leaves,
            provider=value.value,
            slack=value.slack,
            held=held,
            booked=held - late,
            unpriced=unpriced,
            estimated=estimated,
            straddling=straddling,
            rest=value.value - (held - late),
        )
        count.claim("late", Decimal(late))
        found[meter] = count
    return found


def _set_units(side: Side, ledger: Ledger, counts: Counts) -> None:
    everywhere: dict[tuple[str, Meter], tuple[Fraction, int]] = defaultdict(lambda: (Fraction(0), 0))
    own: dict[tuple[Pair, Meter], tuple[Fraction, int]] = {}
    for pair, meters in counts.items():
        amounts = ledger.cell(*pair).amounts
        for meter, count in meters.items():
            if count.priced > 0:
                amount = sum((Fraction(amounts[leaf]) for leaf in count.leaves if leaf in amounts), Fraction(0))
                own[pair, meter] = amount, count.priced
                total, tokens = everywhere[pair[1], meter]
                everywhere[pair[1], meter] = total + amount, tokens + count.priced
    for pair, meters in counts.items():
        fold, billed = side.money_fold(pair[1]), side.money.get(pair, {})
        for meter, count in meters.items():
            cells = {fold[leaf] for leaf in count.leaves}
            is_alone = len(cells) == 1 and all(leaf in count.leaves for leaf in LEAVES if fold[leaf] in cells)
            if is_alone and count.provider and (cell := next(iter(cells))) in billed:
                count.unit = Fraction(billed[cell].value) / Fraction(count.provider)
                continue
            amount, tokens = own.get((pair, meter)) or everywhere.get((pair[1], meter)) or (Fraction(0), 0)
            count.unit = amount / tokens if tokens else None


def _claim_shift(ledger: Ledger, counts: Counts, days: Sequence[date], zone: ZoneInfo) -> int | None:
    """Whether all differences go when each day begins some hours later, or earlier."""
    before = sum(abs(count.rest) for meters in counts.values() for count in meters.values())
    if sum(bool(count.rest) for meters in counts.values() for count in meters.values()) < 2:
        return None
    wanted = {(pair, meter): count for pair, meters in counts.items() for meter, count in meters.items()}
    best, moved_best, left_best = None, dict[tuple[Pair, Meter], int](), before
    for shift in SHIFTS:
        shifted = _shifted(ledger, wanted, days, zone, shift)
        left = sum(abs(count.rest - (shifted.get(key, 0) - count.held)) for key, count in wanted.items())
        if left < left_best:
            best, moved_best, left_best = shift, shifted, left
    if best is None or left_best > before * _WHOLE_SHIFT:
        return None
    for key, count in wanted.items():
        count.claim("boundary", Decimal(moved_best.get(key, 0) - count.held))
    return best


def _shifted(
    ledger: Ledger, wanted: dict[tuple[Pair, Meter], Count], days: Sequence[date], zone: ZoneInfo, shift: int
) -> dict[tuple[Pair, Meter], int]:
    meter_of = {(pair[1], leaf): meter for (pair, meter), count in wanted.items() for leaf in count.leaves}
    inside, found = set(days), dict[tuple[Pair, Meter], int]()
    for (model, leaf), hours in ledger.hours.items():
        meter = meter_of.get((model, leaf))
        if meter is None:
            continue
        for hour, tokens in hours.items():
            day = (hour.astimezone(UTC).astimezone(zone) - timedelta(hours=shift)).date()
            if day in inside:
                key = (day, model), meter
                found[key] = found.get(key, 0) + tokens
    return found


def _claim_midnight(ledger: Ledger, counts: Counts, days: frozenset[date]) -> None:
    """Attempts that ended on the next day may be counted there."""
    for (day, model), meters in sorted(counts.items()):
        following = counts.get((day + timedelta(days=1), model), {})
        for meter, count in meters.items():
            after = following.get(meter)
            if after is None and day + timedelta(days=1) in days:
                continue
            over = min(-count.rest, Decimal(count.straddling)) if count.rest < 0 else _ZERO
            if after is not None:
                over = min(over, max(after.rest, _ZERO))
            if over > 0:
                count.claim("boundary", -over)
                if after is not None:
                    after.claim("boundary", over)
        if day - timedelta(days=1) not in days:
            _claim_from_before(ledger, day, model, meters)


def _claim_from_before(ledger: Ledger, day: date, model: str, meters: dict[Meter, Count]) -> None:
    """Attempts that started before the first day and ended on it."""
    straddling = ledger.cell(day - timedelta(days=1), model).straddling
    for count in meters.values():
        over = min(count.rest, Decimal(sum(straddling.get(leaf, 0) for leaf in count.leaves)))
        if over > 0:
            count.claim("boundary", over)


def _claim_cache(meters: dict[Meter, Count]) -> None:
    """What is missing in one meter of the input and there is too much of in another, on the same day."""
    inputs = [count for meter, count in meters.items() if meter in INPUT_SIDE]
    over = [count for count in inputs if count.rest > count.slack]
    under = [count for count in inputs if -count.rest > count.slack]
    for more in over:
        for less in under:
            moved = min(more.rest, -less.rest)
            if moved > 0:
                more.claim("cache", moved)
                less.claim("cache", -moved)


def _claim_rest(meters: dict[Meter, Count], ledger: Ledger, pair: Pair, is_in_export: bool) -> None:
    cell = ledger.cell(*pair)
    left = {"failed": cell.failed.usd, "lost": cell.lost.usd}
    for count in meters.values():
        if not is_in_export:
            count.claim("missing", count.rest)
            continue
        if abs(count.rest) <= count.slack:
            count.claim("rounding", count.rest)
        bound = Decimal(count.estimated)
        count.claim("estimated", max(-bound, min(bound, count.rest)))
        if count.rest > 0:
            _claim_unknown(count, "failed", cell.failed, left)
            _claim_unknown(count, "lost", cell.lost, left)
        if count.rest > 0 and not _may_be_ours(count, cell.failed, cell.lost):
            count.claim("outside", count.rest)
        count.claim("unexplained", count.rest)


def _claim_unknown(count: Count, kind: Literal["failed", "lost"], unknown: Unknown, left: dict[str, Decimal]) -> None:
    """As many tokens as the upper bound of what such attempts cost pays for."""
    if not unknown.attempts or not count.unit or count.rest <= 0:
        return
    tokens = min(count.rest, Decimal(int(Fraction(left[kind]) / count.unit)))
    count.claim(kind, tokens)
    spent = Fraction(tokens) * count.unit
    left[kind] = max(_ZERO, left[kind] - Decimal(spent.numerator) / Decimal(spent.denominator))


def _may_be_ours(count: Count, *unknown: Unknown) -> bool:
    """Whether attempts are left of which nobody can say how much they used at most."""
    return any(some.unbounded or (some.attempts and not count.unit) for some in unknown)
