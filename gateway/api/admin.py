"""Operators' surface: `/admin/api/...` as JSON and `/admin` as a page. Runs in the control plane, never on a worker.

Each call of the API needs `Authorization: Bearer KEY` with an admin key. Errors have OpenAI's shape. Money is a string
of plain digits, so that no client rounds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ValidationError
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gateway.accounting.reports import DEFAULT_BY, parse_by, parse_moment, report, to_json
from gateway.api.admin_models import (
    AttemptList,
    CreatedKey,
    EndpointStatus,
    Error,
    Health,
    Key,
    KeyList,
    KeyRequest,
    PolicyStatus,
    RouteStatus,
    Status,
    UsageReport,
)
from gateway.api.admin_page import AdminPage
from gateway.config.model import Configuration
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
from gateway.store.keys import KeyRow, create_key, find_active, hash_secret, list_keys, revoke_key
from gateway.store.usage import GROUPS, newest_attempts, requests
from gateway.types import EndpointHealth

MAX_KEY_LENGTH = 512
MAX_LOOKUPS = 2
"""Keys looked up at once: whoever guesses keys must not take the threads that ship the ledger."""
MAX_KEY_REQUEST = 64 * 1024
"""Bytes of a request that makes a key."""
MAX_USAGE_ROWS = 50_000
MAX_ATTEMPTS = 500
HEADERS: Mapping[str, str] = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Of every answer: it may hold a secret, and is data whatever names are in it."""

_BEARER = HTTPBearer(auto_error=False, scheme_name="admin_key", description="a key of the role `admin`")
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder(decimal_format="string").encode
_encode_as_reported = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True)
class AdminServices:
    """What the admin API asks of the control plane.

    `rejected`: why the configuration on disk is refused, or None. `flush`: ships what is spooled, so that answers see
    everything; raises StoreError. `publish_keys`: called after each change of keys, so that workers have it at once.
    """

    engine: Engine
    configuration: Callable[[], Configuration]
    rejected: Callable[[], str | None]
    health: Callable[[], Awaitable[Mapping[str, EndpointHealth]]]
    flush: Callable[[], Awaitable[object]]
    publish_keys: Callable[[], Awaitable[None]]


