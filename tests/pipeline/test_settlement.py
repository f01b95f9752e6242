"""What a request leaves in the spool: one settled row for each attempt, on disk before the client has its last byte."""

from __future__ import annotations

import asyncio
import errno
import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from gateway.ledger.spool import Spool, SpoolError
from gateway.types import Usage
from tests.gateway_fixtures import (
    DONE,
    ROLE,
    STOP,
    USAGE,
    Call,
    Gateway,
    Upstream,
    answer,
    chat,
    completion,
    endpoints,
    event,
    good_stream,
    key_record,
    refuse,
    stream,
    stream_then_cut,
    stream_then_hang,
    text_of,
    until,
    words,
)
from tests.pipeline.conftest import StartGateway, StartUpstream


def watch_the_end(gateway: Gateway) -> list[int]:
    """Notes how many settled rows are on disk whenever the last part of an answer is about to leave."""
    seen: list[int] = []
    gateway.before_last = lambda: seen.append(len(gateway.records()))
    return seen


async def test_a_row_says_all_there_is_to_say(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 2},
        "total_tokens": 150,
        "unknown": [1.50],
    }
    upstream = await script_upstream(answer(body=completion(usage=usage)))
    document = endpoints(upstream)
    document["endpoints"]["a"] |= {"region": "eu", "price": {"input": 1, "output": 10, "cache_read": 0.5}}
    gateway = await start_gateway(document)
    before = datetime.now(UTC)
    response = await gateway.ask()
    row = (await gateway.settled(1))[0]
    assert UUID(row.event_id).version == 7
    assert before <= row.started_at <= row.ended_at <= datetime.now(UTC)
    assert row.usage == Usage(
        input_tokens=55,
        cache_read_tokens=40,
        input_audio_tokens=5,
        output_tokens=28,
        reasoning_tokens=20,
        output_audio_tokens=2,
    )
    assert row.cost_usd == Decimal("0.00058")  # (55 + 5) x 1 + 40 x 0.5 + 50 x 10, in millionths
    assert Decimal(response.headers["x-hatchway-cost-usd"]) == row.cost_usd
    assert row.raw_usage is not None and msgspec.json.decode(row.raw_usage) == usage
    assert row.prices is not None and Decimal(str(msgspec.json.decode(row.prices)["output"])) == 10
    told = msgspec.structs.asdict(row)
    assert {name: told[name] for name in EXPECTED_FIELDS} == EXPECTED_FIELDS
    assert told["request_id"] == response.headers["x-hatchway-request-id"]
    assert told["policy_version"] == response.headers["x-hatchway-policy-version"]
    assert told["duration_ms"] >= told["ttft_ms"] >= 0


EXPECTED_FIELDS: dict[str, Any] = {
    "attempt": 1,
    "team": "payments",
    "project": "checkout",
    "key_id": "key_1",
    "cost_center": "CC-104",
    "route": "all",
    "policy": "main",
    "domain": None,
    "endpoint": "a",
    "provider": "p-a",
    "model": "gpt-test",
    "upstream_model": "model-a",
    "region": "eu",
    "status": "ok",
    "error_type": None,
    "stream": False,
    "usage_source": "reported",
    "price_status": "priced",
    "catalog_version": "yaml",
    "tags": None,
}


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_the_row_is_on_disk_before_the_last_byte_leaves(
    script_upstream: StartUpstream, start_gateway: StartGateway, wants_stream: bool
) -> None:
    good = good_stream() if wants_stream else answer()
    bad = stream_then_cut(ROLE, *words("x")) if wants_stream else refuse(400)
    upstream = await script_upstream(good, bad, refuse(500), refuse(429), answer(status=302, body=b""))
    gateway = await start_gateway(endpoints(upstream))
    seen = watch_the_end(gateway)
    for _ in range(5):
        await gateway.ask(stream=wants_stream)
    assert seen == [1, 2, 3, 4, 5]


