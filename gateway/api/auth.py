"""Bearer token -> Caller, without a query: the worker holds the hashes of all active keys.

Nothing here takes longer for a guess that is nearer to a key. What is looked up is the beginning of the SHA-256 of what
was sent, and nobody can choose that; what it finds is compared in constant time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.types import Caller, KeyRecord, Role

MAX_KEY_BYTES = 512
UNKNOWN_FOR = 2.0
"""Seconds for which an unknown key is refused without asking again."""
MAX_UNKNOWN = 4096
MAX_LOOKUPS = 8
LOCATOR_LENGTH = 32
"""Hex digits of a hash by which it is found: 128 bits, which no two keys share."""
CALLING_ROLES: frozenset[Role] = frozenset({"key", "admin", "developer"})
"""Roles whose keys may call models. Those of operators and finance are for the operators' surface alone."""

Lookup = Callable[[str], Awaitable[KeyRecord | None]]
"""Asks the control plane for a key by the hex SHA-256 of its secret: for keys made a moment ago."""


class KeyRing:
    """Replaced as a whole whenever keys change."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._keys: dict[str, tuple[KeyRecord, Caller]] = {}
        self._unknown: dict[str, float] = {}
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)

    def replace(self, records: Sequence[KeyRecord]) -> None:
        self._keys = {record.hash[:LOCATOR_LENGTH]: (record, caller_of(record)) for record in records}
        self._unknown.clear()

    def __len__(self) -> int:
        return len(self._keys)

    async def authenticate(self, headers: dict[bytes, bytes], scope: str | None = None) -> Caller:
        """The caller of `Authorization: Bearer KEY` (or `x-api-key`). `scope`: the surface that is called.

        Raises AuthenticationFailed, PermissionDenied.
        """
        secret = _secret(headers)
        digest = hashlib.sha256(secret).hexdigest()
        found = self._keys.get(digest[:LOCATOR_LENGTH])
        if found is None or not hmac.compare_digest(found[0].hash, digest):
            found = await self._ask(digest)
        record, caller = found
        if record.expires_at is not None and record.expires_at <= datetime.now(UTC):
            raise AuthenticationFailed("this key has expired", code="invalid_api_key")
        if record.role not in CALLING_ROLES:
            raise PermissionDenied(
                f"a key of the role `{record.role}` calls no models\nhint: make one with `hatchway keys create`",
                code="role_not_allowed",
            )
        if scope is not None:
            check_scope(caller, scope)
        return caller

    async def _ask(self, digest: str) -> tuple[KeyRecord, Caller]:
        now = asyncio.get_running_loop().time()
        if self._unknown.get(digest, 0.0) <= now:
            async with self._lookups:
                record = await self._lookup(digest)
            if record is not None and hmac.compare_digest(record.hash, digest):
                self._keys[digest[:LOCATOR_LENGTH]] = record, caller_of(record)
                return self._keys[digest[:LOCATOR_LENGTH]]
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[digest] = now + UNKNOWN_FOR
        raise AuthenticationFailed(
            "the API key is unknown or revoked\nhint: `hatchway keys create --team TEAM` makes one",
            code="invalid_api_key",
        )


def check_scope(caller: Caller, scope: str) -> None:
    """Raises PermissionDenied where the caller's key is bound to other surfaces."""
    if caller.scopes and scope not in caller.scopes:
        allowed = ", ".join(f"`{name}`" for name in caller.scopes)
        raise PermissionDenied(f"this key may not call `{scope}`: it is bound to {allowed}", code="scope_not_allowed")


def _secret(headers: dict[bytes, bytes]) -> bytes:
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, secret = authorization.partition(b" ")
        secret = secret.strip() if scheme.lower() == b"bearer" else b""
    else:
        secret = headers.get(b"x-api-key", b"")
    if not secret:
        raise AuthenticationFailed(
            "no API key: send `Authorization: Bearer KEY`\nhint: `hatchway keys create --team TEAM` makes one",
            code="missing_api_key",
        )
    if len(secret) > MAX_KEY_BYTES:
        raise AuthenticationFailed("the API key is too long to be one", code="invalid_api_key")
    return secret


def caller_of(record: KeyRecord) -> Caller:
    """Whom a key stands for."""
    return Caller(
        key_id=record.key_id,
        team=record.team,
        project=record.project,
        models=record.models,
        is_admin=record.role == "admin",
        scopes=record.scopes,
        cost_center=record.cost_center,
        budget=record.budget,
        limits=record.limits,
    )
