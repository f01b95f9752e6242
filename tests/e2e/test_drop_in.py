"""An application swaps `base_url` and keeps its code: the official SDK against a running gateway."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from tests.e2e.gateway import ADMIN_KEY, Gateway
from tests.e2e.upstream import TEXT, Upstream

LOCAL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=ADMIN_KEY, max_retries=0, timeout=60)


def test_local_model_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=LOCAL, messages=QUESTION)  # type: ignore[arg-type]
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == LOCAL
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens == 37


def test_local_model_streams_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=LOCAL, messages=QUESTION)  # type: ignore[arg-type]
    with client.chat.completions.create(model=LOCAL, messages=QUESTION, stream=True) as stream:  # type: ignore[call-overload]
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.usage is None and chunk.choices for chunk in chunks), "usage was not asked for"


def test_asked_usage_chunk_comes(client: openai.OpenAI) -> None:
    with client.chat.completions.create(  # type: ignore[call-overload]
        model=LOCAL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].choices == [] and chunks[-1].usage.prompt_tokens == 37


def test_two_requests_at_once_to_the_local_model(gateway: Gateway) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=ADMIN_KEY, timeout=60) as client:
            questions = ["What is the capital of France?", "Say hello."]
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=LOCAL, messages=[{"role": "user", "content": question}])
                    for question in questions
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    first, second = asyncio.run(ask())
    assert "Paris" in (first or "") and "Hello" in (second or "")


def test_external_upstream_gets_what_the_application_sent(client: openai.OpenAI, upstream: Upstream) -> None:
    answer = client.chat.completions.create(
        model="by-cost",
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0.25,
        extra_body={"unknown_field": {"kept": [1, 2.50]}},
    )
    assert answer.choices[0].message.content == TEXT
    sent = upstream.requests[-1]
    assert sent["body"]["model"] == "ok-cheap"
    assert sent["body"]["unknown_field"] == {"kept": [1, 2.50]}
    assert sent["headers"]["authorization"] == "bearer sk-staged-secret"
    assert ADMIN_KEY not in json.dumps(sent)


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {LOCAL, "by-cost", "europe"} <= names
    assert client.models.retrieve(LOCAL).owned_by == "local"


def test_errors_are_the_sdk_s_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=QUESTION)  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="hw-wrong").models.list()
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="error-400", messages=QUESTION)  # type: ignore[arg-type]
    assert refused.value.code == "invalid_request"


def test_stream_that_breaks_raises(client: openai.OpenAI) -> None:
    """After content was seen the stream ends in an error event, never in a normal end."""
    with (
        pytest.raises(openai.APIError),
        client.chat.completions.create(model="cut", messages=QUESTION, stream=True) as stream,  # type: ignore[call-overload]
    ):
        list(stream)
