"""`UpstreamClient.send`: a pooled connection or a new one, one retry when a pooled one proves stale."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

from gateway.errors import ConnectFailed, Phase, UpstreamDisconnected, UpstreamError, UpstreamTimeout
from gateway.upstream.connection import Connection
from gateway.upstream.pool import Pool, PoolCount
from gateway.upstream.request import Deadlines, Limits, Origin, UpstreamRequest, streamed_head
from gateway.upstream.response import NEVER, UpstreamResponse

ReadDeadline = tuple[float, Phase]
"""`loop.time()` at which a wait ends, and the phase that `UpstreamTimeout` then names."""


class UpstreamClient:
    """Owns the connections to all origins. Belongs to one event loop; `close` ends what is left."""

    def __init__(self, *, limits: Limits | None = None) -> None:
        self._limits = Limits() if limits is None else limits
        self._pools: dict[Origin, Pool] = {}
        self._contexts: dict[str | None, ssl.SSLContext] = {}
        self._closed = False

    def count(self, origin: Origin) -> PoolCount:
        pool = self._pools.get(origin)
        return PoolCount(0, 0) if pool is None else pool.count()

    async def send(
        self,
        request: UpstreamRequest,
        deadlines: Deadlines,
        *,
        read_deadline: ReadDeadline | None = None,
        on_sent: Callable[[UpstreamResponse], None] | None = None,
        is_whole: bool = False,
    ) -> UpstreamResponse:
        """Returns when the headers are complete; redirects and error statuses are returned like any other answer.

        `read_deadline` bounds connecting and the wait for headers, and stays set on the response. `on_sent` is called
        when the request has been written, and once more if that was in vain and it is written again. `is_whole`: the
        caller can use nothing but the whole answer, and is woken once, when that is here, or is more than is buffered.

        A connection out of the pool that ends before a byte of the answer is taken for one that the upstream had
        closed before it saw the request: the request is sent once more, on a new connection.

        Raises ConnectFailed, UpstreamTimeout, UpstreamDisconnected, UpstreamProtocolError. Cancelled, it closes its
        connection.
        """
        pool = self._pools.get(request.origin)
        if pool is None or self._closed:
            pool = self._pool(request.origin)
        now = pool.loop.time()
        total_at = deadlines.total_at
        if now >= total_at:
            raise UpstreamTimeout("total", 0)
        connection, is_fresh = pool.take(now), False
        while True:
            if connection is None:
                connection = await self._open(pool, deadlines, read_deadline, now, fresh=is_fresh)
                is_fresh = True
            response = connection.begin(request, now, total_at, is_whole=is_whole)
            if read_deadline is not None:
                response.set_read_deadline(*read_deadline)
            try:
                if on_sent is not None:
                    on_sent(response)
                if response.connection is not None:
                    await response.news()
            except BaseException:
                response.close()
                raise
            if response.status:
                return response
            error = _error_of(response)
            if is_fresh or not isinstance(error, UpstreamDisconnected) or error.received:
                raise error
            connection, is_fresh = None, True

    async def send_stream(
        self,
        request: UpstreamRequest,
        body: AsyncIterator[bytes],
        length: int | None,
        deadlines: Deadlines,
        *,
        on_sent: Callable[[UpstreamResponse], None] | None = None,
    ) -> UpstreamResponse:
        """`send` for a body in pieces, `length` bytes in all (None: unknown, sent chunked); `request.body` is unused.

        Always on a new connection, since it cannot be repeated. An answer that comes early ends the upload; `body` is
        then left where it is. Raises as `send`, what `body` raises, and ValueError when `length` was wrong.
        """
        pool = self._pool(request.origin)
        now = pool.loop.time()
        connection = await self._open(pool, deadlines, None, now, fresh=True)
        response = connection.expect(request, now, deadlines.total_at)
        try:
            async with asyncio.timeout_at(None if deadlines.total_at == NEVER else deadlines.total_at) as scope:
                await _upload(connection, streamed_head(request, length), body, length)
        except TimeoutError:
            response.close()
            if scope.expired():
                raise UpstreamTimeout("total", round(deadlines.total_at - now, 3)) from None
            raise
        except BaseException:
            response.close()
            raise
        if on_sent is not None:
            on_sent(response)
        if not response.status and response.error is None:
            await response.wait()
        if response.status:
            return response
        raise _error_of(response)

    async def close(self) -> None:
        """Cuts every connection, also those in use, and waits until their sockets are closed. Idempotent."""
        self._closed = True
        connections = [connection for pool in self._pools.values() for connection in pool.connections]
        for connection in connections:
            connection.cut("the client was closed")
        for connection in connections:
            await connection.wait_closed()

    def _pool(self, origin: Origin) -> Pool:
        if self._closed:
            raise ConnectFailed("the client is closed")
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin, self._limits)
        return pool

    async def _open(
        self, pool: Pool, deadlines: Deadlines, read_deadline: ReadDeadline | None, now: float, *, fresh: bool
    ) -> Connection:
        """A new connection; where their number is limited, also one that came free meanwhile, unless `fresh`."""
        loop = pool.loop
        bounds: list[ReadDeadline] = [(loop.time() + deadlines.connect, "connect"), (deadlines.total_at, "total")]
        if read_deadline is not None:
            bounds.append(read_deadline)
        at, phase = min(bounds, key=lambda bound: bound[0])
        try:
            async with asyncio.timeout_at(None if at == NEVER else at) as scope:
                while pool.is_full():
                    free = pool.take(loop.time())
                    if free is None:
                        await pool.wait_for_change()
                    elif fresh:
                        free.abort()
                    else:
                        return free
                return await self._connect(pool, loop)
        except TimeoutError as error:
            if scope.expired():
                seconds = deadlines.connect if phase == "connect" else round(at - now, 3)
                raise UpstreamTimeout(phase, seconds) from None
            _raise_connect_failed(pool.origin, error)  # the kernel's own patience ran out
        except (OSError, ValueError) as error:
            _raise_connect_failed(pool.origin, error)

    async def _connect(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> Connection:
        origin = pool.origin
        if self._closed:
            raise ConnectFailed("the client is closed")
        connection = Connection(pool, loop)
        pool.connections.add(connection)
        try:
            context = self._context(origin.ca_file) if origin.scheme == "https" else None
            server_hostname = origin.host if context is not None else None
            if origin.uds is not None:
                await loop.create_unix_connection(
                    lambda: connection, origin.uds, ssl=context, server_hostname=server_hostname
                )
            else:
                await loop.create_connection(
                    lambda: connection, origin.host, origin.port, ssl=context, server_hostname=server_hostname
                )
        except BaseException:
            connection.abort()
            raise
        if self._closed:
            connection.abort()
            raise ConnectFailed("the client is closed")
        return connection

    def _context(self, ca_file: str | None) -> ssl.SSLContext:
        context = self._contexts.get(ca_file)
        if context is None:
            context = ssl.create_default_context(cafile=ca_file)
            context.set_alpn_protocols(["http/1.1"])
            self._contexts[ca_file] = context
        return context


def _error_of(response: UpstreamResponse) -> UpstreamError:
    assert response.error is not None
    return response.error


async def _upload(connection: Connection, head: bytes, body: AsyncIterator[bytes], length: int | None) -> None:
    """Head and body, until all is written or the answer has come. Chunks: RFC 9112, 7.1."""
    wanted = await connection.upload(head)
    size = 0
    async for piece in body:
        if not wanted:
            return
        size += len(piece)
        if length is not None and size > length:
            break
        if piece:
            wanted = await connection.upload(piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
    if not wanted:
        return
    if length is None:
        wanted = await connection.upload(b"0\r\n\r\n")
    elif size != length:
        raise ValueError(f"request body is not the {length} bytes that were announced")
    if wanted:
        connection.end_upload()


def _raise_connect_failed(origin: Origin, error: Exception) -> NoReturn:
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"certificate: {error.verify_message}"
    elif isinstance(error, ssl.SSLError):
        reason = f"tls: {(error.reason or 'handshake failed').lower().replace('_', ' ')}"
    elif isinstance(error, socket.gaierror):
        reason = "host name cannot be resolved"
    elif isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno).lower()  # the two loops word `strerror` differently
    else:
        reason = str(error).lower() or "closed during the handshake"
    raise ConnectFailed(f"cannot connect to `{origin}`: {reason}") from error
