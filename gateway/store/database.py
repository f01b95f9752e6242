"""The way to PostgreSQL: a server given by URL, or the embedded one."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext

from gateway.config.model import Secret
from gateway.errors import StoreError
from gateway.store.embedded import EmbeddedServer

OLDEST = 14  # the oldest major version that its makers still maintained in 2026
CONNECT_SECONDS = 4
POOL_SIZE = 5


class Database:
    """An open database. `url`: libpq URL or connection string, complete; `engine`: a small pool for queries.

    Belongs to the process that opened it: a forked child must open its own.
    """

    def __init__(self, url: Secret, server: EmbeddedServer | None) -> None:
        self.url = url
        self._server = server
        self._parameters = connection_parameters(url)
        self.engine: Engine = create_engine(
            # The driver reads the URL itself, so every option of libpq works and no copy of the password is kept here.
            "postgresql+psycopg://",
            creator=self.connect,
            pool_pre_ping=True,
            pool_size=POOL_SIZE,
            max_overflow=5,
            hide_parameters=True,  # errors would show the hashes of keys
        )
        event.listen(self.engine, "handle_error", raise_store_error)

    @classmethod
    def open(cls, url: Secret | None, directory: Path) -> Database:
        """Opens the server at `url`, or the embedded one of `directory` when there is none, and checks that it serves.

        Raises `StoreError` when it cannot be reached within about 5 s, refuses, or does not suit.
        """
        server = None
        if url is None:
            server = EmbeddedServer(directory)
            url = Secret(server.url)
        try:
            database = cls(url, server)
            database._check()
        except BaseException:
            if server is not None:
                server.close()
            raise
        return database

    @property
    def is_embedded(self) -> bool:
        return self._server is not None

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A new connection of the driver, for COPY and LISTEN; the caller closes it. Raises `StoreError`."""
        try:
            # Prepared statements break behind poolers that hand a session on after each transaction.
            connection = psycopg.connect(**self._parameters, prepare_threshold=None)
        except (psycopg.Error, UnicodeError) as error:
            raise connection_error(self._parameters, error) from None  # the cause's text may repeat the URL
        set_json_loads(exact_json, connection)
        return connection

    def revive(self) -> bool:
        """Starts the embedded server again if it has died. True: it had. Raises `StoreError`, `OSError`."""
        return self._server is not None and self._server.revive()

    def close(self) -> None:
        """Closes the pool; stops the embedded server if nobody else uses it. Harmless the second time."""
        self.engine.dispose()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Database({describe(self._parameters)})"

    def _check(self) -> None:
        with self.connect() as connection:
            version = connection.info.server_version
            if version < OLDEST * 10_000:
                raise StoreError(
                    f"PostgreSQL {version // 10_000} at {describe(self._parameters)} is too old\n"
                    f"hint: version {OLDEST} or newer is needed"
                )
            row = connection.execute("SHOW server_encoding").fetchone()
            encoding = row[0] if row is not None else "unknown"
            if encoding != "UTF8":
                raise StoreError(
                    f"the encoding of {describe(self._parameters)} is `{encoding}`: it cannot hold every name\n"
                    "hint: create the database with `ENCODING 'UTF8' TEMPLATE template0`"
                )


def database_url(url: Secret, name: str) -> Secret:
    """The same server, another database."""
    return Secret(make_conninfo(**{**connection_parameters(url), "dbname": name}))


def connection_parameters(url: Secret) -> dict[str, Any]:
    """What libpq needs, from a URL or connection string. Raises `StoreError` when it is neither; never shows it."""
    try:
        parameters = conninfo_to_dict(url.reveal())
    except (psycopg.Error, UnicodeError):
        raise StoreError(
            "the database URL cannot be read\n"
            "hint: write it as `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, special characters of the password "
            "percent-encoded (`@` is `%40`)"
        ) from None
    parameters.setdefault("connect_timeout", CONNECT_SECONDS)
    parameters.setdefault("client_encoding", "UTF8")
    parameters.setdefault("application_name", "hatchway")
    return parameters


def describe(parameters: dict[str, Any]) -> str:
    """Host, port and database for people; nothing secret."""
    host = parameters.get("host") or parameters.get("hostaddr") or "the default host"
    return f"`{host}`, port {parameters.get('port') or 5432}, database `{parameters.get('dbname') or 'the default'}`"


def exact_json(value: str | bytes) -> Any:
    """JSON with fractions as `Decimal`: in a provider's own usage object they may be money."""
    return json.loads(value, parse_float=Decimal)


HINTS = (
    # What the server or libpq says -> the remedy. Servers that speak another language get the last hint.
    ("password authentication failed", "check the user and the password in `HATCHWAY_DATABASE_URL`"),
    ("no password supplied", "put the password into `HATCHWAY_DATABASE_URL`"),
    ("does not exist", "create it first (`CREATE DATABASE ...`), or correct the name in `HATCHWAY_DATABASE_URL`"),
    ("timeout", "check the address and the firewall: nothing answered"),
    ("refused", "start the server, or correct host and port in `HATCHWAY_DATABASE_URL`"),
    ("too many clients", "raise `max_connections` of the server, or close other clients"),
)


def connection_error(parameters: dict[str, Any], error: Exception) -> StoreError:
    reason = str(error).strip()
    for secret in (parameters.get("password"), parameters.get("sslpassword")):
        if secret:
            for shown in (str(secret), quote(str(secret), safe="")):
                reason = reason.replace(shown, "***")
    remedy = "unset `HATCHWAY_DATABASE_URL` to use the embedded database, or correct it"
    for words, hint in HINTS:
        if words in reason.lower():
            remedy = hint
            break
    return StoreError(f"cannot connect to {describe(parameters)}: {reason}\nhint: {remedy}")


def raise_store_error(context: ExceptionContext) -> None:
    """A lost connection, a full disk, a server that shuts down: one kind of failure for whoever asks the store."""
    if isinstance(context.original_exception, psycopg.OperationalError) and not context.is_pre_ping:
        raise StoreError(
            f"PostgreSQL failed: {str(context.original_exception).strip()}\nhint: see the log of the server"
        ) from None
