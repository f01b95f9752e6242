"""Streams that break off once there is content: at every byte, in every mode. No text twice, and none lost."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.faults.scripts import FAR, SOON, good
from tests.faults.wires import CHAT, MESSAGES, PAIRS, Pair, events_of
from tests.gateway_fixtures import KEY, PATIENCE, Call, Gateway, Script, Upstream, stream, stream_apart, stream_then_cut
from tests.pipeline.conftest import StartGateway, StartUpstream

TEXTS = ("Häll", "o ", "wor", "ld, ", "how  ", "\n are", " you?")
FULL = "".join(TEXTS)
TIMEOUTS = {"connect": FAR, "ttft": FAR, "idle": FAR, "total": FAR}


async def ask(gateway: Gateway, pair: Pair = PAIRS[0], **fields: Any) -> Any:
    return await gateway.client().post(pair.client.path, json=pair.client.request(stream=True, **fields))


def whole_stream(pair: Pair = PAIRS[0], *texts: str) -> bytes:
    wire, texts = pair.upstream, texts or TEXTS
    return b"".join((wire.begin, *wire.words(*texts), wire.finish(texts=texts), wire.end))


def cuts_of(whole: bytes, step: int) -> list[int]:
    """Numbers of bytes after which a stream is cut: every `step`, and those around the end of each event."""
    ends = {at for at in range(len(whole)) if whole.startswith(b"\n\n", at)}
    around = {end + offset for end in ends for offset in (-1, 0, 1, 2, 3)}
    return sorted(at for at in {*range(0, len(whole), step), *around} if 0 <= at < len(whole))


def cut_at(whole: bytes, cuts: list[int]) -> Script:
    """One call after the other is cut at the next of these places."""
    waiting = iter(cuts)

    async def run(call: Call) -> None:
        sent = whole[: next(waiting)]
        await stream_then_cut(*([sent] if sent else []))(call)

    return run


async def ask_often(gateway: Gateway, pair: Pair, count: int) -> list[bytes]:
    """Some at once, or it would take long."""
    client = gateway.client()

    async def one() -> bytes:
        response = await client.post(pair.client.path, json=pair.client.request(stream=True))
        assert response.status_code == 200, response.text
        return bytes(response.content)

    answers: list[bytes] = []
    for start in range(0, count, 40):
        answers += await asyncio.gather(*(one() for _ in range(min(40, count - start))))
    return answers


def continuing(whole: str = FULL, *, pair: Pair = PAIRS[0]) -> Script:
    """Writes the whole text, or what is missing where the beginning is given."""

    async def run(call: Call) -> None:
        last = call.json["messages"][-1]
        given = ""
        if last["role"] == "assistant":
            content = last["content"]
            given = content if isinstance(content, str) else "".join(part["text"] for part in content)
        assert whole.startswith(given), given
        rest = whole[len(given) :]
        texts = [rest[at : at + 3] for at in range(0, len(rest), 3)]
        wire = pair.upstream
        await stream(wire.begin, *wire.words(*texts), wire.finish(texts=tuple(texts)) + wire.end)(call)

    return run


def with_prefill(document: dict[str, Any], how: str, *names: str) -> dict[str, Any]:
    """The providers of these endpoints can be told to go on."""
    document["adapters"] = {"goes-on": {"like": "openai-compatible", "dialect": {"prefill": how}}}
    for name in names:
        document["providers"][f"p-{name}"]["adapter"] = "goes-on"
    return document


@pytest.mark.parametrize("pair", PAIRS, ids=str)
async def test_a_cut_at_any_byte_is_an_error_or_nothing_was_seen(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair
) -> None:
    whole = whole_stream(pair, "Häl", "lo")
    cuts = cuts_of(whole, 11 if pair is PAIRS[0] else 61)
    bad, fine = await script_upstream(cut_at(whole, cuts)), await script_upstream(good(pair.upstream, True, "other"))
    document = pair.endpoints(bad, fine, timeouts=TIMEOUTS, select="priority")
    gateway = await start_gateway(document)
    gateway.health.fail = lambda *_, **__: None  # type: ignore[method-assign]  # or it would be left alone soon
    answers = await ask_often(gateway, pair, len(cuts))
    seen: set[str] = set()
    for body in answers:
        text = pair.client.text_of_stream(body)
        assert pair.client.begins(body) == 1
        if text == "other":
            assert pair.client.has_ended(body)
        else:
            assert "Hällo".startswith(text) and text
            assert pair.client.has_ended(body) != (pair.client.error_in(body) is not None)
        seen.add(text)
    assert seen == {"other", "Häl", "Hällo"}


@pytest.mark.parametrize("hold", [1, 4, 1000])
async def test_a_restart_shows_nothing_twice(
    script_upstream: StartUpstream, start_gateway: StartGateway, hold: int
) -> None:
    whole = whole_stream()
    cuts = cuts_of(whole, 97)
    bad, fine = await script_upstream(cut_at(whole, cuts)), await script_upstream(good(CHAT, True, "other"))
    streaming = {"on_failure": "restart", "hold_tokens": hold}
    gateway = await start_gateway(PAIRS[0].endpoints(bad, fine, timeouts=TIMEOUTS, streaming=streaming))
    gateway.health.fail = lambda *_, **__: None  # type: ignore[method-assign]
    answers = await ask_often(gateway, PAIRS[0], len(cuts))
    shown = set()
    for body in answers:
        text = CHAT.text_of_stream(body)
        assert CHAT.begins(body) == 1
        if text == "other":
            assert CHAT.has_ended(body)
        else:
            assert FULL.startswith(text) and len(text) >= min(4 * hold, len(FULL))
            assert CHAT.has_ended(body) != (CHAT.error_in(body) is not None)
        shown.add(text)
    assert "other" in shown
    assert (TEXTS[0] in shown) == (hold == 1)
    assert (FULL in shown) == (hold < 1000)  # its end was not seen: it is no whole stream


@pytest.mark.parametrize("how", ["prefix", "partial", "continue", "plain", "messages"])
async def test_a_stream_is_gone_on_with_from_any_byte(
    script_upstream: StartUpstream, start_gateway: StartGateway, how: str
) -> None:
    """Whatever was shown is what the next endpoint is given, and both together are the whole text."""
    whole = whole_stream()
    text_ends = whole.index(CHAT.finish())  # behind that the end was seen
    cuts = [at for at in cuts_of(whole, 23 if how == "prefix" else 151) if at <= text_ends]
    pair = Pair(CHAT, MESSAGES) if how == "messages" else PAIRS[0]
    bad, fine = await script_upstream(cut_at(whole, cuts)), await script_upstream(continuing(pair=pair))
    document = PAIRS[0].endpoints(bad, fine, timeouts=TIMEOUTS, streaming={"on_failure": "continue"})
    if how == "messages":
        document["providers"]["p-b"]["adapter"] = "anthropic"
        document["endpoints"]["b"]["speaks"] = ["messages"]
    else:
        with_prefill(document, how, "b")
    gateway = await start_gateway(document)
    gateway.health.fail = lambda *_, **__: None  # type: ignore[method-assign]
    answers = await ask_often(gateway, PAIRS[0], len(cuts))
    for body in answers:
        assert CHAT.text_of_stream(body) == FULL, body
        assert CHAT.begins(body) == 1 and CHAT.has_ended(body)
    if how != "messages":
        given = {call.json["messages"][-1]["content"] for call in fine.calls if len(call.json["messages"]) > 1}
        assert given == {"".join(TEXTS[:count]) for count in range(1, len(TEXTS) + 1)}
    rest = next(call.json for call in fine.calls if len(call.json["messages"]) > 1)
    assert rest["messages"][-1].get("prefix") is (True if how == "prefix" else None)
    assert rest["messages"][-1].get("partial") is (True if how == "partial" else None)
    assert rest.get("continue_final_message") is (True if how == "continue" else None)
    assert rest.get("add_generation_prompt") is (False if how == "continue" else None)


async def test_the_rest_belongs_to_the_same_message(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    first = CHAT.begin.replace(b"chatcmpl-1", b"chatcmpl-7")
    said = [word.replace(b"chatcmpl-1", b"chatcmpl-7") for word in CHAT.words("Hel")]
    bad, fine = await script_upstream(stream_then_cut(first, *said)), await script_upstream(continuing("Hello"))
    document = PAIRS[0].endpoints(bad, fine, timeouts=TIMEOUTS, streaming={"on_failure": "continue"})
    gateway = await start_gateway(with_prefill(document, "prefix", "b"))
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                max_completion_tokens=50,
                stream_options={"include_usage": True},
            )
        ]
    assert {chunk.id for chunk in chunks} == {"chatcmpl-7"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    asked = fine.calls[0].json
    assert asked["max_completion_tokens"] == 49  # one token of it was written already
    broken, rest = await gateway.settled(2)
    assert (broken.status, broken.error_type, broken.usage_source) == ("error", "disconnected", "estimated")
    assert (rest.status, rest.usage_source, rest.endpoint) == ("ok", "reported", "b")
    used = chunks[-1].usage
    assert used is not None
    assert used.completion_tokens == broken.usage.output_tokens + rest.usage.output_tokens
    assert used.prompt_tokens == broken.usage.input_tokens + rest.usage.input_tokens
    assert gateway.metric('hatchway_continuations_total{endpoint="b",outcome="served"}') == 1


@pytest.mark.parametrize("ending", ["cut", "error in the same bytes"])
async def test_a_stream_is_gone_on_with_more_than_once(
    script_upstream: StartUpstream, start_gateway: StartGateway, ending: str
) -> None:
    async def one_more(call: Call) -> None:
        given = call.json["messages"][-1]["content"]
        words = CHAT.words(FULL[len(given) : len(given) + 3], FULL[len(given) + 3 : len(given) + 5])
        first, last = (word.replace(b"chatcmpl-1", b"chatcmpl-2") for word in words)
        if ending == "cut":
            await stream_then_cut(CHAT.begin, first, last)(call)
        else:
            await stream_apart(CHAT.begin + first, last + CHAT.error)(call)

    upstreams = [
        await script_upstream(stream_then_cut(CHAT.begin, *CHAT.words(TEXTS[0]))),
        await script_upstream(one_more),
        await script_upstream(continuing()),
    ]
    document = PAIRS[0].endpoints(*upstreams, timeouts=TIMEOUTS, streaming={"on_failure": "continue"})
    gateway = await start_gateway(with_prefill(document, "plain", "b", "c"))
    body = (await ask(gateway)).content
    assert CHAT.text_of_stream(body) == FULL and CHAT.has_ended(body)
    assert [row.status for row in await gateway.settled(3)] == ["error", "error", "ok"]
    assert upstreams[2].calls[0].json["messages"][-1]["content"] == FULL[: len(TEXTS[0]) + 5]
    assert {data["id"] for data in events_of(body)} == {"chatcmpl-1"}


async def test_blanks_that_a_protocol_does_not_take_are_not_doubled(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """The `messages` protocol refuses a beginning that ends in blanks: the model may write them again, or not."""
    for again in ("", " ", "  ", "  \n"):
        bad = await script_upstream(stream_then_cut(CHAT.begin, *CHAT.words("one  \n")))
        rest = stream(MESSAGES.begin, *MESSAGES.words(*again, "two"), MESSAGES.finish() + MESSAGES.end)
        fine = await script_upstream(rest)
        document = PAIRS[0].endpoints(bad, fine, timeouts=TIMEOUTS, streaming={"on_failure": "continue"})
        document["providers"]["p-b"]["adapter"] = "anthropic"
        document["endpoints"]["b"]["speaks"] = ["messages"]
        gateway = await start_gateway(document)
        body = (await ask(gateway)).content
        assert CHAT.text_of_stream(body) == "one  \ntwo"
        await gateway.stop()
        assert fine.calls[0].json["messages"][-1]["content"] in ("one", [{"type": "text", "text": "one"}])


NOT_CONTINUED = {
    "tool call": [b'{"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}'],
    "reasoning": [b'{"reasoning_content": "hm"}', b'{"content": "x"}'],
    "refusal": [b'{"refusal": "no"}'],
    "blanks": [b'{"content": "  "}'],
}


@pytest.mark.parametrize("kind", NOT_CONTINUED)
async def test_what_is_not_text_alone_is_not_gone_on_with(
    script_upstream: StartUpstream, start_gateway: StartGateway, kind: str
) -> None:
    events = [b'data: {"id": "c", "choices": [{"index": 0, "delta": %b}]}\n\n' % delta for delta in NOT_CONTINUED[kind]]
    bad, fine = await script_upstream(stream_then_cut(CHAT.begin, *events)), await script_upstream(continuing())
    document = PAIRS[0].endpoints(bad, fine, timeouts=TIMEOUTS, streaming={"on_failure": "continue"})
    gateway = await start_gateway(with_prefill(document, "plain", "b"))
    body = (await ask(gateway)).content
    assert CHAT.error_in(body)["code"] == "upstream_error" and fine.calls == []


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"response_format": {"type": "json_object"}}, {"logprobs": True}],
    ids=["n", "json", "logprobs"],
)
async def test_what_would_begin_anew_is_not_gone_on_with(
    script_upstream: StartUpstream, start_gateway: StartGateway, fields: dict[str, Any]
) -> None:
    bad = await script_upstream(stream_then_cut(CHAT.begin, *CHAT.words("x")))
    fine = await script_upstream(continuing())
    document = PAIRS[0].endpoints(bad, fine, timeouts=TIMEOUTS, streaming={"on_failure": "continue"})
    gateway = await start_gateway(with_prefill(document, "plain", "b"))
    assert CHAT.error_in((await ask(gateway, **fields)).content) is not None
    assert fine.calls == []


async def test_who_cannot_be_told_to_go_on_is_left_out(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    bad = await script_upstream(stream_then_cut(CHAT.begin, *CHAT.words(TEXTS[0])))
    cannot, refuses, can = (
        await script_upstream(continuing()),
        await script_upstream(refuse_prefill),
        await script_upstream(continuing()),
    )
    document = PAIRS[0].endpoints(bad, cannot, refuses, can, timeouts=TIMEOUTS, streaming={"on_failure": "continue"})
    gateway = await start_gateway(with_prefill(document, "plain", "c", "d"))
    body = (await ask(gateway)).content
    assert CHAT.text_of_stream(body) == FULL and CHAT.has_ended(body)
    assert cannot.calls == [] and len(refuses.calls) == 1
    assert [row.endpoint for row in await gateway.settled(3)] == ["a", "c", "d"]
    assert gateway.metric('hatchway_continuations_total{endpoint="c",outcome="failed"}') == 1


async def refuse_prefill(call: Call) -> None:
    await call.answer(400, CHAT.refusal("prefill is not supported", "invalid_request"))


async def test_nobody_can_go_on(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    bad = await script_upstream(stream_then_cut(CHAT.begin, *CHAT.words(TEXTS[0])))
    document = PAIRS[0].endpoints(
        bad, await script_upstream(refuse_prefill), timeouts=TIMEOUTS, streaming={"on_failure": "continue"}
    )
    gateway = await start_gateway(with_prefill(document, "plain", "b"))
    body = (await ask(gateway)).content
    assert CHAT.text_of_stream(body) == TEXTS[0]
    assert CHAT.error_in(body)["code"] == "upstream_error"
    assert "`a`: disconnected; `b`: status_400" in CHAT.error_in(body)["message"]


# Other ways to break off


def stalling(wire: Any, upstreams: list[Upstream]) -> Script:
    async def run(call: Call) -> None:
        await call.start_stream()
        await call.stream(wire.begin, *wire.words("hel"))
        await call.wait_for_close()
        upstreams[0].closed.set()

    return run


def whispering(wire: Any, upstreams: list[Upstream]) -> Script:
    """Comments and an event that never ends: signs of life, and no progress."""

    async def run(call: Call) -> None:
        await call.start_stream()
        await call.stream(wire.begin, *wire.words("hel"))
        try:
            for byte in wire.words("x" * 2000)[0]:
                await call.stream(b": still here\n\n" if byte % 2 else bytes((byte,)))
                await asyncio.sleep(0.02)
        finally:
            upstreams[0].closed.set()

    return run


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("stage", [stalling, whispering])
async def test_a_stall_ends_in_an_error_at_idle(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair, stage: Any
) -> None:
    upstreams: list[Upstream] = []
    upstreams.append(await script_upstream(stage(pair.upstream, upstreams)))
    other = await script_upstream(good(pair.upstream, True))
    gateway = await start_gateway(pair.endpoints(upstreams[0], other, timeouts={**TIMEOUTS, "idle": SOON}))
    body = (await ask(gateway, pair)).content
    assert pair.client.text_of_stream(body) == "hel"
    assert pair.client.error_in(body)["code"] == "timeout_idle"
    row = (await gateway.settled(1))[0]
    assert (row.status, row.error_type, row.usage_source) == ("timeout", "timeout_idle", "estimated")
    async with asyncio.timeout(PATIENCE):
        await upstreams[0].closed.wait()
    assert other.calls == []


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("is_apart", [True, False])
@pytest.mark.parametrize("kind", ["error", "malformed"])
async def test_what_came_before_a_failure_is_shown_before_it(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair, is_apart: bool, kind: str
) -> None:
    """Also where it came in the very same bytes; what comes behind is not shown."""
    wire = pair.upstream
    fault = wire.error if kind == "error" else b"data: {not json\n\n"
    tail = (*wire.words("lo"), fault, *wire.words("wrong"), wire.finish())
    pieces = tail if is_apart else (b"".join(tail),)
    upstream = await script_upstream(stream_apart(wire.begin + wire.words("hel")[0], *pieces))
    gateway = await start_gateway(pair.endpoints(upstream, timeouts=TIMEOUTS))
    body = (await ask(gateway, pair)).content
    assert pair.client.text_of_stream(body) == "hello"
    assert pair.client.error_in(body)["code"] == "upstream_error"
    assert b"sk-other" not in body
    row = (await gateway.settled(1))[0]
    assert (row.status, row.error_type) == ("error", "stream_error" if kind == "error" else "protocol_error")
    assert row.usage_source == "estimated" and row.usage.output_tokens >= 1 and row.cost_usd


@pytest.mark.parametrize("pair", PAIRS, ids=str)
async def test_comments_and_unknown_events_do_no_harm(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair
) -> None:
    wire = pair.upstream
    odd = [b": comment\n\n", b"event: weather\ndata: {}\n\n", b"id: 7\nretry: 3\n\n"]
    hel, lo = wire.words("hel", "lo")
    end = wire.finish(texts=("hel", "lo")) + wire.end
    if wire is CHAT:
        odd[1] = b'data: {"object": "weather", "choices": []}\n\n'
    upstream = await script_upstream(stream_apart(wire.begin, *odd, hel, *odd, lo, *odd, end))
    gateway = await start_gateway(pair.endpoints(upstream, timeouts=TIMEOUTS))
    body = (await ask(gateway, pair)).content
    assert pair.client.text_of_stream(body) == "hello" and pair.client.has_ended(body)
    assert [row.status for row in await gateway.settled(1)] == ["ok"]


# Slow streams

SLOW = {"min_tokens_per_second": 20, "slow_after": "250ms"}


def dripping(wire: Any) -> Script:
    """Twenty characters a second: five tokens."""

    async def run(call: Call) -> None:
        await call.start_stream()
        await call.stream(wire.begin)
        for _ in range(400):
            await call.stream(*wire.words("x"))
            await asyncio.sleep(0.05)

    return run


@pytest.mark.parametrize("pair", PAIRS[:4], ids=str)
async def test_a_slow_stream_is_given_up(
    script_upstream: StartUpstream, start_gateway: StartGateway, pair: Pair
) -> None:
    upstream = await script_upstream(dripping(pair.upstream))
    gateway = await start_gateway(pair.endpoints(upstream, timeouts=TIMEOUTS, streaming=SLOW))
    body = (await ask(gateway, pair)).content
    text = pair.client.text_of_stream(body)
    assert set(text) == {"x"} and pair.client.error_in(body)["code"] == "timeout_slow"
    row = (await gateway.settled(1))[0]
    assert (row.status, row.error_type, row.usage_source) == ("timeout", "timeout_slow", "estimated")


async def test_a_slow_stream_is_gone_on_with(script_upstream: StartUpstream, start_gateway: StartGateway) -> None:
    whole = "x" * 500
    slow, fast = await script_upstream(dripping(CHAT)), await script_upstream(continuing(whole))
    streaming = {**SLOW, "on_failure": "continue"}
    document = PAIRS[0].endpoints(slow, fast, timeouts=TIMEOUTS, streaming=streaming)
    gateway = await start_gateway(with_prefill(document, "prefix", "b"))
    body = (await ask(gateway)).content
    assert CHAT.text_of_stream(body) == whole and CHAT.has_ended(body)


async def test_a_fast_stream_in_few_pieces_is_not_slow(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """What counts is text, not events."""

    async def in_lumps(call: Call) -> None:
        await call.start_stream()
        await call.stream(CHAT.begin)
        for _ in range(6):
            await call.stream(*CHAT.words("many words " * 20))
            await asyncio.sleep(0.1)
        await call.stream(CHAT.finish() + CHAT.end)
        await call.end_stream()

    gateway = await start_gateway(
        PAIRS[0].endpoints(await script_upstream(in_lumps), timeouts=TIMEOUTS, streaming=SLOW)
    )
    body = (await ask(gateway)).content
    assert CHAT.has_ended(body)
    assert [row.status for row in await gateway.settled(1)] == ["ok"]


async def test_a_slow_client_does_not_make_a_stream_slow(
    script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    """The time in which the client takes what it was sent is not the upstream's."""
    text = "y" * 60_000

    async def much(call: Call) -> None:
        await call.start_stream()
        await call.stream(CHAT.begin)
        for _ in range(100):
            await call.stream(*CHAT.words(text))
        await call.stream(CHAT.finish() + CHAT.end)
        await call.end_stream()

    gateway = await start_gateway(
        PAIRS[0].endpoints(await script_upstream(much), timeouts=TIMEOUTS, streaming={**SLOW, "slow_after": "50ms"})
    )
    size = 0
    async with gateway.client().stream("POST", CHAT.path, json=CHAT.request(stream=True)) as response:
        async for piece in response.aiter_raw(1 << 19):
            size += piece.count(b"y")
            await asyncio.sleep(0.06)
    assert size == 100 * len(text)
    assert [row.status for row in await gateway.settled(1)] == ["ok"]
