"""What clients of the Messages API send, as canonical requests."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.canonical import (
    Media,
    Opaque,
    OutputFormat,
    Reasoning,
    Seal,
    Text,
    Thinking,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.errors import InvalidRequest
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL
from tests.protocols.messages.shapes import SONNET, read


def user(*blocks: dict[str, Any]) -> list[Any]:
    return read(messages=[{"role": "user", "content": list(blocks)}]).turns[0].parts


def assistant(*blocks: dict[str, Any]) -> list[Any]:
    return read(messages=[{"role": "assistant", "content": list(blocks)}]).turns[0].parts


def test_parameters() -> None:
    request = read(
        system="Be brief.",
        stream=True,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        stop_sequences=["END"],
        metadata={"user_id": "u-1"},
        service_tier="standard_only",
        cache_control={"type": "ephemeral", "ttl": "1h"},
        speed="fast",
        diagnostics={"previous_message_id": None},
    )
    assert (request.model, request.max_output_tokens, request.stream, request.origin) == (SONNET, 100, True, "messages")
    assert (request.temperature, request.top_p, request.top_k, request.stop) == (0.5, 0.9, 3, ["END"])
    assert (request.user, request.service_tier, request.cache) == ("u-1", "default", "1h")
    assert {name: bytes(value) for name, value in request.extra.items()} == {
        "speed": b'"fast"',
        "diagnostics": b'{"previous_message_id": null}',
    }
    assert request.turns[0].role == "system" and request.turns[0].parts == [Text("Be brief.")]


def test_system_blocks_and_system_turns_stay_where_they_are() -> None:
    request = read(
        system=[{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "B"}],
        messages=[
            {"role": "user", "content": "x"},
            {"role": "system", "content": "C"},
            {"role": "assistant", "content": [{"type": "text", "text": "y"}]},
        ],
    )
    assert [turn.role for turn in request.turns] == ["system", "user", "system", "assistant"]
    assert request.turns[0].parts == [Text("A", cache="5m"), Text("B")]
    assert request.turns[2].parts == [Text("C")]


def test_pictures_and_documents() -> None:
    text = base64.b64encode("Grüße".encode()).decode()
    assert user(
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}, "cache_control": {"type": "ephemeral"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
            "title": "T",
        },
        {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}, "context": "of last year"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grüße"}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}]}},
        {"type": "document", "source": {"type": "content", "content": "b"}},
    ) == [
        Media("image", data="iVBO", media_type="image/png"),
        Media("image", url="https://x/y.png"),
        Media("image", file_id="file_1", cache="5m"),
        Media("document", data="JVBE", media_type="application/pdf", name="T"),
        Text("of last year"),
        Media("document", url="https://x/y.pdf"),
        Media("document", data=text, media_type="text/plain"),
        Text("a"),
        Text("b"),
    ]


def test_calls_and_their_results() -> None:
    request = read(
        messages=[
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
                    {"type": "redacted_thinking", "data": "enc"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1.0, "a": [2]}},
                    {"type": "tool_use", "id": "t2", "name": "g", "input": {}, "cache_control": {"type": "ephemeral"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "and now?"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": "done"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "is_error": True,
                        "content": [
                            {"type": "text", "text": "no"},
                            {"type": "image", "source": {"type": "url", "url": "https://x"}},
                            {"type": "tool_reference", "tool_name": "h"},
                        ],
                    },
                ],
            },
        ]
    )
    assert request.turns[1].parts == [
        Reasoning("Hm.", Seal("sig", "messages")),
        Reasoning("", Seal("enc", "messages"), is_redacted=True),
        ToolCall("t1", "f", '{"b": 1.0, "a": [2]}'),
        ToolCall("t2", "g", "{}", cache="5m"),
    ]
    assert request.turns[2].parts == [
        ToolResult("t1", [Text("done")], name="f"),
        ToolResult("t2", [Text("no"), Media("image", url="https://x")], name="g", is_error=True),
        Text("and now?"),
    ]


def test_seals_of_other_makers_come_back() -> None:
    parts = assistant(
        {"type": "thinking", "thinking": "Hm.", "signature": "hatchway.responses.abc.def"},
        {"type": "thinking", "thinking": "Unsigned.", "signature": ""},
        {"type": "redacted_thinking", "data": "hatchway.chat.xyz"},
        {"type": "redacted_thinking", "data": "hatchway.call.hatchway.gemini.sig=="},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
        {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
    )
    assert parts == [
        Reasoning("Hm.", Seal("abc.def", "responses")),
        Reasoning("Unsigned."),
        Reasoning("", Seal("xyz", "chat"), is_redacted=True),
        ToolCall("t1", "f", "{}", Seal("sig==", "gemini")),
        ToolCall("t2", "f", "{}"),
    ]


def test_only_a_block_without_text_is_taken_for_the_seal_of_a_call() -> None:
    parts = assistant(
        {"type": "thinking", "thinking": "Hm.", "signature": "hatchway.call.x"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
    )
    assert parts == [Reasoning("Hm.", Seal("hatchway.call.x", "messages")), ToolCall("t1", "f", "{}")]


def test_blocks_that_no_other_protocol_has_are_opaque() -> None:
    block = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}
    (part,) = assistant(block)
    assert isinstance(part, Opaque) and part.origin == "messages" and json.loads(bytes(part.raw)) == block


def test_tools() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number"}}}
    request = read(
        tools=[
            {"name": "f", "description": "F.", "input_schema": schema, "strict": True},
            {
                "type": "custom",
                "name": "g",
                "input_schema": schema,
                "cache_control": {"type": "ephemeral", "ttl": "1h"},
            },
            {"type": "web_search_20250305", "name": "web_search"},
            {"type": "mcp_toolset", "mcp_server_name": "m"},
        ]
    )
    assert [(tool.name, tool.description, tool.strict, tool.cache) for tool in request.tools] == [
        ("f", "F.", True, None),
        ("g", None, None, "1h"),
    ]
    assert json.loads(bytes(request.tools[0].parameters or b"")) == schema


@pytest.mark.parametrize(
    ("asked", "choice", "parallel"),
    [
        ({"type": "auto"}, ToolChoice("auto"), None),
        ({"type": "none"}, ToolChoice("none"), None),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
        ({"type": "tool", "name": "f", "disable_parallel_tool_use": False}, ToolChoice("required", ("f",)), True),
    ],
)
def test_tool_choice(asked: dict[str, Any], choice: ToolChoice, parallel: bool | None) -> None:
    request = read(tool_choice=asked)
    assert (request.tool_choice, request.parallel_tool_calls) == (choice, parallel)


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, Thinking(enabled=True, budget_tokens=2000)),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, Thinking(enabled=True, summary="auto")),
        ({"thinking": {"type": "disabled"}}, Thinking(enabled=False)),
        ({"thinking": {"type": "between_tools"}, "output_config": {"effort": "low"}}, Thinking("low", enabled=False)),
        ({"output_config": {"effort": "xhigh"}}, Thinking("xhigh")),
        ({"output_config": {"effort": "gigantic"}}, None),
    ],
)
def test_thinking(fields: dict[str, Any], thinking: Thinking | None) -> None:
    assert read(**fields).thinking == thinking


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_schema_of_the_answer(place: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    request = read(**({"output_config": {"format": form}} if place == "output_config" else {"output_format": form}))
    assert isinstance(request.output_format, OutputFormat) and request.output_format.kind == "json_schema"
    assert json.loads(bytes(request.output_format.schema or b"")) == {"type": "object"}


def image(source: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image", "source": source}]}]
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"system": [{"type": "text"}]}, "system[0].text"),
        (image({"type": "url"}), "messages[0].content[1].source"),
        (image("x"), "messages[0].content[1].source"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": "{}"}]}
                ]
            },
            "messages[0].content[0].input",
        ),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": "2k"}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"model": ""}, "model"),
        ({"stop_sequences": "END"}, "stop_sequences"),
    ],
)
def test_a_mistake_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(**fields)
    assert raised.value.param == param
    assert raised.value.code in ("invalid_type", "invalid_value")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"nil", b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"\xff"}]}']
)
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        MESSAGES_PROTOCOL.read_request(body)


def test_endless_nesting_is_a_mistake_too() -> None:
    nested = '{"type":"tool_result","tool_use_id":"t","content":[' * 5000 + "]}" * 5000
    body = f'{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":[{nested}]}}]}}'.encode()
    with pytest.raises(InvalidRequest):
        MESSAGES_PROTOCOL.read_request(body)
