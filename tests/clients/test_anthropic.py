"""The `anthropic` SDK's Messages, served by providers of every wire format."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from gateway.types import Usage
from tests.clients.conftest import Stage
from tests.clients.questions import ASK_WEATHER, QUESTION, SYSTEM, WEATHER_SCHEMA, Forecast
from tests.clients.scenario import CITY, OTHER_CITY, RESULT, SECRET, TEXT, THOUGHT, WAIT, after_tools
from tests.clients.upstreams import COUNTED, PROVIDERS, WIRES
from tests.gateway_fixtures import KEY

TOOLS = [{"name": "get_weather", "description": "The weather.", "input_schema": WEATHER_SCHEMA}]
each_wire = pytest.mark.parametrize("wire", WIRES)
whole_and_streamed = pytest.mark.parametrize("wants_stream", [False, True])


def ask(wire: str, question: str = QUESTION, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": f"via-{wire}", "system": SYSTEM, "max_tokens": 4096, "messages": messages, **fields}


async def answer(stage: Stage, wants_stream: bool, asked: dict[str, Any]) -> Any:
    messages = stage.anthropic().messages
    if not wants_stream:
        return await messages.create(**asked)
    async with messages.stream(**asked) as stream:
        return await stream.get_final_message()


def check_usage(usage: anthropic.types.Usage, buckets: Usage) -> None:
    """Anthropic's counts: the cache is beside the input, thinking inside the output."""
    assert usage.input_tokens == buckets.input_tokens
    assert (usage.cache_read_input_tokens or 0) == buckets.cache_read_tokens
    assert (usage.cache_creation_input_tokens or 0) == buckets.cache_write_5m_tokens
    assert usage.output_tokens == buckets.output_tokens + buckets.reasoning_tokens


@each_wire
@whole_and_streamed
async def test_an_answer(stage: Stage, wire: str, wants_stream: bool) -> None:
    message = await answer(stage, wants_stream, ask(wire))
    assert [block.type for block in message.content] == ["text"] and message.content[0].text == TEXT
    assert (message.role, message.type, message.stop_reason) == ("assistant", "message", "end_turn")
    assert message.model == PROVIDERS[wire].served and message.id
    check_usage(message.usage, PROVIDERS[wire].buckets())
    row = await stage.row(endpoint=f"via-{wire}", upstream_model=PROVIDERS[wire].model, stream=wants_stream)
    assert row.usage == PROVIDERS[wire].buckets()


@each_wire
async def test_the_events_of_a_stream(stage: Stage, wire: str) -> None:
    kinds: list[str] = []
    async for event in await stage.anthropic().messages.create(**ask(wire), stream=True):
        if event.type == "message_start":
            assert event.message.model == PROVIDERS[wire].served and event.message.content == []
        if event.type != "ping" and kinds[-1:] != [event.type]:
            kinds.append(event.type)
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@each_wire
async def test_the_text_of_a_stream(stage: Stage, wire: str) -> None:
    async with stage.anthropic().messages.stream(**ask(wire)) as stream:
        texts = [text async for text in stream.text_stream]
    assert "".join(texts) == TEXT and len(texts) > 3


