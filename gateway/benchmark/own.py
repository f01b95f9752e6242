"""Hatchway itself as a target: `hatchway up` with a home folder of its own, and what its ledger says afterwards."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from gateway.benchmark.machine import BenchmarkError, command_of, family, prepare_child
from gateway.benchmark.servers import end
from gateway.benchmark.wire import COMPLETION_TOKENS, KINDS, PROMPT_TOKENS
from gateway.config.settings import environment_variables
from gateway.errors import StoreError
from gateway.store.embedded import EmbeddedServer

READY = b"hatchway ready http://127.0.0.1:"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
COMMAND_SECONDS = 300.0
_HATCHWAY = [sys.executable, "-c", "from gateway.cli import main; main()"]

TEAM = "bench"
ADMIN_KEY = "hw-bench-admin-key"
_BUDGET_USD = 1_000_000  # far out of reach: what is measured is that it is kept


def configuration(upstream: str, telemetry: Mapping[str, Any] | None, *, with_faults: bool) -> dict[str, Any]:
    """For each kind of request a route and a policy that chooses between two endpoints by cost, fails closed outside of
    the region, and charges a team with a hard budget.

    `with_faults`: also the kind `faulty`, whose first endpoint misbehaves and whose second does not.
    """
    kinds = [*KINDS, *(["faulty"] if with_faults else [])]
    prices = {"dear": {"input": 3, "output": 15}, "cheap": {"input": 0.15, "output": 0.60}}
    providers, endpoints, policies = {}, {}, {}
    routes: list[dict[str, Any]] = [{"name": "other", "match": {"model": "gpt-*"}, "policy": "json"}]
    for kind in kinds:
        providers[kind] = {"adapter": "openai", "base_url": f"{upstream}/{kind}/v1", "api_key": "sk-bench"}
        for name, price in prices.items():
            provider = "json" if kind == "faulty" and name == "dear" else kind
            endpoints[f"{kind}-{name}"] = {"provider": provider, "model": "*", "region": "eu", "price": price}
        choices = [f"{kind}-{name}" for name in prices]
        policies[kind] = {"endpoints": choices, "require": {"region": ["eu"]}, "select": "cost"}
        routes.append({"name": kind, "match": {"model": f"bench-{kind}", "team": TEAM}, "policy": kind})
    budget = {"usd": _BUDGET_USD, "per": "month", "hard": True}
    found: dict[str, Any] = {
        "version": 1,
        "providers": providers,
        "endpoints": endpoints,
        "routes": routes,
        "policies": policies,
        "teams": {TEAM: {"cost_center": "CC-1", "budget": budget}},
    }
    return found if telemetry is None else found | {"telemetry": dict(telemetry)}


def telemetry_section(mode: str, upstream: str) -> dict[str, Any] | None:
    """`off`: nothing is exported. `on`: traces and metrics to a collector, sampled as is usual. `full`: every trace,
    and an access log."""
    if mode == "off":
        return None
    if mode == "on":
        return {"endpoint": upstream}
    traces = {"sample": 1, "per_second": 10_000}
    return {"endpoint": upstream, "traces": traces, "metrics": {"every": "5s"}, "access_log": True}


class OwnGateway:
    """`hatchway up` on a free port, in a process of its own, and the commands that belong to its home folder.

    `options`: more of its command line.
    """

    def __init__(
        self, home: Path, config: Path, workers: int, processor: int | None, options: Sequence[str] = ("--no-engine",)
    ) -> None:
        self.home = home
        self.port = 0
        self._environment = {
            **_plain_environment(),
            "HATCHWAY_HOME": str(home),
            "HATCHWAY_CONFIG": str(config),
            "HATCHWAY_ADMIN_KEY": ADMIN_KEY,
        }
        self._log = home.parent / f"{home.name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*_HATCHWAY, "up", "--port", "0", "--workers", str(workers), *options],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C reaches the benchmark, which ends it in order
                preexec_fn=prepare_child(processor),
            )

    def wait_ready(self) -> None:
        """Raises BenchmarkError with the gateway's own words when it does not become ready."""
        assert self.process.stdout is not None
        until, output = time.monotonic() + START_SECONDS, b""
        while (left := until - time.monotonic()) > 0 and select.select([self.process.stdout], [], [], left)[0]:
            piece = self.process.stdout.read(65_536)
            output += piece
            _, found, rest = output.partition(READY)
            if found and b"\n" in rest:
                self.port = int(rest.split(b"\n", 1)[0])
                return
            if not piece:
                break
        raise BenchmarkError(f"the gateway does not become ready:\n{self.log()}")

    def log(self) -> str:
        """The end of what it wrote to standard error."""
        return self._log.read_text(errors="replace")[-2000:].strip()

    def run(self, *arguments: str) -> str:
        """Standard output of a `hatchway` command on the same home. Raises BenchmarkError."""
        done = subprocess.run(
            [*_HATCHWAY, *arguments], env=self._environment, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
        if done.returncode != 0:
            raise BenchmarkError(f"`hatchway {arguments[0]}` fails: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def make_key(self) -> str:
        """A key of the team, in force. Raises BenchmarkError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=COMMAND_SECONDS)
        try:
            headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
            connection.request("POST", "/admin/api/keys", json.dumps({"team": TEAM}), headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkError(f"the gateway makes no key: {error}\n{self.log()}") from None
        finally:
            connection.close()
        if answer.status != 201:
            raise BenchmarkError(f"the gateway makes no key: {answer.status} {text[:500].decode(errors='replace')}")
        secret: str = json.loads(text)["secret"]
        return secret

    def workers(self) -> list[int]:
        return [pid for pid in family([self.process.pid]) if b"gateway.app" in command_of(pid)]

    def control_plane(self) -> int | None:
        return next((pid for pid in family([self.process.pid]) if b"gateway.control" in command_of(pid)), None)

    def roots(self) -> list[int]:
        """The supervisor, and PostgreSQL's first process, which is nobody's child."""
        postmaster = (self.home / "database" / "data" / "postmaster.pid").read_text().split("\n", 1)[0]
        return [self.process.pid, int(postmaster)]

    def stop(self) -> None:
        end(self.process, STOP_SECONDS)


@contextlib.contextmanager
def own_gateway(
    folder: Path,
    upstream: str,
    processor: int | None,
    *,
    workers: int,
    telemetry: str = "off",
    with_faults: bool = False,
) -> Iterator[tuple[OwnGateway, str]]:
    """The gateway, ready, and a key of the team. `folder`: empty, for its home. Raises BenchmarkError."""
    home = folder / "home"  # one level down: as root, PostgreSQL's own user must reach it
    home.mkdir(parents=True)
    config = folder / "policy.yaml"
    section = telemetry_section(telemetry, upstream)
    config.write_text(json.dumps(configuration(upstream, section, with_faults=with_faults), indent=1))  # JSON is YAML
    gateway = OwnGateway(home, config, workers, processor)
    try:
        gateway.wait_ready()
        yield gateway, gateway.make_key()
    finally:
        gateway.stop()


def _plain_environment() -> dict[str, str]:
    """The process's, without settings of Hatchway, PostgreSQL and OpenTelemetry, and without providers' keys."""
    environment = environment_variables()
    return {
        name: environment[name]
        for name in environment
        if not name.startswith(("HATCHWAY_", "PG", "OTEL_")) and not name.endswith("_API_KEY")
    }


# -- the ledger -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerCheck:
    """`good_rows`: with the right status, tokens and a price. `exact`: each request id that the load noted has one row,
    no request has two, and there is one good row for each answer; where connections were closed on requests (`cut`)
    there may be up to one row more for each."""

    exact: bool
    answered: int
    cut: int
    rows: int
    requests: int
    good_rows: int
    noted_ids: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def opened_database(gateway: OwnGateway) -> Iterator[psycopg.Connection[Any]]:
    """Its ledger, with everything that was still spooled. Raises BenchmarkError."""
    gateway.run("report", "--json")  # carries over what is spooled
    try:
        server = EmbeddedServer(gateway.home / "database")
    except StoreError as error:
        raise BenchmarkError(str(error)) from None
    try:
        with psycopg.connect(server.url) as connection:
            yield connection
    finally:
        server.close()


def check_ledger(gateway: OwnGateway, answered: int, cut: int, request_ids: list[str]) -> LedgerCheck:
    """The ledger against what the load saw. Raises BenchmarkError, StoreError."""
    noted = len(request_ids)
    with opened_database(gateway) as connection:
        good = "status = 'ok' AND input_tokens = %s AND output_tokens = %s AND cost_usd > 0"
        query = f"SELECT count(*), count(DISTINCT request_id), count(*) FILTER (WHERE {good}) FROM usage_events"
        rows, requests, good_rows = connection.execute(query, (PROMPT_TOKENS, COMPLETION_TOKENS)).fetchone() or (
            0,
            0,
            0,
        )
        query = "SELECT count(*), count(DISTINCT request_id) FROM usage_events WHERE request_id = ANY(%s)"
        noted_rows, noted_found = connection.execute(query, (request_ids,)).fetchone() or (0, 0)
    is_exact = (
        rows == requests and noted == noted_rows == noted_found and answered <= good_rows and rows <= answered + cut
    )
    return LedgerCheck(is_exact, answered, cut, rows, requests, good_rows, noted)
