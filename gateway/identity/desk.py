"""Where the operators' surface asks who somebody is: bearer tokens, and signing in on the page.

Sources: OpenID Connect Core 1.0, section 3.1 (authorization code flow); RFC 7636 (PKCE); RFC 9700 (security).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from time import time
from typing import NamedTuple
from urllib.parse import quote_plus, urlencode

import msgspec

from gateway.config.model import Oidc, Secret
from gateway.errors import AuthenticationFailed, NotFound
from gateway.identity.provider import Discovery, Provider
from gateway.identity.session import SESSION_SECONDS, SIGN_IN_SECONDS, Seal, Session, SignIn
from gateway.identity.token import Person, person, read_token, verified_claims
from gateway.upstream.client import UpstreamClient

CALLBACK = "/admin/callback"
MAX_CODE = 4096


class Begun(NamedTuple):
    """`url`: where the browser goes; `sealed`: the cookie that it brings back."""

    url: str
    sealed: str


class _Tokens(msgspec.Struct):
    id_token: str


class IdentityDesk:
    """`oidc`: the configuration in force; None in it: nobody but keys is known.

    The client is the caller's to close.
    """

    def __init__(
        self, client: UpstreamClient, oidc: Callable[[], Oidc | None], *, clock: Callable[[], float] = time
    ) -> None:
        self._client = client
        self._oidc = oidc
        self._clock = clock
        self._provider: Provider | None = None

    @property
    def is_configured(self) -> bool:
        return self._oidc() is not None

    @property
    def has_login(self) -> bool:
        return self._seal() is not None

    @property
    def is_secure(self) -> bool:
        """Whether people come over https, so that cookies may go nowhere else."""
        oidc = self._oidc()
        return oidc is not None and (oidc.url or "").startswith("https://")

    async def read_token(self, token: str) -> Person:
        """Raises AuthenticationFailed, PermissionDenied, Unavailable."""
        provider = self._current()
        if provider is None:
            raise AuthenticationFailed(
                "tokens are not accepted here\nhint: configure `oidc`, or use a key", code="invalid_token"
            )
        return await read_token(provider, token)

    def session(self, sealed: str) -> Session | None:
        """The session of a cookie; None: it is none, or over."""
        seal = self._seal()
        return None if seal is None else seal.open(sealed, Session, self._clock())

    async def begin(self) -> Begun:
        """Raises NotFound where there is no login page, and Unavailable."""
        provider, oidc, seal = self._login()
        discovery = await provider.discovery()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        query = {
            "response_type": "code",
            "client_id": oidc.client_id,
            "redirect_uri": f"{oidc.url}{CALLBACK}",
            "scope": "openid email profile",
            "state": state,
            "nonce": nonce,
            "code_challenge": urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        address = discovery.authorization_endpoint
        if address is None:
            raise NotFound("the identity provider has no login page", code="no_login")
        url = f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"
        return Begun(url, seal.close(SignIn(state, nonce, verifier, self._clock() + SIGN_IN_SECONDS)))

    async def finish(self, sealed: str, state: str, code: str) -> tuple[Person, str]:
        """The person and the sealed session. `sealed`: the cookie of `begin`.

        Raises AuthenticationFailed, PermissionDenied, NotFound, Unavailable.
        """
        provider, oidc, seal = self._login()
        begun = seal.open(sealed, SignIn, self._clock())
        if begun is None or not hmac.compare_digest(begun.state.encode(), state.encode(errors="replace")):
            raise _failed("it was begun in another browser, or too long ago")
        if not 0 < len(code) <= MAX_CODE:
            raise _failed("the identity provider sent no code")
        token = await self._exchange(provider, oidc, code, begun.verifier)
        assert oidc.client_id is not None  # there is no seal without one
        claims = await verified_claims(provider, token, audience=oidc.client_id, nonce=begun.nonce)
        found = person(oidc, claims)
        session = Session(found, secrets.token_urlsafe(32), self._clock() + SESSION_SECONDS)
        return found, seal.close(session)

    async def _exchange(self, provider: Provider, oidc: Oidc, code: str, verifier: str) -> str:
        discovery = await provider.discovery()
        if discovery.token_endpoint is None or oidc.client_id is None or oidc.client_secret is None:
            raise NotFound("the identity provider has no token address", code="no_login")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": f"{oidc.url}{CALLBACK}",
            "code_verifier": verifier,
        }
        headers = []
        if _takes_basic(discovery):
            headers.append(("authorization", _basic(oidc.client_id, oidc.client_secret)))
        else:
            form |= {"client_id": oidc.client_id, "client_secret": oidc.client_secret.reveal()}
        status, body = await provider.post(discovery.token_endpoint, urlencode(form).encode(), *headers)
        try:
            if status != 200:
                raise _failed(f"the identity provider answered {status} to the code")
            return msgspec.json.decode(body, type=_Tokens).id_token
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _failed("the identity provider sent no token") from None

    def _current(self) -> Provider | None:
        oidc = self._oidc()
        if oidc is None:
            self._provider = None
        elif self._provider is None or self._provider.oidc != oidc:
            self._provider = Provider(self._client, oidc)
        return self._provider

    def _seal(self) -> Seal | None:
        oidc = self._oidc()
        if oidc is None or oidc.client_secret is None or oidc.client_id is None or oidc.url is None:
            return None
        return Seal(oidc)

    def _login(self) -> tuple[Provider, Oidc, Seal]:
        provider, seal = self._current(), self._seal()
        if provider is None or seal is None:
            raise NotFound(
                "there is no login page\nhint: `oidc` needs `client_id`, `client_secret` and `url`", code="no_login"
            )
        return provider, provider.oidc, seal


def _takes_basic(discovery: Discovery) -> bool:
    return "client_secret_post" not in (methods := discovery.token_endpoint_auth_methods_supported) or (
        "client_secret_basic" in methods
    )


def _basic(client_id: str, client_secret: Secret) -> str:
    """RFC 6749, section 2.3.1: both parts are form-encoded first."""
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret.reveal())}"
    return "Basic " + b64encode(pair.encode()).decode()


def _failed(reason: str) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"the sign-in failed: {reason}\nhint: begin again at `/admin/login`", code="sign_in_failed"
    )
