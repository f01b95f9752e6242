"""Whole answers: Anthropic's read, and those of others written for its clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical import (
    Answer,
    Choice,
    Citation,
    FinishReason,
    Media,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Seal,
    Text,
    ToolCall,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.messages.wire import COUNT_TOKENS_PROTOCOL, MESSAGES_PROTOCOL, MESSAGES_WIRE
from gateway.types import Usage
from tests.protocols.messages.shapes import asking, raw


def message(*content: Any, **fields: Any) -> bytes:
    base = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": list(content),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 4, "service_tier": "standard"},
    }
    return json.dumps(base | fields).encode()


def read(*content: Any, **fields: Any) -> Answer:
    return MESSAGES_WIRE.read_answer(message(*content, **fields), PLAIN)


def written(*parts: Part, finish: FinishReason = "stop", **fields: Any) -> dict[str, Any]:
    """An answer as a client gets it; the SDK's own type accepts it."""
    raw_finish, stop_sequence = fields.pop("raw_finish", None), fields.pop("stop_sequence", None)
    choice = Choice(list(parts), finish, raw_finish, stop_sequence)
    body = MESSAGES_PROTOCOL.write_answer(Answer(choices=[choice], **fields), asking())
    Message.model_validate_json(body)
    shown: dict[str, Any] = json.loads(body)
    return shown


def test_an_answer_is_read() -> None:
    answer = read(
        {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
        {"type": "thinking", "thinking": "", "signature": "omitted"},
        {"type": "redacted_thinking", "data": "enc"},
        {"type": "text", "text": ""},
        {
            "type": "text",
            "text": "Hi",
            "citations": [
                {"type": "web_search_result_location", "url": "https://x", "title": "X", "encrypted_index": "E"},
                {"type": "search_result_location", "source": "https://y", "title": None},
                {"type": "char_location", "document_index": 0, "document_title": "D"},
            ],
        },
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}, "caller": {"type": "direct"}},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "of_tomorrow", "text": 5},
        stop_reason="tool_use",
    )
    assert (answer.id, answer.model, answer.service_tier) == ("msg_1", "claude-x", "default")
    assert answer.usage == Usage(input_tokens=3, output_tokens=4)
    parts = answer.choices[0].parts
    assert parts[:5] == [
        Reasoning("Hm.", Seal("sig", "messages")),
        Reasoning("", Seal("omitted", "messages")),
        Reasoning("", Seal("enc", "messages"), is_redacted=True),
        Text("Hi", (Citation("https://x", "X"), Citation("https://y"))),
        ToolCall("t", "f", '{"a": 1}'),
    ]
    assert [json.loads(bytes(part.raw))["type"] for part in parts[5:] if isinstance(part, Opaque)] == [
        "server_tool_use",
        "of_tomorrow",
    ]
    assert (answer.choices[0].finish, answer.choices[0].raw_finish) == ("tool_calls", "tool_use")


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause"),
        ("refusal", "refusal"),
        ("of_tomorrow", "unknown"),
        (None, "unknown"),
    ],
)
def test_stop_reasons(word: str | None, finish: str) -> None:
    choice = read({"type": "text", "text": "x"}, stop_reason=word).choices[0]
    assert (choice.finish, choice.raw_finish) == (finish, word)


def test_a_stop_sequence_is_named() -> None:
    assert read(stop_reason="stop_sequence", stop_sequence="END").choices[0].stop_sequence == "END"


def test_a_refusal_explains_itself() -> None:
    details = {"type": "refusal", "category": "bio", "explanation": "Not that."}
    assert read(stop_reason="refusal", stop_details=details).choices[0].parts == [Refusal("Not that.")]
    assert read(stop_reason="refusal", stop_details=None).choices[0].parts == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'"x"',
        b"\xff",
        b'{"content":"x"}',
        b'{"content":[5]}',
        b'{"content":[{"text":"x"}]}',
        b'{"content":[{"type":"text"}]}',
        b'{"content":[{"type":"tool_use","id":"t","name":"f","input":"x"}]}',
        b'{"content":[{"type":"tool_use","id":5,"name":"f"}]}',
        b'{"content":[],"stop_reason":5}',
        b"[" * 100_000,
        b'{"content":[' + b'{"type":"x"},' * 2000 + b'{"type":"x"}]}',
    ],
)
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        MESSAGES_WIRE.read_answer(body, PLAIN)


