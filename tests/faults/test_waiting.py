"""Waiting: for an upstream that said when to come back, and what the client of a stream sees meanwhile."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import openai
import pytest

from gateway.pipeline import Pipeline
from tests.faults.scripts import FAR, good, refusing
from tests.faults.wires import CHAT, PAIRS, Pair
from tests.gateway_fixtures import KEY, PATIENCE, Call, Gateway, Script, answer, refuse, stream_then_cut, until
from tests.pipeline.conftest import StartGateway, StartUpstream
from tests.pipeline.test_streams import open_stream

PAIR = PAIRS[0]
TIMEOUTS = {"connect": FAR, "ttft": FAR, "idle": FAR, "total": FAR}
GOOGLES = b'{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.3s"}]}}'  # noqa: E501 - as it comes


async def ask(gateway: Gateway, pair: Pair = PAIR, *, streams: bool = False) -> Any:
    return await gateway.client().post(pair.client.path, json=pair.client.request(stream=streams))


def at_date(seconds: float) -> Script:
    """Asks to come back at a date. Dates have whole seconds."""

    async def run(call: Call) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        await call.answer(429, CHAT.refusal("slow down", "x"), {"retry-after": date})

    return run


@pytest.mark.parametrize(
    "said",
    [
        refuse(429, retry_after="0.3"),
        refuse(503, retry_after="0.3"),
        refuse(529, retry_after="0.3"),
        refuse(429, retry_after_ms="300"),
        answer(status=429, body=GOOGLES),
        at_date(1.5),
    ],
    ids=["429", "503", "529", "milliseconds", "retry-info", "date"],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_the_only_endpoint_is_asked_again_when_it_said(
    script_upstream: StartUpstream, start_gateway: StartGateway, said: Script, streams: bool
) -> None:
    asked: list[float] = []

    def noting(script: Script) -> Script:
        async def run(call: Call) -> None:
            asked.append(asyncio.get_running_loop().time())
            await script(call)

        return run

    upstream = await script_upstream(noting(said), noting(good(CHAT, streams)))
    gateway = await start_gateway(PAIR.endpoints(upstream, timeouts=TIMEOUTS, retry={"attempts": 2}))
    response = await ask(gateway, streams=streams)
    assert PAIR.text_of(response.content, streams=streams) == "hello"
    assert len(asked) == 2 and asked[1] - asked[0] >= 0.29  # not before
    rows = await gateway.settled(2)
    assert [(row.status, row.cost_usd == 0) for row in rows] == [("error", True), ("ok", False)]


async def test_others_are_asked_before_anybody_is_waited_for(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstreams = [
        await script_upstream(refuse(429, retry_after="0.2"), good(CHAT, False)),
        await script_upstream(refuse(500)),
        await script_upstream(refuse(429, retry_after="30")),
    ]
    gateway = await start_gateway(PAIR.endpoints(*upstreams, timeouts=TIMEOUTS, retry={"attempts": 2}))
    response = await ask(gateway)
    assert CHAT.text_of_whole(response.content) == "hello"
    assert response.headers["x-hatchway-attempts"] == "5"
    assert [row.endpoint for row in await gateway.settled(5)] == ["a", "b", "b", "c", "a"]


@pytest.mark.parametrize(
    ("seconds", "policy"),
    [
        ("30", {"retry": {"attempts": 2}}),
        ("0.4", {"retry": {"attempts": 2, "max_wait": "100ms"}}),
        ("0.1", {"retry": {"attempts": 1}}),
        ("4", {"retry": {"attempts": 2}, "timeouts": {"connect": "1s", "ttft": "1s", "total": "2s"}}),
    ],
    ids=["too long", "longer than allowed", "no attempt left", "longer than total"],
)
async def test_a_wait_that_is_not_worth_it_is_told_to_the_client(
    script_upstream: StartUpstream, start_gateway: StartGateway, seconds: str, policy: Any
) -> None:
    upstream = await script_upstream(refuse(429, retry_after=seconds))
    gateway = await start_gateway(PAIR.endpoints(upstream, **policy))
    response = await ask(gateway)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert response.headers["retry-after"] == str(max(1, round(float(seconds))))
    assert len(upstream.calls) == 1


async def test_a_client_that_leaves_while_we_wait_ends_the_request(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    upstream = await script_upstream(refuse(429, retry_after="4"))
    gateway = await start_gateway(PAIR.endpoints(upstream, timeouts=TIMEOUTS, retry={"attempts": 2}))
    _, writer = await open_stream(gateway)
    await until(lambda: len(gateway.records()) == 1)
    writer.transport.abort()
    await until(lambda: not gateway.metric("hatchway_in_flight_requests"))
    assert len(upstream.calls) == 1
    await gateway.settled(1)


# Signs of life

SOON = {"keep_alive": "100ms"}


def slow_to_begin(pair: Pair, seconds: float = 0.35) -> Script:
    async def run(call: Call) -> None:
        await asyncio.sleep(seconds)
        await good(pair.upstream, True)(call)

    return run


@pytest.mark.parametrize("pair", PAIRS, ids=str)
async def test_the_client_of_a_slow_stream_gets_comments(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair
) -> None:
    gateway = await start_gateway(
        pair.endpoints(await script_upstream(slow_to_begin(pair)), timeouts=TIMEOUTS, streaming=SOON)
    )
    response = await ask(gateway, pair, streams=True)
    comments, _, rest = response.content.rpartition(b": keep-alive\n\n")
    assert set(comments.split(b"\n\n")) <= {b": keep-alive", b""} and b": keep-alive" not in rest
    assert 2 <= comments.count(b"keep-alive") + 1 <= 4
    assert pair.client.text_of_stream(response.content) == "hello" and pair.client.has_ended(response.content)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-hatchway-endpoint"] == "a"
    assert [row.status for row in await gateway.settled(1)] == ["ok"]


async def test_another_endpoint_may_serve_after_comments(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    async def slow_to_fail(call: Call) -> None:
        await asyncio.sleep(0.2)
        await refusing(500)(CHAT, True)(call)

    upstreams = await script_upstream(slow_to_fail), await script_upstream(slow_to_begin(PAIR, 0.1))
    gateway = await start_gateway(PAIR.endpoints(*upstreams, timeouts=TIMEOUTS, streaming=SOON))
    response = await ask(gateway, streams=True)
    assert response.headers["x-hatchway-endpoint"] == "a"  # the one that was tried when the reply began
    assert CHAT.text_of_stream(response.content) == "hello"
    assert b": keep-alive" in response.content
    assert [row.status for row in await gateway.settled(2)] == ["error", "ok"]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
async def test_a_failure_after_comments_is_an_error_event(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair
) -> None:
    async def slow_to_refuse(call: Call) -> None:
        await asyncio.sleep(0.2)
        await call.answer(400, pair.upstream.refusal("no such thing", "invalid_request"))

    gateway = await start_gateway(
        pair.endpoints(await script_upstream(slow_to_refuse), timeouts=TIMEOUTS, streaming=SOON)
    )
    response = await ask(gateway, pair, streams=True)
    assert response.status_code == 200
    error = pair.client.error_in(response.content)
    assert (error["code"], "no such thing" in error["message"]) == ("invalid_request", True)


async def test_the_sdk_raises_what_comes_after_comments(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    async def slow_to_fail(call: Call) -> None:
        await asyncio.sleep(0.2)
        await stream_then_cut(CHAT.begin)(call)

    gateway = await start_gateway(
        PAIR.endpoints(await script_upstream(slow_to_fail), timeouts=TIMEOUTS, streaming=SOON)
    )
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        chunks = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="disconnected"):
            async for _ in chunks:
                pass


async def test_once_there_is_content_there_are_no_more_comments(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    async def with_a_pause(call: Call) -> None:
        await asyncio.sleep(0.25)
        await call.start_stream()
        await call.stream(CHAT.begin + CHAT.words("hel")[0])
        await asyncio.sleep(0.3)
        await call.stream(CHAT.words("lo")[0] + CHAT.finish() + CHAT.end)
        await call.end_stream()

    gateway = await start_gateway(
        PAIR.endpoints(await script_upstream(with_a_pause), timeouts=TIMEOUTS, streaming=SOON)
    )
    body = (await ask(gateway, streams=True)).content
    assert body.startswith(b": keep-alive") and b"keep-alive" not in body[body.index(CHAT.words("hel")[0]) :]
    assert CHAT.text_of_stream(body) == "hello"


async def test_what_has_begun_and_is_not_shown_is_settled(
    script_upstream: StartUpstream, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in between: the upstream is let go, and the row says what it has used."""
    gone = asyncio.Event()

    async def begin_and_hang(call: Call) -> None:
        await call.start_stream()
        await call.stream(CHAT.begin + CHAT.words("hel")[0])
        await call.wait_for_close()
        gone.set()

    async def fail(self: Pipeline, exchange: object, attempt: object) -> bool:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(Pipeline, "_show", fail)
    gateway = await start_gateway(PAIR.endpoints(await script_upstream(begin_and_hang), timeouts=TIMEOUTS))
    assert (await ask(gateway, streams=True)).status_code == 500
    async with asyncio.timeout(PATIENCE):
        await gone.wait()
    row = (await gateway.settled(1))[0]
    assert (row.status, row.usage_source, row.usage.output_tokens) == ("cancelled", "estimated", 1)


async def test_a_whole_answer_gets_no_comments(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    async def slow(call: Call) -> None:
        await asyncio.sleep(0.25)
        await call.answer(200, CHAT.whole("hello"))

    gateway = await start_gateway(PAIR.endpoints(await script_upstream(slow), timeouts=TIMEOUTS, streaming=SOON))
    assert CHAT.text_of_whole((await ask(gateway)).content) == "hello"


async def test_a_client_that_leaves_after_comments_is_noticed(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    gone = asyncio.Event()

    async def hang(call: Call) -> None:
        await call.wait_for_close()
        gone.set()

    gateway = await start_gateway(PAIR.endpoints(await script_upstream(hang), timeouts=TIMEOUTS, streaming=SOON))
    reader, writer = await open_stream(gateway)
    async with asyncio.timeout(PATIENCE):
        await reader.readuntil(b": keep-alive\n\n")
        writer.transport.abort()
        await gone.wait()
    row = (await gateway.settled(1))[0]
    assert (row.status, row.error_type) == ("cancelled", "client_disconnected")
