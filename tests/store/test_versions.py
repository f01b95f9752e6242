"""Versions of the configuration in a real PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from gateway.store.database import Database
from gateway.store.tables import configurations
from gateway.store.versions import MAX_ENTRIES, Entry, find_version, list_versions, record_version

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        connection.execute(configurations.delete())
    return database.engine


def entry(minutes: int, source: str = "file", note: str | None = None) -> Entry:
    return Entry(START + timedelta(minutes=minutes), f"author {minutes}", source, note)  # type: ignore[arg-type]


def put(engine: Engine, version: str, minutes: int, source: str = "file", note: str | None = None) -> bool:
    document = f'{{"version":1,"n":{minutes}}}'.encode()
    return record_version(engine, version, document, entry(minutes, source, note), is_complete=True)


def test_history_has_every_time_a_version_was_in_force(engine: Engine) -> None:
    assert put(engine, "aa11", 0)
    assert put(engine, "bb22", 1)
    assert put(engine, "aa11", 2, "rollback", "too slow\u2028now")
    rows = list_versions(engine)
    assert [row.version for row in rows] == ["aa11", "bb22"]
    assert rows[0].entries == (entry(0), entry(2, "rollback", "too slow\u2028now"))
    assert rows[0].latest.author == "author 2"
    assert rows[1].entries == (entry(1),)
    assert [row.version for row in list_versions(engine, 1)] == ["aa11"]


def test_the_newest_version_is_not_written_again_unless_it_was_rolled_back_to(engine: Engine) -> None:
    assert put(engine, "aa11", 0)
    assert not put(engine, "aa11", 1)  # a gateway that starts again
    assert put(engine, "aa11", 2, "rollback")
    assert len(list_versions(engine)[0].entries) == 2


def test_entries_of_a_version_are_bounded(engine: Engine) -> None:
    for minutes in range(MAX_ENTRIES + 5):
        put(engine, "aa11", minutes, "rollback")
    entries = list_versions(engine)[0].entries
    assert len(entries) == MAX_ENTRIES
    assert (entries[0], entries[-1]) == (entry(0, "rollback"), entry(MAX_ENTRIES + 4, "rollback"))


def test_a_version_is_found_by_its_beginning(engine: Engine) -> None:
    for minutes, version in enumerate(("aa11", "aa22", "aa223", "bb33")):
        put(engine, version, minutes)
    found = find_version(engine, "bb")
    assert found is not None
    assert (found.version, found.json, found.is_complete) == ("bb33", b'{"n": 3, "version": 1}', True)
    assert find_version(engine, "cc") is None
    exact = find_version(engine, "aa22")
    assert exact is not None and exact.version == "aa22"
    with pytest.raises(ValueError, match="begins several"):
        find_version(engine, "aa")
    for odd in ("", "%", "AA", "a\0", "a" * 65):
        assert find_version(engine, odd) is None
