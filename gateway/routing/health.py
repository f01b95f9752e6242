"""Passive health: what endpoints' own traffic says of them. The one place where routing keeps state; reads no clock.

Each worker has one book. The breakers and the newest attempts in it are its own, so that it reacts at once. What it
learns (`statistics`) it exports; the control plane adds up what all workers export and publishes it, and each absorbs
what the others learned. A success is noted at once, and counted when somebody asks for what it is counted in.

Failures are slow, never fast: a 429 that comes back in 40 ms counts as `PENALTY_TTFT`, or it would draw more traffic to
an endpoint that refuses it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping

from gateway.config.model import Learning
from gateway.routing.breaker import FORGET_AFTER, Breaker, State
from gateway.routing.statistics import (
    EVERYTHING,
    EndpointStatistics,
    Learned,
    Number,
    Observation,
    RouteStatistics,
    forget,
    read_published,
)
from gateway.types import EndpointHealth, Outlook, RouteHabits

DEFAULTS = Learning()
PENALTY_TTFT = 5.0
CHANGED = 1.5
"""The factor between the newest attempts and what was learned, beyond which the newest attempts are believed: within
it they are noise, and the learned median is the better number."""
REFRESH_EVERY = 1.0
"""Seconds for which what was worked out of an endpoint's or the routes' statistics holds while they are in use."""
SWEEP_EVERY = 5.0
SETTLE_EVERY = 0.005
"""Seconds for which a success that tells nothing new may stay out of an endpoint's numbers: under load most requests
find them as they were."""
NOTICEABLE = 0.01
"""Seconds by which a time to first content has to differ from what is known to be news at once."""
MAX_NOTED = 256
"""Successes that are noted before they are counted."""


class _Numbers:
    """What all workers together have learned of one endpoint, worked out."""

    __slots__ = ("at", "cache_share", "failure_share", "heard_elsewhere_at", "median", "p95", "pace", "said", "weight")

    def __init__(self) -> None:
        self.median: float | None = None
        self.p95: float | None = None
        self.pace: float | None = None
        self.cache_share: float | None = None
        self.failure_share = 0.0
        self.weight = 0.0  # of the observations, at the landmark `at`
        self.at = 0.0
        self.said: float | None = None  # the TTFT that another worker expects, as of `heard_elsewhere_at` (wall)
        self.heard_elsewhere_at = 0.0


class _Entry:
    __slots__ = ("breaker", "in_flight", "is_stale", "name", "numbers", "refresh_at", "shown")

    def __init__(self, name: str, breaker: Breaker) -> None:
        self.name = name
        self.breaker = breaker
        self.in_flight = 0
        self.numbers = _Numbers()
        self.is_stale = False  # `numbers` are older than what was observed
        self.refresh_at = 0.0
        self.shown: EndpointHealth | None = None  # as the outlook has it

    def expects(self, ttft: float) -> bool:
        """Whether a success after so long is no news to whoever has read the outlook."""
        shown = self.shown
        if shown is None or shown.failures_in_a_row or shown.ttft is None:
            return False
        return shown.ttft / CHANGED <= ttft <= shown.ttft * CHANGED or abs(ttft - shown.ttft) < NOTICEABLE


class HealthBook:
    """Written by the pipeline around each attempt, read by the plan. `now`: loop clock, `wall`: wall clock, seconds.

    `worker`: its index; breakers of different workers keep different times. `process`: tells this process from the
    one that had the same index before; drawn where it is left out.
    """

    def __init__(self, learning: Learning = DEFAULTS, worker: str = "0", process: str | None = None) -> None:
        self._learning = learning
        self._worker = worker
        self._process = f"{worker}-{secrets.token_hex(6)}" if process is None else process
        self._counted = self._nothing()
        self._noted: list[tuple[_Entry, Observation]] = []
        self._others = self._nothing()
        self._entries: dict[str, _Entry] = {}
        self._frozen: dict[tuple[Number, str], float] = {}
        self._forgotten: Mapping[str, float] = {}
        self._states: dict[str, EndpointHealth] = {}
        self._habits: dict[str, RouteHabits] = {}
        self._outlook = Outlook(self._states, self._habits)
        self._changed: set[_Entry] = set()
        self._moved: set[_Entry] = set()  # as was expected of them: to be looked at again soon
        self._settle_at = 0.0
        self._changed_routes: set[str] = set()
        self._restless: set[_Entry] = set()  # whose breakers move as time passes
        self._now = self._wall = 0.0
        self._sweep_at = 0.0
        self._routes_at = 0.0

    def outlook(self, now: float, wall: float) -> Outlook:
        """What is known now. It changes with the book: a decision that awaits nothing needs no copy. Of an endpoint of
        which nothing has changed the same `EndpointHealth` stays."""
        self._now, self._wall = now, wall
        if now >= self._sweep_at:
            self._sweep(now, wall)
        if self._moved and now >= self._settle_at:
            self._settle_at = now + SETTLE_EVERY
            self._changed |= self._moved
            self._moved.clear()
        if self._restless:
            self._changed |= self._restless
        if self._changed:
            for entry in self._changed:
                self._rebuild(entry, now, wall)
            self._changed.clear()
        if now >= self._routes_at and (self._changed_routes or self._noted):
            self._routes_at = now + REFRESH_EVERY
            self._count()
            for route in self._changed_routes:
                self._rebuild_route(route)
            self._changed_routes.clear()
        return self._outlook

    def states(self, now: float) -> Mapping[str, State]:
        """The breaker of each endpoint that this worker has used."""
        self._count()
        for entry in self._entries.values():
            entry.breaker.tick(now)
        return {endpoint: entry.breaker.state for endpoint, entry in self._entries.items()}

    def start(self, endpoint: str) -> None:
        """An attempt begins; `outlook` has just been read for it."""
        entry = self._entries.get(endpoint) or self._entry(endpoint)
        entry.in_flight += 1
        if entry.shown is None:
            self._changed.add(entry)
        else:
            entry.shown.in_flight = entry.in_flight
        if entry.breaker.state != "closed":
            entry.breaker.start(self._now)
            self._changed.add(entry)
        self._moved.add(entry)

    def finish(self, endpoint: str) -> None:
        """It is over, however it ended."""
        entry = self._entries.get(endpoint) or self._entry(endpoint)
        if entry.in_flight:
            entry.in_flight -= 1
        if entry.shown is not None:
            entry.shown.in_flight = entry.in_flight
        if entry.breaker.state != "closed":
            entry.breaker.finish()
            self._changed.add(entry)
        self._moved.add(entry)

    def succeed(self, endpoint: str, now: float, observation: Observation) -> None:
        entry = self._entries.get(endpoint) or self._entry(endpoint)
        if entry.breaker.state == "closed":
            entry.breaker.go_on(now, observation.ttft)
            (self._moved if entry.expects(observation.ttft) else self._changed).add(entry)
        else:
            duration = observation.ttft + (observation.seconds_per_token or 0.0) * (observation.output_tokens or 0)
            entry.breaker.tick(now)
            entry.breaker.succeed(now, observation.ttft, now - duration)
            self._changed.add(entry)
        if self._learning.enabled:
            self._noted.append((entry, observation))
            entry.is_stale = True
            if len(self._noted) >= MAX_NOTED:
                self._count()

    def fail(self, endpoint: str, now: float, wall: float, *, retry_after: float | None = None) -> None:
        """`retry_after`: the upstream itself said when to come back (seconds); it is left alone until then at least."""
        entry = self._entry(endpoint)
        entry.breaker.tick(now)
        entry.breaker.fail(now, retry_after)
        if entry.breaker.state != "closed":
            self._restless.add(entry)
        if self._learning.enabled:
            self._own.fail(endpoint, wall)
            entry.is_stale = True
            self._pass_on(entry)
        self._changed.add(entry)

    def export(self, wall: float) -> bytes:
        """What this process itself has learned, as JSON (`statistics.Learned`)."""
        self._own.prune(wall, self._learning.max_age)
        return self._own.to_json()

    def absorb(self, content: bytes) -> None:
        """Takes up what the control plane published: what the others know, what is frozen, what is to be forgotten.

        Raises ValueError for anything else, and then nothing has changed.
        """
        published = read_published(content)
        if not self._learning.enabled:
            return
        others = published.base
        for part in published.parts:
            if part.process != self._process:
                others.merge(part)
        others.advance(max(published.at, others.at))
        others.half_life = self._learning.half_life
        self._others = others
        self._forget(published.forgotten)
        self._frozen = {(frozen.number, frozen.name): frozen.value for frozen in published.frozen}
        self._outlook = Outlook(self._states, self._habits, published.version)
        self._mark_everything()

    def reset(self, endpoints: Collection[str] = ()) -> None:
        """Forgets these endpoints, and routes of these names; none named: everything. Their breakers close."""
        names = endpoints or {*self._entries, *self._all_endpoints(), *self._all_routes()}
        self._own.forget(names)
        self._others.forget(names)
        self._frozen = {key: value for key, value in self._frozen.items() if key[1] not in names}
        self._close(names)
        self._mark_everything()

    def configure(self, learning: Learning) -> None:
        """Takes up a changed configuration. What was learned is kept unless learning was switched off."""
        if learning.enabled:
            for learned in (self._own, self._others):
                learned.advance(max(self._wall, learned.at))  # the time that has passed, at the old pace
                learned.half_life = learning.half_life
            self._learning = learning
        elif self._learning.enabled:
            self._learning = learning
            self._noted.clear()
            self._counted, self._others, self._frozen = self._nothing(), self._nothing(), {}
            self._outlook = Outlook(self._states, self._habits)
        self._mark_everything()

    def _forget(self, forgotten: Mapping[str, float]) -> None:
        """Does what `reset` does for the names that an operator reset since the last publication."""
        forget(self._own, forgotten)
        fresh = [name for name, at in forgotten.items() if self._forgotten.get(name) != at]
        self._close(list(self._entries) if EVERYTHING in fresh else fresh)
        self._forgotten = dict(forgotten)

    def _close(self, names: Collection[str]) -> None:
        self._count()
        for name in names:
            if name in self._entries:
                entry = self._entries[name]
                entry.breaker = self._breaker(name)
                self._restless.discard(entry)

    @property
    def _own(self) -> Learned:
        """What this process has learned, with all that was noted."""
        if self._noted:
            self._count()
        return self._counted

    def _count(self) -> None:
        """Counts what was noted: before anybody reads it, and before a breaker forgets what its endpoint's newest
        attempts were, since those travel along."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        for entry, observation in noted:
            self._counted.succeed(entry.name, observation)
            self._changed_routes.add(observation.route)
        for entry in {entry for entry, _ in noted}:
            self._pass_on(entry)

    def _nothing(self) -> Learned:
        return Learned(half_life=self._learning.half_life, process=self._process, worker=self._worker)

    def _breaker(self, endpoint: str) -> Breaker:
        return Breaker(f"{endpoint}:{self._worker}")

    def _entry(self, endpoint: str) -> _Entry:
        entry = self._entries.get(endpoint)
        if entry is None:
            entry = self._entries[endpoint] = _Entry(endpoint, self._breaker(endpoint))
        return entry

    def _all_endpoints(self) -> set[str]:
        return {*self._own.endpoints, *self._others.endpoints}

    def _all_routes(self) -> set[str]:
        return {*self._own.routes, *self._others.routes}

    def _share_left(self, at: float) -> float:
        """What a weight at the landmark `at` is worth now."""
        return float(0.5 ** (max(self._wall - at, 0.0) / self._learning.half_life))

    def _pass_on(self, entry: _Entry) -> None:
        """Has the newest attempts travel with the export."""
        if (statistics := self._counted.endpoints.get(entry.name)) is not None:
            statistics.recent_ttft = _slowed(entry.breaker.recent(), None)

    def _mark_everything(self) -> None:
        for endpoint in {*self._entries, *self._all_endpoints(), *self._states}:
            entry = self._entry(endpoint)
            entry.is_stale, entry.refresh_at = True, 0.0
            self._changed.add(entry)
        self._changed_routes |= {*self._all_routes(), *self._habits}
        self._routes_at = 0.0

    def _sweep(self, now: float, wall: float) -> None:
        """What changes because time has passed."""
        self._sweep_at = now + SWEEP_EVERY
        for learned in (self._own, self._others):
            if learned.prune(wall, self._learning.max_age):
                self._mark_everything()
        self._changed.update(self._entries.values())
        self._changed_routes.update(self._habits)

    def _rebuild(self, entry: _Entry, now: float, wall: float) -> None:
        endpoint, breaker, frozen = entry.name, entry.breaker, self._frozen
        if breaker.state != "closed" or now - breaker.heard_at >= FORGET_AFTER:
            breaker.tick(now)
        if self._restless and breaker.state == "closed":
            self._restless.discard(entry)
        if entry.is_stale and (now >= entry.refresh_at or not entry.numbers.weight):
            entry.is_stale, entry.refresh_at = False, now + REFRESH_EVERY
            entry.numbers = self._work_out(endpoint)
        numbers = entry.numbers
        entry.shown = self._states[endpoint] = EndpointHealth(
            self._expected_ttft(entry, wall),
            entry.in_flight,
            breaker.failures_in_a_row,
            breaker.open_until,
            numbers.p95,
            numbers.pace,
            frozen.get(("cache_share", endpoint), numbers.cache_share) if frozen else numbers.cache_share,
            numbers.failure_share,
            1.0 if breaker.state == "closed" else breaker.admitted(now),
            numbers.weight * 0.5 ** (max(wall - numbers.at, 0.0) / self._learning.half_life),
        )

    def _rebuild_route(self, route: str) -> None:
        both = RouteStatistics(0.0, 0.0)
        at = max(self._own.at, self._others.at)
        for learned in (self._own, self._others):
            if (statistics := learned.routes.get(route)) is not None:
                both.merge(statistics, learned.share_left(at))
        if not both.samples:
            self._habits.pop(route, None)
            return
        share, held = self._share_left(at), self._frozen.get(("output_tokens", route))
        self._habits[route] = RouteHabits(
            output_tokens=both.output_tokens if held is None else held,
            input_ratio=self._frozen.get(("input_ratio", route), both.input_ratio),
            samples=both.samples * share,
            by_size=both.output_by_size(share) if held is None else {},
        )

    def _work_out(self, endpoint: str) -> _Numbers:
        numbers = _Numbers()
        elsewhere = self._others.endpoints.get(endpoint)
        if elsewhere is not None:
            numbers.said, numbers.heard_elsewhere_at = elsewhere.recent_ttft, elsewhere.heard_at
        at = max(self._own.at, self._others.at)
        both = EndpointStatistics(0.0, 0.0)
        for learned in (self._own, self._others):
            if (statistics := learned.endpoints.get(endpoint)) is not None:
                both.merge(statistics, learned.share_left(at))
        if (quantiles := both.ttft.quantiles(0.5, 0.95)) is not None:
            numbers.median, numbers.p95 = quantiles
        numbers.pace = both.seconds_per_token.quantile(0.5)
        numbers.cache_share = both.cache_share
        numbers.failure_share = both.failure_share
        numbers.weight, numbers.at = both.samples, at
        return numbers

    def _expected_ttft(self, entry: _Entry, wall: float) -> float | None:
        """Seconds; None: nobody has heard of it for a while, so it deserves to be tried."""
        recent, numbers = entry.breaker.recent(), entry.numbers
        frozen = self._frozen.get(("ttft", entry.name)) if self._frozen else None
        if recent is not None:
            if frozen is None and not recent[1] and recent[0] is not None:
                return _settled(recent[0], numbers.median)
            return _slowed(recent, numbers.median if frozen is None else frozen, is_certain=frozen is not None)
        if numbers.said is None or wall - numbers.heard_elsewhere_at >= FORGET_AFTER:
            return None
        if frozen is not None:
            return frozen
        return _settled(numbers.said, numbers.median)


def _slowed(
    recent: tuple[float | None, float] | None, usual: float | None, *, is_certain: bool = False
) -> float | None:
    """The time to expect: a failed attempt costs `PENALTY_TTFT` before the next one can begin."""
    if recent is None:
        return None
    newest, failures = recent
    if newest is None:
        return PENALTY_TTFT
    typical = usual if is_certain and usual is not None else _settled(newest, usual)
    return (1 - failures) * typical + failures * PENALTY_TTFT


def _settled(newest: float, usual: float | None) -> float:
    return usual if usual is not None and newest / CHANGED <= usual <= newest * CHANGED else newest
