"""The directory, secrets and prompts as they stand in PostgreSQL, with the audit log's word of each change."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text

from gateway.config.document import parse_document
from gateway.directory import Entry
from gateway.errors import Conflict
from gateway.secrets import Cipher, SecretError, new_key
from gateway.store import secrets as stored_secrets
from gateway.store.audit import Author, verify
from gateway.store.database import Database
from gateway.store.directory import describe_directory, list_entries, remove_entry, write_entry
from gateway.store.prompts import PURGE_BATCH, list_prompts, purge_prompts, read_prompt, remove_prompts
from gateway.store.secrets import (
    TooManySecrets,
    list_secrets,
    read_sealed,
    rekey_secrets,
    remove_secret,
    store_secret,
)
from gateway.store.tables import KEYS_CHANNEL, audit_log, directory, prompts, secrets

DANA = Author("key-dana", "admin")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
VALUE = "sk-live-51c0ffee00112233"


@pytest.fixture(autouse=True)
def empty_tables(database: Database) -> Iterator[None]:
    yield
    with database.engine.begin() as connection:
        for table in (directory, secrets, prompts):
            connection.execute(delete(table))


def actions(database: Database, prefix: str) -> list[tuple[str, str, str, Any]]:
    query = select(audit_log.c.actor, audit_log.c.action, audit_log.c.subject, audit_log.c.detail)
    with database.engine.connect() as connection:
        rows = connection.execute(query.order_by(audit_log.c.seq))
        return [tuple(row) for row in rows if row.action.startswith(prefix)]


def anything(_: Any) -> None: ...


def test_life_of_an_entry(database: Database) -> None:
    engine = database.engine
    entry = Entry("team", "labs", {"budget": {"usd": Decimal("9.50")}, "priority": 7, "organisation": "acme"})
    write_entry(engine, entry, DANA, anything)
    (row,) = list_entries(engine)
    assert (row.entry, row.author) == (entry, "key-dana")
    assert isinstance(row.entry.body["budget"]["usd"], Decimal) and isinstance(row.entry.body["priority"], int)
    changed = Entry("team", "labs", {"priority": 8})
    write_entry(engine, changed, DANA, anything)
    assert [row.entry for row in list_entries(engine)] == [changed]
    remove_entry(engine, "team", "labs", DANA, anything)
    remove_entry(engine, "team", "labs", DANA, anything)  # is nothing
    assert list_entries(engine) == []
    found = actions(database, "directory.")[-3:]
    assert [(actor, action, subject) for actor, action, subject, _ in found] == [
        ("key-dana", "directory.set", "team:labs"),
        ("key-dana", "directory.set", "team:labs"),
        ("key-dana", "directory.remove", "team:labs"),
    ]
    assert found[0][3]["before"] is None and found[1][3]["after"] == {"priority": 8}
    assert found[2][3] == {"before": {"priority": 8}}
    assert verify(engine).broken_at is None


def test_a_refused_write_leaves_nothing(database: Database) -> None:
    first = Entry("team", "labs", {})
    write_entry(database.engine, first, DANA, anything)
    before = actions(database, "directory.")

    def refuse(entries: Any) -> None:
        assert list(entries) == [first]
        raise Conflict("no", code="owned_by_yaml")

    with pytest.raises(Conflict):
        write_entry(database.engine, Entry("team", "other", {}), DANA, refuse)
    with pytest.raises(Conflict):
        remove_entry(database.engine, "team", "labs", DANA, refuse)
    assert [row.entry for row in list_entries(database.engine)] == [first]
    assert actions(database, "directory.") == before


def test_the_whole_directory_with_its_states(database: Database) -> None:
    document = parse_document("version: 1\nteams: {search: {projects: {p: {}}}}\n", "c.yaml")
    for entry in (Entry("team", "search", {"priority": 1}), Entry("project", "none/x", {}), Entry("team", "labs", {})):
        write_entry(database.engine, entry, DANA, anything)
    found = describe_directory(database.engine, document, {})
    assert [(one["source"], one["kind"], one["id"], one["state"], one.get("reason")) for one in found] == [
        ("yaml", "team", "search", "in force", None),
        ("yaml", "project", "search/p", "in force", None),
        ("api", "project", "none/x", "left out", "there is no team `none`"),
        ("api", "team", "labs", "in force", None),
        ("api", "team", "search", "shadowed", "the YAML defines it"),
    ]


def test_control_planes_are_told(database: Database) -> None:
    cipher = Cipher([new_key()])
    with database.connect() as connection:
        connection.autocommit = True
        connection.execute(f"LISTEN {KEYS_CHANNEL}")
        write_entry(database.engine, Entry("team", "labs", {}), DANA, anything)
        store_secret(database.engine, cipher.seal("openai", VALUE), DANA)
        remove_secret(database.engine, "openai", DANA)
        told = [notice.payload for notice in connection.notifies(timeout=5, stop_after=3)]
    assert told == ["directory", "secrets", "secrets"]


def everything_in(database: Database) -> str:
    """All that a reader of the whole database sees."""
    with database.engine.connect() as connection:
        names = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
        rows = [connection.execute(text(f'SELECT t::text FROM "{name}" t')).scalars().all() for name in names]
    return "\n".join(row for found in rows for row in found)


def test_life_of_a_secret(database: Database) -> None:
    engine, cipher = database.engine, Cipher([new_key()])
    store_secret(engine, cipher.seal("openai", VALUE), DANA)
    store_secret(engine, cipher.seal("openai", f"{VALUE}-2"), DANA)
    (row,) = list_secrets(engine)
    assert (row.name, row.key_hint, row.author) == ("openai", cipher.hint, "key-dana")
    (sealed,) = read_sealed(engine)
    assert cipher.open(sealed) == f"{VALUE}-2"
    everything = everything_in(database)
    assert "openai" in everything and VALUE not in everything and VALUE.encode().hex() not in everything
    assert remove_secret(engine, "openai", DANA) and not remove_secret(engine, "openai", DANA)
    assert list_secrets(engine) == []
    assert [(action, subject) for _, action, subject, _ in actions(database, "secrets.")[-3:]] == [
        ("secrets.set", "secret:openai"),
        ("secrets.set", "secret:openai"),
        ("secrets.remove", "secret:openai"),
    ]


def test_a_new_key_for_all_or_none(database: Database) -> None:
    engine, old, new = database.engine, new_key(), new_key()
    for name in ("a", "b"):
        store_secret(engine, Cipher([old]).seal(name, f"{VALUE}-{name}"), DANA)
    lost = Cipher([new_key()])
    store_secret(engine, lost.seal("c", VALUE), DANA)
    before = read_sealed(engine)
    with pytest.raises(SecretError):
        rekey_secrets(engine, Cipher([new, old]), DANA)
    assert read_sealed(engine) == before
    remove_secret(engine, "c", DANA)
    assert rekey_secrets(engine, Cipher([new, old]), DANA) == 2
    assert [Cipher([new]).open(sealed) for sealed in read_sealed(engine)] == [f"{VALUE}-a", f"{VALUE}-b"]
    assert rekey_secrets(engine, Cipher([new, old]), DANA) == 0
    assert actions(database, "secrets.rekey")[-1][3] == {"secrets": ["a", "b"]}


def test_secrets_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_secrets, "MAX_SECRETS", 2)
    cipher = Cipher([new_key()])
    for name in ("a", "b", "a"):
        store_secret(database.engine, cipher.seal(name, VALUE), DANA)
    with pytest.raises(TooManySecrets):
        store_secret(database.engine, cipher.seal("c", VALUE), DANA)


def prompt(request_id: str, **changes: Any) -> dict[str, Any]:
    row = {
        "request_id": request_id,
        "at": NOW,
        "expires_at": datetime.now(UTC) + timedelta(days=1),
        "team": "shop",
        "policy": "cheap",
        "body": {"request": {"seed": 0.5}},
    }
    return {**row, **changes}


def test_what_is_kept_is_listed_and_read(database: Database) -> None:
    expired = datetime.now(UTC) - timedelta(seconds=1)
    rows = [
        prompt("r1"),
        prompt("r2", at=NOW + timedelta(seconds=1), team="labs"),
        prompt("r3", at=NOW + timedelta(seconds=2), policy="careful"),
        prompt("gone", expires_at=expired),
    ]
    with database.engine.begin() as connection:
        connection.execute(insert(prompts), rows)
    engine = database.engine
    assert [head.request_id for head in list_prompts(engine)] == ["r3", "r2", "r1"]
    assert [head.request_id for head in list_prompts(engine, team="shop", policy="cheap")] == ["r1"]
    assert len(list_prompts(engine, limit=2)) == 2
    found = read_prompt(engine, "r1", DANA)
    assert found is not None and found.body == {"request": {"seed": Decimal("0.5")}}
    for missing in ("gone", "none", "r1\0"):
        assert read_prompt(engine, missing, DANA) is None
    assert actions(database, "prompts.read")[-1:] == [
        ("key-dana", "prompts.read", "request:r1", {"team": "shop", "policy": "cheap"})
    ]


def test_what_has_expired_goes(database: Database) -> None:
    rows = [prompt(f"r{number}", expires_at=NOW) for number in range(PURGE_BATCH + 5)]
    with database.engine.begin() as connection:
        connection.execute(insert(prompts), [*rows, prompt("stays", expires_at=NOW + timedelta(seconds=1))])
    assert purge_prompts(database.engine, NOW) == PURGE_BATCH + 5
    assert purge_prompts(database.engine, NOW) == 0
    with database.engine.connect() as connection:
        assert connection.execute(select(prompts.c.request_id)).scalars().all() == ["stays"]


def test_what_is_named_goes(database: Database) -> None:
    engine = database.engine
    rows = [prompt("r1"), prompt("r2", team="labs"), prompt("r3", at=NOW - timedelta(days=9)), prompt("r4")]
    with engine.begin() as connection:
        connection.execute(insert(prompts), rows)
    assert remove_prompts(engine, DANA, request_id="r1") == 1
    assert remove_prompts(engine, DANA, team="shop", before=NOW) == 1
    assert remove_prompts(engine, DANA, team="no\0ne") == 0
    assert [head.request_id for head in list_prompts(engine)] == ["r2", "r4"]
    assert remove_prompts(engine, DANA, team="labs") == 1
    assert actions(database, "prompts.remove")[-1][3] == {"team": "labs", "removed": 1}
    with pytest.raises(ValueError, match="nothing says which"):
        remove_prompts(engine, DANA)
    with pytest.raises(ValueError, match="has no zone"):
        remove_prompts(engine, DANA, before=datetime(2026, 1, 1))
