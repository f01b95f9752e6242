"""One try at one endpoint: send, answer or stream, settle.

Its ledger entry is settled exactly once, before the last byte leaves, also when the upstream fails, a deadline passes
or the client goes away.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Protocol

from gateway.accounting.entry import NOTHING, UNKNOWN, Charge, Entry
from gateway.adapters.base import Call, Signer
from gateway.config.model import Timeouts
from gateway.errors import ConnectFailed, UpstreamError, UpstreamProtocolError, UpstreamStatus
from gateway.protocols.base import StreamReader
from gateway.types import Status
from gateway.upstream.client import ReadDeadline, UpstreamClient
from gateway.upstream.request import Deadlines
from gateway.upstream.response import UpstreamResponse

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 256 * 1024
MAX_HELD_BYTES = 1024 * 1024
"""Bytes of a stream held back before its first content, so that another endpoint may still take over."""
DRAIN_SECONDS = 1.0
"""How long the end of an upstream's message is awaited after its stream said that it is complete."""

Headers = list[tuple[bytes, bytes]]


class Reply(Protocol):
    """The client's side of one request. `has_started`: the client has seen a status; nothing can be taken back.

    `due`: loop time after which a client that does not read is given up.
    """

    has_started: bool
    due: float

    async def start(self, status: int, headers: Headers) -> None: ...
    async def send(self, body: bytes, *, is_last: bool) -> None: ...


