"""A configuration with a source and targets, rows of the ledger, and a clock that tests turn."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.model import Configuration
from gateway.store.database import Database
from gateway.store.tables import decisions, escapes, usage_events

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TEXT = """
version: 1
providers:
  one: {adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: none}
  two: {adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: none}
  claude: {adapter: anthropic, api_key: none}
  unset: {adapter: openai, base_url: "http://127.0.0.1:9/v1", api_key: "${UNSET_API_KEY}"}
endpoints:
  a: {provider: one, model: m, region: us, price: {input: 1, output: 2}}
  b: {provider: two, model: n, price: {input: 2, output: 4}, context_window: 1000, capabilities: [stream, tools]}
  c: {provider: claude, model: claude-haiku-4-5, region: eu, price: {input: 1, output: 5}}
  a2: {provider: one, model: n, region: us, price: {input: 1, output: 2}}
  idle: {provider: two, model: z, price: {input: 1, output: 2}}
  keyless: {provider: unset, model: k}
  priceless: {provider: one, model: "*"}
routes:
  - {match: {model: european}, policy: europe}
  - {match: {model: "*"}, policy: main}
policies:
  main: {endpoints: [a, c]}
  europe: {endpoints: [a, c, a2], require: {region: [eu]}}
"""


def compile_text(folder: Path, text: str) -> Configuration:
    path = folder / "policy.yaml"
    path.write_text(text)
    return compile_configuration(read_document(path), {})


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return compile_text(tmp_path, TEXT)


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        for table in (usage_events, decisions, escapes):
            connection.execute(table.delete())
    return database.engine


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Ledger:
    """Puts rows into the ledger at the clock's time."""

    def __init__(self, engine: Engine, clock: Clock, make: Callable[..., dict[str, Any]]) -> None:
        self._engine, self._clock, self._make = engine, clock, make

    def add(self, count: int, endpoint: str, tags: dict[str, str] | None = None, **fields: Any) -> None:
        plain: dict[str, Any] = {
            "started_at": self._clock.now,
            "ended_at": self._clock.now,
            "endpoint": endpoint,
            "ttft_ms": 100.0,
            "cost_usd": Decimal("0.001"),
            "tags": tags,
        }
        rows = [self._make(**{**plain, **fields}) for _ in range(count)]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(insert(usage_events), rows)

    def moved(self, escape_id: str, count: int, *, failed: int = 0, role: str = "escape", **fields: Any) -> None:
        """Attempts at `b` that an escape made."""
        tags = {"hatchway.escape": escape_id, "hatchway.role": role, "hatchway.valid": "yes"}
        self.add(count - failed, "b", tags, **fields)
        self.add(failed, "b", tags, status="error", error_type="status_500", cost_usd=None, price_status="unpriced")

    def kept(self, escape_id: str, count: int, **fields: Any) -> None:
        """Attempts at `a` that it might have moved: the control group."""
        self.add(count, "a", {"hatchway.escape": escape_id, "hatchway.valid": "yes"}, **fields)


@pytest.fixture
def ledger(engine: Engine, clock: Clock, usage_event: Callable[..., dict[str, Any]]) -> Ledger:
    return Ledger(engine, clock, usage_event)
