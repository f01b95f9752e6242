"""What a compiled configuration holds. Immutable; swapped as a whole, by one assignment."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

import msgspec

from gateway.config.rows import Dialect, Row
from gateway.types import Capability, Rates, WireName

Select = Literal["cost", "latency", "balanced", "weighted", "priority"]

AS_ASKED = "*"
"""An endpoint's `model` that sends on whatever model the client named."""


class Secret:
    """A value that never shows itself: not in `repr`, `str`, logs or JSON. `reveal()` is the only way out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


class AwsKeys(msgspec.Struct, frozen=True):
    access_key_id: Secret
    secret_access_key: Secret
    session_token: Secret | None = None


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """Who serves, and how to reach them. `missing`: why it cannot be used (its key is not set), or None."""

    id: str
    adapter: str
    row: Row
    dialect: Dialect
    base_url: str | None = None
    api_key: Secret | None = None
    aws: AwsKeys | None = None  # instead of `api_key`: requests are signed
    google: Secret | None = None  # likewise: a service account's JSON
    region: str | None = None  # AWS region, Google Cloud location
    model: str | None = None  # `local`: the model its engine loads
    ca_file: str | None = None  # PEM file of the authority that signed the upstream's certificate
    headers: Mapping[str, Secret] = {}  # sent with every request; may hold secrets
    missing: str | None = None

    def secrets(self) -> list[Secret]:
        """Everything that must not be shown to anybody."""
        found = [self.api_key, self.google, *self.headers.values()]
        if self.aws is not None:
            found += [self.aws.access_key_id, self.aws.secret_access_key, self.aws.session_token]
        return [secret for secret in found if secret is not None]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One callable target. `rates`: the price in YAML; None: the catalogue is asked."""

    id: str
    provider: Provider
    model: str  # upstream model, or AS_ASKED
    region: str | None = None
    rates: Rates | None = None
    context_window: int | None = None
    capabilities: frozenset[Capability]
    speaks: tuple[WireName, ...]  # in order of preference

    def upstream_model(self, asked: str) -> str:
        return asked if self.model == AS_ASKED else self.model


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A route's conditions, all of which must hold. Globs are case-sensitive (`fnmatch.fnmatchcase`)."""

    model: tuple[str, ...] = ()  # globs; empty: any
    domain: tuple[str, ...] = ()
    team: tuple[str, ...] = ()  # globs
    key: tuple[str, ...] = ()  # key ids
    header: Mapping[str, str] = {}  # lower-case name -> glob of the value
    stream: bool | None = None
    max_input_tokens: int | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # as written, or `route-N` by position from 1
    match: Match
    policy: str


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    max_cost_usd: Decimal | None = None  # expected cost of one request
    max_ttft: float | None = None  # seconds


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. `ttft` and `idle` bound streams; `total` the whole request over all attempts."""

    connect: float = 5.0
    ttft: float = 30.0
    idle: float = 30.0
    total: float = 600.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    endpoints: tuple[str, ...]
    select: Select = "priority"
    require: Mapping[str, tuple[str, ...]] = {}  # attribute (region, provider) -> allowed values; fails closed
    weights: Mapping[str, float] = {}  # endpoint -> weight for `weighted`; left out: 1
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    attempts: int = 1  # tries at one endpoint before the next one

    @property
    def needs_costs(self) -> bool:
        """Whether the choice depends on what a request is expected to cost."""
        return self.select in ("cost", "balanced") or self.limits.max_cost_usd is not None


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    examples: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


class Team(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    cost_center: str | None = None
    budget: Mapping[str, Any] | None = None  # kept as written


class Server(msgspec.Struct, frozen=True, kw_only=True):
    max_body_bytes: int = 10 * 1024 * 1024


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The compiled whole. `version`: the first 12 hex digits of the SHA-256 of the document, secrets not included."""

    version: str
    providers: Mapping[str, Provider]
    endpoints: Mapping[str, Endpoint]
    routes: tuple[Route, ...]
    policies: Mapping[str, Policy]
    domains: tuple[Domain, ...] = ()
    teams: Mapping[str, Team] = {}
    server: Server = Server()
