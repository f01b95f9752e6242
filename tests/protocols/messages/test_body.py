"""Canonical requests, as Anthropic is asked."""

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
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.messages.wire import MESSAGES_WIRE
from tests.protocols.messages.shapes import SONNET, asking, raw, write

MINE = Seal("sig", "messages")


def turns(*items: Turn) -> list[dict[str, Any]]:
    body, _ = write(asking(turns=list(items)))
    messages: list[dict[str, Any]] = body["messages"]
    return messages


def test_the_least() -> None:
    body, dropped = write(asking())
    assert body == {
        "model": SONNET,
        "max_tokens": 32_000,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }
    assert dropped == ()


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("claude-3-haiku-20240307", 4096),
        ("claude-3-5-haiku-latest", 8192),
        ("claude-opus-4-1", 32_000),
        ("claude-sonnet-5", 32_000),
        ("kimi-k2", 4096),
    ],
)
def test_a_limit_is_found_where_none_was_set(model: str, limit: int) -> None:
    assert write(asking(), model)[0]["max_tokens"] == limit
    assert write(asking(max_output_tokens=7), model)[0]["max_tokens"] == 7


def test_parameters() -> None:
    body, dropped = write(
        asking(
            stop=["END", " \n"], stream=True, user="u", top_k=5, cache="1h", service_tier="priority", temperature=0.5
        )
    )
    assert body["stop_sequences"] == ["END"] and body["stream"] is True and body["metadata"] == {"user_id": "u"}
    assert (body["top_k"], body["temperature"], body["service_tier"]) == (5, 0.5, "auto")
    assert body["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert dropped == ("stop",)


def test_what_has_no_place_is_named() -> None:
    body, dropped = write(
        asking(
            seed=0,
            logit_bias={"1": 2.0},
            presence_penalty=0.5,
            frequency_penalty=0.1,
            min_p=0.1,
            metadata={"a": "b"},
            prompt_cache_key="k",
            verbosity="low",
            service_tier="flex",
            extra={"store": raw(True)},
            turns=[Turn("user", [Text("x")], name="Ada")],
        )
    )
    assert set(body) == {"model", "max_tokens", "messages"}
    assert set(dropped) == {
        *("seed", "logit_bias", "presence_penalty", "frequency_penalty", "min_p", "metadata", "prompt_cache_key"),
        *("verbosity", "service_tier", "store", "name"),
    }


def test_penalties_of_zero_are_no_loss() -> None:
    assert write(asking(presence_penalty=0.0, frequency_penalty=0.0, logit_bias={}))[1] == ()


@pytest.mark.parametrize(("fields", "param"), [({"n": 2}, "n"), ({"logprobs": True}, "logprobs")])
def test_what_would_change_the_answer_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        write(asking(**fields))
    assert (raised.value.param, raised.value.code) == (param, "unsupported_by_endpoint")


def test_fields_of_its_own_protocol_are_kept() -> None:
    assert write(asking(origin="messages", extra={"speed": raw("fast")}))[0]["speed"] == "fast"


def test_the_dialect_refuses_fields() -> None:
    body, dropped = write(asking(user="u"), dialect=Dialect(unsupported=("metadata", "user")))
    assert "metadata" not in body and dropped == ("metadata",)


def test_system_turns_are_gathered() -> None:
    body, _ = write(
        asking(
            turns=[
                Turn("system", [Text("A")]),
                Turn("user", [Text("x")]),
                Turn("system", [Text("B", cache="5m"), Text(" ")]),
                Turn("user", [Text("y")]),
            ]
        )
    )
    assert body["system"] == [
        {"type": "text", "text": "A"},
        {"type": "text", "text": "B", "cache_control": {"type": "ephemeral"}},
    ]
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}
    ]


def test_one_plain_system_prompt_is_a_string() -> None:
    assert write(asking(turns=[Turn("system", [Text("A")]), Turn("user", [Text("x")])]))[0]["system"] == "A"


def test_nothing_but_a_system_prompt() -> None:
    with pytest.raises(InvalidRequest) as raised:
        write(asking(turns=[Turn("system", [Text("A")]), Turn("user", [Text("  ")])]))
    assert raised.value.param == "messages"


def test_results_come_first_in_a_turn_of_their_own_role() -> None:
    messages = turns(
        Turn("user", [Text("x")]),
        Turn("assistant", [Text("I look."), ToolCall("a", "f", '{"q":1}'), ToolCall("b", "g", "")]),
        Turn("user", [ToolResult("a", [Text("1")])]),
        Turn("user", [Text("quick")]),
        Turn("user", [ToolResult("b", [Text(""), Media("image", url="https://x")], is_error=True)]),
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"q": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {}},
    ]
    assert messages[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}]},
        {
            "type": "tool_result",
            "tool_use_id": "b",
            "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}],
            "is_error": True,
        },
        {"type": "text", "text": "quick"},
    ]


