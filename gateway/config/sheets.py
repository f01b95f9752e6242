"""Price sheets: all that may be said of what one model costs, in a catalogue or in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import NamedTuple

import msgspec

from gateway.types import Rates

USD = "USD"
METERS: tuple[str, ...] = Rates.__struct_fields__
"""What may have a price: the rates. Per million tokens, but for `request`."""
ANYWHERE = "*"
"""The region of an uplift that holds everywhere."""
DEFAULT_TIER = "default"
_STANDARD_TIERS = frozenset({"default", "standard", "auto", "standard_only", "on_demand"})


class Step(NamedTuple):
    """Above so many input tokens, every token of the request costs `price`."""

    above: int
    price: Decimal


class Stepped(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A price by the size of the input. `steps`: ascending."""

    base: Decimal
    steps: tuple[Step, ...]

    def at(self, above: int) -> Decimal:
        """The price of requests with more input tokens than `above`, which is a step's or -1."""
        return next((step.price for step in reversed(self.steps) if step.above <= above), self.base)


Price = Decimal | Stepped


class Meters(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Prices by what is metered; None: nothing is said of it. Names as of `Rates`."""

    input: Price | None = None
    output: Price | None = None
    cache_read: Price | None = None
    cache_write_5m: Price | None = None
    cache_write_1h: Price | None = None
    input_audio: Price | None = None
    input_image: Price | None = None
    reasoning: Price | None = None
    output_audio: Price | None = None
    request: Price | None = None

    def stated(self) -> dict[str, Price]:
        return {name: price for name in METERS if (price := getattr(self, name)) is not None}


class PriceWindow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Prices, and when they hold, in UTC. `since`, `until`: dates, both included. `begins`, `ends`: time of day,
    [begins, ends), past midnight where `ends` is earlier. None: without bound."""

    meters: Meters
    since: date | None = None
    until: date | None = None
    begins: time | None = None
    ends: time | None = None

    def holds(self, at: datetime) -> bool:
        """`at`: in UTC."""
        if self.since is not None and at.date() < self.since:
            return False
        if self.until is not None and at.date() > self.until:
            return False
        if self.begins is None or self.ends is None:
            return True
        clock = at.time()
        if self.ends < self.begins:
            return clock >= self.begins or clock < self.ends
        return self.begins <= clock < self.ends

    @property
    def is_always(self) -> bool:
        return self.since is None and self.until is None and self.begins is None


class TierWindow(PriceWindow, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a service tier (`priority`, `flex`, `batch`, ...) costs; what it leaves out costs as without a tier."""

    tier: str


class PriceSheet(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`windows`: the last one that holds counts. `service_tiers`: of those that hold, the first that prices a meter.

    `uplift`: by region, the share put on the price there. Prices are in `currency`.
    """

    windows: tuple[PriceWindow, ...]
    service_tiers: tuple[TierWindow, ...] = ()
    uplift: Mapping[str, Decimal] = {}
    currency: str = USD


def sheet_of(rates: Rates, currency: str = USD) -> PriceSheet:
    """A sheet that says the same always."""
    meters = Meters(**{name: getattr(rates, name) for name in METERS})
    return PriceSheet(windows=(PriceWindow(meters=meters),), currency=currency)


def tier_of(reported: str | None) -> str | None:
    """A service tier in one word: providers have several for their usual one. None: nobody said."""
    if reported is None:
        return None
    tier = reported.strip().lower()
    return DEFAULT_TIER if tier in _STANDARD_TIERS else tier
