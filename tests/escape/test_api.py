"""The admin API of versions and escapes, over a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from sqlalchemy import Engine

from gateway.api.access import Actor
from gateway.api.admin_escape import EscapeServices, add_escapes
from gateway.api.admin_http import install_error_handlers
from gateway.api.admin_versions import VersionServices, add_versions
from gateway.config.document import Document
from gateway.config.model import Configuration
from gateway.escape.run import EscapeRunner
from gateway.history import RolledBack, policy_state, record, roll_back
from gateway.publication import Publication
from gateway.store.tables import configurations
from tests.escape.conftest import Clock, Ledger

FIRST = Document({"version": 1, "routes": []})
SECOND = Document({"version": 1, "routes": [], "teams": {"shop": {"cost_center": "1"}}})


class Plane:
    def __init__(self, engine: Engine, folder: Path, configuration: Configuration, clock: Clock) -> None:
        self.engine, self.configuration = engine, configuration
        self.publication = Publication(folder / "home")
        self.in_force = SECOND
        self.runner = EscapeRunner(
            engine, self.publication, configuration=lambda: configuration, push=self.push, owner="here", wall=clock
        )

    async def push(self) -> None: ...

    async def roll_back(self, version: str, author: str, note: str | None) -> RolledBack:
        async def put_in_force(document: Document, _: Configuration) -> None:
            self.in_force = document
            record(self.engine, document, author, "rollback", note)

        return await roll_back(
            self.engine,
            self.publication,
            version,
            in_force=self.in_force,
            disk_document=SECOND,
            author=author,
            note=note,
            put_in_force=put_in_force,
            environ={},
        )

    def app(self) -> FastAPI:
        def authenticate(request: Request) -> None:
            request.state.actor = Actor("key-dana", "admin")

        api = APIRouter(prefix="/admin/api", dependencies=[Depends(authenticate)])
        state = lambda: policy_state(self.publication, self.in_force.version, SECOND, None)  # noqa: E731 - one line
        add_versions(api, VersionServices(self.engine, state, self.roll_back))
        add_escapes(api, EscapeServices(self.engine, self.runner, lambda: self.configuration, self.push))
        app = FastAPI()
        app.include_router(api)
        install_error_handlers(app)
        return app


@pytest.fixture
async def client(
    engine: Engine, tmp_path: Path, configuration: Configuration, clock: Clock
) -> AsyncIterator[httpx.AsyncClient]:
    with engine.begin() as connection:
        connection.execute(configurations.delete())
    for each in (FIRST, SECOND):
        record(engine, each, "dana", "file")
    transport = httpx.ASGITransport(Plane(engine, tmp_path, configuration, clock).app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/admin/api") as client:
        yield client


def refusal(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json()["error"]


async def test_versions(client: httpx.AsyncClient) -> None:
    found = (await client.get("/policy/versions")).json()
    assert found["state"] == {"in_force": SECOND.version, "on_disk": SECOND.version, "rejected": None, "pin": None}
    assert [(one["version"], one["state"]) for one in found["versions"]] == [
        (SECOND.version, ["in force", "on disk"]),
        (FIRST.version, []),
    ]
    done = await client.post("/policy/rollback", json={"version": FIRST.version[:8], "note": "too dear"})
    assert done.json() == {"version": FIRST.version, "was": SECOND.version, "is_pinned": True}
    found = (await client.get("/policy/versions", params={"limit": 1})).json()
    (newest,) = found["versions"]
    assert (newest["version"], newest["state"]) == (FIRST.version, ["in force", "pinned"])
    latest = newest["in_force"][0]
    assert (latest["author"], latest["source"], latest["note"]) == ("key-dana", "rollback", "too dear")
    assert found["state"]["pin"]["author"] == "key-dana"


async def test_differences(client: httpx.AsyncClient) -> None:
    found = (await client.get("/policy/diff", params={"from": FIRST.version, "to": SECOND.version[:6]})).json()
    after = {"shop": {"cost_center": "1"}}
    assert found == {
        "from": FIRST.version,
        "to": SECOND.version,
        "changes": [{"path": "teams", "kind": "added", "before": None, "after": after}],
    }
    error = refusal(await client.get("/policy/diff", params={"from": "ffff", "to": SECOND.version}), 404)
    assert (error["code"], error["param"]) == ("version_not_found", "from")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"{}", 400),
        (b'{"version": 5}', 400),
        (b'{"version": "a", "x": 1}', 400),
        (b'{"version":"ff"}', 404),
    ],
)
async def test_wrong_rollbacks(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    refusal(await client.post("/policy/rollback", content=body), status)
    assert (await client.get("/policy/versions")).json()["state"]["in_force"] == SECOND.version


async def test_life_of_an_escape(client: httpx.AsyncClient, ledger: Ledger) -> None:
    ledger.add(3, "a")
    period = {"from": "a", "to": "b", "since": "2026-01-01"}
    plan = (await client.get("/escapes/plan", params=period)).json()
    assert (plan["requests"], plan["movable"]) == (3, 3)
    made = await client.post(
        "/escapes", json={"from": "a", "to": "b", "ramp": [0.5], "guards": {"max_error_rate": None}}
    )
    assert made.status_code == 201
    escape_id = made.json()["id"]
    error = refusal(await client.post("/escapes", json={"from": "a", "to": "c"}), 400)
    assert error["code"] == "escape_refused"
    shown = (await client.get(f"/escapes/{escape_id}")).json()
    assert (shown["state"], shown["share"], shown["author"], shown["steps"]) == ("shadow", 0.05, "key-dana", 2)
    assert shown["guards"]["max_error_rate"] is None
    assert [one["id"] for one in (await client.get("/escapes")).json()["escapes"]] == [escape_id]
    stopped = (await client.delete(f"/escapes/{escape_id}")).json()
    assert (stopped["state"], stopped["share"], stopped["reason"]) == ("stopped", 0.0, "by key-dana")
    assert refusal(await client.delete(f"/escapes/{escape_id}"), 404)["code"] == "escape_not_found"
    assert (await client.get(f"/escapes/{escape_id}")).json()["state"] == "stopped"
    assert refusal(await client.get("/escapes/nobody"), 404)["code"] == "escape_not_found"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"from": "a"}',
        b'{"from": "a", "to": "b", "ramp": []}',
        b'{"from": "a", "to": "b", "ramp": [NaN]}',
        b'{"from": "a", "to": "b", "step_seconds": "long"}',
        b'{"from": "a", "to": "b", "colour": "red"}',
        b'{"from": "a", "to": "b", "guards": {"max_error_rate": 7}}',
        b'{"from": "a", "to": "nobody"}',
    ],
)
async def test_wrong_starts(client: httpx.AsyncClient, body: bytes) -> None:
    error = refusal(await client.post("/escapes", content=body), 400)
    assert error["type"] == "invalid_request_error"
    assert (await client.get("/escapes")).json() == {"escapes": []}


async def test_wrong_plans(client: httpx.AsyncClient) -> None:
    for changes in ({"since": "yesterday"}, {"to": "nobody"}):
        refusal(await client.get("/escapes/plan", params={"from": "a", "to": "b", **changes}), 400)
