"""What the gateway costs on one core, beside its limits in the same run: no proxy, a bare Python proxy, nginx.

    python bench/gateway.py [--seconds 1] [--rounds 3] [--streams 200@20] [--profile]
                            [--only json-1 json-32 sse-32 paced]

The gateway is `hatchway up --no-engine` with one worker, a home folder of its own, embedded PostgreSQL, a virtual key,
a policy and the ledger. All its processes and the two proxies run on the first cpu, load and upstream on the second.
The targets take turns in each round; the figures are medians. Afterwards the ledger must hold one row for each answer.
`wrk` and `nginx` are used if they are on PATH, and `py-spy` for `--profile`. Linux only. Prints tables, and one JSON
object as the last line; progress goes to standard error. Exit status 1: requests failed, or the ledger is wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `gateway` is the package, not this file

import psycopg

from bench import load
from bench.start import ROOT, RunningGateway, end
from gateway.store.embedded import EmbeddedServer

SETTLE_SECONDS = 20.0

CONFIG = """
version: 1
providers:
  bench: {{adapter: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: sk-bench}}
endpoints:
  dear: {{provider: bench, model: "*", region: eu, price: {{input: 3, output: 15}}}}
  cheap: {{provider: bench, model: "*", region: eu, price: {{input: 0.15, output: 0.60}}}}
routes:
  - {{name: other, match: {{model: "gpt-*"}}, policy: bench}}
  - {{name: bench, match: {{model: "bench-*", team: bench}}, policy: bench}}
policies:
  bench: {{endpoints: [dear, cheap], require: {{region: [eu]}}, select: cost}}
teams:
  bench: {{cost_center: CC-1}}
"""

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; proxy_buffering off;
  client_body_temp_path {folder}/nginx-body; proxy_temp_path {folder}/nginx-proxy;
  upstream bench {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""

# -- processes --------------------------------------------------------------------------------------------------------


def pin(cpu: int) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, {cpu})


def stats() -> dict[int, list[str]]:
    """Fields of `/proc/PID/stat` from the state on (proc(5), field 3 and following), for every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = path.read_text().rsplit(")", 1)[1].split()
    return found


def family(roots: list[int], seen: dict[int, list[str]] | None = None) -> list[int]:
    """The processes and all their descendants."""
    seen = stats() if seen is None else seen
    found = [pid for pid in roots if pid in seen]
    for parent in found:
        found += [pid for pid, fields in seen.items() if int(fields[1]) == parent]
    return found


