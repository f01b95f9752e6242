"""What is sent to `/v2/chat`."""

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
from gateway.protocols.cohere.wire import COHERE_WIRE
from tests.protocols.cohere.schema import Chat

SCHEMA = msgspec.Raw(b'{"type":"object","properties":{"a":{"type":"number","minimum":1.0}}}')
WEATHER = Tool("get_weather", "tells the weather", SCHEMA)
CLOCK = Tool("get_time")
HELLO = [Turn("user", [Text("hello")])]


def request(turns: list[Turn] | None = None, **fields: Any) -> Request:
    return Request(model="asked", turns=HELLO if turns is None else turns, origin="chat", **fields)


def written(wanted: Request, dialect: Dialect = PLAIN) -> tuple[dict[str, Any], tuple[str, ...]]:
    sent = COHERE_WIRE.write_request(wanted, "command-a", dialect)
    msgspec.json.decode(sent.body, type=Chat)
    return msgspec.json.decode(sent.body), sent.dropped


def messages(*turns: Turn) -> Any:
    return written(request(list(turns)))[0]["messages"]


def refused(wanted: Request) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        COHERE_WIRE.write_request(wanted, "command-a", PLAIN)
    return caught.value


def test_target() -> None:
    assert COHERE_WIRE.target("command-a", stream=True) == "/v2/chat"


def test_smallest() -> None:
    expected = {"model": "command-a", "messages": [{"role": "user", "content": "hello"}], "stream": False}
    assert written(request()) == (expected, ())


def test_sampling_has_cohere_names() -> None:
    sent, dropped = written(
        request(
            stream=True,
            max_output_tokens=7,
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            seed=3,
            stop=["END"],
            presence_penalty=0.25,
            frequency_penalty=1,
            logprobs=True,
        )
    )
    assert dropped == ()
    assert {name: value for name, value in sent.items() if name not in ("model", "messages")} == {
        "stream": True,
        "max_tokens": 7,
        "temperature": 0.5,
        "p": 0.9,
        "k": 40,
        "seed": 3,
        "stop_sequences": ["END"],
        "presence_penalty": 0.25,
        "frequency_penalty": 1,
        "logprobs": True,
    }


@pytest.mark.parametrize(("asked", "sent"), [(1, 0.99), (0, 0.01), (0.5, 0.5)])
def test_p_stays_in_range(asked: float, sent: float) -> None:
    assert written(request(top_p=asked))[0]["p"] == sent


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_penalty_out_of_range_is_dropped(name: str, value: float) -> None:
    sent, dropped = written(request(**{name: value}))
    assert name not in sent and dropped == (name,)


def test_what_has_no_place_is_named() -> None:
    sent, dropped = written(
        request(
            [Turn("user", [ToolResult("1", [Text("no")], is_error=True), Text("hi", cache="5m")], name="anna")],
            min_p=0.1,
            logit_bias={"1": 2.0},
            service_tier="flex",
            user="u",
            metadata={"a": "b"},
            prompt_cache_key="k",
            verbosity="low",
            logprobs=True,
            top_logprobs=3,
            parallel_tool_calls=False,
            thinking=Thinking(effort="high", summary="auto"),
            tools=[Tool("a", strict=True), Tool("b")],
            extra={"store": msgspec.Raw(b"true")},
        )
    )
    assert set(sent) == {"model", "messages", "stream", "tools", "thinking", "logprobs"}
    assert set(dropped) == {
        *("min_p", "logit_bias", "service_tier", "user", "metadata", "prompt_cache_key", "verbosity"),
        *("top_logprobs", "parallel_tool_calls", "effort", "summary", "strict", "cache", "is_error", "name", "store"),
    }


def test_dialect_leaves_out_and_renames() -> None:
    dialect = Dialect(unsupported=("seed", "k"), rename={"max_tokens": "max_completion_tokens"})
    sent = COHERE_WIRE.write_request(request(seed=1, max_output_tokens=5), "m", dialect)
    fields = msgspec.json.decode(sent.body)
    assert fields["max_completion_tokens"] == 5 and "max_tokens" not in fields and "seed" not in fields
    assert sent.dropped == ("seed",)


def test_turns() -> None:
    assert messages(
        Turn("system", [Text("be brief")]),
        Turn("user", [Text("a"), Text("b")]),
        Turn("assistant", [Reasoning("hm", Seal("s", "messages")), Text("c"), Refusal("d")]),
        Turn("system", [Text("x"), Text("y")]),
        Turn("user", [Text("e")]),
    ) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "c"},
                {"type": "text", "text": "d"},
            ],
        },
        {"role": "system", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "user", "content": "e"},
    ]


def test_tools_called_and_answered() -> None:
    assert messages(
        Turn("user", [Text("weather and time?")]),
        Turn(
            "assistant",
            [Reasoning("I look"), ToolCall("1", "get_weather", '{"a": 1.0}'), ToolCall("2", "get_time", "")],
        ),
        Turn("user", [ToolResult("1", [Text("sun")]), ToolResult("2", [Text("12"), Text("noon")]), Text("and?")]),
    )[1:] == [
        {
            "role": "assistant",
            "tool_plan": "I look",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"a": 1.0}'}},
                {"id": "2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        {
            "role": "tool",
            "tool_call_id": "2",
            "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "noon"}],
        },
        {"role": "user", "content": "and?"},
    ]


def test_result_without_text() -> None:
    assert messages(Turn("user", [ToolResult("1", [])])) == [{"role": "tool", "tool_call_id": "1", "content": ""}]


