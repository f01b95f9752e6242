"""A stream on its way through: what the client sees, and what happens when either side ends it early."""

from __future__ import annotations

import asyncio
import re
import struct
from socket import SO_LINGER, SOL_SOCKET

import openai
import pytest

from tests.gateway_fixtures import (
    DONE,
    KEY,
    PATIENCE,
    ROLE,
    STOP,
    USAGE_EVENT,
    Call,
    Gateway,
    Script,
    Upstream,
    answer,
    chat,
    endpoints,
    event,
    events_of,
    good_stream,
    hang,
    post,
    stream,
    stream_apart,
    stream_then_cut,
    stream_then_hang,
    text_of,
    until,
    words,
)
from tests.pipeline.conftest import StartGateway, StartUpstream


def sdk(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE)


async def read_all(gateway: Gateway, **fields: object) -> str:
    """The text of a stream as the official SDK reads it."""
    parts = []
    async with sdk(gateway) as client:
        chunks = await client.chat.completions.create(
            model="gpt-test", messages=[{"role": "user", "content": "hi"}], stream=True, **fields
        )  # type: ignore[call-overload]
        async for chunk in chunks:
            if chunk.choices:
                parts.append(chunk.choices[0].delta.content or "")
                if len(parts) > 1000:
                    raise AssertionError("no end")
    return "".join(parts)


async def open_stream(gateway: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A streamed request on a connection of its own, sent and not yet read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true}'
    writer.write(post(body))
    return reader, writer


# What the client sees


@pytest.mark.parametrize("cuts", [1, 7, 10_000])
async def test_the_stream_arrives_as_it_was_sent(
    script_upstream: StartUpstream, start_gateway: StartGateway, cuts: int
) -> None:
    unknown = event({"content": "ü✗😀", "x": 1}, weird={"a": [1.50]}).replace(b"1.5", b"1.50")
    whole = ROLE + b": keep-alive\n\n" + unknown + words('quoted "usage": {"a": 1} [DONE] "error"')[0] + STOP + DONE
    upstream = await script_upstream(stream(*(whole[at : at + cuts] for at in range(0, len(whole), cuts))))
    gateway = await start_gateway(endpoints(upstream))
    response = await gateway.ask(stream=True)
    assert response.content == whole
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    rows = await gateway.settled(1)
    assert (rows[0].status, rows[0].usage_source) == ("ok", "estimated")  # no usage came
    assert rows[0].usage.output_tokens > 5


@pytest.mark.parametrize("asked", [None, {"include_usage": False}, {}])
async def test_an_unasked_usage_chunk_is_hidden(
    script_upstream: StartUpstream, start_gateway: StartGateway, asked: object
) -> None:
    upstream = await script_upstream(good_stream("hel", "lo"))
    gateway = await start_gateway(endpoints(upstream))
    response = await gateway.ask(stream=True, stream_options=asked)
    assert response.content == ROLE + b"".join(words("hel", "lo")) + STOP + DONE
    assert upstream.calls[0].json["stream_options"] == {"include_usage": True}
    rows = await gateway.settled(1)
    assert (rows[0].usage.input_tokens, rows[0].usage.output_tokens, rows[0].usage_source) == (10, 5, "reported")


async def test_an_asked_usage_chunk_is_shown(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    upstream = await script_upstream(good_stream("hello"))
    gateway = await start_gateway(endpoints(upstream))
    response = await gateway.ask(stream=True, stream_options={"include_usage": True, "x": 1})
    assert events_of(response.content)[-2]["usage"]["total_tokens"] == 15
    assert USAGE_EVENT in response.content
    assert upstream.calls[0].json["stream_options"] == {"include_usage": True, "x": 1}


async def test_the_role_chunk_is_held_back_until_content(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    go_on = asyncio.Event()
    role_sent = asyncio.Event()

    async def pause_after_role(call: Call) -> None:
        await call.start_stream()
        await call.stream(ROLE)
        role_sent.set()
        await go_on.wait()
        await call.stream(*words("hi"), STOP, DONE)
        await call.end_stream()

    upstream = await script_upstream(pause_after_role)
    gateway = await start_gateway(endpoints(upstream))
    reader, writer = await open_stream(gateway)
    await role_sent.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), 0.1)
    go_on.set()
    async with asyncio.timeout(PATIENCE):
        assert ROLE in await reader.read()
    writer.close()


