"""The `openai` SDK's completions, embeddings and models."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from gateway.types import Usage
from tests.clients.conftest import Stage
from tests.clients.scenario import SECRET, TEXT
from tests.clients.upstreams import EMBEDDED_TOKENS, EMBEDDERS, PROVIDERS, VECTOR, WIRES


@pytest.mark.parametrize("wire", WIRES)
async def test_a_completion(stage: Stage, wire: str) -> None:
    completion = await stage.openai().completions.create(model=f"via-{wire}", prompt="The answer is", max_tokens=99)
    assert completion.object == "text_completion" and completion.model == PROVIDERS[wire].served
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == (TEXT, "stop")
    assert completion.usage is not None and completion.usage.total_tokens == PROVIDERS[wire].buckets().total
    assert (await stage.row()).usage == PROVIDERS[wire].buckets()


@pytest.mark.parametrize("wire", WIRES)
async def test_a_stream_of_a_completion(stage: Stage, wire: str) -> None:
    asked: dict[str, Any] = {"model": f"via-{wire}", "prompt": "The answer is", "max_tokens": 99}
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [chunk async for chunk in await stage.openai().completions.create(**asked)]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == TEXT
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usage) == 1 and usage[0].total_tokens == PROVIDERS[wire].buckets().total
    assert (await stage.row()).usage == PROVIDERS[wire].buckets()


@pytest.mark.parametrize("wants_stream", [False, True])
async def test_a_completion_of_a_provider_that_has_them(stage: Stage, wants_stream: bool) -> None:
    asked: dict[str, Any] = {"model": "old-chat", "prompt": "The answer is", "extra_body": {"best_of": 1}}
    answer = await stage.openai().completions.create(**asked, stream=wants_stream)
    choices = [choice async for chunk in answer for choice in chunk.choices] if wants_stream else answer.choices
    assert "".join(choice.text for choice in choices) == TEXT and choices[-1].finish_reason == "stop"
    assert stage.upstream.calls[0].target == "/v1/completions" and stage.upstream.calls[0].json["best_of"] == 1
    await stage.row()


@pytest.mark.parametrize("model", ["old-chat", "via-messages"])
async def test_a_completion_that_fails(stage: Stage, model: str) -> None:
    completions = stage.openai().completions
    with pytest.raises(openai.BadRequestError) as caught:
        await completions.create(model=model, prompt="a too-long prompt")
    assert caught.value.code == "context_length_exceeded" and SECRET not in str(caught.value)
    seen = ""
    with pytest.raises(openai.APIError):
        async for chunk in await completions.create(model=model, prompt="it breaks-off", stream=True):
            seen += "".join(choice.text for choice in chunk.choices)
    assert seen and TEXT.startswith(seen) and seen != TEXT


@pytest.mark.parametrize("wire", EMBEDDERS)
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
async def test_embeddings(stage: Stage, wire: str, options: dict[str, Any]) -> None:
    """Where nothing is said the SDK asks for base64 and decodes it."""
    inputs = ["first", "second"]
    result = await stage.openai().embeddings.create(model=f"embed-{wire}", input=inputs, **options)
    assert [item.index for item in result.data] == [0, 1]
    assert [item.embedding for item in result.data] == [VECTOR, VECTOR]
    counted = wire not in ("gemini", "converse")  # these do not count
    row = await stage.row(usage_source="reported" if counted else "estimated")
    assert row.usage == Usage(EMBEDDED_TOKENS) if counted else row.usage.input_tokens > 0
    assert not counted or result.usage.prompt_tokens == result.usage.total_tokens == EMBEDDED_TOKENS


async def test_models(stage: Stage) -> None:
    client = stage.openai()
    names = {model.id async for model in client.models.list()}
    assert {f"via-{wire}" for wire in WIRES} <= names
    assert (await client.models.retrieve("via-gemini")).owned_by == "p-gemini"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nothing")
    with pytest.raises(openai.AuthenticationError):
        await stage.openai(api_key="hw-unknown").models.list()


@pytest.mark.parametrize("surface", ["chat", "responses", "embeddings"])
async def test_an_unknown_key(stage: Stage, surface: str) -> None:
    client = stage.openai(api_key="hw-unknown")
    calls: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}]),
        "responses": lambda: client.responses.create(model="m", input="hi"),
        "embeddings": lambda: client.embeddings.create(model="m", input="hi"),
    }
    with pytest.raises(openai.AuthenticationError):
        await calls[surface]()
