"""What the control plane asks the database about leases while there are none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from gateway.budgets import desk as module
from gateway.budgets.desk import BudgetDesk
from gateway.budgets.messages import LeaseRequest
from tests.gateway_fixtures import until

HOLDER = "gw/w0"


async def test_who_needs_what_is_asked_only_while_leases_are_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks: list[str] = []
    held: set[str] = {HOLDER}  # of an earlier control plane

    def wanted(engine: object, gateway: str) -> dict[str, list[object]]:
        looks.append(gateway)
        return {}

    async def nothing() -> None:
        pass

    monkeypatch.setattr(module, "wanted", wanted)
    monkeypatch.setattr(module, "holders", lambda engine, gateway: set(held))
    monkeypatch.setattr(module, "grant", lambda engine, holder, wishes: held.add(holder) or [])
    monkeypatch.setattr(module, "purge", lambda engine: None)
    monkeypatch.setattr(module, "WANTED_EVERY", 0.005)
    monkeypatch.setattr(module, "CLEAR_EVERY", 0.005)
    (tmp_path / "w0-000001.spool").touch()
    desk = BudgetDesk(
        None,  # type: ignore[arg-type]
        gateway="gw",
        spool_dir=tmp_path,
        flush=nothing,
        publish=lambda content: None,
        push=nothing,
    )
    running = asyncio.create_task(desk.run())
    await until(lambda: len(looks) > 3)
    held.clear()
    await until(lambda: desk._none_at == 0)
    await asyncio.sleep(0.05)
    looks.clear()
    await asyncio.sleep(0.1)
    assert looks == []
    await desk.lease(msgspec.json.encode(LeaseRequest(holder=HOLDER, number=1, asks=[])))
    await until(lambda: len(looks) > 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
