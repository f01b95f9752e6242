"""FOCUS files out of a real ledger: checked against the published column model, and to the last digit."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pyarrow.parquet
import pytest
from focus_data_toolkit.io.parquet_io import ParquetRowReader
from focus_data_toolkit.model.capabilities import CapabilityProfile
from focus_data_toolkit.model.validator import (
    COND_UNIT_PRICING,
    lint_focus_1_4_structure,
    load_model,
)
from focus_data_toolkit.validate.corrections import check_no_duplicate_charge_keys
from sqlalchemy import Engine, insert, text

from gateway.accounting import focus
from gateway.accounting.billers import Billers
from gateway.accounting.focus import METADATA_SUFFIX, FocusSummary, write_focus
from gateway.accounting.focus_columns import COLUMNS
from gateway.accounting.prices import PriceBook
from gateway.accounting.rates import PriceRecord, cost
from gateway.config.model import Capacity, Configuration, Contract
from gateway.config.row_book import shipped_rows
from gateway.store.database import Database
from gateway.store.tables import corrections, months, usage_events
from gateway.types import BUCKETS, Rates, Usage
from tests.configuration import make_endpoint, make_provider
from tests.emptying import empty

Row = dict[str, str]
NewRow = Callable[..., dict[str, Any]]
UNTIL = datetime(2027, 1, 1, tzinfo=UTC)
PROFILE = CapabilityProfile.of(COND_UNIT_PRICING)
EXACT = Context(prec=200)
RATES = Rates(
    input=Decimal("0.15"), output=Decimal("0.6"), cache_read=Decimal("0.075"), request=Decimal("0.0001234567")
)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """With empty tables; also closed months go, which nobody may delete."""
    empty(database.engine)
    yield database.engine


@pytest.fixture
def priced(usage_event: NewRow) -> NewRow:
    """Makes a row whose cost is what its rates say."""

    def make(rates: Rates = RATES, **changes: Any) -> dict[str, Any]:
        row = usage_event(**{"catalog_version": "genai-prices 0.2.3", **changes})
        usage = Usage(**{bucket: row[bucket] for bucket in BUCKETS})
        return {**row, "cost_usd": cost(usage, rates), "prices": msgspec.to_builtins(rates), **changes}

    return make


def add(engine: Engine, *rows: dict[str, Any]) -> None:
    names = {name for row in rows for name in row}
    with engine.begin() as connection:
        connection.execute(insert(usage_events), [{**dict.fromkeys(names), **row} for row in rows])


def correct(engine: Engine, amount: str, **changes: Any) -> str:
    row = {
        "correction_id": str(uuid4()),
        "booked_at": datetime(2026, 3, 1, 12, tzinfo=UTC),
        "kind": "price",
        "reason": "the catalogue was wrong",
        "author": "finance",
        "amount_usd": Decimal(amount),
        **{name: "x" for name in ("team", "endpoint", "provider", "upstream_model")},
        **changes,
    }
    with engine.begin() as connection:
        connection.execute(insert(corrections).values(**row))
    return str(row["correction_id"])


def export(engine: Engine, **options: Any) -> tuple[list[Row], FocusSummary]:
    """The lines of the CSV, as finance would read them."""
    file = io.StringIO(newline="")
    summary = write_focus(engine, file, **{"since": None, "until": UNTIL, **options})
    file.seek(0)
    rows = list(csv.DictReader(file))
    assert summary.lines == len(rows)
    return rows, summary


def ledger_sum(engine: Engine) -> Decimal:
    query = """SELECT (SELECT coalesce(sum(cost_usd), 0) FROM usage_events)
             + (SELECT coalesce(sum(amount_usd), 0) FROM corrections)"""
    with engine.connect() as connection:
        return Decimal(connection.execute(text(query)).scalar_one())


def total(rows: list[Row], column: str) -> Decimal:
    found = Decimal(0)
    for row in rows:
        found = EXACT.add(found, Decimal(row[column]))
    return found


def lint(rows: list[Row]) -> list[str]:
    """What the published model has against the rows of somebody who has unit prices."""
    return list(lint_focus_1_4_structure("Cost and Usage", rows, profile=PROFILE).messages())


def demand_exact_products(rows: list[Row]) -> None:
    """The validator allows a tolerance; we do not."""
    for row in rows:
        if row["PricingQuantity"]:
            quantity = Decimal(row["PricingQuantity"])
            for cost_column, price in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
                assert EXACT.multiply(Decimal(row[price]), quantity) == Decimal(row[cost_column])


def test_one_line_for_each_bucket_and_one_for_requests(engine: Engine, priced: NewRow) -> None:
    counts = {bucket: 1000 + position for position, bucket in enumerate(BUCKETS)}
    add(engine, priced(**counts), priced(**counts), priced(input_tokens=0, output_tokens=0, cost_usd=Decimal(0)))
    rows, _ = export(engine)
    assert lint(rows) == []
    demand_exact_products(rows)
    assert {row["SkuMeter"] for row in rows} == {
        *("Input Tokens", "Cached Input Tokens", "Cache Write 5m Tokens", "Cache Write 1h Tokens"),
        *("Input Audio Tokens", "Input Image Tokens", "Output Tokens", "Reasoning Tokens", "Output Audio Tokens"),
        "Requests",
    }
    found = {row["SkuMeter"]: row for row in rows}
    assert found["Cached Input Tokens"]["ConsumedQuantity"] == "2002"
    assert found["Cached Input Tokens"]["PricingQuantity"] == "0.002002"
    assert found["Cached Input Tokens"]["PricingUnit"] == "1000000 Tokens"
    assert found["Cached Input Tokens"]["ListUnitPrice"] == "0.075"
    assert found["Cached Input Tokens"]["ListCost"] == "0.00015015"
    assert found["Cache Write 1h Tokens"]["ListUnitPrice"] == "0.15"  # no rate of its own: that of input
    assert found["Reasoning Tokens"]["ListUnitPrice"] == "0.6"
    assert (found["Requests"]["ConsumedQuantity"], found["Requests"]["ConsumedUnit"]) == ("2", "Requests")
    assert found["Requests"]["EffectiveCost"] == "0.0002469134"
    assert total(rows, "EffectiveCost") == ledger_sum(engine) > 0


def test_what_a_line_says(engine: Engine, priced: NewRow) -> None:
    agreed = PriceRecord(
        input=Decimal("2.1"),
        output=Decimal("8.4"),
        cache_write_1h=Decimal("4.2"),
        listed=Rates(input=Decimal(3), output=Decimal(12), cache_write_1h=Decimal(6)),
        above=200_000,
        service_tier="priority",
        uplift=Decimal("0.1"),
        discount=Decimal("0.3"),
        contract="openai-2026",
        currency="EUR",
        usd=Decimal("1.0873"),
    )
    row = priced(
        rates=agreed,
        started_at=datetime(2026, 3, 31, 23, 59, tzinfo=UTC),
        project="checkout",
        cost_center="CC-104",
        organisation="acme",
        region="eu",
        service_tier="priority",
        cache_write_1h_tokens=7,
    )
    add(engine, row)
    rows, _ = export(engine, grain="hour")
    assert lint(rows) == []
    demand_exact_products(rows)
    line = next(found for found in rows if found["SkuMeter"] == "Cache Write 1h Tokens")
    assert (line["ChargePeriodStart"], line["ChargePeriodEnd"]) == ("2026-03-31T23:00:00Z", "2026-04-01T00:00:00Z")
    assert (line["BillingPeriodStart"], line["BillingPeriodEnd"]) == ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")
    assert line["SkuId"] == "openai/gpt-4o-mini/cache_write_1h"
    assert line["SkuPriceId"] == "openai/gpt-4o-mini/cache_write_1h/priority/>200000/eu"
    assert json.loads(line["SkuPriceDetails"]) == {
        "x_CacheTtl": "1h",
        "x_ContextTier": ">200000",
        "x_ServiceTier": "priority",
        "x_TokenType": "cache write 1h",
    }
    assert (line["ListUnitPrice"], line["ListCost"]) == ("6", "0.000042")
    assert (line["ContractedUnitPrice"], line["ContractedCost"]) == ("4.2", "0.0000294")
    assert line["EffectiveCost"] == line["BilledCost"] == "0.0000294"
    assert (line["PricingCurrency"], line["BillingCurrency"], line["x_ExchangeRate"]) == ("EUR", "USD", "1.0873")
    assert line["x_ContractId"] == "openai-2026"
    tags = {"cost_center": "CC-104", "organisation": "acme", "project": "checkout", "team": "payments"}
    assert json.loads(line["Tags"]) == tags
    assert (line["SubAccountId"], line["SubAccountType"]) == ("payments", "Team")
    assert (line["ResourceId"], line["RegionId"], line["x_KeyId"]) == ("gpt-mini", "eu", "key-1")
    assert (line["ChargeCategory"], line["ChargeClass"], line["PricingCategory"]) == ("Usage", "", "Standard")
    assert (line["ServiceProviderName"], line["ServiceName"]) == ("OpenAI", "OpenAI API")
    assert line["x_CatalogVersion"] == "genai-prices 0.2.3"
    (day,) = {row["ChargePeriodStart"] for row in export(engine)[0]}
    assert day == "2026-03-31T00:00:00Z"


def test_prices_as_the_gateway_writes_them(engine: Engine, priced: NewRow) -> None:
    """From the price book to the file: a contract's discount, and a row of the time before there were contracts."""
    terms = Contract(id="c-1", provider="openai", discount=Decimal("0.25"))
    book = PriceBook().under(
        Configuration(version="v", providers={}, endpoints={}, routes=(), policies={}, contracts=(terms,))
    )
    endpoint = make_endpoint(id="gpt-mini", provider=make_provider(id="openai"), rates=RATES)
    found = book.rates_for(endpoint, "gpt-4o-mini", datetime(2026, 3, 1, tzinfo=UTC), 10)
    assert found is not None
    usage = Usage(input_tokens=10, output_tokens=5)
    written = {"prices": msgspec.json.decode(found.json), "cost_usd": found.cost(usage)}
    add(engine, priced(**written, catalog_version=found.catalog_version), priced(rates=RATES, team="older"))
    rows, summary = export(engine)
    assert lint(rows) == []
    demand_exact_products(rows)
    assert summary.adjustments == 0
    shares = {row["x_ContractId"]: total([row], "ContractedCost") / total([row], "ListCost") for row in rows}
    assert shares == {"c-1": Decimal("0.75"), "": Decimal(1)}


