"""What an endpoint gives for its money: tokens for a dollar, success, latency; and how far our own machines are used.

A machine of ours (`Capacity`) costs by the hour whether or not it is used. The ledger has what its tokens cost at full
load; what is left of the reserved hours is idle, and the effective price of a token has both in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Context, Decimal

import msgspec
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from gateway.accounting.reports import MONEY_STEP, period, shown_cost
from gateway.accounting.sheets import Cell, Kind, Sheet, utc, visible
from gateway.config.model import Capacity, Endpoint
from gateway.store.performance import EndpointRecord, endpoint_records
from gateway.store.usage import UsageRow, usage_of
from gateway.store.usage_query import Question

FIGURES: dict[str, Kind] = {
    **{"attempts": "count", "ok": "count", "cancelled": "count", "success_rate": "number"},
    **{"ttft_p50_ms": "number", "ttft_p95_ms": "number", "duration_p50_ms": "number", "duration_p95_ms": "number"},
    **{"tokens_per_second": "number", "total_tokens": "count", "cost_usd": "money", "unpriced": "count"},
    **{"tokens_per_usd": "number", "reserved_hours": "number", "reserved_usd": "money", "used_hours": "number"},
    **{"utilisation": "number", "idle_usd": "money", "effective_usd_per_million": "money"},
    **{"reads_stated": "number", "reads_busiest": "number", "writes_stated": "number", "writes_busiest": "number"},
}
_DIGITS = Context(prec=28)
_HOUR = Decimal(3600)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """How far a machine of ours was used. USD; hours; tokens a second.

    `reserved_hours`: of the period. `used_hours`: those that its tokens would take at full load. `idle_usd`: what the
    others cost, without energy. `effective_usd_per_million`: of all tokens, the idle hours in it; None: there are none.
    """

    capacity: Capacity
    reserved_hours: Decimal
    reserved_usd: Decimal
    used_hours: Decimal
    utilisation: Decimal
    idle_usd: Decimal
    effective_usd_per_million: Decimal | None
    busiest_read: Decimal  # in the busiest hour
    busiest_written: Decimal


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint. `usage`: None without attempts; `machine`: of an endpoint with a capacity."""

    endpoint: str
    record: EndpointRecord | None
    usage: UsageRow | None
    machine: Machine | None = None

    @property
    def success_rate(self) -> float | None:
        """Of the attempts that nobody hung up on."""
        if self.record is None or self.record.attempts == self.record.cancelled:
            return None
        return self.record.ok / (self.record.attempts - self.record.cancelled)

    @property
    def tokens_per_second(self) -> float | None:
        """Written, of one stream, from its first content to its end."""
        if self.record is None or self.record.streaming_ms <= 0:
            return None
        return self.record.streamed_tokens * 1000 / self.record.streaming_ms

    @property
    def tokens_per_usd(self) -> Decimal | None:
        """None where a part of the cost is not known, or nothing was paid."""
        if self.usage is None or self.usage.unpriced or not self.usage.cost_usd:
            return None
        return _DIGITS.divide(Decimal(self.usage.total_tokens), self.usage.cost_usd)


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    since: datetime | None
    until: datetime | None
    zone: str
    lines: list[Line]


def performance(
    engine: Engine,
    endpoints: Mapping[str, Endpoint],
    since: datetime | None,
    until: datetime | None,
    now: datetime,
    *,
    zone: str = "UTC",
    patience: float | None = None,
) -> Performance:
    """Of the attempts booked in `since` <= t < `until`, by endpoint; machines of ours without any are there too.

    Reserved hours are counted from `since`, or from the endpoint's first attempt, to `until` or `now`. Raises
    `StoreError`.
    """
    records = endpoint_records(engine, since, until, patience=patience)
    rows, _ = usage_of(engine, Question(by=("endpoint",), since=since, until=until), patience=patience)
    usage = {str(row.group["endpoint"]): row for row in rows}
    own = {name for name, endpoint in endpoints.items() if endpoint.capacity is not None}
    end = now if until is None else min(until, now)
    lines = []
    for name in sorted({*records, *usage, *own}):
        record, capacity = records.get(name), endpoints[name].capacity if name in own else None
        start = since if since is not None or record is None else record.first_at
        machine = None
        if capacity is not None and start is not None and start < end:
            hours = _DIGITS.divide(Decimal(str((end - start).total_seconds())), _HOUR)
            machine = machine_of(capacity, hours, record, usage.get(name))
        lines.append(Line(endpoint=name, record=record, usage=usage.get(name), machine=machine))
    return Performance(since=since, until=until, zone=zone, lines=lines)


