"""`hatchway directory | secrets | prompts` where no gateway runs: over a real PostgreSQL and a home folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.directory import read_published
from gateway.errors import ConfigError
from gateway.secrets import Vault, read_keys
from gateway.store.database import Database
from gateway.store.tables import audit_log, directory, prompts, secrets

VALUE = "sk-live-51c0ffee00112233"
YAML = "version: 1\norganisations: {acme: {}}\nteams: {search: {}}\n"

Run = Callable[..., Result]


@pytest.fixture
def home(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with database.engine.begin() as connection:
        for table in (directory, secrets, prompts):
            connection.execute(delete(table))
    (tmp_path / "c.yaml").write_text(YAML)
    monkeypatch.setenv("HATCHWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HATCHWAY_CONFIG", str(tmp_path / "c.yaml"))
    monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:
    def invoke(*arguments: str, input: str | None = None, status: int = 0) -> Result:
        found = CliRunner().invoke(app, list(arguments), input=input)
        assert found.exit_code == status, f"{found.stdout}\n{found.stderr}\n{found.exception}"
        assert VALUE not in found.output
        return found

    return invoke


def last_actor(database: Database) -> str:
    with database.engine.connect() as connection:
        query = select(audit_log.c.actor).order_by(audit_log.c.seq.desc()).limit(1)
        return str(connection.execute(query).scalar_one())


def test_the_directory_without_a_gateway(run: Run, home: Path, database: Database) -> None:
    run("directory", "set", "team", "labs", "{organisation: acme, budget: {usd: 9.50}}")
    assert last_actor(database).startswith("cli:")
    assert [entry.id for entry in read_published(home)] == ["labs"]  # for the next start
    made = json.loads(
        run("directory", "set", "project", "labs/demo", "-", "--json", input="limits:\n  rpm: 5\n").stdout
    )
    assert made == {"kind": "project", "id": "labs/demo", "body": {"limits": {"rpm": 5}}}
    listed = json.loads(run("directory", "list", "--json").stdout)["entries"]
    assert [(one["source"], one["id"], one["state"]) for one in listed] == [
        ("yaml", "acme", "in force"),
        ("yaml", "search", "in force"),
        ("api", "labs/demo", "in force"),
        ("api", "labs", "in force"),
    ]
    assert "labs/demo" not in run("directory", "list", "--kind", "team").stdout
    shown = run("directory", "show", "team", "labs")
    assert json.loads(shown.stdout) == {"organisation": "acme", "budget": {"usd": 9.5}}
    assert "in force, from the api" in shown.stderr
    run("directory", "remove", "project", "labs/demo")
    run("directory", "remove", "team", "labs")
    assert read_published(home) == []


def test_what_the_directory_refuses(run: Run, home: Path) -> None:
    for arguments, says in (
        (("set", "team", "search", "{}"), "the YAML defines team `search`"),
        (("set", "team", "labs", "{organisation: nobody}"), "organisation `nobody` is not defined"),
        (("set", "robot", "labs", "{}"), "unknown kind `robot`"),
        (("remove", "team", "labs"), "there is no team `labs`"),
    ):
        assert says in run("directory", *arguments, status=2).stderr
    assert "there is no team `labs`" in run("directory", "show", "team", "labs", status=1).stderr
    found = CliRunner().invoke(app, ["directory", "set", "team", "labs", "[a, list]"])
    assert isinstance(found.exception, ConfigError)
    run("directory", "set", "cost_center", "CC-1", "{}")
    (home.parent / "c.yaml").write_text(YAML + "cost_centers: {CC-1: {}, CC-2: {}}\n")
    assert "shadowed" in run("directory", "list").stdout
    (home.parent / "c.yaml").write_text("version: 1\nteams: {search: {priority: 99}}\n")
    found = CliRunner().invoke(app, ["directory", "set", "team", "labs", "{}"])
    assert isinstance(found.exception, ConfigError)  # which the entry point ends in status 2


def test_secrets_without_a_gateway(run: Run, home: Path, database: Database) -> None:
    said = run("secrets", "set", "openai", "--from-stdin", input=f"{VALUE}\n").stderr
    assert "${secret:openai}" in said
    assert Vault(home, None)["openai"] == VALUE
    before = read_keys(home, None)
    rekeyed = json.loads(run("secrets", "rekey", "--json").stdout)
    after = read_keys(home, None)
    assert len(after) == 1 and after != before and rekeyed["encrypted"] == 1
    assert Vault(home, None)["openai"] == VALUE
    (row,) = json.loads(run("secrets", "list", "--json").stdout)["secrets"]
    assert (row["name"], row["key_hint"]) == ("openai", rekeyed["key_hint"])
    assert "openai" in run("secrets", "list").stdout
    run("secrets", "remove", "openai")
    assert dict(Vault(home, None)) == {}
    run("secrets", "remove", "openai", status=1)


def test_a_key_of_the_environment_is_replaced_in_two_steps(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = "A" * 43 + "=", "B" * 42 + "A="
    monkeypatch.setenv("HATCHWAY_SECRET_KEY", old)
    run("secrets", "set", "openai", "--from-stdin", input=VALUE)
    assert not (home / "secret.key").exists()
    monkeypatch.setenv("HATCHWAY_SECRET_KEY", new)
    assert "is not here" in run("secrets", "rekey", status=2).stderr
    monkeypatch.setenv("HATCHWAY_SECRET_KEY", f"{new},{old}")
    run("secrets", "rekey")
    assert Vault(home, new)["openai"] == VALUE
    assert not (home / "secret.key").exists()


@pytest.mark.parametrize(("name", "value"), [("a b", VALUE), ("openai", f"{VALUE}\nsecond line"), ("openai", "")])
def test_what_is_no_secret(run: Run, name: str, value: str) -> None:
    run("secrets", "set", name, "--from-stdin", input=value, status=2)
    assert json.loads(run("secrets", "list", "--json").stdout) == {"secrets": []}


def test_a_secret_is_not_asked_for_without_a_terminal(run: Run) -> None:
    assert "`--from-stdin`" in run("secrets", "set", "openai", input=VALUE, status=2).stderr


def test_prompts_without_a_gateway(run: Run, database: Database) -> None:
    now = datetime.now(UTC)
    row: dict[str, Any] = {"at": now, "expires_at": now + timedelta(days=1), "policy": "cheap", "body": {"request": {}}}
    rows = [{"request_id": id, "team": id[0], **row} for id in ("a1", "a2", "b1")]
    with database.engine.begin() as connection:
        connection.execute(insert(prompts), [*rows, {**rows[0], "request_id": "old", "expires_at": now}])
    listed = json.loads(run("prompts", "list", "--team", "a", "--json").stdout)["prompts"]
    assert {one["request_id"] for one in listed} == {"a1", "a2"}
    assert "b1" in run("prompts", "list").stdout
    assert json.loads(run("prompts", "show", "b1").stdout)["body"] == {"request": {}}
    assert last_actor(database).startswith("cli:")
    run("prompts", "show", "old", status=1)
    assert json.loads(run("prompts", "purge", "--json").stdout) == {"removed": 1}
    assert "1 removed" in run("prompts", "purge", "--request", "b1").stderr
    assert json.loads(run("prompts", "purge", "--team", "a", "--before", "2020-01-01", "--json").stdout) == {
        "removed": 0
    }
    assert json.loads(run("prompts", "purge", "--team", "a", "--json").stdout) == {"removed": 2}
    assert "hint:" in run("prompts", "purge", "--before", "soon", status=2).stderr
