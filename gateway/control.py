"""The control plane: ships the ledger, publishes configuration and keys, answers operators. Started by the supervisor.

`python -m gateway.launch gateway.control --workers 2 [--config PATH]`

When it dies, applications go on with what was published last; the supervisor starts it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, time
from typing import Any

import msgspec
import psycopg
import uvloop
from fastapi import FastAPI, Request, Response

from gateway import directory, secrets
from gateway.accounting.catalogue_desk import CatalogueDesk
from gateway.api.admin import AdminServices, create_admin_router
from gateway.api.admin_directory import DirectoryServices
from gateway.api.admin_escape import EscapeServices
from gateway.api.admin_http import install_error_handlers
from gateway.api.admin_learned import LearnedServices
from gateway.api.admin_months import MonthServices
from gateway.api.admin_secrets import SecretServices
from gateway.api.admin_versions import VersionServices
from gateway.api.internal import InternalServices, create_internal_router
from gateway.asgi import create_server
from gateway.budgets.desk import BudgetDesk
from gateway.budgets.watch import BudgetWatch
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.errors import StoreError
from gateway.escape.run import EscapeRunner
from gateway.governance import Governance
from gateway.identity.desk import IdentityDesk
from gateway.learning import LearningDesk
from gateway.ledger.shipper import Shipped, Shipper, ShipperBusy
from gateway.processes import bind_unix, control_socket, wait_to_begin
from gateway.publication import Publication
from gateway.signing import load_signing_key
from gateway.store.database import Database
from gateway.store.decisions import purge
from gateway.store.directory import list_entries
from gateway.store.keys import active_keys
from gateway.store.prompts import purge_prompts
from gateway.store.secrets import read_sealed
from gateway.telemetry import ControlMetrics, merge_expositions, set_up_log
from gateway.telemetry.export import Exporter
from gateway.upstream.client import UpstreamClient
from gateway.workers import Workers

SHIP_EVERY = 0.2
"""Seconds between two looks at the spool. Where nothing was written nothing is done, unless it was quiet for long."""
SHIP_EVERY_BUSY = 1.0
"""Seconds between two rounds while there is much to ship: a larger batch costs less for each row."""
BUSY_ROWS = 100
QUIET_SECONDS = 2.0
"""How long only new bytes start a round. Dead workers write none, and what they began has to be found."""
MEASURE_EVERY = 5.0
"""Seconds between two looks at how much waits in the spool: each reads its directory."""
SHIP_PAUSE_AFTER_ERROR = 2.0
KEYS_EVERY = 10.0
"""Keys are republished at once when PostgreSQL says that they changed, and this often in case it could not."""
NOTIFY_WAIT = 1.0
LEARN_EVERY = 2.0
PURGE_EVERY = 3600.0
DRAIN_SECONDS = 5

_log = logging.getLogger(__name__)


class ControlPlane:
    """Owns the configuration in force, the shipper and the database."""

    def __init__(self, settings: Settings, database: Database, workers: Workers, client: UpstreamClient) -> None:
        self.settings = settings
        self.database = database
        self.workers = workers
        self.metrics = ControlMetrics()
        self.publication = Publication(settings.home)
        self._shipper = Shipper(settings.spool_dir, database.connect)
        self._ship_lock = asyncio.Lock()
        self._publishing = asyncio.Lock()
        self.governance = Governance(
            settings.config_path, self.publication, database.engine, self.metrics, workers.reload
        )
        self.desk = LearningDesk(self.publication, self.governance.configuration.learning)
        self.escapes = EscapeRunner(
            database.engine,
            self.publication,
            configuration=lambda: self.governance.configuration,
            push=self.push,
            owner=socket.gethostname(),
            is_current=lambda: not self.is_behind,
        )
        self.budgets = BudgetDesk(
            database.engine,
            gateway=settings.gateway_name,
            spool_dir=settings.spool_dir,
            flush=self.ship,
            publish=self.publication.publish_budgets,
            push=workers.reload,
        )
        self.catalogues = CatalogueDesk(database.engine, self.publication.publish_catalogue, workers.reload)
        self.watch = BudgetWatch(
            database.engine,
            desk=self.budgets,
            gateway=settings.gateway_name,
            client=client,
            metrics=self.metrics,
            configuration=lambda: self.governance.configuration,
            keys=self.publication.read_keys,
        )
        self.identity = IdentityDesk(client, lambda: self.governance.configuration.oidc)
        self.exporter = Exporter(
            workers.spans,
            self.expositions,
            lambda: self.governance.configuration,
            self.metrics,
            gateway=settings.gateway_name,
        )
        self.is_behind = False
        """New rows do not reach the ledger: nothing may be judged by it."""

    async def ship(self) -> Shipped:
        """Carries what is spooled into PostgreSQL. Raises StoreError."""
        async with self._ship_lock:
            shipped = await asyncio.to_thread(self._shipper.ship_once)
        self.metrics.shipped(shipped.rows, shipped.rejected, shipped.pending_bytes)
        self.metrics.spool_damaged(shipped.damaged)
        return shipped

    async def expositions(self) -> list[bytes]:
        """Metrics of each process, of those that answer."""
        return [*await self.workers.expositions(), self.metrics.exposition()]

    def close(self) -> None:
        self._shipper.close()

    async def run_shipping(self) -> None:
        failed = False
        shipped_at = 0.0
        while True:
            pause = SHIP_EVERY
            if monotonic() - shipped_at > QUIET_SECONDS or self._shipper.has_news:
                try:
                    shipped = await self.ship()
                    failed = self.is_behind = False
                    pause = SHIP_EVERY_BUSY if shipped.rows >= BUSY_ROWS else SHIP_EVERY
                except (StoreError, OSError, ShipperBusy) as error:
                    if not failed:
                        _log.error("usage events stay in the spool: %s", error)
                    failed = self.is_behind = True
                    self.metrics.shipping_failed()
                    pause = SHIP_PAUSE_AFTER_ERROR
                shipped_at = monotonic()
            await asyncio.sleep(pause)

    async def run_backlog(self) -> None:
        """Says how much waits in the spool, also while nothing can be shipped."""
        while True:
            try:
                backlog = await asyncio.to_thread(self._shipper.backlog)
                self.metrics.backlog(backlog.bytes, backlog.seconds, backlog.size)
            except OSError as error:
                _log.error("the spool cannot be measured: %s", error)
            await asyncio.sleep(MEASURE_EVERY)

    async def run_learning(self) -> None:
        """Adds up what the workers learn and publishes it; each takes it up by itself within a second."""
        while True:
            await asyncio.sleep(LEARN_EVERY)
            try:
                self.desk.take(await self.workers.learned(), time(), self.governance.configuration.learning)
            except OSError as error:
                _log.error("what was learned cannot be published: %s", error)
            self.metrics.frozen(len(self.desk.frozen))

    async def forget(self, names: Sequence[str]) -> list[str]:
        """Forgets what was learned of these endpoints and routes; none named: of all. Raises OSError."""
        found = self.desk.reset(names, time())
        await self.workers.reload()
        return found

    async def run_retention(self) -> None:
        """Deletes decisions and prompts that are older than the configuration keeps them."""
        while True:
            await asyncio.sleep(PURGE_EVERY)
            now = datetime.now(UTC)
            before = now - timedelta(seconds=self.governance.configuration.decisions.keep)
            try:
                await asyncio.to_thread(purge, self.database.engine, before)
                await asyncio.to_thread(purge_prompts, self.database.engine, now)
            except StoreError as error:
                _log.error("old decisions and prompts are not deleted yet: %s", error)

    async def push(self) -> None:
        """Has all workers take up what is published."""
        await self.workers.reload()
        self.metrics.shifted(self.publication.read_shifts())

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
                await self.publish_secrets()
                await self.publish_directory()
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

    async def publish_secrets(self) -> None:
        """Ciphertexts: workers decrypt them in memory. Raises StoreError, OSError."""
        async with self._publishing:
            sealed = await asyncio.to_thread(read_sealed, self.database.engine)
            if secrets.publish(self.settings.home, sealed):
                await self.governance.refresh()

    async def publish_directory(self) -> None:
        """What was written by API, beside the YAML. Raises StoreError, OSError."""
        async with self._publishing:
            rows = await asyncio.to_thread(list_entries, self.database.engine)
            if directory.publish(self.settings.home, [row.entry for row in rows]):
                await self.governance.refresh()

    def cipher(self) -> secrets.Cipher:
        """For secrets that are about to be stored. Raises OSError, SecretError."""
        key = self.settings.secret_key
        return secrets.Cipher(secrets.ensure_keys(self.settings.home, None if key is None else key.reveal()))

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
    engine, governance = control.database.engine, control.governance
    versions = VersionServices(engine=engine, state=lambda: governance.state, roll_back=governance.roll_back)
    escapes = EscapeServices(
        engine=engine, runner=control.escapes, configuration=lambda: governance.configuration, flush=control.ship
    )
    learned = LearnedServices(status=lambda: control.desk.status(time()), forget=control.forget, engine=engine)
    people = DirectoryServices(
        engine,
        document=lambda: governance.yaml,
        variables=environment_variables,
        publish=control.publish_directory,
    )
    stored = SecretServices(engine, cipher=control.cipher, publish=control.publish_secrets)
    months = MonthServices(engine=engine, flush=control.ship, signing_key=lambda: load_signing_key(control.settings))
    app.include_router(
        create_admin_router(
            AdminServices(
                engine=engine,
                configuration=lambda: governance.configuration,
                rejected=lambda: governance.rejected,
                health=control.workers.health,
                flush=control.ship,
                publish_keys=control.publish_keys,
                versions=versions,
                escapes=escapes,
                learned=learned,
                identity=control.identity,
                refused=control.metrics.access_refused,
                directory=people,
                secrets=stored,
                months=months,
                budgets=control.watch,
            )
        )
    )
    app.include_router(
        create_internal_router(
            InternalServices(
                engine=engine,
                flush=control.ship,
                health=control.workers.health,
                versions=versions,
                escapes=escapes,
                learned=learned,
                budgets=control.budgets,
                directory=people,
                secrets=stored,
            )
        )
    )

    @app.post("/internal/spans", include_in_schema=False)
    async def take_spans(request: Request) -> Response:
        control.exporter.take(await request.body())
        return Response()

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(
            merge_expositions(await control.expositions()), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return app


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
        control = ControlPlane(settings, database, Workers(client, settings.run_dir, worker_count), client)
        server = create_server(create_control_app(control), drain_seconds=DRAIN_SECONDS)
        async with asyncio.TaskGroup() as owned:
            tasks = [
                owned.create_task(control.run_shipping()),
                owned.create_task(control.run_backlog()),
                owned.create_task(control.governance.run()),
                owned.create_task(control.governance.history.run()),
                owned.create_task(control.run_key_watch()),
                owned.create_task(control.run_learning()),
                owned.create_task(control.budgets.run()),
                owned.create_task(control.watch.run()),
                owned.create_task(control.catalogues.run()),
                owned.create_task(control.run_retention()),
                owned.create_task(control.escapes.run()),
                owned.create_task(control.exporter.run_traces()),
                owned.create_task(control.exporter.run_metrics()),
            ]
            await server.serve(sockets=[bind_unix(control_socket(settings.run_dir))])
            for task in tasks:
                task.cancel()
        try:
            await control.ship()
        except (StoreError, OSError, ShipperBusy) as error:
            _log.error("usage events stay in the spool until the next start: %s", error)
        await control.exporter.close()
        control.close()
    finally:
        await client.close()
        await asyncio.to_thread(database.close)


def main() -> None:
    parser = argparse.ArgumentParser(prog="gateway.control")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--gate-fd", type=int)
    arguments = parser.parse_args()
    wait_to_begin(arguments.gate_fd)
    settings = load_settings(config=arguments.config)
    set_up_log("control", log_format=settings.log_format)
    uvloop.run(serve(settings, arguments.workers))


if __name__ == "__main__":
    main()
