"""The audit log: one chain, whoever writes and whatever is tampered with."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError

from gateway.store.audit import GATEWAY, MAX_TEXT, Author, list_audit, note, verify
from gateway.store.database import Database
from gateway.store.keys import create_key, ensure_admin_key, list_keys, revoke_key, rotate_key
from gateway.store.tables import audit_log

DANA = Author("key-dana", "operator")


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """With an empty log."""
    empty(database.engine)
    yield database.engine
    empty(database.engine)


def empty(engine: Engine) -> None:
    with Unguarded(engine) as connection:
        connection.execute(text("TRUNCATE audit_log"))


class Unguarded:
    """A transaction of somebody who may switch triggers off, as the database's owner may."""

    def __init__(self, engine: Engine) -> None:
        self._transaction = engine.begin()

    def __enter__(self) -> Any:
        connection = self._transaction.__enter__()
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        return connection

    def __exit__(self, *details: Any) -> None:
        self._transaction.__exit__(*details)


def write(engine: Engine, count: int = 3, author: Author = DANA) -> None:
    for number in range(count):
        with engine.begin() as connection:
            note(connection, **author._asdict(), action="tests.do", subject=f"thing-{number}", detail={"n": number})


def test_rows_are_chained(engine: Engine) -> None:
    write(engine)
    with engine.connect() as connection:
        rows = connection.execute(select(audit_log).order_by(audit_log.c.seq)).all()
    assert [row.seq for row in rows] == [1, 2, 3]
    previous = bytes(32)
    for row in rows:  # as the module's docstring describes it, written down a second time
        micros = (row.at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        fields = [row.seq, micros, row.actor, row.role, row.action, row.subject, row.detail]
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert bytes(row.previous) == previous
        previous = hashlib.sha256(previous + canonical).digest()
        assert bytes(row.hash) == previous
    found = verify(engine)
    assert (found.rows, found.head, found.broken_at, found.reason) == (3, previous.hex(), None, None)
    assert abs(datetime.now(UTC) - rows[-1].at) < timedelta(minutes=5)


def test_an_empty_log_is_whole(engine: Engine) -> None:
    assert (verify(engine).rows, verify(engine).head) == (0, "00" * 32)


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"money": Decimal("0.10"), "share": 0.1, "at": datetime(2026, 1, 2, tzinfo=UTC), "none": None, "flag": True},
        {"b": 1, "a": {"z": [1, 2, {"y": "é ü 漢"}], "k": (1, "x")}, "set": {"b", "a"}},
        {"nul": "a\x00b", "surrogate": "\ud800", "long": "x" * 5000, "big": 10**40, "quote": '"\\\n'},
        {"deep": [[[[[[[[[["end"]]]]]]]]]]},
        {1: "a key that is no text"},
    ],
)
def test_every_detail_comes_back_as_it_was_hashed(engine: Engine, detail: dict[Any, Any]) -> None:
    with engine.begin() as connection:
        note(connection, actor="a\x00", role="admin", action="tests.do", subject="x" * 5000, detail=detail)
    found = verify(engine)
    assert (found.rows, found.reason) == (1, None)
    (row,) = list_audit(engine)
    assert (row.actor, len(row.subject)) == ("a\ufffd", MAX_TEXT)
    assert set(row.detail) == {str(key) for key in detail}


@pytest.mark.parametrize(
    ("statement", "seq", "reason"),
    [
        ("UPDATE audit_log SET actor = 'somebody' WHERE seq = 2", 2, "the row was changed"),
        ("UPDATE audit_log SET role = 'admin' WHERE seq = 2", 2, "the row was changed"),
        ("UPDATE audit_log SET detail = '{\"n\": 7}' WHERE seq = 2", 2, "the row was changed"),
        ("UPDATE audit_log SET subject = subject || '.' WHERE seq = 3", 3, "the row was changed"),
        ("UPDATE audit_log SET at = at + interval '1 microsecond' WHERE seq = 1", 1, "the row was changed"),
        ("DELETE FROM audit_log WHERE seq = 2", 3, "row 2 is missing"),
        ("DELETE FROM audit_log WHERE seq = 1", 2, "row 1 is missing"),
        ("UPDATE audit_log SET hash = sha256('x') WHERE seq = 2", 2, "the row was changed"),
        ("UPDATE audit_log SET previous = sha256('x') WHERE seq = 2", 2, "the row does not follow"),
    ],
)
def test_tampering_shows(engine: Engine, statement: str, seq: int, reason: str) -> None:
    write(engine)
    with Unguarded(engine) as connection:
        assert connection.execute(text(statement)).rowcount == 1
    found = verify(engine)
    assert found.broken_at == seq
    assert found.reason is not None and found.reason.startswith(reason)


