"""What the gateway reads of a request on every path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


def view(**fields: Any) -> Any:
    return RESPONSES_PROTOCOL.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode())


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_plain_fields() -> None:
    asked = view(stream=True, max_output_tokens=9)
    assert (asked.model, asked.wants_stream, asked.output_limit, asked.choices) == ("m", True, 9, 1)
    assert (view(stream=None).wants_stream, view().output_limit) == (False, None)


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, set()),
        ({"stream": True}, {"stream"}),
        ({"tools": []}, set()),
        ({"tools": [FUNCTION]}, {"tools"}),
        ({"tools": [FUNCTION], "tool_choice": "auto"}, {"tools"}),
        ({"tools": [FUNCTION], "tool_choice": "none"}, {"tools"}),
        ({"tools": [FUNCTION], "tool_choice": "required"}, {"tools", "tool_choice"}),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}}, {"tools", "tool_choice"}),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, {"tools"}),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}},
            {"tools", "tool_choice"},
        ),
        ({"text": {"format": {"type": "text"}}}, set()),
        ({"text": {"verbosity": "low"}}, set()),
        ({"text": {"format": {"type": "json_object"}}}, {"json_schema"}),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}, {"json_schema"}),
        ({"top_logprobs": 2}, {"logprobs"}),
        ({"top_logprobs": 0}, set()),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs"}),
        ({"reasoning": {"effort": "high"}, "parallel_tool_calls": False, "store": True}, set()),
        ({"input": [user(PICTURE)]}, {"vision"}),
        ({"input": [user({"type": "input_file", "file_url": "http://x"})]}, {"files"}),
        ({"input": [user({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})]}, {"audio"}),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [PICTURE]}]}, {"vision"}),
    ],
)
def test_needs(fields: dict[str, Any], needs: set[str]) -> None:
    assert view(**fields).needs() == needs
    assert view(**fields).native_feature() is None and view(**fields).kept_state() is None


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"previous_response_id": "resp_1"}, "`previous_response_id`"),
        ({"conversation": {"id": "conv_1"}}, "`conversation`"),
        ({"conversation": "conv_1"}, "`conversation`"),
        ({"prompt": {"id": "pmpt_1"}}, "`prompt`"),
        ({"background": True}, "`background`"),
        ({"context_management": [{"type": "compaction"}]}, "`context_management`"),
        ({"moderation": {"model": "m"}}, "`moderation`"),
        ({"tools": [{"type": "web_search"}]}, "the tool `web_search`"),
        ({"tools": [FUNCTION, {"type": "mcp", "server_label": "s"}]}, "the tool `mcp`"),
        ({"tools": [{"type": "custom", "name": "sql"}]}, "the custom tool `sql`"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION]}]}, "the tool `namespace`"),
        ({"tool_choice": {"type": "file_search"}}, "the tool choice `file_search`"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "s"}]}},
            "the tool choice `mcp`",
        ),
        ({"text": {"format": {"type": "grammar"}}}, "the text format `grammar`"),
        ({"reasoning": {"mode": "pro"}}, "the reasoning mode `pro`"),
        ({"include": ["web_search_call.action.sources"]}, "`web_search_call.action.sources` in `include`"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "an input item of the type `item_reference`"),
        ({"input": [{"id": "x"}]}, "an input item of the type `item_reference`"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "an input item of the type `web_search_call`"),
        ({"input": [user({"type": "input_image", "file_id": "f"})]}, "the `file_id` of an `input_image`"),
        ({"input": [user({"type": "input_video"})]}, "content of the type `input_video`"),
    ],
)
def test_native_features(fields: dict[str, Any], feature: str) -> None:
    assert view(**fields).native_feature() == feature


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"previous_response_id": None, "conversation": None, "background": False, "truncation": "auto"},
        {"include": ["reasoning.encrypted_content"], "reasoning": {"context": "all_turns", "mode": "standard"}},
        {"input": [{"role": "user", "content": "x"}, {"type": "reasoning", "id": "r", "summary": []}]},
        {"input": [{"type": "image_generation_call", "id": "ig_hatchway_1", "result": "AAAA"}]},
        {"max_tool_calls": 3, "service_tier": "flex", "prompt_cache_options": {"mode": "explicit"}},
    ],
)
def test_what_any_provider_can_serve(fields: dict[str, Any]) -> None:
    assert view(**fields).native_feature() is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [user({"type": "input_file", "file_id": "f"})]}, "input"),
        ({"background": True, "tools": [{"type": "web_search"}]}, None),
    ],
)
def test_kept_state(fields: dict[str, Any], field: str | None) -> None:
    assert view(**fields).kept_state() == field


def test_the_last_words_of_the_user() -> None:
    items = [
        user({"type": "input_text", "text": "first"}),
        user({"type": "input_text", "text": "see"}, PICTURE, {"type": "input_text", "text": "this"}),
        {"role": "assistant", "content": "answer"},
        {"type": "function_call_output", "call_id": "c", "output": "o"},
    ]
    assert view(input=items).last_user_text() == "see this"
    assert view(input="hi").last_user_text() == "hi"
    assert view(input=items[2:]).last_user_text() == ""


def test_the_outline_has_every_word() -> None:
    items = [
        {"role": "developer", "content": "rules"},
        user({"type": "input_text", "text": "see"}, PICTURE),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}], "encrypted_content": "zzz"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "call_id": "c", "name": "get", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "out"}, PICTURE]},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "other"},
        {"type": "image_generation_call", "id": "ig_hatchway_1", "result": "AAAA"},
    ]
    outline = view(input=items, instructions="be nice", tools=[FUNCTION]).outline()
    words = " ".join(text if isinstance(text, str) else text.decode() for text in outline.texts)
    for word in ("be nice", "rules", "see", "why", "no", "get", '{\\"a\\":1}', "out", "other", '"strict"'):
        assert word in words
    assert "AAAA" not in words and "zzz" not in words
    assert (outline.messages, outline.media) == (8, 3)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": ""}, "model", "invalid_value"),
        ({"model": "m" * 257}, "model", "invalid_value"),
        ({"model": 7}, "model", "invalid_type"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": None}, "input", "invalid_value"),
        ({"input": 7}, "input", "invalid_type"),
        ({"input": ["x"]}, "input[0]", "invalid_type"),
        ({"input": [{"role": 7}]}, "input[0].role", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"text": {"format": {"type": 7}}}, "text.format.type", "invalid_type"),
        ({"max_output_tokens": 1.5}, "max_output_tokens", "invalid_type"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        view(**fields)
    assert (raised.value.param, raised.value.code) == (param, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":"m","input":"\xff"}', b'{"model":' + b"[" * 100_000])
def test_bodies_that_are_no_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        RESPONSES_PROTOCOL.parse(body)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "file_id": "f"}},
        {"type": "message", "role": "user", "content": {"odd": 1}},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "x"}], "name": None},
        {"type": "new_thing", "content": 7, "arguments": {"a": 1}},
    ],
)
def test_odd_shapes_pass(item: dict[str, Any]) -> None:
    """They are for an upstream of the same protocol to judge."""
    asked = view(input=[item])
    assert asked.needs() == set() and asked.last_user_text() == "" and asked.outline().messages == 1


def test_goes_on_without_input() -> None:
    assert view(input=[], previous_response_id="r").kept_state() == "previous_response_id"
