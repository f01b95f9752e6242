"""Catalogues out of files: each format, and what is in none."""

from __future__ import annotations

import json
from datetime import date, time
from decimal import Decimal
from typing import Any

import pytest

from gateway.accounting.catalogue import Catalogue, CatalogueModel, CatalogueProvider, Clause
from gateway.accounting.catalogue_difference import ModelChange, PriceChange, compare_catalogues, names_in_use
from gateway.accounting.catalogue_import import from_package, read_prices
from gateway.config.sheets import Meters, PriceWindow, Step, Stepped, TierWindow
from tests.gateway_fixtures import configuration_of

D = Decimal


def plain(catalogue: Catalogue) -> Any:
    return json.loads(catalogue.encode())


def test_our_own_form_in_yaml() -> None:
    text = """
source: price list of 2026-11
providers:
  - id: hosting
    address: https://llm\\.hosting\\.example
    models:
      - id: Qwen3-8B
        windows:
          - {meters: {input: 0.10, output: 0.4}}
          - {meters: {input: [0.12, [[32000, 0.24]]], output: 0.5}, since: 2026-12-01}
          - {meters: {input: 0.05}, begins: "22:00:00", ends: "06:00:00"}
        service_tiers: [{tier: batch, meters: {input: 0.05, output: 0.2}, until: 2027-01-31}]
        uplift: {eu: 0.1}
        currency: EUR
"""
    found = read_prices(text.encode(), "file.yaml").catalogue
    (model,) = found.providers[0].models
    assert (found.source, model.match, model.currency) == ("price list of 2026-11", Clause(equals="qwen3-8b"), "EUR")
    assert model.windows == (
        PriceWindow(meters=Meters(input=D("0.1"), output=D("0.4"))),
        PriceWindow(
            meters=Meters(input=Stepped(D("0.12"), (Step(32000, D("0.24")),)), output=D("0.5")), since=date(2026, 12, 1)
        ),
        PriceWindow(meters=Meters(input=D("0.05")), begins=time(22), ends=time(6)),
    )
    assert model.service_tiers == (
        TierWindow(tier="batch", meters=Meters(input=D("0.05"), output=D("0.2")), until=date(2027, 1, 31)),
    )
    assert model.uplift == {"eu": D("0.1")}
    again = read_prices(found.encode(), "other").catalogue
    assert again == found  # what is written can be read, with its source


def test_data_json_of_genai_prices() -> None:
    content = json.dumps(
        [
            {
                "id": "p",
                "api_pattern": "https://p\\.example",
                "provider_match": {"or": [{"contains": "PP"}, {"starts_with": "q"}]},
                "fallback_model_providers": ["q"],
                "models": [
                    {
                        "id": "m",
                        "match": {"and": [{"starts_with": "M"}, {"regex": "^m.*\\d$"}]},
                        "prices": [
                            {"prices": {"input_mtok": 1.10, "web_searches_kcount": 10}},
                            {
                                "constraint": {"start_date": "2026-02-01"},
                                "prices": {
                                    "input_mtok": {"base": 1, "tiers": [{"start": 1000, "price": 2.5}]},
                                    "requests_kcount": 12,
                                },
                            },
                            {
                                "constraint": {"start_time": "01:30:00+01:00", "end_time": "05:00:00Z"},
                                "prices": {"input_mtok": 0.5},
                            },
                        ],
                        "price_variants": [
                            {"when": {"processing": "batch"}, "prices": {"input_mtok": 0.25}},
                            {"when": {"service_tier": "flex", "region": "x"}, "prices": {"input_mtok": 0.1}},
                        ],
                    }
                ],
            }
        ]
    )
    found = read_prices(content.encode(), "data.json")
    (provider,) = found.catalogue.providers
    (model,) = provider.models
    assert provider.named == Clause(any=(Clause(contains="pp"), Clause(starts_with="q")))
    assert (provider.address, provider.resells) == ("https://p\\.example", ("q",))
    assert model.match == Clause(all=(Clause(starts_with="m"), Clause(regex="^m.*\\d$")))
    assert model.windows == (
        PriceWindow(meters=Meters(input=D("1.1"))),
        PriceWindow(
            meters=Meters(input=Stepped(D(1), (Step(1000, D("2.5")),)), request=D("0.012")), since=date(2026, 2, 1)
        ),
        PriceWindow(meters=Meters(input=D("0.5")), begins=time(0, 30), ends=time(5)),
    )
    assert model.service_tiers == (TierWindow(tier="batch", meters=Meters(input=D("0.25"))),)
    assert found.left_out == {"web_searches_kcount": 1, "prices for region x, service_tier flex": 1}


