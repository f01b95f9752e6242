"""Route, facts and what was learned -> an ordered plan, with what was dropped and why.

Pure: no clock, no I/O, and nothing that is kept between calls changes a plan: the same arguments make the same plan.
That is what makes `hatchway explain` and `hatchway simulate` exact: they run this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from random import Random

import msgspec

from gateway.config.model import Allow, Configuration, Policy, Route
from gateway.routing.eligibility import Why, why_not
from gateway.routing.facts import Facts
from gateway.routing.matching import RouteTable
from gateway.routing.placement import Placement, seed_of
from gateway.routing.plan import Dropped, Plan
from gateway.routing.prospects import PriceTable, Quote, Target, Weighing
from gateway.routing.select import SELECTIONS, Asked, Prospect, Selection, by_cost, by_latency, by_throughput
from gateway.routing.wishes import Sort, why_unwished
from gateway.types import Candidate, Outlook, Shift

_MAX_KINDS = 4096
"""Kinds of requests whose eligible endpoints are remembered; clients can make up new ones."""
_COUNT_WITHIN = 0.4
"""By which a rough count of input tokens may be wrong, as a share of it."""
_by_return = attrgetter("tier", "score")
_SORTS: dict[Sort, Selection] = {"price": by_cost, "throughput": by_throughput, "latency": by_latency}


class _Chain(msgspec.Struct, frozen=True):
    """A policy and those it falls back to, in order, with their endpoints; each endpoint is there once.

    `places`: the policy itself may put one endpoint before its selection, or have it get a copy.
    """

    policies: tuple[Policy, ...]
    targets: tuple[Target, ...]
    windows: tuple[int, ...]  # context windows that are known, ascending
    needs_costs: bool
    places: bool


class _Kind(msgspec.Struct):
    """Requests that the same endpoints may serve. `others`: endpoints that are not in the chain, as they were asked
    for; there are no more of them than endpoints."""

    allow: Allow | None
    targets: tuple[Target, ...]
    dropped: tuple[Dropped, ...]
    others: dict[str, Target | Dropped] = {}


class Planner:
    """One for each configuration. `quote`: as `Prices.quote`.

    What is remembered between calls is worked out from the configuration alone, or from prices and windows of the
    minute that the facts name.
    """

    def __init__(self, configuration: Configuration, quote: Quote) -> None:
        self._configuration = configuration
        self._teams = configuration.teams
        self._routes = RouteTable(configuration.routes)
        self._prices = PriceTable(quote, [glob for contract in configuration.contracts for glob in contract.teams])
        self._seeds = {id: seed_of(id) for id in configuration.endpoints}
        self._chains = {id: self._chain(policy) for id, policy in configuration.policies.items()}
        self._names = frozenset(name.lower() for name in (*configuration.endpoints, *configuration.providers))
        self._kinds: dict[tuple[object, ...], _Kind] = {}

    @property
    def header_names(self) -> frozenset[str]:
        """Headers that some route looks at, in lower case."""
        return self._routes.header_names

    @property
    def reads_prefix(self) -> bool:
        """Whether some policy needs `facts.prefix`."""
        return any(policy.sticky == "prefix" for policy in self._configuration.policies.values())

    def match(self, facts: Facts) -> Route | None:
        """The first route whose conditions all hold."""
        return self._routes.find(facts)

    def needs_count(self, route: Route, facts: Facts) -> bool:
        """Whether a rough count of the input does not tell if it fits into some context window, and an exact one is
        worth its time (`Facts.counted_tokens`)."""
        windows = self._chains[route.policy].windows
        if not windows or facts.counted_tokens is not None:
            return False
        output = max(0, facts.output_limit or 0)
        most = facts.input_tokens * (1 + _COUNT_WITHIN) + output
        if most < windows[0]:
            return False  # as nearly always: it fits everywhere
        least = facts.input_tokens * (1 - _COUNT_WITHIN) + output
        return any(least <= window <= most for window in windows)

    def plan(
        self,
        route: Route,
        facts: Facts,
        *,
        outlook: Outlook,
        now: float,
        rng: Random,
        shifts: Sequence[Shift] = (),
        with_costs: bool = False,
    ) -> Plan:
        """The plan, which may have no candidate. `now`: the clock that `outlook` was recorded with, in seconds.

        `with_costs`: work out expected costs also where the policy decides without them, for whoever reads the plan.
        """
        chain = self._chains[route.policy]
        kind = self._kind(route.policy, chain, facts)
        wishes, policy = facts.wishes, chain.policies[0]
        prices = self._prices if with_costs or chain.needs_costs or _depends_on_price(facts) else None
        weighing = Weighing(facts, outlook, route.name, prices, now, rng)
        targets, dropped, provider = kind.targets, kind.dropped, None
        if wishes is not None or facts.kept_state is not None:
            targets, dropped, provider = self._narrow(kind, facts)
        healthy, ejected, refused = weighing.weigh(targets)
        if len(chain.policies) > 1:
            for prospect in (*healthy, *ejected):
                if prospect.tier:
                    prospect.placed_by = "fallback"
        if len(ejected) > 1:
            ejected.sort(key=_by_return)
        ordered = healthy
        if len(healthy) > 1 or len(chain.policies) > 1:
            ordered = _order(healthy, chain, facts, weighing.waited, rng)
        shadows: tuple[str, ...] = ()
        shift: Shift | None = None
        if refused:
            dropped += tuple(refused)
        if shifts or chain.places or wishes is not None:
            placement = Placement(
                policy,
                facts,
                ordered,
                ejected,
                rng,
                endpoints=self._configuration.endpoints,
                judge=lambda id: self._judge(id, chain, kind, facts, provider, weighing),
            )
            placement.place(shifts)
            ordered, shadows, shift = placement.ordered, placement.shadows, placement.shift
            if placement.judged:
                dropped = _told(dropped, placement)
        elif ejected:
            ordered += ejected
        return Plan(
            route,
            policy,
            self._configuration.version,
            tuple(
                [
                    Candidate(
                        one.endpoint,
                        one.cost,
                        one.ttft,
                        one.ejected,
                        one.seconds_per_token,
                        one.placed_by,
                    )
                    for one in ordered
                ]
            ),
            dropped,
            weighing.input,
            round(weighing.output),
            shadows,
            shift,
            outlook.version,
        )

    def _chain(self, first: Policy) -> _Chain:
        policies: list[Policy] = []
        targets: dict[str, Target] = {}
        policy: Policy | None = first
        while policy is not None and policy not in policies:  # a circle is a mistake that the compiler reports
            policies.append(policy)
            for id in policy.endpoints:
                if id not in targets:
                    targets[id] = self._target(id, len(policies) - 1, tuple(policies))
            policy = None if policy.fallback is None else self._configuration.policies[policy.fallback]
        windows = {target.endpoint.context_window for target in targets.values()}
        return _Chain(
            policies=tuple(policies),
            targets=tuple(targets.values()),
            windows=tuple(sorted(window for window in windows if window is not None)),
            needs_costs=any(policy.needs_costs or policy.hedge is not None for policy in policies)
            or any(target.bounds.on_price for target in targets.values()),
            places=first.sticky != "none" or bool(first.canaries) or first.shadow is not None,
        )

    def _target(self, id: str, tier: int, policies: tuple[Policy, ...]) -> Target:
        return Target.of(self._configuration.endpoints[id], tier, policies, self._seeds[id])

    def _kind(self, policy: str, chain: _Chain, facts: Facts) -> _Kind:
        team = self._teams.get(facts.team)
        key = (
            policy,
            facts.wire,
            facts.surface,
            facts.needs,
            facts.data_class,
            facts.team_class,
            facts.team,
            facts.native_feature,
            None if team is None or not team.allow.models else facts.model,
        )
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = _sort_out(chain, None if team is None else team.allow, facts)
        return kind

    def _narrow(self, kind: _Kind, facts: Facts) -> tuple[tuple[Target, ...], tuple[Dropped, ...], str | None]:
        """Less those that the client's wishes exclude, and those of other providers than the one that keeps its state:
        that provider's id is the last value."""
        dropped = list(kind.dropped)
        targets = kind.targets
        if facts.wishes is not None:
            allowed = []
            for target in targets:
                why = self._unwished(target, facts)
                if why is None:
                    allowed.append(target)
                else:
                    dropped.append(Dropped(target.id, *why))
            targets = tuple(allowed)
        if facts.kept_state is None or not targets:
            return targets, tuple(dropped), None
        providers = {target.endpoint.provider.id for target in targets if target.tier == targets[0].tier}
        strangers: tuple[Target, ...]
        if len(providers) == 1:
            (provider,) = providers
            strangers = tuple(target for target in targets if target.endpoint.provider.id != provider)
        else:
            # Nobody here knows which one keeps it.
            provider, strangers = None, targets
        detail = f"`{facts.kept_state}` is known to one provider only, and {len(providers)} could be asked"
        if provider is not None:
            detail = f"`{facts.kept_state}` is known to one provider only, and `{provider}` is asked"
        dropped += [Dropped(target.id, "kept_state", detail) for target in strangers]
        return tuple(target for target in targets if target not in strangers), tuple(dropped), provider

    def _unwished(self, target: Target, facts: Facts) -> Why | None:
        wishes = facts.wishes
        if wishes is None:
            return None
        detail = why_unwished(wishes, target.endpoint, wire=facts.wire, parameters=facts.parameters, known=self._names)
        return None if detail is None else ("wish", detail)

    def _judge(
        self, id: str, chain: _Chain, kind: _Kind, facts: Facts, provider: str | None, weighing: Weighing
    ) -> Prospect | Dropped:
        """An endpoint that the policy's list need not have, by all of the policy's constraints."""
        other = kind.others.get(id)
        if other is None:
            target = self._target(id, 0, chain.policies[:1])
            why = why_not(target.endpoint, target.policies, kind.allow, facts)
            other = kind.others[id] = target if why is None else Dropped(id, *why)
        if isinstance(other, Dropped):
            return other
        if (unwished := self._unwished(other, facts)) is not None:
            return Dropped(id, *unwished)
        if facts.kept_state is not None and other.endpoint.provider.id != provider:
            return Dropped(id, "kept_state", f"`{facts.kept_state}` is known to another provider")
        healthy, ejected, dropped = weighing.weigh((other,))
        return dropped[0] if dropped else (healthy or ejected)[0]


