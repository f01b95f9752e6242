from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import insert, text

from gateway.store.audit import Author, list_audit
from gateway.store.corrections import add_correction
from gateway.store.database import Database
from gateway.store.reconciliations import (
    delete_reconciliation,
    find_reconciliation,
    ledger_providers,
    ledger_sums,
    list_reconciliations,
    save_reconciliation,
)
from gateway.store.tables import corrections, usage_events
from gateway.types import BUCKETS

Event = Callable[..., dict[str, Any]]
AUTHOR = Author("ann", "finance")
FIRST, LAST = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_events(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM corrections"))
        connection.execute(text("TRUNCATE usage_events"))


def add(database: Database, *rows: dict[str, Any]) -> None:
    with database.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(**row))


def sums(database: Database, zone: str = "UTC", providers: tuple[str, ...] = ("openai",)) -> Any:
    return ledger_sums(database.engine, providers, FIRST, LAST, zone)


def at(day: int, hour: int, **changes: Any) -> dict[str, Any]:
    moment = datetime(2026, 3, day, hour, tzinfo=UTC)
    return {"started_at": moment, "ended_at": moment + timedelta(seconds=1), **changes}


def test_attempts_that_are_alike_are_one_sum(database: Database, usage_event: Event) -> None:
    add(
        database,
        *(usage_event(**at(1, 12), prices={"input": "1", "output": "2"}, cost_usd=Decimal("0.1")) for _ in range(3)),
        usage_event(**at(1, 12), prices={"input": "9", "output": "2"}, cost_usd=Decimal("0.5")),
        usage_event(**at(1, 12), provider="other"),
    )
    found, _ = sums(database)
    assert sorted((one.attempts, one.tokens["input_tokens"], one.cost_usd) for one in found) == [
        (1, 10, Decimal("0.5")),
        (3, 30, Decimal("0.3")),
    ]
    assert {(one.day, one.ended, one.booked) for one in found} == {(date(2026, 3, 1),) * 3}
    assert {one.hour for one in found} == {datetime(2026, 3, 1, 12, tzinfo=UTC)}
    assert {one.prices["input"] for one in found if one.prices} == {"1", "9"}


def test_days_are_those_of_the_zone(database: Database, usage_event: Event) -> None:
    add(database, usage_event(**at(1, 20)))
    assert sums(database, "Asia/Kolkata")[0][0].day == date(2026, 3, 2)
    assert sums(database, "America/Los_Angeles")[0][0].day == date(2026, 3, 1)


def test_an_attempt_may_end_on_the_next_day(database: Database, usage_event: Event) -> None:
    moment = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
    add(database, usage_event(started_at=moment, ended_at=moment + timedelta(seconds=2)))
    (found,) = sums(database)[0]
    assert (found.day, found.ended) == (date(2026, 3, 1), date(2026, 3, 2))


def test_a_day_around_the_period_and_what_is_booked_in_it(database: Database, usage_event: Event) -> None:
    add(database, *(usage_event(**at(day, hour)) for day, hour in ((3, 23), (4, 0))))
    february = datetime(2026, 2, 27, 23, tzinfo=UTC)
    add(database, usage_event(started_at=february, ended_at=february))
    assert [one.day for one in sums(database)[0]] == [date(2026, 3, 3)]
    november = datetime(2025, 11, 5, tzinfo=UTC)
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE usage_events DISABLE TRIGGER book_late"))
        late = usage_event(started_at=november, ended_at=november, late_at=datetime(2026, 3, 2, tzinfo=UTC))
        connection.execute(insert(usage_events).values(**late))
        connection.execute(text("ALTER TABLE usage_events ENABLE TRIGGER book_late"))
    found = [one for one in sums(database)[0] if one.day != one.booked]
    assert [(one.day, one.booked) for one in found] == [(date(2025, 11, 5), date(2026, 3, 2))]


def test_unknown_attempts_with_and_without_a_bound(database: Database, usage_event: Event) -> None:
    lost = {"usage_source": "none", "price_status": "unpriced", "cost_usd": None, "error_type": "worker_lost"}
    nothing = dict.fromkeys(BUCKETS, 0)
    add(
        database,
        usage_event(**at(1, 1), **nothing, **lost, status="error", max_cost_usd=Decimal("0.4")),
        usage_event(**at(1, 1), **nothing, **lost, status="error"),
    )
    (found,) = sums(database)[0]
    assert (found.attempts, found.is_lost, found.is_unpriced, found.max_cost_usd, found.unbounded) == (
        *(2, True, True),
        *(Decimal("0.4"), 1),
    )


