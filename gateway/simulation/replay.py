"""Traffic through one configuration: the planner decides, the world answers, and the answers teach the next decisions.

Time is the traffic's own. What an answer shows is known when it has ended, as it is live: until then the endpoint has
one more request in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from heapq import heappop, heappush
from random import Random

import msgspec
from msgspec.structs import replace

from gateway.accounting.prices import PriceBook, Prices, total_input
from gateway.config.model import Configuration, Endpoint
from gateway.errors import GatewayError
from gateway.routing.facts import Facts
from gateway.routing.health import HealthBook
from gateway.routing.plan import Plan
from gateway.routing.planner import Planner
from gateway.routing.refusal import explain_no_candidates
from gateway.routing.statistics import Observation
from gateway.simulation.traffic import Arrival, total_output
from gateway.simulation.world import Answer, World
from gateway.store.decisions import RecordedAttempt

NO_ROUTE = "model_not_found"
NO_COST = Decimal(0)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request. `endpoint`: who served it; None: nobody. Seconds and USD, None: unknown.

    `refusal`: the code of the error it was refused with before anything was sent. `dropped`: endpoints that were not
    allowed to serve it, with the reason.
    """

    route: str | None
    policy: str | None
    endpoint: str | None
    cost: Decimal | None = NO_COST
    ttft: float | None = None
    refusal: str | None = None
    dropped: Mapping[str, str] = {}


class _End(msgspec.Struct, frozen=True):
    endpoint: str
    route: str
    facts: Facts
    answer: Answer


class Replay:
    """One configuration under one seed. Requests have to come in the order of time.

    Providers whose key is not set here count as usable: it is the policy that is asked about (`without_keys` names
    them).
    """

    def __init__(self, configuration: Configuration, prices: Prices | PriceBook, world: World, seed: int = 0) -> None:
        self.without_keys = sorted(
            {e.provider.id for e in configuration.endpoints.values() if e.provider.missing is not None}
        )
        self.configuration = _with_keys(configuration)
        self._planner = Planner(self.configuration, prices.quote)
        self._book = HealthBook(configuration.learning, process="simulation")
        self._world = world
        self._rng = Random(seed)
        self._ends: list[tuple[float, int, _End]] = []
        self._sent = 0

    @property
    def header_names(self) -> frozenset[str]:
        """Headers that routes look at: they are not recorded, so such routes never match here."""
        return self._planner.header_names

    def take(self, arrival: Arrival) -> Outcome:
        """Decides about one request and sends it."""
        now = arrival.at
        self._settle(now)
        facts = self._facts(arrival.facts)
        route = self._planner.match(facts)
        if route is None:
            return Outcome(route=None, policy=None, endpoint=None, refusal=NO_ROUTE)
        if arrival.is_counted and self._planner.needs_count(route, facts):
            facts = replace(facts, counted_tokens=arrival.input_tokens)
        plan = self._planner.plan(route, facts, outlook=self._book.outlook(now, now), now=now, rng=self._rng)
        return self._follow(plan, arrival)

    def _follow(self, plan: Plan, arrival: Arrival) -> Outcome:
        decided = Outcome(
            route=plan.route.name,
            policy=plan.policy.id,
            endpoint=None,
            dropped={dropped.endpoint: dropped.reason for dropped in plan.dropped},
        )
        if not plan.candidates:
            return replace(decided, refusal=_code(explain_no_candidates(plan)))
        if arrival.turned_away is not None:  # load is not simulated: it is turned away again
            return replace(decided, refusal=arrival.turned_away)
        if self._went_so(plan, arrival):
            return self._as_recorded(decided, arrival)
        cost: Decimal | None = NO_COST
        waited = 0.0
        for candidate in plan.candidates:
            endpoint = self.configuration.endpoints[candidate.endpoint]
            answers = list(self._answers(arrival, endpoint))
            for answer in answers:
                self._send(decided, arrival, endpoint, answer, arrival.at + waited)
                cost = None if cost is None or answer.cost is None else cost + answer.cost
                if answer.ok:
                    ttft = None if answer.ttft is None else waited + answer.ttft
                    return replace(decided, endpoint=endpoint.id, cost=cost, ttft=ttft)
                waited += answer.duration
            if not answers[-1].counts or _gave_up_after(arrival, endpoint.id):
                break
        return replace(decided, cost=cost)

    def _answers(self, arrival: Arrival, endpoint: Endpoint) -> Iterator[Answer]:
        found = False
        for attempt in arrival.attempts:
            if _is_of(attempt, endpoint, arrival):
                found = True
                yield self._world.recorded(arrival, endpoint, attempt)
        if not found:
            yield self._world.answer(arrival, endpoint)

    def _went_so(self, plan: Plan, arrival: Arrival) -> bool:
        """Whether what was recorded is what this plan leads to: the same first endpoint, the others in its order."""
        endpoints = [candidate.endpoint for candidate in plan.candidates]
        tried = list(dict.fromkeys(attempt.endpoint for attempt in arrival.attempts))
        if not tried or tried[0] != endpoints[0]:
            return False
        places = [endpoints.index(endpoint) for endpoint in tried if endpoint in endpoints]
        return (
            len(places) == len(tried)
            and places == sorted(places)
            and all(_is_of(one, self.configuration.endpoints[one.endpoint], arrival) for one in arrival.attempts)
        )

    def _as_recorded(self, decided: Outcome, arrival: Arrival) -> Outcome:
        cost: Decimal | None = NO_COST
        for attempt in arrival.attempts:
            endpoint = self.configuration.endpoints[attempt.endpoint]
            answer = self._world.recorded(arrival, endpoint, attempt)
            since = (attempt.started_at - arrival.attempts[0].started_at).total_seconds()
            self._send(decided, arrival, endpoint, answer, arrival.at + since)
            cost = None if cost is None or answer.cost is None else cost + answer.cost
        served = arrival.served
        return replace(
            decided, endpoint=None if served is None else served.endpoint, cost=cost, ttft=shown_ttft(arrival)
        )

    def _send(self, decided: Outcome, arrival: Arrival, endpoint: Endpoint, answer: Answer, at: float) -> None:
        assert decided.route is not None
        self._book.start(endpoint.id)
        self._sent += 1
        end = _End(endpoint.id, decided.route, arrival.facts, answer)
        heappush(self._ends, (at + answer.duration, self._sent, end))

    def _settle(self, now: float) -> None:
        """Everything that has ended by now is learned from."""
        while self._ends and self._ends[0][0] <= now:
            at, _, end = heappop(self._ends)
            self._book.finish(end.endpoint)
            answer = end.answer
            if not answer.ok:
                if answer.counts:
                    self._book.fail(end.endpoint, at, at)
            elif answer.ttft is not None:
                self._book.succeed(end.endpoint, at, _observe(end, at, answer.ttft))

    def _facts(self, facts: Facts) -> Facts:
        """What the configuration itself says of the team is taken from this one."""
        team = self.configuration.teams.get(facts.team)
        has_budget = team is not None and team.budget is not None and team.budget.hard
        changes: dict[str, object] = {}
        if facts.budget_left is not None and not has_budget:
            changes["budget_left"] = None
        if facts.data_class is None and team is not None and team.data_class is not None:
            changes["data_class"] = team.data_class
        return replace(facts, **changes) if changes else facts


