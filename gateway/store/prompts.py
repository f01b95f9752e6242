"""What was asked and answered, where a policy keeps it. Reading it is written down."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Engine, delete, func, select, text

from gateway.store.audit import Author, note
from gateway.store.tables import prompts

PURGE_BATCH = 1000

_columns = prompts.c


class PromptHead(msgspec.Struct, frozen=True):
    """What is known of one without reading it."""

    request_id: str
    at: datetime
    expires_at: datetime
    team: str
    policy: str


class Prompt(PromptHead, frozen=True):
    body: dict[str, Any]


def list_prompts(
    engine: Engine, *, team: str | None = None, policy: str | None = None, limit: int = 100
) -> list[PromptHead]:
    """The newest first, those that have not expired. Raises StoreError."""
    columns = [_columns[name] for name in PromptHead.__struct_fields__]
    query = select(*columns).where(_columns.expires_at > func.now())
    if team is not None:
        query = query.where(_columns.team == team)
    if policy is not None:
        query = query.where(_columns.policy == policy)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(_columns.at.desc(), _columns.request_id).limit(limit))
        return [PromptHead(*row) for row in rows]


def read_prompt(engine: Engine, request_id: str, author: Author) -> Prompt | None:
    """One, and a word of who read it in the audit log; None: there is none, or it has expired. Raises StoreError."""
    if not request_id.isprintable():  # no id is, and PostgreSQL refuses to compare with a zero byte
        return None
    query = select(prompts).where(_columns.request_id == request_id, _columns.expires_at > func.now())
    with engine.begin() as connection:
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        detail = {"team": row["team"], "policy": row["policy"]}
        note(
            connection,
            actor=author.actor,
            role=author.role,
            action="prompts.read",
            subject=f"request:{request_id}",
            detail=detail,
        )
        return Prompt(**row)


def remove_prompts(
    engine: Engine,
    author: Author,
    *,
    request_id: str | None = None,
    team: str | None = None,
    before: datetime | None = None,
) -> int:
    """Deletes those that fit all that is given, with a word in the audit log; returns how many. Raises StoreError,
    ValueError where nothing is given or the time has no zone."""
    given = {"request_id": request_id, "team": team, "before": before}
    if all(value is None for value in given.values()):
        raise ValueError("nothing says which\nhint: give a request, a team or a time")
    if before is not None and before.tzinfo is None:
        raise ValueError("the time has no zone\nhint: give times with a zone, such as UTC")
    if any(isinstance(value, str) and not value.isprintable() for value in given.values()):
        return 0
    statement = delete(prompts)
    if request_id is not None:
        statement = statement.where(_columns.request_id == request_id)
    if team is not None:
        statement = statement.where(_columns.team == team)
    if before is not None:
        statement = statement.where(_columns.at < before)
    with engine.begin() as connection:
        gone = connection.execute(statement).rowcount
        detail = {name: value for name, value in given.items() if value is not None} | {"removed": gone}
        note(
            connection,
            actor=author.actor,
            role=author.role,
            action="prompts.remove",
            subject=f"request:{request_id}" if request_id else "prompts",
            detail=detail,
        )
    return gone


def purge_prompts(engine: Engine, now: datetime) -> int:
    """Deletes what has expired; returns how many. In batches, so that no lock is held for long. Raises StoreError."""
    gone = 0
    batch = select(_columns.request_id).where(_columns.expires_at <= now).order_by(_columns.expires_at)
    while True:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '10s'"))
            statement = delete(prompts).where(_columns.request_id.in_(batch.limit(PURGE_BATCH)))
            deleted = connection.execute(statement).rowcount
        gone += deleted
        if deleted < PURGE_BATCH:
            return gone