LITELLM = {
    "sample_spec": {"litellm_provider": "one of...", "input_cost_per_token": 0},
    "gpt-x": {
        "litellm_provider": "openai",
        "input_cost_per_token": 1.25e-06,
        "output_cost_per_token": 1e-05,
        "cache_read_input_token_cost": 1.25e-07,
        "input_cost_per_token_above_200k_tokens": 2.5e-06,
        "input_cost_per_token_priority": 2.5e-06,
        "input_cost_per_token_above_200k_tokens_priority": 5e-06,
        "output_cost_per_token_batches": 5e-06,
        "cache_creation_input_token_cost_above_1hr": 3e-06,
        "regional_processing_uplift_multiplier_eu": 1.1,
        "search_context_cost_per_query": {"search_context_size_low": 0.01},
        "max_tokens": 100,
    },
    "gemini/gemini-x": {"litellm_provider": "gemini", "input_cost_per_token": 1e-07, "output_cost_per_token": 4e-07},
    "pictures": {"litellm_provider": "openai", "output_cost_per_image": 0.04},
    "rerank": {"litellm_provider": "cohere", "input_cost_per_token": 0, "input_cost_per_request": 0.002},
}


def test_litellms_list() -> None:
    lender = CatalogueProvider(id="openai", address="https://api\\.openai\\.com", named=Clause(contains="openai"))
    known = Catalogue(source="known", providers=(lender,))
    found = read_prices(json.dumps(LITELLM).encode(), "litellm.json", known=known)
    cohere, google, openai = found.catalogue.providers
    assert [one.id for one in (cohere, google, openai)] == ["cohere", "google", "openai"]
    assert (openai.address, google.address) == ("https://api\\.openai\\.com", None)
    (model,) = openai.models  # what has no price by the token is left out
    assert model.windows[0].meters == Meters(
        input=Stepped(D("1.25"), (Step(200_000, D("2.5")),)),
        output=D(10),
        cache_read=D("0.125"),
        cache_write_1h=D(3),
    )
    assert model.service_tiers == (
        TierWindow(tier="batch", meters=Meters(output=D(5))),
        TierWindow(tier="priority", meters=Meters(input=Stepped(D("2.5"), (Step(200_000, D(5)),)))),
    )
    assert model.uplift == {"eu": D("0.1")}
    (gemini,) = google.models
    assert gemini.match == Clause(any=(Clause(equals="gemini-x"), Clause(equals="gemini/gemini-x")))
    assert cohere.models[0].windows[0].meters == Meters(input=D(0), request=D("0.002"))
    assert found.left_out == {"search_context_cost_per_query": 1, "output_cost_per_image": 1}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no format"),
        (b"\xff\xfe", "neither JSON nor YAML"),
        (b"{", "neither JSON nor YAML"),
        (b'{"a": NaN}', "neither JSON nor YAML"),
        (b"a: &x [1]\nb: *x\n", "aliases"),
        (b"[" * 100_000, "neither JSON nor YAML"),
        (b"{}", "no format"),
        (b"[3]", "not in the format"),
        (b'[{"id": "p"}]', "not in the format"),
        (b'{"providers": 3}', "a list of `providers`"),
        (b'{"providers": [{"id": "p", "models": [{"windows": []}]}]}', "not in the format"),
        (b'{"providers": [{"id": "p", "model": []}]}', "unknown field"),
        (b'{"providers": [{"id": "p", "models": [{"id": "m", "windows": [{"meters": {"input": "x"}}]}]}]}', "Invalid"),
        (b'{"providers": [{"id": "p", "models": [{"id": "m", "windows": [{"meters": {"input": -1}}]}]}]}', "from 0"),
        (b'{"providers": [{"id": "p"}, {"id": "p"}]}', "stands twice"),
        (b'{"m": {"litellm_provider": "p", "input_cost_per_token": "1e999999"}}', "is no price"),
        (b'{"m": {"litellm_provider": "p", "input_cost_per_token": -1}}', "from 0"),
        (b'{"m": {"litellm_provider": "p", "input_cost_per_token": [1]}}', "is no price"),
        (b'{"m": {"litellm_provider": "p", "input_cost_per_token": 11111111111111111111}}', "neither JSON nor YAML"),
    ],
)
def test_what_is_no_price_list_is_refused_with_the_reason(content: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        read_prices(content, "file")


def test_a_format_that_is_named_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="must be a list of providers"):
        read_prices(json.dumps(LITELLM).encode(), "file", "genai-prices")


