"""Spools that somebody or something has changed: every damage is harmless, or reported; never is a row counted twice,
changed, or made up."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ledger.record import FIRST_HEADER, HEADER, SECOND_HEADER, Kind, read_line, write_line, write_settled
from gateway.ledger.rejects import Reject, read_rejects
from gateway.ledger.retry import retry
from gateway.ledger.sequence import Sequence
from gateway.ledger.shipper import Shipped, Shipper
from gateway.ledger.spool import Spool
from gateway.store.database import Database
from gateway.types import UsageEvent
from tests.ledger.conftest import begin, event_line, settle

NewEvent = Callable[..., UsageEvent]


def settled(event: UsageEvent, **fields: Any) -> UsageEvent:
    return msgspec.structs.replace(event, **{"status": "ok", "error_type": None, **fields})


def stored(database: Database) -> dict[str, tuple[str, str]]:
    with database.connect() as connection:
        rows = connection.execute("SELECT event_id::text, status, model FROM usage_events").fetchall()
    assert len({row[0] for row in rows}) == len(rows)
    return {event_id: (status, model) for event_id, status, model in rows}


def ship(directory: Path, database: Database) -> Shipped:
    with Shipper(directory, database.connect) as shipper:
        return shipper.ship_once()


def rejects(directory: Path) -> list[Reject]:
    return list(read_rejects(directory))


@pytest.fixture
def written(tmp_path: Path, new_event: NewEvent) -> tuple[Path, dict[str, str]]:
    """A closed spool of several segments, and what it says: event id -> status."""
    directory = tmp_path / "written"
    spool = Spool(directory, "w", segment_bytes=6000)
    expected: dict[str, str] = {}
    flight = []
    for number in range(14):
        flight.append(new_event(request_id=f"req_{number}", model=f"m-{number}"))
        begin(spool, flight[-1])
        if number % 3:
            done = flight.pop(0)
            settle(spool, settled(done))
            expected[done.event_id] = "ok"
    spool.close()
    expected |= {event.event_id: "error" for event in flight}
    return directory, expected


def lines_of(directory: Path) -> list[tuple[Path, list[bytes]]]:
    return [(path, path.read_bytes().splitlines(keepends=True)) for path in sorted(directory.glob("*.spool"))]


def test_what_is_whole_is_not_reported(table: Database, written: tuple[Path, dict[str, str]]) -> None:
    directory, expected = written
    shipped = ship(directory, table)
    assert (shipped.damaged, shipped.rejected, shipped.torn, shipped.unclosed) == (0, 0, 0, 0)
    assert {event_id: status for event_id, (status, _) in stored(table).items()} == expected
    assert rejects(directory) == []
    assert [path.name for path in directory.iterdir() if path.suffix != ".lock"] == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_every_damage_is_harmless_or_reported(
    table: Database, written: tuple[Path, dict[str, str]], data: st.DataObject
) -> None:
    source, expected = written
    with table.connect() as connection:
        connection.execute("TRUNCATE usage_events")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "spool"
        shutil.copytree(source, directory)
        files = lines_of(directory)
        for _ in range(data.draw(st.integers(1, 2), label="damages")):
            damage(data, files)
        for path, lines in files:
            if lines:
                path.write_bytes(b"".join(lines))
            else:
                path.unlink()
        shipped = ship(directory, table)
        found = stored(table)
        reported = rejects(directory)
    # Nothing is made up, nothing says something else than it did.
    assert found.keys() <= expected.keys()
    assert all(expected[event_id] == status for event_id, (status, _) in found.items() if status == "ok")
    changed = {event_id: status for event_id, (status, _) in found.items()} != expected
    if changed:
        left = [path.name for path, lines in files if lines and not lines[0].startswith(b"hatchway-spool 2")]
        assert reported or shipped.unclosed or left or not any(lines for _, lines in files)


def damage(data: st.DataObject, files: list[tuple[Path, list[bytes]]]) -> None:
    kind = data.draw(st.sampled_from(["cut", "remove", "repeat", "move", "flip", "drop"]), label="kind")
    chosen = [place for place, (_, lines) in enumerate(files) if lines]
    if not chosen:
        return
    place = data.draw(st.sampled_from(chosen), label="segment")
    lines = files[place][1]
    position = data.draw(st.integers(0, len(lines) - 1), label="line")
    match kind:
        case "cut":  # somewhere in a line: what follows is gone
            end = data.draw(st.integers(0, len(lines[position])), label="end")
            lines[position:] = [lines[position][:end]] if end else []
        case "remove":
            del lines[position]
        case "repeat":
            lines.insert(data.draw(st.integers(0, len(lines)), label="to"), lines[position])
        case "move":
            other = files[data.draw(st.sampled_from(chosen), label="other")][1]
            line = lines.pop(position)
            other.insert(data.draw(st.integers(0, len(other)), label="to"), line)
        case "flip":
            line = bytearray(lines[position])
            line[data.draw(st.integers(0, len(line) - 1), label="byte")] ^= data.draw(st.integers(1, 255), label="bits")
            lines[position] = bytes(line)
        case "drop":
            lines.clear()


def test_a_removed_line_is_missed_by_its_number(
    tmp_path: Path, table: Database, written: tuple[Path, dict[str, str]]
) -> None:
    directory, _ = written
    path, lines = lines_of(directory)[1]
    gone = read_line(lines.pop(2))
    path.write_bytes(b"".join(lines))
    shipped = ship(directory, table)
    assert shipped.damaged == 1
    (entry,) = rejects(directory)
    assert (entry.segment, entry.missing, entry.content) == (path.name, str(gone.number), None)
    assert entry.reason == "lines are missing before this one"


def test_several_removed_lines_are_one_report(table: Database, written: tuple[Path, dict[str, str]]) -> None:
    directory, _ = written
    path, lines = lines_of(directory)[0]
    first, last = read_line(lines[2]).number, read_line(lines[4]).number
    path.write_bytes(b"".join(lines[:2] + lines[5:]))
    ship(directory, table)
    assert [entry.missing for entry in rejects(directory)] == [f"{first}-{last}"]


def test_an_inserted_line_is_set_aside_and_not_counted(
    table: Database, written: tuple[Path, dict[str, str]], new_event: NewEvent
) -> None:
    """Its checksum is right: somebody knew how."""
    directory, expected = written
    path, lines = lines_of(directory)[0]
    forged = event_line("E", read_line(lines[1]).number or 0, settled(new_event()))
    unnumbered = b"E " + write_settled(settled(new_event()))
    path.write_bytes(b"".join([*lines[:3], forged, version_1(unnumbered), *lines[3:]]))
    shipped = ship(directory, table)
    assert set(stored(table)) == set(expected)
    assert shipped.damaged == 2
    numbered, without = rejects(directory)
    assert numbered.reason.startswith("a line with a number that another one has")
    assert without.reason == "a line without a number among numbered ones"
    assert numbered.content == forged and numbered.is_misplaced and without.is_misplaced


def test_a_line_after_the_end_is_set_aside(
    table: Database, written: tuple[Path, dict[str, str]], new_event: NewEvent
) -> None:
    directory, expected = written
    path, lines = lines_of(directory)[-1]
    number = read_line(lines[-1]).number or 0
    path.write_bytes(b"".join([*lines, event_line("E", number + 1, settled(new_event()))]))
    ship(directory, table)
    assert set(stored(table)) == set(expected)
    assert [entry.reason for entry in rejects(directory)] == ["a line after the end of its segment"]


def test_lines_that_changed_places_are_both_counted_and_reported(
    table: Database, written: tuple[Path, dict[str, str]]
) -> None:
    directory, expected = written
    path, lines = lines_of(directory)[0]
    lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))
    ship(directory, table)
    assert set(stored(table)) == set(expected)
    assert [entry.reason.partition(":")[0] for entry in rejects(directory)] == [
        "lines are missing before this one",
        "a line that comes late",
    ]


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_missing_segment_is_reported(table: Database, written: tuple[Path, dict[str, str]], place: int) -> None:
    directory, _ = written
    sorted(directory.glob("*.spool"))[place].unlink()
    shipped = ship(directory, table)
    assert shipped.damaged == 1
    (entry,) = rejects(directory)
    assert "segment" in entry.reason and "missing" in entry.reason


def test_a_spool_that_is_cut_off_is_told_from_one_that_ended(
    table: Database, written: tuple[Path, dict[str, str]]
) -> None:
    directory, expected = written
    path, lines = lines_of(directory)[-1]
    path.write_bytes(b"".join(lines[:-2]))  # between two lines: as after a crash
    shipped = ship(directory, table)
    assert (shipped.unclosed, shipped.damaged, shipped.torn) == (1, 0, 0)
    assert len(stored(table)) >= len(expected) - 1


def test_a_segment_cut_off_in_the_middle_of_the_spool_is_missed_by_the_next(
    table: Database, written: tuple[Path, dict[str, str]]
) -> None:
    directory, _ = written
    (path, lines), (follower, _), *_ = lines_of(directory)
    path.write_bytes(b"".join(lines[:-2]))
    ship(directory, table)
    (entry,) = rejects(directory)
    numbers = [read_line(line).number for line in lines[-2:]]
    assert (entry.segment, entry.missing) == (follower.name, f"{numbers[0]}-{numbers[1]}")


def test_a_restarted_shipper_knows_the_numbers(table: Database, tmp_path: Path, new_event: NewEvent) -> None:
    """Segments that were shipped and deleted are not missed, lines that go meanwhile are."""
    spool = Spool(tmp_path, "w", segment_bytes=1200)
    begin(spool, long := new_event())
    for _ in range(12):
        settle(spool, settled(new_event()))
        assert ship(tmp_path, table).damaged == 0
    names = [path.name for path in sorted(tmp_path.glob("*.spool"))]
    assert names[0].endswith("-000001.spool") and len(names) == 2 and not names[1].endswith("-000002.spool")
    settle(spool, settled(new_event()))
    settle(spool, settled(new_event()))
    newest = tmp_path / names[1]
    lines = newest.read_bytes().splitlines(keepends=True)
    newest.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    assert ship(tmp_path, table).damaged == 1
    assert rejects(tmp_path)[0].missing == str(read_line(lines[-2]).number)
    settle(spool, settled(long))
    spool.close()
    ship(tmp_path, table)
    assert list(tmp_path.glob("w-*")) == []


def version_1(record: bytes) -> bytes:
    from zlib import crc32

    return b"%08x %b\n" % (crc32(record), record)


def of_version_2(*records: tuple[Kind, bytes]) -> bytes:
    return SECOND_HEADER + b"".join(write_line(kind, number, json) for number, (kind, json) in enumerate(records, 1))


def of_version_1(*records: tuple[Kind, bytes]) -> bytes:
    return FIRST_HEADER + b"".join(version_1(b"%b %b" % (kind.encode(), json)) for kind, json in records)


@pytest.mark.parametrize("written", [of_version_1, of_version_2])
def test_a_spool_of_an_older_version_is_shipped(
    table: Database, tmp_path: Path, new_event: NewEvent, written: Callable[..., bytes]
) -> None:
    done, lost = new_event(), new_event()
    old = msgspec.json.encode  # the event as an object with names
    lines = written(
        ("S", old(done)),
        ("S", old(lost)),
        ("E", old(settled(done))),
        *(() if written is of_version_1 else [("Z", b'{"records":3,"is_last":true}')]),
    )
    (tmp_path / "w-t-1-000001.spool").write_bytes(lines)
    shipped = ship(tmp_path, table)
    assert (shipped.rows, shipped.lost, shipped.damaged, shipped.unclosed) == (2, 1, 0, 0)
    assert {status for status, _ in stored(table).values()} == {"ok", "error"}
    assert rejects(tmp_path) == []


def test_an_id_with_other_content_is_set_aside_and_the_same_is_harmless(
    table: Database, tmp_path: Path, new_event: NewEvent
) -> None:
    first, other = settled(new_event()), settled(new_event())
    twice = settled(new_event())
    (tmp_path / "w-t-1-000001.spool").write_bytes(HEADER + event_line("E", 1, first))
    assert ship(tmp_path, table).rows == 1
    changed = msgspec.structs.replace(first, model="another", duration_ms=5.0)
    events = [changed, first, other, twice, msgspec.structs.replace(twice, team="others")]
    lines = [event_line("E", number, event) for number, event in enumerate(events, 1)]
    (tmp_path / "w-t-2-000001.spool").write_bytes(HEADER + b"".join(lines))
    shipped = ship(tmp_path, table)
    assert (shipped.rows, shipped.rejected) == (2, 2)
    assert {model for _, model in stored(table).values()} == {"gpt-4o-mini"}
    one, two = rejects(tmp_path)
    assert (one.content, two.content) == (lines[0], lines[4])
    assert one.reason == "a row with this id is in the table, and differs in: model, duration_ms"
    assert two.reason == "a row with this id is in the table, and differs in: team"


def test_an_attempt_that_is_settled_in_the_table_is_not_contradicted_by_its_beginning(
    table: Database, tmp_path: Path, new_event: NewEvent
) -> None:
    """After a power cut the file may end before what was shipped from it."""
    event = new_event()
    path = tmp_path / "w-t-1-000001.spool"
    path.write_bytes(HEADER + event_line("S", 1, event) + event_line("E", 2, settled(event)))
    ship(tmp_path, table)
    path.write_bytes(HEADER + event_line("S", 1, event))
    shipped = ship(tmp_path, table)
    assert (shipped.rows, shipped.rejected) == (0, 0)
    assert stored(table)[event.event_id][0] == "ok"


def test_what_was_refused_is_tried_again(table: Database, tmp_path: Path, new_event: NewEvent) -> None:
    good, late = settled(new_event()), settled(new_event(region="no such region"))
    with table.connect() as connection:
        connection.execute("ALTER TABLE usage_events ADD CONSTRAINT mend CHECK (region <> 'no such region')")
    try:
        spool = Spool(tmp_path, "w")
        for event in (good, late):
            settle(spool, event)
        spool.close()
        assert ship(tmp_path, table).rejected == 1
        with table.connect() as connection:
            assert retry(tmp_path, connection, lambda *_: None) == (0, 0, 1)
    finally:
        with table.connect() as connection:
            connection.execute("ALTER TABLE usage_events DROP CONSTRAINT mend")
    with table.connect() as connection:
        assert retry(tmp_path, connection, lambda *_: None) == (1, 0, 0)
        assert retry(tmp_path, connection, lambda *_: None) == (0, 0, 0)
    assert set(stored(table)) == {good.event_id, late.event_id}
    assert rejects(tmp_path) == []


def test_misplaced_lines_are_tried_only_when_asked_for(table: Database, tmp_path: Path, new_event: NewEvent) -> None:
    forged = settled(new_event())
    lines = [event_line("E", 1, settled(new_event())), event_line("E", 1, forged)]
    (tmp_path / "w-t-1-000001.spool").write_bytes(HEADER + b"".join(lines))
    ship(tmp_path, table)
    with table.connect() as connection:
        assert retry(tmp_path, connection, lambda *_: None).kept == 1
        assert forged.event_id not in stored(table)
        assert retry(tmp_path, connection, lambda *_: None, misplaced=True).rows == 1
    assert forged.event_id in stored(table)


@given(st.lists(st.integers(1, 30), max_size=40))
def test_each_number_is_taken_once(numbers: list[int]) -> None:
    sequence = Sequence(1)
    taken = []
    for number in numbers:
        found = sequence.take(number)
        if found is None or not found.is_kept_out:
            taken.append(number)
        assert found is not None or number == max([0, *taken[:-1]]) + 1
    assert len(taken) == len(set(taken))
    assert set(taken) == set(numbers)


def test_prompts_are_rows(table: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w")
    at = "2026-01-02T03:04:05Z"
    head = {"request_id": "req_9", "at": at, "expires_at": at, "team": "payments", "policy": "cheap"}
    spool.keep(msgspec.json.encode({**head, "body": {"asked": 'a "b" \\'}}))
    spool.keep(write_line("E", 1, b"{}"))  # no prompt
    spool.close()
    shipped = ship(tmp_path, table)
    assert (shipped.prompts, shipped.rejected) == (1, 1)
    with table.connect() as connection:
        assert connection.execute("SELECT team, body FROM prompts").fetchall() == [("payments", {"asked": 'a "b" \\'})]