@pytest.mark.parametrize(
    "body", [b'{"type":"error","error":{"type":"overloaded_error","message":"sk-secret"}}', b'{"error":"sk-secret"}']
)
def test_an_error_with_status_200(body: bytes) -> None:
    for read_it in (MESSAGES_WIRE.read_answer, MESSAGES_PROTOCOL.scan_answer, COUNT_TOKENS_PROTOCOL.scan_answer):
        with pytest.raises(StreamError) as raised:
            read_it(body, PLAIN)
        assert "secret" not in str(raised.value)


def test_half_a_surrogate_pair_does_not_lose_the_answer() -> None:
    body = message().replace(
        b'"content": []', rb'"content": [{"type": "text", "text": "a\ud83d"}, {"type": "text", "text": "\ud83d\ude00"}]'
    )
    assert MESSAGES_WIRE.read_answer(body, PLAIN).choices[0].parts == [Text("a\ufffd"), Text("😀")]


def test_scanning_reads_the_words_only_where_usage_is_missing() -> None:
    content = (
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    )
    summary = MESSAGES_PROTOCOL.scan_answer(message(*content), PLAIN)
    assert (summary.usage, summary.finish_reason, summary.text) == (
        Usage(input_tokens=3, output_tokens=4),
        "end_turn",
        "",
    )
    summary = MESSAGES_PROTOCOL.scan_answer(message(*content, usage=None), PLAIN)
    assert (summary.usage, summary.raw_usage, summary.text) == (None, None, 'Hm.Hif{"a": 1}')


def test_counting_costs_nothing() -> None:
    assert COUNT_TOKENS_PROTOCOL.scan_answer(b'{"input_tokens":12}', PLAIN).usage == Usage()
    assert COUNT_TOKENS_PROTOCOL.write_count(12) == b'{"input_tokens":12}'


