"""Thresholds are told once, by a signed webhook too; what the dead held is taken back; who is gone is reported."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from sqlalchemy import insert

from gateway.budgets import webhook
from gateway.budgets.messages import LeaseRequest, Notice
from gateway.budgets.standing import standings, with_history
from gateway.budgets.watch import BudgetWatch, release_holder
from gateway.config.model import Alerts, Configuration, Secret, Team
from gateway.store.audit import Author, list_audit
from gateway.store.database import Database
from gateway.store.leases import leases
from gateway.store.tables import usage_events
from gateway.telemetry import ControlMetrics
from gateway.types import Budget, KeyRecord
from gateway.upstream.client import UpstreamClient
from tests.budgets.world import World, accounts, bound, hard, row

AUTHOR = Author("key-1", "admin")


class Hook:
    """A webhook on loopback that answers as it is told."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.come = asyncio.Event()

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?x=1"
        return server

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        status = self.statuses.pop(0) if self.statuses else 204
        self.seen.append((head[0], headers, body))
        extra = f"location: {self.url}/elsewhere\r\n" if status == 307 else ""
        writer.write(f"HTTP/1.1 {status} X\r\n{extra}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        self.come.set()


@pytest.fixture
async def client() -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient()
    yield client
    await client.close()


def configuration(alerts: Alerts = Alerts(), **budgets: Budget) -> Configuration:  # noqa: B008 - immutable
    teams = {name: Team(id=name, budget=budget) for name, budget in budgets.items()}
    return Configuration(version="v", providers={}, endpoints={}, routes=(), policies={}, teams=teams, alerts=alerts)


def watch(world: World, client: UpstreamClient, of: Configuration, keys: Any = ()) -> BudgetWatch:
    return BudgetWatch(
        world.engine,
        desk=world.desk,
        gateway=world.name,
        client=client,
        metrics=ControlMetrics(),
        configuration=lambda: of,
        keys=lambda: keys,
    )


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database.engine, f"gw-{uuid4().hex[:8]}", tmp_path / "spool", workers=1)


def spend(world: World, team: str, usd: str, **changes: Any) -> None:
    with world.engine.begin() as connection:
        connection.execute(insert(usage_events).values(row(team, Decimal(usd), **changes)))


async def test_each_threshold_is_told_once(
    world: World, client: UpstreamClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.01)
    hook, team = Hook(500, 307), f"t{uuid4().hex[:6]}"
    server = await hook.serve()
    alerts = Alerts(webhook=hook.url, secret=Secret("s3cret"))
    budget = Budget(usd=Decimal(10), alerts=(Decimal("0.5"), Decimal(1)))
    of = configuration(alerts, **{team: budget})
    one, two = watch(world, client, of), watch(world, client, of)
    one._webhook = webhook.Webhook(client, first_pause=0.01)
    sending = asyncio.create_task(one._webhook.run())
    try:
        for usd, told in (("4.99", 0), ("0.01", 1), ("0.5", 1), ("9", 2)):
            spend(world, team, usd)
            for watcher in (one, one, two):
                await watcher.look(datetime.now(UTC))
            assert sum("has reached" in record.message for record in caplog.records) == told
        while len(hook.seen) < 4:  # the first was refused, then redirected, then taken
            hook.come.clear()
            await asyncio.wait_for(hook.come.wait(), 10)
    finally:
        sending.cancel()
        server.close()
        await asyncio.gather(sending, return_exceptions=True)
    assert {line for line, _, _ in hook.seen} == {"POST /hook?x=1 HTTP/1.1"}
    told = [json.loads(body) for _, _, body in hook.seen]
    assert [one["threshold"] for one in told] == ["0.5", "0.5", "0.5", "1"]
    assert told[-1]["account"] == f"team:{team}"
    assert (told[-1]["spent_usd"], told[-1]["limit_usd"], told[-1]["left_usd"]) == ("14.50", "10", "-4.50")
    for _, headers, body in hook.seen:
        expected = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
        assert headers["x-hatchway-signature"] == f"sha256={expected}"
    exposition = one._metrics.exposition().decode()
    assert f'hatchway_budget_spent_ratio{{account="team:{team}"}} 1.45' in exposition
    assert f'hatchway_budget_alerts_total{{account="team:{team}"}} 2.0' in exposition


