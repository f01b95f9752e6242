"""A canonical request as it is sent upstream: valid by OpenAI's own types, and in each provider's dialect."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.chat.wire import CHAT_PROTOCOL, CHAT_WIRE
from tests.protocols.chat.dialects import dialect_of
from tests.protocols.chat.events import write
from tests.protocols.chat.sdk import check_request
from tests.recordings import Recording, recordings

OPENROUTER = Dialect(thinking="object", reasoning_replay="reasoning_details", cache_marks=True)
SCHEMA = msgspec.Raw(b'{"type":"object","x":1.50}')
CALLED = (ToolCall("1", "f", ""), ToolCall("2", "g", "{}"))
PNG = "iVBORw0KGgoAAAANSUhEUg=="


def ask(*turns: Turn, **fields: Any) -> Request:
    said = turns or (Turn("user", [Text("hi")]),)
    return Request(**{"model": "m", "turns": list(said), "origin": "messages", **fields})


def dropped(request: Request, dialect: Dialect = PLAIN) -> tuple[str, ...]:
    return CHAT_WIRE.write_request(request, "served", dialect).dropped


def messages_of(*turns: Turn, dialect: Dialect = PLAIN) -> Any:
    sent = write(ask(*turns), dialect)
    if dialect == PLAIN:
        check_request(sent)
    return sent["messages"]


def test_the_least() -> None:
    sent = write(ask())
    check_request(sent)
    assert sent == {"model": "served", "messages": [{"role": "user", "content": "hi"}]}
    streamed = write(ask(stream=True, include_usage=False))
    check_request(streamed)
    assert (streamed["stream"], streamed["stream_options"]) == (True, {"include_usage": True})
    assert "stream_options" not in write(ask(stream=True), Dialect(stream_usage="always"))


def test_a_conversation() -> None:
    assert messages_of(
        Turn("system", [Text("be brief")]),
        Turn("user", [Text("hi")], "bob"),
        Turn("assistant", [Reasoning("hm"), Text("one "), Text("moment"), *CALLED]),
        Turn("user", [ToolResult("1", [Text("done")]), ToolResult("2", [], is_error=True), Text("and?")]),
        Turn("assistant", [Refusal("no")]),
        Turn("assistant", []),
        Turn("user", []),
    ) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "name": "bob", "content": "hi"},
        {
            "role": "assistant",
            "content": "one moment",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "tool", "tool_call_id": "2", "content": ""},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": ""},
    ]


def test_the_role_of_system_prompts() -> None:
    turn = Turn("system", [Text("x")])
    assert messages_of(turn, dialect=Dialect(system_role="developer"))[0]["role"] == "developer"


def test_pictures_that_a_tool_returned_are_shown_by_the_user() -> None:
    result = ToolResult("1", [Text("see"), Media("image", data=PNG, media_type="image/png")])
    assert messages_of(Turn("user", [result, ToolResult("2", [Text("x")]), Text("well?")])) == [
        {"role": "tool", "tool_call_id": "1", "content": "see"},
        {"role": "tool", "tool_call_id": "2", "content": "x"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "text", "text": "well?"},
            ],
        },
    ]


def test_several_texts_stay_several() -> None:
    texts: list[Part] = [Text("a"), Text("b")]
    for role in ("system", "user"):
        (message,) = messages_of(Turn(role, texts))  # type: ignore[arg-type]  # one of the roles
        assert message["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (Media("image", url="https://x/y"), {"type": "image_url", "image_url": {"url": "https://x/y"}}),
        (
            Media("image", data=PNG, detail="low"),
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
        ),
        (
            Media("image", data="/9j/4AAQ"),
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}},
        ),
        (
            Media("audio", data="AAAA", media_type="audio/mpeg"),
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        ),
        (
            Media("audio", data="AAAA", media_type="audio/x-wav"),
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        ),
        (Media("document", file_id="file-1"), {"type": "file", "file": {"file_id": "file-1"}}),
        (
            Media("document", data="JVBE", media_type="application/pdf", name="a.pdf"),
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
        ),
        (
            Media("document", data="JVBE"),
            {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
        ),
        (
            Media("document", data=base64.b64encode("grüß".encode()).decode(), media_type="text/plain"),
            {"type": "text", "text": "grüß"},
        ),
    ],
)
def test_media(media: Media, expected: Any) -> None:
    (message,) = messages_of(Turn("user", [media, Text("see")]))
    assert message["content"] == [expected, {"type": "text", "text": "see"}]


def test_media_beyond_openai() -> None:
    (message,) = write(ask(Turn("user", [Media("video", url="https://x/y.mp4")])))["messages"]
    assert message["content"] == [{"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}]
    with pytest.raises(InvalidRequest) as caught:
        write(ask(Turn("user", [Media("audio", url="https://x/y.mp3")])))
    assert (caught.value.code, caught.value.param) == ("unsupported_by_endpoint", "messages")


# Reasoning and seals

OWN = Seal('{"type":"reasoning.text","signature":"s","format":"f"}', "chat")
THOUGHTS = [
    Reasoning("a", OWN),
    Reasoning("b"),
    Reasoning("c", Seal("Sig", "messages")),
    Reasoning("", Seal('{"type":"reasoning.encrypted","data":"d","id":"1"}', "chat"), is_redacted=True),
    Reasoning("", Seal("x", "responses"), is_redacted=True),
]


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        (None, {}),
        ("reasoning", {"reasoning": "abc"}),
        ("reasoning_content", {"reasoning_content": "abc"}),
        (
            "reasoning_details",
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "signature": "s", "format": "f", "text": "a", "index": 0},
                    {"type": "reasoning.text", "text": "b", "index": 1},
                    {"type": "reasoning.encrypted", "data": "d", "id": "1", "index": 2},
                ]
            },
        ),
    ],
)
def test_reasoning_goes_back_as_the_provider_takes_it(replay: Any, expected: Any) -> None:
    (message,) = messages_of(Turn("assistant", [*THOUGHTS, Text("x")]), dialect=Dialect(reasoning_replay=replay))
    assert message == {"role": "assistant", "content": "x", **expected}


def test_a_seal_goes_to_its_origin_only() -> None:
    calls = [ToolCall("1", "f", "{}", Seal("own", "chat")), ToolCall("2", "f", "{}", Seal("g", "gemini"))]
    (message,) = messages_of(Turn("assistant", list(calls)))
    first, second = message["tool_calls"]
    assert first["extra_content"] == {"google": {"thought_signature": "own"}}
    assert "extra_content" not in second
    text = json.dumps(write(ask(Turn("assistant", [*THOUGHTS, *calls])), OPENROUTER))
    assert "Sig" not in text and "hatchway" not in text


def test_blocks_of_other_protocols_are_left_out() -> None:
    own, other = Opaque(msgspec.Raw(b'{"type":"x","a":1}'), "chat"), Opaque(msgspec.Raw(b'{"b":1}'), "messages")
    custom = Opaque(msgspec.Raw(b'{"id":"1","type":"custom","custom":{"name":"c","input":""}}'), "chat")
    sent = write(ask(Turn("user", [own, other]), Turn("assistant", [other, Text("x"), custom])))
    assert sent["messages"][0]["content"] == [{"type": "x", "a": 1}]
    assert sent["messages"][1]["content"] == "x"
    assert [call["type"] for call in sent["messages"][1]["tool_calls"]] == ["custom"]


def test_cache_marks_stand_where_they_are_understood() -> None:
    request = ask(
        Turn("system", [Text("x", cache="1h")]),
        Turn("user", [ToolResult("1", [Text("y")], cache="5m"), Text("z", cache="5m")]),
        tools=[Tool("f", cache="5m")],
        cache="5m",
    )
    sent = write(request, OPENROUTER)
    mark = {"type": "ephemeral"}
    assert sent["cache_control"] == sent["tools"][0]["cache_control"] == mark
    assert [message["content"] for message in sent["messages"]] == [
        [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        [{"type": "text", "text": "y", "cache_control": mark}],
        [{"type": "text", "text": "z", "cache_control": mark}],
    ]
    assert dropped(request, OPENROUTER) == ()
    plain = write(request)
    check_request(plain)
    assert "cache_control" not in json.dumps(plain)
    assert [message["content"] for message in plain["messages"]] == ["x", "y", "z"]
    assert dropped(request) == ("cache",)


# Settings


@pytest.mark.parametrize(
    ("thinking", "form", "expected", "lost"),
    [
        (Thinking(effort="high"), "effort", {"reasoning_effort": "high"}, ()),
        (Thinking(enabled=False), "effort", {"reasoning_effort": "none"}, ()),
        (Thinking(enabled=True), "effort", {}, ()),
        (Thinking(budget_tokens=1024, summary="auto"), "effort", {"reasoning_effort": "low"}, ("thinking.summary",)),
        (Thinking(budget_tokens=10_000), "effort", {"reasoning_effort": "medium"}, ()),
        (Thinking(budget_tokens=60_000), "effort", {"reasoning_effort": "high"}, ()),
        (Thinking(budget_tokens=0), "effort", {"reasoning_effort": "none"}, ()),
        (Thinking(effort="high"), "object", {"reasoning": {"effort": "high"}}, ()),
        (Thinking(budget_tokens=9, effort="high"), "object", {"reasoning": {"max_tokens": 9}}, ()),
        (Thinking(enabled=True), "object", {"reasoning": {"enabled": True}}, ()),
        (Thinking(effort="none"), "object", {"reasoning": {"enabled": False}}, ()),
        (Thinking(budget_tokens=9), "enable", {"enable_thinking": True, "thinking_budget": 9}, ()),
        (Thinking(effort="low"), "enable", {"enable_thinking": True}, ("thinking.effort",)),
        (Thinking(effort="none"), "enable", {"enable_thinking": False}, ()),
        (
            Thinking(effort="low", budget_tokens=9),
            "switch",
            {"thinking": {"type": "enabled"}, "reasoning_effort": "low"},
            ("thinking.budget_tokens",),
        ),
        (Thinking(enabled=False), "switch", {"thinking": {"type": "disabled"}}, ()),
        (Thinking(effort="low"), "none", {}, ("thinking",)),
        (Thinking(effort="none"), "none", {}, ()),
    ],
)
def test_thinking(thinking: Thinking, form: Any, expected: dict[str, Any], lost: tuple[str, ...]) -> None:
    dialect = Dialect(thinking=form)
    sent = write(ask(thinking=thinking), dialect)
    del sent["model"], sent["messages"]
    assert sent == expected
    assert dropped(ask(thinking=thinking), dialect) == lost


def test_models_that_think_in_streams_only() -> None:
    dialect = Dialect(thinking="enable", thinking_streams=True)
    asks = ask(thinking=Thinking(effort="high"))
    assert write(asks, dialect)["enable_thinking"] is False
    assert dropped(asks, dialect) == ("thinking",)
    assert write(ask(), dialect)["enable_thinking"] is False
    assert dropped(ask(), dialect) == ()
    assert "enable_thinking" not in write(ask(stream=True), dialect)
    assert write(ask(stream=True, thinking=Thinking(effort="high")), dialect)["enable_thinking"] is True


def test_tools() -> None:
    tools = [Tool("f", "d", SCHEMA, True), Tool("bare")]
    sent = write(ask(tools=tools, parallel_tool_calls=False, tool_choice=ToolChoice("required")))
    check_request(sent)
    assert [tool["type"] for tool in sent["tools"]] == ["function", "function"]
    assert [tool["function"] for tool in sent["tools"]] == [
        {"name": "f", "description": "d", "parameters": json.loads(bytes(SCHEMA)), "strict": True},
        {"name": "bare", "parameters": {"type": "object", "properties": {}}},
    ]
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", False)
    raw = CHAT_WIRE.write_request(ask(tools=tools), "m", PLAIN).body
    assert b'"parameters":{"type":"object","x":1.50}' in raw
    assert "tool_choice" not in write(ask(tool_choice=ToolChoice("required")))


def named(*names: str) -> list[Any]:
    return [{"type": "function", "function": {"name": name}} for name in names]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ToolChoice("auto"), "auto"),
        (ToolChoice("none"), "none"),
        (ToolChoice("required"), "required"),
        (ToolChoice("required", ("f",)), named("f")[0]),
        (
            ToolChoice("required", ("f", "g")),
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named("f", "g")}},
        ),
        (
            ToolChoice("auto", ("f",)),
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": named("f")}},
        ),
    ],
)
def test_tool_choice(choice: ToolChoice, expected: Any) -> None:
    sent = write(ask(tools=[Tool("f"), Tool("g")], tool_choice=choice))
    check_request(sent)
    assert sent["tool_choice"] == expected


def test_a_choice_in_dialect() -> None:
    tools = [Tool("f"), Tool("g"), Tool("h")]
    mistral = Dialect(demand_word="any", unsupported=("allowed_tools",))
    assert write(ask(tools=tools, tool_choice=ToolChoice("required")), mistral)["tool_choice"] == "any"
    sent = write(ask(tools=tools, tool_choice=ToolChoice("required", ("f", "g"))), mistral)
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["f", "g"]
    assert sent["tool_choice"] == "any"
    sent = write(ask(tools=tools, tool_choice=ToolChoice("auto", ("h",))), mistral)
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["h"]
    assert sent["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (OutputFormat("json"), {"type": "json_object"}),
        (OutputFormat("json_schema"), {"type": "json_object"}),
        (
            OutputFormat("json_schema", SCHEMA, "n", "d", True),
            {
                "type": "json_schema",
                "json_schema": {
                    "name": "n",
                    "schema": {"type": "object", "x": 1.5},
                    "description": "d",
                    "strict": True,
                },
            },
        ),
        (
            OutputFormat("json_schema", SCHEMA),
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object", "x": 1.5}}},
        ),
    ],
)
def test_output_format(wanted: OutputFormat, expected: Any) -> None:
    sent = write(ask(output_format=wanted))
    check_request(sent)
    assert sent["response_format"] == expected


SETTINGS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "presence_penalty": 1.5,
    "frequency_penalty": -1.5,
    "seed": 7,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "logit_bias": {"50256": -100},
    "stop": ["a"],
    "user": "u",
    "prompt_cache_key": "k",
    "verbosity": "low",
    "top_k": 40,
    "min_p": 0.1,
}


def test_every_setting() -> None:
    sent = write(ask(max_output_tokens=9, **SETTINGS))
    check_request(sent)
    assert sent.pop("max_completion_tokens") == 9
    del sent["model"], sent["messages"]
    assert sent == SETTINGS
    assert write(ask(max_output_tokens=9), Dialect(limit_name="max_tokens"))["max_tokens"] == 9


def test_what_the_provider_refuses_is_left_out_and_said() -> None:
    request = ask(seed=7, top_k=40, max_output_tokens=9, thinking=Thinking(effort="low"), stream=True)
    refused = ("seed", "top_k", "reasoning_effort", "max_completion_tokens", "stream_options", "verbosity")
    dialect = Dialect(unsupported=refused)
    sent = write(request, dialect)
    assert sent == {"model": "served", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    assert dropped(request, dialect) == ("max_output_tokens", "seed", "thinking", "top_k")
    renamed = write(ask(seed=7), Dialect(rename={"seed": "random_seed"}))
    assert renamed["random_seed"] == 7 and "seed" not in renamed


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("n", {"n": 2}),
        ("tools", {"tools": [Tool("f")]}),
        ("response_format", {"output_format": OutputFormat("json")}),
        ("logprobs", {"logprobs": True}),
    ],
)
def test_what_would_change_the_answer_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        write(ask(**fields), Dialect(unsupported=(field,)))
    assert (caught.value.code, caught.value.param) == ("unsupported_by_endpoint", field)


@pytest.mark.parametrize(
    ("origin", "tier", "expected"),
    [
        ("messages", "standard_only", "default"),
        ("messages", "auto", "auto"),
        ("responses", "flex", "flex"),
        ("messages", "odd", None),
        ("chat", "odd", "odd"),
    ],
)
def test_service_tiers(origin: Any, tier: str, expected: str | None) -> None:
    request = ask(service_tier=tier, origin=origin)
    assert write(request).get("service_tier") == expected
    assert dropped(request) == (() if expected else ("service_tier",))


def test_fields_of_other_protocols_stay_there() -> None:
    request = ask(extra={"container": msgspec.Raw(b'"c"')}, metadata={"a": "b"})
    assert set(write(request)) == {"model", "messages"}
    assert dropped(request) == ("container", "metadata")
    own = ask(extra={"container": msgspec.Raw(b'"c"')}, metadata={"a": "b"}, origin="chat")
    assert write(own)["container"] == "c" and write(own)["metadata"] == {"a": "b"}
    assert dropped(own) == ()


def test_half_a_character_is_the_client_s_mistake() -> None:
    with pytest.raises(InvalidRequest):
        write(ask(Turn("user", [Text("\ud83d")])))


# Both ways


@pytest.mark.parametrize("recording", recordings("openai.chat", ok=None))
def test_a_recorded_request_survives_the_way_through(recording: Recording) -> None:
    if recording.request is None:
        return
    asked = {name: value for name, value in recording.request.items() if value is not None}
    dialect = dialect_of(recording.provider)
    canonical = CHAT_PROTOCOL.read_request(json.dumps(asked).encode())
    written = CHAT_WIRE.write_request(canonical, asked["model"], dialect)
    sent = json.loads(written.body)
    assert set(written.dropped) <= {"cache", "thinking.budget_tokens"}
    names = set(asked) - {"messages", "tools", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n"}
    thinking = {"reasoning", "reasoning_effort", "enable_thinking", "thinking"}
    for name in names - thinking - {"tool_choice", "response_format"}:
        assert sent.get(dialect.rename.get(name, name)) == (
            [asked[name]] if name == "stop" and isinstance(asked[name], str) else asked[name]
        )
    assert bool(names & thinking) <= bool(set(sent) & thinking)
    functions = [tool["function"] for tool in asked.get("tools") or () if "function" in tool]
    names_sent = [tool["function"]["name"] for tool in sent.get("tools") or () if "function" in tool]
    assert names_sent == [function["name"] for function in functions]
    assert len(sent.get("tools") or ()) == len(asked.get("tools") or ())
    again = CHAT_PROTOCOL.read_request(written.body)
    assert [turn.role for turn in again.turns] == [turn.role for turn in canonical.turns]
    assert words_of(again) == words_of(canonical)
    assert media_of(again) == [
        media if media.kind != "document" else msgspec.structs.replace(media, name=media.name or "document")
        for media in media_of(canonical)
    ]
    assert again.tool_choice == canonical.tool_choice
    assert again.tools == [
        tool if dialect.cache_marks else msgspec.structs.replace(tool, cache=None) for tool in canonical.tools
    ]
    wanted = canonical.output_format
    if wanted is not None and wanted.schema is not None:  # OpenAI demands a name
        wanted = msgspec.structs.replace(wanted, name=wanted.name or "answer")
    assert again.output_format == wanted


def words_of(request: Request) -> list[str]:
    """Texts and calls, joined where they follow one another."""
    found: list[str] = []
    for turn in request.turns:
        found.append(turn.role)
        for part in turn.parts:
            if isinstance(part, Text):
                found[-1] += part.text
            elif isinstance(part, ToolCall):
                found.append(f"{part.id} {part.name} {part.arguments or '{}'}")
            elif isinstance(part, ToolResult):
                found.append(part.call_id + "".join(text.text for text in part.parts if isinstance(text, Text)))
            elif isinstance(part, Reasoning) and part.seal is not None:
                found.append(f"{part.text} {part.seal}")
    return found


def media_of(request: Request) -> list[Media]:
    found: list[Media] = []
    for turn in request.turns:
        for part in turn.parts:
            if isinstance(part, ToolResult):
                found += [media for media in part.parts if isinstance(media, Media)]
            elif isinstance(part, Media):
                found.append(part)
    return found


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
IDS = st.text("abc123_", min_size=1, max_size=6)
DATA = st.binary(min_size=1, max_size=9).map(lambda data: base64.b64encode(data).decode())
MEDIA = st.one_of(
    st.builds(
        Media, st.just("image"), data=DATA, media_type=st.just("image/png"), detail=st.sampled_from([None, "low"])
    ),
    st.builds(Media, st.just("image"), url=st.just("https://x/y.png")),
    st.builds(Media, st.just("audio"), data=DATA, media_type=st.sampled_from(["audio/wav", "audio/mpeg"])),
    st.builds(Media, st.just("document"), data=DATA, media_type=st.just("application/pdf"), name=st.just("a.pdf")),
    st.builds(Media, st.just("document"), file_id=IDS),
)
SAID = st.builds(Text, TEXTS)
CALLS = st.builds(ToolCall, IDS, IDS, st.just("{}") | TEXTS.map(lambda text: json.dumps({"a": text})))
TURNS = st.one_of(
    st.builds(Turn, st.just("system"), st.lists(SAID, min_size=1, max_size=2), st.none() | IDS),
    st.builds(Turn, st.just("user"), st.lists(SAID | MEDIA, min_size=1, max_size=3), st.none() | IDS),
    st.builds(
        lambda parts, calls: Turn("assistant", [*parts, *calls]),
        st.lists(SAID, max_size=1),
        st.lists(CALLS, max_size=2),
    ),
)
TOOLS = st.builds(Tool, IDS, st.none() | TEXTS, st.just(SCHEMA), st.sampled_from([None, True]))
NUMBERS = st.none() | st.floats(0, 2)


@given(
    request=st.builds(
        Request,
        model=st.just("m"),
        turns=st.lists(TURNS, min_size=1, max_size=5),
        stream=st.just(True),
        include_usage=st.just(True),
        tools=st.lists(TOOLS, min_size=1, max_size=2),
        tool_choice=st.none() | st.sampled_from([ToolChoice("auto"), ToolChoice("required", ("f",))]),
        output_format=st.none() | st.just(OutputFormat("json_schema", SCHEMA, "n")),
        thinking=st.none() | st.builds(Thinking, effort=st.sampled_from(["none", "low", "xhigh"])),
        max_output_tokens=st.none() | st.integers(1, 9999),
        temperature=NUMBERS,
        top_p=NUMBERS,
        seed=st.none() | st.integers(0, 9),
        stop=st.lists(TEXTS, max_size=2),
        n=st.integers(1, 3),
        user=st.none() | TEXTS,
        service_tier=st.none() | st.just("flex"),
        extra=st.dictionaries(st.just("zzz"), st.just(msgspec.Raw(b"1.50"))),
        origin=st.just("chat"),
    )
)
def test_what_is_written_is_read_back(request: Request) -> None:
    body = CHAT_WIRE.write_request(request, "m", PLAIN).body
    check_request(json.loads(body))
    assert CHAT_PROTOCOL.read_request(body) == request
