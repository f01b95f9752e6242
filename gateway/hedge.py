"""A second attempt beside one that is slow to begin: whoever begins first serves, the other is ended at once.

What that may cost is bounded: of each policy it is known what its requests and its lost attempts have cost lately.
Source of the idea: J. Dean, L. A. Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal

from gateway.attempt import HEDGE_LOST, Attempt
from gateway.config.model import Hedge
from gateway.errors import UpstreamError
from gateway.types import EndpointHealth

LEAST_WAIT = 0.05
"""Seconds: an endpoint is given at least this long, however fast it usually is."""
HALF_LIFE = 600.0
"""Seconds in which what was spent loses half of its weight."""

Failures = list[tuple[Attempt, UpstreamError]]


def wait_before_hedging(hedge: Hedge, health: EndpointHealth | None, *, streams: bool) -> float | None:
    """Seconds that the first attempt has for itself; None: no second one is made.

    The percentile that is known is that of a stream's first content: it says nothing of when a whole answer is due.
    """
    if hedge.after is not None:
        return hedge.after
    if not streams or health is None or health.ttft_p95 is None:
        return None
    return max(LEAST_WAIT, health.ttft_p95)


class _Account:
    __slots__ = ("at", "extra", "has_begun", "spent")

    def __init__(self) -> None:
        self.spent = 0.0
        self.extra = 0.0
        self.at = 0.0
        self.has_begun = False

    def age(self, now: float) -> None:
        factor = 0.5 ** ((now - self.at) / HALF_LIFE)
        self.spent *= factor
        self.extra *= factor
        self.at = now


class HedgeCosts:
    """What each policy's attempts have cost in this worker, and the part of it that hedging added. Thresholds, not
    accounts: floats do. `now`: loop time, seconds; costs in USD.

    The first hedge of a policy may be made before anything is known, or there would never be one.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def spend(self, policy: str, cost: Decimal | None, now: float, *, is_extra: bool = False) -> None:
        """Of a settled attempt. An unknown cost counts as none: where prices are unknown there are no hedges."""
        if cost is None:
            return
        account = self._of(policy, now)
        account.spent += float(cost)
        if is_extra:
            account.extra += float(cost)

    def reserve(self, policy: str, expected: Decimal | None, share: float, now: float) -> float | None:
        """Whether a hedge that costs so much keeps what hedging adds within `share` of all that is spent. Until it is
        settled it counts as lost: `release` what is returned. None: it may not be made."""
        if expected is None:
            return None
        account, cost = self._of(policy, now), float(expected)
        if account.has_begun and account.extra + cost > share * (account.spent + cost):
            return None
        account.has_begun = True
        account.spent += cost
        account.extra += cost
        return cost

    def release(self, policy: str, reserved: float, now: float) -> None:
        account = self._of(policy, now)
        account.spent = max(0.0, account.spent - reserved)
        account.extra = max(0.0, account.extra - reserved)

    def _of(self, policy: str, now: float) -> _Account:
        account = self._accounts.get(policy)
        if account is None:
            account = self._accounts[policy] = _Account()
            account.at = now
        account.age(now)
        return account


async def race(
    first: Attempt, after: float, open_second: Callable[[], Attempt | None], accepts: Callable[[Attempt, bool], None]
) -> tuple[Attempt | None, Failures]:
    """Begins `first`; after `after` seconds also what `open_second` gives. Returns the one that has begun, or None,
    and those that failed on the way.

    `accepts` may raise UpstreamError for one that has begun; it is told whether another one is under way. Whatever is
    not returned has ended, and is settled.
    """
    tasks = {_begin(first): first}
    failures: Failures = []
    winner: Attempt | None = None
    try:
        done, _ = await asyncio.wait(tasks, timeout=after)
        if not done and (second := open_second()) is not None:
            tasks[_begin(second)] = second
        while tasks and winner is None:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in tasks if task in done]:
                attempt = tasks[task]
                if winner is not None:
                    break  # both in the same moment: the other one has lost
                del tasks[task]
                try:
                    task.result()
                    accepts(attempt, bool(tasks))
                    winner = attempt
                except UpstreamError as error:
                    failures.append((attempt, error))
        return winner, failures
    finally:
        await _end(tasks, lost=winner is not None)


def _begin(attempt: Attempt) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(attempt.begin())


async def _end(tasks: dict[asyncio.Task[None], Attempt], *, lost: bool) -> None:
    """Ends what is still under way, and waits until it has."""
    if not tasks:
        return
    for task, attempt in tasks.items():
        if lost:
            attempt.error_if_cancelled = HEDGE_LOST
        task.cancel()
    try:
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for attempt in tasks.values():
            attempt.abandon(attempt.error_if_cancelled)  # it had begun, or its task never ran
