"""The client's side of one request: what may be sent, who watches it, and the signs of life before there is content."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

Headers = list[tuple[bytes, bytes]]
STREAM_HEADERS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
COMMENT = b": keep-alive\n\n"


class Reply(Protocol):
    """`has_started`: the client has been given a status. `has_content`: it has been given something of an answer, which
    cannot be taken back.

    `due`: loop time after which a client that does not read is given up. `is_paused`: it takes less than it is sent;
    `drain` then before more is sent. `received_at`: `time.perf_counter` when the request was whole.
    Nothing that is sent to a client that has left does harm.
    """

    due: float
    received_at: float

    @property
    def has_started(self) -> bool: ...

    @property
    def has_content(self) -> bool: ...

    @property
    def is_paused(self) -> bool: ...

    def start(self, status: int, headers: Headers) -> None:
        """Kept, and written together with what is sent first."""
        ...

    def send(self, body: bytes, *, is_last: bool) -> None: ...

    def comment(self, body: bytes) -> None:
        """Sends what is no content: an SSE comment."""
        ...

    async def drain(self) -> None:
        """Until the client has taken enough of what it was sent. A client that leaves cancels the task."""
        ...


class WatchedReply:
    """A reply of which every byte of the answer is also given to `watchers`, before it is sent."""

    def __init__(self, reply: Reply, watchers: Sequence[Callable[[bytes], None]]) -> None:
        self._reply = reply
        self._watchers = watchers
        self.due = reply.due
        self.received_at = reply.received_at
        self.start = reply.start
        self.comment = reply.comment
        self.drain = reply.drain

    @property
    def has_started(self) -> bool:
        return self._reply.has_started

    @property
    def has_content(self) -> bool:
        return self._reply.has_content

    @property
    def is_paused(self) -> bool:
        return self._reply.is_paused

    def send(self, body: bytes, *, is_last: bool) -> None:
        for watch in self._watchers:
            watch(body)
        self._reply.send(body, is_last=is_last)


class KeepAlive:
    """Comments for the client of a stream that has no content yet: proxies on the way cut connections that are silent.

    The client is sent status 200 and the headers of whoever is being tried then. Nothing of an answer is shown by
    that, so another endpoint may still take over; a failure after it is told in an error event. One timer as long as
    nothing happens. `close` before content is sent, and when the request ends.
    """

    def __init__(self, reply: Reply, interval: float, headers: Callable[[], Headers]) -> None:
        self._reply = reply
        self._interval = interval
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(interval, self._fire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._headers = list  # whose method it is may hold this object: a ring would wait for the garbage collector

    def _fire(self) -> None:
        reply = self._reply
        if not reply.has_started:
            reply.start(200, [*STREAM_HEADERS, *self._headers()])
        if not reply.is_paused:  # a client that does not even take these needs no more of them
            reply.comment(COMMENT)
        self._timer = self._loop.call_later(self._interval, self._fire)
