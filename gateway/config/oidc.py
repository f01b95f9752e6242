"""Who vouches for operators: an OpenID Connect provider, and what its claims mean here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from gateway.config.keys import KEYS
from gateway.config.model import Oidc
from gateway.config.section import Section
from gateway.config.variables import Texts
from gateway.types import Role

OPERATOR_ROLES: tuple[Role, ...] = ("admin", "operator", "finance", "developer")
"""What a person may be; of several that fit, the first."""
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ONE_VARIABLE = re.compile(r"\$\{(?:(?!:-)[^{}])+\}")


def compile_oidc(top: Section, environ: Mapping[str, str]) -> Oidc | None:
    """The section `oidc` as far as it can be read; None: there is none. Its mistakes are reported."""
    if "oidc" not in top:
        return None
    section = top.section("oidc", KEYS["oidc"])
    section.require("issuer", "give the provider's issuer, as in `https://login.example.com/realm`")
    section.require("audience", "give the audience of its tokens: what it calls this gateway")
    section.require("roles", "say which groups have which role, as in `roles: {platform: admin}`")
    for key in set(section) - {"client_secret", "roles"}:
        if "${" in str(section.raw(key)):
            section.add(key, f"{section.name(key)} holds a variable", "write the value itself")
    issuer, audience = _address(section, "issuer"), section.text("audience")
    roles = _roles(section)
    client_id, url, jwks_uri = section.text("client_id"), _address(section, "url"), _address(section, "jwks_uri")
    has_login = "client_id" in section or "url" in section or "client_secret" in section
    if has_login:
        for key in ("client_id", "client_secret", "url"):
            section.require(key, "the login page needs `client_id`, `client_secret` and `url`")
    written = section.text("client_secret")
    secret = None
    if written is not None:
        if _ONE_VARIABLE.fullmatch(written) is None:
            hint = "write `${NAME}`, `${file:PATH}` or `${secret:NAME}`: it does not belong into this file"
            section.add("client_secret", f"{section.name('client_secret')} is no variable", hint)
        else:
            secret = Texts(section, environ).secret("client_secret")
    if issuer is None or audience is None:
        return None
    return Oidc(
        issuer=issuer,
        audience=audience,
        jwks_uri=jwks_uri,
        claim=section.text("claim") or "groups",
        roles=roles,
        team_claim=section.text("team_claim"),
        client_id=client_id,
        client_secret=secret,
        url=None if url is None else url.rstrip("/"),
    )


def is_safe_address(url: str, *, loopback: bool = True) -> bool:
    """Whether it is https, or stays on this machine (`loopback`), names a host and holds no credentials."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is none
    except ValueError:
        return False
    if not parts.hostname or "@" in parts.netloc or parts.fragment or not url.isascii() or not url.isprintable():
        return False
    return parts.scheme == "https" or (loopback and parts.scheme == "http" and parts.hostname in _LOOPBACK)


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def _address(section: Section, key: str) -> str | None:
    url = section.text(key)
    if url is None:
        return None
    if not is_safe_address(url) or "?" in url:
        hint = "write `https://HOST/PATH`; `http` is only for this machine"
        section.add(key, f"{section.name(key)} is no address that can be trusted", hint)
        return None
    return url


def _roles(section: Section) -> dict[str, Role]:
    given = section.section("roles", None)
    found: dict[str, Role] = {}
    for value in given:
        role = given.choice(value, OPERATOR_ROLES, "role")
        if role is not None:
            found[value] = cast(Role, role)
    return found
