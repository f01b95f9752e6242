"""`hatchway month ...` over a real PostgreSQL and a real spool, without a running gateway."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pyarrow.parquet
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Engine, insert, text
from typer.testing import CliRunner, Result

from gateway.cli.months import app
from gateway.ledger.record import WORKER_LOST
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.months import canonical
from gateway.signing import is_signed, public_bytes, public_pem, read_public_pem
from gateway.store.audit import list_audit
from gateway.store.database import Database
from gateway.store.tables import usage_events
from gateway.types import Usage, UsageEvent
from tests.emptying import empty
from tests.ledger.conftest import begin, settle

OCTOBER = datetime(2025, 10, 5, tzinfo=UTC)


@pytest.fixture
def engine(database: Database) -> Engine:
    empty(database.engine)
    return database.engine


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, database: Database, engine: Engine) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as folder:  # short: sockets have names in it
        monkeypatch.setenv("HATCHWAY_HOME", folder)
        monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
        yield Path(folder)


@pytest.fixture
def add(engine: Engine, usage_event: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    def to_ledger(**changes: Any) -> None:
        with engine.begin() as connection:
            connection.execute(insert(usage_events).values(**usage_event(started_at=OCTOBER, **changes)))

    return to_ledger


Add = Callable[..., None]


def run(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == status, f"{done.stdout}\n{done.stderr}"
    return done


def spooled(folder: Path) -> Spool:
    """With one attempt of October, settled."""
    folder.mkdir(exist_ok=True)
    spool = Spool(folder, "w")
    names = ("team", "key_id", "route", "policy", "policy_version", "endpoint", "provider", "model", "upstream_model")
    nothing = ("project", "cost_center", "domain", "region", "ttft_ms", "cost_usd", "prices", "catalog_version")
    event = UsageEvent(
        event_id=str(uuid4()),
        request_id="req_1",
        attempt=1,
        started_at=OCTOBER,
        ended_at=OCTOBER,
        **dict.fromkeys(names, "x"),
        **dict.fromkeys(nothing),
        status="error",
        error_type=WORKER_LOST,
        stream=False,
        duration_ms=0.0,
        usage=Usage(),
        usage_source="none",
        price_status="unpriced",
    )
    begin(spool, event)
    settled = {"status": "ok", "error_type": None, "price_status": "priced", "cost_usd": Decimal("0.5")}
    settle(spool, msgspec.structs.replace(event, **settled))
    return spool


def test_what_was_spooled_is_shipped_before_a_month_is_closed(home: Path, engine: Engine) -> None:
    spooled(home / "spool").close()
    closed = json.loads(run("close", "2025-10", "--json").stdout)
    assert closed["manifest"]["totals"]["total_usd"] == "0.5"
    (noted,) = list_audit(engine, action="months.close")
    assert noted.actor.startswith("cli:") and noted.actor == closed["manifest"]["author"]


def test_a_spool_that_another_shipper_has_is_a_reason_to_wait(home: Path, database: Database) -> None:
    spool = spooled(home / "spool")
    with Shipper(home / "spool", database.connect) as other:
        other.ship_once()
        refused = run("close", "2025-10", status=2)
        assert "the spool is not shipped: another shipper works on" in refused.stderr
        assert "--force" in refused.stderr
    spool.close()
    assert json.loads(run("close", "2025-10", "--json").stdout)["manifest"]["forced"] == []


def test_close_prints_what_was_signed(home: Path, add: Add) -> None:
    add(team="[red]")
    shown = run("close", "2025-10").stdout
    key = public_bytes(Ed25519PrivateKey.from_private_bytes(_seed(home)))
    for part in ("2025-10, closed", "[red]", "0.0000045", "rows         1 (0 late), sha256 ", key.hex()):
        assert part in shown
    assert run("show", "2025-10").stdout == shown


def _seed(home: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((home / "signing.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes_raw()


def test_list_has_closed_and_open_months(home: Path, add: Add) -> None:
    add()
    run("close", "2025-10")
    add(event_id=str(uuid4()), cost_usd=None, price_status="unpriced")  # late: it goes to the month that is open
    shown = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in run("list").stdout.splitlines() if "│" in line
    ]
    now = datetime.now(UTC)
    assert shown[0][:6] == ["2025-10", "closed", "1", "0.0000045", "0", "0"]
    assert shown[1] == [f"{now:%Y-%m}", "open", "1", "0", "1", "-", "-", "-"]
    listed = json.loads(run("list", "--json").stdout)
    assert [one["month"] for one in listed["closed"]] == ["2025-10"]
    assert listed["open"] == [{"month": f"{now:%Y-%m}", "attempts": 1, "cost_usd": "0", "unpriced": 1}]


def test_verify_with_and_without_a_key(home: Path, add: Add, engine: Engine, tmp_path: Path) -> None:
    add()
    run("close", "2025-10")
    sound = run("verify", "2025-10")
    assert (sound.stdout, sound.stderr) == ("2025-10 is as it was signed\n", "")
    pem = tmp_path / "key.pem"
    pem.write_text(run("key").stdout)
    assert json.loads(run("verify", "2025-10", "--public-key", str(pem), "--json").stdout) == {
        **{"month": "2025-10", "is_intact": True, "difference": None, "key": "given", "is_own_key": True},
        "public_key": read_public_pem(pem.read_bytes()).hex(),
        "sha256": json.loads(run("show", "2025-10", "--json").stdout)["sha256"],
    }
    pem.write_text(public_pem(public_bytes(Ed25519PrivateKey.generate())))
    assert "another key" in run("verify", "2025-10", "--public-key", str(pem), status=1).stderr
    (home / "signing.key").unlink()
    assert "not this gateway's" in run("verify", "2025-10").stderr
    assert not (home / "signing.key").exists()
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE usage_events SET cost_usd = 0"))
    assert "`rows.cost_usd` is" in run("verify", "2025-10", status=1).stderr
    found = json.loads(run("verify", "2025-10", "--json", status=1).stdout)
    assert not found["is_intact"] and "`rows.cost_usd`" in found["difference"]


def test_export_writes_all_that_finance_needs(home: Path, add: Add, tmp_path: Path) -> None:
    add(cost_usd=Decimal("0.25"))
    run("close", "2025-10")
    folder = tmp_path / "made" / "here"
    done = json.loads(run("export", "2025-10", "--output", str(folder), "--json").stdout)
    assert done["files"] == [
        "chargeback-2025-10.csv",
        "focus-2025-10.csv",
        "focus-2025-10.csv.metadata.json",
        "focus-2025-10.parquet",
        "focus-2025-10.parquet.metadata.json",
        "manifest.json",
        "manifest.sig",
        "public_key.pem",
    ]
    assert sorted(os.listdir(folder)) == done["files"]
    manifest = (folder / "manifest.json").read_bytes()
    key = read_public_pem((folder / "public_key.pem").read_bytes())
    assert is_signed(manifest, (folder / "manifest.sig").read_bytes(), key)
    said = json.loads(manifest)
    assert canonical(said) == manifest
    lines = pyarrow.parquet.read_table(folder / "focus-2025-10.parquet").to_pylist()
    assert sum(line["EffectiveCost"] for line in lines) == Decimal(said["totals"]["total_usd"]) == Decimal("0.25")
    assert {line["InvoiceIssuerName"] for line in lines} == {"OpenAI"}
    (charged,) = csv.DictReader((folder / "chargeback-2025-10.csv").read_text().splitlines())
    assert (charged["team"], Decimal(charged["cost_usd"])) == ("payments", Decimal("0.25"))


def test_export_without_a_valid_configuration(
    home: Path, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    run("close", "2025-10")
    (tmp_path / "broken.yaml").write_text("version: 7")
    monkeypatch.setenv("HATCHWAY_CONFIG", str(tmp_path / "broken.yaml"))
    done = run("export", "2025-10", "--output", str(tmp_path / "out"))
    assert "the configuration is not valid" in done.stderr
    assert "focus-2025-10.csv" in done.stdout and "chargeback" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["close", "october"], 2, "`october` is no month"),
        (["close", "9000-01"], 2, "is not over"),
        (["show", "2025-10"], 2, "2025-10 is not closed"),
        (["verify", "2025-10"], 2, "2025-10 is not closed"),
        (["verify", "2025-10", "--public-key", "/nonexistent"], 2, "No such file"),
        (["verify", "2025-10", "--public-key", "/dev/null"], 2, "no public Ed25519 key"),
        (["export", "2025-10", "--output", "/dev/null/x"], 2, "2025-10 is not closed"),
    ],
)
def test_mistakes(home: Path, arguments: list[str], status: int, words: str) -> None:
    assert words in run(*arguments, status=status).stderr


def test_a_key_that_others_can_read_signs_nothing(home: Path, add: Add) -> None:
    add()
    run("key")
    (home / "signing.key").chmod(0o644)
    assert "can be read by others" in run("close", "2025-10", status=1).stderr
    assert "can be read by others" in run("key", status=1).stderr
    assert json.loads(run("list", "--json").stdout)["closed"] == []


def test_a_folder_that_cannot_be_made(home: Path, add: Add) -> None:
    add()
    run("close", "2025-10")
    assert "Not a directory" in run("export", "2025-10", "--output", "/dev/null/x", status=1).stderr
