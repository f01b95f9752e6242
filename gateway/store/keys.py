"""Virtual keys: made, listed, revoked, and read for the snapshot that workers hold. Secrets are kept as hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, RowMapping, Select, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from gateway.config.model import Secret
from gateway.store.tables import api_keys
from gateway.types import KeyRecord

Role = Literal["key", "admin"]

PREFIX_LENGTH = 8
"""Characters of a secret that are kept to recognise it: `hw-` and 30 bits, which leaves 226 bits unknown."""

BOOTSTRAP = "key-bootstrap-admin"
ADMIN_TEAM = "admin"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MODEL_GLOB = re.compile(r"[!-~]{1,128}")
MAX_MODELS = 100
LABEL_LENGTH = 200


class NewKey(NamedTuple):
    """A key that was just made: the only time its secret is known."""

    key_id: str
    secret: Secret


class KeyRow(msgspec.Struct, frozen=True):
    """A key as operators see it, valid or not."""

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
) -> NewKey:
    """Makes a key. `models`: globs of the models it may ask for, none for all. Raises `ValueError` for bad values."""
    check_name("team", team)
    if project is not None:
        check_name("project", project)
    if name is not None and (not name.isprintable() or not 0 < len(name) <= LABEL_LENGTH):
        raise ValueError(
            f"a key's name is 1 to {LABEL_LENGTH} printable characters\nhint: choose a shorter, plain name"
        )
    check_models(models)
    if role not in ("key", "admin"):
        raise ValueError(f"unknown role `{role}`\nhint: `key` or `admin`")
    if expires_at is not None and expires_at.tzinfo is None:
        raise ValueError("`expires_at` has no time zone\nhint: write it with one, such as `2030-01-31T00:00:00Z`")
    secret = new_secret()
    key_id = f"key-{secrets.token_hex(8)}"
    row = {"key_id": key_id, "role": role, "team": team, "project": project, "name": name, "expires_at": expires_at}
    with engine.begin() as connection:
        connection.execute(insert(api_keys).values(**row, models=list(models), **hashed(secret)))
    return NewKey(key_id, secret)


def list_keys(engine: Engine) -> list[KeyRow]:
    """Every key, revoked and expired ones too, oldest first."""
    columns = [api_keys.c[name] for name in KeyRow.__struct_fields__]
    with engine.connect() as connection:
        rows = connection.execute(select(*columns).order_by(api_keys.c.created_at, api_keys.c.key_id)).mappings()
        return [KeyRow(**{**row, "models": tuple(row["models"])}) for row in rows]


def revoke_key(engine: Engine, key_id: str) -> bool:
    """Ends a key, named by its id, or by the beginning of its id or of its secret. False: no such valid key.

    Raises `ValueError` when the beginning fits several keys.
    """
    with engine.begin() as connection:
        chosen = find_named(connection, key_id)
        ended = update(api_keys).where(api_keys.c.key_id == chosen, api_keys.c.revoked_at.is_(None))
        return chosen is not None and connection.execute(ended.values(revoked_at=func.now())).rowcount == 1


def rotate_key(engine: Engine, key_id: str) -> NewKey | None:
    """Gives a key a new secret; the old one stops working. Named like in `revoke_key`. None: no such valid key."""
    secret = new_secret()
    with engine.begin() as connection:
        chosen = find_named(connection, key_id)
        changed = update(api_keys).where(api_keys.c.key_id == chosen, api_keys.c.revoked_at.is_(None))
        if chosen is None or connection.execute(changed.values(**hashed(secret))).rowcount != 1:
            return None
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
        return secret if made else None
    if re.fullmatch(r"[!-~]{1,512}", given.reveal()) is None:
        raise ValueError(
            "the admin key cannot be sent in a header\nhint: 1 to 512 visible ASCII characters without spaces"
        )
    values = hashed(given)
    upsert = insert(api_keys).values(**row, **values)
    upsert = upsert.on_conflict_do_update(
        index_elements=["key_id"],
        set_={**values, "revoked_at": None},
        # An unchanged key is not written again: every start of a gateway would wake all others.
        where=or_(api_keys.c.secret_hash != values["secret_hash"], api_keys.c.revoked_at.is_not(None)),
    )
    try:
        with engine.begin() as connection:
            connection.execute(upsert)
    except IntegrityError:
        raise ValueError(
            "the admin key is already the secret of another key\nhint: choose another `HATCHWAY_ADMIN_KEY`"
        ) from None
    return None


def active_keys(engine: Engine) -> list[KeyRecord]:
    """All keys that are neither revoked nor expired, by id."""
    with engine.connect() as connection:
        return [record(row) for row in connection.execute(active().order_by(api_keys.c.key_id)).mappings()]


def find_active(engine: Engine, hash: str) -> KeyRecord | None:
    """The valid key with this hash (hex, as `hash_secret` gives it), or None."""
    with engine.connect() as connection:
        row = connection.execute(active().where(api_keys.c.secret_hash == bytes.fromhex(hash))).mappings().first()
    return None if row is None else record(row)


def check_name(what: str, value: str) -> None:
    if NAME.fullmatch(value) is None:
        raise ValueError(
            f"`{value[:80]}` is no name for a {what}\n"
            "hint: letters, digits, `.`, `_` and `-`, at most 64, beginning with a letter or digit"
        )


def check_models(models: Sequence[str]) -> None:
    if isinstance(models, str):
        raise ValueError("`models` is a list of globs, not a string\nhint: put the glob into a list")
    if len(models) > MAX_MODELS:
        raise ValueError(
            f"{len(models)} globs of models are too many\nhint: at most {MAX_MODELS}; `*` spans many models"
        )
    for glob in models:
        if MODEL_GLOB.fullmatch(glob) is None:
            raise ValueError(
                f"`{glob[:80]}` is no glob of models\nhint: 1 to 128 visible ASCII characters, such as `gpt-*`"
            )


def new_secret() -> Secret:
    return Secret(f"hw-{secrets.token_urlsafe(32)}")  # 256 bits in 43 characters


def hashed(secret: Secret) -> dict[str, Any]:
    """The columns that a secret leaves behind. Of a short one, which somebody chose, not even the beginning is kept."""
    value = secret.reveal()
    prefix = value[:PREFIX_LENGTH] if len(value) >= 4 * PREFIX_LENGTH else ""
    return {"secret_hash": bytes.fromhex(hash_secret(value)), "prefix": prefix}


def active() -> Select[Any]:
    columns = api_keys.c
    chosen = (columns.key_id, columns.team, columns.project, columns.models, columns.role, columns.expires_at)
    return select(func.encode(columns.secret_hash, "hex").label("hash"), *chosen).where(
        columns.revoked_at.is_(None), or_(columns.expires_at.is_(None), columns.expires_at > func.now())
    )


def record(row: RowMapping) -> KeyRecord:
    return KeyRecord(**{**row, "models": tuple(row["models"])})


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
