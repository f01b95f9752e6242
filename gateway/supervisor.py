"""`hatchway up`: starts the gateway's processes, waits until they serve, restarts what dies, ends them in order.

Order of starting: engines (slowest); then PostgreSQL, while the control plane and the workers load their libraries and
wait at a gate, a pipe that is closed when the database and what is published are ready.
Order of ending: workers drain, the control plane ships what is left, engines, PostgreSQL.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.adapters.local import engine_socket
from gateway.config.compiler import compile_configuration
from gateway.config.document import Document, read_document
from gateway.config.engine import arguments
from gateway.config.model import Configuration, Secret
from gateway.config.settings import Settings, environment_variables, shipped
from gateway.directory import read_published, take_in
from gateway.errors import StoreError, UpstreamError
from gateway.model_store import BUNDLED, ModelError, ModelStore, Progress
from gateway.processes import BACKLOG, control_socket, worker_socket
from gateway.publication import Publication
from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest

if TYPE_CHECKING:
    from gateway.store.database import Database

READY_SECONDS = 60.0
ENGINE_READY_SECONDS = 300.0
"""A large model takes this long to load; the gateway then serves without it and says so."""
POLL_SECONDS = 0.05
DATABASE_EVERY = 2.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
STEADY_SECONDS = 30.0
"""A process that ran this long starts with the first pause again."""
DRAIN_SECONDS = 35.0
STOP_SECONDS = 15.0

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """The gateway cannot start; the message has a `hint:` line."""


@dataclass(frozen=True)
class Options:
    host: str
    port: int
    workers: int
    with_engine: bool


class Child:
    """One process and its restarts."""

    def __init__(
        self, name: str, command: list[str], ready: tuple[Path, bytes], pass_fds: tuple[int, ...] = ()
    ) -> None:
        self.name = name
        self.socket, self.ready_path = ready
        self.process: asyncio.subprocess.Process | None = None
        self._command = command
        self._pass_fds = pass_fds
        self._is_stopping = False

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            stdout=sys.stderr,  # standard output is the supervisor's own: its line that says where the gateway is
            pass_fds=self._pass_fds,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which ends the others in order
            preexec_fn=_die_with_parent,
        )

    async def keep_running(self) -> None:
        """Restarts the process whenever it ends, with a pause that grows while it keeps dying."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while not self._is_stopping:
            assert self.process is not None
            started = loop.time()
            code = await self.process.wait()
            if self._is_stopping:
                return
            if loop.time() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE
            _log.error("%s ended with %s, starting it again in %.1f s", self.name, _describe(code), pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            if not self._is_stopping:
                await self.start()

    async def stop(self, seconds: float) -> None:
        """SIGTERM, then SIGKILL when that has not helped in time."""
        self._is_stopping = True
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            _log.error("%s did not end within %.0f s and is killed", self.name, seconds)
            process.kill()
            await process.wait()


class Supervisor:
    def __init__(self, settings: Settings, options: Options, say: Callable[[str], None], progress: Progress) -> None:
        """`say`: takes lines for the operator's standard output."""
        self._settings = settings
        self._options = options
        self._say = say
        self._progress = progress
        self._client = UpstreamClient()
        self._database: Database | None = None
        self._engines: list[Child] = []
        self._control: Child | None = None
        self._workers: list[Child] = []
        self._listener: socket.socket | None = None
        self._gate: tuple[int, ...] = ()  # the end that children wait at, and, while it is shut, the one that opens it
        self._watchers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises ConfigError, StartError, StoreError when it cannot start."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        document = read_document(self._settings.config_path)
        configuration = compile_configuration(document, environment_variables())
        self._listener = bind(self._options.host, self._options.port)
        try:
            self._settings.prepare()
            with exclusive_home(self._settings.home):
                publication = Publication(self._settings.home)
                publication.publish_document(_to_publish(publication, document))
                if publication.read_catalogue() is None:
                    await asyncio.to_thread(publish_first_catalogue, publication)
                await self._until(stop, self._start(configuration))
                await stop.wait()
        finally:
            await self._shut_down()

    async def _until(self, stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
        """Awaits `work`, or gives it up when a signal comes first."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _start(self, configuration: Configuration) -> None:
        if self._options.with_engine:
            await self._start_engines(configuration)
        self._gate = gate, opening = os.pipe()
        await self._start_children(gate)
        admin_key = await self._open_database()
        os.close(opening)
        self._gate = (gate,)
        children = [*self._engines, *self._children]
        self._watchers = [asyncio.ensure_future(child.keep_running()) for child in children]
        self._watchers.append(asyncio.ensure_future(self._keep_database()))
        await asyncio.gather(*(self._wait_ready(child, READY_SECONDS) for child in self._children))
        await asyncio.gather(*(self._wait_engine(child) for child in self._engines))
        if admin_key is not None:
            self._say(f"admin key (shown once): {admin_key.reveal()}")
        assert self._listener is not None
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        self._say(f"hatchway ready http://{host}:{self._listener.getsockname()[1]}")

    async def _start_children(self, gate: int) -> None:
        """The control plane and the workers; none serves before the pipe `gate` is closed at its other end."""
        config = ["--config", str(self._settings.config_path), "--gate-fd", str(gate)]
        run_dir = self._settings.run_dir
        launch = [sys.executable, "-m", "gateway.launch"]
        control = [*launch, "gateway.control", "--workers", str(self._options.workers), *config]
        self._control = Child("control plane", control, (control_socket(run_dir), b"/internal/ready"), (gate,))
        assert self._listener is not None
        fd = self._listener.fileno()
        for index in range(self._options.workers):
            count = ["--index", str(index), "--workers", str(self._options.workers)]
            command = [*launch, "gateway.app", *count, "--socket-fd", str(fd), *config]
            ready = (worker_socket(run_dir, index), b"/readyz")
            self._workers.append(Child(f"worker {index}", command, ready, (fd, gate)))
        for child in self._children:
            await child.start()

    @property
    def _children(self) -> list[Child]:
        return [*([] if self._control is None else [self._control]), *self._workers]

    async def _start_engines(self, configuration: Configuration) -> None:
        """One engine for each local provider that some endpoint uses. What keeps one from starting is only reported."""
        store = ModelStore(self._settings.models_dir)
        used = {e.provider.id: e.provider for e in configuration.endpoints.values() if e.provider.adapter == "local"}
        if used and importlib.util.find_spec("torch") is None:
            _log.warning("the local engine is not installed: its endpoints will fail\nhint: install `hatchway[engine]`")
            return
        for provider in used.values():
            model = provider.model or ""
            try:
                if model in BUNDLED:
                    path = await asyncio.to_thread(store.fetch, model, self._progress)
                else:
                    path = store.find(model)
                options = replace(provider.engine, draft=store.find_draft(provider.engine.draft))
            except ModelError as error:
                _log.warning("provider `%s` has no engine: %s", provider.id, error)
                continue
            uds = engine_socket(self._settings.run_dir, provider.id)
            uds.unlink(missing_ok=True)
            command = [sys.executable, "-m", "local_engine", "--model", str(path), "--name", model, "--uds", str(uds)]
            command += ["--cache", str(self._settings.weights_dir), *arguments(options)]
            engine = Child(f"engine of `{provider.id}`", command, (uds, b"/healthz"))
            self._engines.append(engine)
            await engine.start()

    async def _open_database(self) -> Secret | None:
        """Opens, migrates, publishes the keys. Returns the admin key when one had to be made."""

        def work() -> Secret | None:
            # Imported here, while the engine is already starting: the database's libraries take half a second.
            from gateway.store.database import Database
            from gateway.store.keys import active_keys, ensure_admin_key
            from gateway.store.migrate import migrate

            database = Database.open(self._settings.database_url, self._settings.database_dir)
            self._database = database
            migrate(database, shipped("migrations"))
            try:
                made = ensure_admin_key(database.engine, self._settings.admin_key)
            except ValueError as error:
                raise StartError(f"`HATCHWAY_ADMIN_KEY`: {error}") from None
            Publication(self._settings.home).publish_keys(active_keys(database.engine))
            return made

        return await asyncio.to_thread(work)

    async def _keep_database(self) -> None:
        """Starts the embedded PostgreSQL again when it has died. Meanwhile traffic goes on, and the spool grows."""
        while self._database is not None and self._database.is_embedded:
            await asyncio.sleep(DATABASE_EVERY)
            try:
                if await asyncio.to_thread(self._database.revive):
                    _log.error("PostgreSQL had died and is started again")
            except (StoreError, OSError) as error:
                _log.error("PostgreSQL has died: %s", error)

    async def _wait_engine(self, engine: Child) -> None:
        try:
            await self._wait_ready(engine, ENGINE_READY_SECONDS)
        except StartError as error:
            _log.warning("%s; the gateway serves without it until it is ready", error)

    async def _wait_ready(self, child: Child, seconds: float) -> None:
        """Polls the child's socket until it answers 200. Raises StartError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        request = UpstreamRequest(
            Origin.parse("http://child", uds=str(child.socket)), b"GET", child.ready_path, b"", b""
        )
        while loop.time() < until:
            try:
                response = await self._client.send(request, Deadlines(connect=1.0, total_at=loop.time() + 2.0))
                response.close()
                if response.status == 200:
                    return
            except UpstreamError:
                pass
            await asyncio.sleep(POLL_SECONDS)
        raise StartError(f"{child.name} is not ready after {seconds:.0f} s\nhint: its messages above say why")

    async def _shut_down(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*(worker.stop(DRAIN_SECONDS) for worker in self._workers))
        if self._control is not None:
            await self._control.stop(STOP_SECONDS)
        await asyncio.gather(*(engine.stop(STOP_SECONDS) for engine in self._engines))
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._client.close()
        for fd in self._gate:
            os.close(fd)
        if self._database is not None:
            await asyncio.to_thread(self._database.close)


def publish_first_catalogue(publication: Publication) -> None:
    """That of the installed package, so that no worker has to read the package itself."""
    from gateway.accounting.catalogue_import import from_package  # slow to import: only the first start pays

    publication.publish_catalogue(from_package().catalogue.encode())


def _to_publish(publication: Publication, on_disk: Document) -> Document:
    """What the YAML on disk and the directory say, unless an operator has pinned another version."""
    on_disk = take_in(on_disk, read_published(publication.home), environment_variables()).document
    if publication.read_pin() is None:
        return on_disk
    from gateway.history import document_to_publish  # brings the database's libraries: half a second

    return document_to_publish(publication, on_disk)


def bind(host: str, port: int) -> socket.socket:
    """The public listening socket, which all workers accept from. Raises StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StartError(
            f"`--host {host}` is not an address: {error.strerror}\nhint: use 127.0.0.1 or 0.0.0.0"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.set_inheritable(True)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}\n"
            "hint: choose another with `--port`, or end the program that uses it"
        ) from None
    return listener


@contextmanager
def exclusive_home(home: Path) -> Iterator[None]:
    """One gateway for each home folder. Raises StartError."""
    fd = os.open(home / "gateway.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StartError(
            f"another gateway runs with the home folder `{home}`\n"
            "hint: end it, or set `HATCHWAY_HOME` to another folder"
        ) from None
    try:
        yield
    finally:
        os.close(fd)


def _die_with_parent() -> None:
    """In the child, before it runs: if the supervisor is killed, the child gets SIGTERM (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
