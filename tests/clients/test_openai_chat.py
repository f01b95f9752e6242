"""The `openai` SDK's chat completions, served by providers of every wire format."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from gateway.types import Usage
from tests.clients.conftest import Stage
from tests.clients.questions import ASK_WEATHER, QUESTION, SYSTEM, Forecast, get_weather
from tests.clients.scenario import CITY, OTHER_CITY, RESULT, SECRET, TEXT, THOUGHT, WAIT, after_tools
from tests.clients.upstreams import PROVIDERS, WIRES

pytestmark = pytest.mark.parametrize("wire", WIRES)
TOOLS = [openai.pydantic_function_tool(get_weather)]


def ask(wire: str, question: str = QUESTION, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": f"via-{wire}", "messages": messages, **fields}


def check_usage(usage: openai.types.CompletionUsage | None, buckets: Usage) -> None:
    """OpenAI's counts: cached tokens are inside the prompt, reasoning inside the completion."""
    assert usage is not None and usage.prompt_tokens_details is not None
    written = buckets.cache_write_5m_tokens
    assert usage.prompt_tokens == buckets.input_tokens + buckets.cache_read_tokens + written
    assert usage.prompt_tokens_details.cached_tokens == buckets.cache_read_tokens
    assert usage.completion_tokens == buckets.output_tokens + buckets.reasoning_tokens
    if buckets.reasoning_tokens:
        assert usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == buckets.reasoning_tokens
    assert usage.total_tokens == buckets.total


async def test_an_answer(stage: Stage, wire: str) -> None:
    completion = await stage.openai().chat.completions.create(**ask(wire, max_completion_tokens=500, temperature=0.5))
    choice = completion.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (TEXT, "assistant", "stop")
    assert choice.message.tool_calls is None
    assert (completion.object, completion.model) == ("chat.completion", PROVIDERS[wire].served)
    assert completion.id and completion.created > 1_000_000_000
    check_usage(completion.usage, PROVIDERS[wire].buckets())
    row = await stage.row(endpoint=f"via-{wire}", upstream_model=PROVIDERS[wire].model, stream=False)
    assert row.usage == PROVIDERS[wire].buckets()


async def test_a_stream(stage: Stage, wire: str) -> None:
    options = {"include_usage": True}
    chunks = await stage.openai().chat.completions.create(**ask(wire), stream=True, stream_options=options)
    texts, finishes, usages, models = [], [], [], set()
    async for chunk in chunks:
        models.add(chunk.model)
        texts += [choice.delta.content or "" for choice in chunk.choices]
        finishes += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        usages += [chunk.usage] if chunk.usage else []
    assert ("".join(texts), finishes, models) == (TEXT, ["stop"], {PROVIDERS[wire].served})
    assert sum(map(bool, texts)) > 3, "it came in pieces"
    assert len(usages) == 1
    check_usage(usages[0], PROVIDERS[wire].buckets())
    row = await stage.row(stream=True)
    assert row.usage == PROVIDERS[wire].buckets() and row.ttft_ms is not None


async def test_unasked_usage_is_counted_and_not_shown(stage: Stage, wire: str) -> None:
    chunks = await stage.openai().chat.completions.create(**ask(wire), stream=True)
    seen = [chunk async for chunk in chunks]
    assert all(chunk.usage is None and chunk.choices for chunk in seen)
    assert (await stage.row()).usage == PROVIDERS[wire].buckets()


async def test_the_stream_helper_accumulates(stage: Stage, wire: str) -> None:
    events = []
    asked = ask(wire, stream_options={"include_usage": True})
    async with stage.openai().chat.completions.stream(**asked) as stream:
        async for event in stream:
            events.append(event.type)
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT and final.choices[0].finish_reason == "stop"
    assert events.count("content.delta") > 3 and events.count("content.done") == 1
    check_usage(final.usage, PROVIDERS[wire].buckets())


async def test_a_tool_is_called_and_its_result_used(stage: Stage, wire: str) -> None:
    client = stage.openai()
    asked = ask(wire, ASK_WEATHER, tools=TOOLS)
    first = await client.chat.completions.parse(**asked)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and not message.content
    assert message.tool_calls is not None and len(message.tool_calls) == 1
    call = message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert call.function.parsed_arguments == get_weather(**CITY)  # type: ignore[arg-type]
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    asked["messages"] += [message.model_dump(exclude_none=True), result]
    second = await client.chat.completions.create(**asked)
    assert second.choices[0].message.content == after_tools(RESULT)
    assert second.choices[0].finish_reason == "stop"
    rows = await stage.gateway.settled(2)
    assert [row.usage for row in rows] == [PROVIDERS[wire].buckets()] * 2


