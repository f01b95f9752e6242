"""Canonical requests, written for an upstream of this protocol."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.canonical import (
    Media,
    Opaque,
    OutputFormat,
    Part,
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
from gateway.config.rows import Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL, RESPONSES_WIRE
from tests.protocols.responses.sdk import check_request
from tests.protocols.responses.shapes import dropped, read, write

HI = [Turn("user", [Text("hi")])]
OBJECT = msgspec.Raw(b'{"type":"object","properties":{"a":{"type":"number"}}}')


def foreign(turns: list[Turn] | None = None, **fields: Any) -> Request:
    return Request(model="m", turns=HI if turns is None else turns, origin="chat", **fields)


def items(*parts: Part, role: Any = "assistant", **fields: Any) -> list[Any]:
    written = write(foreign([*HI, Turn(role, list(parts))]), **fields)
    check_request(written)
    return written["input"][1:]


def test_the_least_request() -> None:
    written = write(foreign(), model="served")
    assert written == {"model": "served", "input": [{"role": "user", "content": "hi"}], "store": False}
    assert write(foreign(stream=True))["stream"] is True
    assert RESPONSES_WIRE.target("a/b", stream=True) == "/responses"


def test_the_first_system_turn_is_instructions() -> None:
    later = Turn("system", [Text("c")])
    written = write(foreign([Turn("system", [Text("a"), Text("b")]), *HI, later]))
    assert written["instructions"] == "a\n\nb"
    assert written["input"] == [{"role": "user", "content": "hi"}, {"role": "system", "content": "c"}]
    developer = write(foreign([*HI, later]), Dialect(system_role="developer"))
    assert developer["input"][1]["role"] == "developer"
    alone = write(foreign([later]))
    assert alone["input"] == [{"role": "system", "content": "c"}] and "instructions" not in alone


def test_what_the_assistant_said() -> None:
    assert items(Text("a"), Text(""), Refusal("no")) == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "no"},
    ]
    assert items(ToolCall("c", "f", '{"a": 1.0}'), ToolCall("d", "g", "")) == [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1.0}'},
        {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{}"},
    ]


def test_only_own_seals_go_along() -> None:
    own, other = Seal("s", "responses"), Seal("s", "messages")
    call = ToolCall("c", "f", "{}", seal=Seal("g", "gemini"))
    written = items(Reasoning("why", own, "rs_1"), call)
    assert written[0] == {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "why"}],
        "encrypted_content": "s",
    }
    assert written[1] == {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert items(Reasoning("", own, is_redacted=True), Text("a"))[0]["summary"] == []
    assert items(Reasoning("why", other), Text("a")) == [{"role": "assistant", "content": "a"}]
    assert items(Reasoning("why"), Text("a")) == [{"role": "assistant", "content": "a"}]


def test_reasoning_needs_what_it_led_to() -> None:
    own = Reasoning("why", Seal("s", "responses"))
    assert items(own) == [] and items(Text("a"), own, own) == [{"role": "assistant", "content": "a"}]


def test_reasoning_in_plain_text_where_the_dialect_has_it() -> None:
    dialect = Dialect(reasoning_replay="reasoning_content")
    plain = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]}
    assert items(Reasoning("why"), Text("a"), dialect=dialect)[0] == plain
    assert items(Reasoning("why", Seal("s", "messages")), Text("a"), dialect=dialect)[0] == plain
    sealed = items(Reasoning("why", Seal("s", "responses")), Text("a"), dialect=dialect)[0]
    assert sealed == {**plain, "encrypted_content": "s"}


@pytest.mark.parametrize(
    ("model", "thinking", "asks"),
    [
        ("gpt-4o", None, False),
        ("gpt-4.1-mini", Thinking(effort="high"), False),
        ("gpt-5-chat-latest", None, False),
        ("gpt-5.2-chat-latest", None, False),
        ("chatgpt-4o-latest", None, False),
        ("my-deployment", None, False),
        ("my-deployment", Thinking(effort="none"), False),
        ("my-deployment", Thinking(effort="high"), True),
        ("my-deployment", Thinking(enabled=True), True),
        ("gpt-5-mini", None, True),
        ("openai/gpt-5.6-sol", None, True),
        ("openai.gpt-5.6-luna", None, True),
        ("openai.gpt-oss-20b", None, False),
        ("o3", None, True),
        ("o4-mini", None, True),
        ("grok-4.3", None, True),
    ],
)
def test_encrypted_reasoning_is_asked_of_models_that_reason(model: str, thinking: Any, asks: bool) -> None:
    written = write(foreign(thinking=thinking), model=model)
    assert (written.get("include") == ["reasoning.encrypted_content"]) is asks


def test_a_sealed_history_asks_for_more() -> None:
    turn = Turn("assistant", [Reasoning("", Seal("s", "responses"), is_redacted=True), Text("a")])
    assert write(foreign([*HI, turn]), model="mine")["include"] == ["reasoning.encrypted_content"]


@pytest.mark.parametrize(
    ("thinking", "reasoning", "lost"),
    [
        (Thinking(effort="xhigh"), {"effort": "xhigh"}, ()),
        (Thinking(effort="none"), {"effort": "none"}, ()),
        (Thinking(enabled=True), {"effort": "medium"}, ()),
        (Thinking(enabled=True, budget_tokens=1024), {"effort": "low"}, ()),
        (Thinking(budget_tokens=8000), {"effort": "medium"}, ()),
        (Thinking(budget_tokens=32000), {"effort": "high"}, ()),
        (Thinking(summary="detailed"), {"summary": "detailed"}, ()),
        (Thinking(enabled=False), None, ("thinking",)),
    ],
)
def test_thinking(thinking: Thinking, reasoning: Any, lost: tuple[str, ...]) -> None:
    request = foreign(thinking=thinking)
    assert write(request).get("reasoning") == reasoning and dropped(request) == lost


def test_thinking_is_not_asked_of_models_that_cannot() -> None:
    request = foreign(thinking=Thinking(effort="high"))
    for model, dialect in (("gpt-4o", Dialect()), ("any", Dialect(thinking="none"))):
        assert "reasoning" not in write(request, dialect, model)
        assert dropped(request, dialect, model) == ("thinking",)


def test_contents() -> None:
    png = Media("image", data="AAAA", media_type="image/png", detail="low")
    documents = [
        Media("document", data="BB", media_type="application/pdf", name="a.pdf"),
        Media("document", data="BB", media_type="text/plain"),
        Media("document", data="BB"),
        Media("document", url="https://x", name="a.pdf"),
        Media("document", file_id="f"),
    ]
    pictures = [png, Media("image", url="https://x"), Media("image", file_id="f"), Media("image", data="CC")]
    (item,) = items(Text("see"), *pictures, *documents, role="user")
    assert item["content"] == [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "detail": "low", "image_url": "data:image/png;base64,AAAA"},
        {"type": "input_image", "detail": "auto", "image_url": "https://x"},
        {"type": "input_image", "detail": "auto", "file_id": "f"},
        {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,CC"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,BB"},
        {"type": "input_file", "filename": "document.txt", "file_data": "data:text/plain;base64,BB"},
        {"type": "input_file", "filename": "document.pdf", "file_data": "data:application/pdf;base64,BB"},
        {"type": "input_file", "file_url": "https://x"},
        {"type": "input_file", "file_id": "f"},
    ]
    audio = write(foreign([Turn("user", [Media("audio", data="DD", media_type="audio/mpeg")])]))
    assert audio["input"][0]["content"] == [{"type": "input_audio", "input_audio": {"data": "DD", "format": "mp3"}}]


def test_results_come_before_what_is_said() -> None:
    picture = Media("image", data="AAAA", media_type="image/png")
    results = [ToolResult("c", [Text("sunny")], "f"), ToolResult("d", []), ToolResult("e", [Text("a"), picture])]
    assert items(*results, Text("and?"), role="user") == [
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        {"type": "function_call_output", "call_id": "d", "output": ""},
        {
            "type": "function_call_output",
            "call_id": "e",
            "output": [
                {"type": "input_text", "text": "a"},
                {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAAA"},
            ],
        },
        {"role": "user", "content": "and?"},
    ]


def test_tools() -> None:
    tools = [Tool("f", "d", OBJECT, True), Tool("g")]
    written = write(foreign(tools=tools, parallel_tool_calls=False))
    check_request(written)
    assert written["parallel_tool_calls"] is False
    assert written["tools"] == [
        {"type": "function", "name": "f", "description": "d", "parameters": json.loads(bytes(OBJECT)), "strict": True},
        {
            "type": "function",
            "name": "g",
            "description": None,
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
            "strict": False,
        },
    ]
    assert read(tools=[{"type": "function", "name": "g"}]).tools[0].strict is None
    assert write(read(tools=[{"type": "function", "name": "g"}]))["tools"][0]["strict"] is None


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice("auto"), "auto"),
        (ToolChoice("none"), "none"),
        (ToolChoice("required"), "required"),
        (ToolChoice("required", ("f",)), {"type": "function", "name": "f"}),
        (
            ToolChoice("required", ("f", "g")),
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}],
            },
        ),
    ],
)
def test_choice_of_a_tool(choice: ToolChoice, expected: Any) -> None:
    written = write(foreign(tools=[Tool("f"), Tool("g")], tool_choice=choice))
    check_request(written)
    assert written["tool_choice"] == expected
    assert "tool_choice" not in write(foreign(tool_choice=choice))


def test_the_word_for_a_demand_is_the_dialects() -> None:
    request = foreign(tools=[Tool("f")], tool_choice=ToolChoice("required"))
    assert write(request, Dialect(demand_word="any"))["tool_choice"] == "any"


def test_formats() -> None:
    def written(output: OutputFormat, **fields: Any) -> Any:
        found = write(foreign(output_format=output, **fields))
        check_request(found)
        return found["text"]

    assert written(OutputFormat("json")) == {"format": {"type": "json_object"}}
    schema = json.loads(bytes(OBJECT))
    assert written(OutputFormat("json_schema", OBJECT)) == {
        "format": {"type": "json_schema", "name": "answer", "schema": schema}
    }
    assert written(OutputFormat("json_schema", OBJECT, "n", "d", True), verbosity="low") == {
        "format": {"type": "json_schema", "name": "n", "schema": schema, "description": "d", "strict": True},
        "verbosity": "low",
    }


def test_settings() -> None:
    written = write(
        foreign(
            max_output_tokens=99,
            temperature=0.5,
            top_p=0.9,
            logprobs=True,
            top_logprobs=3,
            service_tier="flex",
            user="u",
            metadata={"a": "b"},
            prompt_cache_key="k",
        )
    )
    check_request(written)
    assert {name: value for name, value in written.items() if name not in ("model", "input", "store")} == {
        "max_output_tokens": 99,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_logprobs": 3,
        "include": ["message.output_text.logprobs"],
        "service_tier": "flex",
        "user": "u",
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
    }


def test_a_limit_is_at_least_sixteen() -> None:
    assert write(foreign(max_output_tokens=1))["max_output_tokens"] == 16
    assert write(read(max_output_tokens=1))["max_output_tokens"] == 1  # the client speaks this protocol itself


def test_what_has_no_place_is_named() -> None:
    request = foreign(
        seed=1,
        logit_bias={"1": 2},
        top_k=3,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=1,
        service_tier="standard_only",
    )
    assert set(dropped(request)) == {
        "seed", "logit_bias", "top_k", "min_p", "presence_penalty", "frequency_penalty", "service_tier",
    }  # fmt: skip
    assert set(write(request)) == {"model", "input", "store"}
    turn = Turn("user", [ToolResult("c", [Text("x")], is_error=True), Text("a", cache="1h")], name="bob")
    assert set(dropped(foreign([turn], tools=[Tool("f", cache="5m")]))) == {"is_error", "cache", "name"}
    assert dropped(foreign([*HI, Turn("assistant", [Media("image", data="AA")])])) == ("media",)
    assert dropped(foreign()) == ()


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (foreign(n=2), "n"),
        (foreign(stop=["x"]), "stop"),
        (foreign([Turn("user", [Media("video", data="AA", media_type="video/mp4")])]), "video"),
        (foreign([Turn("user", [Media("audio", url="https://x")])]), "audio"),
        (foreign([Turn("user", [ToolResult("c", [Media("audio", data="AA")])])]), "audio"),
    ],
)
def test_what_cannot_be_said(request_: Request, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        write(request_)
    assert (raised.value.code, raised.value.param) == ("unsupported_by_endpoint", param)


def test_the_dialect_is_spoken() -> None:
    request = foreign(temperature=1.0, user="u", thinking=Thinking(effort="low"), logprobs=True, top_logprobs=2)
    dialect = Dialect(unsupported=("temperature", "reasoning", "logprobs", "top_logprobs"), rename={"user": "end_user"})
    written = write(request, dialect)
    assert written["end_user"] == "u" and not written.keys() & {"temperature", "reasoning", "user", "top_logprobs"}
    assert "message.output_text.logprobs" not in written.get("include", [])
    assert dropped(request, dialect) == ("temperature", "thinking", "top_logprobs")
    assert "store" not in write(request, Dialect(unsupported=("store",)))
    assert dropped(request, Dialect(unsupported=("store", "include"))) == ()


def test_extra_goes_back_to_its_own_protocol_only() -> None:
    fields = {"truncation": "auto", "store": True, "tools": [{"type": "web_search"}], "include": ["a.b"]}
    request = read(**fields, reasoning={"effort": "low", "context": "all_turns"})
    written = write(request)
    assert written["truncation"] == "auto" and written["store"] is True and written["tools"] == fields["tools"]
    assert written["reasoning"] == {"effort": "low", "context": "all_turns"}
    assert written["include"] == ["a.b", "reasoning.encrypted_content"]
    assert "x" not in write(foreign(extra={"x": msgspec.Raw(b"1")}))


def test_opaque_parts_go_back_to_their_own_protocol_only() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"a": 1}}
    shell = {"type": "shell_call_output", "call_id": "c", "output": []}
    video = {"type": "input_video", "video": "x"}
    given = [search, shell, {"role": "user", "content": [video]}, {"role": "assistant", "content": "a"}]
    assert write(read(input=given))["input"] == given
    other = Opaque(msgspec.Raw(b'{"type":"server_tool_use"}'), "messages")
    assert items(other, Text("a")) == [{"role": "assistant", "content": "a"}]


def test_cache_marks_go_back_to_their_own_protocol_only() -> None:
    marked = {"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
    plain = {"type": "input_text", "text": "b", "prompt_cache_breakpoint": {"mode": "explicit"}}
    given = [{"role": "user", "content": [marked, plain]}]
    assert write(read(input=given))["input"] == given
    request = foreign([Turn("user", [Text("a", cache="5m")])])
    assert write(request)["input"] == [{"role": "user", "content": "a"}] and dropped(request) == ("cache",)
    several = foreign([Turn("user", [Text("a", cache="5m"), Text("b")])])
    assert "prompt_cache_breakpoint" not in json.dumps(write(several)) and dropped(several) == ("cache",)


TEXTS = st.text(min_size=1, max_size=8)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "user": st.lists(
        st.builds(Text, TEXTS)
        | st.builds(lambda data: Media("image", data=data, media_type="image/png"), st.just("AAAA")),
        min_size=1,
        max_size=3,
    ),
    "assistant": st.lists(
        st.builds(Text, TEXTS)
        | st.builds(ToolCall, TEXTS, TEXTS, st.just('{"a":1}'))
        | st.builds(lambda text: Reasoning(text, Seal("s", "responses")), TEXTS),
        min_size=1,
        max_size=4,
    ),
}


@given(st.lists(st.sampled_from(["user", "assistant"]).flatmap(lambda role: PARTS[role].map(lambda p: Turn(role, p)))))  # type: ignore[arg-type]
def test_a_conversation_survives(turns: list[Turn]) -> None:
    request = foreign([*HI, *turns])
    body = RESPONSES_WIRE.write_request(request, "m", Dialect()).body
    again = RESPONSES_PROTOCOL.read_request(body)
    assert _said(again.turns) == _said(request.turns)


def _said(turns: list[Turn]) -> list[Any]:
    """All parts in order, but for reasoning that nothing follows; what is said in one turn may be in several."""
    said: list[Any] = []
    for turn in turns:
        parts = list(turn.parts)
        while parts and isinstance(parts[-1], Reasoning):
            parts.pop()
        for part in parts:
            said.append((turn.role, replace(part, detail="auto") if isinstance(part, Media) else part))
    return said
