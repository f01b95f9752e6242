"""What routing learns from traffic: sketches that forget, for each endpoint and each route. Pure, and mergeable.

A `Sketch` counts values in buckets whose bounds grow by a constant factor, so that each quantile is known within 5 % of
itself, whatever the distribution (DDSketch: Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", VLDB 2019). An observation loses half of its weight in each half-life. All weights
fall alike, so nothing needs to be touched as time passes: newer observations enter with a larger weight instead
(forward decay: Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009), relative to a landmark in time. To merge two
collections is to bring them to the same landmark and to add.

Times are wall time in seconds since the epoch: processes and restarts share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from math import ceil, log
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from gateway.types import size_of

RELATIVE_ERROR = 0.05
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / math.log(_GAMMA)
MIN_VALUE, MAX_VALUE = 1e-6, 1e5
"""Seconds; what is smaller or larger is counted as these. They bound the number of buckets."""
MIN_BUCKET, MAX_BUCKET = math.floor(math.log(MIN_VALUE) * _PER_LOG), math.ceil(math.log(MAX_VALUE) * _PER_LOG)
MAX_BUCKETS = MAX_BUCKET - MIN_BUCKET + 1

REBASE_AFTER = 20.0
"""Half-lives after which the landmark moves: the newest weight is at most 2 to this power."""
NEGLIGIBLE = 1e-100
CLOCK_STEP = 60.0
"""Seconds by which the clock may go back before that is taken for a correction of the clock."""
MAX_ENTRIES = 1000
"""Endpoints, and routes, of one collection; beyond it the one that was silent for longest is forgotten."""
MAX_FORGOTTEN = 4 * MAX_ENTRIES
"""Names that operators had forgotten, of which that must still be said."""
MAX_TOKENS = 10_000_000
"""Of one observation: a provider that reports more is not believed."""
EVERYTHING = ""
"""The name in `Published.forgotten` that stands for all."""
MAX_SIZES = 48
"""Classes of input sizes: `size_of(MAX_TOKENS)` is the last one that can come."""
DRAWN_BY = 5.0
"""Requests as whose mean that of all counts in the mean of one class of sizes."""
MAX_BYTES = 32 * 1024 * 1024

Weight = Annotated[float, Meta(ge=0, le=1e30)]
Wall = Annotated[float, Meta(ge=0, le=1e12)]
Name = Annotated[str, Meta(max_length=1024)]
Bucket = Annotated[int, Meta(ge=MIN_BUCKET, le=MAX_BUCKET)]
Number = Literal["ttft", "cache_share", "output_tokens", "input_ratio"]
"""What may be frozen: the first two of an endpoint, the others of a route."""
T = TypeVar("T")


class Observation(msgspec.Struct, frozen=True, gc=False):
    """One attempt that served. `wall`: when it ended. `seconds_per_token`: between first content and the end, for each
    output token; None where the answer came whole, and `ttft` is then the time to all of it. `input_tokens`: all of
    them, `cached_tokens` included. Tokens are None where nobody counted; unless `is_reported` by the provider, they
    are our own estimate, which teaches nothing about tokens.
    """

    wall: float
    route: str
    ttft: float
    seconds_per_token: float | None
    output_tokens: int | None
    choices: int
    input_tokens: int | None
    cached_tokens: int | None
    rough_input_tokens: int
    is_reported: bool


class Sketch(msgspec.Struct, omit_defaults=True):
    """A histogram over logarithmic buckets: bucket i holds (g^(i-1), g^i], with g about 1.105."""

    counts: Annotated[dict[Bucket, Weight], Meta(max_length=MAX_BUCKETS)] = {}
    total: Weight = 0.0  # of value times weight

    @property
    def weight(self) -> float:
        return sum(self.counts.values())

    @property
    def mean(self) -> float | None:
        weight = self.weight
        return self.total / weight if weight else None

    def add(self, value: float, weight: float = 1.0) -> None:
        if not MIN_VALUE <= value <= MAX_VALUE:
            value = min(max(value, MIN_VALUE), MAX_VALUE)
        bucket, counts = ceil(log(value) * _PER_LOG), self.counts
        counts[bucket] = counts.get(bucket, 0.0) + weight
        self.total += value * weight

    def quantiles(self, *shares: float) -> list[float] | None:
        """For each share (ascending, 0 to 1) the smallest value that this share of the weight does not exceed, within
        5 %; None: nothing was observed."""
        weight = self.weight
        if not weight:
            return None
        found: list[float] = []
        reached = 0.0
        last = MIN_BUCKET
        for bucket in sorted(self.counts):
            reached += self.counts[bucket]
            last = bucket
            while len(found) < len(shares) and reached >= shares[len(found)] * weight:
                found.append(_middle(bucket))
        return found + [_middle(last)] * (len(shares) - len(found))  # rounding kept the sum below the whole

    def quantile(self, share: float) -> float | None:
        found = self.quantiles(share)
        return None if found is None else found[0]

    def merge(self, other: Sketch, share: float = 1.0) -> None:
        """Adds `share` of each of the other's weights."""
        for bucket, weight in other.counts.items():
            if (scaled := weight * share) > NEGLIGIBLE:
                self.counts[bucket] = self.counts.get(bucket, 0.0) + scaled
        self.total += other.total * share

    def scale(self, factor: float) -> None:
        self.counts = {
            bucket: scaled for bucket, weight in self.counts.items() if (scaled := weight * factor) > NEGLIGIBLE
        }
        self.total *= factor


