"""Metrics of a worker, in Prometheus' terms. The control plane adds the workers up when `/metrics` is read."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from msgspec.structs import astuple
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from gateway.config.model import AS_ASKED, Endpoint
from gateway.telemetry.conventions import (
    DURATION_BOUNDS,
    FIRST_CHUNK,
    OPERATION_DURATION,
    OPERATIONS,
    OVERHEAD_BOUNDS,
    PROVIDERS,
    TOKEN_BOUNDS,
    TOKEN_USAGE,
)
from gateway.types import BUCKETS, Status, Usage

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
MAX_MODELS = 100
"""Models named by clients that histograms tell apart, where an endpoint takes any."""
MAX_SERIES = 4096
"""Combinations of endpoint, surface and model that are found at once."""
MAX_UNPRICED = 100
"""Endpoints and models without a price that are told apart."""
OTHER = "other"
MAX_NOTED = 64
"""Attempts of a series that are noted before they are counted: together it costs a third of one by one."""

_FIRST_OUTPUT = BUCKETS.index("output_tokens")  # the buckets before it are input
_SeriesLabels = tuple[str, str, str, str]  # endpoint, operation, provider, model
_GEN_AI = ("endpoint", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")


class Metrics:
    """Everything a data-plane worker counts. Label values come from configuration or are fixed, never from clients; but
    for models without a price, of which there is a bounded number.

    Counted in plain integers by the event loop's thread alone, and put into Prometheus' terms only when asked: its
    client's own counters take a lock for each increment.
    """

    def __init__(self) -> None:
        self._requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._refused: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._series: dict[_SeriesLabels, _Series] = {}
        # The same by what an attempt knows, so that it looks once. A new configuration may give an endpoint's id to
        # another provider: then it begins anew.
        self._series_of: dict[tuple[str, str, str], _Series] = {}
        self._models: set[str] = set()  # that clients named
        self._overhead: dict[str, _Histogram] = {}
        self._queue = _Histogram(SECONDS)
        self._hedges: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._shed: defaultdict[tuple[str], int] = defaultdict(int)
        self._shadows: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._continuations: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._prompts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._unpriced: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._doubts: defaultdict[tuple[str], int] = defaultdict(int)
        self._in_flight = 0
        self._spool_errors = 0
        self._traces_dropped = 0
        self.states: Callable[[], Mapping[str, str]] = dict
        """Asked when metrics are read: the circuit breaker's state of each endpoint."""
        self.waiting: Callable[[], int] = int
        """Likewise: requests that wait for their turn."""
        self.spool: Callable[[], tuple[bool, int, int]] = lambda: (False, 0, 0)
        """Likewise: whether the spool is full, the records that wait in memory for it, those that found no room."""
        self._version = ""

    def request_started(self) -> None:
        self._in_flight += 1

    def request_finished(self, surface: str, status: int) -> None:
        self._in_flight -= 1
        self._requests[surface, status] += 1

    def refused(self, status: int, reason: str) -> None:
        self._refused[status, reason] += 1

    def attempt(
        self,
        endpoint: Endpoint,
        surface: str,
        model: str,
        status: Status,
        usage: Usage | None,
        ttft: float | None,
        duration: float,
        streams: bool = False,
        error_type: str | None = None,
    ) -> None:
        """An attempt that is over. `model`: the upstream's; `ttft`, `duration`: seconds."""
        series = self._series_of.get((endpoint.id, surface, model))
        if series is None:
            series = self._find_series(endpoint, surface, model)
        noted = series.noted
        noted.append((status, usage, ttft, duration, streams, error_type))
        if len(noted) >= MAX_NOTED:
            series.count()

    def _find_series(self, endpoint: Endpoint, surface: str, model: str) -> _Series:
        named = model
        if endpoint.model == AS_ASKED and model not in self._models:
            if len(self._models) < MAX_MODELS:
                self._models.add(model)
            else:
                named = OTHER
        adapter = endpoint.provider.adapter
        labels = (endpoint.id, OPERATIONS.get(surface, surface), PROVIDERS.get(adapter, adapter), named)
        series = self._series.setdefault(labels, _Series())
        if len(self._series_of) < MAX_SERIES:
            self._series_of[endpoint.id, surface, model] = series
        return series

    def overhead(self, surface: str, seconds: float) -> None:
        """What the gateway itself added to a request that was served: from its arrival until it was sent upstream,
        less its time in queues, and from the upstream's first content (its whole answer, where that is not streamed)
        until that was handed to the client's socket."""
        histogram = self._overhead.get(surface)
        if histogram is None:
            histogram = self._overhead[surface] = _Histogram(OVERHEAD_BOUNDS)
        histogram.observe(seconds)

    def queued(self, seconds: float) -> None:
        """A request had to wait for its turn."""
        self._queue.observe(seconds)

    def hedge(self, policy: str, outcome: Literal["won", "lost", "refused"]) -> None:
        """`won`: the second attempt served; `refused`: the cost cap kept it from being made."""
        self._hedges[policy, outcome] += 1

    def shed(self, gate: str) -> None:
        """`gate`: `server`, or the endpoint whose queue was full."""
        self._shed[gate,] += 1

    def shadow(self, endpoint: str, outcome: Literal["sent", "skipped"]) -> None:
        self._shadows[endpoint, outcome] += 1

    def continuation(self, endpoint: str, outcome: Literal["served", "failed"]) -> None:
        """`endpoint`: the one that went on with another's stream."""
        self._continuations[endpoint, outcome] += 1

    def prompt(self, policy: str, outcome: Literal["kept", "failed"]) -> None:
        """What was asked and answered under a policy that keeps it."""
        self._prompts[policy, outcome] += 1

    def usage_doubted(self, endpoint: str) -> None:
        """The upstream's count cannot be true, and an estimate takes its place."""
        self._doubts[endpoint,] += 1

    def unpriced(self, endpoint: str, model: str) -> bool:
        """An attempt has usage and no price. Whether it is the first of this model at this endpoint. Clients may invent
        models: past a bound their attempts are counted as those of `other`, and are not the first."""
        is_known = (endpoint, model) in self._unpriced
        is_new = not is_known and len(self._unpriced) < MAX_UNPRICED
        self._unpriced[endpoint, model if is_known or is_new else OTHER] += 1
        return is_new

    def spool_error(self) -> None:
        self._spool_errors += 1

    def trace_dropped(self) -> None:
        """There was no room for the trace of a request."""
        self._traces_dropped += 1

    def configuration(self, version: str) -> None:
        self._version = version
        self._series_of.clear()

    def collect(self) -> Iterator[Metric]:
        """For `prometheus_client`: the counts as metric families."""
        yield _counter(
            "hatchway_requests",
            "Answered requests, by surface and HTTP status",
            ("surface", "status"),
            self._requests.items(),
        )
        yield _counter(
            "hatchway_refused_requests",
            "Requests refused before any upstream was called; they have no ledger row",
            ("status", "reason"),
            self._refused.items(),
        )
        yield from self._collect_attempts()
        yield _counter(
            "hatchway_unpriced_attempts",
            "Attempts with usage that nobody prices, by endpoint and model",
            ("endpoint", "model"),
            self._unpriced.items(),
        )
        yield _histograms(
            "hatchway_gateway_overhead_seconds",
            "What the gateway itself adds to a request, by surface",
            ("surface",),
            (((surface,), histogram) for surface, histogram in self._overhead.items()),
        )
        yield _histograms(
            "hatchway_queue_seconds", "Time in queues, of requests that had to wait", (), [((), self._queue)]
        )
        yield _counter(
            "hatchway_hedges", "Hedged attempts, by policy and outcome", ("policy", "outcome"), self._hedges.items()
        )
        yield _counter("hatchway_shed_requests", "Requests shed under load, by gate", ("gate",), self._shed.items())
        yield _counter(
            "hatchway_shadows", "Shadow copies, by endpoint and outcome", ("endpoint", "outcome"), self._shadows.items()
        )
        yield _counter(
            "hatchway_continuations",
            "Streams that another endpoint went on with, by that endpoint and outcome",
            ("endpoint", "outcome"),
            self._continuations.items(),
        )
        yield _counter(
            "hatchway_prompts", "Requests of policies that keep them", ("policy", "outcome"), self._prompts.items()
        )
        states = GaugeMetricFamily(
            "hatchway_endpoint_state", "Workers that see the endpoint in this state", labels=("endpoint", "state")
        )
        for endpoint, state in self.states().items():
            states.add_metric((endpoint, state), 1)
        yield states
        yield GaugeMetricFamily("hatchway_waiting_requests", "Requests waiting for their turn", value=self.waiting())
        yield GaugeMetricFamily("hatchway_in_flight_requests", "Requests being served", value=self._in_flight)
        yield CounterMetricFamily(
            "hatchway_spool_errors", "Ledger records that could not be written", value=self._spool_errors
        )
        yield CounterMetricFamily(
            "hatchway_traces_dropped", "Traces for which there was no room", value=self._traces_dropped
        )
        is_full, held, lost = self.spool()
        yield GaugeMetricFamily("hatchway_spool_full", "Workers whose spool takes nothing", value=int(is_full))
        yield GaugeMetricFamily("hatchway_spool_held", "Ledger records held in memory", value=held)
        yield CounterMetricFamily("hatchway_spool_lost", "Ledger records that found no room anywhere", value=lost)
        yield _counter(
            "hatchway_doubted_usage", "Counts of upstreams that cannot be true", ("endpoint",), self._doubts.items()
        )
        info = GaugeMetricFamily("hatchway_configuration_info", "The configuration in force", labels=("version",))
        info.add_metric((self._version,), 1)
        yield info

    def _collect_attempts(self) -> Iterator[Metric]:
        """What is counted by series: for ours, the sums over those of an endpoint."""
        attempts: defaultdict[tuple[str, str], int] = defaultdict(int)
        tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        ttft: dict[tuple[str], _Histogram] = {}
        for (endpoint, *_), series in self._series.items():
            series.count()
            for status, count in series.statuses.items():
                attempts[endpoint, status] += count
            for bucket, count in zip(BUCKETS, series.tokens, strict=True):
                if count:
                    tokens[endpoint, bucket] += count
            ttft.setdefault((endpoint,), _Histogram(SECONDS)).add(series.ttft)
        yield _counter(
            "hatchway_attempts", "Attempts at endpoints, by outcome", ("endpoint", "status"), attempts.items()
        )
        yield _counter(
            "hatchway_tokens", "Tokens counted, by endpoint and bucket", ("endpoint", "bucket"), tokens.items()
        )
        yield _histograms(
            "hatchway_upstream_ttft_seconds",
            "Request sent to first content (streamed) or whole answer",
            ("endpoint",),
            ttft.items(),
        )
        yield _histograms(
            TOKEN_USAGE,
            "Input and output tokens of an attempt, cached ones included",
            (*_GEN_AI, "gen_ai_token_type"),
            (
                ((*labels, kind), histogram)
                for labels, series in self._series.items()
                for kind, histogram in (("input", series.input), ("output", series.output))
            ),
        )
        yield _histograms(
            OPERATION_DURATION,
            "How long an attempt took; `error_type` is empty where it was served",
            (*_GEN_AI, "error_type"),
            (
                ((*labels, error_type or ""), histogram)
                for labels, series in self._series.items()
                for error_type, histogram in series.durations.items()
            ),
        )
        yield _histograms(
            FIRST_CHUNK,
            "Request sent to first content, of streams",
            _GEN_AI,
            ((labels, series.first_chunk) for labels, series in self._series.items()),
        )

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


