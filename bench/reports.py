"""Reports over a large ledger: how long they take out of the sums, and whether the sums are the rows.

    python -m bench.reports [--rows 2000000] [--rounds 5]

Fills a new embedded PostgreSQL, with the project's own schema and triggers, by COPY: 30 days, 20 teams of 3 projects,
12 models, 8 endpoints, each drawn by itself (the worst case for sums: no team keeps to a model). 3 % of the requests
are tried twice, 1 % of the attempts have no price, 0.5 % a correction. Prints a table, and one JSON object as the last
line. Best and median of the rounds: other work on the machine only ever makes a round slower.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from rich.progress import Progress

from gateway.store.database import Database
from gateway.store.hours import differences
from gateway.store.migrate import migrate
from gateway.store.usage import Source, usage_of
from gateway.store.usage_query import Question

MIGRATIONS = Path(__file__).parents[1] / "migrations"
START = datetime(2026, 10, 1, tzinfo=UTC)
DAYS = 30
BATCH = 50_000
COLUMNS = (
    *(
        "event_id",
        "request_id",
        "attempt",
        "started_at",
        "ended_at",
        "team",
        "project",
        "key_id",
        "cost_center",
        "route",
    ),
    *("policy", "policy_version", "domain", "endpoint", "provider", "model", "upstream_model", "region", "status"),
    *("error_type", "stream", "ttft_ms", "duration_ms", "input_tokens", "cache_read_tokens", "cache_write_5m_tokens"),
    *("cache_write_1h_tokens", "input_audio_tokens", "input_image_tokens", "output_tokens", "reasoning_tokens"),
    *("output_audio_tokens", "usage_source", "price_status", "cost_usd", "max_cost_usd", "prices"),
)
QUESTIONS = {
    "team, model": Question(by=("team", "model")),
    "team, model of 7.5 days": Question(
        by=("team", "model"), since=START + timedelta(days=3, minutes=17), until=START + timedelta(days=10, hours=12)
    ),
    "team, model, day": Question(by=("team", "model", "day")),
    "endpoint, day in Berlin": Question(by=("endpoint", "day"), zone="Europe/Berlin"),
}


def lines(count: int, draw: random.Random) -> Iterator[str]:
    """Rows for COPY, in the order of time."""
    step, made, number = timedelta(days=DAYS) / count, 0, 0
    while made < count:
        number += 1
        team, model = draw.randrange(20), draw.randrange(12)
        for attempt in (1, 2) if draw.random() < 0.03 and made + 1 < count else (1,):
            at = (START + step * made).isoformat()
            endpoint = draw.randrange(8)
            failed = attempt == 1 and draw.random() < 0.02
            unpriced = draw.random() < 0.01
            made += 1
            fields = (
                *(f"{made:032x}", f"req_{number}", attempt, at, at, f"team-{team}", f"project-{model % 3}"),
                *(f"key-{team}", f"CC-{team % 5}", "route-1", "cheap", "0123456789ab", "\\N", f"endpoint-{endpoint}"),
                *(f"provider-{endpoint % 4}", f"model-{model}", f"model-{model}", "eu"),
                *(("error", "status_500") if failed else ("ok", "\\N")),
                *("t", round(draw.random() * 900, 3), round(draw.random() * 9000, 3)),
                *(draw.randrange(9000), draw.randrange(2000), 0, 0, 0, 0, draw.randrange(900), 0, 0),
                *("reported", "unpriced" if unpriced else "priced"),
                *(("\\N", "0.01") if unpriced else (f"0.{draw.randrange(10**9):012}", "\\N")),
                '{"input":"0.15","output":"0.60"}',
            )
            yield "\t".join(map(str, fields)) + "\n"


def fill(connection: psycopg.Connection[tuple[object, ...]], count: int) -> float:
    """Seconds that PostgreSQL took: COPY, indexes, triggers, commits."""
    statement = f"COPY usage_events ({', '.join(COLUMNS)}) FROM STDIN"
    source, seconds = lines(count, random.Random(1)), 0.0
    with Progress(transient=True) as progress:
        task = progress.add_task("filling the ledger", total=count)
        for done in range(0, count, BATCH):
            text = "".join(line for line, _ in zip(source, range(min(BATCH, count - done)), strict=False))
            begin = time.perf_counter()
            with connection.cursor().copy(statement) as copy:
                copy.write(text)
            connection.commit()
            seconds += time.perf_counter() - begin
            progress.update(task, completed=done + BATCH)
    return seconds


def correct(connection: psycopg.Connection[tuple[object, ...]]) -> int:
    """Corrections of one attempt in 200: the unpriced ones get a price."""
    names = "organisation, team, project, key_id, cost_center, route, policy, domain, endpoint, provider, model"
    names += ", upstream_model, region, service_tier, status, usage_source, price_status"
    done = connection.execute(f"""
        INSERT INTO corrections (correction_id, event_id, booked_at, kind, reason, author, amount_usd, is_first_price,
                                 {names})
        SELECT gen_random_uuid(), event_id, booked_at, 'price', 'a better price', 'bench', 0.000123,
               cost_usd IS NULL, {names}
        FROM usage_events WHERE hashtext(event_id::text) % 200 = 0
    """).rowcount  # fmt: skip
    connection.commit()
    return done


def timed(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Best and median, in milliseconds."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        found.append((time.perf_counter() - begin) * 1000)
    return min(found), statistics.median(found)


def measure(count: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="hatchway-bench-") as folder, Database.open(None, Path(folder)) as database:
        migrate(database, MIGRATIONS)
        with database.connect() as connection:
            seconds = fill(connection, count)
            corrected = correct(connection)
            connection.autocommit = True
            connection.execute("VACUUM ANALYZE")  # as autovacuum would have done by the end of the month
            counted = connection.execute(
                "SELECT (SELECT count(*) FROM usage_events), (SELECT count(*) FROM usage_hours),"
                " (SELECT count(*) FROM usage_days)"
            ).fetchone()
        assert counted is not None
        begin = time.perf_counter()
        wrong = len(differences(database.engine))
        compared = time.perf_counter() - begin
        times: dict[str, object] = {}
        for name, question in QUESTIONS.items():
            ways: dict[str, object] = {}
            answers = []
            sources: tuple[tuple[str, Source | None], ...] = (("sums", None), ("rows", "rows"))
            for way, source in sources:
                answers.append(usage_of(database.engine, question, source=source))  # and warms the cache up
                best, median = timed(
                    lambda question=question, source=source: usage_of(database.engine, question, source=source),
                    rounds if source is None else 1,
                )
                ways[way] = {"best_ms": round(best, 1), "median_ms": round(median, 1)}
            times[name] = {**ways, "same_to_the_last_digit": answers[0] == answers[1]}
    rows, hours, days = counted
    return {
        "rows": rows,
        "corrections": corrected,
        "hour_groups": hours,
        "day_groups": days,
        "rows_per_second_filled": round(count / seconds),
        "differences": wrong,
        "compared_s": round(compared, 1),
        "reports": times,
        "load": [round(value, 2) for value in os.getloadavg()],
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = measure(arguments.rows, arguments.rounds)
    print(f"{found['rows']:,} attempts in {found['hour_groups']:,} groups of hours, {found['day_groups']:,} of days")
    print(f"{found['differences']} differences between sums and rows")
    reports = found["reports"]
    assert isinstance(reports, dict)
    print(f"{'report by':<28}{'sums ms':>10}{'rows ms':>10}")
    for name, ways in reports.items():
        print(f"{name:<28}{ways['sums']['median_ms']:>10,.0f}{ways['rows']['median_ms']:>10,.0f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
