"""`usage_hours` and `usage_days`: sums of the ledger by the hour and the day. Triggers keep them; here they are
compared with the rows, and rebuilt.

What is summed is written twice, here and in the migration that made the triggers, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    Engine,
    FromClause,
    Numeric,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    union,
    union_all,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from gateway.store.tables import DIMENSIONS, MEASURES, corrections, usage_days, usage_events, usage_hours
from gateway.types import BUCKETS

MONTHS_LOCK = 7305801
"""The advisory lock that writers of the ledger share. Whoever takes it alone meets no half-written rows."""
LOCK_SECONDS = 60
MAX_DIFFERENCES = 1000

Columns = ReadOnlyColumnCollection[str, Any]
Progress = Callable[[str, int, int], None]
"""What is done, how much of it, and of how much."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One group of an hour or a day whose sums are not what they are sums of. `group`: its known dimensions.

    `missing`: what is too little in the sums, negative where it is too much, of each measure that differs.
    """

    start: datetime
    length: str  # `hour` or `day`
    group: dict[str, str]
    missing: dict[str, Decimal]


def event_sums() -> dict[str, ColumnElement[Any]]:
    """What `usage_events` add to the measures. An attempt has used tokens if any bucket has some."""
    events = usage_events.c
    used = func.greatest(*(events[bucket] for bucket in BUCKETS)) > 0  # their sum could pass the largest bigint
    unknown = events.cost_usd.is_(None)
    return {
        "attempts": func.count(),
        "requests": func.count().filter(events.attempt == 1),
        "errors": func.count().filter(events.status.in_(("error", "timeout", "shed"))),
        **{bucket: func.sum(events[bucket]) for bucket in BUCKETS},
        "cost_usd": func.coalesce(func.sum(events.cost_usd), 0),
        "used": func.count().filter(used),
        "priced_used": func.count().filter(used, events.cost_usd.is_not(None)),
        "unpriced": func.count().filter(unknown),
        "estimated": func.count().filter(events.usage_source == "estimated"),
        "max_cost_usd": func.coalesce(func.sum(events.max_cost_usd).filter(unknown), 0),
        "ttft_us": func.coalesce(func.sum(_microseconds(events.ttft_ms)), 0),
        "ttft_count": func.count(events.ttft_ms),
        "duration_us": func.coalesce(func.sum(_microseconds(events.duration_ms)), 0),
    }


def correction_sums() -> dict[str, ColumnElement[Any]]:
    """What `corrections` add to the measures."""
    return {
        "corrected_usd": func.sum(corrections.c.amount_usd),
        "repriced": func.count().filter(corrections.c.is_first_price),
    }


def rebuild(engine: Engine, progress: Progress | None = None) -> int:
    """Makes the sums anew from the rows; returns how many groups of hours there are now. Raises StoreError.

    Day by day, each in a transaction that takes the months' lock alone: writers wait for the moment, none of their rows
    is lost, and a rebuild that is stopped leaves every day either as it was or right.
    """
    days, groups = _days(engine), 0
    for position, day in enumerate(days):
        if progress is not None:
            progress(f"adding up {day}", position, len(days))
        groups += _rebuild_day(engine, day)
    if progress is not None:
        progress("added up", len(days), len(days))
    return groups


def differences(engine: Engine, limit: int = MAX_DIFFERENCES) -> list[Difference]:
    """Groups whose sums are not those of the rows, the oldest first, at most `limit`; empty: every digit is right.

    Of the hours against the rows, and of the days against the hours; one statement, so that all is of the same moment
    while others write. Raises StoreError.
    """
    rows = [_summed(usage_events.c, usage_events.c.booked_at, event_sums(), None)]
    rows.append(_summed(corrections.c, corrections.c.booked_at, correction_sums(), None))
    hours, days = usage_hours.c, usage_days.c
    of_hours = _unequal("hour", [*rows, _taken(hours, hours.hour)])
    of_days = _unequal("day", [_kept(hours, func.date_trunc("day", hours.hour, "UTC")), _taken(days, days.day)])
    both = union_all(of_hours, of_days).subquery("different")
    query = select(both).order_by(both.c.start, both.c.length, *(both.c[name] for name in DIMENSIONS)).limit(limit)
    with engine.connect() as connection:
        return [
            Difference(
                start=row["start"],
                length=row["length"],
                group={name: row[name] for name in DIMENSIONS if row[name]},
                missing={name: row[name] for name in MEASURES if row[name]},
            )
            for row in connection.execute(query).mappings()
        ]


def _unequal(length: str, parts: list[Select[Any]]) -> Select[Any]:
    """Groups in which `parts`, of which one is negative, do not add up to nothing."""
    part = union_all(*parts).subquery(f"{length}_part")
    names = [part.c.start, *(part.c[name] for name in DIMENSIONS)]
    sums = [func.sum(part.c[name]).label(name) for name in MEASURES]
    query = select(literal(length).label("length"), *names, *sums).group_by(*names)
    return query.having(or_(*(total.element != 0 for total in sums)))


def _kept(columns: Columns, start: ColumnElement[Any]) -> Select[Any]:
    return select(start.label("start"), *(columns[name] for name in (*DIMENSIONS, *MEASURES)))


def _taken(columns: Columns, start: ColumnElement[Any]) -> Select[Any]:
    names = [columns[name] for name in DIMENSIONS]
    return select(start.label("start"), *names, *((-columns[name]).label(name) for name in MEASURES))


def _days(engine: Engine) -> list[date]:
    """The UTC days that have rows or sums."""
    moments = (usage_events.c.booked_at, corrections.c.booked_at, usage_hours.c.hour, usage_days.c.day)
    days = union(*(select(cast(func.timezone("UTC", moment), Date).label("day")).distinct() for moment in moments))
    with engine.connect() as connection:
        return sorted(connection.execute(days).scalars())


def _rebuild_day(engine: Engine, day: date) -> int:
    hours, days = usage_hours.c, usage_days.c
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(select(func.pg_advisory_xact_lock(MONTHS_LOCK)))
        connection.execute(delete(usage_hours).where(_is_on(hours.hour, day)))
        connection.execute(delete(usage_days).where(_is_on(days.day, day)))
        parts = (
            _summed(usage_events.c, usage_events.c.booked_at, event_sums(), day),
            _summed(corrections.c, corrections.c.booked_at, correction_sums(), day),
        )
        _add_up(connection, usage_hours, union_all(*parts).subquery("part"))
        start = func.date_trunc("day", hours.hour, "UTC")
        _add_up(connection, usage_days, _kept(hours, start).where(_is_on(hours.hour, day)).subquery("part"))
        return connection.scalar(select(func.count()).where(_is_on(hours.hour, day))) or 0


def _add_up(connection: Connection, table: Table, part: FromClause) -> None:
    """Writes the sums of `part` to either table."""
    names = [part.c[name] for name in DIMENSIONS]
    group_id = cast(func.md5(cast(func.row(*names), Text)), Uuid(as_uuid=False))  # as the triggers name groups
    sums = select(part.c.start, group_id, *names, *(func.sum(part.c[name]) for name in MEASURES))
    columns = [column.name for column in table.columns]
    connection.execute(insert(table).from_select(columns, sums.group_by(part.c.start, *names)))


def _summed(
    columns: Columns, moment: ColumnElement[Any], sums: Mapping[str, ColumnElement[Any]], day: date | None
) -> Select[Any]:
    """The measures of `usage_events` or `corrections` by hour; both have the dimensions under the same names."""
    names = [func.coalesce(columns[name], "").label(name) for name in DIMENSIONS]
    measures = [sums.get(name, literal(0)).label(name) for name in MEASURES]
    query = select(func.date_trunc("hour", moment, "UTC").label("start"), *names, *measures)
    query = query.group_by(*(text(str(position)) for position in range(1, len(names) + 2)))
    return query if day is None else query.where(_is_on(moment, day))


def _is_on(moment: ColumnElement[Any], day: date) -> ColumnElement[bool]:
    midnight = datetime.combine(day, time.min, UTC)
    return and_(moment >= midnight, moment < midnight + timedelta(days=1))


def _microseconds(milliseconds: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.round(cast(milliseconds, Numeric) * 1000)
