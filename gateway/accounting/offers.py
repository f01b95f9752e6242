"""What one endpoint asks for one model: a price sheet and the contracts that fit, worked out for a moment."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import NamedTuple

from msgspec.structs import asdict

from gateway.accounting.rates import EXACT, PricedRates, PriceRecord
from gateway.config.model import Contract, Exchange
from gateway.config.sheets import ANYWHERE, USD, Price, PriceSheet, Stepped
from gateway.types import Rates

FROM_YAML = "yaml"
"""Who stated a price that no catalogue did."""
_ONE = Decimal(1)


class Base(NamedTuple):
    """A sheet, and who stated it."""

    sheet: PriceSheet
    uplift: Decimal | None
    source: str
    catalog_version: str
    model: str | None = None
    has_tiers: bool = True


class _Terms(NamedTuple):
    """All that depends on the moment: which window holds, which windows of the service tier, which contract, and what
    its currency and the list's are worth."""

    window: int | None
    tiers: tuple[int, ...]
    contract: int | None
    usd: Decimal | None
    list_usd: Decimal | None


class Offer:
    """What one endpoint asks for one model, of whom it is asked by, and in which service tier.

    `fixed`: what it asks at any time; None: that changes with time, or it has no price.
    """

    def __init__(
        self,
        base: Base | None,
        contracts: Sequence[Contract],
        tier: str | None,
        region: str | None,
        currencies: Mapping[str, tuple[Exchange, ...]],
    ) -> None:
        self._base = base
        self._contracts = contracts
        self._tier = tier
        self._region = region
        self._currencies = currencies
        self._worked_out: dict[_Terms, PriceTiers | None] = {}
        tiers = base.sheet.service_tiers if base is not None and base.has_tiers and tier is not None else ()
        self._tier_windows = tuple(window for window in tiers if window.tier == tier)
        is_fixed = (
            base is not None
            and len(base.sheet.windows) == 1
            and all(window.is_always for window in (*base.sheet.windows, *self._tier_windows))
            and not contracts
            and base.sheet.currency == USD
        )
        self.fixed = self._tiers(self._terms(datetime.now(UTC))) if is_fixed else None

    def at(self, at: datetime, input_tokens: int) -> PricedRates | None:
        tiers = self.fixed if self.fixed is not None else self.tiers_at(in_utc(at))
        return None if tiers is None else tiers.at(input_tokens)

    def tiers_at(self, at: datetime) -> PriceTiers | None:
        """`at`: in UTC."""
        if self.fixed is not None:
            return self.fixed
        terms = self._terms(at)
        try:
            return self._worked_out[terms]
        except KeyError:
            tiers = self._worked_out[terms] = self._tiers(terms)
            return tiers

    def explain(self, at: datetime) -> list[str]:
        terms = self._terms(at)
        reasons = []
        if terms.contract is not None:
            contract = self._contracts[terms.contract]
            said = f"{_percent(contract.discount)} off" if contract.price is None else "a price of its own"
            reasons.append(f"contract `{contract.id}`: {said}")
        if self._base is not None:
            stated = {
                "yaml": "`price` of the endpoint",
                "capacity": "`price` of the endpoint: what its machine costs by the hour",
                "catalogue": f"catalogue {self._base.catalog_version}: `{self._base.model}`",
            }[self._base.source]
            reasons.append(stated if terms.window is not None else f"{stated} has no price at this time")
            if self._base.uplift:
                reasons.append(f"{_percent(self._base.uplift)} on top for its region")
        if self._tier is not None and self._tier != "default":
            if terms.tiers:
                reasons.append(f"service tier `{self._tier}`")
            else:
                reasons.append(f"service tier `{self._tier}` has no price of its own: the usual one holds")
        return reasons

    def _terms(self, at: datetime) -> _Terms:
        window = contract = usd = list_usd = None
        tiers: tuple[int, ...] = ()
        if self._base is not None:
            sheet = self._base.sheet
            window = next((n for n in range(len(sheet.windows) - 1, -1, -1) if sheet.windows[n].holds(at)), None)
            tiers = tuple(n for n, one in enumerate(self._tier_windows) if one.holds(at))
            list_usd = self._worth(sheet.currency, at.date())
        for n in range(len(self._contracts) - 1, -1, -1):
            one, today = self._contracts[n], at.date()
            if (one.since is None or one.since <= today) and (one.until is None or today <= one.until):
                contract = n
                if one.price is not None:
                    usd = self._worth(one.currency, today)
                break
        return _Terms(window, tiers, contract, usd, list_usd)

    def _worth(self, currency: str, today: date) -> Decimal | None:
        """USD for one unit; None: nobody says."""
        if currency == USD:
            return _ONE
        known = self._currencies.get(currency, ())
        return next((one.usd for one in reversed(known) if one.since is None or one.since <= today), None)

    def _tiers(self, terms: _Terms) -> PriceTiers | None:
        """None: it has no price."""
        base = self._base
        stated: dict[str, Price] = {}
        if base is not None and terms.window is not None and terms.list_usd is not None:
            stated = base.sheet.windows[terms.window].meters.stated()
            for n in reversed(terms.tiers):
                stated.update(self._tier_windows[n].meters.stated())
        contract = None if terms.contract is None else self._contracts[terms.contract]
        starts = sorted({step.above for price in stated.values() if isinstance(price, Stepped) for step in price.steps})
        rates = [self._priced(stated, above, terms, contract) for above in (-1, *starts)]
        return PriceTiers(starts, rates) if any(one is not None for one in rates) else None

    def _priced(
        self, stated: Mapping[str, Price], above: int, terms: _Terms, contract: Contract | None
    ) -> PricedRates | None:
        base = self._base
        agreed = None if contract is None else contract.uplift.get(self._region or "", contract.uplift.get(ANYWHERE))
        uplift = base.uplift if agreed is None and base is not None else agreed
        values = {name: price.at(above) if isinstance(price, Stepped) else price for name, price in stated.items()}
        listed = used = _rates(values, EXACT.multiply(_ONE + (uplift or 0), terms.list_usd or _ONE))
        source, version = ("contract", FROM_YAML) if base is None else (base.source, base.catalog_version)
        currency, usd = (USD, None) if base is None else (base.sheet.currency, terms.list_usd)
        if contract is not None and contract.price is not None:
            if terms.usd is None:
                return None  # nobody says what its currency is worth
            source, version, currency, usd, uplift = "contract", FROM_YAML, contract.currency, terms.usd, agreed
            used = _rates(_stated(contract.price), EXACT.multiply(_ONE + (uplift or 0), usd))
        if used is not None and contract is not None and contract.discount:
            used = _rates(_stated(used), _ONE - contract.discount)
        if used is None:
            return None
        record = PriceRecord(
            **_stated(used),
            listed=listed if listed != used else None,
            is_listed=listed is not None,
            source=source,
            above=above if above >= 0 else None,
            service_tier=self._tier if terms.tiers else None,
            uplift=uplift or None,
            discount=contract.discount or None if contract is not None else None,
            contract=None if contract is None else contract.id,
            currency=currency,
            usd=usd if currency != USD else None,
            model=base.model if base is not None else None,
        )
        return PricedRates.of(record, version)


