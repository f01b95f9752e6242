"""Price catalogues: which were proposed, by whom, and which one is in force. Bodies are JSON, compressed; what they say
is known to `gateway.accounting`.

The one that was approved last is in force; approving an older one again brings it back.
"""

from __future__ import annotations

import re
import zlib
from datetime import datetime
from decimal import Decimal

import msgspec
from sqlalchemy import Connection, Engine, RowMapping, func, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.errors import StoreError
from gateway.store.audit import Author, note
from gateway.store.tables import catalogues, usage_hours

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Of a body, not compressed."""
MAX_SHOWN = 10_000
_PREFIX = re.compile(r"[0-9a-f]{1,64}")
_columns = catalogues.c
_STATE = (_columns.version, _columns.source, _columns.state, _columns.proposed_at, _columns.author)
_DECISION = (_columns.decided_at, _columns.decided_by)


class CatalogueRow(msgspec.Struct, frozen=True):
    """`state`: `in force`, `approved` (it was, before another one), `proposed` or `rejected`."""

    version: str
    source: str
    state: str
    proposed_at: datetime
    author: str
    decided_at: datetime | None
    decided_by: str | None


class Refused(ValueError):
    """What may not be done with a catalogue, and why; a remedy on a `hint:` line."""


class UnpricedModel(msgspec.Struct, frozen=True):
    """Attempts that have usage and no price. `max_cost_usd`: what they may have cost at most, where that is known."""

    endpoint: str
    provider: str
    upstream_model: str
    service_tier: str | None
    attempts: int
    tokens: int
    max_cost_usd: Decimal
    first: datetime
    last: datetime


def propose(engine: Engine, version: str, source: str, body: bytes, author: Author) -> CatalogueRow:
    """Writes a catalogue down as proposed; one that is known already stays as it is. Raises StoreError."""
    with engine.begin() as connection:
        if _insert(connection, version, source, body, author):
            detail = {"source": source}
            note(
                connection,
                actor=author.actor,
                role=author.role,
                action="prices.propose",
                subject=version,
                detail=detail,
            )
    found = find_catalogue(engine, version)
    assert found is not None, "it was just written"
    return found


def register(engine: Engine, version: str, source: str, body: bytes, author: Author) -> CatalogueRow:
    """As `propose`, but approves it where no catalogue was ever approved. Raises StoreError."""
    with engine.begin() as connection:
        _lock(connection)
        is_first = connection.execute(select(func.count()).where(_columns.state == "approved")).scalar_one() == 0
        if _insert(connection, version, source, body, author):
            action = "prices.approve" if is_first else "prices.propose"
            if is_first:
                _decide(connection, version, "approved", author)
            detail = {"source": source}
            note(connection, actor=author.actor, role=author.role, action=action, subject=version, detail=detail)
    found = find_catalogue(engine, version)
    assert found is not None, "it was just written"
    return found


def approve(engine: Engine, version: str, author: Author, *, two_person: bool = False) -> CatalogueRow:
    """Puts a catalogue in force. `two_person`: not by its own author. Raises Refused, StoreError."""
    with engine.begin() as connection:
        row = _locked(connection, version)
        if two_person and row.state == "proposed" and row.author == author.actor:
            message = f"`{version}` was proposed by `{row.author}`, who may not approve it"
            raise Refused(f"{message}\nhint: somebody else must: `prices.two_person` asks for it")
        was = _in_force(connection)
        _decide(connection, version, "approved", author)
        detail = {"source": row.source, "was": was}
        note(connection, actor=author.actor, role=author.role, action="prices.approve", subject=version, detail=detail)
    found = find_catalogue(engine, version)
    assert found is not None, "rows are never deleted"
    return found


def reject(engine: Engine, version: str, author: Author) -> CatalogueRow:
    """Puts a proposal aside. Raises Refused for one that was approved, StoreError."""
    with engine.begin() as connection:
        row = _locked(connection, version)
        if row.state == "approved":
            raise Refused(f"`{version}` was approved\nhint: approve another one to take it out of force")
        _decide(connection, version, "rejected", author)
        note(connection, actor=author.actor, role=author.role, action="prices.reject", subject=version)
    found = find_catalogue(engine, version)
    assert found is not None, "rows are never deleted"
    return found


def list_catalogues(engine: Engine, limit: int = 100) -> list[CatalogueRow]:
    """The newest proposals first. Raises StoreError."""
    query = select(*_STATE, *_DECISION).order_by(_columns.proposed_at.desc(), _columns.version).limit(limit)
    with engine.connect() as connection:
        in_force = _in_force(connection)
        return [_read(row, in_force) for row in connection.execute(query).mappings()]


def find_catalogue(engine: Engine, prefix: str) -> CatalogueRow | None:
    """The catalogue whose version begins so. Raises Refused where several do, StoreError."""
    if _PREFIX.fullmatch(prefix) is None:
        return None
    query = select(*_STATE, *_DECISION).where(func.starts_with(_columns.version, prefix)).order_by(_columns.version)
    with engine.connect() as connection:
        found = connection.execute(query.limit(2)).mappings().all()
        if len(found) > 1 and found[0]["version"] != prefix:
            raise Refused(f"`{prefix}` begins several versions\nhint: write more of it")
        return _read(found[0], _in_force(connection)) if found else None


def has_source(engine: Engine, source: str) -> bool:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).where(_columns.source == source)).scalar_one() > 0


def in_force(engine: Engine) -> str | None:
    """The version that holds; None: none was ever approved. Raises StoreError."""
    with engine.connect() as connection:
        return _in_force(connection)


def read_body(engine: Engine, version: str) -> bytes | None:
    """The JSON of a catalogue; None: there is no such version. Raises StoreError."""
    with engine.connect() as connection:
        packed = connection.execute(select(_columns.body).where(_columns.version == version)).scalar()
    if packed is None:
        return None
    try:
        unpacker = zlib.decompressobj()
        body = unpacker.decompress(packed, MAX_BODY_BYTES)
    except zlib.error as error:
        raise StoreError(f"the body of price catalogue `{version}` is damaged: {error}") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise StoreError(f"the body of price catalogue `{version}` is damaged: it does not end")
    return body


def used_models(engine: Engine, since: datetime) -> list[tuple[str, str]]:
    """Provider's id and upstream model of all that the ledger has seen since then, in order. Raises StoreError."""
    columns = usage_hours.c
    query = select(columns.provider, columns.upstream_model).where(columns.hour >= since).distinct()
    with engine.connect() as connection:
        return sorted((row[0], row[1]) for row in connection.execute(query))


