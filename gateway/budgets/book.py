"""A worker's reservations: money is set aside before an attempt, and settled exactly once after it.

Where the worker's leases suffice nothing is awaited. Where they do not, one task asks the control plane for all who
wait. The lease shrinks by what was settled and grows by what it is given, and only that task changes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from time import time

import msgspec

from gateway.accounting.bounds import Bound
from gateway.budgets.accounts import Account, AccountBook, Accounts
from gateway.budgets.experience import Experience
from gateway.budgets.line import Line
from gateway.budgets.messages import LEASE_PATH, LeaseAnswer, LeaseAsk, LeaseRequest, Left, Notice
from gateway.budgets.money import units_of, usd_of
from gateway.budgets.periods import Span, span_of
from gateway.budgets.refusals import BudgetReserved, BudgetSpent, BudgetUnavailable
from gateway.budgets.windows import Windows
from gateway.errors import GatewayError, UpstreamError

Call = Callable[[str, bytes], Awaitable[bytes]]
"""Sends a body to a path of the control plane, and returns the answer's. Raises GatewayError, UpstreamError, OSError
when there is none with status 200."""

MAX_WAIT = 10.0
"""Seconds for which a request waits for what others have reserved."""
MAX_WAITING = 4096
PATIENCE_SECONDS = 1.0
"""For which a request waits while the control plane does not answer: it may just be starting again."""
EDGE_SECONDS = 2.0
"""Before the end of a period an attempt is reserved in the next one, too: it may begin in either."""
IDLE_SECONDS = 5.0
"""After which what is not in use is given back."""
RENEW_SECONDS = 60.0
"""After which a lease is renewed, though nothing is needed: it shows that its holder lives."""
TICK = 0.5
FIRST_PAUSE = 0.03
LONGEST_PAUSE = 0.1
HOLD_SECONDS = 0.25
"""For which a worker may go on with the last money before it lets others have it."""
REST_SECONDS = 0.15
"""For which it then asks for nothing."""
SPENT_SECONDS = 1.0
"""For which a spent budget is not asked for again."""
PARTS = 8
"""Of the last money: a request that states no limit takes one."""
AHEAD = 16
"""Requests for which a lease is taken in advance, at least."""

_log = logging.getLogger(__name__)
_decode_answers = msgspec.json.Decoder(list[LeaseAnswer]).decode
_decode_notice = msgspec.json.Decoder(Notice).decode


def _always() -> bool:
    return True


class Reservation:
    """What one attempt may spend, where no hard budget pays for it. Ends once: by `settle`, or by `release` where
    nothing was sent.

    `limit`: output tokens of each choice that the attempt must be sent as its limit; None: the request as it is.
    `max_cost`: USD that it may cost at most, for its row in the ledger; None: unpriced.
    """

    __slots__ = ("_book", "_bound", "_endpoint", "is_open", "limit", "max_cost")

    def __init__(self, book: BudgetBook, bound: Bound, endpoint: str, limit: int | None = None) -> None:
        self._book = book
        self._bound = bound
        self._endpoint = endpoint
        self.limit = limit
        self.max_cost = bound.usd if limit is None else usd_of(bound.fixed + limit * bound.per_token)
        self.is_open = True

    def settle(self, cost: Decimal | None, *, is_reported: bool = True) -> None:
        """`cost`: as it is on the row that is in the spool by now; None: unknown, and all that was reserved stays
        spent. `is_reported`: the upstream itself said what was used. A second call does nothing."""
        if self.is_open:
            self.is_open = False
            if is_reported and cost is not None:
                self._book.experience.hear(self._endpoint, self._bound, cost)

    def release(self) -> None:
        """Nothing was sent, and nothing is on the ledger."""
        self.is_open = False


class _Held(Reservation):
    """One that has money set aside, `amount` in each of the `lines`."""

    __slots__ = ("_amount", "_lines")

    def __init__(
        self, book: BudgetBook, bound: Bound, endpoint: str, limit: int | None, lines: tuple[Line, ...], amount: int
    ) -> None:
        super().__init__(book, bound, endpoint, limit)
        self._lines = lines
        self._amount = amount

    def settle(self, cost: Decimal | None, *, is_reported: bool = True) -> None:
        if self.is_open:
            self.is_open = False
            units = self._amount if cost is None else units_of(cost)
            if is_reported and cost is not None:
                self._book.experience.learn(self._endpoint, self._bound, units)
            self._book._settle(self._lines, self._amount, units)

    def release(self) -> None:
        if self.is_open:
            self.is_open = False
            self._book._settle(self._lines, self._amount, 0)

    def __del__(self) -> None:
        if self.is_open:
            self._book.dropped += 1
            self._book._settle(self._lines, self._amount, self._amount)
            _log.error("a reservation for `%s` was dropped: its money stays spent", self._endpoint)


class _Waiter:
    """`joined`: the round of asking that had begun when it came; `came`: loop time."""

    __slots__ = ("bound", "came", "endpoint", "future", "hard", "joined")

    def __init__(
        self,
        hard: tuple[Account, ...],
        bound: Bound,
        endpoint: str,
        future: asyncio.Future[Reservation],
        joined: int,
        came: float,
    ) -> None:
        self.came = came
        self.hard = hard
        self.bound = bound
        self.endpoint = endpoint
        self.future = future
        self.joined = joined


class BudgetBook:
    """One for each worker. `run` must be running for anything to be granted.

    `holder`: names this process on leases, `GATEWAY/PROCESS`, the process as the spool's segments name it: the lease
    lives until they are shipped. `workers`: of this gateway. `is_spooled`: whether all that was settled is in the
    spool's files; while it is not, no lease is asked for.
    """

    def __init__(self, holder: str, call: Call, *, workers: int = 1, is_spooled: Callable[[], bool] = _always) -> None:
        self.holder = holder
        self._is_spooled = is_spooled
        self.experience = Experience()
        self.windows = Windows(call, workers=workers)
        self.dropped = 0
        """Reservations that nobody ended: always a mistake of ours."""
        self.accounts = AccountBook().of
        """Whose budgets and limits a request falls under."""
        self._call = call
        self._current: dict[str, Line] = {}
        self._lines: dict[tuple[str, float], Line] = {}
        self._waiters: dict[_Waiter, None] = {}  # in the order in which they came
        self._waiting: dict[str, int] = {}  # by account
        self._left: dict[str, Left] = {}
        self._number = 0
        self._wake = asyncio.Event()
        self._rng = Random()

    def left(self, accounts: Accounts) -> Decimal | None:
        """USD that the tightest hard budget has left, as of some seconds ago, for planning; None: there is none."""
        if not accounts.hard:
            return None
        return usd_of(max(0, min([self._left_of(account) for account in accounts.hard])))

    def _left_of(self, account: Account) -> int:
        known, line = self._left.get(account.id), self._current.get(account.id)
        if line is None:
            if known is not None and time() < _end_of(account, known):
                return known.units
            return int((account.budget.usd if account.budget else 0) * 10**12)
        if known is None or known.start != line.starts:
            return line.limit
        ends = line.ends if line.budget is account.budget else _end_of(account, known)
        return known.units if time() < ends else line.limit

    def try_reserve(self, accounts: Accounts, bound: Bound, endpoint: str) -> Reservation | None:
        """Out of what the worker holds, at once; None: that does not suffice, or others wait for it.

        Raises BudgetSpent where the price is unknown and a budget is hard.
        """
        hard = accounts.hard
        if not hard:
            return Reservation(self, bound, endpoint)
        units = bound.units
        if not units:
            if units is None:
                raise BudgetSpent(hard[0].id, is_unpriced=True)
            return Reservation(self, bound, endpoint)
        lines = self._lines_of(hard)
        if self._waiters and any(account.id in self._waiting for account in hard):
            return None
        full = self.experience.full(endpoint, bound)
        for line in lines:
            if line.granted - line.settled - line.reserved < full:
                return None
        return self._take(lines, full, bound, endpoint, None if bound.is_stated else bound.limit)

    async def reserve(
        self, accounts: Accounts, bound: Bound, endpoint: str, *, until: float | None = None
    ) -> Reservation:
        """For an attempt that is opened next, without awaiting anything in between. `until`: loop time at which the
        request's own time is over.

        Raises BudgetSpent, BudgetReserved, BudgetUnavailable.
        """
        reservation = self.try_reserve(accounts, bound, endpoint)
        if reservation is not None:
            return reservation
        loop = asyncio.get_running_loop()
        now, hard = loop.time(), accounts.hard
        floor = self.experience.floor(endpoint, bound)
        for line in self._lines_of(hard):
            if now < line.spent_until and floor >= line.spent_floor:
                raise BudgetSpent(line.id)
        if len(self._waiters) >= MAX_WAITING:
            raise BudgetReserved(hard[0].id)
        waiter = _Waiter(hard, bound, endpoint, loop.create_future(), self._number, now)
        self._add(waiter)
        due = now + MAX_WAIT if until is None else min(now + MAX_WAIT, until)
        timer = loop.call_at(due, self._expire, waiter)
        self._wake.set()
        try:
            return await waiter.future
        except BaseException:
            self._remove(waiter)
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise
        finally:
            timer.cancel()

    def take_up(self, content: bytes | None) -> None:
        """What the control plane has published: `Notice`. Raises msgspec.DecodeError."""
        if content is None:
            return
        notice = _decode_notice(content)
        self._left = notice.left
        for id, start in notice.wanted.get(self.holder, ()):
            line = self._lines.get((id, start))
            if line is not None:
                line.is_wanted = True
                self._wake.set()

    async def run(self) -> None:
        """Asks the control plane, until it is cancelled."""
        async with asyncio.TaskGroup() as owned:
            owned.create_task(self._run_leases())
            owned.create_task(self.windows.run())

    # Reservations

    def _lines_of(self, hard: tuple[Account, ...]) -> tuple[Line, ...]:
        now = time()
        found: list[Line] = []
        for account in hard:
            line = self._current.get(account.id)
            if line is None or line.budget is not account.budget or not line.starts <= now < line.ends - EDGE_SECONDS:
                found += self._turn(account, now)
            else:
                found.append(line)
        return tuple(found)

    def _turn(self, account: Account, now: float) -> Iterator[Line]:
        """The account's line of this moment, and the next period's where that is about to begin."""
        budget = account.budget
        assert budget is not None, "the account is hard"
        span = span_of(budget.per, budget.zone, _moment(now))
        line = self._current[account.id] = self._line(account, span)
        yield line
        if now >= line.ends - EDGE_SECONDS:
            yield self._line(account, span_of(budget.per, budget.zone, span.end))

    def _line(self, account: Account, span: Span) -> Line:
        budget = account.budget
        assert budget is not None, "the account is hard"
        key = account.id, span.start.timestamp()
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(account, budget, span)
            line.used_at = asyncio.get_running_loop().time()
        elif line.budget is not budget:
            line.update(account, budget)
        return line

    def _take(
        self, lines: tuple[Line, ...], amount: int, bound: Bound, endpoint: str, limit: int | None
    ) -> Reservation:
        now = asyncio.get_running_loop().time()
        for line in lines:
            line.reserved += amount
            line.used_at = now
            if line.granted - line.settled - line.reserved < line.low:
                self._wake.set()
        return _Held(self, bound, endpoint, limit, lines, amount)

    def _settle(self, lines: tuple[Line, ...], amount: int, cost: int) -> None:
        for line in lines:
            line.reserved -= amount
            line.settled += cost
        if self._waiters:
            self._pump()

    # Waiting

    def _add(self, waiter: _Waiter) -> None:
        self._waiters[waiter] = None
        for account in waiter.hard:
            self._waiting[account.id] = self._waiting.get(account.id, 0) + 1

    def _remove(self, waiter: _Waiter) -> None:
        if waiter not in self._waiters:
            return
        del self._waiters[waiter]
        for account in waiter.hard:
            count = self._waiting[account.id] - 1
            if count:
                self._waiting[account.id] = count
            else:
                del self._waiting[account.id]

    def _expire(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._remove(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(BudgetReserved(waiter.hard[0].id))
            self._pump()

    def _pump(self) -> None:
        """Serves those who can be served, the first to come first; who cannot be keeps the later ones of the same
        account waiting."""
        blocked: set[str] = set()
        for waiter in list(self._waiters):
            ids = [account.id for account in waiter.hard]
            if waiter.future.done():
                self._remove(waiter)
            elif blocked.isdisjoint(ids) and (verdict := self._judge(waiter)) is not None:
                self._remove(waiter)
                if isinstance(verdict, Reservation):
                    waiter.future.set_result(verdict)
                else:
                    waiter.future.set_exception(verdict)
            else:
                blocked.update(ids)
                if len(blocked) >= len(self._waiting):
                    break

    def _judge(self, waiter: _Waiter) -> Reservation | GatewayError | None:
        """None: it has to wait. What is left for sure too little is refused at once, and what may yet come back is
        waited for; the last money goes to whoever is first, as far as it goes."""
        bound, endpoint, experience = waiter.bound, waiter.endpoint, self.experience
        lines = self._lines_of(waiter.hard)
        full = experience.full(endpoint, bound)
        amount = min(line.free for line in lines)
        if amount >= full:
            return self._take(lines, full, bound, endpoint, None if bound.is_stated else bound.limit)
        now = asyncio.get_running_loop().time()
        short = [line for line in lines if line.free < full]
        if any(not line.is_fresh(waiter.joined, now) for line in short):
            return None
        floor = experience.floor(endpoint, bound)
        for line in short:
            if line.is_failed:
                return BudgetUnavailable(line.id) if now - waiter.came >= PATIENCE_SECONDS else None
            if line.left < floor:
                return self._spent(line, floor, now)
        part = experience.part(endpoint, bound)
        if part is not None and amount >= part:
            return self._cut(lines, max(part, amount // PARTS), bound, endpoint)
        if any(line.reserved or not line.is_all for line in short):
            return None
        if amount >= floor:
            return self._cut(lines, amount, bound, endpoint)
        return self._spent(min(short, key=lambda line: line.free), floor, now)

    def _cut(self, lines: tuple[Line, ...], amount: int, bound: Bound, endpoint: str) -> Reservation:
        return self._take(lines, amount, bound, endpoint, self.experience.limit(endpoint, bound, amount))

    def _spent(self, line: Line, floor: int, now: float) -> BudgetSpent:
        line.spent_until, line.spent_floor = now + SPENT_SECONDS, floor
        return BudgetSpent(line.id)

    # Asking

    async def _run_leases(self) -> None:
        while True:
            try:
                async with asyncio.timeout(FIRST_PAUSE if self._waiters else TICK):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._ask()

    async def _ask(self) -> None:
        now = asyncio.get_running_loop().time
        asked = list(self._asks(now()))
        if asked:
            self._number = number = self._number + 1
            marks = [line.settled for line, _ in asked]
            request = LeaseRequest(holder=self.holder, number=number, asks=[ask for _, ask in asked])
            try:
                if not self._is_spooled():
                    raise OSError("the spool's disk is full")
                answers = _decode_answers(await self._call(LEASE_PATH, msgspec.json.encode(request)))
            except (GatewayError, UpstreamError, OSError, msgspec.DecodeError) as error:
                if self._waiters:
                    _log.warning("what budgets have left cannot be asked for: %s", error)
                answers = []
            if len(answers) == len(asked):
                for (line, ask), mark, answer in zip(asked, marks, answers, strict=True):
                    line.take(ask, mark, answer, number, now())
            else:
                for line, _ in asked:
                    line.fail(number, now())
        self._pump()

    def _asks(self, now: float) -> Iterator[tuple[Line, LeaseAsk]]:
        """What has to be asked for each line: for those who wait, ahead of need, or to give back what is not used."""
        needs: dict[Line, list[_Waiter]] = {}
        for waiter in self._waiters:
            for line in self._lines_of(waiter.hard):
                needs.setdefault(line, []).append(waiter)
        wall = time()
        for key, line in list(self._lines.items()):
            ask = self._need(line, needs[line], now) if line in needs else self._keep_up(line, now, wall)
            if ask is not None:
                yield line, ask
            elif line.ends <= wall and not line.granted and not line.reserved:
                del self._lines[key]

    def _need(self, line: Line, waiters: list[_Waiter], now: float) -> LeaseAsk | None:
        amounts = [self.experience.full(waiter.endpoint, waiter.bound) for waiter in waiters]
        first = waiters[0]
        if line.is_wanted and line.granted > line.reserved:
            # In turns, and each long enough to get something done.
            if now - line.answered_at < HOLD_SECONDS:
                return None
            line.give_back()
            line.rest_until = now + REST_SECONDS
            return line.ask(now)
        if line.free >= amounts[0] or now < line.rest_until:
            return None  # it waits for another account's money, or lets others go first
        if line.is_all and all(line.is_fresh(waiter.joined, now) for waiter in waiters):
            return None  # there is no more anywhere: it waits for what is under way here
        if (line.is_short or line.is_failed) and now - line.answered_at < line.pause:
            return None
        line.pause = min(LONGEST_PAUSE, line.pause * self._rng.uniform(1.2, 2.0)) if line.is_short else FIRST_PAUSE
        if line.is_short and line.others > 0:
            line.give_back()  # each with a part that is too small, none would ever come to an end
        part = self.experience.part(first.endpoint, first.bound)
        least = amounts[0] if part is None else min(part, amounts[0])
        free = max(0, line.free)
        ahead = line.grow_ahead(now, AHEAD * amounts[0])
        return line.ask(now, want=max(1, sum(amounts) - free), least=max(1, least - free), ahead=ahead)

    def _keep_up(self, line: Line, now: float, wall: float) -> LeaseAsk | None:
        if line.is_wanted or line.ends <= wall or now - line.used_at > IDLE_SECONDS:
            line.is_wanted = False
            if line.granted > line.reserved:
                line.give_back()
                return line.ask(now)
        elif line.free < line.low and line.can_grow:
            return line.ask(now, want=1, least=1, ahead=line.grow_ahead(now, 0))
        if line.granted and now - line.asked_at > RENEW_SECONDS:
            return line.ask(now)
        return None


def _end_of(account: Account, left: Left) -> float:
    budget = account.budget
    assert budget is not None, "the account is hard"
    return span_of(budget.per, budget.zone, _moment(left.start)).end.timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
