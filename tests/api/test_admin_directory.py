"""The admin API of the directory, of secrets and of prompts, over a real PostgreSQL, for each role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from sqlalchemy import delete, insert, select

from gateway.api.access import Actor, check_permission
from gateway.api.admin_directory import DirectoryServices, add_directory, add_internal_directory
from gateway.api.admin_http import install_error_handlers
from gateway.api.admin_prompts import PromptServices, add_prompts
from gateway.api.admin_secrets import SecretServices, add_internal_secrets, add_secrets
from gateway.config.document import Document, parse_document
from gateway.directory import publish as publish_directory
from gateway.directory import read_published
from gateway.errors import StoreError
from gateway.secrets import Cipher, Vault, ensure_keys
from gateway.secrets import publish as publish_secrets
from gateway.store.database import Database
from gateway.store.directory import list_entries
from gateway.store.secrets import read_sealed
from gateway.store.tables import audit_log, directory, prompts, secrets

VALUE = "sk-live-51c0ffee00112233"
YAML = """
version: 1
organisations: {acme: {}}
teams: {payments: {organisation: acme, projects: {checkout: {}}}, search: {}}
"""


class Plane:
    """The control plane's part in it. `actor`: who calls next."""

    def __init__(self, database: Database, home: Path) -> None:
        self.database, self.home = database, home
        self.actor = Actor("key-dana", "admin")
        self.away = False

    def document(self) -> Document:
        return parse_document(YAML, "c.yaml")

    async def publish_directory(self) -> None:
        if self.away:
            raise StoreError("PostgreSQL is away")
        publish_directory(self.home, [row.entry for row in list_entries(self.database.engine)])

    async def publish_secrets(self) -> None:
        if self.away:
            raise StoreError("PostgreSQL is away")
        publish_secrets(self.home, read_sealed(self.database.engine))

    def app(self) -> FastAPI:
        def authenticate(request: Request) -> None:
            check_permission(self.actor, request.scope["route"].name)
            request.state.actor = self.actor

        engine = self.database.engine
        entries = DirectoryServices(engine, self.document, dict, self.publish_directory)
        stored = SecretServices(engine, lambda: Cipher(ensure_keys(self.home, None)), self.publish_secrets)
        api = APIRouter(prefix="/admin/api", dependencies=[Depends(authenticate)])
        add_directory(api, entries)
        add_secrets(api, stored)
        add_prompts(api, PromptServices(engine))
        internal = APIRouter(prefix="/internal")
        add_internal_directory(internal, entries)
        add_internal_secrets(internal, stored)
        app = FastAPI()
        app.include_router(api)
        app.include_router(internal)
        install_error_handlers(app)
        return app


@pytest.fixture
def plane(database: Database, tmp_path: Path) -> Plane:
    with database.engine.begin() as connection:
        for table in (directory, secrets, prompts):
            connection.execute(delete(table))
    return Plane(database, tmp_path)


