"""The wire formats without a server: which field becomes what, and which deltas become which bodies."""

import json
import random
from typing import Any

import msgspec
import numpy as np
import pytest

from local_engine.api.arrival import Arrival
from local_engine.api.protocol import NEUTRAL, Answer, TokenTexts, answer_length, failure_body, usage_body
from local_engine.api.protocol_chat import NEUTRAL as CHAT_NEUTRAL
from local_engine.api.protocol_chat import ChatAnswer, ChatCall, parse_chat
from local_engine.api.protocol_completions import CompletionAnswer, CompletionCall, parse_completion
from local_engine.api.protocol_embeddings import unit
from local_engine.errors import DeadlineExceeded, GenerationError, QueueFull, RequestError
from local_engine.request import (
    CallArguments,
    CallStart,
    Content,
    Delta,
    Part,
    Reasoning,
    SamplingParams,
    TokenLogprobs,
)
from tests.local_engine.serving import plain_choice, whole_of


def parse(default_temperature: float = 0.25, **fields: Any) -> ChatCall:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body).encode(), "m", default_temperature, vocab_size=100)


def complete(**fields: Any) -> CompletionCall:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), "m", 0.0, vocab_size=100)


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return caught.value


# Fields.


def test_every_sampling_field_arrives() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.5}
    fields |= {"frequency_penalty": -1.5, "repetition_penalty": 1.1, "seed": 12}
    expected = SamplingParams(**fields, logit_bias={5: -1.5, 99: 100.0}, logprobs=4)
    assert (
        parse(**fields, logit_bias={"5": -1.5, "99": 100}, logprobs=True, top_logprobs=4).options.sampling == expected
    )
    assert complete(**fields, logit_bias={"5": -1.5, "99": 100}, logprobs=4).options.sampling == expected


def test_what_is_left_out_or_null_has_a_default() -> None:
    nothing = SamplingParams(temperature=0.25)
    assert parse().options.sampling == nothing
    every = [name for name in msgspec.structs.fields(type_of_body()) if name.name not in ("model", "messages")]
    call = parse(**{field.name: None for field in every})
    assert call == parse()
    assert call.options.sampling == nothing
    options = call.options
    assert (options.stop, options.max_tokens, options.stream, options.include_usage, options.n) == (
        (),
        None,
        False,
        False,
        1,
    )
    assert parse(top_k=-1).options.sampling.top_k == 0
    assert parse(temperature=0).options.sampling.temperature == 0


def type_of_body() -> type[msgspec.Struct]:
    from local_engine.api.protocol_chat import ChatBody

    return ChatBody


def test_messages_stops_and_limits() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = parse(
        messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts}],
        stop="x",
        max_tokens=5,
        max_completion_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert call.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "a\nb"}]
    options = call.options
    assert options.stop == ("x",) and options.max_tokens == 6 and options.stream and options.include_usage
    assert parse(stop=["x", "y"]).options.stop == ("x", "y")


def test_a_conversation_with_tools_reaches_the_template() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    wire = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [wire], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    call = parse(messages=messages, tools=[tool], reasoning_effort="none", chat_template_kwargs={"x": 1})
    assert call.messages[1] == {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [wire]}
    assert call.messages[2] == {"role": "tool", "tool_call_id": "c", "content": "42"}
    assert call.tools == [tool] and not call.must_call
    assert call.template_kwargs == {"reasoning_effort": "none", "enable_thinking": False, "x": 1}
    assert parse(messages=messages, tools=[tool], tool_choice="none").tools == []
    assert parse(messages=messages, tools=[tool], tool_choice="required").must_call
    named = {"type": "function", "function": {"name": "g"}}
    assert refusal(tools=[tool], tool_choice=named).param == "tool_choice"


def test_what_would_change_the_answer_is_refused() -> None:
    for name, values in {**NEUTRAL, **CHAT_NEUTRAL}.items():
        assert refusal(**{name: "something else"}).code == "unsupported_parameter"
        assert refusal(**{name: "something else"}).param == name
        for value in values:
            assert parse(**{name: value}) == parse()


def test_each_answer_has_random_numbers_of_its_own() -> None:
    options = parse(n=3, min_tokens=9, stop_token_ids=[4], priority=-2, ignore_eos=True).options
    requests = options.requests([1, 2], 5, salt=b"s")
    assert [request.sampling.choice for request in requests] == [0, 1, 2]
    for request in requests:
        assert (request.prompt, request.max_tokens, request.min_tokens, request.salt) == ([1, 2], 5, 5, b"s")
        assert (request.stop_token_ids, request.priority, request.ignore_end) == (frozenset({4}), -2, True)


def test_the_answer_takes_what_the_prompt_leaves() -> None:
    assert answer_length(parse().options, 10, 100, 50, "messages") == 50
    assert answer_length(parse().options, 90, 100, 50, "messages") == 10
    assert answer_length(parse(max_tokens=90).options, 10, 100, 50, "messages") == 90
    assert answer_length(complete(max_tokens=0, echo=True).options, 100, 100, 50, "prompt") == 0
    for call, prompt, param in [(parse(max_tokens=91), 10, "max_tokens"), (parse(), 100, "messages")]:
        with pytest.raises(RequestError, match="100 tokens") as caught:
            answer_length(call.options, prompt, 100, 50, "messages")
        assert (caught.value.param, caught.value.code, caught.value.status) == (param, "context_length_exceeded", 400)


