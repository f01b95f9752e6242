"""Virtual keys as operators see and make them. A developer sees those of one team."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from fastapi import APIRouter, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from gateway.api.access import Actor, actor_of, may_see, team_filter
from gateway.api.admin_http import described_body, parse_body, read_body
from gateway.errors import InvalidRequest, NotFound, StoreError
from gateway.store.key_terms import (
    LABEL_LENGTH,
    MAX_MODELS,
    MAX_OVERLAP,
    MAX_PER_MINUTE,
    MAX_USD,
    MODEL_GLOB,
    NAME,
    USD_DECIMALS,
    Scope,
)
from gateway.store.keys import KeyRow, KeyState, create_key, find_key, list_keys, revoke_key, rotate_key
from gateway.types import Budget, Period, RateLimit, Role

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyServices:
    """What is asked of the control plane. `publish_keys`: called after each change, so that workers have it at once."""

    engine: Engine
    publish_keys: Callable[[], Awaitable[None]]


class KeyBudget(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    usd: Decimal = Field(ge=0, le=MAX_USD, decimal_places=USD_DECIMALS, description="text keeps every digit")
    per: Period = "month"
    hard: bool = Field(False, description="nothing that costs money is begun that might pass it")


class Key(BaseModel):
    """A key as operators see it; nothing here or anywhere else gives its secret back."""

    key_id: str
    prefix: str = Field(description="the beginning of the secret, to recognise it by")
    role: Role
    team: str
    project: str | None
    name: str | None
    models: list[str] = Field(description="globs of the models it may ask for; empty: all")
    scopes: list[Scope] = Field(description="surfaces that it may call; empty: all")
    cost_center: str | None
    budget: KeyBudget | None = Field(description="of this key alone")
    rpm: int | None = Field(description="requests a minute")
    tpm: int | None = Field(description="tokens a minute")
    state: KeyState
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None
    previous_until: datetime | None = Field(description="until then the secret before the last rotation works too")


class KeyList(BaseModel):
    keys: list[Key]


class KeyRequest(BaseModel):
    """A key to be made. Names: letters, digits, `.`, `_` and `-`, at most 64."""

    model_config = ConfigDict(extra="forbid", strict=True)

    team: str = Field(pattern=f"^{NAME.pattern}$")
    project: str | None = Field(None, pattern=f"^{NAME.pattern}$")
    name: str | None = Field(
        None, min_length=1, max_length=LABEL_LENGTH, description="a label for people: printable characters"
    )
    models: list[str] = Field(
        [],
        max_length=MAX_MODELS,
        description=f"globs of the models it may ask for, each `{MODEL_GLOB.pattern}`; empty: all",
    )
    scopes: list[Scope] = Field([], description="surfaces that it may call; empty: all")
    role: Role = "key"
    cost_center: str | None = Field(None, min_length=1, max_length=LABEL_LENGTH, description="else its project's")
    budget: KeyBudget | None = None
    rpm: int | None = Field(None, ge=1, le=MAX_PER_MINUTE, description="requests a minute")
    tpm: int | None = Field(None, ge=1, le=MAX_PER_MINUTE, description="tokens a minute")
    expires_at: AwareDatetime | None = None


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    overlap_seconds: int = Field(
        default=0, ge=0, le=int(MAX_OVERLAP.total_seconds()), description="for how long the old secret works on"
    )


class CreatedKey(BaseModel):
    key_id: str
    secret: str = Field(description="shown this once")


def add_keys(api: APIRouter, services: KeyServices) -> None:
    engine = services.engine

    @api.get("/keys", tags=["keys"])
    async def show_keys(request: Request) -> KeyList:
        """Every key, revoked and expired ones too, oldest first. Never a secret."""
        team = team_filter(actor_of(request))
        rows = await asyncio.to_thread(lambda: list_keys(engine, team=team))
        now = datetime.now(UTC)
        return KeyList(keys=[key(row, now) for row in rows])

    @api.get("/keys/{key_id}", tags=["keys"])
    async def show_key(key_id: str, request: Request) -> Key:
        """One key, by its whole id."""
        return key(await _find(engine, key_id, actor_of(request)), datetime.now(UTC))

    @api.post("/keys", tags=["keys"], status_code=201, openapi_extra=described_body(KeyRequest))
    async def make_key(request: Request) -> CreatedKey:
        """Makes a key. Its secret is in this answer and nowhere else."""
        # Read here and not by FastAPI, which reads a body of any size before it asks who calls.
        wanted = parse_body(KeyRequest, await read_body(request))
        budget = wanted.budget
        try:
            made = await asyncio.to_thread(
                lambda: create_key(
                    engine,
                    **wanted.model_dump(exclude={"budget", "rpm", "tpm"}),
                    budget=None if budget is None else Budget(usd=budget.usd, per=budget.per, hard=budget.hard),
                    limits=RateLimit(requests=wanted.rpm, tokens=wanted.tpm),
                    author=actor_of(request).author,
                )
            )
        except ValueError as error:
            raise InvalidRequest(str(error), code="invalid_value") from None
        await _publish(services, made.key_id)
        return CreatedKey(key_id=made.key_id, secret=made.secret.reveal())

    @api.post("/keys/{key_id}/rotate", tags=["keys"], openapi_extra=described_body(Rotation, required=False))
    async def turn_key(key_id: str, request: Request) -> CreatedKey:
        """Gives a key a new secret, named by its whole id. The old secret ends at once, or after the overlap."""
        actor, body = actor_of(request), await read_body(request)
        wanted = parse_body(Rotation, body) if body else Rotation()
        await _find(engine, key_id, actor)
        overlap = timedelta(seconds=wanted.overlap_seconds)
        made = await asyncio.to_thread(lambda: rotate_key(engine, key_id, overlap=overlap, author=actor.author))
        if made is None:
            raise InvalidRequest("a revoked key is not rotated\nhint: make a new one", code="key_revoked")
        await _publish(services, made.key_id)
        return CreatedKey(key_id=made.key_id, secret=made.secret.reveal())

    @api.delete("/keys/{key_id}", tags=["keys"], status_code=204)
    async def end_key(key_id: str, request: Request) -> None:
        """Revokes a key for good, by its whole id. Revoking it again changes nothing."""
        actor = actor_of(request)
        # The store would also take the beginning of an id: right for people at a terminal, too easily wrong here.
        await _find(engine, key_id, actor)
        if key_id == actor.id:
            raise InvalidRequest(
                "a key does not revoke itself: nobody might be left to administer\n"
                "hint: use another admin key, or `hatchway keys revoke`",
                code="own_key",
                param="key_id",
            )
        await asyncio.to_thread(lambda: revoke_key(engine, key_id, author=actor.author))
        await services.publish_keys()


def key(row: KeyRow, now: datetime) -> Key:
    budget = None
    if row.budget_usd is not None:
        budget = KeyBudget(usd=row.budget_usd, per=row.budget_per or "month", hard=bool(row.budget_hard))
    is_rotating = row.previous_until is not None and row.previous_until > now
    return Key(
        key_id=row.key_id,
        prefix=row.prefix,
        role=row.role,
        team=row.team,
        project=row.project,
        name=row.name,
        models=list(row.models),
        scopes=list(row.scopes),
        cost_center=row.cost_center,
        budget=budget,
        rpm=row.rpm,
        tpm=row.tpm,
        state=row.state(now),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
        previous_until=row.previous_until if is_rotating else None,
    )


async def _find(engine: Engine, key_id: str, actor: Actor) -> KeyRow:
    row = await asyncio.to_thread(find_key, engine, key_id)
    if row is None or not may_see(actor, row.team):
        raise NotFound(f"there is no key `{key_id[:80]}`", code="key_not_found", param="key_id")
    return row


async def _publish(services: KeyServices, key_id: str) -> None:
    try:
        await services.publish_keys()
    except (StoreError, OSError) as error:
        # The key is made, and its secret would be lost with the answer. Workers ask for keys they do not know.
        _log.warning("the key `%s` is made, but could not be published: %s", key_id, error)
