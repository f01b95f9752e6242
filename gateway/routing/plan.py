"""Policy + facts + health -> an ordered plan, with what was dropped and why. Pure: no clock, no I/O, no state.

That is what makes `hatchway explain` exact: it runs this code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from random import Random

import msgspec

from gateway.config.model import Configuration, Endpoint, Match, Policy, Route
from gateway.routing.facts import Facts
from gateway.routing.select import SELECTIONS
from gateway.types import CONVERSATION_WIRES, Candidate, EndpointHealth, Shift

Quote = Callable[[Endpoint, Facts], Decimal | None]
"""Expected cost of the request at an endpoint in USD; None when no price is known."""

UNKNOWN_HEALTH = EndpointHealth()


REASONS = (
    "missing_key",
    "require",  # the policy demands an attribute that it does not have
    "data_class",
    "allow",  # not on the team's list
    "wish",  # the client excluded it
    "protocol",
    "capability",
    "context_window",
    "kept_state",
    "max_cost",
    "max_price",
    "max_ttft",
    "min_throughput",
    "budget",
)


class Dropped(msgspec.Struct, frozen=True):
    """An endpoint that may not serve this request. `reason` is for machines, `detail` for people."""

    endpoint: str
    reason: str  # one of REASONS
    detail: str


class Plan(msgspec.Struct, frozen=True):
    """`candidates` in the order in which they are tried; ejected endpoints come last, as the last resort."""

    route: Route
    policy: Policy
    policy_version: str
    candidates: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...]
    input_tokens: int = 0  # expected, all choices' output likewise
    output_tokens: int = 0
    shadows: tuple[str, ...] = ()  # endpoints that get a copy nobody sees the answer of
    shift: Shift | None = None  # the escape that this request takes part in
    outlook_version: str = ""


def match_route(configuration: Configuration, facts: Facts) -> Route | None:
    """The first route whose conditions all hold."""
    return next((route for route in configuration.routes if _matches(route.match, facts)), None)


def make_plan(
    configuration: Configuration,
    route: Route,
    facts: Facts,
    *,
    health: Mapping[str, EndpointHealth],
    quote: Quote,
    now: float,
    rng: Random,
) -> Plan:
    """`now`: the clock that `health` was recorded with, in seconds."""
    policy = configuration.policies[route.policy]
    pool: list[Candidate] = []
    dropped: list[Dropped] = []
    for endpoint_id in policy.endpoints:
        endpoint = configuration.endpoints[endpoint_id]
        state = health.get(endpoint_id, UNKNOWN_HEALTH)
        expected_cost = quote(endpoint, facts)
        why = _unsuitable(endpoint, policy, facts) or _over_limits(policy, expected_cost, state)
        if why is None:
            pool.append(Candidate(endpoint_id, expected_cost, state.ttft, ejected=state.ejected_until > now))
        else:
            dropped.append(Dropped(endpoint_id, *why))
    if facts.kept_state is not None:
        pool, split = _of_one_provider(configuration, pool, facts.kept_state)
        dropped += split
    ordered = SELECTIONS[policy.select](pool, policy, rng)
    ordered.sort(key=lambda candidate: candidate.ejected)  # stable: keeps the policy's order within both groups
    return Plan(route, policy, configuration.version, tuple(ordered), tuple(dropped))


def _of_one_provider(
    configuration: Configuration, pool: list[Candidate], kept_state: str
) -> tuple[list[Candidate], list[Dropped]]:
    """State that a provider keeps is of no use to another one, and nobody here knows which one keeps it."""
    providers = {configuration.endpoints[candidate.endpoint].provider.id for candidate in pool}
    if len(providers) <= 1:
        return pool, []
    detail = f"`{kept_state}` is known to one provider only, and {len(providers)} could be asked"
    return [], [Dropped(candidate.endpoint, "kept_state", detail) for candidate in pool]


def _matches(match: Match, facts: Facts) -> bool:
    return (
        _any_glob(match.model, facts.model)
        and (not match.domain or facts.domain in match.domain)
        and _any_glob(match.team, facts.team)
        and (not match.key or facts.key_id in match.key)
        and all(
            (value := facts.headers.get(name)) is not None and fnmatchcase(value, glob)
            for name, glob in match.header.items()
        )
        and (match.stream is None or match.stream == facts.stream)
        and (match.max_input_tokens is None or facts.input_tokens <= match.max_input_tokens)
    )


def _any_glob(globs: tuple[str, ...], value: str) -> bool:
    return not globs or any(glob in ("*", value) or fnmatchcase(value, glob) for glob in globs)


def _unsuitable(endpoint: Endpoint, policy: Policy, facts: Facts) -> tuple[str, str] | None:
    if endpoint.provider.missing is not None:
        return "missing_key", f"provider `{endpoint.provider.id}`: {endpoint.provider.missing}"
    for attribute, allowed in policy.require.items():
        value = endpoint.provider.id if attribute == "provider" else getattr(endpoint, attribute)
        if value not in allowed:
            return (
                "require",
                f"{attribute} is {value or 'not set'}, policy `{policy.id}` requires {' or '.join(allowed)}",
            )
    if facts.native_feature is not None and facts.wire not in endpoint.speaks:
        return "protocol", f"the request has {facts.native_feature}, which only the `{facts.wire}` protocol has"
    if not _serves(endpoint, facts):
        return "protocol", f"it cannot serve `{facts.surface}`"
    lacking = facts.needs - endpoint.capabilities
    if lacking:
        return "capability", f"cannot do {', '.join(sorted(lacking))}"
    if endpoint.context_window is not None and facts.input_tokens > endpoint.context_window:
        return "context_window", f"about {facts.input_tokens} input tokens, window is {endpoint.context_window}"
    return None


def _serves(endpoint: Endpoint, facts: Facts) -> bool:
    """Whether it speaks the client's protocol, or one that this surface's requests can be translated into."""
    if facts.wire in endpoint.speaks or facts.surface == "count_tokens":
        return True
    return facts.surface == "embeddings" or not CONVERSATION_WIRES.isdisjoint(endpoint.speaks)


def _over_limits(policy: Policy, expected_cost: Decimal | None, health: EndpointHealth) -> tuple[str, str] | None:
    ceiling = policy.limits.max_cost_usd
    if ceiling is not None and expected_cost is None:
        return "max_cost", "its price is unknown, and the policy has a price ceiling"
    if ceiling is not None and expected_cost is not None and expected_cost > ceiling:
        return "max_cost", f"expected cost {expected_cost:.6f} USD is over {ceiling} USD"
    slowest = policy.limits.max_ttft
    if slowest is not None and health.ttft is not None and health.ttft > slowest:
        return "max_ttft", f"expected TTFT {health.ttft:.2f} s is over {slowest:g} s"
    return None
