"""Two runs of the same traffic side by side: cost, latency, placement, violations, and whom the difference concerns.

Costs are summed where they are known. What is unpriced is counted apart, and the change is that of the requests whose
cost is known on both sides: an unknown cost is never taken for nothing.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from gateway.simulation.replay import Outcome
from gateway.simulation.traffic import Arrival

MAX_GROUPS = 100
"""Routes, teams, moves and violations named in a report; the largest."""
NOBODY = "(nobody)"


class Side:
    """One run. `ttft`: seconds, of the requests that were served and measured (8 bytes each)."""

    def __init__(self) -> None:
        self.served = self.refused = self.failed = self.unpriced = self.unmeasured = 0
        self.cost = Decimal(0)
        self.ttft = array("d")
        self.requests_by_endpoint: Counter[str] = Counter()
        self.cost_by_endpoint: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.unpriced_by_endpoint: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        endpoint = outcome.endpoint
        if endpoint is not None:
            self.served += 1
            self.requests_by_endpoint[endpoint] += 1
            if outcome.ttft is None:
                self.unmeasured += 1
            else:
                self.ttft.append(outcome.ttft)
        elif outcome.refusal is not None:
            self.refused += 1
        else:
            self.failed += 1
        if outcome.cost is not None:
            self.cost += outcome.cost
            self.cost_by_endpoint[endpoint or NOBODY] += outcome.cost
        else:
            self.unpriced += 1
            self.unpriced_by_endpoint[endpoint or NOBODY] += 1


class Group:
    """The requests of one route or team. Costs: of those that are priced on both sides."""

    def __init__(self) -> None:
        self.requests = self.moved = self.newly_refused = 0
        self.cost_before = self.cost_after = Decimal(0)

    @property
    def affected(self) -> int:
        return self.moved + self.newly_refused


class Violation:
    """Requests that may not go where they went, for one reason. `new`: those that were not refused before."""

    def __init__(self, example: str) -> None:
        self.example = example
        self.requests = self.new = 0
        self.teams: Counter[str] = Counter()


class Comparison:
    """`before` is None where there is nothing to compare with: a trace without a baseline."""

    def __init__(self, *, has_before: bool) -> None:
        self.requests = self.estimated = self.moved = self.compared = 0
        self.since: float | None = None
        self.until: float | None = None
        self.before = Side() if has_before else None
        self.after = Side()
        self.change = Decimal(0)
        self.compared_before = Decimal(0)
        self.moves: Counter[tuple[str, str]] = Counter()
        self.routes: defaultdict[str, Group] = defaultdict(Group)
        self.teams: defaultdict[str, Group] = defaultdict(Group)
        self.refusals: dict[tuple[str, tuple[str, ...]], Violation] = {}
        self.forbidden: dict[tuple[str, str], Violation] = {}

    def add(self, arrival: Arrival, before: Outcome | None, after: Outcome) -> None:
        self.requests += 1
        self.estimated += not arrival.is_counted
        self.since = arrival.at if self.since is None else self.since
        self.until = arrival.at
        self.after.add(after)
        if self.before is not None and before is not None:
            self.before.add(before)
            self._compare(arrival, before, after)
        self._note_violations(arrival, before, after)

    def _compare(self, arrival: Arrival, before: Outcome, after: Outcome) -> None:
        groups = (self.teams[arrival.facts.team], self.routes[before.route or after.route or NOBODY])
        has_moved = before.endpoint != after.endpoint
        if has_moved:
            self.moved += 1
            self.moves[before.endpoint or NOBODY, after.endpoint or NOBODY] += 1
        for group in groups:
            group.requests += 1
            group.moved += has_moved and after.refusal is None
            group.newly_refused += after.refusal is not None and before.refusal is None
        if before.cost is None or after.cost is None:
            return
        self.compared += 1
        self.change += after.cost - before.cost
        self.compared_before += before.cost
        for group in groups:
            group.cost_before += before.cost
            group.cost_after += after.cost

    def _note_violations(self, arrival: Arrival, before: Outcome | None, after: Outcome) -> None:
        found: list[Violation] = []
        if after.refusal is not None:
            key = (after.refusal, tuple(sorted(set(after.dropped.values()))))
            found.append(self.refusals.setdefault(key, Violation(arrival.request_id)))
        if before is not None and before.endpoint is not None and before.endpoint in after.dropped:
            place = (before.endpoint, after.dropped[before.endpoint])
            found.append(self.forbidden.setdefault(place, Violation(arrival.request_id)))
        for violation in found:
            violation.requests += 1
            violation.new += before is not None and before.refusal is None
            violation.teams[arrival.facts.team] += 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: money as plain digits, times in seconds, shares from 0 to 1."""
        sides = {"before": self.before, "after": self.after}
        return {
            "requests": self.requests,
            "estimated": self.estimated,
            "since": self.since,
            "until": self.until,
            "outcomes": _each(sides, lambda s: {"served": s.served, "refused": s.refused, "failed": s.failed}),
            "cost": {
                **_each(sides, lambda side: {"usd": f"{side.cost:f}", "unpriced": side.unpriced}),
                "change_usd": f"{self.change:f}" if self.before is not None else None,
                "change_share": _share(self.change, self.compared_before),
                "compared": self.compared,
            },
            "ttft": _each(sides, _ttft),
            "placement": self._placement(),
            "moved": {
                "requests": self.moved,
                "share": self.moved / self.requests if self.before is not None and self.requests else None,
                "pairs": [
                    {"from": source, "to": target, "requests": number}
                    for (source, target), number in self.moves.most_common(MAX_GROUPS)
                ],
            },
            "violations": {
                "refused": [
                    {"code": code, "reasons": list(reasons), **_violation(one)}
                    for (code, reasons), one in _largest(self.refusals)
                ],
                "forbidden": [
                    {"endpoint": endpoint, "reason": reason, **_violation(one)}
                    for (endpoint, reason), one in _largest(self.forbidden)
                ],
            },
            "routes": _groups(self.routes),
            "teams": _groups(self.teams),
        }

    def _placement(self) -> list[dict[str, Any]]:
        sides = {"before": self.before, "after": self.after}
        names = sorted({name for side in sides.values() if side is not None for name in side.requests_by_endpoint})

        def of(endpoint: str) -> Callable[[Side], dict[str, Any]]:
            return lambda side: {
                "requests": side.requests_by_endpoint[endpoint],
                "share": side.requests_by_endpoint[endpoint] / self.requests,
                "usd": f"{side.cost_by_endpoint[endpoint]:f}",
                "unpriced": side.unpriced_by_endpoint[endpoint],
            }

        return [{"endpoint": name, **_each(sides, of(name))} for name in names]


