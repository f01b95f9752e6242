"""What was used: sums over `usage_events` for reports, and the attempts of one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Date,
    Engine,
    RowMapping,
    Select,
    Text,
    case,
    cast,
    distinct,
    func,
    select,
    true,
    tuple_,
)

from gateway.store.tables import usage_events
from gateway.types import BUCKETS

events = usage_events.c

GROUPS: Mapping[str, ColumnElement[Any]] = {
    "team": events.team,
    "project": events.project,
    "model": events.model,
    "endpoint": events.endpoint,
    "domain": events.domain,
    "day": cast(func.timezone("UTC", events.started_at), Date),
    "provider": events.provider,
    "key": events.key_id,
    "cost_center": events.cost_center,
    "status": events.status,
    "policy": events.policy,
}
"""What usage can be grouped by. An attempt belongs to the UTC day on which it started."""

MAX_GROUPS = 1_000_000
"""Rows of one answer: more is a mistake in `by`, and would fill the memory."""


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the attempts of one group.

    `cost_usd` sums what is known, and is None when nothing is; the cost of the `unpriced` attempts is missing from it.
    `tokens` has every bucket of `gateway.types.Usage`.
    """

    group: dict[str, str | date | None]  # in the order of `by`
    requests: int  # distinct: one that was tried at two endpoints counts once in each, and once in the total
    attempts: int
    errors: int  # attempts that ended in `error`, `timeout` or `shed`; a caller who hangs up is none
    tokens: dict[str, int]
    cost_usd: Decimal | None
    unpriced: int  # attempts without a cost: missing from `cost_usd`
    estimated: int  # attempts whose tokens we counted, because the provider did not say

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens.values())


def usage_by(engine: Engine, *, by: Sequence[str], since: datetime | None, until: datetime | None) -> list[UsageRow]:
    """Usage of the attempts that started in `since` <= t < `until` (None: no bound), grouped by names of `GROUPS`.

    Ordered by group, unknown last. Raises `ValueError` for other names and for times without a zone.
    """
    return usage_and_totals(engine, by=by, since=since, until=until)[0]


def totals(engine: Engine, *, since: datetime | None, until: datetime | None) -> UsageRow:
    """The same over all groups; `group` is empty."""
    return usage_and_totals(engine, by=(), since=since, until=until)[1]


def usage_and_totals(
    engine: Engine, *, by: Sequence[str], since: datetime | None, until: datetime | None
) -> tuple[list[UsageRow], UsageRow]:
    """Rows and their total from one statement, so that no event can fall between them."""
    with engine.connect() as connection:
        found = connection.execute(usage_query(by, since, until)).mappings().all()
    total = next(row for row in found if row["is_total"])
    rows = [row for row in found if not row["is_total"]]
    if len(rows) > MAX_GROUPS:
        raise ValueError(f"more than {MAX_GROUPS} groups\nhint: group by less, or a shorter time")
    return [usage_row(row, by) for row in rows], usage_row(total, ())


def requests(engine: Engine, request_id: str) -> list[dict[str, Any]]:
    """The attempts of one request in order, each with all columns of the ledger. Numbers are int, float (times) or
    `Decimal` (money, and fractions inside JSON)."""
    if not request_id.isprintable():  # no id is, and PostgreSQL refuses to compare with a zero byte
        return []
    query = select(usage_events).where(events.request_id == request_id)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(events.attempt, events.started_at, events.event_id)).mappings()
        return [dict(row) for row in rows]


def newest_attempts(engine: Engine, limit: int) -> list[dict[str, Any]]:
    """The newest `limit` rows, newest first. Raises `StoreError`."""
    columns = usage_events.c
    query = select(usage_events).order_by(columns.started_at.desc(), columns.event_id.desc()).limit(limit)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def usage_query(by: Sequence[str], since: datetime | None, until: datetime | None) -> Select[Any]:
    unknown = [name for name in by if name not in GROUPS]
    if unknown:
        raise ValueError(f"cannot group by `{unknown[0]}`\nhint: {', '.join(GROUPS)}")
    if len(set(by)) != len(by):
        raise ValueError("a name is given twice to group by\nhint: name each once")
    if any(bound is not None and bound.tzinfo is None for bound in (since, until)):
        raise ValueError("a time has no zone\nhint: give times with a zone, such as UTC")
    groups = [GROUPS[name].label(f"by_{name}") for name in by]
    is_total = func.grouping(*groups) != 0 if groups else true()
    query = select(*groups, is_total.label("is_total"), *sums())
    if since is not None:
        query = query.where(events.started_at >= since)
    if until is not None:
        query = query.where(events.started_at < until)
    if groups:  # and, beside them, the empty set: the total, which has a row even when there are no events
        query = query.group_by(func.grouping_sets(tuple_(*groups), tuple_()))
        # The total first, so that the limit cannot cut it off. By code point, whatever the database's own collation.
        order = [cast(group, Text).collate("C").nulls_last() for group in groups]
        query = query.order_by(is_total.desc(), *order)
    return query.limit(MAX_GROUPS + 2)


def sums() -> list[ColumnElement[Any]]:
    used = func.greatest(*(events[bucket] for bucket in BUCKETS)) > 0  # a sum could pass the largest bigint
    cost = func.sum(events.cost_usd)
    priced_use = func.count().filter(used, events.cost_usd.is_not(None))
    # Attempts that used nothing may cost a known 0; beside unpriced use that 0 must not pass for the group's cost.
    nothing_known = (func.count().filter(used) > 0) & (priced_use == 0)
    return [
        func.count(distinct(events.request_id)).label("requests"),
        func.count().label("attempts"),
        func.count().filter(events.status.in_(("error", "timeout", "shed"))).label("errors"),
        *(func.coalesce(func.sum(events[bucket]), 0).label(bucket) for bucket in BUCKETS),
        case((func.count() == 0, Decimal(0)), (nothing_known, func.nullif(cost, 0)), else_=cost).label("cost_usd"),
        func.count().filter(events.cost_usd.is_(None)).label("unpriced"),
        func.count().filter(events.usage_source == "estimated").label("estimated"),
    ]


def usage_row(row: RowMapping, by: Sequence[str]) -> UsageRow:
    return UsageRow(
        group={name: row[f"by_{name}"] for name in by},
        requests=row["requests"],
        attempts=row["attempts"],
        errors=row["errors"],
        tokens={bucket: int(row[bucket]) for bucket in BUCKETS},
        cost_usd=row["cost_usd"],
        unpriced=row["unpriced"],
        estimated=row["estimated"],
    )
