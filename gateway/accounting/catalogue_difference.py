"""What changes in prices from one catalogue to another, model by model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import msgspec

from gateway.accounting.catalogue import Catalogue
from gateway.accounting.prices import catalogue_provider
from gateway.config.model import Configuration
from gateway.config.sheets import USD, PriceSheet, PriceWindow, Stepped, TierWindow

Kind = Literal["added", "removed", "changed"]
Name = tuple[str, str]
"""A provider of the catalogue, and one of its models."""


class PriceChange(msgspec.Struct, frozen=True):
    """One price, named by all its conditions, as in `since 2026-10-14, batch: input above 200000`."""

    price: str
    before: str | None
    after: str | None


class ModelChange(msgspec.Struct, frozen=True):
    """`is_match_changed`: other names than before mean this model."""

    provider: str
    model: str
    kind: Kind
    prices: tuple[PriceChange, ...]
    is_match_changed: bool = False


def compare_catalogues(before: Catalogue, after: Catalogue, only: Collection[Name] | None = None) -> list[ModelChange]:
    """By provider and model. `only`: the models to look at; None: all."""
    old, new = _models(before), _models(after)
    changes = []
    for name in sorted(old.keys() | new.keys()):
        if only is None or name in only:
            change = _compare(name, old.get(name), new.get(name))
            if change is not None:
                changes.append(change)
    return changes


def names_in_use(catalogue: Catalogue, configuration: Configuration, used: Collection[Name]) -> set[Name]:
    """Of provider ids of the configuration and upstream models, as the ledger has them: which models of the catalogue
    those are."""
    found: set[Name] = set()
    for provider_id, model in used:
        provider = configuration.providers.get(provider_id)
        seller = catalogue.by_id(provider_id) if provider is None else catalogue_provider(catalogue, provider)
        listing = None if seller is None else catalogue.find(seller, model)
        if listing is not None:
            found.add((listing.owner.id, listing.model.id))
    return found


def prices_of(sheet: PriceSheet) -> dict[str, str]:
    """Each price by its conditions."""
    found: dict[str, str] = {}
    for window in (*sheet.windows, *sheet.service_tiers):
        when = ", ".join(_conditions(window))
        for name, price in window.meters.stated().items():
            stem = f"{when}: {name}" if when else name
            if isinstance(price, Stepped):
                found[stem] = f"{price.base:f}"
                for step in price.steps:
                    found[f"{stem} above {step.above}"] = f"{step.price:f}"
            else:
                found[stem] = f"{price:f}"
    for region, share in sheet.uplift.items():
        found[f"uplift in {region}"] = f"{share:f}"
    if sheet.currency != USD:
        found["currency"] = sheet.currency
    return found


def _conditions(window: PriceWindow) -> Iterator[str]:
    if window.since is not None:
        yield f"since {window.since}"
    if window.until is not None:
        yield f"until {window.until}"
    if window.begins is not None and window.ends is not None:
        yield f"from {window.begins:%H:%M} to {window.ends:%H:%M} UTC"
    if isinstance(window, TierWindow):
        yield window.tier


def _models(catalogue: Catalogue) -> Mapping[Name, tuple[PriceSheet, object]]:
    """The first of each name: it is the one that is found."""
    found: dict[Name, tuple[PriceSheet, object]] = {}
    for provider in catalogue.providers:
        for model in provider.models:
            found.setdefault((provider.id, model.id), (model, model.match))
    return found


def _compare(
    name: Name, before: tuple[PriceSheet, object] | None, after: tuple[PriceSheet, object] | None
) -> ModelChange | None:
    old = {} if before is None else prices_of(before[0])
    new = {} if after is None else prices_of(after[0])
    prices = tuple(
        PriceChange(price, old.get(price), new.get(price))
        for price in {**old, **new}
        if old.get(price) != new.get(price)
    )
    if before is None or after is None:
        return ModelChange(*name, "added" if before is None else "removed", prices)
    is_match_changed = before[1] != after[1]
    return ModelChange(*name, "changed", prices, is_match_changed) if prices or is_match_changed else None
