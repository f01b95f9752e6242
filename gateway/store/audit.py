"""The audit log: what operators did. Append-only, each row chained to the one before it by a hash.

The hash is SHA-256 over the hash before it (32 bytes; zeros before the first row) and the row as JSON: the list
`[seq, at, actor, role, action, subject, detail]` in UTF-8 without spaces, keys sorted, `at` in microseconds since 1970.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, Row, func, insert, select

from gateway.store.tables import audit_log

_LOCK = 7305802
"""Key of the advisory lock under which a row gets its number: a chain has one end."""
_START = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_TEXT = 2000
"""Characters of a text in the log; the rest is cut off."""
_MAX_DEPTH = 8
_BATCH = 2000


class Author(NamedTuple):
    """Who did something, as the log names it: a key's id, `person@issuer`, `cli:USER`, or `gateway` itself."""

    actor: str
    role: str


GATEWAY = Author("gateway", "admin")
"""What the gateway does by itself."""


class AuditRow(msgspec.Struct, frozen=True):
    seq: int
    at: datetime
    actor: str
    role: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str  # hex


class Verification(msgspec.Struct, frozen=True):
    """`head`: the last sound hash, hex. `broken_at`: `seq` of the first row that does not fit the chain, and `reason`;
    None: all fit."""

    rows: int
    head: str
    broken_at: int | None = None
    reason: str | None = None


def note(
    connection: Connection, *, actor: str, role: str, action: str, subject: str, detail: Mapping[str, Any] | None = None
) -> None:
    """Adds a row within the caller's transaction, so that what is done and the word of it stand or fall together.

    `action`: noun and verb, as in `keys.create`. `detail`: what changed; never a secret. Numbers that are no integers
    are written as texts, and texts are cut off at `MAX_TEXT`. Until the transaction ends no other one can add a row:
    call it last. Raises StoreError.
    """
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    # A statement of its own: in the one that waited for the lock the row before it might not be seen.
    columns = audit_log.c
    last = connection.execute(select(columns.seq, columns.hash).order_by(columns.seq.desc()).limit(1)).first()
    seq, previous = (1, _START) if last is None else (last.seq + 1, bytes(last.hash))
    row = {
        "seq": seq,
        "at": connection.execute(select(func.clock_timestamp())).scalar_one().astimezone(UTC),
        **{"actor": _text(actor), "role": _text(role), "action": _text(action), "subject": _text(subject)},
        "detail": _plain(dict(detail or {}), 0),
    }
    connection.execute(insert(audit_log).values(**row, previous=previous, hash=_digest(previous, row)))


def note_alone(
    engine: Engine, author: Author, action: str, subject: str, detail: Mapping[str, Any] | None = None
) -> None:
    """As `note`, of what was done without the database. Raises StoreError."""
    with engine.begin() as connection:
        note(connection, actor=author.actor, role=author.role, action=action, subject=subject, detail=detail)


def list_audit(
    engine: Engine,
    *,
    since: datetime | None = None,
    action: str | None = None,
    actor: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[AuditRow]:
    """The newest rows first. `action`: one, or a noun and all that is done with it (`keys`); `before`: a `seq`.

    Raises StoreError.
    """
    columns = audit_log.c
    query = select(audit_log).order_by(columns.seq.desc()).limit(limit)
    if since is not None:
        query = query.where(columns.at >= since)
    if action is not None:
        query = query.where((columns.action == action) | func.starts_with(columns.action, f"{action}."))
    if actor is not None:
        query = query.where(columns.actor == actor)
    if before is not None:
        query = query.where(columns.seq < before)
    with engine.connect() as connection:
        return [_shown(row) for row in connection.execute(query)]


def verify(engine: Engine, *, head: bytes | None = None) -> Verification:
    """Recomputes the chain from its first row.

    A chain alone cannot show that its last rows are gone: `head`, a hash noted earlier, must be one of its rows.
    Raises StoreError.
    """
    count, previous, is_head_seen = 0, _START, head is None or hmac.compare_digest(head, _START)
    for row in _rows(engine):
        reason = _fault(row, count + 1, previous)
        if reason is not None:
            return Verification(count, previous.hex(), row.seq, reason)
        count, previous = count + 1, bytes(row.hash)
        is_head_seen = is_head_seen or (head is not None and hmac.compare_digest(head, previous))
    if not is_head_seen:
        return Verification(count, previous.hex(), count + 1, "the given head is not in the log: rows are missing")
    return Verification(count, previous.hex())


def _rows(engine: Engine) -> Iterator[Row[Any]]:
    columns = audit_log.c
    last: int | None = None
    with engine.connect() as connection:
        while True:
            query = select(audit_log).order_by(columns.seq).limit(_BATCH)
            rows = connection.execute(query if last is None else query.where(columns.seq > last)).all()
            yield from rows
            if len(rows) < _BATCH:
                return
            last = rows[-1].seq


def _fault(row: Row[Any], seq: int, previous: bytes) -> str | None:
    if row.seq != seq:
        return f"row {seq} is missing"
    if not hmac.compare_digest(bytes(row.previous), previous):
        return "the row does not follow the one before it"
    found = {name: getattr(row, name) for name in ("seq", "at", "actor", "role", "action", "subject", "detail")}
    if not hmac.compare_digest(bytes(row.hash), _digest(previous, found)):
        return "the row was changed"
    return None


def _digest(previous: bytes, row: Mapping[str, Any]) -> bytes:
    at = (row["at"] - _EPOCH) // timedelta(microseconds=1)
    fields = [row["seq"], at, row["actor"], row["role"], row["action"], row["subject"], row["detail"]]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(previous + text.encode()).digest()


def _shown(row: Row[Any]) -> AuditRow:
    at = row.at.astimezone(UTC)
    return AuditRow(row.seq, at, row.actor, row.role, row.action, row.subject, row.detail, bytes(row.hash).hex())


def _plain(value: Any, depth: int) -> Any:
    """What comes back from the database as it went in: texts, integers, flags, null, lists, mappings."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {_text(str(key)): _plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
            return [_plain(item, depth + 1) for item in items]
    return _text(value.isoformat() if isinstance(value, datetime) else str(value))


def _text(value: str) -> str:
    """As PostgreSQL can hold it: without NUL and lone surrogates."""
    kept = value[:MAX_TEXT].replace("\x00", "\ufffd")
    return kept.encode(errors="replace").decode()
