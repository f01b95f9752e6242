"""The control plane's side of learning: adds up what the workers export, brakes what drifts, and publishes the result.

Nothing is counted twice. Each worker process exports all that it has learned itself, under a name of its own; the desk
keeps the newest export of each process and publishes them apart, so that a worker can leave its own part out. Once
another process serves at the same index the earlier one is gone, and its part is added to the base. What was published
is also the memory: a control plane that starts goes on from there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec

from gateway.config.model import Learning
from gateway.publication import Publication
from gateway.routing.drift import Brake, Key, brief, cost_numbers
from gateway.routing.statistics import (
    CLOCK_STEP,
    EVERYTHING,
    MAX_BYTES,
    MAX_FORGOTTEN,
    Frozen,
    Learned,
    Published,
    forget,
    read_learned,
    read_published,
)

PUBLISH_EVERY = 2.0
"""Seconds between two publications at least."""
HISTORY = 20
"""Versions that are remembered."""

_log = logging.getLogger(__name__)


class LearningDesk:
    """One for the control plane; belongs to one thread at a time. `wall`: seconds since the epoch."""

    def __init__(self, publication: Publication, learning: Learning | None = None) -> None:
        """`learning`: as configured. What was published before is taken up; if it cannot be read, that is logged."""
        self._publication = publication
        self._learning = learning or Learning()
        self._base = Learned(half_life=self._learning.half_life)
        self._parts: dict[str, Learned] = {}  # by the worker's index
        self._brake = Brake()
        self._forgotten: dict[str, float] = {}
        self._history: deque[dict[str, str]] = deque(maxlen=HISTORY)
        self._version = ""
        self._published_at: float | None = None
        self._shown: dict[str, float] = {}  # numbers of the newest version, to tell what changed
        self._has_news = False
        self._refused: set[str] = set()  # workers whose newest export could not be read
        self._restore()

    @property
    def frozen(self) -> list[Frozen]:
        """What is frozen now."""
        return list(self._brake.frozen.values())

    def take(self, exports: Mapping[str, bytes], wall: float, learning: Learning) -> bool:
        """Takes in what workers export (`HealthBook.export`), by index. True: something new was published.

        A worker that is missing here keeps its last part. What cannot be read is logged and left out. Raises OSError
        when nothing can be written; the next call tries again.
        """
        self._configure(learning, wall)
        if not learning.enabled:
            exports = {}
        for worker, content in exports.items():
            self._take_one(worker, content)
        for learned in (self._base, *self._parts.values()):
            self._has_news |= learned.prune(wall, learning.max_age)
        if self._published_at is not None and 0 <= wall - self._published_at < PUBLISH_EVERY:
            return False
        total = self._total(wall)
        added, thawed = self._brake.check(total, wall, learning)
        for one in added:
            _log.warning("`%s` of `%s` is frozen at %s: %s", one.number, one.name, brief(one.value), one.reason)
        for one in thawed:
            _log.info("`%s` of `%s` is no longer frozen", one.number, one.name)
        if self._has_news or added or thawed:
            self._publish(total, wall)
            return True
        return False

    def reset(self, names: Collection[str], wall: float) -> list[str]:
        """Forgets these endpoints and routes, or all if none is named, thaws them, and publishes that at once.

        Returns the names of which something was known. Workers that absorb it drop what they learned themselves, too.
        Raises OSError.
        """
        total = self._total(wall)
        known = {*total.endpoints, *total.routes, *(name for _, name in self._brake.frozen)}
        found = sorted(known if not names else known.intersection(names))
        if names:
            self._forgotten.update(dict.fromkeys(found, wall))
            for name in sorted(self._forgotten, key=self._forgotten.__getitem__)[:-MAX_FORGOTTEN]:
                del self._forgotten[name]
        else:
            self._forgotten = {EVERYTHING: wall}
        for learned in (self._base, *self._parts.values()):
            learned.forget(found)
        self._brake.release(found)
        self._publish(self._total(wall), wall)
        return found

    def status(self, wall: float) -> dict[str, Any]:
        """JSON-ready. Seconds; shares from 0 to 1; None: not known. Numbers are those in force, so frozen ones too."""
        total = self._total(wall)
        left = total.share_left(wall)
        held = {key: frozen.value for key, frozen in self._brake.frozen.items()}
        numbers = cost_numbers(total, wall)
        endpoints = {}
        for name, one in sorted(total.endpoints.items()):
            ttft = one.ttft.quantiles(0.5, 0.95) or (None, None)
            pace = one.seconds_per_token.quantile(0.5)
            endpoints[name] = {
                "ttft_p50": held.get(("ttft", name), ttft[0]),
                "ttft_p95": ttft[1],
                "tokens_per_second": None if pace is None else 1 / pace,
                "cache_share": held.get(("cache_share", name), one.cache_share),
                "failure_share": one.failure_share,
                "samples": round(one.samples * left, 1),
                "age": max(round(wall - one.heard_at, 1), 0.0),
            }
        routes = {
            name: {
                "output_tokens": held.get(("output_tokens", name), one.output_tokens),
                "input_ratio": held.get(("input_ratio", name), one.input_ratio),
                "samples": round(one.samples * left, 1),
                "age": max(round(wall - one.heard_at, 1), 0.0),
            }
            for name, one in sorted(total.routes.items())
        }
        frozen = [
            {
                "number": one.number,
                "name": one.name,
                "value": one.value,
                "now": _number_now(key, numbers, total),
                "since": _time(one.since),
                "reason": one.reason,
            }
            for key, one in self._brake.frozen.items()
        ]
        return {
            "version": self._version,
            "enabled": self._learning.enabled,
            "endpoints": endpoints,
            "routes": routes,
            "frozen": frozen,
            "history": list(self._history),
        }

    def _configure(self, learning: Learning, wall: float) -> None:
        if learning.half_life != self._base.half_life:
            self._base.advance(wall)  # the time that has passed, at the old pace
            self._base.half_life = learning.half_life
        if self._learning.enabled and not learning.enabled:
            self._base, self._parts = Learned(half_life=learning.half_life), {}
            self._brake = Brake()
            self._has_news = True
        self._learning = learning
        old = [name for name, at in self._forgotten.items() if not -CLOCK_STEP <= wall - at <= learning.max_age]
        for name in old:
            del self._forgotten[name]

    def _take_one(self, worker: str, content: bytes) -> None:
        try:
            part = read_learned(content)
        except ValueError as error:
            if worker not in self._refused:
                _log.error("worker %s: %s", worker, error)
            self._refused.add(worker)
            return
        self._refused.discard(worker)
        part.worker = worker
        forget(part, self._forgotten)
        last = self._parts.get(worker)
        if last is not None and last.process != part.process:
            self._base.merge(last)
        known = last.observed if last is not None and last.process == part.process else 0
        self._has_news |= part.observed != known
        self._parts[worker] = part

    def _total(self, wall: float) -> Learned:
        total = Learned(half_life=self._base.half_life)
        for learned in (self._base, *self._parts.values()):
            total.merge(learned)
        total.advance(max(wall, total.at))
        return total

    def _publish(self, total: Learned, wall: float) -> None:
        published = Published("", wall, self._base, list(self._parts.values()), self.frozen, self._forgotten)
        published.version = sha256(msgspec.json.encode(published)).hexdigest()[:12]
        content = msgspec.json.encode(published)
        if len(content) > MAX_BYTES:
            _log.error("%d bytes of learned numbers are too many to publish", len(content))
            return
        self._publication.publish_learned(content)
        shown = _numbers_of(total, wall)
        change = _largest_change(self._shown, shown)
        self._history.append({"version": published.version, "at": _time(wall), "change": change})
        self._version, self._shown = published.version, shown
        self._published_at = wall
        self._has_news = False

    def _restore(self) -> None:
        try:
            content = self._publication.read_learned()
            if content is None:
                return
            published = read_published(content)
        except (OSError, ValueError) as error:
            _log.error("what was learned before cannot be taken up: %s", error)
            self._has_news = True  # so that no worker meets it
            return
        self._base, self._version = published.base, published.version
        self._parts = {part.worker: part for part in published.parts}
        self._brake = Brake(published.frozen)
        self._forgotten = published.forgotten
        self._shown = _numbers_of(self._total(published.at), published.at)


def _numbers_of(learned: Learned, wall: float) -> dict[str, float]:
    """Each number that decisions rest on, under a name for people."""
    found = {f"`{name}` {number}": value for (number, name), (value, _) in cost_numbers(learned, wall).items()}
    for name, endpoint in learned.endpoints.items():
        if (median := endpoint.ttft.quantile(0.5)) is not None:
            found[f"`{name}` ttft"] = median
    return found


def _number_now(key: Key, numbers: Mapping[Key, tuple[float, float]], learned: Learned) -> float | None:
    """What a frozen number would be."""
    if key in numbers:
        return numbers[key][0]
    endpoint = learned.endpoints.get(key[1])
    return endpoint.recent_ttft if endpoint is not None and key[0] == "ttft" else None


def _largest_change(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    def factor(name: str) -> float:
        low, high = sorted((before[name], after[name]))
        return high / low if low > 0 else float(high > 0)

    both = before.keys() & after.keys()
    most = max(sorted(both), key=factor, default=None)
    if most is not None and before[most] != after[most]:
        return f"{most}: {brief(before[most])} -> {brief(after[most])}"
    new, gone = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    if new:
        return f"{new[0]}: {brief(after[new[0]])}, new"
    return f"{gone[0]}: forgotten" if gone else ""


def _time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")
