"""Operators' view of the configuration's versions: history, differences, the way back. Under `/admin/api`, and for the
command line under `/internal`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Engine

from gateway.api.access import actor_of
from gateway.api.admin_http import answer, described_body, read_body
from gateway.errors import GatewayError, StoreError
from gateway.history import PolicyState, RolledBack, compare_versions, current_user, describe_history
from gateway.store.audit import Author, note_alone
from gateway.store.versions import MAX_NOTE, list_versions

MAX_VERSIONS = 500
_encode = msgspec.json.Encoder(decimal_format="number").encode

RollBack = Callable[[str, str, str | None], Awaitable[RolledBack]]
"""The version (its beginning is enough), who asks, and why. Raises GatewayError, StoreError."""


@dataclass(frozen=True)
class VersionServices:
    """What is asked of the control plane. `state`: what is in force now, on disk, and pinned."""

    engine: Engine
    state: Callable[[], PolicyState]
    roll_back: RollBack


class InForce(BaseModel):
    at: datetime
    author: str
    source: Literal["file", "rollback"]
    note: str | None


class PolicyVersion(BaseModel):
    version: str
    state: list[Literal["in force", "pinned", "on disk", "overridden"]]
    is_complete: bool = Field(description="false: secrets were written in the YAML, so it cannot be brought back")
    in_force: list[InForce] = Field(description="the times it came into force, the latest first")


class PinShown(BaseModel):
    version: str
    overrides: str | None = Field(description="the version on disk that it holds off; null: the YAML was wrong")
    at: datetime
    author: str
    note: str | None


class PolicyStateShown(BaseModel):
    in_force: str
    on_disk: str | None = Field(description="null while the YAML on disk is wrong")
    rejected: str | None
    pin: PinShown | None


class VersionList(BaseModel):
    state: PolicyStateShown | None
    versions: list[PolicyVersion]


class PolicyChange(BaseModel):
    path: str
    kind: Literal["added", "removed", "changed", "moved"]
    before: Any
    after: Any


class PolicyDiff(BaseModel):
    before: str = Field(alias="from")
    after: str = Field(alias="to")
    changes: list[PolicyChange]


class RollbackRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: str = Field(min_length=1, max_length=64, description="the version, or its beginning")
    note: str | None = Field(default=None, max_length=MAX_NOTE, description="why, for the history")


class Rollback(BaseModel):
    version: str
    was: str
    is_pinned: bool = Field(description="false: it is what the YAML on disk says anyway")


def add_versions(api: APIRouter, services: VersionServices) -> None:
    @api.get("/policy/versions", tags=["policy"], response_model=VersionList)
    async def show_versions(limit: Annotated[int, Query(ge=1, le=MAX_VERSIONS)] = 100) -> Response:
        """The versions of the configuration that were in force, the latest first, and what holds now."""
        rows = await asyncio.to_thread(list_versions, services.engine, limit)
        return answer(_encode(describe_history(rows, services.state())))

    @api.get("/policy/diff", tags=["policy"], response_model=PolicyDiff)
    async def show_diff(
        before: Annotated[str, Query(alias="from", max_length=64)],
        after: Annotated[str, Query(alias="to", max_length=64)],
    ) -> Response:
        """What changed from one version to another. Secrets are masked."""
        return answer(_encode(await asyncio.to_thread(compare_versions, services.engine, before, after)))

    @api.post("/policy/rollback", tags=["policy"], openapi_extra=described_body(RollbackRequest))
    async def roll_back(request: Request) -> Rollback:
        """Puts a version in force again, and holds it until the YAML on disk changes."""
        wanted = parse_rollback(await read_body(request))
        author = actor_of(request).author
        done = await services.roll_back(wanted.version, author.actor, wanted.note)
        await asyncio.to_thread(note_rollback, services.engine, author, done)
        return Rollback(**msgspec.structs.asdict(done))


def add_internal_versions(router: APIRouter, services: VersionServices) -> None:
    """For the command line, over the unix socket: the author is the user of this machine."""

    @router.get("/policy")
    async def show_state() -> Response:
        return answer(_encode(services.state()))

    @router.post("/policy/rollback")
    async def roll_back(request: Request) -> Response:
        body = await read_body(request)
        try:
            asked = msgspec.json.decode(body, type=_Asked)
            user = asked.author or current_user()
            done = await services.roll_back(asked.version, user, asked.note)
            await asyncio.to_thread(note_rollback, services.engine, Author(f"cli:{user}", "admin"), done)
            return answer(_encode(done))
        except (GatewayError, StoreError, msgspec.DecodeError) as error:
            return refusal(error)


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    version: str
    author: str | None = None
    note: str | None = None


def note_rollback(engine: Engine, author: Author, done: RolledBack) -> None:
    note_alone(engine, author, "policy.rollback", done.version, msgspec.structs.asdict(done))


def refusal(error: GatewayError | StoreError | msgspec.DecodeError) -> Response:
    """An error of an internal call: status and message."""
    status = error.status if isinstance(error, GatewayError) else 503 if isinstance(error, StoreError) else 400
    return Response(msgspec.json.encode({"error": str(error)}), status, media_type="application/json")


def parse_rollback(body: bytes) -> RollbackRequest:
    try:
        return RollbackRequest.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from None
