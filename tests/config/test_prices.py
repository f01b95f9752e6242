"""Prices in YAML: what they become, and every mistake in them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.config.check import warnings
from gateway.config.compiler import compile_configuration
from gateway.config.model import Capacity, Contract, Endpoint, Exchange
from gateway.config.prices import rates_of
from gateway.config.sheets import ANYWHERE, Meters, PriceSheet, PriceWindow, Step, Stepped, TierWindow
from gateway.types import Rates
from tests.config.documents import BASE, build, mistakes, read

D = Decimal
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def endpoint(price: str, more: str = "") -> Endpoint:
    return build(BASE.replace("region: us}", f"region: us, {price}}}") + more).endpoints["a"]


def test_a_flat_price_is_rates_alone() -> None:
    found = endpoint("price: {input: 1, output: 2.50, cache_write: 3}")
    assert found.rates == Rates(D(1), D("2.50"), cache_write_5m=D(3))
    assert found.sheet is None and found.capacity is None


def test_all_that_may_be_said_of_a_price() -> None:
    price = """price: {input: 1, output: 4, cache_read: 0.5,
       above: [{input_tokens: 1000, input: 2}, {input_tokens: 5000, input: 3, cache_read: 1}],
       service_tiers: {standard: {input: 1}, flex: {output: 2, above: [{input_tokens: 1000, input: 1.5}]}},
       hours: [{from: "22:00", to: "06:30", output: 3}], currency: EUR, uplift: 10%}"""
    found = endpoint(price, "currencies: {EUR: 1.08}\n")
    usual = Meters(
        input=Stepped(D(1), (Step(1000, D(2)), Step(5000, D(3)))),
        output=D(4),
        cache_read=Stepped(D("0.5"), (Step(5000, D(1)),)),
    )
    night = Meters(input=usual.input, output=D(3), cache_read=usual.cache_read)
    assert found.rates is None
    assert found.sheet == PriceSheet(
        windows=(PriceWindow(meters=usual), PriceWindow(meters=night, begins=time(22), ends=time(6, 30))),
        service_tiers=(
            TierWindow(tier="default", meters=Meters(input=D(1))),
            TierWindow(tier="flex", meters=Meters(input=Stepped(D(1), (Step(1000, D("1.5")),)), output=D(2))),
        ),
        uplift={ANYWHERE: D("0.1")},
        currency="EUR",
    )


def test_a_machine_costs_by_the_hour() -> None:
    found = endpoint("price: {hour: 0.05, reads: 150, writes: 15}")
    # 0.05 / (150 x 3,600) = 0.0925925... and 0.05 / (15 x 3,600) = 0.925925... by the million.
    assert found.rates == Rates(D("0.092592592593"), D("0.925925925926"))
    assert found.capacity == Capacity(hour=D("0.05"), reads=D(150), writes=D(15))
    # 700 W at 0.30 a kilowatt hour are 0.21 an hour on top of 1.79: 2 USD an hour, 1,000 tokens a second.
    powered = Capacity(hour=D("1.79"), reads=D(1000), writes=D(1000), watts=D(700), kwh=D("0.30"))
    assert rates_of(powered) == Rates(D("0.555555555556"), D("0.555555555556"))
    # Exactly between two: to the even one.
    between = Capacity(hour=D("3.6e-15"), reads=D(1), writes=D("0.5"))
    assert rates_of(between) == Rates(D("1e-12"), D("2e-12"))
    assert rates_of(Capacity(hour=D("1.8e-15"), reads=D(1), writes=D(1))).input == 0
    assert rates_of(Capacity(hour=D("5.4e-15"), reads=D(1), writes=D(1))).input == D("2e-12")


def test_facts_of_the_model_and_the_bill() -> None:
    found = endpoint("max_output_tokens: 8192, account: org-1")
    assert (found.max_output_tokens, found.account) == (8192, "org-1")


def test_contracts_and_currencies() -> None:
    found = build(
        BASE
        + """
contracts:
  first: {provider: p, discount: 15%}
  second:
    provider: p
    models: ["big*", small]
    endpoints: a
    teams: "pay*"
    service_tiers: [standard, priority]
    since: 2026-01-01
    until: 2026-12-31
    currency: EUR
    price: {input: 1, output: 2, request: 0.001}
    uplift: {eu: 10%, "*": 0.02}
