"""Many clients, several workers, two gateways, one budget: the ledger never passes it, and nearly all of it is used."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from random import Random

import pytest

from gateway.store.database import Database
from tests.budgets.world import Worker, World, accounts, bound, hard, spent, swarm


@pytest.mark.parametrize(
    ("name", "usd", "cost", "limit", "gateways"),
    [
        ("small", "0.05", "0.00005", 100, 2),  # far under the bound
        ("fixed", "0.05", "0.002", 5, 2),  # ten times the bound
        ("open", "0.01", "0.00005", None, 2),  # no limit stated: the bound is over the whole budget
        ("one", "0.05", "0.0003", 100, 1),
    ],
)
async def test_64_clients(
    database: Database, tmp_path: Path, name: str, usd: str, cost: str, limit: int | None, gateways: int
) -> None:
    of = accounts(hard(f"team:{name}", usd))
    worlds = [World(database.engine, f"gw{index}", tmp_path / f"{index}") for index in range(gateways)]
    rng = Random(7)

    async def attempt(worker: Worker, number: int) -> None:
        await worker.spend(of, name, Decimal(cost), bound=bound(limit), seconds=rng.uniform(0.002, 0.02))

    async with worlds[0].running():
        if gateways == 2:
            async with worlds[1].running():
                counts = await swarm(worlds, 64, attempt)
        else:
            counts = await swarm(worlds, 64, attempt)
    total = spent(database.engine, name)
    assert counts["ok"] * Decimal(cost) == total <= Decimal(usd)
    assert total >= Decimal(usd) * Decimal("0.9")