class _Histogram:
    """Counts by upper bounds."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.sum = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Collection[float]) -> None:
        bounds, counts = self._bounds, self._counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.sum += sum(values)

    def add(self, other: _Histogram) -> None:
        """Of the same bounds."""
        self.sum += other.sum
        self._counts = [mine + its for mine, its in zip(self._counts, other._counts, strict=True)]

    def cumulated(self) -> list[tuple[str, float]]:
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


class _Series:
    """The attempts of one operation on one model at one endpoint. `noted`: those that are not counted yet, as
    `Metrics.attempt` is told of them."""

    __slots__ = ("durations", "first_chunk", "input", "noted", "output", "statuses", "tokens", "ttft")

    def __init__(self) -> None:
        self.noted: list[tuple[Status, Usage | None, float | None, float, bool, str | None]] = []
        self.statuses: Counter[Status] = Counter()
        self.tokens = [0] * len(BUCKETS)
        self.input = _Histogram(TOKEN_BOUNDS)
        self.output = _Histogram(TOKEN_BOUNDS)
        self.ttft = _Histogram(SECONDS)
        self.first_chunk = _Histogram(DURATION_BOUNDS)
        self.durations: dict[str | None, _Histogram] = {}  # by type of error

    def count(self) -> None:
        if not self.noted:
            return
        statuses, usages, ttfts, durations, streams, errors = zip(*self.noted, strict=True)
        self.noted.clear()
        self.statuses.update(statuses)
        for error in set(errors):
            histogram = self.durations.setdefault(error, _Histogram(DURATION_BOUNDS))
            histogram.observe_all([one for one, its in zip(durations, errors, strict=True) if its == error])
        self.ttft.observe_all([one for one in ttfts if one is not None])
        self.first_chunk.observe_all([one for one, its in zip(ttfts, streams, strict=True) if its and one is not None])
        counts = [one for one in (astuple(usage) for usage in usages if usage is not None) if any(one)]
        self.tokens = [sum(bucket) for bucket in zip(self.tokens, *counts, strict=True)]
        self.input.observe_all([sum(one[:_FIRST_OUTPUT]) for one in counts])
        self.output.observe_all([sum(one[_FIRST_OUTPUT:]) for one in counts])


def _counter(
    name: str, documentation: str, labels: tuple[str, ...], counts: Iterable[tuple[tuple[object, ...], int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, count in counts:
        family.add_metric([str(value) for value in values], count)
    return family


def _histograms(
    name: str,
    documentation: str,
    labels: tuple[str, ...],
    histograms: Iterable[tuple[tuple[str, ...], _Histogram]],
) -> HistogramMetricFamily:
    """Those that have counted anything."""
    family = HistogramMetricFamily(name, documentation, labels=labels)
    for values, histogram in histograms:
        buckets = histogram.cumulated()
        if buckets[-1][1]:
            family.add_metric(values, buckets, histogram.sum)
    return family
