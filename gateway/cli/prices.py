"""`hatchway prices list | show | update | diff | approve | reject | unpriced`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from gateway.cli.author import cli_author
from gateway.cli.console import ProgressBar, fail, show, stderr, stdout, warn
from gateway.cli.keys import opened_store
from gateway.cli.ledger import opened_ledger
from gateway.config.compiler import compile_configuration
from gateway.config.document import read_document
from gateway.config.model import Configuration
from gateway.config.settings import environment_variables, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.accounting.catalogue import Catalogue
    from gateway.accounting.catalogue_difference import ModelChange
    from gateway.accounting.catalogue_import import Imported
    from gateway.accounting.price_answers import PriceAnswer
    from gateway.store.catalogues import CatalogueRow

# The database's libraries are imported by the commands that use them: the others start half a second sooner.

USED_DAYS = 30
MAX_LINES = 60
"""Of a difference that was not asked for."""
FETCH_SECONDS = 60.0

app = typer.Typer(help="Price catalogues: what holds, what changes, who approves.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Version = Annotated[str, typer.Argument(help="A catalogue's version, or its beginning.")]
Config = Annotated[Path | None, typer.Option(help="Configuration file or folder.")]
_encode = msgspec.json.Encoder(order="deterministic").encode


class Format(StrEnum):
    AUTO = "auto"
    GENAI_PRICES = "genai-prices"
    LITELLM = "litellm"
    HATCHWAY = "hatchway"


@app.command("list")
def show_list(as_json: AsJson = False) -> None:
    """List the catalogues: which one is in force, which are proposed, who decided."""
    from gateway.store.catalogues import list_catalogues

    with opened_store() as engine:
        rows = list_catalogues(engine)
    if as_json:
        show(_encode(rows).decode())
        return
    table = Table("version", "state", "source", "proposed", "by", "decided", "by")
    for row in rows:
        decided = "-" if row.decided_at is None else f"{row.decided_at:%Y-%m-%d %H:%M}"
        proposed = f"{row.proposed_at:%Y-%m-%d %H:%M}"
        table.add_row(row.version, row.state, row.source, proposed, row.author, decided, row.decided_by or "-")
    stdout.print(table, markup=False)
    if not rows:
        stderr.print("no catalogue is registered yet: the first start of a gateway does, or `hatchway prices update`")


@app.command("show")
def show_price(
    model: Annotated[str, typer.Argument(help="The model, as a provider is asked for it.")],
    provider: Annotated[str | None, typer.Option(help="Of the configuration, or of the catalogue.")] = None,
    team: Annotated[str | None, typer.Option(help="Who pays: contracts may be for some teams.")] = None,
    tier: Annotated[str | None, typer.Option(help="The service tier that is billed, as in `priority`.")] = None,
    input_tokens: Annotated[int, typer.Option(min=0, help="Size of the input: large ones may cost more.")] = 1,
    at: Annotated[str | None, typer.Option(help="When, in UTC, as in 2026-10-01 or 2026-10-01T09:30.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show which price would hold for a model, and why."""
    from gateway.accounting.price_answers import Question, answer_prices
    from gateway.accounting.prices import PriceBook

    try:
        moment = datetime.now(UTC) if at is None else datetime.fromisoformat(at)
    except ValueError:
        fail(f"`{at}` is no date\nhint: write it as in `2026-10-01` or `2026-10-01T09:30`", status=2)
    configuration = _configuration(config)
    with opened_store() as engine:
        book = PriceBook(_in_force(engine))
    asked = Question(
        model=model,
        at=moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC),
        provider=provider,
        team=team,
        service_tier=tier,
        input_tokens=input_tokens,
    )
    answers = answer_prices(book.under(configuration), configuration, asked)
    if as_json:
        show(_encode(answers).decode())
        return
    if not answers:
        fail(f"nobody prices `{model}`\nhint: give the endpoint a `price`, or propose a catalogue that has it")
    for answer in answers:
        _print_answer(answer)


