"""Closing a month over a real PostgreSQL: what it refuses, what it signs, and what no longer goes unseen."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, text

from gateway.errors import InvalidRequest, NotFound, StoreError
from gateway.ledger.record import WORKER_LOST
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.months import (
    ClosedMonth,
    bounds,
    canonical,
    close_month,
    find_closed,
    first_difference,
    list_months,
    month_name,
    parse_month,
    verify_month,
    write_proof,
)
from gateway.signing import is_signed, public_bytes
from gateway.store import months as store
from gateway.store.audit import Author, list_audit
from gateway.store.database import Database
from gateway.store.tables import corrections, usage_events
from gateway.types import Usage, UsageEvent
from tests.emptying import empty
from tests.ledger.conftest import begin, settle

NewRow = Callable[..., dict[str, Any]]
OCTOBER, NOVEMBER, DECEMBER = date(2025, 10, 1), date(2025, 11, 1), date(2025, 12, 1)
IN_OCTOBER = datetime(2025, 10, 31, 23, 59, 59, 999_999, tzinfo=UTC)
IN_NOVEMBER = datetime(2025, 11, 1, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ANN = Author("ann@finance", "finance")


def wipe(engine: Engine, *statements: str) -> None:
    """As somebody who owns the database could: past all triggers."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    empty(database.engine)
    yield database.engine


@pytest.fixture
def add(engine: Engine, usage_event: NewRow) -> Callable[..., str]:
    """Adds a row; returns its id."""

    def to_ledger(at: datetime = IN_OCTOBER, **changes: Any) -> str:
        row = usage_event(**{"started_at": at, "ended_at": at, "catalog_version": "c1", "gateway": "gw-a", **changes})
        with engine.begin() as connection:
            connection.execute(insert(usage_events).values(**row))
        return str(row["event_id"])

    return to_ledger


def correct(engine: Engine, at: datetime, amount: str, **changes: Any) -> None:
    row = {"kind": "price", "reason": "r", "author": "a", "amount_usd": Decimal(amount), "booked_at": at, **changes}
    with engine.begin() as connection:
        connection.execute(insert(corrections).values(correction_id=str(uuid4()), **row))


def close(engine: Engine, month: date = OCTOBER, **options: Any) -> ClosedMonth:
    return close_month(engine, month, **{"author": ANN, "key": KEY, **options})


def refusal(engine: Engine, month: date = OCTOBER, **options: Any) -> str:
    before = len(list_months(engine).closed)
    with pytest.raises(InvalidRequest) as caught:
        close(engine, month, **options)
    assert caught.value.code == "month_refused"
    assert len(list_months(engine).closed) == before
    return caught.value.message


Add = Callable[..., str]


def test_the_manifest_says_what_was_in_the_month(engine: Engine, add: Add) -> None:
    first = add(team="payments", cost_center="CC-1", cost_usd=Decimal("1.10"), reasoning_tokens=3)
    add(
        team="research",
        endpoint="on-prem",
        cost_usd=Decimal("0.0000000000000000000000000000000007"),
        catalog_version="c2",
    )
    add(IN_NOVEMBER, cost_usd=Decimal(100))
    correct(engine, IN_OCTOBER, "-0.25", event_id=first, team="payments")
    correct(engine, IN_NOVEMBER, "7")
    closed = close(engine)
    manifest = closed.manifest
    assert manifest["month"] == closed.month == "2025-10"
    assert (manifest["from"], manifest["until"]) == ("2025-10-01T00:00:00Z", "2025-11-01T00:00:00Z")
    assert manifest["totals"]["attempts"] == "2"
    assert manifest["totals"]["input_tokens"] == "20"
    assert manifest["totals"]["reasoning_tokens"] == "3"
    assert manifest["totals"]["cost_usd"] == "1.1000000000000000000000000000000007"
    assert manifest["totals"]["corrected_usd"] == "-0.25"
    assert manifest["totals"]["total_usd"] == "0.8500000000000000000000000000000007"
    assert manifest["by"]["team"]["payments"] == {
        **{"attempts": "1", "tokens": "18", "cost_usd": "1.1", "corrected_usd": "-0.25", "unpriced": "0"}
    }
    assert set(manifest["by"]["endpoint"]) == {"", "gpt-mini", "on-prem"}  # the correction names no endpoint
    assert set(manifest["by"]["cost_center"]) == {"", "CC-1"}
    assert (manifest["rows"]["count"], manifest["late_rows"], manifest["corrections"]["count"]) == (2, 0, 1)
    assert manifest["rows"]["cost_usd"] == manifest["totals"]["cost_usd"]
    assert (manifest["catalogues"], manifest["gateways"]) == (["c1", "c2"], ["gw-a"])
    assert (manifest["author"], manifest["previous"], manifest["forced"]) == ("ann@finance", None, [])
    assert is_signed(closed.text, closed.signature, public_bytes(KEY))
    assert closed.sha256 == hashlib.sha256(canonical(manifest)).hexdigest()
    assert find_closed(engine, OCTOBER) == closed  # the database gives back what was signed, byte for byte
    (noted,) = list_audit(engine, action="months.close")
    assert (noted.actor, noted.role, noted.subject) == ("ann@finance", "finance", "2025-10")
    assert noted.detail["manifest"] == closed.sha256


