"""A scripted upstream and a gateway on real sockets: everything of a worker below the process level is the real thing.

upstream = await script_upstream(answer("hello"))
gateway = await start_gateway(one_endpoint(upstream))
response = await gateway.ask()
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import httpx

from gateway.accounting.entry import Books
from gateway.accounting.prices import PriceBook
from gateway.api.application import Application
from gateway.api.auth import KeyRing
from gateway.api.http import HttpReply, Request
from gateway.api.server import Server
from gateway.budgets.book import BudgetBook
from gateway.config.compiler import compile_configuration
from gateway.config.document import Document
from gateway.config.model import Configuration
from gateway.errors import Unavailable
from gateway.ledger.record import read_event, read_line
from gateway.ledger.spool import Spool
from gateway.pipeline import Pipeline
from gateway.routing.health import HealthBook
from gateway.snapshot import Snapshot
from gateway.telemetry import Metrics
from gateway.types import KeyRecord, UsageEvent
from gateway.upstream.client import UpstreamClient

KEY = "hw_test_key"
UPSTREAM_KEY = "sk-upstream-secret-0123456789"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
PRICE = {"input": 1, "output": 2}
"""USD per million tokens; with USAGE an attempt costs 0.000020 USD."""
PATIENCE = 20.0
"""Seconds after which a test gives up on something that should have happened at once."""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


# The upstream


class Call:
    """One request as the upstream saw it, and the means to answer it."""

    def __init__(self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.target = lines[0].split(" ")[1]
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.body = body
        self.reader = reader
        self.writer = writer

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        lines = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.send(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)

    async def start_stream(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def stream(self, *pieces: bytes) -> None:
        """Each piece as one chunk of the message."""
        for piece in pieces:
            await self.send(b"%x\r\n%b\r\n" % (len(piece), piece))

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def send(self, data: bytes) -> None:
        if self.writer.transport.is_closing():
            raise ConnectionResetError("the gateway has closed")  # the loops raise different errors
        self.writer.write(data)
        await self.writer.drain()

    def cut(self) -> None:
        """Ends the connection with RST."""
        end = self.writer.get_extra_info("socket")
        if self.writer.transport.is_closing() or end is None:
            return  # the gateway was faster
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def wait_for_close(self) -> None:
        """Until the gateway has closed this connection."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Call], Awaitable[None]]


class Upstream:
    """Answers each request with the next script, the last one again and again. `closed`: hung scripts seen closed."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.calls: list[Call] = []
        self.closed = asyncio.Event()
        self.failures: list[BaseException] = []
        self._scripts = scripts
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=1 << 26)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
                )
                call = Call(head[:-4], await reader.readexactly(length), reader, writer)
                self.calls.append(call)
                await self._scripts[min(len(self.calls), len(self._scripts)) - 1](call)
                if writer.transport.is_closing():
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the gateway has closed, or the test is over
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await until(lambda: not self._tasks)
        assert not self.failures, self.failures


def completion(text: str = "hello", *, usage: Any = USAGE, **fields: Any) -> bytes:
    """A whole answer's body."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        **fields,
    }
    if usage is not None:
        body["usage"] = usage
    return json.dumps(body).encode()


def event(delta: Mapping[str, Any] | None = None, *, finish: str | None = None, **fields: Any) -> bytes:
    """One event of a stream; `delta` None: a chunk without choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}
    return b"data: " + json.dumps({**chunk, "choices": choices, **fields}).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
STOP = event({}, finish="stop")
USAGE_EVENT = event(usage=USAGE)
DONE = b"data: [DONE]\n\n"


def words(*texts: str) -> list[bytes]:
    return [event({"content": text}) for text in texts]


def answer(text: str = "hello", *, status: int = 200, body: bytes | None = None, **headers: str) -> Script:
    """A whole answer; `body` replaces the completion. Header names have `_` for `-`."""

    async def run(call: Call) -> None:
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        await call.answer(status, completion(text) if body is None else body, lines)

    return run


def refuse(status: int, message: str = "upstream's own words", *, code: str | None = None, **headers: str) -> Script:
    """An error in OpenAI's shape."""
    body = {"error": {"message": message, "type": "some_error", "param": None, "code": code}}
    return answer(status=status, body=json.dumps(body).encode(), **headers)


