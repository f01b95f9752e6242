"""The statement behind a question of usage: parts of the time from different tables, added up.

Each part is summed by itself to the measures of `gateway.store.tables.MEASURES`, which add up; what does not (distinct
requests, whether a cost is known) is settled at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Date,
    FromClause,
    Select,
    Text,
    TextClause,
    case,
    cast,
    distinct,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
)

from gateway.store.hours import correction_sums, event_sums
from gateway.store.tables import corrections, usage_days, usage_events, usage_hours
from gateway.types import BUCKETS

GRAINS = ("day", "hour", "week", "month", "quarter", "year")
"""Of time. Days and longer are named by the date they begin on; a week begins on Monday."""
SUMMED: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("team", "project", "model", "endpoint", "domain", "provider")},
        "key": "key_id",
        **{name: name for name in ("cost_center", "status", "policy", "organisation", "route", "upstream_model")},
        **{name: name for name in ("region", "service_tier", "usage_source", "price_status")},
    }
)
"""What the sums are kept by, and its column."""
OF_ROWS = ("error_type", "stream", "policy_version", "catalog_version", "gateway")
"""What only the rows have."""
GROUPS = (*tuple(SUMMED)[:5], "day", *tuple(SUMMED)[5:], *(grain for grain in GRAINS if grain != "day"), *OF_ROWS)
"""What usage can be grouped by, beside the values of a tag."""
TAG = "tag:"
SHARED = frozenset(
    {"organisation", "team", "project", "key", "cost_center", "route", "domain", "model", "stream", "gateway", *GRAINS}
)
"""What all attempts of a request have in common; of time, what counts is when it began."""

_COUNTED = (
    *("attempts", "requests", "errors", *BUCKETS, "cost_usd", "used", "priced_used", "unpriced", "estimated"),
    *("max_cost_usd", "corrected_usd", "repriced"),
)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Usage booked in `since` <= t < `until` (None: no bound), grouped by names of `GROUPS` and tags (`tag:NAME`).

    `zone`: in which days and hours begin. `where`: by name, globs of which one must fit (`*` any text, `?` one
    character; the empty one fits what is unknown). `team`: only this one's, by its exact name.
    """

    by: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    zone: str = "UTC"
    where: Mapping[str, tuple[str, ...]] = {}
    team: str | None = None

    @property
    def is_in_sums(self) -> bool:
        return all(name in SUMMED or name in GRAINS for name in (*self.by, *self.where))

    @property
    def splits_requests(self) -> bool:
        """Whether attempts of one request may be in several groups, each of which then counts the request."""
        return any(name not in SHARED for name in self.by)

    @property
    def picks_attempts(self) -> bool:
        """Whether a request may be chosen for another attempt than its first one."""
        return any(name not in SHARED for name in self.where)

    @property
    def is_in_days(self) -> bool:
        """Whether no group is of less than a UTC day, or of another zone's."""
        grains = [name for name in self.by if name in GRAINS]
        return not grains or (self.zone == "UTC" and "hour" not in grains)


class Table(Enum):
    DAYS = "usage_days"
    HOURS = "usage_hours"
    ROWS = "usage_events"


class Span(NamedTuple):
    """A part of the time, and the table it is read from. None: no bound."""

    table: Table
    since: datetime | None
    until: datetime | None


class _Source(NamedTuple):
    """A table to sum: where its dimensions are, its moment, and the columns that only rows have."""

    own: Any
    moment: ColumnElement[Any]
    row: Any


def label(place: int) -> str:
    """Of the group at this place of `by`: names of tags are no names of columns."""
    return f"by_{place}"


