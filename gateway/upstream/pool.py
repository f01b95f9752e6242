"""The connections of one origin: which are open, which are idle, who waits for one."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from gateway.upstream.request import Limits, Origin

if TYPE_CHECKING:
    from gateway.upstream.connection import Connection


class PoolCount(NamedTuple):
    """`open` counts connecting, busy and idle ones; `idle` the part that waits for a request."""

    open: int
    idle: int


class Pool:
    """Last in, first out: a small load keeps few connections warm, and the others expire.

    A connection is in `idle` or owned by one request, never both.
    """

    __slots__ = ("_waiters", "connections", "idle", "limits", "loop", "origin")

    def __init__(self, origin: Origin, limits: Limits) -> None:
        self.origin = origin
        self.limits = limits
        self.loop = asyncio.get_running_loop()  # kept: to ask for it is a system call in Python 3.11
        self.connections: set[Connection] = set()
        self.idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[None]] = deque()

    def count(self) -> PoolCount:
        return PoolCount(len(self.connections), len(self.idle))

    def take(self, now: float) -> Connection | None:
        """The connection used last that can still carry a request; dead ones met on the way are dropped."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_usable(now):
                return connection
            connection.abort()
        return None

    def give_back(self, connection: Connection) -> None:
        """Of a connection whose exchange is over and clean."""
        if len(self.idle) >= self.limits.max_idle:
            connection.abort()
            return
        self.idle.append(connection)
        if self._waiters:
            self._wake_one()

    def forget(self, connection: Connection) -> None:
        """Of a connection that is closing or was never made. May be called again for the same one."""
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if self._waiters:
            self._wake_one()

    def is_full(self) -> bool:
        limit = self.limits.max_connections
        return limit is not None and len(self.connections) >= limit

    async def wait_for_change(self) -> None:
        """Until a connection is given back or closed. First come, first woken; the caller looks again."""
        waiter = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._wake_one()  # woken and cancelled in the same turn: the turn belongs to the next one
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
