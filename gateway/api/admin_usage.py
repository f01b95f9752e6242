"""Usage, chargeback, endpoints' performance and single attempts on the operators' surface.

A developer gets the rows of one team; whom the API lets in here at all is settled by `gateway.api.access`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar, cast

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, create_model
from sqlalchemy import Engine

from gateway.accounting import chargeback, performance, reports, sheets
from gateway.accounting.sheets import Kind
from gateway.api.access import actor_of, team_filter
from gateway.api.admin_http import HEADERS, answer
from gateway.config.model import Configuration
from gateway.errors import InvalidRequest, NotFound, PermissionDenied
from gateway.store.tables import usage_events
from gateway.store.usage import newest_attempts, requests
from gateway.store.usage_query import GROUPS, Question

MAX_USAGE_ROWS = 50_000
MAX_ATTEMPTS = 500
MAX_REPORTS = 2
"""Reports reckoned at once: whoever asks for many must not take the threads that ship the ledger."""
PATIENCE = 60.0
"""Seconds that the database gets for a report."""

CSV_TYPE = "text/csv; charset=utf-8"
CSV: dict[str, Any] = {"content": {CSV_TYPE: {"schema": {"type": "string"}}}}

_BY = ",".join(reports.DEFAULT_BY)
_CHARGEBACK_BY = ",".join(chargeback.DEFAULT_BY)
_encode = msgspec.json.Encoder(decimal_format="string").encode
_encode_as_reported = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(frozen=True)
class UsageServices:
    """`flush`: ships what is spooled, so that answers see everything; raises StoreError. `configuration`: markups and
    capacities."""

    engine: Engine
    configuration: Callable[[], Configuration]
    flush: Callable[[], Awaitable[object]]


Found = TypeVar("Found")
By = Annotated[
    str, Query(max_length=1000, description=f"comma-separated, of: {', '.join(GROUPS)}, or a tag as `tag:NAME`")
]
From = Annotated[str, Query(alias="from", max_length=80, description="a date, a month, a time, or `7d`, `24h`")]
To = Annotated[str, Query(alias="to", max_length=80, description="a date or a month (included) or a time")]
Zone = Annotated[str, Query(max_length=80, description="IANA name of the time zone in which days and hours begin")]
Team = Annotated[str, Query(max_length=200, description="of this team alone")]
Where = Annotated[list[str], Query(max_length=20, description="of these alone, as in `model=gpt-*,o3`")]


def add_usage(api: APIRouter, services: UsageServices) -> None:
    desk = ReportDesk(services)
    add_reports(api, desk)
    add_chargeback(api, services, desk)
    add_attempts(api, services)


class ReportDesk:
    """Reckons a few reports at a time, away from the loop."""

    def __init__(self, services: UsageServices) -> None:
        self._services = services
        self._slots = asyncio.Semaphore(MAX_REPORTS)

    async def reckon(self, work: Callable[[], Found]) -> Found:
        """Raises InvalidRequest, StoreError."""
        await self._services.flush()
        async with self._slots:
            try:
                return await asyncio.to_thread(work)
            except ValueError as error:  # more groups than the store gives out
                raise InvalidRequest(str(error), param="by") from None

    async def find_usage(self, question: Question) -> reports.Report:
        """Raises InvalidRequest, StoreError."""
        found = await self.reckon(lambda: reports.report_on(self._services.engine, question, patience=PATIENCE))
        if len(found.rows) > MAX_USAGE_ROWS:
            raise InvalidRequest(
                f"{len(found.rows)} groups are too many for one answer\n"
                "hint: group by less, ask for a shorter time, or use `hatchway report --format csv`"
            )
        return found


def add_reports(api: APIRouter, desk: ReportDesk) -> None:
    @api.get("/usage", tags=["usage"], response_model=UsageReport)
    async def show_usage(
        request: Request,
        by: By = _BY,
        since: From = "",
        until: To = "",
        zone: Zone = "UTC",
        team: Team = "",
        where: Where = [],  # noqa: B006  # never changed, and FastAPI shows it as the default
    ) -> Response:
        """Usage and cost of the attempts booked in a period: what `hatchway report --format json` prints."""
        found = await desk.find_usage(parse_question(by, since, until, zone, visible_team(request, team), where))
        return answer(reports.to_json(found).encode())

    @api.get("/usage.csv", tags=["usage"], response_class=Response, responses={200: CSV})
    async def export_usage(
        request: Request,
        by: By = _BY,
        since: From = "",
        until: To = "",
        zone: Zone = "UTC",
        team: Team = "",
        where: Where = [],  # noqa: B006  # likewise
    ) -> Response:
        """The same as a spreadsheet takes it: what `hatchway report --format csv` prints."""
        found = await desk.find_usage(parse_question(by, since, until, zone, visible_team(request, team), where))
        return Response(reports.to_csv(found), headers=HEADERS, media_type=CSV_TYPE)


def add_chargeback(api: APIRouter, services: UsageServices, desk: ReportDesk) -> None:
    @api.get("/chargeback", tags=["usage"], response_model=ChargebackReport)
    async def show_chargeback(
        by: By = _CHARGEBACK_BY, since: From = "", until: To = "", zone: Zone = "UTC"
    ) -> Response:
        """What teams are charged: the cost with their markup, each line to the cent, and what rounding left over."""
        question = parse_question(by, since, until, zone, None, [])
        try:
            question = msgspec.structs.replace(question, by=chargeback.groups_of(question.by))
        except ValueError as error:
            raise InvalidRequest(str(error).replace("--by", "by"), param="by", code="invalid_value") from None
        found = chargeback.chargeback(await desk.find_usage(question), chargeback.markups(services.configuration()))
        return answer(sheets.to_json(chargeback.to_sheet(found)).encode())

    @api.get("/performance", tags=["usage"], response_model=PerformanceReport)
    async def show_performance(since: From = "7d", until: To = "", zone: Zone = "UTC") -> Response:
        """Tokens per dollar, success and latency by endpoint, and how far machines of ours are used."""
        asked, endpoints = parse_question("endpoint", since, until, zone, None, []), services.configuration().endpoints
        now = datetime.now(UTC)

        def work() -> performance.Performance:
            return performance.performance(
                services.engine, endpoints, asked.since, asked.until, now, zone=asked.zone, patience=PATIENCE
            )

        return answer(sheets.to_json(performance.to_sheet(await desk.reckon(work))).encode())


def add_attempts(api: APIRouter, services: UsageServices) -> None:
    @api.get("/requests", tags=["usage"], response_model=AttemptList)
    async def list_requests(request: Request, limit: Annotated[int, Query(ge=1, le=MAX_ATTEMPTS)] = 50) -> Response:
        """The newest attempts, newest first."""
        team = team_filter(actor_of(request))
        await services.flush()
        return answer(encode_attempts(await asyncio.to_thread(newest_attempts, services.engine, limit, team)))

    @api.get("/requests/{request_id}", tags=["usage"], response_model=AttemptList)
    async def show_request(request: Request, request_id: str) -> Response:
        """The attempts of one request in order."""
        team = team_filter(actor_of(request))
        await services.flush()
        rows = await asyncio.to_thread(requests, services.engine, request_id, team)
        if not rows:  # or it is another team's, of which a developer is not told
            raise NotFound(f"no attempt of the request `{request_id[:80]}` is recorded", code="request_not_found")
        return answer(encode_attempts(rows))


def visible_team(request: Request, asked: str) -> str | None:
    """The team whose rows the caller gets; None: all. Raises PermissionDenied."""
    only = team_filter(actor_of(request))
    if only is not None and asked not in ("", only):
        raise PermissionDenied("a developer sees one team alone: its own", code="role_not_allowed")
    return only if only is not None else asked or None


def parse_question(by: str, since: str, until: str, zone: str, team: str | None, where: list[str]) -> Question:
    """Means what `hatchway report` means by its options of these names. Raises InvalidRequest."""
    now, param = datetime.now(UTC), "by"
    try:
        names = reports.parse_by(by)
        param = "zone"
        reports.parse_zone(zone)
        param = "from"
        start = reports.parse_moment("from", since, now, end_of_day=False, zone=zone) if since else None
        param = "to"
        end = reports.parse_moment("to", until, now, end_of_day=True, zone=zone) if until else None
        if start is not None and end is not None and start >= end:
            raise ValueError(f"`from` {since} is not before `to` {until}\nhint: exchange them")
        param = "where"
        globs = reports.parse_where(where)
    except ValueError as error:
        message = str(error).replace("--by", "by").replace("--where", "where")
        raise InvalidRequest(message, param=param, code="invalid_value") from None
    return Question(by=names, since=start, until=end, zone=zone, where=globs, team=team)


def encode_attempts(rows: list[dict[str, Any]]) -> bytes:
    """JSON of `AttemptList`: money as strings; the upstream's own usage object keeps its numbers."""
    return _encode({"attempts": [encodable(row) for row in rows]})


