"""Credentials that a fixed header cannot carry: signatures over each request, tokens that run out."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.adapters.sigv4 import SigV4Signer
from gateway.config.model import Secret
from gateway.errors import UpstreamError
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest, header_block

if TYPE_CHECKING:
    from gateway.adapters.google_token import GoogleToken

_MAX_TOKEN_BYTES = 64 * 1024
_RENEW_BEFORE = 120.0
"""Seconds before a token runs out at which a new one is fetched."""


class CredentialsFailed(UpstreamError):
    """The provider gave no token for the credentials it was shown."""

    kind = "credentials_failed"


class AwsSigner:
    """Signs each request with AWS Signature Version 4."""

    def __init__(self, signer: SigV4Signer) -> None:
        self._signer = signer

    async def sign(self, request: UpstreamRequest, client: UpstreamClient, deadlines: Deadlines) -> UpstreamRequest:
        signed = request.with_body(request.body)
        signed.headers += header_block(
            self._signer.headers(
                request.method.decode(),
                request.origin.authority(),
                request.target.decode("ascii"),
                request.body,
                datetime.now(UTC),
            )
        )
        return signed


class GoogleSigner:
    """Adds a service account's access token, fetched when needed, by one request at a time. `account`: its JSON."""

    def __init__(self, account: Secret) -> None:
        self._account = account
        self._token: GoogleToken | None = None
        self._header = b""
        self._renew_at = 0.0
        self._lock = asyncio.Lock()

    async def sign(self, request: UpstreamRequest, client: UpstreamClient, deadlines: Deadlines) -> UpstreamRequest:
        if time() >= self._renew_at:
            async with self._lock:
                if time() >= self._renew_at:
                    await self._renew(client, deadlines)
        signed = request.with_body(request.body)
        signed.headers += self._header
        return signed

    async def _renew(self, client: UpstreamClient, deadlines: Deadlines) -> None:
        token_maker = self._open()
        address = urlsplit(token_maker.token_uri)
        headers = header_block([("content-type", "application/x-www-form-urlencoded"), ("accept-encoding", "identity")])
        asked = UpstreamRequest(
            Origin.parse(token_maker.token_uri), b"POST", address.path.encode(), headers, token_maker.assertion(time())
        )
        response = await client.send(asked, deadlines)
        try:
            body = await response.read(_MAX_TOKEN_BYTES)
        finally:
            response.close()
        if response.status != 200:
            raise CredentialsFailed(f"the token address answered {response.status}")
        try:
            token, seconds = token_maker.read_token(body)
        except ValueError as error:
            raise CredentialsFailed(str(error)) from None
        self._header = header_block([("authorization", f"Bearer {token}")])
        self._renew_at = time() + max(0.0, seconds - _RENEW_BEFORE)

    def _open(self) -> GoogleToken:
        """Raises CredentialsFailed for an account whose key cannot be read."""
        from gateway.adapters.google_token import GoogleToken  # its cryptography: 7 MB that few need

        if self._token is None:
            try:
                self._token = GoogleToken(json.loads(self._account.reveal()))
            except ValueError as error:
                raise CredentialsFailed(str(error)) from None
        return self._token
