"""Virtual keys: made, listed, rotated, revoked, and read for the snapshot that workers hold.

Secrets are kept as hashes. Whoever changes a key is noted in the audit log, in the same transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    RowMapping,
    Select,
    func,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from gateway.config.model import Secret
from gateway.store.audit import GATEWAY, Author, note
from gateway.store.key_terms import MAX_OVERLAP, KeyTerms, Scope
from gateway.store.tables import api_keys
from gateway.types import NO_LIMIT, Budget, KeyRecord, Period, RateLimit, Role

PREFIX_LENGTH = 8
"""Characters of a secret that are kept to recognise it: `hw-` and 30 bits, which leaves 226 bits unknown."""

BOOTSTRAP = "key-bootstrap-admin"
ADMIN_TEAM = "admin"
AT_ONCE = timedelta(0)

KeyState = Literal["active", "expired", "revoked"]


class NewKey(NamedTuple):
    """A key that was just made: the only time its secret is known."""

    key_id: str
    secret: Secret


class KeyRow(msgspec.Struct, frozen=True):
    """A key as operators see it, valid or not. `previous_until`: when the secret before the last rotation ends."""

    key_id: str
    prefix: str
    role: Role
    team: str
    project: str | None
    name: str | None
    models: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None
    scopes: tuple[Scope, ...] = ()
    cost_center: str | None = None
    budget_usd: Decimal | None = None
    budget_per: Period | None = None
    budget_hard: bool | None = None
    rpm: int | None = None
    tpm: int | None = None
    previous_until: datetime | None = None

    def state(self, now: datetime) -> KeyState:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


def hash_secret(secret: str) -> str:
    """SHA-256 of a secret as a caller sent it, in hex: what `KeyRecord.hash` holds."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def create_key(
    engine: Engine,
    *,
    team: str,
    project: str | None = None,
    name: str | None = None,
    models: Sequence[str] = (),
    role: Role = "key",
    expires_at: datetime | None = None,
    scopes: Sequence[str] = (),
    cost_center: str | None = None,
    budget: Budget | None = None,
    limits: RateLimit = NO_LIMIT,
    author: Author = GATEWAY,
) -> NewKey:
    """Makes a key. `models`: globs of the models it may ask for, `scopes`: surfaces that it may call; none for all.

    Raises `ValueError` for bad values.
    """
    for what, names in (("models", models), ("scopes", scopes)):
        if isinstance(names, str):
            raise ValueError(f"`{what}` is a list, not a string\nhint: put the name into a list")
    terms = KeyTerms(
        team=team,
        project=project,
        name=name,
        models=tuple(models),
        role=role,
        expires_at=expires_at,
        scopes=tuple(scopes),
        cost_center=cost_center,
        budget=budget,
        limits=limits,
    )
    terms.check()
    secret, row = new_secret(), terms.row()
    key_id = f"key-{secrets.token_hex(8)}"
    with engine.begin() as connection:
        connection.execute(insert(api_keys).values(key_id=key_id, **row, **hashed(secret)))
        given = {name: value for name, value in row.items() if value not in (None, [])}
        note(connection, **author._asdict(), action="keys.create", subject=key_id, detail=given)
    return NewKey(key_id, secret)


def list_keys(engine: Engine, *, team: str | None = None) -> list[KeyRow]:
    """Every key, revoked and expired ones too, oldest first. `team`: of this team alone."""
    query = shown()
    if team is not None:
        query = query.where(api_keys.c.team == team)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(api_keys.c.created_at, api_keys.c.key_id)).mappings()
        return [key_row(row) for row in rows]


def find_key(engine: Engine, key_id: str) -> KeyRow | None:
    """The key with exactly this id, valid or not."""
    with engine.connect() as connection:
        row = connection.execute(shown().where(api_keys.c.key_id == key_id)).mappings().first()
    return None if row is None else key_row(row)


def name_key(engine: Engine, named: str) -> KeyRow | None:
    """The key that is not revoked and that `named` means, as in `revoke_key`, or the one with exactly this id."""
    with engine.connect() as connection:
        chosen = find_named(connection, named)
    return find_key(engine, chosen or named)


