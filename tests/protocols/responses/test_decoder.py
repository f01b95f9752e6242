"""The decoder on hand-made answers and streams: what servers leave out, repeat, mix up and break off."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical import (
    Citation,
    Finished,
    Opaque,
    Reasoning,
    Refusal,
    Seal,
    Started,
    Text,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold, visible_text
from gateway.protocols.base import StreamError
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.protocols.responses.answer import read_count
from gateway.protocols.responses.wire import RESPONSES_WIRE
from gateway.types import Usage
from tests.protocols.responses.shapes import (
    CREATED,
    USAGE,
    added,
    body,
    call,
    completed,
    decode,
    decode_answer,
    delta,
    done,
    event,
    message,
    reasoning,
    text,
)

URL = {"type": "url_citation", "url": "http://x", "title": "X", "start_index": 0, "end_index": 2}
FILE = {"type": "file_citation", "file_id": "f", "filename": "n", "index": 1}
TOKEN = {"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": []}


def whole(*output: Any, **fields: Any) -> Any:
    return RESPONSES_WIRE.read_answer(body(*output, **fields), PLAIN)


def parts(*output: Any, **fields: Any) -> Any:
    return whole(*output, **fields).choices[0].parts


# Whole answers


def test_an_answer_is_read_whole() -> None:
    sealed = reasoning("I ", "think", encrypted="sig")
    answer = whole(sealed, message(text("hello", URL, FILE)), call(), service_tier="flex")
    assert (answer.id, answer.model, answer.created, answer.service_tier) == ("resp_1", "served", 17, "flex")
    (choice,) = answer.choices
    assert choice.parts == [
        Reasoning("I think", Seal("sig", "responses"), "rs_1"),
        Text("hello", (Citation("http://x", "X", 0, 2),)),
        ToolCall("call_1", "f", '{"a":1}'),
    ]
    assert (choice.finish, choice.raw_finish) == ("tool_calls", "completed")
    assert answer.usage == Usage(input_tokens=6, cache_read_tokens=4, output_tokens=5, reasoning_tokens=2)
    assert json.loads(bytes(answer.raw_usage)) == USAGE


def test_reasoning_is_summary_text_and_seal() -> None:
    assert parts(reasoning("a", content=["b"])) == [Reasoning("ab", None, "rs_1")]
    assert parts(reasoning(encrypted="s")) == [Reasoning("", Seal("s", "responses"), "rs_1", is_redacted=True)]
    assert parts(reasoning()) == []
    foreign = Seal("s", "messages")
    assert parts(reasoning("a", encrypted="hatchway.messages.s")) == [Reasoning("a", foreign, "rs_1")]


def test_each_text_is_a_part_of_its_own() -> None:
    assert [part.text for part in parts(message("a", "", "b"), message("c"))] == ["a", "b", "c"]
    assert parts({"type": "message", "content": "plain"}) == [Text("plain")]


@pytest.mark.parametrize(
    ("status", "reason", "finish"),
    [
        ("completed", None, "stop"),
        ("incomplete", {"reason": "max_output_tokens"}, "length"),
        ("incomplete", {"reason": "content_filter"}, "content_filter"),
        ("incomplete", {"reason": "steered"}, "unknown"),
        ("incomplete", None, "unknown"),
    ],
)
def test_why_it_ended(status: str, reason: Any, finish: str) -> None:
    choice = whole(message("a"), status=status, incomplete_details=reason).choices[0]
    assert (choice.finish, choice.raw_finish) == (finish, status)
    streamed = decode_answer(CREATED, completed(message("a"), status=status, incomplete_details=reason))
    assert streamed.choices[0] == choice


def test_a_refusal_is_no_text() -> None:
    answer = whole(message({"type": "refusal", "refusal": "no"}))
    assert answer.choices[0].parts == [Refusal("no")] and answer.choices[0].finish == "refusal"
    place = {"content_index": 0}
    streamed = decode_answer(CREATED, delta("refusal", "n", **place), delta("refusal", "o", **place), completed())
    assert streamed.choices[0].parts == [Refusal("no")] and streamed.choices[0].finish == "refusal"


def test_calls_of_odd_shapes() -> None:
    assert parts(call(arguments={"a": [1.50]}))[0].arguments == '{"a": [1.5]}'
    assert parts(call(arguments=None))[0].arguments == parts(call(arguments=""))[0].arguments == ""
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": 'SELECT "a"'}
    assert parts(custom) == [ToolCall("c", "sql", json.dumps('SELECT "a"'))]
    with pytest.raises(UpstreamProtocolError):
        whole({**call(), "name": None})


def test_items_of_server_tools_are_opaque() -> None:
    search = {"type": "web_search_call", "id": "ws_1", "action": {"query": "x"}}
    (part,) = parts(search)
    assert isinstance(part, Opaque) and json.loads(bytes(part.raw)) == search and part.origin == "responses"
    (streamed,) = decode_answer(CREATED, added(0, search), done(0, search), completed(search)).choices[0].parts
    assert streamed == part


def test_a_compaction_is_read_as_an_answer() -> None:
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    compaction = {"object": "response.compaction", "output": [said, {"type": "compaction", "encrypted_content": "x"}]}
    answer = RESPONSES_WIRE.read_answer(json.dumps({**compaction, "usage": USAGE}).encode(), PLAIN)
    (choice,) = answer.choices
    assert visible_text(choice.parts) == "" and choice.raw_finish is None and isinstance(choice.parts[0], Opaque)
    assert answer.usage is not None


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (b"", UpstreamProtocolError),
        (b"<html>", UpstreamProtocolError),
        (b"[]", UpstreamProtocolError),
        (b"{}", UpstreamProtocolError),
        (b'{"output":null}', UpstreamProtocolError),
        (b'{"output":[1]}', UpstreamProtocolError),
        (b'{"output":[{"type":"message","content":7}]}', UpstreamProtocolError),
        (b'{"output":[{"type":"message","content":[{"type":"output_text","text":7}]}]}', UpstreamProtocolError),
        (b'{"output":[{"type":"reasoning","summary":"x"}]}', UpstreamProtocolError),
        (b'{"output":[{"type":"function_call","name":7}]}', UpstreamProtocolError),
        (b'{"output":[],"id":7}', UpstreamProtocolError),
        (b'{"output":' + b"[" * 100_000, UpstreamProtocolError),
        (b'{"output":[{"type":"message","content":"\xff"}]}', UpstreamProtocolError),
        (b'{"output":[],"status":"in_progress"}', UpstreamProtocolError),
        (b'{"output":[],"status":"cancelled"}', UpstreamProtocolError),
        (b'{"output":[],"status":"failed","error":{"code":"server_error","message":"sk-secret"}}', StreamError),
        (b'{"output":[],"status":"failed"}', StreamError),
        (b'{"error":{"message":"sk-secret"}}', StreamError),
        (b'{"code":"x","error":"sk-secret"}', StreamError),
    ],
)
def test_what_is_no_answer(found: bytes, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        RESPONSES_WIRE.read_answer(found, PLAIN)
    assert type(raised.value) is error and "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "found", [b"{}", b'{"input_tokens":-1}', b'{"input_tokens":"9"}', b'{"input_tokens":2e9}', b"x"]
)
def test_what_is_no_count(found: bytes) -> None:
    assert read_count(b'{"object":"response.input_tokens","input_tokens":16}') == 16
    with pytest.raises(UpstreamProtocolError):
        read_count(found)


def test_too_many_items() -> None:
    assert len(parts(*[message("a")] * 1025)) == 1025
    with pytest.raises(UpstreamProtocolError):
        whole(*[message("a")] * 1026)


# Streams

PLACE = {"content_index": 0}
STREAM = [
    CREATED,
    event("response.in_progress", response={"id": "other"}),
    added(0, {**reasoning(), "encrypted_content": "early"}),
    delta("reasoning_summary_text", "thin", summary_index=0),
    delta("reasoning_summary_text", "king", summary_index=0),
    event("response.reasoning_summary_text.done", output_index=0, summary_index=0, text="thinking"),
    done(0, reasoning("thinking", encrypted="late")),
    added(1, message()),
    delta("output_text", "hé", 1, **PLACE, logprobs=[TOKEN]),
    delta("output_text", "llo 😀", 1, **PLACE, logprobs=[]),
    event("response.output_text.annotation.added", output_index=1, content_index=0, annotation_index=0, annotation=URL),
    event("response.output_text.done", output_index=1, content_index=0, text="héllo 😀"),
    done(1, message(text("héllo 😀", URL, logprobs=[TOKEN]))),
    added(2, call(arguments="")),
    added(3, call("g", "", "call_2")),
    delta("function_call_arguments", "{}", 3),
    delta("function_call_arguments", '{"a"', 2),
    delta("function_call_arguments", ":1}", 2),
    event("response.function_call_arguments.done", output_index=2, arguments='{"a":1}'),
    done(2, call()),
    done(3, call("g", "{}", "call_2")),
    completed(
        reasoning("thinking", encrypted="late"), message(text("héllo 😀", URL)), call(), call("g", "{}", "call_2")
    ),
]
PARTS = [
    Reasoning("thinking", Seal("late", "responses"), "rs_1"),
    Text("héllo 😀", (Citation("http://x", "X", 0, 2),)),
    ToolCall("call_1", "f", '{"a":1}'),
    ToolCall("call_2", "g", "{}"),
]


def check(*pieces: bytes) -> None:
    answer = decode_answer(*pieces)
    (choice,) = answer.choices
    assert choice.parts == PARTS
    assert (choice.finish, choice.raw_finish) == ("tool_calls", "completed")
    assert json.loads(bytes(choice.logprobs)) == [TOKEN]
    assert (answer.id, answer.model, answer.created) == ("resp_1", "served", 17)
    assert answer.usage == Usage(input_tokens=6, cache_read_tokens=4, output_tokens=5, reasoning_tokens=2)


def test_a_stream_is_what_its_answer_is() -> None:
    check(b"".join(STREAM))
    events = decode(STREAM)
    assert [event for event in events if isinstance(event, Started)] == [Started("resp_1", "served", 17)]
    assert [event for event in events if isinstance(event, ToolCallStarted)] == [
        ToolCallStarted(0, "call_1", "f"),
        ToolCallStarted(1, "call_2", "g"),
    ]
    assert len([event for event in events if isinstance(event, ToolCallDelta)]) == 3
    assert isinstance(events[-2], Finished)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000])
def test_cuts_do_not_matter(size: int) -> None:
    stream = b"".join(STREAM)
    check(*[stream[at : at + size] for at in range(0, len(stream), size)])


@pytest.mark.parametrize(
    "change",
    [
        lambda stream: stream.replace(b"\n", b"\r\n"),
        lambda stream: stream.replace(b"\n", b"\r"),
        lambda stream: stream.replace(b"data: ", b"data:"),
        lambda stream: b": comment\n\n" + stream.replace(b"\n\n", b"\n\n: ping\n\n"),
        lambda stream: b"\n".join(line for line in stream.split(b"\n") if not line.startswith(b"event:")),
        lambda stream: stream + b"data: [DONE]\n\n",
        lambda stream: stream.rstrip(b"\n"),
        lambda stream: stream + b'data: {"type":"response.output_text.delta","delta":"late"}\n\n',
        lambda stream: stream.replace(b'"item_id": "x"', b'"item_id": "y", "obfuscation": "zz"'),
        lambda stream: stream.replace(b'{"type": ', b'{"extra": {"type": "error"}, "type": '),
    ],
)
def test_framing_does_not_matter(change: Any) -> None:
    check(change(b"".join(STREAM)))


def kinds(stream: list[bytes], *left_out: str) -> list[bytes]:
    return [piece for piece in stream if not any(f"event: {kind}\n".encode() in piece for kind in left_out)]


def test_names_are_in_the_event_line_where_the_data_has_none() -> None:
    stream = b"".join(STREAM)
    for piece in STREAM:
        name = piece.split(b"\n")[0].removeprefix(b"event: ")
        stream = stream.replace(b'{"type": "%b", ' % name, b"{")
    check(stream)


def test_what_is_left_out_comes_later() -> None:
    sealed = STREAM[:7]
    check(*sealed, *kinds(STREAM[7:], "response.output_item.done"))
    check(*kinds(STREAM, "response.output_text.annotation.added"))
    texts = ["output_text", "reasoning_summary_text", "function_call_arguments"]
    check(*kinds(STREAM, *[f"response.{kind}.done" for kind in texts]))
    check(*kinds(STREAM, "response.output_item.added"))
    check(*kinds(STREAM, *[f"response.{kind}.delta" for kind in texts], "response.output_text.annotation.added"))
    check(STREAM[0], STREAM[-1].replace(b'"end_index": 2}]', b'"end_index": 2}], "logprobs": [%b]' % _json(TOKEN)))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_an_item_under_way_is_finished_by_the_response() -> None:
    stream = [CREATED, added(0, message()), delta("output_text", "ab", **PLACE)]
    assert visible_text(decode_answer(*stream, completed(message("abc"))).choices[0].parts) == "abc"
    assert visible_text(decode_answer(*stream, completed(call())).choices[0].parts) == "ab"


def test_items_that_are_done_twice_come_once() -> None:
    items = [reasoning(encrypted="s"), {"type": "web_search_call", "id": "ws_1"}, message("a"), call()]
    once = [done(at, item) for at, item in enumerate(items)]
    assert decode_answer(CREATED, *once, *once, completed(*items)) == decode_answer(CREATED, *once, completed(*items))


def test_items_in_other_places_in_the_end_come_once() -> None:
    """A server that leaves a gap in the stream and none in the response."""
    stream = [CREATED, added(0, message()), delta("output_text", "a", 0, **PLACE), done(0, message("a"))]
    stream += [added(2, call()), delta("function_call_arguments", '{"a":1}', 2), done(2, call())]
    answer = decode_answer(*stream, completed(message("a"), call()))
    assert answer.choices[0].parts == [Text("a"), ToolCall("call_1", "f", '{"a":1}')]


def test_reasoning_that_is_finished_late() -> None:
    stream = [CREATED, added(0, reasoning()), delta("reasoning_text", "why", 0, **PLACE), added(1, message())]
    stream += [delta("output_text", "a", 1, **PLACE), done(0, reasoning(content=["why"], encrypted="s"))]
    parts = decode_answer(*stream, delta("output_text", "b", 1, **PLACE), completed()).choices[0].parts
    assert parts[:2] == [Reasoning("why"), Text("a")]
    assert parts[2] == Reasoning("", Seal("s", "responses"), "rs_1", is_redacted=True)
    assert visible_text(parts) == "ab"


def test_deltas_that_the_whole_contradicts_stand() -> None:
    answer = decode_answer(
        CREATED, delta("output_text", "ab", **PLACE), done(0, message("xyz")), completed(message("c"))
    )
    assert visible_text(answer.choices[0].parts) == "ab"


def test_a_custom_tools_input_is_a_string() -> None:
    item = {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": ""}
    pieces = [delta("custom_tool_call_input", piece) for piece in ('say "', "hi\n", 'é"')]
    final = {**item, "input": 'say "hi\né" now'}
    (found,) = decode_answer(CREATED, added(0, item), *pieces, done(0, final), completed()).choices[0].parts
    assert isinstance(found, ToolCall) and json.loads(found.arguments) == final["input"]


def test_halves_of_characters_do_not_cost_the_stream() -> None:
    half = delta("output_text", "X", **PLACE).replace(b'"X"', b'"a\\ud83d"')
    other = delta("output_text", "X", **PLACE).replace(b'"X"', b'"\\ude00b\\\\ud83d"')
    answer = decode_answer(CREATED, half, other, completed())
    assert visible_text(answer.choices[0].parts) == "a��b\\ud83d"


def test_bytes_that_are_no_characters_do_not_either() -> None:
    answer = decode_answer(CREATED, delta("output_text", "X", **PLACE).replace(b'"X"', b'"a\xffb"'), completed())
    assert visible_text(answer.choices[0].parts) == "a\ufffdb"


def test_usage_that_is_missing_or_wrong() -> None:
    assert decode_answer(CREATED, completed(usage=None)).usage is None
    wrong = decode_answer(CREATED, completed(usage={"input_tokens": 1, "output_tokens": -1}))
    assert wrong.usage is None and wrong.raw_usage is not None


@pytest.mark.parametrize(
    "piece",
    [
        event("error", code="server_error", message="sk-secret", param=None, sequence_number=1),
        event("error", error={"type": "x", "message": "sk-secret"}),
        b'data: {"error":{"message":"sk-secret"}}\n\n',
        b'data: {"code":"x","error":"sk-secret"}\n\n',
        b'event: error\ndata: {"message":"sk-secret"}\n\n',
        completed(status="failed", error={"code": "server_error", "message": "sk-secret"}),
        event("response.failed", error={"message": "sk-secret"}),
    ],
)
def test_errors_inside_a_stream(piece: bytes) -> None:
    for before in ([], [CREATED], STREAM[:10]):
        decoder = RESPONSES_WIRE.open_decoder(PLAIN)
        decoder.feed(b"".join(before))
        with pytest.raises(StreamError) as raised:
            decoder.feed(piece)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("length", range(len(STREAM)))
def test_a_stream_that_breaks_off(length: int) -> None:
    decoder = RESPONSES_WIRE.open_decoder(PLAIN)
    decoder.feed(b"".join(STREAM[:length]))
    with pytest.raises(UpstreamDisconnected):
        decoder.finish()


def test_a_mark_is_not_the_end() -> None:
    decoder = RESPONSES_WIRE.open_decoder(PLAIN)
    assert decoder.feed(CREATED + b"data: [DONE]\n\n") == [Started("resp_1", "served", 17)]
    with pytest.raises(UpstreamDisconnected):
        decoder.finish()


@pytest.mark.parametrize(
    "piece",
    [
        b"data: <html>\n\n",
        b"data: 7\n\n",
        b'data: {"type":7}\n\n',
        b'data: {"type":"response.output_text.delta","delta":7}\n\n',
        b'data: {"type":"response.output_item.done","item":7}\n\n',
        b'data: {"type":"response.created","response":7}\n\n',
        delta("output_text", "a", 1025, **PLACE),
        delta("output_text", "a", -1, **PLACE),
        delta("output_text", "a", 0, content_index=1025),
        b'data: {"type":"response.completed","response":' + b"[" * 100_000 + b"\n\n",
        b"data: " + b"x" * (MAX_EVENT_BYTES + 1),
    ],
)
def test_bytes_that_are_no_stream(piece: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        RESPONSES_WIRE.open_decoder(PLAIN).feed(piece)


def test_unknown_events_are_no_harm() -> None:
    odd = event("response.new_thing.delta", delta={"a": 1}, output_index=0, item={"type": "x"}, part=[1])
    assert decode_answer(CREATED, odd, event("keepalive"), completed(message("a"))).choices[0].parts == [Text("a")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=8), st.data())
def test_any_text_in_any_pieces(words: list[str], data: st.DataObject) -> None:
    text_whole = "".join(words)
    stream = b"".join(
        [CREATED, *[delta("output_text", word, **PLACE) for word in words], completed(message(text_whole))]
    )
    cut = data.draw(st.integers(0, len(stream)))
    assert visible_text(fold(decode([stream[:cut], stream[cut:]])).choices[0].parts) == text_whole
