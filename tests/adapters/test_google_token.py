"""Assertions of service accounts, verified with their public keys."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from time import time
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.auth import jwt

from gateway.adapters.google_token import TOKEN_URI, GoogleToken

EMAIL = "robot@project.iam.gserviceaccount.com"
NOW = 1_800_000_000.75


def _pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def credentials(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    return {
        "type": "service_account",
        "client_email": EMAIL,
        "private_key_id": "kid1",
        "private_key": _pem(key),
        "token_uri": "https://token.example/x",
    }


def _decode(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_assertion(credentials: dict[str, Any], key: rsa.RSAPrivateKey) -> None:
    token = GoogleToken(credentials)
    form = parse_qs(token.assertion(NOW).decode(), strict_parsing=True)
    assert form.keys() == {"grant_type", "assertion"}
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    header, claims, signature = form["assertion"][0].split(".")
    key.public_key().verify(_decode(signature), f"{header}.{claims}".encode(), PKCS1v15(), SHA256())
    with pytest.raises(InvalidSignature):
        key.public_key().verify(_decode(signature), f"{header}.{claims}x".encode(), PKCS1v15(), SHA256())
    assert json.loads(_decode(header)) == {"alg": "RS256", "typ": "JWT", "kid": "kid1"}
    assert json.loads(_decode(claims)) == {
        "iss": EMAIL,
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": "https://token.example/x",
        "iat": 1_799_999_990,
        "exp": 1_800_003_590,
    }
    assert token.token_uri == "https://token.example/x"


def test_google_takes_the_assertion(credentials: dict[str, Any], key: rsa.RSAPrivateKey) -> None:
    """As Google's own library judges it."""
    plain = {name: value for name, value in credentials.items() if name not in ("private_key_id", "token_uri")}
    token = GoogleToken(plain, scope="a b")
    assertion = parse_qs(token.assertion(time()).decode())["assertion"][0]
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert jwt.decode(assertion, certs=public, audience=TOKEN_URI)["scope"] == "a b"
    assert "kid" not in jwt.decode_header(assertion) and token.token_uri == TOKEN_URI


def test_no_secret_is_shown(credentials: dict[str, Any]) -> None:
    token = GoogleToken(credentials)
    assert "PRIVATE KEY" not in repr(token) and EMAIL not in repr(token) and "kid1" not in repr(token)
    for broken in (
        {"private_key": "SECRET"},
        {"private_key": 5},
        {"client_email": None},
        {"token_uri": "http://SECRET"},
    ):
        with pytest.raises(ValueError) as caught:
            GoogleToken({**credentials, **broken})
        assert "SECRET" not in str(caught.value) and EMAIL not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match="`private_key`"):
        GoogleToken({**credentials, "private_key": _pem(ec.generate_private_key(ec.SECP256R1()))})
    with pytest.raises(ValueError, match="client_email"):
        GoogleToken({})


def test_token(credentials: dict[str, Any]) -> None:
    token = GoogleToken(credentials)
    assert token.read_token(b'{"access_token": "ya29.x", "expires_in": 3599, "token_type": "Bearer"}') == (
        "ya29.x",
        3599,
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"a":' * 100_000,
        b'{"error": "invalid_grant", "error_description": "SECRET"}',
        b'{"access_token": 5, "expires_in": 10}',
        b'{"access_token": "", "expires_in": 10}',
        b'{"access_token": "SECRET\\r\\nx:y", "expires_in": 10}',
        b'{"access_token": "SECRET", "expires_in": -1}',
        b'{"access_token": "SECRET", "expires_in": 1e300}',
        b'{"access_token": "' + b"SECRET" * 10_000 + b'", "expires_in": 10}',
    ],
)
def test_no_token(credentials: dict[str, Any], body: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        GoogleToken(credentials).read_token(body)
    assert "SECRET" not in str(caught.value) and caught.value.__cause__ is None
