"""What the ledger holds, added up to charges: groups of attempts that cost alike, and corrections one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Engine, Row, Select, and_, func, select, text

from gateway.store.tables import corrections, usage_events, usage_hours
from gateway.types import BUCKETS

Grain = Literal["hour", "day"]

_WORK_MEMORY = "64MB"
_FETCH = 2000  # rows at a time: bounds the memory here; PostgreSQL spills to disk by itself

SAME = (
    *("organisation", "team", "project", "key_id", "cost_center", "endpoint", "provider", "model", "upstream_model"),
    *("region", "service_tier", "usage_source"),
)
"""What a charge keeps apart, beside its time and its prices."""

_events, _corrections, _hours = usage_events.c, corrections.c, usage_hours.c


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts of one hour or day that have all of SAME and their prices in common.

    `period`: when they started, `day`: on which they are booked; both are beginnings, UTC. `cost_usd` None: nobody
    knows it, `max_cost_usd` is then the most it may be, as far as that is known. `tokens` by bucket. `catalog_version`
    and `prices` as the rows have them.
    """

    period: datetime
    day: datetime
    same: dict[str, str | None]
    prices: Any
    catalog_version: str | None
    tokens: dict[str, int]
    attempts: int
    cost_usd: Decimal | None
    max_cost_usd: Decimal


class CorrectedCharge(msgspec.Struct, frozen=True, kw_only=True):
    """One correction. `period`: of the attempt it corrects; where it is of no single attempt, of when it is booked."""

    period: datetime
    day: datetime
    same: dict[str, str | None]
    correction_id: str
    event_id: str | None
    kind: str
    reason: str
    is_first_price: bool
    catalog_version: str | None
    amount_usd: Decimal


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one moment of the ledger throughout, and changes nothing. Raises `StoreError`."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True) as connection:
        yield connection


def booked_days(connection: Connection, since: datetime | None, until: datetime) -> list[datetime]:
    """Beginnings of the UTC days in which something is booked, within `since` <= t < `until`, in order."""
    day = func.date_trunc("day", _hours.hour, "UTC")
    query = select(day).where(_hours.hour < until).distinct().order_by(day)
    if since is not None:
        query = query.where(_hours.hour >= since.astimezone(UTC).replace(minute=0, second=0, microsecond=0))
    return [found.astimezone(UTC) for found in connection.execute(query).scalars()]


def charges(connection: Connection, since: datetime, until: datetime, grain: Grain) -> Iterator[Charge]:
    """Of the attempts booked in `since` <= t < `until`, day by day, and in an order in which two runs agree.

    For the rest of the transaction PostgreSQL sorts only where it must.
    """
    day = func.date_trunc("day", _events.booked_at, "UTC").label("day")
    period = func.date_trunc(grain, _events.started_at, "UTC").label("period")
    is_unknown = _events.cost_usd.is_(None).label("is_unknown")
    keys = (day, period, *(_events[name] for name in SAME), _events.catalog_version, is_unknown, _events.prices)
    used = func.greatest(*(_events[bucket] for bucket in BUCKETS)) > 0
    grouped = (
        select(
            *keys,
            *(func.sum(_events[bucket]).label(bucket) for bucket in BUCKETS),
            func.count().label("attempts"),
            func.sum(_events.cost_usd).label("cost_usd"),
            func.coalesce(func.sum(_events.max_cost_usd), 0).label("max_cost_usd"),
        )
        # Refused attempts used nothing and cost nothing: they are no charge.
        .where(_events.booked_at >= since, _events.booked_at < until, used | is_unknown | (_events.cost_usd > 0))
        .group_by(*keys)
        .cte("grouped")
        .prefix_with("MATERIALIZED")
    )
    query = select(grouped).order_by(*(grouped.c[key.name] for key in keys))
    # Attempts are many and charges few: they are hashed, and only the charges are sorted. PostgreSQL, which cannot know
    # how few, would sort all attempts by all keys.
    connection.execute(text(f"SET LOCAL enable_sort = off; SET LOCAL work_mem = '{_WORK_MEMORY}'"))
    for row in _stream(connection, query):
        found = row._mapping
        yield Charge(
            period=found["period"].astimezone(UTC),
            day=found["day"].astimezone(UTC),
            same={name: found[name] for name in SAME},
            prices=found["prices"],
            catalog_version=found["catalog_version"],
            tokens={bucket: int(found[bucket]) for bucket in BUCKETS},
            attempts=found["attempts"],
            cost_usd=found["cost_usd"],
            max_cost_usd=found["max_cost_usd"],
        )


def corrected_charges(
    connection: Connection, since: datetime, until: datetime, grain: Grain
) -> Iterator[CorrectedCharge]:
    """The corrections booked in `since` <= t < `until`, in the order of booking."""
    day = func.date_trunc("day", _corrections.booked_at, "UTC").label("day")
    period = func.date_trunc(grain, func.coalesce(_events.started_at, _corrections.booked_at), "UTC").label("period")
    own = ("correction_id", "event_id", "kind", "reason", "is_first_price", "catalog_version", "amount_usd")
    query = (
        select(day, period, *(_corrections[name] for name in (*own, *SAME)))
        .select_from(corrections.outerjoin(usage_events, _events.event_id == _corrections.event_id))
        .where(_corrections.booked_at >= since, _corrections.booked_at < until)
        .order_by(_corrections.booked_at, _corrections.correction_id)
    )
    for row in _stream(connection, query):
        found = row._mapping
        yield CorrectedCharge(
            period=found["period"].astimezone(UTC),
            day=found["day"].astimezone(UTC),
            same={name: found[name] for name in SAME},
            **{name: found[name] for name in own},
        )


def ledger_cost(connection: Connection, since: datetime | None, until: datetime) -> Decimal:
    """USD, with corrections, of all that is booked in `since` <= t < `until`: to the last digit."""
    sums = [
        select(func.coalesce(func.sum(amount), 0))
        .where(booked_at < until if since is None else and_(booked_at >= since, booked_at < until))
        .scalar_subquery()
        for amount, booked_at in (
            (_events.cost_usd, _events.booked_at),
            (_corrections.amount_usd, _corrections.booked_at),
        )
    ]
    total: Decimal = connection.execute(select(sums[0] + sums[1])).scalar_one()  # added there: nothing is rounded
    return total


def month_parts(
    days: Sequence[datetime], since: datetime | None, until: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """The bounds cut at months, of those months that have one of the days."""
    for month in sorted({day.replace(day=1) for day in days}):
        end = (month + timedelta(days=32)).replace(day=1)
        yield (month if since is None else max(month, since)), min(end, until)


def _stream(connection: Connection, query: Select[Any]) -> Iterator[Row[Any]]:
    """Through a cursor of the server: neither side holds the whole answer."""
    with connection.execute(query, execution_options={"yield_per": _FETCH}) as result:
        yield from result
