"""A gateway before staged providers of every wire format, and the SDKs that call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from gateway.types import UsageEvent
from tests.clients.scenario import SIGNATURE
from tests.clients.upstreams import SEALED, document, serve
from tests.gateway_fixtures import KEY, PATIENCE, Gateway, Upstream
from tests.pipeline.conftest import (  # noqa: F401 - fixtures
    StartGateway,
    StartUpstream,
    pytest_asyncio_loop_factories,
    script_upstream,
    start_gateway,
)


@dataclass
class Stage:
    """`upstream.calls`: what the providers were sent."""

    gateway: Gateway
    upstream: Upstream
    clients: list[openai.AsyncOpenAI | anthropic.AsyncAnthropic] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.gateway.url}/v1"

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        """Asks but once. Without a context for TLS a client is there sooner."""
        http = openai.DefaultAsyncHttpxClient(trust_env=False, verify=False)
        settings = {"api_key": KEY, "max_retries": 0, "timeout": PATIENCE, "http_client": http, **options}
        self.clients.append(openai.AsyncOpenAI(base_url=self.url, **settings))
        return self.clients[-1]

    def anthropic(self, **options: Any) -> anthropic.AsyncAnthropic:
        http = anthropic.DefaultAsyncHttpxClient(trust_env=False, verify=False)
        settings = {"api_key": KEY, "max_retries": 0, "timeout": PATIENCE, "http_client": http, **options}
        self.clients.append(anthropic.AsyncAnthropic(base_url=self.gateway.url, **settings))
        return self.clients[-1]

    def check_seal(self, wire: str) -> None:
        """The provider's signature was in the last request, if it has any."""
        assert (SIGNATURE.encode() in self.upstream.calls[-1].body) == (wire in SEALED)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()

    async def row(self, **expected: Any) -> UsageEvent:
        """The only row of the ledger, of an answer that was whole unless `expected` says otherwise."""
        (row,) = await self.gateway.settled(1)
        wanted = {"status": "ok", "usage_source": "reported", "price_status": "priced", "team": "payments", **expected}
        assert {name: getattr(row, name) for name in wanted} == wanted
        return row


@pytest_asyncio.fixture
async def stage(
    request: pytest.FixtureRequest,
    script_upstream: StartUpstream,  # noqa: F811
    start_gateway: StartGateway,  # noqa: F811
) -> AsyncIterator[Stage]:
    """A test of one `wire` gets a gateway with that provider alone, which starts sooner."""
    upstream = await script_upstream(serve)
    origin = f"http://127.0.0.1:{upstream.port}"
    parameters = getattr(request.node, "callspec", None)
    wire = None if parameters is None else parameters.params.get("wire")
    gateway = await start_gateway(document(origin) if wire is None else document(origin, [wire]))
    stage = Stage(gateway, upstream)
    yield stage
    await stage.close()
