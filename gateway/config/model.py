"""What a compiled configuration holds. Immutable; swapped as a whole, by one assignment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Literal, get_args

import msgspec

from gateway.config.export import NO_TELEMETRY, TRACEPARENT, Telemetry
from gateway.config.rows import Dialect, Row
from gateway.config.secret import Secret as Secret
from gateway.config.sheets import PriceSheet
from gateway.types import NO_LIMIT, Budget, Capability, Complexity, Freshness, RateLimit, Rates, Role, WireName

Select = Literal["cost", "latency", "balanced", "weighted", "priority"]

AS_ASKED = "*"
"""An endpoint's `model` that sends on whatever model the client named."""

FRESHNESS: Mapping[str, int] = MappingProxyType({tier: rank for rank, tier in enumerate(get_args(Freshness))})
"""Each tier's rank; a fresher one has a higher rank."""


class AwsKeys(msgspec.Struct, frozen=True):
    access_key_id: Secret
    secret_access_key: Secret
    session_token: Secret | None = None


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine of a local provider runs; None, or absent among `numbers`: as the engine does by itself.

    `step`: seconds a step may hold up running requests. `request_timeout`: seconds a request may take.
    """

    quant: str | None = None
    draft: str | None = None
    kernels: str | None = None
    device: str | None = None
    dtype: str | None = None
    kernel_tables: str | None = None
    kv_type: str | None = None
    experts: str | None = None
    prefix_cache: bool | None = None
    step: float | None = None
    request_timeout: float | None = None
    numbers: Mapping[str, int] = {}


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
    engine: EngineOptions = EngineOptions()  # `local`: how its engine runs
    ca_file: str | None = None  # PEM file of the authority that signed the upstream's certificate
    headers: Mapping[str, Secret] = {}  # sent with every request; may hold secrets
    propagate: frozenset[str] = TRACEPARENT  # the headers of a trace that it is shown
    missing: str | None = None

    def secrets(self) -> list[Secret]:
        """Everything that must not be shown to anybody."""
        found = [self.api_key, self.google, *self.headers.values()]
        if self.aws is not None:
            found += [self.aws.access_key_id, self.aws.secret_access_key, self.aws.session_token]
        return [secret for secret in found if secret is not None]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One callable target. `rates`: the price in YAML, in USD. `sheet`: in its place, where the YAML says more (by
    size, time or service tier, in another currency). Both None: the catalogue is asked."""

    id: str
    provider: Provider
    model: str  # upstream model, or AS_ASKED
    region: str | None = None
    rates: Rates | None = None
    sheet: PriceSheet | None = None
    capacity: Capacity | None = None  # `rates` follow from it
    max_output_tokens: int | None = None  # of the model
    account: str | None = None  # that the provider bills
    context_window: int | None = None
    license: str | None = None  # of the model, in lower case, as in `apache-2.0`
    freshness: Freshness | None = None
    data_classes: frozenset[str] = frozenset()  # classes of data it may be sent; requests without a class may always go
    quantization: str | None = None  # in lower case, as OpenRouter names them: `fp8`, `int4`, ...
    zdr: bool = False  # keeps nothing of a request (zero data retention)
    data_collection: bool = True  # may use requests for itself; True where nobody says otherwise
    distillable: bool = False  # its output may be used for training
    max_in_flight: int | None = None  # requests at once, over all workers
    capabilities: frozenset[Capability]
    speaks: tuple[WireName, ...]  # in order of preference

    def upstream_model(self, asked: str) -> str:
        return asked if self.model == AS_ASKED else self.model

    @property
    def takes_wishes(self) -> bool:
        """Whether it is OpenRouter with any model: it is sent the client's routing wishes, and upholds them itself."""
        return self.model == AS_ASKED and self.provider.adapter == "openrouter"

    def meets(self, attribute: str, allowed: tuple[str, ...]) -> bool:
        """Whether it has what a policy requires: `attribute` is one of `REQUIREMENTS`, `allowed` as in `require`."""
        match attribute:
            case "provider":
                return self.provider.id in allowed
            case "zdr":
                return self.zdr
            case "freshness":
                return self.freshness is not None and any(FRESHNESS[self.freshness] >= FRESHNESS[t] for t in allowed)
        return getattr(self, attribute) in allowed


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """When a route holds. `start` and `end`: minutes of the day in `zone`, [start, end); past midnight where
    `start` > `end`; equal: the whole day. `days`: 0 is Monday; the day on which the window began. `since`, `until`:
    dates, both included."""

    days: frozenset[int] = frozenset(range(7))
    start: int = 0
    end: int = 0
    zone: str = "UTC"
    since: date | None = None
    until: date | None = None


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A route's conditions, all of which must hold. Globs are case-sensitive (`fnmatch.fnmatchcase`)."""

    model: tuple[str, ...] = ()  # globs; empty: any
    domain: tuple[str, ...] = ()
    complexity: tuple[Complexity, ...] = ()
    team: tuple[str, ...] = ()  # globs
    project: tuple[str, ...] = ()  # globs
    key: tuple[str, ...] = ()  # key ids
    header: Mapping[str, str] = {}  # lower-case name -> glob of the value
    tag: Mapping[str, str] = {}  # name -> glob of the value
    data_class: tuple[str, ...] = ()
    stream: bool | None = None
    min_input_tokens: int | None = None
    max_input_tokens: int | None = None
    window: Window | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # as written, or `route-N` by position from 1
    match: Match
    policy: str


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one request. What is expected counts, and an unknown price is over every ceiling."""

    max_cost_usd: Decimal | None = None
    max_ttft: float | None = None  # seconds
    max_price: tuple[Decimal | None, Decimal | None] = (None, None)  # USD per million tokens of input, of output
    min_tokens_per_second: float | None = None


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. `first_byte`: until headers, whole answers too; None: no bound of its own. `ttft` and `idle` bound
    streams; `total` the whole request over all attempts."""

    connect: float = 5.0
    first_byte: float | None = None
    ttft: float = 30.0
    idle: float = 30.0
    total: float = 600.0


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts`: tries at one endpoint before the next one. `max_wait`: seconds for which a request waits for an
    upstream that said when to come back, if nobody else can serve it."""

    attempts: int = 1
    max_wait: float = 5.0


class Hedge(msgspec.Struct, frozen=True, kw_only=True):
    """A second attempt at the next endpoint when the first is slow to begin; whoever begins first serves.

    `after`: seconds; None: the endpoint's own 95th percentile of TTFT (at least 50 ms; without one, no hedging).
    `max_extra_cost`: what hedging may add to the policy's spending, as a share of it.
    """

    after: float | None = None
    max_extra_cost: float = 0.03


class Streaming(msgspec.Struct, frozen=True, kw_only=True):
    """What happens around a stream that fails or is slow.

    on_failure   after content was shown: `error` ends the stream in an error event; `restart` holds back the first
                 `hold_tokens` so that until then another endpoint can begin anew; `continue` asks the next endpoint
                 to go on from the text so far, where its protocol can be told so, and is `error` elsewhere
    keep_alive   seconds without content after which the client is sent SSE comments; None: never
    min_tokens_per_second, slow_after
                 a stream that has been slower than that for `slow_after` seconds is given up; None: never
    """

    on_failure: Literal["error", "restart", "continue"] = "error"
    hold_tokens: int = 32
    keep_alive: float | None = 15.0
    min_tokens_per_second: float | None = None
    slow_after: float = 10.0


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """`share` (0 to 1) of the policy's requests try `endpoint` first. `by`: what stays together."""

    endpoint: str
    share: float
    by: Literal["request", "session", "key", "team"] = "request"


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoint` gets a copy of `share` (0 to 1) of the policy's requests; nobody sees its answers, everybody pays."""

    endpoint: str
    share: float


