"""Answers and streams of our own making: each kind of part, each way to fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.canonical import (
    Answer,
    Citation,
    Finished,
    Media,
    Opaque,
    Reasoning,
    Seal,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected, UpstreamProtocolError
from gateway.folding import fold
from gateway.protocols.base import StreamError
from gateway.protocols.gemini.calls import is_made
from gateway.protocols.gemini.wire import GEMINI_WIRE, read_count
from gateway.types import Usage


def candidate(*parts: dict[str, Any], finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    return {"content": {"role": "model", "parts": list(parts)}, **({"finishReason": finish} if finish else {}), **more}


def response(*candidates: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"candidates": list(candidates), "responseId": "r1", "modelVersion": "gemini-x", **more}).encode()


def read(*parts: dict[str, Any], **more: Any) -> Answer:
    return GEMINI_WIRE.read_answer(response(candidate(*parts, **more)), PLAIN)


def sse(*responses: bytes) -> bytes:
    return b"".join(b"data: " + item + b"\r\n\r\n" for item in responses)


def decode(*chunks: bytes) -> list[Any]:
    decoder = GEMINI_WIRE.open_decoder(PLAIN)
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    return events + decoder.finish()


def sealed(value: str) -> Reasoning:
    return Reasoning("", Seal(value, "gemini"), is_redacted=True)


# Parts


def test_plain_answer() -> None:
    body = response(
        candidate({"text": "Hel"}, {"text": "lo"}),
        createTime="2026-02-15T07:50:39.884152Z",
        usageMetadata={"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5, "serviceTier": "flex"},
    )
    answer = GEMINI_WIRE.read_answer(body, PLAIN)
    assert (answer.id, answer.model, answer.created, answer.service_tier) == ("r1", "gemini-x", 1771141839, "flex")
    assert answer.usage == Usage(input_tokens=3, output_tokens=2)
    assert json.loads(bytes(answer.raw_usage or b""))["totalTokenCount"] == 5
    (choice,) = answer.choices
    assert (choice.parts, choice.finish, choice.raw_finish) == ([Text("Hello")], "stop", "STOP")


def test_thoughts_and_signatures() -> None:
    thought = {"text": "hm", "thought": True}
    parts = read(thought, {"text": "x", "thoughtSignature": "s1"}, {"text": ""}).choices[0].parts
    assert parts == [Reasoning("hm"), sealed("s1"), Text("x")]
    parts = read({**thought, "thoughtSignature": "s1"}, {"text": "x"}, {"text": "", "thoughtSignature": "s2"})
    assert parts.choices[0].parts == [Reasoning("hm", Seal("s1", "gemini")), Text("x"), sealed("s2")]
    assert read({"text": "", "thought": True, "thoughtSignature": "s"}, {"text": "x"}).choices[0].parts == [
        sealed("s"),
        Text("x"),
    ]
    assert read({"thoughtSignature": "s"}, {"text": "x"}).choices[0].parts == [sealed("s"), Text("x")]


def test_media_and_opaque_parts() -> None:
    code = {"executableCode": {"language": "PYTHON", "code": "1"}, "thoughtSignature": "s1"}
    picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}, "thoughtSignature": "s2"}
    sketch = {"inlineData": {"mimeType": "image/png", "data": "BBBB"}, "thought": True}
    recording = {"fileData": {"mimeType": "audio/wav", "fileUri": "gs://a/b"}}
    parts = read({"text": "a"}, code, sketch, picture, recording).choices[0].parts
    assert isinstance(parts[1], Opaque) and json.loads(bytes(parts[1].raw)) == code and parts[1].origin == "gemini"
    assert [parts[0], *parts[2:]] == [
        Text("a"),
        sealed("s2"),
        Media("image", data="AAAA", media_type="image/png"),
        Media("audio", url="gs://a/b", media_type="audio/wav"),
    ]
    unknown = read({"somethingNew": {"a": 1}}, {"text": "b"}).choices[0].parts
    assert isinstance(unknown[0], Opaque) and unknown[1] == Text("b")


def test_calls() -> None:
    body = response(
        candidate(
            {"functionCall": {"name": "f", "args": {"a": 1.50, "b": [1, 2]}}, "thoughtSignature": "s"},
            {"functionCall": {"name": "f", "args": {"z": 1}}},
            {"functionCall": {"name": "g", "id": "given"}},
            {"functionCall": {"name": "g", "id": "given", "args": None}},
        )
    ).replace(b"1.5", b"1.500")
    choice = GEMINI_WIRE.read_answer(body, PLAIN).choices[0]
    calls = [part for part in choice.parts if isinstance(part, ToolCall)]
    assert [(call.name, call.arguments) for call in calls] == [
        ("f", '{"a":1.500,"b":[1,2]}'),
        ("f", '{"z":1}'),
        ("g", "{}"),
        ("g", "{}"),
    ]
    assert calls[0].seal == Seal("s", "gemini") and calls[1].seal is None
    assert calls[2].id == "given" and len({call.id for call in calls}) == 4
    assert [is_made(call.id) for call in calls] == [True, True, False, True]
    assert (choice.finish, choice.raw_finish) == ("tool_calls", "STOP")
    again = GEMINI_WIRE.read_answer(body, PLAIN).choices[0]
    assert again.parts == choice.parts
    other = GEMINI_WIRE.read_answer(body.replace(b'"r1"', b'"r2"'), PLAIN).choices[0]
    assert {part.id for part in other.parts} & {call.id for call in calls} == {"given"}


def test_ids_of_answers_without_one_of_their_own() -> None:
    call = {"candidates": [candidate({"functionCall": {"name": "f"}})]}
    counts = [{**call, "usageMetadata": {"promptTokenCount": count}} for count in (5, 6)]
    ids = {GEMINI_WIRE.read_answer(json.dumps(body).encode(), PLAIN).choices[0].parts[0].id for body in counts}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("raw", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "error"),
        ("UNEXPECTED_TOOL_CALL", "error"),
        ("OTHER", "error"),
        ("OF_TOMORROW", "unknown"),
    ],
)
def test_finish(raw: str, finish: str) -> None:
    choice = read({"text": "x"}, finish=raw).choices[0]
    assert (choice.finish, choice.raw_finish) == (finish, raw)


def test_every_documented_finish_is_known() -> None:
    from google.genai import types

    unknown = {
        reason.value
        for reason in types.FinishReason
        if read({"text": "x"}, finish=reason.value).choices[0].finish == "unknown"
    }
    assert unknown == {"FINISH_REASON_UNSPECIFIED"}


def test_an_answer_as_an_array() -> None:
    body = b" [" + response(candidate({"text": "a"}, finish=None)) + b"," + response(candidate({"text": "b"})) + b"]"
    assert GEMINI_WIRE.read_answer(body, PLAIN).choices[0].parts == [Text("ab")]


def test_blocked_prompt() -> None:
    body = json.dumps({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "modelVersion": "m"}).encode()
    for answer in (GEMINI_WIRE.read_answer(body, PLAIN), fold(decode(sse(body)))):
        choice = answer.choices[0]
        assert (choice.parts, choice.finish, choice.raw_finish) == ([], "content_filter", "PROHIBITED_CONTENT")


def test_several_candidates() -> None:
    body = response(candidate({"text": "a"}), candidate({"text": "b"}, finish="MAX_TOKENS", index=1))
    answer = GEMINI_WIRE.read_answer(body, PLAIN)
    assert [(choice.parts, choice.finish) for choice in answer.choices] == [
        ([Text("a")], "stop"),
        ([Text("b")], "length"),
    ]
    decoder = GEMINI_WIRE.open_decoder(PLAIN)
    decoder.feed(sse(response(candidate({"text": "a"}, index=0), candidate({"text": "b"}, finish=None, index=1))))
    assert not decoder.is_finished
    with pytest.raises(UpstreamDisconnected):
        decoder.finish()
    decoder.feed(sse(response(candidate({"text": "c"}, index=1))))
    assert not decoder.is_finished and decoder.finish() == [] and decoder.is_finished


def test_usage_may_follow_the_end() -> None:
    decoder = GEMINI_WIRE.open_decoder(PLAIN)
    decoder.feed(sse(response(candidate({"text": "a"}, finish=None), usageMetadata={"promptTokenCount": 1})))
    decoder.feed(sse(response(candidate({"text": "b"}))))
    assert not decoder.is_finished
    (reported,) = decoder.feed(sse(response(usageMetadata={"promptTokenCount": 2})))
    assert decoder.is_finished and isinstance(reported, UsageReported) and reported.usage == Usage(input_tokens=2)
    for body in (response(candidate({"text": "a"}), usageMetadata={"promptTokenCount": 1}), sse(response(candidate()))):
        assert fold(decode(body)).choices[0].raw_finish == "STOP"


def test_logprobs() -> None:
    tops = [{"candidates": [{"token": "a", "logProbability": -0.5}, {"token": "b", "logProbability": -2}]}]
    chosen = [{"token": "a", "tokenId": 5, "logProbability": -0.5}, {"token": "c", "logProbability": -1}]
    answer = read({"text": "ac"}, logprobsResult={"topCandidates": tops, "chosenCandidates": chosen})
    first, second = json.loads(bytes(answer.choices[0].logprobs or b""))
    assert (first["token"], first["logprob"], first["bytes"]) == ("a", -0.5, None)
    assert [(item["token"], item["logprob"]) for item in first["top_logprobs"]] == [("a", -0.5), ("b", -2)]
    assert (second["token"], second["top_logprobs"]) == ("c", [])


def test_citations() -> None:
    text = "Grüße. Paris is old."
    start = len("Grüße. ".encode())
    grounding = {
        "groundingChunks": [
            {"web": {"uri": "https://a", "title": "A"}},
            {"retrievedContext": {"fileSearchStore": "s", "text": "t"}},
            {"maps": {"uri": "https://m"}},
            {"web": {"uri": "https://unused"}},
        ],
        "groundingSupports": [
            {
                "segment": {"startIndex": start, "endIndex": start + 13, "text": "Paris is old."},
                "groundingChunkIndices": [0, 1, 9],
            },
            {"segment": {"startIndex": 1, "endIndex": 3, "text": "Grüße."}, "groundingChunkIndices": [2]},
            {"segment": {"startIndex": 1, "endIndex": 3, "text": "elsewhere"}, "groundingChunkIndices": [0]},
        ],
    }
    expected = (
        Citation("https://a", "A", 7, 20),
        Citation("https://m", None, 0, 6),
        Citation("https://a", "A"),
        Citation("https://unused"),
    )
    assert read({"text": text}, groundingMetadata=grounding).choices[0].parts == [Text(text, expected)]
    last = candidate({"text": "", "thoughtSignature": "s"}, groundingMetadata=grounding)
    early = candidate({"text": text[9:]}, finish=None, groundingMetadata=grounding)
    answer = fold(decode(sse(response(candidate({"text": text[:9]}, finish=None)), response(early), response(last))))
    assert answer.choices[0].parts == [Text(text, expected), sealed("s")]
    quoted = {
        "citationSources": [{"startIndex": 0, "endIndex": 6, "uri": "https://q", "license": "mit"}, {"endIndex": 4}]
    }
    assert read({"text": "quoted"}, citationMetadata=quoted).choices[0].parts == [
        Text("quoted", (Citation("https://q", None, 0, 6),))
    ]


# Streams


def test_stream_events() -> None:
    one = response(candidate({"text": "a"}, finish=None), usageMetadata={"trafficType": "ON_DEMAND"})
    two = response(
        candidate({"functionCall": {"name": "f", "args": {"x": 1}}}),
        usageMetadata={"promptTokenCount": 4, "candidatesTokenCount": 1, "trafficType": "ON_DEMAND_PRIORITY"},
    )
    _, text, started, delta, finished, usage = decode(sse(one, two))
    assert (
        text == TextDelta("a") and delta == ToolCallDelta(0, '{"x":1}') and finished == Finished("tool_calls", "STOP")
    )
    assert isinstance(started, ToolCallStarted) and (started.index, started.name) == (0, "f")
    assert isinstance(usage, UsageReported) and usage.usage == Usage(input_tokens=4, output_tokens=1)
    assert usage.service_tier == "priority"


def test_usage_of_events_is_put_together() -> None:
    early = {"promptTokenCount": 9, "candidatesTokenCount": 3, "cachedContentTokenCount": 4}
    events = decode(
        sse(
            response(candidate({"text": "a"}, finish=None), usageMetadata=early),
            response(candidate(), usageMetadata={"promptTokenCount": 10, "thoughtsTokenCount": 2}),
        )
    )
    usage = fold(events).usage
    assert usage == Usage(input_tokens=6, cache_read_tokens=4, output_tokens=3, reasoning_tokens=2)


def test_contradicting_usage_is_unknown_in_the_end() -> None:
    body = response(candidate({"text": "a"}), usageMetadata={"promptTokenCount": 1, "cachedContentTokenCount": 2})
    for answer in (fold(decode(sse(body))), GEMINI_WIRE.read_answer(body, PLAIN)):
        assert answer.usage is None and b"cachedContentTokenCount" in bytes(answer.raw_usage or b"")
    assert GEMINI_WIRE.read_answer(response(candidate({"text": "a"})), PLAIN).raw_usage is None


def _piece(path: str, **value: Any) -> dict[str, Any]:
    return {"functionCall": {"partialArgs": [{"jsonPath": path, **value}], "willContinue": True}}


def test_arguments_in_pieces() -> None:
    parts = [
        {"functionCall": {"name": "f", "willContinue": True}, "thoughtSignature": "s"},
        _piece("$.city", stringValue="New ", willContinue=True),
        _piece("$.city", stringValue="York", willContinue=True),
        _piece("$.places[0].name", stringValue="a"),
        _piece("$.places[1]['the \\'name\\'']", numberValue=2.0),
        _piece('$["deep"].x[1]', boolValue=False),
        _piece("$.city", stringValue=""),
        _piece("$.said", stringValue="first", willContinue=True),
        _piece("$.said", stringValue=" end"),
        _piece("$.said", stringValue="again"),
        _piece("$.half", numberValue=0.5),
        _piece("$.none", nullValue="NULL_VALUE"),
        {"functionCall": {}},
        {"functionCall": {}},
        {"functionCall": {"name": "f", "willContinue": True}},
        {"functionCall": {}},
        {"functionCall": {"name": "g", "args": {"a": 1}}},
        {"functionCall": {"name": "h", "willContinue": True}},
    ]
    events = decode(sse(*(response(candidate(part, finish=None)) for part in parts), response(candidate())))
    calls = [part for part in fold(events).choices[0].parts if isinstance(part, ToolCall)]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        (
            "f",
            {
                "city": "New York",
                "places": [{"name": "a"}, {"the 'name'": 2}],
                "deep": {"x": [None, False]},
                "said": "again",
                "half": 0.5,
                "none": None,
            },
        ),
        ("f", {}),
        ("g", {"a": 1}),
        ("h", {}),
    ]
    assert calls[0].seal == Seal("s", "gemini") and "\"the 'name'\":2}" in calls[0].arguments
    assert isinstance(events[1], ToolCallStarted)
    assert [type(event) for event in events[-2:]] == [ToolCallDelta, Finished]


@pytest.mark.parametrize(
    "piece",
    [
        {"jsonPath": "city", "stringValue": "a"},
        {"jsonPath": "$", "stringValue": "a"},
        {"jsonPath": "$[0]", "stringValue": "a"},
        {"jsonPath": "$.a[", "stringValue": "a"},
        {"jsonPath": "$.a[99999999]", "stringValue": "a"},
        {"jsonPath": "$" + ".a" * 65, "stringValue": "a"},
        {"jsonPath": "$.a"},
        {"jsonPath": 5, "stringValue": "a"},
        {"stringValue": "a"},
    ],
)
def test_pieces_that_cannot_be_placed(piece: dict[str, Any]) -> None:
    with pytest.raises(UpstreamProtocolError):
        read({"functionCall": {"name": "f", "partialArgs": [piece]}})


def test_a_late_signature_of_a_call_is_kept() -> None:
    parts = [
        {"functionCall": {"name": "f", "willContinue": True}},
        {"functionCall": {}, "thoughtSignature": "s"},
    ]
    kept = read(*parts).choices[0].parts
    assert isinstance(kept[0], ToolCall) and kept[1:] == [sealed("s")]


def test_half_a_character() -> None:
    whole = response(candidate({"text": "a\U0001f600b"}))
    assert b"\\ud83d\\ude00" in whole
    broken = response(candidate({"text": "c"}, {"functionCall": {"name": "f", "args": {"a": "X"}}}, finish=None))
    broken = broken.replace(b'"c"', b'"c\\ud83d"').replace(b'"X"', b'"\\ude00"')
    answer = fold(decode(sse(broken, whole)))
    assert [part.text for part in answer.choices[0].parts if isinstance(part, Text)] == ["c\ufffd", "a\U0001f600b"]
    assert json.loads(answer.choices[0].parts[1].arguments) == {"a": "\ufffd"}


_texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
_parts = st.one_of(
    _texts.map(lambda text: {"text": text}),
    _texts.map(lambda text: {"text": text, "thought": True}),
    st.tuples(_texts, st.from_regex(r"[a-z]{1,6}", fullmatch=True)).map(
        lambda pair: {"text": pair[0], "thoughtSignature": pair[1]}
    ),
    st.just({"text": "", "thoughtSignature": "end"}),
    st.dictionaries(_texts, _texts, max_size=2).map(lambda args: {"functionCall": {"name": "f", "args": args}}),
    st.just({"executableCode": {"code": "1"}}),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_parts, max_size=5), st.booleans(), st.booleans(), st.data())
def test_any_cut_of_any_stream(parts: list[Any], is_array: bool, is_ascii: bool, data: st.DataObject) -> None:
    """Whole and streamed answers of the same parts are the same, as SSE and as an array, wherever the bytes are cut."""
    bodies = [
        response(candidate(*parts)),
        *(response(candidate(part, finish=None)) for part in parts),
        response(candidate()),
    ]
    if not is_ascii:
        bodies = [json.dumps(json.loads(body), ensure_ascii=False).encode() for body in bodies]
    whole = GEMINI_WIRE.read_answer(bodies.pop(0), PLAIN)
    stream = b"\xef\xbb\xbf[" + b",\n".join(bodies) + b"]" if is_array else sse(*bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert fold(decode(*pieces)) == whole
    assert fold(decode(*(stream[at : at + 1] for at in range(len(stream))))) == whole


def test_marks_inside_texts_of_an_array() -> None:
    """Quotes, backslashes and braces in a text are none of the framing's, also when their escape is cut in two."""
    text = 'a"}] [{\\'
    stream = b"[" + response(candidate({"text": text}, finish=None)) + b"," + response(candidate({"text": text})) + b"]"
    assert fold(decode(*(stream[at : at + 1] for at in range(len(stream))))).choices[0].parts == [Text(text * 2)]


