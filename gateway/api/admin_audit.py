"""The audit log as administrators read it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from sqlalchemy import Engine

from gateway.accounting.reports import parse_moment
from gateway.api.admin_http import answer
from gateway.errors import InvalidRequest
from gateway.store.audit import list_audit, verify

MAX_ROWS = 1000
MAX_SEQ = 2**63 - 1
Word = Annotated[str, Query(max_length=300)]


class AuditEntry(BaseModel):
    seq: int
    at: datetime
    actor: str = Field(description="a key's id, `oidc:PERSON`, `cli:USER`, or `gateway`")
    role: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str = Field(description="SHA-256 over this row and the hash before it, hex")


class AuditList(BaseModel):
    rows: list[AuditEntry]


class AuditVerified(BaseModel):
    rows: int = Field(description="rows that fit the chain")
    head: str = Field(description="the last sound hash: kept elsewhere, it shows later that no row is gone")
    broken_at: int | None = Field(description="the first row that does not fit, or null")
    reason: str | None


def add_audit(api: APIRouter, engine: Engine) -> None:
    @api.get("/audit", tags=["audit"], response_model=AuditList)
    async def show_audit(
        since: Annotated[str, Query(max_length=80, description="a date, a time, or `7d`, `24h`")] = "",
        action: Annotated[str, Query(max_length=80, description="`keys.create`, or `keys` for all of them")] = "",
        actor: Word = "",
        before: Annotated[int | None, Query(ge=1, le=MAX_SEQ, description="only rows with a smaller `seq`")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 100,
    ) -> Response:
        """What operators did, the newest first."""
        try:
            start = parse_moment("since", since, datetime.now(UTC), end_of_day=False) if since else None
        except ValueError as error:
            raise InvalidRequest(str(error), param="since", code="invalid_value") from None
        rows = await asyncio.to_thread(
            lambda: list_audit(
                engine, since=start, action=action or None, actor=actor or None, before=before, limit=limit
            )
        )
        return answer(msgspec.json.encode({"rows": rows}))

    @api.get("/audit/verify", tags=["audit"], response_model=AuditVerified)
    async def verify_audit() -> Response:
        """Recomputes the chain of hashes from the first row."""
        return answer(msgspec.json.encode(await asyncio.to_thread(verify, engine)))