async def test_the_row_is_on_disk_when_a_client_elsewhere_sees_the_end(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """The same from outside: a client in a thread of its own looks at the files as soon as it has the end."""
    upstream = await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(upstream))

    def ask_and_look() -> list[int]:
        found = []
        with httpx.Client(trust_env=False, timeout=20, headers={"authorization": "Bearer hw_test_key"}) as client:
            for _ in range(10):
                url = f"{gateway.url}/v1/chat/completions"
                with client.stream("POST", url, json=chat(stream=True)) as response:
                    for line in response.iter_lines():
                        if line == "data: [DONE]":
                            found.append(len(gateway.records()))
        return found

    assert await asyncio.to_thread(ask_and_look) == list(range(1, 11))


async def test_a_row_begins_before_the_upstream_is_asked(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    begun: list[Any] = []
    gateways: list[Gateway] = []

    async def look(call: Call) -> None:
        begun.extend(gateways[0].records("S"))
        await call.answer(200, completion())

    gateways.append(await start_gateway(endpoints(await script_upstream(look))))
    await gateways[0].ask()
    assert [(row.status, row.error_type, row.usage_source) for row in begun] == [("error", "worker_lost", "none")]
    assert begun[0].event_id == gateways[0].records()[0].event_id


@pytest.mark.parametrize("wants_stream", [False, True])
@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 10},
        {"prompt_tokens": 10, "completion_tokens": None},
        {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 11}},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": 10**30, "completion_tokens": 3},
        "much",
    ],
)
async def test_usage_that_is_left_out_or_impossible_is_estimated(
    script_upstream: StartUpstream, start_gateway: StartGateway, usage: Any, wants_stream: bool
) -> None:
    pieces = (ROLE, *words("one two", " three"), STOP, *(() if usage is None else (event(usage=usage),)), DONE)
    script = stream(*pieces) if wants_stream else answer(body=completion("one two three", usage=usage))
    gateway = await start_gateway(endpoints(await script_upstream(script)))
    await gateway.ask(stream=wants_stream)
    row = (await gateway.settled(1))[0]
    assert (row.status, row.usage_source, row.price_status) == ("ok", "estimated", "priced")
    assert (row.usage.input_tokens, row.usage.output_tokens) == (8, 3)
    assert row.cost_usd == Decimal("0.000014")
    assert row.ttft_ms is not None


