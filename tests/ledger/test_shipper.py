from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import StoreError
from gateway.ledger.record import DROPPED, HEADER, MAX_LINE, write_line
from gateway.ledger.rows import EVENT_COLUMNS, EVENTS
from gateway.ledger.segment import saved_of
from gateway.ledger.shipper import Shipped, Shipper, ShipperBusy
from gateway.ledger.spool import Spool
from gateway.store.database import Database
from gateway.store.migrate import migrate
from gateway.types import BUCKETS, Usage, UsageEvent
from tests.ledger.conftest import begin, event_line, settle

NewEvent = Callable[..., UsageEvent]
MIGRATIONS = Path(__file__).parents[2] / "migrations"


def rows(database: Database) -> dict[str, dict[str, Any]]:
    """The table by event id."""
    with database.connect() as connection:
        cursor = connection.execute("SELECT * FROM usage_events")
        names = [column.name for column in cursor.description or ()]
        found = [dict(zip(names, row, strict=True)) for row in cursor]
    assert set(names) == {*EVENT_COLUMNS, "late_at", "booked_at"}
    for row in found:
        assert row.pop("booked_at") == (row["late_at"] or row["started_at"])
    return {str(row["event_id"]): row for row in found}


def as_row(event: UsageEvent) -> dict[str, Any]:
    """What the table should hold for `event`."""
    row = msgspec.structs.asdict(event)
    usage = row.pop("usage")
    for name in ("prices", "raw_usage"):
        row[name] = None if row[name] is None else json.loads(bytes(row[name]))
    return {**row, **{bucket: getattr(usage, bucket) for bucket in BUCKETS}}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "event_id": str(row["event_id"])}


def rejects(directory: Path) -> list[dict[str, Any]]:
    files = sorted(directory.glob("rejected/*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_bytes().splitlines()]


def settled(event: UsageEvent, **fields: Any) -> UsageEvent:
    values: dict[str, Any] = {"status": "ok", "error_type": None, "usage": Usage(input_tokens=7, output_tokens=5)}
    return msgspec.structs.replace(event, **{**values, **fields})


def segment_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


@pytest.fixture
def shipper(tmp_path: Path, table: Database) -> Iterator[Shipper]:
    with Shipper(tmp_path, table.connect) as opened:
        yield opened


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path, "w")
    yield opened
    opened.close()


@pytest.fixture
def cluster() -> Iterator[Path]:
    """A folder for a PostgreSQL of the test's own; see `server`."""
    with tempfile.TemporaryDirectory(prefix="hatchway-test-") as directory:
        yield Path(directory)


def test_nothing_to_ship(shipper: Shipper) -> None:
    assert shipper.ship_once() == Shipped()


def test_a_settled_attempt_is_one_row(table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent) -> None:
    event = new_event()
    begin(spool, event)
    end = settled(event)
    settle(spool, end)
    first = shipper.ship_once()
    assert (first.rows, first.pending_bytes, first.rejected, first.lost) == (1, 0, 0, 0)
    assert first.bytes == len(event_line("S", 1, event)) + len(event_line("E", 2, end))
    assert [shown(row) for row in rows(table).values()] == [as_row(end)]
    assert shipper.ship_once() == Shipped()
    assert spool.pending_bytes == 0


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_rows_equal_events_field_by_field(
    table: Database, spool: Spool, shipper: Shipper, any_event: st.SearchStrategy[UsageEvent], data: st.DataObject
) -> None:
    events = data.draw(st.lists(any_event, min_size=1, max_size=10, unique_by=lambda event: event.event_id))
    with table.connect() as connection:
        connection.execute("TRUNCATE usage_events")
    for event in events:
        settle(spool, event)
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.rejected, shipped.mended) == (len(events), 0, 0)
    stored = rows(table)
    for event in events:
        row = shown(stored.pop(event.event_id))
        assert row == as_row(event)
        if event.cost_usd is not None:
            assert format(row["cost_usd"], "f") == format(event.cost_usd, "f")  # to the last digit, trailing zeros too
    assert stored == {}


def test_times_without_a_zone_are_utc(table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent) -> None:
    settle(spool, new_event(started_at=datetime(2026, 1, 2, 3, 4, 5)))
    shipper.ship_once()
    (row,) = rows(table).values()
    assert row["started_at"].isoformat() == "2026-01-02T03:04:05+00:00"


