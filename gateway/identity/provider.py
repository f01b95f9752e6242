"""An OpenID Connect provider: what its discovery document says, and its keys, fetched seldom and kept.

Sources: OpenID Connect Discovery 1.0, sections 3 and 4; RFC 7517 (JSON Web Key Set).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from gateway.config.model import Oidc
from gateway.config.oidc import is_loopback, is_safe_address
from gateway.errors import Unavailable, UpstreamError
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest, header_block

ALGORITHMS: Mapping[str, tuple[str, str | None]] = {
    "RS256": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Those accepted, each with the type and the curve of its keys. Neither `none` nor a shared secret is among them."""
CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
MAX_ANSWER = 256 * 1024
MAX_KEYS = 64
MIN_RSA_BITS = 2048
KEYS_FOR = 3600.0
"""Seconds after which keys are fetched again: one that the provider has withdrawn is believed for so long."""
STALE_FOR = 86_400.0
"""Seconds for which the last keys are believed while the provider cannot be reached."""
UNKNOWN_PAUSE = 60.0
"""Seconds between two fetches for keys that are not known: whoever invents key ids causes no more traffic."""
FAILURE_PAUSE = 5.0

Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)


class Discovery(msgspec.Struct, frozen=True):
    """What is used of the discovery document."""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


class Provider:
    """The provider of one configuration. Nothing is fetched before it is needed; redirects are not followed."""

    def __init__(self, client: UpstreamClient, oidc: Oidc) -> None:
        self.oidc = oidc
        self._client = client
        self._discovery: Discovery | None = None
        self._keys: dict[tuple[str | None, str], jwt.PyJWK] = {}  # by key id and algorithm
        self._fetched_at: float | None = None
        self._not_before = 0.0
        self._lock = asyncio.Lock()

    async def key(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key with this id for an algorithm of `ALGORITHMS`; None: the provider has none.

        Raises Unavailable when the keys cannot be fetched and none are known.
        """
        if self._find(key_id, algorithm) is None or self._is_old():
            async with self._lock:  # whoever waited finds what the first one fetched
                if self._find(key_id, algorithm) is None or self._is_old():
                    await self._refresh()
        return self._find(key_id, algorithm)

    async def discovery(self) -> Discovery:
        """Raises Unavailable."""
        if self._discovery is None:
            url = self.oidc.issuer.rstrip("/") + "/.well-known/openid-configuration"
            found = self._read(await self._get(url), Discovery)
            if found.issuer != self.oidc.issuer:
                raise _unavailable("its discovery document names another issuer")
            for address in (found.jwks_uri, found.authorization_endpoint, found.token_endpoint):
                if address is not None:
                    self._check(address)
            self._discovery = found
        return self._discovery

    async def post(self, url: str, form: bytes, *headers: tuple[str, str]) -> tuple[int, bytes]:
        """Status and body. Raises Unavailable."""
        kind = ("content-type", "application/x-www-form-urlencoded")
        return await self._call(b"POST", url, form, header_block([kind, ("accept", "application/json"), *headers]))

    def _find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        if key_id is not None:
            return self._keys.get((key_id, algorithm))
        # A provider with a single key need not name it.
        found = [key for (_, name), key in self._keys.items() if name == algorithm]
        return found[0] if len(found) == 1 else None

    def _is_old(self) -> bool:
        return self._fetched_at is None or asyncio.get_running_loop().time() - self._fetched_at > KEYS_FOR

    async def _refresh(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._not_before:
            if self._fetched_at is None:
                raise _unavailable("it could not be reached a moment ago")
            return
        self._not_before = now + FAILURE_PAUSE
        try:
            url = self.oidc.jwks_uri or (await self.discovery()).jwks_uri
            found = self._read(await self._get(url), _KeySet)
        except Unavailable as error:
            if self._fetched_at is None or now - self._fetched_at > STALE_FOR:
                self._keys, self._fetched_at = {}, None
                raise
            _log.warning("the keys of the identity provider are not new: %s", error.message)
            return
        self._keys = dict(_usable(found.keys[:MAX_KEYS]))
        self._fetched_at = now
        self._not_before = now + UNKNOWN_PAUSE

    async def _get(self, url: str) -> bytes:
        status, body = await self._call(b"GET", url, b"", header_block([("accept", "application/json")]))
        if status != 200:
            raise _unavailable(f"it answered {status}")
        return body

    async def _call(self, method: bytes, url: str, body: bytes, headers: bytes) -> tuple[int, bytes]:
        self._check(url)
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = UpstreamRequest(Origin.parse(url), method, target.encode(), headers, body)
        total_at = asyncio.get_running_loop().time() + TOTAL_SECONDS
        try:
            response = await self._client.send(request, Deadlines(connect=CONNECT_SECONDS, total_at=total_at))
            try:
                return response.status, await response.read(MAX_ANSWER)
            finally:
                response.close()
        except UpstreamError as error:
            raise _unavailable(str(error)) from None

    def _check(self, url: str) -> None:
        """Only a provider on this machine may send us to this machine without TLS."""
        if not is_safe_address(url, loopback=is_loopback(self.oidc.issuer)):
            raise _unavailable("it names an address that cannot be trusted")

    def _read(self, body: bytes, kind: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _unavailable("its answer cannot be read") from None


def _usable(keys: list[dict[str, Any]]) -> list[tuple[tuple[str | None, str], jwt.PyJWK]]:
    """The public keys that may sign tokens; others are left out."""
    found = []
    for key in keys:
        for algorithm, (kind, curve) in ALGORITHMS.items():
            fits = key.get("kty") == kind and key.get("crv") == curve
            if not fits or key.get("use", "sig") != "sig" or key.get("alg", algorithm) != algorithm:
                continue
            try:
                made = jwt.PyJWK(key, algorithm=algorithm)
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue
            is_weak = isinstance(made.key, RSAPublicKey) and made.key.key_size < MIN_RSA_BITS
            key_id = key.get("kid")
            if not is_weak and "d" not in key and (key_id is None or isinstance(key_id, str)):
                found.append(((key_id, algorithm), made))
    return found


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(
        f"the identity provider cannot be asked: {reason}\nhint: keys work without it", code="identity_unavailable"
    )
