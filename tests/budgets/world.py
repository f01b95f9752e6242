"""Gateways with workers in one process, over a real PostgreSQL: real books, real desks, real SQL.

A worker's spool is a list, which its gateway's desk ships into the ledger as the shipper does. Upstreams are coroutines
that cost what a test says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, insert, select

from gateway.accounting.bounds import Bound, Size, bound_of
from gateway.budgets.accounts import Account, Accounts
from gateway.budgets.book import BudgetBook
from gateway.budgets.desk import BudgetDesk, Stale
from gateway.budgets.messages import LEASE_PATH
from gateway.errors import GatewayError, StoreError, Unavailable
from gateway.store.tables import usage_events
from gateway.types import BUCKETS, Budget, Rates

RATES = Rates(input=Decimal(1), output=Decimal(2))


def bound(limit: int | None = 100, n_bytes: int = 100, rates: Rates | None = RATES) -> Bound:
    return bound_of(Size(n_bytes, 1, limit, False), rates, None)


def hard(id: str, usd: str, **more: Any) -> Account:
    return Account(id, Budget(usd=Decimal(usd), hard=True, **more))


def accounts(*found: Account) -> Accounts:
    return Accounts.of(found)


def row(team: str, cost: Decimal | None, **changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "event_id": str(uuid4()),
        "request_id": "req",
        "attempt": 1,
        "started_at": now,
        "ended_at": now,
        "team": team,
        "key_id": "key-1",
        "route": "r",
        "policy": "p",
        "policy_version": "v",
        "endpoint": "e",
        "provider": "x",
        "model": "m",
        "upstream_model": "m",
        "status": "ok",
        "stream": False,
        "duration_ms": 1.0,
        **dict.fromkeys(BUCKETS, 0),
        "usage_source": "reported",
        "price_status": "priced" if cost is not None else "unpriced",
        "cost_usd": cost,
        **changes,
    }


@dataclass
class Worker:
    book: BudgetBook
    process: str
    spool: list[dict[str, Any]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    async def spend(
        self,
        of: Accounts,
        team: str,
        cost: Decimal | None,
        *,
        bound: Bound,
        seconds: float = 0.0,
        is_reported: bool = True,
        endpoint: str = "e",
    ) -> None:
        """One attempt: reserved, made, on the spool, settled."""
        reservation = await self.book.reserve(of, bound, endpoint)
        try:
            await asyncio.sleep(seconds)
        except BaseException:
            self.spool.append(row(team, None, max_cost_usd=reservation.max_cost))
            reservation.settle(None)
            raise
        self.spool.append(row(team, cost, max_cost_usd=reservation.max_cost if cost is None else None))
        reservation.settle(cost, is_reported=is_reported)


class World:
    """One gateway."""

    def __init__(self, engine: Engine, name: str, folder: Path, workers: int = 2, rng: Random | None = None) -> None:
        self.engine = engine
        self.name = name
        self.folder = folder
        self.is_away = False
        self.rng = rng or Random(1)
        self.delay: Callable[[], float] = lambda: 0.0
        self.shipping = asyncio.Lock()
        self.desk = BudgetDesk(
            engine, gateway=name, spool_dir=folder, flush=self.ship, publish=self.publish, push=self.push
        )
        self.content: bytes | None = None
        self.workers = [self.worker(f"w{index}", workers) for index in range(workers)]

    def worker(self, process: str, workers: int = 1) -> Worker:
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{process}-000001.spool").touch()
        return Worker(BudgetBook(f"{self.name}/{process}", self.call, workers=workers), process)

    async def call(self, path: str, body: bytes) -> bytes:
        if self.is_away:
            raise Unavailable("away")
        await asyncio.sleep(self.delay())
        try:
            answer = await (self.desk.lease(body) if path == LEASE_PATH else self.desk.window(body))
        except (StoreError, Stale) as error:
            raise Unavailable("refused") from error
        await asyncio.sleep(self.delay())
        return answer

    async def ship(self) -> None:
        async with self.shipping:
            rows = [(worker.spool, list(worker.spool)) for worker in self.workers]
            found = [one for _, some in rows for one in some]
            if found:
                await asyncio.to_thread(self._insert, found)
            for spool, some in rows:
                del spool[: len(some)]

    def _insert(self, found: list[dict[str, Any]]) -> None:
        with self.engine.begin() as connection:
            for one in found:  # one by one: the rows have different keys
                connection.execute(insert(usage_events).values(one))

    def publish(self, content: bytes) -> None:
        self.content = content

    async def push(self) -> None:
        for worker in self.workers:
            worker.book.take_up(self.content)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        desk = asyncio.create_task(self.desk.run())
        for worker in self.workers:
            worker.task = asyncio.create_task(worker.book.run())
        try:
            yield self
        finally:
            tasks = [desk, *(worker.task for worker in self.workers if worker.task is not None)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.ship()


def spent(engine: Engine, team: str) -> Decimal:
    """Of the ledger's rows themselves, unknown costs at their bound."""
    events = usage_events.c
    with engine.connect() as connection:
        rows = connection.execute(select(events.cost_usd, events.max_cost_usd).where(events.team == team))
        return sum((usd if usd is not None else most or Decimal(0) for usd, most in rows), Decimal(0))


async def swarm(
    worlds: list[World],
    clients: int,
    attempt: Callable[[Worker, int], Any],
    *,
    stop_after: int = 3,
    most: int = 10_000,
) -> dict[str, int]:
    """Clients that go on until they were refused `stop_after` times in a row; counts outcomes by code."""
    counts: dict[str, int] = {}
    workers = [worker for world in worlds for worker in world.workers]

    async def client(number: int) -> None:
        refused = 0
        for turn in range(most):
            code = "ok"
            try:
                await attempt(workers[(number + turn) % len(workers)], number)
            except GatewayError as error:
                code = error.code or "error"
            counts[code] = counts.get(code, 0) + 1
            refused = 0 if code == "ok" else refused + 1
            if refused >= stop_after:
                return

    await asyncio.gather(*(client(number) for number in range(clients)))
    return counts