def test_an_attempt_in_flight_waits_for_its_worker(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    waiting, event = new_event(), new_event()
    begin(spool, waiting)
    begin(spool, event)
    settle(spool, settled(event))
    assert shipper.ship_once().rows == 1
    assert list(rows(table)) == [event.event_id]
    (path,) = segment_files(tmp_path)
    assert saved_of(path) == (len(HEADER), 1)  # a restart begins at the attempt in flight
    settle(spool, settled(waiting))
    assert shipper.ship_once().rows == 1
    assert rows(table)[waiting.event_id]["status"] == "ok"
    assert saved_of(path) == (path.stat().st_size, 5)


def test_a_dead_workers_attempt_is_shipped_as_it_began_and_its_files_go(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    lost, event = new_event(), new_event()
    begin(spool, lost)
    begin(spool, event)
    settle(spool, settled(event))
    shipper.ship_once()
    spool.close()
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.lost, shipped.pending_bytes) == (1, 1, 0)
    assert shown(rows(table)[lost.event_id]) == as_row(lost)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shipper.lock"]


def test_an_attempt_that_settles_in_a_later_segment(
    tmp_path: Path, table: Database, shipper: Shipper, new_event: NewEvent
) -> None:
    spool = Spool(tmp_path, "w", segment_bytes=1100)
    long, lost = new_event(), new_event()
    begin(spool, long)
    others = [new_event() for _ in range(8)]
    for event in others:
        settle(spool, settled(event))
    begin(spool, lost)
    shipper.ship_once()
    first, *rest = segment_files(tmp_path)
    assert first.name.endswith("-000001.spool")  # still needed: `long` began there
    assert len(rest) == 1 and rest[0].name > first.name.replace("-000001.", "-000002.")  # those between are gone
    settle(spool, settled(long))
    spool.close()
    assert shipper.ship_once().lost == 1
    stored = rows(table)
    assert stored[long.event_id]["status"] == "ok"
    assert stored[lost.event_id]["error_type"] == "worker_lost"
    assert len(stored) == 10
    assert segment_files(tmp_path) == []


def test_a_restarted_shipper_remembers_attempts_in_flight(
    tmp_path: Path, table: Database, spool: Spool, new_event: NewEvent
) -> None:
    lost, kept = new_event(), new_event()
    begin(spool, lost)
    begin(spool, kept)
    for _ in range(5):
        settle(spool, settled(new_event()))
        with Shipper(tmp_path, table.connect) as shipper:
            shipper.ship_once()
    settle(spool, settled(kept))
    spool.close()
    with Shipper(tmp_path, table.connect) as shipper:
        assert shipper.ship_once().lost == 1
    stored = rows(table)
    assert len(stored) == 7
    assert [stored[event.event_id]["status"] for event in (lost, kept)] == ["error", "ok"]


def test_two_workers(tmp_path: Path, table: Database, shipper: Shipper, new_event: NewEvent) -> None:
    spools = [Spool(tmp_path, "w"), Spool(tmp_path, "w-2")]
    begun = [new_event() for _ in spools]
    for spool, event in zip(spools, begun, strict=True):
        begin(spool, event)
        for _ in range(3):
            settle(spool, settled(new_event()))
    spools[0].close()
    assert shipper.ship_once().lost == 1  # of the dead one alone
    assert len(rows(table)) == 7
    settle(spools[1], settled(begun[1]))
    spools[1].close()
    assert shipper.ship_once().lost == 0
    assert {event.event_id: rows(table)[event.event_id]["status"] for event in begun} == {
        begun[0].event_id: "error",
        begun[1].event_id: "ok",
    }
    assert segment_files(tmp_path) == []


def test_batches_are_bounded_in_rows_and_bytes(
    tmp_path: Path, table: Database, spool: Spool, new_event: NewEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    insert = EVENTS.insert

    def counted(connection: Any, events: Any) -> Any:
        sizes.append(len(events))
        return insert(connection, events)

    monkeypatch.setattr(EVENTS, "insert", counted)
    size = len(event_line("E", 1, new_event()))
    for _ in range(25):
        settle(spool, new_event())
    with Shipper(tmp_path, table.connect, batch_rows=10) as shipper:
        assert shipper.ship_once().rows == 25
    assert sizes == [10, 10, 5]
    sizes.clear()
    for _ in range(7):
        settle(spool, new_event())
    with Shipper(tmp_path, table.connect, batch_bytes=3 * size - 10) as shipper:
        assert shipper.ship_once().rows == 7
    assert sizes == [3, 3, 1]


def test_one_shipper_for_a_directory(tmp_path: Path, table: Database, shipper: Shipper) -> None:
    shipper.ship_once()
    second = Shipper(tmp_path, table.connect)
    with pytest.raises(ShipperBusy, match="hint:"):
        second.ship_once()
    shipper.close()
    assert second.ship_once() == Shipped()
    second.close()


def test_threads_take_turns(tmp_path: Path, table: Database, spool: Spool, new_event: NewEvent) -> None:
    arrived, go = threading.Event(), threading.Event()
    connections = 0

    def connect() -> Any:
        nonlocal connections
        connections += 1
        arrived.set()
        assert go.wait(30)
        return table.connect()

    for _ in range(50):
        settle(spool, new_event())
    shipped: list[Shipped] = []
    shipper = Shipper(tmp_path, connect, batch_rows=5)
    threads = [threading.Thread(target=lambda: shipped.append(shipper.ship_once())) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert arrived.wait(30)
    threads[2].join(0.2)  # time for the others to do harm
    go.set()
    for thread in threads:
        thread.join()
    shipper.close()
    assert connections == 1
    assert sorted(one.rows for one in shipped) == [0, 0, 50]


class Crash(BaseException):
    """The shipper dies."""


@pytest.mark.parametrize("seed", range(3))
def test_exactly_once_through_crashes_between_commit_and_offset(
    tmp_path: Path, table: Database, new_event: NewEvent, seed: int
) -> None:
    class Dying(Shipper):
        saves = 0

        def _save_offsets(self) -> None:
            Dying.saves += 1
            if Dying.saves % 3 != seed and Dying.saves < 40:
                raise Crash
            super()._save_offsets()

    spool = Spool(tmp_path, "w", segment_bytes=8192)
    expected: dict[str, str] = {}
    flight: list[UsageEvent] = []
    crashes = 0
    for n in range(60):
        event = new_event()
        begin(spool, event)
        flight.append(event)
        if n % 3:
            done = flight.pop(0)
            settle(spool, settled(done))
            expected[done.event_id] = "ok"
        if n % 5 == 0:
            with Dying(tmp_path, table.connect, batch_rows=4) as shipper:
                try:
                    shipper.ship_once()
                except Crash:
                    crashes += 1
    spool.close()
    while segment_files(tmp_path):
        with Dying(tmp_path, table.connect, batch_rows=4) as shipper:
            try:
                shipper.ship_once()
            except Crash:
                crashes += 1
    expected |= {event.event_id: "error" for event in flight}
    assert crashes > 10
    assert {event_id: row["status"] for event_id, row in rows(table).items()} == expected
    assert rejects(tmp_path) == []


def test_a_torn_tail_at_every_byte(tmp_path: Path, table: Database, shipper: Shipper, new_event: NewEvent) -> None:
    template = new_event()
    length = len(event_line("E", 4, settled(template)))
    expected: dict[str, str] = {}
    for cut in range(length + 1):  # each in a worker of its own
        event, last = (new_event(started_at=template.started_at, ended_at=template.ended_at) for _ in range(2))
        line = event_line("E", 4, settled(last))
        assert len(line) == length
        whole = event_line("S", 1, event) + event_line("E", 2, settled(event)) + event_line("S", 3, last)
        (tmp_path / f"w-20260101T000000.000000Z-{cut + 1}-000001.spool").write_bytes(HEADER + whole + line[:cut])
        expected[event.event_id] = "ok"
        expected[last.event_id] = "ok" if cut == length else "error"
    shipped = shipper.ship_once()
    assert {event_id: row["status"] for event_id, row in rows(table).items()} == expected
    assert (shipped.rows, shipped.lost, shipped.torn, shipped.rejected) == (2 * (length + 1), length, length - 1, 0)
    assert len(rejects(tmp_path)) == length - 1
    assert segment_files(tmp_path) == []


def test_a_last_line_with_a_wrong_checksum_is_a_torn_tail(
    tmp_path: Path, table: Database, shipper: Shipper, new_event: NewEvent
) -> None:
    line = bytearray(event_line("E", 2, new_event()))
    line[30] ^= 1
    (tmp_path / "w-t-1-000001.spool").write_bytes(HEADER + event_line("E", 1, new_event()) + line)
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.torn, shipped.rejected) == (1, 1, 0)
    assert rejects(tmp_path)[0]["reason"] == "torn tail: wrong checksum"


def test_a_line_that_is_being_written_waits(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    settle(spool, new_event())
    (path,) = segment_files(tmp_path)
    line = event_line("E", 2, new_event())
    with path.open("ab", buffering=0) as file:
        file.write(line[:50])
        shipped = shipper.ship_once()
        assert (shipped.rows, shipped.torn, shipped.pending_bytes) == (1, 0, 50)
        file.write(line[50:])
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.bytes, shipped.pending_bytes) == (1, len(line), 0)


@pytest.mark.parametrize("is_alive", [True, False])
def test_corruption_in_the_middle_goes_to_rejected_and_the_rest_ships(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent, is_alive: bool
) -> None:
    events = [new_event() for _ in range(3)]
    settle(spool, events[0])
    damaged = bytearray(event_line("E", 2, new_event()))
    damaged[40] ^= 0xFF
    (path,) = segment_files(tmp_path)
    offset = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(damaged))
        file.write(b"\0" * (MAX_LINE + 100) + b"\n")  # a hole that a power cut left
    settle(spool, events[1])
    if not is_alive:
        settle(spool, events[2])
        spool.close()
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.rejected, shipped.torn) == (2 if is_alive else 3, 3, 0)
    assert set(rows(table)) == {event.event_id for event in events[: shipped.rows]}
    kept = rejects(tmp_path)
    assert (kept[0]["segment"], kept[0]["offset"], kept[0]["reason"]) == (path.name, offset, "wrong checksum")
    assert "line_base64" in kept[0]  # 0xFF makes it something that is not text
    assert [len(entry["line"]) for entry in kept[1:]] == [MAX_LINE, 101]


