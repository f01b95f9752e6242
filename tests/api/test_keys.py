"""What a key may call: scopes and roles, on every surface of a running gateway; and how a key is found."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from time import time
from typing import Any, get_args

import pytest

from gateway.api import auth
from gateway.api.auth import LOCATOR_LENGTH, KeyRing
from gateway.api.surfaces import SCOPES as NEEDED
from gateway.api.surfaces import SURFACES
from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.store.key_terms import SCOPES
from gateway.types import Budget, KeyRecord, RateLimit, Surface
from tests.gateway_fixtures import KEY, Gateway, Upstream, answer, endpoints, key_record
from tests.pipeline.conftest import StartGateway, StartUpstream

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
}


@pytest.fixture
async def gateway(script_upstream: StartUpstream, start_gateway: StartGateway) -> Gateway:
    upstream: Upstream = await script_upstream(answer())
    keys = [key_record(), *(key_record(f"hw_{scope}", key_id=f"key_{scope}", scopes=(scope,)) for scope in SCOPES)]
    keys += [key_record(f"hw_{role}", key_id=f"key_{role}", role=role) for role in ("operator", "finance", "developer")]
    return await start_gateway(endpoints(upstream), keys)


async def called(gateway: Gateway, path: str, key: str) -> tuple[int, str | None]:
    """Status and code of the error of one call."""
    client = gateway.client(key)
    if path == "/v1/models":
        response = await client.get(path)
    else:
        response = await client.post(path, json={"model": "gpt-test", **BODIES[path]})
    error = response.json().get("error") or {}
    return response.status_code, error.get("code") or error.get("type")


def test_every_surface_has_a_scope() -> None:
    assert set(NEEDED) == set(get_args(Surface))
    assert {*NEEDED.values(), "models"} == set(SCOPES)
    assert set(BODIES) == set(SURFACES)


@pytest.mark.parametrize("path", [*BODIES, "/v1/models"])
async def test_a_key_calls_the_surfaces_of_its_scopes(gateway: Gateway, path: str) -> None:
    needed = "models" if path == "/v1/models" else NEEDED[SURFACES[path].surface]
    for scope in SCOPES:
        status, code = await called(gateway, path, f"hw_{scope}")
        if scope == needed:
            assert status != 403, (scope, code)
        else:
            assert status == 403
            assert code in ("scope_not_allowed", "permission_error")  # Anthropic's shape has no code
    assert (await called(gateway, path, KEY))[0] != 403


async def test_one_model_is_no_way_around(gateway: Gateway) -> None:
    answer = await gateway.client("hw_chat").get("/v1/models/gpt-test")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_not_allowed")


async def test_nothing_is_sent_for_a_key_out_of_its_scope(gateway: Gateway) -> None:
    refused = await gateway.ask("hw_models")
    message = refused.json()["error"]["message"]
    assert message == "this key may not call `chat`: it is bound to `models`"
    assert gateway.records("S") == []
    assert gateway.metric('hatchway_refused_requests_total{reason="scope_not_allowed",status="403"}') == 1


@pytest.mark.parametrize("role", ["operator", "finance"])
async def test_keys_of_staff_call_no_models(gateway: Gateway, role: str) -> None:
    assert await called(gateway, "/v1/chat/completions", f"hw_{role}") == (403, "role_not_allowed")
    assert await called(gateway, "/v1/models", f"hw_{role}") == (403, "role_not_allowed")


async def test_keys_of_developers_call_models(gateway: Gateway) -> None:
    assert await called(gateway, "/v1/chat/completions", "hw_developer") == (200, None)


# The ring


def headers(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {secret}".encode()}


async def test_a_caller_has_the_key_s_terms() -> None:
    terms = {"cost_center": "CC", "budget": Budget(usd=1), "limits": RateLimit(requests=1), "scopes": ("chat",)}  # type: ignore[arg-type]
    ring = KeyRing(nobody)
    ring.replace([key_record(**terms)])
    caller = ring.authenticate(headers(KEY), "chat")
    assert {name: getattr(caller, name) for name in terms} == terms
    with pytest.raises(PermissionDenied):
        ring.authenticate(headers(KEY), "models")


async def test_a_key_that_was_let_in_is_let_in_no_longer_than_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing(nobody)
    ring.replace([key_record(), key_record("hw_short", expires_at=datetime.now(UTC) + timedelta(hours=1))])
    for _ in range(2):
        assert ring.authenticate(headers(KEY)) is not None and ring.authenticate(headers("hw_short")) is not None
    ring.replace([key_record("hw_short", expires_at=datetime.now(UTC) + timedelta(hours=1))])
    assert ring.authenticate(headers(KEY)) is None
    assert ring.authenticate(headers("hw_short")) is not None
    monkeypatch.setattr(auth, "time", lambda: time() + 7200)
    with pytest.raises(AuthenticationFailed, match="has expired"):
        ring.authenticate(headers("hw_short"))


async def nobody(digest: str) -> KeyRecord | None:
    return None


async def test_the_whole_hash_is_compared() -> None:
    """A hash that only begins like a key's, which nobody can make, would still not open it."""
    digest, kept = sha256(KEY.encode()).hexdigest(), 2 * LOCATOR_LENGTH
    almost = digest[:kept] + "".join("0" if digit != "0" else "1" for digit in digest[kept:])

    async def lookup(_: str) -> KeyRecord | None:
        return KeyRecord(hash=almost, key_id="key-1", team="t")

    for ring in (KeyRing(nobody), KeyRing(lookup)):
        ring.replace([KeyRecord(hash=almost, key_id="key-1", team="t")])
        assert ring.authenticate(headers(KEY)) is None
        with pytest.raises(AuthenticationFailed):
            await ring.look_up(headers(KEY))


async def test_both_secrets_open_a_key_that_is_rotated() -> None:
    ring = KeyRing(nobody)
    now = datetime.now(UTC)
    ring.replace(
        [
            key_record("hw_new"),
            key_record("hw_old", expires_at=now + timedelta(hours=1)),
            key_record("hw_older", expires_at=now - timedelta(seconds=1)),
        ]
    )
    new, old = ring.authenticate(headers("hw_new")), ring.authenticate(headers("hw_old"))
    assert new is not None and old is not None and new.key_id == old.key_id
    with pytest.raises(AuthenticationFailed, match="has expired"):
        ring.authenticate(headers("hw_older"))
