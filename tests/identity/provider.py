"""A small OpenID Connect provider on this machine: discovery, keys, the authorization code flow with PKCE."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import socket
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI, Request, Response

from gateway.asgi import create_server

RSA = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("one", "two")}
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
CLIENT_ID, CLIENT_SECRET = "hatchway", "s3cret:with /colon"
AUDIENCE = "hatchway-admin"


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """The public half, as a key set has it."""
    kinds: dict[type, Any] = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    algorithm = next(algorithm for kind, algorithm in kinds.items() if isinstance(key, kind))
    return {**json.loads(algorithm.to_jwk(key.public_key())), **({} if kid is None else {"kid": kid}), **more}


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class FakeProvider:
    """`person`: the claims of whoever signs in next. `fetches`: how often each address was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[dict[str, Any]] = [
            jwk(RSA["one"], "one"),
            jwk(EC, "ec", use="sig", alg="ES256"),
            jwk(ED, "ed"),
        ]
        self.person: dict[str, Any] = {"sub": "dana", "groups": ["platform"], "email": "dana@example.com"}
        self.fetches: dict[str, int] = {}
        self.document: dict[str, Any] = {}
        self.id_claims: dict[str, Any] = {}
        self.is_away = False
        self.redirects: dict[str, str] = {}
        self._codes: dict[str, dict[str, str]] = {}

    def token(self, key: Any = None, *, kid: str | None = "one", alg: str = "RS256", **claims: Any) -> str:
        """An access token; claims given as None are left out."""
        now = int(time.time())
        plain = {"iss": self.url, "aud": AUDIENCE, "exp": now + 300, "iat": now, **self.person, **claims}
        payload = {name: value for name, value in plain.items() if value is not None}
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(payload, key or RSA["one"], algorithm=alg, headers=headers)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def count(request: Request, answer: Any) -> Response:
            path = request.url.path
            self.fetches[path] = self.fetches.get(path, 0) + 1
            if self.is_away:
                return Response(status_code=503)
            if path in self.redirects:
                return Response(status_code=302, headers={"location": self.redirects[path]})
            return await answer(request)

        @app.get("/.well-known/openid-configuration")
        async def discovery() -> dict[str, Any]:
            return {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
                "authorization_endpoint": f"{self.url}/authorize?tenant=1",
                "token_endpoint": f"{self.url}/token",
                **self.document,
            }

        @app.get("/keys")
        async def keys() -> dict[str, Any]:
            return {"keys": self.keys}

        @app.get("/authorize")
        async def authorize(request: Request) -> Response:
            asked = dict(request.query_params)
            code = secrets.token_urlsafe(16)
            self._codes[code] = asked
            query = urlencode({"code": code, "state": asked["state"]})
            return Response(status_code=302, headers={"location": f"{asked['redirect_uri']}?{query}"})

        @app.post("/token")
        async def token(request: Request) -> Any:
            form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
            refusal = self._check(form, request.headers.get("authorization"))
            if refusal is not None:
                return Response(json.dumps({"error": refusal}), 400)
            asked = self._codes.pop(form["code"])
            claims = {"aud": CLIENT_ID, "nonce": asked["nonce"], **self.id_claims}
            return {"access_token": "opaque", "token_type": "Bearer", "id_token": self.token(**claims)}

        return app

    def _check(self, form: Mapping[str, str], authorization: str | None) -> str | None:
        """Why the code is not exchanged."""
        if authorization is None:
            given = form.get("client_id"), form.get("client_secret")
        else:
            client, _, secret = b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
            given = unquote_plus(client), unquote_plus(secret)
        asked = self._codes.get(form.get("code", ""))
        if given != (CLIENT_ID, CLIENT_SECRET):
            return "invalid_client"
        if asked is None or asked["redirect_uri"] != form.get("redirect_uri"):
            return "invalid_grant"
        challenge = urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        return None if challenge == asked["code_challenge"] else "invalid_grant"


@asynccontextmanager
async def running_provider() -> AsyncIterator[FakeProvider]:
    provider = FakeProvider()
    listener = socket.create_server(("127.0.0.1", 0))
    provider.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = create_server(provider.app(), drain_seconds=1)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    try:
        yield provider
    finally:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await server.shutdown(sockets=[listener])
        await asyncio.sleep(0)