def test_what_costs_alike_is_added_up_and_nothing_else(engine: Engine, priced: NewRow) -> None:
    dearer = Rates(input=Decimal("0.16"), output=Decimal("0.6"))
    kept_apart = [
        {},
        {"started_at": datetime(2026, 3, 2, tzinfo=UTC)},
        *({name: "other"} for name in ("organisation", "team", "project", "key_id", "cost_center", "endpoint")),
        *({name: "other"} for name in ("provider", "model", "upstream_model", "region", "service_tier")),
        {"usage_source": "estimated"},
        {"catalog_version": "other"},
        {"rates": dearer},
    ]
    rates = Rates(input=Decimal("0.15"), output=Decimal("0.6"))
    rows = [priced(**{"rates": rates, **changes}, output_tokens=0) for changes in kept_apart]
    add(engine, *rows, *[priced(rates=rates, output_tokens=0, domain=name, route=name) for name in "abc"])
    found, _ = export(engine)
    assert lint(found) == []
    assert len(found) == len(kept_apart)
    assert sorted(row["ConsumedQuantity"] for row in found) == ["10"] * (len(kept_apart) - 1) + ["40"]
    assert not check_no_duplicate_charge_keys(found)


def test_a_price_of_yaml_is_its_endpoints_own(engine: Engine, priced: NewRow) -> None:
    rates = Rates(input=Decimal(1), output=Decimal(2))
    add(engine, *(priced(rates=rates, catalog_version="yaml", endpoint=name, output_tokens=0) for name in "ab"))
    rows, _ = export(engine)
    assert [row["SkuPriceId"] for row in rows] == [f"openai/gpt-4o-mini/input/standard/{name}" for name in "ab"]


