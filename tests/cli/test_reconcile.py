"""`hatchway reconcile`, `reconciliations` and `corrections` over a real PostgreSQL, without a running gateway."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.store.database import Database
from gateway.store.tables import metadata, usage_events

MARCH = datetime(2026, 3, 1, 3, tzinfo=UTC)
HEADER = "usage_date_utc,model_version,workspace,usage_input_tokens_no_cache,usage_output_tokens\n"
YAML = """
version: 1
providers: {claude: {adapter: anthropic, api_key: k}}
endpoints: {haiku: {provider: claude, model: claude-x, price: {input: 1, output: 5}}}
routes: [{match: {model: "*"}, policy: all}]
policies: {all: {endpoints: [haiku]}}
"""


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)}"))
    return database.engine


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, database: Database, engine: Engine) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as folder:  # short: sockets have names in it
        config = Path(folder) / "hatchway.yaml"
        config.write_text(YAML)
        monkeypatch.setenv("HATCHWAY_HOME", folder)
        monkeypatch.setenv("HATCHWAY_CONFIG", str(config))
        monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
        yield Path(folder)


@pytest.fixture
def event(engine: Engine, usage_event: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """100 tokens in, 20 out, without a price."""
    names = {"provider": "claude", "endpoint": "haiku", "model": "claude-x", "upstream_model": "claude-x"}
    counts = {"input_tokens": 100, "output_tokens": 20, "cost_usd": None, "price_status": "unpriced"}
    row = usage_event(started_at=MARCH, ended_at=MARCH, **names, **counts)
    with engine.begin() as connection:
        connection.execute(insert(usage_events).values(**row))
    return row


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def write(home: Path, *lines: str) -> str:
    path = home / "usage.csv"
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return str(path)


def test_within_the_tolerance(home: Path, event: dict[str, Any]) -> None:
    done = run("reconcile", write(home, "2026-03-01,claude-x-20260101,w,100,20"), "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["providers"], found["is_within"], found["differences"]) == (["claude"], True, [])


def test_beyond_the_tolerance(home: Path, event: dict[str, Any]) -> None:
    path = write(home, "2026-03-01,claude-x-20260101,w,110,20")
    done = run("reconcile", path)
    assert done.exit_code == 1
    assert "outside 10 tokens" in done.stdout
    assert "beyond the tolerance" in done.stdout
    assert run("reconcile", path, "--tolerance", "10%").exit_code == 0
    assert run("reconcile", path, "--provider", "nobody", "--json").exit_code == 1


def test_a_broken_line_leaves_the_result_open(home: Path, event: dict[str, Any]) -> None:
    done = run("reconcile", write(home, "2026-03-01,claude-x-20260101,w,100,20", "2026-03-01,claude-x,w,-5,0"))
    assert done.exit_code == 1
    assert "set aside: usage.csv:3: `usage_input_tokens_no_cache` is negative" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("none.csv",), ("FILE", "--source", "invoice"), ("FILE", "--zone", "Nowhere"), ("FILE", "--tolerance", "much")]
    + [("FILE", "FILE"), ("FILE", "--same", "x"), ("FILE", "--from", "soon")],
)
def test_unreadable(home: Path, event: dict[str, Any], arguments: tuple[str, ...]) -> None:
    path = write(home, "2026-03-01,claude-x-20260101,w,100,20")
    done = run("reconcile", *(path if argument == "FILE" else argument for argument in arguments))
    assert done.exit_code == 2
    assert "hint:" in done.stderr


def test_models_under_two_names(home: Path, event: dict[str, Any]) -> None:
    path = write(home, "2026-03-01,the big one,w,100,20")
    assert run("reconcile", path).exit_code == 1
    assert run("reconcile", path, "--same", "the big one=claude-x").exit_code == 0


def test_results_are_kept(home: Path, event: dict[str, Any]) -> None:
    saved = run("reconcile", write(home, "2026-03-01,claude-x,w,100,20"), "--save", "--json")
    identifier = json.loads(saved.stdout)["reconciliation_id"]
    assert identifier in run("reconciliations", "list").stdout
    (listed,) = json.loads(run("reconciliations", "list", "--json").stdout)
    assert listed["result"]["is_within"] is True
    assert json.loads(run("reconciliations", "show", identifier).stdout)["result"]["provider_tokens"] == "120"
    assert run("reconciliations", "delete", identifier).exit_code == 0
    assert run("reconciliations", "show", identifier).exit_code == 2
    assert run("reconciliations", "delete", identifier).exit_code == 2


def test_attempts_are_priced_again(home: Path, event: dict[str, Any]) -> None:
    dry = json.loads(run("corrections", "reprice", "--from", "2026-03-01", "--dry-run", "--json").stdout)
    assert (dry["changed"]["attempts"], dry["changed"]["amount_usd"]) == (1, "0.000200")
    assert json.loads(run("corrections", "list", "--json").stdout) == []
    done = run("corrections", "reprice", "--from", "2026-03-01", "--only-unpriced", "--reason", "late price")
    assert done.exit_code == 0, done.stderr
    assert "1 of 1 attempts are corrected, by 0.000200 USD in all" in done.stdout
    (row,) = json.loads(run("corrections", "list", "--json").stdout)
    assert (row["amount_usd"], row["reason"], row["is_first_price"]) == ("0.000200", "late price", True)
    assert "0 of 0 attempts" in run("corrections", "reprice", "--from", "2026-03-01", "--only-unpriced").stdout
    assert run("corrections", "reprice", "--from", "soon").exit_code == 2
    assert run("corrections", "reprice", "--from", "2026-03-01", "--reason", " ").exit_code == 2


def test_a_correction_by_hand(home: Path, event: dict[str, Any]) -> None:
    done = run("corrections", "add", "--team", "a", "--reason", "goodwill", "--json", "--", "-12.50")
    assert done.exit_code == 0, done.stderr
    assert Decimal(json.loads(done.stdout)["amount_usd"]) == Decimal("-12.5")
    of_one = run("corrections", "add", "1", "--event", event["event_id"], "--reason", "r")
    assert "counts at 2026-03-01 03:00 UTC" in of_one.stderr
    table = run("corrections", "list")
    assert "goodwill" in table.stdout and "-12.50" in table.stdout
    for wrong in (("much",), ("0",), ("1", "--kind", "gift"), ("1", "--at", "soon")):
        assert run("corrections", "add", "--team", "a", "--reason", "r", *wrong).exit_code == 2
    assert len(json.loads(run("corrections", "list", "--json").stdout)) == 2
