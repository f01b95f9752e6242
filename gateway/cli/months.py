"""`hatchway month close | list | show | verify | export | key`: months that finance is done with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from gateway.cli.author import cli_author
from gateway.cli.console import ProgressBar, ask_gateway, fail, show, stderr, stdout, warn
from gateway.cli.keys import opened_store
from gateway.config.settings import Settings, load_settings, shipped
from gateway.errors import ConfigError, GatewayError, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.config.model import Configuration
    from gateway.months import ClosedMonth
    from gateway.store.database import Database

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Months: close them, check them, take them to finance.", no_args_is_help=True)

MonthName = Annotated[str, typer.Argument(metavar="MONTH", help="Such as `2026-10`; months are of UTC.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_encode = msgspec.json.Encoder(decimal_format="string").encode


@app.command()
def close(
    month: MonthName,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also with earlier months open, attempts unpriced, or a spool left behind."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Close a month for good: count, hash and sign what is in it. Later rows and corrections go to the open month."""
    from gateway.months import close_month
    from gateway.signing import SigningKeyError, load_signing_key

    settings, wanted = load_settings(), _month(month)
    try:
        with _opened_and_shipped(settings) as (database, unshipped), ProgressBar() as bar:
            key = load_signing_key(settings)
            closed = close_month(
                database.engine,
                wanted,
                author=cli_author(),
                key=key,
                force=force,
                unshipped=unshipped,
                progress=bar,
            )
    except GatewayError as error:
        fail(error.message, status=2)
    except (SigningKeyError, OSError) as error:
        fail(str(error))
    if as_json:
        show(_encode(described(closed)).decode())
        return
    _print(closed)


@app.command("list")
def show_list(as_json: AsJson = False) -> None:
    """List the months: those that are closed, and those in which something is booked."""
    from gateway.months import list_months, month_name

    with opened_store() as engine:
        found = list_months(engine)
    if as_json:
        still_open = [{**msgspec.structs.asdict(one), "month": month_name(one.month)} for one in found.open]
        show(_encode({"closed": [described(one) for one in found.closed], "open": still_open}).decode())
        return
    table = Table("month", "state", "attempts", "cost USD", "unpriced", "late", "closed", "by")
    rows = [
        (
            one.month,
            "closed",
            one.manifest["totals"]["attempts"],
            one.manifest["totals"]["total_usd"],
            str(int(one.manifest["totals"]["unpriced"]) - int(one.manifest["totals"]["repriced"])),
            str(one.manifest["late_rows"]),
            str(one.manifest["closed_at"])[:16].replace("T", " "),
            one.manifest["author"],
        )
        for one in found.closed
    ]
    rows += [
        (month_name(one.month), "open", str(one.attempts), f"{one.cost_usd:f}", str(one.unpriced), "-", "-", "-")
        for one in found.open
    ]
    for row in sorted(rows):
        table.add_row(*(Text(cell) for cell in row))
    stdout.print(table)


@app.command("show")
def show_month(month: MonthName, as_json: AsJson = False) -> None:
    """Show what was signed of a closed month; `--json`: the whole manifest."""
    from gateway.months import find_closed

    wanted = _month(month)
    with opened_store() as engine:
        try:
            closed = find_closed(engine, wanted)
        except GatewayError as error:
            fail(error.message, status=2)
    if as_json:
        show(_encode(described(closed)).decode())
    else:
        _print(closed)