@pytest.fixture
async def client(plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(plane.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/admin/api") as client:
        yield client


def refusal(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    return str(error["message"])


def noted(plane: Plane) -> tuple[str, str, str]:
    """Who did what to what, the last time."""
    columns = audit_log.c
    with plane.database.engine.connect() as connection:
        query = select(columns.actor, columns.action, columns.subject).order_by(columns.seq.desc()).limit(1)
        actor, action, subject = connection.execute(query).one()
        return actor, action, subject


async def test_life_of_an_entry(client: httpx.AsyncClient, plane: Plane) -> None:
    body = {"organisation": "acme", "budget": {"usd": 9.5, "hard": True}}
    made = await client.put("/directory/team/labs", json=body)
    assert (made.status_code, made.json()["body"]) == (200, body)
    assert noted(plane) == ("key-dana", "directory.set", "team:labs")
    assert [entry.id for entry in read_published(plane.home)] == ["labs"]  # before the answer
    assert (await client.put("/directory/project/labs/demo", json={"limits": {"rpm": 5}})).status_code == 200
    shown = (await client.get("/directory/project/labs/demo")).json()
    assert (shown["source"], shown["state"], shown["author"]) == ("api", "in force", "key-dana")
    everything = (await client.get("/directory")).json()["entries"]
    assert [(one["source"], one["id"]) for one in everything] == [
        ("yaml", "acme"),
        ("yaml", "payments"),
        ("yaml", "payments/checkout"),
        ("yaml", "search"),
        ("api", "labs/demo"),
        ("api", "labs"),
    ]
    assert "`labs/demo`" in refusal(await client.delete("/directory/team/labs"), 409, "directory_in_use")
    assert (await client.delete("/directory/project/labs/demo")).status_code == 204
    assert (await client.delete("/directory/team/labs")).status_code == 204
    assert noted(plane) == ("key-dana", "directory.remove", "team:labs")
    assert read_published(plane.home) == []
    refusal(await client.delete("/directory/team/labs"), 404, "entry_not_found")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("team/search", b"{}", 409, "owned_by_yaml"),
        ("project/payments/checkout", b"{}", 409, "owned_by_yaml"),
        ("team/a%20b", b"{}", 400, "invalid_value"),
        ("team/a%00b", b"{}", 400, "invalid_value"),
        ("project/labs", b"{}", 400, "invalid_value"),
        ("robot/x", b"{}", 400, "invalid_value"),
        ("team/labs", b"[]", 400, "invalid_json"),
        ("team/labs", b"{", 400, "invalid_json"),
        ("team/labs", b'{"priority": 1e9999}', 400, "directory_refused"),
        ("team/labs", b'{"organisation": "nobody"}', 400, "directory_refused"),
        ("team/labs", b'{"name": "\\u0000"}', 400, "directory_refused"),
        ("team/labs", b"{" + b'"a": 1,' * 20_000 + b'"b": 1}', 413, "request_too_large"),
    ],
)
async def test_what_is_not_written(
    client: httpx.AsyncClient, plane: Plane, path: str, body: bytes, status: int, code: str
) -> None:
    refusal(await client.put(f"/directory/{path}", content=body), status, code)
    assert list_entries(plane.database.engine) == []


async def test_a_nul_in_a_name_is_refused(client: httpx.AsyncClient) -> None:
    """PostgreSQL has no place for it."""
    for body in ({"name": "a\0b"}, {"budget": {"usd": 1, "zone": "\0"}}):
        response = await client.put("/directory/organisation/o", json=body)
        refusal(response, 400, "directory_refused")


async def test_developers_see_their_team_alone(client: httpx.AsyncClient, plane: Plane) -> None:
    for path in ("team/labs", "project/labs/demo", "cost_center/CC-1"):
        await client.put(f"/directory/{path}", json={})
    plane.actor = Actor("key-dev", "developer", "payments")
    entries = (await client.get("/directory")).json()["entries"]
    assert [one["id"] for one in entries] == ["payments", "payments/checkout"]
    assert (await client.get("/directory/team/payments")).status_code == 200
    for path in ("team/labs", "project/labs/demo", "organisation/acme", "cost_center/CC-1", "team/none"):
        refusal(await client.get(f"/directory/{path}"), 404, "entry_not_found")
    refusal(await client.put("/directory/project/payments/x", json={}), 403, "role_not_allowed")
    refusal(await client.delete("/directory/team/labs"), 403, "role_not_allowed")


async def test_finance_leaves_routing_alone(client: httpx.AsyncClient, plane: Plane) -> None:
    body = {"priority": 7, "allow": {"regions": ["eu"]}}
    await client.put("/directory/team/labs", json=body)
    plane.actor = Actor("key-fin", "finance")
    assert (await client.put("/directory/team/labs", json={**body, "budget": {"usd": 5}})).status_code == 200
    for changed in ({**body, "priority": 8}, {"priority": 7}, {**body, "data_class": "public"}):
        message = refusal(await client.put("/directory/team/labs", json=changed), 403, "role_not_allowed")
        assert "`finance` does not change" in message
    refusal(await client.delete("/directory/team/labs"), 403, "role_not_allowed")
    assert (await client.put("/directory/team/other", json={"budget": {"usd": 5}})).status_code == 200
    assert (await client.delete("/directory/team/other")).status_code == 204
    assert (await client.get("/directory/team/labs")).json()["body"]["priority"] == 7


async def test_life_of_a_secret(client: httpx.AsyncClient, plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    assert (await client.put("/secrets/openai", json={"value": f" {VALUE}\n"})).status_code == 204
    assert noted(plane) == ("key-dana", "secrets.set", "secret:openai")
    assert Vault(plane.home, None)["openai"] == VALUE
    shown = await client.get("/secrets")
    (row,) = shown.json()["secrets"]
    assert (row["name"], row["author"]) == ("openai", "key-dana") and set(row) == {
        "name",
        "key_hint",
        "updated_at",
        "author",
    }
    assert (await client.get("/secrets/openai")).status_code == 405  # nothing gives it out
    for text in (shown.text, caplog.text, repr(await client.get("/openapi.json"))):
        assert VALUE not in text
    assert (await client.delete("/secrets/openai")).status_code == 204
    assert dict(Vault(plane.home, None)) == {}
    refusal(await client.delete("/secrets/openai"), 404, "secret_not_found")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("openai", f'{{"value": "{VALUE}", "other": 1}}'),
        ("openai", f'{{"value": ["{VALUE}"]}}'),
        ("openai", f'{{"value": "{VALUE}"'),
        ("openai", f'{{"value": "{VALUE}\\n two lines"}}'),
        ("openai", '{"value": ""}'),
        ("openai", '{"value": "  "}'),
        ("openai", "{}"),
        ("a b", f'{{"value": "{VALUE}"}}'),
        ("a%00", f'{{"value": "{VALUE}"}}'),
    ],
)
async def test_what_is_no_secret_is_not_repeated(
    client: httpx.AsyncClient, plane: Plane, caplog: pytest.LogCaptureFixture, name: str, body: str
) -> None:
    response = await client.put(f"/secrets/{name}", content=body)
    refusal(response, 400, "invalid_value")
    assert VALUE not in response.text and VALUE not in caplog.text
    assert read_sealed(plane.database.engine) == []


