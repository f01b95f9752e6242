from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger.record import (
    DROPPED,
    MAX_LINE,
    MAX_RECORD,
    BadRecord,
    End,
    read_end,
    read_event,
    read_event_id,
    read_line,
    write_begun,
    write_end,
    write_line,
    write_settled,
)
from gateway.types import Usage, UsageEvent
from tests.ledger.conftest import event_line


def as_values(event: UsageEvent) -> dict[str, Any]:
    """The event with its JSON parsed: line breaks between tokens of a spliced value do not count."""
    fields = msgspec.structs.asdict(event)
    for name in ("prices", "raw_usage"):
        fields[name] = None if fields[name] is None else json.loads(bytes(fields[name]))
    return fields


@given(data=st.data())
def test_a_line_gives_back_the_event(any_event: st.SearchStrategy[UsageEvent], data: st.DataObject) -> None:
    event = data.draw(any_event)
    line = event_line("E", 12, event)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    read = read_line(line)
    assert (read.kind, read.number) == ("E", 12)
    assert as_values(read_event(read.json)) == as_values(event)
    assert read_event_id(read.json) == event.event_id


@given(data=st.data())
def test_what_began_is_a_row_of_a_lost_worker(any_event: st.SearchStrategy[UsageEvent], data: st.DataObject) -> None:
    event = data.draw(any_event)
    read = read_line(event_line("S", 3, event))
    assert (read.kind, read_event_id(read.json)) == ("S", event.event_id)
    lost = {
        **dict(ended_at=event.started_at, status="error", error_type="worker_lost", ttft_ms=None, duration_ms=0.0),
        **dict(usage=Usage(), usage_source="none", price_status="unpriced", cost_usd=None, prices=None),
        **dict(catalog_version=None, service_tier=None, raw_usage=None),
    }
    assert as_values(read_event(read.json)) == {**as_values(event), **lost}


@given(data=st.data())
def test_the_older_versions_of_a_record_are_read(any_event: st.SearchStrategy[UsageEvent], data: st.DataObject) -> None:
    event = data.draw(any_event)
    old = msgspec.json.encode(event)  # an object with names
    assert as_values(read_event(old)) == as_values(event)
    assert read_event_id(old) == event.event_id


@pytest.mark.parametrize("json", [b"[]", b"[[]]", b"[1]", b"{}", b'[["a"],null]', b"null", b'[["a\\u0000'])
def test_what_is_no_event_is_a_bad_record(json: bytes) -> None:
    with pytest.raises(BadRecord):
        read_event(json)


def test_a_record_with_a_value_more_or_less_is_a_bad_one(new_event: Callable[..., UsageEvent]) -> None:
    for whole in map(json.loads, (write_begun(new_event()), write_settled(new_event()))):
        for row, *rest in ([[*whole[0], None], *whole[1:]], [whole[0][:-1], *whole[1:]], [*whole, None], whole[:-1]):
            with pytest.raises(BadRecord):
                read_event(json.dumps([row, *rest]).encode())


def test_decimals_are_strings_and_times_are_utc(new_event: Callable[..., UsageEvent]) -> None:
    event = new_event(
        cost_usd=Decimal("0.10"),
        started_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        prices=msgspec.Raw(b'{"input":"0.150"}'),
    )
    line = event_line("E", 1, event)
    assert b'"unpriced","0.10",null],{"input":"0.150"},null,null]' in line
    assert b'"req_1",1,"2026-01-02T03:04:05.000006Z"' in line


def test_a_pretty_printed_value_stays_in_one_line(new_event: Callable[..., UsageEvent]) -> None:
    line = event_line("E", 7, new_event(raw_usage=msgspec.Raw(b'{\n  "total": 3\n}')))
    assert line.count(b"\n") == 1
    assert as_values(read_event(read_line(line).json))["raw_usage"] == {"total": 3}


def test_every_changed_byte_is_noticed(new_event: Callable[..., UsageEvent]) -> None:
    line = event_line("S", 1, new_event())
    for position in range(len(line)):
        for change in (0x01, 0x80):
            damaged = bytearray(line)
            damaged[position] ^= change
            with pytest.raises(BadRecord):
                read_event(read_line(bytes(damaged)).json)
    for end in range(len(line)):
        with pytest.raises(BadRecord):
            read_line(line[:end])


