"""The worker's HTTP/1.1 server on real sockets, before an application that says what reached it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.http import HttpReply, Request, respond, respond_error
from gateway.api.server import Server
from gateway.errors import GatewayError
from gateway.processes import bind_unix
from tests.gateway_fixtures import until

MAX_BODY = 1024 * 1024
PATIENCE = 6.0
SPLIT = b"text/plain\r\nset-cookie: private=1"


class Served:
    """A server on a port and a unix socket. Paths choose what happens; others are told what was understood."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(self.serve, drain_seconds=PATIENCE)
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Event()
        self.cancelled: list[str] = []
        self.finished: list[str] = []
        self.port = 0
        self.path = folder / "worker.sock"

    async def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        await self.server.start(listener, bind_unix(self.path))

    def serve(self, request: Request, reply: HttpReply) -> Any:
        self.requests.append(request)
        if request.path == "/at-once":
            respond(reply, 200, b"{}", b"application/json")
            return None
        return self._serve(request, reply)

    async def _serve(self, request: Request, reply: HttpReply) -> None:
        try:
            await self._answer(request, reply)
        except GatewayError as error:
            respond_error(reply, error)
        except asyncio.CancelledError:
            self.cancelled.append(request.path)
            raise
        self.finished.append(request.path)

    async def _answer(self, request: Request, reply: HttpReply) -> None:
        if request.path == "/refuse":
            respond(reply, 401, b"no", b"text/plain")
            return
        body = await request.read(MAX_BODY)
        self.bodies.append(body)
        if request.path == "/wait":
            await self.go_on.wait()
        elif request.path == "/stream":
            reply.start(200, [(b"content-type", b"text/plain")])
            reply.comment(b"one")
            reply.send(b"two", is_last=False)
            await self.go_on.wait()
            reply.send(b"", is_last=False)
            reply.send(b"three", is_last=True)
            return
        elif request.path == "/endless":
            reply.start(200, [])
            while True:
                reply.send(b"x" * 65_536, is_last=False)
                await (reply.drain() if reply.is_paused else asyncio.sleep(0))
        elif request.path == "/late":
            respond(reply, 200, b"{}", b"application/json")
            await self.go_on.wait()
            return
        elif request.path == "/fail":
            raise RuntimeError("private words")
        elif request.path == "/silent":
            return
        elif request.path == "/split":
            respond(reply, 200, b"", SPLIT)
            return
        elif request.path == "/short":
            reply.start(200, [(b"content-length", b"10")])
            reply.send(b"123", is_last=True)
            return
        told = {"method": request.method, "path": request.path, "body": len(body)}
        respond(reply, 200, json.dumps(told).encode(), b"application/json")

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)

    async def raw(self, *pieces: bytes) -> bytes:
        """All that comes for these pieces until the server closes."""
        reader, writer = await self.open()
        try:
            async with asyncio.timeout(PATIENCE):
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0.002)
                return await reader.read()
        finally:
            writer.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    await served.start()
    yield served
    served.server.close()
    await until(lambda: not served.server.connections and not served.server.tasks)


def message(
    target: str = "/x", body: bytes = b"", *headers: str, method: str = "POST", version: str = "1.1", last: bool = False
) -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "host: x", *headers]
    if last:
        lines.append("connection: close")
    if body and not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each answer with a length."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        found.append((int(first.split(" ")[1]), headers, data[:length]))
        data = data[length:]
    return found


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(PATIENCE):
        head = await reader.readuntil(b"\r\n\r\n")
        _, headers, _ = answers(head)[0]
        return answers(head + await reader.readexactly(int(headers.get("content-length", "0"))))[0]