def random_rates(source: random.Random) -> Rates:
    def rate() -> Decimal:
        return Decimal(source.randrange(10**6)).scaleb(-source.randrange(13))

    optional = {
        name: rate() for name in Rates.__struct_fields__ if name not in ("input", "output") and source.random() < 0.5
    }
    listed = Rates(input=rate(), output=rate(), request=rate()) if source.random() < 0.5 else None
    return PriceRecord(input=rate(), output=rate(), listed=listed, **optional)


@pytest.mark.parametrize("seed", range(4))
def test_the_sum_is_the_ledgers_to_the_last_digit(engine: Engine, priced: NewRow, seed: int) -> None:
    """Whatever the rates, edited costs, rows without prices or without cost, refused attempts, corrections."""
    source = random.Random(seed)
    pool = [random_rates(source) for _ in range(4)]
    rows = []
    for _ in range(150):
        counts = {bucket: source.choice((0, 1, source.randrange(10**6), 2**62)) for bucket in BUCKETS}
        started_at = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=source.randrange(100_000))
        row = priced(
            rates=source.choice(pool), started_at=started_at, endpoint=source.choice(("local", "gpt-mini")), **counts
        )
        match source.randrange(8):
            case 0:
                row |= {"cost_usd": None, "price_status": "unpriced", "prices": None, "max_cost_usd": Decimal("0.1")}
            case 1:
                row |= {"cost_usd": row["cost_usd"] + Decimal("1E-25")}
            case 2:
                row |= {"prices": None, "catalog_version": None}
            case 3:
                row |= {**dict.fromkeys(BUCKETS, 0), "cost_usd": Decimal(0), "prices": None, "status": "error"}
        rows.append(row)
    add(engine, *rows)
    for row in source.sample(rows, 20):
        amount = f"{Decimal(source.randrange(-(10**9), 10**9)).scaleb(-source.randrange(20)):f}"
        correct(engine, amount, event_id=row["event_id"], booked_at=row["started_at"])
    found, summary = export(engine)
    assert total(found, "EffectiveCost") == summary.effective_cost == ledger_sum(engine)
    demand_exact_products(found)
    explained = [row for row in found if row["ChargeCategory"] == "Usage"]
    assert total(explained, "EffectiveCost") != ledger_sum(engine)  # so the adjustments had something to say
    assert not check_no_duplicate_charge_keys(found)
    complaints = [message for message in lint(found) if "SkuPriceId" not in message]
    assert complaints == []
    tokens = sum(row[bucket] for row in rows for bucket in BUCKETS)
    assert total([row for row in found if row["x_TokenCount"]], "x_TokenCount") == tokens


