"""The server as a process of its own, over its unix socket, with the bundled model."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.local_engine.serving import CHAT, MODEL, events, metrics
from tests.local_engine.serving import chat_body as body

URL = CHAT


@pytest.fixture(scope="module")
def client(server: Any) -> Any:
    with server.client() as client:
        yield client


def test_it_listens_before_the_model_is_loaded(server: Any) -> None:
    first, last = server.health_seen[0], server.health_seen[-1]
    assert (first["code"], first["status"]) == (503, "loading")
    assert (last["code"], last["status"]) == (200, "ready")
    progress = [seen["progress"] for seen in server.health_seen[:-1]]
    assert progress == sorted(progress) and 0 <= progress[0] and progress[-1] <= 1


def test_only_this_user_may_connect(server: Any) -> None:
    assert server.socket.stat().st_mode & 0o777 == 0o600


def test_an_answer_whole(client: httpx.Client) -> None:
    response = client.post(URL, json=body())
    assert response.status_code == 200
    answer = response.json()
    assert answer["object"] == "chat.completion" and answer["model"] == MODEL and answer["id"].startswith("chatcmpl-")
    [choice] = answer["choices"]
    assert choice["message"]["content"] == "The capital of France is Paris."
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == "stop" and choice["index"] == 0
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (37, 8, 45)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert answer["system_fingerprint"].startswith("hw_")
    again = client.post(URL, json=body()).json()
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}  # whole blocks of 16
    assert again["choices"] == answer["choices"] and again["id"] != answer["id"]


def test_the_same_answer_streamed(client: httpx.Client) -> None:
    whole = client.post(URL, json=body("Write a haiku about autumn rain.", max_tokens=24)).json()
    fields = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 24}
    *chunks, usage, done = events(client.post(URL, json=body("Write a haiku about autumn rain.", **fields)))
    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 24
    assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert "".join(d.get("content", "") for d in deltas) == whole["choices"][0]["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]] and reasons[-1] == "length"


def test_usage_is_not_sent_unasked(client: httpx.Client) -> None:
    *chunks, done = events(client.post(URL, json=body(stream=True)))
    assert done == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks) and all(chunk["choices"] for chunk in chunks)


def test_stop_strings_are_cut_off_in_both_forms(client: httpx.Client) -> None:
    fields = {"stop": ["of Fr", "never"]}
    whole = client.post(URL, json=body(**fields)).json()
    assert whole["choices"][0]["message"]["content"] == "The capital "
    assert whole["choices"][0]["finish_reason"] == "stop"
    *chunks, _ = events(client.post(URL, json=body(stream=True, **fields)))
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "The capital "
    assert client.post(URL, json=body(stop=" capital")).json()["choices"][0]["message"]["content"] == "The"


def test_text_parts_and_ignored_fields(client: httpx.Client) -> None:
    message = {"role": "user", "name": "ann", "content": [{"type": "text", "text": "What is the capital of France?"}]}
    extra = {"user": "u", "metadata": {"a": "b"}, "store": False, "tools": [], "n": 1, "seed": None, "stop": None}
    extra |= {"logprobs": False, "response_format": {"type": "text"}, "parallel_tool_calls": True, "top_k": -1}
    answer = client.post(URL, json={"model": MODEL, "messages": [message], **extra}).json()
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."


def test_sampling_parameters_reach_the_sampler(client: httpx.Client) -> None:
    def ask(**fields: Any) -> str:
        short = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
        answer = client.post(URL, json={"model": MODEL, "messages": short, "max_tokens": 5, **fields}).json()
        return answer["choices"][0]["message"]["content"]

    cold = ask()
    hot = {"temperature": 2.0, "seed": 1}
    assert ask(**hot) != cold
    assert ask(**hot, top_k=1) == cold
    assert ask(logit_bias={"49": 100}, max_completion_tokens=2, max_tokens=None) == "AA"


async def test_seeds_reproduce_alone_and_in_company(server: Any) -> None:
    async with server.async_client() as client:

        async def ask(seed: int) -> str:
            fields = {"temperature": 1.0, "seed": seed, "max_tokens": 8}
            answer = (await client.post(URL, json=body("Tell me a story.", **fields))).json()
            return answer["choices"][0]["message"]["content"]

        alone = [await ask(seed) for seed in (1, 2, 3)]
        assert len(set(alone)) == 3
        company = await asyncio.gather(*(ask(seed) for seed in (1, 2, 3)))
        assert list(company) == alone


async def test_several_at_once_are_answered_each_with_its_own(server: Any) -> None:
    questions = {"What is the capital of France?": "Paris", "List three primary colours.": "Yellow"}
    async with server.async_client() as client:
        asked = [q for q in questions for _ in range(2)]
        answers = await asyncio.gather(*(client.post(URL, json=body(q, max_tokens=20)) for q in asked))
    for question, answer in zip(asked, answers, strict=True):
        assert questions[question] in answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_request(server: Any, stream: bool) -> None:
    async with server.async_client() as client:

        async def counters() -> dict[str, int]:
            return metrics((await client.get("/metrics")).text)

        async def until(true: Callable[[dict[str, int]], bool]) -> dict[str, int]:
            async with asyncio.timeout(60):
                while not true(seen := await counters()):  # noqa: ASYNC110 - another process's state: only asking tells
                    await asyncio.sleep(0.01)
            return seen

        before = await until(lambda m: m["requests_running"] == 0)
        request = asyncio.create_task(client.post(URL, json=body("Write a long story.", max_tokens=900, stream=stream)))
        await until(lambda m: m["completion_tokens_total"] >= before["completion_tokens_total"] + 2)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        after = await until(lambda m: m["requests_running"] == 0)
        assert after["cancelled_total"] == before["cancelled_total"] + 1
        assert after["kv_blocks_used"] == 0
        assert after["completion_tokens_total"] < before["completion_tokens_total"] + 500
        later = await counters()
        assert later["steps_total"] == after["steps_total"], "it went on for nobody"


def test_the_openai_client_understands_it(server: Any) -> None:
    with (
        server.client() as http,
        openai.OpenAI(api_key="none", base_url="http://engine/v1", http_client=http) as client,
    ):
        ask: Any = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
        answer = client.chat.completions.create(**ask)
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert answer.usage is not None and answer.usage.completion_tokens == 8
        with client.chat.completions.create(**ask, stream=True) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == "The capital of France is Paris."
        assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**ask, logprobs=True, top_logprobs=21)
        assert caught.value.param == "top_logprobs"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4o")
        assert client.models.retrieve(MODEL).id == MODEL


def test_models_say_how_much_fits(client: httpx.Client) -> None:
    [entry] = client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["object"], entry["context_length"]) == (MODEL, "model", 8192)


USER = {"role": "user", "content": "hi"}
REFUSED: dict[str, tuple[Any, int, str | None, str | None]] = {
    "no json": (b"{", 400, None, "invalid_json"),
    "not utf-8": (b'{"model": "\xff"}', 400, None, "invalid_json"),
    "half a surrogate": (b'{"model": "\\ud800"}', 400, None, "invalid_json"),
    "deep nesting": (b'{"model": "m", "audio": ' + b"[" * 100_000, 400, None, "invalid_json"),
    "an array": ([], 400, "", None),
    "no model": ({"messages": [USER]}, 400, "", None),
    "unknown model": ({"model": "gpt-4o", "messages": [USER]}, 404, "model", "model_not_found"),
    "no messages": ({"messages": []}, 400, "messages", None),
    "content is a number": ({"messages": [{"role": "user", "content": 1}]}, 400, "messages[0].content", None),
    "no content": ({"messages": [USER, {"role": "assistant"}]}, 400, "messages[1].content", None),
    "unknown role": ({"messages": [USER, {"role": "robot", "content": "x"}]}, 400, "messages[1]", None),
    "function role": (
        {"messages": [{"role": "function", "content": "x"}]},
        400,
        "messages[0]",
        "unsupported_parameter",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0]",
        "unsupported_parameter",
    ),
    "prompt too long": (
        {"messages": [{"role": "user", "content": "word " * 9000}]},
        400,
        "messages",
        "context_length_exceeded",
    ),
    "answer too long": ({"max_tokens": 8192}, 400, "max_tokens", "context_length_exceeded"),
    "answer far too long": ({"max_completion_tokens": 10**30}, 400, "max_completion_tokens", "context_length_exceeded"),
    "no answer": ({"max_tokens": 0}, 400, "max_tokens", None),
    "max_tokens is text": ({"max_tokens": "5"}, 400, "max_tokens", None),
    "temperature": ({"temperature": 2.1}, 400, "temperature", None),
    "infinite temperature": (b'{"model": "m", "messages": [], "temperature": 1e999}', 400, "temperature", None),
    "top_p": ({"top_p": -0.1}, 400, "top_p", None),
    "top_k": ({"top_k": -2}, 400, "top_k", None),
    "min_p": ({"min_p": 1.5}, 400, "min_p", None),
    "presence_penalty": ({"presence_penalty": 3}, 400, "presence_penalty", None),
    "frequency_penalty": ({"frequency_penalty": -3}, 400, "frequency_penalty", None),
    "bias on no token": ({"logit_bias": {"49152": 1}}, 400, "logit_bias", None),
    "bias on a word": ({"logit_bias": {"the": 1}}, 400, "logit_bias", None),
    "bias too large": ({"logit_bias": {"5": 101}}, 400, "logit_bias", None),
    "seed beyond 64 bits": ({"seed": 1 << 64}, 400, "seed", None),
    "seventeen stops": ({"stop": list("abcdefghijklmnopq")}, 400, "stop", None),
    "an empty stop": ({"stop": ""}, 400, "stop", None),
    "stream_options alone": ({"stream_options": {"include_usage": True}}, 400, "stream_options", None),
    "n": ({"n": 129}, 400, "n", None),
    "more answers than places": ({"n": 80}, 400, "n", None),
    "best of": ({"best_of": 3}, 400, "best_of", "unsupported_parameter"),
    "no tool": ({"tools": [{"type": "function"}]}, 400, "tools[0].type", "unsupported_parameter"),
    "a tool's name": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        400,
        "tools[0].function.name",
        None,
    ),
    "a choice without tools": ({"tool_choice": "required"}, 400, "tool_choice", None),
    "top_logprobs alone": ({"top_logprobs": 2}, 400, "top_logprobs", None),
    "a schema that cannot be": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}}},
        400,
        "response_format.json_schema.schema",
        "unsupported_grammar",
    ),
    "an unknown format": ({"response_format": {"type": "xml"}}, 400, "response_format.type", "unsupported_parameter"),
    "a bad regex": ({"guided_regex": "("}, 400, "guided_regex", "unsupported_grammar"),
    "two grammars": ({"guided_regex": "a", "guided_choice": ["a"]}, 400, "guided_choice", None),
    "an endless grammar": ({"guided_regex": "a", "ignore_eos": True}, 400, "ignore_eos", "unsupported_parameter"),
    "audio": ({"modalities": ["text", "audio"]}, 400, "modalities", "unsupported_parameter"),
    "beam search": ({"use_beam_search": True}, 400, "use_beam_search", "unsupported_parameter"),
    "stop token": ({"stop_token_ids": [49152]}, 400, "stop_token_ids", None),
    "effort": ({"reasoning_effort": "maximal"}, 400, "reasoning_effort", None),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_is_refused_before_it_is_queued(client: httpx.Client, name: str, stream: bool) -> None:
    fields, status, param, code = REFUSED[name]
    before = metrics(client.get("/metrics").text)["steps_total"]
    content = fields
    if isinstance(fields, dict):
        base = {} if name == "no model" else {"model": MODEL, "messages": [USER]}
        content = base | ({"stream": stream} if "stream_options" not in fields else {}) | fields
    response = client.post(URL, content=content if isinstance(content, bytes) else json.dumps(content).encode())
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["message"] and (error["param"] or "") == (param or "") and error["code"] == code
    assert metrics(client.get("/metrics").text)["steps_total"] == before


def test_a_prompt_that_is_too_long_is_told_both_numbers(client: httpx.Client) -> None:
    message = client.post(URL, json=body("word " * 9000)).json()["error"]["message"]
    assert "8192 tokens" in message and "9031 tokens" in message


def test_a_body_over_the_limit_is_413(client: httpx.Client) -> None:
    response = client.post(URL, content=b" " * ((4 << 20) + 1))
    assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", URL, 405), ("POST", "/healthz", 405), ("GET", "/", 404)]
)
def test_other_paths_and_methods(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status and response.json()["error"]["message"]


def test_metrics_are_prometheus_text(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert all(name.startswith("hatchway_engine_") and family.documentation for name, family in families.items())
    assert metrics(response.text)["ready"] == 1
    counts = {
        name.removeprefix("hatchway_engine_"): [s.value for s in family.samples if s.name.endswith("_count")][0]
        for name, family in families.items()
        if family.type == "histogram"
    }
    assert set(counts) == {"time_to_first_token_seconds", "inter_token_seconds", "step_seconds", "queue_seconds"}
    seen = metrics(response.text)
    assert counts["step_seconds"] == seen["steps_total"]


def test_times_are_measured_for_each_token(client: httpx.Client) -> None:
    def counts() -> dict[str, float]:
        found = metrics(client.get("/metrics").text)
        return {name: found[f"{name}_seconds_count"] for name in ("time_to_first_token", "inter_token", "queue")}

    before = counts()
    client.post(URL, json=body(max_tokens=6, n=2))
    after = counts()
    assert {name: after[name] - before[name] for name in after} == {
        "time_to_first_token": 2,
        "inter_token": 10,
        "queue": 2,
    }