async def test_two_tools_are_called_in_a_stream(stage: Stage, wire: str) -> None:
    client = stage.openai()
    asked = ask(wire, "the weather in both cities", tools=TOOLS)
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    message = final.choices[0].message
    calls = message.tool_calls or []
    assert [call.function.parsed_arguments for call in calls] == [get_weather(**CITY), get_weather(**OTHER_CITY)]  # type: ignore[arg-type]
    assert len({call.id for call in calls}) == 2 and final.choices[0].finish_reason == "tool_calls"
    results = [{"role": "tool", "tool_call_id": call.id, "content": f"{n} °C"} for n, call in enumerate(calls)]
    asked["messages"] += [message.model_dump(exclude_none=True), *results]
    async with client.chat.completions.stream(**asked) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == after_tools("0 °C", "1 °C")


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_an_answer_in_a_form(stage: Stage, wire: str, wants_stream: bool) -> None:
    completions = stage.openai().chat.completions
    asked = ask(wire, response_format=Forecast)
    if wants_stream:
        async with completions.stream(**asked) as stream:
            final: Any = await stream.get_final_completion()
    else:
        final = await completions.parse(**asked)
    assert final.choices[0].message.parsed == Forecast(**CITY)  # type: ignore[arg-type]
    await stage.row()


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_thinking_is_shown_and_goes_back(stage: Stage, wire: str, wants_stream: bool) -> None:
    """The provider gets its own signature again."""
    client = stage.openai()
    asked = ask(wire, ASK_WEATHER, tools=TOOLS, reasoning_effort="low")
    if wants_stream:
        message = await collect(await client.chat.completions.create(**asked, stream=True))
    else:
        whole = await client.chat.completions.create(**asked)
        message = whole.choices[0].message.model_dump(exclude_none=True)
        check_usage(whole.usage, PROVIDERS[wire].buckets(thinks=True))
    assert message["reasoning_content"] == THOUGHT
    assert len(message["tool_calls"]) == 1
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": RESULT}
    asked["messages"] += [message, result]
    second = await client.chat.completions.create(**asked)
    assert second.choices[0].message.content == after_tools(RESULT)
    stage.check_seal(wire)
    rows = await stage.gateway.settled(2)
    assert [row.usage for row in rows] == [PROVIDERS[wire].buckets(thinks=True)] * 2


async def collect(chunks: Any) -> dict[str, Any]:
    """The message of a stream as careful applications put it together: lists of parts are joined by their index."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    details: list[dict[str, Any]] = []
    async for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_none=True)
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name, "")
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append(
                        {"type": "function", **{k: v for k, v in call.items() if k != "index"}}
                    )
                else:
                    message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            details += delta.get("reasoning_details", ())
    if details:
        message["reasoning_details"] = details
    return message


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_the_limit_of_length(stage: Stage, wire: str, wants_stream: bool) -> None:
    asked = ask(wire, "an answer of some length", max_completion_tokens=16)
    if wants_stream:
        chunks = [chunk async for chunk in await stage.openai().chat.completions.create(**asked, stream=True)]
        finish = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    else:
        finish = [(await stage.openai().chat.completions.create(**asked)).choices[0].finish_reason]
    assert finish == ["length"]


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_a_prompt_that_is_too_long(stage: Stage, wire: str, wants_stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stage.openai().chat.completions.create(**ask(wire, "a too-long prompt"), stream=wants_stream)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.type == "invalid_request_error"
    assert SECRET not in str(caught.value) and "key" in str(caught.value), "the upstream's words, less secrets"
    assert (await stage.row(status="error", usage_source="none", error_type="status_400")).cost_usd == 0


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_a_limited_rate(stage: Stage, wire: str, wants_stream: bool) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await stage.openai().chat.completions.create(**ask(wire, "rate-limited"), stream=wants_stream)
    assert caught.value.code == "rate_limit_exceeded"
    if wire in ("chat", "responses", "messages"):  # the others say nothing of it in a header
        assert caught.value.response.headers["retry-after"] == str(WAIT)
    await stage.row(status="error", usage_source="none", error_type="status_429")


@pytest.mark.parametrize("mode", ["breaks-off", "cut-off"])
async def test_a_stream_that_ends_early(stage: Stage, wire: str, mode: str) -> None:
    chunks = await stage.openai().chat.completions.create(**ask(wire, mode), stream=True)
    seen = ""
    with pytest.raises(openai.APIError):
        async for chunk in chunks:
            seen += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert seen and TEXT.startswith(seen) and seen != TEXT
    row = (await stage.gateway.settled(1))[0]
    assert row.status == "error" and row.error_type == ("disconnected" if mode == "cut-off" else "stream_error")
    assert row.usage.output_tokens > 0, "what was made is paid for"
