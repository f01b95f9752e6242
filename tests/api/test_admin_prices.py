"""`/admin/api/prices`: who may, what it answers, what it refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from sqlalchemy import Engine, insert

from gateway.accounting.catalogue import Catalogue, CatalogueModel, CatalogueProvider, Clause
from gateway.api.admin_http import create_authentication, install_error_handlers
from gateway.api.admin_prices import PriceServices, add_prices
from gateway.config.model import Secret
from gateway.config.sheets import Meters, PriceWindow
from gateway.store.audit import Author, list_audit
from gateway.store.catalogues import propose
from gateway.store.database import Database
from gateway.store.keys import ensure_admin_key, hash_secret
from gateway.store.tables import api_keys, usage_events
from tests.emptying import empty
from tests.gateway_fixtures import configuration_of

ADMIN = "the-admin-key-of-these-tests"
FORMER = Author("former", "admin")
DOCUMENT = {
    "providers": {"seller": {"adapter": "openai-compatible", "base_url": "https://host.example/v1"}},
    "endpoints": {"a": {"provider": "seller", "model": "m"}, "any": {"provider": "seller", "model": "*"}},
    "policies": {},
    "contracts": {"deal": {"provider": "seller", "discount": "50%", "teams": ["payments"]}},
}
CALLS = [
    ("GET", "/prices/catalogues"),
    ("POST", "/prices/catalogues?source=x"),
    ("POST", "/prices/catalogues/ab/approve"),
    ("POST", "/prices/catalogues/ab/reject"),
    ("GET", "/prices/diff"),
    ("GET", "/prices/unpriced"),
]


def list_of(**prices: str) -> bytes:
    models = tuple(
        CatalogueModel(
            id=name,
            match=Clause(equals=name),
            windows=(PriceWindow(meters=Meters(input=Decimal(price), output=Decimal(price))),),
        )
        for name, price in prices.items()
    )
    return Catalogue(source="list", providers=(CatalogueProvider(id="seller", models=models),)).encode()


@pytest.fixture
def engine(database: Database) -> Engine:
    empty(database.engine)
    ensure_admin_key(database.engine, Secret(ADMIN))
    return database.engine


@pytest.fixture
def document() -> dict[str, Any]:
    return dict(DOCUMENT)


@pytest.fixture
async def client(engine: Engine, document: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    api = APIRouter(prefix="/admin/api", dependencies=[Depends(create_authentication(engine))])
    add_prices(api, PriceServices(engine=engine, configuration=lambda: configuration_of(document)))
    app.include_router(api)
    install_error_handlers(app)
    headers = {"authorization": f"Bearer {ADMIN}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://h/admin/api", headers=headers) as opened:
        yield opened


async def proposed(client: httpx.AsyncClient, content: bytes, source: str = "list 1") -> str:
    answer = await client.post("/prices/catalogues", params={"source": source}, content=content)
    assert answer.status_code == 200, answer.text
    assert answer.json()["catalogue"]["state"] == "proposed"
    return str(answer.json()["catalogue"]["version"])


async def in_force(client: httpx.AsyncClient) -> list[str]:
    rows = (await client.get("/prices/catalogues")).json()["catalogues"]
    return [row["version"] for row in rows if row["state"] == "in force"]


async def test_from_a_proposal_to_a_price(client: httpx.AsyncClient, engine: Engine) -> None:
    first = await proposed(client, list_of(m="2"))
    assert await in_force(client) == []
    approved = await client.post(f"/prices/catalogues/{first[:6]}/approve", json={})
    assert (approved.status_code, approved.json()["state"]) == (200, "in force")
    second = await proposed(client, list_of(m="3", n="1"), "list 2")
    changes = (await client.get("/prices/diff")).json()
    assert (changes["from"], changes["to"]) == (first, second)
    assert [(one["model"], one["kind"]) for one in changes["changes"]] == [("m", "changed"), ("n", "added")]
    assert changes["changes"][0]["prices"][0] == {"price": "input", "before": "2", "after": "3"}
    assert await in_force(client) == [first]
    await client.post(f"/prices/catalogues/{second}/approve", json={})
    assert await in_force(client) == [second]

    (answer,) = (await client.get("/prices/model", params={"model": "m", "team": "payments"})).json()["answers"][:1]
    assert (answer["endpoint"], answer["prices"]["input"], answer["prices"]["listed"]["input"]) == ("a", "1.5", "3")
    assert answer["reasons"][0] == "contract `deal`: 50% off"
    assert answer["catalog_version"] == f"list {second}"
    log = [(row.action, row.subject) for row in list_audit(engine)]
    assert {("prices.propose", first), ("prices.approve", first), ("prices.approve", second)} <= set(log)


async def test_a_model_that_nobody_prices_says_why(client: httpx.AsyncClient) -> None:
    await client.post(f"/prices/catalogues/{await proposed(client, list_of(m='2'))}/approve", json={})
    answers = (await client.get("/prices/model", params={"model": "other"})).json()["answers"]
    assert [(one["endpoint"], one["prices"]) for one in answers] == [("any", None)]
    assert "has no model `other`" in answers[0]["reasons"][0]


@pytest.mark.parametrize("document", [{**DOCUMENT, "prices": {"two_person": True}}])
async def test_two_people_where_the_configuration_asks_for_them(client: httpx.AsyncClient, engine: Engine) -> None:
    own = await proposed(client, list_of(m="2"))
    refused = await client.post(f"/prices/catalogues/{own}/approve", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "catalogue_refused")
    assert await in_force(client) == []
    propose(engine, "abcdef", "list", list_of(m="9"), FORMER)
    assert (await client.post("/prices/catalogues/abcdef/approve", json={})).status_code == 200


async def test_a_proposal_is_put_aside(client: httpx.AsyncClient) -> None:
    version = await proposed(client, list_of(m="2"))
    assert (await client.post(f"/prices/catalogues/{version}/reject")).json()["state"] == "rejected"
    assert (await client.get("/prices/diff")).status_code == 404
    await client.post(f"/prices/catalogues/{version}/approve", json={"two_person": False})
    assert (await client.post(f"/prices/catalogues/{version}/reject")).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("POST", "/prices/catalogues?source=x", b"", 400),
        ("POST", "/prices/catalogues?source=x", b"a: b", 400),  # YAML is for the command line
        ("POST", "/prices/catalogues?source=x", b"[3]", 400),
        ("POST", "/prices/catalogues?source=x&format=excel", b"[]", 400),
        ("POST", "/prices/catalogues", b"[]", 400),
        ("POST", "/prices/catalogues/ffff/approve", b"{}", 404),
        ("POST", "/prices/catalogues/zz/approve", b"{}", 400),
        ("POST", "/prices/catalogues/ffff/approve", b'{"two": 1}', 400),
        ("GET", "/prices/diff?from=ffff", b"", 404),
        ("GET", "/prices/model", b"", 400),
        ("GET", "/prices/model?model=m%00", b"", 400),
        ("GET", "/prices/model?model=m&at=soon", b"", 400),
        ("GET", "/prices/unpriced?days=0", b"", 400),
    ],
)
async def test_what_is_wrong_is_refused(
    client: httpx.AsyncClient, method: str, path: str, sent: bytes, status: int
) -> None:
    answer = await client.request(method, path, content=sent)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


async def test_an_upload_is_bounded(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.api.admin_prices.MAX_CATALOGUE_BYTES", 100)
    answer = await client.post("/prices/catalogues?source=x", content=b"[" + b" " * 200 + b"]")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_what_the_ledger_has_without_a_price(
    client: httpx.AsyncClient, engine: Engine, usage_event: Callable[..., dict[str, Any]]
) -> None:
    row = usage_event(
        upstream_model="new", cost_usd=None, price_status="unpriced", prices=None, catalog_version=None, input_tokens=7
    )
    with engine.begin() as connection:
        connection.execute(insert(usage_events).values(**row))
    (found,) = (await client.get("/prices/unpriced", params={"days": 3660})).json()["models"]
    assert (found["upstream_model"], found["attempts"]) == ("new", 1)


def role_key(engine: Engine, role: str) -> dict[str, str]:
    secret = f"hw-{role}"
    row = {"key_id": role, "secret_hash": bytes.fromhex(hash_secret(secret)), "prefix": "hw", "role": role, "team": "t"}
    with engine.begin() as connection:
        connection.execute(insert(api_keys).values(**row))
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(
    ("role", "may"), [("finance", True), ("operator", False), ("developer", False), ("key", False)]
)
async def test_money_is_for_finance(client: httpx.AsyncClient, engine: Engine, role: str, may: bool) -> None:
    headers = role_key(engine, role)
    for method, path in CALLS:
        status = (await client.request(method, path, headers=headers)).status_code
        assert status in ((200, 400, 404) if may else (403,)), (method, path)


async def test_operators_may_ask_what_a_model_costs(client: httpx.AsyncClient, engine: Engine) -> None:
    await client.post(f"/prices/catalogues/{await proposed(client, list_of(m='2'))}/approve", json={})
    answer = await client.get("/prices/model", params={"model": "m"}, headers=role_key(engine, "operator"))
    assert answer.status_code == 200 and json.loads(answer.content)["answers"][0]["prices"]["input"] == "2"