def test_unpriced_usage_is_named_and_not_free(engine: Engine, priced: NewRow, tmp_path: Path) -> None:
    unknown = {"cost_usd": None, "price_status": "unpriced", "prices": None, "catalog_version": None}
    lost = {**dict.fromkeys(BUCKETS, 0), "usage_source": "none", "max_cost_usd": Decimal("0.25"), "endpoint": "lost"}
    add(
        engine,
        priced(),
        priced(**unknown, upstream_model="new-model"),
        priced(**unknown, upstream_model="new-model", max_cost_usd=Decimal("0.5")),
        priced(**unknown, **lost),
    )
    write_focus(engine, tmp_path / "f.csv", since=None, until=UNTIL)
    rows, summary = export(engine)
    unpriced = [row for row in rows if row["x_PriceStatus"] == "unpriced"]
    assert [(row["SkuMeter"], row["x_TokenCount"], row["x_MaxCost"]) for row in unpriced] == [
        ("Input Tokens", "20", "0.5"),
        ("Output Tokens", "10", ""),
        ("", "0", "0.25"),
    ]
    for row in unpriced:
        for name in ("ListUnitPrice", "ContractedUnitPrice", "PricingQuantity", "ConsumedQuantity", "SkuPriceId"):
            assert row[name] == ""
    # All that the model has against them is what nobody knows: the price.
    assert {message.split("] ")[1] for message in lint(rows)} == {
        f"SkuPriceId row {position}: SkuPriceId required for Usage/Purchase when unit pricing is supported"
        for position, row in enumerate(rows)
        if row in unpriced
    }
    named = json.loads((tmp_path / f"f.csv{METADATA_SUFFIX}").read_text())["x_Export"]
    assert named["UnpricedAttempts"] == summary.unpriced_attempts == 3
    assert named["Unpriced"] == [
        {"Endpoint": "gpt-mini", "Model": "new-model", "Attempts": 2, "Tokens": 30, "MaxCost": "0.5"},
        {"Endpoint": "lost", "Model": "gpt-4o-mini", "Attempts": 1, "Tokens": 0, "MaxCost": "0.25"},
    ]


