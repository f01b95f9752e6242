"""What teams have spent in the period of their budget that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
from sqlalchemy import Column, Engine, Text, and_, func, select, values

from gateway.store.tables import TIME, usage_events
from gateway.types import Period


class Spending(msgspec.Struct, frozen=True):
    """`usd`: of the attempts with a known cost; `unpriced`: attempts without one, which it leaves out."""

    usd: Decimal = Decimal(0)
    unpriced: int = 0


def spent_by_team(engine: Engine, teams: Mapping[str, Period], now: datetime) -> dict[str, Spending]:
    """For each team what its attempts cost that started in the current period; `now` has a zone. One statement.

    Raises StoreError, and ValueError for a time without a zone.
    """
    if not teams:
        return {}
    asked = values(Column("team", Text), Column("since", TIME), name="asked").data(
        [(team, period_start(period, now)) for team, period in teams.items()]
    )
    events = usage_events.c
    query = (
        select(asked.c.team, func.sum(events.cost_usd), func.count().filter(events.cost_usd.is_(None)))
        .select_from(asked)
        .join(usage_events, and_(events.team == asked.c.team, events.started_at >= asked.c.since))
        .group_by(asked.c.team)
    )
    found = dict.fromkeys(teams, Spending())
    with engine.connect() as connection:
        for team, usd, unpriced in connection.execute(query):
            found[team] = Spending(usd or Decimal(0), unpriced)
    return found


def period_start(period: Period, now: datetime) -> datetime:
    """The first moment of the day, of the week (Monday) or of the month in UTC. Raises ValueError without a zone."""
    if now.tzinfo is None:
        raise ValueError("a time has no zone\nhint: give times with a zone, such as UTC")
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
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
