"""Shadow copies on real sockets: what is sent, what the ledger says of it, and that nobody else feels it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec.structs import replace

from gateway.accounting.entry import Books, Context
from gateway.accounting.prices import PriceBook
from gateway.admission import Admission
from gateway.budgets.accounts import NO_ACCOUNTS
from gateway.budgets.book import BudgetBook, Reservation
from gateway.comparison import Outcome
from gateway.config.model import Timeouts
from gateway.funds import FREE
from gateway.ledger.record import read_event, read_line
from gateway.ledger.spool import Spool
from gateway.protocols.base import ClientProtocol
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import COUNT_TOKENS_PROTOCOL, MESSAGES_PROTOCOL
from gateway.shadow import MAX_COPIES, MAX_SEEN, Shadows, Witness
from gateway.snapshot import Snapshot
from gateway.telemetry import Metrics
from gateway.types import Caller, Usage, UsageEvent
from gateway.upstream.client import UpstreamClient
from tests.gateway_fixtures import (
    DONE,
    ROLE,
    STOP,
    USAGE_EVENT,
    Call,
    Gateway,
    Script,
    Upstream,
    answer,
    chat,
    completion,
    configuration_of,
    cut,
    endpoints,
    event,
    free_port,
    good_stream,
    hang,
    key_record,
    refuse,
    stream,
    stream_then_cut,
    stream_then_hang,
    text_of,
    until,
    words,
)

StartUpstream = Callable[..., Awaitable[Upstream]]


async def nobody(path: str, body: bytes) -> bytes:
    raise AssertionError("nothing is asked where no budget is hard")


def paid_for(endpoint: str) -> Reservation | None:
    return BudgetBook("test/worker", nobody).try_reserve(NO_ACCOUNTS, FREE, endpoint)


class Worker:
    """The parts of a worker that a copy meets, wired as in production, without a server."""

    def __init__(self, document: Mapping[str, Any], folder: Path) -> None:
        self.metrics = Metrics()
        self.client = UpstreamClient()
        self.folder = folder / "spool"
        self.spool = Spool(self.folder, "worker-0")
        self.admission = Admission(self.metrics)
        self.snapshot = Snapshot.build(configuration_of(document), PriceBook(), folder, "hatchway/test")
        self.admission.configure(self.snapshot.configuration, 1)
        self.shadows = Shadows(self.client, Books(self.spool, self.metrics), self.admission)

    async def stop(self) -> None:
        await self.shadows.close()
        await self.client.close()
        self.spool.close()

    def start(
        self,
        request: Inbound,
        primary: Witness | None = None,
        *,
        endpoint: str = "a",
        tags: Mapping[str, str] | None = None,
        **how: Any,
    ) -> None:
        context = Context(
            request_id="req_1",
            inbound=request,
            caller=Caller(key_id="key_1", team="payments", project="checkout"),
            cost_center="CC-104",
            route="all",
            policy="main",
            policy_version="v",
            domain=None,
            tags=tags or {},
        )
        target = self.snapshot.configuration.endpoints[endpoint]
        self.shadows.start(
            context,
            target,
            self.snapshot,
            primary,
            **{"timeouts": Timeouts(), "reservation": paid_for(target.id), **how},
        )

    def rows(self, kind: str = "E") -> list[UsageEvent]:
        found = []
        for path in sorted(self.folder.glob("*.spool")):
            for line in path.read_bytes().splitlines(keepends=True)[1:]:
                record = read_line(line)
                if record.kind == kind:
                    found.append(read_event(record.json))
        return found

    async def row(self) -> UsageEvent:
        await until(self.rows)
        begun, [row] = self.rows("S"), self.rows()
        assert [one.event_id for one in begun] == [row.event_id]
        await until(lambda: self.admission.try_enter_endpoint("a"))  # its slot is free again
        self.admission.leave_endpoint("a")
        return row

    def metric(self, sample: str) -> float:
        lines = (line.rpartition(" ") for line in self.metrics.exposition().decode().splitlines())
        return next((float(value) for name, _, value in lines if name == sample), 0.0)

    def copies(self, outcome: str) -> float:
        return self.metric(f'hatchway_shadows_total{{endpoint="a",outcome="{outcome}"}}')


@pytest_asyncio.fixture
async def script_upstream() -> AsyncIterator[StartUpstream]:
    running: list[Upstream] = []

    async def start(*scripts: Script) -> Upstream:
        upstream = Upstream(scripts)
        await upstream.start()
        running.append(upstream)
        return upstream

    yield start
    for upstream in running:
        await upstream.stop()


@pytest_asyncio.fixture
async def start_worker(tmp_path: Path) -> AsyncIterator[Callable[[Mapping[str, Any]], Worker]]:
    """Afterwards the loop has not complained: no task's error is left unseen."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    running: list[Worker] = []

    def start(document: Mapping[str, Any]) -> Worker:
        running.append(Worker(document, tmp_path))
        return running[-1]

    yield start
    for worker in running:
        await worker.stop()
    assert complaints == []


