"""The admin API over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, insert, update

from gateway.accounting.reports import report, to_json
from gateway.api.admin import AdminServices, create_admin_router
from gateway.api.admin_http import MAX_BODY, install_error_handlers
from gateway.api.admin_usage import AttemptList, UsageReport
from gateway.config.model import Configuration, Match, Policy, Route, Secret
from gateway.errors import StoreError
from gateway.store.database import Database
from gateway.store.keys import create_key, ensure_admin_key, find_active, hash_secret, revoke_key
from gateway.store.tables import api_keys, usage_events
from gateway.types import BUCKETS, EndpointHealth
from tests.configuration import make_endpoint, make_provider

ADMIN_KEY = "the-admin-key-of-these-tests"
HOSTILE = '</script><img src=x onerror="alert(1)">'
CALLS = [
    ("GET", "/admin/api/status"),
    ("GET", "/admin/api/usage"),
    ("GET", "/admin/api/requests"),
    ("GET", "/admin/api/requests/req_1"),
    ("GET", "/admin/api/decisions/req_1"),
    ("GET", "/admin/api/keys"),
    ("POST", "/admin/api/keys"),
    ("DELETE", "/admin/api/keys/key-1"),
]


@pytest.fixture(scope="module")
def engine(database: Database) -> Engine:
    return database.engine


@pytest.fixture(autouse=True)
def tables(engine: Engine) -> None:
    """Empty, but for the admin key."""
    with engine.begin() as connection:
        connection.execute(usage_events.delete())
        connection.execute(api_keys.delete())
    ensure_admin_key(engine, Secret(ADMIN_KEY))


def configuration() -> Configuration:
    paid = make_provider(
        id="openai",
        adapter="openai",
        base_url="https://user:url-password@api.example/v1",
        api_key=Secret("sk-upstream"),
        headers={"x-org": Secret("header-secret")},
    )
    unset = make_provider(id="claude", adapter="anthropic", missing="`ANTHROPIC_API_KEY` is not set")
    endpoints = [
        make_endpoint(id="gpt-mini", provider=paid, model="gpt-4o-mini", region="us"),
        make_endpoint(id="any", provider=paid, model="*"),
        make_endpoint(id="haiku", provider=unset, model="claude-haiku-4-5"),
    ]
    return Configuration(
        version="0123456789ab",
        providers={"openai": paid, "claude": unset},
        endpoints={endpoint.id: endpoint for endpoint in endpoints},
        routes=(Route(name="everything", match=Match(model=("*",)), policy="cheap"),),
        policies={"cheap": Policy(id="cheap", endpoints=("gpt-mini", "haiku"), select="cost")},
    )


class Plane:
    """What the control plane lends to the API, and what was asked of it."""

    def __init__(self, engine: Engine) -> None:
        self.rejected: str | None = None
        self.health: dict[str, EndpointHealth] = {}
        self.spooled: list[dict[str, Any]] = []
        self.published = 0
        self.failure: Exception | None = None
        self._engine = engine

    async def flush(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.spooled:
            add(self._engine, *self.spooled)
            self.spooled.clear()

    async def publish_keys(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.published += 1

    def app(self, engine: Engine) -> FastAPI:
        async def health() -> dict[str, EndpointHealth]:
            return self.health

        app = FastAPI(openapi_url="/admin/api/openapi.json")
        services = AdminServices(engine, configuration, lambda: self.rejected, health, self.flush, self.publish_keys)
        app.include_router(create_admin_router(services))
        install_error_handlers(app)
        return app


@pytest.fixture
def plane(engine: Engine) -> Plane:
    return Plane(engine)


def client_of(app: FastAPI, key: str | None = ADMIN_KEY) -> httpx.AsyncClient:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


@pytest.fixture
async def client(engine: Engine, plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(plane.app(engine)) as client:
        yield client


def event(**fields: Any) -> dict[str, Any]:
    started_at = fields.pop("started_at", datetime.now(UTC))
    return {
        **{column.name: None for column in usage_events.columns if column.computed is None},
        **{bucket: 0 for bucket in BUCKETS},
        **dict(event_id=str(uuid.uuid4()), request_id="req_1", attempt=1, started_at=started_at, ended_at=started_at),
        **dict(team="payments", key_id="key-1", route="everything", policy="cheap", policy_version="0123456789ab"),
        **dict(endpoint="gpt-mini", provider="openai", model="auto", upstream_model="gpt-4o-mini"),
        **dict(status="ok", stream=False, duration_ms=12.5, usage_source="reported", price_status="priced"),
        **fields,
    }


def add(engine: Engine, *events: dict[str, Any]) -> None:
    with engine.begin() as connection:
        for fields in events:
            connection.execute(insert(usage_events), fields)


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of an answer in OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# Who may call


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_every_call_needs_an_admin_key(engine: Engine, plane: Plane, method: str, path: str) -> None:
    ordinary = create_key(engine, team="payments").secret.reveal()
    revoked = create_key(engine, team="ops", role="admin")
    revoke_key(engine, revoked.key_id)
    expired = create_key(engine, team="ops", role="admin", expires_at=datetime.now(UTC) - timedelta(seconds=1))

    app = plane.app(engine)

    async def call(authorization: str | None) -> httpx.Response:
        headers = None if authorization is None else {b"authorization": authorization.encode()}
        # A body that is no JSON: who calls is settled before anything is read.
        async with client_of(app, None) as stranger:
            return await stranger.request(method, path, headers=headers, content=b"{")

    for missing in (None, "Bearer ", f"Basic {ADMIN_KEY}"):
        answer = await call(missing)
        assert refusal(answer, 401)["code"] == "missing_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for wrong in ("nobody's", "é", "x" * 2000, revoked.secret.reveal(), expired.secret.reveal()):
        assert refusal(await call(f"Bearer {wrong}"), 401)["code"] == "invalid_api_key"
    error = refusal(await call(f"Bearer {ordinary}"), 403)
    assert (error["type"], error["code"]) == ("permission_error", "admin_only")
    assert plane.published == 0


async def test_answers_are_not_kept_and_not_guessed_at(client: httpx.AsyncClient) -> None:
    made = await client.post("/admin/api/keys", json={"team": "payments"})
    refused = await client.get("/admin/api/requests/nothing")
    for answer in [made, refused, *[await client.get(path) for method, path in CALLS[:3] if method == "GET"]]:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


# Status


async def test_status(plane: Plane, client: httpx.AsyncClient) -> None:
    now = asyncio.get_running_loop().time()
    plane.rejected = "policies/a.yaml:3: unknown key `polices`\nhint: did you mean `policies`?"
    plane.health = {
        "gpt-mini": EndpointHealth(ttft=0.25, in_flight=3, failures_in_a_row=1, ejected_until=now - 1),
        "any": EndpointHealth(ttft=5.0, failures_in_a_row=4, ejected_until=now + 60),
    }
    status = (await client.get("/admin/api/status")).json()
    assert status["version"] == "0123456789ab"
    assert status["rejected"] == plane.rejected
    assert status["routes"] == [{"name": "everything", "policy": "cheap"}]
    assert status["policies"] == [{"name": "cheap", "select": "cost", "endpoints": ["gpt-mini", "haiku"]}]
    mini, other, haiku = status["endpoints"]
    assert mini == {
        "id": "gpt-mini",
        "provider": "openai",
        "adapter": "openai",
        "region": "us",
        "upstream_model": "gpt-4o-mini",
        "missing": None,
        "health": {"ttft": 0.25, "in_flight": 3, "failures": 1, "ejected": False, "ejected_for": 0.0},
    }
    assert other["upstream_model"] == "*"
    assert other["health"]["ejected"] is True
    assert 0 < other["health"]["ejected_for"] <= 60
    assert haiku["missing"] == "`ANTHROPIC_API_KEY` is not set"
    assert haiku["health"]["ttft"] is None


async def test_status_shows_no_secret(client: httpx.AsyncClient) -> None:
    text = (await client.get("/admin/api/status")).text
    for secret in ("sk-upstream", "header-secret", "url-password", ADMIN_KEY):
        assert secret not in text


# Usage


async def test_usage_is_what_the_report_prints(engine: Engine, plane: Plane, client: httpx.AsyncClient) -> None:
    add(
        engine,
        event(input_tokens=10, output_tokens=2, cost_usd=Decimal("0.0000001")),
        event(team=HOSTILE, input_tokens=1, price_status="unpriced"),
        event(team="long ago", started_at=datetime(2020, 1, 2, tzinfo=UTC)),
    )
    plane.spooled = [event(request_id="req_2", cost_usd=Decimal("1.5"))]
    answer = await client.get("/admin/api/usage", params={"by": "team,day", "from": "2021-01-01"})
    assert answer.status_code == 200
    expected = to_json(report(engine, ("team", "day"), datetime(2021, 1, 1, tzinfo=UTC), None))
    assert answer.text == expected
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert [row["team"] for row in body["rows"]] == [HOSTILE, "payments"]
    assert body["rows"][1]["cost_usd"] == "1.5000001"  # with what was spooled a moment ago
    assert body["total"]["unpriced"] == 1
    UsageReport.model_validate(body)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"by": "planet"}, "by"),
        ({"by": "team,team"}, "by"),
        ({"by": ""}, "by"),
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-02-30"}, "to"),
        ({"from": "2026-02-02", "to": "2026-02-01"}, "to"),
        ({"by": "x" * 300}, "by"),
    ],
)
async def test_wrong_usage_query(client: httpx.AsyncClient, query: dict[str, str], param: str) -> None:
    error = refusal(await client.get("/admin/api/usage", params=query), 400)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "invalid_value")
    assert "--" not in error["message"]


async def test_newest_attempts(engine: Engine, plane: Plane, client: httpx.AsyncClient) -> None:
    now = datetime.now(UTC)
    add(engine, *(event(request_id=f"req_{age}", started_at=now - timedelta(hours=age)) for age in (2, 1, 3)))
    plane.spooled = [event(request_id="req_0", started_at=now)]
    answer = (await client.get("/admin/api/requests", params={"limit": 3})).json()
    assert [row["request_id"] for row in answer["attempts"]] == ["req_0", "req_1", "req_2"]
    AttemptList.model_validate(answer)
    for limit in ("0", "501", "many"):
        error = refusal(await client.get("/admin/api/requests", params={"limit": limit}), 400)
        assert error["param"] == "limit"


async def test_attempts_of_a_request(engine: Engine, client: httpx.AsyncClient) -> None:
    started_at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    add(
        engine,
        event(attempt=2, started_at=started_at, cost_usd=Decimal("1E-7"), prices={"input": "0.15"}),
        event(attempt=1, status="error", error_type="status_500", raw_usage={"cost": 0.1, "prompt_tokens": 5}),
        event(request_id="req_2"),
    )
    answer = await client.get("/admin/api/requests/req_1")
    first, second = answer.json()["attempts"]
    assert (first["attempt"], first["status"], first["cost_usd"]) == (1, "error", None)
    assert (second["cost_usd"], second["prices"]) == ("0.0000001", {"input": "0.15"})
    assert second["started_at"] == "2026-01-02T03:04:05.000678Z"
    assert first["raw_usage"] == {"cost": 0.1, "prompt_tokens": 5}
    assert first.keys() == {column.name for column in usage_events.columns} | {"corrected_usd"}
    AttemptList.model_validate(answer.json())
    for unknown in ("req_9", "%00", "req_"):
        assert refusal(await client.get(f"/admin/api/requests/{unknown}"), 404)["code"] == "request_not_found"


# Keys


async def test_life_of_a_key(engine: Engine, plane: Plane, client: httpx.AsyncClient) -> None:
    wanted = {"team": "payments", "project": "checkout", "name": HOSTILE, "models": ["gpt-*"]}
    answer = await client.post("/admin/api/keys", json={**wanted, "expires_at": "2999-01-01T00:00:00+02:00"})
    assert answer.status_code == 201
    made = answer.json()
    assert made.keys() == {"key_id", "secret"}
    assert plane.published == 1
    found = find_active(engine, hash_secret(made["secret"]))
    assert found is not None
    assert (found.key_id, found.team, found.models, found.role) == (made["key_id"], "payments", ("gpt-*",), "key")

    listed = await client.get("/admin/api/keys")
    assert made["secret"] not in listed.text
    row = listed.json()["keys"][-1]
    assert {name: row[name] for name in wanted} == wanted
    assert (row["state"], row["expires_at"]) == ("active", "2998-12-31T22:00:00Z")

    for _ in range(2):  # the second time changes nothing
        ended = await client.delete(f"/admin/api/keys/{made['key_id']}")
        assert (ended.status_code, ended.content) == (204, b"")
    assert plane.published == 3
    assert find_active(engine, hash_secret(made["secret"])) is None
    assert (await client.get("/admin/api/keys")).json()["keys"][-1]["state"] == "revoked"


async def test_an_expired_key_is_listed_as_such(engine: Engine, client: httpx.AsyncClient) -> None:
    key_id = create_key(engine, team="payments", expires_at=datetime.now(UTC) + timedelta(days=1)).key_id
    with engine.begin() as connection:
        connection.execute(update(api_keys).where(api_keys.c.key_id == key_id).values(expires_at=datetime.now(UTC)))
    assert (await client.get("/admin/api/keys")).json()["keys"][-1]["state"] == "expired"


async def test_a_key_is_revoked_by_its_whole_id_only(engine: Engine, plane: Plane, client: httpx.AsyncClient) -> None:
    made = create_key(engine, team="payments")
    for name in (made.key_id[:-1], made.secret.reveal()[:8], "key-%25"):
        assert refusal(await client.delete(f"/admin/api/keys/{name}"), 404)["code"] == "key_not_found"
    assert find_active(engine, hash_secret(made.secret.reveal())) is not None
    assert plane.published == 0


async def test_an_admin_key_does_not_revoke_itself(engine: Engine, plane: Plane, client: httpx.AsyncClient) -> None:
    other = create_key(engine, team="ops", role="admin")
    async with client_of(plane.app(engine), other.secret.reveal()) as second:
        assert refusal(await second.delete(f"/admin/api/keys/{other.key_id}"), 400)["code"] == "own_key"
        assert (await second.get("/admin/api/keys")).status_code == 200
        assert (await client.delete(f"/admin/api/keys/{other.key_id}")).status_code == 204
        refusal(await second.get("/admin/api/keys"), 401)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"{}", "team"),
        (b'{"team": 5}', "team"),
        (b'{"team": "a", "budget": 5}', "budget"),
        (b'{"team": "a", "role": "root"}', "role"),
        (b'{"team": "a", "expires_at": "2030-01-01T00:00:00"}', "expires_at"),
        (b'{"team": "a", "models": ["gpt-*", 5]}', "models.1"),
        (b'{"team": "a b"}', "team"),
        (b'{"team": "a", "models": ["two words"]}', None),
        (b'{"team": "a", "name": "\\u0000"}', None),
    ],
)
async def test_wrong_keys_are_not_made(client: httpx.AsyncClient, body: bytes, param: str | None) -> None:
    answer = await client.post("/admin/api/keys", content=body)
    error = refusal(answer, 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len((await client.get("/admin/api/keys")).json()["keys"]) == 1


async def test_a_body_is_bounded(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 1024 + 1):
            yield b" " * 1024

    refusal(await client.post("/admin/api/keys", content=endless()), 413)


# Failures


async def test_a_secret_is_not_lost_when_keys_cannot_be_published(
    engine: Engine, plane: Plane, client: httpx.AsyncClient
) -> None:
    plane.failure = StoreError("PostgreSQL has gone\nhint: start it")
    made = await client.post("/admin/api/keys", json={"team": "payments"})
    assert made.status_code == 201
    assert find_active(engine, hash_secret(made.json()["secret"])) is not None
    # A revoked key that workers may still take is not reported as done.
    refused = refusal(await client.delete(f"/admin/api/keys/{made.json()['key_id']}"), 503)
    assert refused["message"] == str(plane.failure)
    assert find_active(engine, hash_secret(made.json()["secret"])) is None


@pytest.mark.parametrize("path", ["/admin/api/usage", "/admin/api/requests", "/admin/api/requests/req_1"])
async def test_figures_are_not_shown_when_the_ledger_cannot_be_shipped(
    plane: Plane, client: httpx.AsyncClient, path: str
) -> None:
    plane.failure = StoreError("PostgreSQL has gone\nhint: start it")
    error = refusal(await client.get(path), 503)
    assert (error["message"], error["code"]) == (str(plane.failure), "store_unavailable")


async def test_postgresql_away(plane: Plane, tmp_path: Path) -> None:
    database = Database(Secret(f"postgresql://user:its-password@/postgres?host={tmp_path}"), None)
    try:
        async with client_of(plane.app(database.engine)) as client:
            error = refusal(await client.get("/admin/api/status"), 503)
    finally:
        database.close()
    assert error["code"] == "store_unavailable"
    assert "hint:" in error["message"]
    assert "its-password" not in error["message"]


async def test_errors_of_the_framework_have_the_same_shape(plane: Plane, client: httpx.AsyncClient) -> None:
    assert refusal(await client.get("/admin/api/planets"), 404)["code"] == "unknown_route"
    wrong_method = await client.put("/admin/api/status")
    refusal(wrong_method, 405)
    assert wrong_method.headers["allow"] == "GET"
    plane.failure = RuntimeError("an inner matter")
    error = refusal(await client.get("/admin/api/usage"), 500)
    assert error["code"] == "internal"
    assert "inner matter" not in error["message"]


# Description


def test_description(engine: Engine, plane: Plane) -> None:
    description = plane.app(engine).openapi()
    for methods in description["paths"].values():
        for operation in methods.values():
            assert operation["security"] == [{"admin_key": []}]
            answers = operation["responses"]
            success = next(answer for status, answer in answers.items() if status.startswith("2"))
            if operation["operationId"] == "export_usage":
                assert list(success["content"]) == ["text/csv; charset=utf-8"]
            elif "204" not in answers:
                assert success["content"]["application/json"]["schema"]["$ref"].startswith("#/components/schemas/")
            assert answers["4XX"]["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/Error"
            assert "422" not in answers
    body = description["paths"]["/admin/api/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["team"]
    cost = description["components"]["schemas"]["UsageRow"]["properties"]["cost_usd"]
    assert {kind["type"] for kind in cost["anyOf"]} == {"string", "null"}
