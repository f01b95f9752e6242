"""What was used: sums for reports, and the attempts of one request.

Sums come out of `usage_days` and `usage_hours` where those have what is asked for, else out of the rows; the result is
the same to the last digit. An attempt counts at its `booked_at`: the moment it started, or the one at which it came if
its month was closed by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

import msgspec
import psycopg
from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, func, select, text
from sqlalchemy.exc import DataError

from gateway.store.tables import corrections, usage_events, usage_hours
from gateway.store.usage_query import GRAINS, GROUPS, TAG, Question, Span, Table, label, usage_query
from gateway.types import BUCKETS

MAX_GROUPS = 1_000_000
"""Rows of one answer: more is a mistake in `by`, and would fill the memory."""
MAX_NAMES = 20
MAX_GLOBS = 100
MAX_NAME_LENGTH = 200

Group = dict[str, str | date | datetime | None]
Source = Literal["sums", "rows"]


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the attempts of one group.

    `cost_usd` sums what is known, corrections included, and is None when nothing is; the cost of the `unpriced`
    attempts is missing from it. `tokens` has every bucket of `gateway.types.Usage`.
    """

    group: Group  # in the order of `by`
    # Each once, when it began; one that was tried at two endpoints counts once in each, and once in the total.
    requests: int
    attempts: int
    errors: int  # attempts that ended in `error`, `timeout` or `shed`; a caller who hangs up is none
    tokens: dict[str, int]
    cost_usd: Decimal | None
    unpriced: int  # attempts without a cost: missing from `cost_usd`
    estimated: int  # attempts whose tokens we counted, because the provider did not say
    corrected_usd: Decimal = Decimal(0)  # what corrections have changed; it is in `cost_usd`
    max_cost_usd: Decimal | None = None  # what the `unpriced` may have cost at most; None: no bound is known

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens.values())


