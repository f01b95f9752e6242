"""Providers' secrets: ciphertexts only. Who encrypts and decrypts is `gateway.secrets`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, Engine, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from gateway.secrets import Cipher, Sealed
from gateway.store.audit import Author, note
from gateway.store.tables import KEYS_CHANNEL, secrets

MAX_SECRETS = 1000

_columns = secrets.c


class SecretRow(msgspec.Struct, frozen=True):
    """A secret as operators see it."""

    name: str
    key_hint: str
    updated_at: datetime
    author: str


class TooManySecrets(ValueError):
    pass


def list_secrets(engine: Engine) -> list[SecretRow]:
    """By name. Raises StoreError."""
    columns = [_columns[name] for name in SecretRow.__struct_fields__]
    with engine.connect() as connection:
        return [SecretRow(*row) for row in connection.execute(select(*columns).order_by(_columns.name))]


def read_sealed(engine: Engine) -> list[Sealed]:
    """All ciphertexts, by name. Raises StoreError."""
    with engine.connect() as connection:
        return _read(connection)


def store_secret(engine: Engine, sealed: Sealed, author: Author) -> None:
    """Sets a secret, or replaces it. Raises TooManySecrets, StoreError."""
    values = {
        "ciphertext": sealed.ciphertext,
        "key_hint": sealed.key_hint,
        "author": author.actor,
        "updated_at": func.now(),
    }
    statement = insert(secrets).values(name=sealed.name, **values)
    with engine.begin() as connection:
        _lock(connection)
        others = select(func.count()).select_from(secrets).where(_columns.name != sealed.name)
        if connection.execute(others).scalar_one() >= MAX_SECRETS:
            raise TooManySecrets(f"there are {MAX_SECRETS} secrets, which is all there can be")
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
        _tell(connection, author, "secrets.set", sealed.name, {"key": sealed.key_hint})


def remove_secret(engine: Engine, name: str, author: Author) -> bool:
    """False: there was none. Raises StoreError."""
    with engine.begin() as connection:
        _lock(connection)
        if connection.execute(delete(secrets).where(_columns.name == name)).rowcount == 0:
            return False
        _tell(connection, author, "secrets.remove", name, {})
        return True


def rekey_secrets(engine: Engine, cipher: Cipher, author: Author) -> int:
    """Encrypts with the cipher's first key what others have encrypted; returns how many. All or none.

    Raises SecretError for one whose key is not there, StoreError.
    """
    with engine.begin() as connection:
        _lock(connection)
        stale = [sealed for sealed in _read(connection) if not cipher.is_current(sealed)]
        for old in stale:
            new = cipher.seal(old.name, cipher.open(old))
            values = {"ciphertext": new.ciphertext, "key_hint": new.key_hint}
            connection.execute(update(secrets).where(_columns.name == old.name).values(**values))
        if stale:
            names = [sealed.name for sealed in stale]
            _tell(connection, author, "secrets.rekey", cipher.hint, {"secrets": names})
    return len(stale)


def _read(connection: Connection) -> list[Sealed]:
    query = select(_columns.name, _columns.ciphertext, _columns.key_hint).order_by(_columns.name)
    return [Sealed(name, bytes(ciphertext), hint) for name, ciphertext, hint in connection.execute(query)]


def _lock(connection: Connection) -> None:
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("hatchway.secrets"))))


def _tell(
    connection: Connection, author: Author, action: str, subject: str, detail: dict[str, str | Sequence[str]]
) -> None:
    connection.execute(select(func.pg_notify(KEYS_CHANNEL, "secrets")))  # control planes publish again
    note(connection, actor=author.actor, role=author.role, action=action, subject=f"secret:{subject}", detail=detail)
