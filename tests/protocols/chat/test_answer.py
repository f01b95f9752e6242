"""Whole answers: read from upstream, written for the client, and both."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical import (
    Answer,
    Choice,
    Citation,
    Media,
    Part,
    Reasoning,
    Refusal,
    Seal,
    Text,
    ToolCall,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import GatewayError, InvalidRequest, UpstreamError, UpstreamProtocolError
from gateway.folding import fold, unfold
from gateway.protocols.base import StreamError
from gateway.protocols.chat.wire import CHAT_PROTOCOL, CHAT_WIRE
from gateway.types import BUCKETS, Usage
from tests.protocols.chat.events import USAGE, decode, read
from tests.protocols.chat.sdk import check_answer, chunks_of

ASKED = read()


def read_message(message: Any, **fields: Any) -> Choice:
    body = {"id": "chatcmpl-1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **fields}
    (choice,) = CHAT_WIRE.read_answer(json.dumps(body).encode(), PLAIN).choices
    return choice


def parts_of(message: Any, **fields: Any) -> list[Part]:
    return read_message(message, **fields).parts


def test_an_answer() -> None:
    body = {
        "id": "chatcmpl-1",
        "created": 7,
        "model": "up",
        "service_tier": "flex",
        "choices": [
            {"index": 1, "message": {"content": "b"}, "finish_reason": "length"},
            {"index": 0, "message": {"content": "a"}, "finish_reason": "stop", "stop_reason": "END"},
        ],
        "usage": USAGE,
    }
    answer = CHAT_WIRE.read_answer(json.dumps(body).encode(), PLAIN)
    assert answer.choices == [
        Choice([Text("a")], "stop", "stop", "END"),
        Choice([Text("b")], "length", "length"),
    ]
    assert (answer.id, answer.created, answer.model, answer.service_tier) == ("chatcmpl-1", 7, "up", "flex")
    assert answer.usage == Usage(input_tokens=10, output_tokens=5)
    assert answer.raw_usage is not None and json.loads(bytes(answer.raw_usage)) == USAGE


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "index": 0}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": None}, []),
        ({"content": ""}, []),
        (None, []),
        ({"refusal": "no", "content": None}, [Refusal("no")]),
        ({"reasoning_content": "hm", "content": "x"}, [Reasoning("hm"), Text("x")]),
        (
            {"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": "x"}]},
            [Reasoning("hm"), Text("x")],
        ),
        (
            {"content": [{"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "x"}]},
            [Text("x")],
        ),
        ({"content": "", "images": [PICTURE]}, [Media("image", data="AAAA", media_type="image/png")]),
        (
            {"content": None, "audio": {"id": "a", "data": "AAAA", "transcript": "hi", "expires_at": 1}},
            [Text("hi"), Media("audio", data="AAAA")],
        ),
        ({"content": "x", "audio": {"id": "", "data": "", "transcript": ""}}, [Text("x")]),
        (
            {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":1}'}}]},
            [ToolCall("1", "f", '{"a":1}')],
        ),
        (
            {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1.5}}}]},
            [ToolCall("1", "f", '{"a": 1.5}')],
        ),
        ({"tool_calls": [{"id": "1", "function": {"name": "f"}}]}, [ToolCall("1", "f", "")]),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, {"id": "", "function": {"name": "g"}}]},
            [ToolCall("call_chatcmpl-1_0_0", "f", "{}"), ToolCall("call_chatcmpl-1_0_1", "g", "")],
        ),
        (
            {"function_call": {"name": "f", "arguments": "{}"}},
            [ToolCall("call_chatcmpl-1_0_0", "f", "{}")],
        ),
        ({"content": "x", "function_call": {"name": "", "arguments": ""}, "tool_calls": None}, [Text("x")]),
        (
            {
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
                "extra_content": {"google": {"thought_signature": "sig"}},
            },
            [ToolCall("1", "f", "{}", Seal("sig", "chat"))],
        ),
        ({"content": "x", "annotations": "odd", "extra_content": 5, "reasoning_details": [5]}, [Text("x")]),
        ({"content": "x", "images": ["odd"]}, [Text("x")]),
        ({"content": "caf\ud83d"}, [Text("caf\ufffd")]),
    ],
)
def test_messages(message: Any, expected: list[Part]) -> None:
    assert parts_of(message) == expected


def test_citations() -> None:
    url = {"url": "https://a", "title": "A", "start_index": 0, "end_index": 3}
    message = {"content": "all", "annotations": [{"type": "url_citation", "url_citation": url}, {"type": "file"}]}
    cited = Citation("https://a", "A", 0, 3)
    assert parts_of(message) == [Text("all", (cited,))]
    found = {
        "citations": ["https://a", "https://b", "https://c"],
        "search_results": [{"url": "https://b", "title": "B", "date": None}],
    }
    assert parts_of(message, **found) == [Text("all", (cited, Citation("https://b", "B"), Citation("https://c")))]
    assert parts_of({"content": "x"}, citations=[{"odd": 1}]) == [Text("x")]


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("model_length", "length"),
        ("MAX_TOKENS", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("function_call", "tool_calls"),
        ("error", "error"),
        ("insufficient_system_resource", "error"),
        ("brand_new", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_words_for_the_end(word: str | None, finish: str) -> None:
    body = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": word}]}
    (choice,) = CHAT_WIRE.read_answer(json.dumps(body).encode(), PLAIN).choices
    assert (choice.finish, choice.raw_finish) == (finish, word)


@pytest.mark.parametrize("word", ["stop", "tool_calls", "", None])
def test_a_call_is_why_an_answer_ends(word: str | None) -> None:
    message = {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": word}]}
    assert CHAT_WIRE.read_answer(json.dumps(body).encode(), PLAIN).choices[0].finish == "tool_calls"
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}
    assert CHAT_WIRE.read_answer(json.dumps(body).encode(), PLAIN).choices[0].finish == "length"


def test_a_refusal_is_why_an_answer_ends() -> None:
    assert read_message({"refusal": "no"}).finish == "refusal"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [1]}',
        b'{"choices": [{"index": -1, "message": {"content": "x"}}]}',
        b'{"choices": [{"index": 9999, "message": {"content": "x"}}]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": 5}}]}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}}]}',
        b"<html>",
        b"{" * 100_000,
        b'{"choices": [{"message": {"tool_calls": [' + b",".join([b'{"function":{"name":"f"}}'] * 1025) + b"]}}]}",
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        CHAT_WIRE.read_answer(body, PLAIN)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "secret", "code": 500}},
        {"error": "secret"},
        {"object": "error", "message": "secret"},
        {"choices": [{"index": 0, "message": {"content": "x"}, "error": {"message": "secret"}}]},
        {"choices": [{"index": 0, "message": {"content": "x"}}], "x_groq": {"error": "secret"}},
    ],
)
def test_errors_with_status_200(body: Any) -> None:
    with pytest.raises(StreamError) as caught:
        CHAT_WIRE.read_answer(json.dumps(body).encode(), PLAIN)
    assert "secret" not in str(caught.value)


def test_broken_characters_do_not_cost_the_answer() -> None:
    body = b'{"choices": [{"message": {"content": "a\xff"}}]}'
    assert CHAT_WIRE.read_answer(body, PLAIN).choices[0].parts == [Text("a\ufffd")]


# Writing


def show(*parts: Part, **fields: Any) -> Any:
    choice = Choice(list(parts), **{"finish": "stop", **fields})
    body = CHAT_PROTOCOL.write_answer(Answer(choices=[choice], id="msg_1", model="up", created=7), ASKED)
    check_answer(body)
    return json.loads(body)["choices"][0]


def test_an_answer_is_written() -> None:
    choice = Choice([Text("a"), Text("b")], "length")
    answer = Answer(
        choices=[choice, choice],
        id="msg_1",
        model="up",
        created=7,
        usage=Usage(input_tokens=10, output_tokens=5),
        service_tier="standard",
    )
    body = CHAT_PROTOCOL.write_answer(answer, ASKED)
    assert check_answer(body).usage is not None
    written = json.loads(body)
    assert [written[name] for name in ("id", "object", "created", "model")] == ["msg_1", "chat.completion", 7, "up"]
    assert [choice["index"] for choice in written["choices"]] == [0, 1]
    assert written["choices"][1]["message"] == {"role": "assistant", "content": "ab", "refusal": None}
    assert written["choices"][0]["finish_reason"] == "length"
    assert written["usage"]["total_tokens"] == 15
    assert "service_tier" not in written


def test_an_answer_without_a_name_gets_one() -> None:
    bodies = [CHAT_PROTOCOL.write_answer(Answer(choices=[Choice([], "stop")]), ASKED) for _ in range(2)]
    first, second = map(check_answer, bodies)
    assert first.id.startswith("chatcmpl-") and first.id != second.id
    assert (first.model, first.created > 1_700_000_000, first.usage) == ("m", True, None)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], {"content": ""}),
        ([ToolCall("1", "f", "")], {"content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}),
        ([Refusal("no")], {"content": None, "refusal": "no"}),
        ([Reasoning("hm"), Text("x")], {"content": "x", "reasoning_content": "hm"}),
        ([Reasoning("hm", Seal("Sig", "messages")), Text("x")], {
            "content": "x", "reasoning_content": "hm",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "hm", "signature": "hatchway.messages.Sig", "index": 0}]}),
        ([Reasoning("", Seal("x", "responses"), "rs_1", is_redacted=True)], {
            "content": "",
            "reasoning_details": [
                {"type": "reasoning.encrypted", "data": "hatchway.responses.x", "id": "rs_1", "index": 0}]}),
        ([ToolCall("1", "f", "{}", Seal("s", "gemini"))], {"content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"},
             "extra_content": {"google": {"thought_signature": "hatchway.gemini.s"}}}]}),
        ([Media("image", data="AAAA", media_type="image/png")], {"content": "", "images": [PICTURE]}),
        ([Media("audio", data="AAAA")], {
            "content": "", "audio": {"id": "audio", "data": "AAAA", "transcript": "", "expires_at": 0}}),
    ],
)  # fmt: skip
def test_messages_are_written(parts: list[Part], message: Any) -> None:
    assert show(*parts)["message"] == {"role": "assistant", "refusal": None, **message}


def test_citations_are_places_in_the_whole_text() -> None:
    parts = [Text("abc", (Citation("https://a", "A", 1, 2),)), Text("de", (Citation("https://b"),))]
    cited = [item["url_citation"] for item in show(*parts)["message"]["annotations"]]
    assert cited == [
        {"url": "https://a", "title": "A", "start_index": 1, "end_index": 2},
        {"url": "https://b", "title": "", "start_index": 3, "end_index": 5},
    ]


@pytest.mark.parametrize(
    ("finish", "parts", "word"),
    [
        ("stop", [], "stop"),
        ("pause", [], "stop"),
        ("unknown", [], "stop"),
        ("unknown", [ToolCall("1", "f", "{}")], "tool_calls"),
        ("tool_calls", [ToolCall("1", "f", "{}")], "tool_calls"),
        ("content_filter", [], "content_filter"),
        ("refusal", [], "content_filter"),
        ("refusal", [Refusal("no")], "stop"),
        ("error", [], "length"),
    ],
)
def test_the_end_in_openai_s_words(finish: Any, parts: list[Part], word: str) -> None:
    assert show(*parts, finish=finish)["finish_reason"] == word


def test_half_characters_do_not_cost_the_answer() -> None:
    assert show(Text("caf\ud83d"))["message"]["content"] == "caf\ufffd"


def test_whoever_speaks_functions_is_answered_so() -> None:
    asked = read(functions=[{"name": "f"}])
    answer = Answer(choices=[Choice([ToolCall("1", "f", '{"a":1}')], "tool_calls")], id="1", created=1)
    (choice,) = check_answer(CHAT_PROTOCOL.write_answer(answer, asked)).choices
    assert choice.finish_reason == "function_call" and choice.message.tool_calls is None
    assert choice.message.function_call is not None and choice.message.function_call.arguments == '{"a":1}'
    writer = CHAT_PROTOCOL.open_writer(asked)
    stream = b"".join([*map(writer.write, unfold(answer)), writer.end()])
    deltas = [chunk.choices[0].delta for chunk in chunks_of(stream)]
    assert all(delta.tool_calls is None for delta in deltas)
    called = [delta.function_call for delta in deltas if delta.function_call is not None]
    assert [call.name for call in called] == ["f", None]
    assert "".join(call.arguments or "" for call in called) == '{"a":1}'
    assert fold(decode([stream])).choices[0].parts == [ToolCall("call_1_0_0", "f", '{"a":1}')]


def test_errors_have_openai_s_shape() -> None:
    error = InvalidRequest("bad", code="c", param="p")
    expected = {"error": {"message": "bad", "type": "invalid_request_error", "param": "p", "code": "c"}}
    assert json.loads(CHAT_PROTOCOL.error_body(error)) == expected
    event = CHAT_PROTOCOL.error_event(GatewayError("x"))
    assert event.startswith(b"data: ") and event.endswith(b"\n\n")
    with pytest.raises(StreamError):
        decode([event])


# Both ways

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
IDS = st.text("abc123_", min_size=1, max_size=6)
SEALS = st.sampled_from(
    [
        Seal("Sig.a=", "messages"),
        Seal("x", "responses"),
        Seal('{"type":"reasoning.text","signature":"s","format":"f"}', "chat"),
    ]
)
ENCRYPTED = Seal('{"type":"reasoning.encrypted","data":"d"}', "chat")
REDACTED = st.sampled_from([ENCRYPTED, Seal("y", "messages")]).map(lambda seal: Reasoning("", seal, is_redacted=True))
THOUGHTS = st.one_of(
    st.lists(st.builds(Reasoning, TEXTS), max_size=1),
    st.lists(st.builds(Reasoning, TEXTS, SEALS) | REDACTED, max_size=3),
)
SAID = st.lists(st.builds(Text, TEXTS), max_size=1)
ARGUMENTS = TEXTS.map(lambda text: json.dumps({"a": text}))
CALLS = st.lists(
    st.builds(ToolCall, IDS, IDS, ARGUMENTS, st.none() | st.just(Seal("g", "gemini"))),
    max_size=3,
    unique_by=lambda call: call.id,
)
COUNTS = st.integers(0, 1000)
PAID = tuple(name for name in BUCKETS if name != "cache_write_1h_tokens")


def choice_of(thoughts: list[Part], said: list[Part], calls: list[Part], finish: Any) -> Choice:
    parts = [*thoughts, *said, *calls]
    if any(isinstance(part, ToolCall) for part in parts):
        finish = "tool_calls"
    return Choice(parts, finish)


ANSWERS = st.builds(
    Answer,
    choices=st.lists(
        st.builds(choice_of, THOUGHTS, SAID, CALLS, st.sampled_from(["stop", "length", "content_filter"])),
        min_size=1,
        max_size=2,
    ),
    id=IDS,
    model=IDS,
    created=st.integers(1, 2**31),
    usage=st.none() | st.builds(Usage, **dict.fromkeys(PAID, COUNTS)),
    service_tier=st.just(None),
)


def less_raw(answer: Answer) -> Answer:
    """Without what only one side of the way has."""
    choices = [msgspec.structs.replace(choice, raw_finish=None) for choice in answer.choices]
    return msgspec.structs.replace(answer, choices=choices, raw_usage=None)


@given(answer=ANSWERS)
def test_what_is_written_is_read_back(answer: Answer) -> None:
    body = CHAT_PROTOCOL.write_answer(answer, ASKED)
    check_answer(body)
    assert less_raw(CHAT_WIRE.read_answer(body, PLAIN)) == answer


@given(answer=ANSWERS, size=st.integers(1, 50))
def test_what_is_streamed_is_read_back(answer: Answer, size: int) -> None:
    writer = CHAT_PROTOCOL.open_writer(ASKED)
    stream = b"".join([*map(writer.write, unfold(answer)), writer.end()])
    chunks_of(stream)
    pieces = (stream[at : at + size] for at in range(0, len(stream), size))
    folded = fold(decode(pieces))
    assert less_raw(folded) == answer


@given(answer=ANSWERS)
def test_reasoning_and_calls_come_back_in_the_next_request(answer: Answer) -> None:
    """Clients send the message back as they got it."""
    message = json.loads(CHAT_PROTOCOL.write_answer(answer, ASKED))["choices"][0]["message"]
    turn = read(messages=[{"role": "user", "content": "hi"}, message]).turns[-1]
    assert turn.parts == answer.choices[0].parts


@given(body=st.binary(max_size=80) | st.sampled_from([b'{"choices":[{"message":', b'"\\ud800"}]}', b"[" * 2000]))
def test_whatever_comes_only_upstream_errors_are_raised(body: bytes) -> None:
    try:
        CHAT_WIRE.read_answer(body, Dialect(reasoning_tokens="total"))
    except UpstreamError:
        return
    raise AssertionError("it was no answer")
