"""People at the admin API: tokens of an identity provider, and browsers that sign in with it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from msgspec.structs import replace
from sqlalchemy import Engine

from gateway.api.admin import AdminServices, create_admin_router
from gateway.api.admin_http import install_error_handlers
from gateway.config.model import Configuration, Secret
from gateway.identity.desk import IdentityDesk
from gateway.identity.session import SESSION_SECONDS, SIGN_IN_SECONDS, Seal, Session, SignIn
from gateway.identity.token import Person
from gateway.store.audit import list_audit
from gateway.store.database import Database
from gateway.store.keys import create_key, list_keys
from tests.identity.conftest import Holder, desk, holder, oidc, provider  # noqa: F401 - fixtures
from tests.identity.provider import FakeProvider

CSRF = "x-hatchway-csrf"


@pytest.fixture
def engine(database: Database) -> Engine:
    return database.engine


@pytest.fixture
def refusals() -> list[str]:
    """The codes of those who were not let in."""
    return []


@pytest.fixture
async def browser(
    engine: Engine,
    desk: IdentityDesk,  # noqa: F811 - the fixture
    refusals: list[str],
) -> AsyncIterator[httpx.AsyncClient]:
    async def health() -> dict[str, Any]:
        return {}

    async def nothing() -> None: ...

    configuration = Configuration(version="0123456789ab", providers={}, endpoints={}, routes=(), policies={})
    services = AdminServices(
        engine=engine,
        configuration=lambda: configuration,
        rejected=lambda: None,
        health=health,
        flush=nothing,
        publish_keys=nothing,
        identity=desk,
        refused=refusals.append,
    )
    app = FastAPI()
    app.include_router(create_admin_router(services))
    install_error_handlers(app)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client


async def sign_in(browser: httpx.AsyncClient) -> httpx.Response:
    """From the link on the page to where the provider sends the browser back, and what that answers."""
    begun = await browser.get("/admin/login")
    assert begun.status_code == 303, begun.text
    async with httpx.AsyncClient(trust_env=False) as outside:
        back = await outside.get(begun.headers["location"])
    assert back.headers["location"].startswith("http://127.0.0.1:8080/admin/callback?")
    return await browser.get(back.headers["location"])


def cookie_of(answer: httpx.Response, name: str) -> str:
    return next(line for line in answer.headers.get_list("set-cookie") if line.startswith(f"{name}="))


# Tokens


async def test_a_token_is_as_good_as_a_key(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
    engine: Engine,
) -> None:
    headers = {"authorization": f"Bearer {provider.token()}"}
    answer = await browser.get("/admin/api/self", headers=headers)
    who = "oidc:dana <dana@example.com>"
    assert answer.json() == {"id": who, "role": "admin", "team": None, "csrf": None, "ends_at": None}
    made = await browser.post("/admin/api/keys", headers=headers, json={"team": "payments"})
    assert made.status_code == 201
    newest = list_audit(engine, limit=1)[0]
    assert (newest.actor, newest.role, newest.action) == (who, "admin", "keys.create")
    assert newest.subject == made.json()["key_id"]


async def test_a_token_has_its_role_s_permissions(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
    refusals: list[str],
) -> None:
    headers = {"authorization": f"Bearer {provider.token(groups=['money'])}"}
    assert (await browser.get("/admin/api/keys", headers=headers)).status_code == 200
    refused = await browser.post("/admin/api/keys", headers=headers, json={"team": "payments"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "role_not_allowed")
    forged = await browser.get("/admin/api/keys", headers={"authorization": f"Bearer {provider.token(aud='other')}"})
    assert (forged.status_code, forged.json()["error"]["code"]) == (401, "invalid_token")
    assert refusals == ["role_not_allowed", "invalid_token"]


async def test_a_developer_s_team_is_in_the_token(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
    engine: Engine,
) -> None:
    own, other = create_key(engine, team="payments"), create_key(engine, team="search")
    person = {"groups": ["payments-devs"], "team": "payments"}
    answer = await browser.get("/admin/api/keys", headers={"authorization": f"Bearer {provider.token(**person)}"})
    shown = {key["key_id"] for key in answer.json()["keys"]}
    assert own.key_id in shown and other.key_id not in shown
    teamless = {"authorization": f"Bearer {provider.token(groups=['payments-devs'])}"}
    refused = await browser.get("/admin/api/keys", headers=teamless)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_team")


async def test_keys_work_while_the_provider_is_away(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
    engine: Engine,
) -> None:
    provider.is_away = True
    key = create_key(engine, team="ops", role="admin").secret.reveal()
    assert (await browser.get("/admin/api/self", headers={"authorization": f"Bearer {key}"})).status_code == 200
    away = await browser.get("/admin/api/self", headers={"authorization": f"Bearer {provider.token()}"})
    assert (away.status_code, away.json()["error"]["code"]) == (503, "identity_unavailable")


# Browsers


async def test_signing_in(
    browser: httpx.AsyncClient,
    engine: Engine,
    provider: FakeProvider,  # noqa: F811
    holder: Holder,  # noqa: F811
) -> None:
    assert (await browser.get("/admin/login.json")).json() == {"available": True}
    done = await sign_in(browser)
    assert (done.status_code, done.headers["location"]) == (303, "/admin")
    cookie = cookie_of(done, "hatchway-session")
    for attribute in ("HttpOnly", "SameSite=lax", "Path=/", f"Max-Age={SESSION_SECONDS}"):
        assert attribute in cookie
    assert "dana" not in cookie and "Secure" not in cookie
    assert 'hatchway-sign-in=""' in cookie_of(done, "hatchway-sign-in")  # its time is over
    self_ = (await browser.get("/admin/api/self")).json()
    assert (self_["id"], self_["role"]) == ("oidc:dana <dana@example.com>", "admin")
    newest = list_audit(engine, limit=1)[0]
    assert (newest.actor, newest.action) == ("oidc:dana <dana@example.com>", "sessions.begin")
    holder.now += SESSION_SECONDS + 1
    over = await browser.get("/admin/api/self")
    assert (over.status_code, over.json()["error"]["code"]) == (401, "no_session")


async def test_what_the_provider_is_asked(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
) -> None:
    begun = await browser.get("/admin/login")
    assert "HttpOnly" in cookie_of(begun, "hatchway-sign-in")
    address = urlsplit(begun.headers["location"])
    asked = {name: values[0] for name, values in parse_qs(address.query).items()}
    assert f"{address.scheme}://{address.netloc}{address.path}" == f"{provider.url}/authorize"
    assert asked.pop("tenant") == "1"  # of the address itself
    assert (asked["response_type"], asked["code_challenge_method"], asked["client_id"]) == ("code", "S256", "hatchway")
    assert asked["redirect_uri"] == "http://127.0.0.1:8080/admin/callback"
    assert "openid" in asked["scope"].split()
    secrets = [asked[name] for name in ("state", "nonce", "code_challenge")]
    assert len(set(secrets)) == 3 and all(re.fullmatch(r"[A-Za-z0-9_-]{43}", secret) for secret in secrets)
    assert not any(secret in begun.headers["set-cookie"] for secret in secrets)


async def test_over_https_cookies_go_nowhere_else(
    browser: httpx.AsyncClient,
    holder: Holder,  # noqa: F811
) -> None:
    assert holder.oidc is not None
    holder.oidc = replace(holder.oidc, url="https://gateway.example")
    cookie = (await browser.get("/admin/login")).headers["set-cookie"]
    assert cookie.startswith("__Host-hatchway-sign-in=")
    assert "Secure" in cookie and "Path=/" in cookie and "Domain" not in cookie


async def test_writes_of_a_browser_need_the_csrf_header(
    browser: httpx.AsyncClient, engine: Engine, refusals: list[str]
) -> None:
    await sign_in(browser)
    csrf = (await browser.get("/admin/api/self")).json()["csrf"]
    before = len(list_keys(engine))
    for headers in ({}, {CSRF: ""}, {CSRF: csrf[:-1]}, {CSRF: "é".encode()}):
        refused = await browser.post("/admin/api/keys", json={"team": "payments"}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "csrf")
    assert len(list_keys(engine)) == before
    assert refusals == ["csrf"] * 4
    made = await browser.post("/admin/api/keys", json={"team": "payments"}, headers={CSRF: csrf})
    assert made.status_code == 201


async def test_signing_out(browser: httpx.AsyncClient) -> None:
    await sign_in(browser)
    assert (await browser.post("/admin/logout")).status_code == 204
    assert (await browser.get("/admin/api/self")).json()["error"]["code"] == "missing_api_key"


async def test_a_key_goes_before_the_cookie(browser: httpx.AsyncClient, engine: Engine) -> None:
    await sign_in(browser)
    key = create_key(engine, team="ops", role="finance")
    headers = {"authorization": f"Bearer {key.secret.reveal()}"}
    assert (await browser.get("/admin/api/self", headers=headers)).json()["id"] == key.key_id
    wrong = await browser.get("/admin/api/self", headers={"authorization": "Bearer hw-wrong"})
    assert wrong.status_code == 401


async def test_a_cookie_that_is_not_ours(
    browser: httpx.AsyncClient,
    holder: Holder,  # noqa: F811
) -> None:
    assert holder.oidc is not None
    session = Session(Person("oidc:eve", "admin"), "c" * 43, holder.now + 1000)
    other = Seal(replace(holder.oidc, client_secret=Secret("another"))).close(session)
    begun = Seal(holder.oidc).close(SignIn("s", "n", "v", holder.now + 1000))
    ours = Seal(holder.oidc).close(session)
    for wrong in (other, begun, "", "x", "AAAA" * 2000, ours[:-2] + ("AA" if ours[-2:] != "AA" else "BB"), ours[4:]):
        browser.cookies.set("hatchway-session", wrong)
        answer = await browser.get("/admin/api/self")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "no_session"), wrong
    browser.cookies.set("hatchway-session", ours)
    assert (await browser.get("/admin/api/self")).status_code == 200
    holder.oidc = replace(holder.oidc, roles={"platform": "finance"})  # who has which role changed: sign in again
    assert (await browser.get("/admin/api/self")).status_code == 401


@pytest.mark.parametrize("what", ["no cookie", "another state", "no code", "a used code", "too late", "refused"])
async def test_sign_ins_that_fail(
    browser: httpx.AsyncClient,
    holder: Holder,  # noqa: F811
    refusals: list[str],
    what: str,
) -> None:
    begun = await browser.get("/admin/login")
    async with httpx.AsyncClient(trust_env=False) as outside:
        back = (await outside.get(begun.headers["location"])).headers["location"]
    if what == "no cookie":
        browser.cookies.clear()
    elif what == "another state":
        back = back.replace("state=", "state=x")
    elif what in ("no code", "refused"):
        state = parse_qs(urlsplit(back).query)["state"][0]
        back = f"/admin/callback?state={state}" + ("&error=access_denied" if what == "refused" else "")
    elif what == "a used code":
        kept = dict(browser.cookies)
        assert (await browser.get(back)).status_code == 303
        browser.cookies.clear()
        browser.cookies.update(kept)
    else:
        holder.now += SIGN_IN_SECONDS + 1
    failed = await browser.get(back)
    assert (failed.status_code, failed.json()["error"]["code"]) == (401, "sign_in_failed")
    assert "set-cookie" not in failed.headers
    assert refusals == ["sign_in_failed"]


@pytest.mark.parametrize(
    "claims",
    [{"nonce": "another"}, {"nonce": None}, {"aud": "another"}, {"azp": "another"}, {"iss": "https://evil.example"}],
)
async def test_an_id_token_of_another_sign_in(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
    claims: dict[str, Any],
) -> None:
    provider.id_claims = claims
    failed = await sign_in(browser)
    assert (failed.status_code, failed.json()["error"]["code"]) == (401, "invalid_token")
    assert "hatchway-session" not in browser.cookies


async def test_a_person_without_a_role(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
) -> None:
    provider.person = {"sub": "eve"}
    failed = await sign_in(browser)
    assert (failed.status_code, failed.json()["error"]["code"]) == (403, "no_role")
    assert "hatchway-session" not in browser.cookies


@pytest.mark.parametrize("methods", [["client_secret_post"], ["client_secret_basic", "client_secret_post"], ["x"]])
async def test_the_client_s_secret_goes_as_the_provider_wants_it(
    browser: httpx.AsyncClient,
    provider: FakeProvider,  # noqa: F811
    methods: list[str],
) -> None:
    provider.document = {"token_endpoint_auth_methods_supported": methods}
    assert (await sign_in(browser)).status_code == 303


async def test_there_is_no_login_page(
    browser: httpx.AsyncClient,
    holder: Holder,  # noqa: F811
) -> None:
    assert holder.oidc is not None
    holder.oidc = replace(holder.oidc, client_secret=None)
    assert (await browser.get("/admin/login.json")).json() == {"available": False}
    for path in ("/admin/login", "/admin/callback?state=s&code=c"):
        missing = await browser.get(path)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "no_login")