def test_anybody_with_psql_gets_the_same_hash(engine: Engine, add: Add, database: Database) -> None:
    for number in range(5):
        add(
            tags={"a": f'"quoted", {number}\nü'},
            raw_usage={"n": 1.5},
            ttft_ms=0.1 + number,
            project="" if number else None,
        )
    manifest = close(engine).manifest
    for table, key in (("usage_events", "event_id"), ("corrections", "correction_id")):
        part = manifest["rows" if table == "usage_events" else "corrections"]
        query = (
            f"COPY (SELECT {', '.join(part['columns'])} FROM {table} WHERE booked_at >= '2025-10-01T00:00:00Z' "
            f"AND booked_at < '2025-11-01T00:00:00Z' ORDER BY {key}) TO STDOUT (FORMAT csv)"
        )
        with database.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            with cursor.copy(query.encode()) as copy:
                content = b"".join(copy)
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
    assert manifest["corrections"]["sha256"] == hashlib.sha256(b"").hexdigest()


def test_the_hash_does_not_depend_on_the_sessions_settings(engine: Engine, add: Add) -> None:
    add(ttft_ms=1 / 3)
    since, until = bounds(OCTOBER)
    columns = store.column_names(usage_events)
    found = set()
    for settings in ("SET TimeZone = 'Asia/Kolkata'", "SET DateStyle = 'German'", "SET extra_float_digits = -10"):
        with engine.connect() as connection:
            connection.execute(text(settings))
            found.add(store.digest_events(connection, since, until, columns))
            connection.invalidate()  # or the pool would hand on the settings
    (digest,) = found
    assert digest.rows == 1


def test_months_are_a_chain(engine: Engine, add: Add) -> None:
    october = close(engine)
    december = close(engine, DECEMBER)
    november = close(engine, NOVEMBER)  # nothing was booked in it, so nothing kept December from being closed first
    assert december.manifest["previous"] == {"month": "2025-10", "sha256": october.sha256}
    assert november.manifest["previous"] == {"month": "2025-12", "sha256": december.sha256}
    for month in (OCTOBER, NOVEMBER, DECEMBER):
        assert verify_month(engine, month).difference is None


def test_a_month_that_is_not_over(engine: Engine) -> None:
    with engine.connect() as connection:
        now = store.clock(connection)
    month = date(now.year, now.month, 1)
    for force in (False, True):
        assert "is not over" in refusal(engine, month, force=force)
    assert "is not over" in refusal(engine, date(9999, 12, 1), force=True)


def test_a_month_is_closed_once(engine: Engine, add: Add) -> None:
    close(engine)
    assert "closed already" in refusal(engine, force=True)


def test_earlier_months_come_first(engine: Engine, add: Add) -> None:
    add(IN_OCTOBER)
    add(IN_NOVEMBER)
    assert "earlier months are open: 2025-10" in refusal(engine, NOVEMBER)
    forced = close(engine, NOVEMBER, force=True)
    assert forced.manifest["forced"] == ["earlier months are open: 2025-10"]
    close(engine, OCTOBER)


def test_attempts_without_a_price(engine: Engine, add: Add) -> None:
    event = add(cost_usd=None, price_status="unpriced")
    add(cost_usd=None, price_status="unpriced")
    assert "2 attempts without a price" in refusal(engine)
    correct(engine, IN_OCTOBER, "0.5", event_id=event, is_first_price=True)
    assert "1 attempt without a price" in refusal(engine)
    forced = close(engine, force=True).manifest
    assert forced["forced"] == ["1 attempt without a price"]
    assert (forced["totals"]["unpriced"], forced["totals"]["repriced"]) == ("2", "1")


