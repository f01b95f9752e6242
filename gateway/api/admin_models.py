"""What the admin API takes and answers, as its OpenAPI description shows it."""

from __future__ import annotations

from pydantic import BaseModel, Field


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
