"""What all tests share: a clean environment, the bundled model that `make install` has fetched, a real PostgreSQL."""

from __future__ import annotations

import os
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

from gateway.config.settings import shipped
from gateway.store.database import Database, database_url
from gateway.store.migrate import migrate
from gateway.types import BUCKETS

_AT_START = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # set below
if os.environ.get("HATCHWAY_TEST_DEVICE") != "cuda":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, by whichever test comes first
MODEL = "smollm2-135m-instruct"
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the keys or settings of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(("HATCHWAY_", "PG")) or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The bundled model's file."""
    given = _AT_START.get("HATCHWAY_TEST_MODEL")
    home = Path(_AT_START.get("HATCHWAY_HOME") or Path.home() / ".hatchway")
    path = Path(given) if given else home / "models" / MODEL / MODEL_FILE
    if not path.is_file():
        pytest.fail(f"the bundled model is not at {path}\nhint: run `make install`")
    return path


@pytest.fixture(scope="session")
def plain_environment() -> Iterator[dict[str, str]]:
    """The environment for processes that tests start: nothing of Hatchway's, no provider's key."""
    yield {
        name: value
        for name, value in _AT_START.items()
        if not name.startswith(("HATCHWAY_", "PG")) and not name.endswith("_API_KEY")
    }


@contextmanager
def new_directory() -> Iterator[Path]:
    """A folder for a cluster. Not one of pytest's: each session closes `pytest-of-root` to other users again, and the
    server of a session that runs as root is one."""
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as directory:
        yield Path(directory)


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
    name = "test_" + re.sub(r"\W", "_", request.node.nodeid.lower())[-50:]
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute(f'CREATE DATABASE "{name}"')
    # It goes with its server: dropping it would cost a checkpoint.
    with Database.open(database_url(server.url, name), Path("/nonexistent")) as database:
        yield database


@pytest.fixture(scope="module")
def database(empty_database: Database) -> Database:
    """The same, migrated. Tests of one module share its rows."""
    migrate(empty_database, shipped("migrations"))
    return empty_database


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
