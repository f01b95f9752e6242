"""ASGI bodies and events (https://asgi.readthedocs.io/en/latest/specs/www.html)."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from local_engine.errors import RequestError

MAX_BODY = 4 << 20  # bytes

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_body(receive: Receive) -> bytes:
    """The request's body. Raises `RequestError` (413) beyond `MAX_BODY` and `ClientGone`."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise RequestError(f"the request body is larger than {MAX_BODY} bytes", code="body_too_large", status=413)
        if not message.get("more_body"):
            return b"".join(parts)


async def send_body(
    send: Send, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None
) -> None:
    fields = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    await send_body(send, status, "application/json", msgspec.json.encode(body), headers)


async def begin_events(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_event(send: Send, body: object) -> None:
    data = b"data: " + msgspec.json.encode(body) + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})
