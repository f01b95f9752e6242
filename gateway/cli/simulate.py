"""`hatchway simulate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gateway.cli.console import fail, show, stderr, stdout
from gateway.cli.ledger import opened_ledger
from gateway.config.model import Configuration
from gateway.config.settings import environment_variables, load_settings
from gateway.directory import load
from gateway.publication import Publication

if TYPE_CHECKING:
    from gateway.simulation.profiles import Profile

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

SHOWN = 10
"""Lines of each list in the text; JSON has more."""


def simulate(
    path: Annotated[Path, typer.Argument(help="The configuration to try: a file or folder.")],
    since: Annotated[
        str, typer.Option(help="Replay what was recorded from then on: a date, a time, or how long ago.")
    ] = "7d",
    until: Annotated[str | None, typer.Option(help="Until then.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare with this configuration instead of with what happened.")
    ] = None,
    trace: Annotated[
        list[str] | None,
        typer.Option(help="Replay this trace instead: `FILE.csv`, or `MODEL=FILE.csv`. May be given again."),
    ] = None,
    profiles: Annotated[Path | None, typer.Option(help="YAML: how endpoints behave that were never measured.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Replay recorded traffic through another configuration: the change in cost, latency, placement and violations."""
    from gateway.accounting.prices import PriceBook
    from gateway.accounting.reports import parse_moment
    from gateway.simulation.profiles import read_profiles
    from gateway.simulation.run import simulate as run

    configuration = _compile(path)
    other = None if baseline is None else _compile(baseline)
    stated = {} if profiles is None else read_profiles(profiles)
    now = datetime.now(UTC)
    prices = PriceBook.published(Publication(load_settings().home).read_catalogue())
    try:
        start = parse_moment("--since", since, now, end_of_day=False)
        end = parse_moment("--until", until, now, end_of_day=True) if until else now
        if start >= end:
            raise ValueError(f"`--since {since}` is not before `--until {until}`\nhint: exchange them")
        files = _traces(trace or [])
    except ValueError as error:
        fail(str(error), status=2)

    def replay(arrivals: Any, total: int | None, known: dict[str, Profile]) -> dict[str, Any]:
        with progress_bar("replaying", total) as advance:
            return run(
                arrivals, configuration, baseline=other, profiles=known, prices=prices, seed=seed, progress=advance
            )

    if files:
        from gateway.traces import read_traces

        try:
            found = replay(read_traces(files), None, stated)
        except (OSError, ValueError) as error:
            fail(str(error), status=2)
        found["source"] = "trace"
    else:
        found = _replay_recorded(start, end, stated, replay)
    if not found["requests"]:
        fail(
            "nothing is recorded in that time: there is nothing to replay\n"
            "hint: `decisions.keep` in the configuration says how long decisions are kept; `--trace` replays a trace"
        )
    if as_json:
        show(json.dumps(found))
    else:
        _print(found)


def _replay_recorded(
    start: datetime,
    end: datetime,
    stated: dict[str, Profile],
    replay: Callable[[Any, int | None, dict[str, Profile]], dict[str, Any]],
) -> dict[str, Any]:
    from gateway.simulation.profiles import recorded_profiles
    from gateway.simulation.traffic import Traffic
    from gateway.store.decisions import count, read_since, speeds

    with opened_ledger() as database:
        total = count(database.engine, start, end)
        known = recorded_profiles(speeds(database.engine, start, end)) | stated
        traffic = Traffic(read_since(database.engine, start, end))
        found = replay(traffic, total, known)
    found["source"] = "recorded"
    if traffic.unreadable:
        found["notes"].append(f"{traffic.unreadable} decisions of another version of the gateway cannot be read")
    return found


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal; the function it gives is told how much is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _compile(path: Path) -> Configuration:
    return load(path, load_settings().home, environment_variables()).configuration


def _traces(given: list[str]) -> dict[str, Path]:
    """By the model that its requests ask for; without one, the file's name. Raises `ValueError`."""
    files: dict[str, Path] = {}
    for text in given:
        model, equals, path = text.partition("=")
        file = Path(path if equals else text)
        name = model if equals else file.stem
        if not name or name in files:
            raise ValueError(f"`--trace {text[:80]}` names no model of its own\nhint: write `--trace MODEL=FILE.csv`")
        if not file.is_file():
            raise ValueError(f"`{file}` is no file\nhint: give the trace's CSV file to `--trace`")
        files[name] = file
    return files


