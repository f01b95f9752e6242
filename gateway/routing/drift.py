"""The brake on learning: a learned number that moves too far in too short a time is not believed. Pure.

A provider that begins to report wrong usage, or a flood of unusual requests, would otherwise turn every decision by
cost. What is compared is the number now and its value up to a half-life ago, so that neither one jump nor a fast slide
gets past; changes that take longer are followed.

The time to first content of one endpoint is never frozen: a slow one must be avoided at once. But when most endpoints
become slow together it is not they who are slow, and avoiding each in turn helps nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

import msgspec

from gateway.config.model import Learning
from gateway.routing.breaker import FORGET_AFTER
from gateway.routing.statistics import Frozen, Learned, Number

Key = tuple[Number, str]
"""The number, and the endpoint or route whose it is."""

ENOUGH = 20.0
"""Observations (decayed) behind a number before it can be wrong."""
THAW_AFTER = 60.0
"""Seconds for which a frozen number must be back within the factor."""
MIN_TOGETHER = 3
"""Endpoints in use before "most of them" means anything."""
FLOORS: Mapping[Number, float] = MappingProxyType(
    {"ttft": 0.05, "cache_share": 0.1, "output_tokens": 8.0, "input_ratio": 0.05}
)
"""Added to both sides of a comparison: from 1 token to 5 is no drift."""


class _Anchor(msgspec.Struct, frozen=True):
    value: float
    since: float


class Brake:
    """Remembers what numbers were. `frozen`: those that an earlier control plane had frozen."""

    def __init__(self, frozen: Iterable[Frozen] = ()) -> None:
        self.frozen: dict[Key, Frozen] = {(one.number, one.name): one for one in frozen}
        self._anchors: dict[Key, _Anchor] = {}
        self._calm_since: dict[Key, float] = {}
        self._together_calm_since: float | None = None

    def check(self, learned: Learned, wall: float, learning: Learning) -> tuple[list[Frozen], list[Frozen]]:
        """What is frozen from now on, and what no longer is. `learned`: of all processes together."""
        before = dict(self.frozen)
        numbers = cost_numbers(learned, wall)
        for key, (value, samples) in numbers.items():
            if samples >= ENOUGH:
                self._check_one(key, value, wall, learning)
        self._check_together(learned, wall, learning)
        self._drop_unknown(learned)
        added = [one for key, one in self.frozen.items() if before.get(key) != one]
        return added, [one for key, one in before.items() if key not in self.frozen]

    def release(self, names: Collection[str]) -> None:
        """Thaws these, and takes what comes next as their usual value."""
        for kept in (self.frozen, self._anchors, self._calm_since):
            for key in [key for key in kept if key[1] in names]:
                del kept[key]

    def _check_one(self, key: Key, value: float, wall: float, learning: Learning) -> None:
        frozen, anchor = self.frozen.get(key), self._anchors.get(key)
        if frozen is not None:
            if _factor(key[0], frozen.value, value) > learning.max_drift:
                self._calm_since.pop(key, None)
            elif wall - self._calm_since.setdefault(key, wall) >= THAW_AFTER:
                del self.frozen[key], self._calm_since[key]
                self._anchors[key] = _Anchor(value, wall)
        elif anchor is None:
            self._anchors[key] = _Anchor(value, wall)
        elif _factor(key[0], anchor.value, value) > learning.max_drift:
            reason = f"from {brief(anchor.value)} to {brief(value)} within {max(wall - anchor.since, 0):.0f} s"
            self.frozen[key] = Frozen(*key, anchor.value, wall, reason)
        elif not 0 <= wall - anchor.since < learning.half_life:
            self._anchors[key] = _Anchor(value, wall)

    def _check_together(self, learned: Learned, wall: float, learning: Learning) -> None:
        slower: dict[Key, float] = {}
        in_use = 0
        for name, statistics in learned.endpoints.items():
            key: Key = ("ttft", name)
            usual = self._usual_ttft(key, learned, wall, learning)
            newest = statistics.recent_ttft
            if usual is None or newest is None or wall - statistics.heard_at >= FORGET_AFTER:
                continue
            in_use += 1
            if newest > usual and _factor("ttft", usual, newest) > learning.max_drift:
                slower[key] = usual
        if in_use >= MIN_TOGETHER and 2 * len(slower) > in_use:
            self._together_calm_since = None
            for key, usual in slower.items():
                if key not in self.frozen:
                    reason = f"{len(slower)} of {in_use} endpoints became slow together"
                    self.frozen[key] = Frozen(*key, usual, wall, reason)
            return
        if self._together_calm_since is None:
            self._together_calm_since = wall
        if wall - self._together_calm_since >= THAW_AFTER:
            for key in [key for key in self.frozen if key[0] == "ttft"]:
                del self.frozen[key]
                self._anchors.pop(key, None)

    def _usual_ttft(self, key: Key, learned: Learned, wall: float, learning: Learning) -> float | None:
        frozen, anchor = self.frozen.get(key), self._anchors.get(key)
        if frozen is not None:
            return frozen.value
        if anchor is None or not 0 <= wall - anchor.since < learning.half_life:
            statistics = learned.endpoints[key[1]]
            median = statistics.ttft.quantile(0.5)
            if median is not None and statistics.samples * learned.share_left(wall) >= ENOUGH:
                anchor = self._anchors[key] = _Anchor(median, wall)
        return None if anchor is None else anchor.value

    def _drop_unknown(self, learned: Learned) -> None:
        for kept in (self.frozen, self._anchors, self._calm_since):
            for key in [key for key in kept if key[1] not in _names_of(key[0], learned)]:
                del kept[key]


def cost_numbers(learned: Learned, wall: float) -> dict[Key, tuple[float, float]]:
    """What the expected cost of a request is made of: each number, and how many observations (decayed) it rests on."""
    left = learned.share_left(wall)
    found: dict[Key, tuple[float, float]] = {}
    for name, endpoint in learned.endpoints.items():
        if endpoint.cache_share is not None:
            found["cache_share", name] = endpoint.cache_share, endpoint.cache_samples * left
    for name, route in learned.routes.items():
        if route.output_tokens is not None:
            found["output_tokens", name] = route.output_tokens, route.output_samples * left
        if route.input_ratio is not None:
            found["input_ratio", name] = route.input_ratio, route.samples * left
    return found


def brief(value: float) -> str:
    """For people: four digits, and never an exponent where the number is large."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _names_of(number: Number, learned: Learned) -> Collection[str]:
    return learned.endpoints if number in ("ttft", "cache_share") else learned.routes


def _factor(number: Number, one: float, other: float) -> float:
    floor = FLOORS[number]
    factor = (one + floor) / (other + floor)
    return max(factor, 1 / factor)