@pytest.mark.parametrize("head", [b"", b"hatchw\n", b"\0" * 17])
def test_a_damaged_header_costs_no_record(
    tmp_path: Path, table: Database, shipper: Shipper, new_event: NewEvent, head: bytes
) -> None:
    event = new_event()
    (tmp_path / "w-t-1-000001.spool").write_bytes(head + b"\n" + event_line("E", 1, event))
    assert shipper.ship_once().rows == 1
    assert segment_files(tmp_path) == []


def test_an_empty_segment_is_removed(tmp_path: Path, shipper: Shipper) -> None:
    (tmp_path / "w-t-1-000001.spool").touch()
    assert shipper.ship_once() == Shipped()
    assert segment_files(tmp_path) == []


def test_another_format_version_is_left_alone(
    tmp_path: Path, table: Database, shipper: Shipper, new_event: NewEvent, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w-t-1-000001.spool"
    content = b"hatchway-spool 4\n" + event_line("E", 1, new_event())
    path.write_bytes(content)
    (tmp_path / "w-t-2-000001.spool").write_bytes(HEADER + event_line("E", 1, new_event()))
    assert shipper.ship_once().rows == 1
    assert shipper.ship_once() == Shipped()
    assert path.read_bytes() == content
    assert caplog.text.count("another format version") == 1
    assert rejects(tmp_path) == []


def test_a_valid_record_that_is_no_event_is_rejected(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    settle(spool, new_event(duration_ms=float("nan")))  # JSON has no NaN
    settle(spool, new_event())
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.rejected) == (1, 1)
    assert rejects(tmp_path)[0]["reason"].startswith('null value in column "duration_ms"')


@pytest.mark.parametrize(
    "json", [b"[[1],null]", b'[["x"],null,null,null]', b"[[]", b'{"event_id":"x"}', b"[[1],1,1,1,1]"]
)
def test_what_is_no_event_keeps_back_no_other(
    tmp_path: Path, table: Database, shipper: Shipper, new_event: NewEvent, json: bytes
) -> None:
    lines = write_line("E", 1, json) + event_line("E", 2, settled(new_event()))
    (tmp_path / "w-t-1-000001.spool").write_bytes(HEADER + lines)
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.rejected, shipped.damaged) == (1, 1, 0)
    assert rejects(tmp_path)[0]["line"].encode() == write_line("E", 1, json)


