"""Streams: read into events, written from events, broken in every way."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.canonical import (
    Choice,
    Citation,
    CitationAdded,
    Event,
    Finished,
    LogprobsAdded,
    Media,
    Opaque,
    PartAdded,
    Reasoning,
    ReasoningDelta,
    ReasoningEnded,
    Refusal,
    RefusalDelta,
    Seal,
    Started,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.chat.wire import CHAT_PROTOCOL, CHAT_WIRE
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.types import Usage
from tests.protocols.chat.events import DONE, ROLE, STOP, USAGE_EVENT, decode, decode_answer, event, read, words
from tests.protocols.chat.sdk import chunks_of

GOOD = ROLE + b"".join(words("hé", "llo")) + STOP + USAGE_EVENT + DONE


def parts_of(*deltas: Any) -> list[Any]:
    answer = decode_answer(ROLE, *map(event, deltas), STOP, DONE)
    (choice,) = answer.choices
    return list(choice.parts)


def calls_of(*pieces: Any) -> list[Any]:
    return parts_of(*({"tool_calls": [piece]} for piece in pieces))


def call(index: int | None, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    fields = {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in fields.items() if value is not None}


def test_events_come_as_they_are_said() -> None:
    assert decode([GOOD]) == [
        Started("chatcmpl-1", "upstream-model", 1),
        TextDelta("hé"),
        TextDelta("llo"),
        Finished("stop", "stop"),
        UsageReported(
            Usage(input_tokens=10, output_tokens=5),
            msgspec.Raw(b'{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}'),
        ),
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole,
        lambda whole: whole.replace(b"\n", b"\r\n"),
        lambda whole: whole.replace(b"\n", b"\r"),
        lambda whole: whole.replace(b"data: ", b"data:"),
        lambda whole: whole.replace(b"data: ", b"event: x\nid: 1\ndata: "),
        lambda whole: whole.replace(b"data: ", b": OPENROUTER PROCESSING\n\ndata: "),
        lambda whole: b"\xef\xbb\xbf" + whole,
        lambda whole: whole.rstrip(b"\n"),
        lambda whole: whole.removesuffix(DONE),
        lambda whole: whole.removesuffix(b"\n\n" + DONE),
        lambda whole: whole + b"data: after the end\n\n",
    ],
)
def test_framing_and_cuts_do_not_matter(change: Any) -> None:
    whole = change(GOOD)
    expected = decode([GOOD])
    assert decode([whole]) == expected
    for size in (1, 2, 3, 5):
        assert decode(whole[at : at + size] for at in range(0, len(whole), size)) == expected


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([{"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "x"}], [Reasoning("hm"), Text("x")]),
        ([{"reasoning": "hm", "content": "x"}], [Reasoning("hm"), Text("x")]),
        ([{"reasoning": "hm", "reasoning_content": "hm"}], [Reasoning("hm")]),
        ([{"refusal": "n"}, {"refusal": "o"}], [Refusal("no")]),
        (
            [
                {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
                {"content": [{"type": "thinking", "thinking": [], "closed": True}]},
                {"content": "x"},
                {"content": [{"type": "text", "text": "y"}]},
            ],
            [Reasoning("hm"), Text("xy")],
        ),
        (
            [
                {"reasoning": "h", "reasoning_details": [{"type": "reasoning.text", "text": "h", "index": 0}]},
                {"reasoning": "m", "reasoning_details": [{"type": "reasoning.text", "text": "m", "index": 0}]},
                {"reasoning_details": [{"type": "reasoning.text", "signature": "s", "index": 0}], "content": ""},
                {"content": "x"},
            ],
            [Reasoning("hm", Seal('{"type":"reasoning.text","signature":"s"}', "chat")), Text("x")],
        ),
        (
            [
                {"reasoning_details": [{"type": "reasoning.summary", "summary": "a", "index": 0}]},
                {"reasoning_details": [{"type": "reasoning.summary", "summary": "b", "index": 1}]},
                {"reasoning_details": [{"type": "reasoning.encrypted", "data": "d", "id": "i", "index": 2}]},
            ],
            [
                Reasoning("a"),
                Reasoning("b"),
                Reasoning(
                    "", Seal('{"type":"reasoning.encrypted","data":"d","id":"i"}', "chat"), "i", is_redacted=True
                ),
            ],
        ),
        (
            [{"reasoning": "hm", "reasoning_details": [{"type": "reasoning.encrypted", "data": "d"}]}],
            [
                Reasoning("hm"),
                Reasoning("", Seal('{"type":"reasoning.encrypted","data":"d"}', "chat"), is_redacted=True),
            ],
        ),
        (
            [
                {"reasoning_content": "h", "thinking_blocks": [{"type": "thinking", "thinking": "h"}]},
                {"reasoning_content": "", "thinking_blocks": [{"type": "thinking", "signature": "s"}]},
            ],
            [Reasoning("h", Seal('{"type":"reasoning.text","signature":"s"}', "chat"))],
        ),
        (
            [{"images": [{"image_url": {"url": "data:image/png;base64,AAAA"}}]}],
            [Media("image", data="AAAA", media_type="image/png")],
        ),
        (
            [
                {"audio": {"id": "a", "transcript": "h"}},
                {"audio": {"data": "AA==", "transcript": "i"}},
                {"audio": {"data": "AQ=="}},
            ],
            [Text("hi"), Media("audio", data="AAE=")],
        ),
        ([{"function_call": {"name": "f"}}, {"function_call": {"arguments": "{}"}}], [
            ToolCall("call_chatcmpl-1_0_0", "f", "{}")]),
        ([{"content": "x", "function_call": {"name": "", "arguments": ""}, "tool_calls": None}], [Text("x")]),
    ],
)  # fmt: skip
def test_deltas(deltas: list[Any], expected: list[Any]) -> None:
    assert parts_of(*deltas) == expected


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([call(0, "1", "f", ""), call(0, arguments='{"a"'), call(0, arguments=":1}")], [("1", "f", '{"a":1}')]),
        ([call(0, "1", "f"), call(1, "2", "g", "{}")], [("1", "f", ""), ("2", "g", "{}")]),
        (
            [call(0, "1", "f"), call(1, "2", "g"), call(0, arguments="{}"), call(1, arguments="[]")],
            [("1", "f", "{}"), ("2", "g", "[]")],
        ),
        ([call(7, "1", "f", "{}"), call(3, "2", "g", "{}")], [("1", "f", "{}"), ("2", "g", "{}")]),
        # ids and names that are repeated
        ([call(0, "1", "f", "{"), call(0, "", "", "}")], [("1", "f", "{}")]),
        ([call(0, "1", "f", "{"), call(0, "1", "f", "}")], [("1", "f", "{}")]),
        # every call at index 0, or without one
        ([call(0, "1", "f", "{}"), call(0, "2", "g", "{}")], [("1", "f", "{}"), ("2", "g", "{}")]),
        (
            [call(0, "", "f", '{"a":1}'), call(0, "", "f", '{"a":2}')],
            [("call_chatcmpl-1_0_0", "f", '{"a":1}'), ("call_chatcmpl-1_0_1", "f", '{"a":2}')],
        ),
        (
            [call(None, "1", "f", "{"), call(None, arguments="}"), call(None, "2", "g", "{}")],
            [("1", "f", "{}"), ("2", "g", "{}")],
        ),
        # the name comes late, or never
        ([call(0, "1", arguments="{"), call(0, name="f", arguments="}")], [("1", "f", "{}")]),
        ([call(0, "1", arguments="{")], []),
        ([call(0, arguments="{}")], []),
        # an object where text is due
        ([call(0, "1", "f", {"a": 1.5})], [("1", "f", '{"a": 1.5}')]),
    ],
)
def test_tool_calls(pieces: list[Any], expected: list[Any]) -> None:
    assert calls_of(*pieces) == [ToolCall(*fields) for fields in expected]


def test_seals_of_calls() -> None:
    extra = {"extra_content": {"google": {"thought_signature": "sig"}}}
    sealed = [ToolCall("1", "f", "{}", Seal("sig", "chat")), ToolCall("2", "g", "{}")]
    assert calls_of({**call(0, "1", "f", "{}"), **extra}, call(1, "2", "g", "{}")) == sealed
    both = {"tool_calls": [call(0, "1", "f", "{}"), call(1, "2", "g", "{}")], **extra}
    assert parts_of(both) == sealed


@pytest.mark.parametrize(
    ("last", "finish"),
    [(STOP, "tool_calls"), (event({}, finish="tool_calls"), "tool_calls"), (b"", "tool_calls"),
     (event({}, finish=""), "tool_calls"), (event({}, finish="length"), "length")],
)  # fmt: skip
def test_a_call_is_why_a_stream_ends(last: bytes, finish: str) -> None:
    answer = decode_answer(ROLE, event({"tool_calls": [call(0, "1", "f", "{}")]}), last, DONE)
    assert answer.choices[0].finish == finish


def test_sources_of_the_whole_answer_stand_with_its_text() -> None:
    found = {
        "citations": ["https://a", "https://b"],
        "search_results": [{"url": "https://a", "title": "A"}],
    }
    note = {
        "type": "url_citation",
        "url_citation": {"url": "https://b", "title": "B", "start_index": 0, "end_index": 1},
    }
    events = decode([event({"content": "x"}, **found), event({"content": "y"}, finish="stop", **found), DONE])
    added = [found.citation for found in events if isinstance(found, CitationAdded)]
    assert added == [Citation("https://a", "A"), Citation("https://b")]
    answer = decode_answer(event({"content": "x", "annotations": [note]}, finish="stop", **found), DONE)
    assert answer.choices[0].parts == [Text("x", (Citation("https://b", "B", 0, 1), Citation("https://a", "A")))]
    assert not any(
        isinstance(found, CitationAdded) for found in decode([ROLE, event({}, finish="stop", **found), DONE])
    )


def test_choices_and_logprobs() -> None:
    items = [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    chunk = {
        "id": "1",
        "choices": [
            {"index": 1, "delta": {"content": "b"}, "finish_reason": "length"},
            {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": items}, "finish_reason": "stop"},
        ],
    }
    answer = decode_answer(f"data: {json.dumps(chunk)}\n\n".encode(), DONE)
    first, second = answer.choices
    assert (first.parts, second.parts, second.finish) == ([Text("a")], [Text("b")], "length")
    assert first.logprobs is not None and json.loads(bytes(first.logprobs)) == items


@pytest.mark.parametrize("odd", [None, {"content": None}, {"content": []}, {"content": {"a": 1}}, [0.5], 5])
def test_logprobs_of_another_form_are_left_out(odd: Any) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": odd, "finish_reason": "stop"}]}
    (choice,) = decode_answer(f"data: {json.dumps(chunk)}\n\n".encode(), DONE).choices
    assert (choice.parts, choice.logprobs) == ([Text("a")], None)


def test_usage_and_its_tier() -> None:
    x = {"content": "x"}
    assert decode_answer(event(x, finish="stop", x_groq={"usage": {"prompt_tokens": 1, "completion_tokens": 2}}), DONE
                         ).usage == Usage(input_tokens=1, output_tokens=2)  # fmt: skip
    counts = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 9}
    answer = decode_answer(event(x, finish="stop", usage=counts, service_tier="flex"), DONE)
    assert (answer.usage, answer.service_tier) == (Usage(input_tokens=1, output_tokens=2), "flex")
    answer = decode_answer(event(x, finish="stop", usage=counts), DONE, dialect=Dialect(reasoning_tokens="total"))
    assert answer.usage == Usage(input_tokens=1, output_tokens=2, reasoning_tokens=6)
    answer = decode_answer(event(x, finish="stop", service_tier="flex"), DONE)
    assert (answer.usage, answer.raw_usage, answer.service_tier) == (None, None, "flex")
    broken = {"prompt_tokens": 1, "completion_tokens": -2}
    answer = decode_answer(event(x, finish="stop", usage=broken), DONE)
    assert answer.usage is None and answer.raw_usage is not None and json.loads(bytes(answer.raw_usage)) == broken


def test_done_without_a_finish_reason_is_an_end() -> None:
    assert decode_answer(ROLE, *words("x"), DONE).choices == [Choice([Text("x")], "unknown")]


@pytest.mark.parametrize("ending", [b"", b": ping\n\n", words("half")[0][:-20], b"data: \n\n"])
def test_an_end_without_a_finish_reason_is_a_disconnection(ending: bytes) -> None:
    with pytest.raises((UpstreamDisconnected, UpstreamProtocolError)) as caught:
        decode([ROLE, *words("x"), ending])
    assert getattr(caught.value, "received", True)


@pytest.mark.parametrize("empty", [DONE, USAGE_EVENT + DONE, b": ping\n\n" + DONE])
def test_done_without_a_choice_is_no_answer(empty: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        decode([empty])


@pytest.mark.parametrize(
    "broken",
    [
        b'data: {"error": {"message": "secret"}}\n\n',
        b'data: {"error": "secret"}\n\n',
        b'data: {"object": "error", "message": "secret"}\n\n',
        b'event: error\ndata: {"message": "secret"}\n\n',
        b'data: {"x_groq": {"error": "secret"}, "choices": []}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {}, "error": {"message": "secret"}}]}\n\n',
    ],
)
def test_an_error_event_is_raised_wherever_it_comes(broken: bytes) -> None:
    for before in (b"", ROLE, ROLE + words("x")[0], ROLE + STOP):
        with pytest.raises(StreamError) as caught:
            decode([before, broken])
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "broken",
    [
        b"data: nonsense\n\n",
        b"data: []\n\n",
        b'data: {"choices": [{"index": -1, "delta": {}}]}\n\n',
        b'data: {"choices": [{"index": 1025, "delta": {}}]}\n\n',
        b'data: {"choices": [{"index": 0, "delta": {"content": 5}}]}\n\n',
        event({"tool_calls": [call(1025, "1", "f")]}),
        event({"tool_calls": [call(-1, "1", "f")]}),
        event({"tool_calls": [call(None, str(n), "f") for n in range(1025)]}),
        event({"tool_calls": [call(0, "1", "f", 5)]}),
        b"data: " + b"[" * 5000 + b"\n\n",
        b"data: " + b"x" * (MAX_EVENT_BYTES + 1),
    ],
)
def test_what_is_no_chunk(broken: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        decode([ROLE, broken])


def test_broken_characters_do_not_cost_the_stream() -> None:
    bytes_apart = b'data: {"choices": [{"index": 0, "delta": {"content": "\xff"}}]}\n\n'
    assert decode_answer(bytes_apart, DONE).choices[0].parts == [Text("\ufffd")]
    detail = b'{"type": "reasoning.encrypted", "data": "d", "format": "\xff"}'
    kept = b'data: {"choices": [{"index": 0, "delta": {"reasoning_details": [' + detail + b"]}}]}\n\n"
    (thought,) = decode_answer(kept, DONE).choices[0].parts
    assert isinstance(thought, Reasoning) and thought.seal is not None and "\ufffd" in thought.seal.value
    halves = b'data: {"choices": [{"index": 0, "delta": {"content": "a\\ud83d"}}]}\n\n'
    answer = decode_answer(ROLE, halves, b'data: {"choices":[{"index":0,"delta":{"content":"\\\\ud83d"}}]}\n\n', DONE)
    assert answer.choices[0].parts == [Text("a\ufffd\\ud83d")]


LINES = st.sampled_from(
    [
        *(ROLE, words("x")[0], STOP, USAGE_EVENT, DONE, b"data: ", b"\n", b"\r\n", b"\n\n", b"event: error\n"),
        *(b'{"choices": [', b"]}", b'"usage": {', b'"error": {"', b"\xff", b"\xc3", b"\xef\xbb\xbf", b"[" * 3000),
        event({"tool_calls": [call(0, "1", "f", "{")]}),
        event({"tool_calls": [call(None, arguments="}")]}),
        event({"reasoning_details": [{"type": "reasoning.text", "text": "x", "index": 1}]}),
        b'data: {"choices": [{"index": 0, "delta": {"content": "\\ud800"}}], "usage": {"prompt_tokens": 1e999}}\n\n',
    ]
)


@given(pieces=st.lists(st.binary(max_size=40) | LINES, max_size=10), size=st.integers(1, 99))
def test_whatever_comes_is_read_the_same_in_any_cut(pieces: list[bytes], size: int) -> None:
    whole = b"".join(pieces)

    def run(parts: list[bytes]) -> Any:
        try:
            return decode(parts)
        except UpstreamError as error:
            return type(error)

    assert run([whole]) == run([whole[at : at + size] for at in range(0, len(whole), size)])


# Writing


def write(*events: Event, **fields: Any) -> bytes:
    writer = CHAT_PROTOCOL.open_writer(read(stream=True, **fields))
    return b"".join([*map(writer.write, events), writer.end()])


def deltas_of(stream: bytes) -> list[Any]:
    """Those that say something, less the usage."""
    chunks = [json.loads(event[6:]) for event in stream.split(b"\n\n")[:-2]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [delta for delta in deltas if delta and delta != {"role": "assistant", "content": ""}]


STARTED = Started("msg_1", "up", 7)


def test_a_stream_is_written() -> None:
    usage = UsageReported(Usage(input_tokens=1, output_tokens=2), service_tier="standard")
    first, second = Finished("stop"), Finished("length", choice=1)
    events: list[Event] = [STARTED, usage, TextDelta("h"), TextDelta("i", 1), first, second, TextDelta("!")]
    stream = write(*events, stream_options={"include_usage": True})
    chunks = chunks_of(stream)
    assert {(chunk.id, chunk.model, chunk.created) for chunk in chunks} == {("msg_1", "up", 7)}
    said = [
        (choice.index, choice.delta.role, choice.delta.content, choice.finish_reason)
        for chunk in chunks
        for choice in chunk.choices
    ]
    assert said == [
        (0, "assistant", "", None),
        (0, None, "h", None),
        (1, "assistant", "", None),
        (1, None, "i", None),
        (0, None, "!", None),
        (0, None, None, "stop"),
        (1, None, None, "length"),
    ]
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage is not None] == [3]
    assert chunks[-1].usage is not None and chunks[-1].choices == []


def test_usage_is_shown_to_those_who_ask() -> None:
    usage = UsageReported(Usage(input_tokens=1, output_tokens=2))
    assert b"usage" not in write(STARTED, TextDelta("x"), usage)
    unknown = write(STARTED, TextDelta("x"), UsageReported(None), stream_options={"include_usage": True})
    assert b"usage" not in unknown


def test_a_stream_without_a_beginning() -> None:
    first, *_ = chunks_of(write(TextDelta("x")))
    assert first.id.startswith("chatcmpl-") and first.created > 1_700_000_000 and first.model == "m"
    chunks_of(write())


@pytest.mark.parametrize(
    ("events", "deltas"),
    [
        ([RefusalDelta("no")], [{"refusal": "no"}]),
        ([ReasoningDelta("h"), ReasoningDelta("m"), TextDelta("x"), ReasoningDelta("so")], [
            {"reasoning_content": "h", "reasoning_details": [{"type": "reasoning.text", "text": "h", "index": 0}]},
            {"reasoning_content": "m", "reasoning_details": [{"type": "reasoning.text", "text": "m", "index": 0}]},
            {"content": "x"},
            {"reasoning_content": "so", "reasoning_details": [{"type": "reasoning.text", "text": "so", "index": 1}]},
        ]),
        ([ReasoningDelta("h"), ReasoningEnded(Seal("Sig", "messages")),
          ReasoningEnded(Seal("d", "messages"), is_redacted=True)], [
            {"reasoning_content": "h", "reasoning_details": [{"type": "reasoning.text", "text": "h", "index": 0}]},
            {"reasoning_details": [
                {"type": "reasoning.text", "signature": "hatchway.messages.Sig", "index": 0}]},
            {"reasoning_details": [
                {"type": "reasoning.encrypted", "data": "hatchway.messages.d", "index": 1}]},
        ]),
        ([ReasoningEnded()], []),
        ([ToolCallStarted(0, "1", "f", Seal("g", "gemini")), ToolCallDelta(0, '{"a":'), ToolCallDelta(0, "1}")], [
            {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""},
                             "extra_content": {"google": {"thought_signature": "hatchway.gemini.g"}}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        ]),
        ([ToolCallStarted(0, "1", "f"), ToolCallDelta(0, ""), ToolCallDelta(5, "{}")], [
            {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        ]),
        ([TextDelta("abc"), CitationAdded(Citation("https://a", "A", 1, 2)), TextDelta("de", begins_part=True),
          CitationAdded(Citation("https://b"))], [
            {"content": "abc"},
            {"annotations": [{"type": "url_citation", "url_citation": {
                "start_index": 1, "end_index": 2, "url": "https://a", "title": "A"}}]},
            {"content": "de"},
            {"annotations": [{"type": "url_citation", "url_citation": {
                "start_index": 3, "end_index": 5, "url": "https://b", "title": ""}}]},
        ]),
        ([PartAdded(Media("image", data="AAAA", media_type="image/png"))], [
            {"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "index": 0}]}]),
        ([PartAdded(Media("audio", data="AAAA"))], [
            {"audio": {"id": "audio", "data": "AAAA", "transcript": "", "expires_at": 0}}]),
        ([PartAdded(Opaque(msgspec.Raw(b"{}"), "messages")), PartAdded(Media("image", file_id="f"))], []),
        ([TextDelta("caf\ud83d")], [{"content": "caf\ufffd"}]),
    ],
)  # fmt: skip
def test_deltas_are_written(events: list[Event], deltas: list[Any]) -> None:
    stream = write(STARTED, *events, Finished("stop"))
    chunks_of(stream)
    assert deltas_of(stream) == deltas


def test_logprobs_are_written() -> None:
    items = [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]
    stream = write(STARTED, TextDelta("a"), LogprobsAdded(msgspec.Raw(json.dumps(items).encode())), Finished("stop"))
    (told,) = [chunk.choices[0].logprobs for chunk in chunks_of(stream) if chunk.choices[0].logprobs is not None]
    assert told.content is not None and told.content[0].token == "a"
    answer = decode_answer(stream)
    assert answer.choices[0].logprobs is not None and json.loads(bytes(answer.choices[0].logprobs)) == items


@pytest.mark.parametrize(
    ("events", "word"),
    [
        ([Finished("stop")], "stop"),
        ([TextDelta("x")], "stop"),
        ([ToolCallStarted(0, "1", "f")], "tool_calls"),
        ([RefusalDelta("no"), Finished("refusal")], "stop"),
        ([TextDelta("x"), Finished("refusal")], "content_filter"),
        ([TextDelta("x"), Finished("unknown"), Finished("length")], "length"),
    ],
)
def test_the_end_in_openai_s_words(events: list[Event], word: str) -> None:
    assert chunks_of(write(STARTED, *events))[-1].choices[0].finish_reason == word


def test_a_decoder_is_done_once_the_stream_says_so() -> None:
    decoder = CHAT_WIRE.open_decoder(PLAIN)
    decoder.feed(GOOD.removesuffix(DONE))
    assert not decoder.is_finished
    decoder.feed(DONE)
    assert decoder.is_finished
    assert decoder.finish() == []