EVEN_BALANCE: Mapping[str, float] = MappingProxyType({"cost": 1.0, "latency": 1.0})


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """`fallback`: the policy whose endpoints follow when all of this one's have failed or none may serve; what this
    one requires and limits still holds there."""

    id: str
    endpoints: tuple[str, ...]
    select: Select = "priority"
    require: Mapping[str, tuple[str, ...]] = {}  # attribute -> allowed values; fails closed
    weights: Mapping[str, float] = {}  # endpoint -> weight for `weighted`; left out: 1
    balance: Mapping[str, float] = EVEN_BALANCE  # `cost`, `latency`, `throughput`, `load`: weights for `balanced`
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    hedge: Hedge | None = None
    streaming: Streaming = Streaming()
    sticky: Literal["none", "session", "prefix", "key", "team"] = "none"
    canaries: tuple[Canary, ...] = ()
    shadow: Shadow | None = None
    fallback: str | None = None
    prompts: Prompts | None = None

    @property
    def needs_costs(self) -> bool:
        """Whether the choice depends on what a request is expected to cost."""
        return self.select in ("cost", "balanced") or self.limits.max_cost_usd is not None


REQUIREMENTS = ("region", "provider", "license", "freshness", "quantization", "zdr")
"""What a policy may require of an endpoint; `freshness` is met by that tier or a fresher one. `zdr` is `("true",)`
where it is required. Licences and quantizations are compared in lower case."""


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    examples: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


class Allow(msgspec.Struct, frozen=True, kw_only=True):
    """What a team may use; empty: everything. Globs."""

    endpoints: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # upstream models


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """Of one team. What it leaves out is its team's."""

    id: str
    cost_center: str | None = None
    budget: Budget | None = None
    limits: RateLimit = NO_LIMIT


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """`data_class`: of its requests that name none. `priority`: 0 to 9; under load the highest are served first.
    `weight`: its share of a queue beside other teams of the same priority. `markup`: what chargeback adds to its cost,
    as a share; None: its organisation's, else the configuration's."""

    id: str
    organisation: str | None = None
    cost_center: str | None = None
    budget: Budget | None = None
    limits: RateLimit = NO_LIMIT
    markup: Decimal | None = None
    projects: Mapping[str, Project] = {}
    data_class: str | None = None
    priority: int = 5
    weight: float = 1.0
    allow: Allow = Allow()


