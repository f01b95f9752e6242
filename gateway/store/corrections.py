"""Corrections: changes of cost that are written beside a usage event and never into it.

The triggers of the schema add them to `usage_hours` and book them in the open month where theirs is closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, get_args
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import Connection, Engine, RowMapping, Select, and_, cast, func, insert, select, text, tuple_
from sqlalchemy import Text as SqlText
from sqlalchemy import Uuid as SqlUuid
from sqlalchemy.dialects.postgresql import JSONB

from gateway.store.audit import Author, note
from gateway.store.tables import DIMENSIONS, TIME, corrections, usage_events
from gateway.types import BUCKETS, Usage

Kind = Literal["price", "reconciliation", "adjustment"]

BATCH = 2_000
"""Attempts read, priced and corrected in one transaction."""
MAX_REASON = 1_000
MAX_LISTED = 10_000
MAX_AMOUNT = Decimal(10) ** 12
"""USD: a correction beyond it is a slip of the pen."""
_LOCK = 7305812
"""Key of the advisory lock under which prices are corrected: two runs at once would correct everything twice."""

_events = usage_events.c
_rows = corrections.c


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the ledger as far as its price goes. `corrected_usd`: the sum of its price corrections, None without
    any; `prices`: the rates that hold for it now, those of its newest price correction before its own."""

    event_id: str
    started_at: datetime
    booked_at: datetime
    dimensions: Mapping[str, str | None]
    usage: Usage
    cost_usd: Decimal | None
    corrected_usd: Decimal | None
    prices: Mapping[str, Any] | None

    @property
    def cost_so_far(self) -> Decimal | None:
        """USD, None: it never had a price. Adjustments by hand are not part of it."""
        if self.corrected_usd is None:
            return self.cost_usd
        return self.corrected_usd + (self.cost_usd or 0)


class PriceChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a price correction writes. `prices`: JSON of the rates that hold now."""

    attempt: Attempt
    amount_usd: Decimal
    is_first_price: bool
    prices: Mapping[str, Any]
    catalog_version: str


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempts: those that started in `since` <= t < `until`. `model`: a glob of the upstream model or of the
    model that was asked for."""

    since: datetime
    until: datetime
    model: str | None = None
    endpoint: str | None = None
    provider: str | None = None
    only_unpriced: bool = False


@contextmanager
def correcting(engine: Engine) -> Iterator[Connection]:
    """A transaction that alone corrects prices, until it ends. Raises StoreError."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield connection


def count_attempts(engine: Engine, chosen: Chosen) -> int:
    """How many attempts `chosen` names, for a progress bar. Raises StoreError."""
    query = select(func.count()).select_from(usage_events).where(_choice(chosen, None))
    with engine.connect() as connection:
        return int(connection.execute(query).scalar_one())


def read_attempts(connection: Connection, chosen: Chosen, after: Attempt | None) -> list[Attempt]:
    """The next `BATCH` attempts behind `after` in the order of (started_at, event_id). Raises StoreError."""
    query = _attempts().where(_choice(chosen, after)).order_by(_events.started_at, _events.event_id).limit(BATCH)
    return [_attempt(row) for row in connection.execute(query).mappings()]


def add_price_changes(connection: Connection, changes: Sequence[PriceChange], author: Author, reason: str) -> None:
    """Writes one correction for each change, and the word of it, within the caller's transaction. Raises StoreError."""
    if not changes:
        return
    rows = [
        {
            "correction_id": str(uuid4()),
            "event_id": change.attempt.event_id,
            "booked_at": change.attempt.booked_at,
            "kind": "price",
            "reason": reason,
            "author": author.actor,
            "amount_usd": change.amount_usd,
            "is_first_price": change.is_first_price,
            "prices": change.prices,
            "catalog_version": change.catalog_version,
            **change.attempt.dimensions,
        }
        for change in changes
    ]
    connection.execute(insert(corrections), rows)
    total = sum((change.amount_usd for change in changes), Decimal(0))
    detail = {"corrections": len(rows), "amount_usd": total, "reason": reason}
    note(
        connection,
        actor=author.actor,
        role=author.role,
        action="corrections.reprice",
        subject=f"{changes[0].attempt.event_id}..{changes[-1].attempt.event_id}",
        detail=detail,
    )