StartWorker = Callable[[Mapping[str, Any]], Worker]


def inbound(protocol: ClientProtocol = CHAT_PROTOCOL, **fields: Any) -> Inbound:
    body = json.dumps(chat(**fields)).encode()
    return Inbound(protocol, protocol.parse(body), body)


def witness(request: Inbound, *shown: bytes) -> Witness:
    """Of a request that is over and took 2 s."""
    found = Witness(request)
    for piece in shown:
        found.see(piece)
    found.end(ttft=1.0, duration=2.0)
    return found


# What is sent, and what is written down


async def test_a_copy_is_the_request_and_its_row_says_what_it_was(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("hello"))
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(temperature=0.5), tags={"app": "shop"})
    row = await worker.row()
    assert upstream.calls[0].json == chat(model="model-a", temperature=0.5)
    assert (row.request_id, row.attempt, row.endpoint, row.provider) == ("req_1", 1001, "a", "p-a")
    assert (row.team, row.project, row.key_id, row.cost_center) == ("payments", "checkout", "key_1", "CC-104")
    assert (row.route, row.policy, row.policy_version, row.stream) == ("all", "main", "v", False)
    assert (row.status, row.error_type, row.usage_source) == ("ok", None, "reported")
    assert (row.usage, row.cost_usd) == (Usage(input_tokens=10, output_tokens=5), Decimal("0.00002"))
    assert row.ttft_ms is not None and row.ttft_ms <= row.duration_ms
    assert row.tags == {"app": "shop", "hatchway.role": "shadow", "hatchway.valid": "yes"}
    assert worker.copies("sent") == 1 and worker.copies("skipped") == 0


async def test_the_row_is_known_as_a_copys_before_anything_is_sent(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(hang)
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(), escape="esc_1", number=2)
    await until(lambda: upstream.calls)
    [begun] = worker.rows("S")
    assert begun.attempt == 1003
    assert begun.tags == {"hatchway.role": "shadow", "hatchway.escape": "esc_1"}


async def test_a_copy_runs_only_when_its_request_waits(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer())
    worker = start_worker(endpoints(upstream))
    worker.start(inbound())
    assert worker.rows("S") == [], "the request's own first attempt goes first"
    await worker.row()


async def test_a_stream_is_read_to_its_end(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    upstream = await script_upstream(good_stream("hel", "lo"))
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(stream=True))
    row = await worker.row()
    assert (row.status, row.stream, row.usage_source) == ("ok", True, "reported")
    assert row.usage == Usage(input_tokens=10, output_tokens=5)
    assert row.ttft_ms is not None
    assert row.tags == {"hatchway.role": "shadow", "hatchway.valid": "yes"}


