"""From files and a real ledger to a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console
from sqlalchemy import insert, text

from gateway.accounting.billers import Billers
from gateway.accounting.focus import write_focus
from gateway.accounting.reconciliation.reading import Export, read_exports
from gateway.accounting.reconciliation.records import UnreadableFile, in_memory, open_files
from gateway.accounting.reconciliation.result import (
    Reconciliation,
    exchange,
    parse_same,
    parse_tolerance,
    parse_zone,
    plain,
    providers_for,
    reconcile,
    to_document,
)
from gateway.accounting.reconciliation.tables import print_result
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.model import Configuration
from gateway.store.database import Database
from gateway.store.tables import usage_events
from gateway.types import BUCKETS
from tests.accounting.reconciliation import samples
from tests.accounting.reconciliation.worlds import RATES, check_sums, cost_of

Event = Callable[..., dict[str, Any]]
UTC_ZONE = ZoneInfo("UTC")
START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_events(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("TRUNCATE usage_events"))


def add(database: Database, usage_event: Event, tokens: dict[str, int], **changes: Any) -> None:
    moment = changes.pop("started_at", START + timedelta(hours=3))
    row = usage_event(
        started_at=moment,
        ended_at=moment + timedelta(seconds=1),
        prices=RATES,
        **{**dict.fromkeys(BUCKETS, 0), **tokens},
        cost_usd=cost_of(tokens),
    )
    with database.engine.begin() as connection:
        connection.execute(insert(usage_events).values(**{**row, **changes}))


def usage_page(*results: dict[str, Any], day: int = 0) -> str:
    start = int(START.timestamp()) + 86_400 * day
    kind = {"object": "organization.usage.completions.result", "num_model_requests": 1}
    bucket = {"start_time": start, "end_time": start + 86_400, "results": [{**kind, **result} for result in results]}
    return json.dumps({"object": "page", "data": [bucket], "has_more": False})


def costs_page(lines: dict[str, str], day: int = 0) -> str:
    start = int(START.timestamp()) + 86_400 * day
    results = [{"amount": {"value": value, "currency": "usd"}, "line_item": item} for item, value in lines.items()]
    bucket = {"start_time": start, "end_time": start + 86_400, "results": results}
    return json.dumps({"object": "page", "data": [bucket], "has_more": False})


def read(*texts: str) -> Export:
    return read_exports([in_memory(f"f{number}", text.encode()) for number, text in enumerate(texts)], zone=UTC_ZONE)


def run(database: Database, *texts: str, **options: Any) -> Reconciliation:
    return reconcile(database.engine, read(*texts), **{"providers": ["openai"], "zone": UTC_ZONE, **options})


MINI = "gpt-4o-mini-2024-07-18"


def test_usage_and_costs_together(database: Database, usage_event: Event) -> None:
    add(database, usage_event, {"input_tokens": 600_000, "cache_read_tokens": 400_000, "output_tokens": 100_000})
    add(database, usage_event, {"input_tokens": 50_000}, cost_usd=None, price_status="unpriced", prices=None)
    add(database, usage_event, {"input_tokens": 9}, provider="elsewhere")
    usage = usage_page(
        {"model": MINI, "input_tokens": 1_070_000, "input_cached_tokens": 400_000, "output_tokens": 100_000}
    )
    costs = costs_page(
        {
            f"{MINI}, input": "1.34",
            f"{MINI}, cached input": "0.2",
            f"{MINI}, output": "0.8",
            "web search tool calls": "1",
        }
    )
    result = run(database, usage, costs)
    check_sums(result)
    document = to_document(result)
    assert document["causes"] == {
        "outside": {"tokens": "20000", "usd": "0.04"},
        "unpriced": {"tokens": None, "usd": "0.1"},
        "unmetered": {"tokens": None, "usd": "1"},
    }
    assert (document["provider_usd"], document["ledger_usd"], document["difference_usd"]) == ("3.34", "2.2", "1.14")
    assert (document["from"], document["to"], document["is_within"]) == ("2026-03-01", "2026-03-01", False)
    assert document["models"] == {MINI: "gpt-4o-mini"}
    assert json.loads(json.dumps(document)) == document


def test_quantities_of_costs_do_not_double_those_of_usage(database: Database, usage_event: Event) -> None:
    add(database, usage_event, {"input_tokens": 30})
    usage = usage_page({"model": MINI, "input_tokens": 30, "output_tokens": 0})
    costs = json.loads(costs_page({f"{MINI}, input": "0.00006"}))
    costs["data"][0]["results"][0]["quantity"] = 30.0
    result = run(database, usage, json.dumps(costs))
    assert result.causes == {}
    assert result.is_within
    assert any("stand in several exports" in note for note in result.notes)


def test_our_own_focus_export_equals_the_ledger(database: Database, usage_event: Event) -> None:
    tokens = {bucket: 1000 + number for number, bucket in enumerate(BUCKETS)}
    for day in range(2):
        add(database, usage_event, tokens, started_at=START + timedelta(days=day, hours=5))
    file = StringIO()
    write_focus(database.engine, file, since=START, until=START + timedelta(days=2), form="csv", billers=Billers(None))
    result = run(database, file.getvalue())
    assert set(result.export.files.values()) == {"focus"}
    assert (result.total.ledger_tokens, result.total.provider_tokens) == (2 * sum(tokens.values()),) * 2
    assert result.total.provider_usd == result.total.ledger_usd == 2 * cost_of(tokens)
    assert (result.causes, result.export.aside_count, result.is_within) == ({}, 0, True)


def test_days_in_a_zone(database: Database, usage_event: Event) -> None:
    add(database, usage_event, {"input_tokens": 10}, started_at=datetime(2026, 3, 1, 7, tzinfo=UTC))
    zone = ZoneInfo("America/Los_Angeles")
    text = samples.ANTHROPIC_USAGE_CSV.splitlines()[0] + "\n2026-02-28,gpt-4o-mini,k,w,s,c,10,0,0,0,0,0,g,\n"
    export = read_exports([in_memory("f", text.encode())], zone=zone)
    assert reconcile(database.engine, export, providers=["openai"], zone=zone).is_within
    again = read_exports([in_memory("f", text.encode())], zone=UTC_ZONE)
    assert not reconcile(database.engine, again, providers=["openai"], zone=UTC_ZONE).is_within


def test_the_period_can_be_chosen(database: Database, usage_event: Event) -> None:
    add(database, usage_event, {"input_tokens": 10}, started_at=START + timedelta(days=2))
    page = usage_page({"model": MINI, "input_tokens": 5, "output_tokens": 0})
    assert run(database, page).total.ledger_tokens == 0
    wide = run(database, page, until=date(2026, 3, 3))
    assert wide.total.ledger_tokens == 10
    with pytest.raises(ValueError, match="is not before"):
        run(database, page, since=date(2026, 3, 3), until=date(2026, 3, 2))
    with pytest.raises(ValueError, match="more than 400 days"):
        run(database, page, until=date(2028, 3, 2))


def test_the_text_says_what_differs(database: Database, usage_event: Event) -> None:
    add(database, usage_event, {"input_tokens": 1_000})
    result = run(database, usage_page({"model": MINI, "input_tokens": 1_500, "output_tokens": 0, "colour": 1}))
    result.export.set_aside("f0", 3, "broken")
    shown, people = (Console(file=StringIO(), width=200) for _ in range(2))
    print_result(result, shown, people)
    out, notes = (console.file.getvalue() for console in (shown, people))  # type: ignore[attr-defined]  # as made above
    assert "outside 500 tokens" in out
    assert "traffic that did not pass the gateway" in out
    assert "beyond the tolerance of 0.5" in out
    assert "columns that are not known and not looked at: colour" in notes
    assert "set aside: f0:3: broken" in notes


YAML = """
version: 1
providers:
  direct: {adapter: openai, api_key: k}
  claude: {adapter: anthropic, api_key: k}
