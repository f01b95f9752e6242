"""Selections: small pure functions that order the endpoints a policy may use. Registered in `SELECTIONS`.

An endpoint of unknown price is not free and one of unknown latency is not fast: `cost` puts the first last,
`latency` tries the second once, between the fast and the slow, so that it becomes known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from random import Random

from gateway.config.model import Policy, Select
from gateway.types import Candidate

Selection = Callable[[Sequence[Candidate], Policy, Random], list[Candidate]]

OPTIMISTIC_TTFT = 0.5
"""Seconds assumed for an endpoint that was never measured."""


def by_priority(pool: Sequence[Candidate], policy: Policy, rng: Random) -> list[Candidate]:
    """As written in the policy."""
    return list(pool)


def by_cost(pool: Sequence[Candidate], policy: Policy, rng: Random) -> list[Candidate]:
    """Cheapest first, unknown prices last; ties in the policy's order."""
    return sorted(pool, key=lambda c: (c.expected_cost is None, c.expected_cost or Decimal(0)))


def by_latency(pool: Sequence[Candidate], policy: Policy, rng: Random) -> list[Candidate]:
    """Lowest expected TTFT first; ties in the policy's order."""
    return sorted(pool, key=_expected_ttft)


def by_balance(pool: Sequence[Candidate], policy: Policy, rng: Random) -> list[Candidate]:
    """Lowest sum of cost and TTFT, each taken relative to the highest in the pool; unknown prices last."""
    highest_cost = max((c.expected_cost for c in pool if c.expected_cost is not None), default=Decimal(0)) or Decimal(1)
    highest_ttft = max((_expected_ttft(c) for c in pool), default=1.0) or 1.0

    def score(candidate: Candidate) -> tuple[bool, float]:
        share = float((candidate.expected_cost or Decimal(0)) / highest_cost)
        return candidate.expected_cost is None, share + _expected_ttft(candidate) / highest_ttft

    return sorted(pool, key=score)


def by_weight(pool: Sequence[Candidate], policy: Policy, rng: Random) -> list[Candidate]:
    """A random order in which each next endpoint is drawn with its share of the remaining weight.

    Sorting by u^(1/w) with u uniform in (0, 1] draws without replacement in proportion to w (Efraimidis and
    Spirakis, "Weighted random sampling with a reservoir", 2006); its logarithm orders alike, and small weights do not
    underflow. Weight 0 comes last, in the policy's order.
    """

    def draw(candidate: Candidate) -> float:
        weight = policy.weights.get(candidate.endpoint, 1.0)
        return -math.log(1.0 - rng.random()) / weight if weight > 0 else math.inf

    return sorted(pool, key=draw)


def _expected_ttft(candidate: Candidate) -> float:
    return OPTIMISTIC_TTFT if candidate.expected_ttft is None else candidate.expected_ttft


SELECTIONS: dict[Select, Selection] = {
    "priority": by_priority,
    "cost": by_cost,
    "latency": by_latency,
    "balanced": by_balance,
    "weighted": by_weight,
}
