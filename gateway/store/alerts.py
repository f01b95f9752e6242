"""Alerts of budgets: each threshold of a period is told once, whichever gateway sees it first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert

from gateway.store.tables import budget_alerts

_alerts = budget_alerts.c


def note_alert(
    engine: Engine, *, account: str, period_start: datetime, threshold: Decimal, spent_usd: Decimal, limit_usd: Decimal
) -> bool:
    """False: it was noted before. Raises StoreError."""
    row = {
        "account": account,
        "period_start": period_start,
        "threshold": threshold,
        "spent_usd": spent_usd,
        "limit_usd": limit_usd,
    }
    query = insert(budget_alerts).values(row).on_conflict_do_nothing().returning(_alerts.account)
    with engine.begin() as connection:
        return connection.execute(query).one_or_none() is not None


def noted(engine: Engine, since: datetime) -> Mapping[tuple[str, datetime], dict[Decimal, datetime]]:
    """Of periods that began at `since` or later: by account and period, when each threshold was told."""
    query = select(budget_alerts).where(_alerts.period_start >= since).order_by(_alerts.threshold)
    found: dict[tuple[str, datetime], dict[Decimal, datetime]] = {}
    with engine.connect() as connection:
        for row in connection.execute(query):
            found.setdefault((row.account, row.period_start), {})[row.threshold.normalize()] = row.at
    return found
