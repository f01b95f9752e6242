"""Requests of clients, read to the canonical form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.canonical import (
    Citation,
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
from tests.protocols.responses.shapes import read

PNG = "data:image/png;base64,AAAA"
FUNCTION = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


def turns(*items: Any, **fields: Any) -> list[Turn]:
    return read(input=list(items), **fields).turns


def parts(*contents: Any) -> list[Any]:
    (turn,) = turns({"role": "user", "content": list(contents)})
    return turn.parts


def test_a_string_is_one_user_turn() -> None:
    request = read(instructions="be nice")
    assert request.turns == [Turn("system", [Text("be nice")]), Turn("user", [Text("hi")])]
    assert (request.model, request.origin, request.stream) == ("m", "responses", False)


def test_a_conversation() -> None:
    found = turns(
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "why"}],
         "encrypted_content": "s"},
        {"role": "assistant", "content": "let me see"},
        {"type": "function_call", "call_id": "c1", "name": "get", "arguments": '{"a": 1.0}'},
        {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "got", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "x"}]},
        {"role": "user", "content": "and now?"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "fine", "annotations": []}, {"type": "refusal", "refusal": "no"}]},
    )  # fmt: skip
    assert found == [
        Turn("system", [Text("rules")]),
        Turn("user", [Text("weather?")]),
        Turn(
            "assistant",
            [
                Reasoning("why", Seal("s", "responses"), "rs_1"),
                Text("let me see"),
                ToolCall("c1", "get", '{"a": 1.0}'),
                ToolCall("c2", "got", ""),
            ],
        ),
        Turn("user", [ToolResult("c1", [Text("sunny")], "get"), ToolResult("c2", [Text("x")], "got")]),
        Turn("user", [Text("and now?")]),
        Turn("assistant", [Text("fine"), Refusal("no")]),
    ]


def test_reasoning() -> None:
    def reasoning(**fields: Any) -> Any:
        found = turns({"role": "user", "content": "x"}, {"type": "reasoning", "summary": [], **fields})
        return found[1].parts[0] if len(found) > 1 else None

    sealed = Reasoning("", Seal("s", "responses"), "r", is_redacted=True)
    assert reasoning(id="r", encrypted_content="s") == sealed
    assert reasoning(encrypted_content="hatchway.messages.s").seal == Seal("s", "messages")
    assert reasoning(content=[{"type": "reasoning_text", "text": "raw"}]) == Reasoning("raw")
    assert reasoning(id="r") is None and reasoning(id="r", encrypted_content=None, content=None) is None


def test_a_seal_of_a_call_comes_before_it() -> None:
    packed = {
        "type": "reasoning",
        "id": "rs_hatchway_1",
        "summary": [],
        "encrypted_content": "hatchway.call.hatchway.gemini.s",
    }
    calls = [{"type": "function_call", "call_id": name, "name": name, "arguments": "{}"} for name in "ab"]
    (turn,) = turns(packed, *calls)
    assert turn.parts == [ToolCall("a", "a", "{}", Seal("s", "gemini")), ToolCall("b", "b", "{}")]


def test_contents() -> None:
    assert parts({"type": "input_image", "image_url": PNG, "detail": "low"}) == [
        Media("image", data="AAAA", media_type="image/png", detail="low")
    ]
    assert parts({"type": "input_image", "image_url": "https://x/a.png"}) == [Media("image", url="https://x/a.png")]
    assert parts({"type": "input_image", "file_id": "f"}) == [Media("image", file_id="f")]
    pdf = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"}
    assert parts(pdf) == [Media("document", data="BBBB", media_type="application/pdf", name="a.pdf")]
    assert parts({**pdf, "file_data": "BBBB"}) == [Media("document", data="BBBB", name="a.pdf")]
    assert parts({"type": "input_file", "file_url": "https://x"}) == [Media("document", url="https://x")]
    assert parts({"type": "input_file", "file_id": "f"}) == [Media("document", file_id="f")]
    audio = {"type": "input_audio", "input_audio": {"data": "CC", "format": "mp3"}}
    assert parts(audio) == [Media("audio", data="CC", media_type="audio/mpeg")]
    note = {"type": "url_citation", "url": "http://x", "title": "X", "start_index": 0, "end_index": 1}
    file = {"type": "file_citation", "file_id": "f"}
    assert parts({"type": "output_text", "text": "a", "annotations": [note, file]}) == [
        Text("a", (Citation("http://x", "X", 0, 1),))
    ]


def test_cache_marks() -> None:
    def mark(**breakpoint: Any) -> Any:
        (part,) = parts({"type": "input_text", "text": "a", "prompt_cache_breakpoint": breakpoint})
        return part.cache

    assert (mark(mode="explicit"), mark(mode="explicit", ttl="30m"), mark(mode="explicit", ttl="12h")) == (
        "5m",
        "5m",
        "1h",
    )


def test_pictures_that_the_model_made() -> None:
    item = {"type": "image_generation_call", "id": "ig_hatchway_1", "status": "completed", "result": "AAAA"}
    assert turns(item) == [Turn("assistant", [Media("image", data="AAAA")])]


def test_results_with_pictures() -> None:
    output = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": PNG}]
    (turn,) = turns({"type": "function_call_output", "call_id": "c", "name": "f", "output": output})
    assert turn.parts == [ToolResult("c", [Text("a"), Media("image", data="AAAA", media_type="image/png")], "f")]


def test_what_only_this_protocol_has_stays_whole() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"a": 1}}
    screen = {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}}
    content = {"type": "input_video", "video": "x"}
    found = turns(search, screen, {"role": "user", "content": [content]}, {"type": "item_reference", "id": "i"})
    assert [turn.role for turn in found] == ["assistant", "user", "user", "assistant"]
    opaque = [part for turn in found for part in turn.parts]
    assert all(isinstance(part, Opaque) and part.origin == "responses" for part in opaque)
    assert [json.loads(bytes(part.raw)) for part in opaque] == [
        search,
        screen,
        content,
        {"type": "item_reference", "id": "i"},
    ]


def test_tools() -> None:
    request = read(tools=[FUNCTION, {"type": "function", "name": "g", "parameters": None}])
    first, second = request.tools
    assert (first.name, first.description, first.strict) == ("f", "d", True)
    assert bytes(first.parameters) == b'{"type": "object"}'
    assert second == Tool("g") and request.extra == {}
    native = read(tools=[FUNCTION, {"type": "web_search"}], tool_choice="auto")
    assert [tool.name for tool in native.tools] == ["f"]
    assert json.loads(bytes(native.extra["tools"])) == [FUNCTION, {"type": "web_search"}]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "f"}, ToolChoice("required", ("f",))),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}, {"name": "g"}]},
            ToolChoice("required", ("f", "g")),
        ),
    ],
)
def test_choice_of_a_tool(choice: Any, expected: Any) -> None:
    request = read(tools=[FUNCTION, {**FUNCTION, "name": "g"}], tool_choice=choice)
    assert (request.tool_choice, len(request.tools), request.extra) == (expected, 2, {})


def test_allowed_tools_may_shorten_the_list() -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]}
    request = read(tools=[FUNCTION, {**FUNCTION, "name": "g"}], tool_choice=choice)
    assert request.tool_choice == ToolChoice("auto") and [tool.name for tool in request.tools] == ["g"]


def test_settings() -> None:
    request = read(
        stream=True,
        max_output_tokens=99,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=3,
        parallel_tool_calls=False,
        service_tier="flex",
        user="u",
        prompt_cache_key="k",
        metadata={"a": "b"},
        text={"verbosity": "low"},
        reasoning={"effort": "high", "summary": "auto"},
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
        store=False,
    )
    assert (request.stream, request.max_output_tokens, request.temperature, request.top_p) == (True, 99, 0.5, 0.9)
    assert (request.logprobs, request.top_logprobs, request.parallel_tool_calls) == (True, 3, False)
    assert (request.service_tier, request.user, request.prompt_cache_key) == ("flex", "u", "k")
    assert (request.metadata, request.verbosity) == ({"a": "b"}, "low")
    assert request.thinking == Thinking(effort="high", summary="auto")
    assert request.extra == {}
    assert read(safety_identifier="s").user == "s"
    assert read(reasoning={"generate_summary": "concise"}).thinking == Thinking(summary="concise")
    assert read(reasoning={"effort": None}).thinking is None and read(reasoning=None).thinking is None


def test_other_fields_are_extra() -> None:
    given = {"store": True, "truncation": "auto", "new": {"a": 1}, "previous_response_id": None}
    request = read(**given, reasoning={"effort": "low", "context": "all_turns"}, include=["a.b"])
    assert {name: json.loads(bytes(raw)) for name, raw in request.extra.items()} == {
        "store": True,
        "truncation": "auto",
        "new": {"a": 1},
        "reasoning": {"effort": "low", "context": "all_turns"},
        "include": ["a.b"],
    }
    assert request.thinking == Thinking(effort="low")


def test_formats() -> None:
    assert read(text={"format": {"type": "text"}}).output_format is None
    assert read(text={"format": {"type": "json_object"}}).output_format == OutputFormat("json")
    wanted = {"type": "json_schema", "name": "n", "schema": {"a": 1.0}, "strict": True, "description": "d"}
    found = read(text={"format": wanted}).output_format
    assert found is not None and (found.kind, found.name, found.strict, found.description) == (
        "json_schema",
        "n",
        True,
        "d",
    )
    assert bytes(found.schema or b"") == b'{"a": 1.0}'
    grammar = read(text={"format": {"type": "grammar", "x": 1}})
    assert grammar.output_format is None and "text" in grammar.extra


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"type": "message", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content", "invalid_type"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]", "invalid_type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": 7}]}]},
            "input[0].content[0]",
            "invalid_type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].image_url",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "filename": "x"}]}]},
            "input[0].content[0].file_data",
            "invalid_value",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "input[0].content[0].input_audio",
            "invalid_type",
        ),
        ({"input": [{**CALL, "name": None}]}, "input[0].name", "invalid_value"),
        ({"input": [{**CALL, "call_id": ""}]}, "input[0].call_id", "invalid_value"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "invalid_value"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]}, "input[0].output", "invalid_type"),
        ({"input": [{"type": "reasoning", "summary": "x"}]}, "input[0].summary", "invalid_type"),
        ({"tools": [7]}, "tools[0]", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "invalid_type"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tool_choice": 7}, "tool_choice", "invalid_type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "invalid_value"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": 7}, "reasoning", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata[...]", "invalid_type"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(**fields)
    assert (raised.value.param, raised.value.code) == (param, code)
