"""A worker killed while it writes, with the shipper running beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gateway.ledger.shipper import Shipper
from gateway.store.database import Database

# Begins attempts, settles most of them a little later, and says so on standard output only after `settle` returned.
WRITER = """
import os, sys, uuid
from datetime import UTC, datetime
from pathlib import Path
import msgspec
from gateway.ledger.record import write_begun, write_settled
from gateway.ledger.spool import Spool
from gateway.types import Usage, UsageEvent

spool = Spool(Path(sys.argv[1]), sys.argv[2], segment_bytes=64 * 1024)
flight = []
while True:
    now = datetime.now(UTC)
    event = UsageEvent(
        event_id=str(uuid.uuid4()), request_id="r", attempt=1, started_at=now, ended_at=now, team="t", project=None,
        key_id="k", cost_center=None, route="r", policy="p", policy_version="v", domain=None, endpoint="e",
        provider="p", model="m", upstream_model="m", region=None, status="error", error_type="worker_lost",
        stream=False, ttft_ms=None, duration_ms=0.0, usage=Usage(), usage_source="none", price_status="unpriced",
        cost_usd=None, prices=None, catalog_version=None, tags={"pad": "x" * (uuid.uuid4().int % 3000)},
    )
    spool.begin(event.event_id, write_begun(event))
    os.write(1, b"S %b\\n" % event.event_id.encode())
    flight.append(event)
    if len(flight) > 20:
        done = flight.pop(uuid.uuid4().int % 20)
        settled = msgspec.structs.replace(done, status="ok", error_type=None)
        spool.settle(done.event_id, write_settled(settled))
        os.write(1, b"E %b\\n" % done.event_id.encode())
"""


def said(output: bytes) -> tuple[set[str], set[str]]:
    """The ids that were begun, and those that were settled, as far as whole lines say."""
    words = [line.split() for line in output.decode().split("\n")[:-1]]
    return {i for kind, i in words if kind == "S"}, {i for kind, i in words if kind == "E"}


def test_kill_9_under_load_loses_nothing_that_returned(tmp_path: Path, table: Database) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    begun: set[str] = set()
    settled: set[str] = set()
    with Shipper(tmp_path, table.connect, batch_rows=100) as shipper:
        for round_ in range(3):
            workers = [
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, str(tmp_path), f"w{n}"], stdout=subprocess.PIPE, env=environment
                )
                for n in range(2)
            ]
            try:
                output = [b"", b""]
                for n, worker in enumerate(workers):
                    assert worker.stdout is not None
                    # A full pipe holds a writer back, so both are in the middle of their work when they are killed.
                    while len(output[n]) < 20_000 * (round_ + 1):
                        output[n] += os.read(worker.stdout.fileno(), 4096)
                        if round_:
                            shipper.ship_once()
            finally:
                for n, worker in enumerate(workers):
                    worker.send_signal(signal.SIGKILL)
                    rest, _ = worker.communicate()
                    output[n] += rest
            for text in output:
                more_begun, more_settled = said(text)
                begun |= more_begun
                settled |= more_settled
        last = shipper.ship_once()
    with table.connect() as connection:
        stored = dict(
            connection.execute("SELECT event_id::text, coalesce(error_type, status) FROM usage_events").fetchall()
        )
    assert len(settled) > 1000 and last.lost > 0 and last.rejected == 0
    assert {stored[event_id] for event_id in settled} == {"ok"}
    # What was begun and not said to be settled: lost with the worker, or settled in the instant before it was killed.
    unsaid = [stored[event_id] for event_id in begun - settled]
    assert unsaid.count("worker_lost") >= len(unsaid) - 6
    assert len(unsaid) >= 6 * 20
    # At most one more for each worker: written, and killed before it could say so.
    assert len(stored.keys() - begun) <= 6
    assert list(tmp_path.glob("*.spool")) == []