def add_correction(
    engine: Engine,
    *,
    amount_usd: Decimal,
    reason: str,
    author: Author,
    kind: Kind = "adjustment",
    event_id: str | None = None,
    at: datetime | None = None,
    dimensions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes a correction by hand and returns its row.

    Either of the attempt `event_id`, whose dimensions and month it gets, or of what `dimensions` names, at the time
    `at`. Raises ValueError for what cannot be meant (no reason, an amount of 0, an unknown attempt or dimension), and
    StoreError.
    """
    _check(amount_usd, reason, kind, event_id, at, dimensions)
    if event_id is not None:
        event_id = _uuid(event_id)
    with engine.begin() as connection:
        given: dict[str, Any] = dict(dimensions or {})
        booked = at
        if event_id is not None:
            columns = [_events[name] for name in DIMENSIONS]
            query = select(_events.booked_at, *columns).where(_events.event_id == event_id)
            found = connection.execute(query).mappings().first()
            if found is None:
                raise ValueError(f"no attempt `{event_id[:80]}`\nhint: `event_id` is a column of `usage_events`")
            given = {name: found[name] for name in DIMENSIONS}
            booked = found["booked_at"]
        row = {
            "correction_id": str(uuid4()),
            "event_id": event_id,
            "booked_at": booked if booked is not None else func.now(),
            "kind": kind,
            "reason": reason,
            "author": author.actor,
            "amount_usd": amount_usd,
            **given,
        }
        written = connection.execute(insert(corrections).values(row).returning(corrections)).mappings().one()
        note(
            connection,
            actor=author.actor,
            role=author.role,
            action="corrections.add",
            subject=f"correction:{row['correction_id']}",
            detail={
                "amount_usd": amount_usd,
                "kind": kind,
                "reason": reason,
                "event_id": event_id,
                **(dimensions or {}),
            },
        )
        return dict(written)


def list_corrections(
    engine: Engine,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    kind: str | None = None,
    team: str | None = None,
    event_id: str | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """The newest corrections that are booked in `since` <= t < `until`, newest first. Raises StoreError."""
    query = select(corrections).order_by(_rows.at.desc(), _rows.correction_id).limit(min(limit, MAX_LISTED))
    if since is not None:
        query = query.where(_rows.booked_at >= since)
    if until is not None:
        query = query.where(_rows.booked_at < until)
    if kind is not None:
        query = query.where(_rows.kind == kind)
    if team is not None:
        query = query.where(_rows.team == team)
    if event_id is not None:
        query = query.where(cast(_rows.event_id, SqlText) == event_id)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _check(
    amount: Decimal,
    reason: str,
    kind: str,
    event_id: str | None,
    at: datetime | None,
    dimensions: Mapping[str, str] | None,
) -> None:
    if not amount.is_finite() or amount == 0 or abs(amount) > MAX_AMOUNT:
        raise ValueError("a correction needs an amount in USD that is not 0\nhint: such as `-12.50`")
    if not reason.strip() or len(reason) > MAX_REASON or "\0" in reason:
        raise ValueError(f"a correction needs a reason, at most {MAX_REASON} characters\nhint: say what it is for")
    if kind not in get_args(Kind):
        raise ValueError(f"`{kind[:40]}` is no kind of correction\nhint: {', '.join(get_args(Kind))}")
    if (event_id is None) == (not dimensions):
        raise ValueError("a correction is of one attempt or of some dimensions\nhint: give `event_id`, or `team`, ...")
    if event_id is not None and at is not None:
        raise ValueError("a correction of an attempt counts in its month\nhint: leave the time out")
    if at is not None and at.tzinfo is None:
        raise ValueError("a time has no zone\nhint: give times with a zone, such as UTC")
    for name, value in (dimensions or {}).items():
        if name not in DIMENSIONS:
            raise ValueError(f"a correction has no dimension `{name[:40]}`\nhint: {', '.join(DIMENSIONS)}")
        if not value.isprintable():
            raise ValueError(f"`{name}` has characters that no name has\nhint: write the name as reports show it")


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ValueError(
            f"`{text[:80]}` is no id of an attempt\nhint: `event_id` is a column of `usage_events`"
        ) from None


def _attempts() -> Select[Any]:
    """Attempts with what was corrected of their price so far."""
    own = and_(_rows.event_id == _events.event_id, _rows.kind == "price")
    corrected = select(func.sum(_rows.amount_usd)).where(own).scalar_subquery()
    newest = select(_rows.prices).where(own).order_by(_rows.at.desc(), _rows.correction_id.desc()).limit(1)
    return select(
        _events.event_id,
        _events.started_at,
        _events.booked_at,
        *(_events[name] for name in DIMENSIONS),
        *(_events[bucket] for bucket in BUCKETS),
        _events.cost_usd,
        corrected.label("corrected_usd"),
        func.coalesce(newest.scalar_subquery(), _events.prices, type_=JSONB).label("prices"),
    )


def _choice(chosen: Chosen, after: Attempt | None) -> Any:
    conditions = [_events.started_at >= chosen.since, _events.started_at < chosen.until, _events.usage_source != "none"]
    if chosen.model is not None:
        pattern = like_of(chosen.model)
        conditions.append(_events.upstream_model.like(pattern) | _events.model.like(pattern))
    if chosen.endpoint is not None:
        conditions.append(_events.endpoint == chosen.endpoint)
    if chosen.provider is not None:
        conditions.append(_events.provider == chosen.provider)
    if chosen.only_unpriced:
        priced = select(1).where(_rows.event_id == _events.event_id, _rows.is_first_price)
        conditions += [_events.cost_usd.is_(None), ~priced.exists()]
    if after is not None:
        last = tuple_(cast(after.started_at, TIME), cast(after.event_id, SqlUuid(as_uuid=False)))
        conditions.append(tuple_(_events.started_at, _events.event_id) > last)
    return and_(*conditions)


def like_of(glob: str) -> str:
    """A glob (`*`, `?`) as a pattern of LIKE."""
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def _attempt(row: RowMapping) -> Attempt:
    return Attempt(
        event_id=row["event_id"],
        started_at=row["started_at"],
        booked_at=row["booked_at"],
        dimensions={name: row[name] for name in DIMENSIONS},
        usage=Usage(*(row[bucket] for bucket in BUCKETS)),
        cost_usd=row["cost_usd"],
        corrected_usd=row["corrected_usd"],
        prices=row["prices"],
    )
