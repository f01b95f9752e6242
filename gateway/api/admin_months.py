"""Operators' view of months: list, show, close, verify. Under `/admin/api/months`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from gateway.api.access import actor_of
from gateway.api.admin_http import answer, described_body, parse_body, read_body
from gateway.errors import Unavailable
from gateway.ledger.shipper import Shipped, ShipperBusy
from gateway.months import ClosedMonth, close_month, find_closed, list_months, month_name, parse_month, verify_month
from gateway.signing import SigningKeyError

_encode = msgspec.json.Encoder(decimal_format="string").encode

MonthName = Annotated[
    str, Path(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$", description="such as `2026-10`; months are of UTC")
]


@dataclass(frozen=True)
class MonthServices:
    """What is asked of the control plane. `flush`: ships what is spooled; raises StoreError, OSError, ShipperBusy.
    `signing_key`: reads it, or makes it; raises SigningKeyError, OSError."""

    engine: Engine
    flush: Callable[[], Awaitable[Shipped]]
    signing_key: Callable[[], Ed25519PrivateKey]


class ClosedMonthShown(BaseModel):
    month: str
    sha256: str = Field(description="of the canonical manifest; the next manifest names it")
    signature: str = Field(description="Ed25519 over the canonical manifest; hex")
    public_key: str = Field(description="raw; hex")
    manifest: dict[str, Any]


class OpenMonthShown(BaseModel):
    month: str
    attempts: int
    cost_usd: str = Field(description="so far, with corrections")
    unpriced: int = Field(description="attempts without a cost")


class MonthList(BaseModel):
    closed: list[ClosedMonthShown]
    open: list[OpenMonthShown]


class CloseRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    force: bool = Field(
        default=False, description="also with earlier months open, attempts unpriced, or a spool left behind"
    )


class MonthVerification(BaseModel):
    month: str
    is_intact: bool
    difference: str | None = Field(description="the first one; null: all is as it was signed")
    key: Literal["given", "stored"]
    public_key: str
    sha256: str


def add_months(api: APIRouter, services: MonthServices) -> None:
    turn = asyncio.Lock()  # closing and verifying read a whole month: one at a time

    @api.get("/months", tags=["months"], response_model=MonthList)
    async def show_months() -> Response:
        """The months that are closed, with their manifests, and those in which something is booked."""
        found = await asyncio.to_thread(list_months, services.engine)
        still_open = [{**msgspec.structs.asdict(one), "month": month_name(one.month)} for one in found.open]
        return answer(_encode({"closed": [_shown(one) for one in found.closed], "open": still_open}))

    @api.get("/months/{month}", tags=["months"], response_model=ClosedMonthShown)
    async def show_month(month: MonthName) -> Response:
        """A closed month: its manifest and signature."""
        return answer(_encode(_shown(await asyncio.to_thread(find_closed, services.engine, parse_month(month)))))

    @api.post(
        "/months/{month}/close",
        tags=["months"],
        response_model=ClosedMonthShown,
        openapi_extra=described_body(CloseRequest),
    )
    async def end_month(request: Request, month: MonthName) -> Response:
        """Closes a month for good: counts, hashes and signs what is in it."""
        wanted = parse_body(CloseRequest, await read_body(request))
        of, author = parse_month(month), actor_of(request).author
        async with turn:
            unshipped = await _flush(services)
            try:
                key = await asyncio.to_thread(services.signing_key)
            except (SigningKeyError, OSError) as error:
                raise Unavailable(f"the month cannot be signed: {error}", code="signing_key") from None
            closed = await asyncio.to_thread(
                close_month, services.engine, of, author=author, key=key, force=wanted.force, unshipped=unshipped
            )
        return answer(_encode(_shown(closed)))

    @api.post("/months/{month}/verify", tags=["months"], response_model=MonthVerification)
    async def check_month(month: MonthName) -> Response:
        """Recomputes a closed month from the ledger and compares it with what was signed."""
        of = parse_month(month)
        async with turn:
            return answer(_encode(await asyncio.to_thread(verify_month, services.engine, of)))


async def _flush(services: MonthServices) -> str | None:
    """Why something may be left in the spool; None: nothing is. Raises StoreError."""
    try:
        await services.flush()
    except (OSError, ShipperBusy) as error:
        return str(error)
    return None


def _shown(closed: ClosedMonth) -> dict[str, Any]:
    return {
        "month": closed.month,
        "sha256": closed.sha256,
        "signature": closed.signature.hex(),
        "public_key": closed.public_key.hex(),
        "manifest": closed.manifest,
    }
