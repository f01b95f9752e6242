"""A configured endpoint becomes an adapter. A provider that differs only in data is a row, not a class."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from gateway.adapters.base import Adapter, Signer
from gateway.adapters.credentials import AwsSigner, GoogleSigner
from gateway.adapters.endpoint import EndpointAdapter
from gateway.adapters.local import engine_origin
from gateway.adapters.sigv4 import SigV4Signer
from gateway.config.model import AS_ASKED, Endpoint, Provider
from gateway.config.providers import LOCAL
from gateway.upstream.request import Origin

_KEY_HEADERS = {"x-api-key", "api-key", "x-goog-api-key"}


def build_adapter(endpoint: Endpoint, run_dir: Path, user_agent: str) -> Adapter:
    """The adapter of a usable endpoint (`provider.missing` is None)."""
    provider = endpoint.provider
    if provider.adapter == LOCAL:
        origin, path = engine_origin(run_dir, provider.id), "/v1"
    else:
        assert provider.base_url is not None, "the compiler demands it for this adapter"
        origin = Origin.parse(provider.base_url, ca_file=provider.ca_file)
        path = urlsplit(provider.base_url).path.rstrip("/")
    return EndpointAdapter(
        origin=origin,
        path=path,
        headers=[("user-agent", user_agent), *_key(provider), *_headers(provider)],
        upstream_model=None if endpoint.model == AS_ASKED else endpoint.model,
        speaks=endpoint.speaks,
        capabilities=endpoint.capabilities,
        dialect=provider.dialect,
        paths=provider.row.paths,
        counts_tokens=provider.row.counts_tokens,
        takes_wishes=endpoint.takes_wishes,
        tells_tenant=provider.adapter == LOCAL,
        signer=_signer(provider),
    )


def _headers(provider: Provider) -> list[tuple[str, str]]:
    return [(name, value.reveal()) for name, value in provider.headers.items()]


def _key(provider: Provider) -> list[tuple[str, str]]:
    """How the key travels; AWS and Google take long-lived keys and tokens as bearers, too."""
    if provider.api_key is None or provider.row.auth == "none":
        return []
    key, auth = provider.api_key.reveal(), provider.row.auth
    return [(auth, key)] if auth in _KEY_HEADERS else [("authorization", f"Bearer {key}")]


def _signer(provider: Provider) -> Signer | None:
    if provider.aws is not None and provider.region is not None:
        keys = provider.aws
        session = None if keys.session_token is None else keys.session_token.reveal()
        return AwsSigner(
            SigV4Signer(
                keys.access_key_id.reveal(), keys.secret_access_key.reveal(), session, provider.region, "bedrock"
            )
        )
    if provider.google is not None:
        return GoogleSigner(provider.google)
    return None