def quantile(values: array[float], share: float) -> float | None:
    """The smallest value that `share` of them does not exceed; None: there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _each(sides: dict[str, Side | None], of: Callable[[Side], dict[str, Any]]) -> dict[str, Any]:
    return {name: None if side is None else of(side) for name, side in sides.items()}


def _ttft(side: Side) -> dict[str, Any]:
    return {
        "p50_s": quantile(side.ttft, 0.5),
        "p95_s": quantile(side.ttft, 0.95),
        "measured": len(side.ttft),
        "unknown": side.unmeasured,
    }


def _share(part: Decimal, whole: Decimal) -> float | None:
    return float(part / whole) if whole else None


def _violation(one: Violation) -> dict[str, Any]:
    return {
        "requests": one.requests,
        "new": one.new,
        "teams": dict(one.teams.most_common(MAX_GROUPS)),
        "example": one.example,
    }


def _largest(violations: dict[Any, Violation]) -> list[tuple[Any, Violation]]:
    return sorted(violations.items(), key=lambda item: (-item[1].requests, str(item[0])))[:MAX_GROUPS]


def _groups(groups: dict[str, Group]) -> list[dict[str, Any]]:
    most = sorted(groups.items(), key=lambda item: (-item[1].affected, -item[1].requests, item[0]))[:MAX_GROUPS]
    return [
        {
            "name": name,
            "requests": group.requests,
            "moved": group.moved,
            "newly_refused": group.newly_refused,
            "usd_before": f"{group.cost_before:f}",
            "usd_after": f"{group.cost_after:f}",
        }
        for name, group in most
    ]
