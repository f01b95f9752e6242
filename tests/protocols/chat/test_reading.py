"""A client's request, read whole into the canonical form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.canonical import (
    Media,
    Opaque,
    OutputFormat,
    Reasoning,
    Refusal,
    Seal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from gateway.errors import InvalidRequest
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from tests.protocols.chat.events import HI, read

PNG = "iVBORw0KGgoAAAANSUhEUg=="


def parts_of(*parts: Any) -> list[Any]:
    request = read(messages=[{"role": "user", "content": list(parts)}])
    (turn,) = request.turns
    return list(turn.parts)


def assistant(**fields: Any) -> list[Any]:
    request = read(messages=[*HI, {"role": "assistant", **fields}])
    return list(request.turns[-1].parts)


def test_a_conversation() -> None:
    request = read(
        messages=[
            {"role": "system", "content": "be brief", "name": "boss"},
            {"role": "developer", "content": [{"type": "text", "text": "really"}]},
            {"role": "user", "content": "hi", "name": "bob"},
            {
                "role": "assistant",
                "content": "one moment",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
                    {"id": "2", "type": "function", "function": {"name": "g", "arguments": ""}},
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "done"},
            {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": None, "refusal": "no"},
        ]
    )
    assert request.turns == [
        Turn("system", [Text("be brief")], "boss"),
        Turn("system", [Text("really")]),
        Turn("user", [Text("hi")], "bob"),
        Turn("assistant", [Text("one moment"), ToolCall("1", "f", '{"a": 1}'), ToolCall("2", "g", "")]),
        Turn("user", [ToolResult("1", [Text("done")], "f"), ToolResult("2", [Text("a")], "g"), Text("and?")]),
        Turn("assistant", [Refusal("no")]),
    ]


def test_functions_as_before_there_were_tools() -> None:
    request = read(
        messages=[
            *HI,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "2"},
        ],
        functions=[{"name": "f", "description": "d", "parameters": {"type": "object"}}],
        function_call={"name": "f"},
    )
    calls = [turn.parts[0] for turn in request.turns[1::2]]
    results = [turn.parts[0] for turn in request.turns[2::2]]
    assert [call.id for call in calls] == [result.call_id for result in results]
    assert len({call.id for call in calls}) == 2
    assert [result.name for result in results] == ["f", "f"]
    assert request.tools[0].name == "f" and bytes(request.tools[0].parameters) == b'{"type": "object"}'
    assert request.tool_choice == ToolChoice("required", ("f",))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "text", "text": "x"}, Text("x")),
        ({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}, Text("x", cache="5m")),
        ({"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}, Text("x", cache="1h")),
        ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, Media("image", url="https://x/y.png")),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
            Media("image", data=PNG, media_type="image/png", detail="low"),
        ),
        ({"type": "image_url", "image_url": "https://x/y.png"}, Media("image", url="https://x/y.png")),
        (
            {"type": "image_url", "image_url": {"url": "data:image/svg+xml,%3Csvg%2F%3E"}},
            Media("image", data="PHN2Zy8+", media_type="image/svg+xml"),
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            Media("audio", data="AAAA", media_type="audio/mpeg"),
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            Media("audio", data="AAAA", media_type="audio/wav"),
        ),
        ({"type": "input_audio", "input_audio": "https://x/y.mp3"}, Media("audio", url="https://x/y.mp3")),
        ({"type": "input_audio", "input_audio": "AAAA"}, Media("audio", data="AAAA")),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE", "filename": "a.pdf"}},
            Media("document", data="JVBE", media_type="application/pdf", name="a.pdf"),
        ),
        (
            {"type": "file", "file": {"file_data": "JVBE", "filename": "a.pdf"}},
            Media("document", data="JVBE", media_type="application/pdf", name="a.pdf"),
        ),
        (
            {"type": "file", "file": {"file_data": f"data:image/png;base64,{PNG}"}},
            Media("image", data=PNG, media_type="image/png"),
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, Media("document", file_id="file-1")),
        ({"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}, Media("video", url="https://x/y.mp4")),
        (
            {"type": "document_url", "document_url": "https://x/y.pdf", "document_name": "y"},
            Media("document", url="https://x/y.pdf", name="y"),
        ),
    ],
)
def test_parts(part: Any, expected: Any) -> None:
    assert parts_of(part) == [expected]


def test_a_part_that_only_chat_has_is_kept() -> None:
    unknown = {"type": "hologram", "hologram": {"x": 1.50}}
    (first, kept) = parts_of({"type": "text", "text": "see"}, unknown)
    assert first == Text("see")
    assert isinstance(kept, Opaque) and kept.origin == "chat" and json.loads(bytes(kept.raw)) == unknown
    custom = {"id": "1", "type": "custom", "custom": {"name": "c", "input": "x"}}
    (call,) = assistant(tool_calls=[custom])
    assert isinstance(call, Opaque) and json.loads(bytes(call.raw)) == custom


DETAIL = {"type": "reasoning.text", "text": "hm", "signature": "s", "format": "anthropic-claude-v1", "index": 0}


def sealed(**fields: Any) -> Seal:
    return Seal(json.dumps(fields, separators=(",", ":")), "chat")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_content": "hm"}, [Reasoning("hm")]),
        ({"reasoning": "hm"}, [Reasoning("hm")]),
        (
            {"reasoning": "hm", "reasoning_details": [DETAIL]},
            [Reasoning("hm", sealed(type="reasoning.text", signature="s", format="anthropic-claude-v1"))],
        ),
        (  # pieces, as a client collects them from a stream
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "h", "index": 0},
                    {"type": "reasoning.text", "text": "m", "index": 0},
                    {"type": "reasoning.text", "signature": "s", "index": 0},
                    {"type": "reasoning.text", "text": "so", "index": 1},
                ]
            },
            [Reasoning("hm", sealed(type="reasoning.text", signature="s")), Reasoning("so")],
        ),
        (
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "d", "id": "rs_1"}]},
            [Reasoning("", sealed(type="reasoning.encrypted", data="d", id="rs_1"), "rs_1", is_redacted=True)],
        ),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "in short"}]}, [Reasoning("in short")]),
        (
            {"reasoning_details": [{"type": "reasoning.text", "text": "hm", "signature": "hatchway.messages.Sig"}]},
            [Reasoning("hm", Seal("Sig", "messages"))],
        ),
        (
            {
                "reasoning_content": "hm",
                "reasoning_details": [{"type": "reasoning.encrypted", "data": "hatchway.responses.x", "id": "rs"}],
            },
            [Reasoning("hm"), Reasoning("", Seal("x", "responses"), "rs", is_redacted=True)],
        ),
        ({"reasoning_details": [{"type": "new", "x": 1}, 7, {"type": "reasoning.text"}], "content": "x"}, [Text("x")]),
        (
            {
                "thinking_blocks": [
                    {"type": "thinking", "thinking": "hm", "signature": "hatchway.messages.Sig"},
                    {"type": "redacted_thinking", "data": "d"},
                ]
            },
            [
                Reasoning("hm", Seal("Sig", "messages")),
                Reasoning("", sealed(type="reasoning.encrypted", data="d"), is_redacted=True),
            ],
        ),
        (  # Mistral's
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
                    {"type": "text", "text": "yes"},
                ]
            },
            [Reasoning("hm"), Text("yes")],
        ),
    ],
)
def test_reasoning(fields: dict[str, Any], expected: list[Any]) -> None:
    assert assistant(**fields) == expected


@pytest.mark.parametrize(
    ("signature", "seal"),
    [("abc=", Seal("abc=", "chat")), ("hatchway.gemini.abc=", Seal("abc=", "gemini")), ("", None)],
)
def test_seals_of_calls(signature: str, seal: Seal | None) -> None:
    extra = {"extra_content": {"google": {"thought_signature": signature}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert assistant(tool_calls=[{**call, **extra}]) == [ToolCall("1", "f", "{}", seal)]
    other = {**call, "id": "2"}
    assert assistant(tool_calls=[call, other], **extra) == [ToolCall("1", "f", "{}", seal), ToolCall("2", "f", "{}")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "high"}, Thinking(effort="high")),
        ({"reasoning_effort": "none"}, Thinking(effort="none")),
        ({"reasoning_effort": "default"}, None),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, Thinking(effort="low", summary="auto")),
        ({"reasoning": {"max_tokens": 2000}}, Thinking(budget_tokens=2000)),
        ({"reasoning": {"enabled": False}}, Thinking(enabled=False)),
        ({"enable_thinking": True, "thinking_budget": 50}, Thinking(enabled=True, budget_tokens=50)),
        ({"enable_thinking": False}, Thinking(enabled=False)),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, Thinking(enabled=True, budget_tokens=9)),
        ({"thinking": {"type": "disabled"}}, Thinking(enabled=False)),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "max"}, Thinking(effort="max", enabled=True)),
        ({}, None),
    ],
)
def test_thinking(fields: dict[str, Any], expected: Thinking | None) -> None:
    assert read(**fields).thinking == expected


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "x": 1.50}, "strict": True}


def test_tools() -> None:
    request = read(
        tools=[
            {"type": "function", "function": FUNCTION, "cache_control": {"type": "ephemeral"}},
            {"function": {"name": "bare"}},
            {"type": "function", "function": {"name": "empty", "parameters": {}}},
        ],
        parallel_tool_calls=False,
    )
    first, bare, empty = request.tools
    assert (first.name, first.description, first.strict, first.cache) == ("f", "d", True, "5m")
    assert json.loads(bytes(first.parameters)) == FUNCTION["parameters"]
    assert (bare, empty) == (Tool("bare"), Tool("empty"))
    assert request.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ("any", ToolChoice("required")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice("required", ("f",))),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
            ToolChoice("auto", ("f",)),
        ),
        (None, None),
    ],
)
def test_tool_choice(choice: Any, expected: ToolChoice | None) -> None:
    assert read(tools=[{"type": "function", "function": FUNCTION}], tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, OutputFormat("json")),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True}},
            OutputFormat("json_schema", name="n", strict=True),
        ),
    ],
)
def test_output_format(wanted: Any, expected: OutputFormat | None) -> None:
    assert read(response_format=wanted).output_format == expected


def test_every_setting() -> None:
    fields = {
        "max_completion_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "seed": 7,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {"50256": -100.0},
        "service_tier": "flex",
        "user": "u",
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "verbosity": "low",
    }
    request = read(**fields, stop=["a", "b"], stream=True, cache_control={"type": "ephemeral", "ttl": "1h"})
    read_back = {name: getattr(request, name) for name in fields if name != "max_completion_tokens"}
    assert read_back == {name: value for name, value in fields.items() if name != "max_completion_tokens"}
    assert (request.max_output_tokens, request.stop, request.cache) == (100, ["a", "b"], "1h")
    assert (request.stream, request.include_usage, request.origin, request.extra) == (True, False, "chat", {})
    assert read(stop="a", max_tokens=5, stream=True, stream_options={"include_usage": True}).include_usage is True
    assert (read(stop="a").stop, read(max_tokens=5).max_output_tokens) == (["a"], 5)


def test_what_has_no_place_is_kept() -> None:
    custom = {"type": "custom", "custom": {"name": "c"}}
    request = read(
        new_field={"x": 1.50},
        stream_options={"include_usage": True, "include_obfuscation": False},
        reasoning={"effort": "low", "exclude": True},
        tools=[{"type": "function", "function": {"name": "f"}}, custom],
        response_format={"type": "grammar", "grammar": "x"},
        prediction={"type": "content", "content": "x"},
    )
    kept = {name: json.loads(bytes(raw)) for name, raw in request.extra.items()}
    assert kept == {
        "new_field": {"x": 1.5},
        "stream_options": {"include_obfuscation": False},
        "reasoning": {"exclude": True},
        "tools": [custom],
        "response_format": {"type": "grammar", "grammar": "x"},
        "prediction": {"type": "content", "content": "x"},
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"model": ""}, "model"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            "messages[0].content[0].file",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"n": -1}, "n"),
        ({"n": 5000}, "n"),
        ({"seed": "x"}, "seed"),
        ({"logit_bias": {"1": "x"}}, "logit_bias[...]"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"reasoning": "high"}, "reasoning"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}'])
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        CHAT_PROTOCOL.read_request(body)
