"""Requests and tokens by the minute, over several workers and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.budgets import windows as module
from gateway.budgets.accounts import Account
from gateway.budgets.refusals import LimitReached
from gateway.budgets.windows import Windows
from gateway.store.database import Database
from gateway.store.windows import Slice, take
from gateway.types import RateLimit
from tests.budgets.world import World

MINUTE = 29_900_000


class Clock:
    def __init__(self) -> None:
        self.now = MINUTE * 60.0 + 10

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
async def world(database: Database, tmp_path: Path, clock: Clock) -> AsyncIterator[World]:
    async with World(database.engine, f"gw-{uuid4().hex[:8]}", tmp_path / "spool", workers=2).running() as world:
        yield world


def limited(requests: int | None = None, tokens: int | None = None) -> tuple[Account, ...]:
    return (Account(f"team:{uuid4().hex}", limits=RateLimit(requests=requests, tokens=tokens)),)


async def admit(world: World, of: tuple[Account, ...], tokens: int, times: int) -> int:
    """How many of so many requests at once, over both workers, are let in."""

    async def one(number: int) -> int:
        try:
            await world.workers[number % 2].book.windows.admit(of, tokens)
        except LimitReached:
            return 0
        return 1

    return sum(await asyncio.gather(*(one(number) for number in range(times))))


@pytest.mark.parametrize(
    ("requests", "tokens", "expected"), [(20, None, 20), (None, 1000, 20), (7, 1000, 7), (1, None, 1)]
)
async def test_never_more_than_the_limit_in_a_minute(
    world: World, clock: Clock, requests: int | None, tokens: int | None, expected: int
) -> None:
    of = limited(requests, tokens)
    for _ in range(2):
        first = await admit(world, of, 50, 64)
        again = await admit(world, of, 50, 8)
        assert expected - 2 <= first <= expected  # a slice that one worker holds may stay unused
        assert first + again <= expected
        clock.now += 60


async def test_the_refusal_says_when_and_how_much(world: World, clock: Clock) -> None:
    of = limited(1, 100)
    windows = world.workers[0].book.windows
    admitted = await windows.admit(of, 60)
    assert dict(admitted.headers()) == {
        b"x-ratelimit-limit-requests": b"1",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"50s",
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-remaining-tokens": b"40",
        b"x-ratelimit-reset-tokens": b"50s",
    }
    with pytest.raises(LimitReached) as refused:
        await windows.admit(of, 1)
    headers = dict(refused.value.headers)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert (headers[b"retry-after"], headers[b"x-ratelimit-remaining-requests"]) == (b"50", b"0")


async def test_tokens_are_corrected_and_debts_are_paid(world: World, clock: Clock) -> None:
    of = limited(tokens=100)
    windows = world.workers[0].book.windows
    (await windows.admit(of, 90)).settle(40)  # 50 come back
    (await windows.admit(of, 60)).settle(130)  # 70 over its estimate
    with pytest.raises(LimitReached):
        await windows.admit(of, 1)
    clock.now += 60
    (await windows.admit(of, 30)).settle(30)  # 70 of this minute's 100 pay the debt
    with pytest.raises(LimitReached):
        await windows.admit(of, 1)
    clock.now += 60
    (await windows.admit(of, 100)).settle(0)


async def test_a_request_that_is_larger_than_the_limit_takes_all_of_a_minute(world: World) -> None:
    of = limited(tokens=100)
    windows = world.workers[0].book.windows
    await windows.admit(of, 5000)
    with pytest.raises(LimitReached):
        await windows.admit(of, 1)


async def test_all_accounts_or_none(world: World) -> None:
    roomy, narrow = limited(10)[0], limited(1)[0]
    windows = world.workers[0].book.windows
    await windows.admit((narrow, roomy), 1)
    for _ in range(20):
        with pytest.raises(LimitReached) as refused:
            await windows.admit((roomy, narrow), 1)
        assert refused.value.account == narrow.id
    assert await admit(world, (roomy,), 1, 9) >= 8  # those that were refused took nothing of it


async def test_without_the_control_plane_each_worker_keeps_to_its_part(world: World, clock: Clock) -> None:
    of = limited(10)
    world.is_away = True
    assert await admit(world, of, 1, 20) == 0  # somebody may have taken all of this minute
    clock.now += 60
    assert await admit(world, of, 1, 40) == 10
    world.is_away = False
    clock.now += 60
    assert 8 <= await admit(world, of, 1, 40) <= 10


async def test_without_limits_nothing_is_asked() -> None:
    async def nobody(path: str, body: bytes) -> bytes:
        raise AssertionError("asked")

    windows = Windows(nobody, workers=1)
    admitted = await windows.admit((), 10)
    assert admitted.headers() == []
    admitted.settle(10)


def test_slices(database: Database, clock: Clock) -> None:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(clock.now, UTC).replace(second=0, microsecond=0)

    def ask(requests: int, tokens: int) -> tuple[int, int, int, int]:
        wish = Slice(account="a", minute=at, most_requests=100, most_tokens=1000, requests=requests, tokens=tokens)
        (given,) = take(database.engine, [wish])
        return given.requests, given.tokens, given.requests_left, given.tokens_left

    assert ask(1, 1) == (12, 125, 88, 875)
    assert ask(50, 0) == (50, 0, 38, 875)
    assert ask(100, 2000) == (38, 875, 0, 0)
    assert ask(1, 1) == (0, 0, 0, 0)
