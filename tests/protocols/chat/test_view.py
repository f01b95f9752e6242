"""What is read of a chat request on every path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.protocols.chat.view import ChatRequest, parse_chat
from tests.protocols.chat.events import HI

FUNCTION = {"type": "function", "function": {"name": "f"}}


def view(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps({"model": "m", "messages": HI, **fields}).encode())


def said(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, set()),
        ({"stream": True}, {"stream"}),
        ({"stream": False, "tools": [], "logprobs": False, "n": 1, "modalities": ["text"]}, set()),
        ({"tools": [FUNCTION]}, {"tools"}),
        ({"functions": [{"name": "f"}]}, {"tools"}),
        ({"tools": [FUNCTION], "tool_choice": "auto"}, {"tools"}),
        ({"tools": [FUNCTION], "tool_choice": "none"}, {"tools"}),
        ({"tools": [FUNCTION], "tool_choice": None}, {"tools"}),
        ({"tools": [FUNCTION], "tool_choice": "required"}, {"tools", "tool_choice"}),
        ({"tools": [FUNCTION], "tool_choice": "any"}, {"tools", "tool_choice"}),
        ({"tools": [FUNCTION], "tool_choice": FUNCTION}, {"tools", "tool_choice"}),
        (
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FUNCTION]}},
            },
            {"tools"},
        ),
        (
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FUNCTION]}},
            },
            {"tools", "tool_choice"},
        ),
        ({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, {"tools", "tool_choice"}),
        ({"tool_choice": "required"}, set()),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_object"}}, {"json_schema"}),
        ({"response_format": {"type": "json_schema"}}, {"json_schema"}),
        ({"logprobs": True}, {"logprobs"}),
        ({"n": 2}, {"n"}),
        ({"modalities": ["text", "audio"]}, {"audio"}),
        ({"messages": said({"type": "text", "text": "x"})}, set()),
        ({"messages": said({"type": "image_url", "image_url": {"url": "x"}})}, {"vision"}),
        ({"messages": said({"type": "video_url", "video_url": {"url": "x"}})}, {"vision"}),
        ({"messages": said({"type": "input_audio", "input_audio": {}})}, {"audio"}),
        ({"messages": said({"type": "file", "file": {}})}, {"files"}),
        ({"messages": said({"type": "document_url", "document_url": "x"})}, {"files"}),
        ({"messages": said({"type": "new"})}, set()),
        ({"reasoning_effort": "high", "seed": 1, "service_tier": "flex", "user": "u"}, set()),
    ],
)
def test_what_an_endpoint_must_be_able_to_do(fields: dict[str, Any], needs: set[str]) -> None:
    assert view(**fields).needs() == needs


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({}, None),
        ({"tools": [FUNCTION, {"function": {"name": "g"}}], "store": False, "audio": None, "prediction": None}, None),
        ({"modalities": ["text"], "web_search_options": None}, None),
        ({"tools": [FUNCTION, {"type": "custom", "custom": {"name": "c"}}]}, "a tool of the type `custom`"),
        ({"tools": [{"type": "openrouter:web_search"}]}, "a tool of the type `openrouter:web_search`"),
        ({"web_search_options": {"search_context_size": "low"}}, "`web_search_options`"),
        ({"audio": {"voice": "ash", "format": "wav"}}, "`audio`"),
        ({"modalities": ["text", "image"]}, "`modalities`"),
        ({"prediction": {"type": "content", "content": "x"}}, "`prediction`"),
        ({"store": True}, "`store`"),
    ],
)
def test_what_only_chat_has(fields: dict[str, Any], feature: str | None) -> None:
    assert view(**fields).native_feature() == feature


def test_an_answer_that_is_spoken_on_is_kept_by_its_provider() -> None:
    assert view().kept_state() is None
    spoken = [*HI, {"role": "assistant", "audio": {"id": "audio_1"}}, *HI]
    assert view(messages=spoken).kept_state() == "messages.audio"
    assert view(messages=[*HI, {"role": "assistant", "audio": None, "content": "x"}]).kept_state() is None


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (HI, "hi"),
        ([*HI, {"role": "assistant", "content": "no"}], "hi"),
        ([*HI, *said({"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"})], "a b"),
        ([*HI, {"role": "user", "content": None}], ""),
        ([{"role": "system", "content": "x"}], ""),
    ],
)
def test_the_newest_words_of_the_user(messages: list[Any], text: str) -> None:
    assert view(messages=messages).last_user_text() == text


def test_the_outline_has_every_word() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "name": "bob", "content": [{"type": "text", "text": "see"}, {"type": "image_url"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a":1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "assistant", "tool_calls": {"odd": 1}},
    ]
    outline = view(messages=messages, tools=[FUNCTION]).outline()
    texts = [text if isinstance(text, str) else text.decode() for text in outline.texts]
    assert texts[0].replace(" ", "") == json.dumps(FUNCTION).replace(" ", "")
    assert texts[1:7] == ["be brief", "see", "bob", "f", '{"a":1}', "done"]
    assert (outline.messages, outline.media) == (5, 1)


@pytest.mark.parametrize(
    ("fields", "limit", "choices"),
    [
        ({}, None, 1),
        ({"max_tokens": 5}, 5, 1),
        ({"max_tokens": 5, "max_completion_tokens": 7, "n": 3}, 7, 3),
        ({"n": 0}, None, 1),
    ],
)
def test_limits(fields: dict[str, Any], limit: int | None, choices: int) -> None:
    assert (view(**fields).output_limit, view(**fields).choices) == (limit, choices)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"stream": "yes"}, "stream"),
        ({"n": True}, "n"),
        ({"response_format": {}}, "response_format.type"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"functions": {}}, "functions"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        view(**fields)
    assert caught.value.param == param
    assert caught.value.code in ("invalid_type", "invalid_value")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"x":"\xff"}',
        b'{"model":"m\\ud800","messages":[{"role":"user","content":"hi"}]}',
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(body)
    assert caught.value.code == "invalid_json"
