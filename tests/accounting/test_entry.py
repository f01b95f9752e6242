from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from gateway.accounting import entry as entry_module
from gateway.accounting.entry import NOTHING, UNKNOWN, Books, Charge, Context, Entry
from gateway.accounting.prices import PriceBook
from gateway.config.model import Endpoint, LedgerSettings
from gateway.ledger.identifiers import EventIds
from gateway.ledger.record import DOUBT, DROPPED, MAX_RECORD, read_event, read_line, write_begun, write_settled
from gateway.ledger.spool import Spool
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL
from gateway.telemetry import Metrics
from gateway.types import Caller, Rates, Usage, UsageEvent
from tests.configuration import make_endpoint, make_provider

PRICED = Rates(input=Decimal(1), output=Decimal(2))
WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path, "w")
    yield opened
    opened.close()


@pytest.fixture
def books(spool: Spool) -> Books:
    return Books(spool, Metrics(), gateway="north")


def endpoint(rates: Rates | None = None) -> Endpoint:
    return make_endpoint("a", make_provider(base_url="http://127.0.0.1:9/v1"), model="m-1", rates=rates)


def inbound(protocol: Any = CHAT_PROTOCOL, **fields: Any) -> Inbound:
    words: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "how are you?"}], **fields}
    body = json.dumps(words).encode()
    return Inbound(protocol, protocol.parse(body), body)


def context(asked: Inbound | None = None) -> Context:
    return Context(
        request_id="req_1",
        inbound=asked or inbound(),
        caller=Caller("key_1", "payments", "checkout"),
        cost_center="CC-1",
        route="r",
        policy="p",
        policy_version="v",
        domain=None,
        tags={"env": "prod"},
        organisation="acme",
    )


def open_entry(books: Books, asked: Inbound | None = None, at: Endpoint | None = None, **options: Any) -> Entry:
    return books.open(context(asked), 1, at or endpoint(PRICED), PriceBook(), **options)


def records(spool: Spool, directory: Path) -> list[UsageEvent]:
    (path,) = directory.glob("*.spool")
    return [read_event(read_line(line).json) for line in path.read_bytes().splitlines(keepends=True)[1:]]


def test_a_row_names_its_gateway_and_organisation(books: Books, spool: Spool, tmp_path: Path) -> None:
    entry = open_entry(books, tags={"hatchway.role": "shadow"})
    entry.settle(
        "ok", Charge(Usage(input_tokens=10, output_tokens=5), True), ttft=0.1, duration=1.5, service_tier="priority"
    )
    begun, row = records(spool, tmp_path)
    for event in (begun, row):
        assert (event.gateway, event.organisation, event.team, event.cost_center) == (
            "north",
            "acme",
            "payments",
            "CC-1",
        )
        assert event.tags == {"env": "prod", "hatchway.role": "shadow"}
    assert (begun.service_tier, row.service_tier) == (None, "priority")


def lines(directory: Path) -> list[bytes]:
    (path,) = directory.glob("*.spool")
    return [read_line(line).json for line in path.read_bytes().splitlines(keepends=True)[1:]]


@pytest.mark.parametrize(
    ("charge", "ending"),
    [
        (
            Charge(Usage(1, 2, 3, 4, 5, 6, 7, 8, 9), True, msgspec.Raw(b'{"total_tokens": 45}')),
            {"service_tier": "flex"},
        ),
        (UNKNOWN, {"error_type": "timeout_total", "ttft": None}),
        (NOTHING, {"error_type": "connect_failed", "ttft": None}),
    ],
    ids=["priced", "unknown", "nothing"],
)
def test_a_record_spliced_of_parts_is_that_of_the_whole_row(
    books: Books, spool: Spool, tmp_path: Path, charge: Charge, ending: dict[str, Any]
) -> None:
    for tags in (None, {"hatchway.role": "hedge"}):
        entry = open_entry(books, inbound(stream=True), tags=tags, max_cost=MAX)
        entry.settle("ok", charge, **{"ttft": 0.0123456, "duration": 1.2345678, **ending})
    written = lines(tmp_path)
    assert written == [
        whole(read_event(json)) for json, whole in zip(written, [write_begun, write_settled] * 2, strict=True)
    ]
    row = read_event(written[-1])
    assert (row.usage, row.raw_usage) == (charge.usage or Usage(), charge.raw_usage)
    assert (row.status, row.error_type, row.service_tier) == (
        "ok",
        ending.get("error_type"),
        ending.get("service_tier"),
    )
    assert (row.duration_ms, row.ttft_ms) == (1234.568, None if "ttft" in ending else 12.346)
    assert row.ended_at - row.started_at == timedelta(microseconds=1_234_568)
    assert (row.stream, row.attempt, row.upstream_model, row.model) == (True, 1, "m-1", "m")