def machine_of(capacity: Capacity, hours: Decimal, record: EndpointRecord | None, usage: UsageRow | None) -> Machine:
    """`hours`: reserved, more than 0."""
    power = Decimal(0)
    if capacity.watts is not None and capacity.kwh is not None:
        power = capacity.watts * capacity.kwh / 1000
    cost = (usage.cost_usd if usage is not None else None) or Decimal(0)
    tokens = 0 if usage is None else usage.total_tokens
    hourly = capacity.hour + power
    used = _DIGITS.divide(cost, hourly) if hourly else Decimal(0)
    idle = max(hours - used, Decimal(0)) * capacity.hour
    return Machine(
        capacity=capacity,
        reserved_hours=hours,
        reserved_usd=_rounded(hours * capacity.hour),
        used_hours=used,
        utilisation=_DIGITS.divide(used, hours),
        idle_usd=_rounded(idle),
        effective_usd_per_million=_rounded((cost + idle) * 1_000_000 / tokens) if tokens else None,
        busiest_read=_DIGITS.divide(Decimal(record.busiest_read if record else 0), _HOUR),
        busiest_written=_DIGITS.divide(Decimal(record.busiest_written if record else 0), _HOUR),
    )


def to_sheet(found: Performance) -> Sheet:
    return Sheet(
        about={"from": utc(found.since), "to": utc(found.until), "zone": found.zone},
        names=("endpoint",),
        figures=FIGURES,
        rows=[{"endpoint": line.endpoint, **figures(line)} for line in found.lines],
        total={},
    )


def figures(line: Line) -> dict[str, Cell]:
    record, usage, machine = line.record, line.usage, line.machine
    values: dict[str, Cell] = dict.fromkeys(FIGURES)
    values.update(attempts=0, ok=0, cancelled=0, total_tokens=0, unpriced=0)
    values.update(
        success_rate=line.success_rate,
        tokens_per_second=line.tokens_per_second,
        tokens_per_usd=_float(line.tokens_per_usd),
    )
    if record is not None:
        values.update(attempts=record.attempts, ok=record.ok, cancelled=record.cancelled)
        values.update(ttft_p50_ms=record.ttft_p50, ttft_p95_ms=record.ttft_p95)
        values.update(duration_p50_ms=record.duration_p50, duration_p95_ms=record.duration_p95)
    if usage is not None:
        values.update(total_tokens=usage.total_tokens, cost_usd=usage.cost_usd, unpriced=usage.unpriced)
    if machine is not None:
        values.update(
            reserved_hours=_float(machine.reserved_hours),
            reserved_usd=machine.reserved_usd,
            used_hours=_float(machine.used_hours),
            utilisation=_float(machine.utilisation),
            idle_usd=machine.idle_usd,
            effective_usd_per_million=machine.effective_usd_per_million,
            reads_stated=_float(machine.capacity.reads),
            reads_busiest=_float(machine.busiest_read),
            writes_stated=_float(machine.capacity.writes),
            writes_busiest=_float(machine.busiest_written),
        )
    return values


def to_tables(found: Performance) -> list[Table]:
    """For a terminal: all endpoints, and below them the machines of ours."""
    table = Table(title=Text(f"endpoints {period(found.since, found.until, found.zone)}"))
    table.add_column("endpoint")
    names = ("attempts", "success", "TTFT p50", "TTFT p95", "duration p50", "duration p95", "tokens/s", "tokens")
    for name in (*names, "cost USD", "tokens per USD"):
        table.add_column(name, justify="right")
    for line in found.lines:
        record, usage = line.record, line.usage
        times = (record.ttft_p50, record.ttft_p95, record.duration_p50, record.duration_p95) if record else (None,) * 4
        table.add_row(
            Text(visible(line.endpoint)),
            f"{record.attempts if record else 0:,}",
            "-" if line.success_rate is None else f"{line.success_rate:.2%}",
            *("-" if time is None else f"{time:,.0f} ms" for time in times),
            "-" if line.tokens_per_second is None else f"{line.tokens_per_second:,.1f}",
            f"{usage.total_tokens if usage else 0:,}",
            shown_cost(usage) if usage else "-",
            "-" if line.tokens_per_usd is None else f"{line.tokens_per_usd:,.0f}",
        )
    machines = [(line.endpoint, line.machine) for line in found.lines if line.machine is not None]
    return [table, *([machines_table(machines)] if machines else [])]


def machines_table(machines: list[tuple[str, Machine]]) -> Table:
    table = Table(title="machines of ours", caption="tokens a second: in the busiest hour / stated at full load")
    table.add_column("endpoint")
    names = ("reserved hours", "reserved USD", "used hours", "utilisation", "idle USD", "USD per million tokens")
    for name in (*names, "reads tokens/s", "writes tokens/s"):
        table.add_column(name, justify="right")
    for name, machine in machines:
        effective = machine.effective_usd_per_million
        table.add_row(
            Text(visible(name)),
            f"{machine.reserved_hours:,.2f}",
            f"{machine.reserved_usd:,.2f}",
            f"{machine.used_hours:,.2f}",
            f"{machine.utilisation:.2%}",
            f"{machine.idle_usd:,.2f}",
            "-" if effective is None else f"{effective:,.4f}",
            f"{machine.busiest_read:,.1f} / {machine.capacity.reads:,}",
            f"{machine.busiest_written:,.1f} / {machine.capacity.writes:,}",
        )
    return table


def _rounded(usd: Decimal) -> Decimal:
    """To a millionth of a dollar: what follows from hours is measured and not billed."""
    return usd.quantize(MONEY_STEP)


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)