@app.command()
def update(
    source: Annotated[str | None, typer.Option("--from", help="A file, or an https address to fetch once.")] = None,
    package: Annotated[
        bool, typer.Option("--package", help="The installed genai-prices package (the default).")
    ] = False,
    form: Annotated[Format, typer.Option("--format", help="Of the file.")] = Format.AUTO,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Propose a catalogue and show what would change. Nothing holds before it is approved."""
    from gateway.accounting.catalogue_difference import compare_catalogues
    from gateway.store.catalogues import propose

    if package and source is not None:
        fail("`--from` and `--package` are two sources\nhint: keep one", status=2)
    with opened_store() as engine:
        before = _in_force(engine)
        imported = _import(source, form, before)
        after = imported.catalogue
        row = propose(engine, after.version, after.source, after.encode(), cli_author())
    changes = [] if before is None else compare_catalogues(before, after)
    if as_json:
        show(_encode({"catalogue": row, "changes": changes, "left_out": imported.left_out}).decode())
        return
    for what, times in sorted(imported.left_out.items()):
        stderr.print(f"left out, no token is counted by it: {what} ({times})", markup=False, highlight=False)
    if before is not None and before.version == after.version:
        stderr.print(f"{row.version} is in force already: the same prices", highlight=False)
        return
    _print_changes(changes, MAX_LINES)
    stderr.print(f"{row.version} is {row.state}", highlight=False)
    if row.state == "proposed":
        stderr.print(f"hint: `hatchway prices approve {row.version}` puts it in force", highlight=False)


@app.command()
def diff(
    before: Annotated[str | None, typer.Argument(metavar="[A]", help="Left out: the one in force.")] = None,
    after: Annotated[str | None, typer.Argument(metavar="[B]", help="Left out: the newest proposal.")] = None,
    used: Annotated[bool, typer.Option("--used", help=f"Only what the ledger has seen in {USED_DAYS} days.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what changes in prices from catalogue A to catalogue B."""
    from gateway.accounting.catalogue_difference import compare_catalogues, names_in_use
    from gateway.store.catalogues import used_models

    with opened_store() as engine:
        first, second = _one(engine, before, "in force"), _one(engine, after, "proposed")
        old, new = _stored(engine, first.version), _stored(engine, second.version)
        only = None
        if used:
            seen, configuration = (
                used_models(engine, datetime.now(UTC) - timedelta(days=USED_DAYS)),
                _configuration(config),
            )
            only = names_in_use(old, configuration, seen) | names_in_use(new, configuration, seen)
    changes = compare_catalogues(old, new, only)
    if as_json:
        show(_encode({"from": first.version, "to": second.version, "changes": changes}).decode())
        return
    stderr.print(f"from {first.version} ({first.source}) to {second.version} ({second.source})", markup=False)
    _print_changes(changes, None)


@app.command()
def approve(
    version: Version,
    two_person: Annotated[bool, typer.Option("--two-person", help="Refuse to whoever proposed it.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Put a catalogue in force. Running gateways take it up within seconds."""
    from gateway.store.catalogues import Refused
    from gateway.store.catalogues import approve as approve_catalogue

    asks_for_two = two_person or _configuration(config).prices.two_person
    with opened_store() as engine:
        row = _one(engine, version, "")
        try:
            done = approve_catalogue(engine, row.version, cli_author(), two_person=asks_for_two)
        except Refused as error:
            fail(str(error))
    _print_decision(done, as_json)


@app.command()
def reject(version: Version, as_json: AsJson = False) -> None:
    """Put a proposal aside."""
    from gateway.store.catalogues import Refused
    from gateway.store.catalogues import reject as reject_catalogue

    with opened_store() as engine:
        row = _one(engine, version, "")
        try:
            done = reject_catalogue(engine, row.version, cli_author())
        except Refused as error:
            fail(str(error))
    _print_decision(done, as_json)


@app.command()
def unpriced(
    days: Annotated[int, typer.Option(min=1, max=3660, help="How far to look back.")] = USED_DAYS,
    as_json: AsJson = False,
) -> None:
    """List what the ledger has without a price."""
    from gateway.store.catalogues import unpriced_models

    with opened_ledger() as database:
        found = unpriced_models(database.engine, datetime.now(UTC) - timedelta(days=days))
    if as_json:
        show(_encode(found).decode())
        return
    table = Table(
        "endpoint", "provider", "model", "tier", "attempts", "tokens", "at most USD", "first hour", "last hour"
    )
    for one in found:
        hours = (f"{one.first:%Y-%m-%d %H:00}", f"{one.last:%Y-%m-%d %H:00}")
        tier, most = one.service_tier or "-", f"{one.max_cost_usd:f}" if one.max_cost_usd else "unknown"
        counts = (f"{one.attempts:,}", f"{one.tokens:,}", most)
        table.add_row(one.endpoint, one.provider, one.upstream_model, tier, *counts, *hours)
    stdout.print(table, markup=False)
    if found:
        hint = "hint: give the endpoint a `price` or approve a catalogue that has it, then price the rows again"
        stderr.print(f"{hint}: `hatchway reconcile --help`", highlight=False)


def _configuration(config: Path | None) -> Configuration:
    settings = load_settings(config=config)
    return compile_configuration(read_document(settings.config_path), environment_variables())


def _in_force(engine: Engine) -> Catalogue | None:
    from gateway.store.catalogues import in_force

    version = in_force(engine)
    return None if version is None else _stored(engine, version)


def _stored(engine: Engine, version: str) -> Catalogue:
    from gateway.accounting.catalogue_desk import stored_catalogue

    try:
        found = stored_catalogue(engine, version)
    except ValueError as error:
        fail(f"price catalogue `{version}` cannot be read: {error}")
    assert found is not None, "it was just found"
    return found


def _one(engine: Engine, version: str | None, state: str) -> CatalogueRow:
    """The catalogue that is named, or the newest one in that state."""
    from gateway.store.catalogues import Refused, find_catalogue, list_catalogues

    if version is None:
        found = next((row for row in list_catalogues(engine) if row.state == state), None)
        if found is None:
            fail(f"no price catalogue is {state}\nhint: `hatchway prices list` shows them", status=2)
        return found
    try:
        found = find_catalogue(engine, version)
    except Refused as error:
        fail(str(error), status=2)
    if found is None:
        fail(f"there is no price catalogue `{version}`\nhint: `hatchway prices list` shows them", status=2)
    return found


def _import(source: str | None, form: Format, known: Catalogue | None) -> Imported:
    from gateway.accounting.catalogue_import import from_package, read_prices

    if source is None:
        return from_package()
    content = _fetch(source) if "://" in source else _read(Path(source))
    name = source.split("?")[0][-200:] if "://" in source else os.path.basename(source)
    try:
        return read_prices(content, name, form.value, known)
    except ValueError as error:
        fail(f"`{source}`: {error}", status=2)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"`{path}` cannot be read: {error.strerror}", status=2)


def _fetch(address: str) -> bytes:
    """Only https, no redirect, and no more than a catalogue may be."""
    import httpx  # only here: the other commands start sooner

    from gateway.accounting.catalogue import MAX_CATALOGUE_BYTES

    if not address.startswith("https://"):
        fail(f"`{address}` is not fetched\nhint: an address begins with `https://`; anything else is a file", status=2)
    parts, size = [], 0
    try:
        with ProgressBar(of_bytes=True) as progress, httpx.stream("GET", address, timeout=FETCH_SECONDS) as response:
            if response.status_code != 200:
                fail(f"`{address}` answered {response.status_code}")
            total = int(response.headers.get("content-length") or 0)
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_CATALOGUE_BYTES:
                    fail(f"`{address}` is over {MAX_CATALOGUE_BYTES} bytes")
                progress("prices", size, max(total, size))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"`{address}` cannot be fetched: {error}")
    return b"".join(parts)


def _print_answer(answer: PriceAnswer) -> None:
    where = "catalogue" if answer.endpoint is None else f"endpoint {answer.endpoint}"
    stdout.print(f"{answer.model} at {where} (provider {answer.provider})", markup=False, highlight=False)
    for reason in answer.reasons:
        stdout.print(f"  {reason}", markup=False, highlight=False)
    if answer.prices is not None:
        table = Table("USD per million tokens", "used", "list")
        rates, listed = answer.prices.rates, answer.prices.list_rates
        for name in rates.__struct_fields__:
            used, of_list = getattr(rates, name), getattr(listed, name)
            if used is not None or of_list is not None:
                cells = ["-" if value is None else f"{value:f}" for value in (used, of_list)]
                cells[1] = cells[1] if answer.prices.is_listed else "-"
                table.add_row("request (each)" if name == "request" else name, *cells)
        stdout.print(table, markup=False)
    elif answer.endpoint is not None:
        stdout.print("  unpriced", markup=False, highlight=False)
    if answer.list_prices:
        table = Table("in the catalogue", "price")
        for price, value in answer.list_prices.items():
            table.add_row(price, value)
        stdout.print(table, markup=False)


def _print_changes(changes: Sequence[ModelChange], limit: int | None) -> None:
    if not changes:
        stderr.print("no price changes", highlight=False)
        return
    table = Table("provider", "model", "what", "price", "before", "after")
    lines = 0
    for change in changes:
        rows = [(one.price, one.before or "-", one.after or "-") for one in change.prices] or [("names", "-", "-")]
        if limit is not None and lines + len(rows) > limit:
            break
        for price, before, after in rows:
            table.add_row(change.provider, change.model, change.kind, price, before, after)
        lines += len(rows)
    stdout.print(table, markup=False)
    kinds = [change.kind for change in changes]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("added", "removed", "changed"))
    stderr.print(f"models: {counts}", highlight=False)
    if limit is not None and lines < sum(max(1, len(change.prices)) for change in changes):
        warn("not all of it is shown\nhint: `hatchway prices diff` shows everything, `--used` what you use")


def _print_decision(row: CatalogueRow, as_json: bool) -> None:
    if as_json:
        show(_encode(row).decode())
    else:
        stderr.print(f"{row.version} is {row.state}", highlight=False)
