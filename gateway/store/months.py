"""Closed months, and what is in a month: sums, and the rows themselves as bytes that anybody can hash again.

A month is of UTC. A row is in the month of `booked_at`: triggers see to it that nothing is booked in a closed one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, Table, func, insert, select, text

from gateway.errors import StoreError
from gateway.store.tables import MEASURES, corrections, months, usage_events, usage_hours
from gateway.types import BUCKETS

LOCK = 7305801
"""Key of the advisory lock that writers of the ledger share, and that closing a month takes alone (migration 0003)."""
LOCK_SECONDS = 60
_PROGRESS_ROWS = 10_000

_hours, _events, _corrections = usage_hours.c, usage_events.c, corrections.c

Count = Callable[[int], None]
"""Told now and then how many rows are done."""


class MonthRow(msgspec.Struct, frozen=True, kw_only=True):
    """A closed month. `signature`: Ed25519 over the manifest as canonical JSON; `public_key`: raw, 32 bytes."""

    month: date
    closed_at: datetime
    author: str
    manifest: dict[str, Any]
    signature: bytes
    public_key: bytes


class OpenMonth(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of a month so far. `unpriced`: attempts that still have no cost."""

    month: date
    attempts: int
    cost_usd: Decimal
    unpriced: int


class RowSums(msgspec.Struct, frozen=True, kw_only=True):
    """Out of the rows, not of `usage_hours`. `late`: booked here because their own month was closed when they came."""

    attempts: int
    tokens: dict[str, int]
    cost_usd: Decimal
    late: int
    catalogues: list[str]
    gateways: list[str]
    corrections: int
    corrected_usd: Decimal


class Digest(NamedTuple):
    rows: int
    sha256: str


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """A transaction during which nobody else writes to the ledger; they wait. Raises `StoreError`, also when another
    transaction does not end for `LOCK_SECONDS`."""
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
        yield connection


def clock(connection: Connection) -> datetime:
    """The database's, which the triggers go by."""
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


def find_month(connection: Connection, month: date) -> MonthRow | None:
    row = connection.execute(select(months).where(months.c.month == month)).first()
    return None if row is None else _month_row(row._mapping)


def closed_months(connection: Connection) -> list[MonthRow]:
    """In the order of time."""
    return [_month_row(row._mapping) for row in connection.execute(select(months).order_by(months.c.month))]


