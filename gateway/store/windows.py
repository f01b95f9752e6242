"""Requests and tokens by the calendar minute: what was given to workers, and what is left of a limit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import Engine, delete
from sqlalchemy.dialects.postgresql import insert

from gateway.store.tables import rate_windows

_windows = rate_windows.c
SHARE = 8
"""A worker is given no more than this part of what is left, beside what it needs at once: others come, too."""
KEEP = timedelta(minutes=10)
NO_LIMIT = 2**62


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, or given, and what is left for anybody. A limit of None: there is none."""

    account: str
    minute: datetime
    most_requests: int | None
    most_tokens: int | None
    requests: int
    tokens: int
    requests_left: int = 0
    tokens_left: int = 0


def take(engine: Engine, wishes: Sequence[Slice]) -> list[Slice]:
    """Gives each what there still is, in one transaction; less than was asked for where the limit is near.

    What is given is given for good: never more than the limit in a minute, over all who ask. Raises StoreError.
    """
    given: list[Slice | None] = [None] * len(wishes)
    # In one order always, so that two never wait for each other.
    order = sorted(range(len(wishes)), key=lambda index: (wishes[index].account, wishes[index].minute))
    with engine.begin() as connection:
        for index in order:
            wish = wishes[index]
            row = {"account": wish.account, "minute": wish.minute, "requests": 0, "tokens": 0}
            # Changes nothing, and so locks the row and returns it.
            locked = insert(rate_windows).values(row)
            locked = locked.on_conflict_do_update(
                index_elements=[_windows.account, _windows.minute], set_={"requests": _windows.requests}
            )
            used = connection.execute(locked.returning(_windows.requests, _windows.tokens)).one()
            requests = _part(wish.requests, wish.most_requests, used.requests)
            tokens = _part(wish.tokens, wish.most_tokens, used.tokens)
            connection.execute(
                rate_windows.update()
                .where(_windows.account == wish.account, _windows.minute == wish.minute)
                .values(requests=used.requests + requests, tokens=used.tokens + tokens)
            )
            given[index] = Slice(
                account=wish.account,
                minute=wish.minute,
                most_requests=wish.most_requests,
                most_tokens=wish.most_tokens,
                requests=requests,
                tokens=tokens,
                requests_left=_left(wish.most_requests, used.requests + requests),
                tokens_left=_left(wish.most_tokens, used.tokens + tokens),
            )
    return [one for one in given if one is not None]


def _part(want: int, most: int | None, used: int) -> int:
    if want <= 0:
        return 0
    if most is None:
        return want
    left = max(0, most - used)
    return min(left, max(want, left // SHARE))


def _left(most: int | None, used: int) -> int:
    return NO_LIMIT if most is None else max(0, most - used)


def purge(engine: Engine, now: datetime | None = None) -> int:
    """Deletes minutes that are over. Raises StoreError."""
    before = (now or datetime.now(UTC)) - KEEP
    with engine.begin() as connection:
        return connection.execute(delete(rate_windows).where(_windows.minute < before)).rowcount


def used(engine: Engine, account: str, minute: datetime) -> tuple[int, int]:
    """Requests and tokens that were given in one minute. Raises StoreError."""
    query = rate_windows.select().where(_windows.account == account, _windows.minute == minute)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    return (0, 0) if row is None else (row.requests, row.tokens)