# Failures


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b"<html>",
        b"\xff\xfe",
        b'"\\ud83d"',
        b"{}",
        b'{"candidates": []}',
        b'{"candidates": 5}',
        b'{"candidates": [{"content": {"parts": [5]}}]}',
        b'{"candidates": [{"content": {"parts": [{"text": 5}]}}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": [1]}}]}}]}',
        b'{"candidates": [{"index": -1}]}',
        b'{"candidates": [{"index": 5000}]}',
        b'{"candidates": [{"finishReason": 5}]}',
        b'{"candidates": [{"finishReason": "STOP"}], "usageMetadata": []}',
        b'{"candidates": [{"content": ' + b'{"a":' * 100_000,
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}'
        + b',{"functionCall":{"name":"f"}}' * 1024
        + b"]}}]}",
    ],
)
def test_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        GEMINI_WIRE.read_answer(body, PLAIN)


def test_error_in_a_stream() -> None:
    error = b'{"error": {"code": 503, "message": "key AIzaSECRET", "status": "UNAVAILABLE"}}'
    start = sse(response(candidate({"text": "a"}, finish=None)))
    for end in (b"data: " + error + b"\n\n", b"event: error\ndata: {}\n\n"):
        with pytest.raises(StreamError) as caught:
            decode(start, end)
        assert "SECRET" not in str(caught.value)
    for bare in (error, b"[" + error + b"]"):
        with pytest.raises(StreamError, match="`UNAVAILABLE`"):
            decode(bare)
    with pytest.raises(StreamError) as caught:
        GEMINI_WIRE.read_answer(b'{"error": {"status": "key AIzaSECRET"}}', PLAIN)
    assert "SECRET" not in str(caught.value)
    with pytest.raises(StreamError):
        GEMINI_WIRE.read_answer(b'{"error": "overloaded"}', PLAIN)


