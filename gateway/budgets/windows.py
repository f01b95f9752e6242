"""A worker's part of limits by the calendar minute: requests and tokens, out of slices that the control plane gives.

Tokens are estimated before a request and corrected after it: what it used beyond its estimate is taken off what the
worker gets for the next minute. While the control plane is away each worker keeps to its part of every limit.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from time import time

import msgspec

from gateway.budgets.accounts import Account
from gateway.budgets.messages import WINDOW_PATH, WindowAnswer, WindowAsk
from gateway.budgets.refusals import LimitReached
from gateway.errors import GatewayError, UpstreamError

Call = Callable[[str, bytes], Awaitable[bytes]]
Headers = list[tuple[bytes, bytes]]

MINUTE = 60
MAX_ASK_SECONDS = 5.0
TICK = 1.0
MAX_PANES = 20_000
_log = logging.getLogger(__name__)
_decode_answers = msgspec.json.Decoder(list[WindowAnswer]).decode


class _Pane:
    """One account's minute. What is given and used, of requests and of tokens; what the minute had left for anybody
    at the last answer. `number`: of the round that ended last."""

    def __init__(self, account: Account, minute: int) -> None:
        self.account = account
        self.minute = minute
        self.requests = self.tokens = 0
        self.used_requests = self.used_tokens = 0
        self.requests_left = account.limits.requests or 0
        self.tokens_left = account.limits.tokens or 0
        self.number = -1
        self.is_hungry = False
        self.away_since: int | None = None  # the minute in which asking first failed

    def turn_to(self, minute: int, account: Account) -> None:
        """Into another minute. Who was active in the last one has a slice of the next one asked for at once."""
        debt = max(0, self.used_tokens - self.tokens) if minute > self.minute else 0
        self.is_hungry = minute == self.minute + 1 and self.used_requests > 0
        self.account, self.minute = account, minute
        self.requests = self.tokens = self.used_requests = 0
        self.used_tokens = debt if account.limits.tokens is not None else 0
        self.requests_left = account.limits.requests or 0
        self.tokens_left = account.limits.tokens or 0
        self.number = -1

    def fits(self, tokens: int) -> bool:
        limits = self.account.limits
        if limits.requests is not None and self.used_requests >= self.requests:
            return False
        return limits.tokens is None or self.used_tokens + min(tokens, limits.tokens) <= self.tokens

    def take(self, tokens: int) -> None:
        limits = self.account.limits
        self.used_requests += 1
        if limits.tokens is not None:
            self.used_tokens += min(tokens, limits.tokens)

    def is_low(self) -> bool:
        limits = self.account.limits
        few = limits.requests is not None and self.requests_left > 0
        if few and (self.requests - self.used_requests) * 4 < self.requests:
            return True
        little = limits.tokens is not None and self.tokens_left > 0
        return little and (self.tokens - self.used_tokens) * 4 < self.tokens


class Admitted:
    """A request that was let in. `settle` once it is known what it used."""

    __slots__ = ("_minute", "_panes", "_tokens")

    def __init__(self, panes: Sequence[_Pane], tokens: int, minute: int) -> None:
        self._panes = panes
        self._tokens = tokens
        self._minute = minute

    def settle(self, tokens: int) -> None:
        """`tokens`: of all the request's attempts. A second call does nothing."""
        for pane in self._panes:
            most = pane.account.limits.tokens
            if most is not None:
                difference = tokens - min(self._tokens, most)
                if pane.minute == self._minute or difference > 0:  # what is over is owed, also in a later minute
                    pane.used_tokens += difference
        self._panes = ()

    def headers(self) -> Headers:
        """`x-ratelimit-...` of the tightest limits, as OpenAI names them."""
        return limit_headers(self._panes, time()) if self._panes else []


NOT_LIMITED = Admitted((), 0, 0)


