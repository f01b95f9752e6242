"""Tokens that are believed, and all those that are not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from gateway.errors import AuthenticationFailed, PermissionDenied, Unavailable
from gateway.identity import provider as provider_module
from gateway.identity.desk import IdentityDesk
from gateway.identity.token import Person, looks_signed
from tests.identity.conftest import Holder
from tests.identity.provider import EC, ED, RSA, WEAK, FakeProvider, jwk, pem


async def refusal(desk: IdentityDesk, token: str) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        await desk.read_token(token)
    assert caught.value.code == "invalid_token"
    return caught.value.message


def plain(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("key", "kid", "alg"), [(RSA["one"], "one", "RS256"), (EC, "ec", "ES256"), (ED, "ed", "EdDSA")]
)
async def test_each_algorithm(desk: IdentityDesk, provider: FakeProvider, key: Any, kid: str, alg: str) -> None:
    found = await desk.read_token(provider.token(key, kid=kid, alg=alg))
    assert found == Person("oidc:dana <dana@example.com>", "admin")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://other.example"}, "InvalidIssuerError"),
        ({"iss": None}, "MissingRequiredClaimError"),
        ({"aud": "another-service"}, "InvalidAudienceError"),
        ({"aud": None}, "MissingRequiredClaimError"),
        ({"exp": None}, "MissingRequiredClaimError"),
        ({"exp": int(time.time()) - 120}, "it has expired"),
        ({"exp": "soon"}, "DecodeError"),
        ({"nbf": int(time.time()) + 90_000}, "ImmatureSignatureError"),
        ({"iat": int(time.time()) + 90_000}, "ImmatureSignatureError"),
        ({"sub": None}, "MissingRequiredClaimError"),
        ({"sub": "a\nb"}, "its subject is no name"),
        ({"sub": "x" * 256}, "its subject is no name"),
    ],
)
async def test_claims_that_do_not_hold(
    desk: IdentityDesk, provider: FakeProvider, claims: dict[str, Any], reason: str
) -> None:
    assert reason in await refusal(desk, provider.token(**claims))


async def test_clocks_may_differ_a_little(desk: IdentityDesk, provider: FakeProvider) -> None:
    now = int(time.time())
    assert await desk.read_token(provider.token(exp=now - 30, nbf=now + 30, iat=now + 30))


async def test_a_signature_is_needed(desk: IdentityDesk, provider: FakeProvider) -> None:
    good = provider.token()
    claims = jwt.decode(good, options={"verify_signature": False})
    unsigned = f"{plain({'alg': 'none', 'kid': 'one'})}.{plain(claims)}."
    assert "its algorithm is none of" in await refusal(desk, unsigned)
    # The classic: the public key, which everybody knows, taken for a shared secret.
    head = f"{plain({'alg': 'HS256', 'kid': 'one'})}.{plain(claims)}"
    mac = hmac.new(pem(RSA["one"]), head.encode(), hashlib.sha256).digest()
    confused = f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert "its algorithm is none of" in await refusal(desk, confused)
    head, body, signature = good.split(".")
    changed = plain({**claims, "groups": ["platform", "more"]})
    assert "InvalidSignatureError" in await refusal(desk, f"{head}.{changed}.{signature}")
    assert "InvalidSignatureError" in await refusal(desk, provider.token(RSA["two"], kid="one"))


async def test_the_key_must_be_of_the_algorithm(desk: IdentityDesk, provider: FakeProvider) -> None:
    assert "no such key" in await refusal(desk, provider.token(EC, kid="one", alg="ES256"))
    assert "its algorithm is none of" in await refusal(desk, provider.token(alg="RS512"))
    assert "its algorithm is none of" in await refusal(desk, provider.token(alg="PS256"))


async def test_a_token_s_own_key_is_not_taken(desk: IdentityDesk, provider: FakeProvider) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    headers = {"kid": "own", "jwk": jwk(own, "own"), "jku": f"{provider.url}/own-keys", "x5u": f"{provider.url}/own"}
    claims = jwt.decode(provider.token(), options={"verify_signature": False})
    assert "no such key" in await refusal(desk, jwt.encode(claims, own, algorithm="ES256", headers=headers))
    assert set(provider.fetches) == {"/.well-known/openid-configuration", "/keys"}


async def test_keys_that_are_none_for_this(desk: IdentityDesk, provider: FakeProvider) -> None:
    provider.keys = [
        jwk(WEAK, "weak"),
        jwk(RSA["one"], "for-encryption", use="enc"),
        jwk(RSA["one"], "other-algorithm", alg="RS512"),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "broken", "n": "x", "e": "!"},
        {"kty": "EC", "crv": "P-256", "kid": "empty"},
        {"kid": 5},
        jwk(RSA["two"], "good"),
    ]
    for kid in ("for-encryption", "other-algorithm", "shared", "broken"):
        assert "no such key" in await refusal(desk, provider.token(kid=kid))
    claims = {**jwt.decode(provider.token(), options={"verify_signature": False})}
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        weak = jwt.encode(claims, WEAK, algorithm="RS256", headers={"kid": "weak"})
    assert "no such key" in await refusal(desk, weak)
    assert await desk.read_token(provider.token(RSA["two"], kid="good"))


async def test_a_lone_key_needs_no_name(desk: IdentityDesk, provider: FakeProvider) -> None:
    provider.keys = [jwk(RSA["one"], None)]
    assert await desk.read_token(provider.token(kid=None))


async def test_of_several_keys_one_is_named(desk: IdentityDesk, provider: FakeProvider) -> None:
    provider.keys = [jwk(RSA["one"], "one"), jwk(RSA["two"], "two")]
    assert "no such key" in await refusal(desk, provider.token(kid=None))


async def test_keys_are_fetched_seldom(desk: IdentityDesk, provider: FakeProvider) -> None:
    for _ in range(3):
        await desk.read_token(provider.token())
    for number in range(20):  # invented ids cause no traffic
        await refusal(desk, provider.token(kid=f"invented-{number}"))
    assert provider.fetches == {"/.well-known/openid-configuration": 1, "/keys": 1}


async def test_a_new_key_is_found(desk: IdentityDesk, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "UNKNOWN_PAUSE", 0.0)
    await desk.read_token(provider.token())
    provider.keys.append(jwk(RSA["two"], "two"))
    assert await desk.read_token(provider.token(RSA["two"], kid="two"))
    assert provider.fetches["/keys"] == 2


async def test_many_at_once_fetch_once(desk: IdentityDesk, provider: FakeProvider) -> None:
    await asyncio.gather(*(desk.read_token(provider.token()) for _ in range(10)))
    assert provider.fetches["/keys"] == 1


async def test_a_withdrawn_key_ends(
    desk: IdentityDesk, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_module, "KEYS_FOR", 0.0)
    monkeypatch.setattr(provider_module, "UNKNOWN_PAUSE", 0.0)
    await desk.read_token(provider.token())
    provider.keys = [jwk(RSA["two"], "two")]
    assert "no such key" in await refusal(desk, provider.token())


async def test_the_last_keys_hold_while_the_provider_is_away(
    desk: IdentityDesk, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("KEYS_FOR", 0.0), ("UNKNOWN_PAUSE", 0.0), ("FAILURE_PAUSE", 0.0)):
        monkeypatch.setattr(provider_module, name, value)
    await desk.read_token(provider.token())
    provider.is_away = True
    assert await desk.read_token(provider.token())
    monkeypatch.setattr(provider_module, "STALE_FOR", 0.0)
    with pytest.raises(Unavailable):
        await desk.read_token(provider.token())


async def test_the_provider_is_away(desk: IdentityDesk, provider: FakeProvider) -> None:
    provider.is_away = True
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            await desk.read_token(provider.token())
        assert caught.value.code == "identity_unavailable"
    assert sum(provider.fetches.values()) == 1  # the others were told without asking


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://other.example"},
        {"jwks_uri": "http://keys.example/keys"},
        {"jwks_uri": "https://user:pass@keys.example/"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 5},
        {"token_endpoint": "http://169.254.169.254/token"},
    ],
)
async def test_a_discovery_document_that_leads_astray(
    desk: IdentityDesk, provider: FakeProvider, document: dict[str, Any]
) -> None:
    provider.document = document
    with pytest.raises(Unavailable):
        await desk.read_token(provider.token())
    assert "/keys" not in provider.fetches


async def test_redirects_are_not_followed(desk: IdentityDesk, provider: FakeProvider) -> None:
    provider.redirects = {"/keys": f"{provider.url}/elsewhere"}
    with pytest.raises(Unavailable, match="it answered 302"):
        await desk.read_token(provider.token())
    assert "/elsewhere" not in provider.fetches


async def test_answers_are_bounded(desk: IdentityDesk, provider: FakeProvider) -> None:
    provider.document = {"padding": "x" * provider_module.MAX_ANSWER}
    with pytest.raises(Unavailable):
        await desk.read_token(provider.token())


@pytest.mark.parametrize(
    ("claims", "role", "team"),
    [
        ({"groups": "money"}, "finance", None),
        ({"groups": ["x", "payments-devs", "operations"]}, "operator", None),
        ({"groups": ["payments-devs"], "team": "payments"}, "developer", "payments"),
        ({"groups": ["payments-devs"], "team": ["payments"]}, "developer", "payments"),
        ({"groups": ["payments-devs"], "team": ["payments", "search"]}, "developer", None),
        ({"groups": ["payments-devs"], "team": 5}, "developer", None),
        ({"groups": ["payments-devs"], "team": "x" * 65}, "developer", None),
    ],
)
async def test_claims_give_role_and_team(
    desk: IdentityDesk, provider: FakeProvider, claims: dict[str, Any], role: str, team: str | None
) -> None:
    found = await desk.read_token(provider.token(email=None, **claims))
    assert found == Person("oidc:dana", role, team)  # type: ignore[arg-type]  # a text of the table


@pytest.mark.parametrize("groups", [None, [], "none", ["Platform"], [5, {"platform": 1}], {"platform": True}, 7])
async def test_nobody_gave_a_role(desk: IdentityDesk, provider: FakeProvider, groups: Any) -> None:
    with pytest.raises(PermissionDenied) as caught:
        await desk.read_token(provider.token(groups=groups))
    assert caught.value.code == "no_role"


async def test_a_claim_within_a_claim(holder: Holder, desk: IdentityDesk, provider: FakeProvider) -> None:
    assert holder.oidc is not None
    holder.oidc = replace(holder.oidc, claim="realm_access.roles")
    found = await desk.read_token(provider.token(realm_access={"roles": ["money"]}))
    assert found.role == "finance"
    with pytest.raises(PermissionDenied):
        await desk.read_token(provider.token(realm_access="money"))


async def test_another_configuration_is_another_provider(
    holder: Holder, desk: IdentityDesk, provider: FakeProvider
) -> None:
    assert holder.oidc is not None
    assert await desk.read_token(provider.token())
    holder.oidc = replace(holder.oidc, roles={"platform": "finance"})
    assert (await desk.read_token(provider.token())).role == "finance"
    holder.oidc = None
    assert not desk.is_configured
    await refusal(desk, provider.token())


@pytest.mark.parametrize(
    "token", ["eyJ.eyJ.x", "eyJhbGciOiJSUzI1NiJ9.e30.x", "eyJ" + "x" * 20_000 + ".a.b", "eyJ..", "é.b.c"]
)
async def test_what_is_no_token(desk: IdentityDesk, provider: FakeProvider, token: str) -> None:
    await refusal(desk, token)


def test_keys_do_not_look_signed(provider: FakeProvider) -> None:
    assert looks_signed(provider.token())
    for key in ("hw-" + "A" * 43, "eyJ-own-admin-key", "the.admin.key", "eyJ.two-parts"):
        assert not looks_signed(key)