def revoke_key(engine: Engine, key_id: str, *, author: Author = GATEWAY) -> bool:
    """Ends a key, named by its id, or by the beginning of its id or of its secret. False: no such valid key.

    Raises `ValueError` when the beginning fits several keys.
    """
    with engine.begin() as connection:
        chosen = find_named(connection, key_id)
        ended = update(api_keys).where(api_keys.c.key_id == chosen, api_keys.c.revoked_at.is_(None))
        if chosen is None or connection.execute(ended.values(revoked_at=func.now())).rowcount != 1:
            return False
        note(connection, **author._asdict(), action="keys.revoke", subject=chosen)
    return True


def rotate_key(engine: Engine, key_id: str, *, overlap: timedelta = AT_ONCE, author: Author = GATEWAY) -> NewKey | None:
    """Gives a key a new secret; the old one works for `overlap` more, and the one before it ends at once.

    Named like in `revoke_key`. None: no such valid key. Raises `ValueError`.
    """
    if not AT_ONCE <= overlap <= MAX_OVERLAP:
        raise ValueError(f"an overlap of {overlap} is out of bounds\nhint: at most {MAX_OVERLAP.days} days")
    secret, columns = new_secret(), api_keys.c
    previous: dict[str, Any] = {"previous_hash": None, "previous_until": None}
    if overlap > AT_ONCE:
        previous = {"previous_hash": columns.secret_hash, "previous_until": func.now() + overlap}
    with engine.begin() as connection:
        chosen = find_named(connection, key_id)
        changed = update(api_keys).where(columns.key_id == chosen, columns.revoked_at.is_(None))
        if chosen is None or connection.execute(changed.values(**previous, **hashed(secret))).rowcount != 1:
            return None
        detail = {"overlap_seconds": int(overlap.total_seconds())}
        note(connection, **author._asdict(), action="keys.rotate", subject=chosen, detail=detail)
    return NewKey(chosen, secret)


def ensure_admin_key(engine: Engine, given: Secret | None) -> Secret | None:
    """Sees to it that there is an administrator. Several processes may do it at once.

    `given` (from the environment): it replaces the bootstrap key, which is the one key whose strength others decide;
    returns None. Not given: one is made and returned the first time ever, afterwards None.
    Raises `ValueError` when `given` cannot be sent in a header, or is the secret of another key.
    """
    row = {"key_id": BOOTSTRAP, "role": "admin", "team": ADMIN_TEAM, "name": "bootstrap"}
    if given is None:
        secret = new_secret()
        statement = insert(api_keys).values(**row, **hashed(secret)).on_conflict_do_nothing(index_elements=["key_id"])
        with engine.begin() as connection:
            made = connection.execute(statement.returning(api_keys.c.key_id)).first() is not None
            if made:
                note(connection, **GATEWAY._asdict(), action="keys.create", subject=BOOTSTRAP, detail=dict(row))
        return secret if made else None
    if re.fullmatch(r"[!-~]{1,512}", given.reveal()) is None:
        raise ValueError(
            "the admin key cannot be sent in a header\nhint: 1 to 512 visible ASCII characters without spaces"
        )
    values = hashed(given)
    upsert = insert(api_keys).values(**row, **values)
    upsert = upsert.on_conflict_do_update(
        index_elements=["key_id"],
        set_={**values, "revoked_at": None, "previous_hash": None, "previous_until": None},
        # An unchanged key is not written again: every start of a gateway would wake all others.
        where=or_(api_keys.c.secret_hash != values["secret_hash"], api_keys.c.revoked_at.is_not(None)),
    )
    try:
        with engine.begin() as connection:
            if connection.execute(upsert).rowcount == 1:
                note(connection, **GATEWAY._asdict(), action="keys.replace", subject=BOOTSTRAP)
    except IntegrityError:
        raise ValueError(
            "the admin key is already the secret of another key\nhint: choose another `HATCHWAY_ADMIN_KEY`"
        ) from None
    return None


