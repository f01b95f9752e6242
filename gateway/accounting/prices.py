"""From an attempt to its price: which rates held, and what the tokens cost at them.

Rates come from the endpoint's `price` in YAML, else from the data of the genai-prices package (dated, tiered, offered
under MIT). A price that nobody states is `None`: the row is `unpriced`, which is not the same as free.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from datetime import UTC, datetime
from decimal import Context, Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import astuple

from gateway.config.model import Endpoint
from gateway.types import PriceCard, Rates, Usage

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, Provider

FROM_YAML = "yaml"
LOCAL = "local"

_CACHED_MODELS = 1024
_MAX_MODEL_NAME = 256  # characters; clients choose names for `*` endpoints, and each is matched against many patterns
_EXACT = Context(prec=100)  # the default 28 digits would round a product of a 19-digit count

# Our bucket -> the catalogue's price key, USD per million tokens.
_PRICE_KEYS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write_5m": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "input_audio": "input_audio_mtok",
    "input_image": "input_image_mtok",
    "reasoning": "output_reasoning_mtok",
    "output_audio": "output_audio_mtok",
}
_REQUEST_KEY = "requests_kcount"  # USD per thousand requests


class PricedRates(NamedTuple):
    """Rates with their provenance. `json`: for the ledger's `prices`; `catalog_version`: who said so."""

    rates: Rates
    json: msgspec.Raw
    catalog_version: str
    by_bucket: _BucketRates

    @classmethod
    def of(cls, rates: Rates, catalog_version: str) -> PricedRates:
        return cls(rates, msgspec.Raw(msgspec.json.encode(rates)), catalog_version, _BucketRates.of(rates))

    def cost(self, usage: Usage) -> Decimal:
        """USD for one attempt: as the function `cost`, without working out the rates again."""
        return self.by_bucket.cost(usage)


class PriceBook:
    """Looks up rates. One for each process; safe to share between threads.

    The catalogue takes about 0.3 s and 30 MB to load, so nothing is loaded until a price is asked of it or `load` is
    called: a worker does that before it accepts requests. What was looked up is kept for a bounded number of models.
    """

    def __init__(self) -> None:
        self._catalogue: _Catalogue | None = None
        # By identity: hashing ten decimals costs more than all the rest of a request's pricing. Each entry keeps its
        # own rates alive, so no other can get their address.
        self._from_yaml: dict[int, PricedRates] = {}
        self._price_list = lru_cache(maxsize=_CACHED_MODELS)(self._look_up)

    def load(self) -> None:
        """Loads the catalogue now instead of at the first request. Blocking."""
        if self._catalogue is None:
            self._catalogue = _Catalogue()

    def rates_for(self, endpoint: Endpoint, upstream_model: str, at: datetime, input_tokens: int) -> PricedRates | None:
        """The rates of `upstream_model` at `endpoint`, or None when nobody states a price.

        `at`: when the attempt started; prices change by date and by time of day (naive: UTC). `input_tokens`: all
        input of the attempt, cached and written to cache too (`total_input`): past a tier's threshold every token of
        the request costs the tier's rate.
        """
        if endpoint.rates is not None:
            return self._stated(endpoint.rates)
        provider = endpoint.provider
        if provider.adapter == LOCAL or len(upstream_model) > _MAX_MODEL_NAME:
            return None
        price_list = self._price_list(provider.base_url, provider.id, provider.adapter, upstream_model)
        return None if price_list is None else price_list.at(at, input_tokens)

    def quote(self, endpoint: Endpoint, upstream_model: str, at: float, input_tokens: int) -> PriceCard | None:
        """As `rates_for`, for decisions: what is worked out once holds for many requests. `at`: seconds since the
        epoch."""
        if endpoint.rates is not None:
            return _card(endpoint.rates)
        provider = endpoint.provider
        if provider.adapter == LOCAL or len(upstream_model) > _MAX_MODEL_NAME:
            return None
        price_list = self._price_list(provider.base_url, provider.id, provider.adapter, upstream_model)
        if price_list is None:
            return None
        tiers = price_list.tiers_at(datetime.fromtimestamp(at, UTC))
        priced = tiers.at(input_tokens)
        return None if priced is None else _card(priced.rates, *tiers.bounds(input_tokens))

    def _stated(self, rates: Rates) -> PricedRates:
        priced = self._from_yaml.get(id(rates))
        if priced is None:
            if len(self._from_yaml) >= _CACHED_MODELS:
                self._from_yaml.clear()
            priced = self._from_yaml[id(rates)] = PricedRates.of(rates, FROM_YAML)
        return priced

    def _look_up(self, base_url: str | None, provider_id: str, adapter: str, model: str) -> _PriceList | None:
        self.load()
        assert self._catalogue is not None
        return self._catalogue.price_list(base_url, provider_id, adapter, model)


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


def _card(rates: Rates, above: int = -1, up_to: float = math.inf) -> PriceCard:
    return PriceCard(
        input=float(rates.input),
        output=float(rates.output),
        cache_read=float(rates.input if rates.cache_read is None else rates.cache_read),
        request=float(rates.request or 0),
        above=above,
        up_to=up_to,
    )