def test_a_correction_knows_what_it_replaced(database: Database, usage_event: Event) -> None:
    rates = [{"input": str(number), "output": "1"} for number in range(3)]
    event = usage_event(**at(1, 1), prices=rates[0], cost_usd=Decimal(1))
    add(database, event)
    names = {name: event.get(name) for name in ("provider", "upstream_model", "team")}
    with database.engine.begin() as connection:
        for number in (1, 2):
            connection.execute(
                insert(corrections).values(
                    correction_id=f"00000000-0000-0000-0000-00000000000{number}",
                    event_id=event["event_id"],
                    at=datetime(2026, 5, number, tzinfo=UTC),
                    booked_at=datetime(2026, 3, 5, tzinfo=UTC) if number == 2 else event["started_at"],
                    kind="price",
                    reason="r",
                    author="a",
                    amount_usd=Decimal(number),
                    prices=rates[number],
                    **names,
                )
            )
    found = sorted(sums(database)[1], key=lambda one: one.amount_usd)
    assert [(one.old["input"], one.new["input"], one.amount_usd) for one in found] == [
        ("0", "1", Decimal(1)),
        ("1", "2", Decimal(2)),
    ]
    assert [(one.day, one.booked) for one in found] == [
        (date(2026, 3, 1), date(2026, 3, 1)),
        (date(2026, 3, 1), date(2026, 3, 5)),
    ]
    assert found[0].tokens["input_tokens"] == 10


def test_a_first_price_is_seen_on_its_attempt(database: Database, usage_event: Event) -> None:
    event = usage_event(**at(1, 1), cost_usd=None, price_status="unpriced")
    add(database, event)
    assert sums(database)[0][0].is_unpriced
    with database.engine.begin() as connection:
        connection.execute(
            insert(corrections).values(
                **{"correction_id": "00000000-0000-0000-0000-000000000009", "event_id": event["event_id"]},
                **{"booked_at": event["started_at"], "kind": "price", "reason": "r", "author": "a"},
                **{"amount_usd": Decimal(1), "is_first_price": True, "provider": "openai"},
            )
        )
    (found,) = sums(database)[0]
    assert (found.is_unpriced, found.is_priced) == (False, False)


def test_an_adjustment_of_no_attempt(database: Database) -> None:
    names = {"provider": "openai", "upstream_model": "gpt-4o"}
    add_correction(database.engine, amount_usd=Decimal(-2), reason="r", author=AUTHOR, at=FIRST, dimensions=names)
    (found,) = sums(database)[1]
    assert (found.day, found.booked, found.model, found.kind) == (None, date(2026, 3, 1), "gpt-4o", "adjustment")


def test_providers_of_the_ledger(database: Database, usage_event: Event) -> None:
    add(database, usage_event(provider="b"), usage_event(provider="a"), usage_event(provider="a"))
    assert ledger_providers(database.engine) == ["a", "b"]


def test_results_are_kept(database: Database) -> None:
    result = {"from": "2026-03-01", "difference_usd": "1.5", "differences": [{"day": "2026-03-01"}], "asides": []}
    kept = save_reconciliation(database.engine, source="openai-costs", result=result, author=AUTHOR)
    assert find_reconciliation(database.engine, kept)["result"] == result  # type: ignore[index]  # it is there
    (row,) = list_reconciliations(database.engine)
    assert row["result"] == {"from": "2026-03-01", "difference_usd": "1.5"}
    assert (row["author"], row["source"]) == ("ann", "openai-costs")
    assert [one.action for one in list_audit(database.engine, action="reconciliations")] == ["reconciliations.save"]
    assert delete_reconciliation(database.engine, kept, AUTHOR)
    assert not delete_reconciliation(database.engine, kept, AUTHOR)
    assert find_reconciliation(database.engine, kept) is None
    assert find_reconciliation(database.engine, "a\0") is None
    assert [one.action for one in list_audit(database.engine, action="reconciliations", limit=1)] == [
        "reconciliations.delete"
    ]