def encodable(row: Mapping[str, Any]) -> dict[str, Any]:
    money = {name: None if row[name] is None else f"{cast(Decimal, row[name]):f}" for name in _MONEY_COLUMNS}
    times = {name: value.astimezone(UTC) for name, value in row.items() if isinstance(value, datetime)}
    return {**row, **times, **money, "raw_usage": msgspec.Raw(_encode_as_reported(row["raw_usage"]))}


# The models of rows follow the table and the reports, so that the description cannot fall behind them.

_MONEY: tuple[Any, Any] = (str | None, Field(description="USD with every digit; null: it is not known"))
_MONEY_COLUMNS = ("cost_usd", "max_cost_usd", "corrected_usd")
_FIELDS: dict[Kind, Any] = {"count": (int, ...), "money": _MONEY, "number": (float | None, ...)}
_NAMES = {name: (str | None, Field(None, description="there if grouped by it")) for name in GROUPS}


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Named(BaseModel):
    """A tag that it is grouped by is there as `tag:NAME`."""

    model_config = ConfigDict(extra="allow")


def _fields(figures: Mapping[str, Kind]) -> dict[str, Any]:
    return {name: _FIELDS[kind] for name, kind in figures.items()}


UsageFigures = create_model("UsageFigures", __base__=_Figures, **_fields(reports.KINDS))
UsageRow = create_model("UsageRow", __base__=_Named, **_fields(reports.KINDS), **cast(dict[str, Any], _NAMES))
ChargebackFigures = create_model("ChargebackFigures", __base__=_Figures, **_fields(chargeback.FIGURES))
ChargebackRow = create_model(
    "ChargebackRow", __base__=_Named, **_fields(chargeback.FIGURES), **cast(dict[str, Any], _NAMES)
)
EndpointFigures = create_model(
    "EndpointFigures", __base__=_Figures, endpoint=(str, ...), **_fields(performance.FIGURES)
)
_COLUMNS: dict[str, Any] = {
    **{
        column.name: (column.type.python_type | None if column.nullable else column.type.python_type, ...)
        for column in usage_events.columns
    },
    **dict.fromkeys(_MONEY_COLUMNS, _MONEY),
    "prices": (dict[str, Any] | None, Field(description="the rates used, in USD per million tokens")),
    "tags": (dict[str, str] | None, ...),
    "raw_usage": (Any, Field(description="the upstream's own usage object")),
}
Attempt = create_model(
    "Attempt", __doc__="One row of the ledger: one attempt at one endpoint.", __base__=_Figures, **_COLUMNS
)


class _Period(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    since: datetime | None = Field(alias="from")
    until: datetime | None = Field(alias="to")
    zone: str


class UsageReport(_Period):
    by: list[str]
    rows: list[UsageRow]  # type: ignore[valid-type]  # made from the report's own names
    total: UsageFigures  # type: ignore[valid-type]  # likewise


class ChargebackReport(_Period):
    by: list[str]
    currency: str
    rows: list[ChargebackRow]  # type: ignore[valid-type]  # likewise
    total: ChargebackFigures  # type: ignore[valid-type]  # likewise


class PerformanceReport(_Period):
    rows: list[EndpointFigures]  # type: ignore[valid-type]  # likewise


class AttemptList(BaseModel):
    attempts: list[Attempt]  # type: ignore[valid-type]  # made from the table