currencies: {GBP: 1.27, EUR: [{usd: 1.1, since: 2026-07-01}, {usd: 1.04}]}
prices: {two_person: true}
"""
    )
    assert found.contracts == (
        Contract(id="first", provider="p", discount=D("0.15")),
        Contract(
            id="second",
            provider="p",
            models=("big*", "small"),
            endpoints=("a",),
            teams=("pay*",),
            service_tiers=("default", "priority"),
            since=date(2026, 1, 1),
            until=date(2026, 12, 31),
            currency="EUR",
            price=Rates(D(1), D(2), request=D("0.001")),
            uplift={"eu": D("0.1"), "*": D("0.02")},
        ),
    )
    assert found.currencies == {
        "GBP": (Exchange(usd=D("1.27")),),
        "EUR": (Exchange(usd=D("1.04")), Exchange(usd=D("1.1"), since=date(2026, 7, 1))),
    }
    assert found.prices.two_person
    assert not build(BASE).prices.two_person


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        ("{input: 1}", "`endpoints.a.price.output` is missing | give both `input` and `output`"),
        ("{input: -1, output: 1}", "`endpoints.a.price.input` must be a number from 0 to 1000000 |"),
        ("{input: 1, output: 1, above: []}", "`endpoints.a.price.above` must be a list of mappings, not a list |"),
        ("{input: 1, output: 1, above: [3]}", "`endpoints.a.price.above[0]` must be a mapping, not a number |"),
        (
            "{input: 1, output: 1, above: [{input: 2}]}",
            "`endpoints.a.price.above[0].input_tokens` is missing | give the input tokens beyond which it costs that",
        ),
        (
            "{input: 1, output: 1, above: [{input_tokens: 9, input: 2}, {input_tokens: 9, input: 3}]}",
            "sizes must ascend | write the smallest first, each once",
        ),
        (
            "{input: 1, output: 1, above: [{input_tokens: 9}]}",
            "a size without a price | give what more input tokens than that cost",
        ),
        (
            "{input: 1, output: 1, above: [{input_tokens: 9, reasoning: 2}]}",
            "`endpoints.a.price.above[0].reasoning` has no price below 9 input tokens | give `reasoning` beside",
        ),
        (
            "{input: 1, output: 1, service_tiers: {flex: {}}}",
            "`endpoints.a.price.service_tiers.flex` states no price |",
        ),
        (
            "{input: 1, output: 1, service_tiers: {flex: {inputs: 2}}}",
            "unknown key `inputs` in `endpoints.a.price.service_tiers.flex` | did you mean `input`?",
        ),
        (
            '{input: 1, output: 1, hours: [{from: "25:00", to: "06:00"}]}',
            "`endpoints.a.price.hours[0].from` is not a time of day: `25:00` |",
        ),
        ('{input: 1, output: 1, hours: [{to: "06:00"}]}', "`endpoints.a.price.hours[0].from` is missing |"),
        (
            '{input: 1, output: 1, hours: [{from: "06:00", to: "06:00"}]}',
            "`endpoints.a.price.hours[0].to` is when it begins: these prices never hold |",
        ),
        ("{input: 1, output: 1, currency: EUR}", "currency `EUR` is not defined | write `currencies: {EUR: 1.08}`"),
        (
            "{input: 1, output: 1, uplift: -3}",
            "`endpoints.a.price.uplift` must be from 0 to 1, or from `0%` to `100%` |",
        ),
        ("{hour: 1, reads: 5}", "`endpoints.a.price.writes` is missing | give `hour` (USD), and the tokens a second"),
        ("{hour: 1, reads: 0, writes: 1}", "`endpoints.a.price.reads` must be a number from 0.000001 to 1000000000 |"),
        ("{hour: 1, reads: 5, writes: 1, watts: 3}", "`endpoints.a.price.watts` needs `kwh` | give both, or neither"),
        (
            "{hour: 1, reads: 5, writes: 1, input: 3}",
            "`endpoints.a.price.input` has no place beside what the machine costs | keep `hour`, `reads`",
        ),
    ],
)
def test_a_mistake_in_a_price(price: str, expected: str) -> None:
    (found,) = mistakes(BASE.replace("region: us}", f"region: us, price: {price}}}"))
    assert found.startswith(f"6: {expected}")


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("contracts: {c: {discount: 1%}}", "`contracts.c.provider` is missing | name the provider it was made with"),
        ("contracts: {c: {provider: q, discount: 1%}}", "provider `q` is not defined |"),
        (
            "contracts: {c: {provider: p}}",
            "contract `c` changes no price | give it a `price`, a `discount` or an `uplift`",
        ),
        ("contracts: {c: {provider: p, discount: 120%}}", "`contracts.c.discount` must be from 0 to 1,"),
        ("contracts: {c: {provider: p, price: {input: 1}}}", "`contracts.c.price.output` is missing |"),
        ("contracts: {c: {provider: p, discount: 1%, currency: USD}}", "`currency` has no effect without `price` |"),
        (
            "contracts: {c: {provider: p, price: {input: 1, output: 1}, currency: EUR}}\ncurrencies: {CHF: 1.1}",
            "currency `EUR` is not defined | one of `CHF`",
        ),
        (
            "contracts: {c: {provider: p, discount: 1%, since: 2026-02-01, until: 2026-01-01}}",
            "`contracts.c.since` (2026-02-01) is after `until` (2026-01-01): the contract never holds | swap the two",
        ),
        ("contracts: {c: {provider: p, discount: 1%, until: soon}}", "`contracts.c.until` is not a date: `soon` |"),
        ("contracts: {c: {provider: p, discount: 1%, models: '[a'}}", "bad glob `[a`: `[` is not closed |"),
        ("contracts: {c: {provider: p, uplift: {eu: much}}}", "`contracts.c.uplift.eu` must be a share, not text |"),
        ("currencies: {EURO: 1}", "`EURO` is no currency | three capital letters"),
        ("currencies: {USD: 1}", "`USD` is what everything is reckoned in | remove it"),
        ("currencies: {EUR: 0}", "`currencies.EUR` must be a number from 0.000001 to 1000000 |"),
        ("currencies: {EUR: [{since: 2026-01-01}]}", "`currencies.EUR[0].usd` is missing |"),
        ("currencies: {EUR: [{usd: 1}, {usd: 2}]}", "`currencies.EUR` has two values from the same day |"),
        ("prices: {two_person: 2}", "`prices.two_person` must be `true` or `false`, not a number |"),
    ],
)
def test_a_mistake_in_contracts_and_currencies(added: str, expected: str) -> None:
    (found,) = mistakes(BASE + added)
    assert found.startswith(f"10: {expected}")


def notes(added: str) -> list[str]:
    document = read(BASE + "routes: [{match: {model: '*'}, policy: x}]\n" + added)
    found = warnings(document, compile_configuration(document, {}), NOW)
    return [f"{note.line - 10}: {note.message}" for note in found]


def test_what_is_probably_not_meant(tmp_path: Path) -> None:
    assert notes("contracts: {c: {provider: p, discount: 1%, models: 'big*', endpoints: a, until: 2026-11-22}}\n") == []
    assert notes("contracts:\n  c: {provider: p, discount: 1%, models: 'gpt-*'}\n") == [
        "2: contract `c` never holds: no endpoint of provider `p` fits it"
    ]
    assert notes("contracts:\n  c: {provider: p, discount: 1%, until: 2026-11-21}\n") == [
        "2: contract `c` ended on 2026-11-21: what it covered costs the list price"
    ]
    assert notes("contracts:\n  c: {provider: p, discount: 1%, teams: t}\n  d: {provider: p, discount: 2%}\n") == [
        "2: contract `c` never holds: contract `d` after it covers all of it"
    ]
    assert notes("currencies: {EUR: 1.1}\n") == ["1: no price is stated in `EUR`"]
    price = "contracts: {c: {provider: p, currency: EUR, price: {input: 1, output: 1}}}\n"
    assert notes(price + "currencies: {EUR: [{usd: 1.1, since: 2026-11-23}]}\n") == [
        "2: nobody says what `EUR` is worth today: prices in it are unknown"
    ]
