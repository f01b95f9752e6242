"""A real `hatchway up` with the bundled model: one question by each surface, whole and streamed, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.conftest import MODEL
from tests.e2e.gateway import ADMIN_KEY, Gateway

QUESTION = "What is the capital of France?"
BEGINNING = "The capital of France is"  # to be gone on with: a completion is no conversation
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
LIMIT = 24
COLD = {"temperature": 0}  # a field that the newest SDK has not


Clients = tuple[openai.OpenAI, anthropic.Anthropic]


@pytest.fixture
def clients(gateway: Gateway) -> Iterator[Clients]:
    settings: dict[str, Any] = {"api_key": ADMIN_KEY, "max_retries": 0, "timeout": 60}
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", **settings) as one,
        anthropic.Anthropic(base_url=gateway.url, **settings) as other,
    ):
        yield one, other


Said = tuple[str, int, int]
"""The text, and the tokens of input and output that the SDK was told."""


def chat(clients: Clients) -> Said:
    answer = clients[0].chat.completions.create(model=MODEL, messages=ASKED, temperature=0, max_tokens=LIMIT)
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens, answer.usage.completion_tokens


def chat_stream(clients: Clients) -> Said:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": LIMIT}
    with clients[0].chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        answer = stream.get_final_completion()
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens, answer.usage.completion_tokens


def responses(clients: Clients) -> Said:
    answer = clients[0].responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=LIMIT)
    assert answer.usage is not None
    return answer.output_text, answer.usage.input_tokens, answer.usage.output_tokens


def responses_stream(clients: Clients) -> Said:
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": LIMIT}
    with clients[0].responses.stream(**asked) as stream:
        answer = stream.get_final_response()
    assert answer.usage is not None
    return answer.output_text, answer.usage.input_tokens, answer.usage.output_tokens


def messages(clients: Clients) -> Said:
    answer = clients[1].messages.create(model=MODEL, messages=ASKED, extra_body=COLD, max_tokens=LIMIT)
    given = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    return answer.content[0].text, given, answer.usage.output_tokens  # type: ignore[union-attr]


def messages_stream(clients: Clients) -> Said:
    with clients[1].messages.stream(model=MODEL, messages=ASKED, extra_body=COLD, max_tokens=LIMIT) as stream:
        answer = stream.get_final_message()
    given = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    return answer.content[0].text, given, answer.usage.output_tokens  # type: ignore[union-attr]


def completions(clients: Clients) -> Said:
    answer = clients[0].completions.create(model=MODEL, prompt=BEGINNING, temperature=0, max_tokens=LIMIT)
    assert answer.usage is not None
    return answer.choices[0].text, answer.usage.prompt_tokens, answer.usage.completion_tokens


def completions_stream(clients: Clients) -> Said:
    asked: dict[str, Any] = {"model": MODEL, "prompt": BEGINNING, "temperature": 0, "max_tokens": LIMIT}
    text, usage = "", None
    with clients[0].completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            text += "".join(choice.text for choice in chunk.choices)
            usage = chunk.usage or usage
    assert usage is not None
    return text, usage.prompt_tokens, usage.completion_tokens


ALL = [chat, chat_stream, responses, responses_stream, messages, messages_stream, completions, completions_stream]


@pytest.mark.parametrize("ask", ALL, ids=lambda ask: ask.__name__)
def test_a_surface(gateway: Gateway, clients: Clients, ask: Callable[[Clients], Said]) -> None:
    before = len(gateway.rows())
    text, given, made = ask(clients)
    assert "Paris" in text
    (row,) = gateway.rows()[before:]
    assert (row["status"], row["endpoint"], row["usage_source"]) == ("ok", "on-prem", "reported")
    assert (row["input_tokens"] + row["cache_read_tokens"], row["output_tokens"]) == (given, made)
    assert given >= 5 and 0 < made <= LIMIT
    assert row["stream"] is ask.__name__.endswith("stream")
