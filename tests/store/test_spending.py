"""What was spent in a period: out of sums by the hour, equal to the rows to the last digit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert

from gateway.budgets.accounts import Account
from gateway.store.database import Database
from gateway.store.spending import payer_of, spent, spent_by_day, spent_by_payers
from gateway.store.tables import corrections, usage_events

Event = Callable[..., dict[str, Any]]
START = datetime(2026, 3, 1, 18, 30, tzinfo=UTC)  # midnight in Kolkata
END = datetime(2026, 3, 2, 18, 30, tzinfo=UTC)


def add(database: Database, *rows: dict[str, Any]) -> None:
    with database.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(row))


def correct(database: Database, team: str, at: datetime, usd: str) -> None:
    row = {"correction_id": str(uuid4()), "booked_at": at, "kind": "adjustment", "reason": "r", "author": "a"}
    with database.engine.begin() as connection:
        connection.execute(insert(corrections).values(**row, amount_usd=Decimal(usd), team=team))


def of(database: Database, account: str, start: datetime = START, end: datetime = END, **covers: Any) -> Decimal:
    payer = payer_of(account, Account(account, **covers).covers)
    with database.engine.connect() as connection:
        one = spent(connection, payer, start, end)
        assert spent_by_payers(connection, {account: payer}, start, end) == {account: one}
    return one


def test_a_period_begins_and_ends_inside_an_hour(database: Database, usage_event: Event) -> None:
    moment = timedelta(microseconds=1)
    times = {
        START - moment: "1",
        START: "10",
        END - moment: "100",
        END: "1000",
        START + timedelta(hours=5): "0.000000001",
    }
    add(database, *(usage_event(team="edge", started_at=at, cost_usd=Decimal(usd)) for at, usd in times.items()))
    assert of(database, "team:edge") == Decimal("110.000000001")
    assert of(database, "team:edge", START, START + timedelta(minutes=10)) == 10  # all of it inside one hour
    assert of(database, "team:edge", START - timedelta(hours=1), END + timedelta(hours=1)) == Decimal("1111.000000001")


def test_unknown_costs_count_with_their_bound_and_corrections_count(database: Database, usage_event: Event) -> None:
    unknown = {"cost_usd": None, "price_status": "unpriced"}
    for at in (START + timedelta(minutes=1), START + timedelta(hours=3)):  # in the broken hour, and in a whole one
        add(
            database,
            usage_event(team="unknown", started_at=at, **unknown, max_cost_usd=Decimal(7)),
            usage_event(team="unknown", started_at=at, **unknown),
            usage_event(team="unknown", started_at=at, cost_usd=Decimal(2), max_cost_usd=Decimal(50)),
        )
        correct(database, "unknown", at, "-0.5")
    assert of(database, "team:unknown") == 17


@pytest.mark.parametrize(
    ("account", "covers", "expected"),
    [
        ("key:k1", {}, 1 + 2),
        ("project:t1/shop", {}, 1),
        ("team:t1", {}, 1 + 2),
        ("cost_center:c", {}, 1 + 4),
        ("organisation:acme", {}, 4 + 8),
        ("models:big", {"models": ("gpt-5*",)}, 2 + 4),
        ("models:of-some", {"models": ("gpt-5*", "[m]ini"), "teams": ("t2",)}, 4 + 8),
        ("models:none", {"models": ("%",)}, 0),
    ],
)
def test_accounts(database: Database, usage_event: Event, account: str, covers: dict[str, Any], expected: int) -> None:
    at = datetime(2025, 1, 1, 12, 20, tzinfo=UTC)
    rows = [
        {"key_id": "k1", "team": "t1", "project": "shop", "cost_center": "c", "model": "mini"},
        {"key_id": "k1", "team": "t1", "project": "other", "model": "gpt-5"},
        {
            "key_id": "k2",
            "team": "t2",
            "project": "shop",
            "cost_center": "c",
            "model": "gpt-5-big",
            "organisation": "acme",
        },
        {"key_id": "k3", "team": "t2", "model": "mini", "organisation": "acme"},
    ]
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM usage_events WHERE started_at < '2026-01-01'")
        for index, changes in enumerate(rows):
            connection.execute(insert(usage_events).values(usage_event(started_at=at, cost_usd=2**index, **changes)))
    for start in (at - timedelta(minutes=20), at - timedelta(minutes=10)):
        assert of(database, account, start, at + timedelta(hours=2), **covers) == expected


def test_days(database: Database, usage_event: Event) -> None:
    for hours, usd in ((1, 5), (20, 6), (30, 7)):
        at = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(hours=hours)
        add(database, usage_event(team="daily", started_at=at, cost_usd=Decimal(usd)))
    with database.engine.connect() as connection:
        start, end = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 3, tzinfo=UTC)
        assert spent_by_day(connection, payer_of("team:daily"), start, end, "Asia/Tokyo") == {
            date(2026, 5, 1): 5,
            date(2026, 5, 2): 13,
        }


@pytest.mark.parametrize("text", ["team", "team:", "nobody:x", "project:t", "project:/p", "project:t/", ""])
def test_what_is_no_account(text: str) -> None:
    with pytest.raises(ValueError, match="no account"):
        payer_of(text)


def test_a_time_needs_a_zone(database: Database) -> None:
    with pytest.raises(ValueError, match="zone"):
        of(database, "team:t", datetime(2026, 3, 1))
