"""A stream under way to its client: each piece is shown where it is received, while the request's task sleeps."""

from __future__ import annotations

import asyncio

from gateway.config.model import Streaming
from gateway.errors import UpstreamTimeout
from gateway.protocols.base import StreamReader
from gateway.reply import Reply
from gateway.upstream.response import UpstreamResponse

BYTES_PER_TOKEN = 4
"""Of a model's text, roughly: enough for thresholds."""
MAX_PACED = 4 * 1024 * 1024
"""Characters of a stream beyond which readers keep no more of its text, so that its speed is not known."""
LARGE_PIECE = 4096
"""Bytes of an event under way that show that its stream goes on."""


class Relay:
    """One stream from its first content to its end. `idle`: seconds that it may be silent, counted from the last event
    with data: comments and bytes that complete no event are no progress.

    To wake a task for each piece cost more than to read the piece, so the connection calls `_take` itself; the task is
    woken by the end, by what goes wrong, and by a client that takes less than it is sent.
    """

    __slots__ = ("_failure", "_idle", "_last", "_loop", "_pace", "_reader", "_reply", "_response")

    def __init__(
        self, response: UpstreamResponse, reader: StreamReader, reply: Reply, idle: float, pace: Pace | None
    ) -> None:
        self._response = response
        self._reader = reader
        self._reply = reply
        self._idle = idle
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._failure: BaseException | None = None
        self._last = b""

    async def run(self) -> bytes:
        """Shows what comes; returns the stream's last bytes, which are not shown yet.

        Raises UpstreamError, and what the reader raises; the last whole events may then be in its `before`.
        """
        response, reply = self._response, self._reply
        response.set_read_deadline(self._loop.time() + self._idle, "idle")
        while True:
            if reply.is_paused:
                await reply.drain()
                response.extend_read_deadline(self._loop.time(), self._idle)  # nobody read, so it was not idle
            if self._pace is not None:
                self._pace.start(self._loop.time())
            await response.relay(self._take)
            if self._failure is not None:
                raise self._failure
            if self._reader.is_finished:
                return self._last

    def _take(self, piece: bytes) -> bool:
        """What came, b"" at the end. Returns whether the task may sleep on."""
        try:
            shown = self._reader.feed(piece) if piece else self._reader.finish()
            if self._pace is not None:
                self._judge(self._pace, shown)
            if self._reader.is_finished:
                self._last = shown
                return False
            if shown:
                self._reply.send(shown, is_last=False)
            if b"data:" in shown or len(piece) > LARGE_PIECE:
                self._response.extend_read_deadline(self._loop.time(), self._idle)
            return not self._reply.is_paused
        except BaseException as error:  # noqa: BLE001  # raised by `run`, not in the loop that received the bytes
            self._failure = error
            return False

    def _judge(self, pace: Pace, shown: bytes) -> None:
        now = self._loop.time()
        if pace.is_too_slow(now):
            slow = UpstreamTimeout("slow", pace.window)
            slow.before = shown
            raise slow
        pace.start(now)


class Pace:
    """How fast a stream's text comes, of the time that was spent waiting for it: a slow client is not its fault."""

    def __init__(self, streaming: Streaming, reader: StreamReader) -> None:
        self.window = streaming.slow_after
        self._least = (streaming.min_tokens_per_second or 0.0) * BYTES_PER_TOKEN
        self._reader = reader
        self._waited = 0.0
        self._length = len(reader.text())
        self._started = 0.0

    def start(self, now: float) -> None:
        self._started = now

    def is_too_slow(self, now: float) -> bool:
        """Whether a window ends in which too little came."""
        self._waited += now - self._started
        if self._waited < self.window or self._reader.is_finished:
            return False
        length = len(self._reader.text())
        came, waited = length - self._length, self._waited
        self._waited, self._length = 0.0, length
        return came < self._least * waited and length < MAX_PACED
