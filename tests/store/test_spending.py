"""What teams have spent in their budgets' periods, and what hard budgets have left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, text

from gateway.budgets import budgets_left
from gateway.config.model import Team
from gateway.store.database import Database
from gateway.store.spending import Period, Spending, period_start, spent_by_team
from gateway.store.tables import usage_events
from gateway.types import Budget

Event = Callable[..., dict[str, Any]]
NOW = datetime(2026, 3, 4, 15, 30, tzinfo=UTC)
"""A Wednesday."""
DAY, WEEK, MONTH = (datetime(2026, 3, day, tzinfo=UTC) for day in (4, 2, 1))


@pytest.fixture(autouse=True)
def no_events(database: Database) -> Iterator[None]:
    yield
    with database.engine.begin() as connection:
        connection.execute(delete(usage_events))


def add(database: Database, *rows: dict[str, Any]) -> None:
    with database.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(**row))


@pytest.mark.parametrize(
    ("period", "now", "start"),
    [
        ("day", NOW, DAY),
        ("week", NOW, WEEK),
        ("month", NOW, MONTH),
        ("week", datetime(2026, 3, 8, 23, 59, 59, tzinfo=UTC), WEEK),
        ("week", datetime(2026, 3, 9, tzinfo=UTC), datetime(2026, 3, 9, tzinfo=UTC)),
        ("month", datetime(2026, 2, 28, 23, tzinfo=timezone(timedelta(hours=-5))), MONTH),
        ("day", datetime(2026, 3, 5, 1, tzinfo=timezone(timedelta(hours=2))), DAY),
    ],
)
def test_periods_are_utc_and_weeks_begin_on_monday(period: Period, now: datetime, start: datetime) -> None:
    assert period_start(period, now) == start


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="no zone"):
        spent_by_team(database.engine, {"a": "day"}, datetime(2026, 3, 4))


def test_each_team_has_its_own_period(database: Database, usage_event: Event) -> None:
    instant = timedelta(microseconds=1)
    moments = (MONTH - instant, MONTH, WEEK - instant, WEEK, DAY - instant, DAY, NOW)
    for team in ("daily", "weekly", "monthly", "other"):
        for number, moment in enumerate(moments):
            add(database, usage_event(team=team, started_at=moment, cost_usd=Decimal(10) ** -number))
    spent = spent_by_team(database.engine, {"daily": "day", "weekly": "week", "monthly": "month"}, NOW)
    assert {team: spending.usd for team, spending in spent.items()} == {
        "daily": Decimal("0.000011"),
        "weekly": Decimal("0.001111"),
        "monthly": Decimal("0.111111"),
    }


def test_unpriced_attempts_are_counted_and_not_added(database: Database, usage_event: Event) -> None:
    unpriced = {"price_status": "unpriced", "cost_usd": None}
    add(
        database,
        usage_event(team="a", started_at=NOW, cost_usd=Decimal("0.1")),
        usage_event(team="a", started_at=NOW, cost_usd=Decimal("0.000000000000000001")),
        usage_event(team="a", started_at=NOW, **unpriced),
        usage_event(team="b", started_at=NOW, **unpriced),
    )
    assert spent_by_team(database.engine, {"a": "day", "b": "day", "c": "day"}, NOW) == {
        "a": Spending(Decimal("0.100000000000000001"), 1),
        "b": Spending(Decimal(0), 1),
        "c": Spending(Decimal(0), 0),
    }


def test_nobody_asked(database: Database) -> None:
    assert spent_by_team(database.engine, {}, NOW) == {}


def test_a_team_s_name_is_data(database: Database, usage_event: Event) -> None:
    name = "x'); DROP TABLE usage_events; --"
    add(database, usage_event(team=name, started_at=NOW, cost_usd=Decimal(3)))
    assert spent_by_team(database.engine, {name: "month", "%s": "day"}, NOW)[name].usd == 3


def test_an_index_finds_them(database: Database, usage_event: Event) -> None:
    """Other teams' rows and other months' are not read: the table grows for ever."""
    with database.engine.begin() as connection:
        rows = [usage_event(team=f"team-{n % 200}", started_at=MONTH - timedelta(hours=n % 5000)) for n in range(4000)]
        connection.execute(insert(usage_events), rows)
        connection.execute(text("ANALYZE usage_events"))
    statements: list[Any] = []

    def remember(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", remember)
    try:
        spent_by_team(database.engine, {"team-1": "month", "team-2": "day"}, NOW)
    finally:
        event.remove(database.engine, "before_cursor_execute", remember)
    ((statement, parameters),) = statements
    with database.engine.connect() as connection:
        seen = [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]
    assert any("ix_usage_events_team" in line for line in seen), "\n".join(seen)


def test_what_hard_budgets_have_left(database: Database, usage_event: Event) -> None:
    teams = {
        "hard": Team(id="hard", budget=Budget(usd=Decimal("1.5"), per="day", hard=True)),
        "spent": Team(id="spent", budget=Budget(usd=Decimal("1"), per="month", hard=True)),
        "untouched": Team(id="untouched", budget=Budget(usd=Decimal("7"), hard=True)),
        "soft": Team(id="soft", budget=Budget(usd=Decimal("1"))),
        "none": Team(id="none"),
    }
    for team in teams:
        if team != "untouched":
            add(database, usage_event(team=team, started_at=NOW, cost_usd=Decimal("1.2")))
    add(database, usage_event(team="hard", started_at=DAY - timedelta(hours=1), cost_usd=Decimal(100)))
    assert budgets_left(database.engine, teams, NOW) == {
        "hard": Decimal("0.3"),
        "spent": Decimal(0),
        "untouched": Decimal(7),
    }
    assert budgets_left(database.engine, {}, NOW) == {}
