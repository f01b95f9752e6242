"""What was spent since a moment, out of the sums by the hour: costs, what attempts without a known cost may have cost,
and corrections.

Whole hours come from `usage_hours`. Where a period begins or ends inside an hour (a time zone with half an hour), the
rows of that hour are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    RowMapping,
    Table,
    and_,
    cast,
    func,
    or_,
    select,
    union_all,
)

from gateway.store.tables import corrections, usage_events, usage_hours

DIMENSIONS = ("organisation", "team", "project", "key_id", "cost_center", "model")
"""What accounts are made of."""
_EXACT = Context(prec=200)
_ZERO = Decimal(0)
_HOUR = timedelta(hours=1)


class Payer(msgspec.Struct, frozen=True, kw_only=True):
    """Whose spending is meant: rows in which each dimension given has this value. `models`: whose `model` and team
    also satisfy `covers`."""

    where: Mapping[str, str] = {}
    covers: Callable[[str, str], bool] | None = None

    def has(self, row: Mapping[str, Any] | RowMapping) -> bool:
        if any(row[name] != value for name, value in self.where.items()):
            return False
        return self.covers is None or self.covers(row["model"], row["team"])


def payer_of(account: str, covers: Callable[[str, str], bool] | None = None) -> Payer:
    """Of an account's text, as `gateway.budgets.accounts` writes it. `covers`: of an account of models.

    Raises ValueError for a text that names no account.
    """
    kind, colon, name = account.partition(":")
    if colon and name:
        match kind:
            case "key":
                return Payer(where={"key_id": name})
            case "project":
                team, slash, project = name.partition("/")
                if slash and team and project:
                    return Payer(where={"team": team, "project": project})
            case "team" | "cost_center" | "organisation":
                return Payer(where={kind: name})
            case "models":
                return Payer(covers=covers)
    raise ValueError(
        f"`{account[:100]}` is no account\nhint: write it as in `team:payments` or `project:payments/shop`"
    )


def spent(connection: Connection, payer: Payer, start: datetime, end: datetime) -> Decimal:
    """USD in [start, end), exactly; times have zones. Unknown costs count with their upper bound. Raises StoreError."""
    names = ("model", "team") if payer.covers is not None else ()
    parts = []
    for table, usd, when in _pieces(start, end):
        columns = [func.coalesce(table.c[name], "").label(name) for name in names]
        wanted = [table.c[name] == value for name, value in payer.where.items()]
        parts.append(select(*columns, func.sum(usd).label("usd")).where(when, *wanted).group_by(*columns))
    total = _ZERO
    for row in connection.execute(union_all(*parts)).mappings():
        if row["usd"] is not None and (payer.covers is None or payer.covers(row["model"], row["team"])):
            total = _EXACT.add(total, row["usd"])
    return total


def spent_by_payers(
    connection: Connection, payers: Mapping[str, Payer], start: datetime, end: datetime
) -> dict[str, Decimal]:
    """The same for many in one reading. Raises StoreError."""
    totals = dict.fromkeys(payers, _ZERO)
    parts = []
    for table, usd, when in _pieces(start, end):
        columns = [func.coalesce(table.c[name], "").label(name) for name in DIMENSIONS]
        parts.append(select(*columns, func.sum(usd).label("usd")).where(when).group_by(*columns))
    rows = [row for row in connection.execute(union_all(*parts)).mappings() if row["usd"] is not None]
    # Most payers are named by one or two values: they are found by these, and only the others are compared with each.
    by_values: dict[tuple[str, ...], dict[tuple[str, ...], list[str]]] = {}
    compared = {}
    for id, payer in payers.items():
        if payer.covers is None:
            names = tuple(payer.where)
            by_values.setdefault(names, {}).setdefault(tuple(payer.where.values()), []).append(id)
        else:
            compared[id] = payer
    for row in rows:
        usd = row["usd"]
        for names, found in by_values.items():
            for id in found.get(tuple(row[name] for name in names), ()):
                totals[id] = _EXACT.add(totals[id], usd)
        for id, payer in compared.items():
            if payer.has(row):
                totals[id] = _EXACT.add(totals[id], usd)
    return totals


def spent_by_day(
    connection: Connection, payer: Payer, start: datetime, end: datetime, zone: str
) -> dict[date, Decimal]:
    """USD of the days of a time zone, as far as whole hours can be told apart. Raises StoreError."""
    columns = usage_hours.c
    day = cast(func.timezone(zone, columns.hour), Date).label("day")
    names = [columns.model, columns.team] if payer.covers is not None else []
    query = (
        select(day, *names, func.sum(_hours_usd()).label("usd"))
        .where(columns.hour >= start, columns.hour < end, *(columns[name] == v for name, v in payer.where.items()))
        .group_by(day, *names)
    )
    found: dict[date, Decimal] = {}
    for row in connection.execute(query).mappings():
        if payer.covers is None or payer.covers(row["model"], row["team"]):
            found[row["day"]] = _EXACT.add(found.get(row["day"], _ZERO), row["usd"])
    return found


def _pieces(start: datetime, end: datetime) -> Iterable[tuple[Table, ColumnElement[Any], ColumnElement[bool]]]:
    """Tables, their money, and which of their rows are in [start, end)."""
    if start.tzinfo is None or end.tzinfo is None:
        raise ValueError("a time has no zone\nhint: give times with a zone, such as UTC")
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    first = start.replace(minute=0, second=0, microsecond=0)
    first = first if first == start else first + _HOUR
    last = end.replace(minute=0, second=0, microsecond=0)
    hour = usage_hours.c.hour
    yield usage_hours, _hours_usd(), and_(hour >= first, hour < last)
    edges = [edge for edge in ((start, min(first, end)), (max(last, start), end)) if edge[0] < edge[1]]
    if first > last:
        edges = [(start, end)]  # all of it inside one hour
    if edges:
        events = usage_events.c
        usd = func.coalesce(events.cost_usd, events.max_cost_usd, 0)
        yield usage_events, usd, _within(events.booked_at, edges)
        yield corrections, corrections.c.amount_usd, _within(corrections.c.booked_at, edges)


def _within(at: ColumnElement[Any], edges: Iterable[tuple[datetime, datetime]]) -> ColumnElement[bool]:
    return or_(*(and_(at >= since, at < until) for since, until in edges))


def _hours_usd() -> ColumnElement[Any]:
    columns = usage_hours.c
    return columns.cost_usd + columns.max_cost_usd + columns.corrected_usd
