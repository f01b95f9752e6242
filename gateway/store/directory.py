"""The directory: organisations, cost centres, teams and projects that were written by API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Text, cast, delete, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB, insert

from gateway.config.document import Document
from gateway.directory import Entry, take_in, yaml_entries
from gateway.store.audit import Author, note
from gateway.store.tables import KEYS_CHANNEL, directory

MAX_BODY = 64 * 1024
"""Bytes of one entry."""

_columns = directory.c
_encode = msgspec.json.Encoder(decimal_format="number", order="sorted").encode

Check = Callable[[Sequence[Entry]], None]
"""Raises where something may not be done beside the entries there are."""


class DirectoryRow(msgspec.Struct, frozen=True):
    entry: Entry
    updated_at: datetime
    author: str


def list_entries(engine: Engine) -> list[DirectoryRow]:
    """All entries, by kind and id. Raises StoreError."""
    with engine.connect() as connection:
        return _rows(connection)


def describe_directory(engine: Engine, document: Document, variables: Mapping[str, str]) -> list[dict[str, Any]]:
    """JSON-ready. Entries of the YAML are in force; of the API's each has its state. Raises StoreError."""
    rows = list_entries(engine)
    states = take_in(document, [row.entry for row in rows], variables).states
    found: list[dict[str, Any]] = [
        {"kind": entry.kind, "id": entry.id, "body": entry.body, "source": "yaml", "state": "in force"}
        for entry in yaml_entries(document)
    ]
    for row in rows:
        state = states[row.entry.key]
        found.append(
            {
                "kind": row.entry.kind,
                "id": row.entry.id,
                "body": row.entry.body,
                "source": "api",
                "state": state.name,
                "reason": state.reason,
                "updated_at": row.updated_at,
                "author": row.author,
            }
        )
    return found


def write_entry(engine: Engine, entry: Entry, author: Author, check: Check) -> None:
    """Writes an entry, or replaces the one of its kind and id. Raises what `check` raises, StoreError."""
    body = cast(literal(_encode(entry.body).decode(), Text), JSONB)  # as text: numbers stay as they were written
    values = {"body": body, "author": author.actor, "updated_at": func.now()}
    statement = insert(directory).values(kind=entry.kind, id=entry.id, **values)
    with engine.begin() as connection:
        rows = _locked(connection)
        check([row.entry for row in rows])
        before = next((row.entry.body for row in rows if row.entry.key == entry.key), None)
        connection.execute(statement.on_conflict_do_update(index_elements=["kind", "id"], set_=values))
        _tell(connection, author, "directory.set", entry.kind, entry.id, {"before": before, "after": entry.body})


def remove_entry(engine: Engine, kind: str, id: str, author: Author, check: Check) -> None:
    """Raises what `check` raises, StoreError. Removing what is not there is nothing."""
    with engine.begin() as connection:
        rows = _locked(connection)
        check([row.entry for row in rows])
        before = next((row.entry.body for row in rows if row.entry.key == (kind, id)), None)
        if before is not None:
            connection.execute(delete(directory).where(_columns.kind == kind, _columns.id == id))
            _tell(connection, author, "directory.remove", kind, id, {"before": before})


def _rows(connection: Connection) -> list[DirectoryRow]:
    query = select(directory).order_by(_columns.kind, _columns.id)
    return [
        DirectoryRow(Entry(row["kind"], row["id"], row["body"]), row["updated_at"], row["author"])
        for row in connection.execute(query).mappings()
    ]


def _locked(connection: Connection) -> list[DirectoryRow]:
    """The entries; nobody else writes one before this transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("hatchway.directory"))))
    return _rows(connection)


def _tell(connection: Connection, author: Author, action: str, kind: str, id: str, detail: Mapping[str, Any]) -> None:
    connection.execute(select(func.pg_notify(KEYS_CHANNEL, "directory")))  # control planes publish again
    note(connection, actor=author.actor, role=author.role, action=action, subject=f"{kind}:{id}", detail=detail)
