"""Operators see what routing has learned, and have it forget: `/admin/api`, and `/internal` for the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from gateway.api.access import actor_of
from gateway.api.admin_http import answer
from gateway.history import current_user
from gateway.store.audit import Author, note_alone

MAX_TEXT = 8000
Names = Annotated[str, Query(max_length=MAX_TEXT, description="endpoints and routes, separated by commas; none: all")]


@dataclass(frozen=True)
class LearnedServices:
    """What is asked of the control plane. `forget`: these endpoints and routes, or all; raises OSError."""

    status: Callable[[], dict[str, Any]]
    forget: Callable[[Sequence[str]], Awaitable[list[str]]]
    engine: Engine


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
    async def forget_learned(request: Request, name: Names = "") -> Forgotten:
        """Forgets what was learned of these endpoints and routes, in all workers."""
        names = named(request)
        found = await services.forget(names)
        await asyncio.to_thread(note_reset, services.engine, actor_of(request).author, names)
        return Forgotten(forgotten=found)


def add_internal_learned(router: APIRouter, services: LearnedServices) -> None:
    @router.get("/learned")
    async def show_learned() -> Response:
        return answer(msgspec.json.encode(services.status()))

    @router.post("/learned/reset")
    async def forget_learned(request: Request) -> dict[str, list[str]]:
        names = named(request)
        found = await services.forget(names)
        author = Author(f"cli:{current_user()}", "admin")
        await asyncio.to_thread(note_reset, services.engine, author, names)
        return {"reset": found}


def named(request: Request) -> list[str]:
    """What `name` says, given once or several times."""
    given = request.query_params.getlist("name")
    return [name for text in given for name in text.split(",") if name]


def note_reset(engine: Engine, author: Author, names: Sequence[str]) -> None:
    note_alone(engine, author, "learned.reset", ", ".join(names) or "all")
