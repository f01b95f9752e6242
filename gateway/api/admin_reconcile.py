"""Operators' view of reconciliation (`/admin/api/reconciliations`) and of corrections (`/admin/api/corrections`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from gateway.accounting.reconciliation import result as results
from gateway.accounting.reconciliation.lines import Source
from gateway.accounting.reconciliation.reading import read_exports
from gateway.accounting.reconciliation.records import UnreadableFile, in_memory
from gateway.api.access import actor_of
from gateway.api.admin_http import answer, described_body, parse_body, read_body
from gateway.config.model import Configuration
from gateway.errors import InvalidRequest, NotFound
from gateway.store.audit import Author
from gateway.store.corrections import MAX_REASON, add_correction, list_corrections
from gateway.store.reconciliations import (
    delete_reconciliation,
    find_reconciliation,
    ledger_providers,
    list_reconciliations,
    save_reconciliation,
)

MAX_FILE = 20 * 1024 * 1024
"""Bytes of an export that is posted; larger ones are compared on the command line."""
MAX_LINES = 1_000_000
"""Of an export that is posted: a compressed one may hold far more than its size shows."""
MAX_NAME = 120
_encode = msgspec.json.Encoder(decimal_format="string").encode

_FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@dataclass(frozen=True)
class ReconcileServices:
    """`configuration`: the one in force, for names of providers and exchange rates; None: there is none."""

    engine: Engine
    configuration: Callable[[], Configuration | None]


class AsideShown(BaseModel):
    file: str
    place: int = Field(description="its line in CSV, else its number in the file, from 1")
    reason: str


class Amounts(BaseModel):
    tokens: str | None
    usd: str | None


class CauseShown(Amounts):
    cause: str


class DifferenceShown(BaseModel):
    day: date
    model: str = Field(description="empty: of no model; `*`: of all")
    meter: str
    provider_tokens: str | None
    ledger_tokens: str | None
    difference_tokens: str | None
    provider_usd: str | None
    ledger_usd: str | None
    difference_usd: str | None
    causes: list[CauseShown]


class Summary(BaseModel):
    """Numbers are strings with all their digits; null: the export does not say."""

    providers: list[str]
    sources: dict[str, str]
    from_: date = Field(alias="from")
    to: date
    zone: str
    tolerance: str
    is_within: bool
    provider_tokens: str | None
    ledger_tokens: str | None
    difference_tokens: str | None
    provider_usd: str | None
    ledger_usd: str | None
    difference_usd: str | None
    causes: dict[str, Amounts]
    models: dict[str, str]
    lines: int
    aside_count: int
    unknown_columns: dict[str, list[str]]
    left_out: dict[str, int]
    notes: list[str]


class ReconciliationShown(Summary):
    differences: list[DifferenceShown]
    asides: list[AsideShown]
    reconciliation_id: str | None = None


class KeptSummary(BaseModel):
    reconciliation_id: str
    at: datetime
    author: str
    source: str
    result: Summary


class Kept(BaseModel):
    reconciliation_id: str
    at: datetime
    author: str
    source: str
    result: ReconciliationShown


class KeptList(BaseModel):
    reconciliations: list[KeptSummary]


class CorrectionShown(BaseModel):
    correction_id: str
    event_id: str | None
    at: datetime
    booked_at: datetime
    kind: Literal["price", "reconciliation", "adjustment"]
    reason: str
    author: str
    amount_usd: str
    is_first_price: bool
    team: str | None
    project: str | None
    cost_center: str | None
    provider: str | None
    endpoint: str | None
    model: str | None
    upstream_model: str | None


class CorrectionList(BaseModel):
    corrections: list[CorrectionShown]


class CorrectionRequest(BaseModel):
    """Of one attempt, or of what some dimensions name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    amount_usd: str = Field(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,12})?$", description="the change, such as `-12.50`")
    reason: str = Field(min_length=1, max_length=MAX_REASON)
    kind: Literal["reconciliation", "adjustment"] = "adjustment"
    event_id: str | None = Field(default=None, pattern=r"^[0-9a-fA-F-]{32,36}$")
    team: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)
    project: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)
    cost_center: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)
    provider: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)
    endpoint: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)
    model: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)


class Deleted(BaseModel):
    reconciliation_id: str


ReconciliationId = Annotated[str, Path(max_length=80, alias="reconciliation_id")]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """How a posted export is to be compared, as on the command line."""

    name: str
    source: Source | None
    providers: tuple[str, ...]
    zone: str
    tolerance: str
    account: str | None
    first: date | None
    last: date | None
    save: bool


