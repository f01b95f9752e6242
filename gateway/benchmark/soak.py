"""A soak: our own gateway under mixed load for minutes or hours. Does it stay as it was, and is its ledger exact?

The load: answers at once and streams, paced and not; clients that leave before and in the middle of an answer; an
endpoint that answers 500, resets, cuts answers short or is slow, with another to fall back to.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.benchmark import servers
from gateway.benchmark.client import Run, quantile_ms
from gateway.benchmark.machine import (
    IS_LINUX,
    BenchmarkError,
    choose_processors,
    descriptors,
    pinned,
    raise_descriptor_limit,
    resident_mb,
    threads,
)
from gateway.benchmark.own import OwnGateway, opened_database, own_gateway
from gateway.benchmark.targets import COMPLETIONS
from gateway.benchmark.traffic import Share, Traffic
from gateway.benchmark.verdict import Sample, judge
from gateway.benchmark.wire import Kind, Place, body_for, chunks_of
from gateway.ledger.backlog import measure

TICK_MS = 50
SAID_EVERY = 10
"""Samples between two lines of progress."""

LEAST_SECONDS = 3.0
LEAST_SAMPLES = 15
"""A sample every second, or more often in a short run."""
NEVER = 1 << 63
"""In ns: times of single chunks are not kept."""


@dataclass(frozen=True)
class SoakPlan:
    """`rate`: requests a second."""

    seconds: float = 120.0
    rate: float = 100.0
    workers: int = 1
    telemetry: str = "off"
    is_pinned: bool = True


def run_soak(plan: SoakPlan, folder: Path, say: Callable[[str], None], warn: Callable[[str], None]) -> dict[str, Any]:
    """Returns what was sent, the verdict on each measure, the ledger's check, and in `failed` what went wrong.

    `folder`: empty, for the gateway's home. Raises BenchmarkError.
    """
    if not IS_LINUX:
        raise BenchmarkError(
            "a soak reads memory and descriptors from `/proc`\nhint: run it on Linux, or in a container"
        )
    if plan.seconds < LEAST_SECONDS:
        raise BenchmarkError(f"a soak takes {LEAST_SECONDS:.0f} s at least: thirds of it are compared")
    processors = choose_processors(plan.is_pinned)
    if plan.is_pinned and processors.load is None:
        warn("there is only one processor: gateway, load and upstream share it")
    raise_descriptor_limit()
    with contextlib.ExitStack() as owned:
        owned.enter_context(pinned(processors.load))
        _, port = owned.enter_context(servers.module("upstream", processor=processors.load))
        say(f"starting hatchway: {plan.workers} worker{'s' * (plan.workers > 1)}, telemetry {plan.telemetry}")
        started = own_gateway(
            folder,
            f"http://127.0.0.1:{port}",
            processors.gateway,
            workers=plan.workers,
            telemetry=plan.telemetry,
            with_faults=True,
        )
        gateway, key = owned.enter_context(started)
        shares = _shares(gateway.port, key)
        watch = _Watch(gateway, [share.run for share in shares], say)
        try:
            Traffic(shares, plan.rate).go(plan.seconds, min(1.0, plan.seconds / LEAST_SAMPLES), watch.take)
        except OSError as error:
            raise BenchmarkError(f"the gateway cannot be reached any more: {error}\n{gateway.log()}") from None
        has_lost_workers = gateway.workers() != watch.workers
        ledger = check_soak_ledger(gateway, shares)
    findings = judge(watch.samples)
    failed = [f"{finding.name} has drifted" for finding in findings if finding.has_drifted]
    failed += [f"{s.run.errors} of {s.sent} `{s.name}` failed: {s.run.complaint}" for s in shares if s.run.errors]
    failed += ["a worker has died"] if has_lost_workers else []
    failed += [] if ledger["exact"] else ["the ledger is not exact"]
    return {
        "benchmark": "soak",
        "seconds": plan.seconds,
        "rate": plan.rate,
        "workers": plan.workers,
        "telemetry": plan.telemetry,
        "pinned": processors.load is not None,
        "sent": {share.name: share.sent for share in shares},
        "left": sum(share.left for share in shares),
        "errors": sum(share.run.errors for share in shares),
        "findings": {finding.name: {**asdict(finding), "drifted": finding.has_drifted} for finding in findings},
        "ledger": ledger,
        "failed": failed,
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def _shares(port: int, key: str) -> list[Share]:
    """The first is the one whose latency is watched."""
    place = Place("127.0.0.1", port, COMPLETIONS, {"authorization": f"Bearer {key}"})
    faulty = body_for("json").replace(b'"bench-json"', b'"bench-faulty"')

    def run(kind: Kind, body: bytes | None = None) -> Run:
        chunks = chunks_of(TICK_MS) if kind == "paced" else 0
        return Run(place, place.request(body or body_for(kind, TICK_MS)), kind, chunks, NEVER, 0)

    return [
        Share("json", 50, run("json")),
        Share("sse", 15, run("sse")),
        Share("paced", 10, run("paced")),
        Share("faulty", 15, run("json", faulty)),
        Share("left in a stream", 7, run("paced"), leaves_after=3),
        Share("left at once", 3, run("json"), leaves_after=0),
    ]


class _Watch:
    """Takes the samples."""

    def __init__(self, gateway: OwnGateway, runs: list[Run], say: Callable[[str], None]) -> None:
        """`runs`: the first is the one whose latency is watched. Latencies that they keep are dropped every second."""
        self.samples: list[Sample] = []
        self.workers = gateway.workers()
        self._control = gateway.control_plane()
        self._spool = gateway.home / "spool"
        self._runs = runs
        self._say = say
        self._began = time.monotonic()

    def take(self) -> None:
        durations = list(self._runs[0].durations)
        for run in self._runs:
            run.durations.clear()
        sample = Sample(
            second=time.monotonic() - self._began,
            worker_mb=max((resident_mb(pid) for pid in self.workers), default=0.0),
            control_mb=resident_mb(self._control) if self._control is not None else 0.0,
            descriptors=sum(descriptors(pid) for pid in self.workers),
            threads=sum(threads(pid) for pid in self.workers),
            backlog_bytes=measure(self._spool).bytes,
            p50_ms=quantile_ms(durations, 0.5),
            p99_ms=quantile_ms(durations, 0.99),
        )
        self.samples.append(sample)
        if len(self.samples) % SAID_EVERY == 0:
            self._say(
                f"{sample.second:.0f} s: worker {sample.worker_mb:.1f} MB, {sample.descriptors} descriptors, "
                f"p50 {sample.p50_ms:.2f} ms, {sample.backlog_bytes} bytes not shipped"
            )


def check_soak_ledger(gateway: OwnGateway, shares: list[Share]) -> dict[str, Any]:
    """The ledger against what the load saw. `exact`: each answer has one row that is `ok`, at the right price and with
    the right tokens, and no request has two; each request whose client left after its answer had begun has a row; there
    are no more requests than were sent; and no row was left open by a worker. Raises BenchmarkError."""
    answered = [request_id for share in shares for request_id in share.run.request_ids]
    left = [request_id for share in shares for request_id in share.left_ids]
    sent = sum(share.sent for share in shares)
    good = "status = 'ok' AND cost_usd > 0"
    with opened_database(gateway) as connection:

        def count(query: str, *values: Any) -> int:
            row = connection.execute(query, values).fetchone()
            return int(row[0]) if row is not None else 0

        rows = count("SELECT count(*) FROM usage_events")
        requests = count("SELECT count(DISTINCT request_id) FROM usage_events")
        of_one = (
            f"SELECT request_id FROM usage_events WHERE {good} AND request_id = ANY(%s) GROUP BY 1 HAVING count(*) = 1"
        )
        answered_once = count(f"SELECT count(*) FROM ({of_one})", answered)
        twice = f"SELECT request_id FROM usage_events WHERE {good} GROUP BY 1 HAVING count(*) > 1"
        found_twice = count(f"SELECT count(*) FROM ({twice})")
        found_left = count("SELECT count(DISTINCT request_id) FROM usage_events WHERE request_id = ANY(%s)", left)
        lost = count("SELECT count(*) FROM usage_events WHERE error_type = 'worker_lost'")
        by_status = dict(connection.execute("SELECT status, count(*) FROM usage_events GROUP BY 1").fetchall())
    is_exact = (
        answered_once == len(answered)
        and not found_twice
        and found_left == len(left)
        and len(answered) + len(left) <= requests <= sent
        and not lost
    )
    return {
        "exact": is_exact,
        "sent": sent,
        "answered": len(answered),
        "answered_once": answered_once,
        "left": len(left),
        "left_found": found_left,
        "requests": requests,
        "rows": rows,
        "rows_by_status": by_status,
        "requests_twice": found_twice,
        "worker_lost": lost,
    }
