"""How the gateway's processes reach each other: unix sockets in the run folder, and the server that listens there."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

BACKLOG = 4096


def control_socket(run_dir: Path) -> Path:
    return run_dir / "control.sock"


def worker_socket(run_dir: Path, index: int) -> Path:
    return run_dir / f"worker-{index}.sock"


def bind_unix(path: Path) -> socket.socket:
    """A listening socket only this user can reach; a stale one of a dead process is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    return listener


class Server(uvicorn.Server):
    """uvicorn, ended by SIGTERM or SIGINT: it stops accepting, lets open requests finish within a bound, returns."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.should_exit = True


def create_server(app: Any, *, drain_seconds: int) -> Server:
    """`app`: an ASGI application. Standard output and the access log stay silent."""
    return Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=drain_seconds,
        )
    )