def add_reconciliations(api: APIRouter, services: ReconcileServices) -> None:
    turn = asyncio.Lock()  # a comparison takes memory: one at a time

    @api.post("/reconciliations", tags=["reconciliation"], response_model=ReconciliationShown, openapi_extra=_FILE_BODY)
    async def compare_export(
        request: Request,
        name: Annotated[str, Query(max_length=MAX_NAME, description="of the file")] = "export",
        source: Annotated[Source | None, Query(description="left out: told by the fields")] = None,
        provider: Annotated[
            list[Annotated[str, Query(max_length=MAX_NAME)]] | None,
            Query(max_length=20, description="in the ledger; left out: told by the export"),
        ] = None,
        zone: Annotated[str, Query(max_length=60, description="in which the export's days begin")] = "UTC",
        tolerance: Annotated[str, Query(max_length=20)] = "0.5%",
        account: Annotated[str | None, Query(max_length=MAX_NAME, description="glob of the provider's account")] = None,
        first: Annotated[date | None, Query(alias="from")] = None,
        last: Annotated[date | None, Query(alias="to")] = None,
        save: Annotated[bool, Query(description="keep the result")] = False,
    ) -> Response:
        """Compares a provider's export, which is the body, with the ledger: differences and their causes."""
        asked = Asked(
            name="".join(character for character in name if character.isprintable()) or "export",
            source=source,
            providers=tuple(provider or ()),
            zone=zone,
            tolerance=tolerance,
            account=account,
            first=first,
            last=last,
            save=save,
        )
        author = actor_of(request).author
        body = await read_body(request, MAX_FILE)
        async with turn:
            return answer(_encode(await asyncio.to_thread(compare, services, asked, body, author)))

    @api.get("/reconciliations", tags=["reconciliation"], response_model=KeptList)
    async def show_reconciliations(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """The comparisons that were kept, newest first, without their lines."""
        rows = await asyncio.to_thread(list_reconciliations, services.engine, limit)
        return answer(_encode({"reconciliations": rows}))

    @api.get("/reconciliations/{reconciliation_id}", tags=["reconciliation"], response_model=Kept)
    async def show_reconciliation(reconciliation_id: ReconciliationId) -> Response:
        """One of them, whole."""
        row = await asyncio.to_thread(find_reconciliation, services.engine, reconciliation_id)
        if row is None:
            raise NotFound("there is no such reconciliation", code="reconciliation_not_found")
        return answer(_encode(row))

    @api.delete("/reconciliations/{reconciliation_id}", tags=["reconciliation"], response_model=Deleted)
    async def end_reconciliation(request: Request, reconciliation_id: ReconciliationId) -> Response:
        """Throws one of them away."""
        author = actor_of(request).author
        if not reconciliation_id.isprintable() or not await asyncio.to_thread(
            delete_reconciliation, services.engine, reconciliation_id, author
        ):
            raise NotFound("there is no such reconciliation", code="reconciliation_not_found")
        return answer(_encode({"reconciliation_id": reconciliation_id}))

    @api.get("/corrections", tags=["reconciliation"], response_model=CorrectionList)
    async def show_corrections(
        kind: Annotated[Literal["price", "reconciliation", "adjustment"] | None, Query()] = None,
        team: Annotated[str | None, Query(max_length=MAX_NAME)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        """The newest corrections."""
        if team is not None and not team.isprintable():
            return answer(_encode({"corrections": []}))
        rows = await asyncio.to_thread(list_corrections, services.engine, kind=kind, team=team, limit=limit)
        return answer(_encode({"corrections": [_shown(row) for row in rows]}))

    @api.post(
        "/corrections",
        tags=["reconciliation"],
        response_model=CorrectionShown,
        openapi_extra=described_body(CorrectionRequest),
    )
    async def make_correction(request: Request) -> Response:
        """Writes a correction by hand; it counts now, or in the month of its attempt while that is open."""
        wanted = parse_body(CorrectionRequest, await read_body(request))
        author = actor_of(request).author
        written = await asyncio.to_thread(correct, services.engine, wanted, author)
        return answer(_encode(_shown(written)))


def compare(services: ReconcileServices, asked: Asked, body: bytes, author: Author) -> dict[str, Any]:
    """Raises InvalidRequest, StoreError."""
    configuration = services.configuration()
    try:
        zone = results.parse_zone(asked.zone)
        export = read_exports(
            [in_memory(asked.name, body)],
            zone=zone,
            source=asked.source,
            account=asked.account,
            to_usd=results.exchange(configuration),
            max_lines=MAX_LINES,
        )
        providers = asked.providers or results.providers_for(export, configuration, ledger_providers(services.engine))
        found = results.reconcile(
            services.engine,
            export,
            providers=providers,
            zone=zone,
            since=asked.first,
            until=asked.last,
            tolerance=results.parse_tolerance(asked.tolerance),
        )
    except (UnreadableFile, ValueError) as error:
        raise InvalidRequest(str(error), code="export_unreadable") from None
    document = results.to_document(found)
    kept = None
    if asked.save:
        source = "+".join(sorted(set(export.files.values())))
        kept = save_reconciliation(services.engine, source=source, result=document, author=author)
    return {**document, "reconciliation_id": kept}


def correct(engine: Engine, wanted: CorrectionRequest, author: Author) -> dict[str, Any]:
    """Raises InvalidRequest, StoreError."""
    given = {
        name: getattr(wanted, name)
        for name in ("team", "project", "cost_center", "provider", "endpoint", "model")
        if getattr(wanted, name) is not None
    }
    if "model" in given:
        given["upstream_model"] = given["model"]
    try:
        return add_correction(
            engine,
            amount_usd=Decimal(wanted.amount_usd),
            reason=wanted.reason,
            author=author,
            kind=wanted.kind,
            event_id=wanted.event_id,
            dimensions=given or None,
        )
    except ValueError as error:
        raise InvalidRequest(str(error), code="invalid_value") from None


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    shown = {name: row[name] for name in CorrectionShown.model_fields}
    moments = {name: row[name].astimezone(UTC) for name in ("at", "booked_at")}
    return {**shown, **moments, "amount_usd": f"{row['amount_usd']:f}"}