def test_foreign_parts_are_left_out() -> None:
    hidden = [Reasoning("", Seal("s", "messages"), is_redacted=True), Opaque(msgspec.Raw(b"{}"), "responses")]
    assert messages(Turn("user", [Text("a")]), Turn("assistant", [*hidden]), Turn("user", [Text("b")])) == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ]


def test_pictures() -> None:
    pictures = [
        Media("image", url="https://x/y.png", detail="low"),
        Media("image", data="AAAA", media_type="image/webp"),
        Media("image", data="iVBORw0KGgoAAAA="),
        Media("image", data="/9j/AAAA"),
    ]
    (message,) = messages(Turn("user", [Text("what?"), *pictures]))
    assert message["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/webp;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoAAAA="}},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/AAAA"}},
    ]


def test_one_picture_alone() -> None:
    (message,) = messages(Turn("user", [Media("image", url="https://x/y.png")]))
    assert message["content"] == [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]


@pytest.mark.parametrize(
    "turn",
    [
        Turn("user", [Media("audio", data="AAAA", media_type="audio/wav")]),
        Turn("user", [Media("document", url="https://x/y.pdf")]),
        Turn("user", [Media("image", file_id="file-1")]),
        Turn("user", [ToolResult("1", [Media("image", data="/9j/")])]),
        Turn("assistant", [Media("image", data="/9j/")]),
    ],
)
def test_media_that_cohere_does_not_take(turn: Turn) -> None:
    error = refused(request([turn]))
    assert error.code == "unsupported_by_endpoint" and error.param == "messages"


def test_picture_of_unknown_type() -> None:
    assert refused(request([Turn("user", [Media("image", data="AAAA")])])).param == "messages"


def test_several_choices() -> None:
    error = refused(request(n=2))
    assert error.code == "unsupported_by_endpoint" and error.param == "n"


def test_tools() -> None:
    sent, _ = written(request(tools=[WEATHER, CLOCK]))
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "tells the weather",
                "parameters": {"type": "object", "properties": {"a": {"type": "number", "minimum": 1.0}}},
            },
        },
        {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
    ]
    assert "tool_choice" not in sent and "strict_tools" not in sent


def test_number_formats_of_a_schema_stay() -> None:
    assert bytes(SCHEMA) in COHERE_WIRE.write_request(request(tools=[WEATHER]), "m", PLAIN).body


@pytest.mark.parametrize(
    ("choice", "word", "names"),
    [
        (ToolChoice("auto"), None, ["get_weather", "get_time"]),
        (ToolChoice("none"), "NONE", ["get_weather", "get_time"]),
        (ToolChoice("required"), "REQUIRED", ["get_weather", "get_time"]),
        (ToolChoice("required", ("get_time",)), "REQUIRED", ["get_time"]),
    ],
)
def test_tool_choice(choice: ToolChoice, word: str | None, names: list[str]) -> None:
    sent, _ = written(request(tools=[WEATHER, CLOCK], tool_choice=choice))
    assert sent.get("tool_choice") == word
    assert [tool["function"]["name"] for tool in sent["tools"]] == names


def test_demanded_tool_that_is_not_there() -> None:
    assert refused(request(tools=[CLOCK], tool_choice=ToolChoice("required", ("other",)))).param == "tool_choice"


def test_strict_tools() -> None:
    sent, dropped = written(request(tools=[Tool("a", strict=True), Tool("b", strict=True)]))
    assert sent["strict_tools"] is True and dropped == ()


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (OutputFormat("json"), {"type": "json_object"}),
        (
            OutputFormat("json_schema", msgspec.Raw(b'{"type":"object"}'), "n"),
            {"type": "json_object", "json_schema": {"type": "object"}},
        ),
    ],
)
def test_output_format(wanted: OutputFormat, sent: dict[str, Any]) -> None:
    assert written(request(output_format=wanted))[0]["response_format"] == sent


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (Thinking(), None),
        (Thinking(enabled=True), {"type": "enabled"}),
        (Thinking(effort="low"), {"type": "enabled"}),
        (Thinking(budget_tokens=500), {"type": "enabled", "token_budget": 500}),
        (Thinking(effort="high", budget_tokens=500), {"type": "enabled", "token_budget": 500}),
        (Thinking(budget_tokens=0), {"type": "disabled"}),
        (Thinking(effort="none"), {"type": "disabled"}),
        (Thinking(enabled=False, budget_tokens=500), {"type": "disabled"}),
    ],
)
def test_thinking(wanted: Thinking, sent: dict[str, Any] | None) -> None:
    assert written(request(thinking=wanted))[0].get("thinking") == sent


texts = st.builds(Text, st.text(min_size=1))
calls = st.builds(ToolCall, st.text(min_size=1), st.text(min_size=1), st.just('{"a":1}'))
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
    said = [part.text for turn in conversation for part in turn.parts if isinstance(part, Text)]
    called = [part.id for turn in conversation for part in turn.parts if isinstance(part, ToolCall)]
    answered = [part.call_id for turn in conversation for part in turn.parts if isinstance(part, ToolResult)]
    found = sent["messages"][1:]
    assert [call["id"] for message in found for call in message.get("tool_calls", [])] == called
    assert [message["tool_call_id"] for message in found if message["role"] == "tool"] == answered
    assert sorted(text for message in found if message["role"] != "tool" for text in texts_of(message)) == sorted(said)


def texts_of(message: dict[str, Any]) -> list[str]:
    content = message.get("content") or []
    return [content] if isinstance(content, str) else [item["text"] for item in content if item["type"] == "text"]