def _middle(bucket: int) -> float:
    """The value whose relative distance to both bounds of the bucket is the same."""
    return 2 * math.exp(bucket / _PER_LOG) / (_GAMMA + 1)


class EndpointStatistics(msgspec.Struct, omit_defaults=True):
    """`recent_ttft`: what whoever heard of it last expects of it now; None: its newest attempts are no guide."""

    since: Wall  # the first observation
    heard_at: Wall  # the newest
    ttft: Sketch = msgspec.field(default_factory=Sketch)
    seconds_per_token: Sketch = msgspec.field(default_factory=Sketch)
    successes: Weight = 0.0
    failures: Weight = 0.0
    cache_samples: Weight = 0.0
    input_tokens: Weight = 0.0
    cached_tokens: Weight = 0.0
    recent_ttft: Weight | None = None

    @property
    def samples(self) -> float:
        return self.successes + self.failures

    @property
    def cache_share(self) -> float | None:
        return self.cached_tokens / self.input_tokens if self.input_tokens else None

    @property
    def failure_share(self) -> float:
        return self.failures / self.samples if self.samples else 0.0

    def observe(self, observation: Observation, weight: float) -> None:
        """A success."""
        self.heard_at = observation.wall
        ttft, pace, output = observation.ttft, observation.seconds_per_token, observation.output_tokens
        if pace is not None:
            self.seconds_per_token.add(pace, weight)
        elif output and self.seconds_per_token.counts and (usual := self.seconds_per_token.mean) is not None:
            # A whole answer: without the time for its tokens, or long answers would pass for slow beginnings.
            ttft = max(ttft - usual * min(output, MAX_TOKENS), MIN_VALUE)
        self.ttft.add(ttft, weight)
        self.successes += weight
        inputs, cached = observation.input_tokens, observation.cached_tokens
        if observation.is_reported and inputs and cached is not None:
            self.cache_samples += weight
            self.input_tokens += (inputs if inputs <= MAX_TOKENS else MAX_TOKENS) * weight
            self.cached_tokens += (min(max(cached, 0), inputs, MAX_TOKENS) if cached else 0) * weight

    def merge(self, other: EndpointStatistics, share: float = 1.0) -> None:
        if other.heard_at >= self.heard_at:
            self.heard_at, self.recent_ttft = other.heard_at, other.recent_ttft
        self.since = min(self.since, other.since)
        self.ttft.merge(other.ttft, share)
        self.seconds_per_token.merge(other.seconds_per_token, share)
        self.successes += other.successes * share
        self.failures += other.failures * share
        self.cache_samples += other.cache_samples * share
        self.input_tokens += other.input_tokens * share
        self.cached_tokens += other.cached_tokens * share

    def scale(self, factor: float) -> None:
        self.ttft.scale(factor)
        self.seconds_per_token.scale(factor)
        self.successes *= factor
        self.failures *= factor
        self.cache_samples *= factor
        self.input_tokens *= factor
        self.cached_tokens *= factor


class OutputSum(msgspec.Struct, array_like=True):
    """Output tokens of one choice, over requests of one class of sizes."""

    samples: Weight = 0.0
    tokens: Weight = 0.0


