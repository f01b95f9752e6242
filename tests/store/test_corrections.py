from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert, select, text

from gateway.store.audit import Author, list_audit
from gateway.store.corrections import (
    Chosen,
    PriceChange,
    add_correction,
    add_price_changes,
    correcting,
    count_attempts,
    list_corrections,
    read_attempts,
)
from gateway.store.database import Database
from gateway.store.tables import corrections, usage_events, usage_hours

Event = Callable[..., dict[str, Any]]
AUTHOR = Author("cli:ann", "admin")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MARCH = Chosen(since=datetime(2026, 3, 1, tzinfo=UTC), until=datetime(2026, 4, 1, tzinfo=UTC))


@pytest.fixture(autouse=True)
def no_events(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM corrections"))
        connection.execute(text("DELETE FROM usage_events WHERE started_at >= '2026-01-01'"))


def add(database: Database, *rows: dict[str, Any]) -> None:
    with database.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(**row))


def read(database: Database, chosen: Chosen = MARCH) -> list[Any]:
    with database.engine.connect() as connection:
        return read_attempts(connection, chosen, None)


def change(attempt: Any, amount: str, *, first: bool = False, rate: str = "1") -> PriceChange:
    prices = {"input": rate, "output": rate}
    return PriceChange(
        attempt=attempt, amount_usd=Decimal(amount), is_first_price=first, prices=prices, catalog_version="v2"
    )


def test_a_price_correction_counts_where_its_attempt_counts(database: Database, usage_event: Event) -> None:
    add(database, usage_event(cost_usd=Decimal("0.5"), team="a"))
    (attempt,) = read(database)
    with correcting(database.engine) as connection:
        add_price_changes(connection, [change(attempt, "-0.25")], AUTHOR, "new contract")
    (row,) = list_corrections(database.engine)
    assert (row["kind"], row["amount_usd"], row["booked_at"], row["team"]) == ("price", Decimal("-0.25"), NOON, "a")
    assert (row["author"], row["reason"], row["catalog_version"]) == ("cli:ann", "new contract", "v2")
    with database.engine.connect() as connection:
        hours = connection.execute(select(usage_hours)).mappings().all()
    assert [(hour["cost_usd"], hour["corrected_usd"]) for hour in hours] == [(Decimal("0.5"), Decimal("-0.25"))]
    (after,) = read(database)
    assert after.cost_so_far == Decimal("0.25")
    assert after.prices == {"input": "1", "output": "1"}
    assert list_audit(database.engine)[0].detail["amount_usd"] == "-0.25"


def test_the_newest_price_correction_says_the_rates(database: Database, usage_event: Event) -> None:
    add(database, usage_event(prices={"input": "9", "output": "9"}))
    for rate in ("3", "2"):
        (attempt,) = read(database)
        with correcting(database.engine) as connection:
            add_price_changes(connection, [change(attempt, "1", rate=rate)], AUTHOR, "again")
    assert read(database)[0].prices == {"input": "2", "output": "2"}


def test_a_batch_and_the_word_of_it_stand_or_fall_together(database: Database, usage_event: Event) -> None:
    add(database, usage_event())
    noted = len(list_audit(database.engine))
    (attempt,) = read(database)
    with pytest.raises(RuntimeError), correcting(database.engine) as connection:
        add_price_changes(connection, [change(attempt, "1")], AUTHOR, "why")
        raise RuntimeError
    assert list_corrections(database.engine) == []
    assert len(list_audit(database.engine)) == noted


def test_two_runs_never_see_the_same_attempt_uncorrected(database: Database, usage_event: Event) -> None:
    add(database, usage_event(cost_usd=None, price_status="unpriced"))
    only = Chosen(since=MARCH.since, until=MARCH.until, only_unpriced=True)
    found: list[int] = []

    def run() -> None:
        with correcting(database.engine) as connection:
            attempts = read_attempts(connection, only, None)
            found.append(len(attempts))
            add_price_changes(connection, [change(one, "1", first=True) for one in attempts], AUTHOR, "first")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 0, 0, 1]
    assert count_attempts(database.engine, only) == 0


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 4),
        ({"model": "gpt-*"}, 3),
        ({"model": "gpt-4o"}, 2),
        ({"model": "alias"}, 1),
        ({"model": "gpt_4o"}, 0),  # no wildcard of LIKE
        ({"endpoint": "e2"}, 1),
        ({"provider": "other"}, 1),
        ({"only_unpriced": True}, 1),
        ({"until": NOON}, 0),
        ({"since": NOON + timedelta(seconds=1)}, 0),
    ],
)
def test_which_attempts(database: Database, usage_event: Event, changes: dict[str, Any], count: int) -> None:
    add(
        database,
        usage_event(upstream_model="gpt-4o", model="alias", provider="other"),
        usage_event(upstream_model="gpt-4o", model="gpt-4o", endpoint="e2"),
        usage_event(upstream_model="gpt-x", model="gpt-x", cost_usd=None, price_status="unpriced"),
        usage_event(upstream_model="claude", model="claude"),
        usage_event(usage_source="none", cost_usd=None, price_status="unpriced"),  # nothing to price
    )
    chosen = Chosen(**{"since": MARCH.since, "until": MARCH.until, **changes})
    assert count_attempts(database.engine, chosen) == len(read(database, chosen)) == count


