"""Calendar periods of budgets in their own time zones. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from gateway.types import Period


class Span(NamedTuple):
    """[start, end), both in UTC."""

    start: datetime
    end: datetime


@lru_cache(maxsize=1024)
def _midnight(day: date, zone: str) -> datetime:
    """The first midnight of the day by the zone's clock, in UTC. Where clocks jump over it: the moment of the jump."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def span_of(per: Period, zone: str, at: datetime) -> Span:
    """The period that `at` (with a zone) lies in. Spans of one kind follow each other without gap or overlap.

    Raises ValueError for a time without a zone.
    """
    if at.tzinfo is None:
        raise ValueError("a time has no zone\nhint: give times with a zone, such as UTC")
    first = first_day(per, at.astimezone(ZoneInfo(zone)).date())
    # Where a clock is set back over midnight, or a whole day is left out, the date alone misleads.
    while at < (start := _midnight(first, zone)):
        first = first_day(per, first - timedelta(days=1))
    while at >= (end := _midnight(following := next_day(per, first), zone)):
        first, start = following, end
    return Span(start, end)


def first_day(per: Period, day: date) -> date:
    """Of the period that the day lies in. Weeks begin on Monday."""
    match per:
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "quarter":
            return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
        case "year":
            return day.replace(month=1, day=1)


def next_day(per: Period, first: date) -> date:
    """The first day of the period after the one that begins on `first`."""
    days = {"day": 1, "week": 7, "month": 31, "quarter": 92, "year": 366}[per]
    return first_day(per, first + timedelta(days=days))