@each_wire
@whole_and_streamed
async def test_tools_are_called_and_their_results_used(stage: Stage, wire: str, wants_stream: bool) -> None:
    asked = ask(wire, "the weather in both cities", tools=TOOLS, tool_choice={"type": "auto"})
    first = await answer(stage, wants_stream, asked)
    assert first.stop_reason == "tool_use"
    calls = [block for block in first.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [("get_weather", CITY), ("get_weather", OTHER_CITY)]
    assert len({call.id for call in calls}) == 2
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": f"{n} °C"} for n, call in enumerate(calls)]
    asked["messages"] += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = await answer(stage, wants_stream, asked)
    assert second.content[0].text == after_tools("0 °C", "1 °C") and second.stop_reason == "end_turn"
    rows = await stage.gateway.settled(2)
    assert [row.usage for row in rows] == [PROVIDERS[wire].buckets()] * 2


@each_wire
@whole_and_streamed
async def test_thinking_is_shown_and_goes_back(stage: Stage, wire: str, wants_stream: bool) -> None:
    asked = ask(wire, ASK_WEATHER, tools=TOOLS, thinking={"type": "enabled", "budget_tokens": 2048})
    first = await answer(stage, wants_stream, asked)
    assert shown(first) == ["thinking", "tool_use"] and first.content[0].thinking == THOUGHT
    check_usage(first.usage, PROVIDERS[wire].buckets(thinks=True))
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": [{"type": "text", "text": RESULT}]}
    asked["messages"] += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = await answer(stage, wants_stream, asked)
    stage.check_seal(wire)
    assert shown(second) == ["thinking", "text"]
    assert [block.text for block in second.content if block.type == "text"] == [after_tools(RESULT)]
    rows = await stage.gateway.settled(2)
    assert [row.usage for row in rows] == [PROVIDERS[wire].buckets(thinks=True)] * 2


def shown(message: Any) -> list[str]:
    """Redacted thinking is what carries the signature of another provider's call."""
    return [block.type for block in message.content if block.type != "redacted_thinking"]


@each_wire
@whole_and_streamed
async def test_an_answer_in_a_form(stage: Stage, wire: str, wants_stream: bool) -> None:
    messages = stage.anthropic().messages
    asked = ask(wire, output_format=Forecast)
    if wants_stream:
        async with messages.stream(**asked) as stream:
            message: Any = await stream.get_final_message()
    else:
        message = await messages.parse(**asked)
    assert message.parsed_output == Forecast(**CITY)  # type: ignore[arg-type]


@each_wire
@whole_and_streamed
async def test_the_limit_of_length(stage: Stage, wire: str, wants_stream: bool) -> None:
    message = await answer(stage, wants_stream, ask(wire, "an answer of some length", max_tokens=16))
    assert message.stop_reason == "max_tokens"


@each_wire
@whole_and_streamed
async def test_a_prompt_that_is_too_long(stage: Stage, wire: str, wants_stream: bool) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await answer(stage, wants_stream, ask(wire, "a too-long prompt"))
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert "key is" in body["error"]["message"] and SECRET not in str(caught.value), "its words, less secrets"


@each_wire
async def test_a_limited_rate(stage: Stage, wire: str) -> None:
    with pytest.raises(anthropic.RateLimitError) as caught:
        await answer(stage, False, ask(wire, "rate-limited"))
    body: Any = caught.value.body
    assert body["error"]["type"] == "rate_limit_error"
    if wire in ("chat", "responses", "messages"):
        assert caught.value.response.headers["retry-after"] == str(WAIT)


@each_wire
@pytest.mark.parametrize("mode", ["breaks-off", "cut-off"])
async def test_a_stream_that_ends_early(stage: Stage, wire: str, mode: str) -> None:
    seen = ""
    with pytest.raises(anthropic.APIError):
        async with stage.anthropic().messages.stream(**ask(wire, mode)) as stream:
            async for text in stream.text_stream:
                seen += text
    assert seen and TEXT.startswith(seen) and seen != TEXT
    row = (await stage.gateway.settled(1))[0]
    assert row.status == "error" and row.usage.output_tokens > 0


@each_wire
async def test_tokens_are_counted(stage: Stage, wire: str) -> None:
    """By the provider where it has the same API, by the gateway elsewhere."""
    asked = ask(wire)
    del asked["max_tokens"]
    counted = await stage.anthropic().messages.count_tokens(**asked)
    if wire == "messages":
        assert counted.input_tokens == COUNTED
        assert stage.upstream.calls[0].target == "/v1/messages/count_tokens"
    else:
        assert 5 <= counted.input_tokens <= 40 and not stage.upstream.calls


async def test_models(stage: Stage) -> None:
    client = stage.anthropic()
    models = [model async for model in client.models.list()]
    assert {f"via-{wire}" for wire in WIRES} <= {model.id for model in models}
    assert all(model.type == "model" and model.display_name for model in models)
    one = await client.models.retrieve("via-gemini")
    assert (one.id, one.type) == ("via-gemini", "model")
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("nothing")


async def test_refusals(stage: Stage) -> None:
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        await stage.anthropic(api_key="hw-unknown").messages.create(**ask("chat"))
    body: Any = unknown.value.body
    assert body["type"] == "error" and body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        await stage.anthropic().messages.create(**{**ask("chat"), "model": "nothing"})
    body = missing.value.body
    assert body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        await stage.anthropic().messages.create(**{**ask("chat"), "messages": []})


async def test_a_key_as_a_bearer(stage: Stage) -> None:
    """What `ANTHROPIC_AUTH_TOKEN` is for."""
    client = stage.anthropic(api_key=None, auth_token=KEY)
    assert (await client.messages.create(**ask("messages"))).content[0].text == TEXT


async def test_a_beta_is_passed_on_to_the_same_protocol_alone(stage: Stage) -> None:
    for wire in ("messages", "chat"):
        headers = {"anthropic-beta": "context-1m-2025-08-07"}
        await stage.anthropic().messages.create(**ask(wire), extra_headers=headers)
    sent = [call.headers.get("anthropic-beta") for call in stage.upstream.calls]
    assert sent == ["context-1m-2025-08-07", None]
