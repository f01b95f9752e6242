"""Budgets on the operators' surface: who sees which, and leases that are taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from sqlalchemy import insert

from gateway.api.access import Actor
from gateway.api.admin_budgets import BudgetServices, add_budgets
from gateway.api.admin_http import install_error_handlers
from gateway.budgets.watch import BudgetWatch
from gateway.config.model import Configuration, Organisation, Project, Team
from gateway.store.database import Database
from gateway.store.tables import budget_leases, usage_events
from gateway.telemetry import ControlMetrics
from gateway.types import Budget, KeyRecord
from gateway.upstream.client import UpstreamClient
from tests.budgets.world import World, row

B = Budget(usd=Decimal(10), hard=True)
CONFIGURATION = Configuration(
    version="v",
    providers={},
    endpoints={},
    routes=(),
    policies={},
    teams={
        "payments": Team(id="payments", organisation="acme", budget=B, projects={"shop": Project(id="shop", budget=B)}),
        "search": Team(id="search", organisation="acme", budget=B),
    },
    organisations={"acme": Organisation(id="acme", budget=B)},
)
KEYS = [
    KeyRecord(hash="", key_id="k1", team="payments", budget=B),
    KeyRecord(hash="", key_id="k2", team="search", budget=B),
]
MINE = ["key:k1", "project:payments/shop", "team:payments"]
As = Callable[[Actor], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
async def calling(database: Database, tmp_path: Path) -> AsyncIterator[As]:
    client = UpstreamClient()
    world = World(database.engine, "gw", tmp_path / "spool", workers=1)
    watch = BudgetWatch(
        database.engine,
        desk=world.desk,
        gateway="gw",
        client=client,
        metrics=ControlMetrics(),
        configuration=lambda: CONFIGURATION,
        keys=lambda: KEYS,
    )

    @asynccontextmanager
    async def as_actor(actor: Actor) -> AsyncIterator[httpx.AsyncClient]:
        def let_in(request: Request) -> None:
            request.state.actor = actor

        app = FastAPI()
        install_error_handlers(app)
        router = APIRouter(prefix="/admin/api", dependencies=[Depends(let_in)])
        add_budgets(router, BudgetServices(watch=watch))
        app.include_router(router)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin/admin/api") as http:
            yield http

    yield as_actor
    await client.close()


ADMIN = Actor("a", "admin")
DEVELOPER = Actor("d", "developer", "payments")


async def test_who_sees_which(calling: As, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(insert(usage_events).values(row("payments", Decimal("1.25"), project="shop", key_id="k1")))
    async with calling(ADMIN) as http:
        found = {one["account"]: one for one in (await http.get("/budgets")).json()["budgets"]}
    assert sorted(found) == sorted([*MINE, "key:k2", "organisation:acme", "team:search"])
    assert (found["team:payments"]["spent_usd"], found["team:payments"]["left_usd"]) == ("1.25", "8.75")
    async with calling(DEVELOPER) as http:
        assert [one["account"] for one in (await http.get("/budgets")).json()["budgets"]] == MINE
        assert (await http.get("/budgets/project:payments/shop")).json()["spent_usd"] == "1.25"
        for hidden in ("team:search", "key:k2", "organisation:acme", "team:nobody", "nonsense"):
            answer = await http.get(f"/budgets/{hidden}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "budget_not_found")


async def test_leases_of_who_is_gone(calling: As, database: Database) -> None:
    start = datetime(2026, 11, 1, tzinfo=UTC)
    lease = {"account": "team:payments", "period_start": start, "holder": "gw9/w-1", "amount_usd": Decimal("2.5")}
    with database.engine.begin() as connection:
        connection.execute(insert(budget_leases).values(lease))
    async with calling(ADMIN) as http:
        (holder,) = (await http.get("/budgets/team:payments")).json()["holders"]
        assert (holder["holder"], holder["amount_usd"]) == ("gw9/w-1", "2.5")
        refused = await http.delete("/budgets/leases/gw9/w-1")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "holder_alive")
        done = await http.delete("/budgets/leases/gw9/w-1", params={"force": "true"})
        assert done.json() == {"released_usd": "2.5", "accounts": ["team:payments"]}
        for gone in ("gw9/w-1", "%00"):
            answer = await http.delete(f"/budgets/leases/{gone}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "holder_not_found")
