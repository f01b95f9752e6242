"""The control plane's way to the data-plane workers: their unix sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from gateway.errors import UpstreamError
from gateway.processes import worker_socket
from gateway.types import EndpointHealth
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest

CALL_SECONDS = 2.0
MAX_WORKER_ANSWER = 16 * 1024 * 1024

_log = logging.getLogger(__name__)
_decode_health = msgspec.json.Decoder(dict[str, EndpointHealth]).decode


class Workers:
    """The way to the data-plane workers: their unix sockets."""

    def __init__(self, client: UpstreamClient, run_dir: Path, count: int) -> None:
        self._client = client
        self._origins = [Origin.parse("http://worker", uds=str(worker_socket(run_dir, i))) for i in range(count)]

    async def reload(self) -> None:
        """Tells each worker that something was published. One that misses it notices by itself a second later."""
        await asyncio.gather(*(self._call(origin, b"POST", b"/internal/reload") for origin in self._origins))

    async def expositions(self) -> list[bytes]:
        answers = await asyncio.gather(*(self._call(o, b"GET", b"/internal/metrics") for o in self._origins))
        return [answer for answer in answers if answer is not None]

    async def spans(self) -> list[bytes]:
        """What the workers recorded of requests since the last time, which they forget by that."""
        answers = await asyncio.gather(*(self._call(o, b"GET", b"/internal/spans") for o in self._origins))
        return [answer for answer in answers if answer is not None]

    async def health(self) -> Mapping[str, EndpointHealth]:
        """All workers' health as one: the mean of what they measured, the sum of what is in flight, the worst."""
        answers = await asyncio.gather(*(self._call(o, b"GET", b"/internal/health") for o in self._origins))
        merged: dict[str, EndpointHealth] = {}
        for answer in answers:
            for endpoint, one in ({} if answer is None else _decode_health(answer)).items():
                other = merged.get(endpoint)
                merged[endpoint] = one if other is None else _both(one, other)
        return merged

    async def learned(self) -> dict[str, bytes]:
        """What each worker that answers has learned itself, by the worker's index."""
        answers = await asyncio.gather(*(self._call(o, b"GET", b"/internal/learned") for o in self._origins))
        return {str(index): answer for index, answer in enumerate(answers) if answer is not None}

    async def _call(self, origin: Origin, method: bytes, target: bytes) -> bytes | None:
        total_at = asyncio.get_running_loop().time() + CALL_SECONDS
        request = UpstreamRequest(origin, method, target, b"", b"")
        try:
            response = await self._client.send(request, Deadlines(connect=CALL_SECONDS, total_at=total_at))
            try:
                body = await response.read(MAX_WORKER_ANSWER)
                return body if response.status == 200 else None
            finally:
                response.close()
        except UpstreamError as error:
            _log.warning("%s of %s: %s", target.decode(), origin.uds, error)
            return None


def _both(one: EndpointHealth, other: EndpointHealth) -> EndpointHealth:
    measured = [state.ttft for state in (one, other) if state.ttft is not None]
    return replace(
        one,
        ttft=sum(measured) / len(measured) if measured else None,
        in_flight=one.in_flight + other.in_flight,
        failures_in_a_row=max(one.failures_in_a_row, other.failures_in_a_row),
        ejected_until=max(one.ejected_until, other.ejected_until),
        admitted=min(one.admitted, other.admitted),
    )
