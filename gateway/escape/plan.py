"""What would happen if one endpoint's traffic went to another, worked out from what was recorded. Pure.

Whether a request could move is judged by the code that routes real ones (`Judge`), under the policy that it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal

import msgspec

from gateway.config.model import AS_ASKED, Configuration, Endpoint
from gateway.errors import InvalidRequest
from gateway.routing.facts import Facts
from gateway.types import CONVERSATION_WIRES, Usage

EXAMPLES = 3
"""Request ids shown for each feature that would break."""
MAX_GROUPS = 500
"""Different breaks and seats that are counted apart; what comes later is counted as `OTHER`."""
MAX_SEATS = 20
OTHER = "(other)"

Obstacle = tuple[str, str]
"""A reason of `gateway.routing.plan.REASONS`, and the feature in words."""
Judge = Callable[[Facts, str, Endpoint], Obstacle | None]
"""What keeps a request of a policy from an endpoint by the rules of routing; None: nothing."""
Price = Callable[[Endpoint, str, datetime, Usage], Decimal | None]
"""USD for tokens at an endpoint, asked for a model at a time; None: unknown."""


class Pair(msgspec.Struct, frozen=True):
    """Endpoint ids: whose traffic goes, and where to."""

    source: str
    target: str


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A request that the source served. `is_whole`: `facts` were recorded; else they are what the ledger row tells."""

    request_id: str
    at: datetime
    endpoint: str
    policy: str
    project: str | None
    facts: Facts
    usage: Usage
    cost_usd: Decimal | None
    is_whole: bool = True


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint's own numbers over the period. Milliseconds; None: not known."""

    requests: int = 0
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    tokens_per_second: float | None = None


class Break(msgspec.Struct, kw_only=True):
    """A feature that would not work at the target, and whose requests have it."""

    reason: str
    feature: str
    requests: int = 0
    teams: dict[str, int] = {}
    projects: dict[str, int] = {}
    models: dict[str, int] = {}
    examples: list[str] = []


class Seat(msgspec.Struct, kw_only=True):
    """One team's project with one model: whom to tell, and whom to watch."""

    team: str
    project: str | None
    model: str
    requests: int = 0
    movable: int = 0


class Costs(msgspec.Struct, kw_only=True):
    """USD over the requests that have a price at both (`requests`): what they cost, and the same tokens at the target.

    `unpriced_now`, `unpriced_then`: requests without a known price at the source, at the target.
    """

    requests: int = 0
    now_usd: Decimal = Decimal(0)
    then_usd: Decimal = Decimal(0)
    unpriced_now: int = 0
    unpriced_then: int = 0

    @property
    def ratio(self) -> float | None:
        return float(self.then_usd / self.now_usd) if self.now_usd else None


class EscapePlan(msgspec.Struct, kw_only=True):
    """`movable`: requests that the target may and can serve, `translated` of them from another protocol (by its name).

    `without_facts`: requests judged by their ledger row alone, which does not tell what features they used.
    """

    source: str
    target: str
    pairs: list[Pair]
    since: datetime
    until: datetime
    requests: int = 0
    movable: int = 0
    without_facts: int = 0
    translated: dict[str, int] = {}
    breaks: list[Break] = []
    costs: Costs = msgspec.field(default_factory=Costs)
    latency: dict[str, Latency] = {}
    seats: list[Seat] = []
    notes: list[str] = []

    @property
    def share(self) -> float | None:
        return self.movable / self.requests if self.requests else None


def find_pairs(configuration: Configuration, source: str, target: str) -> list[Pair]:
    """The endpoints meant by two ids, each of an endpoint or of a provider (then of all its endpoints).

    An endpoint goes to the target's endpoint of the same upstream model, or to the only one there is.
    Raises `InvalidRequest` for ids that do not exist, and where it is not clear which endpoint is meant.
    """
    sources, targets = _endpoints(configuration, source, "--from"), _endpoints(configuration, target, "--to")
    pairs = []
    for endpoint in sources:
        same = [other for other in targets if other.model == endpoint.model]
        chosen = targets if len(targets) == 1 else same
        if len(chosen) != 1:
            names = ", ".join(f"`{other.id}`" for other in targets)
            raise InvalidRequest(
                f"it is not clear which endpoint of `{target}` takes the traffic of `{endpoint.id}`\n"
                f"hint: name one of {names}",
                code="escape_refused",
                param="to",
            )
        if chosen[0].id == endpoint.id:
            raise InvalidRequest(
                f"`{endpoint.id}` would escape to itself\nhint: name another endpoint",
                code="escape_refused",
                param="to",
            )
        pairs.append(Pair(endpoint.id, chosen[0].id))
    return pairs


def _endpoints(configuration: Configuration, name: str, option: str) -> list[Endpoint]:
    if name in configuration.endpoints:
        return [configuration.endpoints[name]]
    found = [endpoint for endpoint in configuration.endpoints.values() if endpoint.provider.id == name]
    if not found:
        known = ", ".join(f"`{id}`" for id in [*configuration.endpoints][:20])
        raise InvalidRequest(
            f"`{option} {name[:80]}` is no endpoint and no provider with endpoints\nhint: endpoints are {known}",
            code="escape_refused",
            param=option.lstrip("-"),
        )
    return found


