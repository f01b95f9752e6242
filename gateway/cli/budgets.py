"""`hatchway budgets list | show | release`."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import fail, show, stderr, stdout
from gateway.cli.ledger import opened_ledger
from gateway.config.settings import environment_variables, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.budgets.accounts import Account
    from gateway.budgets.standing import Standing

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Budgets: limits, what is spent and left, forecasts, alerts.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
AccountName = Annotated[str, typer.Argument(help="As `list` shows it: team:payments, key:ID, project:TEAM/ID, ...")]


@app.command("list")
def show_list(as_json: AsJson = False) -> None:
    """Every budget in its current period."""
    from gateway.budgets.standing import standings

    with opened_ledger() as database:
        found = standings(database.engine, _accounts(database.engine), datetime.now(UTC))
    if as_json:
        show(msgspec.json.encode(found).decode())
        return
    table = Table("account", "limit USD", "per", "spent", "reserved", "left", "forecast", "alerts sent")
    for one in found:
        alerts = ", ".join(_percent(alert.threshold) for alert in one.alerts) or "-"
        kind = f"{one.per}, {'hard' if one.hard else 'soft'}"
        spent = f"{_usd(one.spent_usd)} ({_percent(one.share.quantize(Decimal('0.001')))})"
        amounts = (_usd(one.reserved_usd), _usd(one.left_usd), _usd(one.forecast_usd))
        table.add_row(one.account, _usd(one.limit_usd), kind, spent, *amounts, alerts)
    stdout.print(table, markup=False)


@app.command("show")
def show_one(account: AccountName, as_json: AsJson = False) -> None:
    """One budget, with a forecast that knows the days of the week, and who holds what of it."""
    from gateway.budgets.standing import standings, with_history
    from gateway.store.leases import leases

    now = datetime.now(UTC)
    with opened_ledger() as database:
        known = next((one for one in _accounts(database.engine) if one.id == account and one.budget is not None), None)
        if known is None:
            fail(f"there is no budget of `{account[:100]}`\nhint: `hatchway budgets list` shows all", status=2)
        standing = with_history(database.engine, standings(database.engine, [known], now)[0], known, now)
        held = leases(database.engine, account)
    if as_json:
        described: dict[str, Any] = msgspec.to_builtins(standing)
        show(msgspec.json.encode({**described, "holders": msgspec.to_builtins(held)}).decode())
        return
    for name, value in _lines(standing):
        show(f"{name:14} {value}")
    for lease in held:
        show(f"{'held by':14} {lease.holder}: {_usd(lease.amount_usd)} USD, renewed {lease.renewed_at:%Y-%m-%d %H:%M}")


@app.command()
def release(
    holder: Annotated[str, typer.Argument(help="As `show` names it: a gateway and a worker process.")],
    force: Annotated[bool, typer.Option("--force", help="Also of one that renewed its leases lately.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take back what a worker holds that is gone for good, with its machine."""
    from gateway.budgets.watch import release_holder

    with opened_ledger() as database:
        try:
            found = release_holder(database.engine, holder, cli_author(), force=force)
        except ValueError as error:
            fail(str(error))
    if not found:
        fail("this holder has no leases\nhint: `hatchway budgets show ACCOUNT` names the holders", status=2)
    total = sum((one.amount_usd for one in found), Decimal(0))
    if as_json:
        show(msgspec.json.encode({"released_usd": total, "accounts": [one.account for one in found]}).decode())
    else:
        stderr.print(f"released {_usd(total)} USD of {len(found)} budgets", highlight=False)


def _accounts(engine: Engine) -> list[Account]:
    """Of the configuration that is in force, or was last, and of the active keys."""
    from gateway.budgets.accounts import all_accounts
    from gateway.config.compiler import compile_configuration
    from gateway.config.variables import Variables
    from gateway.directory import load
    from gateway.publication import Publication
    from gateway.store.keys import active_keys

    settings, environ = load_settings(), environment_variables()
    try:
        document = Publication(settings.home).read_document()
        configuration = compile_configuration(document, Variables(environ, settings.home))
    except FileNotFoundError:  # no gateway has run with this home folder
        configuration = load(settings.config_path, settings.home, environ).configuration
    return all_accounts(configuration, active_keys(engine))


def _lines(one: Standing) -> list[tuple[str, str]]:
    return [
        ("account", one.account),
        ("limit", f"{_usd(one.limit_usd)} USD a {one.per}, {'hard' if one.hard else 'soft'}"),
        ("period", f"{one.period_start.isoformat()} to {one.period_end.isoformat()} ({one.zone})"),
        ("spent", f"{_usd(one.spent_usd)} USD"),
        ("reserved", f"{_usd(one.reserved_usd)} USD"),
        ("left", f"{_usd(one.left_usd)} USD"),
        ("forecast", "too early to say" if one.forecast_usd is None else f"{_usd(one.forecast_usd)} USD"),
        *(("alert sent", f"{_percent(one.threshold)} at {one.at:%Y-%m-%d %H:%M}") for one in one.alerts),
    ]


def _usd(amount: Decimal | None) -> str:
    return "-" if amount is None else f"{amount.normalize():f}"


def _percent(share: Decimal) -> str:
    return f"{(share * 100).normalize():f} %"
