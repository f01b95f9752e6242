"""Decisions as they were made, with what came of them: for explanations, simulation and the plan of an escape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, Text, cast, delete, func, select, text

from gateway.store.tables import decisions, usage_events
from gateway.types import BUCKETS, Status, Usage, UsageSource

PAGE = 1000
"""Decisions read at once, each with its attempts: what bounds the memory."""
PURGE_BATCH = 5000
INPUT_BUCKETS = (
    "input_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
)
"""Of input that was not read from a cache."""

_columns = decisions.c
BODY = func.coalesce(cast(_columns.body, Text), cast(_columns.earlier_body, Text))
"""The JSON of a decision."""
_events = usage_events.c
_ATTEMPT = (
    "request_id",
    "attempt",
    "started_at",
    "ended_at",
    "endpoint",
    "provider",
    "upstream_model",
    "status",
    "error_type",
    "stream",
    "ttft_ms",
    "duration_ms",
    "usage_source",
    "cost_usd",
    "tags",
)


class RecordedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger has of one attempt. Fields are those of `UsageEvent`."""

    attempt: int
    started_at: datetime
    ended_at: datetime
    endpoint: str
    provider: str
    upstream_model: str
    status: Status
    error_type: str | None
    stream: bool
    ttft_ms: float | None
    duration_ms: float
    usage: Usage
    usage_source: UsageSource
    cost_usd: Decimal | None
    tags: dict[str, str]

    @property
    def role(self) -> str | None:
        """`shadow`, `hedge`, `escape`, ...; None: the client's own attempt."""
        return self.tags.get("hatchway.role")


class Recorded(NamedTuple):
    """`decision`: JSON as `gateway.routing.explanation` writes it. `attempts`: of its request, in order; none where the
    request was refused."""

    at: datetime
    request_id: str
    decision: bytes
    attempts: list[RecordedAttempt]


class Speed(NamedTuple):
    """How an endpoint was in one hour. Seconds; None: nobody measured."""

    endpoint: str
    since: datetime
    attempts: int
    failures: int
    ttft_p50: float | None
    ttft_p95: float | None
    seconds_per_token: float | None
    cache_share: float | None


def find_json(engine: Engine, request_id: str) -> bytes | None:
    """One decision, the JSON that was written; None: there is none of that id."""
    if not request_id.isprintable():  # no id is, and PostgreSQL refuses to compare with a zero byte
        return None
    with engine.connect() as connection:
        body: str | None = connection.execute(select(BODY).where(_columns.request_id == request_id)).scalar()
        return None if body is None else body.encode()


def count(engine: Engine, since: datetime | None, until: datetime | None) -> int:
    """How many decisions there are in `since` <= at < `until`."""
    with engine.connect() as connection:
        return connection.execute(
            select(func.count()).select_from(decisions).where(*_period(since, until))
        ).scalar_one()


def read_since(engine: Engine, since: datetime | None, until: datetime | None) -> Iterator[Recorded]:
    """Decisions of `since` <= at < `until` in the order of time, each with its attempts. Memory is bounded by a page.

    Raises `StoreError`. What is written while it reads may be seen or not.
    """
    query = (
        select(_columns.at, _columns.request_id, BODY)
        .where(*_period(since, until))
        .order_by(_columns.at, _columns.request_id)
        .limit(PAGE)
    )
    page = query
    while True:
        # A connection for each page: whoever reads slowly holds no transaction open.
        with engine.connect() as connection:
            found = connection.execute(page).all()
            attempts = _attempts_of(connection, [row[1] for row in found])
        for at, request_id, body in found:
            yield Recorded(at, request_id, body.encode(), attempts.get(request_id, []))
        if len(found) < PAGE:
            return
        at, request_id = found[-1][0], found[-1][1]
        page = query.where(
            _columns.at >= at,  # for the index
            (_columns.at > at) | (_columns.request_id > request_id),
        )


def speeds(engine: Engine, since: datetime | None, until: datetime | None) -> list[Speed]:
    """How each endpoint was, by the hour, from the attempts that started in the period."""
    hour = func.date_trunc("hour", _events.started_at, "UTC")
    ok = _events.status == "ok"
    streamed = ok & _events.stream & _events.ttft_ms.is_not(None)
    output = _events.output_tokens + _events.reasoning_tokens
    paced = streamed & (output > 1)
    cached = func.sum(_events.cache_read_tokens).filter(ok)
    read = func.sum(sum((_events[bucket] for bucket in INPUT_BUCKETS), start=_events.cache_read_tokens)).filter(ok)

    def ttft(share: float) -> ColumnElement[Any]:
        """Of streams; of whole answers, where nothing was streamed."""
        found = func.percentile_cont(share).within_group(_events.ttft_ms)
        return func.coalesce(found.filter(streamed), found.filter(ok)) / 1000

    query = select(
        _events.endpoint,
        hour,
        func.count(),
        func.count().filter(_events.status.in_(("error", "timeout"))),
        ttft(0.5),
        ttft(0.95),
        func.sum(_events.duration_ms - _events.ttft_ms).filter(paced) / func.sum(output).filter(paced) / 1000,
        cached / func.nullif(read, 0),
    )
    if since is not None:
        query = query.where(_events.started_at >= since)
    if until is not None:
        query = query.where(_events.started_at < until)
    query = query.group_by(_events.endpoint, hour).order_by(_events.endpoint, hour)
    with engine.connect() as connection:
        return [
            Speed(endpoint, start, number, failed, *(None if one is None else float(one) for one in figures))
            for endpoint, start, number, failed, *figures in connection.execute(query)
        ]


def purge(engine: Engine, older_than: datetime) -> int:
    """Deletes what was decided before; returns how many. In batches, so that no lock is held for long."""
    gone = 0
    batch = select(_columns.request_id).where(_columns.at < older_than).order_by(_columns.at).limit(PURGE_BATCH)
    while True:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '10s'"))
            deleted = connection.execute(delete(decisions).where(_columns.request_id.in_(batch))).rowcount
        gone += deleted
        if deleted < PURGE_BATCH:
            return gone


def _attempts_of(connection: Connection, request_ids: Sequence[str]) -> dict[str, list[RecordedAttempt]]:
    columns = [_events[name] for name in _ATTEMPT]
    query = select(*columns, *(_events[bucket] for bucket in BUCKETS)).where(_events.request_id.in_(request_ids))
    found: dict[str, list[RecordedAttempt]] = {}
    for row in connection.execute(query.order_by(_events.request_id, _events.attempt, _events.started_at)):
        values = dict(zip(_ATTEMPT, row, strict=False))
        usage = Usage(*row[len(_ATTEMPT) :])
        request_id = values.pop("request_id")
        values["tags"] = values["tags"] or {}
        found.setdefault(request_id, []).append(RecordedAttempt(usage=usage, **values))
    return found


def _period(since: datetime | None, until: datetime | None) -> list[Any]:
    """Raises `ValueError` for times without a zone."""
    if any(bound is not None and bound.tzinfo is None for bound in (since, until)):
        raise ValueError("a time has no zone\nhint: give times with a zone, such as UTC")
    bounds = []
    if since is not None:
        bounds.append(_columns.at >= since)
    if until is not None:
        bounds.append(_columns.at < until)
    return bounds
