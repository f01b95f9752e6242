"""Anthropic's streams, read."""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec
import pytest

from gateway.canonical import (
    Citation,
    Finished,
    Opaque,
    Reasoning,
    Refusal,
    Seal,
    Started,
    Text,
    TextDelta,
    ToolCall,
    UsageReported,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import StreamError
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.protocols.messages.wire import MESSAGES_WIRE
from gateway.types import Usage
from tests.protocols.messages.shapes import (
    END,
    START,
    begun,
    decode,
    delta,
    ended,
    event,
    parts_of,
    scan,
    text_block,
)


def test_events_of_a_stream() -> None:
    assert decode(
        START, event("ping"), text_block(0, "Hel", "", "lo"), event("of_tomorrow", delta="x", message="y"), END
    ) == [
        Started("msg_1", "claude-x"),
        TextDelta("Hel", begins_part=True),
        TextDelta("lo"),
        Finished("stop", "end_turn"),
        UsageReported(Usage(input_tokens=3, output_tokens=9), msgspec.Raw(b'{"input_tokens":3,"output_tokens":9}')),
    ]


def test_thinking() -> None:
    thinking = begun(0, {"type": "thinking", "thinking": "", "signature": ""})
    assert parts_of(
        thinking,
        delta(0, "thinking_delta", thinking="Hm"),
        delta(0, "thinking_delta", thinking="."),
        delta(0, "signature_delta", signature="sig"),
        ended(0),
        begun(1, {"type": "thinking", "thinking": "", "signature": ""}),
        delta(1, "signature_delta", signature="omitted"),
        ended(1),
        begun(2, {"type": "redacted_thinking", "data": "enc"}),
        ended(2),
        begun(3, {"type": "thinking", "thinking": "all at once", "signature": "with it"}),
        ended(3),
        begun(4, {"type": "thinking", "thinking": ""}),
        ended(4),
        begun(5, {"type": "thinking", "thinking": "unsigned"}),
        ended(5),
        text_block(6, "Hi"),
    ) == [
        Reasoning("Hm.", Seal("sig", "messages")),
        Reasoning("", Seal("omitted", "messages")),
        Reasoning("", Seal("enc", "messages"), is_redacted=True),
        Reasoning("all at once", Seal("with it", "messages")),
        Reasoning("unsigned"),
        Text("Hi"),
    ]


def test_calls() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    assert parts_of(
        begun(0, call),
        delta(0, "input_json_delta", partial_json=""),
        delta(0, "input_json_delta", partial_json='{"a":'),
        delta(0, "input_json_delta", partial_json=" 1}"),
        ended(0),
        begun(1, {**call, "id": "t2"}),
        ended(1),
        begun(2, {**call, "id": "t3", "input": {"b": 2}}),
        ended(2),
    ) == [ToolCall("t1", "f", '{"a": 1}'), ToolCall("t2", "f", "{}"), ToolCall("t3", "f", '{"b": 2}')]


def test_blocks_side_by_side() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    assert parts_of(
        begun(0, call),
        begun(1, {**call, "id": "t2"}),
        delta(1, "input_json_delta", partial_json='{"b"'),
        delta(0, "input_json_delta", partial_json='{"a"'),
        delta(1, "input_json_delta", partial_json=":2}"),
        delta(0, "input_json_delta", partial_json=":1}"),
    ) == [ToolCall("t1", "f", '{"a":1}'), ToolCall("t2", "f", '{"b":2}')]


def test_texts_stay_apart_and_citations_find_theirs() -> None:
    cited = {
        "type": "web_search_result_location",
        "url": "https://x",
        "title": "X",
        "cited_text": "",
        "encrypted_index": "",
    }
    assert parts_of(
        text_block(0, "a"),
        begun(1, {"type": "text", "text": "", "citations": []}),
        delta(1, "citations_delta", citation=cited),
        delta(1, "text_delta", text="b"),
        delta(1, "citations_delta", citation={"type": "char_location", "document_index": 0}),
        ended(1),
        begun(2, {"type": "text", "text": "c"}),
        delta(2, "text_delta", text="d"),
        ended(2),
    ) == [Text("a"), Text("b", (Citation("https://x", "X"),)), Text("cd")]


def test_blocks_of_server_tools_come_whole() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    found = {
        "type": "web_search_tool_result",
        "tool_use_id": "s",
        "content": [{"type": "web_search_result", "url": "u"}],
    }
    compacted = {"type": "compaction", "content": None}
    parts = parts_of(
        begun(0, search),
        delta(0, "input_json_delta", partial_json='{"query":'),
        delta(0, "input_json_delta", partial_json='"x"}'),
        ended(0),
        begun(1, found),
        ended(1),
        begun(2, compacted),
        delta(2, "compaction_delta", content="so far"),
        ended(2),
        begun(3, search),
        delta(3, "input_json_delta", partial_json="{broken"),
        ended(3),
    )
    assert [json.loads(bytes(part.raw)) for part in parts if isinstance(part, Opaque)] == [
        {**search, "input": {"query": "x"}},
        found,
        {**compacted, "content": "so far"},
        search,
    ]


def test_a_refusal_explains_itself() -> None:
    details = {"type": "refusal", "category": None, "explanation": "Not that."}
    stop = event("message_delta", delta={"stop_reason": "refusal", "stop_details": details}, usage={"output_tokens": 1})
    answer = fold(decode(START, text_block(0, "Well"), stop, event("message_stop")))
    assert answer.choices[0].parts == [Text("Well"), Refusal("Not that.")]
    assert answer.choices[0].finish == "refusal"


def test_usage_of_the_start_alone_holds_only_at_the_end() -> None:
    stop = event("message_delta", delta={"stop_reason": "max_tokens"})
    events = decode(START, text_block(0, "Hi"), stop, event("message_stop"))
    told = events[-1]
    assert isinstance(told, UsageReported) and told.usage == Usage(input_tokens=3, output_tokens=1)
    decoder = MESSAGES_WIRE.open_decoder(PLAIN)
    assert not any(isinstance(found, UsageReported) for found in decoder.feed(START + text_block(0, "Hi")))


def test_counts_that_contradict_each_other() -> None:
    stop = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": -1})
    (told,) = [
        found
        for found in decode(START, text_block(0, "x"), stop, event("message_stop"))
        if isinstance(found, UsageReported)
    ]
    assert told.usage is None and told.raw is not None


def test_streams_of_other_makers() -> None:
    """No names of events, other line ends, `[DONE]`, no `message_stop`, a last event without its blank line."""
    body = (
        START
        + text_block(0, "Hi")
        + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
    )
    bare = b"".join(line + b"\r\n" for line in body.split(b"\n") if not line.startswith(b"event:"))
    answer = fold(decode(bare + b"data: [DONE]"))
    assert answer.choices[0].parts == [Text("Hi")] and answer.usage == Usage(input_tokens=3, output_tokens=2)


@pytest.mark.parametrize(
    "pieces",
    [(), (START,), (START, text_block(0, "Hi")), (START, begun(0, {"type": "text", "text": ""})), (event("ping"),)],
)
def test_a_stream_that_breaks_off(pieces: Iterable[bytes]) -> None:
    with pytest.raises(UpstreamDisconnected) as raised:
        decode(*pieces)
    assert raised.value.received
    with pytest.raises(UpstreamDisconnected):
        scan(*pieces)


ERROR = {"error": {"type": "overloaded_error", "message": "sk-secret"}}


@pytest.mark.parametrize(
    "error",
    [
        event("error", **ERROR),
        b"data: " + json.dumps({"type": "error", **ERROR}).encode() + b"\n\n",
        b"data: " + json.dumps(ERROR).encode() + b"\n\n",
        b'event: error\ndata: {"message":"sk-secret"}\n\n',
        b"event:error\ndata: sk-secret\n\n",
    ],
)
@pytest.mark.parametrize("before", [b"", START, START + text_block(0, "Hi")])
def test_an_error_inside_a_stream(error: bytes, before: bytes) -> None:
    for read in (decode, scan):
        with pytest.raises(StreamError) as raised:
            read(before, error)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "broken",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: \xff\n\n",
        b"data: " + b"[" * 50_000 + b"\n\n",
        event("message_start", message="x"),
        event("message_stop"),
        event("content_block_start", index=0, content_block="x"),
        event("content_block_start", index=0),
        event("content_block_start", index=1024, content_block={"type": "text", "text": ""}),
        event("content_block_start", index=-1, content_block={"type": "text", "text": ""}),
        event("message_delta", delta={"stop_reason": 5}),
    ],
)
def test_what_is_no_stream(broken: bytes) -> None:
    for read in (decode, scan):
        with pytest.raises(UpstreamProtocolError):
            read(broken)