def test_what_cannot_be_written_costs_itself_and_not_the_row(books: Books, spool: Spool, tmp_path: Path) -> None:
    reported = Charge(Usage(input_tokens=10, output_tokens=5), True, msgspec.Raw(b"{no json"))
    entry = open_entry(books, at=msgspec.structs.replace(endpoint(PRICED), region="eu\ud800"))
    entry.settle("ok", reported, 0.1, 1.0)
    huge = open_entry(books, tags={"big": "x" * MAX_RECORD})
    huge.settle("error", UNKNOWN, None, 1.0, "e\ud800")
    begun, row, huge_begun, huge_row = records(spool, tmp_path)
    assert (begun.region, row.region, row.raw_usage, row.cost_usd) == ("eu?", "eu?", None, Decimal("0.00002"))
    assert (begun.tags, row.tags) == (
        {"env": "prod", DROPPED: "region"},
        {"env": "prod", DROPPED: "raw_usage,region"},
    )
    assert (huge_begun.tags, huge_row.error_type) == ({DROPPED: "raw_usage,tags"}, "e?")


def test_a_row_is_of_the_endpoint_as_it_is_now(books: Books, spool: Spool, tmp_path: Path) -> None:
    """A configuration that was loaded anew has other endpoints by the same names."""
    for region in ("eu", "us", "us"):
        where = msgspec.structs.replace(endpoint(PRICED), region=region)
        open_entry(books, at=where).settle("ok", NOTHING, None, 1.0)
    assert [event.region for event in records(spool, tmp_path)] == ["eu", "eu", "us", "us", "us", "us"]


def test_names_that_clients_invent_take_bounded_room(books: Books) -> None:
    for number in range(entry_module._MAX_PLACES + 10):
        open_entry(books, inbound(model=f"m-{number}"))
    assert 0 < len(books._places) <= entry_module._MAX_PLACES


MAX = Decimal("0.25")


@pytest.mark.parametrize(
    ("charge", "price", "cost", "kept"),
    [
        (Charge(Usage(input_tokens=10, output_tokens=5), True), PRICED, Decimal("0.00002"), None),
        (Charge(Usage(input_tokens=10, output_tokens=5), True), None, None, MAX),
        (NOTHING, None, Decimal(0), None),
        (UNKNOWN, PRICED, None, MAX),
    ],
    ids=["known", "unpriced", "nothing was done", "nobody knows"],
)
def test_the_upper_bound_stands_while_the_cost_is_not_known(
    books: Books,
    spool: Spool,
    tmp_path: Path,
    charge: Charge,
    price: Rates | None,
    cost: Decimal | None,
    kept: Decimal | None,
) -> None:
    entry = open_entry(books, at=endpoint(price), max_cost=MAX)
    assert entry.settle("ok", charge, ttft=None, duration=1.0) == cost
    begun, row = records(spool, tmp_path)
    assert (begun.max_cost_usd, begun.error_type, begun.cost_usd) == (MAX, "worker_lost", None)
    assert (row.max_cost_usd, row.cost_usd) == (kept, cost)


ANSWERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "chat": (
        CHAT_PROTOCOL,
        {},
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}],
        },
    ),
    "messages": (
        MESSAGES_PROTOCOL,
        {"max_tokens": 100},
        {
            "id": "x",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": WORDS}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
        },
    ),
    "responses": (
        RESPONSES_PROTOCOL,
        {"input": "how are you?"},
        {
            "id": "x",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": "m",
            "output": [
                {
                    "id": "y",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": WORDS, "annotations": []}],
                }
            ],
        },
    ),
}


@pytest.mark.parametrize(("protocol", "fields", "answer"), ANSWERS.values(), ids=ANSWERS)
def test_an_absurd_count_is_replaced_by_an_estimate_of_what_was_written(
    books: Books, spool: Spool, tmp_path: Path, protocol: Any, fields: dict[str, Any], answer: dict[str, Any]
) -> None:
    said = msgspec.Raw(b'{"input_tokens":999999999,"output_tokens":5}')
    entry = open_entry(books, inbound(protocol, **fields))
    shown = json.dumps({**answer, "usage": {"input_tokens": 1, "output_tokens": 1, "prompt_tokens": 1}}).encode()
    charge = entry.reported(Usage(input_tokens=999_999_999, output_tokens=5), said, answer=shown)
    cost = entry.settle("ok", charge, ttft=0.1, duration=1.0)
    row = records(spool, tmp_path)[-1]
    assert (row.usage_source, row.raw_usage, row.usage.output_tokens) == ("estimated", said, 10)
    assert 3 <= row.usage.input_tokens < 20
    assert row.cost_usd == cost == Decimal(row.usage.input_tokens + 20) / 10**6
    assert (row.tags or {})[DOUBT].startswith("999999999 input tokens")
    assert entry.charge.usage == row.usage and not entry.charge.is_reported
    assert b'hatchway_doubted_usage_total{endpoint="a"} 1.0' in books.metrics.exposition()


