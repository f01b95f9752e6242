"""Traces and metrics on their way to a collector: fetched from the workers, exported by OpenTelemetry's own exporters.

In the control plane, and only where an export is configured: nothing of the SDK is loaded before. A collector that is
slow or away costs what it does not take, and never a request: workers keep their newest records, and count what goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as distribution_version
from threading import Lock
from time import time_ns
from typing import TYPE_CHECKING

import msgspec

from gateway.config.export import Telemetry
from gateway.config.model import Configuration
from gateway.telemetry.control_metrics import ControlMetrics
from gateway.telemetry.exposition import add_up
from gateway.telemetry.records import MAX_RECORDS, RequestRecord

if TYPE_CHECKING:
    from gateway.telemetry.sink import Sink

FETCH_EVERY = 1.0
"""Seconds between two looks for what workers recorded: a worker that dies loses no more than that."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries while the collector takes nothing."""
LAST_SECONDS = 3.0
"""For what is left at the end."""
MAX_LEFT = 8 * MAX_RECORDS
"""Requests of all workers that wait to be sent."""

_log = logging.getLogger(__name__)
_decode = msgspec.msgpack.Decoder(list[RequestRecord]).decode

Fetch = Callable[[], Awaitable[Sequence[bytes]]]


class Exporter:
    """`spans`: fetches what the workers recorded; `expositions`: their metrics and the control plane's. Both `run`
    methods go on until they are cancelled; `close` afterwards."""

    def __init__(
        self,
        spans: Fetch,
        expositions: Fetch,
        configuration: Callable[[], Configuration],
        metrics: ControlMetrics,
        *,
        gateway: str,
    ) -> None:
        self._spans = spans
        self._expositions = expositions
        self._configuration = configuration
        self._metrics = metrics
        self._gateway = gateway
        self._since_ns = time_ns()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="export")  # neither signal waits for the other
        self._sink: Sink | None = None
        self._settings: Telemetry | None = None
        self._opening = Lock()
        self._left: list[RequestRecord] = []  # fetched, or left by workers that have ended, and not sent yet
        self._sending: set[asyncio.Future[bool]] = set()

    async def run_traces(self) -> None:
        pause = FETCH_EVERY
        while True:
            await asyncio.sleep(pause)
            has_worked = await self.export_traces()
            pause = FETCH_EVERY if has_worked else min(pause * 2, LONGEST_PAUSE)

    async def run_metrics(self) -> None:
        waited = 0.0
        while True:
            await asyncio.sleep(FETCH_EVERY)
            waited += FETCH_EVERY
            if waited >= self._configuration().telemetry.every:
                waited = 0.0
                await self.export_metrics()

    async def export_traces(self) -> bool:
        """Whether the collector took all that there was."""
        if self._configuration().telemetry.traces_url is None:
            return True
        for answer in await self._spans():
            self.take(answer)
        return await self._export_left()

    async def _export_left(self) -> bool:
        configuration = self._configuration()
        if not self._left or configuration.telemetry.traces_url is None:
            return True
        records, self._left = self._left, []
        return await self._send(
            "traces", configuration.telemetry, lambda sink: sink.send_traces(records, configuration.endpoints)
        )

    async def export_metrics(self) -> bool:
        settings = self._configuration().telemetry
        if settings.metrics_url is None:
            return True
        texts = await self._expositions()
        return await self._send("metrics", settings, lambda sink: sink.send_metrics(add_up(texts)))

    def take(self, answer: bytes) -> None:
        """What a worker recorded. The oldest go where there are too many."""
        self._left = [*self._left, *_read(answer)][-MAX_LEFT:]

    async def close(self) -> None:
        """What workers left goes out, and what is under way ends, within a bound."""
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self._export_left()
                while self._sending:
                    await asyncio.wait(self._sending)
        except TimeoutError:
            _log.warning("the last traces are not exported")
        if self._sink is not None:
            self._sink.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _send(self, signal: str, settings: Telemetry, send: Callable[[Sink], bool]) -> bool:
        """Goes on when its caller is cancelled: `close` waits for it."""
        sending = asyncio.get_running_loop().run_in_executor(self._threads, self._try, signal, settings, send)
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        return await asyncio.shield(sending)

    # In a thread

    def _try(self, signal: str, settings: Telemetry, send: Callable[[Sink], bool]) -> bool:
        try:
            has_worked = send(self._open(settings))
        except Exception:  # noqa: BLE001 - whatever is wrong with telemetry, the control plane goes on
            _log.exception("%s cannot be exported", signal)
            has_worked = False
        self._metrics.exported(signal, "ok" if has_worked else "failed")
        return has_worked

    def _open(self, settings: Telemetry) -> Sink:
        """The exporters for these settings."""
        with self._opening:
            if self._sink is None or settings != self._settings:
                if self._sink is not None:
                    self._sink.close()
                self._sink, self._settings = _load(settings, self._gateway, self._since_ns), settings
            return self._sink


def _load(settings: Telemetry, gateway: str, since_ns: int) -> Sink:
    from gateway.telemetry.sink import Sink  # not before: the SDK takes 20 MB and 0.3 s

    return Sink(settings, gateway=gateway, version=distribution_version("hatchway"), since_ns=since_ns)


def _read(answer: bytes) -> list[RequestRecord]:
    """A worker of another version, in the middle of an upgrade, may write other records."""
    try:
        return _decode(answer)
    except msgspec.DecodeError as error:
        _log.warning("the records of a worker cannot be read: %s", error)
        return []
