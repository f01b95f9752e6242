"""`hatchway directory list | show | set | remove`: organisations, cost centres, teams and projects."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import fail, show, stderr, stdout, warn
from gateway.cli.control_plane import try_control
from gateway.cli.keys import opened_store
from gateway.config.document import parse_document, read_document
from gateway.config.settings import environment_variables, load_settings
from gateway.errors import GatewayError

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(
    help="Organisations, cost centres, teams and projects: those of the YAML, and those written here.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
KindName = Annotated[str, typer.Argument(metavar="KIND", help="`organisation`, `cost_center`, `team` or `project`.")]
EntryId = Annotated[str, typer.Argument(metavar="ID", help="Its id; a project's is `TEAM/PROJECT`.")]
Body = Annotated[str, typer.Argument(metavar="BODY", help="As in the YAML, `{organisation: acme}`; `-` reads it.")]
ConfigPath = Annotated[Path | None, typer.Option("--config", help="The YAML, where no gateway runs.")]
MAX_STDIN = 64 * 1024
_PATH = "/internal/directory"
_encode = msgspec.json.Encoder(decimal_format="number").encode


@app.command("list")
def show_list(
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List all entries, with where each is from and whether it is in force."""
    found = [one for one in _described(config) if kind is None or one["kind"] == kind]
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
def show_one(kind: KindName, entry_id: EntryId, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Show one entry: what is in force, or else what was written here."""
    found = [one for one in _described(config) if (one["kind"], one["id"]) == (kind, entry_id)]
    if not found:
        fail(f"there is no {kind} `{entry_id[:80]}`\nhint: `hatchway directory list` shows all")
    one = min(found, key=lambda each: each["state"] != "in force")
    if as_json:
        show(_encode(one).decode())
        return
    stderr.print(f"{one['kind']} {one['id']}: {one['state']}, from the {one['source']}", markup=False, highlight=False)
    show(msgspec.json.format(_encode(one["body"])).decode())


@app.command("set")
def set_one(kind: KindName, entry_id: EntryId, body: Body, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Write an entry that the YAML does not define. It replaces the one of its kind and id as a whole."""
    text = sys.stdin.read(MAX_STDIN) if body == "-" else body
    written = parse_document(text, "BODY").data
    _write(kind, entry_id, written, config)
    if as_json:
        show(_encode({"kind": kind, "id": entry_id, "body": written}).decode())
    else:
        stderr.print(f"{kind} {entry_id} is written", markup=False, highlight=False)


@app.command()
def remove(kind: KindName, entry_id: EntryId, config: ConfigPath = None) -> None:
    """Remove an entry that was written here."""
    _write(kind, entry_id, None, config)
    stderr.print(f"{kind} {entry_id} is removed", markup=False, highlight=False)


def _described(config: Path | None) -> list[dict[str, Any]]:
    settings = load_settings(config=config)
    found = try_control(settings, "GET", _PATH)
    if found is not None:
        entries: list[dict[str, Any]] = found["entries"]
        return entries
    from gateway.store.directory import describe_directory

    with opened_store() as engine:
        return describe_directory(engine, read_document(settings.config_path), environment_variables())


def _write(kind: str, id: str, body: dict[str, Any] | None, config: Path | None) -> None:
    """The running gateway does it; without one it is done here, and published for the next start."""
    from gateway.directory import KINDS, Entry, check_removal, check_write, publish
    from gateway.store.directory import list_entries, remove_entry, write_entry

    if kind not in KINDS:
        fail(f"unknown kind `{kind[:80]}`\nhint: one of {', '.join(f'`{each}`' for each in KINDS)}", status=2)
    settings, author = load_settings(config=config), cli_author()
    asked = {
        "kind": kind,
        "id": id,
        "author": author.actor,
        "body": None if body is None else msgspec.Raw(_encode(body)),
    }
    if try_control(settings, "POST", _PATH, asked) is not None:
        return
    document, variables = read_document(settings.config_path), environment_variables()
    with opened_store() as engine:
        try:
            if body is None:
                remove_entry(
                    engine, kind, id, author, lambda entries: check_removal(document, entries, kind, id, variables)
                )
            else:
                entry = Entry(kind, id, body)
                write_entry(engine, entry, author, lambda entries: check_write(document, entries, entry, variables))
        except GatewayError as error:
            fail(error.message, status=2)
        publish(settings.home, [row.entry for row in list_entries(engine)])