@pytest.mark.parametrize("is_array", [False, True])
def test_a_stream_that_is_cut_off(is_array: bool) -> None:
    bodies = [response(candidate({"text": "a"}, finish=None)), response(candidate({"text": "b"}))]
    stream = b"[" + b",".join(bodies) + b"]" if is_array else sse(*bodies)
    end = stream.rindex(b"}") + 1
    for at in range(end):
        with pytest.raises(UpstreamDisconnected) as caught:
            decode(stream[:at])
        assert caught.value.received
    for at in range(end, len(stream)):
        assert fold(decode(stream[:at])).choices[0].parts == [Text("ab")]


def test_a_finished_stream_may_not_end_inside_an_event() -> None:
    whole = response(candidate({"text": "a"}))
    for stream in (b"[" + whole + b",{", sse(whole) + b"data: {"):
        with pytest.raises(UpstreamDisconnected):
            decode(stream)
    assert fold(decode(sse(whole), b"data: [DONE]\n\n")).choices[0].parts == [Text("a")]


def test_streams_of_something_else() -> None:
    with pytest.raises(UpstreamProtocolError):
        decode(b"[5]")
    with pytest.raises(UpstreamProtocolError):
        decode(sse(b"[1]"))
    with pytest.raises(UpstreamProtocolError):
        decode(b"[{" + b'"a": "' + b"x" * (5 * 1024 * 1024))
    with pytest.raises(UpstreamDisconnected):
        decode(b"<html>")


@pytest.mark.parametrize(
    "body", [b"{}", b'{"totalTokens": -1}', b'{"totalTokens": "5"}', b'{"totalTokens": 2e9}', b"x"]
)
def test_no_count(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        read_count(body)
