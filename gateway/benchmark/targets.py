"""What is measured: where it answers, what runs for it, and what it has been seen to answer so far."""

from __future__ import annotations

import contextlib
import http.client
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from gateway.benchmark import servers
from gateway.benchmark.client import Outcome, run_unpaced
from gateway.benchmark.machine import BenchmarkError, Processors, cpu_seconds
from gateway.benchmark.own import LedgerCheck, OwnGateway, check_ledger, own_gateway
from gateway.benchmark.wire import CHUNKS, KINDS, Kind, Place, body_for, chunks_of

REFERENCES = ("direct", "bare", "nginx")
"""Targets that only pass on: nothing runs on after their answers."""

SETTLE_SECONDS = 20.0
CHECK_SECONDS = 60.0
CHECK_TICK_MS = 500
WARM_SECONDS = 0.3
WARM_CONNECTIONS = 32
COMPLETIONS = "/v1/chat/completions"


@dataclass
class Target:
    """`serving`: the processes that a request passes through. `roots`: everything that runs for it, or its beginnings.
    Both are empty where nothing is known, as of the upstream itself.

    `events`: of an unpaced stream, as they arrive. `rates`: answers a second when it was warmed up. `left_out`: why it
    takes no part in a kind. `answered`, `cut`, `request_ids`: of all requests so far, for the ledger's check.
    """

    name: str
    host: str
    port: int
    paths: Mapping[Kind, str]
    headers: Mapping[str, str] = field(default_factory=dict)  # `{upstream}` becomes the kind's base URL
    upstream: str = ""
    serving: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    gateway: OwnGateway | None = None
    events: int = CHUNKS
    rates: dict[Kind, float] = field(default_factory=dict)
    left_out: dict[Kind, str] = field(default_factory=dict)
    answered: int = 0
    cut: int = 0
    request_ids: list[str] = field(default_factory=list)

    @property
    def is_foreign(self) -> bool:
        """Another gateway: what it cannot do is shown, and is no failure of the benchmark."""
        return self.gateway is None and self.name not in REFERENCES

    def place(self, kind: Kind) -> Place:
        base = f"{self.upstream}/{kind}/v1"
        headers = {name: value.replace("{upstream}", base) for name, value in self.headers.items()}
        return Place(self.host, self.port, self.paths[kind], headers)

    def count(self, outcome: Outcome) -> None:
        self.answered += outcome.answered
        self.cut += outcome.cut
        self.request_ids += outcome.request_ids

    def settle(self) -> None:
        """Waits until it is idle: the ledger's rows are shipped after the answers, and belong to their cost."""
        until = time.monotonic() + SETTLE_SECONDS
        before = cpu_seconds(self.roots)
        while self.roots and time.monotonic() < until:
            time.sleep(0.25)
            now = cpu_seconds(self.roots)
            if now - before < 0.025:
                return
            before = now


