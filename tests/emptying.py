"""A database without rows, also without those that nobody may delete."""

from __future__ import annotations

from sqlalchemy import Engine, text

from gateway.store.tables import metadata


def empty(engine: Engine) -> None:
    """Past all triggers, as somebody who owns the database could. Quicker than TRUNCATE for the rows of a test."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in metadata.tables.values():
            connection.execute(table.delete())