def test_a_spool_that_is_not_shipped(engine: Engine, add: Add) -> None:
    assert "the spool is not shipped: disk gone" in refusal(engine, unshipped="disk gone\nhint: look for it")
    assert close(engine, unshipped="disk gone", force=True).manifest["forced"] == [
        "the spool is not shipped: disk gone"
    ]


def test_sums_by_the_hour_that_are_not_those_of_the_rows(engine: Engine, add: Add) -> None:
    add()
    wipe(engine, "UPDATE usage_hours SET cost_usd = cost_usd + 1E-20")
    message = refusal(engine, force=True)
    assert "`cost_usd`" in message and "hatchway ledger verify" in message
    wipe(engine, "UPDATE usage_hours SET cost_usd = cost_usd - 1E-20, input_tokens = 0")
    assert "`input_tokens`" in refusal(engine, force=True)
    wipe(engine, "UPDATE usage_hours SET input_tokens = 10")
    close(engine)


def test_late_rows_are_counted_in_the_month_that_was_open(
    engine: Engine, add: Add, database: Database, tmp_path: Path
) -> None:
    """Through the shipper, as another gateway's spool would come in; and the closed month stays as it was signed."""
    add()
    close(engine)
    spool = Spool(tmp_path, "w")
    event = begun(IN_OCTOBER)
    begin(spool, event)
    done = {"status": "ok", "error_type": None, "usage": Usage(input_tokens=4), "usage_source": "reported"}
    settle(spool, msgspec.structs.replace(event, **done, cost_usd=Decimal("0.5"), price_status="priced"))
    spool.close()
    with Shipper(tmp_path, database.connect) as shipper:
        assert shipper.ship_once().rows == 1
    correct(engine, IN_OCTOBER, "-0.125", event_id=event.event_id)
    assert verify_month(engine, OCTOBER).difference is None
    with engine.connect() as connection:
        now = store.clock(connection)
        booked = {
            name: connection.execute(text(f"SELECT max(booked_at) FROM {name}")).scalar_one()
            for name in ("usage_events", "corrections")
        }
        since, until = bounds(date(now.year, now.month, 1))
        sums = store.row_sums(connection, since, until)
    assert all(since <= moment.astimezone(UTC) < until for moment in booked.values())
    assert (sums.attempts, sums.late, sums.corrections) == (1, 1, 1)
    with engine.connect() as connection:
        by_hour = store.hour_sums(connection, since, until)[""]
    assert (by_hour["cost_usd"], by_hour["corrected_usd"]) == (Decimal("0.5"), Decimal("-0.125"))


def test_late_rows_are_named_in_the_manifest(engine: Engine, add: Add) -> None:
    add(datetime(2025, 9, 30, tzinfo=UTC), late_at=IN_OCTOBER)
    add()
    manifest = close(engine).manifest
    assert (manifest["late_rows"], manifest["rows"]["count"]) == (1, 2)
    wipe(engine, "UPDATE usage_events SET late_at = NULL, started_at = '2025-10-30'")
    assert verify_month(engine, OCTOBER).difference is not None


def begun(at: datetime) -> UsageEvent:
    fixed = {"project": None, "cost_center": None, "domain": None, "region": None, "ttft_ms": None}
    names = ("team", "key_id", "route", "policy", "policy_version", "endpoint", "provider", "model", "upstream_model")
    return UsageEvent(
        event_id=str(uuid4()),
        request_id="req_1",
        attempt=1,
        started_at=at,
        ended_at=at,
        **dict.fromkeys(names, "x"),
        **fixed,
        status="error",
        error_type=WORKER_LOST,
        stream=False,
        duration_ms=0.0,
        usage=Usage(),
        usage_source="none",
        price_status="unpriced",
        cost_usd=None,
        prices=None,
        catalog_version=None,
    )


def test_closing_waits_for_writers_and_writers_for_it(engine: Engine, add: Add, usage_event: NewRow) -> None:
    """A row that is being written when the month is closed is in it, or late: never in between."""
    row = usage_event(started_at=IN_OCTOBER)
    closing = threading.Thread(target=close, args=(engine,))
    with engine.begin() as writer:
        writer.execute(insert(usage_events).values(**row))
        closing.start()
        closing.join(0.3)
        assert closing.is_alive()
    closing.join(30)
    assert find_closed(engine, OCTOBER).manifest["rows"]["count"] == 1
    with store.alone(engine):
        late = threading.Thread(target=add)
        late.start()
        late.join(0.3)
        assert late.is_alive()
    late.join(30)
    assert verify_month(engine, OCTOBER).difference is None


