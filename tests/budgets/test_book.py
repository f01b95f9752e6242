"""A worker's reservations, over a real desk and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from gateway.budgets import book as books
from gateway.budgets.accounts import NO_ACCOUNTS, Accounts
from gateway.budgets.book import BudgetBook, Reservation
from gateway.budgets.messages import Left
from gateway.budgets.periods import span_of
from gateway.budgets.refusals import BudgetReserved, BudgetSpent, BudgetUnavailable
from gateway.store.database import Database
from gateway.store.leases import leases
from gateway.types import Rates
from tests.budgets.world import RATES, World, accounts, bound, hard, row

FREE = Rates(input=Decimal(0), output=Decimal(0))
COST = Decimal("0.0003")
"""The bound of the usual request: 100 tokens in, 100 out."""


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with World(database.engine, f"gw-{uuid4().hex[:8]}", tmp_path / "spool", workers=2).running() as world:
        yield world
        assert all(worker.book.dropped == 0 for worker in world.workers)


@pytest.fixture
def book(world: World) -> BudgetBook:
    """Of a worker that has seen what the endpoint bills: bounds are kept."""
    for worker in world.workers:
        learn(worker.book, None, 10, 100)
    return world.workers[0].book


def learn(book: BudgetBook, *limits: int | None) -> None:
    for limit in limits:
        of = bound(limit)
        book.experience.learn("e", of, (of.units or 0) // 10)


def team(usd: str) -> tuple[str, Accounts]:
    name = f"t{uuid4().hex[:8]}"
    return name, accounts(hard(f"team:{name}", usd))


def settle(world: World, name: str, reservation: Reservation, cost: Decimal | None) -> None:
    world.workers[0].spool.append(row(name, cost, max_cost_usd=reservation.max_cost if cost is None else None))
    reservation.settle(cost)


def held(world: World, name: str) -> Decimal:
    return sum((one.amount_usd for one in leases(world.engine, f"team:{name}")), Decimal(0))


async def test_without_a_hard_budget_nothing_is_set_aside(book: BudgetBook) -> None:
    reservation = book.try_reserve(NO_ACCOUNTS, bound(None), "e")
    assert reservation is not None
    assert (reservation.limit, reservation.max_cost) == (None, bound(None).usd)
    reservation.settle(COST)
    unpriced = await book.reserve(NO_ACCOUNTS, bound(10, rates=None), "e")
    assert unpriced.max_cost is None
    unpriced.release()


async def test_a_lease_serves_many_without_asking(world: World, book: BudgetBook) -> None:
    _, of = team("10")
    assert book.try_reserve(of, bound(), "e") is None  # nothing is held at the start
    (await book.reserve(of, bound(), "e")).release()
    world.is_away = True
    for _ in range(5):
        reservation = book.try_reserve(of, bound(), "e")
        assert reservation is not None
        reservation.settle(COST)


async def test_a_request_without_a_limit_is_sent_one(book: BudgetBook) -> None:
    _, of = team("10")
    for limit, sent in ((None, 4_096), (100, None)):
        reservation = await book.reserve(of, bound(limit), "e")
        assert reservation.limit == sent
        reservation.release()


async def test_what_does_not_fit_waits_for_what_is_under_way(world: World, book: BudgetBook) -> None:
    name, of = team("0.0005")
    first = await book.reserve(of, bound(), "e")
    second = asyncio.ensure_future(book.reserve(of, bound(), "e"))
    await asyncio.sleep(0.1)
    assert not second.done()
    settle(world, name, first, Decimal("0.0002"))
    reservation = await asyncio.wait_for(second, 5)
    settle(world, name, reservation, COST)
    with pytest.raises(BudgetSpent) as refused:
        await book.reserve(of, bound(), "e")
    assert (refused.value.status, refused.value.code, refused.value.account) == (429, "budget_exceeded", f"team:{name}")


async def test_the_last_money_is_used_as_far_as_it_goes(world: World, book: BudgetBook) -> None:
    """Output is cut to what is left, unless that is too little to be of use."""
    name, of = team("0.0004")
    for _ in range(2):
        settle(world, name, await book.reserve(of, bound(), "e"), Decimal("0.0001"))
    reservation = await book.reserve(of, bound(), "e")
    assert reservation.limit == 50  # 0.0002 USD, half of which is input
    assert reservation.max_cost == Decimal("0.0002")
    settle(world, name, reservation, Decimal("0.0001"))
    with pytest.raises(BudgetSpent):
        await book.reserve(of, bound(), "e")


async def test_an_unknown_cost_stays_spent(world: World, book: BudgetBook) -> None:
    name, of = team("0.0005")
    settle(world, name, await book.reserve(of, bound(), "e"), None)
    reservation = await book.reserve(of, bound(), "e")
    assert reservation.max_cost == Decimal("0.0002")
    reservation.release()


async def test_a_reservation_ends_once(world: World, book: BudgetBook) -> None:
    name, of = team("0.0005")
    reservation = await book.reserve(of, bound(), "e")
    settle(world, name, reservation, Decimal("0.0001"))
    reservation.settle(Decimal(0))
    reservation.release()
    settle(world, name, await book.reserve(of, bound(), "e"), Decimal("0.0002"))
    last = await book.reserve(of, bound(), "e")
    assert last.max_cost == Decimal("0.0002")
    last.release()
    last.settle(COST)
    again = await book.reserve(of, bound(), "e")
    assert again.max_cost == Decimal("0.0002")
    again.release()


async def test_a_dropped_reservation_is_counted_and_its_money_stays_spent(world: World, book: BudgetBook) -> None:
    _, of = team("0.0005")
    reservation = await book.reserve(of, bound(), "e")
    del reservation
    await asyncio.sleep(0)  # the loop has kept what it woke this up with
    gc.collect()
    assert book.dropped == 1
    book.dropped = 0
    assert book.try_reserve(of, bound(), "e") is None


async def test_all_accounts_or_none(world: World, book: BudgetBook) -> None:
    rich, poor = hard(f"team:{uuid4().hex}", "10"), hard(f"key:{uuid4().hex}", "0.0001")
    with pytest.raises(BudgetSpent) as refused:
        await book.reserve(accounts(poor, rich), bound(), "e")
    assert refused.value.account == poor.id
    assert [line.reserved for line in book._lines.values()] == [0, 0]


async def test_a_client_that_goes_while_it_waits_holds_nothing(world: World, book: BudgetBook) -> None:
    name, of = team("0.0003")
    first = await book.reserve(of, bound(), "e")
    waiting = asyncio.ensure_future(book.reserve(of, bound(), "e"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    given = asyncio.ensure_future(book.reserve(of, bound(), "e"))
    await asyncio.sleep(0)
    first.release()  # gives it to the other one, which is cancelled before it runs
    given.cancel()
    await asyncio.gather(given, return_exceptions=True)
    (await book.reserve(of, bound(), "e")).release()


async def test_waiting_is_bounded(world: World, book: BudgetBook) -> None:
    name, of = team("0.0003")
    first = await book.reserve(of, bound(), "e")
    with pytest.raises(BudgetReserved) as refused:
        await book.reserve(of, bound(), "e", until=asyncio.get_running_loop().time() + 0.1)
    assert (refused.value.status, refused.value.code) == (429, "budget_reserved")
    assert (b"retry-after", b"2") in refused.value.headers
    first.release()


async def test_what_costs_nothing_is_never_blocked(world: World, book: BudgetBook) -> None:
    _, of = team("0")
    with pytest.raises(BudgetSpent):
        await book.reserve(of, bound(), "e")
    world.is_away = True
    reservation = await book.reserve(of, bound(None, rates=FREE), "local")
    assert (reservation.limit, reservation.max_cost) == (None, 0)
    reservation.settle(Decimal(0))


async def test_an_unknown_price_is_refused(book: BudgetBook) -> None:
    _, of = team("10")
    with pytest.raises(BudgetSpent, match="price is unknown"):
        await book.reserve(of, bound(rates=None), "e")
    with pytest.raises(BudgetSpent, match="price is unknown"):
        book.try_reserve(of, bound(rates=None), "e")


async def test_without_the_control_plane_leases_go_on_and_nothing_more(world: World, book: BudgetBook) -> None:
    name, of = team("10")
    (await book.reserve(of, bound(), "e")).release()
    world.is_away = True
    spent = 0
    with pytest.raises(BudgetUnavailable) as refused:
        while True:
            (await book.reserve(of, bound(), "e")).settle(COST)
            spent += 1
    assert (refused.value.status, refused.value.code) == (503, "budget_unavailable")
    assert 0 < spent * COST <= held(world, name)
    world.is_away = False
    (await book.reserve(of, bound(), "e")).settle(COST)


async def test_nothing_is_asked_for_while_the_spool_holds_records_in_memory(world: World, tmp_path: Path) -> None:
    book = BudgetBook(f"{world.name}/x", world.call, is_spooled=lambda: False)
    _, of = team("10")
    task = asyncio.create_task(book.run())
    try:
        with pytest.raises(BudgetUnavailable):
            await book.reserve(of, bound(), "e")
    finally:
        task.cancel()


async def test_what_is_not_used_is_given_back(world: World, book: BudgetBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "IDLE_SECONDS", 0.05)
    name, of = team("10")
    reservation = await book.reserve(of, bound(), "e")
    assert held(world, name) > COST
    for _ in range(100):
        if held(world, name) == COST:
            break
        await asyncio.sleep(0.05)
    assert held(world, name) == COST  # what is reserved stays
    reservation.release()
    for _ in range(100):
        if not held(world, name):
            break
        await asyncio.sleep(0.05)
    assert held(world, name) == 0


async def test_a_worker_gives_others_what_it_does_not_use(world: World, book: BudgetBook) -> None:
    name, of = team("0.0006")
    (await book.reserve(of, bound(), "e")).release()
    keeps = await book.reserve(of, bound(), "e")
    (await book.reserve(of, bound(), "e")).release()
    assert held(world, name) == Decimal("0.0006")
    other = world.workers[1].book
    reservation = await asyncio.wait_for(other.reserve(of, bound(), "e"), 5)
    assert reservation.max_cost == COST
    reservation.release()
    keeps.release()


async def test_a_raised_limit_is_in_force_at_once(world: World, book: BudgetBook) -> None:
    name, of = team("0")
    with pytest.raises(BudgetSpent):
        await book.reserve(of, bound(), "e")
    (await book.reserve(accounts(hard(f"team:{name}", "1")), bound(), "e")).release()


async def test_at_the_end_of_a_period_the_next_one_pays_too(
    world: World, book: BudgetBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt may begin in either."""
    now = datetime.now(UTC)
    end = span_of("day", "UTC", now).end
    clock = end - timedelta(seconds=1)
    monkeypatch.setattr(books, "time", lambda: clock.timestamp())
    name = uuid4().hex
    of = accounts(hard(f"team:{name}", "1", per="day"))
    reservation = await book.reserve(of, bound(), "e")
    held = {line.starts: line.reserved for line in book._lines.values()}
    assert held == {(end - timedelta(days=1)).timestamp(): 300_000_000, end.timestamp(): 300_000_000}
    clock = end + timedelta(seconds=1)
    later = await book.reserve(of, bound(), "e")
    assert {line.starts: line.reserved for line in book._lines.values()} == {
        (end - timedelta(days=1)).timestamp(): 300_000_000,
        end.timestamp(): 600_000_000,
    }
    reservation.release()
    later.release()


