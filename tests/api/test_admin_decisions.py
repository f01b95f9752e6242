"""`GET /admin/api/decisions/{request_id}`: what was decided beside what happened, from spool to answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from sqlalchemy import Engine, delete, insert

from gateway.api.access import Actor
from gateway.api.admin import AdminServices
from gateway.api.admin_decisions import add_decisions
from gateway.api.admin_http import install_error_handlers
from gateway.config.model import Configuration
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.store.database import Database
from gateway.store.tables import decisions, usage_events
from gateway.types import BUCKETS, EndpointHealth
from tests.recorded_traffic import START, attempt, configuration, record

BOTH = configuration({"endpoints": ["dear", "cheap"], "select": "cost", "require": {"region": ["eu"]}})


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        connection.execute(delete(decisions))
        connection.execute(delete(usage_events))
    return database.engine


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", "w")


def operate(request: Request) -> None:
    request.state.actor = Actor("key-1", "operator")


@pytest.fixture
async def client(engine: Engine, database: Database, spool: Spool, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The path alone; who may call is tested where all paths are."""

    async def health() -> dict[str, EndpointHealth]:
        return {}

    async def publish_keys() -> None:
        pass

    def in_force() -> Configuration:
        return BOTH

    with Shipper(tmp_path / "spool", database.connect) as shipper:

        async def flush() -> None:
            shipper.ship_once()

        api = APIRouter(prefix="/admin/api", dependencies=[Depends(operate)])
        add_decisions(api, AdminServices(engine, in_force, lambda: None, health, flush, publish_keys))
        app = FastAPI(openapi_url="/admin/api/openapi.json")
        install_error_handlers(app)
        app.include_router(api)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as opened:
            yield opened
    spool.close()


async def test_decision_and_attempts(client: httpx.AsyncClient, engine: Engine, spool: Spool) -> None:
    recorded = record(BOTH, 1, [attempt("cheap")], project="checkout", tags={"env": "prod"})
    spool.decide(recorded.decision)
    (one,) = recorded.attempts
    row = {name: getattr(one, name) for name in one.__struct_fields__ if name != "usage"}
    buckets = {bucket: getattr(one.usage, bucket) for bucket in BUCKETS}
    with engine.begin() as connection:
        connection.execute(
            insert(usage_events).values(
                **row,
                **buckets,
                event_id="0192f0c1-2b3c-7d4e-8f50-112233445566",
                request_id=recorded.request_id,
                team="payments",
                key_id="key-1",
                route="all",
                policy="main",
                policy_version=BOTH.version,
                model="gpt",
                price_status="priced",
            )
        )
    response = await client.get(f"/admin/api/decisions/{recorded.request_id}")
    assert response.status_code == 200
    found = response.json()
    assert found["request_id"] == recorded.request_id
    decision = found["decision"]
    assert (decision["team"], decision["route"], decision["policy"]) == ("payments", "all", "main")
    assert decision["tags"] == {"env": "prod"}
    assert [one["endpoint"] for one in decision["candidates"]] == ["cheap"]
    assert decision["dropped"][0]["reason"] == "require"
    (shown,) = found["attempts"]
    assert Decimal(shown["cost_usd"]) == Decimal("0.0006")
    assert (shown["status"], shown["ttft_ms"], shown["tokens"]) == (
        "ok",
        200.0,
        {"input_tokens": 1000, "output_tokens": 100},
    )
    assert shown["started_at"] == START.isoformat()


async def test_a_refused_request_has_a_reason_and_no_attempt(client: httpx.AsyncClient, spool: Spool) -> None:
    recorded = record(BOTH, 2, [], refusal="policy_violation", data_class="secret")
    spool.decide(recorded.decision)
    found = (await client.get(f"/admin/api/decisions/{recorded.request_id}")).json()
    assert (found["decision"]["refusal"], found["attempts"]) == ("policy_violation", [])
    assert {one["reason"] for one in found["decision"]["dropped"]} == {"require", "data_class"}


async def test_what_another_version_wrote_is_shown_as_it_is(client: httpx.AsyncClient, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            insert(decisions).values(
                request_id="req_old", at=START, team="t", route="r", policy="p", policy_version="v", body={"old": [1]}
            )
        )
    found = (await client.get("/admin/api/decisions/req_old")).json()
    assert found["decision"]["old"] == [1]


@pytest.mark.parametrize("request_id", ["req_unknown", "%00", "%27%20OR%201=1", "x" * 3000])
async def test_nothing_is_known(client: httpx.AsyncClient, request_id: str) -> None:
    response = await client.get(f"/admin/api/decisions/{request_id}")
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "request_not_found"
    assert "x-hatchway-request-id" in error["message"] and len(error["message"]) < 300


async def test_it_is_described(client: httpx.AsyncClient) -> None:
    described = (await client.get("/admin/api/openapi.json")).json()
    path = described["paths"]["/admin/api/decisions/{request_id}"]["get"]
    assert path["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("RequestInHindsight")
