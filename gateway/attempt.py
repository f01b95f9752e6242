"""One try at one endpoint, in two phases: `begin` sends and waits until there is something to show; `serve` shows it.

Between the two nothing has been shown, so that another attempt may still take over, or two may run against each other.
Its ledger entry is settled exactly once, before the last byte leaves, also when the upstream fails, a deadline passes,
the client goes away or the attempt is not wanted any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from decimal import Decimal
from time import perf_counter

from gateway.accounting.entry import NOTHING, UNKNOWN, Charge, Entry
from gateway.adapters.base import Call, Signer
from gateway.budgets.book import Reservation
from gateway.config.model import Endpoint, Streaming, Timeouts
from gateway.errors import (
    ConnectFailed,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStatus,
)
from gateway.protocols.base import StreamError, StreamReader
from gateway.relay import BYTES_PER_TOKEN, Pace, Relay
from gateway.reply import STREAM_HEADERS, Headers, Reply
from gateway.telemetry.trace import Trace
from gateway.types import Candidate, Status
from gateway.upstream.client import ReadDeadline, UpstreamClient
from gateway.upstream.request import Deadlines, UpstreamRequest
from gateway.upstream.response import UpstreamResponse

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 256 * 1024
MAX_HELD_BYTES = 1024 * 1024
"""Bytes of a stream held back before its first content, so that another endpoint may still take over."""
DRAIN_SECONDS = 1.0
"""How long the end of an upstream's message is awaited after its stream said that it is complete."""

CLIENT_GONE = "client_disconnected"
HEDGE_LOST = "hedge_lost"

Judge = Callable[[bytes], Mapping[str, str]]
"""Given the last bytes of an answer, what is to stand on its row (`shadow.Witness.tags`)."""