def recorded_outcome(arrival: Arrival) -> Outcome:
    """What really became of it. A request of which an attempt has no known cost has none itself."""
    decision = arrival.decision
    assert decision is not None
    costs = [attempt.cost_usd for attempt in arrival.attempts]
    known = [cost for cost in costs if cost is not None]
    served = arrival.served
    return Outcome(
        route=decision.route,
        policy=decision.policy,
        endpoint=None if served is None else served.endpoint,
        cost=sum(known, NO_COST) if len(known) == len(costs) else None,
        ttft=shown_ttft(arrival),
        refusal=decision.refusal,
        dropped={dropped.endpoint: dropped.reason for dropped in decision.dropped},
    )


def shown_ttft(arrival: Arrival) -> float | None:
    """Seconds until the client saw content, failed attempts before it included."""
    served = arrival.served
    if served is None or served.ttft_ms is None:
        return None
    return (served.started_at - arrival.attempts[0].started_at).total_seconds() + served.ttft_ms / 1000


def _observe(end: _End, at: float, ttft: float) -> Observation:
    usage = end.answer.usage
    return Observation(
        wall=at,
        route=end.route,
        ttft=ttft,
        seconds_per_token=end.answer.seconds_per_token,
        output_tokens=total_output(usage),
        choices=end.facts.choices,
        input_tokens=total_input(usage),
        cached_tokens=usage.cache_read_tokens,
        rough_input_tokens=end.facts.input_tokens,
        is_reported=end.answer.is_reported,
    )


def _is_of(attempt: RecordedAttempt, endpoint: Endpoint, arrival: Arrival) -> bool:
    """Whether it was made at this endpoint, and the endpoint still has that model."""
    return attempt.endpoint == endpoint.id and attempt.upstream_model == endpoint.upstream_model(arrival.facts.model)


def _gave_up_after(arrival: Arrival, endpoint: str) -> bool:
    """Whether nothing more was tried after this endpoint although there was something: the failure was of a kind that
    no other endpoint mends, or time was up."""
    if arrival.decision is None or not arrival.attempts or arrival.served is not None:
        return False
    tried = {attempt.endpoint for attempt in arrival.attempts}
    return arrival.attempts[-1].endpoint == endpoint and any(
        candidate.endpoint not in tried for candidate in arrival.decision.candidates
    )


def _with_keys(configuration: Configuration) -> Configuration:
    endpoints = {
        id: endpoint if endpoint.provider.missing is None else _with_key(endpoint)
        for id, endpoint in configuration.endpoints.items()
    }
    return replace(configuration, endpoints=endpoints)


def _with_key(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, provider=replace(endpoint.provider, missing=None))


def _code(error: GatewayError) -> str:
    return error.code or "refused"
