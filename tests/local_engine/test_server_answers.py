"""Several answers, log-probabilities, structured output, tool calls, deadlines: the bundled model behind its socket."""

import asyncio
import base64
import json
import math
import random
from typing import Any

import httpx
import jsonschema_rs
import numpy as np
import openai
import pytest

from tests.local_engine.schemas import random_schema
from tests.local_engine.serving import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MODEL,
    chat_body,
    events,
    metrics,
    plain_choice,
    whole_of,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def sdk(server: Any) -> Any:
    with server.client() as http, openai.OpenAI(api_key="none", base_url="http://engine/v1", http_client=http) as sdk:
        yield sdk


def ask(client: httpx.Client, path: str = CHAT, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def complete(client: httpx.Client, prompt: Any, **fields: Any) -> dict[str, Any]:
    return ask(client, COMPLETIONS, model=MODEL, prompt=prompt, **fields)


# A stream is its whole answer, cut in pieces.

SAME: dict[str, dict[str, Any]] = {
    "text": {"max_tokens": 12},
    "n": {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 10},
    "logprobs": {"logprobs": True, "top_logprobs": 3, "max_tokens": 6},
    "stop": {"stop": ["capital of", "never"], "logprobs": True},
    "tools": {"tools": [WEATHER, CLOCK], "tool_choice": "required", "max_tokens": 24},
    "json": {"response_format": {"type": "json_object"}, "max_tokens": 30, "logprobs": True},
}


@pytest.mark.parametrize("name", SAME)
def test_a_stream_joined_is_the_whole(client: httpx.Client, name: str) -> None:
    whole = ask(client, **chat_body(**SAME[name]))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(client.post(CHAT, json=chat_body(**SAME[name], **options)))
    assert done == "[DONE]" and usage["choices"] == []
    expected = {choice["index"]: plain_choice(choice) for choice in whole["choices"]}
    streamed = whole_of(chunks)
    np.testing.assert_allclose(take_logprobs(streamed), take_logprobs(expected), atol=1e-4)
    assert streamed == expected
    for key in ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details"):
        assert usage["usage"][key] == whole["usage"][key]


def take_logprobs(value: Any) -> list[float]:
    """Takes the numbers out: they depend, in their last digits, on what else was in the step."""
    if isinstance(value, dict):
        own = [value.pop("logprob")] if "logprob" in value else []
        return own + [number for item in value.values() for number in take_logprobs(item)]
    return [number for item in value for number in take_logprobs(item)] if isinstance(value, list) else []


def test_answers_of_one_seed_differ_and_come_again(client: httpx.Client) -> None:
    fields = {"n": 3, "temperature": 1.0, "seed": 11, "max_tokens": 8}
    answer = ask(client, **chat_body("Tell me a story.", **fields))
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    usage = answer["usage"]
    one = ask(client, **chat_body("Tell me a story.", **fields | {"n": 1}))
    assert one["choices"][0]["message"]["content"] == texts[0]
    assert usage["prompt_tokens"] == one["usage"]["prompt_tokens"] and usage["completion_tokens"] == 24
    again = ask(client, **chat_body("Tell me a story.", **fields))
    assert [choice["message"]["content"] for choice in again["choices"]] == texts


def test_usage_as_it_goes(client: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, usage, _ = events(client.post(CHAT, json=chat_body(max_tokens=5, stream=True, stream_options=options)))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 5 == usage["usage"]["completion_tokens"]
    assert all(chunk["usage"]["prompt_tokens"] == usage["usage"]["prompt_tokens"] for chunk in chunks)


def test_stop_token_ids_and_reasons(client: httpx.Client) -> None:
    [paris] = ask(client, "/tokenize", prompt=" Paris")["tokens"]
    [choice] = ask(client, **chat_body(stop_token_ids=[paris]))["choices"]
    assert choice["message"]["content"] == "The capital of France is Paris"  # its text is shown, as in vLLM
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", paris)
    [choice] = ask(client, **chat_body(stop=[" is", "x"]))["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " is")
    assert ask(client, **chat_body())["choices"][0]["stop_reason"] is None


def test_min_tokens_and_ignore_eos(client: httpx.Client) -> None:
    assert ask(client, **chat_body(max_tokens=20))["usage"]["completion_tokens"] == 8
    assert ask(client, **chat_body(max_tokens=20, min_tokens=12))["usage"]["completion_tokens"] >= 12
    ignored = ask(client, **chat_body(max_tokens=20, ignore_eos=True))
    assert ignored["usage"]["completion_tokens"] == 20 and ignored["choices"][0]["finish_reason"] == "length"


def test_an_answer_can_be_continued(client: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    answer = ask(client, model=MODEL, messages=messages, continue_final_message=True)
    assert answer["choices"][0]["message"]["content"] == " Paris."


# Log-probabilities.


def test_log_probabilities_of_an_answer(client: httpx.Client) -> None:
    answer = ask(client, **chat_body("Say: 日本 🙂", logprobs=True, top_logprobs=2, max_tokens=12))
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == answer["usage"]["completion_tokens"]
    text = b"".join(bytes(entry["bytes"] or ()) for entry in entries).decode(errors="replace")
    assert text == answer["choices"][0]["message"]["content"]
    for entry in entries:
        first, second = entry["top_logprobs"]
        assert first["logprob"] >= second["logprob"] and entry["logprob"] == first["logprob"] <= 0
        assert first["token"] == entry["token"]
    assert ask(client, **chat_body(max_tokens=1))["choices"][0]["logprobs"] is None


def test_a_token_that_is_part_of_a_character_has_its_bytes(client: httpx.Client) -> None:
    tokens = ask(client, "/tokenize", prompt="🜁")["tokens"]
    assert len(tokens) > 1
    bias = {str(tokens[0]): 100}
    answer = ask(client, **chat_body(logprobs=True, max_tokens=1, logit_bias=bias, stream=False))
    [entry] = answer["choices"][0]["logprobs"]["content"]
    assert entry["bytes"] == [0xF0] or bytes(entry["bytes"]) == "🜁".encode()[: len(entry["bytes"])]
    assert entry["token"].startswith("bytes:\\xf0") and answer["choices"][0]["message"]["content"] == "�"
    assert math.isfinite(entry["logprob"]) and entry["logprob"] < -1  # as the model saw it, not as it was pushed


def test_prompt_log_probabilities_agree_with_those_of_the_answer(client: httpx.Client) -> None:
    first = complete(client, "The capital of France is", max_tokens=2, logprobs=2)["choices"][0]
    echoed = complete(client, "The capital of France is" + first["text"], max_tokens=1, logprobs=2, echo=True)
    choice = echoed["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("The capital of France is" + first["text"])
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert len(logprobs["tokens"]) == echoed["usage"]["total_tokens"]
    known = first["logprobs"]["token_logprobs"]
    assert logprobs["tokens"][-3:-1] == first["logprobs"]["tokens"]
    np.testing.assert_allclose(logprobs["token_logprobs"][-3:-1], known, atol=1e-4)
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(token)] == token
    for token, logprob, top in list(
        zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == logprob and len(top) in (2, 3)


def test_a_prompt_alone_is_scored(client: httpx.Client) -> None:
    answer = complete(client, "one two three", max_tokens=0, echo=True, logprobs=0)
    [choice] = answer["choices"]
    assert choice["text"] == "one two three" and answer["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["token_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert all(value < 0 for value in choice["logprobs"]["token_logprobs"][1:])


# Completions.


def test_prompts_in_every_form(client: httpx.Client) -> None:
    ids = ask(client, "/tokenize", prompt="Once upon a")["tokens"]
    texts = [complete(client, prompt, max_tokens=3)["choices"][0]["text"] for prompt in ("Once upon a", ids)]
    assert texts[0] == texts[1] and texts[0].startswith(" time")
    both = complete(client, ["Once upon a", "One, two,"], max_tokens=3, n=2)
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert both["choices"][0]["text"] == both["choices"][1]["text"] == texts[0]
    assert (
        both["choices"][2]["text"]
        == complete(client, [[*_ids(client, "One, two,")]], max_tokens=3)["choices"][0]["text"]
    )
    assert both["usage"]["prompt_tokens"] == len(ids) + len(_ids(client, "One, two,"))
    assert both["usage"]["completion_tokens"] == 12
    assert len(_ids(client, complete(client, "Once upon a")["choices"][0]["text"])) == 16  # OpenAI's default


def _ids(client: httpx.Client, text: str) -> list[int]:
    ids: list[int] = ask(client, "/tokenize", prompt=text)["tokens"]
    return ids


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_of_completions_joined_is_the_whole(client: httpx.Client, echo: bool) -> None:
    fields = {"n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 6, "logprobs": 1, "echo": echo}
    whole = complete(client, ["Once upon", "The sea"], **fields)
    body = {"model": MODEL, "prompt": ["Once upon", "The sea"], "stream": True, **fields}
    *chunks, usage, done = events(client.post(COMPLETIONS, json={**body, "stream_options": {"include_usage": True}}))
    assert done == "[DONE]" and usage["choices"] == []
    joined: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        [choice] = chunk["choices"]
        found = joined.setdefault(choice["index"], {"text": "", "logprobs": {}, "finish_reason": None})
        found["text"] += choice["text"]
        for key, values in (choice["logprobs"] or {}).items():
            found["logprobs"].setdefault(key, []).extend(values)
        found["finish_reason"] = choice["finish_reason"]
    expected = {c["index"]: {key: c[key] for key in ("text", "logprobs", "finish_reason")} for c in whole["choices"]}
    for index, choice in joined.items():
        for key in ("token_logprobs", "top_logprobs"):
            found, known = choice["logprobs"].pop(key), expected[index]["logprobs"].pop(key)
            if key == "token_logprobs":
                assert (found[0] is None) == echo and found.count(None) == known.count(None)
                np.testing.assert_allclose(found[echo:], known[echo:], atol=1e-4)
            else:
                assert [top and set(top) for top in found] == [top and set(top) for top in known]
    assert joined == expected
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 24


REFUSED: dict[str, tuple[str, dict[str, Any], str, str | None]] = {
    "suffix": (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
    "no prompts": (COMPLETIONS, {"prompt": []}, "prompt", None),
    "an empty prompt": (COMPLETIONS, {"prompt": ["a", ""]}, "prompt[1]", None),
    "mixed": (COMPLETIONS, {"prompt": ["a", 3]}, "prompt[1]", None),
    "no such token": (COMPLETIONS, {"prompt": [49152]}, "prompt", None),
    "true is no token": (COMPLETIONS, {"prompt": [True]}, "prompt", None),
    "nothing to do": (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, "max_tokens", None),
    "too many": (COMPLETIONS, {"prompt": ["a"] * 50, "n": 2}, "prompt", None),
    "too long": (COMPLETIONS, {"prompt": [5] * 8192}, "prompt", "context_length_exceeded"),
    "dimensions": (EMBEDDINGS, {"input": "a", "dimensions": 64}, "dimensions", "unsupported_parameter"),
    "an empty input": (EMBEDDINGS, {"input": ""}, "input", None),
    "an input too long": (EMBEDDINGS, {"input": [5] * 8193}, "input", "context_length_exceeded"),
    "two forms": ("/tokenize", {"prompt": "a", "messages": []}, "prompt", None),
    "not a token": ("/detokenize", {"tokens": [-1]}, "tokens", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_requests_to_the_other_surfaces(client: httpx.Client, name: str) -> None:
    path, fields, param, code = REFUSED[name]
    response = client.post(path, json={"model": MODEL, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


# Embeddings, tokens.


def test_embeddings_have_length_one_and_know_what_is_alike(sdk: openai.OpenAI, client: httpx.Client) -> None:
    texts = ["The cat sleeps on the sofa.", "A cat is sleeping on the couch.", "Quarterly revenue rose by 8%."]
    found = sdk.embeddings.create(model=MODEL, input=texts)  # as base64, which the client decodes
    vectors = np.array([item.embedding for item in found.data])
    assert vectors.shape == (3, 576) and [item.index for item in found.data] == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(len(_ids(client, text)) for text in texts)
    plain = ask(client, EMBEDDINGS, model=MODEL, input=_ids(client, texts[0]), encoding_format="float")
    np.testing.assert_allclose(plain["data"][0]["embedding"], vectors[0], atol=1e-4)
    coded = ask(client, EMBEDDINGS, model=MODEL, input=texts[0], encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), vectors[0], atol=1e-4)


def test_more_inputs_than_places(client: httpx.Client) -> None:
    found = ask(client, EMBEDDINGS, model=MODEL, input=[f"{n}" for n in range(20)])
    assert [item["index"] for item in found["data"]] == list(range(20))
    alone = ask(client, EMBEDDINGS, model=MODEL, input="17")["data"][0]["embedding"]
    np.testing.assert_allclose(found["data"][17]["embedding"], alone, atol=1e-4)


def test_a_control_token_in_a_document_is_only_text(client: httpx.Client) -> None:
    usage = ask(client, EMBEDDINGS, model=MODEL, input="<|im_end|>")["usage"]
    assert usage["prompt_tokens"] > 1
    assert len(_ids(client, "<|im_end|>")) == 1  # a raw prompt may hold it


def test_tokens_there_and_back(client: httpx.Client) -> None:
    answer = ask(client, "/tokenize", prompt="Hello, 世界!", return_token_strs=True)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) and answer["max_model_len"] == 8192
    assert ask(client, "/detokenize", model=MODEL, tokens=answer["tokens"]) == {"prompt": "Hello, 世界!"}
    messages = chat_body()["messages"]
    assert ask(client, "/tokenize", messages=messages)["count"] == 37
    assert ask(client, "/tokenize", messages=messages, add_generation_prompt=False)["count"] < 37


# Structured output.


@pytest.mark.parametrize("seed", range(2))
def test_answers_fit_their_schema(client: httpx.Client, seed: int) -> None:
    schema = random_schema(random.Random(1000 + seed))
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    fields = {"response_format": response_format, "max_tokens": 80, "temperature": 0.8, "seed": seed}
    [choice] = ask(client, **chat_body("Give me an example.", **fields))["choices"]
    if choice["finish_reason"] == "stop":
        jsonschema_rs.validate(schema, json.loads(choice["message"]["content"]))
    else:
        assert choice["finish_reason"] == "length"


def test_the_sdk_parses_a_typed_answer(sdk: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Ann is 31 years old. Extract her name and age."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"name", "age"} and answer.choices[0].finish_reason == "stop"


GUIDED: dict[str, tuple[dict[str, Any], Any]] = {
    "regex": ({"guided_regex": r"\d{4}-\d{2}"}, lambda text: len(text) == 7 and text[4] == "-"),
    "choice": ({"guided_choice": ["positive", "negative"]}, lambda text: text in ("positive", "negative")),
    "json": ({"guided_json": {"enum": [{"a": 1}, {"a": 2}]}}, lambda text: json.loads(text)["a"] in (1, 2)),
    "grammar": ({"guided_grammar": 'root ::= "<" [a-c]+ ">"'}, lambda text: set(text[1:-1]) <= set("abc")),
    "structured": ({"structured_outputs": {"choice": ["left", "right"]}}, lambda text: text in ("left", "right")),
    "completion": ({"structured_outputs": {"regex": "(yes|no)"}}, lambda text: text in ("yes", "no")),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guided_answers(client: httpx.Client, name: str) -> None:
    fields, fits = GUIDED[name]
    fields = {**fields, "max_tokens": 40, "logit_bias": {}}
    if name == "completion":
        [choice] = complete(client, "Is water wet? ", **fields)["choices"]
        text = choice["text"]
    else:
        [choice] = ask(client, **chat_body("Go!", **fields))["choices"]
        text = choice["message"]["content"]
    assert choice["finish_reason"] == "stop" or name == "grammar"
    assert fits(text) or choice["finish_reason"] == "length"


# Tools.


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_called(sdk: openai.OpenAI, stream: bool) -> None:
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Paris, in Celsius?"}],
        "tools": [WEATHER, CLOCK],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "max_tokens": 80,
    }
    if stream:
        with sdk.chat.completions.create(**request, stream=True) as chunks:
            found = list(chunks)
        pieces = [c for chunk in found for c in chunk.choices[0].delta.tool_calls or []]
        assert pieces[0].id and pieces[0].function.name == "get_weather" and all(p.id is None for p in pieces[1:])
        arguments = "".join(piece.function.arguments or "" for piece in pieces)
        reason = found[-1].choices[0].finish_reason
    else:
        choice = sdk.chat.completions.create(**request).choices[0]
        [call] = choice.message.tool_calls
        assert call.id and call.type == "function" and call.function.name == "get_weather"
        assert choice.message.content is None
        arguments, reason = call.function.arguments, choice.finish_reason
    jsonschema_rs.validate(WEATHER["function"]["parameters"], json.loads(arguments))  # type: ignore[index]
    assert reason == "tool_calls"


def test_a_conversation_with_tools_goes_on(client: httpx.Client) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "14:05"},
    ]
    answer = ask(client, model=MODEL, messages=messages, tools=[CLOCK], max_tokens=30)
    assert answer["choices"][0]["message"]["content"]
    without = ask(client, model=MODEL, messages=messages, tools=[CLOCK], tool_choice="none", max_tokens=5)
    assert without["usage"]["prompt_tokens"] < answer["usage"]["prompt_tokens"]


# Headers.


def test_prefixes_are_shared_within_a_tenant_only(client: httpx.Client) -> None:
    body = chat_body("Tenants keep their prefixes to themselves, whatever the others may have asked.", max_tokens=1)

    def cached(tenant: str | None, salt: str | None = None) -> int:
        headers = {} if tenant is None else {"x-hatchway-tenant": tenant}
        response = client.post(CHAT, json={**body, "cache_salt": salt}, headers=headers)
        found: int = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached("a") < (hit := cached("a"))
    assert cached("b") < hit and cached(None) < hit
    assert cached("a", "s") < hit and cached("a", "s") == hit == cached("b")


def test_a_deadline_is_kept(client: httpx.Client) -> None:
    fields = {"ignore_eos": True, "max_tokens": 4000}
    headers = {"x-hatchway-timeout-ms": "300"}
    before = metrics(client.get("/metrics").text)["expired_total"]
    response = client.post(CHAT, json=chat_body(**fields), headers=headers)
    assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"
    streamed = client.post(CHAT, json=chat_body(stream=True, **fields), headers=headers)
    assert "[DONE]" not in streamed.text
    assert json.loads(streamed.text.strip().split("data: ")[-1])["error"]["code"] == "deadline_exceeded"
    assert metrics(client.get("/metrics").text)["expired_total"] == before + 2
    for value in ("0", "-5", "soon", "1" * 30):
        refused = client.post(CHAT, json=chat_body(), headers={"x-hatchway-timeout-ms": value})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "x-hatchway-timeout-ms"


def test_one_log_line_for_each_request(server: Any, client: httpx.Client) -> None:
    secret = "correct horse battery staple"
    headers = {"x-request-id": "my id\t7"}
    answer = client.post(CHAT, json=chat_body(secret, max_tokens=3), headers=headers).json()
    client.post(CHAT, json=chat_body(secret, max_tokens=-1), headers={"x-request-id": "refused-8"})
    log = server.log.read_text()
    [line] = [line for line in log.splitlines() if answer["id"] in line]
    assert "request_id=my?id?7" in line and "completion_tokens=3" in line and "finish=length" in line
    [refusal] = [line for line in log.splitlines() if "refused-8" in line]
    assert "status=400" in refusal and "param=max_tokens" in refusal
    assert secret not in log


async def test_leaving_ends_all_answers_of_a_call(server: Any) -> None:
    async with server.async_client() as client:

        async def until(name: str, value: float) -> dict[str, float]:
            async with asyncio.timeout(60):
                while (seen := metrics((await client.get("/metrics")).text))[name] != value:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            return seen

        before = await until("requests_running", 0)
        body = chat_body(n=3, ignore_eos=True, max_tokens=2000, stream=True)
        request = asyncio.create_task(client.post(CHAT, json=body))
        await until("requests_running", 3)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        after = await until("requests_running", 0)
        assert after["cancelled_total"] == before["cancelled_total"] + 3 and after["kv_blocks_used"] == 0
