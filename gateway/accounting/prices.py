"""From an attempt to its price: who states it, and which of several statements holds.

What a contract says comes first, then the endpoint's `price` in YAML, then the approved catalogue. A price that nobody
states is `None`: the row is `unpriced`, which is not the same as free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import urlsplit

from gateway.accounting.catalogue import Catalogue, CatalogueProvider, Listing, read_catalogue
from gateway.accounting.offers import FROM_YAML, Base, Offer, in_utc
from gateway.accounting.rates import PricedRates, PriceRecord, cost, read_record, total_input, unit_prices
from gateway.config.model import Configuration, Contract, Endpoint, Exchange, Provider
from gateway.config.sheets import ANYWHERE, DEFAULT_TIER, sheet_of, tier_of
from gateway.types import PriceCard, Rates

__all__ = [
    "FROM_YAML",
    "PriceBook",
    "PriceRecord",
    "PricedRates",
    "Prices",
    "catalogue_provider",
    "cost",
    "read_record",
    "total_input",
    "unit_prices",
]

LOCAL = "local"

_CACHED_MODELS = 1024
_MAX_MODEL_NAME = 256  # characters; clients choose names for `*` endpoints, and each is matched against many patterns
_MAX_TIER_NAME = 32  # characters; upstreams choose them


class Prices:
    """What things cost under one configuration and one catalogue. Nothing changes it; safe to share between threads.

    `read`: gives the catalogue, and is asked when it is first needed. What was looked up is kept for a bounded number
    of models, since clients may invent names.
    """

    def __init__(
        self,
        read: Callable[[], Catalogue],
        *,
        contracts: Sequence[Contract] = (),
        currencies: Mapping[str, tuple[Exchange, ...]] | None = None,
    ) -> None:
        self._read = read
        self._contracts = tuple(contracts)
        self._currencies = currencies or {}
        self._team_globs = tuple({glob for contract in contracts for glob in contract.teams})
        # By identity: hashing an endpoint costs more than all the rest of a request's pricing. Each offer stands beside
        # its own endpoint and keeps it alive, so no other can get its address.
        self._offers: dict[tuple[int, str, str | None, str | None], tuple[Offer | None, Endpoint]] = {}
        self._listing = lru_cache(maxsize=_CACHED_MODELS)(self._find_listing)

    @property
    def catalogue(self) -> Catalogue:
        return self._read()

    def rates_for(
        self,
        endpoint: Endpoint,
        upstream_model: str,
        at: datetime,
        input_tokens: int,
        *,
        team: str | None = None,
        service_tier: str | None = None,
    ) -> PricedRates | None:
        """The rates of `upstream_model` at `endpoint`, or None when nobody states a price.

        `at`: when the attempt started; prices change by date and by time of day (naive: UTC). `input_tokens`: all
        input of the attempt, cached and written to cache too (`total_input`): past a tier's threshold every token of
        the request costs the tier's rate. `service_tier`: the one that was billed, in any provider's word; one that has
        no price of its own costs the usual rates.
        """
        offer = self._offer(endpoint, upstream_model, team, service_tier)
        return None if offer is None else offer.at(at, input_tokens)

    def rates_at(
        self,
        endpoint: Endpoint,
        upstream_model: str,
        at: float,
        input_tokens: int,
        team: str | None = None,
        service_tier: str | None = None,
    ) -> PricedRates | None:
        """As `rates_for`, for attempts on their way. `at`: seconds since the epoch."""
        offer = self._offer(endpoint, upstream_model, team, service_tier)
        if offer is None:
            return None
        tiers = offer.fixed
        if tiers is None:
            tiers = offer.tiers_at(datetime.fromtimestamp(at, UTC))
        return None if tiers is None else tiers.at(input_tokens)

    def quote(
        self, endpoint: Endpoint, upstream_model: str, at: float, input_tokens: int, team: str | None = None
    ) -> PriceCard | None:
        """As `rates_for`, for decisions: what is worked out once holds for many requests. `at`: seconds since the
        epoch."""
        offer = self._offer(endpoint, upstream_model, team, None)
        tiers = None if offer is None else offer.tiers_at(datetime.fromtimestamp(at, UTC))
        priced = None if tiers is None else tiers.at(input_tokens)
        return None if tiers is None or priced is None else _card(priced.rates, *tiers.bounds(input_tokens))

    def explain(
        self,
        endpoint: Endpoint,
        upstream_model: str,
        at: datetime,
        *,
        team: str | None = None,
        service_tier: str | None = None,
    ) -> list[str]:
        """Why the price is what it is, or why there is none, in words; what decides comes first."""
        offer = self._offer(endpoint, upstream_model, team, service_tier)
        return [self._why_unpriced(endpoint, upstream_model)] if offer is None else offer.explain(in_utc(at))

    def _why_unpriced(self, endpoint: Endpoint, model: str) -> str:
        provider = endpoint.provider
        if provider.adapter == LOCAL:
            return "a local model costs what its endpoint states, and that states no `price`"
        seller = catalogue_provider(self.catalogue, provider)
        if seller is None:
            return f"the catalogue knows neither the address of provider `{provider.id}` nor its id"
        return f"provider `{seller.id}` of the catalogue has no model `{model[:64]}` with a price by the token"

    def _offer(self, endpoint: Endpoint, model: str, team: str | None, service_tier: str | None) -> Offer | None:
        if team is not None and (not self._team_globs or not self._has_terms(team)):
            team = None
        key = (id(endpoint), model, team, service_tier)
        known = self._offers.get(key)
        if known is not None:
            return known[0]
        if len(model) > _MAX_MODEL_NAME:
            return None
        if service_tier is not None and len(service_tier) > _MAX_TIER_NAME:
            return self._offer(endpoint, model, team, None)
        if len(self._offers) >= _CACHED_MODELS:
            self._offers.clear()
        offer = self._make_offer(endpoint, model, team, tier_of(service_tier))
        self._offers[key] = offer, endpoint
        return offer

    def _has_terms(self, team: str) -> bool:
        """Whether some contract is for this team in particular."""
        return any(fnmatchcase(team, glob) for glob in self._team_globs)

    def _make_offer(self, endpoint: Endpoint, model: str, team: str | None, tier: str | None) -> Offer | None:
        base = self._base(endpoint, model)
        fitting = [contract for contract in self._contracts if _fits(contract, endpoint, model, team, tier)]
        if base is None and all(contract.price is None for contract in fitting):
            return None
        return Offer(base, fitting, tier, endpoint.region, self._currencies)

    def _base(self, endpoint: Endpoint, model: str) -> Base | None:
        """What it costs without contracts."""
        sheet = endpoint.sheet
        if sheet is None and endpoint.rates is not None:
            sheet = sheet_of(endpoint.rates)
        if sheet is not None:
            source = "yaml" if endpoint.capacity is None else "capacity"
            return Base(sheet, sheet.uplift.get(ANYWHERE), source, FROM_YAML)
        provider = endpoint.provider
        if provider.adapter == LOCAL:
            return None
        found = self._listing(provider.base_url, provider.id, provider.adapter, _own_address(provider), model)
        if found is None:
            return None
        uplift = next((share for place, share in found.model.uplift.items() if _is_in(provider.base_url, place)), None)
        name = f"{found.owner.id}/{found.model.id}"
        return Base(found.model, uplift, "catalogue", self.catalogue.label, name, has_tiers=not found.is_resold)

    def _find_listing(
        self, base_url: str | None, provider_id: str, adapter: str, is_own_address: bool, model: str
    ) -> Listing | None:
        catalogue = self.catalogue
        seller = _seller(catalogue, base_url, provider_id, adapter, is_own_address)
        return None if seller is None else catalogue.find(seller, model)


class PriceBook:
    """The catalogue in force, of one process. As it stands it knows no contracts, and no currency but USD.

    `catalogue` None: that of the installed genai-prices package, read when a price is first asked of it or `load` is
    called (half a second, and 30 MB): a worker is given the one that the control plane published instead.
    """

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        self._catalogue = catalogue
        self._plain = self._prices()

    @classmethod
    def published(cls, content: bytes | None) -> PriceBook:
        """With the catalogue that the control plane has published; None: with the package's. Raises ValueError."""
        return cls(None if content is None else read_catalogue(content))

    def load(self) -> None:
        """Reads the catalogue now instead of at the first request. Blocking."""
        _ = self._plain.catalogue

    def replace(self, catalogue: Catalogue) -> None:
        """What `under` gives from now on has this catalogue; what it gave before keeps the old one."""
        self._catalogue = catalogue
        self._plain = self._prices()

    def under(self, configuration: Configuration) -> Prices:
        """Prices under the contracts and currencies of a configuration, with the catalogue of this moment."""
        return self._prices(
            contracts=configuration.contracts,
            currencies=configuration.currencies,
        )

    def rates_at(
        self,
        endpoint: Endpoint,
        upstream_model: str,
        at: float,
        input_tokens: int,
        team: str | None = None,
        service_tier: str | None = None,
    ) -> PricedRates | None:
        """As `Prices.rates_at`."""
        return self._plain.rates_at(endpoint, upstream_model, at, input_tokens, team, service_tier)

    def rates_for(
        self,
        endpoint: Endpoint,
        upstream_model: str,
        at: datetime,
        input_tokens: int,
        *,
        team: str | None = None,
        service_tier: str | None = None,
    ) -> PricedRates | None:
        """As `Prices.rates_for`, without contracts."""
        return self._plain.rates_for(endpoint, upstream_model, at, input_tokens, service_tier=service_tier)

    def quote(
        self, endpoint: Endpoint, upstream_model: str, at: float, input_tokens: int, team: str | None = None
    ) -> PriceCard | None:
        """As `Prices.quote`, without contracts."""
        return self._plain.quote(endpoint, upstream_model, at, input_tokens)

    def _prices(
        self,
        contracts: Sequence[Contract] = (),
        currencies: Mapping[str, tuple[Exchange, ...]] | None = None,
    ) -> Prices:
        catalogue = self._catalogue
        read = _packaged if catalogue is None else lambda: catalogue
        return Prices(read, contracts=contracts, currencies=currencies)


