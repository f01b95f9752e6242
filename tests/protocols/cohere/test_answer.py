"""Whole answers of `/v2/chat` and `/v1/chat`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.canonical import (
    Answer,
    Citation,
    Reasoning,
    Text,
    ToolCall,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamProtocolError
from gateway.folding import tool_calls, visible_text
from gateway.protocols.base import StreamError
from gateway.protocols.cohere.wire import COHERE_WIRE
from gateway.types import Usage


def body(message: Any = None, **fields: Any) -> bytes:
    message = {"role": "assistant", "content": [{"type": "text", "text": "hi"}]} if message is None else message
    return json.dumps({"id": "1", "message": message, "finish_reason": "COMPLETE", **fields}).encode()


def read(data: bytes) -> Answer:
    return COHERE_WIRE.read_answer(data, PLAIN)


def call(identity: str = "t1", name: str = "f", arguments: str = '{"a":1}') -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_parts_in_order() -> None:
    answer = read(
        body(
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "text", "text": "a"},
                    {"type": "hologram", "depth": 3},
                    {"type": "text", "text": "b"},
                ],
                "tool_plan": "I call",
                "tool_calls": [call(), call("t2", "g", "")],
            },
            finish_reason="TOOL_CALL",
        )
    )
    assert answer.id == "1" and answer.model is None
    assert answer.choices[0].parts == [
        Reasoning("hm"),
        Text("a"),
        Text("b"),
        Reasoning("I call"),
        ToolCall("t1", "f", '{"a":1}'),
        ToolCall("t2", "g", ""),
    ]


def test_content_as_text() -> None:
    assert read(body({"role": "assistant", "content": "hi"})).choices[0].parts == [Text("hi")]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
        ("TOOL_CALL", "tool_calls"),
        ("SOMETHING_NEW", "unknown"),
        (None, "unknown"),
    ],
)
def test_finish(reason: str | None, finish: str) -> None:
    (choice,) = read(body(finish_reason=reason)).choices
    assert (choice.finish, choice.raw_finish) == (finish, reason)


def test_complete_with_calls() -> None:
    assert read(body({"tool_calls": [call()]})).choices[0].finish == "tool_calls"


@pytest.mark.parametrize("reason", ["ERROR", "TIMEOUT"])
def test_failed_generation(reason: str) -> None:
    with pytest.raises(StreamError):
        read(body(finish_reason=reason))


SENT = {"start": 1, "end": 3}


@pytest.mark.parametrize(
    ("sources", "citations"),
    [
        ([{"type": "document", "id": "doc:0", "document": {"text": "x"}}], ()),
        (
            [{"type": "document", "document": {"url": "https://a/b", "title": "T"}}],
            (Citation("https://a/b", "T", 1, 3),),
        ),
        ([{"type": "tool", "id": "https://a/b", "tool_output": {"text": "x"}}], (Citation("https://a/b", None, 1, 3),)),
        ([{"type": "tool", "tool_output": {"url": "file:///etc/passwd"}}], ()),
        ([{"type": "tool", "tool_output": {"url": 7}}, {"type": "tool", "tool_output": ["x"]}], ()),
        ([{"type": "tool", "tool_output": {"url": "http://a"}}] * 2, (Citation("http://a", None, 1, 3),)),
        (
            [{"tool_output": {"url": "http://a"}}, {"tool_output": {"url": "http://b"}}],
            (Citation("http://a", None, 1, 3), Citation("http://b", None, 1, 3)),
        ),
        (None, ()),
    ],
)
def test_citations(sources: Any, citations: tuple[Citation, ...]) -> None:
    content = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "abcd"},
        {"type": "text", "text": "efgh"},
    ]
    for index, place in ((1, 1), (None, 1), (2, 2)):
        cited = {**SENT, "sources": sources, "type": "TEXT_CONTENT", "content_index": index}
        parts = read(body({"content": content, "citations": [cited]})).choices[0].parts
        text, other = parts[place], parts[3 - place]
        assert isinstance(text, Text) and text.citations == citations
        assert isinstance(other, Text) and other.citations == ()


@pytest.mark.parametrize(("kind", "index"), [("THINKING_CONTENT", 0), ("PLAN", None), ("TEXT_CONTENT", 9), (None, -1)])
def test_citations_of_what_is_no_text(kind: str | None, index: int | None) -> None:
    cited = {**SENT, "sources": [{"tool_output": {"url": "http://a"}}], "type": kind, "content_index": index}
    parts = read(body({"content": [{"type": "text", "text": "abcd"}], "citations": [cited]})).choices[0].parts
    assert parts == [Text("abcd")]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ({"billed_units": {}}, None),
        ({"billed_units": {"input_tokens": 5, "output_tokens": 7}}, Usage(input_tokens=5, output_tokens=7)),
        ({"billed_units": {"input_tokens": 5.0, "output_tokens": 7}}, Usage(input_tokens=5, output_tokens=7)),
        ({"billed_units": {"input_tokens": 5}}, Usage(input_tokens=5)),
        (
            {
                "billed_units": {"input_tokens": 5, "output_tokens": 7},
                "tokens": {"input_tokens": 500},
                "cached_tokens": 9,
            },
            Usage(input_tokens=5, output_tokens=7),
        ),
        (
            {"billed_units": None, "tokens": {"input_tokens": 9, "output_tokens": 2}},
            Usage(input_tokens=9, output_tokens=2),
        ),
        ({"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 9}}, Usage(input_tokens=9)),
        ({"tokens": {"input_tokens": 9, "image_tokens": 4}}, Usage(input_tokens=9, input_image_tokens=4)),
        ({"billed_units": {"input_tokens": -1, "output_tokens": 7}}, None),
        ({"billed_units": {"input_tokens": 1.5, "output_tokens": 7}}, None),
        ({"billed_units": {"input_tokens": 10**10, "output_tokens": 7}}, None),
        ({"billed_units": {"input_tokens": "5"}}, None),
        ({"billed_units": {"input_tokens": True}}, None),
        ("many", None),
    ],
)
def test_usage(usage: Any, expected: Usage | None) -> None:
    answer = read(body(usage=usage))
    assert answer.usage == expected
    kept = None if answer.raw_usage is None else json.loads(bytes(answer.raw_usage))
    assert kept == (usage or None)


def test_logprobs() -> None:
    pieces = [
        {"text": "hé", "token_ids": [1], "logprobs": [-0.5]},
        {"text": "llo", "token_ids": [2, 3], "logprobs": [-0.25, -0.5]},
        {"text": "x", "token_ids": [4]},
    ]
    (choice,) = read(body(logprobs=pieces)).choices
    assert choice.logprobs is not None
    assert json.loads(bytes(choice.logprobs)) == [
        {"token": "hé", "logprob": -0.5, "bytes": [104, 195, 169], "top_logprobs": []},
        {"token": "llo", "logprob": -0.75, "bytes": [108, 108, 111], "top_logprobs": []},
    ]


@pytest.mark.parametrize("data", [b'{"id":"1","message":"no such model"}', b'{"error":{"code":1}}'])
def test_error_with_status_200(data: bytes) -> None:
    with pytest.raises(StreamError) as caught:
        read(data)
    assert "model" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"<html>", b"[]", b"{}", b'{"message":null}', b'{"message":[]}', b'{"message":7}', b"\xff", b'"x"'),
        *(b'{"message":{"content":7}}', b'{"message":{"content":[{"type":"text","text":7}]}}', b"[" * 100_000),
        b'{"message":{"tool_calls":[{"function":{"name":"f"}}]}}',
        b'{"message":{"tool_calls":[{"id":"1"}]}}',
        b'{"message":{"tool_calls":[{"id":"1","function":{"arguments":"{}"}}]}}',
        b'{"message":{"tool_calls":[{"id":"1","function":{"name":"f","arguments":{}}}]}}',
        json.dumps({"message": {"tool_calls": [call()] * 1025}}).encode(),
        b'{"message":{"content":' + b"[" * 100_000,
    ],
)
def test_no_answer(data: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(data)


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (rb"a\ud83d", "a\N{REPLACEMENT CHARACTER}"),
        (rb"\ude00b", "\N{REPLACEMENT CHARACTER}b"),
        (rb"\ud83d\ud83d\ude00", "\N{REPLACEMENT CHARACTER}😀"),
        (rb"\ud83d\n", "\N{REPLACEMENT CHARACTER}\n"),
        (rb"\ude00 \\ud83d", "\N{REPLACEMENT CHARACTER} \\ud83d"),
        (rb"\uD83D\uDE00\udfff", "😀\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_half_a_surrogate_pair(escaped: bytes, text: str) -> None:
    data = body().replace(b'"hi"', b'"' + escaped + b'"')
    assert visible_text(read(data).choices[0].parts) == text


V1 = {
    "response_id": "r1",
    "generation_id": "g1",
    "text": "Penguins.",
    "finish_reason": "COMPLETE",
    "meta": {"billed_units": {"input_tokens": 3, "output_tokens": 2}},
}


def test_v1() -> None:
    documents = [{"id": "d1", "url": "https://a", "title": "A"}, {"id": "d2", "text": "mine"}]
    cited = [{"start": 0, "end": 8, "text": "Penguins", "document_ids": ["d1", "d2", "d3"]}]
    answer = read(json.dumps({**V1, "documents": documents, "citations": cited}).encode())
    (choice,) = answer.choices
    assert choice.parts == [Text("Penguins.", (Citation("https://a", "A", 0, 8),))]
    assert (choice.finish, choice.raw_finish, answer.id) == ("stop", "COMPLETE", "r1")
    assert answer.usage == Usage(input_tokens=3, output_tokens=2)


def test_v1_calls_have_ids_of_their_own() -> None:
    wanted = [{"name": "f", "parameters": {"a": 1.0}}, {"name": "f", "parameters": {"a": 1.0}}, {"name": "g"}]
    first, again, other = (
        tool_calls(read(json.dumps({**V1, "response_id": name, "tool_calls": wanted}).encode()).choices[0].parts)
        for name in ("r1", "r1", "r2")
    )
    assert [(one.name, one.arguments) for one in first] == [("f", '{"a": 1.0}'), ("f", '{"a": 1.0}'), ("g", "{}")]
    assert first == again
    assert len({one.id for one in (*first, *other)}) == 6


@pytest.mark.parametrize(
    ("reason", "finish"), [("ERROR_LIMIT", "length"), ("ERROR_TOXIC", "content_filter"), ("USER_CANCEL", "unknown")]
)
def test_v1_finish(reason: str, finish: str) -> None:
    assert read(json.dumps({**V1, "finish_reason": reason}).encode()).choices[0].finish == finish


def test_v1_failed() -> None:
    with pytest.raises(StreamError):
        read(json.dumps({**V1, "finish_reason": "ERROR"}).encode())