def test_what_rates_do_not_explain_has_a_line_of_its_own(engine: Engine, priced: NewRow) -> None:
    add(
        engine,
        priced(output_tokens=0, cost_usd=Decimal("5")),
        priced(output_tokens=0, prices=None, cost_usd=Decimal("2"), endpoint="old"),
    )
    rows, summary = export(engine)
    assert lint([row for row in rows if row["x_PriceStatus"] != "rates not kept"]) == []
    by_endpoint = {row["x_Endpoint"]: row for row in rows if row["ChargeCategory"] == "Adjustment"}
    explained = RATES.input * 10 / 10**6 + Decimal("0.0001234567")
    assert Decimal(by_endpoint["gpt-mini"]["EffectiveCost"]) == 5 - explained
    assert by_endpoint["old"]["EffectiveCost"] == "2"
    assert summary.adjustments == 7 - explained
    assert total(rows, "EffectiveCost") == 7


def test_machines_of_ours_send_no_invoice(engine: Engine, priced: NewRow) -> None:
    add(engine, priced(provider="local", endpoint="on-prem"), priced(provider="rented", endpoint="gpu"), priced())
    capacity = Capacity(hour=Decimal("0.05"), reads=Decimal(150), writes=Decimal(15))
    rented = make_provider(id="rented", adapter="openai-compatible", base_url="http://gpu:8000/v1")
    known = make_provider(id="openai", adapter="openai")
    endpoints = [
        make_endpoint(id="gpu", provider=rented, capacity=capacity),
        make_endpoint(id="gpt-mini", provider=known, account="org-4711"),
    ]
    of_a_machine = PriceRecord(input=Decimal(1), output=Decimal(2), source="capacity")
    add(engine, priced(rates=of_a_machine, provider="gone", endpoint="gone"))
    configuration = Configuration(
        version="v",
        providers={"rented": rented, "openai": known},
        endpoints={endpoint.id: endpoint for endpoint in endpoints},
        routes=(),
        policies={},
    )
    rows, summary = export(engine, billers=Billers(configuration))
    assert lint(rows) == []
    billed = {row["x_Endpoint"]: total([row], "BilledCost") != 0 for row in rows if row["SkuMeter"] == "Input Tokens"}
    assert billed == {"on-prem": False, "gpu": False, "gone": False, "gpt-mini": True}
    assert all(Decimal(row["EffectiveCost"]) > 0 for row in rows)
    names = {row["x_Endpoint"]: (row["InvoiceIssuerName"], row["BillingAccountId"]) for row in rows}
    assert names == {
        "on-prem": ("Self-hosted", "local"),
        "gpu": ("rented", "rented"),
        "gone": ("gone", "gone"),
        "gpt-mini": ("OpenAI", "org-4711"),
    }
    assert summary.billed_cost == total([row for row in rows if row["x_Endpoint"] == "gpt-mini"], "EffectiveCost")


def test_a_provider_that_nobody_knows_goes_by_its_id() -> None:
    found = Billers().find("any", "my-proxy")
    assert (found.biller.seller, found.biller.invoicer, found.biller.host, found.account) == (
        *("my-proxy", "my-proxy", None, "my-proxy"),
    )
    assert not found.biller.own


def test_an_endpoint_that_moved_tells_nothing_of_older_rows() -> None:
    now = make_provider(id="new", adapter="anthropic")
    endpoint = make_endpoint(id="e", provider=now, account="account-of-new")
    configuration = Configuration(
        version="v", providers={"new": now}, endpoints={"e": endpoint}, routes=(), policies={}
    )
    assert Billers(configuration).find("e", "new").account == "account-of-new"
    assert Billers(configuration).find("e", "old").account == "old"


def test_the_table_of_billers_names_adapters_that_there_are() -> None:
    from gateway.accounting.billers import _table

    assert set(_table()) <= set(shipped_rows())
    assert _table()["local"].own and not _table()["openai"].own


def close(engine: Engine, month: date) -> None:
    row = {"month": month, "author": "x", "manifest": {}, "signature": b"", "public_key": b""}
    with engine.begin() as connection:
        connection.execute(insert(months).values(**row))


