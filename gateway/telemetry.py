"""Metrics of one process, in Prometheus' terms, and the set-up of its log.

Each worker counts for itself; the control plane adds the workers up when `/metrics` is read.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from msgspec.structs import astuple
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from gateway.types import BUCKETS, Shift, Status, Usage

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
MAX_UNPRICED = 100
"""Endpoints and models without a price that are told apart."""
OTHER = "other"


class Metrics:
    """Everything a data-plane worker counts. Label values come from configuration or are fixed, never from clients; but
    for models without a price, of which there is a bounded number.

    Counted in plain integers by the event loop's thread alone, and put into Prometheus' terms only when asked: its
    client's own counters take a lock for each increment.
    """

    def __init__(self) -> None:
        self._requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._refused: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._attempts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._ttft: dict[str, _Histogram] = {}
        self._hedges: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._shed: defaultdict[tuple[str], int] = defaultdict(int)
        self._shadows: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._continuations: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._prompts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._unpriced: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._doubts: defaultdict[tuple[str], int] = defaultdict(int)
        self._in_flight = 0
        self._spool_errors = 0
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

    def attempt(self, endpoint: str, status: Status, usage: Usage | None, ttft: float | None) -> None:
        self._attempts[endpoint, status] += 1
        if ttft is not None:
            histogram = self._ttft.get(endpoint)
            if histogram is None:
                histogram = self._ttft[endpoint] = _Histogram()
            histogram.observe(ttft)
        if usage is not None:
            for bucket, count in zip(BUCKETS, astuple(usage), strict=True):
                if count:
                    self._tokens[endpoint, bucket] += count

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

    def configuration(self, version: str) -> None:
        self._version = version

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
        yield _counter(
            "hatchway_attempts", "Attempts at endpoints, by outcome", ("endpoint", "status"), self._attempts.items()
        )
        yield _counter(
            "hatchway_tokens", "Tokens counted, by endpoint and bucket", ("endpoint", "bucket"), self._tokens.items()
        )
        yield _counter(
            "hatchway_unpriced_attempts",
            "Attempts with usage that nobody prices, by endpoint and model",
            ("endpoint", "model"),
            self._unpriced.items(),
        )
        ttft = HistogramMetricFamily(
            "hatchway_upstream_ttft_seconds",
            "Request sent to first content (streamed) or whole answer",
            labels=("endpoint",),
        )
        for endpoint, histogram in self._ttft.items():
            ttft.add_metric((endpoint,), histogram.cumulated(), histogram.sum)
        yield ttft
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

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


class _Histogram:
    """Counts by the upper bounds of `SECONDS`."""

    def __init__(self) -> None:
        self.sum = 0.0
        self._counts = [0] * (len(SECONDS) + 1)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def cumulated(self) -> list[tuple[str, float]]:
        bounds = [*map(floatToGoString, SECONDS), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


def _counter(
    name: str, documentation: str, labels: tuple[str, ...], counts: Iterable[tuple[tuple[object, ...], int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, count in counts:
        family.add_metric([str(value) for value in values], count)
    return family


def set_up_log(process: str, level: int = logging.INFO) -> None:
    """One line per message on standard error, with the process's name; standard output stays for data."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class ControlMetrics:
    """What the control plane counts: the ledger's way into PostgreSQL, the state of the configuration."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._rows = Counter("hatchway_ledger_rows", "Usage events shipped to PostgreSQL", registry=registry)
        self._rejected = Counter(
            "hatchway_ledger_rejected", "Spooled records put aside because they cannot be stored", registry=registry
        )
        self._failures = Counter("hatchway_ledger_failures", "Times that shipping failed", registry=registry)
        self._pending = Gauge("hatchway_ledger_pending_bytes", "Bytes in the spool not yet shipped", registry=registry)
        self._pending_seconds = Gauge(
            "hatchway_ledger_pending_seconds",
            "Age of the oldest spooled record not yet shipped",
            registry=registry,
        )
        self._spool_bytes = Gauge("hatchway_spool_bytes", "Bytes of all spools, shipped or not", registry=registry)
        self._damaged = Counter(
            "hatchway_ledger_damaged", "Places of the spool where lines are missing or misplaced", registry=registry
        )
        self._bad_configuration = Gauge(
            "hatchway_configuration_rejected", "1 while the configuration on disk is wrong", registry=registry
        )
        self._frozen = Gauge("hatchway_learned_frozen", "Learned numbers frozen because they drift", registry=registry)
        self._refused = Counter(
            "hatchway_admin_refused", "Calls of the admin API that were not let in", ("reason",), registry=registry
        )
        self._budgets = Gauge(
            "hatchway_budget_spent_ratio",
            "Share of a budget that is spent in its current period",
            ("account",),
            registry=registry,
        )
        self._budget_alerts = Counter(
            "hatchway_budget_alerts", "Thresholds of budgets that were reached", ("account",), registry=registry
        )
        self._stale_leases = Gauge(
            "hatchway_budget_stale_leases",
            "Holders of leases that do not renew them",
            registry=registry,
        )
        self._shifts = Gauge(
            "hatchway_escape_share",
            "Share of its requests that an escape has moved away from an endpoint",
            ("source", "target"),
            registry=registry,
        )

    def shipped(self, rows: int, rejected: int, pending_bytes: int) -> None:
        self._rows.inc(rows)
        self._rejected.inc(rejected)
        self._pending.set(pending_bytes)

    def backlog(self, pending_bytes: int, seconds: float, spool_bytes: int) -> None:
        """What is not shipped: bytes, the age of the oldest of it, and the bytes of all spools."""
        self._pending.set(pending_bytes)
        self._pending_seconds.set(seconds)
        self._spool_bytes.set(spool_bytes)

    def spool_damaged(self, places: int) -> None:
        self._damaged.inc(places)

    def shipping_failed(self) -> None:
        self._failures.inc()

    def configuration_rejected(self, is_rejected: bool) -> None:
        self._bad_configuration.set(int(is_rejected))

    def frozen(self, count: int) -> None:
        self._frozen.set(count)

    def access_refused(self, reason: str) -> None:
        """`reason`: the code of the error; there are a few, none from outside."""
        self._refused.labels(reason).inc()

    def budgets(self, spent: Mapping[str, float]) -> None:
        """`spent`: by account the share of its budget that is spent in the current period."""
        self._budgets.clear()
        for account, share in spent.items():
            self._budgets.labels(account).set(share)

    def budget_alert(self, account: str) -> None:
        self._budget_alerts.labels(account).inc()

    def stale_leases(self, count: int) -> None:
        self._stale_leases.set(count)

    def shifted(self, shifts: Sequence[Shift]) -> None:
        self._shifts.clear()
        for shift in shifts:
            self._shifts.labels(shift.source, shift.target).set(shift.share)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)


def merge_expositions(texts: Sequence[bytes]) -> bytes:
    """Several processes' metrics as one: samples of the same name and labels are added up.

    Adding is right for counters, histograms and the gauges used here; times of creation are left out.
    """
    families: dict[str, tuple[str, str]] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            families.setdefault(family.name, (family.type, family.documentation))
            samples = sums.setdefault(family.name, {})
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    key = sample.name, tuple(sample.labels.items())
                    samples[key] = samples.get(key, 0.0) + sample.value
    lines: list[str] = []
    for name, (kind, documentation) in families.items():
        if not sums[name]:
            continue
        full_name = f"{name}_total" if kind == "counter" else name
        lines += [f"# HELP {full_name} {documentation}", f"# TYPE {full_name} {kind}"]
        lines += [f"{sample}{_labels(labels)} {value}" for (sample, labels), value in sums[name].items()]
    return ("\n".join(lines) + "\n").encode()


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return ""
    escaped = (value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for _, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for (name, _), value in zip(labels, escaped, strict=True)) + "}"