def usage_query(question: Question, spans: Iterable[Span]) -> Select[Any]:
    """The total first, then the groups in order, unknown last. `spans`: together the question's time."""
    parts = [query for span in spans for query in _parts(question, span)]
    of_groups = question.splits_requests or question.picks_attempts
    part = union_all(*parts, *([_tried_again(question)] if of_groups else [])).subquery()
    sums = {name: func.coalesce(func.sum(part.c[name]), 0) for name in _COUNTED}
    groups = [part.c[label(place)] for place in range(len(question.by))]
    is_total = func.grouping(*groups) != 0 if groups else true()
    in_all = _tried_again_in_all(question).scalar_subquery() if question.picks_attempts else literal(0)
    again = case((is_total, in_all), else_=func.coalesce(func.sum(part.c.again), 0))
    query = select(*groups, is_total.label("is_total"), *_figures(sums, again))
    if groups:  # and, beside them, the empty set: the total, which has a row even when there are no events
        query = query.group_by(func.grouping_sets(tuple_(*groups), tuple_()))
        # Sums stay where rows were, when rows go.
        query = query.having(or_(is_total, *(sums[name] != 0 for name in ("attempts", "corrected_usd", "repriced"))))
        # The total first, so that the limit cannot cut it off. By code point, whatever the database's own collation.
        order = [
            (group if name in GRAINS else cast(group, Text).collate("C")).nulls_last()
            for name, group in zip(question.by, groups, strict=True)
        ]
        query = query.order_by(is_total.desc(), *order)
    return query


