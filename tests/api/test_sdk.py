"""The official SDK against the gateway: answers are its types, failures its exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.gateway_fixtures import (
    DONE,
    KEY,
    PATIENCE,
    ROLE,
    Gateway,
    Script,
    answer,
    endpoints,
    event,
    hang,
    key_record,
    refuse,
    stream,
)
from tests.pipeline.conftest import StartGateway, StartUpstream

ASK: dict[str, Any] = {"model": "gpt-a", "messages": [{"role": "user", "content": "hi"}]}


@pytest_asyncio.fixture
async def sdk() -> AsyncIterator[list[openai.AsyncOpenAI]]:
    clients: list[openai.AsyncOpenAI] = []
    yield clients
    for client in clients:
        await client.close()


def connect(sdk: list[openai.AsyncOpenAI], gateway: Gateway, key: str = KEY) -> openai.AsyncOpenAI:
    sdk.append(openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE))
    return sdk[-1]


async def test_an_answer(
    sdk: list[openai.AsyncOpenAI], script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(endpoints(await script_upstream(answer("hello"))))
    completion = await connect(sdk, gateway).chat.completions.create(**ASK)
    assert completion.choices[0].message.content == "hello"
    assert completion.model == "upstream-model"  # what really served
    assert completion.usage is not None and completion.usage.total_tokens == 15


async def test_a_stream_of_tool_calls(
    sdk: list[openai.AsyncOpenAI], script_upstream: StartUpstream, start_gateway: StartGateway
) -> None:
    pieces = ['{"city":', ' "Zürich"}']
    calls = [
        event({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", **text}}]})
        for text in ({"arguments": piece} for piece in pieces)
    ]
    script = stream(ROLE, *calls, event({}, finish="tool_calls"), DONE)
    gateway = await start_gateway(endpoints(await script_upstream(script)))
    asked = {**ASK, "stream": True, "tools": [{"type": "function", "function": {"name": "weather"}}]}
    chunks: Any = await connect(sdk, gateway).chat.completions.create(**asked)
    arguments = ""
    async for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or ():
            arguments += call.function.arguments
    assert arguments == '{"city": "Zürich"}'


@pytest.mark.parametrize(
    ("script", "exception", "status"),
    [
        (refuse(400, code="content_filter"), openai.BadRequestError, 400),
        (refuse(422), openai.UnprocessableEntityError, 422),
        (refuse(404), openai.NotFoundError, 404),
        (refuse(429, retry_after="1"), openai.RateLimitError, 429),
        (refuse(401), openai.InternalServerError, 502),
        (refuse(403), openai.InternalServerError, 502),
        (refuse(500), openai.InternalServerError, 502),
        (hang, openai.InternalServerError, 504),
    ],
)
@pytest.mark.parametrize("wants_stream", [False, True])
async def test_failures_are_the_sdks_exceptions(
    sdk: list[openai.AsyncOpenAI],
    script_upstream: StartUpstream,
    start_gateway: StartGateway,
    script: Script,
    exception: type[openai.APIStatusError],
    status: int,
    wants_stream: bool,
) -> None:
    timeouts = {"connect": "200ms", "total": "200ms"}
    gateway = await start_gateway(endpoints(await script_upstream(script), timeouts=timeouts))
    with pytest.raises(exception) as caught:
        await connect(sdk, gateway).chat.completions.create(**ASK, stream=wants_stream)
    assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("key", "fields", "exception"),
    [
        ("hw_unknown", {}, openai.AuthenticationError),
        ("hw_few", {}, openai.PermissionDeniedError),
        (KEY, {"model": 5}, openai.BadRequestError),
        (KEY, {"messages": []}, openai.BadRequestError),
    ],
)
async def test_refusals_are_the_sdks_exceptions(
    sdk: list[openai.AsyncOpenAI],
    script_upstream: StartUpstream,
    start_gateway: StartGateway,
    key: str,
    fields: dict[str, Any],
    exception: type[openai.APIStatusError],
) -> None:
    keys = [key_record(), key_record("hw_few", key_id="few", models=("gpt-b",))]
    gateway = await start_gateway(endpoints(await script_upstream(answer())), keys)
    with pytest.raises(exception):
        await connect(sdk, gateway, key).chat.completions.create(**{**ASK, **fields})
