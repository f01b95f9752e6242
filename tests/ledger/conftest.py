"""A real PostgreSQL for the session, a fresh migrated database for each module, and usage events to ship."""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from gateway.ledger.record import Kind, write_begun, write_line, write_settled
from gateway.ledger.spool import Spool
from gateway.store.database import Database, database_url
from gateway.store.migrate import migrate
from gateway.types import BUCKETS, Usage, UsageEvent

MIGRATIONS = Path(__file__).parents[2] / "migrations"

NewEvent = Callable[..., UsageEvent]


def event_line(kind: Kind, number: int, event: UsageEvent) -> bytes:
    return write_line(kind, number, write_begun(event) if kind == "S" else write_settled(event))


def begin(spool: Spool, event: UsageEvent, decision: bytes | None = None) -> None:
    spool.begin(event.event_id, write_begun(event), decision)


def settle(spool: Spool, event: UsageEvent) -> None:
    spool.settle(event.event_id, write_settled(event))


@pytest.fixture(scope="session")
def server() -> Iterator[Database]:
    # Not a folder of pytest's: it closes them to other users, and the server of a session that runs as root is one.
    with (
        tempfile.TemporaryDirectory(prefix="hatchway-test-") as directory,
        Database.open(None, Path(directory)) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def database(server: Database, request: pytest.FixtureRequest) -> Iterator[Database]:
    name = "test_" + re.sub(r"\W", "_", request.node.name.lower())[-40:]
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]  # a name of ours, not a literal
        try:
            with Database.open(database_url(server.url, name), Path("/nonexistent")) as opened:
                migrate(opened, MIGRATIONS)
                yield opened
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload]  # likewise


@pytest.fixture
def table(database: Database) -> Database:
    """The module's database with an empty `usage_events`."""
    with database.connect() as connection:
        connection.execute("TRUNCATE usage_events")
    return database


def make_event(**fields: Any) -> UsageEvent:
    """An event as it stands when an attempt begins; keywords change fields."""
    now = datetime.now(UTC)
    values: dict[str, Any] = dict(
        event_id=str(uuid.uuid4()),
        request_id="req_1",
        attempt=1,
        started_at=now,
        ended_at=now,
        team="payments",
        project=None,
        key_id="key_1",
        cost_center=None,
        route="route-1",
        policy="cheap",
        policy_version="0123456789ab",
        domain=None,
        endpoint="gpt-mini",
        provider="openai",
        model="gpt-4o-mini",
        upstream_model="gpt-4o-mini",
        region=None,
        status="error",
        error_type="worker_lost",
        stream=False,
        ttft_ms=None,
        duration_ms=0.0,
        usage=Usage(),
        usage_source="none",
        price_status="unpriced",
        cost_usd=None,
        prices=None,
        catalog_version=None,
    )
    return UsageEvent(**{**values, **fields})


@pytest.fixture
def new_event() -> NewEvent:
    return make_event


@pytest.fixture(scope="session")
def any_event() -> st.SearchStrategy[UsageEvent]:
    """Any event that the gateway may write, for hypothesis."""
    return _usage_events()


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
COUNT = st.integers(0, 2**63 - 1)
TIME = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
MILLISECONDS = st.floats(0, 1e9, allow_nan=False)
COST = st.decimals(0, 10**9, allow_nan=False, allow_infinity=False) | st.just(Decimal("1E-30"))
VALUE = st.none() | st.booleans() | st.integers(-(10**15), 10**15) | TEXT
JSON = st.dictionaries(TEXT, VALUE | st.lists(VALUE, max_size=3) | st.dictionaries(TEXT, VALUE, max_size=3), max_size=3)


@st.composite
def _raw_json(draw: st.DrawFn) -> msgspec.Raw:
    indent = draw(st.sampled_from([None, 2]))  # upstreams may pretty-print: line breaks inside a spliced value
    return msgspec.Raw(json.dumps(draw(JSON), indent=indent, ensure_ascii=draw(st.booleans())).encode())


def _usage_events() -> st.SearchStrategy[UsageEvent]:
    is_priced = st.booleans()
    events = st.builds(
        UsageEvent,
        event_id=st.uuids().map(str),
        request_id=TEXT,
        attempt=st.integers(1, 2**31 - 1),
        started_at=TIME,
        ended_at=TIME,
        team=TEXT,
        project=st.none() | TEXT,
        key_id=TEXT,
        cost_center=st.none() | TEXT,
        route=TEXT,
        policy=TEXT,
        policy_version=TEXT,
        domain=st.none() | TEXT,
        endpoint=TEXT,
        provider=TEXT,
        model=TEXT,
        upstream_model=TEXT,
        region=st.none() | TEXT,
        status=st.sampled_from(["ok", "error", "cancelled", "timeout", "shed"]),
        error_type=st.none() | TEXT,
        stream=st.booleans(),
        ttft_ms=st.none() | MILLISECONDS,
        duration_ms=MILLISECONDS,
        usage=st.builds(Usage, **{bucket: COUNT for bucket in BUCKETS}),
        usage_source=st.sampled_from(["reported", "estimated", "none"]),
        price_status=st.just("priced"),
        cost_usd=st.none() | COST,
        prices=st.none() | _raw_json(),
        catalog_version=st.none() | TEXT,
        tags=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
        raw_usage=st.none() | _raw_json(),
        organisation=st.none() | TEXT,
        gateway=st.none() | TEXT,
        service_tier=st.none() | TEXT,
        max_cost_usd=st.none() | COST,
    )
    return st.tuples(events, is_priced).map(lambda pair: pair[0] if pair[1] else _unpriced(pair[0]))


def _unpriced(event: UsageEvent) -> UsageEvent:
    return msgspec.structs.replace(event, price_status="unpriced", cost_usd=None)
