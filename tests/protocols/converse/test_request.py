"""Written requests: what they say, and that Bedrock's service model allows them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

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
from gateway.protocols.converse.wire import CONVERSE_WIRE
from tests.protocols.converse.service import check_request

CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
OPUS = "us.anthropic.claude-opus-4-6-v1"
OLD_CLAUDE = "anthropic.claude-3-haiku-20240307-v1:0"
NOVA = "us.amazon.nova-2-lite-v1:0"
LLAMA = "us.meta.llama3-3-70b-instruct-v1:0"
PROFILE = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc123"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()
PLACE = "s3://bucket/a/b.WEBP"
PDF = base64.b64encode(b"%PDF-1.7 ...").decode()
HI = Turn("user", [Text("hi")])


CALLED = (HI, Turn("assistant", [ToolCall("c", "weather", "{}")]), Turn("user", [ToolResult("c", [Text("r")])]))


def tool(name: str = "weather", **fields: Any) -> Tool:
    schema = b'{"type":"object","properties":{"city":{"type":"string"}}}'
    return Tool(name, "Tells the weather", msgspec.Raw(schema), **fields)


def request(*turns: Turn, **fields: Any) -> Request:
    return Request(model="m", turns=list(turns) or [HI], origin="chat", **fields)


def write(asked: Request, model: str = CLAUDE, dialect: Dialect = PLAIN, dropped: Sequence[str] = ()) -> dict[str, Any]:
    """What is sent, allowed by the service model of both operations."""
    written = CONVERSE_WIRE.write_request(asked, model, dialect)
    assert list(written.dropped) == list(dropped)
    for name, stream in (("Converse", False), ("ConverseStream", True)):
        target = CONVERSE_WIRE.target(model, stream=stream)
        body = check_request(written.body, model, target, name=name)
    return body


def content(*parts: Part, role: Any = "user", model: str = CLAUDE, dropped: Sequence[str] = ()) -> list[Any]:
    """The blocks of one turn; the model's follows a user's."""
    turns = [Turn(role, list(parts))] if role == "user" else [HI, Turn(role, list(parts)), HI]
    messages = write(request(*turns, tools=[tool()]), model, dropped=dropped)["messages"]
    return list(messages[0 if role == "user" else 1]["content"])


def refused(asked: Request, param: str, model: str = CLAUDE, code: str = "unsupported_by_endpoint") -> str:
    with pytest.raises(InvalidRequest) as caught:
        CONVERSE_WIRE.write_request(asked, model, PLAIN)
    assert (caught.value.param, caught.value.code) == (param, code)
    return caught.value.message


def test_the_least_request() -> None:
    assert write(request()) == {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}


def test_targets() -> None:
    assert CONVERSE_WIRE.target("a.b-v1:0", stream=False) == "/model/a.b-v1%3A0/converse"
    assert CONVERSE_WIRE.target("arn:aws:x/y?z", stream=True) == "/model/arn%3Aaws%3Ax%2Fy%3Fz/converse-stream"


# Turns


def test_system_turns_are_gathered_and_neighbours_merged() -> None:
    body = write(
        request(
            Turn("system", [Text("one"), Text(" ")]),
            Turn("user", [Text("a")]),
            Turn("system", [Text("two")]),
            Turn("user", [Text("b"), Text("")]),
            Turn("assistant", [Text("c"), Refusal("no")]),
            Turn("assistant", [Text("d ")]),
        )
    )
    assert body["system"] == [{"text": "one"}, {"text": "two"}]
    assert body["messages"] == [
        {"role": "user", "content": [{"text": "a"}, {"text": "b"}]},
        {"role": "assistant", "content": [{"text": "c"}, {"text": "no"}, {"text": "d"}]},
    ]


def test_nothing_to_say_is_refused() -> None:
    refused(request(Turn("user", [Text(" \n")])), "messages", code="invalid_value")
    refused(request(Turn("system", [Text("s")])), "messages", code="invalid_value")
    refused(request(Turn("system", [Media("image", data=PNG)]), HI), "messages")


def test_calls_and_their_results() -> None:
    body = write(
        request(
            HI,
            Turn("assistant", [Text("let me see"), ToolCall("call_1", "weather", '{"b": 1.50, "a": "\\ud83d"}')]),
            Turn("user", [Text("and?")]),
            Turn("user", [ToolResult("call_1", [Text("sunny"), Text(""), Media("image", data=PNG)])]),
            Turn("assistant", [ToolCall("call_2", "weather", "")]),
            Turn("user", [ToolResult("call_2", [Text("broken")], is_error=True)]),
            tools=[tool()],
        )
    )
    image = {"image": {"format": "png", "source": {"bytes": PNG}}}
    assert body["messages"][1]["content"][1] == {
        "toolUse": {"toolUseId": "call_1", "name": "weather", "input": {"b": 1.5, "a": "\ufffd"}}
    }
    assert body["messages"][2]["content"] == [
        {"toolResult": {"toolUseId": "call_1", "content": [{"text": "sunny"}, image]}},
        {"text": "and?"},
    ]
    assert body["messages"][3]["content"] == [{"toolUse": {"toolUseId": "call_2", "name": "weather", "input": {}}}]
    assert body["messages"][4]["content"] == [
        {"toolResult": {"toolUseId": "call_2", "content": [{"text": "broken"}], "status": "error"}}
    ]


def test_arguments_keep_their_bytes() -> None:
    asked = request(HI, Turn("assistant", [ToolCall("c", "weather", '{"b": 1.50,"a":12345678901234567890}')]), HI)
    written = CONVERSE_WIRE.write_request(asked, CLAUDE, PLAIN)
    assert b'"input":{"b": 1.50,"a":12345678901234567890}' in written.body


@pytest.mark.parametrize("arguments", ["[1]", "{", "7", '{"a": nope}', '{"a":' * 3000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    asked = request(HI, Turn("assistant", [ToolCall("c", "weather", arguments)]), tools=[tool()])
    refused(asked, "messages", code="invalid_value")


def test_ids_of_other_providers() -> None:
    long = "call|" + "x" * 80
    call, result = ToolCall(long, "weather", "{}"), ToolResult(long, [Text("sunny")])
    body = write(request(HI, Turn("assistant", [call]), Turn("user", [result]), tools=[tool()]))
    made = body["messages"][1]["content"][0]["toolUse"]["toolUseId"]
    assert made == body["messages"][2]["content"][0]["toolResult"]["toolUseId"] != long
    refused(request(tools=[tool("a.b")]), "tools")
    refused(request(HI, Turn("assistant", [ToolCall("c", "x" * 65, "{}")]), HI), "tools")


def test_reasoning_goes_back_to_its_maker_only() -> None:
    own, foreign = Seal("c2ln", "converse"), Seal("c2ln", "messages")
    thoughts: list[Part] = [
        Reasoning("thought", own),
        Reasoning("", own, is_redacted=True),
        Reasoning("unsigned"),
        Reasoning("foreign", foreign),
        Opaque(msgspec.Raw(b'{"toolUse":{}}'), "messages"),
        Text("so"),
    ]
    signed = [
        {"reasoningContent": {"reasoningText": {"text": "thought", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "c2ln"}},
        {"text": "so"},
    ]
    assert content(*thoughts, role="assistant") == signed
    assert content(*thoughts, role="assistant", model=PROFILE) == signed
    assert content(*thoughts, role="assistant", model=NOVA) == [{"text": "so"}]


def test_own_blocks_go_back_as_they_are() -> None:
    call = {"toolUseId": "a", "name": "nova_grounding", "input": {"q": 1}, "type": "server_tool_use"}
    raw = msgspec.Raw(json.dumps({"toolUse": call}).encode())
    assert content(Opaque(raw, "converse"), role="assistant", model=NOVA) == [{"toolUse": call}]


# Media


@pytest.mark.parametrize(
    ("media", "block"),
    [
        (Media("image", data=PNG, media_type="image/jpg"), {"format": "jpeg", "source": {"bytes": PNG}}),
        (Media("image", data=PNG), {"format": "png", "source": {"bytes": PNG}}),
        (Media("image", url=PLACE), {"format": "webp", "source": {"s3Location": {"uri": PLACE}}}),
        (Media("video", data="AAAA", media_type="video/3gpp"), {"format": "three_gp", "source": {"bytes": "AAAA"}}),
        (Media("audio", data="AAAA", media_type="audio/mpeg; rate=1"), {"format": "mp3", "source": {"bytes": "AAAA"}}),
        (Media("audio", data="AAAA", name="voice.m4a"), {"format": "m4a", "source": {"bytes": "AAAA"}}),
        (Media("document", data=PDF), {"format": "pdf", "name": "Document", "source": {"bytes": PDF}}),
        (
            Media("document", data=PDF, media_type="application/octet-stream", name="Bericht_2026 (neu)  é.docx"),
            {"format": "docx", "name": "Bericht 2026 (neu)", "source": {"bytes": PDF}},
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Media) else "",
)
def test_media(media: Media, block: dict[str, Any]) -> None:
    assert content(Text("see"), media) == [{"text": "see"}, {media.kind: block}]


@pytest.mark.parametrize(
    "media",
    [
        Media("image", data="AAAA", media_type="image/tiff"),
        Media("image", data="AAAA"),
        Media("image", data=PDF),
        Media("image", url="https://example.com/a.png"),
        Media("document", file_id="file-1", media_type="application/pdf"),
    ],
)
def test_media_without_a_form(media: Media) -> None:
    refused(request(Turn("user", [media])), "messages")


def test_media_where_they_may_not_be() -> None:
    picture, voice = Media("image", data=PNG), Media("audio", data="AAAA", media_type="audio/wav")
    refused(request(HI, Turn("assistant", [picture])), "messages")
    refused(request(*CALLED[:2], Turn("user", [ToolResult("c", [voice])])), "messages")


def test_documents_have_names_of_their_own_and_a_text() -> None:
    documents: list[Part] = [Media("document", data=PDF, name=name) for name in ("a.pdf", "a.pdf", None, "??", "a 2")]
    blocks = content(*documents)
    assert [block["document"]["name"] for block in blocks[:-1]] == ["a", "a 2", "Document", "Document 2", "a 2 2"]
    assert blocks[-1] == {"text": "a"}
    long = content(Media("document", data=PDF, name="x" * 400))
    assert len(long[0]["document"]["name"]) <= 200


# Cache marks


POINT = {"cachePoint": {"type": "default"}}
HOUR = {"cachePoint": {"type": "default", "ttl": "1h"}}


def test_cache_points_follow_what_they_mark() -> None:
    body = write(
        request(
            Turn("system", [Text("s", cache="1h"), Text("t")]),
            Turn("user", [Text("a", cache="5m"), Media("image", data=PNG, cache="5m")]),
            Turn("assistant", [ToolCall("c", "weather", "", cache="5m")]),
            Turn("user", [ToolResult("c", [Text("r", cache="5m"), Text("s")]), Text("b")]),
            tools=[tool(cache="1h"), tool("other")],
            cache="5m",
        )
    )
    assert body["system"] == [{"text": "s"}, HOUR, {"text": "t"}]
    assert [POINT in message["content"] for message in body["messages"]] == [True, True, True]
    assert [list(block) for block in body["messages"][0]["content"]] == [
        ["text"],
        ["cachePoint"],
        ["image"],
        ["cachePoint"],
    ]
    last = [list(block)[0] for block in body["messages"][2]["content"]]
    assert last == ["toolResult", "cachePoint", "text", "cachePoint"]
    assert [list(entry)[0] for entry in body["toolConfig"]["tools"]] == ["toolSpec", "cachePoint", "toolSpec"]
    assert body["toolConfig"]["tools"][1] == HOUR


def test_cache_points_stand_before_documents() -> None:
    document = Media("document", data=PDF, cache="5m")
    assert [list(block)[0] for block in content(Text("a"), document)] == ["text", "cachePoint", "document"]
    twice = content(Text("a", cache="5m"), document)
    assert [list(block)[0] for block in twice] == ["text", "cachePoint", "document"]
    assert [list(block)[0] for block in content(document, dropped=["cache"])] == ["document", "text"]


@pytest.mark.parametrize("model", [LLAMA, OLD_CLAUDE])
def test_models_that_do_not_cache(model: str) -> None:
    asked = request(Turn("user", [Text("a", cache="5m")]), tools=[tool(cache="5m")])
    body = write(asked, model, dropped=["cache"])
    assert POINT not in body["messages"][0]["content"] and len(body["toolConfig"]["tools"]) == 1


def test_nova_caches_but_not_its_tools() -> None:
    asked = request(Turn("user", [Text("a", cache="5m")]), tools=[tool(cache="5m")])
    body = write(asked, NOVA, dropped=["cache"])
    assert POINT in body["messages"][0]["content"] and len(body["toolConfig"]["tools"]) == 1


# Tools


def test_declarations() -> None:
    body = write(request(tools=[tool(strict=True), Tool("bare", "")]))
    assert body["toolConfig"] == {
        "tools": [
            {
                "toolSpec": {
                    "name": "weather",
                    "description": "Tells the weather",
                    "inputSchema": {"json": {"type": "object", "properties": {"city": {"type": "string"}}}},
                    "strict": True,
                }
            },
            {"toolSpec": {"name": "bare", "inputSchema": {"json": {"type": "object", "properties": {}}}}},
        ]
    }
    lax = write(request(tools=[tool(strict=True)]), NOVA, dropped=["strict"])
    assert "strict" not in lax["toolConfig"]["tools"][0]["toolSpec"]


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        (ToolChoice("auto"), None),
        (ToolChoice("required"), {"any": {}}),
        (ToolChoice("required", ("weather",)), {"tool": {"name": "weather"}}),
        (ToolChoice("required", ("weather", "other")), {"any": {}}),
    ],
)
def test_choices(choice: ToolChoice, written: Any) -> None:
    body = write(request(tools=[tool(), tool("other"), tool("third")], tool_choice=choice), LLAMA)
    assert body["toolConfig"].get("toolChoice") == written
    names = [entry["toolSpec"]["name"] for entry in body["toolConfig"]["tools"]]
    assert names == (["weather", "other"] if len(choice.names) == 2 else ["weather", "other", "third"])


def test_no_tool_may_be_called() -> None:
    none = ToolChoice("none")
    assert "toolConfig" not in write(request(tools=[tool()], tool_choice=none), LLAMA)
    body = write(request(*CALLED, tools=[tool(), tool("other")], tool_choice=none))
    assert body["additionalModelRequestFields"] == {"tool_choice": {"type": "none"}}
    assert len(body["toolConfig"]["tools"]) == 2
    refused(request(*CALLED, tools=[tool()], tool_choice=none), "tool_choice", LLAMA)


def test_calls_in_a_conversation_without_tools() -> None:
    claude = write(request(*CALLED))
    assert claude["additionalModelRequestFields"] == {"tool_choice": {"type": "none"}}
    llama = write(request(*CALLED), LLAMA, dropped=["tool_choice"])
    for body in (claude, llama):
        assert [entry["toolSpec"]["name"] for entry in body["toolConfig"]["tools"]] == ["weather"]
    refused(request(Turn("user", [ToolResult("c", [Text("r")])])), "messages", code="invalid_value")


def test_one_call_at_a_time() -> None:
    one = {"tools": [tool()], "parallel_tool_calls": False}
    for choice, said in (
        (None, {"type": "auto"}),
        (ToolChoice("required"), {"type": "any"}),
        (ToolChoice("required", ("weather",)), {"type": "tool", "name": "weather"}),
    ):
        body = write(request(tool_choice=choice, **one))
        assert body["additionalModelRequestFields"] == {"tool_choice": said | {"disable_parallel_tool_use": True}}
        assert "toolChoice" not in body["toolConfig"]
    assert "additionalModelRequestFields" not in write(request(**one), LLAMA, dropped=["parallel_tool_calls"])
    assert "additionalModelRequestFields" not in write(request(tools=[tool()], parallel_tool_calls=True), LLAMA)


def test_models_that_cannot_be_forced() -> None:
    fable = "us.anthropic.claude-fable-5-1"
    refused(request(tools=[tool()], tool_choice=ToolChoice("required")), "tool_choice", fable)


# Inference


def test_inference_config() -> None:
    asked = request(max_output_tokens=100, temperature=0.5, top_p=0.9, top_k=40, stop=["END", ""])
    body = write(asked, NOVA)
    assert body["inferenceConfig"] == {"maxTokens": 100, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]}
    assert body["additionalModelRequestFields"] == {"inferenceConfig": {"topK": 40}}
    assert "additionalModelResponseFieldPaths" not in body
    llama = write(request(top_k=40, temperature=1.5), LLAMA, dropped=["top_k", "temperature"])
    assert llama["inferenceConfig"] == {"temperature": 1.0} and "additionalModelRequestFields" not in llama


def test_claude_names_its_stop_sequence_and_samples_one_way() -> None:
    asked = request(temperature=0.5, top_p=0.9, top_k=40, stop=["END"])
    body = write(asked, dropped=["top_p"])
    assert body["inferenceConfig"] == {"temperature": 0.5, "stopSequences": ["END"]}
    assert body["additionalModelRequestFields"] == {"top_k": 40}
    assert body["additionalModelResponseFieldPaths"] == ["/stop_sequence", "/delta/stop_sequence"]


ADAPTIVE = {"thinking": {"type": "adaptive", "display": "summarized"}}


def nova_thinks(level: str) -> dict[str, Any]:
    return {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": level}}


@pytest.mark.parametrize(
    ("model", "thinking", "fields", "effort", "dropped"),
    [
        (CLAUDE, Thinking(budget_tokens=3000), {"thinking": {"type": "enabled", "budget_tokens": 3000}}, None, []),
        (CLAUDE, Thinking(effort="none"), None, None, []),
        (OPUS, Thinking(enabled=True), ADAPTIVE, "high", []),
        (OPUS, Thinking(effort="low"), ADAPTIVE, "low", []),
        (OPUS, Thinking(effort="none"), None, None, []),
        ("anthropic.claude-opus-5", Thinking(effort="none"), {"thinking": {"type": "disabled"}}, None, []),
        (OLD_CLAUDE, Thinking(effort="high"), None, None, ["thinking"]),
        (NOVA, Thinking(effort="high"), nova_thinks("high"), None, []),
        (NOVA, Thinking(enabled=True), nova_thinks("medium"), None, []),
        (NOVA, Thinking(effort="none"), None, None, []),
        ("openai.gpt-oss-120b-1:0", Thinking(effort="minimal"), {"reasoning_effort": "low"}, None, []),
        ("openai.gpt-oss-120b-1:0", Thinking(effort="none"), None, None, ["thinking"]),
        ("qwen.qwen3-32b-v1:0", Thinking(effort="medium"), {"reasoning_config": "high"}, None, []),
        (LLAMA, Thinking(effort="medium"), None, None, ["thinking"]),
        (PROFILE, Thinking(budget_tokens=2000), None, None, ["thinking"]),
    ],
)
def test_thinking(model: str, thinking: Thinking, fields: Any, effort: Any, dropped: list[str]) -> None:
    body = write(request(thinking=thinking), model, dropped=dropped)
    assert body.get("additionalModelRequestFields") == fields
    assert body.get("outputConfig", {}).get("effort") == effort


def test_budgets_give_way() -> None:
    """To a tool that must be called, to a turn that began without thoughts, to a small limit."""
    deep = Thinking(effort="high")
    body = write(request(thinking=deep, tools=[tool()], tool_choice=ToolChoice("required")), dropped=["thinking"])
    assert "additionalModelRequestFields" not in body
    body = write(request(*CALLED, thinking=deep, tools=[tool()]), dropped=["thinking"])
    assert "additionalModelRequestFields" not in body
    thought = Turn("assistant", [Reasoning("t", Seal("c2ln", "converse")), ToolCall("c", "weather", "{}")])
    body = write(request(HI, thought, CALLED[2], thinking=deep, tools=[tool()]))
    assert body["additionalModelRequestFields"]["thinking"]["type"] == "enabled"
    body = write(request(thinking=deep, max_output_tokens=4000))
    assert 1024 <= body["additionalModelRequestFields"]["thinking"]["budget_tokens"] < 4000
    assert body["inferenceConfig"] == {"maxTokens": 4000}


def test_nova_thinks_hard_without_limits() -> None:
    hard = Thinking(effort="high")
    asked = request(thinking=hard, temperature=0.5, top_p=0.5, top_k=3)
    body = write(asked, NOVA, dropped=["top_k", "temperature", "top_p"])
    assert "inferenceConfig" not in body
    limited = write(request(thinking=hard, max_output_tokens=500, temperature=0.5), NOVA)
    assert limited["additionalModelRequestFields"]["reasoningConfig"]["maxReasoningEffort"] == "medium"
    assert limited["inferenceConfig"] == {"maxTokens": 500, "temperature": 0.5}


# The rest


SCHEMA = b'{"type":"object","properties":{"n":{"type":"number","minimum":1.0}}}'


def test_output_formats() -> None:
    wanted = OutputFormat("json_schema", msgspec.Raw(SCHEMA), "answer", "What it is", strict=True)
    format_ = write(request(output_format=wanted))["outputConfig"]["textFormat"]
    assert format_ == {
        "type": "json_schema",
        "structure": {"jsonSchema": {"schema": SCHEMA.decode(), "name": "answer", "description": "What it is"}},
    }
    in_words = write(request(output_format=wanted), LLAMA, Dialect(json_schema="prompt"))
    assert "outputConfig" not in in_words and SCHEMA.decode() in in_words["system"][-1]["text"]
    mode = write(request(Turn("system", [Text("s")]), HI, output_format=OutputFormat("json")))
    assert mode["system"][0] == {"text": "s"} and "JSON object" in mode["system"][1]["text"]


def test_tiers_and_metadata() -> None:
    assert write(request(service_tier="flex", metadata={"team": "a/b"})) | {"messages": 0} == {
        "messages": 0,
        "serviceTier": {"type": "flex"},
        "requestMetadata": {"team": "a/b"},
    }
    assert "serviceTier" not in write(request(service_tier="auto"))
    write(request(service_tier="scale", metadata={"a": "ü"}), dropped=["service_tier", "metadata"])
    write(request(metadata={str(number): "v" for number in range(17)}), dropped=["metadata"])


def test_what_has_no_place_is_named() -> None:
    asked = request(
        Turn("user", [Text("hi")], name="bob"),
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=0,
        seed=0,
        logit_bias={"1": 2},
        user="u",
        prompt_cache_key="k",
        verbosity="low",
        extra={"store": msgspec.Raw(b"true")},
    )
    names = ["min_p", "presence_penalty", "seed", "logit_bias", "user", "prompt_cache_key", "verbosity", "name"]
    assert list(write(asked, dropped=[*names, "store"])) == ["messages"]


def test_what_cannot_be_said_is_refused() -> None:
    refused(request(n=2), "n")
    refused(request(logprobs=True), "logprobs")


def test_fields_that_a_row_says_are_refused() -> None:
    dialect = Dialect(unsupported=("requestMetadata", "serviceTier"))
    body = write(request(metadata={"a": "b"}), CLAUDE, dialect, dropped=["requestMetadata"])
    assert list(body) == ["messages"]
