"""`hatchway report`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.console import ProgressBar, fail, show, stderr, stdout, warn
from gateway.cli.ledger import opened_ledger
from gateway.cli.output import opened_output
from gateway.config.settings import environment_variables, load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table
    from sqlalchemy import Engine

    from gateway.accounting.sheets import Sheet
    from gateway.config.model import Configuration
    from gateway.store.usage_query import Question

# The database's libraries are imported by the commands that use them: the others start half a second sooner.


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    PARQUET = "parquet"
    JSON = "json"
    FOCUS = "focus"


def report(
    by: Annotated[
        str | None,
        typer.Option(
            help="Groups, separated by commas: team, project, model, endpoint, domain, day (left out: these), or any "
            "other dimension, hour, week, month, quarter, year, tag:NAME."
        ),
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="First day, month or time, or how long ago (7d).")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day or month (included) or time.")] = None,
    zone: Annotated[str, typer.Option(help="Time zone of days and hours, as in `Europe/Berlin`.")] = "UTC",
    team: Annotated[str | None, typer.Option(help="Of this team alone.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Of these alone, as in `model=gpt-*,o3`. May be given again.")
    ] = None,
    chargeback: Annotated[
        bool, typer.Option("--chargeback", help="What teams are charged, with their markup.")
    ] = False,
    endpoints: Annotated[
        bool, typer.Option("--endpoints", help="Tokens per dollar, success, latency and utilisation by endpoint.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Configuration with markups and capacities.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format json`.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="File to write, whole or not at all; left out: standard output.")
    ] = None,
) -> None:
    """Usage and cost out of the ledger."""
    form = Format.JSON if as_json else form
    _refuse_nonsense(form, output, chargeback=chargeback, endpoints=endpoints)
    if endpoints and (by is not None or team is not None or where):
        fail("`--endpoints` takes no `--by`, `--team` and `--where`\nhint: leave them out", status=2)
    try:
        question = _question(by, since, until, zone, team, where or [], is_chargeback=chargeback)
        with opened_ledger() as database:
            if form is Format.FOCUS:
                _write_focus(database.engine, question, output, config, by is not None or team is not None or where)
            elif endpoints:
                _show_performance(database.engine, question, form, output, config)
            elif chargeback:
                _show_chargeback(database.engine, question, form, output, config)
            else:
                _show_usage(database.engine, question, form, output)
    except ValueError as error:
        fail(str(error), status=2)
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"cannot write `{output}`: {error.strerror}\nhint: name a file in a folder that you may write to")


def _refuse_nonsense(form: Format, output: Path | None, *, chargeback: bool, endpoints: bool) -> None:
    if chargeback and endpoints:
        fail("`--chargeback` and `--endpoints` are two reports\nhint: ask for one", status=2)
    if form is Format.FOCUS and (chargeback or endpoints):
        fail("FOCUS describes cost and usage alone\nhint: leave `--chargeback` and `--endpoints` out", status=2)
    if form is Format.PARQUET and output is None and sys.stdout.isatty():
        fail("Parquet is not for a terminal\nhint: `--output FILE.parquet`", status=2)


def _question(
    by: str | None,
    since: str | None,
    until: str | None,
    zone: str,
    team: str | None,
    where: list[str],
    *,
    is_chargeback: bool,
) -> Question:
    """Raises `ValueError`."""
    from gateway.accounting import chargeback, reports
    from gateway.store.usage_query import Question

    reports.parse_zone(zone)
    start, end = reports.parse_period(since, until, datetime.now(UTC), zone)
    groups = None if by is None else reports.parse_by(by)
    names = chargeback.groups_of(groups) if is_chargeback else groups or reports.DEFAULT_BY
    return Question(by=names, since=start, until=end, zone=zone, where=reports.parse_where(where), team=team)


def _show_usage(engine: Engine, question: Question, form: Format, output: Path | None) -> None:
    from gateway.accounting import reports

    found = reports.report_on(engine, question)
    _put([reports.to_table(found)] if form is Format.TABLE else reports.to_sheet(found), form, output)


def _show_chargeback(
    engine: Engine, question: Question, form: Format, output: Path | None, config: Path | None
) -> None:
    from gateway.accounting import chargeback, reports

    markup = chargeback.markups(_configuration(config))
    found = chargeback.chargeback(reports.report_on(engine, question), markup)
    _put([chargeback.to_table(found)] if form is Format.TABLE else chargeback.to_sheet(found), form, output)


def _show_performance(
    engine: Engine, question: Question, form: Format, output: Path | None, config: Path | None
) -> None:
    from gateway.accounting import performance

    found = performance.performance(
        engine, _configuration(config).endpoints, question.since, question.until, datetime.now(UTC), zone=question.zone
    )
    _put(performance.to_tables(found) if form is Format.TABLE else performance.to_sheet(found), form, output)


def _write_focus(
    engine: Engine, question: Question, output: Path | None, config: Path | None, is_narrowed: object
) -> None:
    from gateway.accounting.billers import Billers
    from gateway.accounting.focus import write_focus

    if is_narrowed:
        fail("FOCUS has every charge of a period\nhint: leave `--by`, `--team` and `--where` out", status=2)
    try:
        billers = Billers(_configuration(config))
    except ConfigError as error:
        warn(f"sellers are named by their provider's id: {error}")
        billers = Billers(None)
    is_parquet = output is not None and output.suffix == ".parquet"
    with ProgressBar() if output is not None else nullcontext() as progress:
        summary = write_focus(
            engine,
            sys.stdout if output is None else output,
            since=question.since,
            until=question.until or datetime.now(UTC),
            form="parquet" if is_parquet else "csv",
            billers=billers,
            progress=progress,
        )
    if summary.unpriced_attempts:
        warn(f"{summary.unpriced_attempts:,} attempts without a known price have no cost in it")


def _put(found: list[Table] | Sheet, form: Format, output: Path | None) -> None:
    from rich.console import Console

    from gateway.accounting import sheets
    from gateway.cli.console import PIPE_WIDTH

    if isinstance(found, list):
        if output is None:
            stdout.print(*found)
            return
        console = Console(width=PIPE_WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(*found)
        text = captured.get()
    elif form is Format.PARQUET:
        with opened_output(output) as file:
            sheets.write_parquet(found, file)
        return
    else:
        text = sheets.to_csv(found) if form is Format.CSV else sheets.to_json(found) + "\n"
    if output is None:
        show(text)
        return
    with opened_output(output) as file:
        file.write(text.encode())
    stderr.print(f"written to {output}", highlight=False, markup=False)


def _configuration(path: Path | None) -> Configuration:
    """The configuration on disk, with what was written by API where that does not contradict it. Raises ConfigError."""
    from gateway.directory import load

    settings = load_settings(config=path)
    return load(settings.config_path, settings.home, environment_variables()).configuration
