"""There and back for each pair of protocols that applications speak: nothing that a conversation means is lost."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.adapters.wires import WIRES
from gateway.api.surfaces import SURFACES
from gateway.canonical import (
    Answer,
    Choice,
    Media,
    OutputFormat,
    Part,
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
from gateway.config.rows import Dialect
from gateway.folding import fold, unfold
from gateway.protocols.base import ConversationProtocol
from gateway.types import Usage, WireName

PROTOCOLS: dict[WireName, ConversationProtocol] = {
    protocol.wire: protocol
    for protocol in SURFACES.values()
    if isinstance(protocol, ConversationProtocol) and protocol.wire != "completions"
}
PAIRS = list(permutations(PROTOCOLS, 2))
# As a server that keeps everything: reasoning in the history, and marks on parts.
DIALECT = Dialect(reasoning_replay="reasoning_details", cache_marks=True)
PICTURE = "iVBORw0KGgoAAAANSUhEUg=="

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
ids = st.from_regex(r"call_[a-z0-9]{6}", fullmatch=True)
arguments = st.dictionaries(names, st.integers(-5, 5) | words | st.none() | st.booleans(), max_size=3).map(json.dumps)
schema = Raw(b'{"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false}')
picture = st.just(Media("image", data=PICTURE, media_type="image/png"))
said: st.SearchStrategy[list[Part]] = st.lists(words.map(Text) | picture, min_size=1, max_size=3)


@st.composite
def requests(draw: Any) -> Request:
    """A conversation whose tool calls all have their results in the next turn, as every protocol demands."""
    turns = [Turn("system", [Text(draw(words))])] if draw(st.booleans()) else []
    turns.append(Turn("user", draw(said)))
    tools = [Tool(name, draw(words), schema) for name in draw(st.lists(names, min_size=1, max_size=3, unique=True))]
    used = draw(st.lists(ids, max_size=4, unique=True))
    while used:
        calls = [
            ToolCall(used.pop(), draw(st.sampled_from(tools)).name, draw(arguments)) for _ in range(min(2, len(used)))
        ]
        spoken: list[Part] = [Text(draw(words))] if draw(st.booleans()) else []
        turns.append(Turn("assistant", [*spoken, *calls]))
        results: list[Part] = [ToolResult(call.id, [Text(draw(words))], name=call.name) for call in calls]
        turns.append(Turn("user", [*results, *([Text(draw(words))] if draw(st.booleans()) else [])]))
    return Request(
        model="m",
        turns=turns,
        tools=tools,
        tool_choice=draw(st.sampled_from([None, ToolChoice("auto"), ToolChoice("required"), ToolChoice("none")])),
        parallel_tool_calls=draw(st.sampled_from([None, False])),
        output_format=draw(st.sampled_from([None, OutputFormat("json_schema", schema, "place", strict=True)])),
        max_output_tokens=draw(st.integers(16, 4000)),
        temperature=draw(st.sampled_from([None, 0.0, 0.5])),
        origin="chat",
    )


def meaning(request: Request) -> Any:
    """What must arrive: the protocols differ in how they cut it into messages."""
    told: list[Any] = []
    for turn in request.turns:
        for part in turn.parts:
            if isinstance(part, ToolCall):
                told.append(("call", part.id, part.name, json.loads(part.arguments or "{}")))
            elif isinstance(part, ToolResult):
                told.append(
                    ("result", part.call_id, "".join(item.text for item in part.parts if isinstance(item, Text)))
                )
            elif isinstance(part, Text):
                told.append((turn.role, part.text))
            elif isinstance(part, Media):
                told.append((turn.role, part.kind, part.data, part.media_type))
    format = request.output_format
    return (
        told,
        [(tool.name, tool.description, json.loads(bytes(tool.parameters or b"null"))) for tool in request.tools],
        request.tool_choice or ToolChoice("auto"),
        None if request.tool_choice == ToolChoice("none") else request.parallel_tool_calls,
        None if format is None else (format.kind, json.loads(bytes(format.schema or b"null"))),
        request.max_output_tokens,
        request.temperature,
        request.model,
    )


def carried(request: Request, name: WireName) -> Request:
    """Written for an upstream of this protocol, and read as that upstream's client would have said it."""
    return PROTOCOLS[name].read_request(WIRES[name].write_request(request, "m", DIALECT).body)


