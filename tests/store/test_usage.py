from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Context, Decimal
from typing import Any

import pytest
from sqlalchemy import delete, insert
from sqlalchemy.exc import IntegrityError

from gateway.store.database import Database
from gateway.store.tables import usage_events
from gateway.store.usage import UsageRow, requests, totals, usage_and_totals, usage_by
from gateway.store.usage_query import GRAINS, GROUPS, SUMMED
from gateway.types import BUCKETS

Event = Callable[..., dict[str, Any]]
EXACT = Context(prec=500)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_events(database: Database) -> Iterator[None]:
    yield
    with database.engine.begin() as connection:
        connection.execute(delete(usage_events))


def add(database: Database, *rows: dict[str, Any]) -> None:
    with database.engine.begin() as connection:
        for row in rows:
            connection.execute(insert(usage_events).values(**row))


def everything(database: Database, *by: str) -> list[UsageRow]:
    return usage_by(database.engine, by=by, since=None, until=None)


def test_one_group(database: Database, usage_event: Event) -> None:
    buckets = {bucket: 10**number for number, bucket in enumerate(BUCKETS)}
    add(
        database,
        usage_event(request_id="a", **buckets, cost_usd=Decimal("0.1")),
        usage_event(request_id="b", attempt=1, status="timeout", usage_source="estimated", cost_usd=Decimal("0.2")),
        usage_event(request_id="b", attempt=2, status="cancelled"),
        usage_event(request_id="b", attempt=3, status="shed", price_status="unpriced", cost_usd=None),
    )
    (row,) = everything(database, "team")
    tokens = {**buckets, "input_tokens": 31, "output_tokens": buckets["output_tokens"] + 15}
    assert row == UsageRow(
        group={"team": "payments"},
        requests=2,
        attempts=4,
        errors=2,
        tokens=tokens,
        cost_usd=Decimal("0.3000045"),
        unpriced=1,
        estimated=1,
    )
    assert row.total_tokens == 111_111_111 + 45


def test_a_request_is_counted_once_in_the_total_though_it_was_tried_twice(
    database: Database, usage_event: Event
) -> None:
    add(database, *(usage_event(request_id="a", attempt=n + 1, endpoint=f"e{n}") for n in range(2)))
    rows, total = usage_and_totals(database.engine, by=("endpoint",), since=None, until=None)
    assert [(row.group["endpoint"], row.requests, row.attempts) for row in rows] == [("e0", 1, 1), ("e1", 1, 1)]
    assert (total.requests, total.attempts, total.group) == (1, 2, {})


@pytest.mark.parametrize(
    ("costs", "cost", "unpriced"),
    [
        ([(10, None), (10, None)], None, 2),
        ([(10, None), (10, "0.5")], "0.5", 1),
        ([(10, None), (0, "0")], None, 1),  # the failed attempt's known 0 is not the group's cost
        ([(10, None), (0, "0.01")], "0.01", 1),  # a price per request is known without tokens
        ([(10, "0"), (10, None)], "0", 1),
        ([(10, "0")], "0", 0),
        ([(0, "0")], "0", 0),
        ([(0, None)], None, 1),
    ],
)
def test_unknown_is_not_zero(
    database: Database, usage_event: Event, costs: list[tuple[int, str | None]], cost: str | None, unpriced: int
) -> None:
    for tokens, value in costs:
        known = {"price_status": "unpriced" if value is None else "priced"}
        add(database, usage_event(input_tokens=tokens, output_tokens=0, cost_usd=value and Decimal(value), **known))
    (row,) = everything(database, "team")
    assert row.cost_usd == (None if cost is None else Decimal(cost))
    assert row.unpriced == unpriced


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_token_of_any_bucket_is_use(database: Database, usage_event: Event, bucket: str) -> None:
    nothing = dict.fromkeys(BUCKETS, 0)
    add(database, usage_event(**{**nothing, bucket: 1}, price_status="unpriced", cost_usd=None))
    add(database, usage_event(**nothing, cost_usd=Decimal(0)))
    assert everything(database, "team")[0].cost_usd is None


def test_nothing_happened(database: Database) -> None:
    assert everything(database, "team") == []
    total = totals(database.engine, since=None, until=None)
    assert (total.requests, total.attempts, total.total_tokens, total.cost_usd, total.unpriced) == (0, 0, 0, 0, 0)


def test_a_day_is_utc_and_the_period_is_half_open(database: Database, usage_event: Event) -> None:
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    auckland = timezone(timedelta(hours=13))
    moments = (midnight - timedelta(microseconds=1), midnight, midnight.astimezone(auckland) + timedelta(hours=23))
    add(database, *(usage_event(started_at=moment) for moment in moments))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER ROLE postgres SET timezone = 'Pacific/Auckland'")
    database.engine.dispose()  # connections opened from here on live in Auckland
    try:
        days = [(row.group["day"], row.attempts) for row in everything(database, "day")]
        inside = usage_by(database.engine, by=("day",), since=midnight, until=midnight + timedelta(hours=23))
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER ROLE postgres RESET timezone")
        database.engine.dispose()
    assert days == [(date(2026, 3, 1), 1), (date(2026, 3, 2), 2)]
    assert [(row.group["day"], row.attempts) for row in inside] == [(date(2026, 3, 2), 1)]


