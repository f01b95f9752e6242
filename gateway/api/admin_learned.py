"""Operators see what routing has learned, and have it forget: `/admin/api`, and `/internal` for the command line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.admin_http import answer

MAX_NAMES = 100
Names = Annotated[list[str] | None, Query(max_length=MAX_NAMES, description="endpoints and routes; none: all")]


@dataclass(frozen=True)
class LearnedServices:
    """What is asked of the control plane. `forget`: these endpoints and routes, or all; raises OSError."""

    status: Callable[[], dict[str, Any]]
    forget: Callable[[Sequence[str]], Awaitable[list[str]]]


class Learned(BaseModel):
    """Seconds, and shares from 0 to 1; null: not known."""

    model_config = ConfigDict(extra="allow")

    version: str
    enabled: bool
    endpoints: dict[str, dict[str, float | None]]
    routes: dict[str, dict[str, float | None]]
    frozen: list[dict[str, Any]] = Field(description="numbers held at their last good value because they drift")


class Forgotten(BaseModel):
    forgotten: list[str]


def add_learned(api: APIRouter, services: LearnedServices) -> None:
    @api.get("/learned", tags=["learned"], response_model=Learned)
    async def show_learned() -> Response:
        """What routing has learned from traffic: the numbers in force, over all workers."""
        return answer(msgspec.json.encode(services.status()))

    @api.post("/learned/reset", tags=["learned"])
    async def forget_learned(name: Names = None) -> Forgotten:
        """Forgets what was learned of these endpoints and routes, in all workers."""
        return Forgotten(forgotten=await services.forget(name or []))


def add_internal_learned(router: APIRouter, services: LearnedServices) -> None:
    @router.get("/learned")
    async def show_learned() -> Response:
        return answer(msgspec.json.encode(services.status()))

    @router.post("/learned/reset")
    async def forget_learned(name: Names = None) -> dict[str, list[str]]:
        return {"reset": await services.forget(name or [])}