class RouteStatistics(msgspec.Struct, omit_defaults=True):
    """Sums over the requests of one route, of those alone whose usage the provider reported.

    `by_size`: of their output, by `size_of` the roughly counted input.
    """

    since: Wall
    heard_at: Wall
    samples: Weight = 0.0
    output_samples: Weight = 0.0
    output_sum: Weight = 0.0  # tokens of one choice
    input_sum: Weight = 0.0  # as reported
    rough_sum: Weight = 0.0  # as counted roughly, of the same requests
    by_size: Annotated[dict[Annotated[int, Meta(ge=0)], OutputSum], Meta(max_length=MAX_SIZES)] = {}

    @property
    def output_tokens(self) -> float | None:
        return self.output_sum / self.output_samples if self.output_samples else None

    @property
    def input_ratio(self) -> float | None:
        return self.input_sum / self.rough_sum if self.rough_sum else None

    def observe(self, observation: Observation, weight: float) -> None:
        self.heard_at = observation.wall
        self.samples += weight
        inputs, output, rough = observation.input_tokens, observation.output_tokens, observation.rough_input_tokens
        if rough > MAX_TOKENS:
            rough = MAX_TOKENS
        if output is not None:
            if not 0 <= output <= MAX_TOKENS:
                output = min(max(output, 0), MAX_TOKENS)
            tokens = output / max(observation.choices, 1) * weight
            self.output_samples += weight
            self.output_sum += tokens
            size = size_of(rough)
            alike = self.by_size.get(size) or self._alike(size)
            alike.samples += weight
            alike.tokens += tokens
        if inputs and rough > 0:
            self.input_sum += (inputs if inputs <= MAX_TOKENS else MAX_TOKENS) * weight
            self.rough_sum += rough * weight

    def merge(self, other: RouteStatistics, share: float = 1.0) -> None:
        self.heard_at = max(self.heard_at, other.heard_at)
        self.since = min(self.since, other.since)
        self.samples += other.samples * share
        self.output_samples += other.output_samples * share
        self.output_sum += other.output_sum * share
        self.input_sum += other.input_sum * share
        self.rough_sum += other.rough_sum * share
        for size, its in other.by_size.items():
            alike = self._alike(size)
            alike.samples += its.samples * share
            alike.tokens += its.tokens * share

    def scale(self, factor: float) -> None:
        self.samples *= factor
        self.output_samples *= factor
        self.output_sum *= factor
        self.input_sum *= factor
        self.rough_sum *= factor
        for alike in self.by_size.values():
            alike.samples *= factor
            alike.tokens *= factor

    def output_by_size(self, share: float) -> dict[int, float]:
        """Mean output of each class of sizes, drawn towards the mean of all as long as it has few requests.

        `share`: what a weight is worth now (`Learned.share_left`).
        """
        mean = self.output_tokens
        if mean is None:
            return {}
        return {
            size: (alike.tokens * share + DRAWN_BY * mean) / (alike.samples * share + DRAWN_BY)
            for size, alike in self.by_size.items()
        }

    def _alike(self, size: int) -> OutputSum:
        size = min(size, MAX_SIZES - 1)
        found = self.by_size.get(size)
        if found is None:
            found = self.by_size[size] = OutputSum()
        return found


