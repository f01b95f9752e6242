"""What all of the operators' surface shares: who may call, bounded bodies, errors in OpenAI's shape, headers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gateway.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PermissionDenied,
    StoreError,
    Unavailable,
)
from gateway.store.keys import find_active, hash_secret

MAX_KEY_LENGTH = 512
MAX_LOOKUPS = 2
"""Keys looked up at once: whoever guesses keys must not take the threads that ship the ledger."""
MAX_BODY = 64 * 1024
"""Bytes of an operator's request."""
HEADERS: Mapping[str, str] = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Of every answer: it may hold a secret, and is data whatever names are in it."""

_BEARER = HTTPBearer(auto_error=False, scheme_name="admin_key", description="a key of the role `admin`")
_log = logging.getLogger(__name__)


def create_authentication(engine: Engine) -> Callable[..., Awaitable[None]]:
    """A dependency that lets only admin keys pass, and notes their id in `request.state.key_id`.

    It raises AuthenticationFailed, PermissionDenied, StoreError.
    """
    lookups = asyncio.Semaphore(MAX_LOOKUPS)

    async def authenticate(
        request: Request, response: Response, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        response.headers.update(HEADERS)
        if given is None or not given.credentials:
            raise AuthenticationFailed(
                "no admin key: send `Authorization: Bearer KEY`\nhint: `hatchway up` shows one on its first start",
                code="missing_api_key",
            )
        found = None
        if len(given.credentials) <= MAX_KEY_LENGTH:
            async with lookups:
                found = await asyncio.to_thread(find_active, engine, hash_secret(given.credentials))
        if found is None:
            raise AuthenticationFailed(
                "the admin key is unknown, expired or revoked\nhint: `HATCHWAY_ADMIN_KEY` sets one at the next start",
                code="invalid_api_key",
            )
        if found.role != "admin":
            raise PermissionDenied("this key is not an admin key", code="admin_only")
        request.state.key_id = found.key_id

    return authenticate


async def read_body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise BodyTooLarge(f"the request body is over {MAX_BODY} bytes", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


def described_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's words for a JSON body that the handler reads itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def answer(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers=HEADERS)


def install_error_handlers(app: FastAPI) -> None:
    """Every error of `app` leaves in OpenAI's shape, also those that FastAPI itself raises."""
    app.add_exception_handler(GatewayError, handle_gateway_error)
    app.add_exception_handler(StoreError, handle_store_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)
    app.add_exception_handler(Exception, handle_bug)


async def handle_gateway_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return refuse(error)


async def handle_store_error(_: Request, error: Exception) -> Response:
    _log.warning("the admin API cannot answer: %s", error)
    return refuse(Unavailable(str(error), code="store_unavailable"))


async def handle_validation_error(_: Request, error: Exception) -> Response:
    """The first mistake names the parameter, the message has all of them; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    mistakes = []
    for mistake in error.errors():
        place = [str(part) for part in mistake["loc"] if part not in ("body", "query", "path")]
        mistakes.append((".".join(place)[:80], mistake["msg"]))
    message = "; ".join(f"`{place}`: {text}" if place else text for place, text in mistakes[:10])
    return refuse(InvalidRequest(message[:1000], param=mistakes[0][0] or None, code="invalid_value"))


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """FastAPI's own: no such path, or another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return refuse(MethodNotAllowed(f"this path takes {allowed}", headers=[(b"allow", allowed.encode())]))
    return refuse(NotFound(f"unknown route `{request.method} {request.url.path[:200]}`", code="unknown_route"))


async def handle_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def handle_bug(request: Request, _: Exception) -> Response:
    return refuse(GatewayError(f"`{request.method} {request.url.path[:200]}` failed: see the log", code="internal"))


def refuse(error: GatewayError) -> Response:
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in error.headers}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": fields}, error.status, headers={**headers, **HEADERS})
