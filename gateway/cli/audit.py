"""`hatchway audit list | verify`: what operators did, and that nobody changed the word of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from gateway.cli.console import fail, show, stderr, stdout
from gateway.cli.keys import opened_store

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="The audit log: who did what, and whether it is whole.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@app.command("list")
def show_list(
    since: Annotated[str | None, typer.Option(help="A date, a time, or `7d`, `24h`.")] = None,
    action: Annotated[
        str | None, typer.Option(help="As in `keys.create`; `keys` for all that is done to keys.")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Who did it, as the log names them.")] = None,
    limit: Annotated[int, typer.Option(help="How many rows.", min=1, max=100_000)] = 100,
    as_json: AsJson = False,
) -> None:
    """List what was done, the newest first."""
    from gateway.accounting.reports import parse_moment
    from gateway.store.audit import list_audit

    try:
        start = None if since is None else parse_moment("--since", since, datetime.now(UTC), end_of_day=False)
    except ValueError as error:
        fail(str(error), status=2)
    with opened_store() as engine:
        rows = list_audit(engine, since=start, action=action, actor=actor, limit=limit)
    if as_json:
        show(msgspec.json.encode(rows).decode())
        return
    table = Table("no.", "at", "who", "role", "did", "to", "detail")
    for row in rows:
        detail = ", ".join(f"{name}={_short(value)}" for name, value in row.detail.items())
        at = f"{row.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(str(row.seq), at, row.actor, row.role, row.action, row.subject, detail or "-")
    stdout.print(table, markup=False)


@app.command()
def verify(
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A head that was noted earlier: its row must still be there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the log's chain of hashes. Exit 1 where a row was changed, taken out or put in."""
    from gateway.store import audit

    if head is not None and re.fullmatch(r"[0-9a-fA-F]{64}", head) is None:
        fail("a head is 64 hexadecimal digits\nhint: `hatchway audit verify` prints it", status=2)
    with opened_store() as engine:
        found = audit.verify(engine, head=None if head is None else bytes.fromhex(head))
    if as_json:
        show(msgspec.json.encode(found).decode())
    elif found.broken_at is None:
        stderr.print(f"{found.rows} rows, every one in its place; the head is", highlight=False)
        show(found.head)
    if found.broken_at is not None:
        fail(
            f"the audit log is broken at row {found.broken_at}: {found.reason}\n"
            f"hint: the {found.rows} rows before it are sound; compare the others with a backup"
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
