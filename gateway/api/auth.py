"""Bearer token -> Caller, without a query: the worker holds the hashes of all active keys.

Nothing here takes longer for a guess that is nearer to a key. What is looked up is the beginning of the SHA-256 of what
was sent, and nobody can choose that; what it finds is compared in constant time. A header that opened a key is known
from then on as it is, found by Python's keyed hash, until the keys are replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import time

from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.types import Caller, KeyRecord, Role

MAX_KEY_BYTES = 512
UNKNOWN_FOR = 2.0
"""Seconds for which an unknown key is refused without asking again."""
MAX_UNKNOWN = 4096
MAX_SEEN = 4096
MAX_LOOKUPS = 8
LOCATOR_LENGTH = 16
"""Bytes of a hash by which it is found: 128 bits, which no two keys share."""
CALLING_ROLES: frozenset[Role] = frozenset({"key", "admin", "developer"})
"""Roles whose keys may call models. Those of operators and finance are for the operators' surface alone."""

Lookup = Callable[[str], Awaitable[KeyRecord | None]]
"""Asks the control plane for a key by the hex SHA-256 of its secret: for keys made a moment ago."""


class _Key:
    """What is asked of a key with each request, computed once. `refusal`: why it calls no models, if it does not."""

    __slots__ = ("caller", "digest", "expires_at", "is_plain", "refusal", "scopes")

    def __init__(self, record: KeyRecord) -> None:
        self.digest = bytes.fromhex(record.hash)
        self.caller = caller_of(record)
        self.scopes = record.scopes
        self.expires_at = math.inf if record.expires_at is None else record.expires_at.timestamp()
        self.refusal = (
            None
            if record.role in CALLING_ROLES
            else f"a key of the role `{record.role}` calls no models\nhint: make one with `hatchway keys create`"
        )
        self.is_plain = not record.scopes and record.expires_at is None and self.refusal is None


class KeyRing:
    """Replaced as a whole whenever keys change."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._keys: dict[bytes, _Key] = {}
        self._seen: dict[bytes | None, _Key] = {}  # by header, of keys that were let in: hashing costs 5 us
        self._unknown: dict[bytes, float] = {}
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)

    def replace(self, records: Sequence[KeyRecord]) -> None:
        keys = [_Key(record) for record in records]
        self._keys = {key.digest[:LOCATOR_LENGTH]: key for key in keys}
        self._unknown.clear()
        self._seen.clear()

    def __len__(self) -> int:
        return len(self._keys)

    def authenticate(self, headers: Mapping[bytes, bytes], scope: str | None = None) -> Caller | None:
        """The caller of `Authorization: Bearer KEY` (or `x-api-key`); None: the key is not known here, `look_up` asks.

        `scope`: the surface that is called. Raises AuthenticationFailed, PermissionDenied.
        """
        header = headers.get(b"authorization")
        key = self._seen.get(header)
        if key is None:
            digest = hashlib.sha256(_secret(headers)).digest()
            key = self._keys.get(digest[:LOCATOR_LENGTH])
            if key is None or not hmac.compare_digest(key.digest, digest):
                return None
            if header is not None:
                if len(self._seen) >= MAX_SEEN:
                    self._seen.clear()
                self._seen[header] = key
        return key.caller if key.is_plain else _let_in(key, scope)

    async def look_up(self, headers: Mapping[bytes, bytes], scope: str | None = None) -> Caller:
        """Likewise, of a key that was made a moment ago: the control plane is asked."""
        return _let_in(await self._ask(hashlib.sha256(_secret(headers)).digest()), scope)

    async def _ask(self, digest: bytes) -> _Key:
        now = asyncio.get_running_loop().time()
        if self._unknown.get(digest, 0.0) <= now:
            async with self._lookups:
                record = await self._lookup(digest.hex())
            key = None if record is None else _Key(record)
            if key is not None and hmac.compare_digest(key.digest, digest):
                self._keys[digest[:LOCATOR_LENGTH]] = key
                return key
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[digest] = now + UNKNOWN_FOR
        raise AuthenticationFailed(
            "the API key is unknown or revoked\nhint: `hatchway keys create --team TEAM` makes one",
            code="invalid_api_key",
        )


def _let_in(key: _Key, scope: str | None) -> Caller:
    if key.expires_at <= time():
        raise AuthenticationFailed("this key has expired", code="invalid_api_key")
    if key.refusal is not None:
        raise PermissionDenied(key.refusal, code="role_not_allowed")
    if scope is not None and key.scopes:
        check_scope(key.caller, scope)
    return key.caller


def check_scope(caller: Caller, scope: str) -> None:
    """Raises PermissionDenied where the caller's key is bound to other surfaces."""
    if caller.scopes and scope not in caller.scopes:
        allowed = ", ".join(f"`{name}`" for name in caller.scopes)
        raise PermissionDenied(f"this key may not call `{scope}`: it is bound to {allowed}", code="scope_not_allowed")


def _secret(headers: Mapping[bytes, bytes]) -> bytes:
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
