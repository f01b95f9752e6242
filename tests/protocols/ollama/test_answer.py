"""Answers of `/api/chat` and `/api/generate`, whole and in lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical import (
    Answer,
    Choice,
    Event,
    Finished,
    Media,
    Reasoning,
    ReasoningDelta,
    Started,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold, tool_calls, visible_text
from gateway.protocols.base import StreamDecoder, StreamError
from gateway.protocols.ollama.wire import OLLAMA_WIRE
from gateway.types import Usage

HEAD = {"model": "qwen3", "created_at": "2025-07-07T20:22:19.184789Z"}
COUNTS = {"total_duration": 9, "load_duration": 1, "prompt_eval_count": 17, "eval_count": 5, "eval_duration": 3}
DONE = {"done": True, "done_reason": "stop", **COUNTS}
USAGE = Usage(input_tokens=17, output_tokens=5)
START = Started(None, "qwen3", 1751919739)


def chat(*, done: bool = False, **message: Any) -> dict[str, Any]:
    return {**HEAD, "message": {"role": "assistant", "content": "", **message}, **(DONE if done else {"done": False})}


def call(name: str = "f", arguments: Any = None, **fields: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"a": 1} if arguments is None else arguments}, **fields}


def read(reply: dict[str, Any]) -> Answer:
    return OLLAMA_WIRE.read_answer(json.dumps(reply).encode(), PLAIN)


def lines(*replies: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(reply, ensure_ascii=False).encode() + b"\n" for reply in replies)


def feed(*chunks: bytes) -> tuple[list[Event], StreamDecoder]:
    decoder = OLLAMA_WIRE.open_decoder(PLAIN)
    return [event for chunk in chunks for event in decoder.feed(chunk)], decoder


def test_chat() -> None:
    reply = chat(done=True, thinking="hm", content="hi", images=["AAAA"], tool_calls=[call(id="c1", arguments={})])
    answer = read(reply)
    assert (answer.id, answer.model, answer.created) == (None, "qwen3", 1751919739)
    assert answer.choices[0].parts == [
        Reasoning("hm"),
        Text("hi"),
        Media("image", data="AAAA"),
        ToolCall("c1", "f", "{}"),
    ]
    assert answer.usage == USAGE
    assert json.loads(bytes(answer.raw_usage or b"")) == COUNTS


def test_generation() -> None:
    answer = read({**HEAD, "response": "hi", "thinking": "hm", "context": [1, 2], **DONE})
    assert answer.choices[0].parts == [Reasoning("hm"), Text("hi")] and answer.usage == USAGE


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop", "stop"), ("length", "length"), ("load", "stop"), (None, "stop"), ("new", "unknown")]
)
def test_finish(reason: str | None, finish: str) -> None:
    (choice,) = read({**chat(done=True), "done_reason": reason}).choices
    assert (choice.finish, choice.raw_finish) == (finish, reason)


@pytest.mark.parametrize(("reason", "finish"), [("stop", "tool_calls"), (None, "tool_calls"), ("length", "length")])
def test_finish_with_calls(reason: str | None, finish: str) -> None:
    (choice,) = read({**chat(done=True, tool_calls=[call()]), "done_reason": reason}).choices
    assert (choice.finish, choice.raw_finish) == (finish, reason)


def test_arguments_stay_as_they_were_written() -> None:
    body = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"b": 1.0, "a":12345678901234567890}}}]}}'
    (made,) = tool_calls(OLLAMA_WIRE.read_answer(body, PLAIN).choices[0].parts)
    assert made.arguments == '{"b": 1.0, "a":12345678901234567890}'


@pytest.mark.parametrize(("sent", "read_as"), [('{"a":1}', '{"a":1}'), ({}, "{}"), ("", "{}")])
def test_arguments(sent: Any, read_as: str) -> None:
    (made,) = tool_calls(read(chat(tool_calls=[call(arguments=sent)])).choices[0].parts)
    assert made.arguments == read_as


def test_made_ids() -> None:
    """The same for the same reply, different for equal calls and for replies of other times."""
    twice = chat(done=True, tool_calls=[call(), call()])
    later = {**twice, "created_at": "2025-07-07T20:22:20.184789Z"}
    first, again, other = (
        [part.id for part in tool_calls(read(reply).choices[0].parts)] for reply in (twice, twice, later)
    )
    assert first == again
    assert len({*first, *other}) == 4 and all(made.startswith("call_") for made in first)


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"prompt_eval_count": 3, "eval_count": 4}, Usage(input_tokens=3, output_tokens=4)),
        ({"eval_count": 4}, Usage(output_tokens=4)),
        ({"prompt_eval_count": 3}, Usage(input_tokens=3)),
        ({"prompt_eval_count": 3, "eval_count": None}, Usage(input_tokens=3)),
        ({}, None),
        ({"total_duration": 5}, None),
        ({"prompt_eval_count": -3, "eval_count": 4}, None),
        ({"prompt_eval_count": 3, "eval_count": 4.5}, None),
        ({"prompt_eval_count": 3, "eval_count": "4"}, None),
        ({"prompt_eval_count": 10**10, "eval_count": 4}, None),
    ],
)
def test_usage(counts: dict[str, Any], usage: Usage | None) -> None:
    answer = read({"message": {"content": "a"}, "done": True, **counts})
    assert answer.usage == usage
    kept = {} if answer.raw_usage is None else json.loads(bytes(answer.raw_usage))
    assert kept == {name: count for name, count in counts.items() if count is not None}


def test_logprobs_have_openai_form() -> None:
    top = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1, "bytes": [98]}]
    first = {**chat(content="a"), "logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top}]}
    last = {**chat(done=True), "logprobs": [{"token": "", "logprob": -0.25}]}
    (choice,) = fold(feed(lines(first, last))[0]).choices
    assert json.loads(bytes(choice.logprobs or b"")) == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": None},
                {"token": "b", "logprob": -1.0, "bytes": [98]},
            ],
        },
        {"token": "", "logprob": -0.25, "bytes": None, "top_logprobs": []},
    ]


@pytest.mark.parametrize("time", ["2025-07-07T22:22:19.184789123+02:00", "2025-07-07T20:22:19"])
def test_time(time: str) -> None:
    assert read({**chat(done=True), "created_at": time}).created == 1751919739


@pytest.mark.parametrize("time", ["", "yesterday", None])
def test_time_that_is_none(time: str | None) -> None:
    assert read({**chat(done=True), "created_at": time}).created is None


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"[]", b"<html>", b'{"done":true}', b'{"message":7}', b'{"message":{"content":7}}', b"\xff"),
        *(b'{"response":{}}', b"[" * 100_000, b'{"message":{"content":"a"},"x":' + b"[" * 100_000),
        b'{"message":{"tool_calls":[{}]}}',
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":[1]}}]}}',
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":7}}]}}',
        json.dumps(chat(tool_calls=[call()] * 1025)).encode(),
    ],
)
def test_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        OLLAMA_WIRE.read_answer(body, PLAIN)


def test_error_with_status_200() -> None:
    with pytest.raises(StreamError) as caught:
        read({"error": "model secret not found"})
    assert "secret" not in str(caught.value)


def test_stream() -> None:
    events, decoder = feed(
        lines(chat(thinking="h"), chat(thinking="m")),
        lines(chat(content="a"), chat(tool_calls=[call(id="1", arguments={})])),
        lines(chat(content="b", tool_calls=[call("g", id="2")], done=True)),
    )
    assert decoder.is_finished
    assert decoder.finish() == []
    assert events[:-1] == [
        START,
        ReasoningDelta("h"),
        ReasoningDelta("m"),
        TextDelta("a"),
        ToolCallStarted(0, "1", "f"),
        ToolCallDelta(0, "{}"),
        TextDelta("b"),
        ToolCallStarted(1, "2", "g"),
        ToolCallDelta(1, '{"a": 1}'),
        Finished("tool_calls", "stop"),
    ]
    assert isinstance(events[-1], UsageReported) and events[-1].usage == USAGE


def test_last_line_without_message() -> None:
    events, _ = feed(lines(chat(content="a"), {**HEAD, "done": True}))
    assert events == [START, TextDelta("a"), Finished("stop", None)]


def test_last_line_without_its_end() -> None:
    events, decoder = feed(lines(chat(content="a"), {**HEAD, "done": True})[:-1])
    assert events == [START, TextDelta("a")]
    assert decoder.finish() == [Finished("stop", None)]
    assert decoder.is_finished


def test_nothing_is_read_after_the_end() -> None:
    events, decoder = feed(lines(chat(done=True), chat(content="late")), lines({"error": "late"}))
    assert len(events) == 3 and decoder.finish() == []


@pytest.mark.parametrize("replies", [(), (chat(content="a"),)])
def test_truncated(replies: tuple[dict[str, Any], ...]) -> None:
    _, decoder = feed(lines(*replies))
    with pytest.raises(UpstreamDisconnected) as caught:
        decoder.finish()
    assert caught.value.received and not decoder.is_finished


def test_error_in_the_stream() -> None:
    decoder = OLLAMA_WIRE.open_decoder(PLAIN)
    assert decoder.feed(lines(chat(content="a"))) == [START, TextDelta("a")]
    with pytest.raises(StreamError) as caught:
        decoder.feed(lines({"error": "secret"}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"{\n", b"data: {}\n", b"{}\n", b'{"status":"pulling"}\n', b'{"message":[]}\n', b"x" * (5 * 1024 * 1024)]
)
def test_not_this_protocol(data: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        feed(data)


def test_too_many_calls_in_a_stream() -> None:
    reply = lines(chat(tool_calls=[call()] * 600))
    with pytest.raises(UpstreamProtocolError):
        feed(reply, reply)


def test_half_a_surrogate_pair_does_not_end_the_stream() -> None:
    events, _ = feed(lines(chat(content="HALF")).replace(b"HALF", rb"\ud83d"), lines(chat(content="b", done=True)))
    assert visible_text(fold(events).choices[0].parts) == "\N{REPLACEMENT CHARACTER}b"


objects = st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans()), max_size=3)
parts = st.one_of(
    st.builds(Text, st.text(min_size=1)),
    st.builds(Reasoning, st.text(min_size=1)),
    st.builds(
        ToolCall, st.text(min_size=1), st.text(), objects.map(lambda value: json.dumps(value, ensure_ascii=False))
    ),
)


def replies_of(content: list[Any]) -> list[dict[str, Any]]:
    """As Ollama would send these parts, texts letter by letter."""
    replies = []
    for part in content:
        if isinstance(part, ToolCall):
            replies.append(chat(tool_calls=[call(part.name, json.loads(part.arguments), id=part.id)]))
        else:
            field = "content" if isinstance(part, Text) else "thinking"
            replies += [chat(**{field: letter}) for letter in part.text]
    return [*replies, chat(done=True)]


@given(st.lists(parts, max_size=4), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_any_answer_in_any_cut(content: list[Any], sizes: list[int]) -> None:
    data, chunks, start = lines(*replies_of(content)), [], 0
    while start < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[start : start + size])
        start += size
    events, decoder = feed(*chunks)
    assert decoder.is_finished and decoder.finish() == []
    answer = fold(events)
    has_calls = any(isinstance(part, ToolCall) for part in content)
    assert answer == Answer(
        choices=[Choice(merged(content), "tool_calls" if has_calls else "stop", "stop")],
        model="qwen3",
        created=1751919739,
        usage=USAGE,
        raw_usage=answer.raw_usage,
    )


def merged(content: list[Any]) -> list[Any]:
    """Texts next to each other are one here."""
    found: list[Any] = []
    for part in content:
        if found and type(found[-1]) is type(part) and not isinstance(part, ToolCall):
            found[-1] = type(part)(found[-1].text + part.text)
        else:
            found.append(part)
    return found