@pytest.mark.parametrize(
    "broken",
    [
        delta(0, "text_delta", text="x"),
        begun(0, {"type": "text", "text": ""}) + delta(0, "text_delta", text=5),
        begun(0, {"type": "tool_use", "id": 7, "name": "f"}),
    ],
)
def test_blocks_that_are_broken(broken: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        decode(START, broken, END)


def test_an_endless_event() -> None:
    for read in (decode, scan):
        with pytest.raises(UpstreamProtocolError):
            read(b"data: " + b"x" * (MAX_EVENT_BYTES + 1))


def test_half_a_surrogate_pair_does_not_lose_the_stream() -> None:
    half = delta(0, "text_delta", text="?").replace(b"?", rb"a\ud83d")
    assert parts_of(begun(0, {"type": "text", "text": ""}), half, ended(0)) == [Text("a\ufffd")]


def test_nothing_is_read_after_the_end() -> None:
    decoder = MESSAGES_WIRE.open_decoder(PLAIN)
    decoder.feed(START + text_block(0, "Hi") + END)
    assert decoder.is_finished
    assert decoder.feed(b"data: {broken\n\n" + text_block(1, "more")) == [] and decoder.finish() == []


def test_counts_before_the_end_are_no_usage_yet() -> None:
    so_far = event("message_delta", delta={}, usage={"output_tokens": 5})
    decoder = MESSAGES_WIRE.open_decoder(PLAIN)
    assert not any(isinstance(found, UsageReported) for found in decoder.feed(START + text_block(0, "Hi") + so_far))
    answer = fold(decode(START, text_block(0, "Hi"), so_far, END))
    assert answer.usage == Usage(input_tokens=3, output_tokens=9)
