"""`hatchway keys create | list | revoke | rotate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from gateway.cli.console import fail, show, stderr, stdout
from gateway.config.settings import load_settings, shipped

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.store.keys import NewKey

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Virtual keys: who may call, and who pays.", no_args_is_help=True)

KeyName = Annotated[str, typer.Argument(help="The key's id or its beginning, or the first 8 characters of its secret.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@contextmanager
def opened_store() -> Iterator[Engine]:
    """The ledger's database, migrated; the embedded one is started for the moment if no gateway runs."""
    from gateway.store.database import Database
    from gateway.store.migrate import migrate

    settings = load_settings()
    settings.prepare()
    with Database.open(settings.database_url, settings.database_dir) as database:
        migrate(database, shipped("migrations"))
        yield database.engine


@app.command()
def create(
    team: Annotated[str, typer.Option(help="The team that pays.")],
    project: Annotated[str | None, typer.Option(help="The team's project.")] = None,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    models: Annotated[str | None, typer.Option(help="Globs of models it may ask for, separated by commas.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is shown once, on standard output."""
    from gateway.store.keys import create_key

    globs = [glob.strip() for glob in models.split(",") if glob.strip()] if models is not None else []
    with opened_store() as engine:
        try:
            made = create_key(engine, team=team, project=project, name=name, models=globs)
        except ValueError as error:
            fail(str(error), status=2)
    _show_new(made, as_json)


@app.command("list")
def show_list(as_json: AsJson = False) -> None:
    """List all keys, revoked ones too; never a secret."""
    from gateway.store.keys import list_keys

    with opened_store() as engine:
        rows = list_keys(engine)
    if as_json:
        show(msgspec.json.encode(rows).decode())
        return
    table = Table("id", "begins", "role", "team", "project", "name", "models", "created", "state")
    for row in rows:
        state = "revoked" if row.revoked_at is not None else "active"
        created = f"{row.created_at:%Y-%m-%d %H:%M}"
        models = ",".join(row.models) or "all"
        cells = (
            row.key_id,
            row.prefix,
            row.role,
            row.team,
            row.project or "-",
            row.name or "-",
            models,
            created,
            state,
        )
        table.add_row(*cells)
    stdout.print(table)


@app.command()
def revoke(
    key: KeyName,
) -> None:
    """End a key at once."""
    from gateway.store.keys import revoke_key

    with opened_store() as engine:
        try:
            if not revoke_key(engine, key):
                fail("there is no active key of that name\nhint: `hatchway keys list` shows the ids")
        except ValueError as error:
            fail(str(error), status=2)
    stderr.print("revoked", highlight=False)


@app.command()
def rotate(
    key: KeyName,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret; the old one stops working."""
    from gateway.store.keys import rotate_key

    with opened_store() as engine:
        try:
            made = rotate_key(engine, key)
        except ValueError as error:
            fail(str(error), status=2)
    if made is None:
        fail("there is no active key of that name\nhint: `hatchway keys list` shows the ids")
    _show_new(made, as_json)


def _show_new(made: NewKey, as_json: bool) -> None:
    if as_json:
        show(json.dumps({"key_id": made.key_id, "key": made.secret.reveal()}))
    else:
        stderr.print(f"key {made.key_id}; its secret is shown once:", highlight=False)
        show(made.secret.reveal())
