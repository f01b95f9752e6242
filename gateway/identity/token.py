"""A signed token -> a person with a role.

Sources: RFC 7519 and RFC 8725 (JSON Web Tokens and how to use them safely); OpenID Connect Core 1.0, section 3.1.3.7.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec

from gateway.config.model import Oidc
from gateway.config.oidc import OPERATOR_ROLES
from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.identity.provider import ALGORITHMS, Provider
from gateway.types import Role

MAX_TOKEN = 16 * 1024
LEEWAY = 60
"""Seconds by which clocks may differ."""
MAX_SUBJECT = 255
MAX_TEAM = 64
_REQUIRED = ("iss", "aud", "exp", "sub")


class Person(msgspec.Struct, frozen=True):
    """`id`: as the audit log names it; `team`: of a developer."""

    id: str
    role: Role
    team: str | None = None


def looks_signed(token: str) -> bool:
    """Whether a bearer token is meant to be a JWT. No key of ours has two dots in it, and every JWT begins like that
    (`{"` in base64)."""
    return token.startswith("eyJ") and token.count(".") == 2


async def read_token(provider: Provider, token: str) -> Person:
    """The person of an access token that was made for `audience`.

    Raises AuthenticationFailed, PermissionDenied (nobody gave this person a role), Unavailable.
    """
    return person(provider.oidc, await verified_claims(provider, token, audience=provider.oidc.audience))


async def verified_claims(provider: Provider, token: str, *, audience: str, nonce: str | None = None) -> dict[str, Any]:
    """`nonce`: of an ID token, which must hold it. Raises AuthenticationFailed, Unavailable."""
    if len(token) > MAX_TOKEN:
        raise _refused("it is too long")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _refused("it cannot be read") from None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _refused(f"its algorithm is none of {', '.join(ALGORITHMS)}")
    key = await provider.key(key_id if isinstance(key_id, str) else None, algorithm)
    if key is None:
        raise _refused("the identity provider has no such key")
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[algorithm],  # what the header says, but only if the key's own type is that of it
            audience=audience,
            issuer=provider.oidc.issuer,
            leeway=LEEWAY,
            options={"require": list(_REQUIRED)},
        )
    except jwt.ExpiredSignatureError:
        raise _refused("it has expired") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise _refused(f"it is not valid ({type(error).__name__})") from None
    if nonce is not None:
        _check_sign_in(claims, audience, nonce)
    return claims


def person(oidc: Oidc, claims: Mapping[str, Any]) -> Person:
    """Raises AuthenticationFailed, PermissionDenied."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
        raise _refused("its subject is no name")
    role = _role(oidc, claims)
    email = claims.get("email")
    is_shown = isinstance(email, str) and email.isprintable() and 0 < len(email) <= MAX_SUBJECT
    return Person(f"oidc:{subject} <{email}>" if is_shown else f"oidc:{subject}", role, _team(oidc, claims))


def _check_sign_in(claims: Mapping[str, Any], client_id: str, nonce: str) -> None:
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        raise _refused("it answers another sign-in")
    party = claims.get("azp")
    if party is not None and party != client_id:
        raise _refused("it was made for another client")


def _role(oidc: Oidc, claims: Mapping[str, Any]) -> Role:
    granted = {oidc.roles[value] for value in _values(claims, oidc.claim) if value in oidc.roles}
    for role in OPERATOR_ROLES:
        if role in granted:
            return role
    raise PermissionDenied(
        f"nothing in the claim `{oidc.claim}` of this token has a role here\nhint: `oidc.roles` says what has which",
        code="no_role",
    )


def _team(oidc: Oidc, claims: Mapping[str, Any]) -> str | None:
    values = [] if oidc.team_claim is None else _values(claims, oidc.team_claim)
    # Of several teams it is not known whose rows are meant: none are shown.
    return values[0] if len(values) == 1 and 0 < len(values[0]) <= MAX_TEAM and values[0].isprintable() else None


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """Texts of a claim: one, or a list. A name with dots may lead into mappings, as in `realm_access.roles`."""
    value: Any = claims.get(name)
    if value is None:
        value = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    found = value if isinstance(value, list) else [value]
    return [item for item in found if isinstance(item, str)]


def _refused(reason: str) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"the token is refused: {reason}\nhint: ask the identity provider for a new one", code="invalid_token"
    )