OUTPUTS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_object"}}, '"type": "object"'),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}}, '"const": 7'),
    ({"guided_json": '{"const": 7}'}, '"const": 7'),
    ({"guided_regex": "a+"}, "a+"),
    ({"guided_choice": ["x1", "x2"]}, "x1"),
    ({"guided_grammar": 'start: "zz"'}, "zz"),
    ({"structured_outputs": {"json": {"const": 7}, "disable_any_whitespace": True}}, '"const": 7'),
    ({"structured_outputs": {"json_object": True}}, '"type": "object"'),
    ({"structured_outputs": {"choice": ["x1"]}}, "x1"),
]


@pytest.mark.parametrize("case", range(len(OUTPUTS)))
def test_structured_output_in_every_spelling(case: int) -> None:
    fields, text = OUTPUTS[case]
    spec = parse(**fields).options.grammar
    assert spec is not None and text in spec.grammar and spec.param.startswith(next(iter(fields)))


def test_structured_output_that_makes_no_sense() -> None:
    assert parse(response_format={"type": "text"}).options.grammar is None
    assert refusal(response_format={"type": "json_schema"}).param == "response_format.json_schema"
    assert refusal(guided_json="{").param == "guided_json"
    assert refusal(guided_json=[1]).param == "guided_json"
    assert refusal(structured_outputs={"structural_tag": "x"}).code == "unsupported_parameter"
    assert refusal(structured_outputs={"regex": 5}).param == "structured_outputs.regex"
    assert refusal(structured_outputs={"choice": [1]}).param == "structured_outputs.choice"
    assert refusal(guided_regex="a", guided_choice=["a"]).param == "guided_choice"
    assert refusal(guided_regex="a", min_tokens=3).param == "min_tokens"


# Bodies.


class Letters:
    """A vocabulary as far as answers look at one."""

    texts = [b"a", b"b", b" c", b"\xf0\x9f", b"\x99\x82", b"", b"d"]

    def token_bytes(self, token: int) -> bytes:
        return self.texts[token]

    def token_text(self, token: int) -> str:
        return "<end>"


TEXTS = TokenTexts(Letters())  # type: ignore[arg-type]


def random_deltas(rng: random.Random, call_ids: str) -> list[Delta]:
    """One answer: reasoning, content, calls, cut anywhere; log-probabilities may come without text."""
    parts: list[Part] = [Reasoning(rng.choice("rst")) for _ in range(rng.randint(0, 3))]
    parts += [Content(rng.choice("abc")) for _ in range(rng.randint(0, 4))]
    for index in range(rng.randint(0, 2)):
        parts += [CallStart(index, f"{call_ids}{index}", f"f{index}")]
        parts += [CallArguments(index, piece) for piece in ('{"', 'k": ', "1}")[: rng.randint(0, 3)]]
    deltas = []
    count = 0
    while parts:
        taken, parts = parts[: (size := rng.randint(0, 3))], parts[size:]
        count += rng.randint(1, 2)
        logprobs = tuple(TokenLogprobs(rng.randint(0, 6), -1.5, ((1, -0.5),)) for _ in range(rng.randint(0, 2)))
        deltas.append(Delta(1, tuple(taken), 7, count, cached_tokens=3, reasoning_tokens=1, logprobs=logprobs))
    end = TokenLogprobs(5, -np.inf, ())
    reason = rng.choice(["stop", "length", "tool_calls"])
    return [*deltas, Delta(1, (), 7, count + 1, reason, cached_tokens=3, reasoning_tokens=1, logprobs=(end,))]


