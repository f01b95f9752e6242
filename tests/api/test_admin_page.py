"""The admin page: its headers, and that it asks for nothing but its own API."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine

from gateway.api.admin import AdminServices, create_admin_router
from gateway.api.admin_escape import EscapeServices
from gateway.api.admin_learned import LearnedServices
from gateway.api.admin_versions import VersionServices
from gateway.config.model import Configuration
from gateway.escape.run import EscapeRunner
from gateway.history import PolicyState, RolledBack
from gateway.publication import Publication
from gateway.store.usage_query import GROUPS
from gateway.types import BUCKETS, EndpointHealth

WITHOUT_A_BUTTON = {
    ("DELETE", "/budgets/leases/{}"),
    ("DELETE", "/directory/{}/{}"),
    ("DELETE", "/prompts/{}"),
    ("DELETE", "/reconciliations/{}"),
    ("DELETE", "/secrets/{}"),
    ("GET", "/budgets/{}"),
    ("GET", "/chargeback"),
    ("GET", "/corrections"),
    ("GET", "/directory"),
    ("GET", "/directory/{}/{}"),
    ("GET", "/keys/{}"),
    ("GET", "/months/{}"),
    ("GET", "/performance"),
    ("GET", "/prices/diff"),
    ("GET", "/prices/model"),
    ("GET", "/prompts"),
    ("GET", "/prompts/{}"),
    ("GET", "/reconciliations"),
    ("GET", "/reconciliations/{}"),
    ("GET", "/secrets"),
    ("GET", "/usage.csv"),
    ("POST", "/corrections"),
    ("POST", "/keys/{}/rotate"),
    ("POST", "/prices/catalogues"),
    ("POST", "/reconciliations"),
    ("PUT", "/directory/{}/{}"),
    ("PUT", "/secrets/{}"),
}
"""Operations for programs, and for `hatchway` on the command line."""


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """Without a database: the page itself asks nothing of it."""

    async def nothing() -> None: ...

    async def health() -> Mapping[str, EndpointHealth]:
        return {}

    async def forget(names: Sequence[str]) -> list[str]:
        return []

    async def roll_back(version: str, author: str, why: str | None) -> RolledBack:
        raise AssertionError("the page itself rolls nothing back")

    configuration = Configuration(version="0123456789ab", providers={}, endpoints={}, routes=(), policies={})
    engine = create_engine("postgresql+psycopg://")
    app = FastAPI()
    runner = EscapeRunner(
        engine, Publication(tmp_path), configuration=lambda: configuration, push=nothing, owner="test"
    )
    state = PolicyState("0123456789ab", None, None, None)
    services = AdminServices(
        engine,
        lambda: configuration,
        lambda: None,
        health,
        nothing,
        nothing,
        versions=VersionServices(engine, lambda: state, roll_back),
        escapes=EscapeServices(engine, runner, lambda: configuration, nothing),
        learned=LearnedServices(dict, forget, engine),
        directory=cast(Any, SimpleNamespace()),
        secrets=cast(Any, SimpleNamespace()),
        months=cast(Any, SimpleNamespace()),
        budgets=cast(Any, SimpleNamespace()),
    )
    app.include_router(create_admin_router(services))
    return app


@pytest.fixture
async def page(app: FastAPI) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.get("/admin")
        assert (await client.get("/admin/")).content == answer.content
        assert (await client.head("/admin")).status_code == 200
    assert answer.status_code == 200
    return answer


def inline(page: httpx.Response, tag: str) -> str:
    """The content of the page's only element of this kind."""
    (content,) = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page.text, re.DOTALL)
    assert isinstance(content, str)
    return content


def test_only_the_page_itself_may_run(page: httpx.Response) -> None:
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.partition(" ")[::2] for part in page.headers["content-security-policy"].split("; "))
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        digest = base64.b64encode(hashlib.sha256(inline(page, tag).encode()).digest()).decode()
        assert policy[kind] == f"'sha256-{digest}'"
    for closed in ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy[closed] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"


def test_the_page_loads_nothing_and_has_no_inline_handlers(page: httpx.Response) -> None:
    assert re.findall(r"(?:https?:)?//[\w.]", page.text.replace("// ", "")) == []
    assert re.findall(r"@import|url\(|\ssrc=|<iframe|<object|<base", page.text) == []
    assert re.findall(r"<link\b[^>]*>", page.text) == ['<link rel="icon" href="data:,">']
    markup = re.sub(r"<(script|style)>.*?</\1>", "", page.text, flags=re.DOTALL)
    assert re.findall(r"\s(?:on\w+|style)=", markup) == []


def test_names_stay_data(page: httpx.Response) -> None:
    """Names come as JSON only, and the script has no way to parse one as HTML or code."""
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|srcdoc|document\.write|eval\(|Function\(|DOMParser"
    assert re.findall(sinks, inline(page, "script")) == []
    # Attributes are set where their names are written out in the script, and handlers are never made from text.
    attributes = re.findall(r"setAttribute\(([^,]*),", inline(page, "script"))
    assert attributes == ["name", '"aria-pressed"']
    assert re.findall(r"\bon\w+\s*[:=]", inline(page, "script")) == []


def test_the_key_stays_in_the_tab(page: httpx.Response) -> None:
    script = inline(page, "script")
    assert re.findall(r"localStorage|document\.cookie|indexedDB|location\s*[.=]|history\.", script) == []
    assert "sessionStorage.setItem" in script


def test_the_page_fits_its_api(app: FastAPI, page: httpx.Response) -> None:
    script = inline(page, "script")
    paths = app.openapi()["paths"]
    there = {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path.removeprefix("/admin/api")))
        for path, methods in paths.items()
        for method in methods
    }
    called = {
        (method, re.sub(r"\$\{.*?\}", "{}", path).partition("?")[0])
        for method, path in re.findall(r'call\("([A-Z]+)", ["`](/.*?)["`][,)]', script)
    }
    assert len(re.findall(r"\bcall\(\"", script)) >= len(called)
    assert called | WITHOUT_A_BUTTON == there
    assert not called & WITHOUT_A_BUTTON
    groups, taken, given = (
        re.findall(r'"(\w+)"', found)
        for found in re.findall(r"^const (?:GROUPS|INPUT|OUTPUT) = \[(.*?)\];$", script, re.MULTILINE)
    )
    assert set(groups) <= set(GROUPS)
    assert sorted(taken + given) == sorted(BUCKETS)
    ids = re.findall(r'\bid="([\w-]+)"', page.text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= set(ids)
