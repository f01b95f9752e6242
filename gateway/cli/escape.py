"""`hatchway escape plan | start | status | stop | report | list`: moving traffic from one endpoint to another."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.cli.console import fail, show, stderr, stdout
from gateway.cli.control_plane import call_control, try_control
from gateway.cli.keys import opened_store
from gateway.config.compiler import compile_configuration
from gateway.config.model import Configuration
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.directory import load
from gateway.errors import ConfigError, GatewayError
from gateway.publication import Publication

if TYPE_CHECKING:
    from gateway.escape.plan import EscapePlan
    from gateway.escape.steps import Escape

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Move traffic from one endpoint to another, measured and reversible.", no_args_is_help=True)

WATCH_SECONDS = 1.0
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")
SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s?(%?)")
OVER = ("finished", "halted", "stopped", "closed")

From = Annotated[str, typer.Option("--from", help="The endpoint whose traffic goes, or a provider: all its endpoints.")]
To = Annotated[str, typer.Option("--to", help="The endpoint that takes it, or a provider.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Id = Annotated[str, typer.Argument(help="The escape's id, or its beginning.")]


@app.command()
def plan(
    source: From,
    target: To,
    since: Annotated[str, typer.Option(help="First day or time, or how long ago.")] = "7d",
    as_json: AsJson = False,
) -> None:
    """Say from recorded traffic what could move, what would break and for whom, and what it would cost."""
    from gateway.accounting.reports import parse_moment
    from gateway.escape.reading import plan_escape
    from gateway.escape.report import describe_plan

    settings = load_settings()
    now = datetime.now(UTC)
    try:
        start = parse_moment("--since", since, now, end_of_day=False)
    except ValueError as error:
        fail(str(error), status=2)
    configuration = _configuration(settings)
    try_control(settings, "POST", "/internal/flush")
    with opened_store() as engine, stderr.status("reading what was recorded"):
        try:
            found = plan_escape(engine, configuration, source, target, start, now)
        except GatewayError as error:
            fail(error.message, status=2)
    if as_json:
        show(_json(describe_plan(found)))
    else:
        _print_plan(found)


@app.command()
def start(
    source: From,
    target: To,
    shadow: Annotated[str, typer.Option(help="Share of requests copied first; 0: none.")] = "5%",
    shadow_for: Annotated[str | None, typer.Option(help="How long copies are compared, at least.")] = None,
    shadow_requests: Annotated[int | None, typer.Option(help="How many copies are compared, at least.")] = None,
    ramp: Annotated[str, typer.Option(help="Percentages of the traffic, one step each.")] = "1,5,25,50,100",
    step: Annotated[str | None, typer.Option(help="How long a step lasts, at least.")] = None,
    step_requests: Annotated[int | None, typer.Option(help="Requests of the target that a step needs.")] = None,
    max_error_rate: Annotated[str, typer.Option(help="Failed requests, or as many as the source has.")] = "2%",
    max_ttft_ratio: Annotated[str, typer.Option(help="Median TTFT, by the source's.")] = "1.5",
    min_validity: Annotated[str, typer.Option(help="Usable answers.")] = "98%",
    max_cost_ratio: Annotated[str, typer.Option(help="Cost of a request, by the source's.")] = "1.2",
    min_similarity: Annotated[str, typer.Option(help="Mean similarity of copies' answers, 0 to 1.")] = "off",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end; exit status 1 if it was halted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin an escape: copies first, then a growing share; a broken guard brings everything back by itself.

    Any limit may be `off`. A step lasts its time and until its requests were seen: 10 minutes and 50 requests where
    neither is given; no time of its own where only a number is.
    """
    request = {
        "source": source,
        "target": target,
        "shadow_share": _share("--shadow", shadow),
        "shadow_seconds": None if shadow_for is None else _seconds("--shadow-for", shadow_for),
        "shadow_requests": shadow_requests,
        "ramp": [_percent("--ramp", part) for part in ramp.split(",")],
        "step_seconds": None if step is None else _seconds("--step", step),
        "step_requests": step_requests,
        "guards": {
            "max_error_rate": _limit("--max-error-rate", max_error_rate, _share),
            "max_ttft_ratio": _limit("--max-ttft-ratio", max_ttft_ratio, _ratio),
            "min_validity": _limit("--min-validity", min_validity, _share),
            "max_cost_ratio": _limit("--max-cost-ratio", max_cost_ratio, _ratio),
            "min_similarity": _limit("--min-similarity", min_similarity, _share),
        },
    }
    settings = load_settings()
    if not yes:
        _confirm(source, target, request)
    escape_id = call_control(settings, "POST", "/internal/escape", {"request": request})["id"]
    stderr.print(f"escape {escape_id} has begun; `hatchway escape stop {escape_id}` undoes it", highlight=False)
    if wait:
        _watch(settings, escape_id, as_json)
    elif as_json:
        show(_json({"id": escape_id}))
    else:
        show(escape_id)


