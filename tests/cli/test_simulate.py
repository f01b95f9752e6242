"""`hatchway simulate` and `hatchway explain --request` over a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from sqlalchemy import delete, insert
from typer.testing import CliRunner

from gateway.cli.policy import explain
from gateway.cli.simulate import simulate
from gateway.errors import ConfigError
from gateway.ledger.spool import Spool
from gateway.store.database import Database
from gateway.store.decisions import Recorded
from gateway.store.tables import decisions, usage_events
from gateway.types import BUCKETS
from tests.recorded_traffic import attempt, configuration, document, record

DEAR = {"endpoints": ["dear"]}
CHEAP = {"endpoints": ["cheap"]}
SINCE = "2026-03-01"


@pytest.fixture(autouse=True)
def home(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HATCHWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
    yield tmp_path / "home"
    with database.engine.begin() as connection:
        connection.execute(delete(usage_events))
        connection.execute(delete(decisions))


@pytest.fixture
def run() -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("simulate")(simulate)
    app.command("explain")(explain)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return invoke


def written(folder: Path, policy: dict[str, Any], name: str = "other.yaml", **changes: Any) -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(json.loads(json.dumps(document(policy, **changes)))))
    return str(path)


def keep(database: Database, home: Path, *recorded: Recorded) -> None:
    """Decisions wait in the spool of a worker that is gone; the rows of attempts are in the ledger."""
    spool = Spool(home / "spool", "worker-0")
    for one in recorded:
        spool.decide(one.decision)
    spool.close()
    with database.engine.begin() as connection:
        for one in recorded:
            for number, made in enumerate(one.attempts):
                row = {name: getattr(made, name) for name in made.__struct_fields__ if name != "usage"}
                values = {
                    **row,
                    **{bucket: getattr(made.usage, bucket) for bucket in BUCKETS},
                    "event_id": f"0192f0c1-2b3c-7d4e-8f50-{int(one.request_id[4:]) * 10 + number:012x}",
                    "request_id": one.request_id,
                    "team": "payments",
                    "key_id": "key-1",
                    "route": "all",
                    "policy": "main",
                    "policy_version": "v",
                    "model": "gpt",
                    "price_status": "priced",
                }
                connection.execute(insert(usage_events).values(**values))


def test_what_is_recorded_is_replayed(database: Database, home: Path, tmp_path: Path, run: Any) -> None:
    before = configuration(DEAR)
    keep(database, home, *(record(before, number) for number in range(20)))
    done = run("simulate", written(tmp_path, CHEAP), "--since", SINCE, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["source"], found["baseline"], found["requests"]) == ("recorded", "recorded", 20)
    assert Decimal(found["cost"]["change_usd"]) == Decimal("-0.012")  # 20 x (0.0012 - 0.0006)
    same = json.loads(run("simulate", written(tmp_path, DEAR), "--since", SINCE, "--json").stdout)
    assert (Decimal(same["cost"]["change_usd"]), same["moved"]["requests"]) == (0, 0)
    part = json.loads(
        run("simulate", written(tmp_path, DEAR), "--since", SINCE, "--until", "2026-03-01T12:00:05Z", "--json").stdout
    )
    assert part["requests"] == 5


def test_the_text_says_it_all(database: Database, home: Path, tmp_path: Path, run: Any) -> None:
    before = configuration({"endpoints": ["dear", "cheap"]})
    keep(database, home, *(record(before, number) for number in range(4)))
    done = run(
        "simulate", written(tmp_path, {"endpoints": ["dear", "cheap"], "require": {"region": ["eu"]}}), "--since", SINCE
    )
    assert done.exit_code == 0
    for words in (
        "4 requests, 2026-03-01 12:00 to 2026-03-01 12:00 UTC (recorded)",
        "-0.002400 (-50.0%)",
        "4 requests would go elsewhere (100.0%)",
        "dear -> cheap",
        "4 requests were served by dear, which may not any more (require); teams: payments 4; for example req_00000",
        "0 (0.0%)",
        "4 (100.0%)",
        "note: the latency of `cheap` is not known",
    ):
        assert words in done.stdout


def test_profiles_state_what_was_never_measured(database: Database, home: Path, tmp_path: Path, run: Any) -> None:
    keep(database, home, record(configuration(DEAR)))
    profiles = tmp_path / "profiles.yaml"
    profiles.write_text("cheap: {ttft: {p50: 400ms}}")
    done = run("simulate", written(tmp_path, CHEAP), "--since", SINCE, "--profiles", str(profiles), "--json")
    assert json.loads(done.stdout)["ttft"]["after"]["p50_s"] == 0.4


def test_a_trace_needs_no_database(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCHWAY_DATABASE_URL", "postgresql://127.0.0.1:1/nothing")
    trace = tmp_path / "day.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,1000,100\n")
    baseline = written(tmp_path, DEAR, "now.yaml")
    done = run("simulate", written(tmp_path, CHEAP), "--trace", f"gpt={trace}", "--baseline", baseline, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["source"], found["requests"]) == ("trace", 1)
    assert Decimal(found["cost"]["change_usd"]) == Decimal("-0.0006")
    alone = run("simulate", written(tmp_path, CHEAP), "--trace", str(trace))
    assert alone.exit_code == 0 and "nothing to compare with" in alone.stdout


def test_nothing_is_recorded(tmp_path: Path, run: Any) -> None:
    done = run("simulate", written(tmp_path, CHEAP))
    assert done.exit_code == 1
    assert "nothing is recorded in that time" in done.stderr and "hint: `decisions.keep`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "soon"], "`--since soon` is no time"),
        (["--since", "2026-03-02", "--until", "2026-03-01"], "is not before"),
        (["--trace", "nowhere.csv"], "`nowhere.csv` is no file"),
        (["--trace", "=x.csv"], "names no model"),
    ],
)
def test_mistakes_of_the_command_line(tmp_path: Path, run: Any, arguments: list[str], message: str) -> None:
    done = run("simulate", written(tmp_path, CHEAP), *arguments)
    assert done.exit_code == 2
    assert message in done.stderr and "hint:" in done.stderr


def test_a_bad_trace_names_its_line(tmp_path: Path, run: Any) -> None:
    trace = tmp_path / "bad.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,x\n")
    done = run("simulate", written(tmp_path, CHEAP), "--trace", str(trace))
    assert done.exit_code == 2 and "bad.csv:2: `x` is no count of tokens" in done.stderr


def test_a_bad_configuration_is_what_check_says(tmp_path: Path, run: Any) -> None:
    """The entry point shows it and ends with 2, as for every command."""
    with pytest.raises(ConfigError, match="unknown policy|main"):
        run("simulate", written(tmp_path, CHEAP, policies={}))


def test_a_recorded_request_is_explained(database: Database, home: Path, run: Any) -> None:
    both = configuration({"endpoints": ["dear", "cheap"], "select": "cost", "require": {"region": ["eu"]}})
    recorded = record(both, 3, [attempt("cheap")], domain="finance", data_class=None, tags={"env": "prod"})
    keep(database, home, recorded)
    done = run("explain", "--request", recorded.request_id)
    assert done.exit_code == 0
    for words in (
        "model gpt, domain finance: route all, policy main",
        "select cost, policy version",
        "complexity simple, about 1000 tokens in and 512 out",
        "tags: env=prod",
        "dropped dear: region is us, policy `main` requires eu (require)",
        "input_tokens=1000, output_tokens=100",
    ):
        assert words in done.stdout
    found = json.loads(run("explain", "--request", recorded.request_id, "--json").stdout)
    assert found["decision"]["candidates"][0]["endpoint"] == found["attempts"][0]["endpoint"] == "cheap"
    unknown = run("explain", "--request", "req_unknown")
    assert unknown.exit_code == 1 and "nothing is recorded of the request `req_unknown`" in unknown.stderr


def test_a_request_that_nobody_sent(tmp_path: Path, run: Any) -> None:
    """All facts can be given; the database is not asked."""
    config = written(
        tmp_path,
        {"endpoints": ["dear", "cheap"], "sticky": "session"},
        routes=[
            {"name": "shop", "match": {"header": {"x-app": "shop"}, "tag": {"env": "prod"}}, "policy": "main"},
            {"name": "long", "match": {"min_input_tokens": 5000}, "policy": "main"},
            {"name": "checkout", "match": {"project": "checkout"}, "policy": "main"},
            {"name": "rest", "match": {"model": "*"}, "policy": "main"},
        ],
    )
    asked = ("explain", "--config", config, "--model", "gpt", "--prompt", "hello", "--json")

    def explained(*more: str) -> dict[str, Any]:
        done = run(*asked, *more)
        assert done.exit_code == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    assert explained()["route"] == "rest"
    assert explained("--header", "X-App=shop", "--tag", "env=prod", "--tag", "a=b")["route"] == "shop"
    long = explained("--input-tokens", "6000")
    assert (long["route"], long["input_tokens"]) == ("long", 6000)
    assert explained("--project", "checkout")["route"] == "checkout"
    assert explained("--session", "s-1")["session"] == "s-1"
    classed = explained("--data-class", "secret")
    assert {one["reason"] for one in classed["dropped"]} == {"data_class"} and classed["candidates"] == []
    for wrong in (("--tag", "env"), ("--header", "x-app")):
        done = run(*asked, *wrong)
        assert done.exit_code != 0 and "hint:" in done.stderr
    missing = run("explain", "--model", "gpt")
    assert missing.exit_code == 2 and "--request ID" in missing.stderr
