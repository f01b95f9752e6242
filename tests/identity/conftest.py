"""A provider that runs, and the desk that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.config.model import Oidc, Secret
from gateway.identity.desk import IdentityDesk
from gateway.upstream.client import UpstreamClient
from tests.identity.provider import AUDIENCE, CLIENT_ID, CLIENT_SECRET, FakeProvider, running_provider

ROLES = {"platform": "admin", "operations": "operator", "money": "finance", "payments-devs": "developer"}


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with running_provider() as provider:
        yield provider


@pytest.fixture
def oidc(provider: FakeProvider) -> Oidc:
    return Oidc(
        issuer=provider.url,
        audience=AUDIENCE,
        roles=ROLES,  # type: ignore[arg-type]  # literals, which mypy reads as texts
        team_claim="team",
        client_id=CLIENT_ID,
        client_secret=Secret(CLIENT_SECRET),
        url="http://127.0.0.1:8080",
    )


class Holder:
    """The configuration in force, and the time."""

    def __init__(self, oidc: Oidc) -> None:
        self.oidc: Oidc | None = oidc
        self.now = 1_000_000.0


@pytest.fixture
def holder(oidc: Oidc) -> Holder:
    return Holder(oidc)


@pytest.fixture
async def desk(holder: Holder) -> AsyncIterator[IdentityDesk]:
    client = UpstreamClient()
    try:
        yield IdentityDesk(client, lambda: holder.oidc, clock=lambda: holder.now)
    finally:
        await client.close()
