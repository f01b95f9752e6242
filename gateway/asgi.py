"""uvicorn, for the control plane's ASGI application. Workers have a server of their own (`api/server.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import uvicorn

from gateway.processes import BACKLOG


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
