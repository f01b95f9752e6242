"""Escapes: their state, and what the ledger says of them. Rows of an escape's attempts have these tags:

hatchway.escape      the escape's id
hatchway.role        `escape`: traffic that it moved; `shadow`: copies
hatchway.valid       `yes`, or `no:` and why the answer was not usable
hatchway.similarity  of a copy's answer to the one that the client got, 0 to 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Double,
    Engine,
    Text,
    and_,
    case,
    cast,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from gateway.store.decisions import BODY as DECISION_BODY
from gateway.store.tables import decisions, escapes, usage_events
from gateway.types import BUCKETS, Usage

ESCAPE, ROLE, VALID, SIMILARITY = (f"hatchway.{name}" for name in ("escape", "role", "valid", "similarity"))
WORKER_LOST = "worker_lost"
"""`error_type` of an attempt whose worker died before it could be settled."""
READ_AT_ONCE = 1000

events = usage_events.c


class EscapeRow(msgspec.Struct, frozen=True, kw_only=True):
    """`plan`, `report` and `events` are JSON."""

    escape_id: str
    source: str
    target: str
    state: str
    started_at: datetime
    ended_at: datetime | None
    author: str
    plan: bytes
    report: bytes | None
    events: bytes


def save_escape(engine: Engine, row: EscapeRow, *, is_new: bool = False) -> None:
    """Raises `StoreError`."""
    values = {
        **{name: getattr(row, name) for name in ("source", "target", "state", "started_at", "ended_at", "author")},
        "plan": _json(row.plan),
        "report": None if row.report is None else _json(row.report),
        "events": _json(row.events),
    }
    statement = (
        insert(escapes).values(escape_id=row.escape_id, **values)
        if is_new
        else update(escapes).where(escapes.c.escape_id == row.escape_id).values(**values)
    )
    with engine.begin() as connection:
        connection.execute(statement)


def list_escapes(engine: Engine, *, states: Sequence[str] = (), limit: int = 100) -> list[EscapeRow]:
    """The newest first; `states`: only those, none for all. Raises `StoreError`."""
    return _read(engine, escapes.c.state.in_(states) if states else literal(True), limit)


def find_escape(engine: Engine, prefix: str) -> EscapeRow | None:
    """The escape whose id `prefix` begins. Raises `ValueError` when it fits several, `StoreError`."""
    if not prefix or not prefix.isprintable():
        return None
    found = _read(engine, func.starts_with(escapes.c.escape_id, prefix), 2)
    if len(found) > 1:
        raise ValueError(
            f"`{prefix[:80]}` begins several escapes\nhint: write more of it; `hatchway escape list` shows"
        )
    return found[0] if found else None


def _read(engine: Engine, condition: ColumnElement[bool], limit: int) -> list[EscapeRow]:
    plain = (escapes.c[name] for name in ("escape_id", "source", "target", "state", "started_at", "ended_at", "author"))
    json = (cast(escapes.c[name], Text).label(name) for name in ("plan", "report", "events"))
    query = select(*plain, *json).where(condition).order_by(escapes.c.started_at.desc(), escapes.c.escape_id)
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query.limit(limit)).mappings()]
    encoded = [{name: row[name] and row[name].encode() for name in ("plan", "report", "events")} for row in rows]
    return [EscapeRow(**{**row, **texts}) for row, texts in zip(rows, encoded, strict=True)]


def _json(text: bytes) -> ColumnElement[Any]:
    return cast(literal(text.decode(), Text), JSONB)


# Measuring


def measure_target(
    engine: Engine, escape_id: str, role: str, targets: Sequence[str], since: datetime, half: float, recent: int
) -> dict[str, Any]:
    """The escape's own attempts at `targets` that started at `since` or later: the fields of `guards.Sample`.

    `half`: half the width of the median's interval, as a quantile, times the root of the number of requests.
    `recent`: how many of the last ones are told one by one. Raises `StoreError`.
    """
    mine = and_(
        events.endpoint.in_(targets),
        events.tags[ESCAPE].astext == escape_id,
        events.tags[ROLE].astext == role,
        events.started_at >= since,
    )
    last = select(events.status != "ok").where(mine, _counted()).order_by(events.started_at.desc()).limit(recent)
    with engine.connect() as connection:
        failed = tuple(connection.execute(last).scalars())
    return {**_measure(engine, mine, half), "recent": failed}


def measure_source(
    engine: Engine, escape_id: str, sources: Sequence[str], since: datetime, half: float
) -> dict[str, Any]:
    """The control group: requests that might have been moved, and that `sources` were asked first. Those that the
    target could not have served are others. Raises `StoreError`."""
    control = and_(
        events.endpoint.in_(sources),
        events.attempt == 1,
        events.tags[ESCAPE].astext == escape_id,
        ~events.tags.has_key(ROLE),
        events.started_at >= since,
    )
    return _measure(engine, control, half)


def _counted() -> ColumnElement[bool]:
    """What a client gave up, and what died with a worker of ours, says nothing of the endpoint."""
    is_ours = and_(events.error_type.is_not(None), events.error_type == WORKER_LOST)
    return and_(events.status.in_(("ok", "error", "timeout")), ~is_ours)


def _measure(engine: Engine, group: ColumnElement[bool], half: float) -> dict[str, Any]:
    counted = _counted()
    is_ok = events.status == "ok"
    ttft = func.coalesce(events.ttft_ms, events.duration_ms)
    valid, similarity = events.tags[VALID].astext, events.tags[SIMILARITY].astext
    number = case((similarity.regexp_match(r"^[01](\.[0-9]+)?$"), cast(similarity, Double)))
    sums = select(
        func.count().filter(counted).label("requests"),
        func.count().filter(counted, ~is_ok).label("failures"),
        func.count().filter(is_ok).label("timed"),
        func.count().filter(is_ok, valid.is_not(None)).label("judged"),
        func.count().filter(is_ok, valid != "yes").label("invalid"),
        func.count().filter(is_ok, events.cost_usd.is_not(None)).label("priced"),
        func.count().filter(is_ok, events.cost_usd.is_(None)).label("unpriced"),
        func.avg(events.cost_usd).filter(is_ok).label("cost_mean"),
        func.stddev_samp(events.cost_usd).filter(is_ok).label("cost_deviation"),
        func.count(number).filter(is_ok).label("compared"),
        func.avg(number).filter(is_ok).label("similarity_mean"),
        func.stddev_samp(number).filter(is_ok).label("similarity_deviation"),
    ).where(group)
    with engine.connect() as connection:
        found: dict[str, Any] = dict(connection.execute(sums).mappings().one())
        if found["timed"]:
            width = half / found["timed"] ** 0.5
            quantiles = {"ttft_low": max(0.0, 0.5 - width), "ttft_median": 0.5, "ttft_high": min(1.0, 0.5 + width)}
            places = select(
                *(
                    func.percentile_cont(quantile).within_group(ttft).filter(is_ok).label(name)
                    for name, quantile in {**quantiles, "ttft_p95": 0.95}.items()
                )
            ).where(group)
            found |= dict(connection.execute(places).mappings().one())
    return found


# What was served, for plans


class ServedRow(NamedTuple):
    """An attempt that a source served. `decision`: the JSON of what was decided, None where that was not kept."""

    request_id: str
    started_at: datetime
    endpoint: str
    policy: str
    team: str
    project: str | None
    key_id: str
    model: str
    domain: str | None
    stream: bool
    usage: Usage
    cost_usd: Any
    decision: bytes | None


def read_served(engine: Engine, sources: Sequence[str], since: datetime, until: datetime) -> Iterator[ServedRow]:
    """Answers of `sources` to requests of `since` <= t < `until`, in time order, read piece by piece. Copies that
    nobody saw are left out. Raises `StoreError`."""
    names = ("request_id", "started_at", "endpoint", "policy", "team", "project", "key_id", "model", "domain", "stream")
    query = (
        select(
            *(events[name] for name in names),
            *(events[bucket] for bucket in BUCKETS),
            events.cost_usd,
            DECISION_BODY.label("decision"),
        )
        .outerjoin(decisions, decisions.c.request_id == events.request_id)
        .where(
            events.endpoint.in_(sources),
            events.status == "ok",
            events.started_at >= since,
            events.started_at < until,
            func.coalesce(events.tags[ROLE].astext, "") != "shadow",
        )
        .order_by(events.started_at)
    )
    with engine.connect() as connection:
        for row in connection.execution_options(yield_per=READ_AT_ONCE).execute(query).mappings():
            yield ServedRow(
                **{name: row[name] for name in names},
                usage=Usage(**{bucket: row[bucket] for bucket in BUCKETS}),
                cost_usd=row["cost_usd"],
                decision=None if row["decision"] is None else row["decision"].encode(),
            )


def latency_of(engine: Engine, endpoints: Sequence[str], since: datetime, until: datetime) -> dict[str, dict[str, Any]]:
    """What each endpoint's own answers took: the fields of `plan.Latency`, by endpoint. Raises `StoreError`."""
    writing = (events.duration_ms - events.ttft_ms) / 1000
    written = events.output_tokens + events.reasoning_tokens
    speed = case((and_(events.stream, writing > 0, written > 1), cast(written, Double) / writing))
    query = (
        select(
            events.endpoint,
            func.count().label("requests"),
            func.percentile_cont(0.5).within_group(events.ttft_ms).label("ttft_p50"),
            func.percentile_cont(0.95).within_group(events.ttft_ms).label("ttft_p95"),
            func.percentile_cont(0.5).within_group(speed).label("tokens_per_second"),
        )
        .where(
            events.endpoint.in_(endpoints),
            events.status == "ok",
            events.started_at >= since,
            events.started_at < until,
        )
        .group_by(events.endpoint)
    )
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(query).mappings()]
    return {row.pop("endpoint"): row for row in found}
