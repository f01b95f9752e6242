from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import delete, insert

from gateway.accounting.reports import (
    DEFAULT_BY,
    Report,
    parse_by,
    parse_period,
    report,
    to_csv,
    to_json,
    to_table,
)
from gateway.store.database import Database
from gateway.store.tables import usage_events
from gateway.store.usage import UsageRow
from gateway.store.usage_query import GROUPS
from gateway.types import BUCKETS

Event = Callable[..., dict[str, Any]]
NOW = datetime(2026, 3, 15, 10, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_events(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "database" in request.fixturenames:
        database: Database = request.getfixturevalue("database")
        with database.engine.begin() as connection:
            connection.execute(delete(usage_events))


def row(cost: str | None = "0.5", unpriced: int = 0, estimated: int = 0, **group: str | date | None) -> UsageRow:
    tokens = {**dict.fromkeys(BUCKETS, 0), "input_tokens": 1234567, "cache_read_tokens": 3}
    return UsageRow(
        group=group,
        requests=2,
        attempts=1003,
        errors=1,
        tokens=tokens,
        cost_usd=None if cost is None else Decimal(cost),
        unpriced=unpriced,
        estimated=estimated,
    )


def made(*rows: UsageRow, total: UsageRow | None = None) -> Report:
    by = tuple(rows[0].group) if rows else ("team",)
    return Report(by=by, since=None, until=NOW, rows=list(rows), total=total or row())


def shown(found: Report) -> str:
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=False).print(to_table(found))
    return file.getvalue()


def test_from_the_ledger_to_the_last_digit(database: Database, usage_event: Event) -> None:
    tiny = Decimal("0.0000000000000000000000000000000000001")
    with database.engine.begin() as connection:
        for team, cost in (("a", Decimal("123456789012345678.1")), ("a", tiny), ("b", Decimal("1E-30"))):
            connection.execute(insert(usage_events).values(**usage_event(team=team, cost_usd=cost)))
    found = report(database.engine, ("team",), None, None)
    exact = ["123456789012345678.1000000000000000000000000000000000001", "0.000000000000000000000000000001"]
    total = "123456789012345678.1000000000000000000000000000010000001"
    document = json.loads(to_json(found))
    assert [line["cost_usd"] for line in document["rows"]] == exact
    assert document["total"]["cost_usd"] == total
    assert [line["cost_usd"] for line in csv.DictReader(io.StringIO(to_csv(found)))] == exact


def test_the_period_is_applied(database: Database, usage_event: Event) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            insert(usage_events).values(**usage_event(started_at=datetime(2026, 3, 1, 23, 59, tzinfo=UTC)))
        )
        connection.execute(insert(usage_events).values(**usage_event(started_at=datetime(2026, 3, 2, tzinfo=UTC))))
    found = report(database.engine, ("day",), *parse_period("2026-03-01", "2026-03-01", NOW))
    assert [(line.group, line.attempts) for line in found.rows] == [({"day": date(2026, 3, 1)}, 1)]
    assert found.total.attempts == 1


# The table


def test_table() -> None:
    found = made(
        row("0.5", team="payments", day=date(2026, 3, 1)),
        row("1234.5678905", unpriced=1, team="[red]search[/red]", day=None),
        row(None, unpriced=2, team="ops\x1b[2J", day=None),
        row("0.0000001", team="tiny", day=None),
        row("0", team="free", day=None),
        total=row("1235.0678906", unpriced=3, estimated=1),
    )
    lines = [
        [cell.strip() for cell in line.strip("┃│ ").replace("┃", "│").split("│")] for line in shown(found).splitlines()
    ]
    figures = ["2", "1,003", "1", "1,234,567", "3", "0"]
    head = ["team", "day", "requests", "attempts", "errors", "input", "cache read", "output", "cost USD"]
    assert head in lines
    assert ["payments", "2026-03-01", *figures, "0.500000"] in lines
    assert ["[red]search[/red]", "-", *figures, "1,234.567890 +?"] in lines
    assert ["ops\ufffd[2J", "-", *figures, "unknown"] in lines
    assert ["tiny", "-", *figures, "<0.000001"] in lines
    assert ["free", "-", *figures, "0.000000"] in lines
    assert ["total", "", *figures, "1,235.067891 +?"] in lines
    assert ["usage from the beginning to 2026-03-15T10:30:00Z"] in lines
    assert ["3 attempts without a known price: missing from the cost, marked `+?`"] in lines
    assert ["1 attempt with tokens estimated here, because the provider did not report them"] in lines


def test_numbers_are_aligned_right() -> None:
    columns = to_table(made(row(team="a", day=None))).columns
    assert [column.justify for column in columns] == ["left"] * 2 + ["right"] * 7


def test_a_table_without_gaps_has_no_notes() -> None:
    assert to_table(made(row(team="a"))).caption is None


def test_a_table_of_nothing_has_its_total() -> None:
    assert "total" in shown(made())
    assert "total" in shown(Report(by=(), since=None, until=None, rows=[], total=row()))


# CSV


