from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import delete, insert

from gateway.accounting.performance import Line, machine_of, performance, to_sheet, to_tables
from gateway.accounting.sheets import to_json
from gateway.config.model import Capacity, Endpoint
from gateway.store.database import Database
from gateway.store.tables import usage_events

Event = Callable[..., dict[str, Any]]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MACHINE = Capacity(hour=Decimal(2), reads=Decimal(1000), writes=Decimal(100), watts=Decimal(500), kwh=Decimal("0.4"))


@pytest.fixture(autouse=True)
def no_events(database: Database) -> Iterator[None]:
    yield
    with database.engine.begin() as connection:
        connection.execute(delete(usage_events))


def add(database: Database, *rows: dict[str, Any]) -> None:
    with database.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(**row))


def endpoint(name: str, capacity: Capacity | None) -> Endpoint:
    fields: dict[str, Any] = {"provider": None, "capabilities": frozenset(), "speaks": ()}
    return Endpoint(id=name, model="m", capacity=capacity, **fields)


def lines(database: Database, since: datetime | None = None, until: datetime | None = None) -> dict[str, Line]:
    endpoints = {"gpu": endpoint("gpu", MACHINE), "idle": endpoint("idle", MACHINE), "cloud": endpoint("cloud", None)}
    found = performance(database.engine, endpoints, since, until, NOON + timedelta(hours=4))
    return {line.endpoint: line for line in found.lines}


def test_success_latency_and_tokens_for_a_dollar(database: Database, usage_event: Event) -> None:
    times = [(100.0, 1100.0), (200.0, 2200.0), (300.0, 1300.0), (None, 500.0)]
    ok = [usage_event(endpoint="cloud", ttft_ms=ttft, duration_ms=duration) for ttft, duration in times]
    failed = usage_event(endpoint="cloud", status="error", duration_ms=99999.0, ttft_ms=9999.0, cost_usd=Decimal(0))
    hung_up = usage_event(endpoint="cloud", status="cancelled", duration_ms=1.0)
    add(database, *ok, failed, hung_up)
    line = lines(database)["cloud"]
    record = line.record
    assert record is not None and line.usage is not None and line.machine is None
    assert (record.attempts, record.ok, record.cancelled, line.success_rate) == (6, 4, 1, 0.8)
    assert (record.ttft_p50, record.ttft_p95) == (200.0, pytest.approx(290.0))
    assert (record.duration_p50, record.duration_p95) == (1200.0, pytest.approx(2065.0))
    assert line.tokens_per_second == pytest.approx(15 / 4.0)  # of the three whose first content was noted
    assert line.tokens_per_usd == Decimal(6 * 15) / (5 * Decimal("0.0000045"))


def test_tokens_for_a_dollar_are_not_known_while_a_price_is_missing(database: Database, usage_event: Event) -> None:
    add(
        database,
        usage_event(endpoint="cloud"),
        usage_event(endpoint="cloud", price_status="unpriced", cost_usd=None),
        usage_event(endpoint="free", cost_usd=Decimal(0)),
    )
    found = lines(database)
    assert found["cloud"].tokens_per_usd is found["free"].tokens_per_usd is None


def test_only_the_period_counts(database: Database, usage_event: Event) -> None:
    add(database, *(usage_event(endpoint="cloud", started_at=NOON + timedelta(minutes=n)) for n in (-1, 0, 59, 60)))
    record = lines(database, NOON, NOON + timedelta(hours=1))["cloud"].record
    assert record is not None and record.attempts == 2


def test_a_machine_of_ours(database: Database, usage_event: Event) -> None:
    """Two hours' work at full load (2 USD an hour, and 0.2 USD of energy) within the four hours that were reserved."""
    tokens = {"input_tokens": 3_600_000, "output_tokens": 360_000}
    add(
        database,
        usage_event(endpoint="gpu", started_at=NOON, cost_usd=Decimal("4.4"), **tokens),
        usage_event(endpoint="gpu", started_at=NOON + timedelta(hours=1), cost_usd=Decimal(0), input_tokens=7200),
    )
    machine = lines(database)["gpu"].machine
    assert machine is not None
    assert (machine.reserved_hours, machine.reserved_usd) == (4, 8)  # from its first attempt until now
    assert (machine.used_hours, machine.utilisation, machine.idle_usd) == (2, Decimal("0.5"), 4)
    every = 3_600_000 + 360_000 + 7200 + 5
    assert machine.effective_usd_per_million == (Decimal("8.4") * 1_000_000 / every).quantize(Decimal("0.000001"))
    assert (machine.busiest_read, machine.busiest_written) == (1000, 100)
    twice = lines(database, NOON - timedelta(hours=4), NOON + timedelta(hours=9))["gpu"].machine
    assert twice is not None and twice.reserved_hours == 8  # not the hours to come


def test_a_machine_that_nobody_used(database: Database) -> None:
    assert lines(database)["idle"].machine is None  # since when, nobody can say
    machine = lines(database, NOON)["idle"].machine
    assert machine is not None
    assert (machine.reserved_usd, machine.idle_usd, machine.utilisation) == (8, 8, 0)
    assert machine.effective_usd_per_million is None


def test_a_machine_for_nothing_and_one_that_did_more_than_it_can() -> None:
    free = machine_of(Capacity(hour=Decimal(0), reads=Decimal(1), writes=Decimal(1)), Decimal(3), None, None)
    assert (free.idle_usd, free.utilisation) == (0, 0)


def test_how_it_is_shown(database: Database, usage_event: Event) -> None:
    add(
        database,
        usage_event(endpoint="gpu", ttft_ms=10.0),
        usage_event(endpoint="[red]", price_status="unpriced", cost_usd=None),
    )
    endpoints = {"gpu": endpoint("gpu", MACHINE)}
    found = performance(database.engine, endpoints, NOON, None, NOON + timedelta(hours=1))
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=False).print(*to_tables(found))
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in file.getvalue().splitlines()]
    assert any(row[:3] == ["[red]", "1", "100.00%"] and row[-2:] == ["unknown", "-"] for row in rows)
    assert any(row[:3] == ["gpu", "1.00", "2.00"] for row in rows)
    document = json.loads(to_json(to_sheet(found)))
    assert [row["endpoint"] for row in document["rows"]] == ["[red]", "gpu"]
    assert document["rows"][1]["reserved_usd"] == "2.000000"
    assert "total" not in document
