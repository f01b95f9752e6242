"""What teams with a hard budget may still spend, out of the ledger. Attempts that are still under way, or still in the
spool, are not in it yet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Engine

from gateway.config.model import Team
from gateway.store.spending import spent_by_team


def budgets_left(engine: Engine, teams: Mapping[str, Team], now: datetime) -> dict[str, Decimal]:
    """USD left in the current period for each team that has a hard budget, not below 0; `now` has a zone.

    Attempts without a known price are not counted: a policy that must not pass its budget asks for known prices.
    Raises StoreError.
    """
    hard = {team.id: team.budget for team in teams.values() if team.budget is not None and team.budget.hard}
    spent = spent_by_team(engine, {team: budget.per for team, budget in hard.items()}, now)
    return {team: max(budget.usd - spent[team].usd, Decimal(0)) for team, budget in hard.items()}