@pytest.mark.parametrize(
    "first",
    [
        event({"content": "x"}),
        event({"reasoning_content": "x"}),
        event({"reasoning": "x"}),
        event({"refusal": "x"}),
        event({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}),
        event({}, finish="content_filter"),
    ],
)
async def test_content_is_forwarded_as_soon_as_it_comes(
    script_upstream: StartUpstream, start_gateway: StartGateway, first: bytes
) -> None:
    upstreams: list[Upstream] = []
    upstreams.append(await script_upstream(stream_then_hang(upstreams, ROLE, first)))
    gateway = await start_gateway(endpoints(upstreams[0]))
    reader, writer = await open_stream(gateway)
    async with asyncio.timeout(PATIENCE):
        received = await reader.readuntil(first)
    assert ROLE in received
    writer.close()
    await gateway.settled(1)


async def test_headers_say_who_served(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    upstream = await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(upstream))
    headers = (await gateway.ask(stream=True)).headers
    row = (await gateway.settled(1))[0]
    assert headers["x-hatchway-request-id"] == row.request_id
    assert headers["x-hatchway-endpoint"] == "a"
    assert headers["x-hatchway-route"] == "all"
    assert headers["x-hatchway-policy-version"] == gateway.pipeline.snapshot.configuration.version
    assert headers["x-hatchway-attempts"] == "1"
    assert "x-hatchway-cost-usd" not in headers


# Failures after content


@pytest.mark.parametrize(
    ("ending", "error_type"),
    [
        (stream_then_cut(ROLE, *words("hel")), "disconnected"),
        (stream_then_cut(ROLE, *words("hel"), words("half")[0][:40]), "disconnected"),
        (stream(ROLE, *words("hel")), "disconnected"),
        (
            stream_apart(ROLE, *words("hel"), b'data: {"error": {"message": "sk-other"}}\n\n'),
            "stream_error",
        ),
        (stream_apart(ROLE, *words("hel"), b'data: {"error": "overloaded"}\n\n', DONE), "stream_error"),
        (stream_apart(ROLE, *words("hel"), b'data: {"usage": {]}\n\n', DONE), "protocol_error"),
    ],
)
async def test_a_failure_after_content_ends_in_an_error_that_the_sdk_raises(
    script_upstream: StartUpstream, start_gateway: StartGateway, ending: Script, error_type: str
) -> None:
    bad, good = await script_upstream(ending), await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(bad, good))
    response = await gateway.ask(stream=True)
    assert response.status_code == 200
    *before, error = events_of(response.content)
    assert error["error"]["code"] == "upstream_error"
    assert before[-1]["choices"][0]["delta"]["content"] == "hel"  # whole events only
    assert "[DONE]" not in response.text and "sk-other" not in response.text
    with pytest.raises(openai.APIError, match=error_type):
        await read_all(gateway)
    rows = await gateway.settled(2)
    for row in rows:
        assert (row.endpoint, row.status, row.error_type) == ("a", "error", error_type)
        assert row.usage_source == "estimated" and row.usage.output_tokens == 1 and row.cost_usd
        assert row.ttft_ms is not None
    assert good.calls == []


