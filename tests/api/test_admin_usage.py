"""Usage on the operators' surface: whose rows a caller gets, and the reports of finance."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import Engine, insert

from gateway.accounting import chargeback, reports, sheets
from gateway.api.admin_http import create_authentication, install_error_handlers
from gateway.api.admin_usage import (
    AttemptList,
    ChargebackReport,
    PerformanceReport,
    UsageReport,
    UsageServices,
    add_usage,
)
from gateway.config.model import Configuration, Team
from gateway.store.database import Database
from gateway.store.keys import create_key
from gateway.store.tables import corrections, usage_events
from gateway.store.usage_query import Question
from gateway.types import Role

NIGHT = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
CONFIGURATION = Configuration(
    version="v",
    providers={},
    endpoints={},
    routes=(),
    policies={},
    teams={"payments": Team(id="payments", markup=Decimal("0.25"))},
)


@pytest.fixture(scope="module")
def engine(database: Database) -> Iterator[Engine]:
    from tests.conftest import usage_event

    make: Any = usage_event.__wrapped__()  # type: ignore[attr-defined]  # the fixture is of a narrower scope
    first = make(request_id="req-p", team="payments", started_at=NIGHT, cost_usd=Decimal("1.01"), tags={"=env": "x"})
    second = make(request_id="req-s", team="search", started_at=NIGHT, price_status="unpriced", cost_usd=None)
    second |= {"tags": None, "max_cost_usd": Decimal("1E-7")}
    with database.engine.begin() as connection:
        connection.execute(insert(usage_events), [{"max_cost_usd": None, **first}, second])
        change = {
            "correction_id": str(uuid.uuid4()),
            "event_id": first["event_id"],
            "booked_at": NIGHT,
            "team": "payments",
        }
        change |= {"kind": "adjustment", "reason": "a credit", "author": "tester", "amount_usd": Decimal("-0.01")}
        same = {name: first[name] for name in ("key_id", "route", "policy", "endpoint", "provider", "model", "status")}
        connection.execute(insert(corrections), {**change, **same})
    yield database.engine


@pytest.fixture
def app(engine: Engine) -> FastAPI:
    async def flush() -> None: ...

    api = APIRouter(prefix="/admin/api", dependencies=[Depends(create_authentication(engine))])
    add_usage(api, UsageServices(engine, lambda: CONFIGURATION, flush))
    app = FastAPI()
    app.include_router(api)
    install_error_handlers(app)
    return app


async def client_of(app: FastAPI, engine: Engine, role: Role, team: str) -> httpx.AsyncClient:
    key = create_key(engine, team=team, role=role).secret.reveal()
    headers = {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway/admin/api", headers=headers)


@pytest.fixture
async def finance(app: FastAPI, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with await client_of(app, engine, "finance", "money") as client:
        yield client


@pytest.fixture
async def developer(app: FastAPI, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with await client_of(app, engine, "developer", "search") as client:
        yield client


async def test_a_developer_sees_one_team(developer: httpx.AsyncClient) -> None:
    usage = (await developer.get("/usage", params={"by": "team"})).json()
    assert [row["team"] for row in usage["rows"]] == ["search"]
    assert usage["total"]["attempts"] == 1
    for asked in ({"by": "model"}, {"by": "tag:=env"}, {"by": "error_type"}, {"by": "team", "where": "team=*"}):
        assert (await developer.get("/usage", params=asked)).json()["total"]["attempts"] == 1
    table = (await developer.get("/usage.csv", params={"by": "team"})).text
    assert [row["team"] for row in csv.DictReader(io.StringIO(table))] == ["search"]
    newest = (await developer.get("/requests")).json()["attempts"]
    assert [row["request_id"] for row in newest] == ["req-s"]
    assert (await developer.get("/requests/req-s")).status_code == 200


async def test_another_team_is_not_there_for_a_developer(developer: httpx.AsyncClient) -> None:
    hidden = await developer.get("/requests/req-p")
    missing = await developer.get("/requests/req-x")
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json() == {"error": {**missing.json()["error"], "message": hidden.json()["error"]["message"]}}
    assert "req-p" in hidden.json()["error"]["message"]  # the id that was asked for, and nothing else
    for path in ("/usage", "/usage.csv"):
        refused = await developer.get(path, params={"by": "team", "team": "payments"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_not_allowed")
    for path in ("/chargeback", "/performance"):
        assert (await developer.get(path)).status_code == 403


async def test_a_team_and_globs(finance: httpx.AsyncClient) -> None:
    one = (await finance.get("/usage", params={"by": "team", "team": "payments"})).json()
    assert [row["team"] for row in one["rows"]] == ["payments"]
    some = await finance.get("/usage", params={"by": "team", "where": ["team=s*,p*", "provider=open*"]})
    assert [row["team"] for row in some.json()["rows"]] == ["payments", "search"]


async def test_usage_in_a_zone(finance: httpx.AsyncClient) -> None:
    query = {"by": "day,tag:=env", "zone": "Europe/Berlin", "from": "2026-03-02", "to": "2026-03"}
    answer = await finance.get("/usage", params=query)
    body = answer.json()
    assert [(row["day"], row["tag:=env"]) for row in body["rows"]] == [("2026-03-02", "x"), ("2026-03-02", None)]
    assert (body["from"], body["zone"]) == ("2026-03-01T23:00:00Z", "Europe/Berlin")
    figures = [(row["cost_usd"], row["corrected_usd"], row["max_cost_usd"]) for row in body["rows"]]
    assert figures == [("1.00", "-0.01", "0"), (None, "0", "0.0000001")]
    UsageReport.model_validate(body)


async def test_csv_is_the_report(finance: httpx.AsyncClient, engine: Engine) -> None:
    answer = await finance.get("/usage.csv", params={"by": "team,tag:=env"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text == reports.to_csv(reports.report_on(engine, Question(by=("team", "tag:=env"))))


async def test_chargeback(finance: httpx.AsyncClient, engine: Engine) -> None:
    answer = await finance.get("/chargeback", params={"by": "team"})
    body = answer.json()
    assert [(row["team"], row["charged_usd"], row["markup"]) for row in body["rows"]] == [
        ("payments", "1.25", "0.25"),
        ("search", None, "0"),
    ]
    report = reports.report_on(engine, Question(by=("organisation", "team")))
    expected = chargeback.chargeback(report, chargeback.markups(CONFIGURATION))
    assert answer.text == sheets.to_json(chargeback.to_sheet(expected))
    ChargebackReport.model_validate(body)
    refused = await finance.get("/chargeback", params={"by": "model"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "by")


async def test_performance(finance: httpx.AsyncClient) -> None:
    body = (await finance.get("/performance", params={"from": "2026-01"})).json()
    (row,) = body["rows"]
    assert (row["endpoint"], row["attempts"], row["cost_usd"], row["unpriced"]) == ("gpt-mini", 2, "1.00", 1)
    PerformanceReport.model_validate(body)


async def test_an_attempt_shows_its_corrections(finance: httpx.AsyncClient) -> None:
    body = (await finance.get("/requests/req-p")).json()
    (row,) = body["attempts"]
    assert (row["cost_usd"], row["corrected_usd"], row["max_cost_usd"]) == ("1.01", "-0.01", None)
    AttemptList.model_validate(body)
    (other,) = (await finance.get("/requests/req-s")).json()["attempts"]
    assert (other["cost_usd"], other["corrected_usd"], other["max_cost_usd"]) == (None, None, "0.0000001")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"zone": "Mars"}, "zone"),
        ({"where": "model"}, "where"),
        ({"where": "planet=x"}, "where"),
        ({"where": "day=2026-03-01"}, "by"),
        ({"where": "model=\0"}, "by"),
        ({"team": "\0"}, "by"),
        ({"by": "tag:\0"}, "by"),
        ({"by": "tag:"}, "by"),
        ({"from": "2026-00"}, "from"),
        ({"from": "0000-01"}, "from"),
        ({"to": "9999-12"}, "to"),
    ],
)
async def test_questions_without_an_answer(finance: httpx.AsyncClient, query: dict[str, str], param: str) -> None:
    answer = await finance.get("/usage", params=query)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert "--" not in answer.json()["error"]["message"]