class PriceTiers(NamedTuple):
    starts: Sequence[int]  # ascending; a request with more input tokens than starts[i] pays rates[i + 1]
    rates: Sequence[PricedRates | None]

    def at(self, input_tokens: int) -> PricedRates | None:
        if not self.starts:
            return self.rates[0]
        return self.rates[bisect_left(self.starts, input_tokens)]

    def bounds(self, input_tokens: int) -> tuple[int, float]:
        """Of the tier: more input tokens than the first, at most the second."""
        tier = bisect_left(self.starts, input_tokens)
        return self.starts[tier - 1] if tier else -1, self.starts[tier] if tier < len(self.starts) else math.inf


def _rates(values: Mapping[str, Decimal], factor: Decimal) -> Rates | None:
    """None where no input tokens have a price: by the hour or page, or nothing at all (which also marks models that
    are free today; YAML can say 0). Where input alone has one (embeddings, rerankers) output falls back to it."""
    if "input" not in values:
        return None
    values = {"output": values["input"], **values}
    if factor != 1:
        values = {name: EXACT.multiply(value, factor) for name, value in values.items()}
    return Rates(**values)


def _stated(rates: Rates) -> dict[str, Decimal]:
    return {name: value for name, value in asdict(rates).items() if value is not None}


def in_utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _percent(share: Decimal) -> str:
    return f"{(share * 100).normalize():f}%"
