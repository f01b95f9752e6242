"""The control plane's side of budgets: gives leases and slices, takes back what the dead held, tells who needs more.

A lease is changed only after the spool was shipped, so that all that was settled under it is in the ledger by then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Engine

from gateway.budgets.accounts import Account
from gateway.budgets.messages import LeaseAnswer, LeaseRequest, Left, Notice, WindowAnswer, WindowAsk
from gateway.errors import StoreError
from gateway.ledger.segment import segments_by_process
from gateway.ledger.shipper import ShipperBusy
from gateway.store.leases import Wish, grant, holders, release, wanted
from gateway.store.spending import payer_of
from gateway.store.windows import Slice, purge, take

Result = TypeVar("Result")

WANTED_EVERY = 0.5
CLEAR_EVERY = 2.0
PURGE_EVERY = 300.0
MAX_HOLDERS = 10_000

_log = logging.getLogger(__name__)
_decode_request = msgspec.json.Decoder(LeaseRequest).decode
_decode_windows = msgspec.json.Decoder(list[WindowAsk]).decode


class Stale(Exception):
    """A request that a newer one of the same holder has overtaken: what it says to keep holds no more."""


class BudgetDesk:
    """One for each gateway, in its control plane. `run` keeps it going.

    `gateway`: this gateway's name, unique on the database. `flush`: ships all that is spooled when it is called; raises
    StoreError. `publish`: puts a `Notice` where workers find it; raises OSError. `push`: has them look at once.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        gateway: str,
        spool_dir: Path,
        flush: Callable[[], Awaitable[object]],
        publish: Callable[[bytes], None],
        push: Callable[[], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._spool_dir = spool_dir
        self._flush = Flush(flush)
        self._publish = publish
        self._push = push
        self._turns: dict[str, asyncio.Lock] = {}
        self._numbers: dict[str, int] = {}  # the newest request of each holder that was served
        self._notice = Notice()
        self._published = b""
        self._look = asyncio.Event()
        self._given = 0  # requests for leases that were served
        self._none_at = -1  # as many were served when nobody held a lease

    async def lease(self, body: bytes) -> bytes:
        """Answers a `LeaseRequest`. Raises StoreError, OSError, ShipperBusy, Stale, msgspec.DecodeError."""
        request = _decode_request(body)
        if not request.holder.startswith(f"{self._gateway}/"):
            raise ValueError("the holder is of another gateway")
        async with self._turn(request.holder):
            # Served out of order, an old request would take away what a newer one was given.
            if request.number <= self._numbers.get(request.holder, 0):
                raise Stale
            self._numbers[request.holder] = request.number
            await self._flush.once()
            wishes = [
                Wish(
                    account=ask.account,
                    payer=payer_of(ask.account, Account(ask.account, models=ask.models, teams=ask.teams).covers),
                    start=ask.start,
                    end=ask.end,
                    limit=ask.limit,
                    keep=ask.keep,
                    want=ask.want,
                    least=ask.least,
                    ahead=ask.ahead,
                )
                for ask in request.asks
            ]
            try:
                grants = await _finish(asyncio.to_thread(grant, self._engine, request.holder, wishes))
            finally:
                self._given += 1
        if any(one.more < wish.want and one.others for one, wish in zip(grants, wishes, strict=True)):
            self._look.set()
        return msgspec.json.encode(
            [LeaseAnswer(more=one.more, others=one.others, left=one.left, free=one.free) for one in grants]
        )

    async def window(self, body: bytes) -> bytes:
        """Answers a list of `WindowAsk`. Raises StoreError, msgspec.DecodeError."""
        wishes = [
            Slice(
                account=ask.account,
                minute=datetime.fromtimestamp(ask.minute, UTC),
                most_requests=ask.most_requests,
                most_tokens=ask.most_tokens,
                requests=ask.requests,
                tokens=ask.tokens,
            )
            for ask in _decode_windows(body)
        ]
        slices = await asyncio.to_thread(take, self._engine, wishes)
        return msgspec.json.encode(
            [
                WindowAnswer(
                    requests=one.requests,
                    tokens=one.tokens,
                    requests_left=one.requests_left,
                    tokens_left=one.tokens_left,
                )
                for one in slices
            ]
        )

    async def tell(self, left: dict[str, Left]) -> None:
        """Publishes what hard budgets have left."""
        self._notice = Notice(left=left, wanted=self._notice.wanted)
        await self._spread()

    async def run(self) -> None:
        """Until it is cancelled. While PostgreSQL is away nothing is given, and nothing is taken back."""
        async with asyncio.TaskGroup() as owned:
            owned.create_task(self._watch_wanted())
            owned.create_task(self._clear())

    async def _watch_wanted(self) -> None:
        while True:
            try:
                async with asyncio.timeout(WANTED_EVERY):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                found = {}
                if self._none_at != self._given:
                    found = await asyncio.to_thread(wanted, self._engine, self._gateway)
                named = {
                    holder: sorted((account, start.timestamp()) for account, start in ones)
                    for holder, ones in found.items()
                }
                self._notice = Notice(left=self._notice.left, wanted=named)
                await self._spread(must_push=bool(named))
            except (StoreError, OSError) as error:
                _log.warning("it cannot be seen who needs what: %s", error)
                await asyncio.sleep(WANTED_EVERY)

    async def _spread(self, *, must_push: bool = False) -> None:
        content = msgspec.json.encode(self._notice)
        if content != self._published or must_push:
            await asyncio.to_thread(self._publish, content)
            self._published = content
            if must_push:
                await self._push()

    async def _clear(self) -> None:
        purged = 0.0
        while True:
            await asyncio.sleep(CLEAR_EVERY)
            try:
                await self.clear()
                if time() - purged > PURGE_EVERY:
                    await asyncio.to_thread(purge, self._engine)
                    purged = time()
            except (StoreError, OSError, ShipperBusy) as error:
                _log.warning("leases of ended workers stay for now: %s", error)

    async def clear(self) -> list[str]:
        """Takes back what workers held that are dead and of whose spool all is shipped: their segments are gone.

        Raises StoreError, OSError, ShipperBusy.
        """
        given = self._given  # before it is asked who holds any: what is given meanwhile may not be seen
        known = await asyncio.to_thread(holders, self._engine, self._gateway)
        self._none_at = -1 if known else given
        if not known:
            return []
        await self._flush.once()
        living = await asyncio.to_thread(segments_by_process, self._spool_dir)
        gone = sorted(one for one in known if one.partition("/")[2] not in living)
        if gone:
            await asyncio.to_thread(self._release, gone)
            _log.info("leases of %d ended workers are taken back", len(gone))
            for holder in gone:
                self._numbers.pop(holder, None)
                self._turns.pop(holder, None)
        return gone

    def _release(self, gone: Sequence[str]) -> None:
        with self._engine.begin() as connection:
            release(connection, gone)

    def _turn(self, holder: str) -> asyncio.Lock:
        turn = self._turns.get(holder)
        if turn is None:
            if len(self._turns) >= MAX_HOLDERS:
                raise Stale
            turn = self._turns[holder] = asyncio.Lock()
        return turn


async def _finish(work: Coroutine[Any, Any, Result]) -> Result:
    """As `await`, but whoever is cancelled waits for the end first: the holder's next request must not overtake it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class Flush:
    """Ships the spool once for all who ask while a round is under way: each needs one that began after it asked."""

    def __init__(self, flush: Callable[[], Awaitable[object]]) -> None:
        self._flush = flush
        self._next: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()

    async def once(self) -> None:
        """Raises what `flush` raises."""
        joined = self._next
        if joined is not None:
            await asyncio.shield(joined)
            return
        mine = self._next = asyncio.get_running_loop().create_future()
        mine.add_done_callback(_look_at)
        try:
            async with self._turn:
                self._next = None  # who comes now may have spooled more since
                await self._flush()
        except BaseException as error:
            if self._next is mine:
                self._next = None
            if not mine.done():
                failed = error if isinstance(error, Exception) else StoreError("shipping was given up")
                mine.set_exception(failed)
            raise
        mine.set_result(None)


def _look_at(future: asyncio.Future[None]) -> None:
    """A failure is told to whoever began the round; nobody may have joined it."""
    if not future.cancelled():
        future.exception()