def model(id: str = "m", **fields: Any) -> CatalogueModel:
    windows = (PriceWindow(meters=Meters(input=D(1), output=D(2))),)
    return CatalogueModel(**{"id": id, "match": Clause(equals=id), "windows": windows, **fields})


def of(*models: CatalogueModel) -> Catalogue:
    return Catalogue(source="s", providers=(CatalogueProvider(id="p", address="https://host", models=models),))


def test_what_changes_from_one_to_another() -> None:
    dearer = (
        PriceWindow(meters=Meters(input=Stepped(D(1), (Step(9, D(3)),)), output=D(2))),
        PriceWindow(meters=Meters(input=D(4)), since=date(2027, 1, 1)),
    )
    flex = (TierWindow(tier="flex", meters=Meters(input=D("0.5")), begins=time(1), ends=time(2)),)
    before = of(model("same"), model("gone"), model("m", service_tiers=flex), model("renamed"))
    after = of(
        model("same"), model("m", windows=dearer), model("new"), model("renamed", match=Clause(contains="renamed"))
    )
    assert compare_catalogues(before, after) == [
        ModelChange("p", "gone", "removed", (PriceChange("input", "1", None), PriceChange("output", "2", None))),
        ModelChange(
            "p",
            "m",
            "changed",
            (
                PriceChange("from 01:00 to 02:00 UTC, flex: input", "0.5", None),
                PriceChange("input above 9", None, "3"),
                PriceChange("since 2027-01-01: input", None, "4"),
            ),
        ),
        ModelChange("p", "new", "added", (PriceChange("input", None, "1"), PriceChange("output", None, "2"))),
        ModelChange("p", "renamed", "changed", (), is_match_changed=True),
    ]
    assert compare_catalogues(before, before) == []
    assert [one.model for one in compare_catalogues(before, after, {("p", "new"), ("p", "same")})] == ["new"]


def test_models_in_use_are_found_by_the_configurations_providers() -> None:
    catalogue = of(model("m"), model("n"))
    seller = CatalogueProvider(id="reseller", resells=("p",))
    catalogue = Catalogue(source="s", providers=(*catalogue.providers, seller))
    providers = {"mine": {"adapter": "openai", "base_url": "https://host/v1"}}
    configuration = configuration_of({"providers": providers, "endpoints": {}, "policies": {}})
    used = [("mine", "M"), ("mine", "unheard-of"), ("reseller", "n"), ("nobody", "m")]
    assert names_in_use(catalogue, configuration, used) == {("p", "m"), ("p", "n")}


def test_the_package_leaves_out_only_what_no_token_is_counted_by() -> None:
    left_out = from_package().left_out
    assert left_out["web_searches_kcount"] > 0
    assert not {"input_mtok", "output_mtok", "cache_read_mtok", "requests_kcount"} & set(left_out)
    assert not [name for name in left_out if "service_tier" in name or "batch" in name or "speed" in name]
