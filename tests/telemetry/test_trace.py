"""What is sampled and kept, and which headers come in and go out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.config.export import Telemetry
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import MAX_RECORDS, RequestRecord
from gateway.telemetry.trace import MAX_BAGGAGE, Tracer, attempt_span

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ALL = frozenset({"traceparent", "tracestate", "baggage"})


def tracer_with(*, workers: int = 1, **settings: Any) -> Tracer:
    tracer = Tracer(Metrics())
    tracer.configure(Telemetry(traces_url="http://127.0.0.1:9/v1/traces", **settings), workers)
    return tracer


def parent(flags: str = "01", version: str = "00", rest: str = "") -> dict[bytes, bytes]:
    return {b"traceparent": f"{version}-{TRACE}-{PARENT}-{flags}{rest}".encode()}


def record(number: int = 0) -> RequestRecord:
    return RequestRecord(
        TRACE, 1, 0, "", f"req_{number}", "chat", 200, None, 1, 2, None,
        "t", None, "k", "m", False, "r", "p", "v", None, {}, (),
    )  # fmt: skip


def test_without_export_and_without_a_parent_there_is_no_trace() -> None:
    assert Tracer(Metrics()).begin({}) is None


def test_without_export_the_clients_trace_passes_unchanged() -> None:
    trace = Tracer(Metrics()).begin(parent("03") | {b"tracestate": b"a=1,b=2", b"baggage": b"user=7"})
    assert trace is not None and not trace.is_recorded
    assert trace.header_lines(1, frozenset({"traceparent"})) == f"traceparent: 00-{TRACE}-{PARENT}-03\r\n".encode()
    assert trace.header_lines(1, frozenset()) == b""
    assert trace.header_lines(1, ALL).endswith(b"-03\r\ntracestate: a=1,b=2\r\nbaggage: user=7\r\n")


def test_with_export_the_upstream_s_parent_is_the_span_of_its_attempt() -> None:
    trace = tracer_with().begin(parent())
    assert trace is not None and trace.is_recorded
    assert (f"{trace.trace_id:032x}", f"{trace.parent_id:016x}") == (TRACE, PARENT)
    lines = [trace.header_lines(number, ALL).decode() for number in (1, 2)]
    spans = [f"{attempt_span(trace.span_id, number):016x}" for number in (1, 2)]
    assert lines == [f"traceparent: 00-{TRACE}-{span}-01\r\n" for span in spans]
    assert len({*spans, PARENT, f"{trace.span_id:016x}"}) == 4


def test_span_ids_of_attempts_are_never_zero() -> None:
    assert attempt_span((1 << 64) - 1, 1) == 1


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-0",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"01-{TRACE}-{PARENT}-01more",
    ],
)
def test_what_is_no_traceparent_begins_anew(given: str) -> None:
    trace = tracer_with().begin({b"traceparent": given.encode(), b"tracestate": b"a=1", b"baggage": b"b=2"})
    assert trace is not None and trace.parent_id == 0 and f"{trace.trace_id:032x}" != TRACE
    assert trace.state == trace.baggage == b""
    assert Tracer(Metrics()).begin({b"traceparent": given.encode()}) is None


def test_later_versions_are_read_as_far_as_they_are_known() -> None:
    trace = tracer_with().begin(parent(version="01", rest="-more"))
    assert trace is not None and f"{trace.parent_id:016x}" == PARENT


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\x00", b"\xc3\xa4=1", b"x" * (MAX_BAGGAGE + 1)])
def test_what_could_be_another_header_is_not_passed_on(value: bytes) -> None:
    trace = tracer_with().begin(parent() | {b"baggage": value, b"tracestate": value})
    assert trace is not None and trace.baggage == trace.state == b""


@pytest.mark.parametrize(
    ("settings", "flags", "expected"),
    [
        ({}, "01", True),
        ({}, "00", False),
        ({"sample": 0.0}, "01", True),
        ({"sample": 0.0, "follows_parent": False}, "01", False),
        ({"sample": 1.0, "follows_parent": False}, "00", True),
    ],
)
def test_a_parent_s_decision_holds_unless_only_the_ratio_counts(
    settings: dict[str, Any], flags: str, expected: bool
) -> None:
    trace = tracer_with(**settings).begin(parent(flags))
    assert trace is not None and trace.is_recorded is expected
    assert (trace.flags & 1) == (1 if expected else int(flags))


@pytest.mark.parametrize(("sample", "least", "most"), [(0.0, 0, 0), (0.25, 150, 350), (1.0, 1000, 1000)])
def test_ratio_of_new_traces(sample: float, least: int, most: int) -> None:
    tracer = tracer_with(sample=sample, per_second=10_000.0)
    assert least <= sum(tracer.begin({}) is not None for _ in range(1000)) <= most


def test_ratio_of_ids_is_what_all_others_make_of_them() -> None:
    tracer = tracer_with(sample=0.5, follows_parent=False)
    given = {half: f"00-{'f' * 16}{half}{'0' * 15}-{PARENT}-00".encode() for half in "7f"}
    kept = {half: tracer.begin({b"traceparent": value}) for half, value in given.items()}
    assert {half: trace is not None and trace.is_recorded for half, trace in kept.items()} == {"7": True, "f": False}


def test_new_traces_have_an_allowance_that_workers_share() -> None:
    tracer = tracer_with(per_second=10.0, workers=2)
    assert 5 <= sum(tracer.begin({}) is not None for _ in range(1000)) <= 10
    assert tracer.begin(parent()) is not None, "who came with a sampled trace does not need it"


def test_what_failed_or_was_slow_is_kept_although_it_was_not_sampled() -> None:
    tracer = tracer_with(sample=0.0, slower_than=2.0)
    assert tracer.keep(None, has_failed=False, seconds=1.9) is None
    for trace in (tracer.keep(None, has_failed=True, seconds=0), tracer.keep(None, has_failed=False, seconds=2)):
        assert trace is not None and trace.is_recorded and trace.parent_id == 0
    unsampled = tracer.begin(parent("00"))
    kept = tracer.keep(unsampled, has_failed=True, seconds=0)
    assert kept is not None and (f"{kept.trace_id:032x}", f"{kept.parent_id:016x}") == (TRACE, PARENT)


def test_failures_are_kept_only_where_they_are_wanted_and_within_their_allowance() -> None:
    assert tracer_with(sample=0.0, errors=False).keep(None, has_failed=True, seconds=0) is None
    assert Tracer(Metrics()).keep(None, has_failed=True, seconds=0) is None
    tracer = tracer_with(sample=0.0, per_second=5.0)
    assert 5 <= sum(tracer.keep(None, has_failed=True, seconds=0) is not None for _ in range(1000)) <= 10


def test_what_is_refused_is_sampled_as_the_rest_and_takes_nothing_from_it() -> None:
    tracer = tracer_with(per_second=5.0)
    given = [tracer.refuse(parent(), has_failed=False) for _ in range(500)]
    kept = [trace for trace in given if trace is not None]
    assert 5 <= len(kept) <= 10, "whoever has no key may send any `traceparent`"
    assert {(f"{one.trace_id:032x}", f"{one.parent_id:016x}") for one in kept} == {(TRACE, PARENT)}
    assert tracer.begin({}) is not None and tracer.keep(None, has_failed=True, seconds=0) is not None
    assert tracer_with().refuse(parent("00"), has_failed=False) is None
    assert tracer_with(sample=0.0).refuse({}, has_failed=False) is None
    assert Tracer(Metrics()).refuse(parent(), has_failed=True) is None
    failed = tracer_with(sample=0.0).refuse(parent("00"), has_failed=True)
    assert failed is not None and failed.is_recorded and f"{failed.parent_id:016x}" == PARENT


def test_records_are_handed_out_once_and_bounded() -> None:
    tracer = tracer_with()
    for number in range(MAX_RECORDS + 3):
        tracer.add(record(number))
    found = msgspec.msgpack.decode(tracer.drain(), type=list[RequestRecord])
    assert [one.request_id for one in found] == [f"req_{number}" for number in range(3, MAX_RECORDS + 3)]
    assert msgspec.msgpack.decode(tracer.drain()) == []
    assert "hatchway_traces_dropped_total 3.0" in tracer._metrics.exposition().decode()
