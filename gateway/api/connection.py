"""One connection of the worker's HTTP/1.1 server (RFC 9112): a protocol on llhttp between a socket and the application.

A request becomes one task when it is whole; a large one, or one that waits for `100 Continue`, as soon as its head is,
so that whoever may not send it is refused before it is read. Requests that come behind each other on a connection are
answered in their order. A client that leaves cancels the task that serves it; one that does not send or read in time is
given up.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import unquote

import httptools

from gateway.api.http import HttpReply, Request
from gateway.errors import InvalidRequest
from gateway.reply import Headers

if TYPE_CHECKING:
    from gateway.api.server import Server

IDLE_SECONDS = 75.0
"""How long a connection without a request is kept."""
HEAD_SECONDS = 30.0
"""Between the first and the last byte of a request's head."""
BODY_SECONDS = 60.0
"""Between two pieces of a request's body."""
LINGER_SECONDS = 30.0
"""How long a connection that is to be closed may take for it: to send what was written, and to hear the client out."""
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADER_LINES = 128
EARLY_BYTES = 64 * 1024
"""Of a body: no more is read before the application asks for it."""
MAX_PIPELINED = 64
"""Requests behind the one under way: so many at most are taken of what comes in one read."""

_log = logging.getLogger(__name__)

_REFUSALS = {
    400: (b"Bad Request", b"malformed_request", b"this is no valid HTTP/1.1 request"),
    408: (b"Request Timeout", b"request_timeout", b"the request did not come in the time that it may take"),
    431: (b"Request Header Fields Too Large", b"head_too_large", b"the request's head is too large"),
    505: (b"HTTP Version Not Supported", b"http_version", b"this server speaks HTTP/1.1"),
}


class _Stop(Exception):
    """Stops the parser from inside a callback."""


