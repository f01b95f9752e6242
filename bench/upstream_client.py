"""How many requests one core can make: `UpstreamClient`, `HatchwayTransport` under httpx, stock httpx, aiohttp.

    python bench/upstream_client.py [--seconds 2] [--rounds 3] [--connections 32]

The client runs on cpu 0, a bare asyncio upstream in its own process on cpu 1. Two loads: a JSON answer of 0.7 kB, and
an event stream of 64 chunks sent at once. Clients take turns in each round; the figures are medians. Only ratios
within one run mean anything on a shared machine. Prints a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway.upstream.client import UpstreamClient
from gateway.upstream.request import Deadlines, Origin, UpstreamRequest, header_block
from gateway.upstream.transport import HatchwayTransport

QUESTION = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 400}]}).encode()
ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "y" * 600}}]}).encode()
EVENT = b'data: {"choices":[{"delta":{"content":"word "}}]}\n\n'
CHUNKS = 64
HEADERS = {"authorization": "Bearer key", "content-type": "application/json", "accept-encoding": "identity"}

_ANSWER_HEADERS = b"".join(b"x-header-%d: some value of usual length\r\n" % n for n in range(8))
_UNARY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
    _ANSWER_HEADERS,
    len(ANSWER),
    ANSWER,
)
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%btransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % (
    _ANSWER_HEADERS,
    b"%x\r\n%b\r\n" % (len(EVENT), EVENT) * CHUNKS,
)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

Call = Callable[[str], Awaitable[int]]  # path -> bytes of the body


class BareUpstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.buffer, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < whole:
                return
            stream = self.buffer.startswith(b"POST /stream")
            self.buffer = self.buffer[whole:]
            self.transport.write(_STREAM if stream else _UNARY)  # type: ignore[attr-defined]


def serve(pipe: Connection) -> None:
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(BareUpstream, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, pipe.poll, None)  # until the parent closes its end

    uvloop.run(run())


@contextlib.asynccontextmanager
async def hatchway(port: int, connections: int) -> AsyncIterator[Call]:
    client = UpstreamClient()
    origin = Origin.parse(f"http://127.0.0.1:{port}")
    block = header_block(HEADERS.items())
    loop = asyncio.get_running_loop()

    async def call(path: str) -> int:
        now = loop.time()
        request = UpstreamRequest(origin, b"POST", path.encode(), block, QUESTION)
        response = await client.send(request, Deadlines(5.0, now + 300.0), read_deadline=(now + 10.0, "ttft"))
        if path == "/unary":
            return len(await response.read(1_000_000))
        size = 0
        while chunk := await response.next_chunk():
            response.set_read_deadline(loop.time() + 20.0, "idle")
            size += len(chunk)
        return size

    yield call
    await client.close()


@contextlib.asynccontextmanager
async def _over_httpx(http: httpx.AsyncClient, port: int) -> AsyncIterator[Call]:
    async def call(path: str) -> int:
        url = f"http://127.0.0.1:{port}{path}"
        if path == "/unary":
            return len((await http.post(url, content=QUESTION, headers=HEADERS)).content)
        async with http.stream("POST", url, content=QUESTION, headers=HEADERS) as response:
            return sum([len(chunk) async for chunk in response.aiter_raw()])

    async with http:
        yield call


@contextlib.asynccontextmanager
async def hatchway_httpx(port: int, connections: int) -> AsyncIterator[Call]:
    client = UpstreamClient()
    async with _over_httpx(httpx.AsyncClient(transport=HatchwayTransport(client)), port) as call:
        yield call
    await client.close()


@contextlib.asynccontextmanager
async def stock_httpx(port: int, connections: int) -> AsyncIterator[Call]:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with _over_httpx(httpx.AsyncClient(limits=limits, timeout=60), port) as call:
        yield call


@contextlib.asynccontextmanager
async def aiohttp_client(port: int, connections: int) -> AsyncIterator[Call]:
    import aiohttp  # type: ignore[import-not-found]  # measured where it happens to be installed

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

        async def call(path: str) -> int:
            url = f"http://127.0.0.1:{port}{path}"
            async with session.post(url, data=QUESTION, headers=HEADERS) as response:
                if path == "/unary":
                    return len(await response.read())
                return sum([len(chunk) async for chunk in response.content.iter_any()])

        yield call


CLIENTS = {"UpstreamClient": hatchway, "HatchwayTransport": hatchway_httpx, "httpx": stock_httpx}
if importlib.util.find_spec("aiohttp"):
    CLIENTS["aiohttp"] = aiohttp_client


async def measure(name: str, port: int, path: str, connections: int, seconds: float) -> tuple[float, float]:
    """Requests a second, and microseconds of cpu for each."""
    expected = len(ANSWER) if path == "/unary" else len(EVENT) * CHUNKS
    done = 0

    async with CLIENTS[name](port, connections) as call:

        async def worker(until: float) -> None:
            nonlocal done
            while time.perf_counter() < until:
                size = await call(path)
                if size != expected:
                    raise RuntimeError(f"{name} read {size} of {expected} bytes")
                done += 1

        await asyncio.gather(*(worker(time.perf_counter() + 0.2) for _ in range(connections)))  # connections, caches
        done = 0
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker(began + seconds) for _ in range(connections)))
        return done / (time.perf_counter() - began), (time.process_time() - cpu) / done * 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--connections", type=int, default=32)
    options.add_argument("--only", choices=CLIENTS)
    arguments = options.parse_args()

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    process.start()
    port = ours.recv()
    os.sched_setaffinity(0, {0})
    names = [arguments.only] if arguments.only else list(CLIENTS)
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        for _ in range(arguments.rounds):
            for name in names:
                for path in ("/unary", "/stream"):
                    run = measure(name, port, path, arguments.connections, arguments.seconds)
                    runs.setdefault((name, path), []).append(uvloop.run(run))
    finally:
        ours.send(None)
        process.join()

    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in runs.items()}
    print(f"{'client':<20}{'requests/s':>12}{'cpu us':>10}{'streams/s':>12}{'chunks/s':>12}{'cpu us':>10}{'ratio':>8}")
    base = medians[names[-1], "/unary"][0] if arguments.only else medians["httpx", "/unary"][0]
    report = {}
    for name in names:
        (rate, cpu), (streams, stream_cpu) = medians[name, "/unary"], medians[name, "/stream"]
        chunks = streams * CHUNKS
        print(
            f"{name:<20}{rate:>12.0f}{cpu:>10.1f}{streams:>12.0f}{chunks:>12.0f}{stream_cpu:>10.1f}{rate / base:>8.1f}"
        )
        report[name] = {
            "requests_per_s": round(rate),
            "cpu_us_per_request": round(cpu, 1),
            "streams_per_s": round(streams),
            "cpu_us_per_stream": round(stream_cpu, 1),
            "requests_ratio_to_httpx": round(rate / base, 2),
        }
    print(json.dumps({"connections": arguments.connections, "rounds": arguments.rounds, "clients": report}))


if __name__ == "__main__":
    main()
