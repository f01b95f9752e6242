"""Metrics of one process, in Prometheus' terms, and the set-up of its log.

Each worker counts for itself; the control plane adds the workers up when `/metrics` is read.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.types import Status, Usage

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Everything a data-plane worker counts. Label values come from configuration or are fixed, never from clients."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "hatchway_requests",
            "Answered requests, by surface and HTTP status",
            ["surface", "status"],
            registry=registry,
        )
        self._refused = Counter(
            "hatchway_refused_requests",
            "Requests refused before any upstream was called; they have no ledger row",
            ["status", "reason"],
            registry=registry,
        )
        self._attempts = Counter(
            "hatchway_attempts", "Attempts at endpoints, by outcome", ["endpoint", "status"], registry=registry
        )
        self._tokens = Counter(
            "hatchway_tokens", "Tokens counted, by endpoint and bucket", ["endpoint", "bucket"], registry=registry
        )
        self._ttft = Histogram(
            "hatchway_upstream_ttft_seconds",
            "Request sent to first content (streamed) or whole answer",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge("hatchway_in_flight_requests", "Requests being served", registry=registry)
        self._spool_errors = Counter(
            "hatchway_spool_errors", "Ledger records that could not be written", registry=registry
        )
        self._configuration = Gauge(
            "hatchway_configuration_info", "The configuration in force", ["version"], registry=registry
        )
        self._attempt_children: dict[tuple[str, str], Counter] = {}
        self._request_children: dict[tuple[str, int], Counter] = {}

    def request_started(self) -> None:
        self._in_flight.inc()

    def request_finished(self, surface: str, status: int) -> None:
        self._in_flight.dec()
        child = self._request_children.get((surface, status))
        if child is None:
            child = self._request_children[surface, status] = self._requests.labels(surface, str(status))
        child.inc()

    def refused(self, status: int, reason: str) -> None:
        self._refused.labels(str(status), reason).inc()

    def attempt(self, endpoint: str, status: Status, usage: Usage | None, ttft: float | None) -> None:
        child = self._attempt_children.get((endpoint, status))
        if child is None:
            child = self._attempt_children[endpoint, status] = self._attempts.labels(endpoint, status)
        child.inc()
        if ttft is not None:
            self._ttft.labels(endpoint).observe(ttft)
        if usage is not None:
            for bucket in usage.__struct_fields__:
                count = getattr(usage, bucket)
                if count:
                    self._tokens.labels(endpoint, bucket).inc(count)

    def spool_error(self) -> None:
        self._spool_errors.inc()

    def configuration(self, version: str) -> None:
        self._configuration.clear()
        self._configuration.labels(version).set(1)

    def exposition(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return generate_latest(self._registry)


def set_up_log(process: str, level: int = logging.INFO) -> None:
    """One line per message on standard error, with the process's name; standard output stays for data."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "alembic"):
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
        self._bad_configuration = Gauge(
            "hatchway_configuration_rejected", "1 while the configuration on disk is wrong", registry=registry
        )

    def shipped(self, rows: int, rejected: int, pending_bytes: int) -> None:
        self._rows.inc(rows)
        self._rejected.inc(rejected)
        self._pending.set(pending_bytes)

    def shipping_failed(self) -> None:
        self._failures.inc()

    def configuration_rejected(self, is_rejected: bool) -> None:
        self._bad_configuration.set(int(is_rejected))

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