class Connection(asyncio.Protocol):
    """One socket. The parser calls the `on_...` methods while it is fed.

    `due`: loop time at which whatever is awaited now is given up. `is_paused`: the client takes less than it is sent.
    """

    def __init__(self, server: Server, *, is_internal: bool) -> None:
        self.transport: asyncio.Transport
        self.server = server
        self.due = math.inf
        self.is_paused = False
        self._loop = server.loop
        self._is_internal = is_internal
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # that is served
        self._reply: HttpReply | None = None
        self._queue: list[Request] = []  # to be served next
        self._is_deaf = False  # what comes from now on is not looked at
        self._is_closing = False
        self._last_words = b""  # a refusal, behind the answers to what came before it
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None  # of the task: for a body, or for room
        # The message that is parsed.
        self._is_inside = False  # between its first byte and its last
        self._arriving: Request | None = None  # from its head's end to its own
        self._wishful: Request | None = None  # it asks for another protocol
        self._target = b""
        self._lines: Headers = []
        self._fed = 0  # bytes the parser is being fed
        self._overhead = 0  # bytes since the last progress: of the head, or between body bytes
        self._body_seen = 0
        self._refusal = 400  # why a callback stopped the parser

    # Life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # the loop has set TCP_NODELAY
        self.server.connections.add(self)
        self.due = self._loop.time() + IDLE_SECONDS

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        # Nothing stays that leads back here (the parser holds this object's methods): rings wait for the garbage
        # collector, whose pauses all streams would feel.
        self._parser = self._arriving = self._wishful = None
        self._queue.clear()
        self._is_deaf = self._is_closing = True
        reply = self._reply
        self._request = self._reply = None
        if reply is not None:
            reply.is_gone = reply.is_paused = True  # who only sends and drains is to wait for the cancellation
            if reply.task is not None:
                self._loop.call_soon(reply.task.cancel)  # behind its first step, which a task needs to clean up

    def eof_received(self) -> None:
        """The loop closes the transport: a client that has stopped sending is taken to have left."""

    def stop(self) -> None:
        """What is under way, or on its way, is the last."""
        if self._reply is None and not self._queue and not self._is_inside and not self._is_closing:
            self._close()

    def is_busy(self) -> bool:
        return self._reply is not None or (self._is_inside and not self._is_closing) or self._has_unsent()

    def expire(self) -> None:
        """What was awaited has not come in time."""
        if self._reply is not None or self._is_closing or self._has_unsent():
            self.transport.abort()
        elif self._is_inside:
            self._refuse(408)
        else:
            self._close()

    def _has_unsent(self) -> bool:
        return self.transport.get_write_buffer_size() > 0

    def _close(self) -> None:
        """Once what was written has left. A client that still sends is heard out: a reset would cost it its answer."""
        self._is_deaf = self._is_closing = True
        self.due = max(self.due if self.is_paused else 0.0, self._loop.time() + LINGER_SECONDS)
        if self._is_inside and not self.transport.is_closing():
            self.transport.write_eof()
            self._read_on()
        else:
            self.transport.close()

    # What comes in

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        rest: bytes | None = data
        while rest is not None:
            rest = self._feed(rest)
        if self._queue and self._reply is None:
            self._begin()
        if self._is_inside:
            self._check_progress()
        if self._waiter is not None:
            self._wake()
        if self._queue:
            self._pause_reading()

    def _feed(self, data: bytes) -> bytes | None:
        """Parses; returns what is still to be parsed."""
        parser = self._parser
        assert parser is not None, "the connection is there"
        self._fed = len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_wish() + data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Stop):
                _log.error("a request could not be parsed", exc_info=error)
            if not self._is_deaf:
                self._refuse(self._refusal)
        except httptools.HttpParserError:
            if not self._is_deaf:  # else: more bytes behind a request that said it is the last
                self._refuse(400)
        return None

    def _without_wish(self) -> bytes:
        """The head of a request that asks for another protocol, without that wish. llhttp, which has taken the head for
        the end of HTTP on this connection, is given it anew."""
        request, self._wishful = self._wishful, None
        assert request is not None, "the parser has said so at the end of its head"
        lines = [b"%b: %b\r\n" % line for line in request.header_lines if line[0] != b"upgrade"]
        version = b"1.1" if request.knows_chunks else b"1.0"
        return b"%b %b HTTP/%b\r\n%b\r\n" % (request.method.encode(), request.target, version, b"".join(lines))

    def _check_progress(self) -> None:
        """Of a message that is not complete: within the limits of size and time."""
        if self._is_deaf:
            return
        request, due = self._arriving, math.inf
        if request is None:
            if not self._overhead:
                due = HEAD_SECONDS
            self._overhead += self._fed
        elif request.body_size > self._body_seen:
            due = BODY_SECONDS
            self._body_seen, self._overhead = request.body_size, 0
            if request.body_size > EARLY_BYTES:
                self._begin_early(request)
        else:
            self._overhead += self._fed
        if due < math.inf and self._reply is None:
            self.due = self._loop.time() + due
        if self._overhead > MAX_HEAD_BYTES or len(self._lines) > MAX_HEADER_LINES:
            self._refuse(431)

    def _begin_early(self, request: Request) -> None:
        """Before its body is there, of which no more is read until it is asked for."""
        if not request.is_early:
            request.is_early = True
            self._queue.append(request)
            if self._reply is None:
                self._begin()
        if self._waiter is None:
            self._pause_reading()

    def _refuse(self, status: int) -> None:
        """Nothing more is taken. A body that breaks off is told to whoever reads it; else this is answered, in its
        turn."""
        self._is_deaf = True
        arriving = self._arriving
        if arriving is not None and arriving.is_early:
            arriving.failure = InvalidRequest("the request's body is no valid HTTP/1.1", code="malformed_request")
            self._wake()
            return
        reason, code, message = _REFUSALS[status]
        body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"%b"}}' % (message, code)
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\n%b\r\n" % (status, reason, self.server.date_line)
        self._last_words = b"%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (head, len(body), body)
        if self._reply is None and not self._queue:
            self._end()

    # The parser's callbacks

    def on_message_begin(self) -> None:
        self._is_inside = True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None, "it calls"
        lines, self._lines = self._lines, []
        target, self._target = self._target, b""
        # The head cannot be longer than what the parser was fed since it began.
        is_long = self._overhead + self._fed > MAX_HEAD_BYTES and _size_of(target, lines) > MAX_HEAD_BYTES
        if is_long or len(lines) > MAX_HEADER_LINES:
            self._stop(431)
        self._overhead = self._body_seen = 0
        method = parser.get_method()
        path, target = _split(target)
        request = Request(self, method.decode(), target, path, lines)
        request.is_internal = self._is_internal
        headers = request.headers
        keeps_alive: bool = parser.should_keep_alive()
        # Without a word about it only HTTP/1.1 keeps a connection: its number, which is slow to get, need not be asked.
        if not keeps_alive or b"connection" in headers:
            version = parser.get_http_version()
            if version == "1.0":
                keeps_alive = request.knows_chunks = False
                if b"transfer-encoding" in headers:
                    self._stop(400)
            elif version != "1.1":
                self._stop(400 if version == "0.9" else 505)
            request.keeps_alive = keeps_alive
        if parser.should_upgrade():
            if method == b"CONNECT":
                self._stop(400)
            self._wishful = request
            return
        self._arriving = request
        announced = headers.get(b"content-length")
        if (announced is not None and int(announced) > EARLY_BYTES) or (b"expect" in headers and request.knows_chunks):
            request.is_early = True
            request.received_at = perf_counter()
            self._queue.append(request)

    def on_body(self, data: bytes) -> None:
        request = self._arriving
        assert request is not None, "its head is complete"
        request.parts.append(data)
        request.body_size += len(data)

    def on_message_complete(self) -> None:
        self._is_inside = False
        request, self._arriving = self._arriving, None
        if request is None:
            return  # it is parsed anew
        if self._lines:
            self._lines = []  # trailers, which nobody reads
        request.is_whole = True
        if not request.is_early:
            self._queue.append(request)
        request.received_at = perf_counter()
        if request is self._request and self._reply is not None:
            self._reply.received_at = request.received_at
        if not request.keeps_alive:
            self._is_deaf = True
        elif len(self._queue) > MAX_PIPELINED:
            self._is_deaf = True
            raise _Stop

    def _stop(self, refusal: int) -> NoReturn:
        self._refusal = refusal
        raise _Stop

    # Serving

    def _begin(self) -> None:
        request = self._request = self._queue.pop(0)
        reply = self._reply = HttpReply(self, request)
        self.due = math.inf
        if self._reading_paused and not self._queue:
            self._read_on()  # a client that leaves is to be noticed
        try:
            work = self.server.application(request, reply)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are served
            _log.error("a request could not be served", exc_info=error)
            self.transport.abort()
            return
        if work is not None:
            reply.task = task = self._loop.create_task(self._serve(work, reply))
            self.server.tasks.add(task)
        elif not reply.has_finished:
            self.transport.abort()

    def _begin_next(self) -> None:
        if self._queue and self._reply is None:
            self._begin()

    async def _serve(self, work: Coroutine[Any, Any, None], reply: HttpReply) -> None:
        try:
            if reply.is_gone:
                work.close()
            else:
                await work
        except asyncio.CancelledError:
            pass  # nobody waits for the task: who cancels it wants the request to end, and it has
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are served
            _log.error("a request could not be served", exc_info=error)
        finally:
            task, reply.task = reply.task, None
            if task is not None:
                self.server.tasks.discard(task)
            if not reply.has_finished:
                self.transport.abort()  # half an answer must not look whole

    def finish(self, reply: HttpReply, request: Request) -> None:
        """Called when the last byte of the reply was written."""
        if self._reply is not reply:
            return  # its client has left
        self._request = self._reply = None
        if self.is_paused:
            self.due = reply.due if reply.due < math.inf else self._loop.time() + IDLE_SECONDS
        else:
            self.due = self._loop.time() + (HEAD_SECONDS if self._is_inside else IDLE_SECONDS)
        if not request.keeps_alive:
            self._close()
        elif self._queue:
            self._loop.call_soon(self._begin_next)
        elif self._is_deaf:
            self._end()
        elif self._reading_paused:
            self._read_on()

    def _end(self) -> None:
        if self._last_words:
            self.transport.write(self._last_words)
        self._close()

    # Waiting

    async def wait_for_body(self, request: Request) -> None:
        """Until more of it has come."""
        if request.headers.get(b"expect", b"").lower() == b"100-continue" and not request.was_told_to_go_on:
            request.was_told_to_go_on = True
            if request.knows_chunks and not request.body_size:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._read_on()
        self.due = self._loop.time() + BODY_SECONDS
        try:
            await self._wait()
        finally:
            self.due = math.inf

    async def wait_for_room(self) -> None:
        """Until the client has taken some of what it was sent, or something else has happened."""
        await self._wait()

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        self.is_paused = True
        if self._reply is not None:
            self._reply.is_paused = True
            self.due = self._reply.due

    def resume_writing(self) -> None:
        self.is_paused = False
        if self._reply is not None:
            self._reply.is_paused = False
            self.due = math.inf
            self._wake()

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._is_closing:
            self._reading_paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()


@lru_cache(64)  # applications ask for a handful of paths: 2 us less for each request
def _split(target: bytes) -> tuple[str, bytes]:
    """The path, percent-decoded, and the target without what names this server: proxies send that too."""
    if target.startswith(b"/") and b"%" not in target and b"?" not in target and b"#" not in target:
        return target.decode("ascii"), target
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise _Stop from None
    path = url.path or b"/"
    return unquote(path.decode("ascii")), path + b"?" + url.query if url.query else path


def _size_of(target: bytes, lines: Headers) -> int:
    return len(target) + sum(len(name) + len(value) + 4 for name, value in lines)
