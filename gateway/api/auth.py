"""Bearer token -> Caller, without a query: the worker holds the hashes of all active keys."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from gateway.errors import AuthenticationFailed
from gateway.types import Caller, KeyRecord

MAX_KEY_BYTES = 512
UNKNOWN_FOR = 2.0
"""Seconds for which an unknown key is refused without asking again."""
MAX_UNKNOWN = 4096
MAX_LOOKUPS = 8

Lookup = Callable[[str], Awaitable[KeyRecord | None]]
"""Asks the control plane for a key by the hex SHA-256 of its secret: for keys made a moment ago."""


class KeyRing:
    """Replaced as a whole whenever keys change. Comparing SHA-256 digests of 256-bit secrets leaks no prefix."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._keys: dict[str, tuple[Caller, datetime | None]] = {}
        self._unknown: dict[str, float] = {}
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)

    def replace(self, records: Sequence[KeyRecord]) -> None:
        self._keys = {record.hash: (_caller(record), record.expires_at) for record in records}
        self._unknown.clear()

    def __len__(self) -> int:
        return len(self._keys)

    async def authenticate(self, headers: dict[bytes, bytes]) -> Caller:
        """The caller of `Authorization: Bearer KEY` (or `x-api-key`). Raises AuthenticationFailed."""
        secret = _secret(headers)
        digest = hashlib.sha256(secret).hexdigest()
        found = self._keys.get(digest)
        if found is None:
            found = await self._ask(digest)
        caller, expires_at = found
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise AuthenticationFailed("this key has expired", code="invalid_api_key")
        return caller

    async def _ask(self, digest: str) -> tuple[Caller, datetime | None]:
        now = asyncio.get_running_loop().time()
        if self._unknown.get(digest, 0.0) <= now:
            async with self._lookups:
                record = await self._lookup(digest)
            if record is not None:
                self._keys[digest] = _caller(record), record.expires_at
                return self._keys[digest]
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[digest] = now + UNKNOWN_FOR
        raise AuthenticationFailed(
            "the API key is unknown or revoked\nhint: `hatchway keys create --team TEAM` makes one",
            code="invalid_api_key",
        )


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


def _caller(record: KeyRecord) -> Caller:
    return Caller(
        key_id=record.key_id,
        team=record.team,
        project=record.project,
        models=record.models,
        is_admin=record.role == "admin",
    )
