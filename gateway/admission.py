"""Who is served when not everybody can be: slots, queues that are fair, and shedding.

One gate for the worker, one queue for each endpoint. Whoever finds a slot free takes it at once; the others wait, in
levels of priority. Between levels the highest is served first, and a level that was passed over rises with time. Inside
a level the teams share by weight, whatever number of requests each has waiting: start-time fair queueing (P. Goyal,
H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996) with one request as the unit. Inside a team the first to
come is the first to go.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from gateway.config.model import Configuration
from gateway.errors import RateLimited
from gateway.telemetry import Metrics

LONGEST_RETRY_AFTER = 60
"""Seconds."""
_RISES = 10
"""Levels that a priority rises within `max_wait`: the lowest (0) passes the highest (9) just before its time is up."""
_SMOOTHING = 0.1
"""Weight of the newest interval between two leavings."""


class Shed(RateLimited):
    """429 with `retry-after`: the queue is full, or the request waited for too long."""


class _Waiter:
    """`future`: None as its result means that a slot was given."""

    __slots__ = ("future", "is_queued", "priority", "team", "timer", "weight")

    def __init__(self, future: asyncio.Future[Shed | None], team: str, priority: int, weight: float) -> None:
        self.future = future
        self.team = team
        self.priority = priority
        self.weight = weight
        self.timer: asyncio.TimerHandle | None = None
        self.is_queued = True


class _Line:
    """One team's waiters in one level. `start`: the start tag of the first of them."""

    __slots__ = ("start", "waiters", "weight")

    def __init__(self, start: float) -> None:
        self.start = start
        self.waiters: deque[_Waiter] = deque()
        self.weight = 1.0

    @property
    def length(self) -> float:
        return len(self.waiters) / self.weight


class _Level:
    """Everybody of one priority. Lives while somebody waits in it, and so keeps no team longer than needed."""

    __slots__ = ("lines", "passed_since", "virtual_time", "waiting")

    def __init__(self, now: float) -> None:
        self.lines: dict[str, _Line] = {}
        self.passed_since = now  # since when nobody of this level was served
        self.virtual_time = 0.0  # start tag of the request served last
        self.waiting = 0

    def add(self, waiter: _Waiter) -> None:
        line = self.lines.get(waiter.team)
        if line is None:
            line = self.lines[waiter.team] = _Line(self.virtual_time)
        elif not line.waiters:
            line.start = max(line.start, self.virtual_time)  # who had nothing to send has saved up nothing
        line.weight = waiter.weight
        line.waiters.append(waiter)
        self.waiting += 1

    def take(self, now: float) -> _Waiter:
        line = min((line for line in self.lines.values() if line.waiters), key=_start_of)
        waiter = line.waiters.popleft()
        self.waiting -= 1
        self.virtual_time = line.start
        line.start += 1.0 / waiter.weight
        self.passed_since = now
        return waiter

    def longest(self) -> _Line:
        return max(self.lines.values(), key=_length_of)

    def length_with(self, team: str, weight: float) -> float:
        """How long the team's line would be with one more."""
        line = self.lines.get(team)
        return (1 if line is None else len(line.waiters) + 1) / weight