def test_ids_are_spelt_as_the_api_allows() -> None:
    messages = turns(
        Turn("assistant", [ToolCall("functions.f:0", "f", ""), ToolCall("functions.f.0", "f", "")]),
        Turn("user", [ToolResult("functions.f:0", []), ToolResult("functions.f.0", [])]),
    )
    ids = [block["id"] for block in messages[0]["content"]]
    assert len(set(ids)) == 2 and all(name.replace("_", "").replace("-", "").isalnum() for name in ids)
    assert [block["tool_use_id"] for block in messages[1]["content"]] == ids


def test_numbers_keep_their_spelling() -> None:
    call = ToolCall("a", "f", '{"b":1.50,"a":12345678901234567890123}')
    written = MESSAGES_WIRE.write_request(asking(turns=[Turn("assistant", [call])]), SONNET, Dialect())
    assert b'"input":{"b":1.50,"a":12345678901234567890123}' in written.body


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", '"x"', "{} {}"])
def test_arguments_that_are_no_object(arguments: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        turns(Turn("assistant", [ToolCall("a", "f", arguments)]))
    assert (raised.value.param, raised.value.code) == ("messages", "invalid_value")


def test_only_thinking_that_anthropic_signed_goes_back() -> None:
    (message,) = turns(
        Turn(
            "assistant",
            [
                Reasoning("mine", MINE),
                Reasoning("", Seal("enc", "messages"), is_redacted=True),
                Reasoning("foreign", Seal("x", "responses")),
                Reasoning("unsigned"),
                Reasoning("", Seal("y", "chat"), is_redacted=True),
                ToolCall("a", "f", "", Seal("z", "gemini")),
                Refusal("No."),
            ],
        )
    )
    assert message["content"] == [
        {"type": "thinking", "thinking": "mine", "signature": "sig"},
        {"type": "redacted_thinking", "data": "enc"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        {"type": "text", "text": "No."},
    ]


def test_turns_of_which_nothing_remains_are_left_out() -> None:
    messages = turns(
        Turn("user", [Text("x")]),
        Turn("assistant", [Reasoning("foreign", Seal("x", "chat"))]),
        Turn("user", [Text("y")]),
    )
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]


def test_blanks_at_the_end_of_an_answer_to_go_on_with() -> None:
    messages = turns(Turn("user", [Text("x ")]), Turn("assistant", [Text("It is \n")]))
    assert messages[0]["content"][0]["text"] == "x "
    assert messages[1]["content"] == [{"type": "text", "text": "It is"}]


def test_opaque_blocks_go_back_to_their_own_protocol_alone() -> None:
    block = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    messages = turns(
        Turn("assistant", [Text("x"), Opaque(raw(block), "messages"), Opaque(raw({"type": "y"}), "responses")])
    )
    assert messages[0]["content"] == [{"type": "text", "text": "x"}, block]


def test_pictures_and_documents() -> None:
    text = base64.b64encode("Grüße".encode()).decode()
    (message,) = turns(
        Turn(
            "user",
            [
                Media("image", data="AAAA", media_type="image/jpg", cache="5m"),
                Media("image", data="iVBORw0KGgo="),
                Media("document", data="JVBE", media_type="application/pdf", name="T"),
                Media("document", data="JVBE"),
                Media("document", data=text, media_type="text/markdown; charset=utf-8"),
                Media("document", url="https://x/y.pdf"),
            ],
        )
    )
    assert [block["source"] for block in message["content"]] == [
        {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"},
        {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
        {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
        {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
        {"type": "text", "media_type": "text/plain", "data": "Grüße"},
        {"type": "url", "url": "https://x/y.pdf"},
    ]
    assert message["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert message["content"][2]["title"] == "T"


@pytest.mark.parametrize(
    "media",
    [
        Media("audio", data="AAAA", media_type="audio/wav"),
        Media("video", url="https://x"),
        Media("image", data="AAAA"),
        Media("image", data="AAAA", media_type="image/heic"),
        Media("image", file_id="file-1"),
        Media("document", data="AAAA", media_type="application/msword"),
        Media("document", data="/w==", media_type="text/plain"),
    ],
)
def test_media_that_cannot_be_sent(media: Media) -> None:
    with pytest.raises(InvalidRequest) as raised:
        write(asking(media))
    assert (raised.value.param, raised.value.code) == ("messages", "unsupported_by_endpoint")


def test_file_ids_of_its_own_protocol() -> None:
    body, _ = write(asking(Media("document", file_id="file_1"), origin="messages"))
    assert body["messages"][0]["content"][0]["source"] == {"type": "file", "file_id": "file_1"}


def test_what_another_model_drew_is_left_out() -> None:
    request = asking(turns=[Turn("assistant", [Text("Look:"), Media("image", data="AAAA")]), Turn("user", [Text("x")])])
    body, dropped = write(request)
    assert body["messages"][0]["content"] == [{"type": "text", "text": "Look:"}] and dropped == ("media",)


# Tools

TOOLS = [
    Tool("f", "F.", raw({"type": "object", "properties": {}}), strict=True),
    Tool("g", cache="1h"),
    Tool("h", parameters=raw({"properties": {}})),
]


def test_tools() -> None:
    body, dropped = write(asking(tools=TOOLS))
    assert body["tools"] == [
        {"name": "f", "description": "F.", "input_schema": {"type": "object", "properties": {}}, "strict": True},
        {
            "name": "g",
            "input_schema": {"type": "object", "properties": {}},
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        },
        {"name": "h", "input_schema": {"type": "object", "properties": {}}},
    ]
    assert "tool_choice" not in body and dropped == ()


def test_strict_tools_need_a_model_that_knows_schemas() -> None:
    body, dropped = write(asking(tools=TOOLS), "claude-sonnet-4-0")
    assert "strict" not in body["tools"][0] and dropped == ("strict",)


def test_parameters_that_are_no_schema() -> None:
    with pytest.raises(InvalidRequest) as raised:
        write(asking(tools=[Tool("f", parameters=raw("x"))]))
    assert raised.value.param == "tools"


@pytest.mark.parametrize(
    ("choice", "parallel", "written", "shown"),
    [
        (None, None, None, "fgh"),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}, "fgh"),
        (None, True, None, "fgh"),
        (ToolChoice("auto"), None, {"type": "auto"}, "fgh"),
        (ToolChoice("auto", ("f", "g")), None, {"type": "auto"}, "fg"),
        (ToolChoice("none"), False, {"type": "none"}, "fgh"),
        (ToolChoice("required"), False, {"type": "any", "disable_parallel_tool_use": True}, "fgh"),
        (ToolChoice("required", ("g",)), None, {"type": "tool", "name": "g"}, "fgh"),
        (ToolChoice("required", ("g", "h")), None, {"type": "any"}, "gh"),
    ],
)
def test_tool_choice(choice: ToolChoice | None, parallel: bool | None, written: Any, shown: str) -> None:
    body, _ = write(asking(tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel))
    assert body.get("tool_choice") == written
    assert [tool["name"] for tool in body["tools"]] == list(shown)


def test_a_choice_without_tools_is_left_out() -> None:
    assert "tool_choice" not in write(asking(tool_choice=ToolChoice("auto"), parallel_tool_calls=False))[0]


def test_a_choice_of_a_tool_that_is_not_there() -> None:
    with pytest.raises(InvalidRequest) as raised:
        write(asking(tools=TOOLS, tool_choice=ToolChoice("required", ("x",))))
    assert raised.value.param == "tool_choice"


@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-sonnet-5-5", "claude-fable-5-1", "claude-mythos-5-2"])
def test_models_that_cannot_be_made_to_call(model: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        write(asking(tools=TOOLS, tool_choice=ToolChoice("required")), model)
    assert (raised.value.param, raised.value.code) == ("tool_choice", "unsupported_by_endpoint")
    assert write(asking(tools=TOOLS, tool_choice=ToolChoice("auto")), model)[0]["tool_choice"] == {"type": "auto"}


# Output

SCHEMA = {"type": "object", "properties": {"x": {"type": "number"}}, "additionalProperties": False}


def test_an_answer_of_a_schema() -> None:
    body, _ = write(
        asking(output_format=OutputFormat("json_schema", raw(SCHEMA)), thinking=Thinking("low")), "claude-opus-5"
    )
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("model", "dialect"), [("claude-3-7-sonnet-latest", Dialect()), (SONNET, Dialect(json_schema="prompt"))]
)
def test_a_schema_by_prompt(model: str, dialect: Dialect) -> None:
    request = asking(
        turns=[Turn("system", [Text("A")]), Turn("user", [Text("x")])],
        output_format=OutputFormat("json_schema", raw(SCHEMA)),
    )
    body, _ = write(request, model, dialect)
    assert "output_config" not in body
    assert body["system"][0]["text"] == "A" and json.dumps(SCHEMA) in body["system"][1]["text"]


def test_json_of_any_shape_is_asked_for_in_words() -> None:
    body, _ = write(asking(output_format=OutputFormat("json")))
    assert "JSON" in body["system"] and "output_config" not in body


def test_half_a_surrogate_pair_does_not_lose_the_request() -> None:
    body, _ = write(asking(Text("a\ud83d"), user="\ud83d\ude00"))
    assert body["messages"][0]["content"][0]["text"] == "a\ufffd" and body["metadata"]["user_id"] == "😀"
