"""What attempts cost in truth, beside what they might have cost at most. Pure.

A bound holds where an upstream counts as it says and keeps the limit that it was sent. Not all do, so a reservation is
scaled by the worst that was seen. Small and large requests are learned of apart: an upstream that keeps far under a
large bound may still pass a small one.
"""

from __future__ import annotations

from decimal import Decimal

from gateway.accounting.bounds import MOST_OUTPUT, Bound
from gateway.budgets.money import units_of, usd_of

UNPROVEN = 4
"""Times the bound that is reserved before anything was settled."""
USEFUL_OUTPUT = 16
"""Tokens: an answer cut to fewer is of no use to anybody."""
FAIR_OUTPUT = 1024
"""Tokens that a part of the last money has to pay for, where several want it."""
_SCALE = 10**6
_MAX_KNOWN = 10_000


class _Class:
    """Of one endpoint and one doubling of bounds. `ratio`: in millionths, at least one. `largest_usd`: `largest`."""

    __slots__ = ("largest", "largest_usd", "ratio")

    def __init__(self) -> None:
        self.ratio = _SCALE
        self.largest = 0
        self.largest_usd = Decimal(0)


class Experience:
    """One for each worker. Money in `UNITS` where nothing else is said."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], _Class] = {}
        self._largest: dict[str, int] = {}

    def full(self, endpoint: str, bound: Bound) -> int:
        """What has to be set aside so that the budget holds."""
        units = bound.units or 0
        known = self._known.get((endpoint, units.bit_length()))
        if known is None:
            return max(UNPROVEN * units, units + MOST_OUTPUT * bound.per_token, self._largest.get(endpoint, 0))
        return max(units if known.ratio == _SCALE else -(-units * known.ratio // _SCALE), known.largest)

    def floor(self, endpoint: str, bound: Bound) -> int:
        """The least that is of use: it pays for a few tokens of output, and for the dearest attempt of this kind."""
        units = bound.units or 0
        known = self._known.get((endpoint, units.bit_length()))
        useful = min(units, bound.fixed + USEFUL_OUTPUT * bound.per_token)
        if known is None:
            return max(useful, self._largest.get(endpoint, 0))
        return max(-(-useful * known.ratio // _SCALE), known.largest)

    def part(self, endpoint: str, bound: Bound) -> int | None:
        """What a request that states no limit may be cut to while others want money, too. None: it may not be cut."""
        units = bound.units or 0
        known = self._known.get((endpoint, units.bit_length()))
        if known is None or bound.is_stated:
            return None
        fair = min(units, bound.fixed + FAIR_OUTPUT * bound.per_token)
        return max(-(-fair * known.ratio // _SCALE), UNPROVEN * known.largest)

    def limit(self, endpoint: str, bound: Bound, amount: int) -> int:
        """Output tokens of each choice that `amount` pays for."""
        if not bound.per_token:
            return bound.limit
        known = self._known.get((endpoint, (bound.units or 0).bit_length()))
        pays = amount if known is None else amount * _SCALE // known.ratio
        return min(bound.limit, max(1, (pays - bound.fixed) // bound.per_token))

    def hear(self, endpoint: str, bound: Bound, usd: Decimal) -> None:
        """As `learn`, of an attempt that no hard budget pays for. Most cost no more than the dearest one, which was
        within its bound: that is nothing new."""
        if units := bound.units:
            known = self._known.get((endpoint, units.bit_length()))
            if known is None or usd > known.largest_usd or known.largest > units:
                self.learn(endpoint, bound, units_of(usd))

    def learn(self, endpoint: str, bound: Bound, cost: int) -> None:
        """`cost`: as the upstream reported it."""
        units = bound.units or 0
        if not units or not cost:
            return
        key = endpoint, units.bit_length()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[key] = _Class()
        if cost > units:
            known.ratio = max(known.ratio, -(-cost * _SCALE // units))
        if cost > known.largest:
            known.largest, known.largest_usd = cost, usd_of(cost)
            self._largest[endpoint] = max(cost, self._largest.get(endpoint, 0))
