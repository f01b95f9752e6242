"""Our own load: connections that ask one request after another, in one loop over epoll or its like.

Lighter than asyncio on purpose: load and upstream share a processor, and neither may be what is measured. Answers are
read as HTTP/1.1 messages with a length or in chunks; what is judged of a body is its end, and its stamps.
"""

from __future__ import annotations

import gc
import re
import selectors
import socket
import time
from dataclasses import dataclass, field

from gateway.benchmark.wire import LAST, Kind, Place, body_for, chunks_of

GRACE_SECONDS = 10.0
"""How long requests that are under way may take to end once the time is up."""

CONNECT_SECONDS = 10.0
RECEIVE_BYTES = 1 << 18
TAIL_BYTES = 2048
"""Of an answer that are kept: its usage and last event are in them, and a stamp that is cut in two."""

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"x-hatchway-request-id: *(\S+)", re.IGNORECASE)
_STAMP = re.compile(rb"~(\d{1,20})~")


@dataclass
class Outcome:
    """`figures`: what the table shows. `cut`: connections closed on requests that were perhaps under way.

    `complaint`: the first wrong answer, or why there was none.
    """

    figures: dict[str, float]
    answered: int
    cut: int = 0
    request_ids: list[str] = field(default_factory=list)
    complaint: str = ""


@dataclass
class Run:
    """What the connections of one measurement share. Times in ns; `chunks`: stamped ones of a whole stream."""

    place: Place
    request: bytes
    kind: Kind
    chunks: int
    count_from: int
    stop_at: int
    answered: int = 0
    errors: int = 0
    stamped: int = 0
    in_time: int = 0  # stamped chunks that came in the counted time
    complaint: str = ""
    request_ids: list[str] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    ttft: list[int] = field(default_factory=list)
    transit: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.usage = re.compile(self.place.usage)
        self.ending = self.place.ending

    def fail(self, why: str) -> None:
        self.errors += 1
        self.complaint = self.complaint or why


