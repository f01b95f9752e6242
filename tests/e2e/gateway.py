"""A real `hatchway up` in a process of its own, and what tests ask of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from gateway.store.embedded import EmbeddedServer
from tests.conftest import MODEL

ADMIN_KEY = "hw-test-admin-key"
READY = "hatchway ready "
HATCHWAY = str(Path(sys.executable).with_name("hatchway"))
START_SECONDS = 90
STOP_SECONDS = 60


class Gateway:
    """One running gateway with a home folder of its own."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        self.environment = {**environment, "HATCHWAY_HOME": str(home), "HATCHWAY_ADMIN_KEY": ADMIN_KEY}
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.output = ""
        self.log = home / "stderr.txt"

    def start(self, config: Path, *options: str) -> None:
        """Returns when the ready line has come."""
        command = [HATCHWAY, "up", "--config", str(config), "--port", "0", *options]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if not select.select([self.process.stdout], [], [], 1.0)[0]:
                continue
            line = self.process.stdout.readline()
            self.output += line
            if line.startswith(READY):
                self.url = line.removeprefix(READY).strip()
                return
            if not line:
                break
        raise AssertionError(f"the gateway did not become ready: {self.output}\n{self.log.read_text()}")

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """A `hatchway` command against this gateway's home."""
        done = subprocess.run([HATCHWAY, *arguments], env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def post(self, body: Any, key: str = ADMIN_KEY, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60, **more)

    def rows(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """Rows of the ledger, all of them or one request's, in the order of attempts."""
        self.ship()
        with self.connect() as connection:
            query = "SELECT * FROM usage_events"
            found = (
                connection.execute(f"{query} WHERE request_id = %s ORDER BY attempt", (request_id,))
                if request_id is not None
                else connection.execute(f"{query} ORDER BY started_at")
            )
            return found.fetchall()

    def await_rows(self, request_id: str) -> list[dict[str, Any]]:
        """Of a request that its client did not wait for: it may still be under way."""
        deadline = time.monotonic() + STOP_SECONDS
        while not (rows := self.rows(request_id)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return rows

    def ship(self) -> None:
        """Has everything that is spooled in the table: the running gateway does it, or the command line after it."""
        if self.process is None or self.process.poll() is not None:
            self.run("report")
            return
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.home / "run" / "control.sock"))) as client:
            client.post("http://control/internal/flush", timeout=30).raise_for_status()

    @contextlib.contextmanager
    def connect(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """The ledger's database, also after the gateway has ended."""
        server = EmbeddedServer(self.home / "database")
        try:
            with psycopg.connect(server.url, row_factory=dict_row) as connection:
                yield connection
        finally:
            server.close()

    def workers(self) -> list[int]:
        """Process ids of the data-plane workers."""
        assert self.process is not None
        return [pid for pid in children(self.process.pid) if "gateway.app" in command_of(pid)]

    def control(self) -> int:
        assert self.process is not None
        return next(pid for pid in children(self.process.pid) if "gateway.control" in command_of(pid))


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextlib.contextmanager
def home_folder(model: Path | None) -> Iterator[Path]:
    """A home with the bundled model in it. Not one of pytest's folders: PostgreSQL's own user must reach it."""
    with tempfile.TemporaryDirectory(prefix="hatchway-e2e-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        if model is not None:
            place = home / "models" / MODEL
            place.mkdir(parents=True)
            try:
                os.link(model, place / model.name)
            except OSError:
                shutil.copy(model, place / model.name)
        yield home


def write_config(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def last_json(text: str) -> Any:
    return json.loads(text.strip().splitlines()[-1])
