"""The wire format without a server: which field becomes what."""

import json
from typing import Any

import pytest

from local_engine.errors import RequestError
from local_engine.protocol import Answer, ChatCall, answer_length, parse_chat
from local_engine.request import Delta, SamplingParams


def parse(default_temperature: float = 0.25, **fields: Any) -> ChatCall:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_chat(json.dumps(body).encode(), "m", default_temperature, vocab_size=100)


def test_every_sampling_field_arrives() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.5}
    fields |= {"frequency_penalty": -1.5, "seed": 12}
    expected = SamplingParams(**fields, logit_bias={5: -1.5, 99: 100.0})
    assert parse(**fields, logit_bias={"5": -1.5, "99": 100}).sampling == expected


def test_what_is_left_out_or_null_has_a_default() -> None:
    nothing = SamplingParams(temperature=0.25)
    assert parse().sampling == nothing
    names = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "logit_bias"]
    assert (
        parse(**dict.fromkeys(names), stop=None, stream=None, n=None, tools=None, max_tokens=None).sampling == nothing
    )
    call = parse()
    assert (call.stop, call.max_tokens, call.stream, call.include_usage) == ((), None, False, False)
    assert parse(top_k=-1).sampling.top_k == 0
    assert parse(temperature=0).sampling.temperature == 0


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
    assert call.stop == ("x",) and call.max_tokens == 6 and call.stream and call.include_usage
    assert parse(stop=["x", "y"]).stop == ("x", "y")


def test_the_answer_takes_what_the_prompt_leaves() -> None:
    assert answer_length(parse(), 10, 100, 50) == 50
    assert answer_length(parse(), 90, 100, 50) == 10
    assert answer_length(parse(max_tokens=90), 10, 100, 50) == 90
    for call, prompt, param in [(parse(max_tokens=91), 10, "max_tokens"), (parse(), 100, "messages")]:
        with pytest.raises(RequestError, match="100 tokens") as caught:
            answer_length(call, prompt, 100, 50)
        assert (caught.value.param, caught.value.code, caught.value.status) == (param, "context_length_exceeded", 400)


def test_usage_is_null_in_chunks_only_when_it_will_follow() -> None:
    last = Delta(1, "", 3, 4, "stop")
    assert "usage" not in Answer("m", include_usage=False).chunk({"content": "x"})
    answer = Answer("m", include_usage=True)
    assert answer.chunk({"content": "x"})["usage"] is None
    assert answer.usage_chunk(last)["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert answer.whole("x", last)["id"] == answer.id
