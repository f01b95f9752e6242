from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gateway.accounting.chargeback import Chargeback, chargeback, groups_of, markups, to_sheet, to_table
from gateway.accounting.reports import Report
from gateway.accounting.sheets import to_csv, to_json
from gateway.config.model import Configuration, Organisation, Team
from gateway.store.usage import UsageRow
from gateway.types import BUCKETS

EXACT = Context(prec=1000)
NOW = datetime(2026, 4, 1, tzinfo=UTC)


def usage(cost: str | None, unpriced: int = 0, **group: str | None) -> UsageRow:
    return UsageRow(
        group={**group},
        requests=1,
        attempts=1,
        errors=0,
        tokens=dict.fromkeys(BUCKETS, 0),
        cost_usd=None if cost is None else Decimal(cost),
        unpriced=unpriced,
        estimated=0,
    )


def charged(*rows: UsageRow, markup: str = "0", total: str | None = "0", unpriced: int = 0) -> Chargeback:
    by = tuple(rows[0].group) if rows else ("organisation", "team")
    report = Report(by=by, since=None, until=NOW, rows=list(rows), total=usage(total, unpriced))
    return chargeback(report, lambda organisation, team: Decimal(markup))


@pytest.mark.parametrize(
    ("cost", "markup", "amount", "remainder"),
    [
        ("1.005", "0", "1.00", "0.005"),  # half to even
        ("1.015", "0", "1.02", "-0.005"),
        ("10", "0.15", "11.50", "0"),
        ("0.0000001", "0.5", "0.00", "0.00000015"),
        ("0", "0.2", "0.00", "0"),
        ("-2.345", "0", "-2.34", "-0.005"),  # corrections may leave a credit
        ("100", "-0.1", "90.00", "0"),
        ("1E+30", "0.001", "1001000000000000000000000000000.00", "0"),
    ],
)
def test_a_line(cost: str, markup: str, amount: str, remainder: str) -> None:
    (line,) = charged(usage(cost, organisation=None, team="a"), markup=markup).lines
    assert (line.charged_usd, line.remainder_usd) == (Decimal(amount), Decimal(remainder))
    assert line.charged_usd is not None and line.charged_usd.as_tuple().exponent == -2


money = st.decimals(min_value="-1e12", max_value="1e12", allow_nan=False, allow_infinity=False, places=25)


@given(st.lists(money, max_size=30), st.decimals(min_value=0, max_value=3, places=6, allow_nan=False))
def test_what_is_charged_and_what_remains_is_everything(costs: list[Decimal], markup: Decimal) -> None:
    found = charged(
        *(usage(str(cost), organisation=None, team=f"t{n}") for n, cost in enumerate(costs)), markup=str(markup)
    )
    expected = Decimal(0)
    for cost in costs:
        expected = EXACT.add(expected, EXACT.multiply(cost, EXACT.add(1, markup)))
    total = found.total
    assert total.exact_usd == expected
    assert total.charged_usd is not None and total.remainder_usd is not None
    assert EXACT.add(total.charged_usd, total.remainder_usd) == expected
    assert total.charged_usd == sum((line.charged_usd or Decimal(0) for line in found.lines), Decimal(0))
    assert all(line.remainder_usd is not None and abs(line.remainder_usd) <= Decimal("0.005") for line in found.lines)


def test_what_is_not_known_is_not_charged() -> None:
    known, unknown = usage("1", organisation=None, team="a"), usage(None, 3, organisation=None, team="b")
    found = charged(known, unknown, total="1", unpriced=3)
    assert [line.charged_usd for line in found.lines] == [Decimal("1.00"), None]
    assert (found.total.charged_usd, found.total.row.unpriced) == (Decimal("1.00"), 3)
    assert charged(unknown, total=None, unpriced=3).total.charged_usd is None
    assert json.loads(to_json(to_sheet(found)))["rows"][1]["charged_usd"] is None


def test_whose_markup_holds() -> None:
    teams = {
        "own": Team(id="own", organisation="acme", markup=Decimal("0.3")),
        "theirs": Team(id="theirs", organisation="acme"),
        "free": Team(id="free", organisation="acme", markup=Decimal(0)),
        "alone": Team(id="alone"),
    }
    configuration = Configuration(
        version="v",
        providers={},
        endpoints={},
        routes=(),
        policies={},
        teams=teams,
        organisations={"acme": Organisation(id="acme", markup=Decimal("0.2")), "plain": Organisation(id="plain")},
        markup=Decimal("0.1"),
    )
    markup = markups(configuration)
    assert markup("acme", "own") == Decimal("0.3")
    assert markup("acme", "theirs") == markup(None, "theirs") == Decimal("0.2")
    assert markup("acme", "free") == 0
    assert markup("plain", "theirs") == Decimal("0.1")  # the row says whose the team was then
    assert markup(None, "alone") == markup("gone", "gone") == markup(None, None) == Decimal("0.1")
    assert markup("acme", "gone") == Decimal("0.2")


def test_groups() -> None:
    assert groups_of(None) == ("organisation", "cost_center", "team", "project")
    assert groups_of(("team", "month")) == ("organisation", "team", "month")
    assert groups_of(("team", "organisation")) == ("team", "organisation")
    with pytest.raises(ValueError, match="by team at least\nhint:"):
        groups_of(("model",))


def test_the_table_and_the_sheet() -> None:
    found = charged(
        usage("1.0051", organisation="acme", team="[red]a"),
        usage("2", 1, organisation=None, team="b"),
        markup="0.15",
        total="3.0051",
        unpriced=1,
    )
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=False).print(to_table(found))
    lines = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in file.getvalue().splitlines()]
    assert ["acme", "[red]a", "1", "1.005100", "15 %", "1.16", "-0.004135"] in lines
    assert ["-", "b", "1", "2.000000 +?", "15 %", "2.30", "+0.000000"] in lines
    assert ["total", "", "1", "3.005100 +?", "", "3.46", "-0.004135"] in lines
    assert "1 attempt without a known price: not charged" in file.getvalue()
    assert to_csv(to_sheet(found)).splitlines()[1] == "acme,[red]a,1,1.0051,0.15,1.155865,1.16,-0.004135,0,"
