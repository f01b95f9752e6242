"""Operators' way to escapes: plan, start, watch, stop. Under `/admin/api`, and for the command line `/internal`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Engine

from gateway.accounting.reports import parse_moment
from gateway.api.access import actor_of
from gateway.api.admin_http import answer, described_body, read_body
from gateway.api.admin_versions import refusal
from gateway.config.model import Configuration
from gateway.errors import GatewayError, InvalidRequest, NotFound, StoreError
from gateway.escape.guards import Guards
from gateway.escape.reading import plan_escape
from gateway.escape.record import from_row
from gateway.escape.report import describe, describe_plan, suggest_edit
from gateway.escape.run import EscapeRunner
from gateway.escape.steps import Escape, EscapeRequest
from gateway.history import current_user
from gateway.store.audit import Author, note_alone
from gateway.store.escapes import find_escape, list_escapes

MAX_ESCAPES = 200
_encode = msgspec.json.Encoder(decimal_format="string").encode


@dataclass(frozen=True)
class EscapeServices:
    """What is asked of the control plane. `flush`: ships what is spooled; raises StoreError."""

    engine: Engine
    runner: EscapeRunner
    configuration: Callable[[], Configuration]
    flush: Callable[[], Awaitable[object]]


class EscapeGuards(BaseModel):
    model_config = ConfigDict(extra="forbid")

    max_error_rate: float | None = Field(
        default=0.02, description="share of failed requests; the source's own is allowed"
    )
    max_ttft_ratio: float | None = Field(default=1.5, description="the target's median by the source's")
    min_validity: float | None = Field(default=0.98, description="share of usable answers")
    max_cost_ratio: float | None = Field(default=1.2, description="the target's cost of a request by the source's")
    min_similarity: float | None = Field(default=None, description="of copies' answers to those that clients got")


class EscapeStart(BaseModel):
    """A step lasts its seconds, and until its number of requests was seen."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    source: str = Field(alias="from", max_length=200, description="an endpoint, or a provider: all its endpoints")
    target: str = Field(alias="to", max_length=200)
    shadow_share: float = Field(default=0.05, description="of the source's requests, copied first; 0: no copies")
    shadow_seconds: float | None = None
    shadow_requests: int | None = None
    ramp: list[float] = Field(default=[0.01, 0.05, 0.25, 0.5, 1.0], description="shares, rising up to 1")
    step_seconds: float | None = None
    step_requests: int | None = None
    guards: EscapeGuards = EscapeGuards()


class EscapeStarted(BaseModel):
    id: str


class EscapeShown(BaseModel):
    """An escape as it is; docs/guides/escape.md explains the fields."""

    model_config = ConfigDict(extra="allow")

    id: str
    state: str
    share: float


class EscapeList(BaseModel):
    escapes: list[EscapeShown]


class EscapePlanShown(BaseModel):
    model_config = ConfigDict(extra="allow")

    requests: int
    movable: int


