"""Brings a database to the schema of this version. Alembic does, and is only loaded when there is something to do: that
takes longer than all else that a start does with the database.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.errors import StoreError
from gateway.store.database import Database

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

LOCK = 0x4A7C_48A7  # any number that nothing else in the database locks
LOCK_SECONDS = 60


def migrate(database: Database, folder: Path) -> str:
    """Runs the migrations of `folder` up to the newest, in one transaction; returns its revision.

    An advisory lock lets several gateways start at once: one migrates, the others wait and find it done.
    Raises `StoreError` when the database is newer than this version, or refuses.
    """
    newest = newest_revision(folder)
    try:
        if current_revision(database) == newest:
            return newest
        upgrade(database, folder, newest)
    except DBAPIError as error:
        raise refusal(error) from error
    return newest


def newest_revision(folder: Path) -> str:
    """By the files' names, which begin with their revisions. Raises `StoreError` where there are none."""
    names = sorted(path.name for path in (folder / "versions").glob("[0-9]*.py"))
    if not names:
        raise StoreError(f"`{folder}` holds no migrations\nhint: reinstall the package")
    return names[-1].partition("_")[0]


def current_revision(database: Database) -> str | None:
    """None: nobody has migrated it, or not in one line. Raises `DBAPIError`."""
    with database.engine.connect() as connection:
        if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
            return None
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        return str(found[0]) if len(found) == 1 else None


def upgrade(database: Database, folder: Path, newest: str) -> None:
    """Raises `DBAPIError`, and `StoreError` when the database is newer."""
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    # Alembic reports each step at INFO: noise for a gateway that starts, whatever level its operator has chosen.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    # `%` would be an interpolation in Alembic's configuration.
    config.set_main_option("script_location", str(folder.resolve()).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with database.engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        current = MigrationContext.configure(connection).get_current_heads()
        refuse_unknown(scripts, current)
        if current != (newest,):
            config.attributes["connection"] = connection
            command.upgrade(config, newest)


def refuse_unknown(scripts: ScriptDirectory, current: tuple[str, ...]) -> None:
    from alembic.util import CommandError

    for revision in current:
        try:
            scripts.get_revision(revision)
        except CommandError:
            raise StoreError(
                f"the database is at revision `{revision}`, which this version does not know: a newer one wrote it\n"
                "hint: install that version again, or use another database"
            ) from None


def refusal(error: DBAPIError) -> StoreError:
    hint = "see the message; nothing was changed"
    if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
        hint = "let the user create tables: `GRANT CREATE ON SCHEMA public TO ...`"
    elif isinstance(error.orig, psycopg.errors.DuplicateTable):
        hint = "the database holds tables of the same name that are not ours: use an empty one"
    return StoreError(f"the database refuses the migration: {str(error.orig).strip()}\nhint: {hint}")
