"""What is sent to `/api/chat`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical import (
    Media,
    Opaque,
    OutputFormat,
    Reasoning,
    Refusal,
    Request,
    Seal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.ollama.wire import OLLAMA_WIRE
from tests.protocols.ollama.schema import Chat

WEATHER = Tool("get_weather", "tells the weather", msgspec.Raw(b'{"type":"object","properties":{"a":{"minimum":1.0}}}'))
CLOCK = Tool("get_time")
HELLO = [Turn("user", [Text("hello")])]


def request(turns: list[Turn] | None = None, **fields: Any) -> Request:
    return Request(model="asked", turns=HELLO if turns is None else turns, origin="chat", **fields)


def written(wanted: Request, dialect: Dialect = PLAIN) -> tuple[dict[str, Any], tuple[str, ...]]:
    sent = OLLAMA_WIRE.write_request(wanted, "qwen3", dialect)
    msgspec.json.decode(sent.body, type=Chat)
    return msgspec.json.decode(sent.body), sent.dropped


def messages(*turns: Turn) -> Any:
    return written(request(list(turns)))[0]["messages"]


def refused(wanted: Request) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        OLLAMA_WIRE.write_request(wanted, "qwen3", PLAIN)
    return caught.value


def test_target() -> None:
    assert OLLAMA_WIRE.target("qwen3", stream=False) == "/api/chat"


def test_smallest_says_whether_it_streams() -> None:
    fields = {"model": "qwen3", "messages": [{"role": "user", "content": "hello"}]}
    assert written(request()) == ({**fields, "stream": False}, ())
    assert written(request(stream=True)) == ({**fields, "stream": True}, ())


def test_options() -> None:
    sent, dropped = written(
        request(
            max_output_tokens=7,
            temperature=0,
            top_p=0.9,
            top_k=40,
            min_p=0.05,
            seed=0,
            stop=["END"],
            presence_penalty=-1.5,
            frequency_penalty=1,
            logprobs=True,
            top_logprobs=3,
        )
    )
    assert dropped == ()
    assert sent["options"] == {
        "num_predict": 7,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 0,
        "stop": ["END"],
        "presence_penalty": -1.5,
        "frequency_penalty": 1,
    }
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 3)


def test_what_has_no_place_is_named() -> None:
    sent, dropped = written(
        request(
            [Turn("user", [ToolResult("1", [Text("no")], is_error=True), Text("hi", cache="5m")], name="anna")],
            logit_bias={"1": 2.0},
            service_tier="flex",
            user="u",
            metadata={"a": "b"},
            prompt_cache_key="k",
            verbosity="low",
            parallel_tool_calls=False,
            thinking=Thinking(budget_tokens=100, summary="auto"),
            tools=[Tool("a", strict=True)],
            extra={"keep_alive": msgspec.Raw(b"5")},
        )
    )
    assert set(sent) == {"model", "messages", "stream", "tools", "think"}
    assert set(dropped) == {
        *("logit_bias", "service_tier", "user", "metadata", "prompt_cache_key", "verbosity"),
        *("parallel_tool_calls", "budget_tokens", "summary", "strict", "cache", "is_error", "name", "keep_alive"),
    }


def test_dialect_leaves_out() -> None:
    sent, dropped = written(request(thinking=Thinking(enabled=True)), Dialect(unsupported=("think", "tools")))
    assert "think" not in sent and dropped == ("think",)


def test_turns() -> None:
    assert messages(
        Turn("system", [Text("be"), Text("brief")]),
        Turn("user", [Text("a"), Media("image", data="AAAA", media_type="image/png"), Media("audio", data="BBBB")]),
        Turn("assistant", [Reasoning("hm", Seal("s", "messages")), Text("c"), Refusal("d")]),
        Turn("user", [Media("image", data="CCCC")]),
        Turn("assistant", [Media("image", data="DDDD")]),
    ) == [
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": "a", "images": ["AAAA", "BBBB"]},
        {"role": "assistant", "content": "cd", "thinking": "hm"},
        {"role": "user", "content": "", "images": ["CCCC"]},
        {"role": "assistant", "content": "", "images": ["DDDD"]},
    ]


def test_tools_called_and_answered() -> None:
    assert messages(
        Turn("user", [Text("weather and time?")]),
        Turn("assistant", [ToolCall("1", "get_weather", '{"b": 1.0, "a": 2}'), ToolCall("2", "get_time", " ")]),
        Turn(
            "user",
            [
                ToolResult("1", [Text("sun"), Media("image", data="AAAA")]),
                ToolResult("2", [Text("12")], name="clock"),
                ToolResult("9", []),
                Text("and?"),
            ],
        ),
    )[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "1", "function": {"name": "get_weather", "arguments": {"b": 1.0, "a": 2}}},
                {"id": "2", "function": {"name": "get_time", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "sun", "images": ["AAAA"], "tool_call_id": "1", "tool_name": "get_weather"},
        {"role": "tool", "content": "12", "tool_call_id": "2", "tool_name": "clock"},
        {"role": "tool", "content": "", "tool_call_id": "9"},
        {"role": "user", "content": "and?"},
    ]


def test_arguments_stay_as_they_were_written() -> None:
    turns = [*HELLO, Turn("assistant", [ToolCall("1", "f", '{"b": 1.0, "a": 12345678901234567890}')])]
    assert b'{"b": 1.0, "a": 12345678901234567890}' in OLLAMA_WIRE.write_request(request(turns), "m", PLAIN).body


@pytest.mark.parametrize("arguments", ["[1]", "{", "7", '"x"', "[" * 100_000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    error = refused(request([Turn("assistant", [ToolCall("1", "f", arguments)])]))
    assert error.param == "messages" and error.code == "invalid_value"


def test_foreign_parts_are_left_out() -> None:
    hidden = [Reasoning("", Seal("s", "messages"), is_redacted=True), Opaque(msgspec.Raw(b"{}"), "responses")]
    assert messages(Turn("user", [Text("a")]), Turn("assistant", [*hidden]), Turn("user", [Text("b")])) == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ]


@pytest.mark.parametrize(
    "media",
    [
        Media("image", url="https://x/y.png"),
        Media("image", file_id="file-1"),
        Media("document", data="AAAA"),
        Media("video", data="AAAA"),
    ],
)
def test_media_that_ollama_does_not_take(media: Media) -> None:
    for turn in (Turn("user", [media]), Turn("user", [ToolResult("1", [media])]), Turn("assistant", [media])):
        error = refused(request([turn]))
        assert error.code == "unsupported_by_endpoint" and error.param == "messages"


def test_several_choices() -> None:
    error = refused(request(n=2))
    assert error.code == "unsupported_by_endpoint" and error.param == "n"


def test_tools() -> None:
    assert written(request(tools=[WEATHER, CLOCK]))[0]["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "tells the weather",
                "parameters": {"type": "object", "properties": {"a": {"minimum": 1.0}}},
            },
        },
        {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
    ]


def test_tool_choice() -> None:
    tools = [WEATHER, CLOCK]
    assert len(written(request(tools=tools, tool_choice=ToolChoice("auto")))[0]["tools"]) == 2
    assert "tools" not in written(request(tools=tools, tool_choice=ToolChoice("none")))[0]
    error = refused(request(tools=tools, tool_choice=ToolChoice("required")))
    assert error.code == "unsupported_by_endpoint" and error.param == "tool_choice"


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (OutputFormat("json"), "json"),
        (OutputFormat("json_schema"), "json"),
        (OutputFormat("json_schema", msgspec.Raw(b'{"type":"object"}'), "n"), {"type": "object"}),
    ],
)
def test_output_format(wanted: OutputFormat, sent: Any) -> None:
    assert written(request(output_format=wanted))[0]["format"] == sent


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (Thinking(), None),
        (Thinking(enabled=True), True),
        (Thinking(enabled=True, effort="low"), "low"),
        (Thinking(effort="minimal"), "low"),
        (Thinking(effort="medium"), "medium"),
        (Thinking(effort="high"), "high"),
        (Thinking(effort="xhigh"), "max"),
        (Thinking(effort="max"), "max"),
        (Thinking(budget_tokens=500), True),
        (Thinking(budget_tokens=0), False),
        (Thinking(effort="none"), False),
        (Thinking(enabled=False, effort="high"), False),
    ],
)
def test_thinking(wanted: Thinking, sent: bool | str | None) -> None:
    assert written(request(thinking=wanted))[0].get("think") == sent


texts = st.builds(Text, st.text(min_size=1))
calls = st.builds(ToolCall, st.text(min_size=1), st.text(min_size=1), st.sampled_from(["", '{"a":1}']))
results = st.builds(ToolResult, st.text(min_size=1), st.lists(texts, max_size=2))
turns = st.one_of(
    st.builds(Turn, st.just("system"), st.lists(texts, min_size=1, max_size=3)),
    st.builds(Turn, st.just("user"), st.lists(st.one_of(results, texts), min_size=1, max_size=3)),
    st.builds(
        Turn, st.just("assistant"), st.lists(st.one_of(texts, calls, st.builds(Reasoning, st.text())), max_size=3)
    ),
)


@given(st.lists(turns, max_size=5))
def test_any_conversation_is_valid_and_complete(conversation: list[Turn]) -> None:
    sent, _ = written(request([*HELLO, *conversation]))
    called = [part.id for turn in conversation for part in turn.parts if isinstance(part, ToolCall)]
    answered = [part.call_id for turn in conversation for part in turn.parts if isinstance(part, ToolResult)]
    found = sent["messages"][1:]
    assert [call["id"] for message in found for call in message.get("tool_calls", [])] == called
    assert [message["tool_call_id"] for message in found if message["role"] == "tool"] == answered
    contents = [message["content"] for message in found if message["role"] != "tool"]
    for turn in conversation:
        for part in turn.parts:
            assert not isinstance(part, Text) or any(part.text in content for content in contents)
