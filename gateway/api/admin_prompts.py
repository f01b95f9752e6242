"""Administrators read and remove what policies have kept of requests. Each reading is noted in the audit log."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import Engine

from gateway.api.access import actor_of
from gateway.api.admin_http import answer
from gateway.errors import NotFound
from gateway.store.prompts import list_prompts, read_prompt, remove_prompts

MAX_PROMPTS = 500
_encode = msgspec.json.Encoder(decimal_format="number").encode

Name = Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


@dataclass(frozen=True)
class PromptServices:
    engine: Engine


class KeptPromptHead(BaseModel):
    request_id: str
    at: datetime
    expires_at: datetime
    team: str
    policy: str


class KeptPromptList(BaseModel):
    prompts: list[KeptPromptHead]


class KeptPrompt(KeptPromptHead):
    body: dict[str, Any] = Field(
        description="`request`, `answer`, how many of each kind were `redacted`, what was `cut`"
    )


def add_prompts(api: APIRouter, services: PromptServices) -> None:
    @api.get("/prompts", tags=["prompts"], response_model=KeptPromptList)
    async def show_prompts(
        team: Name = None, policy: Name = None, limit: Annotated[int, Query(ge=1, le=MAX_PROMPTS)] = 50
    ) -> Response:
        """The newest requests of which something is kept, without it."""
        found = await asyncio.to_thread(lambda: list_prompts(services.engine, team=team, policy=policy, limit=limit))
        return answer(_encode({"prompts": found}))

    @api.get("/prompts/{request_id}", tags=["prompts"], response_model=KeptPrompt)
    async def show_prompt(request_id: str, request: Request) -> Response:
        """What one request asked and was answered. Who reads it stands in the audit log."""
        found = await asyncio.to_thread(read_prompt, services.engine, request_id, actor_of(request).author)
        if found is None:
            raise NotFound("nothing is kept of this request", code="prompt_not_found")
        return answer(_encode(found))

    @api.delete("/prompts/{request_id}", tags=["prompts"], status_code=204)
    async def remove_prompt(request_id: str, request: Request) -> None:
        """Removes what is kept of one request."""
        author = actor_of(request).author
        gone = await asyncio.to_thread(lambda: remove_prompts(services.engine, author, request_id=request_id))
        if not gone:
            raise NotFound("nothing is kept of this request", code="prompt_not_found")
