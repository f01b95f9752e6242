from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select

from gateway.store import decisions as module
from gateway.store.database import Database
from gateway.store.decisions import RecordedAttempt, Speed, count, find_json, purge, read_since, speeds
from gateway.store.tables import decisions, usage_events
from gateway.types import Usage

Event = Callable[..., dict[str, Any]]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def empty_tables(database: Database) -> Iterator[None]:
    yield
    with database.engine.begin() as connection:
        connection.execute(delete(usage_events))
        connection.execute(delete(decisions))


def decision(request_id: str, at: datetime = NOON, **changes: Any) -> dict[str, Any]:
    row = {
        "request_id": request_id,
        "at": at,
        "team": "payments",
        "route": "route-1",
        "policy": "cheap",
        "policy_version": "0123456789ab",
        "endpoint": "gpt-mini",
        "refusal": None,
        "body": {"request_id": request_id, "expected": 0.1},
    }
    return {**row, **changes}


def add(database: Database, *rows: dict[str, Any], events: list[dict[str, Any]] | None = None) -> None:
    with database.engine.begin() as connection:
        if rows:
            connection.execute(insert(decisions), list(rows))
        for event in events or []:
            connection.execute(insert(usage_events).values(**event))


def test_find(database: Database) -> None:
    add(database, decision("req_1"))
    assert find_json(database.engine, "req_1") == b'{"request_id": "req_1", "expected": 0.1}'
    for unknown in ("req_2", "", "a\0b", "' OR 1=1"):
        assert find_json(database.engine, unknown) is None


def test_a_decision_of_before_the_column_was_there(database: Database) -> None:
    earlier = decision("req_1", earlier_body={"request_id": "req_1"})
    del earlier["body"]
    add(database, earlier)
    assert find_json(database.engine, "req_1") == b'{"request_id": "req_1"}'
    assert [found.decision for found in read_since(database.engine, None, None)] == [b'{"request_id": "req_1"}']


def test_each_decision_comes_with_its_attempts_in_the_order_of_time(database: Database, usage_event: Event) -> None:
    add(
        database,
        decision("late", NOON + timedelta(seconds=2)),
        decision("refused", NOON + timedelta(seconds=1), endpoint=None, refusal="policy_violation"),
        decision("early", NOON),
        events=[
            usage_event(request_id="early", attempt=2, endpoint="b", tags={"hatchway.role": "hedge"}),
            usage_event(request_id="early", attempt=1, endpoint="a", status="timeout", error_type="timeout_ttft"),
            usage_event(request_id="late", cost_usd=None, price_status="unpriced"),
            usage_event(request_id="of no decision"),
        ],
    )
    found = list(read_since(database.engine, None, None))
    assert [one.request_id for one in found] == ["early", "refused", "late"]
    first, second = found[0].attempts
    assert (first.attempt, first.endpoint, first.status, first.error_type) == (1, "a", "timeout", "timeout_ttft")
    assert (second.role, first.role) == ("hedge", None)
    assert found[1].attempts == []
    (late,) = found[2].attempts
    assert late == RecordedAttempt(
        attempt=1,
        started_at=NOON,
        ended_at=NOON + timedelta(seconds=1),
        endpoint="gpt-mini",
        provider="openai",
        upstream_model="gpt-4o-mini",
        status="ok",
        error_type=None,
        stream=False,
        ttft_ms=None,
        duration_ms=1000.0,
        usage=Usage(input_tokens=10, output_tokens=5),
        usage_source="reported",
        cost_usd=None,
        tags={},
    )
    assert found[0].decision == find_json(database.engine, "early")


@pytest.mark.parametrize("page", [1, 2, 3, 7])
def test_pages_leave_nothing_out_and_double_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Several at the same instant, also where a page ends."""
    monkeypatch.setattr(module, "PAGE", page)
    add(database, *(decision(f"req_{n}", NOON + timedelta(seconds=n // 3)) for n in range(7)))
    assert [one.request_id for one in read_since(database.engine, None, None)] == [f"req_{n}" for n in range(7)]


def test_a_period_has_its_beginning_and_not_its_end(database: Database) -> None:
    add(database, *(decision(f"req_{n}", NOON + timedelta(hours=n)) for n in range(4)))
    since, until = NOON + timedelta(hours=1), NOON + timedelta(hours=3)
    assert [one.request_id for one in read_since(database.engine, since, until)] == ["req_1", "req_2"]
    assert count(database.engine, since, until) == 2
    assert count(database.engine, None, None) == 4
    with pytest.raises(ValueError, match="no zone\nhint:"):
        list(read_since(database.engine, datetime(2026, 1, 1), None))


def test_reading_holds_no_transaction_open(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 1)
    add(database, decision("req_1"), decision("req_2"))
    reading = read_since(database.engine, None, None)
    next(reading)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
    with database.connect() as connection:
        assert connection.execute(query).fetchone() == (1,)  # this one
    assert next(reading).request_id == "req_2"


def test_purge_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch, usage_event: Event) -> None:
    monkeypatch.setattr(module, "PURGE_BATCH", 3)
    rows = [decision(f"req_{n}", NOON + timedelta(minutes=n)) for n in range(10)]
    add(database, *rows, events=[usage_event(request_id="req_0")])
    assert purge(database.engine, NOON + timedelta(minutes=7)) == 7
    assert [one.request_id for one in read_since(database.engine, None, None)] == ["req_7", "req_8", "req_9"]
    assert purge(database.engine, NOON + timedelta(minutes=7)) == 0
    with database.engine.connect() as connection:  # the ledger is kept
        assert connection.execute(select(func.count()).select_from(usage_events)).scalar_one() == 1


def test_speeds_by_the_hour(database: Database, usage_event: Event) -> None:
    def streamed(ttft: float, hours: int = 0, **changes: Any) -> dict[str, Any]:
        started = NOON + timedelta(hours=hours, minutes=30)
        values = {"started_at": started, "stream": True, "ttft_ms": ttft, "duration_ms": ttft + 1000}
        return usage_event(**{**values, "output_tokens": 100, **changes})

    add(
        database,
        events=[
            *(streamed(100.0 * n, input_tokens=60, cache_read_tokens=40) for n in range(1, 6)),
            streamed(9000.0, status="error", ttft_ms=None),
            streamed(9000.0, stream=False),  # whole answers say nothing of streams
            streamed(700.0, hours=1),
            usage_event(endpoint="other", started_at=NOON, ttft_ms=3000.0),
        ],
    )
    found = speeds(database.engine, None, None)
    first, second, other = found
    assert first == Speed(
        "gpt-mini", NOON, 7, 1, pytest.approx(0.3), pytest.approx(0.48), pytest.approx(0.01), pytest.approx(200 / 510)
    )
    assert (second.since, second.ttft_p50, second.cache_share) == (NOON + timedelta(hours=1), 0.7, 0.0)
    assert (other.endpoint, other.ttft_p50, other.seconds_per_token) == ("other", 3.0, None)
    assert speeds(database.engine, NOON + timedelta(hours=1), None) == [second]
