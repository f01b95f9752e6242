"""One socket to an upstream: writes a request, parses the answer (RFC 9112) with llhttp, keeps one timer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from typing import NoReturn, cast

import httptools

from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.upstream.coding import decoder_for
from gateway.upstream.pool import Pool
from gateway.upstream.request import UpstreamRequest, request_head
from gateway.upstream.response import NEVER, UpstreamResponse

_JOIN_BELOW = 65_536  # a smaller body is copied behind its head for a single write; a larger one is written after it
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"content-encoding"})
_TIMER_GRAIN = 0.001  # seconds by which a loop's timer may be early


class Connection(asyncio.Protocol):
    """Carries one exchange at a time. The parser calls the `on_...` methods while it is fed."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.response: UpstreamResponse | None = None  # of the exchange under way
        self.received = False  # any byte in this exchange
        self.timer_at = NEVER
        self._pool = pool
        self._limits = pool.limits
        self._transport: asyncio.Transport | None = None
        self._closing = False  # aborted, or ended by the peer
        self._lost = False  # the loop has let go of the socket
        self._lost_waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_until = 0.0
        self._poll: select.poll | None = None
        self._fd = -1
        self._reading_paused = False
        self._writing_paused = False
        self._upload_waiter: asyncio.Future[None] | None = None
        self._uploading = False  # a streamed request is not written to its end
        # one message
        self._pieces: list[bytes] = []  # of its body, out of the bytes that the parser is being fed
        self._own_pieces = 0  # how many of them are not of a message behind it
        # A stream brings a piece with each event, many in one read: the parser appends them without a frame of Python.
        self.on_body = self._pieces.append
        self._parser: httptools.HttpResponseParser  # from `connection_made` to `connection_lost`
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_done = False
        self._done = False  # whole message seen
        self._extra = False  # bytes behind it
        self._is_1_1 = False
        self._keep_alive = False
        self._no_body = False  # HEAD: the headers describe a body that does not come
        self._until_eof = False
        self._interim = False  # inside a 1xx answer
        self._fed = 0  # bytes the parser is being fed
        self._overhead = 0  # bytes since the last progress: of the head, or between body bytes
        self._failure: UpstreamError | None = None  # why a callback stopped the parser

    # -- life ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        if self._closing:  # its opener was cancelled between the handshake and this call
            self._transport.abort()
            return
        if transport.get_extra_info("sslcontext") is None:
            # With TLS, readable may mean a session ticket, and the bytes are not ours to read.
            self._fd = transport.get_extra_info("socket").fileno()
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLIN)

    def is_usable(self, now: float) -> bool:
        """Idle, not expired, and nothing (bytes or an end) waiting in the socket that the loop has not told yet."""
        transport = self._transport
        if now >= self._idle_until or transport is None or transport.is_closing():
            return False
        return self._poll is None or not self._poll.poll(0)

    def abort(self) -> None:
        """Closes the socket at once; the pool no longer counts it. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._cancel_timer()
        self._wake_upload()
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def cut(self, reason: str) -> None:
        """`abort`, telling the reader of an unfinished answer why."""
        if self.response is not None:
            self.response.detach(UpstreamDisconnected(reason, received=self.received))
        self.abort()

    async def wait_closed(self) -> None:
        """Until the socket of an aborted connection is closed."""
        if self._transport is not None and not self._lost:
            self._lost_waiter = waiter = self.loop.create_future()
            await waiter

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.response is not None and self._fd >= 0 and not self._closing:
            # A failed write ends the transport although the answer that explains it may lie in the socket.
            self._read_leftovers()
        self._fd = -1
        if self.response is not None:
            self._end_of_stream(clean=exc is None)
        self._closing = self._lost = True
        self._cancel_timer()
        self._wake_upload()
        self._pool.forget(self)
        # Nothing stays that leads back here (the parser holds this object's methods): rings wait for the garbage
        # collector, whose pauses all streams would feel.
        self._transport = self._poll = None
        del self._parser
        if self._lost_waiter is not None and not self._lost_waiter.done():
            self._lost_waiter.set_result(None)

    def eof_received(self) -> bool:
        if self.response is not None:
            self._end_of_stream(clean=True)
        self.abort()
        return False

    def _read_leftovers(self) -> None:
        """Parses what the kernel still holds. Its end proves nothing: after a reset it looks like a regular one."""
        with contextlib.suppress(OSError):
            while self.response is not None and self.response.buffered <= self._limits.read_high_water:
                data = os.read(self._fd, 65_536)
                if not data:
                    return
                self.data_received(data)

    def _end_of_stream(self, *, clean: bool) -> None:
        response = self.response
        assert response is not None
        if self._head_done and self._until_eof and clean:
            response.detach(None)
        elif self.received:
            response.detach(UpstreamDisconnected("upstream closed the connection inside its answer", received=True))
        else:
            response.detach(UpstreamDisconnected("upstream closed the connection before answering", received=False))

    def _fail(self, error: UpstreamError) -> None:
        response = self.response
        if response is not None:
            response.detach(error)
        self.abort()

    # -- the one timer --------------------------------------------------------------------------------------------

    def arm(self, at: float) -> None:
        """Look at the deadlines at `at`, or earlier. Later deadlines leave an armed timer alone; it re-arms itself."""
        if self._closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        # Never further ahead than an idle connection may live, so that the same timer ends those too.
        self.timer_at = min(at, self.loop.time() + self._limits.idle_seconds)
        self._timer = self.loop.call_at(self.timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.timer_at = NEVER
        response = self.response
        due = self._idle_until if response is None else response.due()
        if self.loop.time() < due - _TIMER_GRAIN:
            if due < NEVER:
                self.arm(due)
        elif response is None:
            self.abort()
        else:
            self._fail(response.timeout())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.timer_at = NEVER

    # -- the request ----------------------------------------------------------------------------------------------

    def begin(self, request: UpstreamRequest, now: float, total_at: float, *, is_whole: bool) -> UpstreamResponse:
        """Writes the request; the answer's headers are complete when `response.wait()` left a status or an error.

        `is_whole`: see `UpstreamClient.send`.
        """
        response = self.expect(request, now, total_at)
        response.wants_news = not is_whole
        transport = self._transport
        assert transport is not None
        head = request_head(request)
        body = request.body
        if len(body) <= _JOIN_BELOW:
            transport.write(head + body if body else head)
        else:
            transport.write(head)
            transport.write(body)
        return response

    def expect(self, request: UpstreamRequest, now: float, total_at: float) -> UpstreamResponse:
        """Ready for the answer to `request`, whose bytes the caller gives to `upload`."""
        self.response = response = UpstreamResponse(self, now, total_at)
        self.received = self._head_done = self._done = self._until_eof = False
        self._overhead = 0
        self._no_body = request.method == b"HEAD"
        return response

    async def upload(self, data: bytes) -> bool:
        """Writes a piece of a streamed request; waits while the upstream is slow. False: the answer is there, stop."""
        self._uploading = True
        if self.response is None or self._head_done or self._transport is None:
            return False
        self._transport.write(data)
        if self._writing_paused and not self._closing:
            self._upload_waiter = waiter = self.loop.create_future()
            try:
                await waiter
            finally:
                self._upload_waiter = None
        return self.response is not None and not self._head_done

    def end_upload(self) -> None:
        self._uploading = False

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake_upload()

    def _wake_upload(self) -> None:
        waiter = self._upload_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # -- the answer -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None:  # nobody asked: the next request must not take this for its answer
            self.abort()
            return
        self.received = True
        self._fed = len(data)
        error: UpstreamError | None = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as reason:
            if self._done:
                self._extra = True
            else:
                # llhttp's own reasons are fixed sentences; they quote nothing of the answer.
                error = self._failure or UpstreamProtocolError(f"answer is not HTTP/1.1: {reason}")
        pieces = self._pieces
        if self._done and (self._no_body or len(pieces) > self._own_pieces):
            self._leave_own(pieces)
        if pieces:
            self._overhead = 0
            response.receive(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            pieces.clear()
            if response.buffered > self._limits.read_high_water:
                self._pause_reading()
        elif not self._done:
            error = error or self._count_overhead(len(data))
        if error is not None:
            self._fail(error)
        elif self._done:
            self._release(response)
        elif self._head_done and (response.wants_news or self._reading_paused):
            self._wake_upload()
            response.wake()

    def _count_overhead(self, size: int) -> UpstreamError | None:
        self._overhead += size
        if self._overhead <= self._limits.max_header_bytes:
            return None
        return UpstreamProtocolError(f"more than {self._limits.max_header_bytes} bytes without body")

    def _leave_own(self, pieces: list[bytes]) -> None:
        """Takes away what does not belong to the message that is done."""
        if self._no_body:
            self._own_pieces = 0
        if len(pieces) > self._own_pieces:
            self._extra = True
            del pieces[self._own_pieces :]

    def on_message_begin(self) -> None:
        if self._done:
            self._extra = True
        self._headers.clear()  # trailers of the message before

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value.rstrip()))  # llhttp keeps the space behind a value

    def on_headers_complete(self) -> None:
        response = self.response
        if self._done or response is None:
            return
        headers = self._headers
        self._headers = []  # an own list for trailers, which nobody reads
        status = self._parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:  # we never ask for another protocol
                self._stop(f"upstream answered with status {status}")
            self._interim = True
            return
        version = self._parser.get_http_version()
        self._is_1_1 = version == "1.1"
        if not self._is_1_1 and version != "1.0":
            self._stop(f"upstream speaks HTTP/{version}")
        coded, until_eof = self._check_head(headers)
        if self._no_body:
            # llhttp waits for the body that the headers describe; it is replaced before the connection is used again.
            self._done = True
            self._keep_alive = self._is_1_1 and (
                self._parser.should_keep_alive() or (until_eof and not _says_close(headers))
            )
        elif coded and status != 204 and status != 304:
            try:
                response.decoder = decoder_for(headers, self._limits.max_expansion)
            except UpstreamProtocolError as error:
                self._failure = error
                raise
        self._until_eof = until_eof
        self._head_done = True
        response.headers = headers
        response.status = status

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif not self._done:
            self._done = True
            self._own_pieces = len(self._pieces)
            self._keep_alive = self._is_1_1 and self._parser.should_keep_alive()

    def _check_head(self, headers: list[tuple[bytes, bytes]]) -> tuple[bool, bool]:
        """Whether a content coding is named, and whether only the end of the stream will end the body."""
        limits = self._limits
        if len(headers) > limits.max_headers:
            self._stop(f"more than {limits.max_headers} header lines")
        if self._overhead + self._fed > limits.max_header_bytes:  # else the head cannot be longer either
            if self._overhead + sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_header_bytes:
                self._stop(f"more than {limits.max_header_bytes} bytes of headers")
        coded, until_eof = False, True
        for name, value in headers:
            if name not in _FRAMING:
                continue
            if name == b"content-encoding":
                coded = True
                continue
            until_eof = False
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                self._stop("answer has a transfer coding other than `chunked`")
        return coded, until_eof

    def _stop(self, message: str) -> NoReturn:
        """Out of the parser, which hides what a callback raises behind an error of its own."""
        self._failure = UpstreamProtocolError(message)
        raise self._failure

    def _release(self, response: UpstreamResponse) -> None:
        """The answer is whole: it leaves, and the connection goes back to the pool if nothing speaks against it."""
        response.detach(None)
        transport = self._transport
        if (
            not self._keep_alive
            or self._extra
            or self._uploading
            or self._closing
            or transport is None
            or transport.get_write_buffer_size()  # answered before it had the whole request
        ):
            self.abort()
            return
        if self._no_body:
            self._parser = httptools.HttpResponseParser(self)
        if self._reading_paused:
            self.resume_reading()  # TLS still delivered what it had decrypted by then, and that was the end
        self._idle_until = self.loop.time() + self._limits.idle_seconds
        if self.timer_at == NEVER:
            self.arm(self._idle_until)
        self._pool.give_back(self)

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()


def _says_close(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"connection" and b"close" in value.lower() for name, value in headers)