def _figures(sums: Mapping[str, ColumnElement[Any]], again: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    cost = sums["cost_usd"] + sums["corrected_usd"]
    # An attempt may be priced in a later month than the one that it counts in: there is no negative number of gaps.
    unpriced = func.greatest(sums["unpriced"] - sums["repriced"], 0)
    # Attempts that used nothing may cost a known 0; beside unpriced use that 0 must not pass for the group's cost.
    no_use_known = (sums["used"] > 0) & (sums["priced_used"] == 0)
    nothing_known = (cost == 0) & (unpriced > 0) & (no_use_known | (unpriced == sums["attempts"]))
    return [
        (sums["requests"] + again).label("requests"),
        *(sums[name].label(name) for name in ("attempts", "errors", *BUCKETS)),
        case((nothing_known, None), else_=cost).label("cost_usd"),
        unpriced.label("unpriced"),
        sums["estimated"].label("estimated"),
        sums["corrected_usd"].label("corrected_usd"),
        # Without a bound of its own an attempt adds nothing to the sum: 0 says that no bound is known.
        case((unpriced == 0, 0), (sums["max_cost_usd"] > 0, sums["max_cost_usd"]), else_=None).label("max_cost_usd"),
    ]


def _parts(question: Question, span: Span) -> list[Select[Any]]:
    if span.table is not Table.ROWS:
        table, moment = (
            (usage_days, usage_days.c.day) if span.table is Table.DAYS else (usage_hours, usage_hours.c.hour)
        )
        source = _Source(table.c, moment, None)
        sums = {name: func.sum(table.c[name]) for name in _COUNTED}
        return [_summed(question, source, table, sums, span), _bounds_of_repriced(question, span)]
    of_events = _summed(question, _of_events(usage_events), usage_events, event_sums(), span)
    source, corrected = _of_corrections(question)
    return [
        of_events,
        _summed(question, source, corrected, correction_sums(), span),
        _bounds_of_repriced(question, span),
    ]


def _bounds_of_repriced(question: Question, span: Span) -> Select[Any]:
    """What a correction has priced is no longer unknown: its bound goes."""
    events = usage_events.alias("priced_event")
    table = corrections.join(events, events.c.event_id == corrections.c.event_id)
    source = _Source(corrections.c, corrections.c.booked_at, events.c)
    sums = {"max_cost_usd": -func.coalesce(func.sum(events.c.max_cost_usd), 0)}
    return _summed(question, source, table, sums, span).where(corrections.c.is_first_price)


def _tried_again(question: Question) -> Select[Any]:
    """Requests of each group that have an attempt in it, but not their first one.

    Sums count first attempts: that is the number of requests where all attempts of one are in the same group. Where
    they need not be, these are added, and it is the number of distinct requests.
    """
    later, first = usage_events.alias("later"), usage_events.alias("first")
    names = zip(_groups(question, _of_events(later)), _groups(question, _of_events(first)), strict=True)
    same = [one.is_not_distinct_from(other) for one, other in names]
    groups = _labelled(_groups(question, _of_events(later)))
    counted = [literal(0).label(name) for name in _COUNTED]
    query = select(*groups, *counted, func.count(distinct(later.c.request_id)).label("again"))
    query = query.where(
        later.c.attempt > 1, *_filters(question, _of_events(later)), ~_began(question, first, later, same)
    )
    return query.group_by(*_places(groups))


def _tried_again_in_all(question: Question) -> Select[Any]:
    later, first = usage_events.alias("later_of_all"), usage_events.alias("first_of_all")
    query = select(func.count(distinct(later.c.request_id))).where(later.c.attempt > 1)
    return query.where(*_filters(question, _of_events(later)), ~_began(question, first, later, []))


def _began(
    question: Question, first: FromClause, later: FromClause, same: list[ColumnElement[bool]]
) -> ColumnElement[bool]:
    filters = _filters(question, _of_events(first))
    return exists().where(first.c.request_id == later.c.request_id, first.c.attempt == 1, *filters, *same)


def _of_events(events: FromClause) -> _Source:
    return _Source(events.c, events.c.booked_at, events.c)


def _of_corrections(question: Question) -> tuple[_Source, FromClause]:
    """Corrections have the dimensions of their attempt; for anything else it is asked itself."""
    if question.is_in_sums:
        return _Source(corrections.c, corrections.c.booked_at, None), corrections
    events = usage_events.alias("corrected_event")
    table = corrections.outerjoin(events, events.c.event_id == corrections.c.event_id)
    return _Source(corrections.c, corrections.c.booked_at, events.c), table


def _summed(
    question: Question, source: _Source, table: FromClause, sums: Mapping[str, ColumnElement[Any]], span: Span
) -> Select[Any]:
    groups = _labelled(_groups(question, source))
    measures = [sums.get(name, literal(0)).label(name) for name in _COUNTED]
    query = select(*groups, *measures, literal(0).label("again")).select_from(table)
    query = query.where(*_filters(question, source, span))
    return query.group_by(*_places(groups))


def _labelled(groups: list[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    return [group.label(label(place)) for place, group in enumerate(groups)]


def _places(groups: list[ColumnElement[Any]]) -> list[TextClause]:
    """By their place, for PostgreSQL would not see that an expression with parameters is the same one again."""
    return [text(str(place)) for place in range(1, len(groups) + 1)]


def _groups(question: Question, source: _Source) -> list[ColumnElement[Any]]:
    return [_value(name, source, question.zone) for name in question.by]


def _filters(question: Question, source: _Source, span: Span | None = None) -> list[ColumnElement[bool]]:
    """`span`: only this part of the question's time."""
    since, until = (question.since, question.until) if span is None else (span.since, span.until)
    found: list[ColumnElement[bool]] = []
    if since is not None:
        found.append(source.moment >= since)
    if until is not None:
        found.append(source.moment < until)
    if question.team is not None:
        found.append(source.own.team == question.team)
    for name, globs in question.where.items():
        value = func.coalesce(_value(name, source, question.zone), "")
        found.append(or_(*(value.like(_pattern(glob), escape="\\") for glob in globs)))
    return found


def _value(name: str, source: _Source, zone: str) -> ColumnElement[Any]:
    """What a name stands for; null where it is unknown."""
    if name == "hour":
        return func.date_trunc("hour", source.moment, zone)
    if name == "day":
        return cast(func.timezone(zone, source.moment), Date)
    if name in GRAINS:
        return cast(func.date_trunc(name, func.timezone(zone, source.moment)), Date)
    value: ColumnElement[Any]
    if name.startswith(TAG):
        value = source.row.tags[name.removeprefix(TAG)].astext
    elif name in SUMMED:
        value = source.own[SUMMED[name]]
    else:
        value = cast(source.row[name], Text)
    return func.nullif(value, "")


def _pattern(glob: str) -> str:
    for special in ("\\", "%", "_"):
        glob = glob.replace(special, "\\" + special)
    return glob.replace("*", "%").replace("?", "_")