def make_escape_plan(
    configuration: Configuration,
    source: str,
    target: str,
    records: Iterable[Served],
    *,
    since: datetime,
    until: datetime,
    judge: Judge,
    price: Price,
    latency: Mapping[str, Latency],
) -> EscapePlan:
    """`records`: what the source's endpoints served in the period, in any order; read once."""
    pairs = find_pairs(configuration, source, target)
    to = {pair.source: configuration.endpoints[pair.target] for pair in pairs}
    plan = EscapePlan(source=source, target=target, pairs=pairs, since=since, until=until, latency=dict(latency))
    breaks: dict[Obstacle, Break] = {}
    seats: dict[tuple[str, str | None, str], Seat] = {}
    for record in records:
        endpoint = to.get(record.endpoint)
        if endpoint is None:
            continue
        origin = configuration.endpoints[record.endpoint]
        plan.requests += 1
        plan.without_facts += not record.is_whole
        seat = _seat(seats, record)
        seat.requests += 1
        _add_cost(plan.costs, record, endpoint, price)
        obstacle = _obstacle(record, origin, endpoint, judge)
        if obstacle is not None:
            _add_break(breaks, obstacle, record)
            continue
        plan.movable += 1
        seat.movable += 1
        wire = record.facts.wire
        if record.is_whole and wire not in endpoint.speaks and wire in CONVERSATION_WIRES:
            plan.translated[wire] = plan.translated.get(wire, 0) + 1
    plan.breaks = sorted(breaks.values(), key=lambda found: (-found.requests, found.reason, found.feature))
    plan.seats = sorted(seats.values(), key=_importance)[:MAX_SEATS]
    plan.notes = list(_notes(plan, configuration))
    return plan


def _obstacle(record: Served, source: Endpoint, target: Endpoint, judge: Judge) -> Obstacle | None:
    facts = record.facts
    # Routing sees one candidate here and would not mind: what the source's provider keeps, the target's has not.
    if facts.kept_state is not None and source.provider.id != target.provider.id:
        return "kept_state", f"state kept at the provider (`{facts.kept_state}`)"
    return judge(facts, record.policy, target)


def _seat(seats: dict[tuple[str, str | None, str], Seat], record: Served) -> Seat:
    facts = record.facts
    key = (facts.team, record.project, facts.model)
    if key not in seats and len(seats) >= MAX_GROUPS:
        key = (OTHER, None, OTHER)
    return seats.setdefault(key, Seat(team=key[0], project=key[1], model=key[2]))


def _importance(seat: Seat) -> tuple[int, int, str, str, str]:
    """Those that would lose most first, then those with most traffic."""
    return seat.movable - seat.requests, -seat.requests, seat.team, seat.project or "", seat.model


def _add_cost(costs: Costs, record: Served, target: Endpoint, price: Price) -> None:
    then = price(target, target.upstream_model(record.facts.model), record.at, record.usage)
    costs.unpriced_now += record.cost_usd is None
    costs.unpriced_then += then is None
    if record.cost_usd is not None and then is not None:
        costs.requests += 1
        costs.now_usd += record.cost_usd
        costs.then_usd += then


def _add_break(breaks: dict[Obstacle, Break], obstacle: Obstacle, record: Served) -> None:
    if obstacle not in breaks and len(breaks) >= MAX_GROUPS:
        obstacle = (OTHER, OTHER)
    found = breaks.setdefault(obstacle, Break(reason=obstacle[0], feature=obstacle[1]))
    found.requests += 1
    groups = (
        (found.teams, record.facts.team),
        (found.projects, record.project or "-"),
        (found.models, record.facts.model),
    )
    for counts, name in groups:
        if name not in counts and len(counts) >= MAX_GROUPS:
            name = OTHER
        counts[name] = counts.get(name, 0) + 1
    if len(found.examples) < EXAMPLES:
        found.examples.append(record.request_id)


def _notes(plan: EscapePlan, configuration: Configuration) -> Iterable[str]:
    """What the figures do not say by themselves."""
    if plan.without_facts:
        yield (
            f"{plan.without_facts} requests were judged by their ledger rows alone: "
            "whether they used tools, pictures or schemas is not known"
        )
    if plan.costs.unpriced_now or plan.costs.unpriced_then:
        yield (
            f"no price is known for {plan.costs.unpriced_now} requests at `{plan.source}` and for "
            f"{plan.costs.unpriced_then} at `{plan.target}`: they are not in the costs"
        )
    for pair in plan.pairs:
        source, target = configuration.endpoints[pair.source], configuration.endpoints[pair.target]
        if target.provider.missing is not None:
            yield f"`{target.id}` cannot be used yet: {target.provider.missing}"
        if target.model == AS_ASKED and source.provider.id != target.provider.id:
            yield f"`{target.id}` is asked for whatever model the application names: it must know these names"
        if not plan.latency.get(target.id, Latency()).requests:
            yield f"`{target.id}` has served nothing in this time: its latency is not known"
    if plan.translated:
        yield "translated requests keep their meaning; what the other protocol has no place for is left out"
    yield "costs assume the same number of tokens: another model counts and writes differently"
