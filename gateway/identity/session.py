"""What a browser keeps for us: sealed, so that it can neither be read nor changed, and nothing is kept here.

AES-256-GCM; the key comes from the client's secret by HKDF (RFC 5869), together with what the configuration says of
roles: another secret or other roles end every session. All gateways of one configuration open each other's.
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.config.model import Oidc
from gateway.identity.token import Person

SESSION_SECONDS = 8 * 3600
SIGN_IN_SECONDS = 600
MAX_SEALED = 4096
"""Characters: browsers keep no larger cookie."""
_NONCE = 12

Content = TypeVar("Content", "Session", "SignIn")


class Session(msgspec.Struct, frozen=True, tag="session"):
    """`csrf`: what the page must send with each write, to show that it could read it. `ends_at`: seconds since 1970."""

    person: Person
    csrf: str
    ends_at: float


class SignIn(msgspec.Struct, frozen=True, tag="sign_in"):
    """A sign-in under way: what the provider's answer must match."""

    state: str
    nonce: str
    verifier: str
    ends_at: float


class Seal:
    """Raises ValueError where the login page is not configured."""

    def __init__(self, oidc: Oidc) -> None:
        if oidc.client_secret is None or oidc.client_id is None or oidc.url is None:
            raise ValueError("the login page is not configured\nhint: `oidc` needs `client_id`, `client_secret`, `url`")
        meant = msgspec.json.encode(
            [oidc.issuer, oidc.client_id, oidc.url, oidc.claim, oidc.team_claim, sorted(oidc.roles.items())]
        )
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"hatchway sessions 1 " + meant)
        self._cipher = AESGCM(derived.derive(oidc.client_secret.reveal().encode()))

    def close(self, content: Session | SignIn) -> str:
        nonce = secrets.token_bytes(_NONCE)
        return urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, msgspec.json.encode(content), None)).decode()

    def open(self, sealed: str, kind: type[Content], now: float) -> Content | None:
        """None: it is not ours, is something else, or its time is over."""
        if len(sealed) > MAX_SEALED:
            return None
        try:
            data = urlsafe_b64decode(sealed.encode("ascii"))
            found = msgspec.json.decode(self._cipher.decrypt(data[:_NONCE], data[_NONCE:], None), type=kind)
        except (InvalidTag, ValueError, msgspec.DecodeError):
            return None
        return found if now < found.ends_at else None