class _BucketRates(NamedTuple):
    """The rate of each of `BUCKETS`, fallbacks filled in, and the price of a request, as whole numbers of one unit.

    `exponent`: the unit is 10**exponent millionths of a USD. Whole numbers are exact, and far quicker to add up than
    decimals.
    """

    rates: tuple[int, ...]
    request: int
    exponent: int

    @classmethod
    def of(cls, rates: Rates) -> _BucketRates:
        cache_write_5m = rates.input if rates.cache_write_5m is None else rates.cache_write_5m
        decimals = (
            rates.input,
            rates.input if rates.cache_read is None else rates.cache_read,
            cache_write_5m,
            cache_write_5m if rates.cache_write_1h is None else rates.cache_write_1h,
            rates.input if rates.input_audio is None else rates.input_audio,
            rates.input if rates.input_image is None else rates.input_image,
            rates.output,
            rates.output if rates.reasoning is None else rates.reasoning,
            rates.output if rates.output_audio is None else rates.output_audio,
            _EXACT.scaleb(rates.request or Decimal(0), 6),
        )
        exponent = min(0, *(int(rate.as_tuple().exponent) for rate in decimals))
        whole = [int(_EXACT.scaleb(rate, -exponent)) for rate in decimals]
        return cls(tuple(whole[:-1]), whole[-1], exponent)

    def cost(self, usage: Usage) -> Decimal:
        units = self.request
        for tokens, rate in zip(astuple(usage), self.rates, strict=True):
            if tokens:
                units += tokens * rate
        return _EXACT.scaleb(Decimal(units), self.exponent - 6)


class _PriceList:
    """All prices of one model: windows in time, each with its tiers. The last window that is open holds."""

    def __init__(self, prices: ModelPrice | list[ConditionalPrice], catalog_version: str) -> None:
        self._windows = (
            [(window.constraint, _tiers(window.prices, catalog_version)) for window in prices]
            if isinstance(prices, list)
            else [(None, _tiers(prices, catalog_version))]
        )

    def at(self, at: datetime, input_tokens: int) -> PricedRates | None:
        return self.tiers_at(at if at.tzinfo is not None else at.replace(tzinfo=UTC)).at(input_tokens)

    def tiers_at(self, at: datetime) -> _Tiers:
        for constraint, tiers in reversed(self._windows):
            if constraint is None or constraint.active(at):
                return tiers
        return self._windows[0][1]  # before the first known date: the oldest price, as the data says


class _Tiers(NamedTuple):
    starts: list[int]  # ascending; a request with more input tokens than starts[i] pays rates[i + 1]
    rates: list[PricedRates | None]

    def at(self, input_tokens: int) -> PricedRates | None:
        return self.rates[bisect_left(self.starts, input_tokens)]

    def bounds(self, input_tokens: int) -> tuple[int, float]:
        """Of the tier: more input tokens than the first, at most the second."""
        tier = bisect_left(self.starts, input_tokens)
        return self.starts[tier - 1] if tier else -1, self.starts[tier] if tier < len(self.starts) else math.inf


class _Catalogue:
    """The data of genai-prices, searched without its own caches: those grow with every name a client invents."""

    def __init__(self) -> None:
        from genai_prices.data import providers  # slow to import: only those who need prices pay

        self._providers: list[Provider] = providers
        self._version = f"genai-prices {version('genai-prices')}"

    def price_list(self, base_url: str | None, provider_id: str, adapter: str, model: str) -> _PriceList | None:
        provider = self._provider(base_url, provider_id, adapter)
        if provider is None:
            return None
        found: ModelInfo | None = provider.find_model(model, all_providers=self._providers)
        return None if found is None or not found.prices else _PriceList(found.prices, self._version)

    def _provider(self, base_url: str | None, provider_id: str, adapter: str) -> Provider | None:
        """By address; an address that the catalogue does not know (a proxy, a default) goes by the provider's id in
        the configuration, then by the adapter."""
        if base_url is not None:
            for provider in self._providers:
                if re.match(provider.api_pattern, base_url):
                    return provider
        from genai_prices.data_snapshot import find_provider_by_id

        return find_provider_by_id(self._providers, provider_id) or find_provider_by_id(self._providers, adapter)


def _tiers(prices: ModelPrice, catalog_version: str) -> _Tiers:
    from genai_prices.types import TieredPrices

    stated = {name: prices.__dict__.get(key) for name, key in _PRICE_KEYS.items()}
    starts = sorted(
        {tier.start for price in stated.values() if isinstance(price, TieredPrices) for tier in price.tiers}
    )
    rates: list[PricedRates | None] = []
    for above in [-1, *starts]:
        values: dict[str, Decimal | None] = {}
        for name, price in stated.items():
            if isinstance(price, TieredPrices):
                values[name] = next((t.price for t in reversed(price.tiers) if t.start <= above), price.base)
            else:
                values[name] = price
        rates.append(_priced(values, prices.__dict__.get(_REQUEST_KEY), catalog_version))
    return _Tiers(starts, rates)


def _priced(values: dict[str, Decimal | None], per_thousand: object, catalog_version: str) -> PricedRates | None:
    """None where the data prices no input tokens: by the hour or page, or nothing at all (which also marks models that
    are free today; YAML can say 0). Where it prices input alone (embeddings, rerankers) output falls back to input."""
    values = dict(values)
    given = values.pop("input")
    if given is None:
        return None
    output = values.pop("output")
    request = _EXACT.scaleb(per_thousand, -3) if isinstance(per_thousand, Decimal) else None
    rates = Rates(input=given, output=given if output is None else output, request=request, **values)
    return PricedRates.of(rates, catalog_version)