def create_admin_router(services: AdminServices) -> APIRouter:
    """The API and the page. The application that includes it also needs `install_error_handlers`."""
    router = APIRouter()
    router.include_router(create_api(services))
    page = AdminPage.load()

    @router.api_route("/admin", methods=["GET", "HEAD"], include_in_schema=False)
    @router.api_route("/admin/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page() -> Response:
        return Response(page.html, headers=page.headers, media_type="text/html")

    return router


def create_api(services: AdminServices) -> APIRouter:
    authenticate = create_authentication(services.engine)
    api = APIRouter(
        prefix="/admin/api",
        dependencies=[Depends(authenticate)],
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
        generate_unique_id_function=lambda route: route.name,  # names the methods of generated clients
    )
    add_status(api, services)
    add_usage(api, services)
    add_keys(api, services)
    return api


def add_status(api: APIRouter, services: AdminServices) -> None:
    @api.get("/status", tags=["status"])
    async def show_status() -> Status:
        """The configuration in force, its endpoints and how they are."""
        return status(
            services.configuration(), services.rejected(), await services.health(), asyncio.get_running_loop().time()
        )


def add_usage(api: APIRouter, services: AdminServices) -> None:
    @api.get("/usage", tags=["usage"], response_model=UsageReport)
    async def show_usage(
        by: Annotated[str, Query(max_length=200, description=f"comma-separated, of: {', '.join(GROUPS)}")] = ",".join(
            DEFAULT_BY
        ),
        since: Annotated[str, Query(alias="from", max_length=80, description="a date, a time, or `7d`, `24h`")] = "",
        until: Annotated[str, Query(alias="to", max_length=80, description="a date (included) or a time")] = "",
    ) -> Response:
        """Usage and cost of the attempts that started in a period: what `hatchway report --format json` prints."""
        names, start, end = parse_usage_query(by, since, until)
        await services.flush()
        try:
            found = await asyncio.to_thread(report, services.engine, names, start, end)
        except ValueError as error:  # more groups than the store gives out
            raise InvalidRequest(str(error), param="by") from None
        if len(found.rows) > MAX_USAGE_ROWS:
            raise InvalidRequest(
                f"{len(found.rows)} groups are too many for one answer\n"
                "hint: group by less, ask for a shorter time, or use `hatchway report --format csv`"
            )
        return answer(to_json(found).encode())

    @api.get("/requests", tags=["usage"], response_model=AttemptList)
    async def list_requests(limit: Annotated[int, Query(ge=1, le=MAX_ATTEMPTS)] = 50) -> Response:
        """The newest attempts, newest first."""
        await services.flush()
        return answer(encode_attempts(await asyncio.to_thread(newest_attempts, services.engine, limit)))

    @api.get("/requests/{request_id}", tags=["usage"], response_model=AttemptList)
    async def show_request(request_id: str) -> Response:
        """The attempts of one request in order."""
        await services.flush()
        rows = await asyncio.to_thread(requests, services.engine, request_id)
        if not rows:
            raise NotFound(f"no attempt of the request `{request_id[:80]}` is recorded", code="request_not_found")
        return answer(encode_attempts(rows))


def add_keys(api: APIRouter, services: AdminServices) -> None:
    @api.get("/keys", tags=["keys"])
    async def show_keys() -> KeyList:
        """Every key, revoked and expired ones too, oldest first. Never a secret."""
        rows = await asyncio.to_thread(list_keys, services.engine)
        now = datetime.now(UTC)
        return KeyList(keys=[key(row, now) for row in rows])

    @api.post("/keys", tags=["keys"], status_code=201, openapi_extra=described_body(KeyRequest))
    async def make_key(request: Request) -> CreatedKey:
        """Makes a key. Its secret is in this answer and nowhere else."""
        # Read here and not by FastAPI, which reads a body of any size before it asks who calls.
        wanted = parse_key_request(await read_body(request))
        try:
            made = await asyncio.to_thread(lambda: create_key(services.engine, **wanted.model_dump()))
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        try:
            await services.publish_keys()
        except (StoreError, OSError) as error:
            # The key is made, and its secret would be lost with the answer. Workers ask for keys they do not know.
            _log.warning("the key `%s` is made, but could not be published: %s", made.key_id, error)
        return CreatedKey(key_id=made.key_id, secret=made.secret.reveal())

    @api.delete("/keys/{key_id}", tags=["keys"], status_code=204)
    async def end_key(key_id: str, request: Request) -> None:
        """Revokes a key for good, by its whole id. Revoking it again changes nothing."""
        rows = await asyncio.to_thread(list_keys, services.engine)
        # The store would also take the beginning of an id: right for people at a terminal, too easily wrong here.
        if not any(row.key_id == key_id for row in rows):
            raise NotFound(f"there is no key `{key_id[:80]}`", code="key_not_found", param="key_id")
        if key_id == request.state.key_id:
            raise InvalidRequest(
                "a key does not revoke itself: nobody might be left to administer\n"
                "hint: use another admin key, or `hatchway keys revoke`",
                code="own_key",
                param="key_id",
            )
        await asyncio.to_thread(revoke_key, services.engine, key_id)
        await services.publish_keys()


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


def status(
    configuration: Configuration, rejected: str | None, health: Mapping[str, EndpointHealth], now: float
) -> Status:
    """`now`: the loop's clock, in seconds. All processes of a machine share it."""
    return Status(
        version=configuration.version,
        rejected=rejected,
        endpoints=[
            EndpointStatus(
                id=endpoint.id,
                provider=endpoint.provider.id,
                adapter=endpoint.provider.adapter,
                region=endpoint.region,
                upstream_model=endpoint.model,
                missing=endpoint.provider.missing,
                health=health_of(health.get(endpoint.id, EndpointHealth()), now),
            )
            for endpoint in configuration.endpoints.values()
        ],
        routes=[RouteStatus(name=route.name, policy=route.policy) for route in configuration.routes],
        policies=[
            PolicyStatus(name=policy.id, select=policy.select, endpoints=list(policy.endpoints))
            for policy in configuration.policies.values()
        ],
    )


def health_of(state: EndpointHealth, now: float) -> Health:
    left = max(0.0, state.ejected_until - now)
    return Health(
        ttft=state.ttft,
        in_flight=state.in_flight,
        failures=state.failures_in_a_row,
        ejected=left > 0,
        ejected_for=round(left, 3),
    )


def key(row: KeyRow, now: datetime) -> Key:
    state: Literal["active", "expired", "revoked"] = "active"
    if row.revoked_at is not None:
        state = "revoked"
    elif row.expires_at is not None and row.expires_at <= now:
        state = "expired"
    return Key(**{**msgspec.structs.asdict(row), "models": list(row.models)}, state=state)


def encode_attempts(rows: list[dict[str, Any]]) -> bytes:
    """JSON of `AttemptList`: money as strings; the upstream's own usage object keeps its numbers."""
    return _encode({"attempts": [encodable(row) for row in rows]})


def encodable(row: Mapping[str, Any]) -> dict[str, Any]:
    cost: Decimal | None = row["cost_usd"]
    return {
        **row,
        "started_at": row["started_at"].astimezone(UTC),
        "ended_at": row["ended_at"].astimezone(UTC),
        "cost_usd": None if cost is None else f"{cost:f}",
        "raw_usage": msgspec.Raw(_encode_as_reported(row["raw_usage"])),
    }


def parse_usage_query(by: str, since: str, until: str) -> tuple[tuple[str, ...], datetime | None, datetime | None]:
    """Means what `hatchway report` means by `--by`, `--from` and `--to`. Raises InvalidRequest."""
    now, param = datetime.now(UTC), "by"
    try:
        names = parse_by(by)
        param = "from"
        start = parse_moment("from", since, now, end_of_day=False) if since else None
        param = "to"
        end = parse_moment("to", until, now, end_of_day=True) if until else None
        if start is not None and end is not None and start >= end:
            raise ValueError(f"`from` {since} is not before `to` {until}\nhint: exchange them")
    except ValueError as error:
        raise InvalidRequest(str(error).replace("--by", "by"), param=param, code="invalid_value") from None
    return names, start, end


def parse_key_request(body: bytes) -> KeyRequest:
    try:
        return KeyRequest.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_context=False)) from None


async def read_body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_KEY_REQUEST:
            raise BodyTooLarge(f"the request body is over {MAX_KEY_REQUEST} bytes", code="request_too_large")
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
