"""Sums by the hour and the day are the rows, to the last digit, whichever way a question is answered."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import delete, func, insert, select, text, update

from gateway.store.database import Database
from gateway.store.hours import MONTHS_LOCK, differences, rebuild
from gateway.store.tables import DIMENSIONS, corrections, usage_days, usage_events, usage_hours
from gateway.store.usage import UsageRow, spans_of, usage_of
from gateway.store.usage_query import GROUPS, SHARED, SUMMED, Question, Table
from gateway.types import BUCKETS

Event = Callable[..., dict[str, Any]]
EXACT = Context(prec=500)
START = datetime(2026, 3, 27, 21, 17, tzinfo=UTC)  # summer begins in Berlin two days later
HOURS = 96
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe")
NAMES = (*GROUPS, "tag:env", "tag:a'b%(c)s")


def random_rows(draw: random.Random, usage_event: Event, requests: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(requests):
        moment = START + timedelta(seconds=draw.randrange(HOURS * 3600), microseconds=draw.randrange(10**6))
        of_request = {
            "request_id": f"r{number}",
            "team": draw.choice(["a", "b", "c"]),
            "project": draw.choice([None, "p", ""]),
            "organisation": draw.choice([None, "acme"]),
            "cost_center": draw.choice([None, "CC-1"]),
            "domain": draw.choice([None, "finance"]),
            "model": draw.choice(["gpt-4o", "gpt%x", "o3"]),
            "tags": draw.choice([None, {"env": "prod"}, {"env": "test", "a'b%(c)s": "1"}, {"env": ""}]),
        }
        for attempt in range(1, draw.choice([1, 1, 1, 1, 2, 3]) + 1):
            priced = draw.random() < 0.7
            cost = Decimal(draw.randrange(10 ** draw.randrange(1, 20))).scaleb(-draw.randrange(30), EXACT)
            row = usage_event(
                **of_request,
                event_id=str(UUID(int=draw.getrandbits(128))),
                attempt=attempt,
                started_at=moment,
                endpoint=draw.choice(["e1", "e2"]),
                region=draw.choice([None, "eu"]),
                gateway=draw.choice([None, "g1"]),
                stream=draw.random() < 0.5,
                error_type=draw.choice([None, "status_500"]),
                status=draw.choice(["ok", "ok", "error", "cancelled", "timeout", "shed"]),
                usage_source=draw.choice(["reported", "estimated", "none"]),
                price_status="priced" if priced else "unpriced",
                cost_usd=cost if priced else None,
                max_cost_usd=draw.choice([None, Decimal("0.125")]),
                ttft_ms=draw.choice([None, 12.3456]),
                duration_ms=draw.random() * 5000,
                **{bucket: draw.choice([0, 0, 1, 2**60]) for bucket in BUCKETS},
            )
            rows.append(row)
            moment += timedelta(seconds=draw.choice([1, 1800]))  # often into another hour, sometimes another day
    return rows


def random_corrections(draw: random.Random, rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    made = []
    for row in draw.sample(rows, count):
        unpriced = row["cost_usd"] is None
        made.append(
            {
                "correction_id": str(UUID(int=draw.getrandbits(128))),
                "event_id": row["event_id"],
                "booked_at": row["started_at"] + timedelta(hours=draw.choice([0, 0, 30])),
                "kind": "price" if unpriced else "adjustment",
                "reason": "a better price",
                "author": "tester",
                "amount_usd": Decimal(draw.randrange(-(10**6) * (not unpriced), 10**6)).scaleb(-draw.randrange(9)),
                "is_first_price": unpriced,
                **{name: row.get(name) for name in DIMENSIONS},
            }
        )
    # And one of no attempt, such as a credit note.
    nobody = {**made[0], "correction_id": str(UUID(int=1)), "event_id": None, "is_first_price": False}
    return [*made, {**nobody, **dict.fromkeys(DIMENSIONS), "team": "a", "amount_usd": Decimal("-0.5")}]


@pytest.fixture(scope="module")
def ledger(database: Database) -> Database:
    """A ledger of random rows; `written` below has them too."""
    draw = random.Random(20260327)
    make = usage_event_maker()
    rows = random_rows(draw, make, 500)
    changes = random_corrections(draw, rows, 150)
    with database.engine.begin() as connection:
        for part in (rows[:200], rows[200:201], rows[201:]):  # the triggers see many rows, and one
            connection.execute(insert(usage_events), part)
        connection.execute(insert(corrections), changes)
    database.written = (rows, changes)  # type: ignore[attr-defined]  # the tests' own memory of it
    return database


def usage_event_maker() -> Event:
    from tests.conftest import usage_event

    maker: Event = usage_event.__wrapped__()  # type: ignore[attr-defined]  # the fixture is of a narrower scope
    return maker


def random_question(draw: random.Random) -> Question:
    def bound(hours: int) -> datetime | None:
        whole = START.replace(hour=0, minute=0) + timedelta(hours=draw.randrange(hours))
        return draw.choice([None, whole, whole + timedelta(seconds=draw.randrange(3600)), whole.replace(hour=0)])

    since, until = bound(60), bound(130)
    if since is not None and until is not None and since > until:
        since, until = until, since
    names = list(SUMMED) + ["day", "hour", "week", "month", "quarter", "year"]
    if draw.random() < 0.25:
        names = list(NAMES)
    where: dict[str, tuple[str, ...]] = {}
    if draw.random() < 0.4:
        where = draw.choice([{"model": ("gpt*",)}, {"model": ("gpt%?", "o3")}, {"project": ("",)}, {"status": ("ok",)}])
    return Question(
        by=tuple(draw.sample(names, draw.randrange(4))),
        since=since,
        until=until,
        zone=draw.choice(ZONES),
        where=where,
        team=draw.choice([None, None, "a"]),
    )


def test_sums_and_rows_give_the_same_answers(ledger: Database) -> None:
    draw, ways = random.Random(7), set()
    for _ in range(60):
        question = random_question(draw)
        with ledger.engine.connect() as connection:
            ways.update(span.table for span in spans_of(connection, question))
        assert usage_of(ledger.engine, question) == usage_of(ledger.engine, question, source="rows"), question
    assert ways == set(Table)


def test_the_answers_are_right(ledger: Database) -> None:
    """Against plain Python."""
    draw = random.Random(8)
    for _ in range(50):
        question = random_question(draw)
        rows, total = usage_of(ledger.engine, question)
        expected = reckoned(ledger, question) if question.by else {}
        assert {tuple(row.group.values()): facts(row) for row in rows} == expected, question
        assert facts(total) == reckoned(ledger, question, ungrouped=True)[()]


def facts(row: UsageRow) -> tuple[object, ...]:
    known = (row.cost_usd or Decimal(0), row.corrected_usd, row.max_cost_usd or Decimal(0))
    return (row.requests, row.attempts, row.errors, *row.tokens.values(), row.unpriced, row.estimated, *known)


def reckoned(ledger: Database, question: Question, ungrouped: bool = False) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    rows, changes = ledger.written  # type: ignore[attr-defined]  # see `ledger`
    by_id = {row["event_id"]: row for row in rows}
    found: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any] | None]]] = {}
    for row in rows:
        if chosen(question, row, row, row["started_at"]):
            group = () if ungrouped else group_of(question, row, row, row["started_at"])
            found.setdefault(group, []).append((row, None))
    for change in changes:
        row = by_id.get(change["event_id"], {})
        if chosen(question, change, row, change["booked_at"]):
            group = () if ungrouped else group_of(question, change, row, change["booked_at"])
            found.setdefault(group, []).append((row, change))
    if ungrouped:
        found.setdefault((), [])
    names = question.where if ungrouped else {*question.by, *question.where}
    is_shared = all(name in SHARED for name in names)
    return {group: summed(pairs, is_shared) for group, pairs in found.items()}


def summed(pairs: list[tuple[dict[str, Any], dict[str, Any] | None]], is_shared: bool) -> tuple[Any, ...]:
    """`is_shared`: no attempt of a request can be elsewhere, so the request counts where and when it began."""
    rows = [row for row, change in pairs if change is None]
    changes = [(row, change) for row, change in pairs if change is not None]
    unknown = [row for row in rows if row["cost_usd"] is None]
    priced = [row for row, change in changes if change["is_first_price"]]
    unpriced = max(0, len(unknown) - len(priced))
    corrected = exact(change["amount_usd"] for _, change in changes)
    bound = exact(
        [row["max_cost_usd"] or Decimal(0) for row in unknown]
        + [-(row["max_cost_usd"] or Decimal(0)) for row in priced]
    )
    return (
        len({row["request_id"] for row in rows if row["attempt"] == 1 or not is_shared}),
        len(rows),
        sum(row["status"] in ("error", "timeout", "shed") for row in rows),
        *(sum(row[bucket] for row in rows) for bucket in BUCKETS),
        unpriced,
        sum(row["usage_source"] == "estimated" for row in rows),
        EXACT.add(exact(row["cost_usd"] for row in rows if row["cost_usd"] is not None), corrected),
        corrected,
        max(bound, Decimal(0)) if unpriced else Decimal(0),
    )


def exact(values: Any) -> Decimal:
    total = Decimal(0)
    for value in values:
        total = EXACT.add(total, value)
    return total


def chosen(question: Question, own: dict[str, Any], row: dict[str, Any], moment: datetime) -> bool:
    if question.since is not None and moment < question.since:
        return False
    if question.until is not None and moment >= question.until:
        return False
    if question.team is not None and own["team"] != question.team:
        return False
    fits = {"gpt*": lambda name: name.startswith("gpt"), "gpt%?": lambda name: name == "gpt%x"}
    for name, globs in question.where.items():
        value = own.get(name) or ""
        if not any(fits[glob](value) if glob in fits else value == glob for glob in globs):
            return False
    return True


def group_of(question: Question, own: dict[str, Any], row: dict[str, Any], moment: datetime) -> tuple[Any, ...]:
    return tuple(value_of(name, own, row, moment.astimezone(ZoneInfo(question.zone))) for name in question.by)


def value_of(name: str, own: dict[str, Any], row: dict[str, Any], local: datetime) -> Any:
    day = local.date()
    match name:
        case "hour":
            past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
            return (local.astimezone(UTC) - past).astimezone(local.tzinfo)
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "quarter":
            return date(day.year, (day.month - 1) // 3 * 3 + 1, 1)
        case "year":
            return date(day.year, 1, 1)
        case "stream":
            return {True: "true", False: "false", None: None}[row.get("stream")]
    if name.startswith("tag:"):
        return (row.get("tags") or {}).get(name[4:]) or None
    return (own.get(SUMMED[name]) if name in SUMMED else row.get(name)) or None


# What is kept


def test_triggers_keep_what_the_rows_say(ledger: Database) -> None:
    assert differences(ledger.engine) == []


def test_every_digit_that_is_off_is_found_and_rebuilt(ledger: Database) -> None:
    before = kept(ledger)
    hour = next(iter(before["usage_hours"]))[0]
    with ledger.engine.begin() as connection:
        hours, days = usage_hours.c, usage_days.c
        tiny = Decimal("1E-25")
        one = select(hours.group_id).where(hours.hour == hour).order_by(hours.group_id).limit(1).scalar_subquery()
        connection.execute(
            update(usage_hours)
            .where(hours.hour == hour, hours.group_id == one)
            .values(cost_usd=hours.cost_usd + tiny, attempts=hours.attempts - 1)
        )
        last = connection.scalar(select(func.max(hours.hour)))
        connection.execute(delete(usage_hours).where(hours.hour == last))
        connection.execute(
            update(usage_days).values(team="nobody").where(days.day == connection.scalar(select(func.min(days.day))))
        )
    found = differences(ledger.engine)
    (first,) = [one for one in found if one.start == hour and one.length == "hour"]
    assert first.missing == {"cost_usd": -tiny, "attempts": 1}
    assert [one for one in found if one.start == last and one.length == "hour"]
    assert any(one.length == "day" and one.group["team"] == "nobody" for one in found)
    assert len(differences(ledger.engine, limit=2)) == 2

    told: list[tuple[str, int, int]] = []
    assert rebuild(ledger.engine, lambda *step: told.append(step)) == len(before["usage_hours"])
    assert differences(ledger.engine) == []
    assert kept(ledger) == before
    assert told[-1] == ("added up", len(told) - 1, len(told) - 1)


def kept(ledger: Database) -> dict[str, dict[tuple[Any, ...], tuple[Any, ...]]]:
    with ledger.engine.connect() as connection:
        return {
            table.name: {(row[0], row[1]): tuple(row) for row in connection.execute(select(table).order_by("group_id"))}
            for table in (usage_hours, usage_days)
        }


def test_a_rebuild_loses_no_row_that_comes_meanwhile(ledger: Database, usage_event: Event) -> None:
    """A writer holds its transaction open: the rebuild waits for it, and counts its row."""
    waiting = threading.Event()

    def run() -> None:
        waiting.set()
        rebuild(ledger.engine)

    row = usage_event(event_id=str(UUID(int=2)), request_id="late", team="meanwhile", started_at=START)
    with ledger.engine.begin() as connection:
        connection.execute(insert(usage_events), row)
        thread = threading.Thread(target=run)
        thread.start()
        waiting.wait()
        blocked = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :lock AND NOT granted")
        while not connection.scalar(blocked, {"lock": MONTHS_LOCK}):
            assert thread.is_alive()
    thread.join()
    try:
        assert differences(ledger.engine) == []
        rows, _ = usage_of(ledger.engine, Question(by=("team",), where={"team": ("meanwhile",)}))
        assert [row.attempts for row in rows] == [1]
    finally:
        with ledger.engine.begin() as connection:
            connection.execute(delete(usage_events).where(usage_events.c.team == "meanwhile"))


# From where an answer is read


@pytest.mark.parametrize(
    ("question", "tables"),
    [
        (Question(by=("team",)), [Table.DAYS]),
        (Question(by=("team", "day", "month")), [Table.DAYS]),
        (Question(by=("hour",)), [Table.HOURS]),
        (Question(by=("day",), zone="Europe/Berlin"), [Table.HOURS]),
        (Question(by=("team",), zone="Asia/Kolkata"), [Table.DAYS]),
        (Question(by=("day",), zone="Asia/Kolkata"), [Table.ROWS]),
        (Question(by=("week",), zone="Australia/Adelaide"), [Table.ROWS]),
        (Question(by=("tag:env",)), [Table.ROWS]),
        (Question(where={"error_type": ("*",)}), [Table.ROWS]),
        (
            Question(since=START, until=START + timedelta(days=3)),
            [Table.ROWS, Table.HOURS, Table.DAYS, Table.HOURS, Table.ROWS],
        ),
        (Question(since=START, until=START + timedelta(minutes=2)), [Table.ROWS]),
        (Question(since=START.replace(minute=0), until=START.replace(hour=23, minute=0)), [Table.HOURS]),
        (Question(since=datetime(9999, 12, 31, 23, 30, tzinfo=UTC)), [Table.ROWS]),
    ],
)
def test_sources(ledger: Database, question: Question, tables: list[Table]) -> None:
    with ledger.engine.connect() as connection:
        spans = spans_of(connection, question)
    assert [span.table for span in spans] == tables
    assert (spans[0].since, spans[-1].until) == (question.since, question.until)
    assert all(one.until == other.since for one, other in zip(spans, spans[1:], strict=False))