def test_a_writer_that_never_ends_is_not_waited_for(
    engine: Engine, usage_event: NewRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
    with engine.begin() as writer:
        writer.execute(insert(usage_events).values(**usage_event(started_at=IN_OCTOBER)))
        with pytest.raises(StoreError, match="lock timeout"):
            close(engine)


EVENT = "(SELECT event_id FROM usage_events ORDER BY started_at LIMIT 1)"
EDITS = {
    # What somebody with the whole database could do, and what is then named.
    "UPDATE usage_events SET cost_usd = cost_usd + 1E-9": "`rows.cost_usd`",
    "UPDATE usage_events SET input_tokens = input_tokens + 1": "`rows.tokens.input_tokens` is 20 in the manifest, 22",
    f"UPDATE usage_events SET team = 'other' WHERE event_id = {EVENT}": "`rows.sha256`",
    f"UPDATE usage_events SET raw_usage = '1' WHERE event_id = {EVENT}": "`rows.sha256`",
    f"DELETE FROM usage_events WHERE event_id = {EVENT}": "`rows.count` is 2 in the manifest, 1 in the ledger",
    "UPDATE corrections SET amount_usd = 0": "`corrections.amount_usd`",
    "UPDATE corrections SET reason = 'another'": "`corrections.sha256`",
    "UPDATE usage_hours SET cost_usd = 0 WHERE team = 'payments'": "`totals.cost_usd`",
    "UPDATE usage_hours SET team = 'x' WHERE team = 'payments'": "`by.team.x` is only in the ledger",
    "UPDATE months SET manifest = jsonb_set(manifest, '{author}', '\"eve\"')": "signature is not that of the manifest",
    "UPDATE months SET signature = sha256('x')": "signature is not that of the manifest",
    "UPDATE months SET month = '2025-08-01'": "the manifest is that of `2025-10`",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: " ".join(edit.split()[1:6]))
def test_an_edit_is_named(engine: Engine, add: Add, edit: str) -> None:
    add(team="payments")
    add(IN_OCTOBER - timedelta(days=1), team="research")
    correct(engine, IN_OCTOBER, "0.5")
    close(engine)
    sound = verify_month(engine, OCTOBER)
    assert (sound.is_intact, sound.difference) == (True, None)
    wipe(engine, edit)
    found = verify_month(engine, date(2025, 8, 1) if "2025-08" in edit else OCTOBER)
    assert not found.is_intact
    assert found.difference is not None and EDITS[edit] in found.difference


def test_a_month_signed_anew_breaks_the_chain(engine: Engine, add: Add) -> None:
    """Somebody with the database and a key of their own."""
    add()
    close(engine)
    november = close(engine, NOVEMBER)
    eve = Ed25519PrivateKey.generate()
    wipe(engine, "DELETE FROM usage_events", "DELETE FROM usage_hours", "DELETE FROM months WHERE month = '2025-10-01'")
    assert "2025-10, which was closed before it, is not there" in str(verify_month(engine, NOVEMBER).difference)
    close(engine, key=eve)
    assert verify_month(engine, OCTOBER).is_intact  # by its own key
    assert "another key" in str(verify_month(engine, OCTOBER, public_key=public_bytes(KEY)).difference)
    assert "the manifest of 2025-10, which was closed before it, was changed" in str(
        verify_month(engine, NOVEMBER).difference
    )
    assert find_closed(engine, NOVEMBER) == november


def test_a_first_month_cannot_hide_those_before_it(engine: Engine, add: Add) -> None:
    close(engine)
    forged = find_closed(engine, OCTOBER).manifest | {"month": "2025-11"}
    row = store.MonthRow(
        month=NOVEMBER,
        closed_at=datetime.now(UTC),
        author="eve",
        manifest=forged,
        signature=KEY.sign(canonical(forged)),
        public_key=public_bytes(KEY),
    )
    with engine.begin() as connection:
        store.add_month(connection, row)
    assert "2025-10 was closed before it" in str(verify_month(engine, NOVEMBER).difference)


def test_a_manifest_that_names_columns_of_its_own(engine: Engine, add: Add) -> None:
    """Signed by the right key even so: it ends in words, not in SQL."""
    closed = close(engine)
    manifest = msgspec.json.decode(closed.text)
    manifest["rows"]["columns"] = ["event_id), (SELECT 1"]
    signature = KEY.sign(canonical(manifest)).hex()
    changed = canonical(manifest).decode().replace("'", "''").replace(":", "\\:")
    wipe(engine, f"UPDATE months SET manifest = '{changed}', signature = decode('{signature}', 'hex')")
    assert "has no column `event_id), (SELECT 1`" in str(verify_month(engine, OCTOBER).difference)


def test_a_manifest_of_a_later_version(engine: Engine) -> None:
    close(engine)
    manifest = find_closed(engine, OCTOBER).manifest | {"format": 2}
    signature = KEY.sign(canonical(manifest)).hex()
    changed = canonical(manifest).decode().replace(":", "\\:")
    wipe(engine, f"UPDATE months SET manifest = '{changed}', signature = decode('{signature}', 'hex')")
    assert "the format 2" in str(verify_month(engine, OCTOBER).difference)


def test_lists_closed_and_open_months(engine: Engine, add: Add) -> None:
    add()
    add(IN_NOVEMBER, cost_usd=None, price_status="unpriced")
    correct(engine, IN_NOVEMBER, "0.5")
    close(engine)
    found = list_months(engine)
    assert [one.month for one in found.closed] == ["2025-10"]
    (november,) = found.open
    assert (november.month, november.attempts, november.cost_usd, november.unpriced) == (NOVEMBER, 1, Decimal("0.5"), 1)


def test_a_month_that_is_not_closed(engine: Engine) -> None:
    for ask in (find_closed, verify_month):
        with pytest.raises(NotFound, match=r"2025-10 is not closed\nhint: "):
            ask(engine, OCTOBER)


def test_progress_is_told(engine: Engine, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PROGRESS_ROWS", 2)
    for _ in range(5):
        add()
    steps: list[tuple[str, int, int]] = []
    close(engine, progress=lambda *step: steps.append(step))
    assert steps == [("usage events", 2, 5), ("usage events", 4, 5)]


def test_openssl_checks_the_signature(engine: Engine, add: Add, tmp_path: Path) -> None:
    """With what `month export` writes; nothing of ours is needed to trust it."""
    add(team='tëam "1"')
    assert write_proof(close(engine), tmp_path) == ["manifest.json", "manifest.sig", "public_key.pem"]
    command = "openssl pkeyutl -verify -pubin -inkey public_key.pem -rawin -in manifest.json -sigfile manifest.sig"
    environment = {"PATH": os.environ["PATH"]}

    def check() -> int:
        return subprocess.run(command.split(), cwd=tmp_path, env=environment, capture_output=True).returncode

    assert check() == 0
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"2025-10", b"2025-11", 1))
    assert check() != 0