class FairQueue:
    """`limit` slots (None: no bound) and those who wait for one, at most `max_waiting` for at most `max_wait` seconds.

    Every `enter` that returns is followed by exactly one `leave`. A slot is given to a waiter in the moment in which
    it becomes free, so nobody can come in between.
    """

    def __init__(self, limit: int | None, *, max_waiting: int, max_wait: float) -> None:
        self.in_flight = 0
        self.waiting = 0
        self._levels: dict[int, _Level] = {}  # those in which somebody waits
        self._interval = 0.0  # mean seconds between two leavings while somebody waited; 0: not known
        self._left_at = 0.0  # when the last one left, or the first began to wait
        self._set(limit, max_waiting, max_wait)

    def resize(self, limit: int | None, *, max_waiting: int, max_wait: float) -> None:
        """Who waits keeps the place and the time given then; who is inside stays inside."""
        self._set(limit, max_waiting, max_wait)
        self._admit()

    def _set(self, limit: int | None, max_waiting: int, max_wait: float) -> None:
        self._limit = math.inf if limit is None else limit
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._rise = max(max_wait, 0.001) / _RISES  # seconds for one level

    @property
    def is_full(self) -> bool:
        return self.in_flight >= self._limit

    def try_enter(self) -> bool:
        """Takes a slot if one is free. Nobody is overtaken: while somebody waits, none is."""
        if self.in_flight < self._limit:
            self.in_flight += 1
            return True
        return False

    async def enter(self, team: str, *, priority: int = 5, weight: float = 1.0, due: float = math.inf) -> None:
        """Takes a slot, at once where there is one. `weight` > 0. `due`: loop time at which waiting is of no more use.

        Raises Shed. Cancelled: the place in the queue, or the slot just given, is free again.
        """
        if self.in_flight < self._limit:
            self.in_flight += 1
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self.waiting >= self._max_waiting and not self._make_place(team, priority, weight):
            raise self._refusal(priority, now, "too many requests are waiting")
        waiter = _Waiter(loop.create_future(), team, priority, weight)
        self._add(waiter, now)
        waiter.timer = loop.call_at(min(now + self._max_wait, due), self._expire, waiter)
        try:
            refusal = await waiter.future
        except BaseException:
            if waiter.is_queued:
                self._remove(waiter)
            elif not waiter.future.cancelled() and waiter.future.result() is None:
                self.leave()
            raise
        finally:
            waiter.timer.cancel()
        if refusal is not None:
            raise refusal

    def leave(self) -> None:
        """Gives the slot back, to whoever is next."""
        if self.in_flight < 1:
            raise RuntimeError("`leave` without `enter`")
        self.in_flight -= 1
        if self.waiting:
            now = asyncio.get_running_loop().time()
            interval = now - self._left_at
            self._interval = self._interval + _SMOOTHING * (interval - self._interval) if self._interval else interval
            self._left_at = now
            self._admit()

    def _admit(self) -> None:
        while self.waiting and self.in_flight < self._limit:
            waiter = self._take(asyncio.get_running_loop().time())
            if not waiter.future.done():  # else it was cancelled, and has not run since
                self.in_flight += 1
                waiter.future.set_result(None)

    def _add(self, waiter: _Waiter, now: float) -> None:
        if not self.waiting:
            self._left_at = now
        level = self._levels.get(waiter.priority)
        if level is None:
            level = self._levels[waiter.priority] = _Level(now)
        level.add(waiter)
        self.waiting += 1

    def _take(self, now: float) -> _Waiter:
        """The next one. Of two levels that have risen to the same height, the one passed over for longer."""

        def height(priority: int) -> tuple[int, float]:
            passed = now - self._levels[priority].passed_since
            return priority + int(passed / self._rise), passed

        priority = max(self._levels, key=height)
        waiter = self._levels[priority].take(now)
        self._went(waiter)
        return waiter

    def _remove(self, waiter: _Waiter) -> None:
        level = self._levels[waiter.priority]
        waiters = level.lines[waiter.team].waiters
        if waiters[-1] is waiter:
            waiters.pop()  # as whoever is shed for another: a full queue must not be searched
        else:
            waiters.remove(waiter)
        level.waiting -= 1
        self._went(waiter)

    def _went(self, waiter: _Waiter) -> None:
        waiter.is_queued = False
        self.waiting -= 1
        if not self._levels[waiter.priority].waiting:
            del self._levels[waiter.priority]

    def _expire(self, waiter: _Waiter) -> None:
        if waiter.is_queued:
            self._remove(waiter)
            self._refuse(waiter, "the request waited too long for its turn")

    def _make_place(self, team: str, priority: int, weight: float) -> bool:
        """Sheds somebody else for a newcomer who is worth more: of the lowest priority, the newest of the team that
        has most waiting for its weight. Among equals only where the newcomer's team then still has less."""
        if not self._levels:
            return False
        lowest = min(self._levels)
        if lowest > priority:
            return False
        level = self._levels[lowest]
        longest = level.longest()
        if lowest == priority and longest.length <= level.length_with(team, weight):
            return False
        victim = longest.waiters[-1]
        self._remove(victim)
        self._refuse(victim, "too many requests are waiting")
        return True

    def _refuse(self, waiter: _Waiter, why: str) -> None:
        if not waiter.future.done():
            waiter.future.set_result(self._refusal(waiter.priority, waiter.future.get_loop().time(), why))

    def _refusal(self, priority: int, now: float, why: str) -> Shed:
        """With the time after which a newcomer of this priority could be served, as things go now."""
        ahead = sum(level.waiting for height, level in self._levels.items() if height >= priority)
        silence = now - self._left_at if self.waiting else 0.0  # grows while nobody leaves
        seconds = math.ceil((ahead + 1) * max(self._interval, silence))
        seconds = min(max(seconds, 1), LONGEST_RETRY_AFTER)
        return Shed(
            f"the gateway is busy: {why}\nhint: try again in {seconds} s",
            code="overloaded",
            headers=[(b"retry-after", b"%d" % seconds)],
        )


