"""`/admin/api/months`: who may, what it answers, what it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import Engine, insert, text

from gateway.api.admin_http import create_authentication, install_error_handlers
from gateway.api.admin_months import MonthServices, add_months
from gateway.config.model import Secret
from gateway.errors import StoreError
from gateway.ledger.shipper import Shipped, ShipperBusy
from gateway.months import canonical
from gateway.signing import SigningKeyError, is_signed
from gateway.store.audit import list_audit
from gateway.store.database import Database
from gateway.store.keys import ensure_admin_key, hash_secret
from gateway.store.tables import api_keys, usage_events
from tests.emptying import empty

ADMIN = "the-admin-key-of-these-tests"
OCTOBER = datetime(2025, 10, 5, tzinfo=UTC)
CALLS = [
    ("GET", "/months"),
    ("GET", "/months/2025-10"),
    ("POST", "/months/2025-10/close"),
    ("POST", "/months/2025-10/verify"),
]


class Plane:
    """What the control plane lends."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.flushed = 0
        self.key: Ed25519PrivateKey | None = Ed25519PrivateKey.from_private_bytes(bytes(32))

    async def flush(self) -> Shipped:
        if self.failure is not None:
            raise self.failure
        self.flushed += 1
        return Shipped()

    def signing_key(self) -> Ed25519PrivateKey:
        if self.key is None:
            raise SigningKeyError("the key can be read by others\nhint: mend it")
        return self.key


@pytest.fixture
def engine(database: Database) -> Engine:
    empty(database.engine)
    ensure_admin_key(database.engine, Secret(ADMIN))
    return database.engine


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
async def client(engine: Engine, plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    api = APIRouter(prefix="/admin/api", dependencies=[Depends(create_authentication(engine))])
    add_months(api, MonthServices(engine=engine, flush=plane.flush, signing_key=plane.signing_key))
    app.include_router(api)
    install_error_handlers(app)
    headers = {"authorization": f"Bearer {ADMIN}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://h/admin/api", headers=headers) as opened:
        yield opened


@pytest.fixture
def add(engine: Engine, usage_event: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    def to_ledger(**changes: Any) -> None:
        with engine.begin() as connection:
            connection.execute(insert(usage_events).values(**usage_event(started_at=OCTOBER, **changes)))

    return to_ledger


Add = Callable[..., None]


async def test_close_show_verify(client: httpx.AsyncClient, add: Add, plane: Plane, engine: Engine) -> None:
    add()
    closed = await client.post("/months/2025-10/close", json={})
    assert closed.status_code == 200, closed.text
    assert plane.flushed == 1
    body = closed.json()
    text_of_it = canonical(body["manifest"])
    assert hashlib.sha256(text_of_it).hexdigest() == body["sha256"]
    assert is_signed(text_of_it, bytes.fromhex(body["signature"]), bytes.fromhex(body["public_key"]))
    assert body["manifest"]["totals"]["total_usd"] == "0.0000045"
    (noted,) = list_audit(engine, action="months.close")
    assert (noted.actor, noted.role, noted.subject) == (body["manifest"]["author"], "admin", "2025-10")
    assert (await client.get("/months/2025-10")).json() == body
    listed = (await client.get("/months")).json()
    assert listed == {"closed": [body], "open": []}
    verified = (await client.post("/months/2025-10/verify")).json()
    assert (verified["is_intact"], verified["difference"], verified["key"]) == (True, None, "stored")


async def test_open_months_are_listed(client: httpx.AsyncClient, add: Add) -> None:
    add()
    (one,) = (await client.get("/months")).json()["open"]
    assert one == {"month": "2025-10", "attempts": 1, "cost_usd": "0.0000045", "unpriced": 0}


async def test_a_changed_ledger_is_told(client: httpx.AsyncClient, add: Add, engine: Engine) -> None:
    add()
    await client.post("/months/2025-10/close", json={})
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("DELETE FROM usage_events"))
    verified = (await client.post("/months/2025-10/verify")).json()
    assert not verified["is_intact"]
    assert verified["difference"] == "`rows.count` is 1 in the manifest, 0 in the ledger"


async def test_doubts_need_force(client: httpx.AsyncClient, add: Add, plane: Plane) -> None:
    add(cost_usd=None, price_status="unpriced")
    plane.failure = ShipperBusy("another shipper works\nhint: x")
    refused = await client.post("/months/2025-10/close", json={})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("month_refused", "month")
    assert "another shipper works; 1 attempt without a price" in error["message"]
    forced = await client.post("/months/2025-10/close", json={"force": True})
    assert len(forced.json()["manifest"]["forced"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/months/2025-13", None, 400, "invalid_value"),
        ("GET", "/months/october", None, 400, "invalid_value"),
        ("GET", "/months/0000-01", None, 400, "invalid_month"),
        ("GET", "/months/2025-09", None, 404, "month_not_found"),
        ("POST", "/months/2025-09/verify", None, 404, "month_not_found"),
        ("POST", "/months/9000-01/close", {"force": True}, 400, "month_refused"),
        ("POST", "/months/2025-10/close", {"force": "yes"}, 400, "invalid_value"),
        ("POST", "/months/2025-10/close", {"now": True}, 400, "invalid_value"),
        ("POST", f"/months/{'2' * 50}/close", {}, 400, "invalid_value"),
    ],
)
async def test_what_is_refused(
    client: httpx.AsyncClient, method: str, path: str, body: Any, status: int, code: str
) -> None:
    found = await client.request(method, path, json=body)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code), found.text


async def test_what_is_away(client: httpx.AsyncClient, plane: Plane, add: Add) -> None:
    add()
    plane.failure = StoreError("PostgreSQL is away\nhint: x")
    away = await client.post("/months/2025-10/close", json={"force": True})
    assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
    plane.failure, plane.key = None, None
    unsigned = await client.post("/months/2025-10/close", json={})
    assert (unsigned.status_code, unsigned.json()["error"]["code"]) == (503, "signing_key")
    assert (await client.get("/months")).json()["closed"] == []


@pytest.mark.parametrize(
    ("role", "may"), [("admin", True), ("finance", True), ("operator", False), ("developer", False)]
)
async def test_months_are_for_finance(
    client: httpx.AsyncClient, engine: Engine, add: Add, role: str, may: bool
) -> None:
    add()
    key = {"key_id": f"key-{role}", "prefix": "hw-", "role": role, "team": "payments"}
    with engine.begin() as connection:
        connection.execute(insert(api_keys).values(secret_hash=bytes.fromhex(hash_secret("s")), **key))
    headers = {"authorization": "Bearer s"}
    for method, path in sorted(CALLS, key=lambda call: "close" not in call[1]):
        found = await client.request(method, path, json={} if method == "POST" else None, headers=headers)
        assert found.status_code == (200 if may else 403), (path, found.text)
