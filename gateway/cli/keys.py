"""`hatchway keys create | list | show | rotate | revoke`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import fail, show, stderr, stdout
from gateway.config.settings import load_settings, shipped
from gateway.types import Budget, Period, RateLimit, Role

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.store.keys import KeyRow, NewKey

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Virtual keys: who may call, and who pays.", no_args_is_help=True)

KeyName = Annotated[str, typer.Argument(help="The key's id or its beginning, or the first 8 characters of its secret.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_NO_KEY = "there is no active key of that name\nhint: `hatchway keys list` shows the ids"


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
    scopes: Annotated[
        str | None,
        typer.Option(help="Surfaces it may call: chat, responses, completions, embeddings, messages, models."),
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="USD/PERIOD", help="Its own budget, as in `50/month`.")] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Over its budget it is reported, not refused.")] = False,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute.", min=1)] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens a minute.", min=1)] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="When it ends: `90d`, `12h`, a date or a time (UTC).")
    ] = None,
    role: Annotated[
        str, typer.Option(help="key (calls models), or for the admin API: admin, operator, finance, developer.")
    ] = "key",
    cost_center: Annotated[str | None, typer.Option(help="Instead of its project's or team's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is shown once, on standard output."""
    from gateway.store.keys import create_key

    try:
        if soft and budget is None:
            raise ValueError("`--soft` says how a budget holds, and there is none\nhint: add `--budget USD/month`")
        own = None if budget is None else parse_budget(budget, hard=not soft)
        expires_at = None if expires is None else parse_end(expires, datetime.now(UTC))
        with opened_store() as engine:
            made = create_key(
                engine,
                team=team,
                project=project,
                name=name,
                models=split(models),
                role=cast(Role, role),  # checked there
                expires_at=expires_at,
                scopes=split(scopes),
                cost_center=cost_center,
                budget=own,
                limits=RateLimit(requests=rpm, tokens=tpm),
                author=cli_author(),
            )
    except ValueError as error:
        fail(str(error), status=2)
    _show_new(made, as_json)


@app.command("list")
def show_list(
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List all keys, revoked ones too; never a secret."""
    from gateway.store.keys import list_keys

    with opened_store() as engine:
        rows = list_keys(engine, team=team)
    now = datetime.now(UTC)
    if as_json:
        show(msgspec.json.encode([described(row, now) for row in rows]).decode())
        return
    table = Table("id", "begins", "role", "team", "project", "name", "models", "limits", "created", "ends", "state")
    for row in rows:
        created, ends = f"{row.created_at:%Y-%m-%d %H:%M}", _moment(row.expires_at)
        names = (row.key_id, row.prefix, row.role, row.team, row.project or "-", row.name or "-")
        table.add_row(*names, ",".join(row.models) or "all", limits_of(row), created, ends, state_of(row, now))
    stdout.print(table, markup=False)


@app.command("show")
def show_one(key: KeyName, as_json: AsJson = False) -> None:
    """Show one key with all that it may do; never its secret."""
    from gateway.store.keys import name_key

    with opened_store() as engine:
        try:
            row = name_key(engine, key)
        except ValueError as error:
            fail(str(error), status=2)
    if row is None:
        fail("there is no key of that name\nhint: `hatchway keys list` shows the ids")
    now = datetime.now(UTC)
    if as_json:
        show(msgspec.json.encode(described(row, now)).decode())
        return
    facts = {
        **{"id": row.key_id, "begins": row.prefix or "-", "state": state_of(row, now), "role": row.role},
        **{"team": row.team, "project": row.project or "-", "name": row.name or "-"},
        **{"cost centre": row.cost_center or "its project's or team's", "models": ", ".join(row.models) or "all"},
        **{"scopes": ", ".join(row.scopes) or "all", "limits": limits_of(row)},
        **{"created": _moment(row.created_at), "ends": _moment(row.expires_at)},
    }
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    stdout.print(table, markup=False)


@app.command()
def revoke(
    key: KeyName,
) -> None:
    """End a key at once, with the secret before its last rotation."""
    from gateway.store.keys import revoke_key

    with opened_store() as engine:
        try:
            if not revoke_key(engine, key, author=cli_author()):
                fail(_NO_KEY)
        except ValueError as error:
            fail(str(error), status=2)
    stderr.print("revoked", highlight=False)


@app.command()
def rotate(
    key: KeyName,
    overlap: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long the old secret works on, as in `24h`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret; the old one stops working, at once or after the overlap."""
    from gateway.store.keys import rotate_key

    try:
        time = timedelta(0) if overlap is None else parse_time(overlap)
        with opened_store() as engine:
            made = rotate_key(engine, key, overlap=time, author=cli_author())
    except ValueError as error:
        fail(str(error), status=2)
    if made is None:
        fail(_NO_KEY)
    _show_new(made, as_json)


def parse_budget(text: str, *, hard: bool) -> Budget:
    """`50/month`, or `50` for a month. Raises ValueError."""
    amount, _, period = text.partition("/")
    try:
        usd = Decimal(amount.strip())
    except InvalidOperation:
        raise ValueError(f"`{text[:80]}` is no budget\nhint: write it as `50/month`") from None
    return Budget(usd=usd, per=cast(Period, period.strip() or "month"), hard=hard)  # checked where it is stored


def parse_time(text: str) -> timedelta:
    """`90d`, `24h`, `30m`, `2w`. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if found is None:
        raise ValueError(f"`{text[:80]}` is no time\nhint: write it as `24h`, `90d`, `2w` or `30m`")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def parse_end(text: str, now: datetime) -> datetime:
    """From now on, or the moment itself; UTC where no zone is given. Raises ValueError."""
    try:
        end = now + parse_time(text) if text.strip()[-1:] in _SECONDS else datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        hint = "hint: write it as `90d`, `2030-01-31` or `2030-01-31T12:00:00Z`"
        raise ValueError(f"`{text[:80]}` is no end of a key\n{hint}") from None
    end = end if end.tzinfo is not None else end.replace(tzinfo=UTC)
    if end <= now:
        raise ValueError(f"`{text[:80]}` has passed: the key would never work\nhint: give a time to come")
    return end


def split(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def described(row: KeyRow, now: datetime) -> dict[str, object]:
    return {**msgspec.structs.asdict(row), "state": row.state(now)}


def limits_of(row: KeyRow) -> str:
    found = []
    if row.budget_usd is not None:
        found.append(f"${row.budget_usd:f}/{row.budget_per} {'hard' if row.budget_hard else 'soft'}")
    if row.rpm is not None:
        found.append(f"{row.rpm} rpm")
    if row.tpm is not None:
        found.append(f"{row.tpm} tpm")
    return ", ".join(found) or "-"


def state_of(row: KeyRow, now: datetime) -> str:
    state = row.state(now)
    if state == "active" and row.previous_until is not None and row.previous_until > now:
        return f"active; its old secret works until {_moment(row.previous_until)}"
    return state


def _moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _show_new(made: NewKey, as_json: bool) -> None:
    if as_json:
        show(json.dumps({"key_id": made.key_id, "key": made.secret.reveal()}))
    else:
        stderr.print(f"key {made.key_id}; its secret is shown once:", highlight=False)
        show(made.secret.reveal())
