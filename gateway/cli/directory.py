"""`hatchway directory list | show | set | remove`: organisations, cost centres, teams and projects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import fail, show, stderr, stdout, warn
from gateway.cli.control_plane import try_control
from gateway.cli.keys import opened_store
from gateway.config.document import parse_document, read_document
from gateway.config.settings import Settings, environment_variables, load_settings
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from sqlalchemy import Engine

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(
    help="Organisations, cost centres, teams and projects: those of the YAML, and those written here.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
KindName = Annotated[str, typer.Argument(metavar="KIND", help="`organisation`, `cost_center`, `team` or `project`.")]
EntryId = Annotated[str, typer.Argument(metavar="ID", help="Its id; a project's is `TEAM/PROJECT`.")]
MAX_STDIN = 64 * 1024
_encode = msgspec.json.Encoder(decimal_format="number").encode


@app.command("list")
def show_list(
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """List all entries, with where each is from and whether it is in force."""
    found = [one for one in _described() if kind is None or one["kind"] == kind]
    if as_json:
        show(_encode({"entries": found}).decode())
        return
    table = Table("kind", "id", "from", "state", "author", "body")
    for one in found:
        body = _encode(one["body"]).decode()
        table.add_row(one["kind"], one["id"], one["source"], one["state"], one.get("author") or "-", body)
    stdout.print(table, markup=False)
    for one in found:
        if one["state"] == "left out":
            warn(f"{one['kind']} `{one['id']}` is left out: {one['reason']}")


@app.command("show")
def show_one(kind: KindName, entry_id: EntryId, as_json: AsJson = False) -> None:
    """Show one entry: what is in force, or else what was written here."""
    found = [one for one in _described() if (one["kind"], one["id"]) == (kind, entry_id)]
    if not found:
        fail(f"there is no {kind} `{entry_id[:80]}`\nhint: `hatchway directory list` shows all")
    one = min(found, key=lambda each: each["state"] != "in force")
    if as_json:
        show(_encode(one).decode())
        return
    stdout.print(f"{one['kind']} {one['id']}: {one['state']}, from the {one['source']}", markup=False, highlight=False)
    show(msgspec.json.format(_encode(one["body"])).decode())


@app.command("set")
def set_one(
    kind: KindName,
    entry_id: EntryId,
    body: Annotated[
        str, typer.Argument(help="As the YAML has it below the id, as in `{organisation: acme}`; - reads it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write an entry that the YAML does not define. It replaces the one of its kind and id as a whole."""
    from gateway.directory import Entry, check_id, check_write
    from gateway.store.directory import write_entry

    text = sys.stdin.read(MAX_STDIN) if body == "-" else body
    data = parse_document(text, "BODY").data
    entry = Entry(_kind(kind), entry_id, data)
    with _writing() as (settings, engine):
        check_id(entry.kind, entry.id)
        document, variables = read_document(settings.config_path), environment_variables()
        write_entry(engine, entry, cli_author(), lambda entries: check_write(document, entries, entry, variables))
    if as_json:
        show(_encode(entry).decode())
    else:
        stderr.print(f"{kind} {entry_id} is written", markup=False, highlight=False)


@app.command()
def remove(kind: KindName, entry_id: EntryId) -> None:
    """Remove an entry that was written here."""
    from gateway.directory import check_removal
    from gateway.store.directory import remove_entry

    kind = _kind(kind)
    with _writing() as (settings, engine):
        document, variables = read_document(settings.config_path), environment_variables()
        remove_entry(
            engine,
            kind,
            entry_id,
            cli_author(),
            lambda entries: check_removal(document, entries, kind, entry_id, variables),
        )
    stderr.print(f"{kind} {entry_id} is removed", markup=False, highlight=False)


@contextmanager
def _writing() -> Iterator[tuple[Settings, Engine]]:
    """The store; what was written is published at the end. Ends the command where it may not be written."""
    from gateway.directory import publish
    from gateway.store.directory import list_entries

    settings = load_settings()
    with opened_store() as engine:
        try:
            yield settings, engine
        except GatewayError as error:
            fail(error.message, status=2)
        if try_control(settings, "POST", "/internal/directory") is None:
            publish(settings.home, [row.entry for row in list_entries(engine)])


def _described() -> list[dict[str, Any]]:
    from gateway.store.directory import describe_directory

    document = read_document(load_settings().config_path)
    with opened_store() as engine:
        return describe_directory(engine, document, environment_variables())


def _kind(kind: str) -> Any:
    from gateway.directory import KINDS

    if kind not in KINDS:
        fail(f"unknown kind `{kind[:80]}`\nhint: one of {', '.join(f'`{each}`' for each in KINDS)}", status=2)
    return kind
