"""The worker's HTTP/1.1 server: two listening sockets, their connections, and the orderly end of both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from functools import partial
from typing import Any

from gateway.api.connection import Connection
from gateway.api.http import HttpReply, Request
from gateway.processes import BACKLOG

SWEEP_SECONDS = 1.0
_CANCEL_SECONDS = 5.0  # for requests that are cancelled at the end of draining to settle what they began

_log = logging.getLogger(__name__)

Application = Callable[[Request, HttpReply], Coroutine[Any, Any, None] | None]
"""Answers at once, or returns what a task is to run. A reply that is not ended then cuts the connection."""


class Server:
    """Accepts on two sockets: the applications', and the worker's own, on which requests are internal.

    `date_line`: of every answer's head; a second old at most.
    """

    def __init__(self, application: Application, *, drain_seconds: float) -> None:
        self.application = application
        self.loop: asyncio.AbstractEventLoop
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_draining = False
        self.date_line = b""
        self._drain_seconds = drain_seconds
        self._listeners: list[asyncio.Server] = []
        self._stopped = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self, public: socket.socket, internal: socket.socket) -> None:
        """Until SIGTERM or SIGINT; then it drains."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            await self.start(public, internal)
            await self._stopped.wait()
            await self.drain()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            self.close()

    async def start(self, public: socket.socket, internal: socket.socket | None = None) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self._sweep()
        for sock, is_internal in ((public, False), (internal, True)):
            if sock is not None:
                accept = partial(Connection, self, is_internal=is_internal)
                self._listeners.append(await loop.create_server(accept, sock=sock, backlog=BACKLOG))

    def stop(self) -> None:
        self._stopped.set()

    async def drain(self) -> None:
        """Accepts nobody any more, and returns when all requests have ended; what is too slow is cancelled."""
        self.is_draining = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.stop()
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._idle()
        except TimeoutError:
            _log.error("%d requests were not over after %g s, and end now", len(self.tasks), self._drain_seconds)
            for task in list(self.tasks):
                task.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await self._idle()

    async def _idle(self) -> None:
        while self.tasks or any(connection.is_busy() for connection in self.connections):  # noqa: ASYNC110 - rare
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Cuts whatever is left. May be called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.transport.abort()

    def _sweep(self) -> None:
        """Gives up what is overdue: one timer for all connections, none of them in a request's way."""
        self._timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)
        self.date_line = b"date: " + formatdate(usegmt=True).encode()
        now = self.loop.time()
        for connection in [one for one in self.connections if one.due <= now]:
            connection.expire()
