"""`hatchway statistics`, asking a control plane's socket that a test answers with a real desk's status."""

from __future__ import annotations

import json
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.config.model import Learning
from gateway.config.settings import load_settings
from gateway.learning import LearningDesk
from gateway.processes import control_socket
from gateway.publication import Publication
from gateway.routing.health import HealthBook
from gateway.routing.statistics import Observation

WALL = 1_700_000_000.0


class Control(socketserver.UnixStreamServer):
    """The two internal routes of the control plane."""

    def __init__(self, socket: Path, desk: LearningDesk) -> None:
        super().__init__(str(socket), Handler)
        self.desk = desk


class Handler(BaseHTTPRequestHandler):
    server: Control

    def do_GET(self) -> None:
        assert self.path == "/internal/learned"
        self._answer(self.server.desk.status(WALL + 100.0))

    def do_POST(self) -> None:
        target = urlsplit(self.path)
        assert target.path == "/internal/learned/reset"
        names = parse_qs(target.query).get("name", [])
        self._answer({"reset": self.server.desk.reset(names, WALL + 100.0)})

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "control"

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hw-") as folder:  # a socket's path must be short
        monkeypatch.setenv("HATCHWAY_HOME", folder)
        yield Path(folder)


@pytest.fixture
def desk(home: Path) -> Iterator[LearningDesk]:
    socket = control_socket(load_settings().run_dir)
    socket.parent.mkdir(parents=True, exist_ok=True)
    desk = LearningDesk(Publication(home))
    with Control(socket, desk) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield desk
        server.shutdown()
        thread.join()


def learn(desk: LearningDesk) -> None:
    book = HealthBook()
    for output_tokens, wall in ((100, WALL), (50_000, WALL + 10.0)):
        for _ in range(40):
            book.succeed("on-prem", 0.0, Observation(wall, "chat", 0.5, 0.02, output_tokens, 1, 1000, 250, 800, True))
        assert desk.take({"0": book.export(wall)}, wall, Learning())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["statistics", *arguments])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]


def test_tables(desk: LearningDesk) -> None:
    learn(desk)
    shown = run("show")
    assert shown.exit_code == 0, shown.output
    rows = {found[0]: found for line in shown.stdout.splitlines() if (found := cells(line))}
    assert rows["on-prem"] == ["on-prem", "0.521 s", "0.521 s", "52", "25 %", "0 %", "72", "2 min ago"]
    assert rows["chat"] == ["chat", "100 (frozen)", "1.25", "72", "2 min ago"]
    assert rows["output_tokens"][:3] == ["output_tokens", "chat", "100"]
    assert rows["output_tokens"][5] == "from 100 to 25194 within 10 s"
    version = desk.status(WALL)["version"]
    assert shown.stderr.strip() == f"version {version} of 2023-11-14T22:13:30+00:00"


def test_json_is_the_desk_s_status(desk: LearningDesk) -> None:
    learn(desk)
    assert json.loads(run("show", "--json").stdout) == json.loads(json.dumps(desk.status(WALL + 100.0)))


def test_nothing_was_learned_yet(desk: LearningDesk) -> None:
    shown = run("show")
    assert (shown.exit_code, shown.stderr.strip()) == (0, "nothing was learned yet")
    assert run("reset").stderr.strip() == "forgotten: there was nothing"


def test_learning_is_switched_off(desk: LearningDesk) -> None:
    desk.take({}, WALL, Learning(enabled=False))
    assert run("show").stderr.strip() == "learning is switched off (`learning.enabled`)"


def test_reset_of_one_and_of_everything(desk: LearningDesk) -> None:
    learn(desk)
    assert run("reset", "chat").stderr.strip() == "forgotten: chat"
    status = desk.status(WALL + 100.0)
    assert (list(status["endpoints"]), list(status["routes"]), status["frozen"]) == (["on-prem"], [], [])
    assert run("reset").stderr.strip() == "forgotten: on-prem"
    assert desk.status(WALL + 100.0)["endpoints"] == {}


def test_reset_of_an_unknown_name(desk: LearningDesk) -> None:
    learn(desk)
    done = run("reset", "chatt", "a&name=chat")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: nothing is learned of `chatt`\nhint: ")
    assert list(desk.status(WALL + 100.0)["routes"]) == ["chat"]


@pytest.mark.parametrize("command", ["show", "reset"])
def test_no_gateway_runs(home: Path, command: str) -> None:
    done = run(command)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no gateway runs with this home folder\nhint: ")