async def test_a_webhook_that_never_answers_well_is_given_up(
    client: UpstreamClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Hook(*[500] * 20)
    server = await hook.serve()
    sender = webhook.Webhook(client, first_pause=0.001)
    task = asyncio.create_task(sender.run())
    sender.send(b"{}", Alerts(webhook=hook.url))
    sender.send(b"{}", Alerts())
    for _ in range(webhook.TRIES):
        hook.come.clear()
        await asyncio.wait_for(hook.come.wait(), 10)
    for _ in range(500):
        if any("could not be told" in record.message for record in caplog.records):
            break
        await asyncio.sleep(0.01)
    assert any("could not be told" in record.message for record in caplog.records)
    task.cancel()
    server.close()
    assert len(hook.seen) == webhook.TRIES
    assert "x-hatchway-signature" not in hook.seen[0][1]


async def test_what_is_left_is_published_for_hard_budgets(world: World, client: UpstreamClient) -> None:
    soft, firm = f"t{uuid4().hex[:6]}", f"t{uuid4().hex[:6]}"
    key = KeyRecord(hash="", key_id=uuid4().hex, team=firm, budget=Budget(usd=Decimal(3), hard=True))
    of = configuration(**{soft: Budget(usd=Decimal(1)), firm: Budget(usd=Decimal(2), hard=True)})
    spend(world, firm, "1.5", key_id=key.key_id)
    await watch(world, client, of, [key]).look(datetime.now(UTC))
    left = msgspec.json.decode(world.content or b"", type=Notice).left
    assert {id: one.units for id, one in left.items()} == {f"team:{firm}": 5 * 10**11, f"key:{key.key_id}": 15 * 10**11}


async def test_standings(world: World) -> None:
    team = f"t{uuid4().hex[:6]}"
    now = datetime.now(UTC)
    account = hard(f"team:{team}", "10", per="year")
    for days in (0, 30):
        spend(world, team, "1", started_at=max(now - timedelta(days=days), now.replace(month=1, day=1)))
    async with world.running():
        reservation = await world.workers[0].book.reserve(accounts(account), bound(), "e")
        (standing,) = standings(world.engine, [account], now)
        reservation.release()
    assert (standing.spent_usd, standing.left_usd, standing.hard) == (2, 8, True)
    assert standing.reserved_usd >= Decimal("0.0003")
    detailed = with_history(world.engine, standing, account, now)
    assert detailed.forecast_usd is not None and detailed.forecast_usd >= 2


async def test_what_a_dead_worker_held_goes_once_its_spool_is_shipped(world: World) -> None:
    team = f"t{uuid4().hex[:6]}"
    of = accounts(hard(f"team:{team}", "1"))
    async with world.running():
        worker = world.workers[0]
        reservation = await worker.book.reserve(of, bound(), "e")
        assert await world.desk.clear() == []
        assert worker.task is not None
        worker.task.cancel()
        next(world.folder.glob("*.spool")).unlink()  # as the shipper does, when all of it is in the ledger
        assert await world.desk.clear() == [worker.book.holder]
        assert leases(world.engine, f"team:{team}") == []
        reservation.release()


async def test_an_old_request_is_not_served_after_a_newer_one(world: World) -> None:
    from gateway.budgets.desk import Stale

    holder = f"{world.name}/w0"
    for number in (1, 3):
        await world.desk.lease(msgspec.json.encode(LeaseRequest(holder=holder, number=number, asks=[])))
    for number in (2, 3):
        with pytest.raises(Stale):
            await world.desk.lease(msgspec.json.encode(LeaseRequest(holder=holder, number=number, asks=[])))
    with pytest.raises(ValueError, match="another gateway"):
        await world.desk.lease(msgspec.json.encode(LeaseRequest(holder="other/w0", number=9, asks=[])))


async def test_one_round_of_shipping_serves_all_who_wait(world: World) -> None:
    rounds = 0

    async def ship() -> None:
        nonlocal rounds
        rounds += 1
        await asyncio.sleep(0.01)

    world.desk._flush._flush = ship
    await asyncio.gather(*(world.desk._flush.once() for _ in range(20)))
    assert rounds <= 2


async def test_a_holder_that_is_gone_for_good_is_released(
    world: World, client: UpstreamClient, caplog: pytest.LogCaptureFixture
) -> None:
    team = f"t{uuid4().hex[:6]}"
    async with world.running():
        reservation = await world.workers[0].book.reserve(accounts(hard(f"team:{team}", "1")), bound(), "e")
    holder = world.workers[0].book.holder
    with pytest.raises(ValueError, match="may be alive"):
        release_holder(world.engine, holder, AUTHOR)
    assert leases(world.engine, f"team:{team}")
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE budget_leases SET renewed_at = now() - interval '1 hour'")
    watcher, now = watch(world, client, configuration()), datetime.now(UTC)
    with caplog.at_level(logging.ERROR):
        for minutes in (0, 1, 3, 4):
            await watcher.look(now + timedelta(minutes=minutes))
    assert sum(f"budgets release {holder}" in record.message for record in caplog.records) == 1
    (released,) = release_holder(world.engine, holder, AUTHOR)
    assert released.account == f"team:{team}"
    assert release_holder(world.engine, holder, AUTHOR) == []
    noted = [one for one in list_audit(world.engine) if one.subject == holder]
    assert [(one.actor, one.action) for one in noted] == [("key-1", "budgets.release")]
    reservation.release()