def stream(*pieces: bytes) -> Script:
    """A whole stream: `pieces`, and the end of the message."""

    async def run(call: Call) -> None:
        await call.start_stream()
        await call.stream(*pieces)
        await call.end_stream()

    return run


def stream_apart(*pieces: bytes) -> Script:
    """A whole stream of which the gateway sees one piece after the other."""

    async def run(call: Call) -> None:
        await call.start_stream()
        for piece in pieces:
            await call.stream(piece)
            await asyncio.sleep(0.01)  # same loop, same host: what was sent is read before this ends
        await call.end_stream()

    return run


def good_stream(*texts: str) -> Script:
    return stream(ROLE, *words(*(texts or ("hel", "lo"))), STOP, USAGE_EVENT, DONE)


def stream_then_hang(upstream: list[Upstream], *pieces: bytes) -> Script:
    """A stream that stops in its middle; sets `closed` of the upstream in the list when the gateway closes."""

    async def run(call: Call) -> None:
        await call.start_stream()
        await call.stream(*pieces)
        await call.wait_for_close()
        upstream[0].closed.set()

    return run


async def hang(call: Call) -> None:
    """Never answers."""
    await call.wait_for_close()


def stream_then_cut(*pieces: bytes) -> Script:
    async def run(call: Call) -> None:
        await call.start_stream()
        await call.stream(*pieces)
        await asyncio.sleep(0.01)  # RST would take back what was not read yet
        call.cut()

    return run


async def cut(call: Call) -> None:
    """Disconnects without a byte."""
    call.cut()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# The gateway


def configuration_of(document: Mapping[str, Any]) -> Configuration:
    """Compiles a document given as Python data. `version: 1` may be left out."""
    text = json.dumps({"version": 1, **document})
    return compile_configuration(Document.from_json(text.encode()), {})


def endpoints(*upstreams: Upstream | int, timeouts: Mapping[str, Any] | None = None, **policy: Any) -> dict[str, Any]:
    """A document with the endpoints `a`, `b`, ... of the providers `p-a`, `p-b`, ... in this order. An int: a port."""
    names = [chr(ord("a") + index) for index in range(len(upstreams))]
    urls = [u.url if isinstance(u, Upstream) else f"http://127.0.0.1:{u}/v1" for u in upstreams]
    return {
        "providers": {
            f"p-{name}": {"adapter": "openai", "base_url": url, "api_key": UPSTREAM_KEY}
            for name, url in zip(names, urls, strict=True)
        },
        "endpoints": {name: {"provider": f"p-{name}", "model": f"model-{name}", "price": PRICE} for name in names},
        "routes": [{"name": "all", "match": {"model": "*"}, "policy": "main"}],
        "policies": {"main": {"endpoints": names, "timeouts": dict(timeouts or {}), **policy}},
        "teams": {"payments": {"cost_center": "CC-104"}},
    }


def key_record(secret: str = KEY, **fields: Any) -> KeyRecord:
    values = {"key_id": "key_1", "team": "payments", "project": "checkout", **fields}
    return KeyRecord(hash=sha256(secret.encode()).hexdigest(), **values)


class _Announced:
    """A reply whose last part is announced before the server has it."""

    def __init__(self, reply: HttpReply, gateway: Gateway) -> None:
        object.__setattr__(self, "_parts", (reply, gateway))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parts[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._parts[0], name, value)

    def send(self, body: bytes, *, is_last: bool) -> None:
        if is_last:
            self._parts[1].before_last()
        self._parts[0].send(body, is_last=is_last)


