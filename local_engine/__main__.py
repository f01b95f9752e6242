"""`python -m local_engine`: one model behind an OpenAI-compatible server, on a unix socket or a TCP port."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from local_engine.async_engine import AsyncEngine
from local_engine.config import EngineConfig
from local_engine.errors import EngineError
from local_engine.server import Server

if TYPE_CHECKING:
    from local_engine.engine import Engine

MAX_UNIX_PATH = 107  # bytes; the operating system's limit


def arguments() -> argparse.ArgumentParser:
    defaults = EngineConfig()
    parser = argparse.ArgumentParser(prog="python -m local_engine", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--name", help="name under which it is served (default: the file's name)")
    parser.add_argument("--uds", type=Path, help="unix socket to listen on; only this user may connect")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, help="TCP port to listen on (0: any free one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    parser.add_argument("--max-running", type=int, default=defaults.max_running, help="requests in one step")
    parser.add_argument("--max-waiting", type=int, default=defaults.max_waiting, help="requests queued behind")
    parser.add_argument("--context-length", type=int, help="tokens of prompt and answer (default: the model's)")
    parser.add_argument("--drain-seconds", type=float, default=defaults.drain_seconds)
    return parser


@contextlib.contextmanager
def listening(options: argparse.Namespace) -> Iterator[socket.socket]:
    """The bound socket; a unix socket's file disappears with it. Raises `EngineError` when it cannot be had."""
    try:
        if options.uds is None:
            with socket.create_server((options.host, options.port), reuse_port=False) as tcp:
                yield tcp
            return
        if len(bytes(options.uds)) > MAX_UNIX_PATH:
            raise EngineError(f"the socket path `{options.uds}` is too long\nhint: at most {MAX_UNIX_PATH} bytes")
        _remove_stale(options.uds)
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(options.uds))
            options.uds.chmod(0o600)
            unix.listen(1024)
            try:
                yield unix
            finally:
                options.uds.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"cannot listen on `{options.uds or f'{options.host}:{options.port}'}`: {error}") from error


def _remove_stale(path: Path) -> None:
    """Removes a socket file that nobody listens on any more."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise EngineError(f"another process listens on `{path}`")
    path.unlink()


def loader(path: Path, config: EngineConfig) -> Callable[[Callable[[float], None]], "Engine"]:
    def load(progress: Callable[[float], None]) -> "Engine":
        from local_engine.engine import Engine  # torch comes with it: here, the server is listening already

        return Engine.load(path, config, progress)

    return load


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which would raise the signal again afterwards; `serve` does it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(options: argparse.Namespace, config: EngineConfig, listener: socket.socket) -> int:
    """Serves until a stop signal (0) or until the engine cannot run (1)."""
    engine = AsyncEngine(loader(options.model, config), config)
    name = options.name or options.model.stem
    app = Server(engine, name, on_failure=lambda: setattr(server, "should_exit", True))
    settings = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(config.drain_seconds),
    )
    server = _Uvicorn(settings)
    loop = asyncio.get_running_loop()
    for stop in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop, setattr, server, "should_exit", True)
    await server.serve(sockets=[listener])
    return 1 if engine.failure is not None else 0


def main() -> int:
    # Read by the OpenMP runtime when torch is imported. Its threads would otherwise spin while they wait for each
    # other: on cores that a gateway shares, a step can then take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # noqa: TID251 - set for a library, not read as a setting
    parser = arguments()
    options = parser.parse_args()
    if (options.uds is None) == (options.port is None):
        parser.error("give either --uds or --port")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine %(name)s: %(message)s")
    try:
        config = EngineConfig(
            max_running=options.max_running,
            max_waiting=options.max_waiting,
            token_budget=max(EngineConfig().token_budget, options.max_running),
            context_length=options.context_length,
            threads=options.threads,
            drain_seconds=options.drain_seconds,
        )
        with listening(options) as listener:
            return uvloop.run(serve(options, config, listener))
    except EngineError as error:
        logging.getLogger("local_engine").error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
