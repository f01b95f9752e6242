"""A decision as data: on the command line, in JSON, in the admin API, in a response header, and kept for each request.

What is kept holds all that routing read of the request, so that the same request can be decided again under another
configuration. It has no word of the prompt, and no header: those may be secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.config.model import Endpoint
from gateway.routing.facts import Facts
from gateway.routing.plan import Dropped, Plan
from gateway.types import Candidate

MAX_DECISION = 64 * 1024
"""Bytes of one decision."""
MAX_HEADER = 4096
"""Bytes of `x-hatchway-decision`."""
_CUTS = ((None, None), (256, 64), (64, 16), (32, 4))
"""Characters of a text and items of a list that are left, one try after the other."""
_MAX_NAMES = 64
"""Entries that are left of a mapping: more than any part of a decision has fields."""


class RecordedFacts(Facts, frozen=True, omit_defaults=True):
    """The facts of a request, less its headers."""


class Decision(msgspec.Struct, frozen=True):
    """What was decided for one request, and all that it was decided by. Costs in USD, times in seconds.

    `endpoint`: the first candidate; None: nobody may serve. `refusal`: the code of the error that the client got
    instead of an attempt. `escape`: id of the one that the request takes part in. `outlook_version`: of the learned
    numbers.
    """

    request_id: str
    at: datetime
    team: str
    route: str
    policy: str
    select: str
    policy_version: str
    endpoint: str | None
    facts: RecordedFacts
    refusal: str | None = None
    candidates: tuple[Candidate, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    shadows: tuple[str, ...] = ()
    escape: str | None = None
    outlook_version: str = ""


_HEADERS = Facts.__struct_fields__.index("headers")
_NO_HEADERS: Mapping[str, str] = {}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Decision).decode


def describe_decision(plan: Plan, facts: Facts, request_id: str, refusal: str | None = None) -> bytes:
    """JSON of `Decision` in one line, at most MAX_DECISION bytes.

    Texts that PostgreSQL cannot store (a NUL, half a surrogate pair) are replaced; of a decision that is too long, long
    texts and lists are cut: it is still true, but can no longer be made again.
    """
    decision = _decision(plan, facts, request_id, refusal)
    try:
        content = _encode(decision)
        # A single byte is found far sooner than a text: hardly any decision has an escape.
        if len(content) <= MAX_DECISION and (b"\\" not in content or b"\\u0000" not in content):
            return content
    except UnicodeEncodeError:
        pass
    values = msgspec.to_builtins(decision)
    for max_text, max_items in _CUTS:
        content = _encode(_storable(values, max_text, max_items))
        if len(content) <= MAX_DECISION:
            break
    return content


def read_decision(content: bytes | str) -> Decision:
    """Raises `msgspec.ValidationError` for what another version wrote and this one cannot read."""
    return _decode(content)


def describe_plan(plan: Plan, facts: Facts, endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
    """JSON-ready. Costs in USD as strings (None: unknown), TTFT in seconds (None: never measured)."""
    decided = describe(_decision(plan, facts, "", None))
    for candidate in decided["candidates"]:
        endpoint = endpoints[candidate["endpoint"]]
        candidate["provider"] = endpoint.provider.id
        candidate["upstream_model"] = endpoint.upstream_model(facts.model)
        candidate["region"] = endpoint.region
    return {name: value for name, value in decided.items() if name not in ("request_id", "at", "team", "refusal")}


def describe(decision: Decision) -> dict[str, Any]:
    """A decision for people and programs: its facts beside it, costs as plain digits."""
    facts = decision.facts
    return {
        "request_id": decision.request_id,
        "at": decision.at.isoformat(),
        "team": decision.team,
        "model": facts.model,
        "domain": facts.domain,
        "complexity": facts.complexity,
        "data_class": facts.data_class,
        "tags": dict(facts.tags),
        "session": facts.session,
        "needs": sorted(facts.needs),
        "route": decision.route,
        "policy": decision.policy,
        "select": decision.select,
        "policy_version": decision.policy_version,
        "input_tokens": decision.input_tokens,
        "output_tokens": decision.output_tokens,
        "candidates": [
            {
                "endpoint": candidate.endpoint,
                "expected_cost_usd": None if candidate.expected_cost is None else f"{candidate.expected_cost:f}",
                "expected_ttft_s": candidate.expected_ttft,
                "expected_seconds_per_token": candidate.expected_seconds_per_token,
                "ejected": candidate.ejected,
                "placed_by": candidate.placed_by,
            }
            for candidate in decision.candidates
        ],
        "dropped": [msgspec.structs.asdict(dropped) for dropped in decision.dropped],
        "shadows": list(decision.shadows),
        "escape": decision.escape,
        "outlook_version": decision.outlook_version,
        "refusal": decision.refusal,
    }


def decision_header(plan: Plan, facts: Facts) -> bytes:
    """The value of `x-hatchway-decision`: compact JSON in ASCII, at most MAX_HEADER bytes. What does not fit is
    cut from the end of the longer list, and `cut` says how many entries went."""
    candidates: list[dict[str, Any]] = [
        {
            "endpoint": candidate.endpoint,
            "cost": None if candidate.expected_cost is None else f"{candidate.expected_cost:f}",
            "ttft": None if candidate.expected_ttft is None else round(candidate.expected_ttft, 4),
            **({"ejected": True} if candidate.ejected else {}),
            **({"by": candidate.placed_by} if candidate.placed_by else {}),
        }
        for candidate in plan.candidates
    ]
    dropped = [[one.endpoint, one.reason] for one in plan.dropped]
    head: dict[str, Any] = {
        "route": plan.route.name,
        "policy": plan.policy.id,
        "select": plan.policy.select,
        "version": plan.policy_version,
        "domain": facts.domain,
        "complexity": facts.complexity,
    }
    cut = 0
    while True:
        more = {"cut": cut} if cut else {}
        value = _ascii({**head, "candidates": candidates, "dropped": dropped, **more})
        if len(value) <= MAX_HEADER or not (candidates or dropped):
            break
        (candidates if len(candidates) > len(dropped) else dropped).pop()
        cut += 1
    return value if len(value) <= MAX_HEADER else _ascii({"version": plan.policy_version, "cut": cut})


def _decision(plan: Plan, facts: Facts, request_id: str, refusal: str | None) -> Decision:
    recorded = list(msgspec.structs.astuple(facts))
    recorded[_HEADERS] = _NO_HEADERS
    policy, candidates = plan.policy, plan.candidates
    # In the order of the fields: to match this many keywords would take longer than to write the whole decision.
    return Decision(
        request_id,
        datetime.fromtimestamp(facts.at, UTC),
        facts.team,
        plan.route.name,
        policy.id,
        policy.select,
        plan.policy_version,
        candidates[0].endpoint if candidates else None,
        RecordedFacts(*recorded),
        refusal,
        candidates,
        plan.dropped,
        plan.input_tokens or facts.input_tokens,
        plan.output_tokens or facts.output_tokens,
        plan.shadows,
        None if plan.shift is None else plan.shift.escape_id,
        plan.outlook_version,
    )


def _ascii(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _storable(value: Any, max_text: int | None, max_items: int | None) -> Any:
    """JSON without what PostgreSQL cannot hold, its texts and lists cut."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")[:max_text]
    if isinstance(value, list | tuple):
        return [_storable(one, max_text, max_items) for one in value[:max_items]]
    if isinstance(value, dict):
        pairs = list(value.items()) if max_items is None else list(value.items())[:_MAX_NAMES]
        return {_storable(name, max_text, None): _storable(one, max_text, max_items) for name, one in pairs}
    return value