# Everything that one of the formats on the way (JSON, CSV, COPY) gives a meaning.
AWKWARD = [
    "".join(map(chr, range(1, 32))) + "\x7f\u2028",
    "\\",
    '\\"',
    '"',
    "\\n",
    "\\\n",
    "\\u000a",
    "\\.",
    "a\n\\.\nb",
    "\\N",
    "null",
    "",
    " ,\t,",
    "\r\n",
]


@pytest.mark.parametrize("is_shipped_before", [False, True])
def test_awkward_texts_arrive_as_they_are(
    table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent, is_shipped_before: bool
) -> None:
    """`is_shipped_before`: one row is in the table, so the batch takes the way around it."""
    events = {}
    for text in AWKWARD:
        raw = msgspec.Raw(json.dumps({text: [text]}, indent="\t").replace("\n", "\r\n").encode())
        event = settled(new_event(), model=text, project=text, tags={text: text}, raw_usage=raw, prices=raw)
        events[event.event_id] = event
    if is_shipped_before:
        settle(spool, event)
        assert shipper.ship_once().rows == 1
    for event in events.values():
        settle(spool, event)
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.mended, shipped.rejected) == (len(events) - is_shipped_before, 0, 0)
    assert {key: shown(row) for key, row in rows(table).items()} == {key: as_row(e) for key, e in events.items()}