@app.command()
def verify(
    month: MonthName,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="PEM file with the key that must have signed it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a closed month from the ledger and compare it with what was signed. Exit 1: it differs."""
    from gateway.months import verify_month
    from gateway.signing import public_bytes, read_public_pem

    settings, wanted = load_settings(), _month(month)
    try:
        trusted = None if public_key is None else read_public_pem(public_key.read_bytes())
    except (OSError, ValueError) as error:
        fail(str(error), status=2)
    with opened_store() as engine, ProgressBar() as bar:
        try:
            found = verify_month(engine, wanted, public_key=trusted, progress=bar)
        except GatewayError as error:
            fail(error.message, status=2)
    own = _own_key(settings)
    is_own = own is not None and public_bytes(own).hex() == found.public_key
    if as_json:
        show(_encode({**msgspec.structs.asdict(found), "is_own_key": is_own}).decode())
    elif found.is_intact:
        stdout.print(f"{found.month} is as it was signed", highlight=False)
    if found.key == "stored" and not is_own:
        warn("it was signed with a key that is not this gateway's\nhint: `--public-key` names the one you trust")
    if not found.is_intact:
        fail(f"{found.month} is not as it was signed: {found.difference}")


@app.command()
def export(
    month: MonthName,
    output: Annotated[Path, typer.Option("--output", help="A folder; it is made where there is none.")],
    as_json: AsJson = False,
) -> None:
    """Write a closed month as files: FOCUS (Parquet and CSV), chargeback, the manifest, its signature, the key."""
    from gateway.accounting.billers import Billers
    from gateway.accounting.focus import write_focus
    from gateway.months import bounds, find_closed, write_proof

    settings, wanted = load_settings(), _month(month)
    try:
        with opened_store() as engine, ProgressBar() as bar:
            closed = find_closed(engine, wanted)
            output.mkdir(parents=True, exist_ok=True)
            since, until = bounds(wanted)
            configuration = _configuration(settings)
            billers = Billers(configuration)
            for form in ("parquet", "csv"):
                path = output / f"focus-{closed.month}.{form}"
                write_focus(engine, path, since=since, until=until, form=form, billers=billers, progress=bar)
            if configuration is not None:
                _write_chargeback(engine, configuration, wanted, output / f"chargeback-{closed.month}.csv")
            proof = write_proof(closed, output)
    except GatewayError as error:
        fail(error.message, status=2)
    except (OSError, ValueError) as error:
        fail(str(error))
    names = sorted(path.name for path in output.glob(f"*-{closed.month}.*")) + proof
    if as_json:
        show(_encode({"month": closed.month, "folder": str(output), "files": names}).decode())
        return
    for name in names:
        stdout.print(Text(str(output / name)))


@app.command()
def key() -> None:
    """Print the public key of this gateway's signatures, for those who verify them."""
    from gateway.signing import SigningKeyError, load_signing_key, public_bytes, public_pem

    settings = load_settings()
    try:
        settings.prepare()
        show(public_pem(public_bytes(load_signing_key(settings))))
    except (SigningKeyError, OSError) as error:
        fail(str(error))


def described(closed: ClosedMonth) -> dict[str, Any]:
    """Plain data, for JSON."""
    return {
        "month": closed.month,
        "sha256": closed.sha256,
        "signature": closed.signature.hex(),
        "public_key": closed.public_key.hex(),
        "manifest": closed.manifest,
    }


def _month(text: str) -> date:
    from gateway.months import parse_month

    try:
        return parse_month(text)
    except GatewayError as error:
        fail(error.message, status=2)


@contextmanager
def _opened_and_shipped(settings: Settings) -> Iterator[tuple[Database, str | None]]:
    """The ledger with all that this gateway has spooled, and why something may be missing."""
    from gateway.processes import control_socket
    from gateway.store.database import Database
    from gateway.store.migrate import migrate

    settings.prepare()
    is_flushed = ask_gateway(settings, "POST", "/internal/flush") is not None
    with Database.open(settings.database_url, settings.database_dir) as database:
        migrate(database, shipped("migrations"))
        if is_flushed:
            unshipped = None
        elif control_socket(settings.run_dir).exists() and ask_gateway(settings, "GET", "/internal/ready") is not None:
            unshipped = "the running gateway did not ship it: its log says why"
        else:
            unshipped = _ship(settings.spool_dir, database)
        yield database, unshipped


def _ship(spool: Path, database: Database) -> str | None:
    from gateway.ledger.shipper import Shipper, ShipperBusy

    try:
        with Shipper(spool, database.connect) as shipper:
            pending = shipper.ship_once().pending_bytes
    except (OSError, ShipperBusy, StoreError) as error:
        return str(error)
    return f"{pending} bytes are left in it" if pending else None


def _configuration(settings: Settings) -> Configuration | None:
    """The one on disk; None, and a warning, where that is not valid."""
    from gateway.config.compiler import compile_configuration
    from gateway.config.document import read_document
    from gateway.config.settings import environment_variables

    try:
        return compile_configuration(read_document(settings.config_path), environment_variables())
    except (ConfigError, OSError) as error:
        warn(f"no chargeback, and sellers are named by their provider's id: the configuration is not valid: {error}")
        return None


def _write_chargeback(engine: Engine, configuration: Configuration, month: date, path: Path) -> None:
    from gateway.accounting import chargeback, reports, sheets
    from gateway.cli.output import opened_output
    from gateway.months import bounds
    from gateway.store.usage_query import Question

    since, until = bounds(month)
    question = Question(by=chargeback.DEFAULT_BY, since=since, until=until)
    found = chargeback.chargeback(reports.report_on(engine, question), chargeback.markups(configuration))
    with opened_output(path) as file:
        file.write(sheets.to_csv(chargeback.to_sheet(found)).encode())


def _own_key(settings: Settings) -> Any | None:
    """The key of this home, if it has one: none is made for a look."""
    from gateway.signing import SigningKeyError, load_signing_key

    if settings.signing_key is None and not settings.signing_key_file.exists():
        return None
    try:
        return load_signing_key(settings)
    except (SigningKeyError, OSError):
        return None


def _print(closed: ClosedMonth) -> None:
    manifest = closed.manifest
    totals, events, corrected = manifest["totals"], manifest["rows"], manifest["corrections"]
    table = Table(title=Text(f"{closed.month}, closed {manifest['closed_at'][:16].replace('T', ' ')} UTC"))
    table.add_column("team")
    for name in ("attempts", "tokens", "cost USD", "corrections USD", "unpriced"):
        table.add_column(name, justify="right")
    for team, sums in manifest["by"]["team"].items():
        cells = (sums["attempts"], sums["tokens"], sums["cost_usd"], sums["corrected_usd"], sums["unpriced"])
        table.add_row(Text(team or "-"), *cells)
    stdout.print(table)
    rows = [
        f"total USD    {totals['total_usd']}",
        f"rows         {events['count']} ({manifest['late_rows']} late), sha256 {events['sha256']}",
        f"corrections  {corrected['count']}, sha256 {corrected['sha256']}",
        f"manifest     sha256 {closed.sha256}",
        f"signed by    {manifest['author']}, key {closed.public_key.hex()}",
    ]
    for row in rows:
        stdout.print(Text(row), soft_wrap=True)
    if manifest["forced"]:
        stderr.print(Text(f"closed all the same: {'; '.join(manifest['forced'])}"))
