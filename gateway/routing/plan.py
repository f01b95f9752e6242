"""The plan of a request: whom to ask, in what order, who was dropped and why. `planner.py` makes it."""

from __future__ import annotations

import msgspec

from gateway.config.model import Policy, Route
from gateway.types import Candidate, Shift

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
    """`candidates` in the order in which they are tried; ejected endpoints come last, as the last resort, the first to
    return before the others."""

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
