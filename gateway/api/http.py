"""ASGI's edges: reading a bounded body, sending a whole answer, noticing that the client has gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from gateway.errors import BodyTooLarge, GatewayError
from gateway.protocols.base import ClientProtocol
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.reply import Headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WATCH_AFTER = 0.1
"""Seconds a request runs before its connection is watched: answers of fast upstreams never need the task."""


class ClientDisconnected(Exception):
    """The client went away before its request was whole."""


async def read_body(receive: Receive, headers: dict[bytes, bytes], max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge before reading when its length is announced, while reading otherwise."""
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body"):
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    parts, size = [body], len(body)
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request body is over {max_bytes} bytes\nhint: `server.max_body_bytes` sets the limit",
        code="request_too_large",
    )


class AsgiReply:
    """See `gateway.reply.Reply`."""

    def __init__(self, send: Send) -> None:
        self.has_started = False
        self.has_content = False
        self.has_finished = False
        self.due = math.inf  # loop time by which the client must have taken everything
        self._send = send

    async def start(self, status: int, headers: Headers) -> None:
        self.has_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, body: bytes, *, is_last: bool) -> None:
        self.has_content, self.has_finished = True, is_last
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def comment(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def respond(send: Send, status: int, body: bytes, content_type: bytes, headers: Headers | None = None) -> None:
    """A whole answer at once."""
    length = (b"content-length", b"%d" % len(body))
    block = [(b"content-type", content_type), length, *(headers or ())]
    await send({"type": "http.response.start", "status": status, "headers": block})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def respond_error(send: Send, error: GatewayError, protocol: ClientProtocol = CHAT_PROTOCOL) -> None:
    """In the shape of the protocol; OpenAI's for whoever speaks none."""
    await respond(send, error.status, protocol.error_body(error), b"application/json", list(error.headers))


class CancelOnDisconnect:
    """Cancels the task it is entered in when the client goes away, and swallows that cancellation at its end.

    A client that leaves once it has the whole answer cancels nothing; one that stops reading has until `reply.due`.
    """

    def __init__(self, receive: Receive, reply: AsgiReply) -> None:
        self.happened = False
        self._receive = receive
        self._reply = reply
        self._owner: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # for the watch, later for the due time

    def __enter__(self) -> CancelOnDisconnect:
        self._owner = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        # Everything is let go of: a cancelled task holds its exception, that its frames, and those this object. Such
        # rings wait for the garbage collector, whose pauses all streams would feel.
        timer, watch, owner = self._timer, self._watch, self._owner
        self._timer = self._watch = self._owner = None
        if timer is not None:
            timer.cancel()
        if watch is not None:
            watch.cancel()
        if self.happened and owner is not None:
            # The cancellation was ours; whether it arrived as an exception or came too late, it ends here.
            still_requested = owner.uncancel()
            return kind is asyncio.CancelledError and still_requested == 0
        return False

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._watch = loop.create_task(self._wait())
        if self._reply.due < math.inf:
            self._timer = loop.call_at(self._reply.due, self._give_up)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._give_up()

    def _give_up(self) -> None:
        if self._owner is not None and not self._reply.has_finished:
            self.happened = True
            self._owner.cancel()