class Organisation(msgspec.Struct, frozen=True, kw_only=True):
    """Teams that belong together."""

    id: str
    name: str | None = None
    budget: Budget | None = None
    markup: Decimal | None = None


class CostCenter(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str | None = None
    budget: Budget | None = None


class ModelBudget(msgspec.Struct, frozen=True, kw_only=True):
    """A budget or a limit of some models, as they are asked for, of whoever asks. `teams`: globs; empty: all."""

    id: str
    models: tuple[str, ...]  # globs
    teams: tuple[str, ...] = ()
    budget: Budget | None = None
    limits: RateLimit = NO_LIMIT


class Alerts(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is told that a budget reached a threshold, beside log and metrics. `secret` signs the body."""

    webhook: str | None = None
    secret: Secret | None = None


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """What was agreed with a provider; it goes before the catalogue. The last that fits holds.

    `price`: replaces the catalogue's rates, in `currency` per million tokens; `discount`: a share taken off them.
    `uplift`: by region, a share put on the price. `teams`: globs of those it is for; empty: all.
    """

    id: str
    provider: str
    models: tuple[str, ...] = ("*",)  # globs of upstream models
    endpoints: tuple[str, ...] = ()  # globs; empty: all of the provider
    teams: tuple[str, ...] = ()
    service_tiers: tuple[str, ...] = ()  # empty: all
    since: date | None = None  # both included, UTC
    until: date | None = None
    currency: str = "USD"
    price: Rates | None = None
    discount: Decimal = Decimal(0)
    uplift: Mapping[str, Decimal] = {}


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """From `since` (UTC; None: always) one unit of the currency is worth `usd`."""

    usd: Decimal
    since: date | None = None


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`two_person`: a catalogue is approved by somebody else than who proposed it."""

    two_person: bool = False


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine of ours costs by the hour whether or not it is used (USD), and what it can do: tokens a second
    read and written at full load. `watts` at full load, with `kwh` USD for a kilowatt hour, on top of `hour`."""

    hour: Decimal
    reads: Decimal
    writes: Decimal
    watts: Decimal | None = None
    kwh: Decimal | None = None


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`on_full`: what happens when the spool cannot be written or is over `max_bytes`: `refuse` new work, or `continue`
    and raise the alarm. `sync`: seconds between syncs to disk; 0: before each answer's last byte."""

    on_full: Literal["refuse", "continue"] = "refuse"
    max_bytes: int = 10 * 1024**3
    sync: float = 0.05


class Prompts(msgspec.Struct, frozen=True, kw_only=True):
    """Of a policy that keeps what was asked and answered. `keep`: seconds; `redact`: kinds of what is blacked out."""

    keep: float
    redact: tuple[str, ...]
    what: Literal["prompt", "both"] = "both"


class Oidc(msgspec.Struct, frozen=True, kw_only=True):
    """Who vouches for operators. `roles`: values of the claim `claim` -> role; of several that fit, the most powerful.
    `team_claim`: names the team of developers. `client_id`, `client_secret`, `url`: of the login page; `url`: where
    people find the gateway."""

    issuer: str
    audience: str
    jwks_uri: str | None = None  # None: from the issuer's discovery document
    claim: str = "groups"
    roles: Mapping[str, Role] = {}
    team_claim: str | None = None
    client_id: str | None = None
    client_secret: Secret | None = None
    url: str | None = None


class Classifier(msgspec.Struct, frozen=True, kw_only=True):
    """`model`: `trained` uses what `hatchway domains train` made, where that exists; `examples` the YAML's alone."""

    model: Literal["trained", "examples"] = "trained"


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """What routing learns from traffic. `half_life`: seconds in which an observation loses half of its weight;
    `max_age`: after which a number without news is forgotten; `max_drift`: the factor by which learned costs may change
    between two publications before they are frozen."""

    enabled: bool = True
    half_life: float = 600.0
    max_age: float = 86_400.0
    max_drift: float = 4.0


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """How long the explanation of each request is kept, in seconds; 0: it is not written."""

    keep: float = 7 * 86_400.0


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """`max_in_flight`: requests served at once over all workers, None: no bound; `max_waiting`: those that may wait for
    their turn; `max_wait`: seconds they wait before they are shed with 429."""

    max_body_bytes: int = 10 * 1024 * 1024
    max_in_flight: int | None = None
    max_waiting: int = 1000
    max_wait: float = 10.0


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
    classifier: Classifier = Classifier()
    learning: Learning = Learning()
    decisions: Decisions = Decisions()
    organisations: Mapping[str, Organisation] = {}
    cost_centers: Mapping[str, CostCenter] = {}
    model_budgets: tuple[ModelBudget, ...] = ()
    alerts: Alerts = Alerts()
    contracts: tuple[Contract, ...] = ()
    currencies: Mapping[str, tuple[Exchange, ...]] = {}
    prices: PriceSettings = PriceSettings()
    markup: Decimal = Decimal(0)
    ledger: LedgerSettings = LedgerSettings()
    telemetry: Telemetry = NO_TELEMETRY
    oidc: Oidc | None = None
