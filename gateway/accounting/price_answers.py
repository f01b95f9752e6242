"""Which price would hold, and why: the answer to an operator who asks for a model."""

from __future__ import annotations

from datetime import datetime

import msgspec

from gateway.accounting.catalogue import Catalogue, CatalogueModel
from gateway.accounting.catalogue_difference import prices_of
from gateway.accounting.prices import LOCAL, PriceRecord, Prices, catalogue_provider
from gateway.config.model import AS_ASKED, Configuration, Endpoint


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`provider`: of the configuration, or else of the catalogue; None: all that serve the model."""

    model: str
    at: datetime
    provider: str | None = None
    team: str | None = None
    service_tier: str | None = None
    input_tokens: int = 1


class PriceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoint` None: nobody in the configuration serves it; what the catalogue says. `prices`: as a row would keep
    them, None: it would be unpriced. `list_prices`: all that the catalogue states of the model, by conditions."""

    endpoint: str | None
    provider: str
    model: str
    prices: PriceRecord | None
    catalog_version: str | None
    reasons: tuple[str, ...]
    list_prices: dict[str, str]


def answer_prices(prices: Prices, configuration: Configuration, asked: Question) -> list[PriceAnswer]:
    """By endpoint. Those that send on any model, and know no price of this one, are left out if another knows it."""
    serving = [
        endpoint
        for endpoint in configuration.endpoints.values()
        if asked.provider in (None, endpoint.provider.id) and _serves(endpoint, asked.model)
    ]
    found = [_answer(prices, endpoint, asked) for endpoint in serving]
    named = {endpoint.id for endpoint in serving if endpoint.model != AS_ASKED}
    if any(one.prices is not None or one.endpoint in named for one in found):
        found = [one for one in found if one.prices is not None or one.endpoint in named]
    if not found or all(one.prices is None for one in found):
        found += _of_catalogue(prices.catalogue, asked)
    return found


def _serves(endpoint: Endpoint, model: str) -> bool:
    return endpoint.model == model or (endpoint.model == AS_ASKED and endpoint.provider.adapter != LOCAL)


def _answer(prices: Prices, endpoint: Endpoint, asked: Question) -> PriceAnswer:
    wanted = {"team": asked.team, "service_tier": asked.service_tier}
    found = prices.rates_for(endpoint, asked.model, asked.at, asked.input_tokens, **wanted)
    seller = catalogue_provider(prices.catalogue, endpoint.provider) if endpoint.provider.adapter != LOCAL else None
    listing = None if seller is None else prices.catalogue.find(seller, asked.model)
    return PriceAnswer(
        endpoint=endpoint.id,
        provider=endpoint.provider.id,
        model=asked.model,
        prices=None if found is None else found.record,
        catalog_version=None if found is None else found.catalog_version,
        reasons=tuple(prices.explain(endpoint, asked.model, asked.at, **wanted)),
        list_prices={} if listing is None else prices_of(listing.model),
    )


def _of_catalogue(catalogue: Catalogue, asked: Question) -> list[PriceAnswer]:
    answers = []
    for provider in catalogue.providers:
        if asked.provider in (None, provider.id):
            listing = catalogue.find(provider, asked.model)
            if listing is not None and not (listing.is_resold and asked.provider is None):
                answers.append(_listed(catalogue, provider.id, listing.model))
    return answers


def _listed(catalogue: Catalogue, provider: str, model: CatalogueModel) -> PriceAnswer:
    return PriceAnswer(
        endpoint=None,
        provider=provider,
        model=model.id,
        prices=None,
        catalog_version=catalogue.label,
        reasons=("the catalogue prices it, and no endpoint of the configuration gets that price",),
        list_prices=prices_of(model),
    )
