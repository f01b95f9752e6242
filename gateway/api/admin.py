"""Operators' surface: `/admin/api/...` as JSON and `/admin` as a page. Runs in the control plane, never on a worker.

Each call of the API needs `Authorization: Bearer KEY` with an admin key. Errors have OpenAI's shape. Money is a string
of plain digits, so that no client rounds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Depends, Response
from sqlalchemy import Engine

from gateway.api.admin_audit import add_audit
from gateway.api.admin_budgets import BudgetServices, add_budgets
from gateway.api.admin_decisions import add_decisions
from gateway.api.admin_directory import DirectoryServices, add_directory
from gateway.api.admin_escape import EscapeServices, add_escapes
from gateway.api.admin_http import create_authentication, refuse_repeated
from gateway.api.admin_keys import KeyServices, add_keys
from gateway.api.admin_learned import LearnedServices, add_learned
from gateway.api.admin_login import LoginServices, add_login, add_self
from gateway.api.admin_models import (
    EndpointStatus,
    Error,
    Health,
    PolicyStatus,
    RouteStatus,
    Status,
)
from gateway.api.admin_months import MonthServices, add_months
from gateway.api.admin_page import AdminPage
from gateway.api.admin_prices import PriceServices, add_prices
from gateway.api.admin_prompts import PromptServices, add_prompts
from gateway.api.admin_reconcile import ReconcileServices, add_reconciliations
from gateway.api.admin_secrets import SecretServices, add_secrets
from gateway.api.admin_usage import UsageServices, add_usage
from gateway.api.admin_versions import VersionServices, add_versions
from gateway.budgets.watch import BudgetWatch
from gateway.config.model import Configuration
from gateway.identity.desk import IdentityDesk
from gateway.types import EndpointHealth


@dataclass(frozen=True)
class AdminServices:
    """What the admin API asks of the control plane.

    `rejected`: why the configuration on disk is refused, or None. `flush`: ships what is spooled, so that answers see
    everything; raises StoreError. `publish_keys`: called after each change of keys, so that workers have it at once.
    `identity`: knows people beside keys; `refused`: told the code of each call that was not let in.
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
    directory: DirectoryServices | None = None
    secrets: SecretServices | None = None
    months: MonthServices | None = None
    budgets: BudgetWatch | None = None
    identity: IdentityDesk | None = None
    refused: Callable[[str], None] = lambda code: None


def create_admin_router(services: AdminServices) -> APIRouter:
    """The API and the page. The application that includes it also needs `install_error_handlers`."""
    router = APIRouter()
    router.include_router(create_api(services))
    if services.identity is not None:
        add_login(router, LoginServices(services.engine, services.identity, services.refused))
    page = AdminPage.load()

    @router.api_route("/admin", methods=["GET", "HEAD"], include_in_schema=False)
    @router.api_route("/admin/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page() -> Response:
        return Response(page.html, headers=page.headers, media_type="text/html")

    return router


def create_api(services: AdminServices) -> APIRouter:
    authenticate = create_authentication(services.engine, services.identity, services.refused)
    api = APIRouter(
        prefix="/admin/api",
        dependencies=[Depends(authenticate), Depends(refuse_repeated)],
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
        generate_unique_id_function=lambda route: route.name,  # names the methods of generated clients
    )
    add_self(api)
    add_audit(api, services.engine)
    add_status(api, services)
    add_usage(api, UsageServices(services.engine, services.configuration, services.flush))
    add_keys(api, KeyServices(services.engine, services.publish_keys))
    add_decisions(api, services)
    if services.versions is not None:
        add_versions(api, services.versions)
    if services.escapes is not None:
        add_escapes(api, services.escapes)
    if services.learned is not None:
        add_learned(api, services.learned)
    if services.directory is not None:
        add_directory(api, services.directory)
    if services.secrets is not None:
        add_secrets(api, services.secrets)
    if services.months is not None:
        add_months(api, services.months)
    if services.budgets is not None:
        add_budgets(api, BudgetServices(watch=services.budgets))
    add_prices(api, PriceServices(engine=services.engine, configuration=services.configuration))
    add_reconciliations(api, ReconcileServices(services.engine, services.configuration))
    add_prompts(api, PromptServices(services.engine))
    return api


def add_status(api: APIRouter, services: AdminServices) -> None:
    @api.get("/status", tags=["status"])
    async def show_status() -> Status:
        """The configuration in force, its endpoints and how they are."""
        return status(
            services.configuration(), services.rejected(), await services.health(), asyncio.get_running_loop().time()
        )


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