@pytest.mark.parametrize(("first", "second"), PAIRS)
@given(request=requests())
@settings(max_examples=40, deadline=None)
def test_requests(first: WireName, second: WireName, request: Request) -> None:
    there = carried(carried(request, first), second)
    assert meaning(there) == meaning(request)
    assert meaning(carried(there, first)) == meaning(request)


def test_a_seal_comes_back_to_its_maker_and_goes_to_nobody_else() -> None:
    for maker in PROTOCOLS:
        for holder in PROTOCOLS:
            if maker == holder:
                continue
            answer = Answer(
                choices=[Choice([Reasoning("thought", Seal("opaque", maker)), Text("said")], "stop", "stop")], model="m"
            )
            request = PROTOCOLS[holder].read_request(_asked(holder))
            body = json.loads(PROTOCOLS[holder].write_answer(answer, request))
            again = PROTOCOLS[holder].read_request(_continued(holder, body))
            seals = [part.seal for turn in again.turns for part in turn.parts if isinstance(part, Reasoning)]
            assert seals == [Seal("opaque", maker)], (maker, holder)
            for upstream in PROTOCOLS:
                sent = WIRES[upstream].write_request(again, "m", DIALECT).body
                assert (b"opaque" in sent) == (upstream == maker), (maker, holder, upstream)


def _asked(holder: WireName) -> bytes:
    return {
        "chat": b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
        "responses": b'{"model":"m","input":"hi"}',
        "messages": b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}',
    }[holder]


def _continued(holder: WireName, answer: Any) -> bytes:
    """The next request of a client that sends back what it was told."""
    if holder == "chat":
        told = [
            {"role": "user", "content": "hi"},
            answer["choices"][0]["message"],
            {"role": "user", "content": "go on"},
        ]
        return json.dumps({"model": "m", "messages": told}).encode()
    if holder == "responses":
        return json.dumps({"model": "m", "input": [{"role": "user", "content": "hi"}, *answer["output"]]}).encode()
    told = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer["content"]}]
    told.append({"role": "user", "content": "go on"})
    thinking = {"type": "enabled", "budget_tokens": 1024}
    return json.dumps({"model": "m", "max_tokens": 4096, "messages": told, "thinking": thinking}).encode()


# Answers


@st.composite
def answers(draw: Any) -> Answer:
    parts: list[Part] = []
    if draw(st.booleans()):
        parts.append(Text(draw(words)))
    calls = [ToolCall(id, draw(names), draw(arguments)) for id in draw(st.lists(ids, max_size=3, unique=True))]
    if not parts and not calls:
        parts.append(Text(draw(words)))
    count = st.integers(0, 10_000)
    usage = Usage(
        input_tokens=draw(count), cache_read_tokens=draw(count), output_tokens=draw(count), reasoning_tokens=draw(count)
    )
    finish = "tool_calls" if calls else draw(st.sampled_from(["stop", "length"]))
    return Answer(choices=[Choice([*parts, *calls], finish, finish)], id="id", model="m", usage=usage)


def told(answer: Answer) -> Any:
    choice = answer.choices[0]
    text = "".join(part.text for part in choice.parts if isinstance(part, (Text, Refusal)))
    calls = [
        (part.id, part.name, json.loads(part.arguments or "{}")) for part in choice.parts if isinstance(part, ToolCall)
    ]
    return text, calls, choice.finish, answer.usage, answer.model


@pytest.mark.parametrize(("first", "second"), PAIRS)
@given(answer=answers())
@settings(max_examples=40, deadline=None)
def test_answers(first: WireName, second: WireName, answer: Answer) -> None:
    """An upstream of the first protocol answers a client of the second, whole and streamed; and that reads as much."""
    whole, streamed = answer, answer
    for name in (first, second):
        request = PROTOCOLS[name].read_request(_asked(name))
        whole = WIRES[name].read_answer(PROTOCOLS[name].write_answer(whole, request), DIALECT)
        writer = PROTOCOLS[name].open_writer(request)
        body = b"".join([*(writer.write(event) for event in unfold(streamed)), writer.end()])
        decoder = WIRES[name].open_decoder(DIALECT)
        events = decoder.feed(body)
        streamed = fold([*events, *([] if decoder.is_finished else decoder.finish())])
    assert told(whole) == told(answer)
    assert told(streamed) == told(answer)
