"""`langchain-openai`: its chat model in both of OpenAI's protocols, and its embeddings."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from gateway.types import Usage
from tests.clients.conftest import Stage
from tests.clients.questions import ASK_WEATHER, QUESTION, Forecast, get_weather
from tests.clients.scenario import CITY, RESULT, SECRET, TEXT, after_tools
from tests.clients.upstreams import EMBEDDERS, PROVIDERS, VECTOR, WIRES
from tests.gateway_fixtures import KEY, PATIENCE

each_wire = pytest.mark.parametrize("wire", WIRES)
each_protocol = pytest.mark.parametrize("protocol", ["chat", "responses"])


def connect(stage: Stage, wire: str, protocol: str, **options: Any) -> Any:
    """The SDK beneath is the one that the stage closes."""
    client = stage.openai()
    settings = {"api_key": KEY, "base_url": stage.url, "max_retries": 0, "timeout": PATIENCE, "stream_usage": True}
    settings |= {"root_async_client": client, "async_client": client.chat.completions, "client": object()}
    return ChatOpenAI(model=f"via-{wire}", use_responses_api=protocol == "responses", **settings, **options)


def check_usage(message: Any, buckets: Usage) -> None:
    """LangChain counts as OpenAI does."""
    usage = message.usage_metadata
    cached = buckets.cache_read_tokens
    assert usage["input_tokens"] == buckets.input_tokens + cached + buckets.cache_write_5m_tokens
    assert usage["output_tokens"] == buckets.output_tokens + buckets.reasoning_tokens
    assert usage["input_token_details"].get("cache_read", 0) == cached


@each_wire
@each_protocol
async def test_an_answer(stage: Stage, wire: str, protocol: str) -> None:
    message = await connect(stage, wire, protocol).ainvoke(QUESTION)
    assert isinstance(message, AIMessage) and message.text == TEXT
    metadata = message.response_metadata
    if protocol == "chat":
        assert metadata["finish_reason"] == "stop"
    assert metadata["model_name"] == PROVIDERS[wire].served
    check_usage(message, PROVIDERS[wire].buckets())
    assert (await stage.row()).usage == PROVIDERS[wire].buckets()


@each_wire
@each_protocol
async def test_a_stream(stage: Stage, wire: str, protocol: str) -> None:
    whole: AIMessageChunk | None = None
    count = 0
    async for chunk in connect(stage, wire, protocol).astream(QUESTION):
        whole = chunk if whole is None else whole + chunk
        count += bool(chunk.text)
    assert whole is not None and whole.text == TEXT and count > 3
    check_usage(whole, PROVIDERS[wire].buckets())


@each_wire
@each_protocol
async def test_a_tool_is_called_and_its_result_used(stage: Stage, wire: str, protocol: str) -> None:
    model = connect(stage, wire, protocol).bind_tools([get_weather])
    history: list[Any] = [HumanMessage(ASK_WEATHER)]
    first = await model.ainvoke(history)
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [("get_weather", CITY)]
    history += [first, ToolMessage(RESULT, tool_call_id=first.tool_calls[0]["id"])]
    whole: AIMessageChunk | None = None
    async for chunk in model.astream(history):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None and whole.text == after_tools(RESULT)


@each_wire
@each_protocol
async def test_an_answer_in_a_form(stage: Stage, wire: str, protocol: str) -> None:
    model = connect(stage, wire, protocol).with_structured_output(Forecast)
    assert await model.ainvoke(QUESTION) == Forecast(**CITY)  # type: ignore[arg-type]


@each_wire
async def test_an_answer_in_a_form_by_a_tool(stage: Stage, wire: str) -> None:
    """The older way: the form is a tool that must be called. Ollama cannot be made to call one, and says so."""
    model = connect(stage, wire, "chat").with_structured_output(Forecast, method="function_calling")
    if wire == "ollama":
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            await model.ainvoke(QUESTION)
    else:
        assert await model.ainvoke(QUESTION) == Forecast(**CITY)  # type: ignore[arg-type]


@each_wire
@each_protocol
async def test_failures(stage: Stage, wire: str, protocol: str) -> None:
    model = connect(stage, wire, protocol)
    with pytest.raises(openai.BadRequestError) as caught:
        await model.ainvoke("a too-long prompt")
    assert caught.value.code == "context_length_exceeded" and SECRET not in str(caught.value)
    with pytest.raises(openai.RateLimitError):
        await model.ainvoke("rate-limited")
    seen = ""
    with pytest.raises((openai.APIError, ValueError)):  # LangChain's own for a failed response
        async for chunk in model.astream("it breaks-off"):
            seen += chunk.text
    assert seen and TEXT.startswith(seen) and seen != TEXT


@pytest.mark.parametrize("wire", EMBEDDERS)
async def test_embeddings(stage: Stage, wire: str) -> None:
    client = stage.openai()
    embeddings = OpenAIEmbeddings(
        model=f"embed-{wire}",
        api_key=KEY,
        base_url=stage.url,
        check_embedding_ctx_length=False,
        async_client=client.embeddings,
        client=object(),
    )
    assert await embeddings.aembed_documents(["first", "second"]) == [VECTOR, VECTOR]
    assert await embeddings.aembed_query("third") == VECTOR
