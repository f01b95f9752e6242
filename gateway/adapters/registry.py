"""Which adapter serves an endpoint. A provider that differs only in data is a row of configuration, not a class."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from gateway.adapters import local
from gateway.adapters.base import Adapter
from gateway.adapters.openai import ALL_CAPABILITIES, OpenAIAdapter
from gateway.config.model import AS_ASKED, Endpoint
from gateway.types import Capability
from gateway.upstream.request import Origin

CAPABILITIES: dict[str, frozenset[Capability]] = {"openai": ALL_CAPABILITIES, "local": local.CAPABILITIES}
"""What each adapter's servers can do unless the endpoint says otherwise. Its keys are all adapters there are."""


def declared_capabilities(endpoint: Endpoint) -> frozenset[Capability]:
    """What the endpoint can do: as configured, or what its adapter declares."""
    return endpoint.capabilities if endpoint.capabilities is not None else CAPABILITIES[endpoint.provider.adapter]


def build_adapter(endpoint: Endpoint, run_dir: Path, user_agent: str) -> Adapter:
    """The adapter of a usable endpoint (`provider.missing` is None)."""
    provider = endpoint.provider
    capabilities = declared_capabilities(endpoint)
    if provider.adapter == "local":
        return local.local_adapter(run_dir, provider.id, endpoint.model, capabilities)
    assert provider.base_url is not None, "the compiler demands it for this adapter"
    headers = [("user-agent", user_agent)]
    if provider.api_key is not None:
        headers.append(("authorization", f"Bearer {provider.api_key.reveal()}"))
    headers.extend((name, value.reveal()) for name, value in provider.headers.items())
    return OpenAIAdapter(
        origin=Origin.parse(provider.base_url, ca_file=provider.ca_file),
        path=urlsplit(provider.base_url).path.rstrip("/"),
        headers=headers,
        upstream_model=None if endpoint.model == AS_ASKED else endpoint.model,
        capabilities=capabilities,
    )
