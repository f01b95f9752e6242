"""A comparison for people."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.accounting.reconciliation.difference import Difference
from gateway.accounting.reconciliation.result import Reconciliation
from gateway.accounting.sheets import visible

MAX_ROWS = 60
"""Differences in the text, the largest; JSON has all."""
MAX_ASIDES = 20
_MEANING = {
    "late": "rows that came after their month was closed",
    "corrections": "corrections booked on another day, or of no attempt",
    "boundary": "attempts that the provider counts on a neighbouring day",
    "cache": "tokens that one side counts as cached and the other does not",
    "estimated": "tokens that the gateway counted itself",
    "rounding": "digits that the export leaves out",
    "failed": "failed or cancelled attempts that the provider billed",
    "lost": "attempts of a process that died",
    "outside": "traffic that did not pass the gateway",
    "missing": "of which the export has no line",
    "unpriced": "tokens that the ledger has no price for",
    "unmetered": "charges that are not for tokens",
    "price": "the same tokens at another price",
    "unexplained": "what no number explains",
}


def print_result(result: Reconciliation, out: Console, people: Console) -> None:
    """The result on `out`, what could not be read on `people`."""
    title = f"{', '.join(result.providers)} from {result.first} to {result.last} ({result.zone})"
    differing = [row for row in result.differences if row.causes]
    if differing:
        out.print(_differences(title, differing))
    out.print(_causes(result))
    for note in result.notes:
        people.print(f"note: {note}", markup=False, highlight=False)
    for aside in result.export.asides[:MAX_ASIDES]:
        people.print(f"set aside: {aside.file}:{aside.place}: {aside.reason}", markup=False, highlight=False)
    verdict = "within" if result.is_within else "beyond"
    out.print(f"{verdict} the tolerance of {result.tolerance:%}", highlight=False)


def _differences(title: str, rows: list[Difference]) -> Table:
    table = Table(title=Text(f"differences: {title}"), caption_justify="left")
    for name in ("day", "model", "meter"):
        table.add_column(name)
    for name in ("provider tokens", "ledger tokens", "provider USD", "ledger USD", "difference USD"):
        table.add_column(name, justify="right")
    table.add_column("causes")
    largest = sorted(rows, key=_size)
    if len(largest) > MAX_ROWS:
        table.caption = f"the {MAX_ROWS} largest of {len(largest):,}; `--json` has all"
    for row in largest[:MAX_ROWS]:
        causes = ", ".join(
            f"{cause.kind} {_amount(cause.usd) if cause.usd is not None else f'{_count(cause.tokens)} tokens'}"
            for cause in row.causes
        )
        table.add_row(
            str(row.day),
            Text(visible(row.model or "-")),
            row.meter,
            _count(row.provider_tokens),
            _count(row.ledger_tokens),
            _amount(row.provider_usd),
            _amount(row.ledger_usd),
            _amount(row.usd),
            causes,
        )
    return table


def _size(row: Difference) -> tuple[Decimal, Decimal, date, str, str]:
    zero = Decimal(0)
    return -abs(row.usd or zero), -abs(row.tokens or zero), row.day, row.model, row.meter


def _causes(result: Reconciliation) -> Table:
    table = Table(title="causes of the difference", show_footer=True)
    table.add_column("cause", footer="difference")
    table.add_column("tokens", justify="right", footer=_count(result.total.tokens))
    table.add_column("USD", justify="right", footer=_amount(result.total.usd))
    table.add_column("what it is")
    table.add_row("provider", _count(result.total.provider_tokens), _amount(result.total.provider_usd), "its export")
    table.add_row(
        "ledger", _count(result.total.ledger_tokens), _amount(result.total.ledger_usd), "as booked", end_section=True
    )
    for kind, total in result.causes.items():
        table.add_row(kind, _count(total.provider_tokens), _amount(total.provider_usd), _MEANING[kind])
    return table


def _count(tokens: Decimal | int | None) -> str:
    return "-" if tokens is None else f"{tokens:,.0f}"


def _amount(usd: Decimal | None) -> str:
    return "-" if usd is None else f"{usd:,.6f}"
