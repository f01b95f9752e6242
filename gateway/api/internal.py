"""What the gateway's own processes and command line ask of the control plane: `/internal/...`, on its unix socket only.

Whoever can open the socket owns the home folder; that is all the authentication there is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Response
from sqlalchemy import Engine

from gateway.api.admin_directory import DirectoryServices, add_internal_directory
from gateway.api.admin_escape import EscapeServices, add_internal_escapes
from gateway.api.admin_learned import LearnedServices, add_internal_learned
from gateway.api.admin_secrets import SecretServices, add_internal_secrets
from gateway.api.admin_versions import VersionServices, add_internal_versions
from gateway.api.internal_budgets import add_internal_budgets
from gateway.budgets.desk import BudgetDesk
from gateway.errors import StoreError
from gateway.ledger.shipper import Shipped
from gateway.store.keys import find_active
from gateway.types import EndpointHealth

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InternalServices:
    """What is asked of the control plane. `flush`: ships what is spooled; raises StoreError."""

    engine: Engine
    flush: Callable[[], Awaitable[Shipped]]
    health: Callable[[], Awaitable[Mapping[str, EndpointHealth]]]
    versions: VersionServices
    escapes: EscapeServices
    learned: LearnedServices
    budgets: BudgetDesk
    directory: DirectoryServices
    secrets: SecretServices


def create_internal_router(services: InternalServices) -> APIRouter:
    router = APIRouter(prefix="/internal", include_in_schema=False)
    add_processes(router, services)
    add_internal_versions(router, services.versions)
    add_internal_escapes(router, services.escapes)
    add_internal_learned(router, services.learned)
    add_internal_budgets(router, services.budgets)
    add_internal_directory(router, services.directory)
    add_internal_secrets(router, services.secrets)
    return router


def add_processes(router: APIRouter, services: InternalServices) -> None:
    @router.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/keys/{digest}")
    async def find_key(digest: str) -> Response:
        try:
            record = await asyncio.to_thread(find_active, services.engine, digest)
        except StoreError as error:
            _log.warning("an unknown key could not be looked up: %s", error)
            return Response(status_code=503)
        return Response(status_code=404) if record is None else answer(record)

    @router.post("/flush")
    async def flush() -> Response:
        try:
            shipped = await services.flush()
        except StoreError as error:
            return answer({"error": str(error)}, 503)
        return answer({"rows": shipped.rows, "pending_bytes": shipped.pending_bytes})

    @router.get("/health")
    async def health() -> Response:
        return answer(await services.health())


def answer(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