def last_closed(connection: Connection) -> MonthRow | None:
    """The one that was closed last, which need not be the latest month."""
    query = select(months).order_by(months.c.closed_at.desc(), months.c.month.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _month_row(row._mapping)


def add_month(connection: Connection, row: MonthRow) -> None:
    """Raises `sqlalchemy.exc.IntegrityError` when the month is closed already."""
    connection.execute(insert(months).values(**msgspec.structs.asdict(row)))


def open_months(connection: Connection) -> list[OpenMonth]:
    """Months in which something is booked and that are not closed, in the order of time."""
    month = func.date_trunc("month", _hours.hour, "UTC").label("month")
    query = select(
        month,
        func.sum(_hours.attempts).label("attempts"),
        func.sum(_hours.cost_usd + _hours.corrected_usd).label("cost_usd"),
        func.sum(_hours.unpriced - _hours.repriced).label("unpriced"),
    ).group_by(month)
    closed = set(connection.execute(select(months.c.month)).scalars())
    found = []
    for row in connection.execute(query.order_by(month)):
        of = row.month.astimezone(UTC).date()
        if of not in closed:
            found.append(
                OpenMonth(month=of, attempts=int(row.attempts), cost_usd=row.cost_usd, unpriced=int(row.unpriced))
            )
    return found


def hour_sums(
    connection: Connection, since: datetime, until: datetime, by: str | None = None
) -> dict[str, dict[str, Decimal]]:
    """Every measure of `usage_hours`, by the values of a dimension; under the empty text alone when there is none."""
    sums = [func.coalesce(func.sum(_hours[name]), 0).label(name) for name in MEASURES]
    query = select(*sums).where(_hours.hour >= since, _hours.hour < until)
    if by is None:
        return {"": dict(connection.execute(query).one()._mapping)}
    query = query.add_columns(_hours[by].label("value")).group_by(_hours[by]).order_by(_hours[by])
    return {row.value: {name: row._mapping[name] for name in MEASURES} for row in connection.execute(query)}


def row_sums(connection: Connection, since: datetime, until: datetime) -> RowSums:
    query = select(
        func.count().label("attempts"),
        *(func.coalesce(func.sum(_events[bucket]), 0).label(bucket) for bucket in BUCKETS),
        func.coalesce(func.sum(_events.cost_usd), 0).label("cost_usd"),
        func.count(_events.late_at).label("late"),
        func.array_agg(_events.catalog_version.distinct()).label("catalogues"),
        func.array_agg(_events.gateway.distinct()).label("gateways"),
    ).where(_events.booked_at >= since, _events.booked_at < until)
    found = connection.execute(query).one()._mapping
    corrected = connection.execute(
        select(func.count(), func.coalesce(func.sum(_corrections.amount_usd), 0)).where(
            _corrections.booked_at >= since, _corrections.booked_at < until
        )
    ).one()
    return RowSums(
        attempts=found["attempts"],
        tokens={bucket: int(found[bucket]) for bucket in BUCKETS},
        cost_usd=found["cost_usd"],
        late=found["late"],
        catalogues=_known(found["catalogues"]),
        gateways=_known(found["gateways"]),
        corrections=corrected[0],
        corrected_usd=corrected[1],
    )


def digest_events(
    connection: Connection, since: datetime, until: datetime, columns: Sequence[str], count: Count | None = None
) -> Digest:
    """SHA-256 over the usage events booked in `since` <= t < `until`, in the order of `event_id`.

    Each is a line as PostgreSQL's COPY writes it: CSV, UTF-8, times in UTC. So `psql` and `sha256sum` come to the same.
    Raises ValueError for a column that there is not, `StoreError`.
    """
    return _digest(connection, usage_events, "event_id", columns, since, until, count)


def digest_corrections(
    connection: Connection, since: datetime, until: datetime, columns: Sequence[str], count: Count | None = None
) -> Digest:
    """The same of corrections, in the order of `correction_id`."""
    return _digest(connection, corrections, "correction_id", columns, since, until, count)


def column_names(table: Table) -> list[str]:
    return [str(column.name) for column in table.columns]  # SQLAlchemy has a type of its own for names


def _digest(
    connection: Connection,
    table: Table,
    order: str,
    columns: Sequence[str],
    since: datetime,
    until: datetime,
    count: Count | None,
) -> Digest:
    if unknown := [name for name in columns if name not in table.c]:
        raise ValueError(f"`{table.name}` has no column `{unknown[0][:80]}`")
    for setting in ("TimeZone = 'UTC'", "DateStyle = 'ISO, YMD'", "extra_float_digits = 1", "client_encoding = 'UTF8'"):
        connection.execute(text(f"SET LOCAL {setting}"))
    query = sql.SQL(
        "COPY (SELECT {columns} FROM {table} WHERE booked_at >= {since} AND booked_at < {until} ORDER BY {order})"
        " TO STDOUT (FORMAT csv)"
    ).format(
        columns=sql.SQL(", ").join(sql.Identifier(name) for name in columns),
        table=sql.Identifier(table.name),
        since=sql.Literal(since),
        until=sql.Literal(until),
        order=sql.Identifier(order),
    )
    driver: Any = connection.connection.driver_connection
    total, hashed = 0, hashlib.sha256()
    try:
        with driver.cursor() as cursor, cursor.copy(query) as rows:
            for row in rows:
                hashed.update(row)
                total += 1
                if count is not None and total % _PROGRESS_ROWS == 0:
                    count(total)
    except psycopg.OperationalError as error:  # past SQLAlchemy, which would have said so
        raise StoreError(f"PostgreSQL failed: {str(error).strip()}\nhint: see the log of the server") from None
    return Digest(total, hashed.hexdigest())


def _month_row(found: Mapping[Any, Any]) -> MonthRow:
    return MonthRow(
        month=found["month"],
        closed_at=found["closed_at"].astimezone(UTC),
        author=found["author"],
        manifest=found["manifest"],
        signature=bytes(found["signature"]),
        public_key=bytes(found["public_key"]),
    )


def _known(values: Sequence[str | None] | None) -> list[str]:
    return sorted(value for value in values or () if value is not None)