class Admission:
    """A worker's gate (`server.max_in_flight`), and a queue for each endpoint (its `max_in_flight`).

    Slots are counted where there is no limit, too: one may be set while they are taken.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._gate = FairQueue(None, max_waiting=0, max_wait=0.0)
        self._endpoints: dict[str, FairQueue] = {}
        self.try_enter = self._gate.try_enter
        """Lets a request in if it need not wait. True: `leave` must follow; False: `enter` waits."""
        self.leave = self._gate.leave

    def configure(self, configuration: Configuration, workers: int) -> None:
        """Limits hold over all workers, so each gets its part, rounded down, and 1 at least."""
        server = configuration.server
        waiting = -(-server.max_waiting // workers)
        self._gate.resize(_part(server.max_in_flight, workers), max_waiting=waiting, max_wait=server.max_wait)
        for id in self._endpoints.keys() - configuration.endpoints.keys():
            queue = self._endpoints[id]
            if queue.in_flight or queue.waiting:
                queue.resize(None, max_waiting=waiting, max_wait=server.max_wait)
            else:
                del self._endpoints[id]
        for id, endpoint in configuration.endpoints.items():
            limit = _part(endpoint.max_in_flight, workers)
            self._queue(id).resize(limit, max_waiting=waiting, max_wait=server.max_wait)

    @property
    def waiting(self) -> int:
        """Requests that wait for a turn, at the gate or for an endpoint."""
        return self._gate.waiting + sum(queue.waiting for queue in self._endpoints.values())

    @property
    def in_flight(self) -> int:
        """Requests inside the gate."""
        return self._gate.in_flight

    async def enter(self, team: str, *, priority: int = 5, weight: float = 1.0) -> None:
        """Lets a request in. Raises Shed; otherwise `leave` must follow."""
        gate = self._gate
        if gate.try_enter():
            return
        try:
            await gate.enter(team, priority=priority, weight=weight)
        except Shed:
            self._metrics.shed("server")
            raise

    def is_full(self, endpoint: str) -> bool:
        """Whether whoever enters now has to wait."""
        queue = self._endpoints.get(endpoint)
        return queue is not None and queue.is_full

    def try_enter_endpoint(self, endpoint: str) -> bool:
        """Takes one of the endpoint's slots if one is free. True: `leave_endpoint` must follow. False: `enter_endpoint`
        waits; what may be left out, a hedge or a shadow copy, is."""
        return (self._endpoints.get(endpoint) or self._queue(endpoint)).try_enter()

    async def enter_endpoint(
        self, endpoint: str, team: str, *, priority: int = 5, weight: float = 1.0, due: float = math.inf
    ) -> None:
        """Takes one of the endpoint's slots. `due`: loop time at which the request's own time is over.

        Raises Shed; otherwise `leave_endpoint` must follow.
        """
        queue = self._queue(endpoint)
        if queue.try_enter():
            return
        try:
            await queue.enter(team, priority=priority, weight=weight, due=due)
        except Shed:
            self._metrics.shed(endpoint)
            raise

    def leave_endpoint(self, endpoint: str) -> None:
        self._endpoints[endpoint].leave()

    def _queue(self, endpoint: str) -> FairQueue:
        """One without limit where there is none: a request may know an endpoint that the configuration has lost."""
        queue = self._endpoints.get(endpoint)
        if queue is None:
            queue = self._endpoints[endpoint] = FairQueue(None, max_waiting=0, max_wait=0.0)
        return queue


def _part(limit: int | None, workers: int) -> int | None:
    return None if limit is None else max(1, limit // workers)


def _start_of(line: _Line) -> float:
    return line.start


def _length_of(line: _Line) -> float:
    return line.length
