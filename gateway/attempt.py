"""One try at one endpoint, in two phases: `begin` sends and waits until there is something to show; `serve` shows it.

Between the two nothing has been shown, so that another attempt may still take over, or two may run against each other.
Its ledger entry is settled exactly once, before the last byte leaves, also when the upstream fails, a deadline passes,
the client goes away or the attempt is not wanted any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from decimal import Decimal

from gateway.accounting.entry import NOTHING, UNKNOWN, Charge, Entry
from gateway.adapters.base import Call, Signer
from gateway.budgets.book import Reservation
from gateway.config.model import Endpoint, Streaming, Timeouts
from gateway.errors import (
    ConnectFailed,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStatus,
    UpstreamTimeout,
)
from gateway.protocols.base import StreamError, StreamReader
from gateway.reply import STREAM_HEADERS, Headers, Reply
from gateway.types import Candidate, Status
from gateway.upstream.client import ReadDeadline, UpstreamClient
from gateway.upstream.request import Deadlines
from gateway.upstream.response import NEVER, UpstreamResponse

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 256 * 1024
MAX_HELD_BYTES = 1024 * 1024
"""Bytes of a stream held back before its first content, so that another endpoint may still take over."""
DRAIN_SECONDS = 1.0
"""How long the end of an upstream's message is awaited after its stream said that it is complete."""
BYTES_PER_TOKEN = 4
"""Of a model's text, roughly: enough for thresholds."""
MAX_PACED = 4 * 1024 * 1024
"""Characters of a stream beyond which readers keep no more of its text, so that its speed is not known."""
LARGE_PIECE = 4096
"""Bytes of an event under way that show that its stream goes on."""

CLIENT_GONE = "client_disconnected"
HEDGE_LOST = "hedge_lost"

Judge = Callable[[bytes], Mapping[str, str]]
"""Given the last bytes of an answer, what is to stand on its row (`shadow.Witness.tags`)."""


