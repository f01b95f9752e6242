"""Decisions on their way from the spool into their table, beside usage events."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import StoreError
from gateway.ledger.record import HEADER, write_line
from gateway.ledger.rows import DECISION_COLUMNS
from gateway.ledger.shipper import Shipped, Shipper
from gateway.ledger.spool import Spool
from gateway.store.database import Database
from gateway.store.tables import decisions as decisions_table
from gateway.types import UsageEvent
from tests.ledger.conftest import begin, event_line, settle

NewEvent = Callable[..., UsageEvent]


def decision(request_id: str, **changes: Any) -> bytes:
    body = {
        "request_id": request_id,
        "at": "2026-01-02T03:04:05.000006Z",
        "team": "payments",
        "route": "route-1",
        "policy": "cheap",
        "select": "cost",
        "policy_version": "0123456789ab",
        "endpoint": "gpt-mini",
        "refusal": None,
        "candidates": [{"endpoint": "gpt-mini", "expected_cost": "0.00001"}],
        "facts": {"model": "gpt-4o-mini", "tags": {"env": "prod"}},
    }
    return json.dumps({**body, **changes}).encode()


def stored(database: Database) -> dict[str, dict[str, Any]]:
    with database.connect() as connection:
        cursor = connection.execute("SELECT * FROM decisions")
        names = [column.name for column in cursor.description or ()]
        return {row[0]: dict(zip(names, row, strict=True)) for row in cursor}


def rejects(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in directory.glob("rejected/*.jsonl") for line in path.read_bytes().splitlines()]


@pytest.fixture
def tables(table: Database) -> Database:
    with table.connect() as connection:
        connection.execute("TRUNCATE decisions")
    return table


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path, "w")
    yield opened
    opened.close()


@pytest.fixture
def shipper(tmp_path: Path, tables: Database) -> Iterator[Shipper]:
    with Shipper(tmp_path, tables.connect) as opened:
        yield opened


def settled(event: UsageEvent) -> UsageEvent:
    return msgspec.structs.replace(event, status="ok", error_type=None)


def test_the_columns_are_those_of_the_table() -> None:
    assert {*DECISION_COLUMNS, "earlier_body"} == {*decisions_table.c.keys()}


def test_a_decision_is_one_row(tables: Database, spool: Spool, shipper: Shipper, new_event: NewEvent) -> None:
    event = new_event()
    begin(spool, event, decision("req_1"))
    shipped = shipper.ship_once()  # while the attempt is under way
    assert (shipped.decisions, shipped.rows, shipped.pending_bytes) == (1, 0, 0)
    settle(spool, settled(event))
    assert shipper.ship_once().rows == 1
    (row,) = stored(tables).values()
    assert row.pop("body") == json.loads(decision("req_1"))
    assert row == {
        "request_id": "req_1",
        "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "team": "payments",
        "route": "route-1",
        "policy": "cheap",
        "policy_version": "0123456789ab",
        "endpoint": "gpt-mini",
        "refusal": None,
        "earlier_body": None,
    }


def test_a_refused_request_has_a_decision_and_no_event(tables: Database, spool: Spool, shipper: Shipper) -> None:
    spool.decide(decision("req_1", endpoint=None, refusal="policy_violation", candidates=[]))
    shipped = shipper.ship_once()
    assert (shipped.decisions, shipped.rows) == (1, 0)
    row = stored(tables)["req_1"]
    assert (row["endpoint"], row["refusal"]) == (None, "policy_violation")


def test_a_restart_ships_what_is_there_already_without_harm(
    tmp_path: Path, tables: Database, spool: Spool, new_event: NewEvent
) -> None:
    begin(spool, new_event(), decision("req_0"))  # never settled: each restart begins here again
    for n in range(1, 4):
        begin(spool, new_event(), decision(f"req_{n}"))
        with Shipper(tmp_path, tables.connect) as shipper:
            shipped = shipper.ship_once()
        assert (shipped.decisions, shipped.rejected) == (2 if n == 1 else 1, 0)
    assert set(stored(tables)) == {f"req_{n}" for n in range(4)}
    assert rejects(tmp_path) == []


class Crash(BaseException):
    """The shipper dies."""


@pytest.mark.parametrize("seed", range(3))
def test_each_once_through_crashes_between_commit_and_offset(
    tmp_path: Path, tables: Database, new_event: NewEvent, seed: int
) -> None:
    class Dying(Shipper):
        saves = 0

        def _save_offsets(self) -> None:
            Dying.saves += 1
            if Dying.saves % 3 != seed and Dying.saves < 40:
                raise Crash
            super()._save_offsets()

    spool = Spool(tmp_path, "w", segment_bytes=8192)
    crashes = 0

    def ship() -> None:
        nonlocal crashes
        with Dying(tmp_path, tables.connect, batch_rows=4) as shipper:
            try:
                shipper.ship_once()
            except Crash:
                crashes += 1

    for n in range(30):
        event = new_event()
        begin(spool, event, decision(f"req_{n}"))
        settle(spool, settled(event))
        if n % 5 == 0:
            ship()
    spool.close()
    while list(tmp_path.glob("*.spool")):
        ship()
    assert crashes > 5
    assert set(stored(tables)) == {f"req_{n}" for n in range(30)}
    assert rejects(tmp_path) == []


def test_a_decision_torn_by_the_death_of_its_worker(
    tmp_path: Path, tables: Database, shipper: Shipper, new_event: NewEvent
) -> None:
    whole, line = write_line("D", 1, decision("req_1")), write_line("D", 3, decision("req_2"))
    (tmp_path / "w-t-1-000001.spool").write_bytes(HEADER + whole + event_line("S", 2, new_event()) + line[:-30])
    shipped = shipper.ship_once()
    assert (shipped.decisions, shipped.lost, shipped.torn, shipped.rejected) == (1, 1, 1, 0)
    assert set(stored(tables)) == {"req_1"}
    assert not list(tmp_path.glob("*.spool"))


def test_what_cannot_be_stored_keeps_back_no_other(
    tmp_path: Path, tables: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    spool.decide(decision("req_1"))
    spool.decide(b'{"request_id":"no more"}')  # checksum right, and no decision
    spool.decide(decision("req_2", route="a\0b"))  # PostgreSQL has no NUL
    spool.decide(decision("req_3"))
    settle(spool, settled(new_event()))
    shipped = shipper.ship_once()
    assert (shipped.decisions, shipped.rows, shipped.rejected, shipped.pending_bytes) == (2, 1, 2, 0)
    assert set(stored(tables)) == {"req_1", "req_3"}
    assert rejects(tmp_path)[0]["reason"].startswith("not a decision")
    assert shipper.ship_once() == Shipped()


@pytest.mark.parametrize("text", ['"', "\\", "\n", '\\"', "a,b", "null", "\\N", "\u2028", "\x1f", "'"])
def test_awkward_texts_arrive_as_they_are(tables: Database, spool: Spool, shipper: Shipper, text: str) -> None:
    spool.decide(decision(f"req {text}", route=text, policy=text * 3, facts={text: [text]}))
    assert shipper.ship_once().decisions == 1
    (row,) = stored(tables).values()
    assert (row["request_id"], row["route"], row["policy"]) == (f"req {text}", text, text * 3)
    assert row["body"]["facts"] == {text: [text]}


def test_batches_count_the_longer_of_both(tmp_path: Path, tables: Database, spool: Spool, new_event: NewEvent) -> None:
    saves = 0

    class Counting(Shipper):
        def _save_offsets(self) -> None:
            nonlocal saves
            saves += 1
            super()._save_offsets()

    for n in range(25):
        begin(spool, event := new_event(), decision(f"req_{n}"))
        settle(spool, settled(event))
    with Counting(tmp_path, tables.connect, batch_rows=10) as shipper:
        shipped = shipper.ship_once()
    assert (shipped.rows, shipped.decisions, saves) == (25, 25, 3)


def test_a_missing_table_loses_nothing(tables: Database, spool: Spool, shipper: Shipper, new_event: NewEvent) -> None:
    begin(spool, event := new_event(), decision("req_1"))
    settle(spool, settled(event))
    with tables.connect() as connection:
        connection.execute("ALTER TABLE decisions RENAME TO hidden")
    with pytest.raises(StoreError, match="decisions"):
        shipper.ship_once()
    with tables.connect() as connection:
        connection.execute("ALTER TABLE hidden RENAME TO decisions")
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.decisions) == (0, 1)  # the event was in its table before
