"""`hatchway escape` and `hatchway policy` against a control plane's socket and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from gateway.api.admin_escape import EscapeServices, add_internal_escapes
from gateway.api.admin_versions import VersionServices, add_internal_versions
from gateway.asgi import create_server
from gateway.cli import app
from gateway.cli.escape import _limit, _percent, _ratio, _seconds, _share
from gateway.config.document import Document, read_document
from gateway.config.model import Configuration
from gateway.config.settings import load_settings
from gateway.escape import run
from gateway.escape.run import EscapeRunner
from gateway.history import RolledBack, current_user, policy_state, record, roll_back
from gateway.processes import bind_unix, control_socket
from gateway.publication import Publication
from gateway.store.database import Database
from gateway.store.escapes import list_escapes
from gateway.store.tables import configurations
from tests.escape.conftest import TEXT, Clock, Ledger


class ControlPlane:
    """The internal API and the runner, in a thread with a loop of its own."""

    def __init__(self, engine: Engine, folder: Path, configuration: Configuration) -> None:
        self.engine, self.configuration = engine, configuration
        self.settings = load_settings({"HATCHWAY_HOME": str(folder)})
        self.settings.prepare()
        self.publication = Publication(folder)
        self.disk = read_document(folder.parent / "policy.yaml")
        self.in_force = self.disk
        self.publication.publish_document(self.disk)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(20)

    async def _serve(self) -> None:
        self.runner = EscapeRunner(
            self.engine, self.publication, configuration=lambda: self.configuration, push=self.push, owner="here"
        )
        router = APIRouter(prefix="/internal")
        state = lambda: policy_state(self.publication, self.in_force.version, self.disk, None)  # noqa: E731 - one line
        add_internal_versions(router, VersionServices(self.engine, state, self.roll_back))
        add_internal_escapes(router, EscapeServices(self.engine, self.runner, lambda: self.configuration, self.push))
        api = FastAPI()
        api.include_router(router)
        self._server = create_server(api, drain_seconds=1)
        self._server.capture_signals = _no_signals  # type: ignore[method-assign]  # not the main thread
        ticking = asyncio.ensure_future(self.runner.run())
        listener = bind_unix(control_socket(self.settings.run_dir))
        self._ready.set()
        await self._server.serve(sockets=[listener])
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)

    async def push(self) -> None: ...

    async def roll_back(self, version: str, author: str, note: str | None) -> RolledBack:
        async def put_in_force(document: Document, _: Configuration) -> None:
            self.in_force = document
            record(self.engine, document, author, "rollback", note)

        return await roll_back(
            self.engine,
            self.publication,
            version,
            in_force=self.in_force,
            disk_document=self.disk,
            author=author,
            note=note,
            put_in_force=put_in_force,
            environ={},
        )

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        control_socket(self.settings.run_dir).unlink(missing_ok=True)


def _no_signals() -> Any:
    return contextlib.nullcontext()


@pytest.fixture
def home(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Path:
    with engine.begin() as connection:
        connection.execute(configurations.delete())
    config = tmp_path / "policy.yaml"
    config.write_text(TEXT)
    folder = tmp_path / "home"
    monkeypatch.setenv("HATCHWAY_HOME", str(folder))
    monkeypatch.setenv("HATCHWAY_CONFIG", str(config))
    monkeypatch.setenv("HATCHWAY_DATABASE_URL", database.url.reveal())
    return folder


@pytest.fixture
def control(
    home: Path, engine: Engine, configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ControlPlane]:
    monkeypatch.setattr(run, "TICK_SECONDS", 0.02)
    monkeypatch.setattr("gateway.cli.escape.WATCH_SECONDS", 0.02)
    plane = ControlPlane(engine, home, configuration)
    try:
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def live(engine: Engine, usage_event: Callable[..., dict[str, Any]]) -> Ledger:
    """Rows of this moment: the runner of these tests has a real clock."""

    class Now(Clock):
        def __getattribute__(self, name: str) -> Any:
            return datetime.now(UTC) if name == "now" else super().__getattribute__(name)

    return Ledger(engine, Now(), usage_event)


def hatchway(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception}"
    return result


START = ("escape", "start", "--from", "a", "--to", "b", "--shadow", "0", "--ramp", "50,100", "--step-requests", "10")


def feed(engine: Engine, live: Ledger, stop: threading.Event, failed: int) -> None:
    """Traffic of whatever escape there is."""
    while not stop.wait(0.05):
        for escape in list_escapes(engine):
            live.moved(escape.escape_id, 10, failed=failed)
            live.kept(escape.escape_id, 10)


@pytest.mark.parametrize(("failed", "state"), [(0, "finished"), (10, "halted")])
def test_an_escape_is_watched_to_its_end(control: ControlPlane, live: Ledger, failed: int, state: str) -> None:
    stop = threading.Event()
    traffic = threading.Thread(target=feed, args=(control.engine, live, stop, failed))
    traffic.start()
    try:
        done = hatchway(*START, "--yes", "--wait", "--json", status=0 if state == "finished" else 1)
    finally:
        stop.set()
        traffic.join()
    report = json.loads(done.stdout)
    assert (report["state"], report["from"], report["author"]) == (state, "a", current_user())
    text = hatchway("escape", "report", report["id"]).output
    assert f"escape {report['id']} from a to b: {state}" in text
    if state == "finished":
        assert sorted(report["edit"]) == [
            "policies.europe.endpoints: [a, c, a2] -> [b, c, a2]",
            "policies.main.endpoints: [a, c] -> [b, c]",
        ]
        assert report["edit"][0] in text
        assert [shift.share for shift in control.publication.read_shifts()] == [1.0]
        hatchway("escape", "stop", report["id"])
    assert control.publication.read_shifts() == []


def test_an_escape_is_started_shown_and_stopped(control: ControlPlane) -> None:
    assert json.loads(hatchway("escape", "status", "--json").stdout) == {"escapes": []}
    escape_id = hatchway(*START, "--yes").stdout.strip()
    assert escape_id.startswith("esc-")
    (shown,) = json.loads(hatchway("escape", "status", escape_id[:7], "--json").stdout)["escapes"]
    assert (shown["id"], shown["share"], shown["state"]) == (escape_id, 0.5, "ramp")
    text = hatchway("escape", "status").output
    assert f"{escape_id} from a to b: ramp, step 1 of 2, 50 % moved" in text
    assert escape_id in hatchway("escape", "list").output
    stopped = json.loads(hatchway("escape", "stop", escape_id, "--json").stdout)
    assert (stopped["state"], stopped["share"]) == ("stopped", 0.0)
    assert control.publication.read_shifts() == []
    again = hatchway("escape", "stop", escape_id, status=2)
    assert "is no escape that is under way" in again.output and "hint:" in again.output


def test_nobody_is_asked_where_nobody_can_answer(control: ControlPlane) -> None:
    assert "hint:" in hatchway(*START, status=2).output
    assert control.runner.status() == []


def test_a_refusal_is_told_in_its_own_words(control: ControlPlane) -> None:
    done = hatchway("escape", "start", "--from", "a", "--to", "nobody", "--yes", status=2)
    assert "`--to nobody` is no endpoint" in done.output and "hint: endpoints are `a`" in done.output
    done = hatchway(*START[:-1], "3", "--yes", status=2)
    assert "fewer than 10 requests prove nothing" in done.output


def test_a_plan_for_people_and_for_programs(home: Path, engine: Engine, ledger: Ledger) -> None:
    ledger.add(4, "a")
    period = ("--from", "a", "--to", "b", "--since", "2026-01-01")
    plan = json.loads(hatchway("escape", "plan", *period, "--json").stdout)
    assert (plan["requests"], plan["movable"], plan["without_facts"]) == (4, 4, 4)
    text = hatchway("escape", "plan", *period).output
    assert "4 requests were served by a; 4 of them (100 %) could move" in text
    assert "seats to watch" in text
    assert "no endpoint" in hatchway("escape", "plan", "--from", "x", "--to", "b", status=2).output
    assert "is no time" in hatchway("escape", "plan", *period[:4], "--since", "soon", status=2).output


def test_without_a_gateway(home: Path, engine: Engine) -> None:
    for command in (("escape", "status"), ("escape", "stop", "esc-1"), (*START, "--yes"), ("policy", "rollback", "aa")):
        assert "no gateway runs" in hatchway(*command, status=1).output
    assert json.loads(hatchway("escape", "list", "--json").stdout) == {"escapes": []}
    assert "there is no escape" in hatchway("escape", "report", "esc-1", status=2).output


def test_versions(control: ControlPlane, engine: Engine) -> None:
    old = Document({**control.disk.data, "routes": control.disk.data["routes"][1:]})
    for each in (old, control.disk):
        record(engine, each, "dana", "file", "[red]a note")
    listed = json.loads(hatchway("policy", "history", "--json").stdout)
    assert [one["version"] for one in listed["versions"]] == [control.disk.version, old.version]
    difference = hatchway("policy", "diff", old.version, control.disk.version).stdout
    assert difference.startswith('+ routes[{"model":"european"}]: ')
    changes = json.loads(hatchway("policy", "diff", old.version, control.disk.version, "--json").stdout)["changes"]
    assert [change["kind"] for change in changes] == ["added"]
    done = hatchway("policy", "rollback", old.version[:6], "--note", "too slow")
    assert f"version {old.version} is in force instead of {control.disk.version}" in done.output
    assert "until the YAML on disk changes" in done.output
    text = hatchway("policy", "history").output
    assert "in force, pinned" in text and "overridden" in text and "too slow" in text and "[red]a note" in text
    assert f"version {old.version} is pinned by {current_user()} until the YAML changes" in text
    back = json.loads(hatchway("policy", "rollback", control.disk.version, "--json").stdout)
    assert back == {"version": control.disk.version, "was": old.version, "is_pinned": False}
    assert "no version `ffff`" in hatchway("policy", "rollback", "ffff", status=2).output
    assert "no version `ffff`" in hatchway("policy", "diff", "ffff", old.version, status=2).output
    assert "the same version" in hatchway("policy", "diff", old.version, old.version).output


def test_history_without_a_gateway_and_with_a_wrong_file(
    home: Path, engine: Engine, configuration: Configuration
) -> None:
    document = read_document(home.parent / "policy.yaml")
    record(engine, document, "dana", "file")
    Publication(home).publish_document(document)
    (home.parent / "policy.yaml").write_text("version: 2\n")
    found = CliRunner().invoke(app, ["policy", "history", "--json"])
    state = json.loads(found.stdout)["state"]
    assert (state["in_force"], state["on_disk"]) == (document.version, None)
    assert "policy.yaml:1:" in state["rejected"]
    assert "no gateway runs" in found.stderr
    assert "the YAML on disk is rejected" in hatchway("policy", "history").output


# Values of options


def test_values_of_options() -> None:
    assert [_seconds("--step", text) for text in ("10m", "1.5h", "500ms", "30s", "2d")] == [600, 5400, 0.5, 30, 172800]
    assert [_share("--shadow", text) for text in ("5%", "5 %", "0.05", "0", "1")] == [0.05, 0.05, 0.05, 0, 1]
    assert [_percent("--ramp", text) for text in ("5", "5%", " 100 ", "0.5")] == [0.05, 0.05, 1.0, 0.005]
    assert _limit("--max-cost-ratio", "off", _ratio) is None
    assert _limit("--max-cost-ratio", "1.2", _ratio) == 1.2


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (_seconds, "10"),
        (_seconds, "-1s"),
        (_share, "5 percent"),
        (_share, "101%"),
        (_share, "2"),
        (_percent, "0"),
        (_percent, "101"),
        (_ratio, "nan"),
        (_ratio, "-1"),
        (_ratio, "many"),
    ],
)
def test_wrong_values_of_options(read: Any, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read("--option", text)
    assert end.value.code == 2
    assert "hint:" in capsys.readouterr().err