def test_every_group_and_its_order(database: Database, usage_event: Event) -> None:
    checked = ("status", "usage_source", "price_status", "stream")  # which may not be anything
    columns = {name: SUMMED.get(name, name) for name in GROUPS if name not in (*GRAINS, *checked)}
    for value in ("b", "B", "a", "é"):
        add(database, usage_event(**dict.fromkeys(columns.values(), value)))
    add(database, usage_event(status="error"))
    for name in columns:
        found = [row.group[name] for row in everything(database, name)]
        default = usage_event().get(columns[name])
        assert found == [*sorted(["b", "B", "a", "é", *([default] if default else [])]), *([] if default else [None])]
    assert [row.group["status"] for row in everything(database, "status")] == ["error", "ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": ("team; DROP TABLE usage_events",)}, "cannot group by `team; DROP"),
        ({"by": ("cost_usd",)}, "hint: team, project"),
        ({"by": ("team", "team")}, "given twice"),
        ({"since": datetime(2026, 1, 1)}, "no zone"),
        ({"until": datetime(2026, 1, 1)}, "no zone"),
    ],
)
def test_bad_questions(database: Database, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        usage_by(database.engine, **{"by": ("team",), "since": None, "until": None, **arguments})


def test_sums_equal_the_rows_to_the_last_digit(database: Database, usage_event: Event) -> None:
    draw = random.Random(20260301)
    rows: list[dict[str, Any]] = []
    begun: set[str] = set()
    for number in range(3000):
        priced = draw.random() < 0.7
        cost = Decimal(draw.randrange(10 ** draw.randrange(1, 30))).scaleb(-draw.randrange(40), EXACT)
        rows.append(
            usage_event(
                request_id=(request_id := f"r{draw.randrange(1500)}"),
                attempt=number + 2 if request_id in begun else 1,
                team=draw.choice(["a", "b", "c"]),
                project=draw.choice([None, "p", "q"]),
                started_at=NOON + timedelta(hours=draw.randrange(96)),
                status=draw.choice(["ok", "error", "cancelled", "timeout", "shed"]),
                usage_source=draw.choice(["reported", "estimated", "none"]),
                price_status="priced" if priced else "unpriced",
                cost_usd=cost if priced else None,
                **{bucket: draw.choice([0, 1, 10**12, 2**60]) for bucket in BUCKETS},
            )
        )
        begun.add(request_id)
    with database.engine.begin() as connection:
        connection.execute(insert(usage_events), rows)
    since, until = NOON + timedelta(hours=7), NOON + timedelta(hours=90)
    within = [row for row in rows if since <= row["started_at"] < until]
    found, total = usage_and_totals(database.engine, by=("project", "team", "day"), since=since, until=until)
    assert len(found) == 3 * 3 * 5
    for sums in (*found, total):
        chosen = [row for row in within if all(of(row, name) == value for name, value in sums.group.items())]
        assert sums.attempts == len(chosen) > 0
        assert sums.requests == sum(row["attempt"] == 1 for row in chosen)  # each where and when it began
        assert sums.tokens == {bucket: sum(row[bucket] for row in chosen) for bucket in BUCKETS}
        assert sums.errors == sum(row["status"] in ("error", "timeout", "shed") for row in chosen)
        assert sums.estimated == sum(row["usage_source"] == "estimated" for row in chosen)
        known = [row["cost_usd"] for row in chosen if row["cost_usd"] is not None]
        assert sums.unpriced == len(chosen) - len(known)
        exact = Decimal(0)
        for cost in known:
            exact = EXACT.add(exact, cost)
        assert sums.cost_usd == exact


def of(row: dict[str, Any], name: str) -> object:
    return row["started_at"].date() if name == "day" else row[name]


def test_the_attempts_of_one_request(database: Database, usage_event: Event) -> None:
    second = usage_event(
        request_id="a",
        attempt=2,
        cost_usd=Decimal("0.000000000000000000001"),
        prices={"input": "0.15"},
        tags={"env": "prod"},
        raw_usage={"cost": 0.1, "n": 1},
        ttft_ms=12.5,
        region="eu",
    )
    first = usage_event(request_id="a", attempt=1, status="error", error_type="status_500")
    add(database, second, usage_event(request_id="b"), first)
    found = requests(database.engine, "a")
    assert [row["attempt"] for row in found] == [1, 2]
    for row, written in zip(found, (first, second), strict=True):
        assert {
            **dict.fromkeys(usage_events.c.keys()),
            **written,
            "raw_usage": row["raw_usage"],
            "booked_at": row["started_at"],
            "corrected_usd": None,
        } == row
    assert found[1]["raw_usage"] == {"cost": Decimal("0.1"), "n": 1}
    assert requests(database.engine, "c") == requests(database.engine, "a\0") == []


@pytest.mark.parametrize(
    "change",
    [
        {"attempt": 0},
        {"status": "fine"},
        {"usage_source": "guessed"},
        {"price_status": "free"},
        {"cost_usd": Decimal("-0.01")},
        {"cost_usd": Decimal("NaN")},
        {"cost_usd": Decimal("Infinity")},
        {"price_status": "unpriced"},
        *({bucket: -1} for bucket in BUCKETS),
    ],
)
def test_impossible_rows_are_refused(database: Database, usage_event: Event, change: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="violates check constraint"):
        add(database, usage_event(**change))
