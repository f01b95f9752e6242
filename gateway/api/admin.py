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
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy import Engine

from gateway.accounting.reports import DEFAULT_BY, parse_by, parse_moment, report, to_json
from gateway.api.admin_decisions import add_decisions
from gateway.api.admin_escape import EscapeServices, add_escapes
from gateway.api.admin_http import answer, create_authentication, described_body, read_body
from gateway.api.admin_learned import LearnedServices, add_learned
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
from gateway.api.admin_versions import VersionServices, add_versions
from gateway.config.model import Configuration
from gateway.errors import (
    InvalidRequest,
    NotFound,
    StoreError,
)
from gateway.store.keys import KeyRow, create_key, list_keys, revoke_key
from gateway.store.usage import GROUPS, newest_attempts, requests
from gateway.types import EndpointHealth

MAX_USAGE_ROWS = 50_000
MAX_ATTEMPTS = 500

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder(decimal_format="string").encode
_encode_as_reported = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True)
class AdminServices:
    """What the admin API asks of the control plane.

    `rejected`: why the configuration on disk is refused, or None. `flush`: ships what is spooled, so that answers see
    everything; raises StoreError. `publish_keys`: called after each change of keys, so that workers have it at once.
    Where one of the others is None, its paths are not there.
    """

    engine: Engine
    configuration: Callable[[], Configuration]
    rejected: Callable[[], str | None]
    health: Callable[[], Awaitable[Mapping[str, EndpointHealth]]]
    flush: Callable[[], Awaitable[object]]
    publish_keys: Callable[[], Awaitable[None]]
    versions: VersionServices | None = None
    escapes: EscapeServices | None = None
    learned: LearnedServices | None = None


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
    add_decisions(api, services)
    if services.versions is not None:
        add_versions(api, services.versions)
    if services.escapes is not None:
        add_escapes(api, services.escapes)
    if services.learned is not None:
        add_learned(api, services.learned)
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