@pytest.mark.parametrize("was_used", [False, True])
async def test_what_is_left_is_known_for_planning(
    world: World, book: BudgetBook, was_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, of = team("10")
    if was_used:
        (await book.reserve(of, bound(), "e")).release()
    assert book.left(NO_ACCOUNTS) is None
    assert book.left(of) == 10
    span = span_of("month", "UTC", datetime.now(UTC))
    start = span.start.timestamp()
    for known, expected in ((Left(start - 40 * 86_400, 0), 10), (Left(start, -5), 0), (Left(start, 5 * 10**12), 5)):
        await world.desk.tell({f"team:{name}": known})
        book.take_up(world.content)
        assert book.left(of) == expected
    dearer = accounts(hard(f"team:{name}", "20"))  # a changed configuration, before anything is reserved under it
    assert book.left(dearer) == 5
    monkeypatch.setattr(books, "time", span.end.timestamp)
    assert book.left(of) == 10
    assert book.left(dearer) == (10 if was_used else 20)


async def test_an_upstream_that_bills_more_is_reserved_for(world: World, book: BudgetBook) -> None:
    """What one request was billed above its bound, the next ones of its kind have set aside."""
    name, of = team("10")
    of_small = bound(20, 50)
    dear = Decimal("0.002")  # the bound is 0.00009
    first = await book.reserve(of, of_small, "odd")
    settle(world, name, first, dear)
    line = next(iter(book._lines.values()))
    second = await book.reserve(of, of_small, "odd")
    assert line.reserved >= 2_000_000_000
    second.release()
    assert RATES.input == 1
