from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from gateway.errors import StoreError
from gateway.store.database import Database, database_url
from gateway.store.migrate import migrate, newest_revision
from gateway.store.tables import KEYS_CHANNEL, metadata, usage_events
from gateway.types import BUCKETS, UsageEvent

MIGRATIONS = Path(__file__).parents[2] / "migrations"

NEWEST = "0004"
TABLES = sorted(metadata.tables)
NAMES = ", ".join(f"'{name}'" for name in TABLES)

CATALOGUE = f"""
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid::regclass::text IN ({NAMES})
UNION ALL
SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE tablename IN ({NAMES})
UNION ALL
SELECT 'column', table_name, column_name,
       concat_ws(' ', ordinal_position, data_type, udt_name, is_nullable, column_default, numeric_scale)
FROM information_schema.columns WHERE table_name IN ({NAMES})
ORDER BY 1, 2, 3
"""


@contextmanager
def new_database(server: Database, name: str) -> Iterator[Database]:
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute(f"CREATE DATABASE {name}")
    with Database.open(database_url(server.url, name), Path("/nonexistent")) as database:
        yield database


def tables(database: Database) -> list[str]:
    with database.engine.connect() as connection:
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
        return list(connection.execute(text(query)).scalars())


def test_the_migrated_database_is_the_schema(server: Database, database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        migrated = [tuple(row) for row in connection.execute(text(CATALOGUE))]
    # Alembic does not compare checks: a second database, made from the metadata, shows them.
    with new_database(server, "direct") as direct, direct.engine.begin() as connection:
        metadata.create_all(connection)
        assert migrated == [tuple(row) for row in connection.execute(text(CATALOGUE))]
    kinds = [kind for kind, *_ in migrated]
    assert sorted(metadata.tables) == TABLES
    assert kinds.count("column") == sum(len(table.c) for table in metadata.sorted_tables)
    assert "constraint" in kinds and "index" in kinds


def test_the_columns_are_the_fields_of_an_event() -> None:
    fields = list(UsageEvent.__struct_fields__)
    at = fields.index("usage")
    expected = [*fields[:at], *BUCKETS, *fields[at + 1 :]]
    assert sorted(usage_events.c.keys()) == sorted([*expected, "booked_at"])
    optional = {name for name, kind in UsageEvent.__annotations__.items() if "None" in str(kind)}
    assert {column.name for column in usage_events.c if column.nullable} == {*optional, "booked_at"}


def test_files_are_named_by_their_revisions() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS))
    assert scripts.get_current_head() == NEWEST == newest_revision(MIGRATIONS)
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"{script.revision}_")


def test_again_changes_nothing(database: Database) -> None:
    before = tables(database)
    assert migrate(database, MIGRATIONS) == NEWEST
    assert tables(database) == before == ["alembic_version", *TABLES]


def test_several_gateways_start_at_once(server: Database) -> None:
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(migrate(database, MIGRATIONS))
        except Exception as error:  # noqa: BLE001  # shown by the assertion, which a thread cannot make
            outcomes.append(error)

    with new_database(server, "crowded") as database:
        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == [NEWEST] * 4


def test_a_newer_database_is_refused(server: Database) -> None:
    with new_database(server, "newer") as database:
        migrate(database, MIGRATIONS)
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreError, match=r"revision `9999`.*\nhint: install that version again"):
            migrate(database, MIGRATIONS)


def test_tables_of_others_are_left_alone(server: Database) -> None:
    with new_database(server, "foreign_tables") as database:
        with database.engine.begin() as connection:
            connection.execute(text("CREATE TABLE api_keys (mine integer)"))
        with pytest.raises(StoreError, match=r"\nhint: .*not ours"):
            migrate(database, MIGRATIONS)
        assert tables(database) == ["api_keys"]


def test_a_user_who_may_not_create_tables(server: Database) -> None:
    with new_database(server, "restricted") as database:
        with database.engine.begin() as connection:
            connection.execute(text("CREATE ROLE reader LOGIN"))
        url = re.sub("user=\\S+", "user=reader", database_url(server.url, "restricted").reveal())
        with Database.open(type(server.url)(url), Path("/nonexistent")) as reader:
            with pytest.raises(StoreError, match=r"\nhint: let the user create tables"):
                migrate(reader, MIGRATIONS)


def test_the_folder_may_lie_anywhere(server: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MIGRATIONS, tmp_path / "50% off: %(here)s")
    monkeypatch.chdir(tmp_path)
    with new_database(server, "elsewhere") as database:
        assert migrate(database, Path("50% off: %(here)s")) == NEWEST
        assert "usage_events" in tables(database)


def test_an_empty_folder(database: Database, tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    with pytest.raises(StoreError, match="holds no migrations"):
        migrate(database, tmp_path)


def test_every_change_of_a_key_is_notified(database: Database) -> None:
    changes = (
        "INSERT INTO api_keys (key_id, secret_hash, prefix, role, team) VALUES ('k', sha256('x'), 'hw-', 'key', 't')",
        "UPDATE api_keys SET revoked_at = now() WHERE key_id = 'k'",
        "UPDATE api_keys SET revoked_at = now() WHERE key_id = 'nobody'",
        "DELETE FROM api_keys WHERE key_id = 'k'",
    )
    with database.connect() as listener:
        listener.autocommit = True
        listener.execute(f"LISTEN {KEYS_CHANNEL}")
        for change in changes:
            with database.engine.begin() as connection:
                connection.execute(text(change))
        heard = [notice.payload for notice in listener.notifies(timeout=10, stop_after=3)]
        heard += [notice.payload for notice in listener.notifies(timeout=0)]
    assert heard == ["k"] * 3