def active_keys(engine: Engine) -> list[KeyRecord]:
    """All keys that are neither revoked nor expired, by id; one that is being rotated stands there with each secret."""
    with engine.connect() as connection:
        records = [record(row) for row in connection.execute(active()).mappings()]
    return sorted(records, key=lambda record: (record.key_id, record.hash))


def find_active(engine: Engine, hash: str) -> KeyRecord | None:
    """The valid key with this hash (hex, as `hash_secret` gives it), or None.

    The index compares hashes, whose timing says nothing of a secret: who could aim at a hash could invert SHA-256.
    """
    with engine.connect() as connection:
        row = connection.execute(active(bytes.fromhex(hash))).mappings().first()
    if row is None or not hmac.compare_digest(row["hash"], hash):
        return None
    return record(row)


def new_secret() -> Secret:
    return Secret(f"hw-{secrets.token_urlsafe(32)}")  # 256 bits in 43 characters


def hashed(secret: Secret) -> dict[str, Any]:
    """The columns that a secret leaves behind. Of a short one, which somebody chose, not even the beginning is kept."""
    value = secret.reveal()
    prefix = value[:PREFIX_LENGTH] if len(value) >= 4 * PREFIX_LENGTH else ""
    return {"secret_hash": bytes.fromhex(hash_secret(value)), "prefix": prefix}


def active(hash: bytes | None = None) -> CompoundSelect[Any]:
    """Valid keys, once for each secret that opens them. `hash`: that of this secret alone."""
    columns = api_keys.c

    def secrets_of(column: ColumnElement[bytes], until: ColumnElement[datetime]) -> Select[Any]:
        query = select(
            *(func.encode(column, "hex").label("hash"), until.label("expires_at")),
            *(columns[name] for name in ("key_id", "team", "project", "models", "role", "scopes", "cost_center")),
            *(columns[name] for name in ("budget_usd", "budget_per", "budget_hard", "rpm", "tpm")),
        ).where(columns.revoked_at.is_(None), or_(columns.expires_at.is_(None), columns.expires_at > func.now()))
        return query if hash is None else query.where(column == hash)

    # LEAST leaves out NULL, so a key without an end has that of the secret.
    previous = secrets_of(columns.previous_hash, func.least(columns.expires_at, columns.previous_until))
    is_valid = columns.previous_hash.is_not(None), columns.previous_until > func.now()
    return union_all(secrets_of(columns.secret_hash, columns.expires_at), previous.where(*is_valid))


def record(row: RowMapping) -> KeyRecord:
    values = {name: row[name] for name in ("hash", "key_id", "team", "project", "role", "expires_at", "cost_center")}
    budget = None
    if row["budget_usd"] is not None:
        budget = Budget(usd=row["budget_usd"], per=row["budget_per"] or "month", hard=bool(row["budget_hard"]))
    return KeyRecord(
        **values,
        models=tuple(row["models"]),
        scopes=tuple(row["scopes"]),
        budget=budget,
        limits=RateLimit(requests=row["rpm"], tokens=row["tpm"]),
    )


def shown() -> Select[Any]:
    return select(*(api_keys.c[name] for name in KeyRow.__struct_fields__))


def key_row(row: RowMapping) -> KeyRow:
    return KeyRow(**{**row, "models": tuple(row["models"]), "scopes": tuple(row["scopes"])})


def find_named(connection: Connection, key_id: str) -> str | None:
    """The id of the key that is not revoked and that `key_id` means, or begins to name. None: there is none.

    Raises `ValueError` when it may mean several.
    """
    if not key_id or not key_id.isprintable():
        raise ValueError("no key is named\nhint: give a key id; `hatchway keys list` shows them")
    columns = api_keys.c
    begins = or_(func.starts_with(columns.key_id, key_id), func.starts_with(columns.prefix, key_id))
    named = select(columns.key_id).where(columns.revoked_at.is_(None), begins)
    found = [row.key_id for row in connection.execute(named.order_by(columns.key_id != key_id).limit(2))]
    if len(found) == 2 and found[0] != key_id:
        raise ValueError(
            f"`{key_id[:80]}` fits several keys\nhint: write more of the key id; `hatchway keys list` shows them"
        )
    return found[0] if found else None