class Gateway:
    """A worker's parts, wired as `gateway/app.py` wires them, behind the production server on a port of its own."""

    def __init__(self, document: Mapping[str, Any], folder: Path, keys: list[KeyRecord]) -> None:
        self.metrics = Metrics()
        self.upstreams = UpstreamClient()
        self.spool_folder = folder / "spool"
        self.spool = Spool(self.spool_folder, "worker-0")
        self.keys = KeyRing(self._find_key)
        self.keys.replace(keys)
        self.health = HealthBook()
        snapshot = Snapshot.build(configuration_of(document), PriceBook(), folder, "hatchway/test")
        self.budgets = BudgetBook("test/worker-0", self._ask)
        self.pipeline = Pipeline(snapshot, self.upstreams, Books(self.spool, self.metrics), self.health, self.budgets)
        self.application = Application(
            self.pipeline, self.keys, self.metrics, forward=self._forward, reload=lambda: None
        )
        self.lookups = 0
        self.forwarded: list[str] = []
        self.port = 0
        self.before_last: Callable[[], None] = lambda: None
        """Called just before the last part of each answer is handed to the server."""
        self._server = Server(self._serve, drain_seconds=5)
        self._clients: list[httpx.AsyncClient] = []

    async def _ask(self, path: str, body: bytes) -> bytes:
        raise Unavailable("there is no control plane here")

    async def _find_key(self, digest: str) -> KeyRecord | None:
        self.lookups += 1
        return None

    async def _forward(self, request: Request, reply: HttpReply) -> None:
        self.forwarded.append(request.path)
        reply.start(204, [])
        reply.send(b"", is_last=True)

    def _serve(self, request: Request, reply: HttpReply) -> Any:
        return self.application(request, cast(HttpReply, _Announced(reply, self)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        await self._server.start(listener)

    async def stop(self) -> None:
        for client in self._clients:
            await client.aclose()
        self._server.close()
        await until(lambda: not self._server.tasks and not self._server.connections)
        await self.upstreams.close()
        self.spool.close()

    def cancel_requests(self) -> None:
        for task in list(self._server.tasks):
            task.cancel()

    def client(self, key: str | None = KEY) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=PATIENCE, verify=False)
        self._clients.append(client)
        return client

    async def ask(self, key: str | None = KEY, headers: Mapping[str, str] | None = None, **fields: Any) -> Any:
        """Posts one chat completion and reads the answer to its end."""
        client = self.client(key)
        return await client.post("/v1/chat/completions", json=chat(**fields), headers=dict(headers or {}))

    async def raw(self, data: bytes) -> bytes:
        """Everything that comes back for these bytes until the gateway closes (ask for `connection: close`)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            async with asyncio.timeout(PATIENCE):
                return await reader.read()
        finally:
            writer.close()

    def records(self, kind: str = "E") -> list[UsageEvent]:
        """What the spool's files hold now: settled rows (`E`) or begun ones (`S`), in order."""
        found = []
        for path in sorted(self.spool_folder.glob("*.spool")):
            for line in path.read_bytes().splitlines(keepends=True)[1:]:
                record = read_line(line)
                if record.kind == kind:
                    found.append(read_event(record.json))
        return found

    async def settled(self, count: int) -> list[UsageEvent]:
        """The settled rows, once `count` are there and nothing is in flight; each attempt has exactly one."""
        await until(lambda: len(self.records()) >= count and not self._server.tasks)
        rows = self.records()
        assert [row.event_id for row in self.records("S")] == [row.event_id for row in rows]
        assert len(rows) == count
        return rows

    def metric(self, sample: str) -> float:
        """The value of one sample, given as it is written in the exposition; 0 when it is not there."""
        for line in self.metrics.exposition().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0


def chat(**fields: Any) -> dict[str, Any]:
    """A request's body; fields given as None are left out."""
    body = {"model": "gpt-test", "messages": [{"role": "user", "content": "hi"}], **fields}
    return {name: value for name, value in body.items() if value is not None}


def post(body: bytes, *headers: str, path: str = "/v1/chat/completions", key: str = KEY) -> bytes:
    """A request as bytes on a connection that ends with it."""
    lines = [f"POST {path} HTTP/1.1", "host: x", "connection: close", f"authorization: Bearer {key}", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def events_of(body: bytes) -> list[Any]:
    """The data of a stream's events, parsed; `[DONE]` stays text."""
    found = []
    for line in body.decode().splitlines():
        if line.startswith("data: "):
            found.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
    return found


def text_of(body: bytes) -> str:
    """The text of a stream's first choice."""
    chunks = [data for data in events_of(body) if data != "[DONE]" and data.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
