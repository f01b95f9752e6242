"""Money of reservations: whole numbers of a millionth of a millionth of a USD. Exact, and quick to add."""

from __future__ import annotations

from decimal import Context, Decimal
from math import ceil

_EXACT = Context(prec=100)
_UNITS = Decimal(10**12)


def units_of(usd: Decimal) -> int:
    """Rounded up: what is spent is never taken for less."""
    return ceil(_EXACT.multiply(usd, _UNITS))


def usd_of(units: int) -> Decimal:
    return _EXACT.scaleb(Decimal(units), -12)