async def test_a_key_that_cannot_be_had(client: httpx.AsyncClient, plane: Plane) -> None:
    (plane.home / "secret.key").write_text("no key")
    (plane.home / "secret.key").chmod(0o600)
    response = await client.put("/secrets/openai", json={"value": VALUE})
    assert "is no key for secrets" in refusal(response, 503, "secret_key")


async def test_secrets_and_prompts_are_for_administrators(client: httpx.AsyncClient, plane: Plane) -> None:
    for role in ("operator", "finance", "developer"):
        plane.actor = Actor("key-x", role, "payments")  # type: ignore[arg-type]  # each is a role
        for method, path in (
            ("GET", "/secrets"),
            ("PUT", "/secrets/openai"),
            ("DELETE", "/secrets/openai"),
            ("GET", "/prompts"),
            ("GET", "/prompts/r1"),
            ("DELETE", "/prompts/r1"),
        ):
            refusal(await client.request(method, path, json={"value": VALUE}), 403, "role_not_allowed")


async def test_prompts(client: httpx.AsyncClient, plane: Plane) -> None:
    now = datetime.now(UTC)
    row: dict[str, Any] = {"at": now, "expires_at": now + timedelta(days=1), "policy": "cheap", "body": {"request": {}}}
    with plane.database.engine.begin() as connection:
        connection.execute(insert(prompts), [{"request_id": id, "team": id[0], **row} for id in ("a1", "b1")])
    listed = (await client.get("/prompts", params={"team": "a"})).json()["prompts"]
    assert [(one["request_id"], "body" in one) for one in listed] == [("a1", False)]
    before = noted(plane)
    assert (await client.get("/prompts/a1")).json()["body"] == {"request": {}}
    assert noted(plane) == ("key-dana", "prompts.read", "request:a1") != before
    assert (await client.delete("/prompts/a1")).status_code == 204
    assert noted(plane) == ("key-dana", "prompts.remove", "request:a1")
    for call in (client.get, client.delete):
        refusal(await call("/prompts/a1"), 404, "prompt_not_found")
        refusal(await call("/prompts/a%00"), 404, "prompt_not_found")
    refusal(await client.get("/prompts", params={"team": "a\0"}), 400, "invalid_value")


async def test_what_the_command_line_asks(client: httpx.AsyncClient, plane: Plane) -> None:
    async def ask(method: str, path: str = "directory", **body: Any) -> httpx.Response:
        return await client.request(method, f"http://gateway/internal/{path}", json=body)

    labs = {"kind": "team", "id": "labs", "author": "cli:dana"}
    assert (await ask("POST", **labs, body={"priority": 7})).json() == {}
    assert noted(plane) == ("cli:dana", "directory.set", "team:labs")
    assert [entry.id for entry in read_published(plane.home)] == ["labs"]
    listed = (await ask("GET")).json()["entries"]
    assert (listed[-1]["id"], listed[-1]["author"], listed[-1]["state"]) == ("labs", "cli:dana", "in force")
    for wrong, status, says in (
        ({**labs, "id": "search", "body": {}}, 409, "the YAML defines team `search`"),
        ({**labs, "id": "none", "body": None}, 404, "there is no team `none`"),
        ({**labs, "body": {"priority": 99}}, 400, "from 0 to 9"),
        ({**labs, "body": []}, 400, "not a JSON object"),
        ({**labs, "kind": "robot", "body": {}}, 400, "robot"),
        (labs, 400, "missing required field"),
    ):
        response = await ask("POST", **wrong)
        assert response.status_code == status and says in response.json()["error"]
    assert (await ask("POST", **labs, body=None)).status_code == 200
    assert read_published(plane.home) == []
    assert (await ask("POST", "secrets")).json() == {}
    plane.away = True
    for path in ("directory", "secrets"):
        response = await ask("POST", path, **labs, body={})
        assert (response.status_code, response.json()) == (503, {"error": "PostgreSQL is away"})
