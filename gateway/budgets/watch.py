"""Looks after all budgets, hard and soft: thresholds that are reached, what is left, leases that nobody renews."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from time import perf_counter

import msgspec
from sqlalchemy import Engine

from gateway.accounting.bounds import UNITS
from gateway.budgets.accounts import Account, all_accounts
from gateway.budgets.desk import BudgetDesk
from gateway.budgets.messages import Left
from gateway.budgets.standing import Standing, standings
from gateway.budgets.webhook import AlertBody, Webhook
from gateway.config.model import Configuration
from gateway.errors import StoreError
from gateway.store.alerts import note_alert
from gateway.store.audit import Author, note
from gateway.store.leases import Lease, leases, release
from gateway.telemetry import ControlMetrics
from gateway.types import KeyRecord
from gateway.upstream.client import UpstreamClient

EVERY = 3.0
SHARE_OF_TIME = 20
"""It takes no more than one part in so many of the time, however long the ledger is."""
STALE = timedelta(minutes=5)
"""A lease is renewed or given back long before: its holder is out of reach."""
PATIENCE = timedelta(minutes=2)

_log = logging.getLogger(__name__)


class BudgetWatch:
    """One for each control plane. `keys`: the active ones."""

    def __init__(
        self,
        engine: Engine,
        *,
        desk: BudgetDesk,
        gateway: str,
        client: UpstreamClient,
        metrics: ControlMetrics,
        configuration: Callable[[], Configuration],
        keys: Callable[[], Sequence[KeyRecord]],
    ) -> None:
        self.engine = engine
        self._desk = desk
        self._gateway = gateway
        self._metrics = metrics
        self._configuration = configuration
        self._keys = keys
        self._webhook = Webhook(client)
        self._told: set[tuple[str, datetime, Decimal]] = set()
        self._stale: dict[str, datetime] = {}  # by holder, since when it was seen so
        self._alarmed: set[str] = set()

    def accounts(self) -> list[Account]:
        """All that have a budget or a limit, in the order of their names."""
        return all_accounts(self._configuration(), self._read_keys())

    def in_force(self) -> tuple[Configuration, Sequence[KeyRecord]]:
        return self._configuration(), self._read_keys()

    async def run(self) -> None:
        """Until it is cancelled. While PostgreSQL is away nothing is told."""
        async with asyncio.TaskGroup() as owned:
            owned.create_task(self._webhook.run())
            owned.create_task(self._run())

    async def _run(self) -> None:
        failed = False
        while True:
            began = perf_counter()
            try:
                await self.look(datetime.now(UTC))
                failed = False
            except (StoreError, OSError) as error:
                if not failed:
                    _log.error("budgets cannot be looked at: %s", error)
                failed = True
            await asyncio.sleep(max(EVERY, SHARE_OF_TIME * (perf_counter() - began)))

    async def look(self, now: datetime) -> list[Standing]:
        """One look at all of them. Raises StoreError, OSError."""
        found = await asyncio.to_thread(standings, self.engine, self.accounts(), now)
        self._metrics.budgets({one.account: float(one.share) for one in found})
        await self._desk.tell(
            {
                one.account: Left(one.period_start.timestamp(), max(0, int(one.left_usd * UNITS)))
                for one in found
                if one.hard
            }
        )
        for standing in found:
            for threshold in standing.reached():
                await self._tell(standing, threshold, now)
        await self._find_stale(now)
        return found

    async def _tell(self, standing: Standing, threshold: Decimal, now: datetime) -> None:
        key = standing.account, standing.period_start, threshold
        if key in self._told:
            return
        is_new = await asyncio.to_thread(
            note_alert,
            self.engine,
            account=standing.account,
            period_start=standing.period_start,
            threshold=threshold,
            spent_usd=standing.spent_usd,
            limit_usd=standing.limit_usd,
        )
        if len(self._told) >= 100_000:
            self._told.clear()
        self._told.add(key)
        if not is_new:
            return
        _log.warning(
            "budget `%s` has reached %s %% of its %s USD: %s USD are spent since %s",
            standing.account,
            f"{(threshold * 100).normalize():f}",
            standing.limit_usd,
            standing.spent_usd,
            standing.period_start.isoformat(),
        )
        self._metrics.budget_alert(standing.account)
        self._webhook.send(self._body(standing, threshold, now), self._configuration().alerts)

    def _body(self, standing: Standing, threshold: Decimal, now: datetime) -> bytes:
        return msgspec.json.encode(
            AlertBody(
                id=f"{standing.account}@{standing.period_start.isoformat()}@{threshold.normalize():f}",
                at=now.isoformat(),
                gateway=self._gateway,
                account=standing.account,
                threshold=f"{threshold.normalize():f}",
                hard=standing.hard,
                limit_usd=f"{standing.limit_usd:f}",
                spent_usd=f"{standing.spent_usd:f}",
                left_usd=f"{standing.left_usd:f}",
                forecast_usd=None if standing.forecast_usd is None else f"{standing.forecast_usd:f}",
                period_start=standing.period_start.isoformat(),
                period_end=standing.period_end.isoformat(),
            )
        )

    async def _find_stale(self, now: datetime) -> None:
        """Leases that nobody renews: the machine of their holder may be gone for good."""
        found = await asyncio.to_thread(leases, self.engine)
        stale = {one.holder for one in found if now - one.renewed_at > STALE}
        # Not at the first look: after PostgreSQL was away all are old, and renewed soon.
        alarmed = {holder: self._stale.get(holder, now) for holder in stale}
        for holder, since in sorted(alarmed.items()):
            if now - since >= PATIENCE and holder not in self._alarmed:
                _log.error(
                    "`%s` holds budgets and does not renew them\n"
                    "hint: if it is gone for good, `hatchway budgets release %s` takes back what it holds",
                    holder,
                    holder,
                )
        self._stale = alarmed
        self._alarmed = {holder for holder, since in alarmed.items() if now - since >= PATIENCE}
        self._metrics.stale_leases(len(self._alarmed))

    def _read_keys(self) -> Sequence[KeyRecord]:
        try:
            return self._keys()
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("keys cannot be read, their budgets are not looked at: %s", error)
            return ()


def release_holder(engine: Engine, holder: str, author: Author, *, force: bool = False) -> list[Lease]:
    """Takes back all leases of a holder that is gone for good; empty: it has none. The audit log says who did it.

    Raises StoreError, and ValueError for a holder that renewed a lease lately, unless `force` is set: one that lives
    would go on to spend what is then given to others.
    """
    with engine.begin() as connection:
        found = release(connection, [holder])
        newest = max((one.renewed_at for one in found), default=None)
        if newest is not None and not force and datetime.now(UTC) - newest < STALE:
            raise ValueError(
                f"`{holder}` renewed its leases at {newest:%H:%M:%S} UTC: it may be alive\n"
                "hint: wait some minutes, or force it once the process is known to be gone"
            )
        if found:
            note(
                connection,
                actor=author.actor,
                role=author.role,
                action="budgets.release",
                subject=holder,
                detail={"leases": {f"{one.account} {one.period_start.isoformat()}": one.amount_usd for one in found}},
            )
        return found
