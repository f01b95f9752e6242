"""Requests, checked against the types of Google's client."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
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
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest
from gateway.protocols.gemini.calls import make_id
from gateway.protocols.gemini.models import generation, resource, target
from gateway.protocols.gemini.request import write_count_request
from gateway.protocols.gemini.step import FOREIGN_SIGNATURE
from gateway.protocols.gemini.wire import GEMINI_WIRE, count_target
from tests.protocols.gemini.asked import read_request
from tests.protocols.gemini.sdk import written

NEW, OLD = "gemini-3-flash-preview", "gemini-2.5-flash"
OWN, FOREIGN = Seal("sig", "gemini"), Seal("sig", "messages")
HELLO = Turn("user", [Text("hello")])


def ask(*turns: Turn, **more: Any) -> Request:
    return Request(model="asked", origin="chat", turns=list(turns) or [HELLO], **more)


def contents(*turns: Turn, model: str = OLD) -> list[Any]:
    return written(ask(*turns), model)["contents"]


def dropped(request: Request, model: str = OLD, dialect: Dialect = PLAIN) -> tuple[str, ...]:
    return GEMINI_WIRE.write_request(request, model, dialect).dropped


# Models


def test_targets() -> None:
    assert GEMINI_WIRE.target("gemini-2.5-flash", stream=False) == "/models/gemini-2.5-flash:generateContent"
    assert GEMINI_WIRE.target("a", stream=True) == "/models/a:streamGenerateContent?alt=sse"
    assert target("models/a", "x") == "/models/a:x" and target("tunedModels/b c", "x") == "/tunedModels/b%20c:x"
    assert target("publishers/google/models/a", "x") == "/publishers/google/models/a:x"
    assert count_target("a?b") == "/models/a%3Fb:countTokens"
    for hostile in ("models/../../secret", "models//x", "other/x", "../x"):
        assert target(hostile, "x") == "/models/" + hostile.replace("/", "%2F") + ":x"
    assert (resource("a"), resource("models/a")) == ("models/a", "models/a")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gemini-1.5-pro", "none"),
        ("gemini-2.0-flash-001", "none"),
        ("gemma-3-27b-it", "none"),
        ("endpoints/1234567890", "none"),
        ("gemini-2.5-flash-lite", "budget"),
        ("gemini-robotics-er-1.5-preview", "budget"),
        ("publishers/google/models/gemini-2.5-pro", "budget"),
        ("gemini-3-pro-preview", "level"),
        ("models/gemini-3.5-flash", "level"),
        ("gemini-12-flash", "level"),
        ("gemini-flash-latest", "level"),
    ],
)
def test_generation(model: str, expected: str) -> None:
    assert generation(model) == expected


# Turns


def test_system_prompts_are_gathered() -> None:
    body = written(ask(Turn("system", [Text("a"), Text("")]), HELLO, Turn("system", [Text("b")])))
    assert body["systemInstruction"] == {"parts": [{"text": "a"}, {"text": "b"}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "hello"}]}]
    alone = written(ask(Turn("system", [Text("a")])))
    assert alone == {"contents": [{"role": "user", "parts": [{"text": "a"}]}]}
    with pytest.raises(InvalidRequest) as caught:
        written(ask(Turn("system", [Media("image", data="AAAA")])))
    assert (caught.value.code, caught.value.param) == ("unsupported_by_endpoint", "messages")


def test_empty_parts_and_turns_are_left_out() -> None:
    assert contents(Turn("user", [Text("")]), Turn("assistant", []), HELLO, Turn("assistant", [Refusal("no")])) == [
        {"role": "user", "parts": [{"text": "hello"}]},
        {"role": "model", "parts": [{"text": "no"}]},
    ]


@pytest.mark.parametrize(
    ("media", "part"),
    [
        (
            Media("image", data="AAAA", media_type="image/png"),
            {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        ),
        (Media("document", data="AAAA", name="a.PDF"), {"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}),
        (Media("document", data="AAAA", name="notes.txt"), {"inlineData": {"mimeType": "text/plain", "data": "AAAA"}}),
        (
            Media("image", url="https://a/b.webp?x=1.png"),
            {"fileData": {"mimeType": "image/webp", "fileUri": "https://a/b.webp?x=1.png"}},
        ),
        (Media("image", url="https://a/b"), {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://a/b"}}),
        (Media("audio", url="gs://a/b.wav"), {"fileData": {"mimeType": "audio/wav", "fileUri": "gs://a/b.wav"}}),
        (Media("video", file_id="gs://a/b"), {"fileData": {"mimeType": "video/mp4", "fileUri": "gs://a/b"}}),
        (
            Media("document", file_id="files/x"),
            {
                "fileData": {
                    "mimeType": "application/pdf",
                    "fileUri": "https://generativelanguage.googleapis.com/v1beta/files/x",
                }
            },
        ),
    ],
)
def test_media(media: Media, part: dict[str, Any]) -> None:
    assert contents(Turn("user", [Text("look"), media])) == [{"role": "user", "parts": [{"text": "look"}, part]}]


def test_files_of_other_providers() -> None:
    with pytest.raises(InvalidRequest) as caught:
        contents(Turn("user", [Media("document", file_id="file-abc")]))
    assert caught.value.code == "unsupported_by_endpoint" and "hint:" in caught.value.message


# Calls and results


def _round(*calls: ToolCall, results: list[ToolResult], seal: Seal | None = None) -> list[Turn]:
    thoughts = [Reasoning("", seal, is_redacted=True)] if seal else []
    return [HELLO, Turn("assistant", [*thoughts, *calls]), Turn("user", [*results])]


def test_foreign_calls() -> None:
    """No ids, for Vertex AI; the results in the order of the calls; a stand-in for the signature from Gemini 3 on."""
    calls = ToolCall("c1", "f", '{"a": 1.50}', FOREIGN), ToolCall("c2", "f", "")
    turns = [*_round(*calls, results=[ToolResult("c2", [Text("two")])]), Turn("user", [ToolResult("c1", [Text("1")])])]
    first = {"functionCall": {"name": "f", "args": {"a": 1.5}}}
    second = {"functionCall": {"name": "f", "args": {}}}
    results = [{"functionResponse": {"name": "f", "response": {"result": text}}} for text in ("1", "two")]
    assert contents(*turns)[1:] == [{"role": "model", "parts": [first, second]}, {"role": "user", "parts": results}]
    signed = {**first, "thoughtSignature": FOREIGN_SIGNATURE}
    assert contents(*turns, model=NEW)[1]["parts"] == [signed, second]
    assert b'{"a": 1.50}' in GEMINI_WIRE.write_request(ask(*turns), OLD, PLAIN).body


def test_own_calls_keep_ids_and_signatures() -> None:
    calls = ToolCall("given", "f", "{}", OWN), ToolCall(make_id("r", 0, 1), "g", "{}")
    model, user = contents(*_round(*calls, results=[ToolResult(call.id, [Text("x")]) for call in calls]), model=NEW)[1:]
    assert model["parts"] == [
        {"functionCall": {"name": "f", "args": {}, "id": "given"}, "thoughtSignature": "sig"},
        {"functionCall": {"name": "g", "args": {}}},
    ]
    assert [part["functionResponse"].get("id") for part in user["parts"]] == ["given", None]


def test_a_server_side_tool_tells_that_the_turn_is_own() -> None:
    code = Opaque(msgspec.Raw(b'{"executableCode":{"code":"1"}}'), "gemini")
    parts = contents(HELLO, Turn("assistant", [code, ToolCall("given", "f", "{}")]))[1]["parts"]
    assert parts[1]["functionCall"]["id"] == "given"


def test_each_step_is_signed() -> None:
    steps = [
        turn
        for step in ("a", "b")
        for turn in _round(ToolCall(step, "f", "{}"), ToolCall(step + "2", "f", "{}"), results=[ToolResult(step, [])])
    ]
    parts = [part for content in contents(*steps, model=NEW) for part in content["parts"] if "functionCall" in part]
    assert [part.get("thoughtSignature") for part in parts] == [FOREIGN_SIGNATURE, None] * 2


def test_results() -> None:
    results = [
        ToolResult("c", [Text("bad")], is_error=True),
        ToolResult("c", [Text("a"), Text("b")]),
        ToolResult("c", []),
        ToolResult("elsewhere", [Text('{"id": 12345678901234567890}')], name="known"),
    ]
    turns = _round(ToolCall("c", "f", "{}"), results=results)
    turns[-1].parts.append(Text("and now?"))
    shown, words = contents(*turns)[2:]
    assert [part["functionResponse"] for part in shown["parts"]] == [
        {"name": "f", "response": {"error": "bad"}},
        {"name": "f", "response": {"result": ["a", "b"]}},
        {"name": "f", "response": {"result": ""}},
        {"name": "known", "response": {"result": '{"id": 12345678901234567890}'}},
    ]
    assert words == {"role": "user", "parts": [{"text": "and now?"}]}


def test_a_result_of_no_call() -> None:
    with pytest.raises(InvalidRequest) as caught:
        contents(HELLO, Turn("user", [ToolResult("c", [Text("x")])]))
    assert caught.value.code == "unknown_tool_call"


def test_media_in_results() -> None:
    png, wav = Media("image", data="AAAA", media_type="image/png"), Media("audio", url="https://a/b.wav")
    turns = _round(ToolCall("c", "f", "{}"), results=[ToolResult("c", [Text("x"), png, wav])])
    inline, file = (
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"fileData": {"mimeType": "audio/wav", "fileUri": "https://a/b.wav"}},
    )
    result = {"name": "f", "response": {"result": "x"}}
    label = {"text": "Returned by `f`:"}
    assert [content["parts"] for content in contents(*turns, model=NEW)[2:]] == [
        [{"functionResponse": {**result, "parts": [inline]}}],
        [label, file],
    ]
    assert [content["parts"] for content in contents(*turns)[2:]] == [
        [{"functionResponse": result}],
        [label, inline, file],
    ]


@pytest.mark.parametrize("arguments", ["[1]", "5", '{"a": ', "nonsense", '{"a":' * 100_000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        contents(HELLO, Turn("assistant", [ToolCall("c", "f", arguments)]))
    assert (caught.value.code, caught.value.param) == ("invalid_tool_arguments", "messages")


# Signatures and thoughts


def test_signatures_go_back_to_their_parts() -> None:
    code = msgspec.Raw(b'{"executableCode":{"code":"1"},"thoughtSignature":"cccc"}')
    picture = Media("image", data="AAAA", media_type="image/png")
    parts = [
        Reasoning("hm", OWN),
        Reasoning("", Seal("tttt", "gemini"), is_redacted=True),
        Text("text"),
        Reasoning("", Seal("mmmm", "gemini"), is_redacted=True),
        picture,
        Reasoning("", Seal("eeee", "gemini"), is_redacted=True),
        Reasoning("", Seal("e222", "gemini"), is_redacted=True),
        Opaque(code, "gemini"),
        Opaque(msgspec.Raw(b'{"type":"web_search"}'), "responses"),
        Reasoning("", Seal("ends", "gemini"), is_redacted=True),
    ]
    assert contents(HELLO, Turn("assistant", parts))[1]["parts"] == [
        {"text": "hm", "thought": True, "thoughtSignature": "sig"},
        {"text": "text", "thoughtSignature": "tttt"},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}, "thoughtSignature": "mmmm"},
        {"text": "", "thoughtSignature": "eeee"},
        {"text": "", "thoughtSignature": "e222"},
        {"executableCode": {"code": "1"}, "thoughtSignature": "cccc"},
        {"text": "", "thoughtSignature": "ends"},
    ]


def test_seals_of_others_stay_behind() -> None:
    parts = [Reasoning("foreign", FOREIGN), Reasoning("", FOREIGN, is_redacted=True), Text("a")]
    assert contents(HELLO, Turn("assistant", parts))[1]["parts"] == [
        {"text": "foreign", "thought": True},
        {"text": "a"},
    ]


# Tools and the rest


SCHEMA = msgspec.Raw(b'{"type":"object","properties":{"a":{"type":"number","maximum":1.0}}}')


def test_tools() -> None:
    tools = [Tool("f", "does f", SCHEMA), Tool("g")]
    body = written(ask(tools=tools))
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {"name": "f", "description": "does f", "parametersJsonSchema": json.loads(bytes(SCHEMA))},
                {"name": "g"},
            ]
        }
    ]
    assert "toolConfig" not in body
    assert bytes(SCHEMA) in GEMINI_WIRE.write_request(ask(tools=tools), OLD, PLAIN).body


@pytest.mark.parametrize(
    ("choice", "strict", "expected"),
    [
        (ToolChoice("auto"), None, {"mode": "AUTO"}),
        (ToolChoice("none"), True, {"mode": "NONE"}),
        (ToolChoice("required"), None, {"mode": "ANY"}),
        (ToolChoice("required", ("f",)), True, {"mode": "ANY", "allowedFunctionNames": ["f"]}),
        (ToolChoice("auto"), True, {"mode": "VALIDATED"}),
        (None, True, {"mode": "VALIDATED"}),
    ],
)
def test_tool_choice(choice: ToolChoice | None, strict: bool | None, expected: dict[str, Any]) -> None:
    body = written(ask(tools=[Tool("f", strict=strict)], tool_choice=choice))
    assert body["toolConfig"] == {"functionCallingConfig": expected}
    assert "toolConfig" not in written(ask(tool_choice=choice))


def test_generation_config() -> None:
    request = ask(
        max_output_tokens=10,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=-7,
        stop=["a", "b"],
        n=2,
        logprobs=True,
        top_logprobs=3,
        output_format=OutputFormat("json_schema", SCHEMA),
        service_tier="flex",
        parallel_tool_calls=True,
    )
    body = written(request)
    assert body["generationConfig"] == {
        "maxOutputTokens": 10,
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "presencePenalty": 0.1,
        "frequencyPenalty": -0.1,
        "seed": -7,
        "stopSequences": ["a", "b"],
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 3,
        "responseMimeType": "application/json",
        "responseJsonSchema": json.loads(bytes(SCHEMA)),
    }
    assert body["serviceTier"] == "flex" and dropped(request) == ()
    assert written(ask(output_format=OutputFormat("json")))["generationConfig"] == {
        "responseMimeType": "application/json"
    }
    assert written(ask()) == {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
    for tier, sent in (("default", "standard"), ("priority", "priority"), ("auto", None)):
        assert written(ask(service_tier=tier)).get("serviceTier") == sent


def test_what_has_no_place_is_named() -> None:
    request = ask(
        Turn("user", [Text("a", cache="5m"), Media("image", url="https://a/b.png", detail="low")], name="bob"),
        seed=2**31,
        min_p=0.1,
        logit_bias={"5": 1.0},
        user="u",
        metadata={"a": "b"},
        prompt_cache_key="k",
        verbosity="low",
        service_tier="scale",
        parallel_tool_calls=False,
        extra={"store": msgspec.Raw(b"true")},
    )
    names = (
        "cache detail logit_bias metadata min_p name parallel_tool_calls prompt_cache_key seed service_tier store user"
    )
    assert dropped(request) == (*names.split(), "verbosity")
    assert "generationConfig" not in written(request) and "cache" not in json.dumps(written(request))
    assert dropped(ask(cache="5m")) == dropped(ask(tools=[Tool("f", cache="1h")])) == ("cache",)
    assert dropped(ask(Turn("assistant", [ToolCall("c", "f", "{}", cache="5m")]))) == ("cache",)


def test_what_the_provider_refuses_is_left_out() -> None:
    dialect = Dialect(unsupported=("seed", "service_tier", "logprobs", "thinking"), thinking="none")
    request = ask(seed=1, service_tier="flex", logprobs=True, temperature=1.0)
    assert written(request, OLD, dialect)["generationConfig"] == {"temperature": 1.0}
    assert dropped(request, OLD, dialect) == ("logprobs", "seed", "service_tier")


def test_too_many_stop_sequences() -> None:
    assert len(written(ask(stop=list("abcde")))["generationConfig"]["stopSequences"]) == 5
    with pytest.raises(InvalidRequest) as caught:
        written(ask(stop=list("abcdef")))
    assert (caught.value.code, caught.value.param) == ("unsupported_by_endpoint", "stop")


def test_count_request() -> None:
    request = ask(Turn("system", [Text("s")]), HELLO, tools=[Tool("f")], temperature=1.0, stop=list("abcdef"))
    inner = {key: value for key, value in written(ask(*request.turns, tools=request.tools)).items()}
    assert json.loads(write_count_request(request, "m").body) == {
        "generateContentRequest": {"model": "models/m", **inner}
    }
    assert json.loads(write_count_request(request, "m", is_vertex=True).body) == inner


# Any conversation

_words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
_seals = st.one_of(st.none(), st.from_regex(r"[a-z]{4}", fullmatch=True).map(lambda value: Seal(value, "gemini")))
_arguments = st.dictionaries(_words, st.one_of(_words, st.booleans(), st.integers(-5, 5)), max_size=2)


@st.composite
def _conversations(draw: st.DrawFn) -> list[Turn]:
    turns = [Turn("system", [Text(draw(_words))])] if draw(st.booleans()) else []
    for at in range(draw(st.integers(1, 3))):
        turns.append(
            Turn(
                "user",
                draw(
                    st.lists(
                        st.one_of(_words.map(Text), st.just(Media("image", data="AAAA", media_type="image/png"))),
                        min_size=1,
                        max_size=2,
                    )
                ),
            )
        )
        calls = [
            ToolCall(f"{at}-{place}", draw(st.sampled_from("fg")), json.dumps(draw(_arguments)), draw(_seals))
            for place in range(draw(st.integers(0, 2)))
        ]
        seal = draw(_seals)
        sealed = [Reasoning("", seal, is_redacted=True)] if seal else []
        turns.append(
            Turn(
                "assistant",
                [
                    *(Reasoning(text) for text in draw(st.lists(_words, max_size=1))),
                    *sealed,
                    Text(draw(_words)),
                    *calls,
                ],
            )
        )
        if calls:
            results = [ToolResult(call.id, [Text(draw(_words))], is_error=draw(st.booleans())) for call in calls]
            turns.append(Turn("user", list(draw(st.permutations(results)))))
    return turns


@settings(max_examples=80, deadline=None)
@given(_conversations())
def test_any_conversation_comes_back(turns: list[Turn]) -> None:
    read = read_request(written(ask(*turns), OLD)).turns
    assert [turn.role for turn in read] == [turn.role for turn in turns]
    for ours, theirs in zip(read, turns, strict=True):
        assert [_said(part) for part in ours.parts] == [_said(part) for part in sorted(theirs.parts, key=_order)]


def _said(part: Any) -> Any:
    if isinstance(part, ToolCall):
        return part.name, json.loads(part.arguments), part.seal
    if isinstance(part, ToolResult):
        text = part.parts[0].text
        return part.is_error, text if part.is_error or not text.startswith('{"result"') else json.loads(text)["result"]
    return part


def _order(part: Any) -> str:
    """Results come in the order of their calls."""
    return part.call_id if isinstance(part, ToolResult) else ""
