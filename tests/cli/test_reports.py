"""`hatchway report` against a real database."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from sqlalchemy import delete, insert
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.store.database import Database
from gateway.store.tables import usage_events

Event = Callable[..., dict[str, Any]]
NIGHT = datetime(2026, 3, 1, 22, 30, tzinfo=UTC)  # the next day has begun in Helsinki, and not yet in Berlin
CONFIG = """
version: 1
providers:
  openai: {adapter: openai, api_key: nobody's}
endpoints:
  gpt-mini: {provider: openai, model: gpt-4o-mini, price: {input: 1, output: 1}}
routes: [{match: {model: "*"}, policy: all}]
policies: {all: {endpoints: [gpt-mini]}}
teams: {payments: {markup: 25%}, search: {}}
chargeback: {markup: 10%}
"""


@pytest.fixture(autouse=True)
def ledger(database: Database, usage_event: Event, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Iterator[None]:
    monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
    monkeypatch.setenv("HATCHWAY_HOME", str(directory))
    rows = (
        usage_event(team="payments", started_at=NIGHT, cost_usd=Decimal("1.23456789"), tags={"env": "prod"}),
        usage_event(team="search", started_at=NIGHT + timedelta(hours=1), model="o3", cost_usd=Decimal("0.02")),
        usage_event(team="search", started_at=NIGHT + timedelta(days=40), price_status="unpriced", cost_usd=None),
    )
    with database.engine.begin() as connection:
        connection.execute(insert(usage_events), [{"tags": None, **row} for row in rows])
    yield
    with database.engine.begin() as connection:
        connection.execute(delete(usage_events))


def report(*options: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["report", *options])
    assert result.exit_code == status, result.output
    return result


def groups(*options: str) -> list[tuple[Any, ...]]:
    document = json.loads(report(*options, "--json").stdout)
    return [tuple(row[name] for name in (*document["by"], "attempts")) for row in document["rows"]]


def test_zones_months_and_tags() -> None:
    assert groups("--by", "day", "--to", "2026-03") == [("2026-03-01", 2)]
    assert groups("--by", "day", "--zone", "Europe/Helsinki") == [("2026-03-02", 2), ("2026-04-11", 1)]
    assert groups("--by", "month,tag:env") == [
        ("2026-03-01", "prod", 1),
        ("2026-03-01", None, 1),
        ("2026-04-01", None, 1),
    ]
    assert groups("--by", "hour", "--zone", "Europe/Berlin", "--to", "2026-03-01")[0] == (
        "2026-03-01T23:00:00+01:00",
        1,
    )
    assert groups("--by", "team", "--from", "2026-03-02", "--to", "2026-03-02", "--zone", "Europe/Berlin") == [
        ("search", 1)
    ]


def test_filters() -> None:
    assert groups("--by", "model", "--team", "search") == [("gpt-4o-mini", 1), ("o3", 1)]
    assert groups("--by", "team", "--where", "model=gpt-*", "--where", "team=pay*,nobody") == [("payments", 1)]
    assert groups("--by", "team", "--where", "tag:env=") == [("search", 2)]


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_file_says_what_standard_output_says(form: str, tmp_path: Path) -> None:
    shown = report("--by", "team", "--format", form).stdout_bytes
    path = tmp_path / "usage"
    assert report("--by", "team", "--format", form, "--output", str(path)).stdout == ""
    assert path.read_bytes() == shown
    assert [entry.name for entry in tmp_path.iterdir()] == ["usage"]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "usage.parquet"
    report("--by", "team,day", "--format", "parquet", "--output", str(path))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [(row["team"], row["cost_usd"]) for row in rows[:2]] == [
        ("payments", Decimal("1.23456789")),
        ("search", Decimal("0.02")),
    ]
    piped = report("--by", "team,day", "--format", "parquet").stdout_bytes
    assert pyarrow.parquet.read_table(io.BytesIO(piped)).to_pylist() == rows


def test_chargeback(tmp_path: Path) -> None:
    config = tmp_path / "hatchway.yaml"
    config.write_text(CONFIG)
    text = report("--chargeback", "--by", "team", "--config", str(config), "--format", "csv").stdout
    rows = {row["team"]: row for row in csv.DictReader(io.StringIO(text))}
    assert (rows["payments"]["charged_usd"], rows["payments"]["markup"]) == ("1.54", "0.25")
    assert (rows["search"]["charged_usd"], rows["search"]["remainder_usd"], rows["search"]["unpriced"]) == (
        "0.02",
        "0.002",
        "1",
    )
    assert "charged USD" in report("--chargeback", "--config", str(config)).stdout


def test_endpoints(tmp_path: Path) -> None:
    config = tmp_path / "hatchway.yaml"
    config.write_text(CONFIG)
    (row,) = json.loads(report("--endpoints", "--config", str(config), "--json").stdout)["rows"]
    assert (row["endpoint"], row["attempts"], row["success_rate"]) == ("gpt-mini", 3, 1.0)


def test_focus(tmp_path: Path) -> None:
    config = tmp_path / "hatchway.yaml"
    config.write_text(CONFIG)
    text = report("--format", "focus", "--config", str(config)).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert sum(Decimal(row["BilledCost"] or 0) for row in rows) == Decimal("1.25456789")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--zone", "Mars/Olympus"), "there is no time zone `Mars/Olympus`"),
        (("--by", "planet"), "cannot group by `planet`"),
        (("--by", "tag:"), "cannot group by `tag:`"),
        (("--where", "model"), "has no `=`"),
        (("--where", "day=x"), "`day` cannot be filtered by"),
        (("--from", "2026-13"), "is no time"),
        (("--chargeback", "--by", "model"), "by team at least"),
        (("--chargeback", "--endpoints"), "two reports"),
        (("--endpoints", "--by", "team"), "takes no `--by`"),
        (("--format", "focus", "--by", "team"), "every charge of a period"),
    ],
)
def test_mistakes(options: tuple[str, ...], message: str) -> None:
    result = report(*options, status=2)
    assert message in result.stderr and "hint: " in result.stderr
    assert result.stdout == ""


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path, database: Database, usage_event: Event) -> None:
    result = report("--output", str(tmp_path / "nowhere" / "usage.csv"), "--format", "csv", status=1)
    assert "cannot write" in result.stderr and "hint: " in result.stderr
    with database.engine.begin() as connection:
        connection.execute(insert(usage_events).values(**usage_event(team="tiny", cost_usd=Decimal("1E-45"))))
    old = tmp_path / "usage.parquet"
    old.write_text("of last month")
    result = report("--format", "parquet", "--output", str(old), status=2)
    assert "`cost_usd` needs 46 digits" in result.stderr and "hint: use `--format csv`" in result.stderr
    assert old.read_text() == "of last month"
    assert [entry.name for entry in tmp_path.iterdir()] == ["usage.parquet"]
    report("--format", "parquet", "--output", str(old), "--team", "search")
    assert pyarrow.parquet.read_table(old).num_rows == 2
