"""`hatchway secrets set | list | remove | rekey`: providers' secrets, encrypted in the database."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import fail, show, stderr, stdout
from gateway.cli.control_plane import try_control
from gateway.cli.keys import opened_store
from gateway.config.settings import Settings, load_settings
from gateway.secrets import (
    MAX_VALUE,
    Cipher,
    SecretError,
    check_name,
    check_value,
    ensure_keys,
    new_key,
    publish,
    read_keys,
    write_keys,
)

if TYPE_CHECKING:
    from sqlalchemy import Engine

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(
    help="Providers' secrets, encrypted in the database. A provider takes one as `${secret:NAME}`.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
SecretName = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")]


@app.command("set")
def set_one(
    name: SecretName,
    from_stdin: Annotated[bool, typer.Option("--from-stdin", help="Read it from standard input.")] = False,
) -> None:
    """Set a secret, or replace it. It is asked for unless it comes from standard input, and is never shown."""
    from gateway.store.secrets import TooManySecrets, store_secret

    try:
        check_name(name)
    except SecretError as error:
        fail(str(error), status=2)
    value = _read_value(name, from_stdin)
    settings = load_settings()
    with opened_store() as engine:
        try:
            check_value(value)
            cipher = Cipher(ensure_keys(settings.home, _given(settings)))
            store_secret(engine, cipher.seal(name, value), cli_author())
        except (SecretError, TooManySecrets) as error:
            fail(str(error), status=2)
        _publish(settings, engine)
    stderr.print(f"{name} is set; a provider takes it as ${{secret:{name}}}", markup=False, highlight=False)


@app.command("list")
def show_list(as_json: AsJson = False) -> None:
    """List the names of all secrets, and which key encrypted each; never a secret."""
    from gateway.store.secrets import list_secrets

    with opened_store() as engine:
        rows = list_secrets(engine)
    if as_json:
        show(msgspec.json.encode({"secrets": rows}).decode())
        return
    table = Table("name", "key", "set", "author")
    for row in rows:
        table.add_row(row.name, row.key_hint, f"{row.updated_at:%Y-%m-%d %H:%M}", row.author)
    stdout.print(table, markup=False)


@app.command()
def remove(name: SecretName) -> None:
    """Remove a secret. Providers that name it can no longer be used."""
    from gateway.store.secrets import remove_secret

    settings = load_settings()
    with opened_store() as engine:
        if not remove_secret(engine, name, cli_author()):
            fail("there is no secret of that name\nhint: `hatchway secrets list` shows the names")
        _publish(settings, engine)
    stderr.print("removed", highlight=False)


@app.command()
def rekey(as_json: AsJson = False) -> None:
    """Encrypt all secrets with a new key; the old one is forgotten.

    With `HATCHWAY_SECRET_KEY` the new key is the first of it; the old one follows behind a comma until this is done.
    """
    from gateway.store.secrets import rekey_secrets

    settings = load_settings()
    given = _given(settings)
    with opened_store() as engine:
        try:
            keys = read_keys(settings.home, given)
            if given is None:
                # The new key is on the disk before anything needs it, the old one until nothing does.
                keys = [new_key(), *keys]
                write_keys(settings.home, keys)
            cipher = Cipher(keys)
            count = rekey_secrets(engine, cipher, cli_author())
        except SecretError as error:
            fail(str(error), status=2)
        _publish(settings, engine)
        if given is None:
            write_keys(settings.home, keys[:1])
    if as_json:
        show(msgspec.json.encode({"key_hint": cipher.hint, "encrypted": count}).decode())
    else:
        stderr.print(f"{count} encrypted with the key {cipher.hint}", markup=False, highlight=False)


def _read_value(name: str, from_stdin: bool) -> str:
    if from_stdin:
        value = sys.stdin.read(MAX_VALUE + 2)
    elif sys.stdin.isatty():
        value = str(typer.prompt(name, hide_input=True, err=True))
    else:
        fail("there is no terminal to ask at\nhint: send the secret with `--from-stdin`", status=2)
    return value.strip()


def _given(settings: Settings) -> str | None:
    return None if settings.secret_key is None else settings.secret_key.reveal()


def _publish(settings: Settings, engine: Engine) -> None:
    """The running gateway does it, and has its workers take it up; without one it is done here for the next start."""
    from gateway.store.secrets import read_sealed

    if try_control(settings, "POST", "/internal/secrets") is None:
        publish(settings.home, read_sealed(engine))