@lru_cache(maxsize=1)
def _packaged() -> Catalogue:
    from gateway.accounting.catalogue_import import from_package  # only those who have no other pay for it

    return from_package().catalogue


def catalogue_provider(catalogue: Catalogue, provider: Provider) -> CatalogueProvider | None:
    """Who in the catalogue a provider of the configuration is, or None."""
    return _seller(catalogue, provider.base_url, provider.id, provider.adapter, _own_address(provider))


def _seller(
    catalogue: Catalogue, base_url: str | None, provider_id: str, adapter: str, is_own_address: bool
) -> CatalogueProvider | None:
    """By address; at one that the catalogue does not know, by the very id in the configuration. The adapter tells who
    sells only at the address that comes with it: elsewhere it is no more than a protocol."""
    found = None if base_url is None else catalogue.at_address(base_url)
    found = found or catalogue.by_id(provider_id)
    return found or (catalogue.by_name(adapter) if is_own_address else None)


def _own_address(provider: Provider) -> bool:
    """Whether the address is that which comes with the adapter, rather than one of somebody's own."""
    if provider.base_url is None:
        return True
    if provider.row.base_url is None:
        return False
    pattern = re.sub(r"\\\{(?:region|project)\\\}", "[^/]+", re.escape(provider.row.base_url))
    return re.fullmatch(pattern, provider.base_url.rstrip("/")) is not None


def _is_in(base_url: str | None, region: str) -> bool:
    """Whether an address is that of a region, as `eu.api.openai.com` is of `eu`. Where the YAML says that an endpoint
    is does not count: a label does not make a provider bill more."""
    host = urlsplit(base_url).hostname if base_url is not None else None
    return host is not None and (region == ANYWHERE or host.startswith(f"{region.lower()}."))


def _fits(contract: Contract, endpoint: Endpoint, model: str, team: str | None, tier: str | None) -> bool:
    return (
        contract.provider == endpoint.provider.id
        and any(fnmatchcase(model, glob) for glob in contract.models)
        and (not contract.endpoints or any(fnmatchcase(endpoint.id, glob) for glob in contract.endpoints))
        and (not contract.teams or (team is not None and any(fnmatchcase(team, glob) for glob in contract.teams)))
        and (not contract.service_tiers or (tier or DEFAULT_TIER) in contract.service_tiers)
    )


def _card(rates: Rates, above: int, up_to: float) -> PriceCard:
    return PriceCard(
        input=float(rates.input),
        output=float(rates.output),
        cache_read=float(rates.input if rates.cache_read is None else rates.cache_read),
        request=float(rates.request or 0),
        above=above,
        up_to=up_to,
    )