def test_streams_of_any_cut_are_their_wholes() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        call = parse(n=2, logprobs=True, top_logprobs=1)
        answers = {index: random_deltas(rng, f"c{index}-") for index in range(2)}
        whole, streamed = (ChatAnswer("m", "fp", call, TEXTS) for _ in range(2))
        order = [index for index, deltas in answers.items() for _ in deltas]
        rng.shuffle(order)
        news = {index: iter(deltas) for index, deltas in answers.items()}
        chunks = streamed.opening()
        for index in order:
            delta = next(news[index])
            whole.add(index, delta)
            chunks += streamed.chunks(index, delta)
        body = json.loads(msgspec.json.encode(whole.whole()))
        expected = {choice["index"]: plain_choice(choice) for choice in body["choices"]}
        assert whole_of(json.loads(msgspec.json.encode(chunks))) == expected
        for index, deltas in answers.items():
            parts = [part for delta in deltas for part in delta.parts]
            message = expected[index]["message"]
            assert message["content"] == "".join(part.text for part in parts if isinstance(part, Content))
            assert message.get("reasoning", "") == "".join(part.text for part in parts if isinstance(part, Reasoning))
            pieces = {part.index: "" for part in parts if isinstance(part, CallStart)}
            for part in parts:
                if isinstance(part, CallArguments):
                    pieces[part.index] += part.text
            assert [call["arguments"] for call in message.get("tool_calls", [])] == list(pieces.values())
        assert streamed.usage() == body["usage"]
        assert body["usage"]["prompt_tokens"] == 7 and body["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


def test_reasoning_and_calls_in_both_forms() -> None:
    call = parse(parallel_tool_calls=False)
    parts = (Reasoning("hm"), Content("so"), CallStart(0, "c0", "f"), CallArguments(0, "{}"), CallStart(1, "c1", "g"))
    answer = ChatAnswer("m", "fp", call, TEXTS)
    answer.add(0, Delta(1, parts, 1, 5, "tool_calls", reasoning_tokens=2))
    [choice] = answer.whole()["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "so",
        "refusal": None,
        "reasoning_content": "hm",
        "reasoning": "hm",
        "tool_calls": [{"id": "c0", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    assert answer.usage()["completion_tokens_details"] == {"reasoning_tokens": 2}
    deltas = [
        chunk["choices"][0]["delta"] for chunk in ChatAnswer("m", "fp", call, TEXTS).chunks(0, Delta(1, parts, 1, 5))
    ]
    assert deltas[2] == {
        "tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}]
    }
    assert deltas[3] == {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]} and len(deltas) == 4


def test_pieces_that_come_together_are_one_event() -> None:
    parts = (Content("a"), Content("b"), Reasoning("c"), Reasoning("d"))
    chunks = ChatAnswer("m", "fp", parse(), TEXTS).chunks(0, Delta(1, parts, 1, 4))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["ab", None]
    assert chunks[1]["choices"][0]["delta"]["reasoning"] == "cd"


def test_tokens_are_shown_so_that_no_two_look_alike() -> None:
    assert TEXTS.of(0) == ("a", [97])
    assert TEXTS.of(3) == ("bytes:\\xf0\\x9f", [0xF0, 0x9F]) and TEXTS.of(4)[0] == "bytes:\\x99\\x82"
    assert TEXTS.of(5) == ("<end>", None)


def test_completion_logprobs_stand_side_by_side() -> None:
    call = complete(logprobs=1, echo=True)
    answer = CompletionAnswer("m", "fp", call, TEXTS, [("ab", [0, 1])])
    prompt = (None, TokenLogprobs(1, -2.0, ((0, -0.5),)))
    answer.add(0, Delta(1, (Content("🙂"),), 2, 2, prompt_logprobs=prompt, logprobs=(TokenLogprobs(3, -1.0),)))
    answer.add(0, Delta(1, (), 2, 3, "stop", logprobs=(TokenLogprobs(4, -1.5), TokenLogprobs(5, -np.inf))))
    [choice] = answer.whole()["choices"]
    assert choice["text"] == "ab🙂"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "bytes:\\xf0\\x9f", "bytes:\\x99\\x82", "<end>"],
        "token_logprobs": [None, -2.0, -1.0, -1.5, -9999.0],
        "top_logprobs": [
            None,
            {"a": -0.5, "b": -2.0},
            {"bytes:\\xf0\\x9f": -1.0},
            {"bytes:\\x99\\x82": -1.5},
            {"<end>": -9999.0},
        ],
        "text_offset": [0, 1, 2, 2, 3],
    }


def test_usage_counts_each_prompt_once() -> None:
    deltas = {index: Delta(index, (), 10, 3, "stop", cached_tokens=index) for index in range(4)}
    usage = usage_body(deltas, 2)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (20, 12, 32)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0 + 2}


def test_usage_is_null_in_chunks_only_when_it_will_follow() -> None:
    def chunk(**fields: Any) -> dict[str, Any]:
        answer: Answer = ChatAnswer("m", "fp", parse(stream=True, **fields), TEXTS)
        return answer.chunks(0, Delta(1, (Content("x"),), 3, 4))[0]

    assert "usage" not in chunk()
    assert chunk(stream_options={"include_usage": True})["usage"] is None
    counted = chunk(stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert counted["usage"]["total_tokens"] == 7


def test_failures_have_codes() -> None:
    assert failure_body(DeadlineExceeded("x"))["error"]["code"] == "deadline_exceeded"
    assert failure_body(GenerationError("x"))["error"] == {
        "message": "x",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }
    assert failure_body(QueueFull(3))["error"]["type"] == "rate_limit_error"


def test_an_embedding_without_direction_is_an_error() -> None:
    np.testing.assert_allclose(unit([3.0, 4.0]), [0.6, 0.8], atol=1e-7)
    for bad in ([0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(GenerationError):
            unit(bad)


def test_tenants_and_salts_do_not_mix() -> None:
    def salt(tenant: str, cache_salt: str) -> bytes:
        return Arrival("/", {"x-hatchway-tenant": tenant} if tenant else {}, 0.0).salt(cache_salt)

    salts = [salt("a", "bc"), salt("ab", "c"), salt("", "abc"), salt("abc", ""), salt("", "")]
    assert len(set(salts)) == 5 and salts[-1] == b"" and salt("a", "bc") == salts[0]
