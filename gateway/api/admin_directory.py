"""Operators' way to organisations, cost centres, teams and projects: those of the YAML are read, others written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from gateway.api.access import Actor, actor_of, may_see
from gateway.api.admin_http import answer, read_body
from gateway.api.admin_versions import refusal
from gateway.config.document import Document
from gateway.directory import Entry, Kind, check_id, check_removal, check_write
from gateway.errors import GatewayError, InvalidRequest, NotFound, PermissionDenied, StoreError
from gateway.store.directory import describe_directory, remove_entry, write_entry

_ROUTING_KEYS = ("allow", "data_class", "priority", "weight")
"""Of a team: what says where its requests may go, which is not finance's to say."""
_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


@dataclass(frozen=True)
class DirectoryServices:
    """What is asked of the control plane. `document`: the YAML on disk alone, as it was last valid. `variables`: what
    its `${NAME}` stand for. `publish`: puts what was written in force; raises StoreError, OSError."""

    engine: Engine
    document: Callable[[], Document]
    variables: Callable[[], Mapping[str, str]]
    publish: Callable[[], Awaitable[None]]


class DirectoryEntry(BaseModel):
    """`body`: as the YAML has it below the id."""

    kind: Kind
    id: str
    body: dict[str, Any]
    source: Literal["yaml", "api"]
    state: Literal["in force", "shadowed", "left out"] = Field(
        description="`shadowed`: the YAML defines it too; `left out`: it does not fit the YAML"
    )
    reason: str | None = None
    updated_at: datetime | None = None
    author: str | None = None


class DirectoryList(BaseModel):
    entries: list[DirectoryEntry]


class DirectoryBody(BaseModel):
    """An entry, key by key as in the YAML; docs/reference/configuration.md lists them."""

    model_config = ConfigDict(extra="allow")


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "description": DirectoryBody.__doc__}}},
    }
}


def add_directory(api: APIRouter, services: DirectoryServices) -> None:
    @api.get("/directory", tags=["directory"], response_model=DirectoryList)
    async def show_directory(request: Request) -> Response:
        """Every organisation, cost centre, team and project, of the YAML and of the API. Developers see their team."""
        found = await asyncio.to_thread(describe_directory, services.engine, services.document(), services.variables())
        seen = visible(found, actor_of(request))
        return answer(_encode({"entries": seen}))

    @api.get("/directory/{kind}/{entry_id:path}", tags=["directory"], response_model=DirectoryEntry)
    async def show_directory_entry(kind: Kind, entry_id: str, request: Request) -> Response:
        """One entry: what is in force, or else what the API wrote. A project's id is `TEAM/PROJECT`."""
        found = await asyncio.to_thread(describe_directory, services.engine, services.document(), services.variables())
        mine = [one for one in visible(found, actor_of(request)) if (one["kind"], one["id"]) == (kind, entry_id)]
        if not mine:
            raise NotFound(f"there is no such {kind.replace('_', ' ')}", code="entry_not_found")
        return answer(_encode(min(mine, key=lambda one: one["state"] != "in force")))

    @api.put(
        "/directory/{kind}/{entry_id:path}", tags=["directory"], response_model=DirectoryEntry, openapi_extra=_BODY
    )
    async def set_directory_entry(kind: Kind, entry_id: str, request: Request) -> Response:
        """Writes an entry that the YAML does not define, as a whole. It is in force when this answers, unless a version
        of the configuration is pinned."""
        actor = actor_of(request)
        entry = Entry(kind, entry_id, parse_body(await read_body(request)))
        await asyncio.to_thread(set_entry, services, entry, actor)
        await services.publish()
        return answer(_encode({"kind": kind, "id": entry_id, "body": entry.body, "source": "api", "state": "in force"}))

    @api.delete("/directory/{kind}/{entry_id:path}", tags=["directory"], status_code=204)
    async def remove_directory_entry(kind: Kind, entry_id: str, request: Request) -> None:
        """Removes an entry that the API wrote, unless another one needs it."""
        await asyncio.to_thread(drop_entry, services, kind, entry_id, actor_of(request))
        await services.publish()


def add_internal_directory(router: APIRouter, services: DirectoryServices) -> None:
    """For the command line, over the unix socket: it asks whoever knows which YAML is in force."""

    @router.get("/directory")
    async def show_directory() -> Response:
        try:
            found = await asyncio.to_thread(
                describe_directory, services.engine, services.document(), services.variables()
            )
        except (GatewayError, StoreError) as error:
            return refusal(error)
        return answer(_encode({"entries": found}))

    @router.post("/directory")
    async def write_directory(request: Request) -> Response:
        body = await read_body(request)
        try:
            asked = msgspec.json.decode(body, type=_Asked)
            actor = Actor(asked.author, "admin")
            if bytes(asked.body) == b"null":
                await asyncio.to_thread(drop_entry, services, asked.kind, asked.id, actor)
            else:
                entry = Entry(asked.kind, asked.id, parse_body(bytes(asked.body)))
                await asyncio.to_thread(set_entry, services, entry, actor)
            await services.publish()
        except (GatewayError, StoreError, msgspec.DecodeError) as error:
            return refusal(error)
        return answer(b"{}")


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """`body` null: the entry is to be removed."""

    kind: Kind
    id: str
    author: str
    body: msgspec.Raw


def parse_body(body: bytes) -> dict[str, Any]:
    """Raises InvalidRequest."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError):
        raise InvalidRequest(
            "the body is not a JSON object\nhint: send what the YAML would have below the id", code="invalid_json"
        ) from None


def set_entry(services: DirectoryServices, entry: Entry, actor: Actor) -> None:
    """Raises InvalidRequest, Conflict, PermissionDenied, StoreError."""
    check_id(entry.kind, entry.id)
    document, variables = services.document(), services.variables()

    def check(entries: Sequence[Entry]) -> None:
        check_finance(actor, entry, next((one for one in entries if one.key == entry.key), None))
        check_write(document, entries, entry, variables)

    write_entry(services.engine, entry, actor.author, check)


def drop_entry(services: DirectoryServices, kind: Kind, entry_id: str, actor: Actor) -> None:
    """Raises NotFound, Conflict, InvalidRequest, PermissionDenied, StoreError."""
    document, variables = services.document(), services.variables()

    def check(entries: Sequence[Entry]) -> None:
        old = next((one for one in entries if one.key == (kind, entry_id)), None)
        check_finance(actor, Entry(kind, entry_id, {}), old)
        check_removal(document, entries, kind, entry_id, variables)

    remove_entry(services.engine, kind, entry_id, actor.author, check)


def check_finance(actor: Actor, new: Entry, old: Entry | None) -> None:
    """Raises PermissionDenied where finance would change where requests may go."""
    before = {} if old is None else old.body
    changed = [key for key in _ROUTING_KEYS if new.body.get(key) != before.get(key)]
    if actor.role == "finance" and changed:
        raise PermissionDenied(
            f"the role `finance` does not change `{changed[0]}`\nhint: leave it as it is, or ask an administrator",
            code="role_not_allowed",
        )


def visible(entries: list[dict[str, Any]], actor: Actor) -> list[dict[str, Any]]:
    """Developers see their own team and its projects, and no organisation or cost centre. Raises PermissionDenied."""
    if actor.sees_all_teams:
        return entries
    return [
        entry
        for entry in entries
        if entry["kind"] in ("team", "project") and may_see(actor, str(entry["id"]).partition("/")[0])
    ]