def test_of_a_stream_its_own_text_is_counted(books: Books, spool: Spool, tmp_path: Path) -> None:
    entry = open_entry(books, inbound(max_tokens=16))
    charge = entry.reported(Usage(input_tokens=9, output_tokens=1_000_000), None, text=lambda: WORDS)
    entry.settle("cancelled", charge, ttft=0.1, duration=1.0)
    row = records(spool, tmp_path)[-1]
    assert (row.usage_source, row.usage.output_tokens, row.status) == ("estimated", 10, "cancelled")


def test_a_usage_object_that_could_not_be_read_is_doubted(books: Books, spool: Spool, tmp_path: Path) -> None:
    entry = open_entry(books)
    entry.settle(
        "ok", entry.estimate(WORDS, msgspec.Raw(b'{"prompt_tokens":-5,"completion_tokens":1}')), ttft=None, duration=1.0
    )
    row = records(spool, tmp_path)[-1]
    assert row.tags == {"env": "prod", DOUBT: "`prompt_tokens` is -5"}
    assert (row.usage_source, row.usage.output_tokens) == ("estimated", 10)


def test_what_is_believed_has_no_tag(books: Books, spool: Spool, tmp_path: Path) -> None:
    entry = open_entry(books)
    entry.settle("ok", entry.reported(Usage(input_tokens=10, output_tokens=5), None), ttft=None, duration=1.0)
    cut = open_entry(books)  # its usage has not come: that is no contradiction
    cut.settle("error", cut.estimate("one", msgspec.Raw(b"{}")), ttft=None, duration=1.0, error_type="cut")
    whole, half = records(spool, tmp_path)[1], records(spool, tmp_path)[3]
    assert (whole.tags, whole.usage_source) == ({"env": "prod"}, "reported")
    assert half.tags == {"env": "prod"}


@pytest.mark.parametrize("answer", [b"{", b"[]", b'{"choices":[]}'])
def test_an_answer_that_cannot_be_read_again_has_no_words(books: Books, answer: bytes) -> None:
    entry = open_entry(books)
    charge = entry.reported(Usage(output_tokens=-1), None, answer=answer)
    entry.settle("ok", charge, ttft=None, duration=1.0)
    assert entry.charge.usage is not None and entry.charge.usage.output_tokens == 0


def test_the_end_is_the_start_and_what_a_clock_that_nobody_sets_measured(
    books: Books, spool: Spool, tmp_path: Path
) -> None:
    entry = open_entry(books)
    entry.settle("ok", NOTHING, ttft=None, duration=2.5)
    late = open_entry(books)
    late.settle("ok", NOTHING, ttft=None, duration=-3.0)
    _, row, _, other = records(spool, tmp_path)
    assert row.ended_at - row.started_at == timedelta(seconds=2.5)
    assert (other.ended_at, other.duration_ms) == (other.started_at, 0.0)


def test_ids_ascend_whatever_the_clock_says() -> None:
    clock = EventIds()
    now = 1_700_000_000_000_000
    ids = []
    for step in (0, 0, 0, 1, -3_600_000_000, 0, 86_400_000_000, -1, 0):
        now += step
        ids += [clock.next(now) for _ in range(50)]
    ids += [clock.next(now) for _ in range(10_000)]  # more than one millisecond has room for
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(UUID(one).version == 7 and UUID(one).variant == "specified in RFC 4122" for one in ids)
    assert int(ids[449].replace("-", "")[:12], 16) == (1_700_000_000_000 + 86_400_000 - 3_600_000)


async def test_durable_waits_for_the_disk_where_the_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, "w", settings=LedgerSettings(sync=0.0))
    books = Books(spool, Metrics())
    entry = open_entry(books)
    entry.settle("ok", NOTHING, ttft=None, duration=1.0)
    assert spool.is_dirty
    await entry.durable()
    assert not spool.is_dirty
    entry = open_entry(books)
    entry.settle("ok", NOTHING, ttft=None, duration=1.0)

    def refuse(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.fdatasync", refuse)
        await entry.durable()  # the client keeps its answer
    assert "power cut" in caplog.text
    assert b"hatchway_spool_errors_total 1.0" in books.metrics.exposition()
    spool.close()
    await asyncio.sleep(0)


def test_the_state_of_the_spool_is_in_the_metrics(books: Books, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, lines: bytes) -> int:
        raise OSError(28, "No space left on device")

    entry = open_entry(books)
    with monkeypatch.context() as patched:
        patched.setattr("os.write", refuse)
        entry.settle("ok", NOTHING, ttft=None, duration=1.0)
    text = books.metrics.exposition()
    assert b"hatchway_spool_full 1.0" in text and b"hatchway_spool_held 1.0" in text
    assert b"hatchway_spool_lost_total 0.0" in text
    spool.relieve()
    assert b"hatchway_spool_full 0.0" in books.metrics.exposition()