def cpu_seconds(roots: list[int]) -> float:
    """User and system time of the processes and their descendants, ended ones included; exact to 10 ms."""
    seen = stats()
    ticks = sum(int(value) for pid in family(roots, seen) for value in seen[pid][11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def megabytes(roots: list[int], name: str) -> float:
    """`Rss`, or `Pss`, in which memory that processes share counts once."""
    kilobytes = 0
    for pid in family(roots):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kilobytes += int(re.search(rf"^{name}: *(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    return kilobytes / 1024


def worker_of(gateway: RunningGateway) -> int:
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family([gateway.process.pid])}
    return next(pid for pid, command in commands.items() if b"gateway.app" in command)


def roots_of(gateway: RunningGateway) -> list[int]:
    """The supervisor, and PostgreSQL's first process, which is nobody's child."""
    postmaster = (gateway.home / "database" / "data" / "postmaster.pid").read_text().split("\n", 1)[0]
    return [gateway.process.pid, int(postmaster)]


# -- targets ----------------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """`serving`: the process that a request passes through. `roots`: everything that runs for it; direct has neither.

    `answered`, `cut`, `request_ids`: of all requests so far, for the ledger's check.
    """

    name: str
    place: load.Place
    serving: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    answered: int = 0
    cut: int = 0
    request_ids: list[str] = field(default_factory=list)

    def count(self, outcome: load.Outcome) -> None:
        self.answered += outcome.answered
        self.cut += outcome.cut
        self.request_ids += outcome.request_ids


@contextlib.contextmanager
def serving(code: str, cpu: int) -> Iterator[tuple[int, int]]:
    """A process that runs a function of `bench.load`: its number and its port."""
    command = [sys.executable, "-c", f"from bench import load; load.{code}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=pin(cpu))
    try:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
    finally:
        end(process)


@contextlib.contextmanager
def nginx(folder: Path, upstream: int, cpu: int) -> Iterator[tuple[int, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, upstream=upstream, port=port))
    command = ["nginx", "-c", str(config), "-e", str(folder / "nginx.err")]
    process = subprocess.Popen(command, preexec_fn=pin(cpu))
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"nginx does not listen:\n{(folder / 'nginx.err').read_text()[-500:]}")
        yield process.pid, port
    finally:
        end(process)


@contextlib.contextmanager
def hatchway(folder: Path, upstream: int, cpu: int) -> Iterator[tuple[RunningGateway, str]]:
    """The gateway, ready, and a key."""
    home = folder / "home"
    home.mkdir()
    config = folder / "policy.yaml"
    config.write_text(CONFIG.format(port=upstream))
    gateway = RunningGateway(home, "--config", str(config), "--no-engine", "--workers", "1", before=pin(cpu))
    try:
        gateway.wait_ready()
        yield gateway, json.loads(gateway.run("keys", "create", "--team", "bench", "--json"))["key"]
    finally:
        gateway.stop()


def check(target: Target, kind: load.Kind) -> None:
    """One request, read to its end. Raises RuntimeError unless the whole answer came through."""
    url = f"http://127.0.0.1:{target.place.port}{target.place.path}"
    headers = {"content-type": "application/json"}
    if target.place.key is not None:
        headers["authorization"] = f"Bearer {target.place.key}"
    request = urllib.request.Request(url, load.body_for(kind, 500), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            request_id = answer.headers["x-hatchway-request-id"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{target.name} answered {error.code}: {error.read()[:500]!r}") from None
    events = {"json": 0, "sse": load.CHUNKS + 1, "paced": load.chunks_of(500) + 3}[kind]
    if text.count(b'"total_tokens":73') != 1 or text.count(b"data: ") != events:
        raise RuntimeError(f"{target.name} changed the answer to `{kind}`: {text[-500:]!r}")
    target.count(load.Outcome({}, 1, request_ids=[request_id] if request_id else []))


def settle(target: Target) -> None:
    """Waits until it is idle: the ledger's rows are shipped after the answers, and belong to their cost."""
    until = time.monotonic() + SETTLE_SECONDS
    before = cpu_seconds(target.roots)
    while time.monotonic() < until:
        time.sleep(0.25)
        now = cpu_seconds(target.roots)
        if now - before < 0.025:
            return
        before = now


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    name: str
    kind: load.Kind
    connections: int
    tick_ms: int = 0

    def run(self, target: Target, seconds: int, folder: Path) -> load.Outcome:
        if self.kind == "paced":  # twice as long: its first second does not count
            return load.run_paced(target.place, self.connections, self.tick_ms, 2 * seconds)
        if shutil.which("wrk"):
            return load.run_wrk(target.place, self.kind, self.connections, seconds, folder)
        return load.run_own(target.place, self.kind, self.connections, seconds)


UNPACED = (Scenario("json-1", "json", 1), Scenario("json-32", "json", 32), Scenario("sse-32", "sse", 32))


def measure(scenario: Scenario, target: Target, seconds: int, folder: Path) -> dict[str, float]:
    """One round's figures of one target."""
    before, before_all = cpu_seconds(target.serving), cpu_seconds(target.roots)
    outcome = scenario.run(target, seconds, folder)
    if target.name in ("hatchway", "translated"):
        settle(target)
    target.count(outcome)
    figures = outcome.figures
    chunks = figures.pop("chunks", 0.0)
    if scenario.kind == "sse":
        figures["chunks_per_s"] = figures["per_s"] * load.CHUNKS
    if target.serving:
        amount, scale = (chunks, 1e6) if scenario.kind == "paced" else (float(outcome.answered), 1e3)
        amount = amount or math.nan
        figures["cpu"] = (cpu_seconds(target.serving) - before) / amount * scale
        figures["cpu_all"] = (cpu_seconds(target.roots) - before_all) / amount * scale
        figures["rss_mb"] = megabytes(target.serving, "Rss")
        figures["pss_all_mb"] = megabytes(target.roots, "Pss")
    return figures


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure. Errors are added up: one must not hide behind a median."""
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    found["errors"] = sum(one["errors"] for one in rounds)
    return found


def add_ratios(rows: dict[str, dict[str, float]], main: str) -> None:
    """`x_...`: this row's rate to another's. `cpu_x_...`: the cpu of all its processes to the other's."""
    for row in rows.values():
        for other in ("direct", "bare", "nginx"):
            if other in rows:
                row[f"x_{other}"] = row[main] / (rows[other][main] or math.nan)
                if "cpu_all" in row and "cpu_all" in rows[other]:
                    row[f"cpu_x_{other}"] = row["cpu_all"] / (rows[other]["cpu_all"] or math.nan)


def show(scenario: Scenario, rows: dict[str, dict[str, float]]) -> None:
    if scenario.kind == "paced":
        unit = "cpu in µs a chunk"
        columns = ["chunks_per_s", "ttft_p50_ms", "ttft_p99_ms", "transit_p99_ms"]
        title = f"{scenario.connections} streams, a chunk every {scenario.tick_ms} ms"
    else:
        unit = "cpu in ms a request"
        columns = ["per_s", *(["chunks_per_s"] if scenario.kind == "sse" else []), "p50_ms", "p99_ms"]
        title = f"{'unpaced streams' if scenario.kind == 'sse' else 'not streamed'}, {scenario.connections} connections"
    columns += ["x_direct", "x_bare", "x_nginx", "cpu", "cpu_all", "cpu_x_bare", "cpu_x_nginx"]
    columns += ["rss_mb", "pss_all_mb", "errors"]
    columns = [name for name in columns if any(name in row for row in rows.values())]
    lines = [["", *columns]]
    lines += [[name, *(shown(row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{scenario.name}: {title}; {unit}")
    for line in lines:
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def check_ledger(gateway: RunningGateway, target: Target) -> dict[str, Any]:
    """The ledger against what the load saw.

    `exact`: each request id that the load noted has one row, no request has two, and there is one good row for each
    answer; where `wrk` closed its connections (`cut`), there may be up to one row more for each.
    """
    gateway.run("report", "--json")  # carries over what is still spooled
    server = EmbeddedServer(gateway.home / "database")
    try:
        with psycopg.connect(server.url) as connection:
            good = "status = 'ok' AND input_tokens = %s AND output_tokens = %s AND cost_usd > 0"
            query = f"SELECT count(*), count(DISTINCT request_id), count(*) FILTER (WHERE {good}) FROM usage_events"
            tokens = (load.PROMPT_TOKENS, load.COMPLETION_TOKENS)
            rows, requests, good_rows = connection.execute(query, tokens).fetchone() or (0, 0, 0)
            query = "SELECT count(*), count(DISTINCT request_id) FROM usage_events WHERE request_id = ANY(%s)"
            noted_rows, noted_found = connection.execute(query, (target.request_ids,)).fetchone() or (0, 0)
    finally:
        server.close()
    noted = len(target.request_ids)
    is_exact = (
        rows == requests
        and noted == noted_rows == noted_found
        and target.answered <= good_rows
        and rows <= target.answered + target.cut
    )
    return {
        "exact": is_exact,
        "answered": target.answered,
        "cut": target.cut,
        "rows": rows,
        "requests": requests,
        "good_rows": good_rows,
        "noted_ids": noted,
    }


def profile(scenario: Scenario, target: Target, seconds: int, folder: Path) -> None:
    """The functions of the worker's event loop by their own time while the scenario runs, to standard error."""
    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        print("no profile: `py-spy` is not installed", file=sys.stderr)
        return
    out = folder / "profile.txt"
    options = f"--format raw --function --rate 250 --duration {seconds} --output {out}".split()
    command = [program, "record", "--pid", str(target.serving[0]), *options]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        target.count(scenario.run(target, seconds + 1, folder))
        _, complaint = spy.communicate(timeout=30)
    finally:
        end(spy)
    if not out.exists():
        print(f"no profile: {complaint.decode(errors='replace').strip()[-300:]}", file=sys.stderr)
        return
    own, total, samples = collections.Counter[str](), collections.Counter[str](), 0
    for line in out.read_text().splitlines():
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        if not any("(asyncio/runners.py" in frame for frame in frames):
            continue  # a thread beside the loop's: one that waits for work looks busy to py-spy
        samples += int(number)
        own[frames[-1]] += int(number)
        for frame in set(frames):
            total[frame] += int(number)
    print(f"\nthe worker under {scenario.name}: {samples} samples\n   own   total  function", file=sys.stderr)
    for frame, count in own.most_common(30):
        print(f"{count / samples:7.1%} {total[frame] / samples:7.1%}  {frame}", file=sys.stderr)


# -- the run ----------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace, scenarios: list[Scenario], folder: Path, cpus: list[int]) -> dict[str, Any]:
    path = "/v1/chat/completions"
    raw: dict[tuple[str, str], list[dict[str, float]]] = collections.defaultdict(list)
    with contextlib.ExitStack() as owned:
        _, upstream = owned.enter_context(serving("serve_upstream()", cpus[1]))
        targets = [Target("direct", load.Place(upstream, path, None))]
        bare, port = owned.enter_context(serving(f"serve_bare({upstream})", cpus[0]))
        targets.append(Target("bare", load.Place(port, path, None), [bare], [bare]))
        if shutil.which("nginx"):
            proxy, port = owned.enter_context(nginx(folder, upstream, cpus[0]))
            targets.append(Target("nginx", load.Place(port, path, None), [proxy], [proxy]))
        gateway, key = owned.enter_context(hatchway(folder, upstream, cpus[0]))
        ours = Target("hatchway", load.Place(gateway.port, path, key), [worker_of(gateway)], roots_of(gateway))
        targets.append(ours)
        # The same for a client that speaks another protocol: each event is decoded and written anew.
        other = load.Place(gateway.port, "/v1/messages", key)
        translated = Target("translated", other, ours.serving, ours.roots)
        for target in targets:
            for kind in sorted({scenario.kind for scenario in scenarios}):
                check(target, kind)
                if kind != "paced":
                    target.count(load.run_own(target.place, kind, 32, 0.3))  # warms up, and notes request ids
        for number in range(arguments.rounds):
            for scenario in scenarios:
                turns = [*targets, *([translated] if scenario.kind == "paced" else [])]
                for target in turns if number % 2 == 0 else turns[::-1]:
                    figures = measure(scenario, target, arguments.seconds, folder)
                    raw[scenario.name, target.name].append(figures)
                    text = " ".join(f"{name}={shown(value)}" for name, value in figures.items())
                    print(f"round {number + 1} {scenario.name:8} {target.name:9} {text}", file=sys.stderr, flush=True)
        if arguments.profile:
            profile(UNPACED[1], ours, max(5, arguments.seconds), folder)
        ours.count(load.Outcome({}, translated.answered, translated.cut, translated.request_ids))
        ledger = check_ledger(gateway, ours)
    tables = {}
    for scenario in scenarios:
        names = [*(target.name for target in targets), "translated"]
        rows = {name: medians(raw[scenario.name, name]) for name in names if raw[scenario.name, name]}
        add_ratios(rows, "chunks_per_s" if scenario.kind == "paced" else "per_s")
        show(scenario, rows)
        tables[scenario.name] = rows
    return {"scenarios": tables, "ledger": ledger}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(scenario.name for scenario in UNPACED), "paced"]
    parser.add_argument("--seconds", type=int, default=1, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SCENARIO", help=", ".join(names))
    parser.add_argument("--streams", default="200@20", metavar="N@MS", help="paced streams, and ms between two chunks")
    parser.add_argument("--profile", action="store_true", help="afterwards, the worker's functions under json-32")
    arguments = parser.parse_args()
    streams = re.fullmatch(r"(\d{1,5})@(\d{1,3})", arguments.streams)
    if streams is None or int(streams[1]) < 1 or int(streams[2]) < 1 or arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("`--streams` takes N@MS like 1000@100; `--rounds` and `--seconds` at least 1")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("two cpus are needed: one for the gateway, one for load and upstream")
    paced = Scenario("paced", "paced", int(streams[1]), int(streams[2]))
    scenarios = [scenario for scenario in (*UNPACED, paced) if scenario.name in arguments.only]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the processes started here inherit it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load_average = os.getloadavg()[0]
    pin(cpus[1])()
    with tempfile.TemporaryDirectory(prefix="hatchway-bench-") as folder:
        found = run(arguments, scenarios, Path(folder), cpus)
    ledger = found["ledger"]
    print(
        f"\nledger: {'exact' if ledger['exact'] else 'WRONG'}: {ledger['answered']} answers, {ledger['rows']} rows of "
        f"{ledger['requests']} requests, {ledger['good_rows']} with the right status, tokens and a price; "
        f"{ledger['noted_ids']} request ids looked up; {ledger['cut']} connections closed by the load"
    )
    result = {
        "benchmark": "gateway",
        "load": "wrk" if shutil.which("wrk") else "own",
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "streams": arguments.streams,
        **found,
        "cpus": os.cpu_count(),
        "load_average_before": round(load_average, 2),
        "python": sys.version.split()[0],
    }
    print(json.dumps(rounded(result)))
    errors = sum(row["errors"] for rows in found["scenarios"].values() for row in rows.values())
    return 0 if ledger["exact"] and not errors else 1


def rounded(value: Any) -> Any:
    """Four digits, and null for what could not be measured."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


if __name__ == "__main__":
    sys.exit(main())