def test_late_rows_and_corrections_of_a_closed_month(engine: Engine, priced: NewRow) -> None:
    """They are lines of the month that was open, and speak of the day on which the tokens were used."""
    march = priced(output_tokens=0)
    add(engine, march)
    same_month = correct(engine, "0.5", event_id=march["event_id"])
    close(engine, date(2026, 3, 1))
    add(engine, priced(output_tokens=0, input_tokens=77))
    late = correct(engine, "-0.25", event_id=march["event_id"], is_first_price=True)
    loose = correct(engine, "0.125", booked_at=datetime(2026, 5, 5, tzinfo=UTC), provider=None, team=None)
    now = datetime.now(UTC)
    rows, _ = export(engine, until=now + timedelta(days=1))
    assert lint(rows) == []
    usage = {row["ConsumedQuantity"]: row for row in rows if row["SkuMeter"] == "Input Tokens"}
    by_id = {row["x_CorrectionId"]: row for row in rows if row["x_CorrectionId"]}
    this_month = f"{now:%Y-%m}-01T00:00:00Z"
    assert usage["10"]["ChargeClass"] == "" and usage["10"]["BillingPeriodStart"] == "2026-03-01T00:00:00Z"
    for line in (usage["77"], by_id[late]):
        assert (line["ChargeClass"], line["BillingPeriodStart"]) == ("Correction", this_month)
        assert line["ChargePeriodStart"] == "2026-03-01T00:00:00Z"
    assert (by_id[same_month]["ChargeClass"], by_id[same_month]["ChargeCategory"]) == ("", "Adjustment")
    assert by_id[late]["x_CorrectionOf"] == march["event_id"]
    assert by_id[late]["EffectiveCost"] == by_id[late]["ListCost"] == "-0.25"
    assert by_id[loose]["ChargePeriodStart"] == "2026-05-05T00:00:00Z"
    assert total(rows, "EffectiveCost") == ledger_sum(engine)
    until = datetime(2026, 4, 1, tzinfo=UTC)
    of_march, _ = export(engine, since=datetime(2026, 3, 1, tzinfo=UTC), until=until)
    assert {row["x_CorrectionId"] for row in of_march} == {"", same_month}
    assert "77" not in {row["ConsumedQuantity"] for row in of_march}


def test_bounds_are_of_the_moment_of_booking(engine: Engine, priced: NewRow) -> None:
    moments = [datetime(2026, 3, 2, 11, 59, 59, 999_999, tzinfo=UTC), datetime(2026, 3, 2, 12, 30, tzinfo=UTC)]
    add(engine, *(priced(started_at=moment, input_tokens=n, output_tokens=0) for n, moment in enumerate(moments, 1)))
    noon = datetime(2026, 3, 2, 12, tzinfo=UTC)

    def tokens(since: datetime | None, until: datetime) -> list[str]:
        return [row["x_TokenCount"] for row in export(engine, since=since, until=until)[0] if row["x_TokenCount"]]

    assert tokens(None, noon) == ["1"]
    assert tokens(noon, UNTIL) == ["2"]
    assert tokens(moments[1], UNTIL) == ["2"]
    assert tokens(moments[1] + timedelta(microseconds=1), UNTIL) == []
    assert export(engine, since=UNTIL, until=UNTIL)[0] == []


def test_parquet_has_the_same_values(engine: Engine, priced: NewRow, tmp_path: Path) -> None:
    add(engine, *(priced(team=f"=team{n}", region=None, input_tokens=n + 1) for n in range(30)))
    correct(engine, "0.000000000000000000000001")  # the last digit that the column has
    path = tmp_path / "focus.parquet"
    steps: list[tuple[int, int]] = []
    summary = write_focus(
        engine,
        path,
        since=None,
        until=UNTIL,
        form="parquet",
        progress=lambda _, done, total: steps.append((done, total)),
    )
    assert steps == [(0, 1), (1, 1)]
    table = pyarrow.parquet.read_table(path)
    assert table.num_rows == summary.lines == 91
    rows, _ = export(engine)
    for number, line in enumerate(table.to_pylist()):
        for column in COLUMNS:
            shown = rows[number][column.name]
            value = line[column.name]
            match column.kind:
                case _ if value is None:
                    assert shown == ""
                case "decimal":
                    assert Decimal(shown) == value
                case "time":
                    assert shown == f"{value:%Y-%m-%dT%H:%M:%SZ}"
                case _:
                    assert shown.removeprefix("'") == value
    # In CSV a spreadsheet would run the name; in Parquet nobody does.
    assert (rows[0]["SubAccountId"][:6], table["SubAccountId"][0].as_py()[:5]) == ("'=team", "=team")
    with ParquetRowReader(path, dataset="Cost and Usage") as reader:
        assert lint([dict(record.values) for record in reader]) == []


