"""Signing in on the page with the identity provider, and the cookie that remembers it.

`/admin/login` sends the browser to the provider, `/admin/callback` is where it comes back, `/admin/logout` ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import Engine

from gateway.api.access import actor_of
from gateway.api.admin_http import HEADERS, session_cookie
from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.identity.desk import CALLBACK, IdentityDesk
from gateway.identity.session import SESSION_SECONDS, SIGN_IN_SECONDS, Session
from gateway.store.audit import Author, note_alone
from gateway.types import Role

MAX_PARAMETER = 4096


@dataclass(frozen=True)
class LoginServices:
    """What is asked of the control plane. `refused`: told the code of each sign-in that failed."""

    engine: Engine
    identity: IdentityDesk
    refused: Callable[[str], None]


class Self(BaseModel):
    """Who calls."""

    id: str
    role: Role
    team: str | None = Field(description="of a developer: whose rows are shown")
    csrf: str | None = Field(description="of a signed-in browser: sent in `x-hatchway-csrf` with every write")
    ends_at: datetime | None = Field(description="when the browser must sign in again")


class LoginOffer(BaseModel):
    available: bool = Field(description="whether `/admin/login` leads anywhere")


def add_self(api: APIRouter) -> None:
    @api.get("/self", tags=["access"])
    async def show_self(request: Request) -> Self:
        """Who calls, and what they may do."""
        actor = actor_of(request)
        session: Session | None = request.state.session
        return Self(
            id=actor.id,
            role=actor.role,
            team=actor.team,
            csrf=None if session is None else session.csrf,
            ends_at=None if session is None else datetime.fromtimestamp(session.ends_at, UTC),
        )


def add_login(router: APIRouter, services: LoginServices) -> None:
    """Beside the page, outside the API: these answer browsers that nobody is signed in with yet."""
    identity = services.identity

    @router.get("/admin/login.json", include_in_schema=False)
    async def show_offer(response: Response) -> LoginOffer:
        response.headers.update(HEADERS)
        return LoginOffer(available=identity.has_login)

    @router.get("/admin/login", include_in_schema=False)
    async def begin_login() -> Response:
        begun = await identity.begin()
        answer = moved(begun.url)
        set_cookie(answer, sign_in_cookie(identity), begun.sealed, SIGN_IN_SECONDS, identity)
        return answer

    @router.get(CALLBACK, include_in_schema=False)
    async def finish_login(
        request: Request,
        state: Annotated[str, Query(max_length=MAX_PARAMETER)] = "",
        code: Annotated[str, Query(max_length=MAX_PARAMETER)] = "",
    ) -> Response:
        try:
            person, sealed = await identity.finish(request.cookies.get(sign_in_cookie(identity), ""), state, code)
        except (AuthenticationFailed, PermissionDenied) as error:
            services.refused(error.code or error.type)
            raise
        author = Author(person.id, person.role)
        await asyncio.to_thread(note_alone, services.engine, author, "sessions.begin", person.id)
        answer = moved("/admin")
        set_cookie(answer, session_cookie(identity), sealed, SESSION_SECONDS, identity)
        set_cookie(answer, sign_in_cookie(identity), "", 0, identity)
        return answer

    @router.post("/admin/logout", include_in_schema=False)
    async def end_login() -> Response:
        """Takes the cookie away. Without a CSRF header: whoever can force it gains nothing."""
        answer = Response(status_code=204, headers=HEADERS)
        set_cookie(answer, session_cookie(identity), "", 0, identity)
        return answer


def sign_in_cookie(identity: IdentityDesk) -> str:
    return "__Host-hatchway-sign-in" if identity.is_secure else "hatchway-sign-in"


def set_cookie(answer: Response, name: str, value: str, seconds: int, identity: IdentityDesk) -> None:
    """For the page alone: no script reads it, no other site's request carries it but a link."""
    answer.set_cookie(name, value, max_age=seconds, path="/", httponly=True, samesite="lax", secure=identity.is_secure)


def moved(url: str) -> Response:
    return Response(status_code=303, headers={"location": url, "referrer-policy": "no-referrer", **HEADERS})
