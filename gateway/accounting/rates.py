"""Rates with where they came from, as a row of the ledger keeps them, and what tokens cost at them."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import NamedTuple

import msgspec

from gateway.config.sheets import METERS, USD
from gateway.types import Rates, Usage

EXACT = Context(prec=100)
"""The default 28 digits would round a product of a 19-digit count."""


class PriceRecord(Rates, frozen=True, omit_defaults=True, kw_only=True):
    """What a row's `prices` keeps: the rates that were used, in USD as `Rates`, and how they came about.

    listed          what the provider publishes for the same (region, service tier, size of the input), before any
                    contract; None: the same as the rates
    is_listed       false: a contract alone says what it costs, nobody publishes a price
    source          `yaml`, `catalogue`, `contract` (its own price), `capacity` (what a machine of ours costs)
    above           the tier of the catalogue: the attempt had more input tokens than that
    service_tier    whose prices were used; None: the usual ones, also where another tier served that has no price
    uplift          the share put on the price for its region, within `listed` and rates alike
    discount        the share that a contract took off
    contract        the id of the contract that held
    currency, usd   what the price was stated in, and what one unit of it was worth
    model           the catalogue's name of what was priced, as in `openai/gpt-4o-mini`
    """

    listed: Rates | None = None
    is_listed: bool = True
    source: str = "catalogue"
    above: int | None = None
    service_tier: str | None = None
    uplift: Decimal | None = None
    discount: Decimal | None = None
    contract: str | None = None
    currency: str = USD
    usd: Decimal | None = None
    model: str | None = None

    @property
    def rates(self) -> Rates:
        return Rates(**{name: getattr(self, name) for name in METERS})

    @property
    def list_rates(self) -> Rates:
        """The published rates; where nobody publishes any, those of the contract."""
        return self.rates if self.listed is None else self.listed


_decode_record = msgspec.json.Decoder(PriceRecord).decode


def read_record(prices: bytes | str | msgspec.Raw) -> PriceRecord:
    """A row's `prices`; those of older rows hold rates alone. Raises msgspec.DecodeError."""
    return _decode_record(prices)


class PricedRates(NamedTuple):
    """Rates with their provenance. `json`: for the ledger's `prices`, a `PriceRecord`; `catalog_version`: who stated
    the price, `yaml` or the catalogue's label."""

    rates: Rates
    json: msgspec.Raw
    catalog_version: str
    by_bucket: _BucketRates

    @classmethod
    def of(cls, record: PriceRecord, catalog_version: str) -> PricedRates:
        rates = record.rates
        return cls(rates, msgspec.Raw(msgspec.json.encode(record)), catalog_version, _BucketRates.of(rates))

    @property
    def record(self) -> PriceRecord:
        return _decode_record(self.json)

    def cost(self, usage: Usage) -> Decimal:
        """USD for one attempt: as the function `cost`, without working out the rates again."""
        return self.by_bucket.cost(usage)


def total_input(usage: Usage) -> int:
    """All input tokens of an attempt, whatever their rate: what a tier's threshold is compared with."""
    return (
        usage.input_tokens
        + usage.cache_read_tokens
        + usage.cache_write_5m_tokens
        + usage.cache_write_1h_tokens
        + usage.input_audio_tokens
        + usage.input_image_tokens
    )


def cost(usage: Usage, rates: Rates) -> Decimal:
    """USD for one attempt, exact: nothing is rounded before display. Includes `rates.request` once.

    A bucket without a rate of its own takes the next known one, never nothing: cache reads, 5-minute cache writes,
    audio and images in cost `input`; 1-hour cache writes the 5-minute rate; reasoning and audio out cost `output`.
    No multiplier is invented.
    """
    return _BucketRates.of(rates).cost(usage)


def unit_prices(rates: Rates) -> tuple[Decimal, ...]:
    """USD per million tokens of each of `BUCKETS`, fallbacks filled in."""
    cache_write_5m = rates.input if rates.cache_write_5m is None else rates.cache_write_5m
    return (
        rates.input,
        rates.input if rates.cache_read is None else rates.cache_read,
        cache_write_5m,
        cache_write_5m if rates.cache_write_1h is None else rates.cache_write_1h,
        rates.input if rates.input_audio is None else rates.input_audio,
        rates.input if rates.input_image is None else rates.input_image,
        rates.output,
        rates.output if rates.reasoning is None else rates.reasoning,
        rates.output if rates.output_audio is None else rates.output_audio,
    )


class _BucketRates(NamedTuple):
    """The rate of each of `BUCKETS`, fallbacks filled in, and the price of a request, as whole numbers of one unit.

    `power`: the unit in USD, as it is written behind digits: `E-12`. Whole numbers are exact, and far quicker to add up
    than decimals.
    """

    rates: tuple[int, ...]
    request: int
    power: str

    @classmethod
    def of(cls, rates: Rates) -> _BucketRates:
        decimals = (*unit_prices(rates), EXACT.scaleb(rates.request or Decimal(0), 6))
        exponent = min(0, *(int(rate.as_tuple().exponent) for rate in decimals))
        whole = [int(EXACT.scaleb(rate, -exponent)) for rate in decimals]
        return cls(tuple(whole[:-1]), whole[-1], f"E{exponent - 6}")

    def cost(self, usage: Usage) -> Decimal:
        units = self.request
        rates = self.rates
        # Most attempts use two buckets, which is why the others are asked in turn rather than in a loop over all.
        if tokens := usage.input_tokens:
            units += tokens * rates[0]
        if tokens := usage.output_tokens:
            units += tokens * rates[6]
        if tokens := usage.cache_read_tokens:
            units += tokens * rates[1]
        if tokens := usage.reasoning_tokens:
            units += tokens * rates[7]
        if tokens := usage.cache_write_5m_tokens:
            units += tokens * rates[2]
        if tokens := usage.cache_write_1h_tokens:
            units += tokens * rates[3]
        if tokens := usage.input_audio_tokens:
            units += tokens * rates[4]
        if tokens := usage.input_image_tokens:
            units += tokens * rates[5]
        if tokens := usage.output_audio_tokens:
            units += tokens * rates[8]
        return Decimal(f"{units}{self.power}")  # exact, and quicker than `scaleb`
