"""What the admin API takes and answers, as its OpenAPI description shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from gateway.accounting.reports import FIGURES
from gateway.store.keys import Role
from gateway.store.tables import usage_events
from gateway.store.usage import GROUPS


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorFields


class Health(BaseModel):
    """What the endpoint's own traffic says of it, over all workers."""

    ttft: float | None = Field(description="decayed mean of the time to first content, in seconds; null: never used")
    in_flight: int
    failures: int = Field(description="failures in a row")
    ejected: bool
    ejected_for: float = Field(description="seconds until it is tried again; 0: it is not ejected")


class EndpointStatus(BaseModel):
    id: str
    provider: str
    adapter: str
    region: str | None
    upstream_model: str = Field(description="`*`: whatever model the client asks for")
    missing: str | None = Field(description="why the provider cannot be used, or null")
    health: Health


class RouteStatus(BaseModel):
    name: str
    policy: str


class PolicyStatus(BaseModel):
    name: str
    select: str
    endpoints: list[str]


class Status(BaseModel):
    version: str = Field(description="of the configuration in force")
    rejected: str | None = Field(description="why the configuration on disk is refused, or null")
    endpoints: list[EndpointStatus]
    routes: list[RouteStatus]
    policies: list[PolicyStatus]


class Key(BaseModel):
    """A key as operators see it; nothing here or anywhere else gives its secret back."""

    key_id: str
    prefix: str = Field(description="the beginning of the secret, to recognise it by")
    role: Role
    team: str
    project: str | None
    name: str | None
    models: list[str] = Field(description="globs of the models it may ask for; empty: all")
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None


class KeyList(BaseModel):
    keys: list[Key]


class KeyRequest(BaseModel):
    """A key to be made. Names: letters, digits, `.`, `_` and `-`, at most 64."""

    model_config = ConfigDict(extra="forbid")

    team: str
    project: str | None = None
    name: str | None = Field(None, description="a label for people, at most 200 characters")
    models: list[str] = Field([], description="globs of the models it may ask for; empty: all")
    role: Role = "key"
    expires_at: AwareDatetime | None = None


class CreatedKey(BaseModel):
    key_id: str
    secret: str = Field(description="shown this once")


_MONEY: tuple[Any, Any] = (str | None, Field(description="USD with every digit; null: no price is known"))

# The models of rows follow the table and the report, so that the description cannot fall behind them.
UsageFigures = create_model(
    "UsageFigures",
    __config__=ConfigDict(extra="forbid"),
    **cast(dict[str, Any], {name: _MONEY if name == "cost_usd" else (int, ...) for name in FIGURES}),
)
UsageRow = create_model(
    "UsageRow",
    __base__=UsageFigures,
    **cast(dict[str, Any], {name: (str | None, Field(None, description="there if grouped by it")) for name in GROUPS}),
)
Attempt = create_model(
    "Attempt",
    __doc__="One row of the ledger: one attempt at one endpoint.",
    __config__=ConfigDict(extra="forbid"),
    **cast(
        dict[str, Any],
        {
            column.name: (column.type.python_type | None if column.nullable else column.type.python_type, ...)
            for column in usage_events.columns
            if column.name not in ("cost_usd", "prices", "tags", "raw_usage")
        },
    ),
    cost_usd=_MONEY,
    prices=(dict[str, Any] | None, Field(description="the rates used, in USD per million tokens")),
    tags=(dict[str, str] | None, ...),
    raw_usage=(Any, Field(description="the upstream's own usage object")),
)


class UsageReport(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    by: list[str]
    since: datetime | None = Field(alias="from")
    until: datetime | None = Field(alias="to")
    rows: list[UsageRow]  # type: ignore[valid-type]  # made from the report's own names
    total: UsageFigures  # type: ignore[valid-type]  # likewise


class AttemptList(BaseModel):
    attempts: list[Attempt]  # type: ignore[valid-type]  # made from the table
