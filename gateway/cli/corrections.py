"""`hatchway corrections reprice | list | add`: costs that change later, without an edit."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import ProgressBar, fail, show, stderr, stdout
from gateway.cli.ledger import opened_ledger
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.settings import environment_variables, load_settings

if TYPE_CHECKING:
    from gateway.accounting.repricing import Repricing
    from gateway.config.model import Configuration

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Corrections: changes of cost that are written beside the ledger's rows.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
SHOWN = 20
"""Lines of each list in the text; JSON has them all."""


@app.command()
def reprice(
    since: Annotated[str, typer.Option("--from", help="First day or time of the attempts, or how long ago (7d).")],
    until: Annotated[str | None, typer.Option("--to", help="Last day (included) or time; left out: now.")] = None,
    model: Annotated[str | None, typer.Option(help="Glob of the model.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only of this endpoint.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only of this provider.")] = None,
    only_unpriced: Annotated[bool, typer.Option("--only-unpriced", help="Only what has no price yet.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")] = False,
    reason: Annotated[str, typer.Option(help="Why; stands on each correction.")] = "priced again",
    config: Annotated[Path | None, typer.Option(help="The configuration whose prices hold.")] = None,
    as_json: AsJson = False,
) -> None:
    """Price recorded attempts at the prices in force now, and write a correction for each whose cost changes."""
    from gateway.accounting.reports import parse_period
    from gateway.accounting.repricing import rates_in_force
    from gateway.accounting.repricing import reprice as run
    from gateway.store.corrections import MAX_REASON, Chosen

    now = datetime.now(UTC)
    try:
        start, end = parse_period(since, until, now)
        if not reason.strip() or len(reason) > MAX_REASON:
            raise ValueError(f"`--reason` has 1 to {MAX_REASON} characters\nhint: say what it is for")
    except ValueError as error:
        fail(str(error), status=2)
    assert start is not None
    configuration = _configuration(config)
    chosen = Chosen(
        since=start,
        until=end or now,
        model=model,
        endpoint=endpoint,
        provider=provider,
        only_unpriced=only_unpriced,
    )
    with opened_ledger() as database, ProgressBar() as progress:
        found = run(
            database.engine,
            configuration,
            rates_in_force(database.engine, configuration),
            chosen,
            author=cli_author(),
            reason=reason,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        show(msgspec.json.encode(found).decode())
    else:
        _print(found)


@app.command("list")
def list_(
    since: Annotated[str | None, typer.Option("--from", help="Booked from this day or time on (7d).")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day (included) or time.")] = None,
    kind: Annotated[str | None, typer.Option(help="price, reconciliation or adjustment.")] = None,
    team: Annotated[str | None, typer.Option(help="Of this team.")] = None,
    event: Annotated[str | None, typer.Option(help="Of this attempt (event_id).")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show corrections, the newest first."""
    from gateway.accounting.reports import parse_period
    from gateway.accounting.sheets import visible
    from gateway.store.corrections import list_corrections

    try:
        start, end = parse_period(since, until, datetime.now(UTC))
    except ValueError as error:
        fail(str(error), status=2)
    with opened_ledger() as database:
        rows = list_corrections(
            database.engine, since=start, until=end, kind=kind, team=team, event_id=event, limit=limit
        )
    if as_json:
        show(json.dumps([{name: _plain(value) for name, value in row.items()} for row in rows]))
        return
    table = Table("written", "booked", "kind", "team", "model", "endpoint", "USD", "author", "reason")
    for row in rows:
        moments = [f"{row[name]:%Y-%m-%d %H:%M}" for name in ("at", "booked_at")]
        names = [visible(row[name] or "-") for name in ("team", "model", "endpoint")]
        table.add_row(
            *moments, row["kind"], *names, f"{row['amount_usd']:f}", visible(row["author"]), visible(row["reason"])
        )
    stdout.print(table, markup=False)


@app.command()
def add(
    amount: Annotated[str, typer.Argument(help="The change in USD, such as `-12.50`. Put `--` before a minus.")],
    reason: Annotated[str, typer.Option(help="Why; it stands on the correction.")],
    kind: Annotated[str, typer.Option(help="adjustment or reconciliation.")] = "adjustment",
    event: Annotated[str | None, typer.Option(help="Of this attempt (event_id).")] = None,
    at: Annotated[str | None, typer.Option(help="The day or time it counts in; left out: now.")] = None,
    team: Annotated[str | None, typer.Option(help="Of this team.")] = None,
    project: Annotated[str | None, typer.Option(help="Of this project.")] = None,
    cost_center: Annotated[str | None, typer.Option(help="Of this cost centre.")] = None,
    provider: Annotated[str | None, typer.Option(help="Of this provider.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Of this endpoint.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this upstream model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a correction by hand, of one attempt or of a team, model, endpoint, ..."""
    from gateway.accounting.reports import parse_moment
    from gateway.store.corrections import add_correction

    given = {
        "team": team,
        "project": project,
        "cost_center": cost_center,
        "provider": provider,
        "endpoint": endpoint,
        "upstream_model": model,
        "model": model,
    }
    dimensions = {name: value for name, value in given.items() if value is not None}
    with opened_ledger() as database:
        try:
            moment = None if at is None else parse_moment("--at", at, datetime.now(UTC), end_of_day=False)
            written = add_correction(
                database.engine,
                amount_usd=Decimal(amount),
                reason=reason,
                author=cli_author(),
                kind=kind,  # type: ignore[arg-type]  # it is checked there
                event_id=event,
                at=moment,
                dimensions=dimensions or None,
            )
        except InvalidOperation:
            fail(f"`{amount[:40]}` is no amount\nhint: USD, such as `-12.50`", status=2)
        except ValueError as error:
            fail(str(error), status=2)
    if as_json:
        show(json.dumps({name: _plain(value) for name, value in written.items()}))
    else:
        booked = f"{written['booked_at']:%Y-%m-%d %H:%M} UTC"
        stderr.print(f"correction {written['correction_id']} counts at {booked}", highlight=False)


def _configuration(path: Path | None) -> Configuration:
    document = read_document(path or load_settings().config_path)
    return compile_configuration(document, environment_variables())


def _print(found: Repricing) -> None:
    from gateway.accounting.sheets import visible

    done = "would be" if found.dry_run else "are"
    for name, sums in found.by.items():
        if not sums:
            continue
        table = Table(name, "attempts", "of them first prices", "USD")
        for value, total in sorted(sums.items(), key=lambda pair: -abs(pair[1].amount_usd))[:SHOWN]:
            table.add_row(
                visible(value or "-"), f"{total.attempts:,}", f"{total.first_prices:,}", f"{total.amount_usd:f}"
            )
        stdout.print(table, markup=False)
    changed = found.changed
    stdout.print(
        f"{changed.attempts:,} of {found.examined:,} attempts {done} corrected, by {changed.amount_usd:f} USD in all; "
        f"{found.unchanged:,} cost the same",
        highlight=False,
    )
    for label, count in sorted(found.unpriced.items())[:SHOWN]:
        stderr.print(f"no price: {visible(label)} ({count:,} attempts)", markup=False, highlight=False)
    if found.kept:
        stderr.print(f"{found.kept:,} attempts keep the price that nobody states any more", highlight=False)
    for label, count in sorted(found.gone.items())[:SHOWN]:
        text = (
            f"`{visible(label)}` is gone or serves something else: {count:,} attempts are priced by provider and model"
        )
        stderr.print(text, markup=False, highlight=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.isoformat() if isinstance(value, datetime) else value