def test_a_forged_chain_shows_by_a_head_noted_before(engine: Engine) -> None:
    write(engine)
    head = bytes.fromhex(verify(engine).head)
    write(engine, 2)
    assert verify(engine, head=head).broken_at is None
    with Unguarded(engine) as connection:
        connection.execute(text("DELETE FROM audit_log WHERE seq >= 3"))
    write(engine, 4)  # whoever may delete rows may chain others to what is left
    assert verify(engine).broken_at is None
    found = verify(engine, head=head)
    assert (found.rows, found.broken_at) == (6, 7)
    assert found.reason == "the given head is not in the log: rows are missing"


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"],
)
def test_the_database_refuses_changes(engine: Engine, statement: str) -> None:
    write(engine)
    with pytest.raises(DBAPIError, match="are never changed"), engine.begin() as connection:
        connection.execute(text(statement))
    assert verify(engine).rows == 3


def test_the_word_falls_with_the_deed(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        note(connection, **DANA._asdict(), action="tests.do", subject="x")
        raise ZeroDivisionError
    assert verify(engine).rows == 0
    write(engine)
    assert verify(engine).broken_at is None


def test_many_writers_make_one_chain(engine: Engine) -> None:
    threads = [threading.Thread(target=write, args=(engine, 10, Author(f"key-{n}", "admin"))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = verify(engine)
    assert (found.rows, found.broken_at) == (60, None)
    assert [row.seq for row in list_audit(engine, limit=1000)] == list(range(60, 0, -1))


def test_a_long_log_is_read_in_parts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.store.audit._BATCH", 2)
    write(engine, 5)
    assert (verify(engine).rows, verify(engine).broken_at) == (5, None)


def test_lists(engine: Engine) -> None:
    write(engine, 2)
    with engine.begin() as connection:
        note(connection, **GATEWAY._asdict(), action="testsuite.end", subject="x")
    assert [row.seq for row in list_audit(engine)] == [3, 2, 1]
    assert [row.seq for row in list_audit(engine, action="tests")] == [2, 1]
    assert [row.seq for row in list_audit(engine, action="tests.do", limit=1)] == [2]
    assert [row.seq for row in list_audit(engine, actor="gateway")] == [3]
    assert [row.seq for row in list_audit(engine, before=2)] == [1]
    assert list_audit(engine, since=datetime.now(UTC) + timedelta(minutes=5)) == []
    assert list_audit(engine, action="%") == []
    assert (list_audit(engine)[1].detail, list_audit(engine)[1].role) == ({"n": 1}, "operator")


def test_what_is_done_to_keys_is_noted(engine: Engine) -> None:
    made = create_key(engine, team="payments", name="web", models=["gpt-*"], author=DANA)
    rotated = rotate_key(engine, made.key_id, overlap=timedelta(hours=1), author=DANA)
    assert rotated is not None
    assert revoke_key(engine, made.key_id, author=DANA)
    assert not revoke_key(engine, made.key_id, author=DANA)  # nothing was done
    with pytest.raises(ValueError):
        create_key(engine, team="", author=DANA)
    rows = list_audit(engine)
    assert [(row.action, row.subject, row.actor) for row in rows] == [
        (action, made.key_id, "key-dana") for action in ("keys.revoke", "keys.rotate", "keys.create")
    ]
    assert rows[2].detail == {"team": "payments", "name": "web", "models": ["gpt-*"], "role": "key"}
    assert rows[1].detail == {"overlap_seconds": 3600}
    kept = json.dumps([row.detail for row in rows])
    for secret in (made.secret, rotated.secret):
        assert secret.reveal() not in kept and hashlib.sha256(secret.reveal().encode()).hexdigest() not in kept


def test_the_bootstrap_key_is_noted_once(engine: Engine) -> None:
    ensure_admin_key(engine, None)
    before = len(list_audit(engine, action="keys"))
    ensure_admin_key(engine, None)
    assert len(list_audit(engine, action="keys")) == before
    assert any(row.role == "admin" for row in list_keys(engine))
