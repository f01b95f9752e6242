from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from gateway.accounting.repricing import Repricing, rates_in_force, reprice
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.model import Configuration
from gateway.store.audit import Author
from gateway.store.corrections import Chosen, add_correction, list_corrections
from gateway.store.database import Database
from gateway.store.tables import usage_events, usage_hours

Event = Callable[..., dict[str, Any]]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AUTHOR = Author("cli:ann", "admin")
MARCH = Chosen(since=datetime(2026, 3, 1, tzinfo=UTC), until=datetime(2026, 4, 1, tzinfo=UTC))
YAML = """
version: 1
providers:
  openai: {{adapter: openai, base_url: https://api.openai.com/v1, api_key: k}}
  house: {{adapter: openai-compatible, base_url: http://127.0.0.1:9/v1}}
endpoints:
  gpt-mini: {{provider: openai, model: gpt-4o-mini, price: {{input: {rate}, output: {rate}}}}}
  in-house: {{provider: house, model: bird}}
routes: [{{match: {{model: "*"}}, policy: all}}]
policies: {{all: {{endpoints: [gpt-mini, in-house]}}}}
"""


@pytest.fixture(autouse=True)
def no_events(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("TRUNCATE usage_events"))


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], Configuration]:
    def make(rate: str) -> Configuration:
        path = tmp_path / "hatchway.yaml"
        path.write_text(YAML.format(rate=rate))
        return compile_configuration(read_document(path), {})

    return make


def add(database: Database, *rows: dict[str, Any]) -> None:
    with database.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(**row))


def run(database: Database, configuration: Configuration, **options: Any) -> Repricing:
    given = {"author": AUTHOR, "reason": "contract of March", "chosen": MARCH, **options}
    chosen = given.pop("chosen")
    return reprice(database.engine, configuration, rates_in_force(database.engine, configuration), chosen, **given)


def amounts(database: Database) -> list[Decimal]:
    return [row["amount_usd"] for row in list_corrections(database.engine)]


def booked(database: Database) -> tuple[Decimal, int]:
    """What reports show: cost, and attempts without one."""
    with database.engine.connect() as connection:
        hours = connection.execute(select(usage_hours)).mappings().all()
    cost = sum((hour["cost_usd"] + hour["corrected_usd"] for hour in hours), Decimal(0))
    return cost, int(sum(hour["unpriced"] - hour["repriced"] for hour in hours))


def unpriced(usage_event: Event, **changes: Any) -> dict[str, Any]:
    return usage_event(**{"cost_usd": None, "price_status": "unpriced", **changes})


def test_what_had_no_price_gets_its_first_one(database: Database, configured: Any, usage_event: Event) -> None:
    add(database, unpriced(usage_event), usage_event(cost_usd=Decimal("0.000015")))
    found = run(database, configured("1"), chosen=Chosen(since=MARCH.since, until=MARCH.until, only_unpriced=True))
    assert (found.examined, found.changed.attempts, found.changed.first_prices) == (1, 1, 1)
    assert found.changed.amount_usd == Decimal("0.000015")
    (row,) = list_corrections(database.engine)
    assert row["is_first_price"]
    assert row["prices"]["input"] == "1"
    assert row["catalog_version"] == "yaml"
    assert row["reason"] == "contract of March"
    assert booked(database) == (Decimal("0.000030"), 0)


def test_only_the_difference_is_written_and_a_second_run_finds_nothing(
    database: Database, configured: Any, usage_event: Event
) -> None:
    add(database, *(usage_event(cost_usd=Decimal("0.000015")) for _ in range(3)))
    first = run(database, configured("3"))
    assert first.changed.amount_usd == 3 * Decimal("0.000030")
    again = run(database, configured("3"))
    assert (again.examined, again.unchanged, again.changed.attempts) == (3, 3, 0)
    back = run(database, configured("1"))
    assert back.changed.amount_usd == -first.changed.amount_usd
    assert booked(database) == (3 * Decimal("0.000015"), 0)
    assert len(amounts(database)) == 6


