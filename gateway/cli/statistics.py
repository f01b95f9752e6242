"""`hatchway statistics show | reset`: what routing has learned from traffic."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.table import Table

from gateway.cli.console import ask_gateway, fail, show, stderr, stdout
from gateway.config.settings import load_settings
from gateway.routing.drift import brief

app = typer.Typer(help="What routing has learned from traffic.", no_args_is_help=True)


@app.command("show")
def show_statistics(
    as_json: Annotated[bool, typer.Option("--json", help="JSON with every digit instead of tables.")] = False,
) -> None:
    """Show what the running gateway has learned of its endpoints and routes, and what of it is frozen."""
    status = _ask("GET", "/internal/learned")
    if as_json:
        show(json.dumps(status))
        return
    for table in _tables(status):
        stdout.print(table)
    newest = status["history"][-1]["at"] if status["history"] else None
    stderr.print(_summary(status, newest), highlight=False)


@app.command()
def reset(
    names: Annotated[
        list[str] | None, typer.Argument(help="Endpoints and routes; none: everything that was learned.")
    ] = None,
) -> None:
    """Have all workers forget what they learned, and close the circuit breakers of these endpoints."""
    query = urlencode([("name", name) for name in names or []])
    forgotten = _ask("POST", f"/internal/learned/reset?{query}")["reset"]
    unknown = [name for name in names or [] if name not in forgotten]
    if unknown:
        fail(f"nothing is learned of `{unknown[0]}`\nhint: `hatchway statistics show` has the names")
    stderr.print("forgotten: " + (", ".join(forgotten) or "there was nothing"), highlight=False, markup=False)


def _ask(method: str, path: str) -> dict[str, Any]:
    answer = ask_gateway(load_settings(), method, path)
    if not isinstance(answer, dict):
        fail("no gateway runs with this home folder\nhint: `hatchway up`, or set `HATCHWAY_HOME` to the home of one")
    return answer


def _tables(status: dict[str, Any]) -> list[Table]:
    held = {(one["name"], one["number"]) for one in status["frozen"]}
    endpoints = Table("endpoint", "TTFT p50", "p95", "tokens/s", "cached", "failed", "samples", "heard of")
    for name, one in status["endpoints"].items():
        endpoints.add_row(
            name,
            _seconds(one["ttft_p50"]) + _mark((name, "ttft") in held),
            _seconds(one["ttft_p95"]),
            _number(one["tokens_per_second"]),
            _percent(one["cache_share"]) + _mark((name, "cache_share") in held),
            _percent(one["failure_share"]),
            _number(one["samples"]),
            _ago(one["age"]),
        )
    routes = Table("route", "output tokens", "input ratio", "samples", "heard of")
    for name, one in status["routes"].items():
        ratio = "-" if one["input_ratio"] is None else f"{one['input_ratio']:.2f}"
        routes.add_row(
            name,
            _number(one["output_tokens"]) + _mark((name, "output_tokens") in held),
            ratio + _mark((name, "input_ratio") in held),
            _number(one["samples"]),
            _ago(one["age"]),
        )
    tables = [endpoints, routes]
    if status["frozen"]:
        frozen = Table("frozen", "of", "at", "would be", "since", "why")
        for one in status["frozen"]:
            now = "-" if one["now"] is None else brief(one["now"])
            frozen.add_row(one["number"], one["name"], brief(one["value"]), now, one["since"], one["reason"])
        tables.append(frozen)
    return tables


def _summary(status: dict[str, Any], newest: str | None) -> str:
    if not status["enabled"]:
        return "learning is switched off (`learning.enabled`)"
    if not status["version"]:
        return "nothing was learned yet"
    return f"version {status['version']}" + (f" of {newest}" if newest else "")


def _mark(is_frozen: bool) -> str:
    return " (frozen)" if is_frozen else ""


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