def unpriced_models(engine: Engine, since: datetime, limit: int = MAX_SHOWN) -> list[UnpricedModel]:
    """What has usage and no price yet, the most tokens first. Raises StoreError."""
    columns = usage_hours.c
    keys = (columns.endpoint, columns.provider, columns.upstream_model, columns.service_tier)
    attempts = func.sum(columns.unpriced - columns.repriced)
    tokens = func.sum(sum((columns[name] for name in _BUCKETS[1:]), columns[_BUCKETS[0]]))
    query = (
        select(
            *keys,
            attempts.label("attempts"),
            tokens.label("tokens"),
            func.sum(columns.max_cost_usd).label("max_cost_usd"),
            func.min(columns.hour).label("first"),
            func.max(columns.hour).label("last"),
        )
        .where(columns.hour >= since, columns.price_status == "unpriced", columns.usage_source != "none")
        .group_by(*keys)
        .having(attempts > 0)
        .order_by(tokens.desc(), *keys)
        .limit(limit)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [_unpriced(row) for row in rows]


_BUCKETS = (
    *("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "input_audio_tokens"),
    *("input_image_tokens", "output_tokens", "reasoning_tokens", "output_audio_tokens"),
)


def _unpriced(row: RowMapping) -> UnpricedModel:
    counts = {
        "attempts": int(row["attempts"]),
        "tokens": int(row["tokens"]),
        "service_tier": row["service_tier"] or None,
    }
    return UnpricedModel(**{**row, **counts})


def _lock(connection: Connection) -> None:
    """Several gateways may start at once, and two people may decide at once: each in turn."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("hatchway.catalogues"))))


def _insert(connection: Connection, version: str, source: str, body: bytes, author: Author) -> bool:
    """False: it was known."""
    row = {"version": version, "source": source, "state": "proposed", "author": author.actor}
    statement = insert(catalogues).values(**row, body=zlib.compress(body, 9)).on_conflict_do_nothing()
    return connection.execute(statement.returning(_columns.version)).first() is not None


def _locked(connection: Connection, version: str) -> CatalogueRow:
    """As it stands in the table, and stays until the transaction ends."""
    _lock(connection)
    row = connection.execute(select(*_STATE, *_DECISION).where(_columns.version == version)).mappings().first()
    if row is None:
        raise Refused(f"there is no price catalogue `{version[:64]}`\nhint: `hatchway prices list` shows them")
    return _read(row, None)


def _decide(connection: Connection, version: str, state: str, author: Author) -> None:
    decision = {"state": state, "decided_at": func.clock_timestamp(), "decided_by": author.actor}
    connection.execute(update(catalogues).where(_columns.version == version).values(**decision))


def _in_force(connection: Connection) -> str | None:
    query = select(_columns.version).where(_columns.state == "approved")
    return connection.execute(query.order_by(_columns.decided_at.desc(), _columns.version).limit(1)).scalar()


def _read(row: RowMapping, in_force: str | None) -> CatalogueRow:
    found = CatalogueRow(**row)
    return msgspec.structs.replace(found, state="in force") if found.version == in_force else found
