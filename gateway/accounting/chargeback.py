"""What teams are charged: the ledger's cost with a markup, rounded to the cent on each line.

`charged_usd` of a line is `exact_usd` rounded half to even; `remainder_usd` is what rounding left out of it, below zero
where it added. So the sum of what is charged and of what remains is the exact total, and nothing gets lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact

import msgspec
from rich.table import Table
from rich.text import Text

from gateway.accounting.reports import Report, period, shown_cost
from gateway.accounting.sheets import Cell, Kind, Sheet, plain, utc, visible
from gateway.config.model import Configuration
from gateway.store.usage import UsageRow

DEFAULT_BY = ("organisation", "cost_center", "team", "project")
CENT = Decimal("0.01")
FIGURES: dict[str, Kind] = {
    **{"requests": "count", "cost_usd": "money", "markup": "money", "exact_usd": "money", "charged_usd": "money"},
    **{"remainder_usd": "money", "unpriced": "count", "max_cost_usd": "money"},
}

# Wide enough for a sum of everything PostgreSQL's `numeric` holds; if ever it is not, that is an error and no rounding.
_EXACT = Context(prec=200_000, traps=[Inexact])
_TO_CENTS = Context(prec=200_000, rounding=ROUND_HALF_EVEN)

Markup = Callable[[str | None, str | None], Decimal]
"""Organisation and team -> what is added to the cost, as a share of it."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """USD. `exact_usd`: the cost with the `markup` (a share); None: the cost is not known, and nothing is charged."""

    row: UsageRow
    markup: Decimal | None  # None: of a total
    exact_usd: Decimal | None
    charged_usd: Decimal | None
    remainder_usd: Decimal | None


class Chargeback(msgspec.Struct, frozen=True, kw_only=True):
    """`total`: sums of the lines; its `charged_usd` is the sum of rounded lines, so an invoice adds up."""

    by: tuple[str, ...]
    since: datetime | None
    until: datetime | None
    zone: str
    lines: list[Line]
    total: Line


def groups_of(by: Sequence[str] | None) -> tuple[str, ...]:
    """What a chargeback must be grouped by, for a markup is a team's or an organisation's. Raises `ValueError`."""
    if by is None:
        return DEFAULT_BY
    if "team" not in by:
        raise ValueError("a chargeback is by team at least\nhint: `--by team`, or leave `--by` out")
    return tuple(by) if "organisation" in by else ("organisation", *by)


def chargeback(report: Report, markup: Markup) -> Chargeback:
    """`report`: grouped by what `groups_of` says."""
    lines = [charge(row, markup(_text(row, "organisation"), _text(row, "team"))) for row in report.rows]
    total = Line(
        row=report.total,
        markup=None,
        exact_usd=exact_sum(line.exact_usd for line in lines),
        charged_usd=exact_sum(line.charged_usd for line in lines),
        remainder_usd=exact_sum(line.remainder_usd for line in lines),
    )
    return Chargeback(by=report.by, since=report.since, until=report.until, zone=report.zone, lines=lines, total=total)


def charge(row: UsageRow, markup: Decimal) -> Line:
    if row.cost_usd is None:
        return Line(row=row, markup=markup, exact_usd=None, charged_usd=None, remainder_usd=None)
    exact = _EXACT.multiply(row.cost_usd, _EXACT.add(1, markup))
    charged = exact.quantize(CENT, context=_TO_CENTS)
    return Line(
        row=row, markup=markup, exact_usd=exact, charged_usd=charged, remainder_usd=_EXACT.subtract(exact, charged)
    )


def exact_sum(values: Iterable[Decimal | None]) -> Decimal | None:
    """Of what is known; None when nothing is. Of nothing at all: 0."""
    every = list(values)
    known = [value for value in every if value is not None]
    if every and not known:
        return None
    total = Decimal(0)
    for value in known:
        total = _EXACT.add(total, value)
    return total


def markups(configuration: Configuration) -> Markup:
    """A team's own markup, else its organisation's, else the configuration's. Whom the configuration does not know has
    the last one."""

    def markup(organisation: str | None, team: str | None) -> Decimal:
        known = configuration.teams.get(team or "")
        if known is not None and known.markup is not None:
            return known.markup
        if organisation is None and known is not None:
            organisation = known.organisation
        above = configuration.organisations.get(organisation or "")
        return configuration.markup if above is None or above.markup is None else above.markup

    return markup


def to_sheet(found: Chargeback) -> Sheet:
    return Sheet(
        about={"by": found.by, "from": utc(found.since), "to": utc(found.until), "zone": found.zone, "currency": "USD"},
        names=found.by,
        figures=FIGURES,
        rows=[{**line.row.group, **figures(line)} for line in found.lines],
        total=figures(found.total),
    )


def figures(line: Line) -> dict[str, Cell]:
    row = line.row
    values = (row.requests, row.cost_usd, line.markup, line.exact_usd, line.charged_usd, line.remainder_usd)
    return dict(zip(FIGURES, (*values, row.unpriced, row.max_cost_usd), strict=True))


def to_table(found: Chargeback) -> Table:
    """For a terminal; what rounding left over is shown to a millionth of a dollar."""
    table = Table(
        title=Text(f"charged for usage {period(found.since, found.until, found.zone)}"),
        caption="\n".join(notes(found)) or None,
        caption_justify="left",
        show_footer=True,
    )
    for position, name in enumerate(found.by):
        table.add_column(Text(visible(name)), footer="total" if position == 0 else "")
    names = ("requests", "cost USD", "markup", "charged USD", "remainder")
    for name, footer in zip(names, cells(found.total), strict=True):
        table.add_column(name, footer=footer, justify="right")
    for line in found.lines:
        group = [Text("-" if value is None else visible(str(plain(value)))) for value in line.row.group.values()]
        table.add_row(*group, *cells(line))
    return table


def cells(line: Line) -> tuple[str, ...]:
    markup = "" if line.markup is None else f"{(line.markup * 100).normalize():f} %"
    charged = "unknown" if line.charged_usd is None else f"{line.charged_usd:,.2f}"
    remainder = "" if line.remainder_usd is None else f"{line.remainder_usd:+.6f}"
    return f"{line.row.requests:,}", shown_cost(line.row), markup, charged, remainder


def notes(found: Chargeback) -> list[str]:
    unpriced = found.total.row.unpriced
    if not unpriced:
        return []
    return [f"{unpriced:,} attempt{'s' if unpriced > 1 else ''} without a known price: not charged, marked `+?`"]


def _text(row: UsageRow, name: str) -> str | None:
    value = row.group.get(name)
    return None if value is None else str(value)
