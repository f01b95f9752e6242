"""`hatchway keys ...` and `hatchway audit ...` over a real PostgreSQL, without a running gateway."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, delete, text
from typer import Typer
from typer.testing import CliRunner, Result

from gateway.cli import audit, keys
from gateway.cli.author import cli_author
from gateway.store.audit import list_audit
from gateway.store.database import Database
from gateway.store.keys import find_active, hash_secret
from gateway.store.tables import api_keys
from gateway.types import Budget, RateLimit

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("TRUNCATE audit_log"))
        connection.execute(delete(api_keys))
    return database.engine


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, database: Database, engine: Engine) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as folder:  # short: sockets have names in it
        monkeypatch.setenv("HATCHWAY_HOME", folder)
        monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
        yield


def run(app: Typer, *arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def created(*arguments: str) -> tuple[str, str]:
    """Id and secret of a new key."""
    made = json.loads(run(keys.app, "create", "--team", "payments", "--json", *arguments).stdout)
    return made["key_id"], made["key"]


def shown(key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(keys.app, "show", key, "--json").stdout)
    return found


def test_a_key_with_everything(engine: Engine) -> None:
    given = "--project checkout --name web --models gpt-*,local --scopes chat,models --budget 50/month --rpm 60"
    key_id, secret = created(*given.split(), *"--tpm 9000 --expires 90d --cost-center CC-104".split())
    found = find_active(engine, hash_secret(secret))
    assert found is not None
    assert (found.key_id, found.team, found.project, found.role) == (key_id, "payments", "checkout", "key")
    assert (found.models, found.scopes, found.cost_center) == (("gpt-*", "local"), ("chat", "models"), "CC-104")
    assert (found.budget, found.limits) == (
        Budget(usd=Decimal(50), per="month", hard=True),
        RateLimit(requests=60, tokens=9000),
    )
    assert found.expires_at is not None
    assert abs(found.expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)
    assert shown(key_id)["budget_usd"] == "50"
    for words in (run(keys.app, "show", key_id).stdout, run(keys.app, "list").stdout):
        assert "$50/month hard, 60 rpm, 9000 tpm" in words and secret not in words


def test_a_plain_key_is_printed_alone(engine: Engine) -> None:
    result = run(keys.app, "create", "--team", "payments")
    assert find_active(engine, hash_secret(result.stdout.removesuffix("\n"))) is not None
    assert "its secret is shown once" in result.stderr


@pytest.mark.parametrize("role", ["admin", "operator", "finance", "developer"])
def test_roles(engine: Engine, role: str) -> None:
    _, secret = created("--role", role)
    found = find_active(engine, hash_secret(secret))
    assert found is not None and found.role == role


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--role", "owner"], "unknown role `owner`"),
        (["--scopes", "chat,images"], "unknown scope `images`"),
        (["--budget", "fifty"], "`fifty` is no budget"),
        (["--budget", "50/hour"], "unknown period `hour`"),
        (["--budget", "-1"], "out of bounds"),
        (["--budget", "NaN"], "out of bounds"),
        (["--soft"], "there is none"),
        (["--expires", "soon"], "`soon` is no end of a key"),
        (["--expires", "2020-01-01"], "has passed"),
        (["--expires", "999999w"], "is no end of a key"),
        (["--models", "two words"], "is no glob of models"),
        (["--project", "a/b"], "is no name for a project"),
        (["--rpm", "9999999999999"], "`rpm` 9999999999999 is out of bounds"),
    ],
)
def test_mistakes_make_no_key(engine: Engine, arguments: list[str], message: str) -> None:
    result = run(keys.app, "create", "--team", "payments", *arguments, status=2)
    assert message in result.stderr and "hint:" in result.stderr
    assert json.loads(run(keys.app, "list", "--json").stdout) == []
    assert list_audit(engine) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-31", datetime(2030, 1, 31, tzinfo=UTC)),
        ("2030-01-31T12:00:00+02:00", datetime(2030, 1, 31, 10, tzinfo=UTC)),
        ("12h", NOW + timedelta(hours=12)),
        ("2w", NOW + timedelta(days=14)),
    ],
)
def test_ends(text: str, expected: datetime) -> None:
    assert keys.parse_end(text, NOW) == expected


def test_a_budget_that_warns() -> None:
    key_id, _ = created("--budget", "0.50/day", "--soft")
    found = shown(key_id)
    assert (found["budget_usd"], found["budget_per"], found["budget_hard"]) == ("0.50", "day", False)


def test_rotation(engine: Engine) -> None:
    key_id, old = created()
    made = json.loads(run(keys.app, "rotate", key_id, "--overlap", "24h", "--json").stdout)
    assert made["key_id"] == key_id and made["key"] != old
    assert find_active(engine, hash_secret(old)) is not None
    assert "its old secret works until" in run(keys.app, "list").stdout
    run(keys.app, "rotate", key_id)
    assert find_active(engine, hash_secret(old)) is None
    assert find_active(engine, hash_secret(made["key"])) is None
    for wrong in ("soon", "31d", "-1h"):
        assert "hint:" in run(keys.app, "rotate", key_id, f"--overlap={wrong}", status=2).stderr


def test_states_are_told_apart(engine: Engine) -> None:
    ended, _ = created()
    run(keys.app, "revoke", ended)
    assert shown(ended)["state"] == "revoked"
    assert "no active key" in run(keys.app, "revoke", ended, status=1).stderr
    assert "no active key" in run(keys.app, "rotate", ended, status=1).stderr
    assert "no key of that name" in run(keys.app, "show", "key-none", status=1).stderr
    own, _ = created()
    created()
    assert [row["key_id"] for row in json.loads(run(keys.app, "list", "--team", "none", "--json").stdout)] == []
    assert "fits several" in run(keys.app, "show", "key-", status=2).stderr
    assert shown(own)["state"] == "active"


# The audit log


def test_what_was_done_is_listed(engine: Engine) -> None:
    key_id, secret = created("--name", "web")
    run(keys.app, "rotate", key_id, "--overlap", "1h")
    run(keys.app, "revoke", key_id)
    rows = json.loads(run(audit.app, "list", "--json").stdout)
    assert [row["action"] for row in rows] == ["keys.revoke", "keys.rotate", "keys.create"]
    assert {(row["actor"], row["role"], row["subject"]) for row in rows} == {(*cli_author(), key_id)}
    assert rows[2]["detail"] == {"team": "payments", "name": "web", "role": "key"}
    words = run(audit.app, "list", "--action", "keys.create", "--since", "1d").stdout
    assert key_id in words and "name=web" in words and "keys.rotate" not in words
    assert secret not in run(audit.app, "list", "--json").stdout
    assert json.loads(run(audit.app, "list", "--actor", "nobody", "--json").stdout) == []
    assert json.loads(run(audit.app, "list", "--limit", "1", "--json").stdout)[0]["seq"] == 3
    assert "hint:" in run(audit.app, "list", "--since", "whenever", status=2).stderr


def test_the_log_is_verified(engine: Engine) -> None:
    created()
    head = run(audit.app, "verify").stdout.strip()
    created()
    assert "2 rows, every one in its place" in run(audit.app, "verify", "--head", head).stderr
    assert json.loads(run(audit.app, "verify", "--json").stdout)["rows"] == 2
    assert "64 hexadecimal digits" in run(audit.app, "verify", "--head", "abc", status=2).stderr
    missing = run(audit.app, "verify", "--head", "ab" * 32, status=1)
    assert "rows are missing" in missing.stderr
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE audit_log SET subject = 'another' WHERE seq = 1"))
    broken = run(audit.app, "verify", "--json", status=1)
    assert json.loads(broken.stdout)["broken_at"] == 1
    assert "broken at row 1: the row was changed\nhint:" in broken.stderr