async def test_an_estimate_covers_everything_that_was_written(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """Also what lies in the same bytes as an error, and in a last event without its blank line."""
    both = words("one")[0] + b'data: {"error": {"message": "x"}}\n\n'
    unfinished = ROLE + words("one")[0] + event({"content": " two"}, finish="stop").rstrip()
    gateway = await start_gateway(endpoints(await script_upstream(stream(both), stream(unfinished))))
    assert (await gateway.ask(stream=True)).status_code == 502
    assert text_of((await gateway.ask(stream=True)).content) == "one two"
    assert [row.usage.output_tokens for row in await gateway.settled(2)] == [1, 2]


async def test_an_unknown_price_is_not_zero(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    document = endpoints(await script_upstream(answer()))
    del document["endpoints"]["a"]["price"]
    gateway = await start_gateway(document)
    response = await gateway.ask()
    assert "x-hatchway-cost-usd" not in response.headers
    row = (await gateway.settled(1))[0]
    assert (row.price_status, row.cost_usd, row.prices, row.usage.total) == (
        "unpriced",
        None,
        None,
        USAGE["total_tokens"],
    )


async def test_tokens_and_attempts_are_counted_in_metrics(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstreams = await script_upstream(refuse(500)), await script_upstream(answer())
    gateway = await start_gateway(endpoints(*upstreams))
    await gateway.ask()
    assert gateway.metric('hatchway_attempts_total{endpoint="a",status="error"}') == 1
    assert gateway.metric('hatchway_attempts_total{endpoint="b",status="ok"}') == 1
    assert gateway.metric('hatchway_tokens_total{bucket="output_tokens",endpoint="b"}') == 5
    assert gateway.metric('hatchway_requests_total{status="200",surface="chat"}') == 1


async def test_nothing_is_sent_when_the_spool_is_closed(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer())
    gateway = await start_gateway(endpoints(upstream))
    gateway.spool.close()
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "ledger_unavailable")
    assert upstream.calls == []
    assert gateway.metric("hatchway_spool_errors_total") == 1
    assert gateway.health.outlook(0.0, 0.0).endpoints == {}


async def test_a_row_that_the_disk_refuses_does_not_take_the_answer_away(
    script_upstream: StartUpstream,
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse_row(self: Spool, event_id: str, end: bytes) -> None:
        raise SpoolError(os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spool, "settle", refuse_row)
    gateway = await start_gateway(endpoints(await script_upstream(answer("hello"))))
    response = await gateway.ask()
    assert response.json()["choices"][0]["message"]["content"] == "hello"
    assert gateway.metric("hatchway_spool_errors_total") == 1
    assert "No space left" in caplog.text and response.headers["x-hatchway-request-id"] in caplog.text


async def test_many_at_once_settle_once_each(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    bad = await script_upstream(refuse(500))
    good = await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(bad, good, select="weighted", weights={"a": 1, "b": 1}))
    client = gateway.client()
    responses = await asyncio.gather(*(client.post("/v1/chat/completions", json=chat(stream=True)) for _ in range(40)))
    assert {text_of(response.content) for response in responses} == {"hello"}
    attempts = len(bad.calls) + len(good.calls)
    await until(lambda: len(gateway.records()) >= attempts)
    rows = gateway.records()
    assert len({row.event_id for row in rows}) == len(rows) == attempts
    assert len({row.request_id for row in rows}) == 40
    assert sum(row.status == "ok" for row in rows) == 40
    assert all(state.in_flight == 0 for state in gateway.health.outlook(0.0, 0.0).endpoints.values())


async def test_the_caller_is_the_keys(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    keys = [key_record(), key_record("hw_other", key_id="key_2", team="research", project=None)]
    gateway = await start_gateway(endpoints(await script_upstream(answer())), keys)
    await gateway.ask("hw_other")
    row = (await gateway.settled(1))[0]
    assert (row.team, row.project, row.key_id, row.cost_center) == ("research", None, "key_2", None)


async def test_an_upstream_is_sent_the_callers_bytes_and_its_own_key(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer())
    gateway = await start_gateway(endpoints(upstream))
    body = b'{"model":"gpt-test","x":{"y":[1.50,1e400]},"messages":[{"role":"user","content":"\xc3\xbc","z":1}]}'
    client = gateway.client()
    await client.post("/v1/chat/completions", content=body, headers={"x-secret": "mine", "cookie": "c=1"})
    call = upstream.calls[0]
    assert call.body == body.replace(b'"gpt-test"', b'"model-a"')
    assert call.target == "/v1/chat/completions"
    assert call.headers["authorization"] == "Bearer sk-upstream-secret-0123456789"
    assert not {"x-secret", "cookie", "x-api-key"} & call.headers.keys()


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_a_last_part_that_cannot_be_sent_settles_nothing_again(
    script_upstream: StartUpstream, start_gateway: StartGateway, wants_stream: bool
) -> None:
    def fail() -> None:
        raise RuntimeError("the server is broken")

    gateway = await start_gateway(endpoints(await script_upstream(good_stream() if wants_stream else answer())))
    gateway.before_last = fail
    with pytest.raises(httpx.RemoteProtocolError):  # half an answer does not look whole
        await gateway.ask(stream=wants_stream)
    row = (await gateway.settled(1))[0]
    assert (row.status, row.usage_source) == ("ok", "reported")
    assert gateway.metric('hatchway_attempts_total{endpoint="a",status="ok"}') == 1


async def test_a_request_that_the_server_cancels_is_settled(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """As at the end of a worker's patience with open streams."""
    upstreams: list[Upstream] = []
    upstreams.append(await script_upstream(stream_then_hang(upstreams, ROLE, *words("hello"))))
    gateway = await start_gateway(endpoints(upstreams[0]))
    asking = asyncio.create_task(gateway.ask(stream=True))
    await until(lambda: gateway.metric("hatchway_in_flight_requests") and upstreams[0].calls)
    gateway.cancel_requests()
    with pytest.raises(httpx.HTTPError):
        await asking
    row = (await gateway.settled(1))[0]
    assert row.status == "cancelled"
    async with asyncio.timeout(20):
        await upstreams[0].closed.wait()