def _sort_out(chain: _Chain, allow: Allow | None, facts: Facts) -> _Kind:
    targets, dropped = [], []
    for target in chain.targets:
        why = why_not(target.endpoint, target.policies, allow, facts)
        if why is None:
            targets.append(target)
        else:
            dropped.append(Dropped(target.id, *why))
    return _Kind(allow, tuple(targets), tuple(dropped))


def _order(pool: list[Prospect], chain: _Chain, facts: Facts, waited: float, rng: Random) -> list[Prospect]:
    """Each policy's endpoints by its own selection, or as the client wishes; those of fallbacks after them."""
    wished = None if facts.wishes is None or facts.wishes.sort is None else _SORTS[facts.wishes.sort]
    if len(chain.policies) == 1:
        (policy,) = chain.policies
        (wished or SELECTIONS[policy.select])(pool, Asked(policy, waited, rng))
        return pool
    ordered: list[Prospect] = []
    for tier, policy in enumerate(chain.policies):
        if part := [prospect for prospect in pool if prospect.tier == tier]:
            (wished or SELECTIONS[policy.select])(part, Asked(policy, waited, rng))
            ordered += part
    return ordered


def _told(dropped: Sequence[Dropped], placement: Placement) -> tuple[Dropped, ...]:
    """With those that were to be put first; without those that were, though their place in the chain is barred."""
    told = {one.endpoint: one for one in placement.judged.values() if isinstance(one, Dropped)}
    told |= {one.endpoint: one for one in dropped}
    candidates = {one.endpoint for one in placement.ordered}
    return tuple(one for id, one in told.items() if id not in candidates)


def _depends_on_price(facts: Facts) -> bool:
    wishes = facts.wishes
    return facts.budget_left is not None or (
        wishes is not None and (wishes.sort == "price" or wishes.has_price_ceiling)
    )
