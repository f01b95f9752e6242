"""`hatchway ledger ...` over a real PostgreSQL and a real spool, without a running gateway."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, insert, text
from typer.testing import CliRunner, Result

from gateway.cli.ledger_files import app
from gateway.ledger.record import DOUBT, HEADER
from gateway.ledger.spool import Spool
from gateway.store.database import Database
from gateway.store.tables import usage_events
from gateway.types import UsageEvent
from tests.ledger.conftest import event_line, make_event, settle


@pytest.fixture
def engine(database: Database) -> Engine:
    with database.engine.begin() as connection:
        connection.execute(text("TRUNCATE usage_events"))
    return database.engine


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, database: Database, engine: Engine) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as folder:  # short: sockets have names in it
        monkeypatch.setenv("HATCHWAY_HOME", folder)
        monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
        yield Path(folder)


def run(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == status, f"{done.stdout}\n{done.stderr}"
    return done


def answer(*arguments: str, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status).stdout)


def settled(**fields: Any) -> UsageEvent:
    return msgspec.structs.replace(make_event(**fields), status="ok", error_type=None)


def test_status_tells_what_waits_and_since_when(home: Path) -> None:
    empty = answer("status")
    assert (empty["pending_bytes"], empty["workers"], empty["rejected"]) == (0, 0, {})
    spool = Spool(home / "spool", "worker-0")
    settle(spool, settled(started_at=datetime.now(UTC) - timedelta(hours=3)))
    settle(spool, settled())
    found = answer("status")
    assert found["pending_bytes"] > 500 and found["size_bytes"] == found["pending_bytes"]
    assert 3 * 3600 <= found["pending_seconds"] < 3 * 3600 + 600
    assert (found["workers"], found["segments"], found["dead_processes"]) == (1, 1, 0)
    spool.close()
    assert answer("status")["dead_processes"] == 1
    assert "the oldest 10,8" in run("status").stdout


def test_doubts_lists_rows_with_the_reason_and_what_was_said(
    home: Path, engine: Engine, usage_event: Callable[..., dict[str, Any]]
) -> None:
    assert run("doubts").stderr == "no row is doubted\n"
    now = datetime.now(UTC)
    rows = [
        usage_event(started_at=now, tags={DOUBT: "a negative count"}, raw_usage={"prompt_tokens": -1}),
        usage_event(started_at=now - timedelta(days=20), tags={DOUBT: "no tokens at all"}, raw_usage=None),
        usage_event(started_at=now, tags={"env": "prod"}, raw_usage=None),
    ]
    with engine.begin() as connection:
        connection.execute(insert(usage_events), rows)
    (found,) = answer("doubts")["doubts"]
    assert (found["event_id"], found["reason"]) == (rows[0]["event_id"], "a negative count")
    assert found["raw_usage"] == {"prompt_tokens": -1}
    assert len(answer("doubts", "--since", "30d")["doubts"]) == 2
    assert len(answer("doubts", "--since", "30d", "--limit", "1")["doubts"]) == 1
    assert "a negative count" in run("doubts").stdout
    assert "--since" in run("doubts", "--since", "soon", status=2).stderr


def test_what_was_set_aside_is_listed_and_tried_again(home: Path, engine: Engine) -> None:
    assert run("rejected").stderr == "nothing was set aside\n"
    spool = home / "spool"
    spool.mkdir(parents=True)
    event = settled(region="nowhere")
    lines = [event_line("E", 1, settled()), event_line("E", 3, event)]
    (spool / "w-t-1-000001.spool").write_bytes(HEADER + b"".join(lines))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE usage_events ADD CONSTRAINT mend CHECK (region <> 'nowhere')"))
    assert run("verify").stderr == "the sums are those of the rows\n"  # which ships first
    refused, missing = sorted(answer("rejected")["rejected"], key=lambda entry: entry.get("missing", ""))
    assert "mend" in refused["reason"] and missing["missing"] == "2"
    assert answer("rejected", "--retry") == {"rows": 0, "known": 0, "kept": 2}
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE usage_events DROP CONSTRAINT mend"))
    assert answer("rejected", "--retry") == {"rows": 1, "known": 0, "kept": 1}
    assert "lines are missing before this one" in run("rejected").stdout
    assert answer("status")["rejected"] == {"lines are missing before this one": 1}
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM usage_events")).scalar_one() == 2


def test_verify_finds_sums_that_are_not_those_of_the_rows(
    home: Path, engine: Engine, usage_event: Callable[..., dict[str, Any]]
) -> None:
    with engine.begin() as connection:
        connection.execute(insert(usage_events), [usage_event(), usage_event(team="search")])
    assert answer("verify") == {"differences": []}
    with engine.begin() as connection:
        connection.execute(text("UPDATE usage_hours SET output_tokens = output_tokens + 1 WHERE team = 'search'"))
    found = answer("verify", status=1)["differences"]
    assert {one["group"]["team"] for one in found} == {"search"}
    assert any(one["missing"] == {"output_tokens": -1} for one in found)
    assert "search" in run("verify", status=1).stdout
    assert answer("rebuild")["groups"] == 2
    assert answer("verify") == {"differences": []}
