"""What a comparison with a provider reads of the ledger, and the comparisons that were kept."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Date,
    Engine,
    Select,
    and_,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from gateway.store.audit import Author, note
from gateway.store.tables import corrections, reconciliations, usage_events
from gateway.types import BUCKETS

WORKER_LOST = "worker_lost"
"""`error_type` of an attempt whose worker died before it knew how the attempt ended."""
MAX_GROUPS = 2_000_000
"""Groups read from the ledger at once: more is a mistake in the period, and would fill the memory."""
MARGIN = timedelta(days=1)
"""Read before and behind the period: what lies near its ends may belong to it in the provider's count of days."""

_events = usage_events.c
_rows = corrections.c


class LedgerSum(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts that are alike. `day`, `ended`, `booked`: days in the zone that was asked for, on which they started,
    ended, and count in the books; `hour`: UTC. `prices`: their own rates. `cost_usd` None: unknown, also by a
    correction it has none. `max_cost_usd`: what they may have cost at most; `unbounded`: those of which not even that
    is known."""

    hour: datetime
    day: date
    ended: date
    booked: date
    model: str
    status: str
    is_lost: bool
    usage_source: str
    is_priced: bool
    is_unpriced: bool
    prices: Mapping[str, Any] | None
    attempts: int
    tokens: Mapping[str, int]
    cost_usd: Decimal
    max_cost_usd: Decimal
    unbounded: int


class CorrectionSum(msgspec.Struct, frozen=True, kw_only=True):
    """Corrections that are alike. `day`: on which the attempts started, None: of no attempt. `old`, `new`: rates that
    a price correction replaced and set; `tokens`: of the attempts."""

    kind: str
    day: date | None
    booked: date
    model: str | None
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None
    tokens: Mapping[str, int]
    attempts: int
    amount_usd: Decimal


def ledger_sums(
    engine: Engine, providers: Sequence[str], since: datetime, until: datetime, zone: str
) -> tuple[list[LedgerSum], list[CorrectionSum]]:
    """Attempts at the providers that started or are booked in `since` <= t < `until`, a day's margin around, and their
    corrections, from one moment. `zone`: IANA name. Raises ValueError for too many groups, StoreError."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        rows = connection.execute(_attempts(providers, since, until, zone)).mappings().all()
        changes = connection.execute(_changes(providers, since, until, zone)).mappings().all()
    if len(rows) > MAX_GROUPS:
        raise ValueError(f"more than {MAX_GROUPS} groups in the ledger\nhint: choose a shorter time")
    attempts = [
        LedgerSum(
            **{name: row[name] for name in LedgerSum.__struct_fields__ if name != "tokens"},
            tokens={bucket: int(row[bucket]) for bucket in BUCKETS},
        )
        for row in rows
    ]
    corrected = [
        CorrectionSum(
            **{name: row[name] for name in CorrectionSum.__struct_fields__ if name != "tokens"},
            tokens={bucket: int(row[bucket] or 0) for bucket in BUCKETS},
        )
        for row in changes
    ]
    return attempts, corrected


def ledger_providers(engine: Engine) -> list[str]:
    """The providers that the ledger has attempts at. Raises StoreError."""
    with engine.connect() as connection:
        return list(connection.execute(select(_events.provider).distinct().order_by(_events.provider)).scalars())


def save_reconciliation(engine: Engine, *, source: str, result: Mapping[str, Any], author: Author) -> str:
    """Keeps a result and returns its id. Raises StoreError."""
    found = f"rec_{datetime.now(UTC):%Y%m%d}_{secrets.token_hex(6)}"
    with engine.begin() as connection:
        row = {"reconciliation_id": found, "author": author.actor, "source": source, "result": result}
        connection.execute(insert(reconciliations).values(**row))
        note(
            connection,
            actor=author.actor,
            role=author.role,
            action="reconciliations.save",
            subject=found,
            detail={"source": source, **{name: result.get(name) for name in ("from", "to", "difference_usd")}},
        )
    return found


def list_reconciliations(engine: Engine, limit: int = 100) -> list[dict[str, Any]]:
    """The newest first, without their lines. Raises StoreError."""
    columns = reconciliations.c
    slim = columns.result.op("-")(literal("differences")).op("-")(literal("asides"))
    query = select(
        columns.reconciliation_id, columns.at, columns.author, columns.source, cast(slim, JSONB).label("result")
    )
    with engine.connect() as connection:
        ordered = query.order_by(columns.at.desc(), columns.reconciliation_id).limit(limit)
        return [dict(row) for row in connection.execute(ordered).mappings()]


def find_reconciliation(engine: Engine, reconciliation_id: str) -> dict[str, Any] | None:
    """One of them, whole. Raises StoreError."""
    if not reconciliation_id.isprintable():
        return None
    query = select(reconciliations).where(reconciliations.c.reconciliation_id == reconciliation_id)
    with engine.connect() as connection:
        row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def delete_reconciliation(engine: Engine, reconciliation_id: str, author: Author) -> bool:
    """Whether there was one. Raises StoreError."""
    with engine.begin() as connection:
        gone = connection.execute(
            delete(reconciliations).where(reconciliations.c.reconciliation_id == reconciliation_id)
        ).rowcount
        if gone:
            note(
                connection,
                actor=author.actor,
                role=author.role,
                action="reconciliations.delete",
                subject=reconciliation_id,
            )
    return bool(gone)


def _attempts(providers: Sequence[str], since: datetime, until: datetime, zone: str) -> Select[Any]:
    first_price = select(1).where(_rows.event_id == _events.event_id, _rows.is_first_price).exists()
    is_known = _events.cost_usd.is_not(None)
    no_cost = and_(~is_known, ~first_price)
    groups = {
        "hour": func.date_trunc("hour", _events.started_at, "UTC"),
        "day": _day(_events.started_at, zone),
        "ended": _day(_events.ended_at, zone),
        "booked": _day(_events.booked_at, zone),
        "model": _events.upstream_model,
        "status": _events.status,
        "is_lost": func.coalesce(_events.error_type == WORKER_LOST, False),
        "usage_source": _events.usage_source,
        "is_priced": is_known,
        "is_unpriced": no_cost,
        "prices": _events.prices,
    }
    named = select(
        *(expression.label(name) for name, expression in groups.items()),
        *(_events[bucket] for bucket in BUCKETS),
        _events.cost_usd,
        _events.max_cost_usd,
    )
    near = or_(
        and_(_events.started_at >= since - MARGIN, _events.started_at < until + MARGIN),
        and_(_events.booked_at >= since, _events.booked_at < until),
    )
    found = named.where(_events.provider.in_(providers), near).subquery()
    columns = found.c
    return (
        select(
            *(columns[name] for name in groups),
            func.count().label("attempts"),
            *(func.sum(columns[bucket]).label(bucket) for bucket in BUCKETS),
            func.coalesce(func.sum(columns.cost_usd), 0).label("cost_usd"),
            func.coalesce(func.sum(columns.max_cost_usd).filter(columns.is_unpriced), 0).label("max_cost_usd"),
            func.count().filter(columns.is_unpriced, columns.max_cost_usd.is_(None)).label("unbounded"),
        )
        .group_by(*(columns[name] for name in groups))
        .limit(MAX_GROUPS + 1)
    )


def _changes(providers: Sequence[str], since: datetime, until: datetime, zone: str) -> Select[Any]:
    """Price corrections know what they replaced: the rates of the one before, else the attempt's own."""
    before = func.lag(_rows.prices).over(
        partition_by=(_rows.event_id, _rows.kind), order_by=(_rows.at, _rows.correction_id)
    )
    named = (
        select(
            _rows.kind,
            _day(_events.started_at, zone).label("day"),
            _day(_rows.booked_at, zone).label("booked"),
            func.coalesce(_events.upstream_model, _rows.upstream_model).label("model"),
            func.coalesce(before, _events.prices, type_=JSONB).label("old"),
            _rows.prices.label("new"),
            _rows.amount_usd,
            *(_events[bucket] for bucket in BUCKETS),
            _events.started_at,
            _rows.booked_at,
        )
        .select_from(corrections.outerjoin(usage_events, _events.event_id == _rows.event_id))
        .where(_rows.provider.in_(providers))
        .subquery()
    )
    columns = named.c
    groups = [columns[name] for name in ("kind", "day", "booked", "model", "old", "new")]
    near = or_(
        and_(columns.started_at >= since, columns.started_at < until),
        and_(columns.booked_at >= since, columns.booked_at < until),
    )
    return (
        select(
            *groups,
            func.count().label("attempts"),
            *(func.sum(columns[bucket]).label(bucket) for bucket in BUCKETS),
            func.sum(columns.amount_usd).label("amount_usd"),
        )
        .where(near)
        .group_by(*groups)
    )


def _day(moment: ColumnElement[Any], zone: str) -> ColumnElement[Any]:
    return cast(func.timezone(zone, moment), Date)
