"""`hatchway bench soak`: our own gateway under mixed load for minutes or hours."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gateway.cli.bench_gateway import TelemetryMode, end_with_signal, say
from gateway.cli.console import fail, show, stdout, warn

# The benchmark is imported by the command that uses it: the others start sooner.


def bench_soak(
    minutes: Annotated[float, typer.Option(help="How long.", min=0.05, max=60 * 24 * 7)] = 2.0,
    rate: Annotated[float, typer.Option(help="Requests a second.", min=1, max=10_000)] = 100.0,
    workers: Annotated[int, typer.Option(help="Data-plane processes.", min=1, max=64)] = 1,
    telemetry: Annotated[TelemetryMode, typer.Option(help="What is exported meanwhile.")] = TelemetryMode.OFF,
    pinned: Annotated[
        bool, typer.Option("--pin/--no-pin", help="Gateway on the first processor, load and upstream on the last.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Only the JSON object.")] = False,
) -> None:
    """Keep `hatchway up` under mixed load: memory, descriptors and latency must stay, the ledger must be exact.

    Streams, clients that leave, an endpoint that fails. Ends with 1 and what drifted or failed.
    """
    from gateway.benchmark.machine import BenchmarkError
    from gateway.benchmark.measurement import shown
    from gateway.benchmark.report import rounded
    from gateway.benchmark.soak import SoakPlan, run_soak

    end_with_signal()
    plan = SoakPlan(minutes * 60, rate, workers, telemetry.value, pinned)
    try:
        with tempfile.TemporaryDirectory(prefix="hatchway-soak-") as folder:
            result = run_soak(plan, Path(folder), say, warn)
    except BenchmarkError as error:
        fail(str(error))
    if not as_json:
        table = Table(title=f"{minutes:g} minutes, {rate:g} requests a second", title_justify="left")
        table.add_column("")
        for head in ("middle third", "last third", "at most", "an hour", ""):
            table.add_column(head, justify="right")
        for name, one in result["findings"].items():
            numbers = [shown(one[field]) for field in ("middle", "last", "limit", "per_hour")]
            table.add_row(name, *numbers, "DRIFTED" if one["drifted"] else "flat")
        stdout.print(table, markup=False)
        ledger = result["ledger"]
        show(
            f"ledger: {'exact' if ledger['exact'] else 'WRONG'}: {ledger['sent']} requests sent, {ledger['answered']} "
            f"answered, {ledger['left']} left by their clients; {ledger['rows']} rows of {ledger['requests']} requests"
        )
    for why in result["failed"]:
        warn(why)
    show(json.dumps(rounded(result)))
    sys.exit(1 if result["failed"] else 0)
