"""Access tokens for Vertex AI from a service account's JSON: what to send and how to read the answer, without sending.

Source: developers.google.com/identity/protocols/oauth2/service-account, "HTTP/REST".
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

TOKEN_URI = "https://oauth2.googleapis.com/token"
CONTENT_TYPE = "application/x-www-form-urlencoded"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFETIME = 3600
"""Seconds; Google allows no more."""
_BACKDATED = 10
"""Seconds: a clock that is a little ahead would otherwise make assertions of the future."""
_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
_MAX_SECONDS = 24 * 3600
_MAX_TOKEN = 16 * 1024


class _Credentials(msgspec.Struct):
    client_email: str
    private_key: str
    private_key_id: str | None = None
    token_uri: str = TOKEN_URI


class _Token(msgspec.Struct):
    access_token: str
    expires_in: float


class GoogleToken:
    """A service account. Raises ValueError for credentials that are none; no message shows a value of theirs."""

    def __init__(self, credentials: Mapping[str, object], *, scope: str = _SCOPE) -> None:
        try:
            read = msgspec.convert(credentials, _Credentials)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a service account's credentials: {error}") from None
        address = urlsplit(read.token_uri)
        if not address.hostname or (address.scheme != "https" and address.hostname not in _THIS_MACHINE):
            raise ValueError("`token_uri` of the credentials is no https address")
        self.token_uri = read.token_uri
        self._email = read.client_email
        self._key_id = read.private_key_id
        self._key = _load_key(read.private_key)
        self._scope = scope

    def __repr__(self) -> str:
        return f"GoogleToken(token_uri={self.token_uri!r})"

    def assertion(self, now: float) -> bytes:
        """The form to POST to `token_uri`. `now`: seconds since 1970."""
        issued = int(now) - _BACKDATED
        header = {"alg": "RS256", "typ": "JWT", **({"kid": self._key_id} if self._key_id else {})}
        claims = {
            "iss": self._email,
            "scope": self._scope,
            "aud": self.token_uri,
            "iat": issued,
            "exp": issued + _LIFETIME,
        }
        signed = b".".join(_base64(msgspec.json.encode(part)) for part in (header, claims))
        signature = _base64(self._key.sign(signed, PKCS1v15(), SHA256()))
        return urlencode({"grant_type": _GRANT, "assertion": b".".join((signed, signature)).decode()}).encode()

    def read_token(self, body: bytes) -> tuple[str, float]:
        """The token and for how many seconds it is good. Raises ValueError, which does not show the answer."""
        try:
            answer = msgspec.json.decode(body, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ValueError("the token address gave no token") from None
        token = answer.access_token
        is_sound = token.isascii() and token.isprintable() and " " not in token and 0 < len(token) <= _MAX_TOKEN
        if not is_sound or not 0 < answer.expires_in <= _MAX_SECONDS:
            raise ValueError("the token address gave no usable token")
        return token, answer.expires_in


def _load_key(pem: str) -> RSAPrivateKey:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnicodeEncodeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("`private_key` of the credentials is no RSA key in PEM")
    return key


def _base64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
