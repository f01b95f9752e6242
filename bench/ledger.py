"""The ledger's costs: what a request pays for its entry, and how fast rows reach PostgreSQL.

    python -m bench.ledger [--events 20000] [--rounds 7]

Prints a table, and one JSON object as the last line. A request pays `Books.open` and `Entry.settle`, as the pipeline
calls them: the event, its id, pricing, plausibility, metrics, and two records with a decision before them; within that
`Spool.begin` and `Spool.settle`, each one `write` into the page cache of whatever disk holds the temporary folder
(TMPDIR). Shipping goes into a new embedded PostgreSQL with the project's own schema, triggers, indexes and settings
(fsync on); rows are of many teams, keys and models. Best and median of the rounds: other work on the machine only ever
makes a round slower.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.accounting.entry import Books, Context
from gateway.accounting.prices import PriceBook
from gateway.config.model import Endpoint, Provider
from gateway.config.row_book import shipped_rows
from gateway.ledger.record import write_begun, write_line, write_settled
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.store.database import Database
from gateway.store.migrate import migrate
from gateway.telemetry import Metrics
from gateway.types import Caller, Rates, Usage, UsageEvent

MIGRATIONS = Path(__file__).parents[1] / "migrations"
PRICES = msgspec.Raw(b'{"input":"0.15","output":"0.60","cache_read":"0.075"}')
RAW_USAGE = msgspec.Raw(
    b'{"prompt_tokens":2000,"completion_tokens":300,"total_tokens":2300,"prompt_tokens_details":{"cached_tokens":800}}'
)


def events(count: int) -> list[tuple[UsageEvent, UsageEvent]]:
    """Attempts as they begin and as they settle, of a typical size: of 20 teams, 100 keys and 5 models."""
    pairs = []
    for number in range(count):
        now = datetime.now(UTC)
        begun = UsageEvent(
            event_id=str(uuid.uuid4()),
            request_id=f"req_{uuid.uuid4().hex}",
            attempt=1,
            started_at=now,
            ended_at=now,
            team=f"team-{number % 20}",
            project="checkout",
            key_id=f"key_{number % 100:010}",
            cost_center="CC-104",
            route="route-1",
            policy="cheap",
            policy_version="0123456789ab",
            domain="finance",
            endpoint="gpt-mini",
            provider="openai",
            model="gpt-4o-mini",
            upstream_model=f"gpt-{number % 5}",
            region="us",
            status="error",
            error_type="worker_lost",
            stream=True,
            ttft_ms=None,
            duration_ms=0.0,
            usage=Usage(),
            usage_source="none",
            price_status="unpriced",
            cost_usd=None,
            prices=None,
            catalog_version=None,
        )
        settled = msgspec.structs.replace(
            begun,
            status="ok",
            error_type=None,
            ttft_ms=212.4,
            duration_ms=1830.25,
            usage=Usage(input_tokens=1200, cache_read_tokens=800, output_tokens=300),
            usage_source="reported",
            price_status="priced",
            cost_usd=Decimal("0.000420"),
            prices=PRICES,
            catalog_version="genai-prices 0.2.3",
            raw_usage=RAW_USAGE,
        )
        pairs.append((begun, settled))
    return pairs


def measure_spool(directory: Path, count: int, rounds: int) -> list[float]:
    """Microseconds for `begin` and `settle` together, by round: of records that are JSON already."""
    pairs = [(one.event_id, write_begun(one), write_settled(end)) for one, end in events(count)]
    seconds = []
    spool = Spool(directory, "bench")
    try:
        for _ in range(rounds):
            started = time.perf_counter()
            for event_id, begun, settled in pairs:
                spool.begin(event_id, begun)
                spool.settle(event_id, settled)
            seconds.append((time.perf_counter() - started) / count)
            spool.sync()
    finally:
        spool.close()
    return [s * 1e6 for s in seconds]


def measure_entry(directory: Path, count: int, rounds: int) -> list[float]:
    """Microseconds of CPU for `Books.open` and `Entry.settle` together, by round."""
    row = shipped_rows()["openai"]
    provider = Provider(
        id="openai", adapter="openai", row=row, dialect=row.dialect, base_url="https://api.openai.com/v1"
    )
    rates = Rates(input=Decimal("0.15"), output=Decimal("0.60"), cache_read=Decimal("0.075"))
    speaks = {"capabilities": row.capabilities, "speaks": row.speaks}
    endpoint = Endpoint(id="gpt-mini", provider=provider, model="gpt-4o-mini", region="us", rates=rates, **speaks)
    body = json.dumps(
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "how are you? " * 500}]}
    ).encode()
    context = Context(
        request_id="req_0123456789abcdef01234567",
        inbound=Inbound(CHAT_PROTOCOL, CHAT_PROTOCOL.parse(body), body),
        caller=Caller("key_0123456789", "payments", "checkout"),
        cost_center="CC-104",
        route="route-1",
        policy="cheap",
        policy_version="0123456789ab",
        domain="finance",
        organisation="acme",
    )
    decision = json.dumps({"request_id": context.request_id, "candidates": ["x" * 900]}).encode()
    usage = Usage(input_tokens=1200, cache_read_tokens=800, output_tokens=300)
    prices, most = PriceBook(), Decimal("0.0123")
    spool = Spool(directory, "bench")
    seconds = []
    try:
        books = Books(spool, Metrics(), gateway="north")
        gc.collect()
        gc.freeze()  # as a worker does when it has started
        for _ in range(rounds):
            started = time.process_time()
            for _ in range(count):
                entry = books.open(context, 1, endpoint, prices, max_cost=most, decision=decision)
                charge = entry.reported(usage, RAW_USAGE, answer=b"{}")
                entry.settle("ok", charge, ttft=0.2124, duration=1.83025)
            seconds.append((time.process_time() - started) / count)
            spool.sync()
    finally:
        spool.close()
    return [s * 1e6 for s in seconds]


class Shipping(NamedTuple):
    """One round. CPU in microseconds a row, of this process and of its server process in PostgreSQL."""

    rows_per_s: float
    cpu: float
    server_cpu: float | None  # unknown where the kernel does not tell


def measure_shipper(directory: Path, database: Database, count: int, rounds: int) -> list[Shipping]:
    connection = database.connect()
    server = Path(f"/proc/{connection.info.backend_pid}/schedstat")
    measured = []
    spool = Spool(directory, "bench")
    try:
        with Shipper(directory, lambda: connection) as shipper:  # which closes the connection
            for _ in range(rounds):
                for begun, settled in events(count):
                    spool.begin(begun.event_id, write_begun(begun))
                    spool.settle(settled.event_id, write_settled(settled))
                server_before, before, started = cpu_seconds(server), time.process_time(), time.perf_counter()
                shipped = shipper.ship_once()
                seconds, cpu = time.perf_counter() - started, time.process_time() - before
                server_after = cpu_seconds(server)
                server_cpu = None
                if server_before is not None and server_after is not None:
                    server_cpu = (server_after - server_before) / count * 1e6
                measured.append(Shipping(count / seconds, cpu / count * 1e6, server_cpu))
                assert (shipped.rows, shipped.pending_bytes) == (count, 0)
    finally:
        spool.close()
    return measured


def cpu_seconds(schedstat: Path) -> float | None:
    """CPU time of a process since it began, from the kernel's statistics of its scheduler (Linux)."""
    try:
        return int(schedstat.read_text().split()[0]) / 1e9
    except OSError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        spool = measure_spool(home / "spool", options.events, options.rounds)
        entry = measure_entry(home / "entries", options.events, options.rounds)
        with Database.open(None, home / "database") as database:
            migrate(database, MIGRATIONS)
            shipping = measure_shipper(home / "shipped", database, options.events, options.rounds)
    rates = [one.rows_per_s for one in shipping]
    server_cpu = [one.server_cpu for one in shipping if one.server_cpu is not None]
    (begun, settled), *_ = events(1)
    size = len(write_line("S", 1, write_begun(begun))) + len(write_line("E", 2, write_settled(settled)))
    result = {
        "benchmark": "ledger",
        "events": options.events,
        "rounds": options.rounds,
        "entry_cpu_us_best": round(min(entry), 2),
        "entry_cpu_us_median": round(statistics.median(entry), 2),
        "spool_us_best": round(min(spool), 2),
        "spool_us_median": round(statistics.median(spool), 2),
        "spool_bytes": size,
        "ship_rows_per_s_best": round(max(rates)),
        "ship_rows_per_s_median": round(statistics.median(rates)),
        "ship_cpu_us_per_row": round(statistics.median(one.cpu for one in shipping), 1),
        "ship_server_cpu_us_per_row": round(statistics.median(server_cpu), 1) if server_cpu else None,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
    }
    rows = [
        ("open + settle, µs of CPU", result["entry_cpu_us_best"], result["entry_cpu_us_median"]),
        ("of it begin + settle, µs", result["spool_us_best"], result["spool_us_median"]),
        ("shipped, rows/s", result["ship_rows_per_s_best"], result["ship_rows_per_s_median"]),
    ]
    print(f"{'':32}{'best':>10}{'median':>10}")
    for name, best, median in rows:
        print(f"{name:32}{best:>10}{median:>10}")
    print(f"{size} bytes of spool a request")
    print(f"CPU a row, µs: shipper {result['ship_cpu_us_per_row']}, PostgreSQL {result['ship_server_cpu_us_per_row']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