def test_metadata_describes_the_file(engine: Engine, priced: NewRow, tmp_path: Path) -> None:
    add(engine, priced())
    path = tmp_path / "focus.parquet"
    write_focus(engine, path, since=None, until=UNTIL, form="parquet")
    beside = json.loads((tmp_path / f"focus.parquet{METADATA_SUFFIX}").read_text())
    schema = pyarrow.parquet.read_schema(path)
    inside = json.loads(schema.metadata[b"focus.metadata"])
    assert inside == {"DataGenerator": beside["DataGenerator"], "Schema": beside["Schema"]}
    assert (beside["DataGenerator"], beside["Schema"]["FocusVersion"]) == ("Hatchway", "1.4")
    assert schema.metadata[b"focus.version"] == b"1.4"
    defined = {one["ColumnName"]: one for one in beside["Schema"]["ColumnDefinition"]}
    assert list(defined) == schema.names
    for field in schema:
        if pyarrow.types.is_decimal(field.type):
            stated = defined[field.name]
            assert (stated["NumericPrecision"], stated["NumberScale"]) == (field.type.precision, field.type.scale)
    assert beside["x_Export"]["EffectiveCost"] == f"{ledger_sum(engine):f}".rstrip("0")
    model = load_model()["datasets"]["Cost and Usage"]["columns"]
    mandatory = {name for name, column in model.items() if column["feature_level"] == "Mandatory"}
    assert mandatory <= set(defined)
    assert {name for name in defined if not name.startswith("x_")} <= set(model)
    kinds = {"String": "STRING", "JSON": "JSON", "Decimal": "DECIMAL", "Date/Time": "DATETIME"}
    assert [
        name for name in defined if name in model and defined[name]["DataType"] != kinds[model[name]["data_type"]]
    ] == []


@pytest.mark.parametrize("amount", ["1E-25", "1E14"])
def test_what_does_not_fit_into_parquet_is_refused(engine: Engine, priced: NewRow, tmp_path: Path, amount: str) -> None:
    add(engine, priced())
    correct(engine, amount)
    path = tmp_path / "focus.parquet"
    path.write_text("an older file")
    with pytest.raises(ValueError, match=r"more digits than its Parquet column.*\nhint: write CSV"):
        write_focus(engine, path, since=None, until=UNTIL, form="parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["focus.parquet"]
    assert path.read_text() == "an older file"
    rows, _ = export(engine)
    assert Decimal(amount) in [Decimal(row["EffectiveCost"]) for row in rows]
    assert "E" not in "".join(row["EffectiveCost"] for row in rows)


def test_a_sum_that_is_not_the_ledgers_is_refused(
    engine: Engine, priced: NewRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(engine, priced())
    monkeypatch.setattr(focus, "charge_lines", lambda *_: iter(()))
    with pytest.raises(ValueError, match="the lines sum to 0 USD, the ledger to 0.0001279567 USD"):
        write_focus(engine, tmp_path / "focus.csv", since=None, until=UNTIL)
    assert list(tmp_path.iterdir()) == []


def test_prices_of_another_kind_are_an_error_and_not_a_guess(engine: Engine, priced: NewRow) -> None:
    add(engine, priced(prices={"input": "cheap"}))
    with pytest.raises(ValueError, match="`prices` of a usage event cannot be read"):
        export(engine)


def test_the_same_ledger_is_the_same_file(engine: Engine, priced: NewRow) -> None:
    rows = [priced(team=f"t{n}", project=None if n % 2 else "p", input_tokens=n + 1) for n in range(20)]
    add(engine, *rows)
    first, _ = export(engine)
    again, _ = export(engine)
    assert first == again
    assert len({row["x_ChargeKey"] for row in first}) == len(first)


def test_parquet_does_not_go_to_a_stream_of_text(engine: Engine) -> None:
    with pytest.raises(ValueError, match="`--output`"):
        write_focus(engine, io.StringIO(), since=None, until=UNTIL, form="parquet")
