"""Operators' view of price catalogues: list, compare, propose, approve, reject; what a model costs; what has no price.
Under `/admin/api/prices`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine

from gateway.accounting.catalogue import MAX_CATALOGUE_BYTES, Catalogue
from gateway.accounting.catalogue_desk import stored_catalogue
from gateway.accounting.catalogue_difference import compare_catalogues, names_in_use
from gateway.accounting.catalogue_import import Format, Imported, read_prices
from gateway.accounting.price_answers import Question, answer_prices
from gateway.accounting.prices import PriceBook
from gateway.api.access import actor_of
from gateway.api.admin_http import answer, described_body, parse_body, read_body
from gateway.config.model import Configuration
from gateway.errors import BodyTooLarge, Conflict, InvalidRequest, NotFound, StoreError
from gateway.store.catalogues import (
    CatalogueRow,
    Refused,
    approve,
    find_catalogue,
    in_force,
    list_catalogues,
    propose,
    reject,
    unpriced_models,
    used_models,
)

USED_DAYS = 30
MAX_TEXT = 256
_NO_NUL = r"^[^\x00]*$"
_JSON_STARTS = (b"{", b"[")
_UPLOAD = {
    "requestBody": {
        "required": True,
        "description": f"prices as JSON: genai-prices' `data.json`, LiteLLM's list, or our own; "
        f"at most {MAX_CATALOGUE_BYTES} bytes",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_encode = msgspec.json.Encoder(decimal_format="string").encode

Version = Annotated[str, Path(min_length=1, max_length=64, pattern="^[0-9a-f]+$", description="or its beginning")]
VersionQuery = Annotated[str | None, Query(min_length=1, max_length=64, pattern="^[0-9a-f]+$")]
Text = Annotated[str | None, Query(max_length=MAX_TEXT, pattern=_NO_NUL)]


@dataclass(frozen=True)
class PriceServices:
    """What is asked of the control plane."""

    engine: Engine
    configuration: Callable[[], Configuration]


class CatalogueShown(BaseModel):
    version: str
    source: str
    state: Literal["in force", "approved", "proposed", "rejected"]
    proposed_at: datetime
    author: str
    decided_at: datetime | None
    decided_by: str | None


class CatalogueList(BaseModel):
    catalogues: list[CatalogueShown]


class PriceChangeShown(BaseModel):
    price: str = Field(description="with all its conditions, as in `since 2026-10-14, batch: input above 200000`")
    before: str | None
    after: str | None


class ModelChangeShown(BaseModel):
    provider: str
    model: str
    kind: Literal["added", "removed", "changed"]
    prices: list[PriceChangeShown]
    is_match_changed: bool


class CatalogueDiff(BaseModel):
    before: str = Field(alias="from")
    after: str = Field(alias="to")
    changes: list[ModelChangeShown]


class ProposedCatalogue(BaseModel):
    catalogue: CatalogueShown
    left_out: dict[str, int] = Field(description="what the source prices and no token is counted by, with how often")


class Approval(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    two_person: bool = Field(default=False, description="refuse to whoever proposed it, whatever `prices` says")


class PriceAnswerShown(BaseModel):
    endpoint: str | None = Field(description="null: no endpoint gets that price; what the catalogue says")
    provider: str
    model: str
    prices: dict[str, Any] | None = Field(description="as a row of the ledger would keep them; null: unpriced")
    catalog_version: str | None
    reasons: list[str]
    list_prices: dict[str, str]


class PriceAnswers(BaseModel):
    answers: list[PriceAnswerShown]


class UnpricedShown(BaseModel):
    endpoint: str
    provider: str
    upstream_model: str
    service_tier: str | None
    attempts: int
    tokens: int
    max_cost_usd: str = Field(description="what they may have cost at most, as far as that is known")
    first: datetime
    last: datetime


class UnpricedList(BaseModel):
    models: list[UnpricedShown]


def add_prices(api: APIRouter, services: PriceServices) -> None:
    engine = services.engine
    turn = asyncio.Lock()  # reading a catalogue takes a second and some tens of megabytes: one at a time

    @api.get("/prices/catalogues", tags=["prices"], response_model=CatalogueList)
    async def show_catalogues(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """The price catalogues, the newest first: which is in force, which are proposed, who decided."""
        return answer(_encode({"catalogues": await asyncio.to_thread(list_catalogues, engine, limit)}))

    @api.post("/prices/catalogues", tags=["prices"], response_model=ProposedCatalogue, openapi_extra=_UPLOAD)
    async def propose_catalogue(
        request: Request,
        source: Annotated[str, Query(min_length=1, max_length=MAX_TEXT, pattern=r"^[\x20-\x7e]+$")],
        format: Annotated[Format, Query()] = "auto",
    ) -> Response:
        """Proposes a catalogue. Nothing holds before it is approved."""
        content = await _read_upload(request)
        author = actor_of(request).author
        async with turn:
            imported = await asyncio.to_thread(_import, engine, content, source, format)
            made = imported.catalogue
            row = await asyncio.to_thread(propose, engine, made.version, made.source, made.encode(), author)
        return answer(_encode({"catalogue": row, "left_out": imported.left_out}))

    @api.post("/prices/catalogues/{version}/approve", tags=["prices"], openapi_extra=described_body(Approval))
    async def approve_catalogue(request: Request, version: Version) -> CatalogueShown:
        """Puts a catalogue in force."""
        wanted = parse_body(Approval, await read_body(request))
        two_person = wanted.two_person or services.configuration().prices.two_person
        author = actor_of(request).author
        row = await asyncio.to_thread(_one, engine, version)
        return _shown(
            await asyncio.to_thread(_decide, lambda: approve(engine, row.version, author, two_person=two_person))
        )

    @api.post("/prices/catalogues/{version}/reject", tags=["prices"])
    async def reject_catalogue(request: Request, version: Version) -> CatalogueShown:
        """Puts a proposal aside."""
        author = actor_of(request).author
        row = await asyncio.to_thread(_one, engine, version)
        return _shown(await asyncio.to_thread(_decide, lambda: reject(engine, row.version, author)))

    @api.get("/prices/diff", tags=["prices"], response_model=CatalogueDiff)
    async def show_price_changes(
        before: Annotated[VersionQuery, Query(alias="from", description="left out: the one in force")] = None,
        after: Annotated[VersionQuery, Query(alias="to", description="left out: the newest proposal")] = None,
        used: Annotated[bool, Query(description=f"only what the ledger has seen in {USED_DAYS} days")] = False,
    ) -> Response:
        """What changes in prices from one catalogue to another."""
        async with turn:
            return answer(_encode(await asyncio.to_thread(_compare, services, before, after, used)))

    @api.get("/prices/model", tags=["prices"], response_model=PriceAnswers)
    async def show_price(
        model: Annotated[str, Query(min_length=1, max_length=MAX_TEXT, pattern=_NO_NUL)],
        provider: Text = None,
        team: Text = None,
        service_tier: Text = None,
        input_tokens: Annotated[int, Query(ge=0, le=10**9)] = 1,
        at: Annotated[datetime | None, Query(description="left out: now")] = None,
    ) -> Response:
        """Which price would hold for a model, and why."""
        moment = at or datetime.now(UTC)
        asked = Question(
            model=model,
            at=moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC),
            provider=provider,
            team=team,
            service_tier=service_tier,
            input_tokens=input_tokens,
        )
        async with turn:
            return answer(_encode({"answers": await asyncio.to_thread(_answers, services, asked)}))

    @api.get("/prices/unpriced", tags=["prices"], response_model=UnpricedList)
    async def show_unpriced(days: Annotated[int, Query(ge=1, le=3660)] = USED_DAYS) -> Response:
        """What the ledger has without a price, the most tokens first."""
        since = datetime.now(UTC) - timedelta(days=days)
        return answer(_encode({"models": await asyncio.to_thread(unpriced_models, engine, since)}))


async def _read_upload(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_CATALOGUE_BYTES:
            raise BodyTooLarge(f"the request body is over {MAX_CATALOGUE_BYTES} bytes", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


def _import(engine: Engine, content: bytes, source: str, format: Format) -> Imported:
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_JSON_STARTS):
        raise InvalidRequest("the body is no JSON object or list", code="invalid_catalogue")
    version = in_force(engine)
    try:
        return read_prices(content, source, format, None if version is None else _stored(engine, version))
    except ValueError as error:
        raise InvalidRequest(str(error)[:1000], code="invalid_catalogue") from None


def _compare(services: PriceServices, before: str | None, after: str | None, used: bool) -> dict[str, object]:
    engine = services.engine
    first = _newest(engine, "in force") if before is None else _one(engine, before)
    second = _newest(engine, "proposed") if after is None else _one(engine, after)
    old, new = _stored(engine, first.version), _stored(engine, second.version)
    only = None
    if used:
        seen = used_models(engine, datetime.now(UTC) - timedelta(days=USED_DAYS))
        configuration = services.configuration()
        only = names_in_use(old, configuration, seen) | names_in_use(new, configuration, seen)
    return {"from": first.version, "to": second.version, "changes": compare_catalogues(old, new, only)}


def _answers(services: PriceServices, asked: Question) -> list[Any]:
    version, configuration = in_force(services.engine), services.configuration()
    book = PriceBook(None if version is None else _stored(services.engine, version))
    return list(answer_prices(book.under(configuration), configuration, asked))


def _decide(decision: Callable[[], CatalogueRow]) -> CatalogueRow:
    try:
        return decision()
    except Refused as error:
        raise _conflict(error) from None


def _one(engine: Engine, version: str) -> CatalogueRow:
    try:
        found = find_catalogue(engine, version)
    except Refused as error:
        raise _conflict(error) from None
    if found is None:
        raise NotFound(f"there is no price catalogue `{version}`", code="catalogue_not_found")
    return found


def _newest(engine: Engine, state: str) -> CatalogueRow:
    found = next((row for row in list_catalogues(engine, 1000) if row.state == state), None)
    if found is None:
        raise NotFound(f"no price catalogue is {state}", code="catalogue_not_found")
    return found


def _stored(engine: Engine, version: str) -> Catalogue:
    try:
        found = stored_catalogue(engine, version)
    except ValueError as error:
        raise StoreError(f"price catalogue `{version}` cannot be read: {error}") from None
    assert found is not None, "it was just found"
    return found


def _conflict(error: Refused) -> Conflict:
    return Conflict(str(error), code="catalogue_refused")


def _shown(row: CatalogueRow) -> CatalogueShown:
    return CatalogueShown(**msgspec.structs.asdict(row))