@pytest.mark.parametrize(
    "text", ["", "2025", "2025-1", "2025-13", "2025-00", "0000-01", "2025-10-01", "２０２５-10", " 2025-10"]
)
def test_what_is_no_month(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_month(text)
    assert (caught.value.code, caught.value.param) == ("invalid_month", "month")


@given(st.dates(date(1, 1, 1), date(9999, 12, 31)))
def test_months_have_names_and_bounds(day: date) -> None:
    month = day.replace(day=1)
    assert parse_month(month_name(month)) == month
    since, until = bounds(month)
    moment = datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC)
    assert since <= moment < until
    assert since.date() == month
    if (month.year, month.month) != (9999, 12):
        assert until.day == 1 and until - since < timedelta(days=32)


@pytest.mark.parametrize(
    ("signed", "found", "difference"),
    [
        ({"a": {"b": "1"}}, {"a": {"b": "1"}}, None),
        ({"a": {"b": "1"}}, {"a": {"b": "2"}}, '`a.b` is "1" in the manifest, "2" in the ledger'),
        ({"a": 1}, {"a": 1, "b": 2}, "`b` is only in the ledger"),
        ({"a": 1, "b": 2}, {"a": 1}, "`b` is only in the manifest"),
        ({"a": True}, {"a": 1}, "`a` is true in the manifest, 1 in the ledger"),
        ({"a": ["x"]}, {"a": []}, '`a` is ["x"] in the manifest, [] in the ledger'),
        ({"a": None}, {"a": {}}, "`a` is null in the manifest, {} in the ledger"),
    ],
)
def test_first_difference(signed: Any, found: Any, difference: str | None) -> None:
    assert first_difference(signed, found) == difference
