"""One real PostgreSQL for the session; a fresh, migrated database for each test module."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gateway.store.database import Database, database_url
from gateway.store.migrate import migrate
from gateway.types import BUCKETS

MIGRATIONS = Path(__file__).parents[2] / "migrations"


@contextmanager
def new_directory() -> Iterator[Path]:
    """A folder for a cluster. Not one of pytest's: each session closes `pytest-of-root` to other users again, and the
    server of a session that runs as root is one."""
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as directory:
        yield Path(directory)


@pytest.fixture
def usage_event() -> Callable[..., dict[str, Any]]:
    """Makes a row of `usage_events`: a plain, priced attempt, changed by the arguments."""

    def make(**changes: Any) -> dict[str, Any]:
        row: dict[str, Any] = {
            "event_id": str(uuid4()),
            "request_id": f"req-{uuid4().hex}",
            "attempt": 1,
            "started_at": datetime(2026, 3, 1, 12, tzinfo=UTC),
            "ended_at": datetime(2026, 3, 1, 12, 0, 1, tzinfo=UTC),
            "team": "payments",
            "key_id": "key-1",
            "route": "route-1",
            "policy": "cheap",
            "policy_version": "0123456789ab",
            "endpoint": "gpt-mini",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "upstream_model": "gpt-4o-mini",
            "status": "ok",
            "stream": False,
            "duration_ms": 1000.0,
            **dict.fromkeys(BUCKETS, 0),
            "input_tokens": 10,
            "output_tokens": 5,
            "usage_source": "reported",
            "price_status": "priced",
            "cost_usd": Decimal("0.0000045"),
        }
        return {**row, **changes}

    return make


@pytest.fixture
def directory() -> Iterator[Path]:
    with new_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def server() -> Iterator[Database]:
    """The embedded server, with its maintenance database open."""
    with new_directory() as directory, Database.open(None, directory) as database:
        yield database


@pytest.fixture(scope="module")
def empty_database(server: Database, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database of the module's own, without tables."""
    name = "test_" + re.sub(r"\W", "_", request.node.name.lower())[-40:]
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute(f'CREATE DATABASE "{name}"')
    # It goes with its server: dropping it would cost a checkpoint.
    with Database.open(database_url(server.url, name), Path("/nonexistent")) as database:
        yield database


@pytest.fixture(scope="module")
def database(empty_database: Database) -> Database:
    """The same, migrated. Tests of one module share its rows."""
    migrate(empty_database, MIGRATIONS)
    return empty_database
