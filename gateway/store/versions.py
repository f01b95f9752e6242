"""Versions of the configuration: every one that came into force, who put it there, and what it said.

A version has one row, whatever the number of times it was in force: `at`, `author` and `source` are of the latest time,
`note` has all of them, one JSON object a line (`Entry`), oldest first. Documents hold no secrets: `gateway.history`
masks them, and `is_complete` says whether that left everything.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import Engine, Text, cast, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB, insert

from gateway.store.tables import configurations

Source = Literal["file", "rollback"]

MAX_ENTRIES = 100
"""Times in force that a row keeps: the first one and the newest."""
MAX_NOTE = 500
PREFIX = re.compile(r"[0-9a-f]{1,64}")

columns = configurations.c


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One time that a version came into force."""

    at: datetime
    author: str
    source: Source
    note: str | None = None


class VersionRow(msgspec.Struct, frozen=True):
    """A version as operators see it. `entries`: the times it came into force, oldest first; never none."""

    version: str
    is_complete: bool
    entries: tuple[Entry, ...]

    @property
    def latest(self) -> Entry:
        return self.entries[-1]


class StoredDocument(msgspec.Struct, frozen=True):
    """`json`: the document with its secrets masked, as PostgreSQL writes it."""

    version: str
    is_complete: bool
    json: bytes


def record_version(engine: Engine, version: str, document: bytes, entry: Entry, *, is_complete: bool) -> bool:
    """Writes down that a version came into force. `document`: its JSON without secrets.

    False: it is the newest one already (a gateway that starts again, or another one beside it), and nothing was
    written; a rollback is always written. Raises `StoreError`.
    """
    fields = {"at": entry.at, "author": entry.author, "source": entry.source}
    # As text: JSON made of Python's numbers would not be to the letter.
    content = {"document": cast(literal(document.decode(), Text), JSONB), "is_complete": is_complete}
    with engine.begin() as connection:
        # Several gateways may start at once: one row each, in turn.
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("hatchway.configurations"))))
        newest = connection.execute(select(columns.version).order_by(columns.at.desc()).limit(1)).scalar()
        if newest == version and entry.source != "rollback":
            return False
        known = connection.execute(select(columns.note).where(columns.version == version)).first()
        entries = [] if known is None else _read_entries(known.note)
        note = _write_entries([*entries, entry])
        statement = insert(configurations).values(version=version, note=note, **fields, **content)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["version"], set_={"note": note, **fields, **content})
        )
    return True


def list_versions(engine: Engine, limit: int = 100) -> list[VersionRow]:
    """The newest `limit` versions, that which came into force last first. Raises `StoreError`."""
    query = select(columns.version, columns.is_complete, columns.note).order_by(columns.at.desc(), columns.version)
    with engine.connect() as connection:
        return [_version(*row) for row in connection.execute(query.limit(limit))]


def find_version(engine: Engine, prefix: str) -> StoredDocument | None:
    """The version that `prefix` begins. None: there is none. Raises `ValueError` when it fits several, `StoreError`."""
    if PREFIX.fullmatch(prefix) is None:
        return None
    query = (
        select(columns.version, columns.is_complete, cast(columns.document, Text).label("document"))
        .where(func.starts_with(columns.version, prefix))
        .order_by(columns.version)
    )
    with engine.connect() as connection:
        found = connection.execute(query.limit(2)).all()
    if not found:
        return None
    if len(found) > 1 and found[0].version != prefix:
        raise ValueError(f"`{prefix}` begins several versions\nhint: write more of it; `hatchway policy history` shows")
    row = found[0]
    return StoredDocument(row.version, row.is_complete, row.document.encode())


def _version(version: str, is_complete: bool, note: str | None) -> VersionRow:
    return VersionRow(version, is_complete, tuple(_read_entries(note)))


_decode_entry = msgspec.json.Decoder(Entry).decode


def _read_entries(note: str | None) -> list[Entry]:
    return [_decode_entry(line) for line in (note or "").split("\n") if line]


def _write_entries(entries: list[Entry]) -> str:
    kept = entries if len(entries) <= MAX_ENTRIES else [entries[0], *entries[1 - MAX_ENTRIES :]]
    return "\n".join(msgspec.json.encode(entry).decode() for entry in kept)