class Windows:
    """One for each worker, inside its `BudgetBook`. `workers`: of this gateway."""

    def __init__(self, call: Call, *, workers: int) -> None:
        self._call = call
        self._workers = max(1, workers)
        self._panes: dict[str, _Pane] = {}
        self._waiting: dict[asyncio.Future[None], tuple[tuple[Account, ...], int]] = {}
        self._number = 0
        self._wake = asyncio.Event()

    def try_admit(self, limited: tuple[Account, ...], tokens: int) -> Admitted | None:
        """`limited`: as in `Accounts`. `tokens`: an estimate of all that the request uses. None: `admit` has to ask."""
        if not limited:
            return NOT_LIMITED
        if self._waiting:
            return None
        return self._try(limited, tokens)

    async def admit(self, limited: tuple[Account, ...], tokens: int) -> Admitted:
        """Raises LimitReached, with `retry-after` and `x-ratelimit-...` headers."""
        admitted = self.try_admit(limited, tokens)
        if admitted is not None:
            return admitted
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = limited, tokens
        self._wake.set()
        try:
            async with asyncio.timeout(MAX_ASK_SECONDS):
                await future  # until a round that began after this has ended
        except TimeoutError:
            pass
        finally:
            self._waiting.pop(future, None)
        admitted = self._try(limited, tokens)
        if admitted is None:
            raise self._refusal(limited, tokens)
        return admitted

    async def run(self) -> None:
        """Asks the control plane, until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(TICK):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._ask()

    def _try(self, limited: tuple[Account, ...], tokens: int) -> Admitted | None:
        minute = int(time()) // MINUTE
        panes = [self._pane(account, minute) for account in limited]
        for pane in panes:
            if not pane.fits(tokens):
                return None
        for pane in panes:
            pane.take(tokens)
            if pane.is_low():
                pane.is_hungry = True
                self._wake.set()
        return Admitted(panes, tokens, minute)

    def _pane(self, account: Account, minute: int) -> _Pane:
        pane = self._panes.get(account.id)
        if pane is None:
            if len(self._panes) >= MAX_PANES:
                self._panes.clear()
            pane = self._panes[account.id] = _Pane(account, minute)
        elif pane.minute != minute:
            pane.turn_to(minute, account)
        elif pane.account is not account:
            pane.account = account
        return pane

    async def _ask(self) -> None:
        minute = int(time()) // MINUTE
        waiting = dict(self._waiting)
        needs: dict[str, list[int]] = {}  # tokens of each request that waits
        for limited, tokens in waiting.values():
            for account in limited:
                self._pane(account, minute)
                needs.setdefault(account.id, []).append(tokens)
        asked: list[tuple[_Pane, WindowAsk]] = []
        for id, pane in self._panes.items():
            if pane.minute == minute - 1 and pane.used_requests:
                pane.turn_to(minute, pane.account)
            if (id in needs or pane.is_hungry) and pane.minute == minute:
                wish = self._wish(pane, needs.get(id, []))
                if wish.requests or wish.tokens:
                    asked.append((pane, wish))
        if asked:
            await self._send(asked, minute)
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _wish(self, pane: _Pane, tokens: list[int]) -> WindowAsk:
        """What is missing for those who wait; ahead of need one, which brings a slice with it."""
        limits, least = pane.account.limits, int(pane.is_hungry)
        pane.is_hungry = False
        requests = missing = 0
        if limits.requests is not None:
            requests = max(least, pane.used_requests + len(tokens) - pane.requests)
        if limits.tokens is not None:
            most = limits.tokens
            missing = max(least, pane.used_tokens + sum(min(one, most) for one in tokens) - pane.tokens)
        return WindowAsk(
            account=pane.account.id,
            minute=pane.minute * MINUTE,
            most_requests=limits.requests,
            most_tokens=limits.tokens,
            requests=requests,
            tokens=missing,
        )

    async def _send(self, asked: list[tuple[_Pane, WindowAsk]], minute: int) -> None:
        try:
            answers = _decode_answers(await self._call(WINDOW_PATH, msgspec.json.encode([ask for _, ask in asked])))
        except (GatewayError, UpstreamError, OSError, msgspec.DecodeError) as error:
            _log.warning("what limits by the minute have left cannot be asked for: %s", error)
            answers = []
        if len(answers) != len(asked):
            for pane, ask in asked:
                self._do_without(pane, ask, minute)
            return
        for (pane, ask), answer in zip(asked, answers, strict=True):
            pane.away_since = None
            if pane.minute * MINUTE == ask.minute:
                pane.requests += answer.requests
                pane.tokens += answer.tokens
                pane.requests_left, pane.tokens_left = answer.requests_left, answer.tokens_left

    def _do_without(self, pane: _Pane, ask: WindowAsk, minute: int) -> None:
        """From the minute after the one in which the control plane went away, each worker has its part."""
        if pane.away_since is None:
            pane.away_since = minute
        if pane.away_since < minute and pane.minute * MINUTE == ask.minute:
            limits = pane.account.limits
            pane.requests = max(pane.requests, (limits.requests or 0) // self._workers)
            pane.tokens = max(pane.tokens, (limits.tokens or 0) // self._workers)

    def _refusal(self, limited: tuple[Account, ...], tokens: int) -> LimitReached:
        now = time()
        minute = int(now) // MINUTE
        panes = [self._pane(account, minute) for account in limited]
        pane = next((one for one in panes if not one.fits(tokens)), panes[0])
        limits = pane.account.limits
        seconds = max(1, math.ceil((minute + 1) * MINUTE - now))
        headers = limit_headers(panes, now)
        if limits.requests is not None and pane.used_requests >= pane.requests:
            return LimitReached(pane.account.id, "requests", limits.requests, seconds, headers)
        return LimitReached(pane.account.id, "tokens", limits.tokens or 0, seconds, headers)


def limit_headers(panes: Sequence[_Pane], now: float) -> Headers:
    """Of the account that has least left, for requests and for tokens. What other workers hold is not counted in."""
    requests: tuple[int, int] | None = None  # what is left, and of how many
    tokens: tuple[int, int] | None = None
    for pane in panes:
        limits = pane.account.limits
        if (most := limits.requests) is not None:
            left = max(0, pane.requests - pane.used_requests + pane.requests_left)
            if requests is None or left < requests[0]:
                requests = left, most
        if (most := limits.tokens) is not None:
            left = max(0, pane.tokens - pane.used_tokens + pane.tokens_left)
            if tokens is None or left < tokens[0]:
                tokens = left, most
    reset = b"%ds" % max(1, math.ceil(MINUTE - now % MINUTE))
    headers: Headers = []
    if requests is not None:
        headers.append((b"x-ratelimit-limit-requests", b"%d" % requests[1]))
        headers.append((b"x-ratelimit-remaining-requests", b"%d" % min(requests)))
        headers.append((b"x-ratelimit-reset-requests", reset))
    if tokens is not None:
        headers.append((b"x-ratelimit-limit-tokens", b"%d" % tokens[1]))
        headers.append((b"x-ratelimit-remaining-tokens", b"%d" % min(tokens)))
        headers.append((b"x-ratelimit-reset-tokens", reset))
    return headers
