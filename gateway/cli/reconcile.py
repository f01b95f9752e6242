"""`hatchway reconcile FILE..` and `hatchway reconciliations list | show | delete`."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import ProgressBar, fail, show, stderr, stdout
from gateway.cli.ledger import opened_ledger
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.settings import environment_variables, load_settings
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.accounting.reconciliation.records import ExportFile
    from gateway.config.model import Configuration

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

app = typer.Typer(help="Comparisons with providers' exports that were kept.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def reconcile(
    files: Annotated[list[Path], typer.Argument(metavar="FILE..", help="Exports of one provider: CSV, JSON, Parquet.")],
    provider: Annotated[
        list[str] | None,
        typer.Option(help="The provider in the ledger; may be given again. Left out: told by the export."),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            help="auto, openai-usage, openai-costs, anthropic-usage, anthropic-cost, openrouter, focus or cur."
        ),
    ] = "auto",
    since: Annotated[str | None, typer.Option("--from", help="First day; left out: the export's.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Last day, included; left out: the export's.")] = None,
    zone: Annotated[str, typer.Option(help="Time zone in which the export's days begin.")] = "UTC",
    tolerance: Annotated[str, typer.Option(help="Share of the provider's total that is no difference.")] = "0.5%",
    account: Annotated[
        str | None, typer.Option(help="Glob: only lines of this project, workspace or account of the provider.")
    ] = None,
    same: Annotated[
        list[str] | None, typer.Option(help="THEIRS=OURS: a model under two names. May be given again.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a provider's usage or costs with the ledger: differences and their causes.

    Ends with 0 within the tolerance, 1 beyond it or with lines that could not be read, 2 where nothing can be read.
    """
    from gateway.accounting.reconciliation import result as results
    from gateway.accounting.reconciliation.reading import read_exports
    from gateway.accounting.reconciliation.records import UnreadableFile, open_files
    from gateway.accounting.reconciliation.tables import print_result
    from gateway.store.reconciliations import ledger_providers, save_reconciliation

    configuration = _configuration()
    try:
        in_zone, share = results.parse_zone(zone), results.parse_tolerance(tolerance)
        names = results.parse_same(same or [])
        first, last = _day("--from", since), _day("--to", until)
        with ProgressBar(of_bytes=True) as progress:
            export = read_exports(
                _watched(open_files(files), progress, sum(path.stat().st_size for path in files if path.is_file())),
                zone=in_zone,
                source=None if source == "auto" else source,
                account=account,
                to_usd=results.exchange(configuration),
            )
        with opened_ledger() as database:
            chosen = tuple(provider or ()) or results.providers_for(
                export, configuration, ledger_providers(database.engine)
            )
            found = results.reconcile(
                database.engine,
                export,
                providers=chosen,
                zone=in_zone,
                since=first,
                until=last,
                same=names,
                tolerance=share,
            )
            document = results.to_document(found)
            if save:
                document["reconciliation_id"] = save_reconciliation(
                    database.engine,
                    source="+".join(sorted(set(export.files.values()))),
                    result=document,
                    author=cli_author(),
                )
    except (UnreadableFile, ValueError) as error:
        fail(str(error), status=2)
    if as_json:
        show(json.dumps(document))
    else:
        print_result(found, stdout, stderr)
        if save:
            stderr.print(f"kept as {document['reconciliation_id']}", highlight=False)
    sys.exit(0 if found.is_within else 1)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 100, as_json: AsJson = False
) -> None:
    """Show the comparisons that were kept, the newest first."""
    from gateway.store.reconciliations import list_reconciliations

    with opened_ledger() as database:
        rows = list_reconciliations(database.engine, limit)
    if as_json:
        show(json.dumps([_plain(row) for row in rows]))
        return
    table = Table("id", "at", "author", "source", "from", "to", "provider USD", "ledger USD", "difference USD", "")
    for row in rows:
        result = row["result"]
        figures = [str(result.get(name) or "-") for name in _FIGURES]
        within = "within tolerance" if result.get("is_within") else "differs"
        table.add_row(
            row["reconciliation_id"], f"{row['at']:%Y-%m-%d %H:%M}", row["author"], row["source"], *figures, within
        )
    stdout.print(table, markup=False)


@app.command("show")
def show_(identifier: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]) -> None:
    """Print one of them as JSON, whole."""
    from gateway.store.reconciliations import find_reconciliation

    with opened_ledger() as database:
        row = find_reconciliation(database.engine, identifier)
    if row is None:
        fail(f"no reconciliation `{identifier[:80]}`\nhint: `hatchway reconciliations list`", status=2)
    show(json.dumps(_plain(row)))


@app.command()
def delete(identifier: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]) -> None:
    """Throw one of them away."""
    from gateway.store.reconciliations import delete_reconciliation

    with opened_ledger() as database:
        if not delete_reconciliation(database.engine, identifier, cli_author()):
            fail(f"no reconciliation `{identifier[:80]}`\nhint: `hatchway reconciliations list`", status=2)
    stderr.print(f"{identifier} is deleted", markup=False, highlight=False)


_FIGURES = ("from", "to", "provider_usd", "ledger_usd", "difference_usd")


def _configuration() -> Configuration | None:
    """None where there is none that can be used: a comparison needs it for currencies and names of providers alone."""
    try:
        return compile_configuration(read_document(load_settings().config_path), environment_variables())
    except (ConfigError, OSError):
        return None


def _day(option: str, value: str | None) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"`{option} {value[:40]}` is no day\nhint: such as `2026-10-31`") from None


def _watched(files: Any, progress: ProgressBar, total: int) -> Any:
    """The same files, the bar moved on behind each."""
    done = 0
    for file in files:
        progress(f"reading {file.name}", done, total)
        yield file
        done += _size(file)
        progress(f"reading {file.name}", done, total)


def _size(file: ExportFile) -> int:
    return file.content.seek(0, 2)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "at": row["at"].isoformat()}