class Learned(msgspec.Struct, omit_defaults=True):
    """What one process has learned, or several together. Weights are relative to the landmark `at`.

    `process`: which process this is the work of; empty: several. `observed`: how many observations it has taken in,
    which says whether there is news.
    """

    half_life: Annotated[float, Meta(gt=0, le=1e9)]
    at: Wall = 0.0
    process: Name = ""
    worker: Name = ""
    observed: Annotated[int, Meta(ge=0)] = 0
    endpoints: Annotated[dict[Name, EndpointStatistics], Meta(max_length=MAX_ENTRIES)] = {}
    routes: Annotated[dict[Name, RouteStatistics], Meta(max_length=MAX_ENTRIES)] = {}

    def succeed(self, endpoint: str, observation: Observation) -> None:
        wall = observation.wall
        weight = self._weight_of(wall)
        (self.endpoints.get(endpoint) or self._endpoint(endpoint, wall)).observe(observation, weight)
        if observation.is_reported:
            route = observation.route
            (self.routes.get(route) or self._route(route, wall)).observe(observation, weight)
        self.observed += 1

    def fail(self, endpoint: str, wall: float) -> None:
        weight = self._weight_of(wall)  # first: it may move the landmark
        statistics = self._endpoint(endpoint, wall)
        statistics.heard_at = wall
        statistics.failures += weight
        self.observed += 1

    def advance(self, wall: float) -> None:
        """Moves the landmark to `wall`. A clock that was set back is followed, and nothing decays by that."""
        if wall > self.at:
            self._scale(self.share_left(wall))
            self.at = wall
        elif wall < self.at - CLOCK_STEP:
            self._follow_clock(wall)

    def share_left(self, wall: float) -> float:
        """What a weight of 1 is worth at `wall`."""
        return float(0.5 ** (max(wall - self.at, 0.0) / self.half_life))

    def merge(self, other: Learned) -> None:
        """Adds what `other` has, at the later of the two landmarks. `other` stays as it is."""
        self.advance(max(self.at, other.at))
        share = other.share_left(self.at)
        for name, endpoint in other.endpoints.items():
            self._endpoint(name, endpoint.since).merge(endpoint, share)
        for name, route in other.routes.items():
            self._route(name, route.since).merge(route, share)
        self.observed += other.observed

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    def prune(self, wall: float, max_age: float) -> bool:
        """Forgets what there was no news of for `max_age` seconds. True: something was."""
        if wall < self.at - CLOCK_STEP:
            self._follow_clock(wall)
        old = [name for name, endpoint in self.endpoints.items() if wall - endpoint.heard_at > max_age]
        gone = [name for name, route in self.routes.items() if wall - route.heard_at > max_age]
        for name in old:
            del self.endpoints[name]
        for name in gone:
            del self.routes[name]
        return bool(old or gone)

    def forget(self, names: Collection[str], *, before: float = math.inf) -> bool:
        """Forgets these endpoints and routes, as far as they were first heard of `before`. True: something was."""
        old = {name for name in names if name in self.endpoints and self.endpoints[name].since < before}
        gone = {name for name in names if name in self.routes and self.routes[name].since < before}
        for name in old:
            del self.endpoints[name]
        for name in gone:
            del self.routes[name]
        return bool(old or gone)

    def _weight_of(self, wall: float) -> float:
        since = wall - self.at
        if since > REBASE_AFTER * self.half_life or since < -CLOCK_STEP:
            self.advance(wall)
            since = wall - self.at
        return float(2.0 ** (since / self.half_life))

    def _endpoint(self, name: str, since: float) -> EndpointStatistics:
        found = self.endpoints.get(name)
        if found is None:
            _make_room(self.endpoints)
            found = self.endpoints[name] = EndpointStatistics(since, since)
        return found

    def _route(self, name: str, since: float) -> RouteStatistics:
        found = self.routes.get(name)
        if found is None:
            _make_room(self.routes)
            found = self.routes[name] = RouteStatistics(since, since)
        return found

    def _follow_clock(self, wall: float) -> None:
        """The clock was set back. What was in its future is now, or it would stay the newest until time is there."""
        self.at = wall
        entries: list[EndpointStatistics | RouteStatistics] = [*self.endpoints.values(), *self.routes.values()]
        for entry in entries:
            entry.since, entry.heard_at = min(entry.since, wall), min(entry.heard_at, wall)

    def _scale(self, factor: float) -> None:
        for endpoint in self.endpoints.values():
            endpoint.scale(factor)
        for route in self.routes.values():
            route.scale(factor)


class Frozen(msgspec.Struct, frozen=True):
    """A learned number that is kept at `value` because what was learned since is not believed."""

    number: Number
    name: Name  # of the endpoint or the route
    value: Weight
    since: Wall
    reason: Annotated[str, Meta(max_length=1024)]


class Published(msgspec.Struct):
    """What the control plane gives to every worker: the work of processes that are gone, and of each that is not, so
    that each can leave out its own. `forgotten`: when an operator had a name, or EVERYTHING, forgotten."""

    version: Annotated[str, Meta(max_length=64)]
    at: Wall
    base: Learned
    parts: Annotated[list[Learned], Meta(max_length=MAX_ENTRIES)] = []
    frozen: Annotated[list[Frozen], Meta(max_length=4 * MAX_ENTRIES)] = []
    forgotten: Annotated[dict[Name, Wall], Meta(max_length=MAX_FORGOTTEN)] = {}


_decode_learned = msgspec.json.Decoder(Learned).decode
_decode_published = msgspec.json.Decoder(Published).decode


def read_learned(content: bytes) -> Learned:
    """What a worker exported. Raises ValueError."""
    return _read(content, _decode_learned)


def read_published(content: bytes) -> Published:
    """What the control plane published. Raises ValueError."""
    return _read(content, _decode_published)


def forget(learned: Learned, forgotten: Mapping[str, float]) -> bool:
    """Applies `Published.forgotten`. True: something was forgotten."""
    found = False
    for name, at in forgotten.items():
        names = [*learned.endpoints, *learned.routes] if name == EVERYTHING else [name]
        found = learned.forget(names, before=at) or found
    return found


def _make_room(entries: dict[str, EndpointStatistics] | dict[str, RouteStatistics]) -> None:
    if len(entries) >= MAX_ENTRIES:
        del entries[min(entries, key=lambda name: entries[name].heard_at)]


def _read(content: bytes, decode: Callable[[bytes], T]) -> T:
    if len(content) > MAX_BYTES:
        raise ValueError(f"learned numbers of {len(content)} bytes: more than {MAX_BYTES}")
    try:
        return decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"learned numbers that cannot be read: {error}") from None