@pytest.mark.parametrize("raw", [b"", b"{broken", b'"a\nb"', b"1 2"])
def test_raw_usage_that_is_not_json_costs_only_itself(new_event: Callable[..., UsageEvent], raw: bytes) -> None:
    event = read_event(read_line(event_line("E", 7, new_event(raw_usage=msgspec.Raw(raw), tags={"env": "prod"}))).json)
    assert event.raw_usage is None
    assert event.tags == {"env": "prod", DROPPED: "raw_usage"}


def test_text_that_is_not_unicode_is_replaced(new_event: Callable[..., UsageEvent]) -> None:
    event = read_event(read_line(event_line("E", 1, new_event(model="a\ud800b"))).json)
    assert event.model == "a?b"
    assert event.tags == {DROPPED: "model"}


def test_a_record_over_the_limit_loses_values_in_order_and_never_the_row(new_event: Callable[..., UsageEvent]) -> None:
    big = "x" * MAX_RECORD
    raw = msgspec.Raw(msgspec.json.encode(big))

    def written(**fields: Any) -> UsageEvent:
        line = event_line("E", 10**12, new_event(**fields))
        assert len(line) <= MAX_LINE
        return read_event(read_line(line).json)

    event = written(raw_usage=raw, tags={"env": "prod"})
    assert (event.raw_usage, event.tags) == (None, {"env": "prod", DROPPED: "raw_usage"})
    event = written(tags={"env": big})
    assert event.tags == {DROPPED: "raw_usage,tags"}
    event = written(model=big, tags={"env": "prod"}, prices=msgspec.Raw(b"{}"))
    assert event.model == "x" * 1024
    assert event.prices == msgspec.Raw(b"{}")
    assert event.tags == {DROPPED: "raw_usage,tags,model"}
    assert written(prices=raw).prices is None


def test_a_record_of_exactly_the_limit_is_whole(new_event: Callable[..., UsageEvent]) -> None:
    event = new_event(model="")
    event.model = "x" * (MAX_RECORD - len(write_settled(event)))
    assert as_values(read_event(read_line(event_line("E", 1, event)).json)) == as_values(event)
    event.model += "x"
    assert len(read_event(read_line(event_line("E", 1, event)).json).model) == 1024


def test_a_decision_is_one_line_and_every_changed_byte_of_it_is_noticed() -> None:
    json = b'{"request_id":"req_1",\n"at":"2026-01-02T03:04:05Z"}'
    line = write_line("D", 3, json)
    assert line.count(b"\n") == 1
    assert read_line(line) == ("D", json.replace(b"\n", b" "), 3)
    for position in range(len(line)):
        damaged = bytearray(line)
        damaged[position] ^= 1
        with pytest.raises(BadRecord):
            read_line(bytes(damaged))


def test_a_decision_cannot_pass_for_an_event(new_event: Callable[..., UsageEvent]) -> None:
    line = event_line("E", 1, new_event())
    with pytest.raises(BadRecord, match="wrong checksum"):
        read_line(line[:9] + b"D" + line[10:])


def test_a_decision_over_the_limit_is_refused() -> None:
    assert len(write_line("D", 10**18, b'"' + b"x" * (MAX_RECORD - 2) + b'"')) <= MAX_LINE
    with pytest.raises(ValueError, match="over"):
        write_line("D", 1, b'"' + b"x" * (MAX_RECORD - 1) + b'"')


def test_a_line_of_the_first_version_is_read(new_event: Callable[..., UsageEvent]) -> None:
    json = msgspec.json.encode(new_event())
    record = b"E " + json
    assert read_line(b"%08x %b\n" % (crc32(record), record)) == ("E", json, None)


def test_the_end_of_a_segment() -> None:
    read = read_line(write_end(9, 4, is_last=True))
    assert (read.kind, read.number, read_end(read.json)) == ("Z", 9, End(4, True))
    with pytest.raises(BadRecord, match="not the end"):
        read_end(b"[]")
