"""What all of the operators' surface shares: who may call, bounded bodies, errors in OpenAI's shape, headers."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from sqlalchemy import Engine
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gateway.api.access import Actor, check_permission
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
from gateway.identity.desk import IdentityDesk
from gateway.identity.session import Session
from gateway.identity.token import looks_signed
from gateway.store.keys import find_active, hash_secret

MAX_KEY_LENGTH = 512
MAX_LOOKUPS = 2
"""Keys looked up at once: whoever guesses keys must not take the threads that ship the ledger."""
MAX_BODY = 64 * 1024
"""Bytes of an operator's request."""
CSRF_HEADER = "x-hatchway-csrf"
HEADERS: Mapping[str, str] = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Of every answer: it may hold a secret, and is data whatever names are in it."""

_BEARER = HTTPBearer(
    auto_error=False, scheme_name="admin_key", description="a key, or a token of the identity provider"
)
_READING = ("GET", "HEAD")
Model = TypeVar("Model", bound=BaseModel)
_log = logging.getLogger(__name__)


def create_authentication(
    engine: Engine, identity: IdentityDesk | None = None, refused: Callable[[str], None] = lambda code: None
) -> Callable[..., Awaitable[None]]:
    """A dependency that finds who calls, and lets pass who may call the operation (`gateway.api.access`).

    A key, a token that `identity` can verify, or the cookie of a signed-in browser. It notes the `Actor` in
    `request.state.actor`, its id in `request.state.key_id`, and the browser's session, or None, in
    `request.state.session`. `refused` is told the code of each refusal. It raises AuthenticationFailed,
    PermissionDenied, StoreError, Unavailable.
    """
    lookups = asyncio.Semaphore(MAX_LOOKUPS)

    async def actor_of_token(token: str) -> Actor:
        if identity is not None and identity.is_configured and looks_signed(token):
            person = await identity.read_token(token)
            return Actor(person.id, person.role, person.team)
        found = None
        if len(token) <= MAX_KEY_LENGTH:
            async with lookups:
                found = await asyncio.to_thread(find_active, engine, hash_secret(token))
        if found is None:
            raise AuthenticationFailed(
                "the admin key is unknown, expired or revoked\nhint: `HATCHWAY_ADMIN_KEY` sets one at the next start",
                code="invalid_api_key",
            )
        return Actor(found.key_id, found.role, found.team)

    def session_of(request: Request) -> Session:
        sealed = None if identity is None else request.cookies.get(session_cookie(identity))
        if identity is None or sealed is None:
            raise _missing()
        session = identity.session(sealed)
        if session is None:
            raise AuthenticationFailed("the session is over\nhint: sign in again at `/admin/login`", code="no_session")
        given = request.headers.get(CSRF_HEADER, "")
        if request.method not in _READING and not hmac.compare_digest(given.encode(), session.csrf.encode()):
            raise PermissionDenied(
                f"a signed-in browser must send `{CSRF_HEADER}` with each write\nhint: `GET /admin/api/self` has it",
                code="csrf",
            )
        return session

    async def authenticate(
        request: Request, response: Response, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        response.headers.update(HEADERS)
        session = None
        try:
            # What is said in so many words goes before what a browser sends along by itself.
            if "authorization" in request.headers:
                actor = await actor_of_token(_credentials(given))
            else:
                session = session_of(request)
                actor = Actor(session.person.id, session.person.role, session.person.team)
            check_permission(actor, request.scope["route"].name)
        except (AuthenticationFailed, PermissionDenied) as error:
            refused(error.code or error.type)
            raise
        request.state.actor, request.state.key_id, request.state.session = actor, actor.id, session

    return authenticate


def session_cookie(identity: IdentityDesk) -> str:
    """Its name. With `__Host-` a browser takes it only over https, and from this very host."""
    return "__Host-hatchway-session" if identity.is_secure else "hatchway-session"


def _credentials(given: HTTPAuthorizationCredentials | None) -> str:
    if given is None or not given.credentials:
        raise _missing()
    return given.credentials


def _missing() -> AuthenticationFailed:
    return AuthenticationFailed(
        "no admin key: send `Authorization: Bearer KEY`\nhint: `hatchway up` shows one on its first start",
        code="missing_api_key",
    )


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """Raises BodyTooLarge beyond `limit` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise BodyTooLarge(f"the request body is over {limit} bytes", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


def parse_body(model: type[Model], body: bytes) -> Model:
    """Raises RequestValidationError, which repeats nothing of the body."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from None


def described_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """OpenAPI's words for a JSON body that the handler reads itself."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Without references: those that pydantic makes point into the body's own schema, not into the document's."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        schema = {**definitions[reference.removeprefix("#/$defs/")], **schema}
        del schema["$ref"]
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def answer(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers=HEADERS)


def install_error_handlers(app: FastAPI) -> None:
    """Every error of `app` leaves in OpenAI's shape, also those that FastAPI itself raises."""
    app.add_exception_handler(GatewayError, handle_gateway_error)
    app.add_exception_handler(StoreError, handle_store_error)
    app.add_exception_handler(DataError, handle_data_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)
    app.add_exception_handler(Exception, handle_bug)


def refuse_repeated(request: Request) -> None:
    """A parameter that is there twice, of which only one would count. Raises InvalidRequest."""
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) != len(set(names)):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest("a parameter is given more than once", param=repeated[:80], code="invalid_value")


async def handle_gateway_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return refuse(error)


async def handle_store_error(_: Request, error: Exception) -> Response:
    _log.warning("the admin API cannot answer: %s", error)
    return refuse(Unavailable(str(error), code="store_unavailable"))


async def handle_data_error(_: Request, __: Exception) -> Response:
    """A text with a NUL in it, or a number that is too large for its column."""
    return refuse(InvalidRequest("a value of this request cannot be stored", code="invalid_value"))


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
