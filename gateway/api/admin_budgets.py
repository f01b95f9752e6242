"""Budgets as operators see them, and leases whose holder is gone. A developer sees those of one team."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from gateway.api.access import Actor, actor_of, may_see, team_filter
from gateway.budgets.accounts import Account, teams_of
from gateway.budgets.standing import Standing, standings, with_history
from gateway.budgets.watch import BudgetWatch, release_holder
from gateway.errors import InvalidRequest, NotFound
from gateway.store.leases import leases
from gateway.types import Period


@dataclass(frozen=True)
class BudgetServices:
    watch: BudgetWatch


class BudgetAlert(BaseModel):
    threshold: Decimal = Field(description="share of the limit")
    at: datetime


class BudgetState(BaseModel):
    """Amounts in USD, as text to the last digit."""

    account: str = Field(description="`key:ID`, `project:TEAM/ID`, `team:ID`, `cost_center:ID`, ...")
    limit_usd: Decimal
    per: Period
    zone: str
    hard: bool
    period_start: datetime
    period_end: datetime
    spent_usd: Decimal = Field(description="unknown costs at their upper bound, corrections included")
    reserved_usd: Decimal = Field(description="what workers hold; part of it may be in `spent_usd` already")
    left_usd: Decimal = Field(description="the limit less what is spent; below 0 where a soft budget was passed")
    forecast_usd: Decimal | None = Field(description="at the period's end, if it goes on like this; null: too early")
    thresholds: list[Decimal]
    alerts: list[BudgetAlert] = Field(description="thresholds of this period that were told")


class BudgetList(BaseModel):
    budgets: list[BudgetState]


class BudgetHolder(BaseModel):
    holder: str = Field(description="gateway and worker process")
    period_start: datetime
    amount_usd: Decimal
    renewed_at: datetime
    is_wanted: bool = Field(description="others need what of it is not in use")


class BudgetDetail(BudgetState):
    holders: list[BudgetHolder]


class ReleasedLeases(BaseModel):
    released_usd: Decimal
    accounts: list[str]


def add_budgets(api: APIRouter, services: BudgetServices) -> None:
    watch = services.watch

    def visible(actor: Actor) -> list[Account]:
        """Of a developer: accounts that hold nothing but the own team's spending."""
        found = watch.accounts()
        if team_filter(actor) is None:
            return found
        configuration, keys = watch.in_force()
        return [
            account
            for account in found
            if (teams := teams_of(configuration, account, keys)) and all(may_see(actor, team) for team in teams)
        ]

    @api.get("/budgets", tags=["budgets"])
    async def list_budgets(request: Request) -> BudgetList:
        """Every budget in its current period."""
        accounts = visible(actor_of(request))
        found = await asyncio.to_thread(standings, watch.engine, accounts, datetime.now(UTC))
        return BudgetList(budgets=[BudgetState(**described(one)) for one in found])

    @api.delete("/budgets/leases/{holder:path}", tags=["budgets"])
    async def release_leases(
        holder: str,
        request: Request,
        force: Annotated[bool, Query(description="also of a holder that renewed its leases lately")] = False,
    ) -> ReleasedLeases:
        """Takes back what a worker holds that is gone for good, with its machine. What it spent and did not ship is
        not on the ledger, and is not counted."""
        if not holder.isprintable():
            raise NotFound("there is no such holder", code="holder_not_found")
        author = actor_of(request).author
        try:
            found = await asyncio.to_thread(release_holder, watch.engine, holder, author, force=force)
        except ValueError as error:
            raise InvalidRequest(str(error), code="holder_alive") from None
        if not found:
            raise NotFound("this holder has no leases", code="holder_not_found")
        return ReleasedLeases(
            released_usd=sum((one.amount_usd for one in found), Decimal(0)), accounts=[one.account for one in found]
        )

    @api.get("/budgets/{account:path}", tags=["budgets"])
    async def show_budget(account: str, request: Request) -> BudgetDetail:
        """One budget, with a forecast that knows the days of the week, and who holds what of it."""
        known = next((one for one in visible(actor_of(request)) if one.id == account and one.budget is not None), None)
        if known is None:
            raise NotFound("there is no budget of that account", code="budget_not_found")
        now = datetime.now(UTC)

        def look() -> BudgetDetail:
            standing = with_history(watch.engine, standings(watch.engine, [known], now)[0], known, now)
            holders = [
                BudgetHolder(
                    holder=one.holder,
                    period_start=one.period_start,
                    amount_usd=one.amount_usd,
                    renewed_at=one.renewed_at,
                    is_wanted=one.is_wanted,
                )
                for one in leases(watch.engine, account)
            ]
            return BudgetDetail(**described(standing), holders=holders)

        return await asyncio.to_thread(look)


def described(standing: Standing) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(standing, name) for name in standing.__struct_fields__}
    found["alerts"] = [BudgetAlert(threshold=one.threshold, at=one.at) for one in standing.alerts]
    found["thresholds"] = list(standing.thresholds)
    return found