def _print(found: dict[str, Any]) -> None:
    then, now = datetime.fromtimestamp(found["since"], UTC), datetime.fromtimestamp(found["until"], UTC)
    _say(f"{found['requests']} requests, {then:%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M} UTC ({found['source']})")
    _say(f"before: {found['baseline'] or 'nothing to compare with'}; after: version {found['version']}")
    stdout.print(_figures(found))
    stdout.print(_placement(found))
    moved = found["moved"]
    if moved["share"] is not None:
        _say(f"{moved['requests']} requests would go elsewhere ({moved['share']:.1%})")
        for pair in moved["pairs"][:SHOWN]:
            _say(f"  {pair['requests']:>8}  {pair['from']} -> {pair['to']}")
    _print_violations(found["violations"])
    for kind in ("routes", "teams"):
        affected = [one for one in found[kind] if one["moved"] or one["newly_refused"]][:SHOWN]
        if affected:
            table = Table(kind[:-1], "requests", "moved", "newly refused", "USD before", "USD after")
            for one in affected:
                figures = (one["requests"], one["moved"], one["newly_refused"])
                table.add_row(one["name"], *map(str, figures), _usd(one["usd_before"]), _usd(one["usd_after"]))
            stdout.print(table)
    for note in found["notes"]:
        _say(f"note: {note}")


def _figures(found: dict[str, Any]) -> Table:
    table = Table("", "before", "after")
    sides = ("before", "after")
    for name in ("served", "refused", "failed"):
        table.add_row(name, *(_of(found["outcomes"][side], name) for side in sides))
    cost, ttft = found["cost"], found["ttft"]
    table.add_row("cost USD", *(_usd(cost[side]["usd"]) if cost[side] else "-" for side in sides))
    table.add_row("unpriced requests", *(_of(cost[side], "unpriced") for side in sides))
    if cost["change_usd"] is not None:
        share = "" if cost["change_share"] is None else f" ({cost['change_share']:+.1%})"
        table.add_row(f"change of the {cost['compared']} priced twice", "", f"{_usd(cost['change_usd'])}{share}")
    for name in ("p50_s", "p95_s"):
        table.add_row(f"TTFT {name[:3]}, s", *(_seconds(ttft[side], name) for side in sides))
    table.add_row("TTFT unknown", *(_of(ttft[side], "unknown") for side in sides))
    return table


def _placement(found: dict[str, Any]) -> Table:
    table = Table("endpoint", "before", "after", "USD before", "USD after")
    for one in found["placement"]:
        sides = [one["before"], one["after"]]
        table.add_row(
            one["endpoint"],
            *("-" if side is None else f"{side['requests']} ({side['share']:.1%})" for side in sides),
            *("-" if side is None else _usd(side["usd"]) + ("+?" if side["unpriced"] else "") for side in sides),
        )
    return table


def _print_violations(violations: dict[str, Any]) -> None:
    for one in violations["refused"][:SHOWN]:
        why = f": {', '.join(one['reasons'])}" if one["reasons"] else ""
        _say(f"refused {one['requests']} requests ({one['new']} new), {one['code']}{why}; {_whose(one)}")
    for one in violations["forbidden"][:SHOWN]:
        _say(
            f"{one['requests']} requests were served by {one['endpoint']}, which may not any more"
            f" ({one['reason']}); {_whose(one)}"
        )


def _whose(one: dict[str, Any]) -> str:
    teams = ", ".join(f"{team} {number}" for team, number in list(one["teams"].items())[:SHOWN])
    return f"teams: {teams}; for example {one['example']}"


def _of(side: dict[str, Any] | None, name: str) -> str:
    return "-" if side is None else str(side[name])


def _seconds(side: dict[str, Any] | None, name: str) -> str:
    return "-" if side is None else "unknown" if side[name] is None else f"{side[name]:.3f}"


def _usd(text: str) -> str:
    return f"{float(text):.6f}"


def _say(text: str) -> None:
    stdout.print(text, markup=False, highlight=False, soft_wrap=True)