def test_csv() -> None:
    text = to_csv(made(row("0.10", team="a", project=None), row(None, unpriced=2, team='b, "c"', project="p")))
    assert text == (
        "team,project,requests,attempts,errors,input_tokens,cache_read_tokens,cache_write_5m_tokens,"
        "cache_write_1h_tokens,input_audio_tokens,input_image_tokens,output_tokens,reasoning_tokens,"
        "output_audio_tokens,total_tokens,cost_usd,unpriced,estimated,corrected_usd,max_cost_usd\r\n"
        "a,,2,1003,1,1234567,3,0,0,0,0,0,0,0,1234570,0.10,0,0,0,\r\n"
        '"b, ""c""",p,2,1003,1,1234567,3,0,0,0,0,0,0,0,1234570,,2,0,0,\r\n'
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_spreadsheet_runs_no_formula(start: str) -> None:
    name = f'{start}HYPERLINK("http://example.org","x")'
    (line,) = csv.DictReader(io.StringIO(to_csv(made(row(model=name))), newline=""))
    assert line["model"] == f"'{name}"


def test_other_names_stay_as_they_are() -> None:
    (line,) = csv.DictReader(io.StringIO(to_csv(made(row(model="gpt-4o=@+", day=date(2026, 3, 1))))))
    assert (line["model"], line["day"]) == ("gpt-4o=@+", "2026-03-01")


# JSON


def test_json() -> None:
    found = made(row("1E-7", team="é", day=date(2026, 3, 1)), row(None, unpriced=2, team="b", day=None))
    document = json.loads(to_json(found))
    assert (document["by"], document["from"], document["to"]) == (["team", "day"], None, "2026-03-15T10:30:00Z")
    first, second = document["rows"]
    assert (first["team"], first["day"], first["cost_usd"], first["unpriced"]) == ("é", "2026-03-01", "0.0000001", 0)
    assert (second["day"], second["cost_usd"], second["unpriced"]) == (None, None, 2)
    assert document["total"] == {
        **dict.fromkeys(BUCKETS, 0),
        "requests": 2,
        "attempts": 1003,
        "errors": 1,
        "input_tokens": 1234567,
        "cache_read_tokens": 3,
        "total_tokens": 1234570,
        "cost_usd": "0.5",
        "unpriced": 0,
        "estimated": 0,
        "corrected_usd": "0",
        "max_cost_usd": None,
    }


# Options


def test_by() -> None:
    assert parse_by("team, day,") == ("team", "day")
    assert parse_by(",".join(GROUPS)) == tuple(GROUPS)
    assert set(DEFAULT_BY) <= set(GROUPS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("teams", "cannot group by `teams`\nhint: team, project"),
        ("", "each group once"),
        (" , ", "each group once"),
        ("a,team", "`a`"),
        ("team,team", "each group once"),
    ],
)
def test_bad_by(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_by(value)


@pytest.mark.parametrize(
    ("since", "until", "start", "end"),
    [
        (None, None, None, None),
        ("", "", None, None),
        ("2026-03-01", "2026-03-01", datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)),
        ("2026-02-28", None, datetime(2026, 2, 28, tzinfo=UTC), None),
        ("7d", None, NOW - timedelta(days=7), None),
        ("48h", " 24h ", NOW - timedelta(hours=48), NOW - timedelta(hours=24)),
        (
            "2026-03-01T10:00",
            "2026-03-01T10:00:00.5Z",
            datetime(2026, 3, 1, 10, tzinfo=UTC),
            datetime(2026, 3, 1, 10, 0, 0, 500000, tzinfo=UTC),
        ),
        ("2026-03-01T10:00+02:00", None, datetime(2026, 3, 1, 8, tzinfo=UTC), None),
    ],
)
def test_period(since: str | None, until: str | None, start: datetime | None, end: datetime | None) -> None:
    assert parse_period(since, until, NOW) == (start, end)


def test_a_period_is_utc_wherever_now_is() -> None:
    tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    assert parse_period("2026-03-15", "1h", tokyo) == (datetime(2026, 3, 15, tzinfo=UTC), NOW - timedelta(hours=1))


@pytest.mark.parametrize(
    "value", ["yesterday", "2026-02-30", "7", "7w", "-7d", "9999999d", "999999d", "٧d", "2026-13-01T00:00Z", "x" * 9999]
)
@pytest.mark.parametrize("option", ["--from", "--to"])
def test_no_time(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"`{option} .* is no time\nhint: a date") as caught:
        parse_period(value if option == "--from" else None, value if option == "--to" else None, NOW)
    assert len(str(caught.value)) < 300


def test_the_last_day_there_is() -> None:
    with pytest.raises(ValueError, match="`--to 9999-12-31` is no time"):
        parse_period(None, "9999-12-31", NOW)


@pytest.mark.parametrize(("since", "until"), [("2026-03-02", "2026-03-01"), ("1h", "2h"), ("7d", "7d")])
def test_nothing_lies_between(since: str, until: str) -> None:
    with pytest.raises(ValueError, match="is not before"):
        parse_period(since, until, NOW)
