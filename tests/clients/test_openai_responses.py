"""The `openai` SDK's Responses, served by providers of every wire format."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseUsage

from gateway.types import Usage
from tests.clients.conftest import Stage
from tests.clients.questions import ASK_WEATHER, QUESTION, SYSTEM, Forecast, get_weather
from tests.clients.scenario import CITY, OTHER_CITY, RESULT, SECRET, TEXT, THOUGHT, WAIT, after_tools
from tests.clients.upstreams import PROVIDERS, WIRES

pytestmark = pytest.mark.parametrize("wire", WIRES)
TOOLS = [openai.pydantic_function_tool(get_weather)]


def ask(wire: str, question: Any = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": f"via-{wire}", "input": question, "instructions": SYSTEM, "store": False, **fields}


def check_usage(usage: ResponseUsage | None, buckets: Usage) -> None:
    assert usage is not None
    assert usage.input_tokens == buckets.input_tokens + buckets.cache_read_tokens + buckets.cache_write_5m_tokens
    assert usage.input_tokens_details.cached_tokens == buckets.cache_read_tokens
    assert usage.output_tokens == buckets.output_tokens + buckets.reasoning_tokens
    assert usage.output_tokens_details.reasoning_tokens == buckets.reasoning_tokens
    assert usage.total_tokens == buckets.total


async def test_an_answer(stage: Stage, wire: str) -> None:
    response = await stage.openai().responses.create(**ask(wire, max_output_tokens=500))
    assert (response.output_text, response.status, response.object) == (TEXT, "completed", "response")
    assert response.model == PROVIDERS[wire].served
    assert [item.type for item in response.output] == ["message"]
    assert response.error is None and response.incomplete_details is None
    check_usage(response.usage, PROVIDERS[wire].buckets())
    assert (await stage.row(endpoint=f"via-{wire}", stream=False)).usage == PROVIDERS[wire].buckets()


async def test_a_stream(stage: Stage, wire: str) -> None:
    text, kinds, numbers, final = "", [], [], None
    async for event in await stage.openai().responses.create(**ask(wire), stream=True):
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
        elif event.type == "response.completed":
            final = event.response
    assert text == TEXT and numbers == sorted(set(numbers))
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    parts = {"response.output_item.added", "response.content_part.added", "response.output_text.done"}
    assert parts | {"response.content_part.done", "response.output_item.done"} <= set(kinds)
    assert kinds.count("response.output_text.delta") > 3, "it came in pieces"
    assert final is not None and final.output_text == TEXT and final.model == PROVIDERS[wire].served
    check_usage(final.usage, PROVIDERS[wire].buckets())
    assert (await stage.row(stream=True)).usage == PROVIDERS[wire].buckets()


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_a_tool_is_called_and_its_result_used(stage: Stage, wire: str, wants_stream: bool) -> None:
    """The whole conversation is sent again: nothing is kept by the provider."""
    asked = ask(wire, [{"role": "user", "content": ASK_WEATHER}], tools=TOOLS)
    first = await answer(stage, wants_stream, asked)
    calls = [item for item in first.output if item.type == "function_call"]
    assert len(calls) == 1 and calls[0].name == "get_weather"
    assert calls[0].parsed_arguments == get_weather(**CITY)  # type: ignore[attr-defined,arg-type]
    asked["input"] += [*replayed(first), outcome(calls[0].call_id, RESULT)]
    second = await answer(stage, wants_stream, asked)
    assert second.output_text == after_tools(RESULT)
    rows = await stage.gateway.settled(2)
    assert [row.usage for row in rows] == [PROVIDERS[wire].buckets()] * 2


async def answer(stage: Stage, wants_stream: bool, asked: dict[str, Any]) -> Any:
    responses = stage.openai().responses
    if not wants_stream:
        return await responses.parse(**asked)
    async with responses.stream(**asked) as stream:
        return await stream.get_final_response()


def replayed(response: Response) -> list[dict[str, Any]]:
    """What the model said, as items of the next request."""
    return [
        item.model_dump(exclude_none=True, exclude={"parsed_arguments"}, warnings=False) for item in response.output
    ]


def outcome(call_id: str, text: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_two_tools_are_called_at_once(stage: Stage, wire: str, wants_stream: bool) -> None:
    asked = ask(wire, [{"role": "user", "content": "the weather in both cities"}], tools=TOOLS)
    first = await answer(stage, wants_stream, asked)
    calls = [item for item in first.output if item.type == "function_call"]
    assert [call.parsed_arguments for call in calls] == [get_weather(**CITY), get_weather(**OTHER_CITY)]  # type: ignore[arg-type]
    assert len({call.call_id for call in calls}) == 2
    asked["input"] += [*replayed(first), *(outcome(call.call_id, f"{n} °C") for n, call in enumerate(calls))]
    assert (await answer(stage, wants_stream, asked)).output_text == after_tools("0 °C", "1 °C")


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_an_answer_in_a_form(stage: Stage, wire: str, wants_stream: bool) -> None:
    response = await answer(stage, wants_stream, ask(wire, text_format=Forecast))
    assert response.output_parsed == Forecast(**CITY)  # type: ignore[arg-type]
    await stage.row()


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_thinking_is_shown_and_goes_back(stage: Stage, wire: str, wants_stream: bool) -> None:
    """The provider gets its own signature again."""
    asked = ask(wire, [{"role": "user", "content": ASK_WEATHER}], tools=TOOLS)
    asked |= {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    first = await answer(stage, wants_stream, asked)
    thoughts = [item for item in first.output if item.type == "reasoning"]
    told = "".join(part.text for item in thoughts for part in [*item.summary, *(item.content or ())])
    assert told == THOUGHT
    check_usage(first.usage, PROVIDERS[wire].buckets(thinks=True))
    call = next(item for item in first.output if item.type == "function_call")
    asked["input"] += [*replayed(first), outcome(call.call_id, RESULT)]
    second = await answer(stage, wants_stream, asked)
    assert second.output_text == after_tools(RESULT)
    stage.check_seal(wire)
    rows = await stage.gateway.settled(2)
    assert [row.usage for row in rows] == [PROVIDERS[wire].buckets(thinks=True)] * 2


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_the_limit_of_length(stage: Stage, wire: str, wants_stream: bool) -> None:
    asked = ask(wire, "an answer of some length", max_output_tokens=16)
    response = await stage.openai().responses.create(**asked, stream=wants_stream)
    if wants_stream:
        last = [event async for event in response][-1]
        assert last.type == "response.incomplete"
        response = last.response
    assert response.status == "incomplete"
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_a_prompt_that_is_too_long(stage: Stage, wire: str, wants_stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stage.openai().responses.create(**ask(wire, "a too-long prompt"), stream=wants_stream)
    assert caught.value.code == "context_length_exceeded" and SECRET not in str(caught.value)


async def test_a_limited_rate(stage: Stage, wire: str) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await stage.openai().responses.create(**ask(wire, "rate-limited"))
    assert caught.value.code == "rate_limit_exceeded"
    if wire in ("chat", "responses", "messages"):
        assert caught.value.response.headers["retry-after"] == str(WAIT)


@pytest.mark.parametrize("mode", ["breaks-off", "cut-off"])
async def test_a_stream_that_ends_early(stage: Stage, wire: str, mode: str) -> None:
    """The SDK raises for an `error` event, or tells of a failed response; it never tells of a completed one."""
    seen, failed = "", False
    try:
        async for event in await stage.openai().responses.create(**ask(wire, mode), stream=True):
            assert event.type != "response.completed"
            seen += event.delta if event.type == "response.output_text.delta" else ""
            failed |= event.type in ("error", "response.failed")
    except openai.APIError:
        failed = True
    assert failed and seen and TEXT.startswith(seen) and seen != TEXT
    row = (await stage.gateway.settled(1))[0]
    assert row.status == "error" and row.usage.output_tokens > 0
