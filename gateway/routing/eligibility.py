"""Constraints that hold for all requests of a kind: policy, data class, team, protocol and capabilities. Pure.

They fail closed: what is not known of an endpoint is not what was required of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.config.model import Allow, Endpoint, Policy
from gateway.routing.facts import Facts
from gateway.routing.matching import compile_globs
from gateway.types import CONVERSATION_WIRES

Why = tuple[str, str]
"""A reason, one of `plan.REASONS`, and its detail for people."""


def why_not(endpoint: Endpoint, policies: Sequence[Policy], allow: Allow | None, facts: Facts) -> Why | None:
    """`policies`: all that must agree. None: nothing speaks against it that could be known before the request."""
    if endpoint.provider.missing is not None:
        return "missing_key", endpoint.provider.missing
    for policy in policies:
        for attribute, allowed in policy.require.items():
            if not endpoint.meets(attribute, allowed):
                return "require", _not_met(endpoint, policy, attribute, allowed)
    for data_class in (facts.data_class, facts.team_class):
        if data_class is not None and data_class not in endpoint.data_classes:
            return "data_class", f"it may not be sent data of the class `{data_class}`"
    if allow is not None and (what := _not_allowed(endpoint, allow, facts.model)) is not None:
        return "allow", f"team `{facts.team}` may not use the {what}"
    if facts.native_feature is not None and facts.wire not in endpoint.speaks:
        return "protocol", f"the request has {facts.native_feature}, which only the `{facts.wire}` protocol has"
    if not _serves(endpoint, facts):
        return "protocol", f"it cannot serve `{facts.surface}`"
    lacking = facts.needs - endpoint.capabilities
    if lacking:
        return "capability", f"cannot do {', '.join(sorted(lacking))}"
    return None


def _not_met(endpoint: Endpoint, policy: Policy, attribute: str, allowed: Sequence[str]) -> str:
    if attribute == "provider":
        value: object = endpoint.provider.id
    elif attribute == "zdr":
        value = "not kept" if endpoint.zdr else "not promised"
    else:
        value = getattr(endpoint, attribute) or "not set"
    wanted = " or ".join(allowed) + (" or fresher" if attribute == "freshness" else "")
    return f"{attribute} is {value}, policy `{policy.id}` requires {wanted}"


def _not_allowed(endpoint: Endpoint, allow: Allow, asked: str) -> str | None:
    """What of it is not on the team's list; an empty list has everything."""
    for globs, what, value in (
        (allow.endpoints, "endpoint", endpoint.id),
        (allow.providers, "provider", endpoint.provider.id),
        (allow.regions, "region", endpoint.region),
        (allow.models, "model", endpoint.upstream_model(asked)),
    ):
        if globs and (value is None or not compile_globs(globs)(value)):
            return f"{what} `{value}`" if value is not None else f"{what}, which is not set"
    return None


def _serves(endpoint: Endpoint, facts: Facts) -> bool:
    """Whether it speaks the client's protocol, or one that this surface's requests can be translated into."""
    if facts.wire in endpoint.speaks or facts.surface == "count_tokens":
        return True
    return facts.surface == "embeddings" or not CONVERSATION_WIRES.isdisjoint(endpoint.speaks)