async def test_usage_that_is_left_out_is_counted(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    upstream = await script_upstream(
        answer(body=completion("hello there", usage=None)), stream(ROLE, *words("hello ", "there"), STOP, DONE)
    )
    worker = start_worker(endpoints(upstream))
    worker.start(inbound())
    await until(worker.rows)
    worker.start(inbound(stream=True))
    await until(lambda: len(worker.rows()) == 2)
    for row in worker.rows():
        assert (row.status, row.usage_source, row.usage.output_tokens) == ("ok", "estimated", 2)
        assert row.usage.input_tokens > 0


async def test_a_copy_may_go_to_an_endpoint_of_another_protocol(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("hello"))
    worker = start_worker(endpoints(upstream))
    request = inbound(MESSAGES_PROTOCOL, max_tokens=10)
    shown = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    worker.start(request, witness(request, json.dumps(shown).encode()))
    row = await worker.row()
    assert upstream.calls[0].target.endswith("/chat/completions")
    assert row.tags is not None and row.tags["hatchway.similarity"] == "1.00"


async def test_a_copy_is_signed(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    said = {"output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}}, "stopReason": "end_turn"}
    upstream = await script_upstream(answer(body=json.dumps(said).encode()))
    keys = {"region": "eu-west-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": "aws-secret-0123456789"}
    worker = start_worker(provided(upstream, "bedrock", "amazon.nova-lite-v1:0", **keys))
    worker.start(inbound())
    assert (await worker.row()).status == "ok"
    assert upstream.calls[0].headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")


async def test_without_credentials_nothing_is_sent_and_nothing_used(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream, tokens = await script_upstream(answer()), await script_upstream(refuse(401))
    key = rsa.generate_private_key(65537, 2048)
    account = {
        "type": "service_account",
        "client_email": "gateway@project.iam.gserviceaccount.com",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "token_uri": f"http://127.0.0.1:{tokens.port}/token",
    }
    named = {"region": "europe-west4", "project": "p", "credentials": json.dumps(account)}
    worker = start_worker(provided(upstream, "vertex", "gemini-2.5-flash", **named))
    worker.start(inbound())
    row = await worker.row()
    assert (row.status, row.error_type, row.cost_usd) == ("error", "credentials_failed", Decimal(0))
    assert len(tokens.calls) == 1 and upstream.calls == []


def provided(upstream: Upstream, adapter: str, model: str, **provider: Any) -> dict[str, Any]:
    """The document of one endpoint `a` of another adapter."""
    document = endpoints(upstream)
    document["providers"]["p-a"] = {"adapter": adapter, "base_url": f"http://127.0.0.1:{upstream.port}", **provider}
    document["endpoints"]["a"]["model"] = model
    return document


# What is compared


async def test_a_copy_is_compared_with_what_the_client_was_shown(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("The parcel arrives on Wednesday"))
    worker = start_worker(endpoints(upstream))
    request = inbound()
    worker.start(request, witness(request, completion("The parcel arrives on Thursday")))
    tags = (await worker.row()).tags or {}
    assert tags.pop("hatchway.role") == "shadow"
    assert 0.5 < float(tags.pop("hatchway.similarity")) < 1.0
    assert 0.0 <= float(tags.pop("hatchway.latency_ratio")) < 1.0, "of two seconds"
    assert tags == {"hatchway.valid": "yes", "hatchway.length_ratio": "1.03"}


async def test_streams_are_compared_as_a_whole(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    upstream = await script_upstream(good_stream("a ", "b ", "c ", "d"))
    worker = start_worker(endpoints(upstream))
    request = inbound(stream=True)
    worker.start(request, witness(request, b": keep-alive\n\n", ROLE, *words("a b", " c d"), STOP + DONE))
    assert ((await worker.row()).tags or {})["hatchway.similarity"] == "1.00"


async def test_a_copy_that_is_done_first_waits_for_its_request(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("hello"))
    worker = start_worker(endpoints(upstream))
    request = inbound()
    primary = Witness(request)
    worker.start(request, primary)
    await until(lambda: upstream.calls)
    await asyncio.sleep(0.05)
    assert worker.rows() == []
    primary.see(completion("hello"))
    primary.end(ttft=1.0, duration=60.0)
    row = await worker.row()
    assert (row.tags or {})["hatchway.similarity"] == "1.00"
    assert row.duration_ms < 50_000, "its own time"


async def test_it_waits_no_longer_than_the_policys_total(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("hello"))
    worker = start_worker(endpoints(upstream))
    request = inbound()
    worker.start(request, Witness(request), timeouts=Timeouts(total=0.2))
    row = await worker.row()
    assert (row.status, row.tags) == ("ok", {"hatchway.role": "shadow", "hatchway.valid": "yes"})


async def test_beside_a_request_that_failed_only_validity_is_said(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("hello"))
    worker = start_worker(endpoints(upstream))
    request = inbound()
    primary = Witness(request)
    primary.end(error="status_500")
    primary.end(ttft=1.0, duration=1.0)  # a second call says nothing
    worker.start(request, primary)
    assert (await worker.row()).tags == {"hatchway.role": "shadow", "hatchway.valid": "yes"}


async def test_an_answer_that_an_application_cannot_use_is_marked(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("it is {}, I think"))
    worker = start_worker(endpoints(upstream))
    request = inbound(response_format={"type": "json_object"})
    worker.start(request, witness(request, completion("{}")))
    row = await worker.row()
    assert (row.status, (row.tags or {})["hatchway.valid"]) == ("ok", "no:json")


async def test_an_answer_too_long_to_be_kept_is_not_judged(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer("x" * (MAX_SEEN + 1)))
    worker = start_worker(endpoints(upstream))
    worker.start(inbound())
    row = await worker.row()
    assert (row.status, row.tags) == ("ok", {"hatchway.role": "shadow"})


# What fails


@pytest.mark.parametrize(
    ("script", "status", "error_type", "usage_source", "is_free"),
    [
        (refuse(503), "error", "status_503", "none", True),
        (cut, "error", "disconnected", "none", False),
        (answer(body=b"<html>"), "error", "protocol_error", "estimated", False),
    ],
)
async def test_a_failure_is_on_the_row_and_nowhere_else(
    script_upstream: StartUpstream,
    start_worker: StartWorker,
    caplog: pytest.LogCaptureFixture,
    script: Script,
    status: str,
    error_type: str,
    usage_source: str,
    is_free: bool,
) -> None:
    upstream = await script_upstream(script)
    worker = start_worker(endpoints(upstream))
    request = inbound()
    with caplog.at_level(logging.INFO):
        worker.start(request, witness(request, completion()))
        row = await worker.row()
    assert (row.status, row.error_type, row.usage_source) == (status, error_type, usage_source)
    assert (row.cost_usd == 0) is is_free
    assert row.tags == {"hatchway.role": "shadow", "hatchway.valid": "no:error"}
    assert caplog.records == []


async def test_a_failure_does_not_wait_for_the_request(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(refuse(503))
    worker = start_worker(endpoints(upstream))
    request = inbound()
    worker.start(request, Witness(request))
    assert (await worker.row()).error_type == "status_503"


async def test_an_endpoint_that_is_away_is_a_failure(start_worker: StartWorker) -> None:
    worker = start_worker(endpoints(free_port()))
    worker.start(inbound())
    row = await worker.row()
    assert (row.status, row.error_type, row.cost_usd) == ("error", "connect_failed", Decimal(0))


@pytest.mark.parametrize(
    ("fields", "timeouts", "error_type"),
    [
        ({}, Timeouts(total=0.2), "timeout_total"),
        ({}, Timeouts(first_byte=0.2), "timeout_first_byte"),
        ({"stream": True}, Timeouts(ttft=0.2), "timeout_ttft"),
    ],
)
async def test_silence_ends_at_the_policys_deadlines(
    script_upstream: StartUpstream,
    start_worker: StartWorker,
    fields: dict[str, Any],
    timeouts: Timeouts,
    error_type: str,
) -> None:
    upstream = await script_upstream(hang)
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(**fields), timeouts=timeouts)
    row = await worker.row()
    assert (row.status, row.error_type) == ("timeout", error_type)
    assert (row.usage_source, row.cost_usd) == ("none", None), "nobody knows what it did"


async def test_a_stream_that_pauses_ends_and_what_it_said_is_counted(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    holder: list[Upstream] = []
    upstream = await script_upstream(stream_then_hang(holder, ROLE, *words("hello", " there")))
    holder.append(upstream)
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(stream=True), timeouts=Timeouts(idle=0.2))
    row = await worker.row()
    assert (row.status, row.error_type, row.usage_source) == ("timeout", "timeout_idle", "estimated")
    assert row.usage.output_tokens == 2
    await asyncio.wait_for(upstream.closed.wait(), 10)


async def test_a_stream_that_is_cut_is_no_answer(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    upstream = await script_upstream(stream_then_cut(ROLE, *words("hello")))
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(stream=True))
    row = await worker.row()
    assert (row.status, row.error_type, (row.tags or {})["hatchway.valid"]) == ("error", "disconnected", "no:error")


async def test_a_stream_that_says_it_failed_is_closed(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    holder: list[Upstream] = []
    failure = b'data: {"error": {"message": "overloaded"}}\n\n'
    upstream = await script_upstream(stream_then_hang(holder, ROLE, *words("hel"), failure))
    holder.append(upstream)
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(stream=True))
    row = await worker.row()
    assert (row.status, row.error_type, row.usage_source) == ("error", "stream_error", "estimated")
    await asyncio.wait_for(upstream.closed.wait(), 10)


async def test_usage_before_a_cut_is_kept(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    piece = event({"content": "hello"}, usage={"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11})
    upstream = await script_upstream(stream_then_cut(ROLE, piece))
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(stream=True))
    row = await worker.row()
    assert (row.status, row.usage_source, row.usage.output_tokens) == ("error", "reported", 1)


# What is left out


async def test_no_more_than_so_many_at_once(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    upstream = await script_upstream(hang)
    worker = start_worker(endpoints(upstream))
    for _ in range(MAX_COPIES + 3):
        worker.start(inbound())
    await until(lambda: len(upstream.calls) == MAX_COPIES)
    assert (worker.copies("sent"), worker.copies("skipped")) == (MAX_COPIES, 3)
    assert len(worker.rows("S")) == MAX_COPIES


async def test_a_copy_takes_no_slot_that_another_waits_for(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer())
    worker = start_worker(endpoints(upstream))
    configuration = worker.snapshot.configuration
    limited = replace(configuration.endpoints["a"], max_in_flight=1)
    worker.admission.configure(replace(configuration, endpoints={"a": limited}), 1)
    await worker.admission.enter_endpoint("a", "payments")
    worker.start(inbound())
    assert worker.copies("skipped") == 1
    worker.admission.leave_endpoint("a")
    worker.start(inbound())
    assert worker.admission.is_full("a"), "and it counts as long as it runs"
    await worker.row()
    assert not worker.admission.is_full("a")
    assert len(upstream.calls) == 1


async def test_what_an_endpoint_cannot_be_asked_is_left_out(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer())
    worker = start_worker(endpoints(upstream))
    body = json.dumps(chat(max_tokens=5)).encode()
    local = Inbound(COUNT_TOKENS_PROTOCOL, COUNT_TOKENS_PROTOCOL.parse(body), body)
    worker.start(local)
    wrong = {"type": "image", "source": {"type": "unheard-of"}}  # seen only by who translates
    worker.start(inbound(MESSAGES_PROTOCOL, max_tokens=5, messages=[{"role": "user", "content": [wrong]}]))
    await until(lambda: worker.copies("skipped") == 2)
    assert worker.rows("S") == [] and upstream.calls == []


async def test_an_endpoint_without_its_key_gets_no_copy(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer())
    worker = start_worker(endpoints(upstream))
    worker.snapshot = replace(worker.snapshot, adapters={})
    worker.start(inbound())
    assert worker.copies("skipped") == 1


async def test_what_cannot_be_accounted_is_not_sent(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    upstream = await script_upstream(answer())
    worker = start_worker(endpoints(upstream))
    worker.spool.close()
    worker.start(inbound())
    await until(lambda: worker.metric("hatchway_spool_errors_total") == 1)
    assert upstream.calls == [] and worker.copies("sent") == 0


# The end


async def test_closing_cuts_the_copies_and_settles_their_rows(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    holder: list[Upstream] = []
    upstream = await script_upstream(stream_then_hang(holder, ROLE, *words("hello")), hang)
    holder.append(upstream)
    worker = start_worker(endpoints(upstream))
    worker.start(inbound(stream=True))
    await until(lambda: len(upstream.calls) == 1)
    worker.start(inbound())
    await until(lambda: len(upstream.calls) == 2)
    await asyncio.sleep(0.05)
    await worker.shadows.close()
    rows = worker.rows()
    assert [(row.status, row.error_type) for row in rows] == [("cancelled", "worker_stopped")] * 2
    assert sorted(row.usage_source for row in rows) == ["estimated", "none"]
    assert [row.tags for row in rows] == [{"hatchway.role": "shadow"}] * 2, "nobody's answer was bad"
    await asyncio.wait_for(upstream.closed.wait(), 10)
    await worker.shadows.close()


async def test_closing_does_not_take_back_an_answer_that_waits_to_be_compared(
    script_upstream: StartUpstream, start_worker: StartWorker
) -> None:
    upstream = await script_upstream(answer())
    worker = start_worker(endpoints(upstream))
    request = inbound()
    worker.start(request, Witness(request))
    await until(lambda: upstream.calls)
    await asyncio.sleep(0.05)
    await worker.shadows.close()
    [row] = worker.rows()
    assert (row.status, row.error_type, row.cost_usd) == ("ok", None, Decimal("0.00002"))


async def test_a_copy_that_never_ran_leaves_nothing(script_upstream: StartUpstream, start_worker: StartWorker) -> None:
    upstream = await script_upstream(answer())
    worker = start_worker(endpoints(upstream))
    worker.start(inbound())
    await worker.shadows.close()
    assert worker.rows("S") == [] and upstream.calls == []


# In a gateway


async def test_a_policys_shadow_gets_copies_and_the_client_notices_nothing(
    script_upstream: StartUpstream, tmp_path: Path
) -> None:
    first, second = await script_upstream(answer("hello"), good_stream("hel", "lo")), await script_upstream(refuse(500))
    document = endpoints(first, second, shadow={"endpoint": "b", "percent": 100})
    document["policies"]["main"]["endpoints"] = ["a"]
    gateway = Gateway(document, tmp_path, [key_record()])
    await gateway.start()
    try:
        whole, streamed = await gateway.ask(), await gateway.ask(stream=True)
        assert whole.json()["choices"][0]["message"]["content"] == text_of(streamed.content) == "hello"
        assert {one.headers["x-hatchway-endpoint"] for one in (whole, streamed)} == {"a"}
        await until(lambda: len(gateway.records()) == 4)
        served, copies = ([row for row in gateway.records() if row.endpoint == name] for name in "ab")
        assert [(row.attempt, row.status) for row in served] == [(1, "ok")] * 2
        assert [(row.attempt, row.error_type) for row in copies] == [(1001, "status_500")] * 2
        assert {row.request_id for row in copies} == {row.request_id for row in served}
        assert gateway.health.states(asyncio.get_running_loop().time()).get("b") in (None, "closed")
    finally:
        await gateway.pipeline.shadows.close()
        await gateway.stop()


async def test_a_shadow_that_hangs_delays_no_answer_and_is_compared_with_it(
    script_upstream: StartUpstream, tmp_path: Path
) -> None:
    release = asyncio.Event()

    async def slow(call: Call) -> None:
        await release.wait()
        await call.answer(200, completion("hello there"))

    first, second = await script_upstream(answer("hello you")), await script_upstream(slow)
    document = endpoints(first, second, shadow={"endpoint": "b", "percent": 100})
    document["policies"]["main"]["endpoints"] = ["a"]
    gateway = Gateway(document, tmp_path, [key_record()])
    await gateway.start()
    try:
        assert (await gateway.ask()).status_code == 200
        assert [row.endpoint for row in gateway.records()] == ["a"]
        release.set()
        await until(lambda: len(gateway.records()) == 2)
        tags = gateway.records()[1].tags or {}
        assert tags["hatchway.valid"] == "yes" and 0.3 < float(tags["hatchway.similarity"]) < 0.9
    finally:
        await gateway.pipeline.shadows.close()
        await gateway.stop()


# The witness alone


async def test_a_witness_judges_an_answer_before_its_last_bytes_are_sent() -> None:
    found = Witness(inbound(stream=True))
    found.see(ROLE)
    found.see(b"".join(words("hel")))
    assert found.tags() == {"hatchway.valid": "no:error"}, "no whole answer yet"
    assert found.tags(b"".join([*words("lo"), STOP, USAGE_EVENT, DONE])) == {"hatchway.valid": "yes"}
    assert Witness(inbound()).tags(completion("")) == {"hatchway.valid": "no:empty"}


async def test_a_witness_lets_go_of_what_is_too_long() -> None:
    found = Witness(inbound())
    found.see(b"x" * MAX_SEEN)
    found.see(b"x")
    assert found.tags() == {}
    found.end(ttft=1.0, duration=1.0)
    assert await found.outcome(1.0) is None
    failed = Witness(inbound())
    failed.end(error="disconnected")
    assert await failed.outcome(1.0) == Outcome(error="disconnected")
