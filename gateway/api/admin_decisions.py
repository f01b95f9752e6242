"""Operators ask why a request went where it went."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.access import actor_of, team_filter
from gateway.errors import NotFound
from gateway.hindsight import look_up

if TYPE_CHECKING:
    from gateway.api.admin import AdminServices

_USD = "USD with every digit; null: unknown"


class Placed(BaseModel):
    endpoint: str
    expected_cost_usd: str | None = Field(None, description=_USD)
    expected_ttft_s: float | None = Field(None, description="seconds; null: never measured")
    expected_seconds_per_token: float | None = None
    ejected: bool = False
    placed_by: str | None = Field(None, description="what put it there, where that was not the policy's selection")


class DroppedEndpoint(BaseModel):
    endpoint: str
    reason: str
    detail: str


class Decided(BaseModel):
    """What was decided, and by what. Of the request there is no text and no header."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    team: str | None = None
    route: str | None = None
    policy: str | None = None
    select: str | None = None
    policy_version: str | None = None
    domain: str | None = None
    complexity: str | None = None
    candidates: list[Placed] = Field([], description="in the order in which they are tried")
    dropped: list[DroppedEndpoint] = []
    refusal: str | None = Field(None, description="code of the error that the client got instead of an attempt")


class Attempted(BaseModel):
    attempt: int
    endpoint: str
    provider: str
    upstream_model: str
    region: str | None
    status: str
    error_type: str | None
    stream: bool
    started_at: str
    ttft_ms: float | None
    duration_ms: float
    tokens: dict[str, int]
    usage_source: str
    cost_usd: str | None = Field(description=_USD)
    tags: dict[str, str]


class RequestInHindsight(BaseModel):
    request_id: str
    decision: Decided | None = Field(description="null: none was kept")
    attempts: list[Attempted]


def add_decisions(api: APIRouter, services: AdminServices) -> None:
    @api.get("/decisions/{request_id}", tags=["decisions"], response_model=RequestInHindsight)
    async def show_decision(request_id: str, request: Request) -> dict[str, Any]:
        """What was decided for one request, beside what happened: candidates in order, dropped ones with the reason,
        and the attempts."""
        team = team_filter(actor_of(request))
        await services.flush()
        found = await asyncio.to_thread(lambda: look_up(services.engine, request_id, team=team))
        if found is None:
            raise NotFound(
                f"nothing is recorded of the request `{request_id[:80]}`\n"
                "hint: its id is in the response header `x-hatchway-request-id`",
                code="request_not_found",
            )
        return found
