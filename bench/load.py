"""What stands at both ends of the gateway in `bench/gateway.py`: load, an instant upstream, and a bare proxy.

Nothing here imports the gateway. Times are `time.monotonic_ns`, one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import subprocess
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import httptools
import uvloop

Kind = Literal["json", "sse", "paced"]
CHUNKS = 64
PROMPT_TOKENS, COMPLETION_TOKENS = 42, 31
GRACE_SECONDS = 10.0
"""How long requests that are under way may take to end once the time is up."""

_USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 73}
_MESSAGES = [
    {"role": "system", "content": "Answer questions about the timetable of the ferries, briefly and politely."},
    {
        "role": "user",
        "content": "Which boat leaves the north pier after nine in the evening, and is there a later one?",
    },
]
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"x-hatchway-request-id: *(\S+)", re.IGNORECASE)
_ASKED = re.compile(rb'"model": *"bench-(json|sse|paced)(?:-(\d+))?"')
_STAMP = re.compile(rb"<(\d+)>")


# -- what goes over the wire ------------------------------------------------------------------------------------------


def body_for(kind: Kind, tick_ms: int = 20) -> bytes:
    """A chat completion request; the upstream reads in the model's name what to answer."""
    model = f"bench-paced-{tick_ms}" if kind == "paced" else f"bench-{kind}"
    fields: dict[str, Any] = {"model": model, "messages": _MESSAGES, "temperature": 0.3, "max_tokens": 256}
    if kind != "json":
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(fields).encode()


