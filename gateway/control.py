"""The control plane: ships the ledger, publishes configuration and keys, answers operators. Started by the supervisor.

`python -m gateway.control --workers 2 [--config PATH]`

When it dies, applications go on with what was published last; the supervisor starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import uvloop
from fastapi import FastAPI, Request, Response

from gateway.api.admin import AdminServices, create_admin_router, install_error_handlers
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.errors import ConfigError, StoreError, UpstreamError
from gateway.ledger.shipper import Shipped, Shipper, ShipperBusy
from gateway.processes import bind_unix, control_socket, create_server, worker_socket
from gateway.publication import Publication
from gateway.store.database import Database
from gateway.store.keys import active_keys, find_active
from gateway.telemetry import ControlMetrics, merge_expositions, set_up_log
from gateway.types import EndpointHealth
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest

SHIP_EVERY = 0.2
SHIP_PAUSE_AFTER_ERROR = 2.0
WATCH_EVERY = 0.5
KEYS_EVERY = 10.0
"""Keys are republished at once when PostgreSQL says that they changed, and this often in case it could not."""
NOTIFY_WAIT = 1.0
CALL_SECONDS = 2.0
DRAIN_SECONDS = 5
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

    async def health(self) -> list[dict[str, EndpointHealth]]:
        answers = await asyncio.gather(*(self._call(o, b"GET", b"/internal/health") for o in self._origins))
        return [_decode_health(answer) for answer in answers if answer is not None]

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


class ControlPlane:
    """Owns the configuration in force, the shipper and the database."""

    def __init__(self, settings: Settings, database: Database, workers: Workers) -> None:
        self.settings = settings
        self.database = database
        self.workers = workers
        self.metrics = ControlMetrics()
        self.publication = Publication(settings.home)
        self.rejected: str | None = None
        self._shipper = Shipper(settings.spool_dir, database.connect)
        self._ship_lock = asyncio.Lock()
        self._document = self.publication.read_document()
        self.configuration = compile_configuration(self._document, environment_variables())

    async def ship(self) -> Shipped:
        """Carries what is spooled into PostgreSQL. Raises StoreError."""
        async with self._ship_lock:
            shipped = await asyncio.to_thread(self._shipper.ship_once)
        self.metrics.shipped(shipped.rows, shipped.rejected, shipped.pending_bytes)
        return shipped

    def close(self) -> None:
        self._shipper.close()

    async def run_shipping(self) -> None:
        failed = False
        while True:
            try:
                await self.ship()
                failed = False
            except (StoreError, OSError, ShipperBusy) as error:
                if not failed:
                    _log.error("usage events stay in the spool: %s", error)
                failed = True
                self.metrics.shipping_failed()
            await asyncio.sleep(SHIP_PAUSE_AFTER_ERROR if failed else SHIP_EVERY)

    async def run_configuration_watch(self) -> None:
        """Validates a changed configuration and publishes it; a bad one is reported, the old one stays in force."""
        seen = None  # so that what changed while no control plane ran is taken up first
        while True:
            await asyncio.sleep(WATCH_EVERY)
            now = fingerprint(self.settings.config_path)
            if now == seen:
                continue
            seen = now
            await self._take_up_configuration()

    async def _take_up_configuration(self) -> None:
        try:
            # A hostile file takes seconds to refuse: not on the loop.
            document = await asyncio.to_thread(read_document, self.settings.config_path)
            configuration = compile_configuration(document, environment_variables())
        except ConfigError as error:
            self.rejected = str(error)
            self.metrics.configuration_rejected(True)
            _log.error("the changed configuration is wrong, version %s stays:\n%s", self.configuration.version, error)
            return
        self.rejected = None
        self.metrics.configuration_rejected(False)
        if document.version == self._document.version:
            return
        self._document, self.configuration = document, configuration
        self.publication.publish_document(document)
        await self.workers.reload()
        _log.info("configuration version %s is in force", configuration.version)

    async def run_key_watch(self) -> None:
        while True:
            try:
                await self._watch_keys()
            except StoreError as error:
                _log.error("keys cannot be read, the last ones stay in force: %s", error)
            await asyncio.sleep(SHIP_PAUSE_AFTER_ERROR)

    async def _watch_keys(self) -> None:
        loop = asyncio.get_running_loop()
        connection = await asyncio.to_thread(listen, self.database)
        try:
            while True:
                await self.publish_keys()
                until = loop.time() + KEYS_EVERY
                while loop.time() < until and not await asyncio.to_thread(wait_for_notice, connection):
                    pass
        finally:
            connection.close()

    async def publish_keys(self) -> None:
        records = await asyncio.to_thread(active_keys, self.database.engine)
        if records != self._published_keys():
            self.publication.publish_keys(records)
            await self.workers.reload()

    def _published_keys(self) -> list[Any]:
        try:
            return list(self.publication.read_keys())
        except (OSError, msgspec.DecodeError):
            return []


def create_control_app(control: ControlPlane) -> FastAPI:
    """Operators' surface (`/admin`, forwarded by workers), and `/internal`, which only the unix socket reaches."""
    app = FastAPI(
        title="Hatchway admin API",
        docs_url=None,
        redoc_url=None,
        openapi_url="/admin/api/openapi.json",
        redirect_slashes=False,  # a redirect would go to whatever host the client named
    )
    install_error_handlers(app)
    app.include_router(
        create_admin_router(
            AdminServices(
                engine=control.database.engine,
                configuration=lambda: control.configuration,
                rejected=lambda: control.rejected,
                health=lambda: merged_health(control),
                flush=control.ship,
                publish_keys=control.publish_keys,
            )
        )
    )

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        texts = [*await control.workers.expositions(), control.metrics.exposition()]
        return Response(merge_expositions(texts), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/internal/ready", include_in_schema=False)
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/internal/keys/{digest}", include_in_schema=False)
    async def find_key(digest: str) -> Response:
        try:
            record = await asyncio.to_thread(find_active, control.database.engine, digest)
        except StoreError as error:
            _log.warning("an unknown key could not be looked up: %s", error)
            return Response(status_code=503)
        if record is None:
            return Response(status_code=404)
        return Response(msgspec.json.encode(record), media_type="application/json")

    @app.post("/internal/flush", include_in_schema=False)
    async def flush() -> Response:
        try:
            shipped = await control.ship()
        except StoreError as error:
            return Response(msgspec.json.encode({"error": str(error)}), 503, media_type="application/json")
        return Response(
            msgspec.json.encode({"rows": shipped.rows, "pending_bytes": shipped.pending_bytes}),
            media_type="application/json",
        )

    @app.get("/internal/health", include_in_schema=False)
    async def health(_: Request) -> Response:
        return Response(msgspec.json.encode(await merged_health(control)), media_type="application/json")

    return app


async def merged_health(control: ControlPlane) -> Mapping[str, EndpointHealth]:
    """All workers' health as one: the mean of what they measured, the sum of what is in flight, the worst verdict."""
    merged: dict[str, EndpointHealth] = {}
    for book in await control.workers.health():
        for endpoint, one in book.items():
            other = merged.get(endpoint)
            merged[endpoint] = one if other is None else _both(one, other)
    return merged


def _both(one: EndpointHealth, other: EndpointHealth) -> EndpointHealth:
    measured = [state.ttft for state in (one, other) if state.ttft is not None]
    return EndpointHealth(
        ttft=sum(measured) / len(measured) if measured else None,
        in_flight=one.in_flight + other.in_flight,
        failures_in_a_row=max(one.failures_in_a_row, other.failures_in_a_row),
        ejected_until=max(one.ejected_until, other.ejected_until),
    )


def fingerprint(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a configuration file does: names, sizes, times of modification."""
    files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def listen(database: Database) -> Any:
    """A connection on which PostgreSQL says when keys change. Raises StoreError."""
    connection = database.connect()
    connection.autocommit = True
    connection.execute("LISTEN hatchway_keys")
    return connection


def wait_for_notice(connection: Any) -> bool:
    """Blocks for up to a second. Raises StoreError when the connection is lost."""
    try:
        return any(True for _ in connection.notifies(timeout=NOTIFY_WAIT, stop_after=1))
    except psycopg.Error as error:
        raise StoreError(f"the connection to PostgreSQL is lost: {type(error).__name__}") from None


async def serve(settings: Settings, worker_count: int) -> None:
    """Serves until SIGTERM, then ships what is left and returns."""
    client = UpstreamClient()
    database = await asyncio.to_thread(Database.open, settings.database_url, settings.database_dir)
    try:
        control = ControlPlane(settings, database, Workers(client, settings.run_dir, worker_count))
        server = create_server(create_control_app(control), drain_seconds=DRAIN_SECONDS)
        async with asyncio.TaskGroup() as owned:
            tasks = [
                owned.create_task(control.run_shipping()),
                owned.create_task(control.run_configuration_watch()),
                owned.create_task(control.run_key_watch()),
            ]
            await server.serve(sockets=[bind_unix(control_socket(settings.run_dir))])
            for task in tasks:
                task.cancel()
        try:
            await control.ship()
        except (StoreError, OSError, ShipperBusy) as error:
            _log.error("usage events stay in the spool until the next start: %s", error)
        control.close()
    finally:
        await client.close()
        await asyncio.to_thread(database.close)


def main() -> None:
    parser = argparse.ArgumentParser(prog="gateway.control")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--config", type=Path)
    arguments = parser.parse_args()
    set_up_log("control")
    uvloop.run(serve(load_settings(config=arguments.config), arguments.workers))


if __name__ == "__main__":
    main()
