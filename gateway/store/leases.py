"""Leases: what each worker may spend of a budget without asking again.

Limit >= spent, out of the ledger + the sum of all leases, for every account and period, always. It holds because all
changes of an account's leases take its advisory lock, and because a lease shrinks only after all that was spent under
it is in the ledger: whoever asks with `keep` has had the spool shipped first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import ROUND_CEILING, Context, Decimal

import msgspec
from sqlalchemy import Connection, Engine, and_, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from gateway.store.spending import Payer, spent
from gateway.store.tables import budget_leases
from gateway.types import COST_UNIT

_leases = budget_leases.c
_EXACT = Context(prec=200)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder asks of one account in [start, end), in `COST_UNIT`. See `gateway.budgets.messages.LeaseAsk`."""

    account: str
    payer: Payer
    start: datetime
    end: datetime
    limit: int
    keep: int
    want: int = 0
    least: int = 0
    ahead: int = 0


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """In `COST_UNIT`. See `gateway.budgets.messages.LeaseAnswer`."""

    more: int
    others: int
    left: int
    free: int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    account: str
    period_start: datetime
    holder: str
    amount_usd: Decimal
    renewed_at: datetime
    is_wanted: bool


SHARE = 8
"""Beside what is needed, a lease grows by no more than this part of what is free, so that many can have one."""


def grant(engine: Engine, holder: str, wishes: Sequence[Wish]) -> list[Grant]:
    """Sets the holder's leases to what it keeps and what it gets. What is settled under `keep` must be in the ledger.

    One transaction, under the locks of the accounts. Raises StoreError.
    """
    with engine.begin() as connection:
        _lock(connection, (wish.account for wish in wishes))
        return [_grant(connection, holder, wish) for wish in wishes]


def _grant(connection: Connection, holder: str, wish: Wish) -> Grant:
    of_period = and_(_leases.account == wish.account, _leases.period_start == wish.start)
    of_others = and_(of_period, _leases.holder != holder)
    held = connection.execute(select(func.coalesce(func.sum(_leases.amount_usd), 0)).where(of_others)).scalar_one()
    others = _units(held, ROUND_CEILING)
    left = wish.limit - _units(spent(connection, wish.payer, wish.start, wish.end), ROUND_CEILING)
    free = left - others - wish.keep
    more = 0
    if wish.want > 0 and free > 0:
        if free >= wish.want:
            more = max(wish.want, min(wish.want + wish.ahead, free // SHARE))
        elif free >= wish.least or others <= 0:
            more = free
    if wish.want > more and others > 0:
        connection.execute(update(budget_leases).where(of_others, _leases.amount_usd > 0).values(is_wanted=True))
    amount = wish.keep + more
    if amount <= 0:
        connection.execute(delete(budget_leases).where(of_period, _leases.holder == holder))
    else:
        fresh = {"amount_usd": _EXACT.multiply(Decimal(amount), COST_UNIT), "is_wanted": False}
        row = {"account": wish.account, "period_start": wish.start, "holder": holder, **fresh}
        keys = [_leases.account, _leases.period_start, _leases.holder]
        renewed = {**fresh, "renewed_at": func.now()}
        connection.execute(insert(budget_leases).values(row).on_conflict_do_update(index_elements=keys, set_=renewed))
    return Grant(more=more, others=others, left=left, free=free - more)


def _units(usd: Decimal, rounding: str) -> int:
    return int(_EXACT.divide(usd, COST_UNIT).to_integral_value(rounding))


def wanted(engine: Engine, gateway: str) -> dict[str, list[tuple[str, datetime]]]:
    """By holder, of one gateway: the accounts and periods of which others need what is not in use. May raise
    StoreError."""
    query = select(_leases.holder, _leases.account, _leases.period_start)
    query = query.where(_leases.is_wanted, _leases.holder.startswith(f"{gateway}/", autoescape=True))
    found: dict[str, list[tuple[str, datetime]]] = {}
    with engine.connect() as connection:
        for holder, account, start in connection.execute(query):
            found.setdefault(holder, []).append((account, start))
    return found


def leases(engine: Engine, account: str | None = None) -> list[Lease]:
    """All of them, or those of one account, in the order of accounts and holders. Raises StoreError."""
    query = select(budget_leases).order_by(_leases.account, _leases.period_start, _leases.holder)
    if account is not None:
        query = query.where(_leases.account == account)
    with engine.connect() as connection:
        return [Lease(**row) for row in connection.execute(query).mappings()]


def holders(engine: Engine, gateway: str) -> set[str]:
    """Of one gateway, those with leases. Raises StoreError."""
    query = select(_leases.holder).distinct().where(_leases.holder.startswith(f"{gateway}/", autoescape=True))
    with engine.connect() as connection:
        return set(connection.execute(query).scalars())


def release(connection: Connection, gone: Collection[str]) -> list[Lease]:
    """Takes back all leases of these holders, within the caller's transaction; returns them.

    Only for holders that spend no more, and whose spending is in the ledger. Raises StoreError.
    """
    mine = _leases.holder.in_(list(gone))
    accounts = connection.execute(select(_leases.account).distinct().where(mine)).scalars().all()
    _lock(connection, accounts)
    found = connection.execute(delete(budget_leases).where(mine).returning(*budget_leases.c)).mappings()
    return sorted((Lease(**row) for row in found), key=lambda one: (one.holder, one.account, one.period_start))


def reserved(engine: Engine) -> Mapping[tuple[str, datetime], Decimal]:
    """By account and start of its period, the sum of all leases. Raises StoreError."""
    query = select(_leases.account, _leases.period_start, func.sum(_leases.amount_usd))
    with engine.connect() as connection:
        rows = connection.execute(query.group_by(_leases.account, _leases.period_start))
        return {(account, start): usd for account, start, usd in rows}


def _lock(connection: Connection, accounts: Iterable[str]) -> None:
    """Until the transaction's end. In one order always, so that two never wait for each other."""
    numbers = {
        int.from_bytes(hashlib.sha256(b"budget " + one.encode()).digest()[:8], "big", signed=True) for one in accounts
    }
    for number in sorted(numbers):
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
