"""Every fault before content, in every protocol, streamed and not: the right answer from elsewhere, or a true error."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from tests.faults.scripts import FAR, FAULTS, SOON, Fault, empty, good
from tests.faults.wires import CHAT, COST, PAIRS, Pair
from tests.gateway_fixtures import UPSTREAM_KEY, Gateway, Script, answer, free_port, refuse, stream
from tests.pipeline.conftest import StartGateway, StartUpstream

TIMEOUTS = {"connect": FAR, "ttft": FAR, "idle": FAR, "total": FAR}

CASES = [
    pytest.param(fault, pair, streams, id=f"{fault}-{pair}-{'stream' if streams else 'whole'}")
    for fault in FAULTS
    for pair in (PAIRS if fault.is_of_the_protocol else PAIRS[:1])
    for streams in fault.streams
]
OF_CHAT = [case for case in CASES if case.values[1] == PAIRS[0]]


def timeouts_for(fault: Fault) -> dict[str, str]:
    """A deadline passes only where the fault is to wait for it: this machine may be slow."""
    return {**TIMEOUTS, "ttft": SOON} if fault.row_status == "timeout" else TIMEOUTS


async def ask(gateway: Gateway, pair: Pair, *, streams: bool) -> Any:
    return await gateway.client().post(pair.client.path, json=pair.client.request(stream=streams))


def check_failed(row: Any, fault: Fault) -> None:
    assert (row.status, row.error_type in fault.error_types) == (fault.row_status, True), row.error_type
    assert row.usage_source in fault.usage
    is_unknown = row.error_type in ("timeout_ttft", "disconnected") and row.usage_source == "none"
    assert (row.cost_usd is None) == is_unknown
    assert row.usage.output_tokens == 0 or row.usage_source == "estimated"


@pytest.mark.parametrize(("fault", "pair", "streams"), CASES)
async def test_another_endpoint_serves(
    script_upstream: StartUpstream, start_gateway: StartGateway, fault: Fault, pair: Pair, streams: bool
) -> None:
    bad = await script_upstream(fault.stage(pair.upstream, streams))
    fine = await script_upstream(good(pair.upstream, streams))
    gateway = await start_gateway(pair.endpoints(bad, fine, timeouts=timeouts_for(fault)))
    response = await ask(gateway, pair, streams=streams)
    assert response.status_code == 200, response.text
    assert pair.text_of(response.content, streams=streams) == "hello"
    if streams:
        assert pair.client.has_ended(response.content) and pair.client.begins(response.content) == 1
    assert (response.headers["x-hatchway-endpoint"], response.headers["x-hatchway-attempts"]) == ("b", "2")
    assert (len(bad.calls), len(fine.calls)) == (1, 1)
    failed, served = await gateway.settled(2)
    check_failed(failed, fault)
    assert (served.status, served.error_type, served.usage_source) == ("ok", None, "reported")
    assert served.cost_usd == Decimal(COST)


@pytest.mark.parametrize(("fault", "pair", "streams"), CASES)
async def test_nobody_else_is_there(
    script_upstream: StartUpstream, start_gateway: StartGateway, fault: Fault, pair: Pair, streams: bool
) -> None:
    bad = await script_upstream(fault.stage(pair.upstream, streams))
    gateway = await start_gateway(pair.endpoints(bad, timeouts=timeouts_for(fault)))
    response = await ask(gateway, pair, streams=streams)
    check_told(response, fault)
    assert len(bad.calls) == 1
    check_failed((await gateway.settled(1))[0], fault)


def check_told(response: Any, fault: Fault) -> None:
    assert response.status_code == fault.status, response.text
    error = response.json()["error"]
    assert error["code"] == fault.code
    assert response.headers["content-type"] == "application/json"
    for hidden in ("upstream's own words", "sk-other", UPSTREAM_KEY, "Welcome", "Bad Gateway", "busy"):
        assert hidden not in response.text


@pytest.mark.parametrize(("fault", "pair", "streams"), OF_CHAT)
async def test_the_last_endpoint_fails(
    script_upstream: StartUpstream, start_gateway: StartGateway, fault: Fault, pair: Pair, streams: bool
) -> None:
    bad = await script_upstream(fault.stage(pair.upstream, streams))
    gateway = await start_gateway(pair.endpoints(free_port(), bad, timeouts=timeouts_for(fault)))
    response = await ask(gateway, pair, streams=streams)
    if fault.status == 429:  # not everybody is rate-limited
        assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
        assert "retry-after" not in response.headers
    else:
        check_told(response, fault)
    first, last = await gateway.settled(2)
    assert (first.error_type, first.cost_usd) == ("connect_failed", 0)
    check_failed(last, fault)
    assert response.headers["x-hatchway-attempts"] == "2"


@pytest.mark.parametrize("attempts", [2, 3])
@pytest.mark.parametrize(("fault", "pair", "streams"), OF_CHAT)
async def test_nobody_is_hammered(
    script_upstream: StartUpstream,
    start_gateway: StartGateway,
    fault: Fault,
    pair: Pair,
    streams: bool,
    attempts: int,
) -> None:
    """`attempts` bounds the tries at each endpoint; who refused us is not asked again at all."""
    upstreams = [await script_upstream(fault.stage(pair.upstream, streams)) for _ in range(2)]
    gateway = await start_gateway(
        pair.endpoints(*upstreams, timeouts=timeouts_for(fault), retry={"attempts": attempts})
    )
    response = await ask(gateway, pair, streams=streams)
    assert response.status_code == fault.status
    refuses = any(error in ("status_429", "status_401", "status_403", "status_307") for error in fault.error_types)
    says_when = fault.name == "unavailable"
    expected = 1 if refuses or says_when else attempts
    assert [len(upstream.calls) for upstream in upstreams] == [expected, expected]
    rows = await gateway.settled(2 * expected)
    assert [row.attempt for row in rows] == list(range(1, 2 * expected + 1))
    is_silent = fault.row_status == "timeout"  # others are asked before a silent one is asked again
    assert [row.endpoint for row in rows] == (
        ["a", "b"] * expected if is_silent else ["a"] * expected + ["b"] * expected
    )


# Empty answers


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("streams", [False, True])
async def test_an_empty_answer_is_not_taken_while_somebody_else_may_answer(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair, streams: bool
) -> None:
    bad, fine = (
        await script_upstream(empty(pair.upstream, streams)),
        await script_upstream(good(pair.upstream, streams)),
    )
    gateway = await start_gateway(pair.endpoints(bad, fine, retry={"attempts": 3}))
    response = await ask(gateway, pair, streams=streams)
    assert pair.text_of(response.content, streams=streams) == "hello"
    assert len(bad.calls) == 1  # the same prompt again would be answered the same
    rejected, served = await gateway.settled(2)
    assert (rejected.status, rejected.error_type, rejected.usage_source) == ("error", "empty_answer", "reported")
    assert rejected.cost_usd == served.cost_usd == Decimal(COST)  # it was billed


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("streams", [False, True])
async def test_when_all_are_empty_the_last_one_is_the_answer(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair, streams: bool
) -> None:
    upstreams = [await script_upstream(empty(pair.upstream, streams)) for _ in range(2)]
    gateway = await start_gateway(pair.endpoints(*upstreams))
    response = await ask(gateway, pair, streams=streams)
    assert response.status_code == 200
    assert pair.text_of(response.content, streams=streams) == ""
    assert not streams or pair.client.has_ended(response.content)
    rows = await gateway.settled(2)
    assert [(row.endpoint, row.status, row.error_type) for row in rows] == [
        ("a", "error", "empty_answer"),
        ("b", "ok", None),
    ]


@pytest.mark.parametrize("finish", ["length", "content_filter", "tool_calls"])
@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_without_text_that_means_something_is_the_answer(
    script_upstream: StartUpstream, start_gateway: StartGateway, finish: str, streams: bool
) -> None:
    body = CHAT.whole("").replace(b'"stop"', f'"{finish}"'.encode())
    end = CHAT.finish().replace(b'"stop"', f'"{finish}"'.encode())
    script: Script = stream(CHAT.begin, end, CHAT.end) if streams else answer(body=body)
    other = await script_upstream(good(CHAT, streams))
    gateway = await start_gateway(PAIRS[0].endpoints(await script_upstream(script), other))
    response = await ask(gateway, PAIRS[0], streams=streams)
    assert finish in response.text and other.calls == []


# What is nobody's to mend


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize(
    ("status", "code"), [(400, "content_filter"), (400, "invalid_request"), (422, "invalid_request")]
)
async def test_a_callers_mistake_is_not_routed_around(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair, streams: bool, status: int, code: str
) -> None:
    words = "flagged by our content policy" if code == "content_filter" else "no such thing"
    bad = await script_upstream(answer(status=status, body=pair.upstream.refusal(words, code)))
    other = await script_upstream(good(pair.upstream, streams))
    gateway = await start_gateway(pair.endpoints(bad, other, retry={"attempts": 3}))
    response = await ask(gateway, pair, streams=streams)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert words in response.json()["error"]["message"]
    assert (len(bad.calls), other.calls) == (1, [])
    row = (await gateway.settled(1))[0]
    assert (row.error_type, row.usage_source, row.cost_usd) == (f"status_{status}", "none", 0)
    assert gateway.health.outlook(0.0, 0.0).endpoints["a"].failures_in_a_row == 0


@pytest.mark.parametrize("streams", [False, True])
async def test_a_filter_that_answers_200_is_told_as_it_is(
    script_upstream: StartUpstream, start_gateway: StartGateway, streams: bool
) -> None:
    body = CHAT.refusal(f"against our rules, key {UPSTREAM_KEY}", "content_filter")
    script = stream(b"data: " + body + b"\n\n") if streams else answer(body=body)
    other = await script_upstream(good(CHAT, streams))
    gateway = await start_gateway(PAIRS[0].endpoints(await script_upstream(script), other, retry={"attempts": 3}))
    response = await ask(gateway, PAIRS[0], streams=streams)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "content_filter")
    assert response.json()["error"]["message"] == "against our rules, key ***"
    assert other.calls == []
    assert [row.error_type for row in await gateway.settled(1)] == ["stream_error"]


@pytest.mark.parametrize("as_200", [False, True])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("pair", PAIRS[:2], ids=str)
async def test_a_prompt_that_is_too_long_goes_to_a_larger_window(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair, streams: bool, as_200: bool
) -> None:
    body = pair.upstream.refusal("prompt is too long: 9000 tokens > 8000 maximum", "context_length_exceeded")
    refusing = (
        stream(b"data: " + body + b"\n\n") if as_200 and streams else answer(status=200 if as_200 else 400, body=body)
    )
    small, smaller = await script_upstream(refusing), await script_upstream(good(pair.upstream, streams, "wrong"))
    large = await script_upstream(good(pair.upstream, streams))
    document = pair.endpoints(small, smaller, large, retry={"attempts": 3})
    for name, window in (("a", 8000), ("b", 4000), ("c", 128_000)):
        document["endpoints"][name]["context_window"] = window
    gateway = await start_gateway(document)
    for asked in (1, 2):  # it teaches nothing permanent: a short prompt may well fit
        response = await ask(gateway, pair, streams=streams)
        assert pair.text_of(response.content, streams=streams) == "hello"
        assert (len(small.calls), smaller.calls) == (asked, [])


async def test_a_prompt_known_to_be_too_long_is_not_sent_to_a_small_window(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    small, large = await script_upstream(good(CHAT, False)), await script_upstream(good(CHAT, False))
    document = PAIRS[0].endpoints(small, large)
    document["endpoints"]["a"]["context_window"] = 100
    gateway = await start_gateway(document)
    message = {"role": "user", "content": "many words " * 1000}
    response = await gateway.client().post(CHAT.path, json={"model": "asked", "messages": [message]})
    assert response.headers["x-hatchway-endpoint"] == "b"
    assert small.calls == []


# First byte


@pytest.mark.parametrize("streams", [False, True])
async def test_headers_have_a_deadline_of_their_own(
    script_upstream: StartUpstream, start_gateway: StartGateway, streams: bool
) -> None:
    silent = next(fault for fault in FAULTS if fault.name == "silence").stage(CHAT, streams)
    bad, fine = await script_upstream(silent), await script_upstream(good(CHAT, streams))
    timeouts = {**TIMEOUTS, "ttft": FAR, "first_byte": SOON}
    gateway = await start_gateway(PAIRS[0].endpoints(bad, fine, timeouts=timeouts))
    response = await ask(gateway, PAIRS[0], streams=streams)
    assert PAIRS[0].text_of(response.content, streams=streams) == "hello"
    rows = await gateway.settled(2)
    assert [(row.status, row.error_type) for row in rows] == [("timeout", "timeout_first_byte"), ("ok", None)]


async def test_a_deadline_for_headers_does_not_bound_the_body(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    async def slow_body(call: Any) -> None:
        body = CHAT.whole("hello")
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        await asyncio.sleep(0.5)
        await call.send(body)

    gateway = await start_gateway(
        PAIRS[0].endpoints(await script_upstream(slow_body), timeouts={**TIMEOUTS, "first_byte": SOON})
    )
    response = await ask(gateway, PAIRS[0], streams=False)
    assert CHAT.text_of_whole(response.content) == "hello"


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("streams", [False, True])
async def test_missing_usage_is_estimated(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair, streams: bool
) -> None:
    wire = pair.upstream
    whole = answer(body=wire.whole("hello", usage=False))
    texts = ("hel", "lo")
    streamed = stream(wire.begin, *wire.words(*texts), wire.finish(usage=False, texts=texts) + wire.end)
    gateway = await start_gateway(pair.endpoints(await script_upstream(streamed if streams else whole)))
    response = await ask(gateway, pair, streams=streams)
    assert pair.text_of(response.content, streams=streams) == "hello"
    row = (await gateway.settled(1))[0]
    assert (row.status, row.usage_source, row.usage.output_tokens) == ("ok", "estimated", 1)
    assert row.usage.input_tokens > 0 and row.cost_usd


async def test_bursts_of_failures_end_in_an_answer(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    upstream = await script_upstream(refuse(500), refuse(503), refuse(502), good(CHAT, False))
    gateway = await start_gateway(PAIRS[0].endpoints(upstream, retry={"attempts": 4}))
    response = await ask(gateway, PAIRS[0], streams=False)
    assert CHAT.text_of_whole(response.content) == "hello"
    assert [row.error_type for row in await gateway.settled(4)] == ["status_500", "status_503", "status_502", None]
