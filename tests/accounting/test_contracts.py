"""What holds when several state a price: contracts, YAML, the catalogue; in which currency, when, and for whom."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest

from gateway.accounting.catalogue import Catalogue, CatalogueModel, CatalogueProvider, Clause
from gateway.accounting.prices import PriceBook, Prices, cost, read_record, total_input, unit_prices
from gateway.accounting.repricing import endpoint_of
from gateway.config.model import Configuration, Contract, Endpoint, Exchange
from gateway.config.sheets import ANYWHERE, Meters, PriceSheet, PriceWindow, Step, Stepped, TierWindow
from gateway.types import BUCKETS, Rates, Usage
from tests.configuration import make_endpoint, make_provider

D = Decimal
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HERE = "https://api.seller.example/v1"

MODEL = CatalogueModel(
    id="m-1",
    match=Clause(starts_with="m"),
    windows=(
        PriceWindow(meters=Meters(input=Stepped(D(2), (Step(1000, D(4)),)), output=D(10), cache_read=D(1))),
        PriceWindow(meters=Meters(input=D(20), output=D(100)), since=date(2027, 1, 1)),
    ),
    service_tiers=(
        TierWindow(tier="priority", meters=Meters(input=D(6))),
        TierWindow(tier="batch", meters=Meters(input=D(1), output=D(5)), since=date(2026, 6, 1)),
    ),
    uplift={"eu": D("0.1")},
)
SELLER = CatalogueProvider(id="seller", address=r"https://(eu\.)?api\.seller\.example", models=(MODEL,))
CATALOGUE = Catalogue(source="list 7", providers=(SELLER,))


def endpoint(base_url: str = HERE, **fields: Any) -> Endpoint:
    provider = make_provider(id="s", adapter="openai-compatible", base_url=base_url)
    return make_endpoint(**{"provider": provider, "model": "m", **fields})


def prices(*contracts: Contract, **currencies: Any) -> Prices:
    return Prices(
        lambda: CATALOGUE,
        contracts=contracts,
        currencies=currencies,
    )


def contract(**fields: Any) -> Contract:
    return Contract(**{"id": "c", "provider": "s", **fields})


def test_the_catalogue_where_nobody_says_otherwise() -> None:
    found = prices().rates_for(endpoint(), "m", NOON, 1000)
    assert found is not None and found.rates == Rates(D(2), D(10), cache_read=D(1))
    assert found.catalog_version == f"list 7 {CATALOGUE.version}"
    record = found.record
    assert (record.source, record.model, record.listed, record.list_rates) == (
        "catalogue",
        "seller/m-1",
        None,
        found.rates,
    )
    large = prices().rates_for(endpoint(), "m", NOON, 1001)
    assert large is not None and (large.rates.input, large.record.above) == (D(4), 1000)


@pytest.mark.parametrize(
    ("tier", "expected", "used"),
    [
        (None, (D(2), D(10)), None),
        ("standard", (D(2), D(10)), None),
        ("priority", (D(6), D(10)), "priority"),  # what it leaves out costs as usual
        ("PRIORITY", (D(6), D(10)), "priority"),
        ("batch", (D(1), D(5)), "batch"),
        ("flex", (D(2), D(10)), None),  # no price of its own: the usual one, and the row does not claim another
        ("x" * 1000, (D(2), D(10)), None),
    ],
)
def test_service_tiers(tier: str | None, expected: tuple[Decimal, Decimal], used: str | None) -> None:
    found = prices().rates_for(endpoint(), "m", NOON, 10, service_tier=tier)
    assert found is not None
    assert ((found.rates.input, found.rates.output), found.record.service_tier) == (expected, used)


def test_what_is_resold_has_the_owners_standard_prices_and_not_its_tiers() -> None:
    reseller = CatalogueProvider(id="reseller", address="https://resale", resells=("seller",))
    book = Prices(lambda: Catalogue(source="list 7", providers=(SELLER, reseller)))
    found = book.rates_for(endpoint("https://resale.example"), "m", NOON, 10, service_tier="priority")
    assert found is not None
    assert (found.rates.input, found.record.service_tier, found.record.model) == (D(2), None, "seller/m-1")


def test_a_tier_has_dates_of_its_own() -> None:
    before = prices().rates_for(endpoint(), "m", datetime(2026, 5, 31, 23, tzinfo=UTC), 10, service_tier="batch")
    assert before is not None and (before.rates.input, before.record.service_tier) == (D(2), None)


def test_an_uplift_goes_by_the_address_and_not_by_a_label() -> None:
    labelled = prices().rates_for(endpoint(region="eu"), "m", NOON, 10)
    there = prices().rates_for(endpoint("https://eu.api.seller.example/v1"), "m", NOON, 10)
    assert labelled is not None and there is not None
    assert (labelled.rates.input, labelled.record.uplift) == (D(2), None)
    assert (there.rates.input, there.rates.output, there.record.uplift) == (D("2.2"), D("11.0"), D("0.1"))
    assert there.record.listed is None  # the provider publishes it so


def test_a_discount_keeps_the_list_price() -> None:
    found = prices(contract(discount=D("0.15"))).rates_for(endpoint(), "m", NOON, 10)
    assert found is not None and found.rates == Rates(D("1.70"), D("8.50"), cache_read=D("0.85"))
    record = found.record
    assert record.listed == Rates(D(2), D(10), cache_read=D(1))
    assert (record.contract, record.discount, record.source) == ("c", D("0.15"), "catalogue")
    assert found.catalog_version.startswith("list 7")


def test_a_contracts_price_goes_before_yaml_and_yaml_before_the_catalogue() -> None:
    stated = endpoint(rates=Rates(D(3), D(12)))
    yaml = prices().rates_for(stated, "m", NOON, 10)
    agreed = prices(contract(price=Rates(D(1), D(2)))).rates_for(stated, "m", NOON, 10)
    off = prices(contract(discount=D("0.5"))).rates_for(stated, "m", NOON, 10)
    assert yaml is not None and agreed is not None and off is not None
    assert (yaml.rates.input, yaml.record.source, yaml.catalog_version) == (D(3), "yaml", "yaml")
    assert (agreed.rates, agreed.record.listed, agreed.record.source) == (Rates(D(1), D(2)), stated.rates, "contract")
    assert (off.rates, off.record.listed) == (Rates(D("1.5"), D("6.0")), stated.rates)


def test_a_contract_may_price_what_nobody_publishes() -> None:
    found = prices(contract(price=Rates(D(1), D(2)))).rates_for(endpoint(), "unheard-of", NOON, 10)
    assert found is not None and found.rates == Rates(D(1), D(2))
    assert (found.record.is_listed, found.record.listed, found.catalog_version) == (False, None, "yaml")
    assert prices(contract(discount=D("0.5"))).rates_for(endpoint(), "unheard-of", NOON, 10) is None


def test_the_last_contract_that_fits_holds() -> None:
    several = prices(
        contract(id="all", discount=D("0.1")),
        contract(id="team", discount=D("0.2"), teams=("pay*",)),
        contract(id="model", discount=D("0.3"), models=("m-large*",)),
        contract(id="endpoint", discount=D("0.4"), endpoints=("special",)),
        contract(id="tier", discount=D("0.5"), service_tiers=("batch",)),
        contract(id="over", discount=D("0.6"), until=date(2026, 11, 20)),
        contract(id="future", discount=D("0.7"), since=date(2026, 11, 22)),
        contract(id="other", provider="another", discount=D("0.8")),
    )

    def holds(model: str = "m", at: datetime = NOON, id: str = "e", **who: str) -> str | None:
        found = several.rates_for(endpoint(id=id), model, at, 10, **who)
        assert found is not None
        return found.record.contract

    assert (holds(), holds(team="hr"), holds(team="payments")) == ("all", "all", "team")
    assert holds("m-large-2", team="payments") == "model"
    assert (holds(id="special"), holds(service_tier="batch")) == ("endpoint", "tier")
    assert holds(at=datetime(2026, 11, 20, 23, 59, tzinfo=UTC)) == "over"
    assert holds(at=datetime(2026, 11, 22, tzinfo=UTC)) == "future"


def test_contracts_of_the_usual_tier_hold_where_no_tier_is_said() -> None:
    usual = prices(contract(discount=D("0.5"), service_tiers=("default",)))
    for tier, expected in ((None, D(1)), ("standard", D(1)), ("priority", D(6))):
        found = usual.rates_for(endpoint(), "m", NOON, 10, service_tier=tier)
        assert found is not None and found.rates.input == expected


def test_an_uplift_that_was_agreed_takes_the_place_of_the_published_one() -> None:
    there = endpoint("https://eu.api.seller.example/v1", region="eu")
    found = prices(contract(uplift={"eu": D("0.05")})).rates_for(there, "m", NOON, 10)
    assert found is not None and (found.rates.input, found.record.uplift) == (D("2.10"), D("0.05"))
    own = prices(contract(price=Rates(D(1), D(2)), discount=D("0.5"), uplift={"*": D("0.2")}))
    priced = own.rates_for(there, "m", NOON, 10)
    assert priced is not None and priced.rates == Rates(D("0.600"), D("1.200"))


def test_currencies_by_date() -> None:
    euros = (Exchange(usd=D("1.10")), Exchange(usd=D("1.2"), since=date(2026, 11, 1)))
    book = prices(contract(price=Rates(D("0.5"), D(2)), currency="EUR"), EUR=euros)
    old = book.rates_for(endpoint(), "m", datetime(2026, 10, 31, 23, 59, tzinfo=UTC), 10)
    new = book.rates_for(endpoint(), "m", NOON, 10)
    assert old is not None and new is not None
    assert (old.rates.input, old.record.usd, old.record.currency) == (D("0.550"), D("1.10"), "EUR")
    assert (new.rates.input, new.rates.output, new.record.usd) == (D("0.60"), D("2.4"), D("1.2"))
    unknown = prices(
        contract(price=Rates(D(1), D(2)), currency="EUR"), EUR=(Exchange(usd=D(1), since=date(2027, 1, 1)),)
    )
    assert unknown.rates_for(endpoint(), "m", NOON, 10) is None  # nobody says what a euro was worth then


def test_a_yaml_sheet_has_sizes_hours_tiers_and_a_currency() -> None:
    sheet = PriceSheet(
        windows=(
            PriceWindow(meters=Meters(input=Stepped(D(1), (Step(100, D(2)),)), output=D(4))),
            PriceWindow(meters=Meters(input=D("0.5"), output=D(4)), begins=time(22), ends=time(6)),
        ),
        service_tiers=(TierWindow(tier="priority", meters=Meters(output=D(8))),),
        uplift={ANYWHERE: D("0.1")},
        currency="EUR",
    )
    book, asked = prices(EUR=(Exchange(usd=D(2)),)), endpoint(sheet=sheet)

    def rates(hour: int, size: int, tier: str | None = None) -> tuple[Decimal, Decimal]:
        found = book.rates_for(asked, "m", NOON.replace(hour=hour), size, service_tier=tier)
        assert found is not None and (found.record.currency, found.record.uplift) == ("EUR", D("0.1"))
        return found.rates.input, found.rates.output

    assert rates(12, 100) == (D("2.2"), D("8.8"))
    assert rates(12, 101) == (D("4.4"), D("8.8"))
    assert rates(23, 101) == rates(5, 101) == (D("1.1"), D("8.8"))
    assert rates(6, 1, "priority") == (D("2.2"), D("17.6"))


def test_a_quote_says_what_the_contract_says() -> None:
    book = prices(contract(discount=D("0.5"), teams=("payments",)))
    asked, at = endpoint(), NOON.timestamp()
    usual, agreed = book.quote(asked, "m", at, 10), book.quote(asked, "m", at, 10, team="payments")
    assert usual is not None and agreed is not None
    assert (usual.input, agreed.input, agreed.output, agreed.above, agreed.up_to) == (2.0, 1.0, 5.0, -1, 1000)
    dearer = book.quote(asked, "m", at, 1001, team="payments")
    assert dearer is not None and (dearer.input, dearer.above) == (2.0, 1000)


def test_a_row_can_be_reckoned_again_from_what_it_keeps() -> None:
    book = prices(contract(discount=D("0.123456789")), EUR=(Exchange(usd=D("1.07")),))
    usage = Usage(123, 456, 789, 12, 34, 56, 78, 90, 11)
    found = book.rates_for(endpoint(), "m", NOON, 1001)
    assert found is not None
    record = read_record(found.json)
    by_hand = sum(
        price * getattr(usage, bucket) for price, bucket in zip(unit_prices(record.rates), BUCKETS, strict=True)
    )
    assert cost(usage, record.rates) == found.cost(usage) == by_hand / 10**6
    assert read_record(b'{"input":"1","output":"2"}').list_rates == Rates(D(1), D(2))  # of a row of old


def test_rows_are_priced_by_their_endpoint_or_else_by_their_provider() -> None:
    stated = endpoint(id="here", rates=Rates(D(3), D(12)))
    book = prices(contract(discount=D("0.5"), teams=("payments",)))
    known = Configuration(
        version="v", providers={"s": stated.provider}, endpoints={"here": stated}, routes=(), policies={}
    )

    def row(usage: Usage | None = None, **facts: str) -> Decimal | None:
        plain = {"endpoint": "here", "provider": "s", "model": "m", "upstream_model": "m", "region": None, **facts}
        asked, _ = endpoint_of(plain, known)
        wanted = {name: facts[name] for name in ("team", "service_tier") if name in facts}
        found = None if asked is None else book.rates_for(asked, "m", NOON, total_input(usage or Usage(10)), **wanted)
        return None if found is None else found.rates.input

    assert (row(), row(team="payments")) == (D(3), D("1.5"))
    assert row(endpoint="gone") == D(2)  # the YAML's price was of another endpoint: the catalogue's
    assert row(endpoint="gone", service_tier="priority") == D(6)
    assert row(endpoint="gone", usage=Usage(input_tokens=600, cache_read_tokens=600)) == D(4)
    assert row(endpoint="here", provider="another") is None
    assert row(endpoint="gone", provider="another") is None


def test_a_replaced_catalogue_holds_for_what_is_made_afterwards() -> None:
    empty = Configuration(version="v", providers={}, endpoints={}, routes=(), policies={})
    book = PriceBook(CATALOGUE)
    before = book.under(empty)
    book.replace(Catalogue(source="list 8", providers=()))
    after = book.under(empty)
    assert before.rates_for(endpoint(), "m", NOON, 10) is not None
    assert after.rates_for(endpoint(), "m", NOON, 10) is None
    assert book.rates_for(endpoint(), "m", NOON, 10) is None


def test_every_price_has_its_reasons() -> None:
    def why(book: Prices, asked: Endpoint, **who: str) -> list[str]:
        return book.explain(asked, who.pop("model", "m"), NOON, **who)

    label = CATALOGUE.label
    assert why(prices(), endpoint()) == [f"catalogue {label}: `seller/m-1`"]
    assert why(prices(contract(discount=D("0.15"))), endpoint(), service_tier="priority") == [
        "contract `c`: 15% off",
        f"catalogue {label}: `seller/m-1`",
        "service tier `priority`",
    ]
    (reason,) = why(prices(), endpoint(), model="other")
    assert "has no model `other`" in reason
    (reason,) = why(prices(), endpoint("https://elsewhere.example"))
    assert "neither the address of provider `s` nor its id" in reason
    assert why(prices(), endpoint(), service_tier="flex")[-1] == (
        "service tier `flex` has no price of its own: the usual one holds"
    )
