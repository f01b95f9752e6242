"""A scripted upstream on real sockets, and a client that must leave nothing behind. Every test runs on both loops."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import struct
import subprocess
import tempfile
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Limits, Origin, UpstreamRequest


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def _until(condition: Callable[[], object]) -> None:
    turns = 0
    while not condition():
        turns += 1
        await asyncio.sleep(0 if turns < 100 else 0.001)


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> bytes:
        """One whole request, head and body."""
        head = await self.head()
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                return head + await self.reader.readexactly(int(line.split(b":")[1]))
            if line.lower() == b"transfer-encoding: chunked":
                return head + await self.reader.readuntil(b"0\r\n\r\n")
        return head

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def send_apart(self, *pieces: bytes) -> None:
        """Each piece only when the one before has been read (exact on unix sockets)."""
        fd = self.writer.get_extra_info("socket").fileno()
        for piece in pieces:
            await self.send(piece)
            await _until(lambda: not struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0])
            for _ in range(3):
                await asyncio.sleep(0)

    def reset(self) -> None:
        """Ends the connection with RST."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Until the client has closed."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Peer], Awaitable[None]]


class Upstream:
    """Runs `script` for each connection, closes it afterwards, and reports what a script raised."""

    def __init__(self, script: Script) -> None:
        self.origin: Origin
        self.accepted = 0
        self.active = 0
        self.failures: list[BaseException] = []
        self._script = script
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: list[asyncio.WriteTransport] = []

    async def start(self, *, uds: str | None, tls: ssl.SSLContext | None, ca_file: str | None) -> None:
        scheme = "https" if tls else "http"
        if uds is not None:
            self._server = await asyncio.start_unix_server(self._accept, uds, ssl=tls)
            self.origin = Origin.parse(f"{scheme}://localhost", uds=uds, ca_file=ca_file)
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
            port = self._server.sockets[0].getsockname()[1]
            self.origin = Origin.parse(f"{scheme}://{'localhost' if tls else '127.0.0.1'}:{port}", ca_file=ca_file)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._transports.append(writer.transport)
        self.accepted += 1
        self.active += 1
        try:
            await self._script(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        except Exception as error:  # noqa: BLE001 - handed to the test
            if not writer.transport.is_closing():  # uvloop has no ConnectionError for writing after the client went
                self.failures.append(error)
        finally:
            self.active -= 1
            self._tasks.discard(task)
            writer.close()

    async def settled(self) -> None:
        """Until every script has ended."""
        await _until(lambda: not self._tasks)

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await self.settled()
        for transport in self._transports:
            if not transport.is_closing():
                transport.abort()
        for _ in range(5):
            await asyncio.sleep(0)  # the transports' own close callbacks
        assert not self.failures, self.failures


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """`await until(condition)`: looks at each turn of the loop."""
    return _until


Serve = Callable[..., Awaitable[Upstream]]


@pytest_asyncio.fixture
async def serve(socket_folder: Path) -> AsyncIterator[Serve]:
    """`await serve(script, uds=False, tls=None, ca_file=None)`: a running `Upstream`."""
    upstreams: list[Upstream] = []

    async def start(
        script: Script, *, uds: bool = False, tls: ssl.SSLContext | None = None, ca_file: str | None = None
    ) -> Upstream:
        upstream = Upstream(script)
        path = str(socket_folder / f"{len(upstreams)}.sock") if uds else None
        await upstream.start(uds=path, tls=tls, ca_file=ca_file)
        upstreams.append(upstream)
        return upstream

    yield start
    for upstream in upstreams:
        await upstream.stop()


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # short: a unix socket's path holds 107 bytes
        yield Path(folder)


@pytest_asyncio.fixture
async def open_client() -> AsyncIterator[Callable[..., UpstreamClient]]:
    """`open_client(**limits)`; afterwards: all connections closed and uncounted, no timer, no complaint of the loop."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    clients: list[UpstreamClient] = []

    def open_one(**limits: float) -> UpstreamClient:
        clients.append(UpstreamClient(limits=Limits(**limits)))  # type: ignore[arg-type]
        return clients[-1]

    yield open_one
    for client in clients:
        connections = [connection for pool in client._pools.values() for connection in pool.connections]
        await client.close()
        assert [client.count(origin) for origin in client._pools] == [(0, 0)] * len(client._pools)
        assert [connection._timer for connection in connections] == [None] * len(connections)
    assert complaints == []


@pytest.fixture
def client(open_client: Callable[..., UpstreamClient]) -> UpstreamClient:
    return open_client()


@pytest.fixture
def get() -> Callable[..., UpstreamRequest]:
    """A request with little to say."""

    def build(origin: Origin, method: bytes = b"GET", body: bytes = b"", target: bytes = b"/") -> UpstreamRequest:
        return UpstreamRequest(origin, method, target, b"x-test: 1\r\n", body)

    return build


@pytest.fixture
def within() -> Callable[..., Deadlines]:
    """Deadlines from now; the defaults are far enough for a loaded machine."""

    def build(connect: float = 20.0, total: float = 60.0) -> Deadlines:
        return Deadlines(connect=connect, total_at=asyncio.get_running_loop().time() + total)

    return build


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a throw-away `ca.pem`, and `server.pem` and `server.key` that it signed for `localhost`."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test ca")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "server.pem", "-days", "2", "-extfile", "names"),
    )
    return folder


@pytest.fixture
def server_tls(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_alpn_protocols(["http/1.1"])
    return context