class Attempt:
    """`total_at`: loop time at which the whole request must be over. `streams`: the client wants a stream.

    `signer`: what signs the call; None: its headers have all it needs. `reservation`: the money set aside for it, which
    is settled with it. `on_settled` is called once, when the entry has been settled, with what the attempt cost (USD;
    None: unknown). `trace`: what the upstream is told of the request's trace; None: nothing.
    """

    # What is the same for every attempt that nothing has happened to yet costs nothing here.
    ttft: float | None = None
    """Seconds until its whole answer or its stream's first content had come."""
    charge: Charge = UNKNOWN
    """What it was settled with."""
    duration = 0.0
    is_empty = False
    """It has begun, and says nothing."""
    is_settled = False
    error_if_cancelled = CLIENT_GONE
    asked_at = answered_at = shown_at = 0.0
    """When it was sent, when its answer or first content was here, when that was handed to the client's socket, in
    seconds of `time.perf_counter`: a loop's own time may have whole milliseconds. 0: not yet."""
    status: Status | None = None
    error_type: str | None = None
    cost: Decimal | None = None
    finish_reason: str | None = None
    opening = b""
    """The whole answer, or what a stream had brought when its content came."""
    _was_signed = False
    _was_sent = False
    _was_accepted = False
    _response: UpstreamResponse | None = None
    _reader: StreamReader | None = None
    _whole: Charge | None = None
    _tier: str | None = None  # the service tier that a whole answer names

    def __init__(
        self,
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
        trace: Trace | None = None,
    ) -> None:
        self.candidate = candidate
        self.endpoint = endpoint
        self.number = number
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
        self._trace = trace

    # Phases

    async def begin(self) -> None:
        """Until there is a whole answer, or a stream's first content. Raises UpstreamError; the entry is settled then.

        What has begun must be served, rejected or abandoned.
        """
        self.asked_at = perf_counter()
        try:
            request = self._call.request
            if request is None:
                self.opening, self._whole = self._call.local_answer, NOTHING
                self.answered_at = self.asked_at
            elif self._streams:
                await self._begin_stream(request)
            else:
                response = await self._send(request, None)
                content = response.read_at_once(MAX_ANSWER_BYTES)
                if content is None:
                    content = await response.read(MAX_ANSWER_BYTES)
                self._begin_answer(content)
        except BaseException as error:
            self._end_badly(error)
            raise

    async def serve(self, reply: Reply, headers: Headers, judge: Judge | None = None) -> None:
        """Shows the client what has begun. Raises UpstreamError; `reply.has_content` says what was seen."""
        try:
            if self._reader is not None:
                await self._serve_stream(self._reader, reply, headers, judge)
                return
            assert self._whole is not None, "it has begun"
            if judge is not None:
                self._entry.tag(judge(self.opening))
            cost = self._settle("ok", self._whole)
            if self._entry.waits_for_disk:
                await self._entry.durable()
            self._show_answer(reply, headers, cost)
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

    def _begin_answer(self, content: bytes) -> None:
        self._answer_has_come()
        try:
            self.opening, summary = self._call.read_answer(content)
        except StreamError as error:
            error.body = error.body or content
            raise
        self.is_empty = summary.is_empty
        self.finish_reason = summary.finish_reason
        self._tier = summary.service_tier
        if summary.usage is not None:
            self._whole = self._entry.reported(summary.usage, summary.raw_usage, answer=self.opening)
        else:
            self._whole = self._entry.estimate(summary.text, summary.raw_usage)

    def _show_answer(self, reply: Reply, headers: Headers, cost: Decimal | None) -> None:
        length = (b"content-length", b"%d" % len(self.opening))
        block = [(b"content-type", b"application/json"), length, *headers]
        if cost is not None:
            block.append((b"x-hatchway-cost-usd", f"{cost:f}".encode()))
        reply.start(200, block)
        reply.send(self.opening, is_last=True)
        self.shown_at = perf_counter()

    def _answer_has_come(self) -> None:
        """Or a stream's first content."""
        self.answered_at = perf_counter()
        self.ttft = self.answered_at - self.asked_at

    # A stream

    async def _begin_stream(self, request: UpstreamRequest) -> None:
        now, first_byte, ttft = asyncio.get_running_loop().time(), self._timeouts.first_byte, self._timeouts.ttft
        at_first: ReadDeadline = (now + ttft, "ttft")
        if first_byte is not None and first_byte <= ttft:
            at_first = (now + first_byte, "first_byte")
        response = await self._send(request, at_first)
        reader = self._reader = self._call.open_stream()
        if at_first[1] == "first_byte":
            response.set_read_deadline(now + ttft, "ttft")
        held: list[bytes] = []
        size = 0
        while not reader.has_content:
            shown = await self._read(response, reader)
            held.append(shown)
            size += len(shown)
            if size > MAX_HELD_BYTES:
                raise UpstreamProtocolError("a stream that brings no content")
        self._answer_has_come()
        self.is_empty = reader.is_finished and reader.is_empty
        if self._streaming.on_failure == "restart":
            await self._hold_back(response, reader, held, size)
        self.opening = held[0] if len(held) == 1 else b"".join(held)

    async def _hold_back(self, response: UpstreamResponse, reader: StreamReader, held: list[bytes], size: int) -> None:
        """The first tokens wait here: as long as nobody has seen them, another endpoint can begin anew."""
        loop, enough = asyncio.get_running_loop(), self._streaming.hold_tokens * BYTES_PER_TOKEN
        while not reader.is_finished and size <= MAX_HELD_BYTES and len(reader.text()) < enough:
            response.set_read_deadline(loop.time() + self._timeouts.idle, "idle")
            shown = await self._read(response, reader)
            held.append(shown)
            size += len(shown)

    async def _serve_stream(self, reader: StreamReader, reply: Reply, headers: Headers, judge: Judge | None) -> None:
        response = self._response
        assert response is not None, "it has begun"
        if not reply.has_started:
            reply.start(200, [*STREAM_HEADERS, *headers])
        last = self.opening
        if not reader.is_finished:
            pace = None if self._streaming.min_tokens_per_second is None else Pace(self._streaming, reader)
            if last:
                reply.send(last, is_last=False)
            self.shown_at = perf_counter()
            try:
                last = await Relay(response, reader, reply, self._timeouts.idle, pace).run()
            except UpstreamError as error:
                if error.before:
                    reply.send(error.before, is_last=False)
                raise
        if judge is not None:
            self._entry.tag(judge(last))
        self._settle("ok", self._charge_of_stream(reader))
        if self._entry.waits_for_disk:
            await self._entry.durable()
        reply.send(last, is_last=True)
        self.shown_at = self.shown_at or perf_counter()
        if not response.complete:
            await self._drain(response)

    async def _read(self, response: UpstreamResponse, reader: StreamReader) -> bytes:
        chunk = await response.next_chunk()
        try:
            return reader.feed(chunk) if chunk else reader.finish()
        except StreamError as error:
            error.body = error.body or chunk
            raise

    async def _drain(self, response: UpstreamResponse) -> None:
        """Reads the end of the upstream's message, so that its connection can be used again."""
        response.set_read_deadline(asyncio.get_running_loop().time() + DRAIN_SECONDS, "idle")
        try:
            while await response.next_chunk():
                pass
        except UpstreamError:
            pass  # the client has its whole answer; only the connection is lost

    # Sending

    async def _send(self, request: UpstreamRequest, read_deadline: ReadDeadline | None) -> UpstreamResponse:
        """Returns an answer with a 2xx status; raises UpstreamStatus for any other."""
        deadlines = Deadlines(self._timeouts.connect, self._total_at)
        if self._trace is not None:
            request.headers += self._trace.header_lines(self.number, self.endpoint.provider.propagate)
        if self._signer is not None:
            request = await self._signer.sign(request, self._client, deadlines)
        self._was_signed = True
        is_whole = not self._streams
        if is_whole and self._timeouts.first_byte is not None:
            now = asyncio.get_running_loop().time()
            read_deadline, is_whole = (now + self._timeouts.first_byte, "first_byte"), False
        response = self._response = await self._client.send(
            request, deadlines, read_deadline=read_deadline, on_sent=self._note_sent, is_whole=is_whole
        )
        if 200 <= response.status < 300:
            self._was_accepted = True
            if not self._streams and read_deadline is not None:
                response.set_read_deadline(None, "idle")
            return response
        try:
            content = await response.read(MAX_ERROR_BYTES)
        except UpstreamProtocolError:
            content = b""  # over the limit: the status alone has to do
        raise UpstreamStatus(response.status, response.headers, content)

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
        self.status, self.error_type = status, error_type
        now, tier = perf_counter(), self._tier
        self.duration = now - self.asked_at if self.asked_at else 0.0
        if self._reader is not None:
            tier, self.finish_reason = self._reader.service_tier, self._reader.finish_reason
        self.answered_at = self.answered_at or now
        cost = self.cost = self._entry.settle(
            status, charge, ttft=self.ttft, duration=self.duration, error_type=error_type, service_tier=tier
        )
        self.charge = self._entry.charge
        self._reservation.settle(cost, is_reported=self.charge.is_reported)
        self._on_settled(self, cost)
        return cost