def probe(target: Target, kind: Kind) -> str:
    """One request, read to its end. Returns what is wrong with its answer; empty: nothing."""
    place = target.place(kind)
    connection = http.client.HTTPConnection(place.host, place.port, timeout=CHECK_SECONDS)
    try:
        headers = {"content-type": "application/json", **place.headers}
        connection.request("POST", place.path, body_for(kind, CHECK_TICK_MS), headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if answer.status != 200 or len(re.findall(place.usage, text)) != 1:
        return f"{answer.status} {text[-500:].decode(errors='replace')}"
    if kind != "json":
        if place.ending not in text:
            return f"the stream does not end: {text[-500:].decode(errors='replace')}"
        events = text.count(b"data: {")
        if kind == "sse":
            target.events = min(events, CHUNKS)
        wanted = CHUNKS if kind == "sse" else chunks_of(CHECK_TICK_MS) + 2
        if events < wanted and not target.is_foreign:
            return f"{events} events instead of {wanted}"
    request_id = answer.headers["x-hatchway-request-id"]
    target.count(Outcome({}, 1, request_ids=[request_id] if request_id else []))
    return ""


def warm_up(target: Target, kinds: list[Kind], seconds: float, warn: Callable[[str], None]) -> None:
    """Each kind once, and the unpaced ones for a moment. Raises BenchmarkError unless it answers as it should; another
    gateway is left out of the kind instead."""
    for kind in kinds:
        if wrong := probe(target, kind):
            if not target.is_foreign:
                raise BenchmarkError(f"`{target.name}` answers `{kind}` wrongly: {wrong}")
            target.left_out[kind] = wrong
            warn(f"`{target.name}` is left out of `{kind}`: {wrong}")
        elif kind != "paced":
            outcome = run_unpaced(target.place(kind), kind, WARM_CONNECTIONS, seconds)
            target.count(outcome)
            target.rates[kind] = outcome.figures["per_s"] or math.nan


# -- starting them ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """Another gateway, of which the user tells where it is or how it is started. `url` ends in `/v1`, as a client's
    `base_url` does."""

    name: str
    url: str | None = None
    command: str | None = None
    pid: int | None = None
    key: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


def reference(name: str, port: int, process: int | None = None) -> Target:
    """The upstream itself, or a proxy before it."""
    roots = [] if process is None else [process]
    return Target(name, "127.0.0.1", port, _upstream_paths(), serving=roots, roots=roots)


@contextlib.contextmanager
def opened_own(
    name: str, folder: Path, upstream: str, processors: Processors, workers: int, telemetry: str
) -> Iterator[Target]:
    """Raises BenchmarkError."""
    options = {"workers": workers, "telemetry": telemetry}
    with own_gateway(folder / name, upstream, processors.gateway, **options) as (gateway, key):  # type: ignore[arg-type]
        headers = {"authorization": f"Bearer {key}"}
        paths = dict.fromkeys(KINDS, COMPLETIONS)
        yield Target(
            name,
            "127.0.0.1",
            gateway.port,
            paths,
            headers,
            upstream,
            serving=gateway.workers(),
            roots=gateway.roots(),
            gateway=gateway,
        )


def translated(own: Target) -> Target:
    """The same gateway for a client that speaks another protocol: each event is decoded and written anew."""
    paths = dict.fromkeys(KINDS, "/v1/messages")
    return Target(
        f"{own.name}-translated",
        own.host,
        own.port,
        paths,
        own.headers,
        own.upstream,
        own.serving,
        own.roots,
        own.gateway,
    )


@contextlib.contextmanager
def opened_named(named: Named, folder: Path, upstream: str, processors: Processors) -> Iterator[Target]:
    """Raises BenchmarkError when it does not start, or its URL cannot be used."""
    with contextlib.ExitStack() as owned:
        pid, port = named.pid, 0
        if named.command is not None:
            started = servers.command(named.name, named.command, upstream, processors.gateway, folder)
            pid, port = owned.enter_context(started)
        url = (named.url or "http://127.0.0.1:{port}/v1").replace("{port}", str(port)).rstrip("/")
        at = urlsplit(url)
        if at.scheme != "http" or not at.hostname:
            raise BenchmarkError(
                f"`--target {named.name}={url}` cannot be measured\nhint: give a URL like `http://127.0.0.1:4000/v1`"
            )
        key = {} if named.key is None else {"authorization": f"Bearer {named.key}"}
        roots = [] if pid is None else [pid]
        paths = dict.fromkeys(KINDS, f"{at.path}/chat/completions")
        headers = {**key, **dict(named.headers)}
        target = Target(named.name, at.hostname, at.port or 80, paths, headers, upstream, roots, roots)
        if named.command is not None:
            _wait_until_it_answers(target)
        yield target


def check_own_ledger(own: Target, targets: list[Target]) -> LedgerCheck:
    """With what each of the targets has asked of the same gateway. Raises BenchmarkError."""
    assert own.gateway is not None
    same = [target for target in targets if target.gateway is own.gateway]
    request_ids = [request_id for target in same for request_id in target.request_ids]
    answered, cut = sum(target.answered for target in same), sum(target.cut for target in same)
    return check_ledger(own.gateway, answered, cut, request_ids)


def _upstream_paths() -> dict[Kind, str]:
    return {kind: f"/{kind}{COMPLETIONS}" for kind in KINDS}


def _wait_until_it_answers(target: Target) -> None:
    """A gateway may listen before it serves. What it cannot do after that time is shown by `warm_up`."""
    until = time.monotonic() + servers.START_SECONDS
    while probe(target, "json") and time.monotonic() < until:
        time.sleep(0.5)
