"""The metrics of all processes, added up, as OTLP's: cumulative, with the conventions' names where they have any.

`hatchway_spool_bytes` becomes `hatchway.spool_bytes`; a unit at the end of a name becomes the metric's unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from gateway.telemetry.conventions import OTLP_ATTRIBUTES, OTLP_NAMES
from gateway.telemetry.exposition import Family, Labels

_CUMULATIVE = AggregationTemporality.CUMULATIVE
_UNITS = {"_seconds": "s", "_bytes": "By"}


class MetricsWriter:
    """Remembers since when each series counts: one that has become smaller began anew, with a process."""

    def __init__(self, now_ns: int) -> None:
        self._since_ns = now_ns
        self._started: dict[tuple[str, Labels], tuple[int, float]] = {}

    def write(
        self, families: Mapping[str, Family], resource: Resource, scope: InstrumentationScope, now_ns: int
    ) -> MetricsData:
        metrics = [metric for family in families.values() if (metric := self._metric(family, now_ns)) is not None]
        scopes = [ScopeMetrics(scope=scope, metrics=metrics, schema_url="")]
        return MetricsData([ResourceMetrics(resource=resource, scope_metrics=scopes, schema_url="")])

    def _metric(self, family: Family, now_ns: int) -> Metric | None:
        if not family.sums:
            return None
        name, unit = _name(family.name)
        if family.kind == "histogram":
            return Metric(name, family.documentation, unit, Histogram(self._histograms(family, now_ns), _CUMULATIVE))
        points = [
            NumberDataPoint(_attributes(labels), self._start(sample, labels, value, now_ns), now_ns, value)
            for (sample, labels), value in family.sums.items()
        ]
        if family.kind == "counter":
            return Metric(name, family.documentation, unit, Sum(points, _CUMULATIVE, is_monotonic=True))
        return Metric(name, family.documentation, unit, Gauge(points))

    def _histograms(self, family: Family, now_ns: int) -> list[HistogramDataPoint]:
        buckets: defaultdict[Labels, list[tuple[float, float]]] = defaultdict(list)
        sums: dict[Labels, float] = {}
        for (sample, labels), value in family.sums.items():
            if sample.endswith("_bucket"):
                rest = tuple(pair for pair in labels if pair[0] != "le")
                buckets[rest].append((float(dict(labels)["le"]), value))
            elif sample.endswith("_sum"):
                sums[labels] = value
        points = []
        for labels, found in buckets.items():
            found.sort()
            counts = [int(count - before) for (_, count), (_, before) in zip(found, [(0, 0), *found], strict=False)]
            total = int(found[-1][1])
            points.append(
                HistogramDataPoint(
                    attributes=_attributes(labels),
                    start_time_unix_nano=self._start(family.name, labels, total, now_ns),
                    time_unix_nano=now_ns,
                    count=total,
                    sum=sums.get(labels, 0.0),
                    bucket_counts=counts,
                    explicit_bounds=[bound for bound, _ in found[:-1]],
                    min=None,  # type: ignore[arg-type]  # nobody kept it, and OTLP lets it be left out
                    max=None,  # type: ignore[arg-type]  # likewise
                )
            )
        return points

    def _start(self, name: str, labels: Labels, value: float, now_ns: int) -> int:
        since, last = self._started.get((name, labels), (self._since_ns, 0.0))
        if value < last:
            since = now_ns
        self._started[name, labels] = since, value
        return since


def _name(name: str) -> tuple[str, str]:
    """Name and unit."""
    if name in OTLP_NAMES:
        return OTLP_NAMES[name]
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return name.removesuffix(ending).replace("_", ".", 1), unit
    return name.replace("_", ".", 1), "1"


def _attributes(labels: Labels) -> dict[str, str]:
    """What is empty is left out: it says that there is none."""
    return {OTLP_ATTRIBUTES.get(name, name): value for name, value in labels if value}
