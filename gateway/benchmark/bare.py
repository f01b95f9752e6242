"""A bare proxy: what asyncio and httptools cost when nothing else is done. The ceiling for a proxy in Python.

    python -m gateway.benchmark.bare --upstream PORT

Prints its port, serves until it is ended. HTTP is parsed and passed on, over kept-alive connections to the upstream; no
key, policy, deadline or ledger. Requests without a body fail.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import httptools
import uvloop

from gateway.benchmark.upstream import serve
from gateway.benchmark.wire import LAST, framed


class BareProxy(asyncio.Protocol):
    """The client's side: a request is read as a whole, then sent on a connection that is free."""

    def __init__(self, upstream_port: int, idle: list[BareUpstreamSide]) -> None:
        self.upstream_port, self.idle = upstream_port, idle
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []
        self.opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url, self.body = url, []

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        body = b"".join(self.body)
        head = b"POST %b HTTP/1.1\r\nhost: upstream\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        request = head % (self.url, len(body)) + body
        if self.idle:
            self.idle.pop().send(self, request)
        else:
            self.opening = asyncio.get_running_loop().create_task(self.open(request))

    async def open(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, side = await loop.create_connection(lambda: BareUpstreamSide(self.idle), "127.0.0.1", self.upstream_port)
        side.send(self, request)


class BareUpstreamSide(asyncio.Protocol):
    """The upstream's side: the answer's head is built anew, its body passed on as it comes."""

    def __init__(self, idle: list[BareUpstreamSide]) -> None:
        self.idle = idle
        self.parser = httptools.HttpResponseParser(self)
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, client: BareProxy, request: bytes) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.client, self.head, self.is_done = client, b"", False
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        body = b"".join(self.out)
        self.out.clear()
        if self.is_chunked:
            body = (framed(body) if body else b"") + (LAST if self.is_done else b"")
        if not self.client.transport.is_closing():
            self.client.transport.write(self.head + body)
        self.head = b""
        if self.is_done:
            self.idle.append(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        length = self.headers.get(b"content-length")
        self.is_chunked = length is None
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
        status, kind = self.parser.get_status_code(), self.headers[b"content-type"]
        self.head = b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\n%b\r\n\r\n" % (status, kind, framing)

    def on_body(self, data: bytes) -> None:
        self.out.append(data)

    def on_message_complete(self) -> None:
        self.is_done = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", type=int, required=True, help="its port on 127.0.0.1")
    upstream = parser.parse_args().upstream
    idle: list[BareUpstreamSide] = []
    uvloop.run(serve(lambda: BareProxy(upstream, idle), 0))


if __name__ == "__main__":
    main()