async def test_a_stream_that_falls_silent_ends_in_an_error_at_idle(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstreams: list[Upstream] = []
    upstreams.append(await script_upstream(stream_then_hang(upstreams, ROLE, *words("hel"))))
    good = await script_upstream(good_stream())
    timeouts = {"ttft": "20s", "idle": "150ms", "total": "20s"}
    gateway = await start_gateway(endpoints(upstreams[0], good, timeouts=timeouts))
    with pytest.raises(openai.APIError, match="timeout_idle"):
        await read_all(gateway)
    rows = await gateway.settled(1)
    assert (rows[0].status, rows[0].error_type, rows[0].usage_source) == ("timeout", "timeout_idle", "estimated")
    async with asyncio.timeout(PATIENCE):
        await upstreams[0].closed.wait()
    assert good.calls == []


async def test_usage_reported_before_a_failure_is_what_counts(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(stream_then_cut(ROLE, *words("hel"), STOP, USAGE_EVENT))
    gateway = await start_gateway(endpoints(upstream))
    await gateway.ask(stream=True)
    row = (await gateway.settled(1))[0]
    assert (row.status, row.usage_source, row.usage.total) == ("error", "reported", 15)


@pytest.mark.parametrize(
    "whole",
    [
        ROLE + words("hello")[0] + STOP,  # no [DONE]
        ROLE + words("hello")[0] + STOP + DONE.strip(),  # no blank line at the end
        ROLE + words("hello")[0] + DONE,  # no finish reason
        (ROLE + words("hello")[0] + STOP + DONE).replace(b"\n", b"\r\n"),
        (ROLE + words("hello")[0] + STOP + DONE).replace(b"data: ", b"event: message\ndata: "),
        (ROLE + words("hello")[0] + STOP + DONE).replace(b"data: ", b"data:"),
    ],
)
async def test_streams_of_less_careful_servers_are_whole(
    script_upstream: StartUpstream, start_gateway: StartGateway, whole: bytes
) -> None:
    gateway = await start_gateway(endpoints(await script_upstream(stream(whole))))
    assert await read_all(gateway) == "hello"
    assert [row.status for row in await gateway.settled(1)] == ["ok"]


async def test_an_answer_instead_of_a_stream_is_no_stream(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(endpoints(await script_upstream(answer()), await script_upstream(good_stream())))
    assert text_of((await gateway.ask(stream=True)).content) == "hello"
    assert [row.status for row in await gateway.settled(2)] == ["error", "ok"]


# The client leaves


@pytest.mark.parametrize("content", [(), (ROLE,), (ROLE, *words("hel", "lo"))], ids=["silent", "role", "content"])
@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_cancels_the_upstream(
    script_upstream: StartUpstream, start_gateway: StartGateway, content: tuple[bytes, ...], leave: str
) -> None:
    upstreams: list[Upstream] = []
    upstreams.append(await script_upstream(stream_then_hang(upstreams, *content)))
    other = await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(upstreams[0], other, retry={"attempts": 3}))
    reader, writer = await open_stream(gateway)
    async with asyncio.timeout(PATIENCE):
        if len(content) > 1:
            await reader.readuntil(content[-1])
        await until(lambda: upstreams[0].calls)
        if leave == "reset":
            end = writer.get_extra_info("socket")
            end.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await upstreams[0].closed.wait()
    rows = await gateway.settled(1)
    assert (rows[0].status, rows[0].error_type) == ("cancelled", "client_disconnected")
    assert rows[0].usage.output_tokens == (1 if len(content) > 1 else 0)  # "hello"
    assert (rows[0].ttft_ms is not None) == (len(content) > 1)
    assert other.calls == [] and len(upstreams[0].calls) == 1
    assert gateway.metric('hatchway_requests_total{status="499",surface="chat"}') == 1
    assert gateway.metric("hatchway_in_flight_requests") == 0
    assert gateway.health.outlook(0.0, 0.0).endpoints["a"].in_flight == 0
    assert gateway.health.outlook(0.0, 0.0).endpoints["a"].failures_in_a_row == 0  # not the endpoint's fault


async def test_a_client_that_leaves_before_a_whole_answer_cancels_the_upstream(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    closed = asyncio.Event()

    async def note_close(call: Call) -> None:
        await hang(call)
        closed.set()

    upstream = await script_upstream(note_close)
    gateway = await start_gateway(endpoints(upstream))
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(post(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'))
    async with asyncio.timeout(PATIENCE):
        await until(lambda: upstream.calls)
        writer.transport.abort()
        await closed.wait()
    row = (await gateway.settled(1))[0]
    assert (row.status, row.usage_source, row.cost_usd) == ("cancelled", "none", None)


async def test_a_client_that_leaves_between_two_tries_ends_the_request(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(answer(status=500, body=b"{}"))
    gateway = await start_gateway(endpoints(upstream, retry={"attempts": 10}))
    _, writer = await open_stream(gateway)
    async with asyncio.timeout(PATIENCE):
        await until(lambda: len(gateway.records()) >= 2)
        writer.transport.abort()
        await until(lambda: not gateway.metric("hatchway_in_flight_requests"))
    assert {row.status for row in gateway.records()} <= {"error", "cancelled"}
    assert 2 <= len(upstream.calls) < 10
    assert len(gateway.records("S")) == len(gateway.records())


async def test_a_client_that_has_everything_may_leave(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """The end of the upstream's message is still awaited after `[DONE]`; leaving then takes nothing back."""
    upstreams: list[Upstream] = []
    upstreams.append(await script_upstream(stream_then_hang(upstreams, ROLE, *words("hello"), STOP, DONE)))
    gateway = await start_gateway(endpoints(upstreams[0]))
    reader, writer = await open_stream(gateway)
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b"[DONE]\n\n")
        await asyncio.sleep(0.05)
        writer.transport.abort()
    row = (await gateway.settled(1))[0]
    assert (row.status, row.error_type) == ("ok", None)
    assert gateway.metric('hatchway_requests_total{status="200",surface="chat"}') == 1


async def test_the_upstreams_connection_is_used_again(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(good_stream())
    gateway = await start_gateway(endpoints(upstream))
    client = gateway.client()
    for _ in range(3):
        response = await client.post("/v1/chat/completions", json=chat(stream=True))
        assert text_of(response.content) == "hello"
        await gateway.settled(len(upstream.calls))
    assert len({call.writer for call in upstream.calls}) == 1


async def test_a_client_that_takes_nothing_holds_the_upstream_back(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """What neither side takes lies in buffers of known size, and goes on where it stopped."""
    events = [words(f"{number:07d}" + "y" * 200_000)[0] for number in range(150)]
    sent = 0

    async def much(call: Call) -> None:
        nonlocal sent
        await call.start_stream()
        await call.stream(ROLE)
        for one in events:
            await call.stream(one)
            sent += len(one)
        await call.stream(STOP, DONE)
        await call.end_stream()

    gateway = await start_gateway(endpoints(await script_upstream(much)))
    reader, writer = await open_stream(gateway)
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    assert 0 < sent < 25_000_000  # of 30: the kernel's buffers
    pieces = []
    async with asyncio.timeout(PATIENCE):
        while not pieces or b"[DONE]" not in pieces[-1]:
            pieces.append(await reader.read(1 << 20))
    body = b"".join(pieces)
    writer.close()
    assert body.count(b"yyyy") == 150 * 50_000
    assert re.findall(rb"(\d{7})y", body) == [b"%07d" % number for number in range(150)]
    assert [row.status for row in await gateway.settled(1)] == ["ok"]


async def test_a_client_that_leaves_while_it_takes_nothing(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    closed = asyncio.Event()

    async def endless(call: Call) -> None:
        await call.start_stream()
        try:
            while True:
                await call.stream(*words("y" * 200_000))
        finally:
            closed.set()

    gateway = await start_gateway(endpoints(await script_upstream(endless)))
    reader, writer = await open_stream(gateway)
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b"yyyy")
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await closed.wait()
    rows = await gateway.settled(1)
    assert (rows[0].status, rows[0].error_type) == ("cancelled", "client_disconnected")
    assert rows[0].usage.output_tokens > 1000


@pytest.mark.parametrize("fault", ["cut", "error", "silent", "no end"])
async def test_a_stream_that_fails_long_after_its_beginning(
    script_upstream: StartUpstream, start_gateway: StartGateway, fault: str
) -> None:
    """Each event comes by itself, so that it is passed on from where it was received."""
    said = words(*(f" word{number}" for number in range(12)))
    ends = {"error": event({}).replace(b'"choices"', b'"error": {"message": "broken"}, "choices"'), "no end": b""}

    async def run(call: Call) -> None:
        await call.start_stream()
        for one in (ROLE, *said):
            await call.stream(one)
            await asyncio.sleep(0.025)
        if fault == "cut":
            call.cut()
        elif fault == "silent":
            while True:  # which is no progress
                await call.stream(b": still here\n\n")
                await asyncio.sleep(0.05)
        else:
            await call.stream(ends[fault])
            await call.end_stream()

    document = endpoints(await script_upstream(run), timeouts={"idle": "200ms"})  # less than it takes
    gateway = await start_gateway(document)
    response = await gateway.ask(stream=True)
    shown = ROLE + b"".join(said)
    assert response.content.startswith(shown)
    rest = response.content[len(shown) :].replace(b": still here\n\n", b"")
    assert rest.startswith(b'data: {"error"') and rest.count(b"data: ") == 1 and b"[DONE]" not in rest
    row = (await gateway.settled(1))[0]
    assert row.status == ("timeout" if fault == "silent" else "error")
    assert (row.usage_source, row.usage.output_tokens > 10) == ("estimated", True)