def _message(name: str, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    fields = {"id": "chatcmpl-bench", "object": name, "created": 1_764_000_000, "model": "bench", "choices": choices}
    return json.dumps(fields | {"system_fingerprint": "fp_bench", "usage": usage}, separators=(",", ":")).encode()


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return b"data: " + _message("chat.completion.chunk", [choice], None) + b"\n\n"


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_ANSWER = _message(
    "chat.completion",
    [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The last boat leaves the north pier at 21:40. " * 3},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    _USAGE,
)
_UNARY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_ENDING = (
    _event({}, "stop"),
    b"data: " + _message("chat.completion.chunk", [], _USAGE) + b"\n\n",
    b"data: [DONE]\n\n",
)
_LAST = b"0\r\n\r\n"
_STREAM = (
    _STREAM_HEAD
    + b"".join(_framed(_event({"content": f" word{n}"})) for n in range(CHUNKS - 2))
    + b"".join(map(_framed, _ENDING))
    + _LAST
)
_BEFORE_STAMP, _AFTER_STAMP = _event({"content": "<>"}).split(b"<>")


# -- the upstream -----------------------------------------------------------------------------------------------------


class Upstream(asyncio.Protocol):
    """Answers at once, or paces: a chunk that tells when it was sent, every so many ms for one second."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        length = _LENGTH.search(self.buffer, 0, end) if end >= 0 else None
        if length is None or len(self.buffer) < end + 4 + int(length[1]):
            return
        asked = _ASKED.search(self.buffer, end)
        self.buffer = b""
        kind = asked[1] if asked is not None else b""
        if asked is not None and kind == b"paced":
            self.tick_ms, self.sent, self.began = int(asked[2]), 0, self.loop.time()
            self.transport.write(_STREAM_HEAD)
            self.send_chunk()
        else:
            self.transport.write(_STREAM if kind == b"sse" else _UNARY)

    def send_chunk(self) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(_framed(b"%b<%d>%b" % (_BEFORE_STAMP, time.monotonic_ns(), _AFTER_STAMP)))
        self.sent += 1
        if self.sent < chunks_of(self.tick_ms):
            self.loop.call_at(self.began + self.sent * self.tick_ms / 1000, self.send_chunk)
        else:
            self.transport.write(b"".join(map(_framed, _ENDING)) + _LAST)


def chunks_of(tick_ms: int) -> int:
    """Stamped chunks of one paced stream."""
    return 1000 // tick_ms + 1


def serve_upstream() -> None:
    """Prints its port, serves until the process is ended."""
    uvloop.run(_serve(Upstream))


def serve_bare(upstream_port: int) -> None:
    """Prints its port, serves until the process is ended."""
    idle: list[BareUpstreamSide] = []
    uvloop.run(_serve(lambda: BareProxy(upstream_port, idle)))


async def _serve(factory: Any) -> None:
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# -- the bare proxy: what asyncio and httptools cost when nothing else is done ----------------------------------------


class BareProxy(asyncio.Protocol):
    """The client's side: HTTP parsed, a pooled connection to the upstream, nothing else. Requests without body fail."""

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
            body = (_framed(body) if body else b"") + (_LAST if self.is_done else b"")
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


# -- load -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a target listens. `path` ends in `/chat/completions`, or in `/messages` for a client of that protocol."""

    port: int
    path: str
    key: str | None

    @property
    def endings(self) -> tuple[bytes, bytes]:
        """What a whole stream has: its usage, once, and its last event."""
        if self.path.endswith("/messages"):
            return b'"output_tokens":%d' % COMPLETION_TOKENS, b"event: message_stop"
        return b'"total_tokens":73', b"[DONE]"

    def request(self, body: bytes) -> bytes:
        head = [f"POST {self.path} HTTP/1.1", f"host: 127.0.0.1:{self.port}", "content-type: application/json"]
        if self.key is not None:
            head.append(f"authorization: Bearer {self.key}")
        return "\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body


@dataclass
class Outcome:
    """`figures`: what the table shows. `cut`: connections closed on requests that were perhaps under way."""

    figures: dict[str, float]
    answered: int
    cut: int = 0
    request_ids: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One measurement with our own client: what its connections share. Times in ns."""

    request: bytes
    stop_at: int
    endings: tuple[bytes, bytes] = (b'"total_tokens":73', b"[DONE]")
    count_from: int = 0
    chunks: int = 0  # a paced stream has as many, stamped
    is_stream: bool = False
    answered: int = 0
    errors: int = 0
    stamped: int = 0
    in_time: int = 0  # stamped chunks that came in the counted time
    request_ids: list[str] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    ttft: list[int] = field(default_factory=list)
    transit: list[int] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection: a request, its whole answer, the next request, until time is up."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.is_busy = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        self.buffer = b""
        self.body_at = self.whole = self.scanned = self.seen = 0
        self.is_busy = True
        self.asked = time.monotonic_ns()
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self.buffer += data
        if not self.body_at:
            self.body_at = self.buffer.find(b"\r\n\r\n") + 4
            if self.body_at < 4:
                self.body_at = 0
                return
            length = _LENGTH.search(self.buffer, 0, self.body_at)
            self.whole = self.body_at + int(length[1]) if length is not None else 0
        if self.run.chunks:
            self.read_stamps(now)
        if len(self.buffer) >= self.whole if self.whole else self.buffer.endswith(b"\r\n0\r\n\r\n"):
            self.finish(now)

    def read_stamps(self, now: int) -> None:
        run = self.run
        for stamp in _STAMP.finditer(self.buffer, self.scanned):
            self.scanned = stamp.end()
            run.stamped += 1
            run.in_time += run.count_from <= now < run.stop_at
            if now >= run.count_from:  # also of streams that began before: a target that fell behind must show it
                run.transit.append(now - int(stamp[1]))
                if self.seen == 0:
                    run.ttft.append(now - self.asked)
            self.seen += 1

    def finish(self, now: int) -> None:
        run = self.run
        self.is_busy = False
        is_good = self.buffer.startswith(b"HTTP/1.1 200") and self.buffer.count(run.endings[0]) == 1
        if run.is_stream:
            is_good = is_good and run.endings[1] in self.buffer and self.seen == run.chunks
        if is_good:
            run.answered += 1
            run.durations.append(now - self.asked)
            if found := _REQUEST_ID.search(self.buffer, 0, self.body_at):
                run.request_ids.append(found[1].decode())
        else:
            run.errors += 1
        if now < run.stop_at:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.run.errors += self.is_busy
        self.ended.set_result(None)


async def _drive(run: Run, place: Place, connections: int, ramp_seconds: float) -> None:
    """Opens the connections evenly over the ramp, returns when all have ended."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    clients: list[Client] = []

    async def connect(delay: float) -> None:
        await asyncio.sleep(began + delay - loop.time())
        _, client = await loop.create_connection(lambda: Client(run), "127.0.0.1", place.port)
        clients.append(client)

    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(connect(ramp_seconds * number / connections))
    left = (run.stop_at - time.monotonic_ns()) / 1e9 + GRACE_SECONDS
    _, unfinished = await asyncio.wait([client.ended for client in clients], timeout=left)
    if unfinished:
        for client in clients:  # what they wait for counts as an error: it was not answered
            client.transport.abort()
        await asyncio.wait(unfinished)


def _run(work: Coroutine[Any, Any, Any]) -> None:
    gc.collect()
    gc.disable()
    try:
        uvloop.run(work)
    finally:
        gc.enable()


def quantile_ms(values: list[int], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6 if ordered else float("nan")


def run_own(place: Place, kind: Kind, connections: int, seconds: float) -> Outcome:
    """Requests one after another on each connection. None is cut: the last ones are awaited."""

    async def work() -> None:
        run.stop_at = time.monotonic_ns() + int(seconds * 1e9)
        await _drive(run, place, connections, 0.0)

    run = Run(place.request(body_for(kind)), 0, is_stream=kind == "sse")
    began = time.monotonic_ns()
    _run(work())
    figures = {
        "per_s": run.answered / (time.monotonic_ns() - began) * 1e9,
        "p50_ms": quantile_ms(run.durations, 0.5),
        "p99_ms": quantile_ms(run.durations, 0.99),
        "errors": float(run.errors),
    }
    return Outcome(figures, run.answered, request_ids=run.request_ids)


def run_paced(place: Place, streams: int, tick_ms: int, seconds: float) -> Outcome:
    """Keeps so many paced streams open. The first second, in which they begin one by one, is not counted."""

    async def work() -> None:
        run.count_from = time.monotonic_ns() + 10**9
        run.stop_at = run.count_from + int(seconds * 1e9)
        await _drive(run, place, streams, 1.0)

    run = Run(place.request(body_for("paced", tick_ms)), 0, place.endings, chunks=chunks_of(tick_ms), is_stream=True)
    _run(work())
    figures = {
        "chunks_per_s": run.in_time / seconds,
        "ttft_p50_ms": quantile_ms(run.ttft, 0.5),
        "ttft_p99_ms": quantile_ms(run.ttft, 0.99),
        "transit_p99_ms": quantile_ms(run.transit, 0.99),
        "chunks": float(run.stamped),
        "errors": float(run.errors),
    }
    return Outcome(figures, run.answered, request_ids=run.request_ids)


_WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = [[%s]]
wrk.headers["content-type"] = "application/json"
%s
function done(summary, latency, requests)
  local e = summary.errors
  local text = '{"requests":%%d,"us":%%d,"p50":%%d,"p99":%%d,"bad":%%d,"lost":%%d}\\n'
  io.write("SUMMARY " .. string.format(text, summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def run_wrk(place: Place, kind: Kind, connections: int, seconds: int, folder: Path) -> Outcome:
    """The same with `wrk`, which closes its connections when time is up, whatever is under way on them."""
    script = folder / "load.lua"
    key = f'wrk.headers["authorization"] = "Bearer {place.key}"' if place.key is not None else ""
    script.write_text(_WRK_SCRIPT % (body_for(kind).decode(), key))
    url = f"http://127.0.0.1:{place.port}{place.path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    found = re.search(r"^SUMMARY (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"`wrk` failed: {done.stdout[-300:]} {done.stderr[-300:]}")
    counts = json.loads(found[1])
    answered = counts["requests"] - counts["bad"]
    figures = {
        "per_s": answered / counts["us"] * 1e6,
        "p50_ms": counts["p50"] / 1e3,
        "p99_ms": counts["p99"] / 1e3,
        "errors": float(counts["bad"] + counts["lost"]),
    }
    return Outcome(figures, answered, cut=connections)
