"""Streams of chats."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical import (
    Answer,
    Choice,
    Citation,
    Event,
    Finished,
    Reasoning,
    ReasoningDelta,
    ReasoningEnded,
    Started,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold, visible_text
from gateway.protocols.base import StreamDecoder, StreamError
from gateway.protocols.cohere.wire import COHERE_WIRE
from gateway.types import Usage


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {event.get('type')}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def delta(kind: str, index: int | None = None, /, **message: Any) -> dict[str, Any]:
    place = {} if index is None else {"index": index}
    return {"type": kind, **place, "delta": {"message": message}}


def begin(index: int, **content: Any) -> dict[str, Any]:
    return delta("content-start", index, content=content)


def piece(index: int, **content: Any) -> dict[str, Any]:
    return delta("content-delta", index, content=content)


def call(index: int, **fields: Any) -> dict[str, Any]:
    return delta("tool-call-start", index, tool_calls={"type": "function", **fields})


def more(index: int, arguments: str) -> dict[str, Any]:
    return delta("tool-call-delta", index, tool_calls={"function": {"arguments": arguments}})


def end(reason: str | None = "COMPLETE", **fields: Any) -> dict[str, Any]:
    return {"type": "message-end", "delta": {"finish_reason": reason, **fields}}


START = {
    "type": "message-start",
    "id": "m1",
    "delta": {"message": {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}},
}
USAGE = {"billed_units": {"input_tokens": 4, "output_tokens": 2}, "tokens": {"input_tokens": 400}}


def feed(*chunks: bytes) -> tuple[list[Event], StreamDecoder]:
    decoder = COHERE_WIRE.open_decoder(PLAIN)
    return [event for chunk in chunks for event in decoder.feed(chunk)], decoder


def read(*events: dict[str, Any]) -> list[Event]:
    found, decoder = feed(sse(*events))
    return found + decoder.finish()


def test_text() -> None:
    events, decoder = feed(
        sse(START, begin(0, type="text", text=""), piece(0, text="a"), piece(0, text="b"), {"type": "content-end"}),
        sse(end(usage=USAGE)) + b"data: [DONE]\n\n",
    )
    assert decoder.is_finished
    assert decoder.finish() == []
    assert events[:3] == [Started("m1"), TextDelta("a", begins_part=True), TextDelta("b")]
    assert events[3] == Finished("stop", "COMPLETE")
    assert isinstance(events[4], UsageReported) and events[4].usage == Usage(input_tokens=4, output_tokens=2)
    assert json.loads(bytes(events[4].raw or b"")) == USAGE


def test_thinking_then_text() -> None:
    assert read(
        START,
        begin(0, type="thinking", thinking="I "),
        piece(0, thinking="think"),
        {"type": "content-end", "index": 0},
        begin(1, type="text", text="so"),
        {"type": "content-end", "index": 1},
        end(),
    ) == [
        Started("m1"),
        ReasoningDelta("I "),
        ReasoningDelta("think"),
        ReasoningEnded(),
        TextDelta("so", begins_part=True),
        Finished("stop", "COMPLETE"),
    ]


def test_two_texts_stay_two() -> None:
    answer = fold(read(START, begin(0, type="text", text="a"), begin(1, type="text", text="b"), end()))
    assert answer.choices[0].parts == [Text("a"), Text("b")]


def test_thinking_and_plan_stay_two() -> None:
    answer = fold(
        read(
            begin(0, type="thinking", thinking="hm"),
            {"type": "content-end"},
            delta("tool-plan-delta", tool_plan="I "),
            delta("tool-plan-delta", tool_plan="call"),
            call(0, id="t", function={"name": "f", "arguments": ""}),
            end("TOOL_CALL"),
        )
    )
    assert answer.choices[0].parts == [Reasoning("hm"), Reasoning("I call"), ToolCall("t", "f", "")]


def test_calls_are_counted_without_gaps() -> None:
    assert read(
        START,
        delta("tool-plan-delta", tool_plan="ok"),
        call(3, id="a", function={"name": "f", "arguments": '{"x"'}),
        more(3, ":1}"),
        {"type": "tool-call-end", "index": 3},
        call(7, id="b", function={"name": "g", "arguments": ""}),
        {"type": "tool-call-end", "index": 7},
        end("TOOL_CALL"),
    ) == [
        Started("m1"),
        ReasoningDelta("ok"),
        ReasoningEnded(),
        ToolCallStarted(0, "a", "f"),
        ToolCallDelta(0, '{"x"'),
        ToolCallDelta(0, ":1}"),
        ToolCallStarted(1, "b", "g"),
        Finished("tool_calls", "TOOL_CALL"),
    ]


def test_citation_belongs_to_the_text_under_way() -> None:
    source = {"type": "tool", "id": "t:0", "tool_output": {"url": "https://a", "title": "A"}}
    cited = {"start": 0, "end": 1, "text": "a", "sources": [source], "type": "TEXT_CONTENT"}
    plan = {**cited, "type": "PLAN"}
    answer = fold(
        read(
            begin(0, type="text", text="a"),
            delta("citation-start", 0, citations=cited),
            {"type": "citation-end", "index": 0},
            piece(0, text="b"),
            delta("citation-start", 1, citations=[plan, {**cited, "end": 2}]),
            end(),
        )
    )
    assert answer.choices[0].parts == [Text("ab", (Citation("https://a", "A", 0, 1), Citation("https://a", "A", 0, 2)))]


def test_logprobs() -> None:
    first = {**piece(0, text="a"), "logprobs": {"text": "a", "token_ids": [1], "logprobs": [-1.5]}}
    (choice,) = fold(read(first, {**first, "logprobs": {"text": "b", "logprobs": [-2.0]}}, end())).choices
    items = json.loads(bytes(choice.logprobs or b""))
    assert [(item["token"], item["logprob"]) for item in items] == [("a", -1.5), ("b", -2.0)]


def test_unknown_events_are_passed_over() -> None:
    unknown = {"type": "hologram-delta", "delta": {"message": {"content": {"depth": 1}}}}
    debug = {"type": "debug", "prompt": "<system>"}
    assert read(START, unknown, debug, begin(0, type="hologram"), piece(0, depth=1), end()) == [
        Started("m1"),
        Finished("stop", "COMPLETE"),
    ]


@pytest.mark.parametrize(
    "event",
    [
        end("ERROR"),
        end("ERROR", error="secret"),
        end("COMPLETE", error="secret"),
        end("TIMEOUT"),
        {"id": "1", "message": "secret"},
        {"type": "error", "message": "secret"},
        {"type": "content-delta", "error": {"message": "secret"}},
    ],
)
def test_error_in_the_stream(event: dict[str, Any]) -> None:
    decoder = COHERE_WIRE.open_decoder(PLAIN)
    assert len(decoder.feed(sse(START, begin(0, type="text", text="a")))) == 2
    with pytest.raises(StreamError) as caught:
        decoder.feed(sse(event))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("parts", [(), (START,), (START, begin(0, type="text", text="a"))])
def test_truncated(parts: tuple[dict[str, Any], ...]) -> None:
    _, decoder = feed(sse(*parts), b"data: [DONE]\n\n")
    with pytest.raises(UpstreamDisconnected) as caught:
        decoder.finish()
    assert caught.value.received and not decoder.is_finished


def test_last_event_without_its_blank_line() -> None:
    events, decoder = feed(sse(START, end())[:-2])
    assert events == [Started("m1")]
    assert decoder.finish() == [Finished("stop", "COMPLETE")]
    assert decoder.is_finished


def test_nothing_is_read_after_the_end() -> None:
    events, decoder = feed(sse(end(), piece(0, text="late"), {"message": "x"}), sse({"type": "error"}))
    assert events == [Finished("stop", "COMPLETE")] and decoder.finish() == []


@pytest.mark.parametrize(
    "data",
    [
        b"data: {\n\n",
        b"data: 7\n\n",
        b'data: {"type":7}\n\n',
        b'data: {"type":"content-delta","delta":{"message":{"content":{"text":7}}}}\n\n',
        b'data: {"type":"content-delta","delta":[]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        sse(delta("tool-call-start", 0)),
        sse(call(0, function={"name": "f"})),
        sse(call(0, id="a")),
        sse(call(-1, id="a", function={"name": "f"})),
        sse(call(1025, id="a", function={"name": "f"})),
        sse(call(0, id="a", function={"name": "f"}), call(0, id="b", function={"name": "f"})),
        sse(more(0, "{}")),
        b"data: " + b"x" * (5 * 1024 * 1024),
    ],
)
def test_not_this_protocol(data: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        feed(data)


def test_half_a_surrogate_pair_does_not_end_the_stream() -> None:
    broken = sse(piece(0, text="HALF")).replace(b"HALF", rb"\ud83d")
    events, _ = feed(broken, sse(piece(0, text="b"), end()))
    assert events == [TextDelta("\N{REPLACEMENT CHARACTER}"), TextDelta("b"), Finished("stop", "COMPLETE")]


V1 = [
    {"is_finished": False, "event_type": "stream-start", "generation_id": "g"},
    {"is_finished": False, "event_type": "search-results", "documents": []},
    {"is_finished": False, "event_type": "text-generation", "text": "Hé"},
    {"is_finished": False, "event_type": "tool-calls-chunk", "tool_call_delta": {"index": 0, "name": "f"}},
]
V1_END = {
    "is_finished": True,
    "event_type": "stream-end",
    "finish_reason": "COMPLETE",
    "response": {
        "response_id": "r",
        "text": "Hé",
        "finish_reason": "COMPLETE",
        "tool_calls": [{"name": "f", "parameters": {"a": 1}}],
        "citations": [{"start": 0, "end": 2, "text": "Hé", "document_ids": ["d"]}],
        "documents": [{"id": "d", "url": "https://a"}],
        "meta": {"billed_units": {"input_tokens": 4, "output_tokens": 2}},
    },
}


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)


def test_v1_lines_and_events() -> None:
    expected, decoder = feed(lines(*V1, V1_END))
    assert decoder.is_finished and decoder.finish() == []
    (choice,) = fold(expected).choices
    assert choice.parts[0] == Text("Hé", (Citation("https://a", None, 0, 2),))
    assert isinstance(choice.parts[1], ToolCall) and choice.parts[1].arguments == '{"a": 1}'
    assert (choice.finish, choice.raw_finish) == ("tool_calls", "COMPLETE")
    assert fold(expected).usage == Usage(input_tokens=4, output_tokens=2)
    bare, decoder = feed(b" \r\n", lines(*V1, V1_END)[:-1])  # the last line without its end
    assert bare + decoder.finish() == expected
    assert read(*V1, V1_END) == expected


def test_v1_text_only_at_the_end() -> None:
    events, _ = feed(lines(V1[0], V1_END))
    assert visible_text(fold(events).choices[0].parts) == "Hé"


def test_v1_truncated_or_failed() -> None:
    _, decoder = feed(lines(*V1))
    with pytest.raises(UpstreamDisconnected):
        decoder.finish()
    with pytest.raises(StreamError):
        feed(lines(*V1, {"event_type": "stream-end", "finish_reason": "ERROR", "response": {}}))
    with pytest.raises(StreamError):
        feed(lines(V1[0], {"message": "secret"}))


parts = st.one_of(
    st.builds(Text, st.text(min_size=1)),
    st.builds(Reasoning, st.text(min_size=1)),
    st.builds(ToolCall, st.text(min_size=1), st.text(min_size=1), st.text()),
)


def stream_of(content: list[Any]) -> bytes:
    """As Cohere would send these parts, each text in pieces."""
    events: list[dict[str, Any]] = [START]
    for index, part in enumerate(content):
        if isinstance(part, ToolCall):
            events.append(call(index, id=part.id, function={"name": part.name, "arguments": ""}))
            events += [more(index, letter) for letter in part.arguments]
        else:
            kind, text = ("text", part.text) if isinstance(part, Text) else ("thinking", part.text)
            events += [begin(index, type=kind), *(piece(index, **{kind: letter}) for letter in text)]
            events.append({"type": "content-end", "index": index})
    return b"".join(
        f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in [*events, end(usage=USAGE)]
    )


@given(st.lists(parts, max_size=4), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_any_answer_in_any_cut(content: list[Any], sizes: list[int]) -> None:
    data, chunks, start = stream_of(content), [], 0
    while start < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[start : start + size])
        start += size
    events, decoder = feed(*chunks)
    has_calls = any(isinstance(part, ToolCall) for part in content)
    assert decoder.is_finished and decoder.finish() == []
    answer = fold(events)
    assert answer == Answer(
        choices=[Choice(content, "tool_calls" if has_calls else "stop", "COMPLETE")],
        id="m1",
        usage=Usage(input_tokens=4, output_tokens=2),
        raw_usage=answer.raw_usage,
    )
