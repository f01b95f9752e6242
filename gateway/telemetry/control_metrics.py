"""Metrics of the control plane, in Prometheus' terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from gateway.types import Shift


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
        self._exports = Counter(
            "hatchway_exports", "Exports to a collector, by outcome", ("signal", "outcome"), registry=registry
        )
        self._shifts = Gauge(
            "hatchway_escape_share",
            "Share of its requests that an escape has moved away from an endpoint",
            ("source", "target"),
            registry=registry,
        )

    def exported(self, signal: str, outcome: str) -> None:
        """`signal`: `traces` or `metrics`; `outcome`: `ok` or `failed`, and then what it held is gone."""
        self._exports.labels(signal, outcome).inc()

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
