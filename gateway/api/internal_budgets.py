"""Workers ask for leases of budgets and slices of limits: `/internal/budgets/...`, on the control plane's socket."""

from __future__ import annotations

import logging

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.budgets.desk import BudgetDesk, Stale
from gateway.errors import StoreError
from gateway.ledger.shipper import ShipperBusy

_log = logging.getLogger(__name__)


def add_internal_budgets(router: APIRouter, desk: BudgetDesk) -> None:
    """`router`: the one with the prefix `/internal`."""

    @router.post("/budgets/lease")
    async def lease_budgets(request: Request) -> Response:
        try:
            return Response(await desk.lease(await request.body()), media_type="application/json")
        except Stale:
            return Response(status_code=409)
        except (msgspec.DecodeError, ValueError) as error:
            _log.error("a worker's request for leases cannot be read: %s", error)
            return Response(status_code=400)
        except (StoreError, OSError, ShipperBusy) as error:
            _log.warning("leases cannot be given: %s", error)
            return Response(status_code=503)

    @router.post("/budgets/window")
    async def take_windows(request: Request) -> Response:
        try:
            return Response(await desk.window(await request.body()), media_type="application/json")
        except (msgspec.DecodeError, ValueError) as error:
            _log.error("a worker's request for limits cannot be read: %s", error)
            return Response(status_code=400)
        except StoreError as error:
            _log.warning("limits cannot be given: %s", error)
            return Response(status_code=503)
