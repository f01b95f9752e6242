"""The section `oidc`: who vouches for operators."""

from __future__ import annotations

import pytest

from gateway.config.compiler import compile_configuration
from gateway.config.model import Oidc, Secret
from gateway.config.oidc import is_safe_address
from tests.config.documents import BASE, build, mistakes, read

PLAIN = "issuer: https://id.example/realm, audience: hatchway, roles: {platform: admin, devs: developer}"
LOGIN = 'client_id: web, client_secret: "${OIDC_SECRET}", url: https://gateway.example/'


def test_tokens_alone() -> None:
    oidc = build(BASE + f"oidc: {{{PLAIN}}}\n").oidc
    assert oidc == Oidc(
        issuer="https://id.example/realm", audience="hatchway", roles={"platform": "admin", "devs": "developer"}
    )
    assert build(BASE).oidc is None


def test_everything() -> None:
    more = "jwks_uri: https://keys.example/k, claim: realm_access.roles, team_claim: team"
    document = read(BASE + f"oidc: {{{PLAIN}, {LOGIN}, {more}}}\n")
    oidc = compile_configuration(document, {"OIDC_SECRET": "the-secret\n"}).oidc
    assert oidc is not None
    assert (oidc.jwks_uri, oidc.claim, oidc.team_claim) == ("https://keys.example/k", "realm_access.roles", "team")
    assert (oidc.client_id, oidc.client_secret, oidc.url) == ("web", Secret("the-secret"), "https://gateway.example")
    assert "the-secret" not in repr(oidc)


def test_a_secret_that_is_not_set_leaves_tokens() -> None:
    oidc = build(BASE + f"oidc: {{{PLAIN}, {LOGIN}}}\n").oidc
    assert oidc is not None and oidc.client_secret is None


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{}", "`oidc.issuer` is missing | give the provider's issuer"),
        ("{}", "`oidc.audience` is missing | give the audience"),
        ("{}", "`oidc.roles` is missing | say which groups"),
        ("{issuers: x}", "unknown key `issuers` in `oidc` | did you mean `issuer`?"),
        ("{issuer: http://id.example}", "`oidc.issuer` is no address that can be trusted"),
        ("{issuer: 'https://id.example/?a=1'}", "`oidc.issuer` is no address that can be trusted"),
        ("{issuer: 'https://u:p@id.example'}", "`oidc.issuer` is no address that can be trusted"),
        ("{jwks_uri: ftp://id.example}", "`oidc.jwks_uri` is no address that can be trusted"),
        ("{audience: '${AUDIENCE}'}", "`oidc.audience` holds a variable"),
        ("{roles: {x: owner}}", "unknown role `owner`"),
        ("{roles: {x: key}}", "unknown role `key`"),
        ("{roles: [admin]}", "`oidc.roles` must be a mapping, not a list"),
        ("{client_id: web}", "`oidc.client_secret` is missing | the login page needs"),
        ("{client_id: web}", "`oidc.url` is missing | the login page needs"),
        ("{client_secret: plain-secret}", "`oidc.client_secret` is no variable | write `${NAME}`"),
        ("{client_secret: '${A:-plain-secret}'}", "`oidc.client_secret` is no variable"),
        ("{url: http://gateway.example}", "`oidc.url` is no address that can be trusted"),
    ],
)
def test_mistakes(section: str, expected: str) -> None:
    found = mistakes(BASE + f"oidc: {section}\n")
    assert any(expected in mistake for mistake in found), found
    assert not any("plain-secret" in mistake for mistake in found)


@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("https://id.example", True),
        ("http://127.0.0.1:8000/x", True),
        ("http://localhost", True),
        ("http://[::1]:5", True),
        ("http://127.0.0.1.evil.example", False),
        ("http://id.example", False),
        ("https://", False),
        ("https://id.example:99999", False),
        ("https://id.example/#x", False),
        ("https://a@b.example", False),
        ("https://id.example/\n", False),
        ("javascript:alert(1)", False),
    ],
)
def test_addresses(url: str, is_safe: bool) -> None:
    assert is_safe_address(url) is is_safe


def test_this_machine_may_be_forbidden() -> None:
    assert not is_safe_address("http://127.0.0.1", loopback=False)
    assert is_safe_address("https://127.0.0.1", loopback=False)
