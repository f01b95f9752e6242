"""`hatchway prompts list | show | purge`: what policies have kept of requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import fail, show, stderr, stdout
from gateway.cli.ledger import opened_ledger

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="What was asked and answered, where a policy keeps it.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_encode = msgspec.json.Encoder(decimal_format="number").encode


@app.command("list")
def show_list(
    team: Annotated[str | None, typer.Option(help="Only of this team.")] = None,
    policy: Annotated[str | None, typer.Option(help="Only of this policy.")] = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest requests of which something is kept, without it."""
    from gateway.store.prompts import list_prompts

    with opened_ledger() as database:
        rows = list_prompts(database.engine, team=team, policy=policy, limit=limit)
    if as_json:
        show(_encode({"prompts": rows}).decode())
        return
    table = Table("request", "at", "until", "team", "policy")
    for row in rows:
        at, until = (f"{time.astimezone(UTC):%Y-%m-%d %H:%M}" for time in (row.at, row.expires_at))
        table.add_row(row.request_id, at, until, row.team, row.policy)
    stdout.print(table, markup=False)


@app.command("show")
def show_one(
    request_id: Annotated[str, typer.Argument(help="The response header `x-hatchway-request-id` has it.")],
    as_json: AsJson = False,
) -> None:
    """Show what one request asked and was answered. That it was read is noted in the audit log."""
    from gateway.store.prompts import read_prompt

    with opened_ledger() as database:
        found = read_prompt(database.engine, request_id, cli_author())
    if found is None:
        fail("nothing is kept of this request\nhint: `hatchway prompts list` shows of which there is something")
    text = _encode(found)
    show((text if as_json else msgspec.json.format(text)).decode())


@app.command()
def purge(
    request_id: Annotated[str | None, typer.Option("--request", help="What is kept of this request.")] = None,
    team: Annotated[str | None, typer.Option(help="Of this team's requests.")] = None,
    before: Annotated[str | None, typer.Option(help="Of requests before then: a date, a time, or `30d`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Delete what has expired, which the gateway does each hour by itself; or what fits all that is given."""
    from gateway.accounting.reports import parse_moment
    from gateway.store.prompts import purge_prompts, remove_prompts

    now = datetime.now(UTC)
    try:
        until = None if before is None else parse_moment("before", before, now, end_of_day=False)
    except ValueError as error:
        fail(str(error), status=2)
    with opened_ledger() as database:
        if request_id is None and team is None and until is None:
            gone = purge_prompts(database.engine, now)
        else:
            gone = remove_prompts(database.engine, cli_author(), request_id=request_id, team=team, before=until)
    if as_json:
        show(_encode({"removed": gone}).decode())
    else:
        stderr.print(f"{gone} removed", highlight=False)
