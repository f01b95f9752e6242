"""The control plane: ships the ledger, publishes configuration and keys, answers operators. Started by the supervisor.

`python -m gateway.control --workers 2 [--config PATH]`

When it dies, applications go on with what was published last; the supervisor starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import uvloop
from fastapi import FastAPI, Response

from gateway.api.admin import AdminServices, create_admin_router, install_error_handlers
from gateway.api.internal import InternalServices, create_internal_router
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.errors import ConfigError, StoreError
from gateway.ledger.shipper import Shipped, Shipper, ShipperBusy
from gateway.processes import bind_unix, control_socket, create_server
from gateway.publication import Publication
from gateway.store.database import Database
from gateway.store.keys import active_keys
from gateway.telemetry import ControlMetrics, merge_expositions, set_up_log
from gateway.upstream.client import UpstreamClient
from gateway.workers import Workers

SHIP_EVERY = 0.2
SHIP_PAUSE_AFTER_ERROR = 2.0
WATCH_EVERY = 0.5
KEYS_EVERY = 10.0
"""Keys are republished at once when PostgreSQL says that they changed, and this often in case it could not."""
NOTIFY_WAIT = 1.0
DRAIN_SECONDS = 5

_log = logging.getLogger(__name__)


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
                health=control.workers.health,
                flush=control.ship,
                publish_keys=control.publish_keys,
            )
        )
    )

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        texts = [*await control.workers.expositions(), control.metrics.exposition()]
        return Response(merge_expositions(texts), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(
        create_internal_router(
            InternalServices(
                engine=control.database.engine,
                flush=control.ship,
                health=control.workers.health,
            )
        )
    )
    return app


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
