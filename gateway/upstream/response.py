"""The answer of an upstream, as its one reader sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.errors import Phase, UpstreamDisconnected, UpstreamError, UpstreamProtocolError, UpstreamTimeout

if TYPE_CHECKING:
    from gateway.upstream.coding import Decoder
    from gateway.upstream.connection import Connection

NEVER = float("inf")


class UpstreamResponse:
    """Status, headers, and a body to be read by one task. Whoever has it closes it.

    The connection leaves this object as soon as the body is complete, read or not. A cancelled read closes it.
    """

    # What holds for every answer at first costs nothing here.
    status = 0
    """0 until the headers are complete."""
    complete = False
    """The whole body has been received (not: read)."""
    # The rest is between this object and its connection.
    buffered = 0  # bytes in `chunks`
    decoder: Decoder | None = None
    error: UpstreamError | None = None
    wants_news = True  # its reader is to be woken by whatever comes, not only by the end
    _taker: Callable[[bytes], bool] | None = None
    _waiter: asyncio.Future[None] | None = None
    _read_at = NEVER
    _read_phase: Phase = "idle"

    def __init__(self, connection: Connection, started: float, total_at: float) -> None:
        self.headers: list[tuple[bytes, bytes]] = []  # names in lower case, in the order they came
        self.connection: Connection | None = connection
        self.chunks: list[bytes] = []
        self._started = self._read_since = started
        self._total_at = total_at

    def __repr__(self) -> str:
        return f"<UpstreamResponse {self.status}>"

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name`, given in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def set_read_deadline(self, at: float | None, phase: Phase) -> None:
        """Waits for the upstream end at `at` (`loop.time()`; None: no such bound) with `UpstreamTimeout(phase)`.

        Holds until it is set again. Bounds waiting only: what has arrived is still handed out, and the time in which
        nobody reads does not count against the upstream.
        """
        connection = self.connection
        if connection is None:
            return
        self._read_at = NEVER if at is None else at
        self._read_phase = phase
        self._read_since = connection.loop.time()
        if self._waiter is not None and self._read_at < connection.timer_at:
            connection.arm(self._read_at)

    def extend_read_deadline(self, now: float, seconds: float) -> None:
        """Moves it to so many seconds from now. For those who are told by `relay` what comes."""
        self._read_at = now + seconds
        self._read_since = now

    async def relay(self, take: Callable[[bytes], bool]) -> None:
        """Gives all that comes to `take`, b"" at the end of the body, until it returns False.

        As a rule it is called from where the connection received the bytes, without waking this task: that is most of
        what a piece of a stream would cost. `take` must neither raise nor close. Raises as `next_chunk`.
        """
        while True:
            if self.chunks or self.decoder is not None or self.complete or self.error is not None:
                if not take(await self.next_chunk()):
                    return
                continue
            self._taker, self.wants_news = take, False
            try:
                await self.wait()
                if self._taker is None:
                    return
            finally:
                self._taker, self.wants_news = None, True

    async def read(self, max_bytes: int) -> bytes:
        """The whole body, decoded. Over `max_bytes`: the connection is closed, UpstreamProtocolError.

        Otherwise raises as `next_chunk` does.
        """
        length = self.header(b"content-length")  # absent when the body is coded
        if length is not None and not self.complete and length.isdigit() and int(length) > max_bytes:
            self.close()
            raise UpstreamProtocolError(f"body is longer than {max_bytes} bytes")
        pieces: list[bytes] = []
        size = 0
        while piece := await self.next_chunk():
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                self.close()
                raise UpstreamProtocolError(f"body is longer than {max_bytes} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_at_once(self, max_bytes: int) -> bytes | None:
        """The whole body, where it is here and not coded; else None, and `read` says why."""
        if not self.complete or self.decoder is not None or self.buffered > max_bytes:
            return None
        return self._take()

    async def next_chunk(self) -> bytes:
        """All that was received since the last call, as soon as there is something; b"" at the end of the body.

        Raises UpstreamTimeout, UpstreamDisconnected, UpstreamProtocolError; first hands out what came before.
        """
        while True:
            decoder = self.decoder
            if self.chunks:
                data = self._take()
                if decoder is None:
                    return data
            elif decoder is not None and decoder.pending:
                data = b""
            elif self.error is not None:
                raise self.error
            elif self.complete:
                if decoder is not None:
                    decoder.finish()
                return b""
            else:
                await self.wait()
                continue
            try:
                piece = decoder.decode(data)
            except UpstreamProtocolError as error:
                self.close()
                self.error = error
                raise
            if piece:
                return piece

    def close(self) -> None:
        """Of an incomplete answer: the connection is cut at once, so that the upstream sees it. Else nothing."""
        connection = self.connection
        if connection is None:
            return
        self.detach(UpstreamDisconnected("the answer was closed by its reader", received=True))
        self.chunks.clear()
        self.decoder = None
        connection.abort()

    def _take(self) -> bytes:
        chunks = self.chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered = 0
        if self.connection is not None:
            self.connection.resume_reading()
        return data

    # -- called by the connection and the client ------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes of the body, as they came."""
        if self._taker is None:
            self.chunks.append(data)
            self.buffered += len(data)
        elif not self._taker(data):
            self._taker = None
            self.wake()

    async def wait(self) -> None:
        """Until headers, body bytes, the end or an error came. Cancelled: closes."""
        if self.connection is None:
            return
        news = self.news()
        try:
            await news
        except BaseException:
            self.close()
            raise

    def news(self) -> asyncio.Future[None]:
        """`wait` for one who has looked whether there is a connection, and closes when the wait ends badly."""
        connection = self.connection
        assert connection is not None
        if self._waiter is not None:
            raise RuntimeError("the answer is being read by another task")
        due = self._read_at if self._read_at < self._total_at else self._total_at
        if due < connection.timer_at:
            connection.arm(due)
        self._waiter = waiter = connection.loop.create_future()
        return waiter

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def detach(self, error: UpstreamError | None) -> None:
        """The connection has nothing more to give: the answer is whole (None) or has failed."""
        if error is None:
            self.complete = True
        else:
            self.error = error
        connection = self.connection
        if connection is not None:
            connection.response = None
            self.connection = None
        self.wake()

    def due(self) -> float:
        """When the next deadline that counts now passes, `loop.time()`."""
        if self._waiter is not None and self._read_at < self._total_at:
            return self._read_at
        return self._total_at

    def timeout(self) -> UpstreamTimeout:
        """The error for the deadline that `due` names."""
        if self._waiter is not None and self._read_at < self._total_at:
            return UpstreamTimeout(self._read_phase, round(self._read_at - self._read_since, 3))
        return UpstreamTimeout("total", round(self._total_at - self._started, 3))
