"""`hatchway prices ...` over a real PostgreSQL, without a running gateway."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from gateway.cli.prices import app
from gateway.store.audit import Author, list_audit
from gateway.store.catalogues import in_force, propose
from gateway.store.database import Database
from tests.emptying import empty

CONFIGURATION = """
version: 1
providers: {openai: {adapter: openai, api_key: x}, mine: {adapter: openai-compatible, base_url: "http://10.0.0.5/v1"}}
endpoints:
  gpt: {provider: openai, model: "*"}
  house: {provider: mine, model: qwen, price: {input: 1, output: 2}}
policies: {}
contracts: {deal: {provider: openai, models: "gpt-*", discount: 10%}}
"""
OWN = """
providers:
  - id: openai
    models: [{id: gpt-4o-mini, windows: [{meters: {input: 0.2, output: 0.6}}]}]
"""


@pytest.fixture
def engine(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    empty(database.engine)
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as folder:  # short: sockets have names in it
        Path(folder, "c.yaml").write_text(CONFIGURATION)
        monkeypatch.setenv("HATCHWAY_HOME", folder)
        monkeypatch.setenv("HATCHWAY_CONFIG", f"{folder}/c.yaml")
        monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
        monkeypatch.chdir(folder)
        yield database.engine


def run(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == status, f"{done.stdout}\n{done.stderr}"
    return done


def data(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_the_package_is_proposed_approved_and_asked(engine: Engine) -> None:
    made = data("update")
    version = made["catalogue"]["version"]
    assert made["catalogue"]["source"].startswith("genai-prices 0.2.")
    assert (made["catalogue"]["state"], made["left_out"]["web_searches_kcount"] > 0) == ("proposed", True)
    assert in_force(engine) is None
    assert data("approve", version[:6])["state"] == "in force"
    (row,) = data("list")
    assert (row["version"], row["state"]) == (version, "in force")
    assert "in force already" in run("update", "--package").stderr

    (answer,) = data("show", "gpt-4o-mini", "--provider", "openai")
    assert (answer["endpoint"], answer["prices"]["input"], answer["prices"]["listed"]["input"]) == (
        "gpt",
        "0.135",
        "0.15",
    )
    assert answer["reasons"][0] == "contract `deal`: 10% off"
    assert data("show", "qwen")[0]["reasons"] == ["`price` of the endpoint"]
    shown = run("show", "gpt-4o-mini", "--tier", "priority").stdout
    # 0.25 USD in the tier `priority`, less a tenth.
    assert "contract `deal`: 10% off" in shown and "service tier `priority`" in shown and "0.225" in shown


def test_a_file_is_proposed_with_what_would_change(engine: Engine) -> None:
    Path("own.yaml").write_text(OWN)
    first = data("update", "--from", "own.yaml")["catalogue"]
    assert first["source"] == "own.yaml"
    data("approve", first["version"])
    Path("own.yaml").write_text(OWN.replace("0.2,", "0.3,"))
    done = run("update", "--from", "own.yaml", "--format", "hatchway")
    assert "0.2" in done.stdout and "0.3" in done.stdout and "is proposed" in done.stderr
    changes = data("diff")
    assert changes["from"] == first["version"] and changes["changes"][0]["prices"] == [
        {"after": "0.3", "before": "0.2", "price": "input"}
    ]
    assert data("diff", "--used")["changes"] == []  # the ledger has seen none of it
    assert data("reject", changes["to"])["state"] == "rejected"
    assert "no price catalogue is proposed" in run("diff", status=2).stderr
    log = [row.action for row in list_audit(engine)]
    assert {"prices.propose", "prices.approve", "prices.reject"} == set(log)


def test_nobody_approves_their_own_where_two_are_asked_for(engine: Engine) -> None:
    Path("own.yaml").write_text(OWN)
    version = data("update", "--from", "own.yaml")["catalogue"]["version"]
    assert "may not approve it" in run("approve", version, "--two-person", status=1).stderr
    Path("c.yaml").write_text(CONFIGURATION + "prices: {two_person: true}\n")
    assert "may not approve it" in run("approve", version, status=1).stderr
    assert in_force(engine) is None
    propose(engine, "abc", "list", Path("own.yaml").read_bytes(), Author("somebody", "finance"))
    assert data("approve", "abc")["state"] == "in force"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("update", "--from", "missing.json"), 2, "`missing.json` cannot be read"),
        (("update", "--from", "broken.json"), 2, "neither JSON nor YAML"),
        (("update", "--from", "http://host.example/p.json"), 2, "an address begins with `https://`"),
        (("update", "--from", "x", "--package"), 2, "two sources"),
        (("approve", "ffff"), 2, "there is no price catalogue `ffff`"),
        (("diff",), 2, "no price catalogue is in force"),
        (("show", "m", "--at", "soon"), 2, "`soon` is no date"),
        (("show", "nobody-has-this-model", "--provider", "nobody"), 1, "nobody prices"),
    ],
)
def test_what_is_wrong_is_said(engine: Engine, arguments: tuple[str, ...], status: int, said: str) -> None:
    Path("broken.json").write_text("{")
    assert said in run(*arguments, status=status).stderr.replace("\n", " ")


def test_an_empty_ledger_has_nothing_unpriced(engine: Engine) -> None:
    assert data("unpriced") == []
    assert "attempts" in run("unpriced").stdout
