"""The client's side of one request: what may be sent, who watches it, and the signs of life before there is content."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

Headers = list[tuple[bytes, bytes]]
STREAM_HEADERS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
COMMENT = b": keep-alive\n\n"


class Reply(Protocol):
    """`has_started`: the client has seen a status. `has_content`: it has seen something of an answer, which cannot be
    taken back.

    `due`: loop time after which a client that does not read is given up.
    """

    due: float

    @property
    def has_started(self) -> bool: ...

    @property
    def has_content(self) -> bool: ...

    async def start(self, status: int, headers: Headers) -> None: ...
    async def send(self, body: bytes, *, is_last: bool) -> None: ...

    async def comment(self, body: bytes) -> None:
        """Sends what is no content: an SSE comment."""
        ...


class WatchedReply:
    """A reply of which every byte of the answer is also given to `watchers`, before it is sent."""

    def __init__(self, reply: Reply, watchers: Sequence[Callable[[bytes], None]]) -> None:
        self._reply = reply
        self._watchers = watchers
        self.due = reply.due

    @property
    def has_started(self) -> bool:
        return self._reply.has_started

    @property
    def has_content(self) -> bool:
        return self._reply.has_content

    async def start(self, status: int, headers: Headers) -> None:
        await self._reply.start(status, headers)

    async def send(self, body: bytes, *, is_last: bool) -> None:
        for watch in self._watchers:
            watch(body)
        await self._reply.send(body, is_last=is_last)

    async def comment(self, body: bytes) -> None:
        await self._reply.comment(body)


class KeepAlive:
    """Comments for the client of a stream that has no content yet: proxies on the way cut connections that are silent.

    The client is sent status 200 and the headers of whoever is being tried then. Nothing of an answer is shown by
    that, so another endpoint may still take over; a failure after it is told in an error event. One timer as long as
    nothing happens. `stop` before content is sent; `close` when the request ends.
    """

    def __init__(self, reply: Reply, interval: float, headers: Callable[[], Headers]) -> None:
        self._reply = reply
        self._interval = interval
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self._beat: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(interval, self._fire)

    async def stop(self) -> None:
        """Waits for a comment that is being sent: two sends at once would mix."""
        self._cancel_timer()
        if self._beat is not None:
            await asyncio.wait((self._beat,))

    def close(self) -> None:
        self._cancel_timer()
        if self._beat is not None:
            self._beat.cancel()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._beat = self._loop.create_task(self._send())
        self._beat.add_done_callback(self._sent)

    async def _send(self) -> None:
        if not self._reply.has_started:
            await self._reply.start(200, [*STREAM_HEADERS, *self._headers()])
        await self._reply.comment(COMMENT)

    def _sent(self, beat: asyncio.Task[None]) -> None:
        self._beat = None
        # A client that cannot be written to is noticed by whoever waits for it to leave.
        if not beat.cancelled() and beat.exception() is None and self._timer is not None:
            self._timer = self._loop.call_later(self._interval, self._fire)