def add_escapes(api: APIRouter, services: EscapeServices) -> None:
    # Before `/escapes/{id}`, which would take it for an id.
    @api.get("/escapes/plan", tags=["escapes"], response_model=EscapePlanShown)
    async def show_escape_plan(
        source: Annotated[str, Query(alias="from", max_length=200)],
        target: Annotated[str, Query(alias="to", max_length=200)],
        since: Annotated[str, Query(max_length=80, description="a date, a time, or `7d`, `24h`")] = "7d",
    ) -> Response:
        """What would happen if a source's traffic went to a target, out of what was recorded."""
        now = datetime.now(UTC)
        try:
            start = parse_moment("since", since, now, end_of_day=False)
        except ValueError as error:
            raise InvalidRequest(str(error), param="since", code="invalid_value") from None
        await services.flush()
        plan = await asyncio.to_thread(
            plan_escape, services.engine, services.configuration(), source, target, start, now
        )
        return answer(_encode(describe_plan(plan)))

    @api.get("/escapes", tags=["escapes"], response_model=EscapeList)
    async def show_escapes(limit: Annotated[int, Query(ge=1, le=MAX_ESCAPES)] = 50) -> Response:
        """Every escape, the newest first; those under way as they are this moment."""
        rows = await asyncio.to_thread(lambda: list_escapes(services.engine, limit=limit))
        live = {escape.escape_id: escape for escape in services.runner.status()}
        found = [live.get(row.escape_id) or from_row(row) for row in rows]
        return answer(_encode({"escapes": [shown(escape, services.configuration()) for escape in found]}))

    @api.post("/escapes", tags=["escapes"], status_code=201, openapi_extra=described_body(EscapeStart))
    async def start_escape(request: Request) -> EscapeStarted:
        """Begins an escape: copies first, then a growing share of the traffic, guarded at each step."""
        asked = to_request(parse_start(await read_body(request)))
        author = actor_of(request).author
        escape_id = await services.runner.start(asked, author.actor)
        await asyncio.to_thread(note_start, services.engine, author, escape_id, asked)
        return EscapeStarted(id=escape_id)

    @api.get("/escapes/{escape_id}", tags=["escapes"], response_model=EscapeShown)
    async def show_escape(escape_id: str) -> Response:
        """One escape: its step, what is measured, what each guard says, and all that happened."""
        return answer(_encode(shown(await find(services, escape_id), services.configuration())))

    @api.delete("/escapes/{escape_id}", tags=["escapes"], response_model=EscapeShown)
    async def stop_escape(escape_id: str, request: Request) -> Response:
        """Brings everything back to the source at once."""
        author = actor_of(request).author
        stopped = await services.runner.stop(escape_id, author.actor)
        await asyncio.to_thread(note_alone, services.engine, author, "escapes.stop", escape_id)
        return answer(_encode(shown(stopped, services.configuration())))


def add_internal_escapes(router: APIRouter, services: EscapeServices) -> None:
    """For the command line, over the unix socket: the author is the user of this machine."""

    @router.get("/escape")
    async def show_escapes() -> Response:
        escapes = [shown(escape, services.configuration()) for escape in services.runner.status()]
        return answer(_encode({"escapes": escapes}))

    @router.post("/escape")
    async def start_escape(request: Request) -> Response:
        body = await read_body(request)
        try:
            asked = msgspec.json.decode(body, type=_Asked)
            user = asked.author or current_user()
            escape_id = await services.runner.start(asked.request, user)
            author = Author(f"cli:{user}", "admin")
            await asyncio.to_thread(note_start, services.engine, author, escape_id, asked.request)
        except (GatewayError, StoreError, msgspec.DecodeError) as error:
            return refusal(error)
        return answer(_encode({"id": escape_id}))

    @router.delete("/escape/{escape_id}")
    async def stop_escape(escape_id: str, author: str = "") -> Response:
        try:
            user = author or current_user()
            stopped = await services.runner.stop(escape_id, user)
            await asyncio.to_thread(
                note_alone, services.engine, Author(f"cli:{user}", "admin"), "escapes.stop", escape_id
            )
        except (GatewayError, StoreError) as error:
            return refusal(error)
        return answer(_encode(shown(stopped, services.configuration())))


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    request: EscapeRequest
    author: str | None = None


def note_start(engine: Engine, author: Author, escape_id: str, asked: EscapeRequest) -> None:
    note_alone(engine, author, "escapes.start", escape_id, {"from": asked.source, "to": asked.target})


def shown(escape: Escape, configuration: Configuration) -> dict[str, Any]:
    """With the edit of the YAML that makes a finished escape last."""
    edit = suggest_edit(configuration, escape.pairs) if escape.state == "finished" else []
    return {**describe(escape), "edit": edit}


async def find(services: EscapeServices, escape_id: str) -> Escape:
    """Raises `NotFound`, `StoreError`."""
    for escape in services.runner.status():
        if escape.escape_id == escape_id:
            return escape
    try:
        row = await asyncio.to_thread(find_escape, services.engine, escape_id)
    except ValueError as error:
        raise NotFound(str(error), code="escape_not_found", param="id") from None
    if row is None:
        raise NotFound(f"there is no escape `{escape_id[:80]}`", code="escape_not_found", param="id")
    return from_row(row)


def parse_start(body: bytes) -> EscapeStart:
    try:
        return EscapeStart.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from None


def to_request(asked: EscapeStart) -> EscapeRequest:
    fields = asked.model_dump(exclude={"guards", "ramp"})
    return EscapeRequest(**fields, ramp=tuple(asked.ramp), guards=Guards(**asked.guards.model_dump()))
