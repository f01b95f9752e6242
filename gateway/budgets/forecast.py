"""What a period will have cost at its end, if it goes on like this. Pure.

Spending is taken to follow business: what was spent, divided by the share of the period's business that is over. Every
day has the same business, unless four weeks of history show what each day of the week usually has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

HISTORY = timedelta(days=28)
"""Before the current day: of each day of the week four."""
EVEN: tuple[float, ...] = (1.0,) * 7
LEAST_SHARE = 0.01
"""Of the period's business: before that much is over nothing can be said."""


def forecast(
    spent: Decimal, start: datetime, end: datetime, now: datetime, *, zone: str = "UTC", weights: Sequence[float] = EVEN
) -> Decimal | None:
    """USD at the end of [start, end), in cents; None: it is too early to say. `weights`: of Monday to Sunday."""
    whole = business(start, end, zone, weights)
    over = business(start, min(now, end), zone, weights)
    if whole <= 0 or over < LEAST_SHARE * whole:
        return None
    return max(spent, (spent * Decimal(whole / over)).quantize(Decimal("0.01")))


def business(start: datetime, end: datetime, zone: str, weights: Sequence[float]) -> float:
    """Seconds from `start` to `end`, each weighted by its day of the week in the time zone."""
    clock = ZoneInfo(zone)
    total, at, end = 0.0, start.astimezone(UTC), end.astimezone(UTC)
    while at < end:
        day = at.astimezone(clock).date()
        following = day + timedelta(days=1)
        until = datetime(following.year, following.month, following.day, tzinfo=clock).astimezone(UTC)
        if until <= at:  # a clock that was set back over midnight
            until = at + timedelta(hours=1)
        until = min(until, end)
        total += weights[day.weekday()] * (until - at).total_seconds()
        at = until
    return total


def weekday_weights(spent_by_day: Mapping[date, Decimal], today: date) -> tuple[float, ...] | None:
    """Of Monday to Sunday, one on average, out of the four weeks before `today`; a day without an entry cost nothing.

    None: the history is shorter, or there was no spending in it.
    """
    first = today - HISTORY
    if not any(day <= first for day in spent_by_day):
        return None
    sums = [0.0] * 7
    for day, usd in spent_by_day.items():
        if first <= day < today:
            sums[day.weekday()] += max(0.0, float(usd))
    total = sum(sums)
    return None if total <= 0 else tuple(7 * one / total for one in sums)