def test_rows_shipped_before_keep_back_no_new_ones(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    first, second, third = (settled(new_event()) for _ in range(3))
    settle(spool, first)
    assert shipper.ship_once().rows == 1
    for event in (second, first, third, second):
        settle(spool, event)
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.rejected, shipped.mended, shipped.pending_bytes) == (2, 0, 0, 0)
    stored = {key: shown(row) for key, row in rows(table).items()}
    assert stored == {event.event_id: as_row(event) for event in (first, second, third)}
    assert rejects(tmp_path) == []


@pytest.mark.parametrize("event_id", ['a"b', "a\\", 'a\\"b', ""])
def test_an_attempt_is_known_by_any_id(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent, event_id: str
) -> None:
    event = new_event(event_id=event_id)
    begin(spool, event)
    settle(spool, settled(event))
    spool.close()
    shipped = shipper.ship_once()
    assert (shipped.rejected, shipped.lost) == (1, 0)  # no UUID, and not waiting for its end
    assert segment_files(tmp_path) == []


POISON = {
    "a count beyond bigint": {"usage": Usage(input_tokens=2**63)},
    "a negative count": {"usage": Usage(output_tokens=-1)},
    "an attempt beyond integer": {"attempt": 2**31},
    "an attempt below one": {"attempt": 0},
    "not a uuid": {"event_id": "event-1"},
    "an infinite cost": {"cost_usd": Decimal("Infinity"), "price_status": "priced"},
    "a cost without a price": {"cost_usd": Decimal(1), "price_status": "unpriced"},
}


@pytest.mark.parametrize("fields", POISON.values(), ids=POISON)
def test_a_row_that_postgresql_refuses_blocks_no_other(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent, fields: dict[str, Any]
) -> None:
    good = [new_event() for _ in range(20)]
    poison = settled(new_event(), **fields)
    for event in (*good[:13], poison, *good[13:]):
        settle(spool, event)
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.rejected, shipped.mended, shipped.pending_bytes) == (20, 1, 0, 0)
    assert set(rows(table)) == {event.event_id for event in good}
    (entry,) = rejects(tmp_path)
    assert entry["line"] == event_line("E", 14, poison).decode()
    assert entry["reason"]
    assert shipper.ship_once() == Shipped()
    assert len(rejects(tmp_path)) == 1


MENDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "NUL in a name": ({"model": "gpt\0"}, {"model": "gpt\ufffd"}),
    "NUL in a tag": ({"tags": {"env": "a\0"}}, {"tags": {"env": "a\ufffd", DROPPED: "raw_usage"}}),
    "NUL in raw usage": ({"raw_usage": msgspec.Raw(b'{"a":"\\u0000"}')}, {"raw_usage": None}),
    "raw usage that is not UTF-8": ({"raw_usage": msgspec.Raw(b'"\xff"')}, {"raw_usage": None}),
    "a number beyond jsonb": ({"raw_usage": msgspec.Raw(b"1e999999")}, {"raw_usage": None}),
    "too long for its index": (
        {"request_id": "".join(chr(0x4E00 + (n * 7919) % 20000) for n in range(9000))},
        {"request_id": "".join(chr(0x4E00 + (n * 7919) % 20000) for n in range(600))},
    ),
}


