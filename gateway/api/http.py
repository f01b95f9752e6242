"""One request and its answer, as the worker's server (`server.py`) hands them to the application."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus
from typing import TYPE_CHECKING

from gateway.errors import BodyTooLarge, GatewayError
from gateway.protocols.base import ClientProtocol
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.reply import Headers

if TYPE_CHECKING:
    from gateway.api.connection import Connection

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
_JOIN_BELOW = 65_536  # bytes of a body that is copied behind its head for a single write

# How an answer's end is told.
_BY_LENGTH, _BY_CHUNKS, _BY_CLOSE, _WITHOUT_BODY = range(4)


class Request:
    """Made when its head is complete.

    `path` is percent-decoded, `target` as it was sent (path and query). `headers`: names in lower case, of several
    lines the last; `header_lines` has them all, in order. `is_internal`: it came over the worker's unix socket.
    `received_at`: `time.perf_counter` when its last byte came (of its head, as long as the rest has not).
    `is_whole`: its last byte has come.
    """

    __slots__ = (
        "_connection",
        "body_size",
        "failure",
        "header_lines",
        "headers",
        "is_early",
        "is_internal",
        "is_whole",
        "keeps_alive",
        "knows_chunks",
        "method",
        "parts",
        "path",
        "received_at",
        "target",
        "was_told_to_go_on",
    )

    def __init__(self, connection: Connection, method: str, target: bytes, path: str, header_lines: Headers) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.header_lines = header_lines
        self.headers = dict(header_lines)
        self.received_at = 0.0
        self.is_internal = False
        self.is_whole = False
        # What follows is between the server and this object.
        self.is_early = False  # it is served before its body is there
        self.was_told_to_go_on = False  # with `100 Continue`
        self.keeps_alive = True
        self.knows_chunks = True  # HTTP/1.1
        self.parts: list[bytes] = []
        self.body_size = 0
        self.failure: GatewayError | None = None  # why the rest of its body will not come
        self._connection = connection

    def body(self, max_bytes: int) -> bytes | None:
        """The whole body; None: it is still coming, `read` it. Raises BodyTooLarge, also of one that is announced."""
        if self.body_size > max_bytes:
            raise _too_large(max_bytes)
        if self.is_whole:
            parts = self.parts
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if self.failure is not None:
            raise self.failure
        if int(self.headers.get(b"content-length", b"0")) > max_bytes:
            raise _too_large(max_bytes)
        return None

    async def read(self, max_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known, InvalidRequest where its framing is broken."""
        while (body := self.body(max_bytes)) is None:
            await self._connection.wait_for_body(self)
        return body


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request body is over {max_bytes} bytes\nhint: `server.max_body_bytes` sets the limit",
        code="request_too_large",
    )


class HttpReply:
    """See `gateway.reply.Reply`. `is_gone`: the client has left before it had the whole answer.

    Whoever serves ends it with a last `send`; an answer that is not ended cuts the connection.
    """

    __slots__ = (
        "_connection",
        "_framing",
        "_headers",
        "_left",
        "_request",
        "_status",
        "due",
        "has_content",
        "has_finished",
        "has_started",
        "is_gone",
        "is_paused",
        "received_at",
        "task",
    )

    def __init__(self, connection: Connection, request: Request) -> None:
        self.due = math.inf  # loop time by which the client must have taken everything
        self.has_started = False
        self.has_content = False
        self.has_finished = False
        self.is_gone = False
        self.is_paused = connection.is_paused
        self.received_at = request.received_at
        self.task: asyncio.Task[None] | None = None  # that serves it
        self._connection = connection
        self._request = request
        self._status = 0
        self._headers: Headers | None = None  # not written yet
        self._framing = _BY_LENGTH
        self._left = 0  # bytes of the announced body that were not sent yet

    def start(self, status: int, headers: Headers) -> None:
        """Names in lower case. Header values that would break out of their line are refused with the first `send`."""
        self.has_started = True
        self._status = status
        self._headers = headers

    def send(self, body: bytes, *, is_last: bool) -> None:
        """Raises RuntimeError where the body does not have the announced length, or has ended already."""
        self.has_content = True
        self._write(body, is_last)

    def comment(self, body: bytes) -> None:
        self._write(body, False)

    async def drain(self) -> None:
        while self.is_paused:
            await self._connection.wait_for_room()

    def _write(self, body: bytes, is_last: bool) -> None:
        if self.has_finished:
            raise RuntimeError("the answer has ended already")
        headers = self._headers
        if headers is None:
            data = b""
        else:
            data = self._head(headers)
            self._headers = None
        framing, size = self._framing, len(body)
        if framing == _BY_CHUNKS:
            if size:
                data = b"%b%x\r\n%b\r\n" % (data, size, body)
            if is_last:
                data += b"0\r\n\r\n"
            body = b""
        elif framing == _BY_LENGTH:
            self._left -= size
            if self._left < 0 or (is_last and self._left):
                raise RuntimeError("an answer must have the length that its head announces")
        elif framing == _WITHOUT_BODY:
            body = b""
        if not self.is_gone:
            transport = self._connection.transport
            if len(body) <= _JOIN_BELOW:
                transport.write(data + body)
            else:
                transport.write(data)
                transport.write(body)
        if is_last:
            self.has_finished = True
            self._connection.finish(self, self._request)

    def _head(self, headers: Headers) -> bytes:
        """Everything up to the empty line, with what the connection itself has to say. Chooses the framing."""
        request, status, server = self._request, self._status, self._connection.server
        lines = list(map(b": ".join, headers))
        lines.append(server.date_line)
        if not (request.keeps_alive and request.is_whole and not server.is_draining):
            request.keeps_alive = False
            lines.append(b"connection: close")
        head = _STATUS_LINES[status] + b"\r\n".join(lines) + b"\r\n"
        if not (head.count(b"\n") == head.count(b"\r") == len(lines) + 1) or b"\0" in head:
            raise ValueError("a response header holds a line break")  # its value may be a secret
        start = head.find(b"\r\ncontent-length: ")
        if status in _BODILESS or request.method == "HEAD":
            self._framing = _WITHOUT_BODY
        elif start >= 0:
            self._left = int(head[start + 18 : head.index(b"\r", start + 18)])
        elif request.knows_chunks:
            self._framing = _BY_CHUNKS
            head += b"transfer-encoding: chunked\r\n"
        else:
            self._framing = _BY_CLOSE  # HTTP/1.0, whose connections are never kept
        return head + b"\r\n"


def respond(reply: HttpReply, status: int, body: bytes, content_type: bytes, headers: Headers | None = None) -> None:
    """A whole answer at once."""
    length = (b"content-length", b"%d" % len(body))
    reply.start(status, [(b"content-type", content_type), length, *(headers or ())])
    reply.send(body, is_last=True)


def respond_error(reply: HttpReply, error: GatewayError, protocol: ClientProtocol = CHAT_PROTOCOL) -> None:
    """In the shape of the protocol; OpenAI's for whoever speaks none."""
    respond(reply, error.status, protocol.error_body(error), b"application/json", list(error.headers))