def test_batches_follow_each_other(database: Database, usage_event: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.corrections.BATCH", 2)
    add(database, *(usage_event(started_at=NOON + timedelta(seconds=number // 3)) for number in range(7)))
    seen: list[str] = []
    last = None
    with database.engine.connect() as connection:
        while attempts := read_attempts(connection, MARCH, last):
            seen += [attempt.event_id for attempt in attempts]
            last = attempts[-1]
    assert len(seen) == len(set(seen)) == 7


def test_a_correction_by_hand_of_an_attempt_has_its_dimensions(database: Database, usage_event: Event) -> None:
    event = usage_event(team="a", project="p", region="eu")
    add(database, event)
    row = add_correction(
        database.engine,
        amount_usd=Decimal("-1.5"),
        reason="goodwill",
        author=AUTHOR,
        event_id=event["event_id"].upper(),
    )
    assert {name: row[name] for name in ("team", "project", "region", "kind", "booked_at")} == {
        "team": "a",
        "project": "p",
        "region": "eu",
        "kind": "adjustment",
        "booked_at": NOON,
    }
    assert [one["correction_id"] for one in list_corrections(database.engine, event_id=event["event_id"])] == [
        row["correction_id"]
    ]


def test_a_correction_of_a_closed_month_counts_in_the_open_one(database: Database, usage_event: Event) -> None:
    event = usage_event(started_at=datetime(2025, 1, 5, tzinfo=UTC), ended_at=datetime(2025, 1, 5, tzinfo=UTC))
    add(database, event)
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO months VALUES ('2025-01-01', now(), 'ann', '{}', decode('00', 'hex'), decode('00', 'hex'))"
            )
        )
    row = add_correction(
        database.engine, amount_usd=Decimal(1), reason="late", author=AUTHOR, event_id=event["event_id"]
    )
    assert row["booked_at"] > datetime(2026, 1, 1, tzinfo=UTC)


def test_corrections_are_listed_by_what_they_are_of(database: Database) -> None:
    for team, day in (("a", 1), ("a", 2), ("b", 3)):
        add_correction(
            database.engine,
            amount_usd=Decimal(day),
            reason="r",
            author=AUTHOR,
            kind="reconciliation",
            at=datetime(2026, 3, day, tzinfo=UTC),
            dimensions={"team": team},
        )

    def amounts(**chosen: Any) -> list[int]:
        return [int(row["amount_usd"]) for row in list_corrections(database.engine, **chosen)]

    assert amounts() == [3, 2, 1]
    assert amounts(limit=1) == [3]
    assert amounts(team="a") == [2, 1]
    assert amounts(kind="price") == []
    since, until = (datetime(2026, 3, day, tzinfo=UTC) for day in (2, 3))
    assert amounts(since=since, until=until) == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount_usd": Decimal(0)}, "not 0"),
        ({"amount_usd": Decimal("NaN")}, "not 0"),
        ({"amount_usd": Decimal("1e13")}, "not 0"),
        ({"reason": " "}, "needs a reason"),
        ({"reason": "x" * 1001}, "needs a reason"),
        ({"reason": "a\0"}, "needs a reason"),
        ({"kind": "gift"}, "no kind"),
        ({"dimensions": None}, "of one attempt or"),
        ({"event_id": str(uuid4())}, "of one attempt or"),
        ({"event_id": "x", "dimensions": None}, "no id of an attempt"),
        ({"event_id": str(uuid4()), "dimensions": None}, "no attempt"),
        ({"event_id": str(uuid4()), "dimensions": None, "at": NOON}, "leave the time out"),
        ({"at": datetime(2026, 3, 1)}, "no zone"),
        ({"dimensions": {"colour": "red"}}, "no dimension `colour`"),
        ({"dimensions": {"team": "a\0"}}, "no name has"),
    ],
)
def test_what_cannot_be_meant_is_refused(database: Database, arguments: dict[str, Any], message: str) -> None:
    given = {"amount_usd": Decimal(1), "reason": "r", "author": AUTHOR, "dimensions": {"team": "a"}, **arguments}
    with pytest.raises(ValueError, match=message):
        add_correction(database.engine, **given)
    with database.engine.connect() as connection:
        assert connection.execute(select(corrections)).all() == []
