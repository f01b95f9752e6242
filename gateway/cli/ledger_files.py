"""`hatchway ledger status | doubts | rejected | verify`: what is on its way, what is doubted, what was set aside."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway.cli.console import ProgressBar, fail, show, stderr, stdout
from gateway.cli.ledger import opened_ledger
from gateway.config.settings import Settings, load_settings
from gateway.errors import StoreError

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="The ledger's files and rows: backlog, doubts, what was set aside.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_encode = msgspec.json.Encoder(decimal_format="number").encode
_SHOWN = 20  # reasons, and segments


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show what waits in the spool and since when, who writes, and what was set aside. Needs no database."""
    from gateway.ledger.backlog import measure
    from gateway.ledger.rejects import read_rejects

    settings = load_settings()
    try:
        backlog = measure(settings.spool_dir)
        rejects = Counter(_kind_of(entry.reason) for entry in read_rejects(settings.spool_dir))
    except OSError as error:
        fail(f"the spool cannot be read: {error}")
    found = {
        "spool": str(settings.spool_dir),
        "pending_bytes": backlog.bytes,
        "pending_seconds": round(backlog.seconds, 3),
        "size_bytes": backlog.size,
        "segments": backlog.segments,
        "workers": backlog.workers,
        "dead_processes": backlog.dead,
        "rejected": dict(rejects.most_common()),
    }
    if as_json:
        show(_encode(found).decode())
        return
    table = Table("", "", show_header=False, box=None)
    table.add_row("not shipped", f"{backlog.bytes:,} bytes, the oldest {backlog.seconds:,.1f} s old")
    table.add_row("spool", f"{backlog.size:,} bytes in {backlog.segments} segments")
    table.add_row("workers that write", str(backlog.workers))
    table.add_row("dead processes that left something", str(backlog.dead))
    table.add_row("set aside", f"{sum(rejects.values())} records")
    for reason, count in rejects.most_common(_SHOWN):
        table.add_row("", f"{count} x {reason}")
    stdout.print(table, markup=False)


@app.command()
def doubts(
    since: Annotated[str, typer.Option(help="First day or time, or how long ago.")] = "7d",
    limit: Annotated[int, typer.Option(help="How many rows.", min=1, max=100_000)] = 100,
    as_json: AsJson = False,
) -> None:
    """List rows whose upstream counted what cannot be true. They have estimates; what it said is kept with them."""
    import psycopg

    from gateway.accounting.reports import parse_moment
    from gateway.ledger.doubts import find_doubts

    try:
        start = parse_moment("--since", since, datetime.now(UTC), end_of_day=False)
    except ValueError as error:
        fail(str(error), status=2)
    try:
        with opened_ledger() as database, database.connect() as connection:
            rows = find_doubts(connection, start, limit)
    except psycopg.Error as error:
        fail(_first_line(error))
    if as_json:
        show(_encode({"doubts": rows}).decode())
        return
    if not rows:
        stderr.print("no row is doubted", highlight=False)
        return
    table = Table("started at", "request", "endpoint", "model", "cost USD", "why", "what it said")
    for row in rows:
        cost = "-" if row["cost_usd"] is None else f"{row['cost_usd']:f}"
        said = "-" if row["raw_usage"] is None else msgspec.json.encode(row["raw_usage"]).decode()
        at = f"{row['started_at']:%Y-%m-%d %H:%M:%S}"
        table.add_row(at, row["request_id"], row["endpoint"], row["upstream_model"], cost, row["reason"], said)
    stdout.print(table, markup=False)


@app.command()
def rejected(
    retry: Annotated[bool, typer.Option("--retry", help="Try to insert them again, after a mend.")] = False,
    misplaced: Annotated[
        bool, typer.Option("--misplaced", help="With --retry: also lines that stood where they do not belong.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what was set aside with the reasons, or try again."""
    settings = load_settings()
    if retry:
        _retry(settings, misplaced, as_json)
        return
    from gateway.ledger.rejects import read_rejects

    entries = list(read_rejects(settings.spool_dir))
    if as_json:
        show(_encode({"rejected": entries}).decode())
        return
    if not entries:
        stderr.print("nothing was set aside", highlight=False)
        return
    table = Table("segment", "at byte", "reason", "missing lines", "state")
    for entry in entries:
        state = "in the ledger, less what was refused" if entry.is_mended else "set aside"
        table.add_row(
            entry.segment,
            str(entry.offset),
            entry.reason,
            entry.missing or "-",
            "reported" if entry.content is None else state,
        )
    stdout.print(table, markup=False)


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Compare the sums of usage by hour and day with the rows, to the last digit. Exit status 1: they differ."""
    from gateway.store.hours import differences

    with opened_ledger() as database:
        found = differences(database.engine)
    if as_json:
        show(_encode({"differences": found}).decode())
    elif found:
        table = Table("from", "length", "group", "too little in the sums")
        for one in found:
            group = ", ".join(f"{name}={value}" for name, value in one.group.items())
            missing = ", ".join(f"{name} {value:f}" for name, value in one.missing.items())
            table.add_row(f"{one.start:%Y-%m-%d %H:%M}", one.length, group, missing)
        stdout.print(table, markup=False)
    else:
        stderr.print("the sums are those of the rows", highlight=False)
    if found:
        raise typer.Exit(1)


@app.command()
def rebuild(as_json: AsJson = False) -> None:
    """Make the sums of usage by hour and day anew from the rows. Nothing is written to the ledger meanwhile."""
    from gateway.store.hours import rebuild as rebuild_sums

    with opened_ledger() as database, ProgressBar() as progress:
        groups = rebuild_sums(database.engine, progress)
    if as_json:
        show(_encode({"groups": groups}).decode())
    else:
        stderr.print(f"{groups:,} sums stand anew", highlight=False)


def _retry(settings: Settings, misplaced: bool, as_json: bool) -> None:
    import psycopg

    from gateway.ledger.retry import retry

    try:
        with opened_ledger() as database, database.connect() as connection, ProgressBar() as progress:
            done = retry(settings.spool_dir, connection, progress, misplaced=misplaced)
    except (OSError, psycopg.Error, StoreError) as error:
        fail(_first_line(error))
    found: dict[str, Any] = done._asdict()
    if as_json:
        show(_encode(found).decode())
    else:
        stderr.print(
            f"{done.rows} are in the ledger now, {done.known} were there already, {done.kept} stay set aside",
            highlight=False,
        )


def _kind_of(reason: str) -> str:
    """A reason without its particulars, for counting."""
    return reason.partition(":")[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