@pytest.mark.parametrize("body", [b"", b"{}", b'{"input_tokens":"12"}', b"[]"])
def test_what_is_no_count(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        COUNT_TOKENS_PROTOCOL.scan_answer(body, PLAIN)


# Writing


def test_an_answer_is_written() -> None:
    shown = written(
        Reasoning("Hm.", Seal("sig", "messages")),
        Reasoning("of another", Seal("abc", "responses")),
        Reasoning("unsigned"),
        Reasoning("", Seal("enc", "responses"), is_redacted=True),
        Reasoning("", None, is_redacted=True),
        Text("Hi", (Citation("https://x", "X", 0, 2),)),
        Text(""),
        Refusal("No."),
        Media("image", data="AAAA"),
        Opaque(raw({"type": "y"}), "responses"),
        ToolCall("call:1", "f", '{"a":1.0}', Seal("z==", "gemini")),
        ToolCall("call_2", "g", ""),
        id="chatcmpl-1",
        model="gpt-x",
        usage=Usage(input_tokens=3, output_tokens=4, reasoning_tokens=5, cache_read_tokens=6, cache_write_1h_tokens=7),
        service_tier="priority",
    )
    assert (shown["id"], shown["model"], shown["role"], shown["type"]) == (
        "chatcmpl-1",
        "gpt-x",
        "assistant",
        "message",
    )
    citation = {
        "type": "web_search_result_location",
        "cited_text": "Hi",
        "url": "https://x",
        "title": "X",
        "encrypted_index": "",
    }
    call_id = shown["content"][7]["id"]
    assert shown["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
        {"type": "thinking", "thinking": "of another", "signature": "hatchway.responses.abc"},
        {"type": "thinking", "thinking": "unsigned", "signature": ""},
        {"type": "redacted_thinking", "data": "hatchway.responses.enc"},
        {"type": "text", "text": "Hi", "citations": [citation]},
        {"type": "text", "text": "No."},
        {"type": "redacted_thinking", "data": "hatchway.call.hatchway.gemini.z=="},
        {"type": "tool_use", "id": call_id, "name": "f", "input": {"a": 1.0}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
    ]
    assert call_id.startswith("call_1_")
    assert (shown["stop_reason"], shown["stop_sequence"]) == ("tool_use", None)
    assert shown["usage"] == {
        "input_tokens": 3,
        "output_tokens": 9,
        "cache_read_input_tokens": 6,
        "cache_creation_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 7},
        "output_tokens_details": {"thinking_tokens": 5},
        "service_tier": "priority",
    }


def test_what_a_client_gets_it_may_send_back() -> None:
    parts = [
        Reasoning("of another", Seal("abc", "responses")),
        Reasoning("", Seal("enc", "chat"), is_redacted=True),
        Reasoning("unsigned"),
        Text("Hi"),
        ToolCall("call_1", "f", '{"a": 1}', Seal("z==", "gemini")),
    ]
    history = [{"role": "assistant", "content": written(*parts)["content"]}]
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": history}).encode()
    assert MESSAGES_PROTOCOL.read_request(body).turns[0].parts == parts


@pytest.mark.parametrize(
    ("finish", "fields", "word"),
    [
        ("stop", {}, "end_turn"),
        ("stop", {"stop_sequence": "END"}, "stop_sequence"),
        ("length", {}, "max_tokens"),
        ("length", {"raw_finish": "model_context_window_exceeded"}, "model_context_window_exceeded"),
        ("tool_calls", {}, "tool_use"),
        ("content_filter", {"raw_finish": "content_filter"}, "refusal"),
        ("refusal", {}, "refusal"),
        ("pause", {}, "pause_turn"),
        ("error", {}, "end_turn"),
        ("unknown", {}, "end_turn"),
    ],
)
def test_stop_reasons_are_written(finish: FinishReason, fields: dict[str, Any], word: str) -> None:
    assert written(Text("x"), finish=finish, **fields)["stop_reason"] == word


def test_calls_after_which_a_model_says_stop() -> None:
    assert written(ToolCall("a", "f", ""), finish="stop", raw_finish="stop")["stop_reason"] == "tool_use"
    assert written(ToolCall("a", "f", ""), finish="length")["stop_reason"] == "max_tokens"


def test_an_answer_of_which_nothing_is_known() -> None:
    shown = json.loads(MESSAGES_PROTOCOL.write_answer(Answer(choices=[]), asking()))
    Message.model_validate(shown)
    assert shown["content"] == [] and shown["model"] == "asked" and shown["id"].startswith("msg_")
    assert (shown["usage"]["input_tokens"], shown["usage"]["output_tokens"]) == (0, 0)


@pytest.mark.parametrize("arguments", ["{", "[1]", "5"])
def test_arguments_that_are_no_object_are_kept(arguments: str) -> None:
    assert written(ToolCall("a", "f", arguments))["content"][0]["input"] == {"arguments": arguments}


TEXTS = st.text(min_size=1, max_size=8)
SEALS = st.builds(Seal, st.text(min_size=1, max_size=8), st.just("messages"))
PARTS: st.SearchStrategy[Part] = st.one_of(
    st.builds(Text, TEXTS, st.lists(st.builds(Citation, TEXTS, st.none() | TEXTS), max_size=2).map(tuple)),
    st.builds(Reasoning, TEXTS, st.none() | SEALS),
    st.builds(lambda seal: Reasoning("", seal, is_redacted=True), SEALS),
    st.builds(
        ToolCall,
        st.from_regex("[a-z0-9_]{1,8}", fullmatch=True),
        TEXTS,
        st.dictionaries(TEXTS, st.integers(-9, 9)).map(
            lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        ),
    ),
)


@given(st.lists(PARTS, max_size=6))
@settings(max_examples=60)
def test_written_parts_read_alike(parts: list[Part]) -> None:
    body = MESSAGES_PROTOCOL.write_answer(Answer(choices=[Choice(parts, "stop")], model="m"), asking())
    Message.model_validate_json(body)
    assert MESSAGES_WIRE.read_answer(body, PLAIN).choices[0].parts == parts
