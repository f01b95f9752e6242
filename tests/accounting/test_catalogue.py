"""The catalogue against its source: for every model of genai-prices, on several dates and at several sizes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gateway.accounting.catalogue import (
    Catalogue,
    CatalogueModel,
    CatalogueProvider,
    Clause,
    check_catalogue,
    read_catalogue,
)
from gateway.accounting.catalogue_import import from_package
from gateway.accounting.prices import PriceBook
from gateway.config.model import AS_ASKED
from gateway.config.sheets import Meters, PriceWindow, Step, Stepped, TierWindow
from gateway.types import Rates
from tests.configuration import make_endpoint, make_provider

DATES = [
    datetime(2023, 6, 1, 12, tzinfo=UTC),
    datetime(2025, 3, 1, 0, 29, tzinfo=UTC),
    datetime(2025, 3, 1, 12, tzinfo=UTC),
    datetime(2026, 10, 13, 23, 59, 59, tzinfo=UTC),
    datetime(2026, 10, 14, 2, tzinfo=UTC),
    datetime(2026, 11, 21, 9, 59, tzinfo=UTC),
]
SIZES = [1, 100_001, 200_000, 200_001, 10**7]
CONTEXTS: list[tuple[str | None, dict[str, str]]] = [
    (None, {}),
    ("default", {"service_tier": "default"}),
    ("priority", {"service_tier": "priority"}),
    ("flex", {"service_tier": "flex"}),
    ("batch", {"processing": "batch"}),
]
KEYS = {
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


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return from_package().catalogue


def their_rates(prices: Any, size: int) -> Rates | None:
    """What the package itself charges for a million tokens of each kind in a request of that size."""
    from genai_prices.types import calc_unit_price

    values: dict[str, Decimal] = {}
    for name, key in KEYS.items():
        price = prices.__dict__.get(key)
        if price is not None:
            values[name] = calc_unit_price(price, 10**6, size, 10**6)
    if "input" not in values:
        return None
    fee = prices.__dict__.get("requests_kcount")
    if fee is not None:
        values["request"] = calc_unit_price(fee, 1, size, 1000)
    return Rates(**{"output": values["input"], **values})


def names_of(model: Any) -> Iterator[str]:
    """A model's id, and the first names that its clause spells out, as a client may write them."""
    yield model.id
    clause = model.match
    spelled = [one.equals for one in [clause, *getattr(clause, "or_", [])] if hasattr(one, "equals")]
    yield from (name.upper() for name in spelled[:2])


def test_every_model_costs_what_genai_prices_says(catalogue: Catalogue) -> None:
    from genai_prices.data import providers

    prices = PriceBook(catalogue)._plain
    compared = priced = 0
    for provider in providers:
        here = make_endpoint(provider=make_provider(id=provider.id, base_url="https://x.example"), model=AS_ASKED)
        for name in {name for model in provider.models for name in names_of(model)}:
            theirs = provider.find_model(name, all_providers=providers)
            if theirs is None:
                assert prices.rates_for(here, name, DATES[-1], 1) is None, (provider.id, name)
                continue
            is_own = any(theirs is model for model in provider.models)
            many = theirs.price_variants is not None or isinstance(theirs.prices, list)
            for at in DATES if many else DATES[-1:]:
                for tier, context in CONTEXTS if many else CONTEXTS[:1]:
                    expected = theirs.get_prices(at, context if is_own else None)
                    for size in SIZES:
                        found = prices.rates_for(here, name, at, size, service_tier=tier)
                        rates = None if found is None else found.rates
                        assert rates == their_rates(expected, size), (provider.id, name, at, tier, size)
                        compared += 1
                        priced += rates is not None
    assert compared > 25_000 and priced > 22_000


def test_every_address_and_name_of_a_provider_is_found(catalogue: Catalogue) -> None:
    from genai_prices.data import providers

    assert [one.id for one in catalogue.providers] == [one.id for one in providers]
    for address, id in {
        "https://api.openai.com/v1": "openai",
        "https://my-resource.openai.azure.com/openai": "azure",
        "https://bedrock-runtime.eu-central-1.amazonaws.com": "aws",
        "https://openrouter.ai/api/v1": "openrouter",
    }.items():
        found = catalogue.at_address(address)
        assert found is not None and found.id == id
    assert catalogue.at_address("https://evil.example/?https://api.openai.com") is None
    assert [getattr(catalogue.by_name(name), "id", None) for name in ("OpenAI", "vertex", "xai", "nobody")] == [
        "openai",
        "google",
        "x-ai",
        None,
    ]


def test_it_survives_a_file_and_keeps_its_version(catalogue: Catalogue) -> None:
    again = read_catalogue(catalogue.encode())
    assert again == catalogue and again.version == catalogue.version and again.label == catalogue.label
    assert again.encode() == catalogue.encode()
    other = msgspec.structs.replace(catalogue, source="somewhere else")
    assert other.version == catalogue.version  # it says the same
    fewer = msgspec.structs.replace(catalogue, providers=catalogue.providers[1:])
    assert fewer.version != catalogue.version


def test_a_catalogue_is_read_without_the_package() -> None:
    import subprocess
    import sys

    code = 'import sys, gateway.accounting.catalogue as c; c.read_catalogue(b\'{"source":"s","providers":[]}\')'
    check = "; assert not {'genai_prices', 'yaml', 'pydantic'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code + check], check=True)


def of(model: dict[str, Any]) -> Catalogue:
    plain = {"id": "m", "match": Clause(equals="m"), "windows": (PriceWindow(meters=Meters(input=Decimal(1))),)}
    only = CatalogueProvider(id="p", models=(CatalogueModel(**{**plain, **model}),))
    return Catalogue(source="test", providers=(only,))


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ({"windows": ()}, "no window of prices"),
        ({"windows": (PriceWindow(meters=Meters(input=Decimal(-1))),)}, "a price is from 0"),
        ({"windows": (PriceWindow(meters=Meters(input=Decimal("NaN"))),)}, "a price is from 0"),
        ({"windows": (PriceWindow(meters=Meters(input=Stepped(Decimal(1), ()))),)}, "steps ascend"),
        (
            {
                "windows": (
                    PriceWindow(meters=Meters(input=Stepped(Decimal(1), (Step(9, Decimal(1)), Step(9, Decimal(2)))))),
                )
            },
            "steps ascend",
        ),
        ({"service_tiers": (TierWindow(tier="x", meters=Meters(output=Decimal("1e12"))),)}, "a price is from 0"),
        ({"windows": (PriceWindow(meters=Meters(), begins=datetime.min.time()),)}, "belong together"),
        ({"match": Clause()}, "says one thing"),
        ({"match": Clause(equals="M")}, "lower case"),
        ({"match": Clause(regex="(")}, "is no pattern"),
        ({"match": Clause(regex="x" * 600)}, "is no pattern"),
        ({"currency": "eur"}, "is no currency"),
        ({"uplift": {"eu": Decimal(1000)}}, "an uplift is a share"),
        ({"id": "a\nb"}, "can be printed"),
    ],
)
def test_what_cannot_be_is_refused(model: dict[str, Any], what: str) -> None:
    check_catalogue(of({}))
    with pytest.raises(ValueError, match=what):
        check_catalogue(of(model))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"source":"s","providers":[{"id":"p","modells":[]}]}', b"\xff"]
)
def test_what_is_no_catalogue_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a price catalogue"):
        read_catalogue(content)