def test_a_dry_run_says_the_same_and_writes_nothing(database: Database, configured: Any, usage_event: Event) -> None:
    add(database, usage_event(team="a"), unpriced(usage_event, team="b"))
    dry = run(database, configured("2"), dry_run=True)
    assert amounts(database) == []
    wet = run(database, configured("2"))
    assert dry.dry_run and not wet.dry_run
    assert (dry.changed, dry.by) == (wet.changed, wet.by)
    assert set(dry.by["team"]) == {"a", "b"}
    assert {name: len(sums) for name, sums in dry.by.items()} == {"team": 2, "model": 1, "endpoint": 1}


def test_an_adjustment_by_hand_is_not_undone(database: Database, configured: Any, usage_event: Event) -> None:
    event = usage_event(cost_usd=Decimal("0.000015"))
    add(database, event)
    add_correction(
        database.engine, amount_usd=Decimal(-1), reason="goodwill", author=AUTHOR, event_id=event["event_id"]
    )
    assert run(database, configured("1")).unchanged == 1
    assert amounts(database) == [Decimal(-1)]


def test_a_free_price_is_a_first_price(database: Database, configured: Any, usage_event: Event) -> None:
    add(database, unpriced(usage_event))
    assert run(database, configured("0")).changed.first_prices == 1
    assert run(database, configured("0")).changed.attempts == 0
    assert booked(database) == (Decimal(0), 0)


def test_what_nobody_prices_is_said(database: Database, configured: Any, usage_event: Event) -> None:
    house = {"endpoint": "in-house", "provider": "house", "model": "bird", "upstream_model": "bird"}
    add(database, unpriced(usage_event, **house), usage_event(**house), unpriced(usage_event, usage_source="none"))
    found = run(database, configured("1"))
    assert (found.examined, found.unpriced, found.kept) == (2, {"in-house bird": 1}, 1)
    assert amounts(database) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "old"},  # it is gone
        {"upstream_model": "gpt-4o"},  # it asked another model then
    ],
)
def test_an_endpoint_that_is_gone_is_priced_by_the_catalogue(
    database: Database, configured: Any, usage_event: Event, changes: dict[str, str]
) -> None:
    add(database, unpriced(usage_event, **changes))
    found = run(database, configured("1000"))
    assert sum(found.gone.values()) == 1
    (row,) = list_corrections(database.engine)
    assert row["catalog_version"].startswith("genai-prices")
    assert Decimal(0) < row["amount_usd"] < Decimal("0.001")


def test_a_provider_that_is_gone_is_said(database: Database, configured: Any, usage_event: Event) -> None:
    add(database, unpriced(usage_event, provider="nobody", endpoint="old"))
    found = run(database, configured("1"))
    assert (found.gone, found.unpriced) == ({"old": 1}, {"old gpt-4o-mini": 1})


def test_batches_leave_none_out(
    database: Database, configured: Any, usage_event: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.corrections.BATCH", 4)
    monkeypatch.setattr("gateway.accounting.repricing.BATCH", 4)
    add(database, *(unpriced(usage_event, started_at=NOON + timedelta(minutes=number)) for number in range(9)))
    seen: list[tuple[int, int]] = []
    found = run(database, configured("1"), progress=lambda _, done, total: seen.append((done, total)))
    assert found.changed.attempts == 9
    assert seen == [(4, 9), (8, 9), (9, 9)]
    assert booked(database) == (9 * Decimal("0.000015"), 0)


def test_what_was_written_before_a_failure_stays(
    database: Database, configured: Any, usage_event: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.corrections.BATCH", 2)
    monkeypatch.setattr("gateway.accounting.repricing.BATCH", 2)
    add(database, *(unpriced(usage_event, started_at=NOON + timedelta(minutes=number)) for number in range(5)))

    def fail(_: str, done: int, __: int) -> None:
        if done == 4:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(database, configured("1"), progress=fail)
    assert len(amounts(database)) == 4
    assert run(database, configured("1")).changed.attempts == 1
