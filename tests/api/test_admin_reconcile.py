"""`/admin/api/reconciliations` and `/admin/api/corrections`: who may, what they answer, what they refuse."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import Engine, insert, text

from gateway.api import admin_reconcile
from gateway.api.admin_http import create_authentication, install_error_handlers
from gateway.api.admin_reconcile import ReconcileServices, add_reconciliations
from gateway.config.model import Secret
from gateway.store.audit import list_audit
from gateway.store.database import Database
from gateway.store.keys import ensure_admin_key, hash_secret
from gateway.store.tables import api_keys, metadata, usage_events

ADMIN = "the-admin-key-of-these-tests"
MARCH = datetime(2026, 3, 1, 3, tzinfo=UTC)
CSV = """\
usage_date_utc,model_version,workspace,usage_input_tokens_no_cache,usage_output_tokens
2026-03-01,claude-x-20260101,w,110,20
"""
WITH_PROVIDER = {"provider": "claude"}


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)}"))
    ensure_admin_key(database.engine, Secret(ADMIN))
    return database.engine


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    api = APIRouter(prefix="/admin/api", dependencies=[Depends(create_authentication(engine))])
    add_reconciliations(api, ReconcileServices(engine=engine, configuration=lambda: None))
    app.include_router(api)
    install_error_handlers(app)
    headers = {"authorization": f"Bearer {ADMIN}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://a/admin/api", headers=headers) as client:
        yield client


@pytest.fixture
def event(engine: Engine, usage_event: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    row = usage_event(
        started_at=MARCH,
        ended_at=MARCH,
        provider="claude",
        upstream_model="claude-x",
        model="claude-x",
        input_tokens=100,
        output_tokens=20,
    )
    with engine.begin() as connection:
        connection.execute(insert(usage_events).values(**row))
    return row


async def test_an_export_is_compared(client: httpx.AsyncClient, event: dict[str, Any]) -> None:
    answer = await client.post("/reconciliations", params=WITH_PROVIDER, content=CSV)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["provider_tokens"], found["ledger_tokens"], found["difference_tokens"]) == ("130", "120", "10")
    assert found["causes"] == {"outside": {"tokens": "10", "usd": None}}
    assert (found["from"], found["is_within"], found["reconciliation_id"]) == ("2026-03-01", False, None)
    assert found["differences"][0]["causes"] == [{"cause": "outside", "tokens": "10", "usd": None}]
    packed = await client.post("/reconciliations", params=WITH_PROVIDER, content=gzip.compress(CSV.encode()))
    assert packed.json() == found
    assert (await client.get("/reconciliations")).json() == {"reconciliations": []}


async def test_a_result_is_kept_shown_and_thrown_away(
    client: httpx.AsyncClient, engine: Engine, event: dict[str, Any]
) -> None:
    made = (await client.post("/reconciliations", params={**WITH_PROVIDER, "save": "true"}, content=CSV)).json()
    identifier = made["reconciliation_id"]
    (listed,) = (await client.get("/reconciliations")).json()["reconciliations"]
    assert listed["reconciliation_id"] == identifier
    assert listed["result"]["difference_tokens"] == "10"
    assert "differences" not in listed["result"]
    whole = (await client.get(f"/reconciliations/{identifier}")).json()
    assert whole["result"]["differences"] == made["differences"]
    assert (await client.delete(f"/reconciliations/{identifier}")).json() == {"reconciliation_id": identifier}
    assert (await client.get(f"/reconciliations/{identifier}")).status_code == 404
    assert (await client.delete(f"/reconciliations/{identifier}")).json()["error"]["code"] == "reconciliation_not_found"
    actions = [row.action for row in list_audit(engine, action="reconciliations")]
    assert actions == ["reconciliations.delete", "reconciliations.save"]


@pytest.mark.parametrize(
    ("params", "content", "message"),
    [
        (WITH_PROVIDER, "hello", "no export"),
        (WITH_PROVIDER, "", "no export"),
        ({}, CSV, "--provider"),
        ({**WITH_PROVIDER, "zone": "Nowhere"}, CSV, "no time zone"),
        ({**WITH_PROVIDER, "tolerance": "much"}, CSV, "no share"),
        ({**WITH_PROVIDER, "source": "cur"}, CSV, "no line that can be read"),
        ({**WITH_PROVIDER, "from": "2026-03-02", "to": "2026-03-01"}, CSV, "is not before"),
    ],
)
async def test_what_cannot_be_compared(
    client: httpx.AsyncClient, params: dict[str, str], content: str, message: str
) -> None:
    answer = await client.post("/reconciliations", params=params, content=content)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "export_unreadable"


async def test_a_file_has_limits(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_reconcile, "MAX_FILE", 1000)
    answer = await client.post("/reconciliations", content=b"x" * 1001)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    monkeypatch.setattr(admin_reconcile, "MAX_FILE", 10**6)
    monkeypatch.setattr(admin_reconcile, "MAX_LINES", 3)
    bomb = gzip.compress((CSV + CSV.splitlines()[1] + "\n" + (CSV.splitlines()[1] + "\n") * 1000).encode())
    answer = await client.post("/reconciliations", params=WITH_PROVIDER, content=bomb)
    assert "more than 3 lines" in answer.json()["error"]["message"]


async def test_corrections_are_written_and_listed(
    client: httpx.AsyncClient, engine: Engine, event: dict[str, Any]
) -> None:
    body = {"amount_usd": "-1.50", "reason": "goodwill", "event_id": event["event_id"]}
    made = (await client.post("/corrections", json=body)).json()
    assert (made["amount_usd"], made["team"], made["kind"], made["is_first_price"]) == (
        *("-1.50", "payments"),
        *("adjustment", False),
    )
    assert made["booked_at"].startswith("2026-03-01T03:00:00")
    of_team = {"amount_usd": "2", "reason": "bill of March", "kind": "reconciliation", "team": "search", "model": "m"}
    assert (await client.post("/corrections", json=of_team)).json()["upstream_model"] == "m"
    listed = (await client.get("/corrections")).json()["corrections"]
    assert [(row["team"], Decimal(row["amount_usd"])) for row in listed] == [
        ("search", 2),
        ("payments", Decimal("-1.5")),
    ]
    assert len((await client.get("/corrections", params={"team": "search"})).json()["corrections"]) == 1
    assert (await client.get("/corrections", params={"team": "a\0"})).json() == {"corrections": []}
    assert (await client.get("/corrections", params={"kind": "price"})).json() == {"corrections": []}
    assert [row.action for row in list_audit(engine, action="corrections")] == ["corrections.add", "corrections.add"]


@pytest.mark.parametrize(
    "change",
    [
        {"amount_usd": "0"},
        {"amount_usd": "much"},
        {"amount_usd": "1e5"},
        {"amount_usd": 1.5},
        {"reason": ""},
        {"reason": "  "},
        {"kind": "price"},  # those are worked out, not written
        {"team": None},
        {"event_id": "11111111-1111-1111-1111-111111111111"},
        {"event_id": "-" * 32, "team": None},
        {"team": "a\0"},
        {"colour": "red"},
    ],
)
async def test_corrections_that_are_refused(
    client: httpx.AsyncClient, event: dict[str, Any], change: dict[str, Any]
) -> None:
    body = {"amount_usd": "1", "reason": "r", "team": "search", **change}
    answer = await client.post("/corrections", json=body)
    assert answer.status_code == 400
    assert (await client.get("/corrections")).json() == {"corrections": []}


@pytest.mark.parametrize(
    ("role", "may"), [("finance", True), ("operator", False), ("developer", False), ("key", False)]
)
async def test_who_may(client: httpx.AsyncClient, engine: Engine, role: str, may: bool) -> None:
    with engine.begin() as connection:
        connection.execute(
            insert(api_keys).values(
                key_id=f"key-{role}",
                secret_hash=bytes.fromhex(hash_secret(f"secret-{role}")),
                prefix="p",
                role=role,
                team="search",
            )
        )
    headers = {"authorization": f"Bearer secret-{role}"}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/reconciliations", {}),
        ("GET", "/reconciliations/rec_1", {}),
        ("DELETE", "/reconciliations/rec_1", {}),
        ("POST", "/reconciliations", {"content": CSV, "params": WITH_PROVIDER}),
        ("GET", "/corrections", {}),
        ("POST", "/corrections", {"json": {"amount_usd": "1", "reason": "r", "team": "a"}}),
    ]
    for method, path, options in calls:
        answer = await client.request(method, path, headers=headers, **options)
        assert (answer.status_code == 403) is not may, (method, path, answer.text)
