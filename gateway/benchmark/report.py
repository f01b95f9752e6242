"""A run's figures as tables for people, and rounded for the JSON line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from gateway.benchmark.measurement import Scenario, shown

_RATE = {
    "per_s": "per s",
    "chunks_per_s": "chunks/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "added_p50_ms": "added p50",
    "added_p99_ms": "added p99",
}
_PACED = {
    "chunks_per_s": "chunks/s",
    "ttft_p50_ms": "ttft p50 ms",
    "ttft_p99_ms": "ttft p99 ms",
    "added_ttft_p99_ms": "added p99",
    "transit_p99_ms": "transit p99 ms",
    "finished": "finished",
}
_PROCESSES = {
    "cpu": "cpu",
    "cpu_all": "cpu, all",
    "rss_mb": "rss MB",
    "pss_all_mb": "pss MB, all",
    "errors": "errors",
}


def tables(result: dict[str, Any]) -> Iterator[Table]:
    for name, rows in result["scenarios"].items():
        yield _figures(Scenario.parse(name), rows)
    yield _ratios(result["ratios"])


def _figures(scenario: Scenario, rows: dict[str, dict[str, float]]) -> Table:
    if scenario.kind == "paced":
        title = f"{scenario.connections} streams, a chunk every {scenario.tick_ms} ms; cpu in µs a chunk"
    else:
        what = "unpaced streams" if scenario.kind == "sse" else "not streamed"
        title = f"{what}, {scenario.connections} connections; cpu in ms a request"
    columns = {**(_PACED if scenario.kind == "paced" else _RATE), **_PROCESSES}
    columns = {field: head for field, head in columns.items() if any(field in row for row in rows.values())}
    table = Table(title=f"{scenario.name}: {title}", title_justify="left")
    table.add_column("")
    for head in columns.values():
        table.add_column(head, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(shown(row.get(field)) for field in columns))
    return table


def _ratios(found: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Rates; in brackets processor time."""
    names = {name: None for ratios in found.values() for name in ratios.get("rate", {})}
    table = Table(title="times the other's rate (times its processor time)", title_justify="left")
    table.add_column("hatchway")
    for name in names:
        table.add_column(name, justify="right")
    for scenario, ratios in found.items():
        cells = []
        for name in names:
            rate, cpu = ratios.get("rate", {}).get(name), ratios.get("cpu", {}).get(name)
            cells.append(shown(rate) + (f" ({shown(cpu)})" if cpu is not None else ""))
        table.add_row(scenario, *cells)
    return table


def ledger_line(name: str, ledger: dict[str, Any]) -> str:
    return (
        f"ledger of {name}: {'exact' if ledger['exact'] else 'WRONG'}: {ledger['answered']} answers, {ledger['rows']} "
        f"rows of {ledger['requests']} requests, {ledger['good_rows']} with the right status, tokens and a price; "
        f"{ledger['noted_ids']} request ids looked up; {ledger['cut']} connections closed by the load"
    )


def rounded(value: Any) -> Any:
    """Four digits, and null for what could not be measured."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value