def usage_by(engine: Engine, *, by: Sequence[str], since: datetime | None, until: datetime | None) -> list[UsageRow]:
    """Usage of the attempts booked in `since` <= t < `until` (None: no bound), grouped by names of `GROUPS`.

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
    return usage_of(engine, Question(by=tuple(by), since=since, until=until))


def usage_of(
    engine: Engine, question: Question, *, source: Source | None = None, patience: float | None = None
) -> tuple[list[UsageRow], UsageRow]:
    """The rows of an answer and their total, from one statement.

    `source`: where sums are read; None: the quickest that has what is asked for. `patience`: seconds after which the
    database gives up. Raises `ValueError` for a question that cannot be answered, `StoreError`.
    """
    check(question)
    with engine.connect() as connection:
        if patience is not None:
            connection.execute(text(f"SET LOCAL statement_timeout = {int(patience * 1000)}"))
        try:
            spans = rows_only(question) if source == "rows" else spans_of(connection, question)
            query = usage_query(question, spans).limit(MAX_GROUPS + 2)
            found = connection.execute(query).mappings().all()
        except DataError as error:
            if isinstance(error.orig, psycopg.errors.InvalidParameterValue):
                raise ValueError(f"PostgreSQL does not know the time zone `{question.zone}`\nhint: use UTC") from None
            raise
    total = next(row for row in found if row["is_total"])
    rows = [row for row in found if not row["is_total"]]
    if len(rows) > MAX_GROUPS:
        raise ValueError(f"more than {MAX_GROUPS} groups\nhint: group by less, or a shorter time")
    return [usage_row(row, question) for row in rows], usage_row(total, msgspec.structs.replace(question, by=()))


def requests(engine: Engine, request_id: str, team: str | None = None) -> list[dict[str, Any]]:
    """The attempts of one request in order, each with all columns of the ledger and `corrected_usd`, what corrections
    have added to its cost (None: there are none). `team`: only that team's. Numbers are int, float (times) or `Decimal`
    (money, and fractions inside JSON)."""
    if not request_id.isprintable():  # no id is, and PostgreSQL refuses to compare with a zero byte
        return []
    columns = usage_events.c
    query = select(usage_events, corrected()).where(columns.request_id == request_id)
    if team is not None:
        query = query.where(columns.team == team)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(columns.attempt, columns.started_at, columns.event_id)).mappings()
        return [dict(row) for row in rows]


def newest_attempts(engine: Engine, limit: int, team: str | None = None) -> list[dict[str, Any]]:
    """The newest `limit` rows, newest first, as `requests` has them. Raises `StoreError`."""
    columns = usage_events.c
    query = select(usage_events, corrected()).order_by(columns.started_at.desc(), columns.event_id.desc()).limit(limit)
    if team is not None:
        query = query.where(columns.team == team)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def corrected() -> ColumnElement[Any]:
    changes = select(func.sum(corrections.c.amount_usd)).where(corrections.c.event_id == usage_events.c.event_id)
    return changes.scalar_subquery().label("corrected_usd")


def check(question: Question) -> None:
    """Raises `ValueError` where a question names what there is not, or too much of it."""
    for name in (*question.by, *question.where):
        if name not in GROUPS and not (name.startswith(TAG) and name != TAG):
            raise ValueError(f"cannot group by `{name[:80]}`\nhint: {', '.join(GROUPS)}, tag:NAME")
        if len(name) > MAX_NAME_LENGTH or "\0" in name:
            raise ValueError("no tag has such a name\nhint: at most 200 characters")
    if len(set(question.by)) != len(question.by):
        raise ValueError("a name is given twice to group by\nhint: name each once")
    if len(question.by) > MAX_NAMES:
        raise ValueError(f"more than {MAX_NAMES} names to group by\nhint: group by less")
    for name, globs in question.where.items():
        if name in GRAINS:
            raise ValueError(f"`{name}` cannot be filtered by\nhint: `from` and `to` choose the time")
        if len(globs) > MAX_GLOBS or any(len(glob) > MAX_NAME_LENGTH or "\0" in glob for glob in globs):
            raise ValueError(f"no `{name[:80]}` has such a name\nhint: at most {MAX_GLOBS} globs of 200 characters")
    if question.team is not None and (len(question.team) > MAX_NAME_LENGTH or "\0" in question.team):
        raise ValueError("no team has such a name\nhint: at most 200 characters")
    if any(bound is not None and bound.tzinfo is None for bound in (question.since, question.until)):
        raise ValueError("a time has no zone\nhint: give times with a zone, such as UTC")


def rows_only(question: Question) -> list[Span]:
    return [Span(Table.ROWS, question.since, question.until)]


def spans_of(connection: Connection, question: Question) -> list[Span]:
    """From which table each part of the time is read: whole UTC days from `usage_days`, whole hours from `usage_hours`,
    what is left at both ends from the rows. Nothing but rows where the sums do not have what is asked for."""
    if not question.is_in_sums or not cuts_whole_hours(connection, question):
        return rows_only(question)
    spans = [*rows_only(question)]
    for table, length in ((Table.HOURS, timedelta(hours=1)), (Table.DAYS, timedelta(days=1))):
        if table is Table.DAYS and not question.is_in_days:
            break
        spans = [part for span in spans for part in cut(span, table, length)]
    return spans


def cut(span: Span, table: Table, length: timedelta) -> list[Span]:
    """The whole units of `length` within a span from `table`, and what is left of it before and behind."""
    try:
        start = None if span.since is None else -(-(span.since - _ZERO) // length) * length + _ZERO
        end = None if span.until is None else (span.until - _ZERO) // length * length + _ZERO
    except OverflowError:  # at the end of time
        return [span]
    if start is not None and end is not None and start >= end:
        return [span]
    spans = [Span(table, start, end)]
    if start != span.since:
        spans.insert(0, Span(span.table, span.since, start))
    if end != span.until:
        spans.append(Span(span.table, end, span.until))
    return spans


def cuts_whole_hours(connection: Connection, question: Question) -> bool:
    """Whether no hour (UTC) belongs to two groups, as it does in India, where days begin at 18:30."""
    if question.zone == "UTC" or not any(name in GRAINS for name in question.by):
        return True
    first, last = connection.execute(select(func.min(usage_hours.c.hour), func.max(usage_hours.c.hour))).one()
    if first is None:
        return True
    first = first if question.since is None else max(first, question.since)
    last = last if question.until is None else min(last, question.until)
    zone, day = ZoneInfo(question.zone), first.astimezone(UTC)
    while day < last + _SAMPLE:  # no zone changes its offset twice within a week
        if (day.astimezone(zone).utcoffset() or timedelta()) % timedelta(hours=1):
            return False
        day += _SAMPLE
    return True


def usage_row(row: RowMapping, question: Question) -> UsageRow:
    return UsageRow(
        group={name: _shown(row[label(place)], question.zone) for place, name in enumerate(question.by)},
        requests=int(row["requests"]),
        attempts=int(row["attempts"]),
        errors=int(row["errors"]),
        tokens={bucket: int(row[bucket]) for bucket in BUCKETS},
        cost_usd=row["cost_usd"],
        unpriced=int(row["unpriced"]),
        estimated=int(row["estimated"]),
        corrected_usd=row["corrected_usd"],
        max_cost_usd=row["max_cost_usd"],
    )


def _shown(value: Any, zone: str) -> Any:
    return value.astimezone(ZoneInfo(zone)) if isinstance(value, datetime) else value


_ZERO = datetime(1970, 1, 1, tzinfo=UTC)
_SAMPLE = timedelta(days=7)