class Connection:
    """One connection to the target, and the answer that it reads."""

    def __init__(self, place: Place) -> None:
        """Raises OSError where nobody listens."""
        self.socket = socket.create_connection((place.host, place.port), CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def ask(self, run: Run) -> None:
        """Sends the run's request. Raises OSError when the connection is closed."""
        self._run = run
        self._text = b""
        self._is_head = True
        self._left: int | None = None  # of a body of known length; None: it comes in chunks
        self._status = b""
        self.request_id: str | None = None
        self.seen = 0  # stamped chunks
        self._asked = time.monotonic_ns()
        self.socket.send(run.request)  # far smaller than what an idle socket takes

    def take(self, data: bytes, now: int) -> bool:
        """Reads on. True: the answer is whole, and counted."""
        text = self._text + data
        if self._is_head:
            end = text.find(b"\r\n\r\n")
            if end < 0:
                self._text = text
                return False
            self._read_head(text[:end])
            data = text = text[end + 4 :]
        if self._run.chunks:
            text = text[self._read_stamps(text, now) :]
        self._text = text[-TAIL_BYTES:]
        if self._left is None:
            if not text.endswith(b"\r\n" + LAST):
                return False
        else:
            self._left -= len(data)
            if self._left > 0:
                return False
        self._judge(now)
        return True

    def _read_head(self, head: bytes) -> None:
        self._is_head = False
        self._status = head[9:12]
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length is not None else None
        if found := _REQUEST_ID.search(head):
            self.request_id = found[1].decode()

    def _read_stamps(self, text: bytes, now: int) -> int:
        """Returns where the last one ends."""
        run, end = self._run, 0
        for stamp in _STAMP.finditer(text):
            end = stamp.end()
            run.stamped += 1
            if now >= run.count_from:  # also of streams that began before: a target that fell behind must show it
                run.in_time += now < run.stop_at
                run.transit.append(now - int(stamp[1]))
                if self.seen == 0:
                    run.ttft.append(now - self._asked)
            self.seen += 1
        return end

    def _judge(self, now: int) -> None:
        run = self._run
        is_whole = self._status == b"200" and run.usage.search(self._text) is not None
        if run.kind != "json":
            is_whole = is_whole and run.ending in self._text and self.seen == run.chunks
        if not is_whole:
            run.fail(f"{self._status.decode()} {self._text[:300].decode(errors='replace')}")
            return
        run.answered += 1
        run.durations.append(now - self._asked)
        if self.request_id is not None:
            run.request_ids.append(self.request_id)


class Drive:
    """The connections of one measurement: each asks again when it has its answer, until time is up."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._selector = selectors.DefaultSelector()

    def go(self, connections: int, ramp_seconds: float) -> None:
        """Opens the connections evenly over the ramp, returns when all have ended. Raises OSError if nobody listens."""
        gc.collect()
        gc.disable()  # a collection in the middle would be seen as the target's latency
        try:
            self._go(connections, int(ramp_seconds * 1e9))
        finally:
            gc.enable()
            for connection in self._open():
                self._close(connection)
            self._selector.close()

    def _go(self, connections: int, ramp: int) -> None:
        run, opened = self._run, 0
        began = now = time.monotonic_ns()
        give_up = run.stop_at + int(GRACE_SECONDS * 1e9)
        while opened < connections or self._selector.get_map():
            while opened < connections and now >= began + opened * ramp // connections:
                self._open_one()
                opened += 1
            for key, _ in self._selector.select(0.001 if opened < connections else 0.2):
                self._serve(key.data)
            now = time.monotonic_ns()
            if now > give_up:
                for connection in self._open():
                    run.fail(f"no answer {GRACE_SECONDS:.0f} s after the end")
                    self._close(connection)
                return

    def _serve(self, connection: Connection) -> None:
        run = self._run
        why = "a connection was closed on a request"
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
            now = time.monotonic_ns()
            if data:
                if not connection.take(data, now):
                    return
                if now < run.stop_at:
                    connection.ask(run)
                    return
        except OSError as error:
            data, now, why = b"", time.monotonic_ns(), f"a connection broke: {error}"
        self._close(connection)
        if not data:
            run.fail(why)
            if now < run.stop_at:
                self._open_one()

    def _open_one(self) -> None:
        connection = Connection(self._run.place)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.ask(self._run)

    def _open(self) -> list[Connection]:
        return [key.data for key in self._selector.get_map().values()]

    def _close(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()


def quantile_ms(values: list[int], share: float) -> float:
    """Of times in ns; not a number of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6 if ordered else float("nan")


def run_unpaced(place: Place, kind: Kind, connections: int, seconds: float) -> Outcome:
    """Requests one after another on each connection. None is cut: the last ones are awaited. Raises OSError."""
    began = time.monotonic_ns()
    run = Run(place, place.request(body_for(kind)), kind, 0, began, began + int(seconds * 1e9))
    Drive(run).go(connections, 0.0)
    figures = {
        "per_s": run.answered / (time.monotonic_ns() - began) * 1e9,
        "p50_ms": quantile_ms(run.durations, 0.5),
        "p99_ms": quantile_ms(run.durations, 0.99),
        "errors": float(run.errors),
    }
    return Outcome(figures, run.answered, request_ids=run.request_ids, complaint=run.complaint)


def run_paced(place: Place, streams: int, tick_ms: int, seconds: float, ramp_seconds: float = 1.0) -> Outcome:
    """Keeps so many paced streams open. The time in which they begin one by one, evenly, is not counted.

    Raises OSError.
    """
    count_from = time.monotonic_ns() + int(ramp_seconds * 1e9)
    stop_at = count_from + int(seconds * 1e9)
    run = Run(place, place.request(body_for("paced", tick_ms)), "paced", chunks_of(tick_ms), count_from, stop_at)
    Drive(run).go(streams, ramp_seconds)
    figures = {
        "chunks_per_s": run.in_time / seconds,
        "ttft_p50_ms": quantile_ms(run.ttft, 0.5),
        "ttft_p99_ms": quantile_ms(run.ttft, 0.99),
        "transit_p99_ms": quantile_ms(run.transit, 0.99),
        "finished": float(run.answered),
        "chunks": float(run.stamped),
        "errors": float(run.errors),
    }
    return Outcome(figures, run.answered, request_ids=run.request_ids, complaint=run.complaint)