@app.command()
def status(
    escape: Annotated[str | None, typer.Argument(help="Its id; left out: all under way.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show escapes under way: the step, what is measured, what each guard says."""
    settings = load_settings()
    found = _live(settings)
    if escape is not None:
        found = [one for one in found if one["id"].startswith(escape)]
        if not found:
            fail(f"`{escape}` is not under way\nhint: `hatchway escape report {escape}` shows one that ended", status=2)
    if watch:
        running = [one for one in found if one["state"] not in OVER] or found
        if not running:
            fail("no escape is under way\nhint: `hatchway escape list` shows all")
        _watch(settings, running[0]["id"], as_json)
    elif as_json:
        show(_json({"escapes": found}))
    elif not found:
        stderr.print("no escape is under way", highlight=False)
    else:
        for one in found:
            stdout.print(_panel(one))


@app.command()
def stop(
    escape: Id,
    as_json: AsJson = False,
) -> None:
    """Undo an escape: everything goes back to the source at once."""
    done = call_control(load_settings(), "DELETE", f"/internal/escape/{_safe(escape)}")
    if as_json:
        show(_json(done))
    else:
        stderr.print(f"escape {done['id']} is stopped: everything is back at {done['from']}", highlight=False)


@app.command()
def report(
    escape: Id,
    as_json: AsJson = False,
) -> None:
    """Tell the whole story of an escape: its steps, their numbers, what was decided."""
    from gateway.escape.report import describe, report_lines, suggest_edit

    settings = load_settings()
    found = _find(escape)
    edit = suggest_edit(_configuration(settings), found.pairs) if found.state == "finished" else []
    if as_json:
        show(_json({**describe(found), "edit": edit}))
    else:
        show("\n".join(report_lines(found)))
        _print_edit(edit, found.escape_id)


@app.command("list")
def show_list(
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List all escapes, those that ended too."""
    from gateway.escape.record import from_row
    from gateway.escape.report import describe
    from gateway.store.escapes import list_escapes

    with opened_store() as engine:
        found = [describe(from_row(row)) for row in list_escapes(engine, limit=limit)]
    if as_json:
        show(_json({"escapes": found}))
        return
    table = Table("id", "from", "to", "state", "step", "started", "ended", "by", "reason")
    for one in found:
        ended = "-" if one["ended_at"] is None else _short(one["ended_at"])
        steps = f"{one['step']} of {one['steps']}"
        cells = (one["id"], one["from"], one["to"], one["state"], steps, _short(one["started_at"]), ended)
        table.add_row(*map(Text, (*cells, one["author"], one["reason"] or "-")))
    stdout.print(table)


# Values of options


def _seconds(option: str, text: str) -> float:
    found = DURATION.fullmatch(text.strip())
    if found is None:
        _wrong(option, text, "a time with its unit, as in `10m`, `30s`, `2h`")
    return float(found[1]) * UNITS[found[2]]


def _share(option: str, text: str) -> float:
    """`5%` or 0.05."""
    found = SHARE.fullmatch(text.strip())
    value = -1.0 if found is None else float(found[1]) / (100 if found[2] else 1)
    if not 0 <= value <= 1:
        _wrong(option, text, "a share, as in `5%` or `0.05`")
    return value


def _percent(option: str, text: str) -> float:
    """`5` and `5%` are both 5 %."""
    found = SHARE.fullmatch(text.strip())
    if found is None or not 0 < float(found[1]) <= 100:
        _wrong(option, text, "percentages that rise up to 100, as in `1,5,25,50,100`")
    return float(found[1]) / 100


def _ratio(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1000:
        _wrong(option, text, "a ratio, as in `1.5`")
    return value


def _limit(option: str, text: str, read: Callable[[str, str], float]) -> float | None:
    return None if text.strip().lower() == "off" else read(option, text)


def _wrong(option: str, text: str, hint: str) -> NoReturn:
    fail(f"`{option} {text[:80]}` is not understood\nhint: give {hint}", status=2)


def _safe(escape_id: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9-]{1,64}", escape_id) is None:
        fail(f"`{escape_id[:80]}` is no id of an escape\nhint: `hatchway escape list` shows the ids", status=2)
    return escape_id


# Where things come from


def _configuration(settings: Settings) -> Configuration:
    """The one in force, as it was published last; before the first start, the YAML's."""
    try:
        document = Publication(settings.home).read_document()
    except (OSError, msgspec.DecodeError, ConfigError):
        return load(settings.config_path, settings.home, environment_variables()).configuration
    return compile_configuration(document, environment_variables())


def _find(prefix: str) -> Escape:
    from gateway.escape.record import from_row
    from gateway.store.escapes import find_escape

    with opened_store() as engine:
        try:
            row = find_escape(engine, prefix)
        except ValueError as error:
            fail(str(error), status=2)
    if row is None:
        fail(f"there is no escape `{prefix[:80]}`\nhint: `hatchway escape list` shows the ids", status=2)
    return from_row(row)


def _live(settings: Settings) -> list[dict[str, Any]]:
    answer = call_control(settings, "GET", "/internal/escape")
    found: list[dict[str, Any]] = answer["escapes"]
    return found


def _confirm(source: str, target: str, request: dict[str, Any]) -> None:
    if not sys.stdin.isatty():
        fail("nobody can be asked here\nhint: look at `hatchway escape plan`, then give `--yes`", status=2)
    ramp = ", ".join(f"{share * 100:g} %" for share in request["ramp"])
    stderr.print(f"traffic of {source} goes to {target} in steps of {ramp}", markup=False, highlight=False)
    if request["shadow_share"]:
        stderr.print(f"first {request['shadow_share'] * 100:g} % are copied: everybody pays twice for these")
    if not typer.confirm("begin?", err=True):
        raise typer.Exit(1)


# Showing


def _watch(settings: Settings, escape_id: str, as_json: bool) -> None:
    """Follows an escape to its end. Exit status 1 when it was halted or stopped."""
    with Live(console=stderr, auto_refresh=False, transient=True) as live:
        while True:
            one = next((found for found in _live(settings) if found["id"] == escape_id), None)
            if one is None or one["state"] in OVER:
                break
            live.update(_panel(one), refresh=True)
            time.sleep(WATCH_SECONDS)
    found = _find(escape_id)
    report(found.escape_id, as_json)
    if found.state in ("halted", "stopped"):
        raise typer.Exit(1)


def _panel(one: dict[str, Any]) -> Group:
    """One escape as the gateway describes it."""
    head = f"{one['id']} from {one['from']} to {one['to']}: {one['state']}"
    if one["state"] not in OVER:
        moved = "copied" if one["kind"] == "shadow" else "moved"
        head += f", step {one['step']} of {one['steps']}, {one['share'] * 100:.4g} % {moved}"
    table = Table("", "requests", "failed", "TTFT ms", "95 % under", "cost USD", "usable", "similarity")
    for name in ("target", "source"):
        sample = one[name]
        figures = (
            f"{sample['requests']:,}",
            f"{sample['failures']:,}",
            _figure(sample["ttft_p50_ms"], "{:.0f}"),
            _figure(sample["ttft_p95_ms"], "{:.0f}"),
            _figure(sample["cost_usd"] and float(sample["cost_usd"]), "{:.6f}"),
            _figure(sample["validity"], "{:.1%}"),
            _figure(sample["similarity"], "{:.2f}"),
        )
        table.add_row(name, *figures)
    verdict = one["verdict"]
    lines = [f"{found['guard']}: {found['state']} ({found['detail']})" for found in (verdict or {}).get("findings", [])]
    if one["state"] not in OVER:
        needs = f"the step lasts at least until {_short(one['step_ends_after'])} UTC"
        missing = one["step_requests"] if verdict is None else verdict["missing"]
        lines.append(f"{needs}; {missing} more requests are needed" if missing else needs)
    if one["reason"]:
        lines.append(f"reason: {one['reason']}")
    return Group(Text(head), table, *map(Text, lines))


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _print_plan(found: EscapePlan) -> None:
    from gateway.escape.report import plan_summary

    for line in plan_summary(found):
        stdout.print(line, markup=False, highlight=False)
    if found.breaks:
        table = Table("would break", "requests", "teams", "models", "for example", title="what cannot move")
        for one in found.breaks:
            cells = (f"{one.reason}: {one.feature}", f"{one.requests:,}", _counts(one.teams), _counts(one.models))
            table.add_row(*map(Text, (*cells, ", ".join(one.examples))))
        stdout.print(table)
    if found.latency:
        table = Table("endpoint", "requests", "TTFT ms", "95 % under", "tokens a second", title="latency, as recorded")
        for endpoint, latency in found.latency.items():
            speeds = (latency.ttft_p50, latency.ttft_p95, latency.tokens_per_second)
            table.add_row(Text(endpoint), f"{latency.requests:,}", *(_figure(speed, "{:.0f}") for speed in speeds))
        stdout.print(table)
    if found.seats:
        table = Table("team", "project", "model", "requests", "could move", title="seats to watch")
        for seat in found.seats:
            names = map(Text, (seat.team, seat.project or "-", seat.model))
            table.add_row(*names, f"{seat.requests:,}", f"{seat.movable:,}")
        stdout.print(table)
    for note in found.notes:
        stdout.print(f"note: {note}", markup=False, highlight=False)


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:5])
    return shown if len(ordered) <= 5 else f"{shown} and {len(ordered) - 5} more"


def _print_edit(edit: list[str], escape_id: str) -> None:
    if edit:
        stderr.print("the shift stays until it is stopped; make the YAML say it:", highlight=False)
        for line in edit:
            stderr.print(f"  {line}", markup=False, highlight=False)
        stderr.print(f"then `hatchway escape stop {escape_id}` has nothing left to undo", highlight=False)


def _short(moment: str) -> str:
    return moment[:19].replace("T", " ")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
