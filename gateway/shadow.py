"""Copies of requests, sent to an endpoint whose answers nobody is shown: how it would do, before it does.

A copy has a task and a ledger row of its own. The client's answer neither waits for it nor can be changed by it, and
what happens to it says nothing about the health of an endpoint.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from gateway.accounting.entry import NOTHING, UNKNOWN, Books, Charge, Context, Entry, Pricing
from gateway.adapters.base import Adapter, Call
from gateway.admission import Admission
from gateway.budgets.book import Reservation
from gateway.comparison import VALID, Outcome, compare, read_asked, read_outcome, validity_tag
from gateway.config.model import Endpoint, Timeouts
from gateway.errors import ConnectFailed, InvalidRequest, UpstreamError, UpstreamProtocolError, UpstreamStatus
from gateway.ledger.spool import SpoolError
from gateway.protocols.base import StreamReader
from gateway.protocols.inbound import Inbound
from gateway.snapshot import Snapshot
from gateway.types import Status
from gateway.upstream.client import ReadDeadline, UpstreamClient
from gateway.upstream.request import Deadlines
from gateway.upstream.response import UpstreamResponse

MAX_COPIES = 16
"""Copies under way at once. A shadow is a sample: what is over this is left out and counted."""
FIRST_NUMBER = 1001
"""The attempt number of a request's first copy on the ledger, out of reach of the attempts that serve it."""
MAX_SEEN = 1024 * 1024
"""Bytes of an answer that are kept to be judged. A longer one is let go of, and is not judged."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 256 * 1024

WORKER_STOPPED = "worker_stopped"
"""The `error_type` of a copy that was under way when its worker ended."""
ROLE = "hatchway.role"
ESCAPE = "hatchway.escape"

_log = logging.getLogger(__name__)


class Witness:
    """What the client of one request is shown, kept until it was judged."""

    def __init__(self, inbound: Inbound) -> None:
        self._seen = _Seen(inbound)
        self._end: asyncio.Future[tuple[float | None, float | None, str | None]] = (
            asyncio.get_running_loop().create_future()
        )

    def see(self, shown: bytes) -> None:
        """The next bytes of the answer, as they are sent to the client."""
        self._seen.add(shown)

    def tags(self, last: bytes = b"") -> dict[str, str]:
        """Whether the answer is usable, for the row of the attempt that serves it. `last`: bytes not yet seen, which
        complete it. Empty where that cannot be said."""
        outcome = self._seen.outcome(last)
        return {} if outcome is None else {VALID: validity_tag(outcome, read_asked(self._seen.inbound))}

    def end(self, *, ttft: float | None = None, duration: float | None = None, error: str | None = None) -> None:
        """The request is over. Seconds; `error`: the ledger's `error_type` of what the client got instead of an answer,
        or of what cut it. A second call does nothing."""
        if not self._end.done():
            self._end.set_result((ttft, duration, error))

    async def outcome(self, patience: float) -> Outcome | None:
        """Once the request is over. None: it is not within `patience` seconds, or its answer was too long to keep."""
        await asyncio.wait((self._end,), timeout=max(0.0, patience))
        if not self._end.done():
            return None
        ttft, duration, error = self._end.result()
        return self._seen.outcome(ttft=ttft, duration=duration, error=error)


class _Seen:
    """An answer's bytes in the client's protocol, as long as they are few enough."""

    def __init__(self, inbound: Inbound) -> None:
        self.inbound = inbound
        self._pieces: list[bytes] | None = []
        self._size = 0

    def add(self, shown: bytes) -> None:
        if self._pieces is not None:
            self._size += len(shown)
            self._pieces.append(shown)
            if self._size > MAX_SEEN:
                self._pieces = None

    def outcome(
        self,
        last: bytes = b"",
        *,
        ttft: float | None = None,
        duration: float | None = None,
        error: str | None = None,
    ) -> Outcome | None:
        """None: the bytes are gone."""
        if error is None and self._pieces is None:
            return None
        shown = b"".join([*(self._pieces or ()), last])
        return read_outcome(self.inbound, shown, ttft=ttft, duration=duration, error=error)


class Shadows:
    """One for each worker; it owns the tasks of all copies. `close` ends them."""

    def __init__(self, client: UpstreamClient, books: Books, admission: Admission) -> None:
        self._client = client
        self._books = books
        self._admission = admission
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        context: Context,
        endpoint: Endpoint,
        snapshot: Snapshot,
        primary: Witness | None = None,
        *,
        reservation: Reservation | None,
        timeouts: Timeouts,
        number: int = 0,
        escape: str | None = None,
    ) -> None:
        """Sends a copy of the request to `endpoint`, or leaves it out where that would take something from others.

        Called just before the request's own first attempt: a task runs when the caller next waits, which is after
        that attempt was sent. Both sides then meet the same moment, and the copy needs no part of the other's fate.
        `reservation`: the money set aside for it, which ends here or with the copy; None: there is none to be had.
        `primary`: what the copy is compared with. `number`: of the request's copies, from 0. `escape`: the id of the
        escape that wants it.
        """
        adapter = snapshot.adapters.get(endpoint.id)
        if (
            adapter is None
            or reservation is None
            or len(self._tasks) >= MAX_COPIES
            or not self._admission.try_enter_endpoint(endpoint.id)
        ):
            if reservation is not None:
                reservation.release()
            self._books.metrics.shadow(endpoint.id, "skipped")
            return
        tags = {ROLE: "shadow"} if escape is None else {ROLE: "shadow", ESCAPE: escape}
        copy = _Copy(context, endpoint, adapter, timeouts, self._client, self._books, primary, reservation)
        task = asyncio.get_running_loop().create_task(copy.run(FIRST_NUMBER + number, snapshot.prices, tags))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._end(done, endpoint.id, reservation))

    def _end(self, task: asyncio.Task[None], endpoint: str, reservation: Reservation) -> None:
        self._tasks.discard(task)
        reservation.release()  # of a copy that was not sent; of all others it is settled
        self._admission.leave_endpoint(endpoint)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a copy for `%s` failed here", endpoint, exc_info=error)

    async def close(self) -> None:
        """Cancels the copies under way; their rows are settled when this returns. Before client and spool close."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Copy:
    """One copy: sent, read to its end, compared, settled."""

    def __init__(
        self,
        context: Context,
        endpoint: Endpoint,
        adapter: Adapter,
        timeouts: Timeouts,
        client: UpstreamClient,
        books: Books,
        primary: Witness | None,
        reservation: Reservation,
    ) -> None:
        self._reservation = reservation
        self._context = context
        self._endpoint = endpoint
        self._adapter = adapter
        self._timeouts = timeouts
        self._client = client
        self._books = books
        self._primary = primary
        self._seen = _Seen(context.inbound)
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._total_at = self._sent_at + timeouts.total
        self._ttft: float | None = None
        self._was_sent = False
        self._was_accepted = False
        self._reader: StreamReader | None = None
        self._whole: Charge | None = None
        self._tier: str | None = None

    async def run(self, number: int, prices: Pricing, tags: Mapping[str, str]) -> None:
        metrics = self._books.metrics
        try:
            limit, inbound = self._reservation.limit, self._context.inbound
            call = self._adapter.open(inbound if limit is None else inbound.limited(limit))
        except InvalidRequest as error:
            _log.debug("a copy for `%s` cannot be written: %s", self._endpoint.id, error)
            metrics.shadow(self._endpoint.id, "skipped")
            return
        if call.request is None:
            metrics.shadow(self._endpoint.id, "skipped")  # answered by the gateway itself: there is nothing to compare
            return
        try:
            max_cost = self._reservation.max_cost
            entry = self._books.open(self._context, number, self._endpoint, prices, max_cost=max_cost, tags=tags)
        except SpoolError as error:
            metrics.spool_error()
            _log.error("a copy for `%s` is not sent, the ledger cannot be written: %s", self._endpoint.id, error)
            return
        metrics.shadow(self._endpoint.id, "sent")
        try:
            await self._ask(call, entry)
        except UpstreamError as error:
            _log.debug("a copy for `%s` failed: %s", self._endpoint.id, error)
            status: Status = "timeout" if error.kind.startswith("timeout_") else "error"
            await self._settle(entry, status, self._charge_of_failure(entry, error), error.kind)
        except asyncio.CancelledError:
            await self._settle(entry, "cancelled", self._charge_of_cut(entry), WORKER_STOPPED)
            raise
        except BaseException:
            await self._settle(entry, "error", self._charge_of_cut(entry), "internal_error")
            raise
        else:
            await self._settle(entry, "ok", self._charge_of_cut(entry))

    async def _ask(self, call: Call, entry: Entry) -> None:
        """The whole answer, read and forgotten but for what is needed to judge and price it."""
        request, signer = call.request, self._adapter.signer
        assert request is not None, "a local answer is not sent for"
        deadlines = Deadlines(connect=self._timeouts.connect, total_at=self._total_at)
        if signer is not None:
            request = await signer.sign(request, self._client, deadlines)
        self._was_sent = True
        response = await self._client.send(request, deadlines, read_deadline=self._first_deadline())
        try:
            if not 200 <= response.status < 300:
                raise UpstreamStatus(response.status, response.headers, await _error_body(response))
            self._was_accepted = True
            if self._context.inbound.wants_stream:
                await self._read_stream(call, response)
            else:
                shown, summary = call.read_answer(await response.read(MAX_ANSWER_BYTES))
                self._ttft = self._loop.time() - self._sent_at
                self._seen.add(shown)
                self._tier = summary.service_tier
                if summary.usage is not None:
                    self._whole = entry.reported(summary.usage, summary.raw_usage, answer=shown)
                else:
                    self._whole = entry.estimate(summary.text, summary.raw_usage)
        finally:
            response.close()

    def _first_deadline(self) -> ReadDeadline | None:
        """Of the answer's headers."""
        bounds: list[ReadDeadline] = []
        if self._timeouts.first_byte is not None:
            bounds.append((self._sent_at + self._timeouts.first_byte, "first_byte"))
        if self._context.inbound.wants_stream:
            bounds.append((self._sent_at + self._timeouts.ttft, "ttft"))
        return min(bounds, default=None)

    async def _read_stream(self, call: Call, response: UpstreamResponse) -> None:
        reader = self._reader = call.open_stream()
        response.set_read_deadline(self._sent_at + self._timeouts.ttft, "ttft")
        while not reader.is_finished:
            chunk = await response.next_chunk()
            self._seen.add(reader.feed(chunk) if chunk else reader.finish())
            if reader.has_content:
                now = self._loop.time()
                self._ttft = now - self._sent_at if self._ttft is None else self._ttft
                response.set_read_deadline(now + self._timeouts.idle, "idle")

    async def _settle(self, entry: Entry, status: Status, charge: Charge, error: str | None = None) -> None:
        """The row is settled also where judging is cut short."""
        duration = self._loop.time() - self._sent_at
        try:
            if error != WORKER_STOPPED:
                entry.tag(await self._judge(duration, error))
        finally:
            tier = self._tier if self._reader is None else self._reader.service_tier
            cost = entry.settle(status, charge, ttft=self._ttft, duration=duration, error_type=error, service_tier=tier)
            self._reservation.settle(cost, is_reported=entry.charge.is_reported)

    async def _judge(self, duration: float, error: str | None) -> dict[str, str]:
        outcome = self._seen.outcome(ttft=self._ttft, duration=duration, error=error)
        if outcome is None:
            return {}
        asked = read_asked(self._context.inbound)
        if self._primary is not None and error is None:
            first = await self._primary.outcome(self._total_at - self._loop.time())
            if first is not None:
                return compare(first, outcome, asked).tags()
        return {VALID: validity_tag(outcome, asked)}

    def _charge_of_failure(self, entry: Entry, error: UpstreamError) -> Charge:
        if isinstance(error, (UpstreamStatus, ConnectFailed)) or error.kind == "timeout_connect":
            return NOTHING
        return self._charge_of_cut(entry)

    def _charge_of_cut(self, entry: Entry) -> Charge:
        """What is known to have been used so far; for a whole answer that is all of it."""
        if self._whole is not None:
            return self._whole
        if not self._was_sent:
            return NOTHING
        if not self._was_accepted:
            return UNKNOWN
        reader = self._reader
        if reader is None:
            return entry.estimate("")
        if reader.usage is not None:
            return entry.reported(reader.usage, reader.raw_usage, text=reader.text)
        return entry.estimate(reader.text(), reader.raw_usage)


async def _error_body(response: UpstreamResponse) -> bytes:
    try:
        return await response.read(MAX_ERROR_BYTES)
    except UpstreamProtocolError:
        return b""  # over the limit: the status alone has to do
