"""A data-plane worker: the composition root of everything a request meets. Started by the supervisor.

`python -m gateway.app --index 0 --workers 2 --socket-fd 5 [--config PATH]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import socket
from importlib.metadata import version as distribution_version
from pathlib import Path

import msgspec
import uvloop

from gateway.accounting.catalogue import read_catalogue
from gateway.accounting.entry import Books
from gateway.accounting.prices import PriceBook
from gateway.admission import Admission
from gateway.api.application import Application
from gateway.api.auth import KeyRing
from gateway.api.http import HttpReply, Request, respond_error
from gateway.api.server import Server
from gateway.budgets.book import BudgetBook
from gateway.config.compiler import compile_configuration
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.errors import ConfigError, GatewayError, Unavailable, UpstreamError
from gateway.ledger.spool import Spool
from gateway.pipeline import Pipeline
from gateway.processes import bind_unix, control_socket, wait_to_begin, worker_socket
from gateway.prompts import PromptKeeper
from gateway.publication import Publication
from gateway.routing.domains import MODEL_FILE, DomainClassifier
from gateway.routing.health import HealthBook
from gateway.secrets import published_stamp
from gateway.shadow import Shadows
from gateway.snapshot import Snapshot
from gateway.telemetry import Metrics, set_up_log
from gateway.telemetry.trace import Tracer
from gateway.types import KeyRecord
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest, header_block

DRAIN_SECONDS = 30
"""How long open requests may go on after SIGTERM."""
RELOAD_EVERY = 1.0
HAND_OVER_SECONDS = 2.0
CONTROL_SECONDS = 30.0
COLLECTOR = (3_000, 2, 50)
"""What the garbage collector waits for: new containers, their rounds before the next older ones are looked at, and the
rounds of those before all are. Requests leave no rings, so there is hardly anything to find, and every stream waits
while it looks: all objects of a thousand streams take it 60 ms and more."""
LOOKUP_SECONDS = 2.0
ASK_SECONDS = 10.0
MAX_CONTROL_BODY = 1024 * 1024
UPLOADS = {"/admin/api/reconciliations": 20 * 1024 * 1024, "/admin/api/prices/catalogues": 32 * 1024 * 1024}
"""Bytes of the files that operators may send, by path."""
MAX_UPLOADS = 2
"""Read at once: nobody is asked for a key before the control plane has the whole of it."""
MAX_CONTROL_ANSWER = 64 * 1024 * 1024

# What each side of a hop makes for itself; the server adds `date` to every answer.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"upgrade",
        b"te",
        b"trailer",
        b"host",
        b"content-length",
        b"date",
    }
)

_log = logging.getLogger(__name__)


class ControlPlane:
    """The worker's way to the control plane. When it is away, operators get 503 and applications notice nothing."""

    def __init__(self, client: UpstreamClient, socket_path: Path) -> None:
        self._client = client
        self._origin = Origin.parse("http://control", uds=str(socket_path))
        self._uploads = asyncio.Semaphore(MAX_UPLOADS)

    async def find_key(self, digest: str) -> KeyRecord | None:
        try:
            status, _, body = await self._call(b"GET", f"/internal/keys/{digest}".encode(), b"", b"", LOOKUP_SECONDS)
        except UpstreamError as error:
            _log.warning("an unknown key could not be looked up: %s", error)
            return None
        return msgspec.json.decode(body, type=KeyRecord) if status == 200 else None

    async def ask(self, path: str, body: bytes) -> bytes:
        """Raises Unavailable, UpstreamError when there is no answer with status 200."""
        status, _, answer = await self._call(b"POST", path.encode(), b"", body, ASK_SECONDS)
        if status != 200:
            raise Unavailable(f"the control plane answered `{path}` with status {status}", code="control_plane")
        return answer

    async def forward(self, request: Request, reply: HttpReply) -> None:
        limit = UPLOADS.get(request.path)
        if limit is None or request.method != "POST":
            await self._forward(request, reply, MAX_CONTROL_BODY)
        else:
            async with self._uploads:
                await self._forward(request, reply, limit)

    async def _forward(self, request: Request, reply: HttpReply, limit: int) -> None:
        try:
            body = await request.read(limit)
            block = header_block((name, value) for name, value in request.header_lines if name not in _HOP_BY_HOP)
            try:
                status, headers, content = await self._call(
                    request.method.encode(), request.target, block, body, CONTROL_SECONDS
                )
            except UpstreamError:
                raise Unavailable(
                    "the control plane is not available; applications are served", code="control_plane"
                ) from None
        except GatewayError as error:
            respond_error(reply, error)
            return
        kept = [(name, value) for name, value in headers if name not in _HOP_BY_HOP]
        kept.append((b"content-length", b"%d" % len(content)))
        reply.start(status, kept)
        reply.send(content, is_last=True)

    async def _call(
        self, method: bytes, target: bytes, headers: bytes, body: bytes, seconds: float
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        total_at = asyncio.get_running_loop().time() + seconds
        request = UpstreamRequest(self._origin, method, target, headers, body)
        response = await self._client.send(request, Deadlines(connect=seconds, total_at=total_at))
        try:
            return response.status, response.headers, await response.read(MAX_CONTROL_ANSWER)
        finally:
            response.close()


class Worker:
    """Owns the worker's state: the snapshot in force, keys, what was learned, queues, spool, connections."""

    def __init__(self, settings: Settings, index: int, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._publication = Publication(settings.home)
        self._model_file = settings.home / MODEL_FILE
        self._stamps = self._read_stamps()
        self._user_agent = f"hatchway/{distribution_version('hatchway')}"
        self._prices = PriceBook()
        self._take_up_catalogue()
        self._prices.load()  # now, rather than inside the first request
        self.client = UpstreamClient()
        self.metrics = Metrics()
        self.tracer = Tracer(self.metrics)
        self.spool = Spool(settings.spool_dir, f"worker-{index}")
        self.health = HealthBook(worker=str(index))
        self.admission = Admission(self.metrics)
        books = Books(self.spool, self.metrics, gateway=settings.gateway_name)
        self.shadows = Shadows(self.client, books, self.admission)
        control = self._control = ControlPlane(self.client, control_socket(settings.run_dir))
        self.budgets = BudgetBook(
            f"{settings.gateway_name}/{self.spool.process}",
            control.ask,
            workers=workers,
            is_spooled=lambda: self.spool.state.held == 0,
        )
        self.prompts = PromptKeeper(self.spool.keep, self.metrics)
        self.keys = KeyRing(control.find_key)
        self.pipeline = Pipeline(
            self._build(),
            self.client,
            books,
            self.health,
            self.budgets,
            admission=self.admission,
            shadows=self.shadows,
            prompts=self.prompts,
            tracer=self.tracer,
        )
        self.metrics.waiting = lambda: self.admission.waiting
        self.metrics.states = lambda: self.health.states(asyncio.get_running_loop().time())
        self.application = Application(
            self.pipeline, self.keys, self.metrics, forward=control.forward, reload=self.reload
        )
        self._take_up_keys()
        self._take_up({"learned", "shifts", "budgets"})

    def reload(self) -> None:
        """Takes up what was published since the last time."""
        before, self._stamps = self._stamps, self._read_stamps()
        self._take_up({name for name, stamp in self._stamps.items() if stamp != before[name]})

    def _take_up(self, changed: set[str]) -> None:
        """What cannot be taken up leaves the old in force."""
        for names, take_up in (
            ({"keys"}, self._take_up_keys),
            ({"catalogue"}, self._take_up_catalogue),
            ({"configuration", "domains", "secrets", "catalogue"}, self._take_up_configuration),
            ({"learned"}, self._take_up_learned),
            ({"shifts"}, self._take_up_shifts),
            ({"budgets"}, self._take_up_budgets),
        ):
            if names & changed:
                try:
                    take_up()
                except (OSError, ValueError, msgspec.DecodeError, ConfigError) as error:
                    _log.error("published %s cannot be taken up, the old stays: %s", "/".join(sorted(names)), error)

    async def hand_over(self) -> None:
        """Gives the control plane the last traces, before the worker ends; without it they are gone."""
        if self.tracer.has_records:
            try:
                async with asyncio.timeout(HAND_OVER_SECONDS):
                    await self._control.ask("/internal/spans", self.tracer.drain())
            except (TimeoutError, Unavailable, UpstreamError) as error:
                _log.warning("the last traces are lost: %s", error)

    async def watch(self) -> None:
        """Notices a publication whose push was missed."""
        while True:
            await asyncio.sleep(RELOAD_EVERY)
            if self._read_stamps() != self._stamps:
                self.reload()

    def _read_stamps(self) -> dict[str, int]:
        configuration, keys = self._publication.stamp()
        return {
            "configuration": configuration,
            "keys": keys,
            "learned": self._publication.learned_stamp(),
            "shifts": self._publication.shifts_stamp(),
            "budgets": self._publication.budgets_stamp(),
            "catalogue": self._publication.catalogue_stamp(),
            "secrets": published_stamp(self._settings.home),
            "domains": self._model_file.stat().st_mtime_ns if self._model_file.exists() else 0,
        }

    def _take_up_keys(self) -> None:
        self.keys.replace(self._publication.read_keys())

    def _take_up_configuration(self) -> None:
        self.pipeline.snapshot = self._build()

    def _take_up_catalogue(self) -> None:
        content = self._publication.read_catalogue()
        if content is not None:
            self._prices.replace(read_catalogue(content))

    def _take_up_learned(self) -> None:
        content = self._publication.read_learned()
        if content is not None:
            self.health.absorb(content)

    def _take_up_shifts(self) -> None:
        self.pipeline.shifts = tuple(self._publication.read_shifts())

    def _take_up_budgets(self) -> None:
        self.budgets.take_up(self._publication.read_budgets())

    def _build(self) -> Snapshot:
        configuration = compile_configuration(self._publication.read_document(), environment_variables())
        snapshot = Snapshot.build(
            configuration, self._prices, self._settings.run_dir, self._user_agent, read_model(self._model_file)
        )
        self.metrics.configuration(configuration.version)
        self.tracer.configure(configuration.telemetry, self._workers)
        self.health.configure(configuration.learning)
        self.admission.configure(configuration, self._workers)
        self.spool.configure(configuration.ledger, self._workers)
        return snapshot


def read_model(path: Path) -> DomainClassifier | None:
    """The classifier that an operator has trained. None: there is none, or it cannot be read, which is reported."""
    try:
        return DomainClassifier.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.error("the trained classifier `%s` cannot be read, the configuration's examples hold: %s", path, error)
        return None


async def serve(settings: Settings, index: int, workers: int, listener: socket.socket) -> None:
    """Serves until SIGTERM, then drains, syncs the spool and returns."""
    worker = Worker(settings, index, workers)
    server = Server(worker.application, drain_seconds=DRAIN_SECONDS)
    internal = bind_unix(worker_socket(settings.run_dir, index))
    gc.collect()
    gc.freeze()  # what is loaded now stays: the collector need not look at it again
    gc.set_threshold(*COLLECTOR)
    try:
        async with asyncio.TaskGroup() as owned:
            tasks = [
                owned.create_task(worker.spool.run_sync()),
                owned.create_task(worker.watch()),
                owned.create_task(worker.budgets.run()),
            ]
            await server.serve(listener, internal)
            for task in tasks:
                task.cancel()
    finally:
        await worker.shadows.close()
        await worker.hand_over()
        await worker.client.close()
        worker.prompts.close()
        worker.spool.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="gateway.app")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1, help="how many there are: limits are divided among them")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--gate-fd", type=int)
    arguments = parser.parse_args()
    wait_to_begin(arguments.gate_fd)
    settings = load_settings(config=arguments.config)
    set_up_log(f"worker-{arguments.index}", log_format=settings.log_format)
    listener = socket.socket(fileno=arguments.socket_fd)
    uvloop.run(serve(settings, arguments.index, arguments.workers, listener))


if __name__ == "__main__":
    main()
