"""What an adapter offers: an application's request becomes a call of one endpoint, whatever wire format that speaks."""

from __future__ import annotations

from typing import Protocol

from gateway.protocols.base import StreamReader, Summary
from gateway.protocols.inbound import Inbound
from gateway.types import Capability, WireName
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, UpstreamRequest


class Call:
    """One request on its way to one endpoint, and the reading of what comes back, in the client's protocol.

    `request`: what to send, not yet signed; None: nothing is asked of the upstream, `local_answer` is the answer.
    `note`: what was changed on the way, for the response header `x-hatchway-translation`; empty: nothing was.
    """

    request: UpstreamRequest | None = None
    local_answer: bytes = b""
    note: str = ""

    def read_answer(self, body: bytes) -> tuple[bytes, Summary]:
        """What to show the client, and what it says. Raises UpstreamError when it is no whole answer."""
        raise AssertionError("no answer of an upstream is awaited")

    def open_stream(self) -> StreamReader:
        raise AssertionError("no stream was asked for")


class Signer(Protocol):
    """Adds credentials that hold for one request, or for a short time, only."""

    async def sign(self, request: UpstreamRequest, client: UpstreamClient, deadlines: Deadlines) -> UpstreamRequest:
        """Raises UpstreamError when the credentials cannot be had."""
        ...


class Adapter(Protocol):
    """One endpoint, with everything that is the same for all its requests prepared."""

    capabilities: frozenset[Capability]
    speaks: frozenset[WireName]
    signer: Signer | None

    def open(self, inbound: Inbound) -> Call:
        """Raises InvalidRequest for what this endpoint's wire format cannot say (code `unsupported_by_endpoint`), or
        for what is no request at all."""
        ...
