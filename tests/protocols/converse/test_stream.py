"""Streams: every kind of block, errors, ends that come too early, and whole answers that say the same."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical import (
    Answer,
    Citation,
    Media,
    Opaque,
    Reasoning,
    Seal,
    Text,
    ToolCall,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import StreamError
from gateway.protocols.converse.wire import CONVERSE_WIRE
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.types import Usage
from tests.protocols.converse.frames import BEGIN, USAGE, delta, end, event, exception, start, stop, write_message


def read(*messages: bytes, cut: int = 1 << 20) -> Answer:
    decoder = CONVERSE_WIRE.open_decoder(PLAIN)
    body = b"".join(messages)
    events = [event for at in range(0, len(body), cut) for event in decoder.feed(body[at : at + cut])]
    return fold(events + decoder.finish())


def parts(*blocks: bytes) -> list[Any]:
    return read(BEGIN, *blocks, end()).choices[0].parts


def whole(*content: Any, reason: str = "end_turn", **fields: Any) -> Answer:
    message = {"role": "assistant", "content": list(content)}
    body = {"output": {"message": message}, "stopReason": reason, "usage": USAGE, "metrics": {"latencyMs": 1}}
    return CONVERSE_WIRE.read_answer(json.dumps(body | fields).encode(), PLAIN)


def test_texts_and_their_ends() -> None:
    answer = read(BEGIN, delta(0, text="a"), delta(0, text="b"), stop(0), delta(1, text=""), delta(1, text="c"), end())
    assert answer.choices[0].parts == [Text("ab"), Text("c")]
    assert (answer.choices[0].finish, answer.choices[0].raw_finish) == ("stop", "end_turn")
    assert answer.usage == Usage(input_tokens=10, output_tokens=5)
    assert answer.raw_usage is not None and json.loads(bytes(answer.raw_usage)) == USAGE


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "tool_calls"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_model_output", "error"),
        ("malformed_tool_use", "error"),
        ("something_new", "unknown"),
    ],
)
def test_finish_reasons(word: str, finish: str) -> None:
    for answer in (read(BEGIN, end(word)), whole(reason=word)):
        assert (answer.choices[0].finish, answer.choices[0].raw_finish) == (finish, word)


def test_calls() -> None:
    first = start(1, toolUse={"toolUseId": "a", "name": "f"})
    second = start(2, toolUse={"toolUseId": "b", "name": "g", "type": "tool_use"})
    pieces = [delta(1, toolUse={"input": piece}) for piece in ("", '{"x": ', "1.50}")]
    assert parts(delta(0, text="t"), stop(0), first, *pieces, stop(1), second, stop(2)) == [
        Text("t"),
        ToolCall("a", "f", '{"x": 1.50}'),
        ToolCall("b", "g", ""),
    ]
    with pytest.raises(UpstreamProtocolError, match="before the call"):
        read(BEGIN, delta(0, toolUse={"input": "{}"}))


def test_reasoning() -> None:
    def reason(index: int, **content: Any) -> bytes:
        return delta(index, reasoningContent=content)

    first, second = base64.b64encode(b"ab").decode(), base64.b64encode(b"cde").decode()
    found = parts(
        reason(0, text="th"),
        reason(0, text="ought"),
        reason(0, signature="si"),
        reason(0, signature="gn"),
        stop(0),
        reason(1, text="unsigned"),
        stop(1),
        reason(2, redactedContent=first),
        reason(2, redactedContent=second),
        stop(2),
        reason(3, redactedContent=second),
        reason(4, signature="alone"),
        stop(4),
        reason(5, text=""),
        stop(5),
        delta(6, text="so"),
    )
    assert found == [
        Reasoning("thought", Seal("sign", "converse")),
        Reasoning("unsigned"),
        Reasoning("", Seal(base64.b64encode(b"abcde").decode(), "converse"), is_redacted=True),
        Reasoning("", Seal(second, "converse"), is_redacted=True),
        Reasoning("", Seal("alone", "converse")),
        Text("so"),
    ]
    with pytest.raises(UpstreamProtocolError, match="base64"):
        parts(reason(0, redactedContent="YQ=="), reason(0, redactedContent="?"), stop(0))


def test_citations_are_of_the_text_beside_them() -> None:
    web = {"location": {"web": {"url": "https://a", "domain": "a"}}}
    source = {"title": "T", "source": "https://b", "location": {"searchResultLocation": {"start": 0, "end": 1}}}
    place = {"title": "facts", "location": {"documentChar": {"documentIndex": 0, "start": 0, "end": 9}}}
    streamed = parts(
        delta(0, citation=source),
        delta(0, text="cited"),
        delta(0, citation=place),
        stop(0),
        delta(1, text="plain"),
        stop(1),
        delta(2, citation=web),
        stop(2),
        delta(3, text="."),
    )
    said = [
        {"citationsContent": {"content": [{"text": "ci"}, {"text": "ted"}], "citations": [source, place]}},
        {"text": "plain"},
        {"citationsContent": {"citations": [web]}},
        {"text": "."},
    ]
    assert streamed == whole(*said).choices[0].parts
    assert streamed == [
        Text("cited", (Citation("https://b", "T", 0, 5),)),
        Text("plain", (Citation("https://a"),)),
        Text("."),
    ]
    assert whole({"citationsContent": {"citations": [web]}}).choices[0].parts == []


def test_blocks_of_bedrocks_own_tools() -> None:
    call = {"toolUseId": "a", "name": "nova_grounding", "type": "server_tool_use"}
    result = {"toolUseId": "a", "type": "nova_grounding_result", "status": "success"}
    text = {"text": "[HIDDEN]"}
    streamed = parts(
        start(0, toolUse=call),
        delta(0, toolUse={"input": '{"query":'}),
        delta(0, toolUse={"input": '"x"}'}),
        stop(0),
        start(1, toolResult=result),
        delta(1, toolResult=[text]),
        delta(1, toolResult=[{"json": {"n": 1}}]),
        stop(1),
    )
    said = [
        {"toolUse": call | {"input": {"query": "x"}}},
        {"toolResult": result | {"content": [text, {"json": {"n": 1}}]}},
    ]
    assert [json.loads(bytes(part.raw)) for part in streamed] == said
    assert [json.loads(bytes(part.raw)) for part in whole(*said).choices[0].parts] == said
    broken = parts(start(0, toolUse=call), delta(0, toolUse={"input": "{"}), stop(0))
    assert json.loads(bytes(broken[0].raw))["toolUse"]["input"] == "{"


def test_media_and_blocks_of_the_future() -> None:
    data = base64.b64encode(b"picture").decode()
    halves = [base64.b64encode(piece).decode() for piece in (b"pict", b"ure")]
    streamed = parts(
        start(0, image={"format": "png"}),
        *(delta(0, image={"source": {"bytes": half}}) for half in halves),
        stop(0),
        start(1, image={"format": "png"}),
        delta(1, image={"error": {"message": "no"}}),
        stop(1),
        start(2, hologram={"format": "x"}),
        delta(2, hologram={}),
        stop(2),
    )
    image = {"image": {"format": "png", "source": {"bytes": data}}}
    sound = {"audio": {"format": "mp3", "source": {"bytes": data}}}
    assert streamed == whole(image).choices[0].parts == [Media("image", data=data, media_type="image/png")]
    (heard, unknown) = whole(sound, {"hologram": {"a": 1}}).choices[0].parts
    assert heard == Media("audio", data=data, media_type="audio/mpeg")
    assert unknown == Opaque(msgspec.Raw(b'{"hologram": {"a": 1}}'), "converse")


@given(st.integers(1, 400))
def test_any_cut_is_the_same(cut: int) -> None:
    body = (BEGIN, delta(0, text="grüße 😀 漢"), stop(0), start(1, toolUse={"toolUseId": "a", "name": "f"}), end())
    assert read(*body, cut=cut) == read(*body)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
blocks = st.one_of(
    st.builds(lambda text: {"text": text}, texts),
    st.builds(lambda name, value: {"toolUse": {"toolUseId": "id", "name": name, "input": {"v": value}}}, texts, texts),
    st.builds(lambda text: {"reasoningContent": {"reasoningText": {"text": text}}}, texts),
    st.builds(
        lambda text, seal: {"reasoningContent": {"reasoningText": {"text": text, "signature": seal}}}, texts, texts
    ),
    st.builds(lambda data: {"reasoningContent": {"redactedContent": base64.b64encode(data).decode()}}, st.binary()),
)


@given(st.lists(blocks, max_size=8), st.integers(1, 3), st.integers(1, 300))
def test_streams_say_what_answers_say(content: list[Any], piece: int, cut: int) -> None:
    messages: list[bytes] = []
    for index, block in enumerate(content):
        ((kind, value),) = block.items()
        if kind == "toolUse":
            messages.append(start(index, toolUse={"toolUseId": value["toolUseId"], "name": value["name"]}))
            said = [("toolUse", {"input": json.dumps(value["input"])})]
        elif kind == "text":
            said = [("text", value[at : at + piece]) for at in range(0, len(value), piece)]
        else:
            fields = value.get("reasoningText", value)
            said = [("reasoningContent", {name: field}) for name, field in fields.items()]
        messages += [delta(index, **{name: field}) for name, field in said]
        messages.append(stop(index))
    assert read(BEGIN, *messages, end(), cut=cut) == whole(*content)


# Usage and ends


def test_the_end_comes_with_the_usage() -> None:
    message_stop, metadata = event("messageStop", {"stopReason": "end_turn"}), event("metadata", {"usage": USAGE})
    decoder = CONVERSE_WIRE.open_decoder(PLAIN)
    decoder.feed(BEGIN + delta(0, text="a") + message_stop)
    assert not decoder.is_finished
    decoder.feed(metadata[:-3])
    assert not decoder.is_finished
    decoder.feed(metadata[-3:])
    assert decoder.is_finished and decoder.finish() == []

    lost = read(BEGIN, delta(0, text="a"), message_stop, metadata[:-3])  # the answer is whole, its usage unknown
    assert lost.choices[0].parts == [Text("a")] and lost.usage is None and lost.choices[0].finish == "stop"
    assert read(BEGIN, metadata, message_stop).usage is not None


@pytest.mark.parametrize("messages", [(), (BEGIN,), (BEGIN, delta(0, text="a")), (BEGIN, delta(0, text="a"), stop(0))])
def test_an_answer_cut_off(messages: tuple[bytes, ...]) -> None:
    decoder = CONVERSE_WIRE.open_decoder(PLAIN)
    decoder.feed(b"".join(messages) + end()[:20])
    with pytest.raises(UpstreamDisconnected) as caught:
        decoder.finish()
    assert caught.value.received


def test_stop_sequences_and_tiers() -> None:
    met = {"delta": {"stop_sequence": "END"}}
    streamed = read(
        BEGIN,
        event("messageStop", {"stopReason": "stop_sequence", "additionalModelResponseFields": met}),
        event("metadata", {"usage": USAGE, "serviceTier": {"type": "flex"}}),
    )
    said = whole(
        reason="stop_sequence",
        additionalModelResponseFields={"stop_sequence": "END"},
        serviceTier={"type": "flex"},
    )
    for answer in (streamed, said):
        assert (answer.choices[0].stop_sequence, answer.service_tier) == ("END", "flex")
    assert whole(additionalModelResponseFields=[1]).choices[0].stop_sequence is None


# Errors


@pytest.mark.parametrize(
    "name", ["throttlingException", "modelStreamErrorException", "validationException", "internalServerException"]
)
def test_exceptions(name: str) -> None:
    decoder = CONVERSE_WIRE.open_decoder(PLAIN)
    with pytest.raises(StreamError, match=f"`{name}`") as caught:
        decoder.feed(BEGIN + delta(0, text="a") + exception(name, "the key sk-secret is over its limit"))
    assert "secret" not in str(caught.value)


def test_errors_of_the_stream_itself() -> None:
    headers = [(":message-type", 7, "error"), (":error-code", 7, "a key: secret"), (":error-message", 7, "secret")]
    with pytest.raises(StreamError) as caught:
        read(BEGIN, write_message(headers, b""))
    assert "secret" not in str(caught.value)
    with pytest.raises(StreamError, match="throttlingException"):
        read(BEGIN, event("throttlingException", {"message": "slow down"}))


@pytest.mark.parametrize(
    "message",
    [
        event("contentBlockDelta", b"{"),
        event("contentBlockDelta", b'{"delta":{"text":7},"contentBlockIndex":0}'),
        event("contentBlockDelta", b'{"x":' * 20_000),
        event("contentBlockDelta", {"delta": {"text": "a"}}),
        event("contentBlockStart", {"start": {"toolUse": {"name": "f"}}, "contentBlockIndex": 0}),
        event("messageStop", {}),
        event("metadata", b"[]"),
        delta(1025, text="a"),
        delta(-1, text="a"),
    ],
    ids=["no JSON", "type", "depth", "index missing", "id missing", "reason", "list", "large", "negative"],
)
def test_malformed_events(message: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(BEGIN, message)


def test_what_is_held_is_bounded() -> None:
    decoder = CONVERSE_WIRE.open_decoder(PLAIN)
    piece = delta(0, reasoningContent={"signature": "x" * 500_000})
    with pytest.raises(UpstreamProtocolError, match="too long"):
        for _ in range(MAX_EVENT_BYTES // 500_000 + 1):
            decoder.feed(piece)
    decoder = CONVERSE_WIRE.open_decoder(PLAIN)
    with pytest.raises(UpstreamProtocolError, match="too many"):
        decoder.feed(b"".join(delta(index % 2, text="a") for index in range(1100)))


def test_unknown_events_are_passed_over() -> None:
    assert read(BEGIN, event("heartbeat", b"not JSON"), delta(0, text="a"), end()).choices[0].parts == [Text("a")]


def test_half_a_character_does_not_cost_the_answer() -> None:
    broken = b'{"contentBlockIndex":0,"delta":{"text":"a\\ud83d \\\\ud83d \\ud83d\\ude00 \\udc00"}}'
    assert parts(event("contentBlockDelta", broken)) == [Text("a\ufffd \\ud83d 😀 \ufffd")]


# Whole answers


@pytest.mark.parametrize("key", ["message", "Message"])
def test_an_error_in_place_of_an_answer(key: str) -> None:
    with pytest.raises(StreamError) as caught:
        CONVERSE_WIRE.read_answer(json.dumps({key: "the key sk-secret is bad"}).encode(), PLAIN)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"output":{"message":{"content":[]}}}',
        b'{"output":{},"stopReason":"end_turn"}',
        b'{"output":{"message":{"content":[7]}},"stopReason":"end_turn"}',
        b'{"output":{"message":{"content":[{"text":7}]}},"stopReason":"end_turn"}',
        b'{"output":{"message":{"content":[{"toolUse":{"name":"f"}}]}},"stopReason":"end_turn"}',
        b'{"output":{"message":{"content":[' + b"{}," * 1024 + b'{}]}},"stopReason":"end_turn"}',
        b'{"a":' * 20_000,
    ],
)
def test_malformed_answers(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        CONVERSE_WIRE.read_answer(body, PLAIN)


BODY = b"""{"output":{"message":{"content":[{"text":"a"},{"toolUse":{"toolUseId":"i","name":"f","input":{"b":1}}},
{"reasoningContent":{"reasoningText":{"text":"t","signature":"s"}}},{"citationsContent":{"content":[{"text":"c"}],
"citations":[{"location":{"web":{"url":"u"}}}]}}]}},"stopReason":"end_turn","usage":{"inputTokens":1,"outputTokens":2,
"cacheDetails":[{"ttl":"1h","inputTokens":0}]},"additionalModelResponseFields":{"delta":{}},"serviceTier":{}}"""
junk = st.binary(max_size=3) | st.sampled_from(
    [b"null", b"7", b"[]", b"{}", b'""', b"[" * 9000, b"1e999", b'"\\ud800"']
)


@given(st.integers(0, len(BODY)), st.integers(0, 20), junk)
@settings(max_examples=300)
def test_damaged_answers_fail_in_one_way(place: int, size: int, junk: bytes) -> None:
    body = BODY[:place] + junk + BODY[place + size :]
    for read_it in (
        lambda: CONVERSE_WIRE.read_answer(body, PLAIN),
        lambda: read(BEGIN, event("contentBlockDelta", body), end()),
        lambda: read(BEGIN, event("metadata", body), end()),
    ):
        try:
            assert isinstance(read_it(), Answer)
        except (UpstreamProtocolError, StreamError):
            pass


@given(st.integers(0, len(BODY)), junk)
def test_values_of_other_types_fail_in_one_way(place: int, junk: bytes) -> None:
    """In place of a whole value, so that the JSON stays whole."""
    values = [*re.finditer(rb'(?<=:)("[^"]*"|\d+|\[\]|\{\})', BODY)]
    value = values[place % len(values)]
    body = BODY[: value.start()] + junk + BODY[value.end() :]
    try:
        assert isinstance(CONVERSE_WIRE.read_answer(body, PLAIN), Answer)
    except UpstreamProtocolError:
        pass


def test_arguments_keep_their_bytes() -> None:
    body = b'{"output":{"message":{"content":[{"toolUse":{"toolUseId":"a","name":"f","input":{"b": 1.50,"a":2}}}]}},"stopReason":"tool_use"}'  # noqa: E501  as it comes
    answer = CONVERSE_WIRE.read_answer(body, PLAIN)
    assert answer.choices[0].parts == [ToolCall("a", "f", '{"b": 1.50,"a":2}')] and answer.usage is None
