"""What can never be met: mistakes that show only when policies, endpoints and teams are seen together.

Each would refuse every request that falls under it. Found here, it is a mistake of the configuration and not of the
first request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase

from gateway.config.document import KeyPath, quoted
from gateway.config.model import AS_ASKED, Allow, Configuration, Endpoint, Limits, Policy
from gateway.config.section import Report
from gateway.types import Rates

MAX_FALLBACKS = 8
"""Policies in a row after the first. Every decision looks at all of them."""

_ALL_REFUSED = "as it stands, every request would be refused"


def check_constraints(report: Report, configuration: Configuration) -> None:
    """Report what can never be met. What refers to an entry that is itself a mistake is passed over."""
    _check_fallbacks(report, configuration.policies)
    for policy in configuration.policies.values():
        _check_copies(report, policy, configuration.endpoints)
        pool = pool_of(policy, configuration)
        if pool is not None:
            _check_pool(report, policy, pool)
    written = report.document.data.get("endpoints")
    if isinstance(written, dict) and len(written) == len(configuration.endpoints):
        _check_teams(report, configuration)


def fallbacks_of(policy: Policy, policies: Mapping[str, Policy]) -> list[Policy] | None:
    """The policy and those it falls back to, in that order; None: they are too many, endless, or not all defined."""
    chain: dict[str, Policy] = {policy.id: policy}
    while policy.fallback is not None:
        if policy.fallback in chain or policy.fallback not in policies or len(chain) > MAX_FALLBACKS:
            return None
        policy = policies[policy.fallback]
        chain[policy.id] = policy
    return list(chain.values())


def pool_of(policy: Policy, configuration: Configuration) -> dict[str, Endpoint] | None:
    """The endpoints that may serve under a policy and its fallbacks, each of which demands what those before it do.

    By id, in the order in which they are tried. None: some of that is not defined.
    """
    chain = fallbacks_of(policy, configuration.policies)
    if chain is None:
        return None
    pool: dict[str, Endpoint] = {}
    for depth, member in enumerate(chain):
        if not member.endpoints:
            return None
        for id in member.endpoints:
            if id not in configuration.endpoints:
                return None
            endpoint = configuration.endpoints[id]
            if all(lacking(endpoint, demanding) is None for demanding in chain[: depth + 1]):
                pool.setdefault(id, endpoint)
    return pool


def lacking(endpoint: Endpoint, policy: Policy) -> str | None:
    """The requirement that an endpoint does not meet, as it is written in YAML; None: it meets all."""
    unmet = (key for key, allowed in policy.require.items() if not endpoint.meets(key, allowed))
    return next((_as_written(key, policy.require[key]) for key in unmet), None)


def accepts(endpoints: Iterable[Endpoint], data_classes: Iterable[str]) -> bool:
    """Whether one of the endpoints may be sent data of one of the classes."""
    wanted = frozenset(data_classes)
    return any(wanted & endpoint.data_classes for endpoint in endpoints)


def _as_written(key: str, allowed: tuple[str, ...]) -> str:
    return f"{key}: {allowed[0]}" if key in ("freshness", "zdr") else f"{key}: [{', '.join(allowed)}]"


def _check_fallbacks(report: Report, policies: Mapping[str, Policy]) -> None:
    following: dict[str, int] = {}  # how many fallbacks follow each policy; those of a circle count as none
    for first in policies:
        trail: dict[str, None] = {}
        id: str | None = first
        while id is not None and id in policies and id not in following and id not in trail:
            trail[id] = None
            id = policies[id].fallback
        if id is not None and id in trail:
            names = list(trail)
            _report_cycle(report, names[names.index(id) :])
            following |= dict.fromkeys(trail, 0)
            continue
        count = -1 if id is None else following.get(id, -1)
        for name in reversed(trail):
            count += 1
            following[name] = count
            if count == MAX_FALLBACKS + 1:
                message = f"more than {MAX_FALLBACKS} fallbacks follow policy {quoted(name)}"
                report.add(("policies", name, "fallback"), message, "join some of them to one policy")


def _report_cycle(report: Report, cycle: list[str]) -> None:
    path = ("policies", cycle[0], "fallback")
    if len(cycle) == 1:
        message = f"policy {quoted(cycle[0])} falls back to itself"
        report.add(path, message, "name another policy, or remove `fallback`")
    else:
        names = [quoted(id) for id in cycle]
        shown = " -> ".join([*names[:12], *(["..."] if len(names) > 12 else []), names[0]])
        report.add(path, f"fallbacks go in a circle: {shown}", "remove the `fallback` of one of them")


def _check_copies(report: Report, policy: Policy, endpoints: Mapping[str, Endpoint]) -> None:
    """Canaries and the shadow must meet what the policy requires, or they would never be sent anything."""
    written = report.document.data["policies"][policy.id]
    copies: list[tuple[KeyPath, str, str]] = []
    for canary in policy.canaries:
        listed = written["canary"] if isinstance(written["canary"], list) else []
        names = [item.get("endpoint") if isinstance(item, dict) else None for item in listed]
        place = (names.index(canary.endpoint),) if listed else ()
        copies.append((("policies", policy.id, "canary", *place, "endpoint"), "canary", canary.endpoint))
    if policy.shadow is not None:
        copies.append((("policies", policy.id, "shadow", "endpoint"), "shadow", policy.shadow.endpoint))
    for path, kind, id in copies:
        lacks = lacking(endpoints[id], policy) if id in endpoints else None
        if lacks is not None:
            message = f"{kind} {quoted(id)} does not have {quoted(lacks)}, which policy {quoted(policy.id)} requires"
            report.add(path, message, f"name an endpoint that has it, or remove the {kind}")


def _check_pool(report: Report, policy: Policy, pool: Mapping[str, Endpoint]) -> None:
    whose = f"policy {quoted(policy.id)}{' or its fallbacks' if policy.fallback else ''}"
    if not pool:
        wanted = ", ".join(_as_written(key, allowed) for key, allowed in policy.require.items())
        hint = f"add an endpoint that has it: {_ALL_REFUSED}"
        report.add(("policies", policy.id, "require"), f"no endpoint of {whose} has {quoted(wanted)}", hint)
        return
    rates = [endpoint.rates for endpoint in pool.values()]
    priced = [each for each in rates if each is not None]
    if len(priced) < len(rates):  # the catalogue's prices change without the configuration
        return
    limits = policy.limits
    hint = f"raise it, or add a cheaper endpoint: {_ALL_REFUSED}"
    if not any(_within_prices(each, limits) for each in priced):
        message = f"every endpoint of {whose} costs more than `max_price`"
        report.add(("policies", policy.id, "limits", "max_price"), message, hint)
    if limits.max_cost_usd is not None and min(map(_least_cost, priced)) > limits.max_cost_usd:
        message = f"at every endpoint of {whose} the smallest request costs more than `max_cost_usd`"
        report.add(("policies", policy.id, "limits", "max_cost_usd"), message, hint)


def _within_prices(rates: Rates, limits: Limits) -> bool:
    most_input, most_output = limits.max_price
    return (most_input is None or rates.input <= most_input) and (most_output is None or rates.output <= most_output)


def _least_cost(rates: Rates) -> Decimal:
    """USD for one input token at the lowest of its prices: no request costs less."""
    token = rates.input if rates.cache_read is None else min(rates.input, rates.cache_read)
    return (rates.request or Decimal(0)) + token / 10**6


def _check_teams(report: Report, configuration: Configuration) -> None:
    endpoints = configuration.endpoints.values()
    leaves_some: dict[Allow, bool] = {}  # many teams may share one list
    for team in configuration.teams.values():
        if team.data_class is not None and not accepts(endpoints, (team.data_class,)):
            message = f"no endpoint accepts data class {quoted(team.data_class)}"
            hint = f"name it in the `data_classes` of an endpoint: {_ALL_REFUSED}"
            report.add(("teams", team.id, "data_class"), message, hint)
        if team.allow not in leaves_some:
            leaves_some[team.allow] = any(_may_use(team.allow, endpoint) for endpoint in endpoints)
        path = ("teams", team.id, "allow")
        if endpoints and not leaves_some[team.allow] and report.is_sound(path):
            message = f"there is no endpoint that team {quoted(team.id)} may use"
            report.add(path, message, f"allow at least one: {_ALL_REFUSED}")


def _may_use(allow: Allow, endpoint: Endpoint) -> bool:
    has = ((allow.endpoints, endpoint.id), (allow.providers, endpoint.provider.id), (allow.regions, endpoint.region))
    if not all(not globs or (value is not None and _matches(globs, value)) for globs, value in has):
        return False
    return not allow.models or endpoint.model == AS_ASKED or _matches(allow.models, endpoint.model)


def _matches(globs: tuple[str, ...], value: str) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs)