@pytest.mark.parametrize(("fields", "stored"), MENDED.values(), ids=MENDED)
def test_values_from_outside_do_not_make_a_request_free(
    tmp_path: Path,
    table: Database,
    spool: Spool,
    shipper: Shipper,
    new_event: NewEvent,
    fields: dict[str, Any],
    stored: dict[str, Any],
) -> None:
    good, bad = new_event(), settled(new_event(), cost_usd=Decimal("1.5"), price_status="priced", **fields)
    settle(spool, bad)
    settle(spool, good)
    shipped = shipper.ship_once()
    assert (shipped.rows, shipped.rejected, shipped.mended) == (2, 0, 1)
    row = rows(table)[bad.event_id]
    assert (row["cost_usd"], row["input_tokens"]) == (Decimal("1.5"), 7)
    assert {name: row[name] for name in stored} == stored
    assert row["tags"][DROPPED].startswith("raw_usage")
    (entry,) = rejects(tmp_path)  # the original is kept
    assert entry["is_mended"] is True


def test_postgresql_down_then_up(tmp_path: Path, new_event: NewEvent, cluster: Path) -> None:
    spool_dir = tmp_path / "spool"
    spool = Spool(spool_dir, "w")
    events = [new_event() for _ in range(30)]

    with Database.open(None, cluster) as server:
        migrate(server, MIGRATIONS)
        url = server.url.reveal()
        shipper = Shipper(spool_dir, lambda: psycopg.connect(url, connect_timeout=5))
        for event in events[:10]:
            settle(spool, event)
        assert shipper.ship_once().rows == 10
    for event in events[10:20]:
        settle(spool, event)
    pending = shipper.pending_bytes
    for _ in range(2):
        with pytest.raises(StoreError, match="hint:"):
            shipper.ship_once()
    assert shipper.pending_bytes == pending > 0
    for event in events[20:]:
        settle(spool, event)
    with Database.open(None, cluster) as server:
        assert shipper.ship_once().rows == 20
        assert set(rows(server)) == {event.event_id for event in events}
        shipper.close()
    spool.close()


def test_a_lost_connection_is_opened_anew(table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent) -> None:
    settle(spool, new_event())
    shipper.ship_once()
    settle(spool, new_event())
    with table.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(StoreError):
        shipper.ship_once()
    assert shipper.ship_once().rows == 1
    assert len(rows(table)) == 2


def test_a_missing_table_loses_nothing(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    settle(spool, new_event())
    with table.connect() as connection:
        connection.execute("ALTER TABLE usage_events RENAME TO hidden")
    with pytest.raises(StoreError, match="usage_events"):
        shipper.ship_once()
    with table.connect() as connection:
        connection.execute("ALTER TABLE hidden RENAME TO usage_events")
    assert rejects(tmp_path) == []
    assert shipper.ship_once().rows == 1


def test_rejected_rows_are_on_disk_before_the_offset_moves(
    tmp_path: Path, table: Database, spool: Spool, new_event: NewEvent
) -> None:
    class Dying(Shipper):
        def _save_offsets(self) -> None:
            assert len(rejects(tmp_path)) == 1
            raise Crash

    settle(spool, new_event(attempt=0))
    with Dying(tmp_path, table.connect) as shipper, pytest.raises(Crash):
        shipper.ship_once()


def test_news_is_what_was_written_since(
    tmp_path: Path, table: Database, spool: Spool, shipper: Shipper, new_event: NewEvent
) -> None:
    assert shipper.has_news  # nobody has looked yet
    settle(spool, settled(new_event()))
    shipper.ship_once()
    shipper.ship_once()  # the first one saved its offsets, which changed the directory
    assert not shipper.has_news
    settle(spool, settled(new_event()))
    assert shipper.has_news
    shipper.ship_once()
    shipper.ship_once()
    assert not shipper.has_news
    other = Spool(tmp_path, "other")
    assert shipper.has_news
    shipper.ship_once()
    other.close()  # with a line that says so
    assert shipper.has_news