class Attempt:
    """`headers`: the gateway's own response headers. `total_at`: loop time at which the whole request must be over.

    `streams`: the client wants a stream. `signer`: what signs the call; None: its headers have all it needs.
    """

    def __init__(
        self,
        *,
        call: Call,
        streams: bool,
        signer: Signer | None,
        entry: Entry,
        client: UpstreamClient,
        reply: Reply,
        headers: Headers,
        timeouts: Timeouts,
        total_at: float,
    ) -> None:
        self.ttft: float | None = None
        self._call = call
        self._streams = streams
        self._signer = signer
        self._entry = entry
        self._client = client
        self._reply = reply
        self._headers = headers
        self._timeouts = timeouts
        self._total_at = total_at
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._was_signed = signer is None
        self._was_accepted = False
        self._reader: StreamReader | None = None

    async def run(self) -> None:
        """Serves the client from this endpoint. Raises UpstreamError; `reply.has_started` says what was seen."""
        try:
            if self._call.request is None:
                cost = self._settle("ok", NOTHING)
                await self._send_whole(self._call.local_answer, cost)
            elif self._streams:
                await self._stream()
            else:
                await self._answer()
        except UpstreamError as error:
            status: Status = "timeout" if error.kind.startswith("timeout_") else "error"
            self._settle(status, self._charge_of_failure(error), error.kind)
            raise
        except asyncio.CancelledError:
            self._settle("cancelled", self._charge_of_cut(), "client_disconnected")
            raise
        except BaseException:
            self._settle("error", self._charge_of_cut(), "internal_error")
            raise

    async def _answer(self) -> None:
        response = await self._send(ttft_at=None)
        try:
            content = await response.read(MAX_ANSWER_BYTES)
        finally:
            response.close()
        shown, summary = self._call.read_answer(content)
        self.ttft = self._loop.time() - self._sent_at
        if summary.usage is not None:
            charge = Charge(summary.usage, is_reported=True, raw_usage=summary.raw_usage)
        else:
            charge = self._entry.estimate(summary.text, summary.raw_usage)
        await self._send_whole(shown, self._settle("ok", charge))

    async def _send_whole(self, content: bytes, cost: Decimal | None) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
            *self._headers,
        ]
        if cost is not None:
            headers.append((b"x-hatchway-cost-usd", f"{cost:f}".encode()))
        await self._reply.start(200, headers)
        await self._reply.send(content, is_last=True)

    async def _stream(self) -> None:
        ttft_at = self._sent_at + self._timeouts.ttft
        response = await self._send(ttft_at=ttft_at)
        try:
            reader = self._reader = self._call.open_stream()
            response.set_read_deadline(ttft_at, "ttft")
            held = await self._wait_for_content(response, reader)
            self.ttft = self._loop.time() - self._sent_at
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                *self._headers,
            ]
            await self._reply.start(200, headers)
            last = await self._forward(response, reader, held)
            self._settle("ok", self._charge_of_stream(reader))
            await self._reply.send(last, is_last=True)
            await self._drain(response)
        finally:
            response.close()

    async def _send(self, *, ttft_at: float | None) -> UpstreamResponse:
        """Returns an answer with a 2xx status; raises UpstreamStatus for any other."""
        request = self._call.request
        assert request is not None, "a local answer is not sent for"
        deadlines = Deadlines(connect=self._timeouts.connect, total_at=self._total_at)
        if self._signer is not None:
            request = await self._signer.sign(request, self._client, deadlines)
            self._was_signed = True
        read_deadline: ReadDeadline | None = None if ttft_at is None else (ttft_at, "ttft")
        response = await self._client.send(request, deadlines, read_deadline=read_deadline)
        if 200 <= response.status < 300:
            self._was_accepted = True
            return response
        try:
            content = await response.read(MAX_ERROR_BYTES)
        except UpstreamProtocolError:
            content = b""  # over the limit: the status alone has to do
        finally:
            response.close()
        raise UpstreamStatus(response.status, response.headers, content)

    async def _wait_for_content(self, response: UpstreamResponse, reader: StreamReader) -> bytes:
        """The stream up to and including its first content."""
        held: list[bytes] = []
        held_bytes = 0
        while not reader.has_content:
            chunk = await response.next_chunk()
            shown = reader.feed(chunk) if chunk else reader.finish()
            held.append(shown)
            held_bytes += len(shown)
            if held_bytes > MAX_HELD_BYTES:
                raise UpstreamProtocolError("a stream that brings no content")
            if not chunk:
                break
        return b"".join(held)

    async def _forward(self, response: UpstreamResponse, reader: StreamReader, held: bytes) -> bytes:
        """Passes the stream on as it comes; returns its last bytes, which wait until the entry is settled."""
        while not reader.is_finished:
            if held:
                await self._reply.send(held, is_last=False)
            response.set_read_deadline(self._loop.time() + self._timeouts.idle, "idle")
            chunk = await response.next_chunk()
            held = reader.feed(chunk) if chunk else reader.finish()
        return held

    async def _drain(self, response: UpstreamResponse) -> None:
        """Reads the end of the upstream's message, so that its connection can be used again."""
        response.set_read_deadline(self._loop.time() + DRAIN_SECONDS, "idle")
        try:
            while await response.next_chunk():
                pass
        except UpstreamError:
            pass  # the client has its whole answer; only the connection is lost

    def _charge_of_stream(self, reader: StreamReader) -> Charge:
        if reader.usage is not None:
            return Charge(reader.usage, is_reported=True, raw_usage=reader.raw_usage)
        return self._entry.estimate(reader.text(), reader.raw_usage)

    def _charge_of_failure(self, error: UpstreamError) -> Charge:
        if isinstance(error, (UpstreamStatus, ConnectFailed)) or error.kind == "timeout_connect":
            return NOTHING
        if not self._was_signed:
            return NOTHING  # no credentials: the request itself was never sent
        return self._charge_of_cut()

    def _charge_of_cut(self) -> Charge:
        """The upstream began to answer and was not heard to the end: it has done, and bills, at least this much."""
        if not self._was_accepted:
            return UNKNOWN
        return self._entry.estimate("") if self._reader is None else self._charge_of_stream(self._reader)

    def _settle(self, status: Status, charge: Charge, error_type: str | None = None) -> Decimal | None:
        duration = self._loop.time() - self._sent_at
        return self._entry.settle(status, charge, ttft=self.ttft, duration=duration, error_type=error_type)