class Attempt:
    """`total_at`: loop time at which the whole request must be over. `streams`: the client wants a stream.

    `signer`: what signs the call; None: its headers have all it needs. `reservation`: the money set aside for it, which
    is settled with it. `on_settled` is called once, when the entry has
    been settled, with what the attempt cost (USD; None: unknown).
    """

    def __init__(
        self,
        *,
        candidate: Candidate,
        endpoint: Endpoint,
        number: int,
        call: Call,
        streams: bool,
        signer: Signer | None,
        entry: Entry,
        reservation: Reservation,
        client: UpstreamClient,
        timeouts: Timeouts,
        streaming: Streaming,
        total_at: float,
        on_settled: Callable[[Attempt, Decimal | None], None],
    ) -> None:
        self.candidate = candidate
        self.endpoint = endpoint
        self.number = number
        self.ttft: float | None = None
        self.charge: Charge = UNKNOWN  # what it was settled with
        self.duration = 0.0
        self.is_empty = False  # it has begun, and says nothing
        self.is_settled = False
        self.error_if_cancelled = CLIENT_GONE
        self.note = call.note
        self.is_local = call.request is None  # the gateway itself has the answer
        self._call = call
        self._streams = streams
        self._signer = signer
        self._entry = entry
        self._reservation = reservation
        self._client = client
        self._timeouts = timeouts
        self._streaming = streaming
        self._total_at = total_at
        self._on_settled = on_settled
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._was_signed = signer is None
        self._was_sent = False
        self._was_accepted = False
        self._response: UpstreamResponse | None = None
        self._reader: StreamReader | None = None
        self._held = b""  # of a stream that has begun
        self._answer = b""
        self._whole: Charge | None = None
        self._tier: str | None = None  # the service tier that a whole answer names

    # Phases

    async def begin(self) -> None:
        """Until there is a whole answer, or a stream's first content. Raises UpstreamError; the entry is settled then.

        What has begun must be served, rejected or abandoned.
        """
        try:
            if self._call.request is None:
                self._answer, self._whole = self._call.local_answer, NOTHING
            elif self._streams:
                await self._begin_stream()
            else:
                await self._begin_answer()
        except BaseException as error:
            self._end_badly(error)
            raise

    async def serve(self, reply: Reply, headers: Headers, judge: Judge | None = None) -> None:
        """Shows the client what has begun. Raises UpstreamError; `reply.has_content` says what was seen."""
        try:
            if self._reader is None:
                await self._serve_answer(reply, headers, judge)
            else:
                await self._serve_stream(self._reader, reply, headers, judge)
        except BaseException as error:
            self._end_badly(error)
            raise
        finally:
            if self._response is not None:
                self._response.close()

    def reject(self, error: UpstreamError) -> None:
        """Of one that has begun: what it brings is not good enough."""
        self._end_badly(error)

    def abandon(self, error_type: str) -> None:
        """Closes the upstream's connection at once. Nothing happens to one that has ended already."""
        if not self.is_settled:
            self._close()
            self._settle("cancelled", self._charge_of_abandoned(), error_type)

    # A whole answer

    async def _begin_answer(self) -> None:
        response = await self._send()
        content = await response.read(MAX_ANSWER_BYTES)
        try:
            self._answer, summary = self._call.read_answer(content)
        except StreamError as error:
            error.body = error.body or content
            raise
        self.ttft = self._loop.time() - self._sent_at
        self.is_empty = summary.is_empty
        self._tier = summary.service_tier
        if summary.usage is not None:
            self._whole = self._entry.reported(summary.usage, summary.raw_usage, answer=self._answer)
        else:
            self._whole = self._entry.estimate(summary.text, summary.raw_usage)

    async def _serve_answer(self, reply: Reply, headers: Headers, judge: Judge | None) -> None:
        assert self._whole is not None, "it has begun"
        if judge is not None:
            self._entry.tag(judge(self._answer))
        cost = self._settle("ok", self._whole)
        await self._entry.durable()
        length = (b"content-length", b"%d" % len(self._answer))
        block = [(b"content-type", b"application/json"), length, *headers]
        if cost is not None:
            block.append((b"x-hatchway-cost-usd", f"{cost:f}".encode()))
        await reply.start(200, block)
        await reply.send(self._answer, is_last=True)

    # A stream

    async def _begin_stream(self) -> None:
        response = await self._send()
        reader = self._reader = self._call.open_stream()
        response.set_read_deadline(self._sent_at + self._timeouts.ttft, "ttft")
        held: list[bytes] = []
        size = 0
        while not reader.has_content:
            shown = await self._read(response, reader)
            held.append(shown)
            size += len(shown)
            if size > MAX_HELD_BYTES:
                raise UpstreamProtocolError("a stream that brings no content")
        self.ttft = self._loop.time() - self._sent_at
        self.is_empty = reader.is_finished and reader.is_empty
        if self._streaming.on_failure == "restart":
            await self._hold_back(response, reader, held, size)
        self._held = b"".join(held)

    async def _hold_back(self, response: UpstreamResponse, reader: StreamReader, held: list[bytes], size: int) -> None:
        """The first tokens wait here: as long as nobody has seen them, another endpoint can begin anew."""
        enough = self._streaming.hold_tokens * BYTES_PER_TOKEN
        while not reader.is_finished and size <= MAX_HELD_BYTES and len(reader.text()) < enough:
            response.set_read_deadline(self._loop.time() + self._timeouts.idle, "idle")
            shown = await self._read(response, reader)
            held.append(shown)
            size += len(shown)

    async def _serve_stream(self, reader: StreamReader, reply: Reply, headers: Headers, judge: Judge | None) -> None:
        response = self._response
        assert response is not None, "it has begun"
        if not reply.has_started:
            await reply.start(200, [*STREAM_HEADERS, *headers])
        held, self._held = self._held, b""
        try:
            last = await self._forward(response, reader, reply, held)
        except UpstreamError as error:
            if error.before:
                await reply.send(error.before, is_last=False)
            raise
        if judge is not None:
            self._entry.tag(judge(last))
        self._settle("ok", self._charge_of_stream(reader))
        await self._entry.durable()
        await reply.send(last, is_last=True)
        await self._drain(response)

    async def _forward(self, response: UpstreamResponse, reader: StreamReader, reply: Reply, held: bytes) -> bytes:
        """Passes the stream on as it comes; returns its last bytes, which wait until the entry is settled.

        `idle` counts from the last event with data: comments and bytes that complete no event are no progress.
        """
        loop, idle = self._loop, self._timeouts.idle
        pace = None if self._streaming.min_tokens_per_second is None else Pace(self._streaming, reader)
        idle_at = loop.time() + idle
        chunk = b""
        while not reader.is_finished:
            if held:
                await reply.send(held, is_last=False)
            if b"data:" in held or len(chunk) > LARGE_PIECE:
                idle_at = loop.time() + idle
            response.set_read_deadline(idle_at, "idle")
            if pace is not None:
                pace.start(loop.time())
            chunk = await response.next_chunk()
            held = reader.feed(chunk) if chunk else reader.finish()
            if pace is not None and pace.is_too_slow(loop.time()):
                slow = UpstreamTimeout("slow", self._streaming.slow_after)
                slow.before = held
                raise slow
        return held

    async def _read(self, response: UpstreamResponse, reader: StreamReader) -> bytes:
        chunk = await response.next_chunk()
        try:
            return reader.feed(chunk) if chunk else reader.finish()
        except StreamError as error:
            error.body = error.body or chunk
            raise

    async def _drain(self, response: UpstreamResponse) -> None:
        """Reads the end of the upstream's message, so that its connection can be used again."""
        response.set_read_deadline(self._loop.time() + DRAIN_SECONDS, "idle")
        try:
            while await response.next_chunk():
                pass
        except UpstreamError:
            pass  # the client has its whole answer; only the connection is lost

    # Sending

    async def _send(self) -> UpstreamResponse:
        """Returns an answer with a 2xx status; raises UpstreamStatus for any other."""
        request = self._call.request
        assert request is not None, "a local answer is not sent for"
        deadlines = Deadlines(connect=self._timeouts.connect, total_at=self._total_at)
        if self._signer is not None:
            request = await self._signer.sign(request, self._client, deadlines)
            self._was_signed = True
        response = self._response = await self._client.send(
            request, deadlines, read_deadline=self._head_deadline(), on_sent=self._note_sent
        )
        if 200 <= response.status < 300:
            self._was_accepted = True
            if not self._streams:
                response.set_read_deadline(None, "idle")
            return response
        try:
            content = await response.read(MAX_ERROR_BYTES)
        except UpstreamProtocolError:
            content = b""  # over the limit: the status alone has to do
        raise UpstreamStatus(response.status, response.headers, content)

    def _head_deadline(self) -> ReadDeadline | None:
        first_byte = self._timeouts.first_byte
        ttft = self._timeouts.ttft if self._streams else NEVER
        if first_byte is not None and first_byte <= ttft:
            return self._sent_at + first_byte, "first_byte"
        return (self._sent_at + ttft, "ttft") if self._streams else None

    def _note_sent(self, response: UpstreamResponse) -> None:
        self._was_sent = True

    def _close(self) -> None:
        if self._response is not None:
            self._response.close()

    # Settling

    def _end_badly(self, error: BaseException) -> None:
        self._close()
        if isinstance(error, UpstreamError):
            status: Status = "timeout" if error.kind.startswith("timeout_") else "error"
            self._settle(status, self._charge_of_failure(error), error.kind)
        elif isinstance(error, asyncio.CancelledError):
            is_lost = self.error_if_cancelled == HEDGE_LOST
            charge = self._charge_of_abandoned() if is_lost else self._charge_of_cut()
            self._settle("cancelled", charge, self.error_if_cancelled)
        else:
            self._settle("error", self._charge_of_cut(), "internal_error")

    def _charge_of_stream(self, reader: StreamReader) -> Charge:
        if reader.usage is not None:
            return self._entry.reported(reader.usage, reader.raw_usage, text=reader.text)
        return self._entry.estimate(reader.text(), reader.raw_usage)

    def _charge_of_failure(self, error: UpstreamError) -> Charge:
        if isinstance(error, (UpstreamStatus, ConnectFailed)) or error.kind == "timeout_connect":
            return NOTHING
        if not self._was_signed:
            return NOTHING  # no credentials: the request itself was never sent
        return self._charge_of_cut()

    def _charge_of_cut(self) -> Charge:
        """The upstream began to answer and was not heard to the end: it has done, and bills, at least this much."""
        if self._whole is not None:
            return self._whole
        if not self._was_accepted:
            return UNKNOWN
        return self._entry.estimate("") if self._reader is None else self._charge_of_stream(self._reader)

    def _charge_of_abandoned(self) -> Charge:
        """We ended it ourselves: once it has the request, at least the input is billed."""
        if self._whole is None and not self._was_accepted:
            return self._entry.estimate("") if self._was_sent else NOTHING
        return self._charge_of_cut()

    def _settle(self, status: Status, charge: Charge, error_type: str | None = None) -> Decimal | None:
        if self.is_settled:
            return None
        self.is_settled = True
        self.duration = self._loop.time() - self._sent_at
        cost = self._entry.settle(
            status,
            charge,
            ttft=self.ttft,
            duration=self.duration,
            error_type=error_type,
            service_tier=self._tier if self._reader is None else self._reader.service_tier,
        )
        self.charge = self._entry.charge
        self._reservation.settle(cost, is_reported=self.charge.is_reported)
        self._on_settled(self, cost)
        return cost


class Pace:
    """How fast a stream's text comes, of the time that was spent waiting for it: a slow client is not its fault."""

    def __init__(self, streaming: Streaming, reader: StreamReader) -> None:
        self._least = (streaming.min_tokens_per_second or 0.0) * BYTES_PER_TOKEN
        self._window = streaming.slow_after
        self._reader = reader
        self._waited = 0.0
        self._length = len(reader.text())
        self._started = 0.0

    def start(self, now: float) -> None:
        self._started = now

    def is_too_slow(self, now: float) -> bool:
        """Whether a window ends in which too little came."""
        self._waited += now - self._started
        if self._waited < self._window or self._reader.is_finished:
            return False
        length = len(self._reader.text())
        came, waited = length - self._length, self._waited
        self._waited, self._length = 0.0, length
        return came < self._least * waited and length < MAX_PACED
