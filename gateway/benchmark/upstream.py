"""The upstream of a measurement, a process of its own: `python -m gateway.benchmark.upstream [--port N]`.

Answers as `gateway.benchmark.wire` says: at once, or paced. A request to `/faulty/v1/chat/completions`, which the soak
sends, meets the next of `FAULTS`: good answers between bad ones. To a gateway's telemetry it is a collector that takes
everything (OTLP over HTTP, an empty success). Prints its port, serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import cast

import uvloop

from gateway.benchmark.wire import (
    AFTER_STAMP,
    BEFORE_STAMP,
    LAST,
    STREAM,
    STREAM_END,
    STREAM_HEAD,
    UNARY,
    chunks_of,
    framed,
)

BACKLOG = 4096
COLLECTED = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
MOST_BYTES = 16 * 1024 * 1024
"""Of a request. A connection that sends more is closed."""

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TICK = re.compile(rb'"max_(?:completion_)?tokens": ?(\d{1,6})')
_CHUNKED = re.compile(rb"transfer-encoding: *chunked", re.IGNORECASE)


class Upstream(asyncio.Protocol):
    """One connection. A paced stream's chunks leave at fixed times from its start, however late one of them was."""

    def __init__(self, faults: Iterator[Callable[[asyncio.Transport], None]]) -> None:
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or not _is_whole(data, end):
            self._buffer = data
            if len(data) > MOST_BYTES:
                self._transport.abort()
            return
        self._buffer = b""
        if data.startswith(b"POST /json/"):
            self._transport.write(UNARY)
        elif data.startswith(b"POST /sse/"):
            self._transport.write(STREAM)
        elif data.startswith(b"POST /paced/"):
            self._pace(data, end)
        elif data.startswith(b"POST /faulty/"):
            next(self._faults)(self._transport)
        elif data.startswith((b"POST /v1/traces", b"POST /v1/metrics")):
            self._transport.write(COLLECTED)
        else:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def _pace(self, data: bytes, end: int) -> None:
        asked = _TICK.search(data, end)
        self._tick_ms = max(1, int(asked[1])) if asked is not None else 20
        self._left = chunks_of(self._tick_ms)
        self._due = self._loop.time()
        self._transport.write(STREAM_HEAD)
        self._send_chunk()

    def _send_chunk(self) -> None:
        if self._transport.is_closing():
            return
        chunk = framed(b"%b%d%b" % (BEFORE_STAMP, time.monotonic_ns(), AFTER_STAMP))
        self._left -= 1
        if self._left:
            self._due += self._tick_ms / 1000
            self._loop.call_at(self._due, self._send_chunk)
            self._transport.write(chunk)
        else:
            self._transport.write(chunk + STREAM_END)


def _is_whole(data: bytes, end: int) -> bool:
    """`end`: where the head ends."""
    length = _LENGTH.search(data, 0, end)
    if length is not None:
        return len(data) >= end + 4 + int(length[1])
    return data.endswith(LAST) if _CHUNKED.search(data, 0, end) else True


# -- faults -----------------------------------------------------------------------------------------------------------

SLOW_SECONDS = 0.5


def _fail(transport: asyncio.Transport) -> None:
    body = b'{"error":{"message":"down for a moment","type":"server_error","param":null,"code":null}}'
    head = b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    transport.write(head % len(body) + body)


def _reset(transport: asyncio.Transport) -> None:
    transport.abort()


def _cut(transport: asyncio.Transport) -> None:
    """The first half of an answer, and the end of the connection."""
    transport.write(UNARY[: len(UNARY) // 2])
    transport.close()


def _dawdle(transport: asyncio.Transport) -> None:
    def answer() -> None:
        if not transport.is_closing():
            transport.write(UNARY)

    asyncio.get_running_loop().call_later(SLOW_SECONDS, answer)


def _answer(transport: asyncio.Transport) -> None:
    transport.write(UNARY)


FAULTS = tuple(turn for fault in (_fail, _reset, _cut, _dawdle) for turn in (_answer, _answer, fault))
"""In turn. Most answers are good, so that the endpoint is not ejected at once and for long."""


# -- the process ------------------------------------------------------------------------------------------------------


async def serve(factory: Callable[[], asyncio.Protocol], port: int) -> None:
    """Prints its port, serves until the process is ended."""
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port, backlog=BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    port = parser.parse_args().port
    faults = itertools.cycle(FAULTS)
    uvloop.run(serve(lambda: Upstream(faults), port))


if __name__ == "__main__":
    main()
