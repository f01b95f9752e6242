"""What the local engine can do, asked for through the gateway: every surface, structured answers, tools, embeddings."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest

from tests.e2e.gateway import ADMIN_KEY, Gateway

LOCAL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=ADMIN_KEY, max_retries=0, timeout=60)


def test_an_answer_in_the_form_of_a_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=LOCAL,
        messages=QUESTION,  # type: ignore[arg-type]
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        max_tokens=60,
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found.keys() == {"city", "big"} and isinstance(found["big"], bool)


def test_a_tool_is_called_streamed_and_whole(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
    asked = {
        "model": LOCAL,
        "messages": QUESTION,
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "look_up"}},
        "max_tokens": 80,
    }
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason in ("tool_calls", "stop") and call.function.name == "look_up"
    assert json.loads(call.function.arguments).keys() == {"city", "big"}
    with client.chat.completions.create(**asked, stream=True) as stream:  # type: ignore[call-overload]
        pieces = [c for chunk in stream for choice in chunk.choices for c in choice.delta.tool_calls or ()]
    assert pieces[0].function.name == "look_up"
    assert "".join(piece.function.arguments or "" for piece in pieces) == call.function.arguments


def test_a_tool_is_used_by_another_protocol(gateway: Gateway) -> None:
    client = anthropic.Anthropic(base_url=gateway.url, api_key=ADMIN_KEY, max_retries=0, timeout=60)
    answer = client.messages.create(
        model=LOCAL,
        max_tokens=80,
        messages=QUESTION,  # type: ignore[arg-type]
        tools=[{"name": "look_up", "input_schema": SCHEMA}],
        tool_choice={"type": "tool", "name": "look_up"},
    )
    (use,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and use.name == "look_up"
    assert isinstance(use.input, dict) and use.input.keys() == {"city", "big"}


def test_completions_and_embeddings(client: openai.OpenAI, gateway: Gateway) -> None:
    completion = client.completions.create(model=LOCAL, prompt="The capital of France is", max_tokens=4, logprobs=2)
    assert "Paris" in completion.choices[0].text
    assert completion.choices[0].logprobs is not None and len(completion.choices[0].logprobs.tokens or ()) == 4
    response = client.embeddings.with_raw_response.create(model=LOCAL, input=["one text", "another"])
    found = response.parse()
    assert [len(item.embedding) for item in found.data] == [576, 576]
    (row,) = gateway.rows(response.headers["x-hatchway-request-id"])
    assert row["input_tokens"] == found.usage.prompt_tokens > 0 and row["output_tokens"] == 0


def test_several_answers_of_a_seed(client: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        answer = client.chat.completions.create(
            model=LOCAL,
            messages=QUESTION,  # type: ignore[arg-type]
            n=3,
            seed=7,
            temperature=1.2,
            max_tokens=12,
        )
        return [choice.message.content for choice in sorted(answer.choices, key=lambda choice: choice.index)]

    first = ask()
    assert first == ask() and len(set(first)) > 1


def test_prefixes_are_shared_within_a_team_only(gateway: Gateway) -> None:
    keys = {
        team: gateway.run("keys", "create", "--team", team, "--json").stdout for team in ("first-team", "second-team")
    }
    secrets = {team: json.loads(text)["key"] for team, text in keys.items()}
    text = "A sentence that nobody has sent before, long enough to fill some blocks of the cache. " * 3
    body = {"model": LOCAL, "messages": [{"role": "user", "content": text}], "max_tokens": 2}

    def cached(team: str) -> int:
        usage = gateway.post(body, key=secrets[team]).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached("first-team") <= 16  # the template's own beginning
    assert cached("first-team") > 32
    assert cached("second-team") <= 16
