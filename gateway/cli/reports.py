"""`hatchway report`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.console import fail, show, stdout
from gateway.cli.ledger import opened_ledger

# The database's libraries are imported by the commands that use them: the others start half a second sooner.


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def report(
    by: Annotated[
        str | None,
        typer.Option(
            help="Groups, separated by commas: team, project, model, endpoint, domain, day (left out: these)."
        ),
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="First day or time, or how long ago (7d).")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day (included) or time.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format json`.")] = False,
) -> None:
    """Usage and cost out of the ledger."""
    from gateway.accounting import reports

    try:
        groups = reports.DEFAULT_BY if by is None else reports.parse_by(by)
        start, end = reports.parse_period(since, until, datetime.now(UTC))
    except ValueError as error:
        fail(str(error), status=2)
    with opened_ledger() as database:
        found = reports.report(database.engine, groups, start, end)
    if as_json or form is Format.JSON:
        show(reports.to_json(found))
    elif form is Format.CSV:
        show(reports.to_csv(found))
    else:
        stdout.print(reports.to_table(found))
