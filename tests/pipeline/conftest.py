"""The fixtures of `tests/gateway_fixtures.py`: what a test starts is stopped with it. On the production loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest_asyncio
import uvloop

from gateway.types import KeyRecord
from tests.gateway_fixtures import Gateway, Script, Upstream, key_record

StartUpstream = Callable[..., Awaitable[Upstream]]
StartGateway = Callable[..., Awaitable[Gateway]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def script_upstream() -> AsyncIterator[StartUpstream]:
    """`await script_upstream(script, ...)`: a running upstream that answers with one script after the other."""
    running: list[Upstream] = []

    async def start(*scripts: Script) -> Upstream:
        upstream = Upstream(scripts)
        await upstream.start()
        running.append(upstream)
        return upstream

    yield start
    for upstream in running:
        await upstream.stop()


@pytest_asyncio.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """`await start_gateway(document, keys=[...])`: a gateway that serves; afterwards the loop has not complained."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    running: list[Gateway] = []

    async def start(document: Mapping[str, Any], keys: list[KeyRecord] | None = None) -> Gateway:
        gateway = Gateway(document, tmp_path, [key_record()] if keys is None else keys)
        running.append(gateway)
        await gateway.start()
        return gateway

    yield start
    for gateway in running:
        await gateway.stop()
    assert complaints == []
