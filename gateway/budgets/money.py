"""Money of reservations: whole numbers of a millionth of a millionth of a USD. Exact, and quick to add."""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal

_EXACT = Context(prec=100)
_UP = Context(prec=100, rounding=ROUND_CEILING)


def units_of(usd: Decimal) -> int:
    """Rounded up: what is spent is never taken for less."""
    return int(_UP.scaleb(usd, 12).to_integral_value(ROUND_CEILING))


def usd_of(units: int) -> Decimal:
    return _EXACT.scaleb(Decimal(units), -12)