endpoints:
  e: {provider: direct, model: gpt-4o-mini}
routes: [{match: {model: "*"}, policy: all}]
policies: {all: {endpoints: [e]}}
currencies: {EUR: [{usd: 1.2}, {usd: 1.1, since: 2026-03-01}]}
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    path = tmp_path / "hatchway.yaml"
    path.write_text(YAML)
    return compile_configuration(read_document(path), {})


def test_whose_export_it_is(configuration: Configuration) -> None:
    openai, cost = read(samples.OPENAI_COSTS_JSON), read(samples.ANTHROPIC_COST_JSON)
    assert providers_for(openai, configuration, []) == ("direct",)
    assert providers_for(cost, configuration, []) == ("claude",)
    assert providers_for(openai, None, ["openai", "other"]) == ("openai",)
    focus = read(samples.FOCUS_CSV)
    assert providers_for(focus, configuration, ["azure"]) == ("azure",)
    with pytest.raises(ValueError, match="--provider"):
        providers_for(focus, configuration, ["azure", "bedrock"])
    with pytest.raises(ValueError, match="--provider"):
        providers_for(read(samples.CUR_2), configuration, ["direct"])


def test_exchange_rates(configuration: Configuration) -> None:
    to_usd = exchange(configuration)
    assert to_usd("USD", date(2026, 1, 1)) == 1
    assert to_usd("EUR", date(2026, 2, 28)) == Decimal("1.2")
    assert to_usd("EUR", date(2026, 3, 1)) == Decimal("1.1")
    assert to_usd("GBP", date(2026, 3, 1)) is None
    assert exchange(None)("EUR", date(2026, 3, 1)) is None


def test_options() -> None:
    assert parse_tolerance("0.5%") == parse_tolerance("0.005") == Decimal("0.005")
    assert parse_tolerance("0") == 0
    for wrong in ("", "a", "-1%", "200%", "1e-3", "0.5 %%"):
        with pytest.raises(ValueError, match="tolerance"):
            parse_tolerance(wrong)
    assert parse_zone("Europe/Berlin").key == "Europe/Berlin"
    for wrong in ("Nowhere", "../etc/passwd", "", "a\0b", "localtime"):
        with pytest.raises(ValueError, match="no time zone"):
            parse_zone(wrong)
    assert parse_same(["a=b", "x=y=z"]) == {"a": "b", "x=y": "z"}
    for wrong in ("a", "=b", "a="):
        with pytest.raises(ValueError, match="no pair"):
            parse_same([wrong])


@pytest.mark.parametrize(
    ("number", "text"),
    [(Decimal("1.500"), "1.5"), (Decimal("1E-7"), "0.0000001"), (Decimal("100"), "100"), (Decimal("-0"), "0")]
    + [(Decimal("1E+2"), "100"), (7, "7"), (None, None), (Decimal("0.000"), "0")],
)
def test_digits(number: Decimal | int | None, text: str | None) -> None:
    assert plain(number) == text


def test_files_are_opened_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "usage.json"
    path.write_text(samples.OPENAI_USAGE_JSON)
    assert read_exports(open_files([path]), zone=UTC_ZONE).files == {"usage.json": "openai-usage"}
    with pytest.raises(UnreadableFile, match="cannot read"):
        read_exports(open_files([tmp_path / "none"]), zone=UTC_ZONE)
    with pytest.raises(UnreadableFile, match="cannot read"):
        read_exports(open_files([tmp_path]), zone=UTC_ZONE)
