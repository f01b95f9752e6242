"""Legacy completions: read, passed through, and served by conversations."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.completion import Completion
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming
from pydantic import TypeAdapter

from gateway.canonical import (
    Answer,
    Choice,
    Event,
    Finished,
    Reasoning,
    ReasoningDelta,
    Refusal,
    RefusalDelta,
    Request,
    Started,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    Turn,
    UsageReported,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.errors import InvalidRequest, UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.folding import fold, unfold, visible_text
from gateway.protocols.base import StreamError
from gateway.protocols.completions.view import CompletionRequest
from gateway.protocols.completions.wire import COMPLETIONS_PROTOCOL, COMPLETIONS_WIRE
from gateway.types import Usage
from tests.recordings import Recording, cuts, recordings

_WHOLE: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
_STREAM: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsStreaming)
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
DONE = b"data: [DONE]\n\n"


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "Once", **fields}).encode()


def view(**fields: Any) -> CompletionRequest:
    return COMPLETIONS_PROTOCOL.parse(body_of(**fields))


def read(**fields: Any) -> Request:
    return COMPLETIONS_PROTOCOL.read_request(body_of(**fields))


def event(text: str = "", *, index: int = 0, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
    chunk = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "up", "choices": [choice], **fields}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


USAGE_EVENT = event(choices=[], usage=USAGE)
GOOD = event("hé") + event("llo") + event(finish="stop") + USAGE_EVENT + DONE


def decode(*pieces: bytes) -> list[Event]:
    decoder = COMPLETIONS_WIRE.open_decoder(PLAIN)
    events = [found for piece in pieces for found in decoder.feed(piece)]
    return events if decoder.is_finished else events + decoder.finish()


# The request


@pytest.mark.parametrize(
    ("fields", "needs", "feature", "choices"),
    [
        ({}, set(), None, 1),
        ({"prompt": ["Once"], "echo": False, "best_of": 1, "suffix": None}, set(), None, 1),
        ({"stream": True, "n": 2}, {"stream", "n"}, None, 2),
        ({"suffix": "end"}, set(), "`suffix`", 1),
        ({"echo": True}, set(), "`echo`", 1),
        ({"best_of": 3}, set(), "`best_of`", 3),
        ({"logprobs": 0}, {"logprobs"}, "`logprobs` of a legacy completion", 1),
        ({"prompt": [1, 2, 3]}, set(), "a prompt of token ids", 1),
        ({"prompt": [[1, 2], [3]]}, set(), "a prompt of token ids", 2),
        ({"prompt": ["a", "b"]}, set(), "several prompts", 2),
        ({"prompt": None}, set(), None, 1),
    ],
)
def test_what_a_request_needs(fields: Any, needs: set[str], feature: str | None, choices: int) -> None:
    asked = view(**fields)
    assert (asked.needs(), asked.native_feature(), asked.choices) == (needs, feature, choices)
    assert asked.kept_state() is None


def test_words() -> None:
    assert view(prompt=["a", "b"]).last_user_text() == "b"
    assert view(prompt=[1, 2]).last_user_text() == ""
    assert view(prompt=["a", "b"]).outline().texts == ["a", "b"]
    assert view(prompt=[[1, 2], [3]]).outline().texts == [" a a", " a"]
    assert (view(max_tokens=7).output_limit, view().output_limit) == (7, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"max_tokens": "x"}, "max_tokens"),
        ({"echo": 1}, "echo"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        view(**fields)
    assert caught.value.param == param


def test_bytes_pass_through() -> None:
    body = body_of(x=1.5)
    assert COMPLETIONS_PROTOCOL.rewrite(view(x=1.5), body, "m", PLAIN) is body
    dialect = Dialect(unsupported=("x",), thinking_streams=True, limit_name="max_tokens")
    assert json.loads(COMPLETIONS_PROTOCOL.rewrite(view(x=1), body, "up", dialect)) == {"model": "up", "prompt": "Once"}
    streamed = COMPLETIONS_PROTOCOL.rewrite(view(stream=True), body_of(stream=True), None, PLAIN)
    assert json.loads(streamed)["stream_options"] == {"include_usage": True}


def test_a_prompt_is_a_turn_of_the_user() -> None:
    settings: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "user": "u", "logit_bias": {"1": 2.0}}
    request = read(max_tokens=7, stop="a", n=2, stream=True, new=1, **settings)
    assert request.turns == [Turn("user", [Text("Once")])]
    assert {name: getattr(request, name) for name in settings} == settings
    assert (request.max_output_tokens, request.stop, request.n, request.stream) == (7, ["a"], 2, True)
    assert (request.include_usage, request.origin, list(request.extra)) == (False, "completions", ["new"])
    assert read().include_usage
    assert read(prompt=["Once"]).turns == request.turns
    sent = json.loads(COMPLETIONS_WIRE.write_request(request, "up", PLAIN).body)
    _STREAM.validate_python(sent)
    assert sent == {
        "model": "up",
        "prompt": "Once",
        "max_tokens": 7,
        "stop": ["a"],
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "new": 1,
        **settings,
    }


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"echo": True}, {"prompt": [1]}, {"prompt": ["a", "b"]}])
def test_what_no_conversation_has_is_refused(fields: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.code == "unsupported_by_endpoint"


@pytest.mark.parametrize(
    "fields",
    [
        {"turns": [Turn("system", [Text("x")])]},
        {"turns": [Turn("user", [Text("x")]), Turn("assistant", [Text("y")])]},
        {"turns": [Turn("user", [Text("x"), Text("y")])]},
        {"turns": [Turn("user", [ToolCall("1", "f", "")])]},
        {"tools": [Tool("f")]},
    ],
)
def test_what_no_prompt_says_is_refused(fields: Any) -> None:
    request = Request(**{"model": "m", "turns": [Turn("user", [Text("x")])], "origin": "chat", **fields})
    with pytest.raises(InvalidRequest) as caught:
        COMPLETIONS_WIRE.write_request(request, "m", PLAIN)
    assert caught.value.code == "unsupported_by_endpoint"


def test_what_is_left_out_is_said() -> None:
    request = Request(model="m", turns=[Turn("user", [Text("x")])], seed=7, verbosity="low", origin="chat")
    written = COMPLETIONS_WIRE.write_request(request, "m", Dialect(unsupported=("seed",), rename={"prompt": "text"}))
    assert json.loads(written.body) == {"model": "m", "text": "x"}
    assert written.dropped == ("seed", "verbosity")


# Recorded answers


def check(answer: Answer, recording: Recording) -> None:
    expected = recording.expected
    (choice,) = answer.choices
    assert (visible_text(choice.parts), choice.raw_finish) == (expected["text"], expected["finish_reason"])
    if expected["buckets"] is None:
        assert answer.usage is None
    else:
        counts = {name: count for name, count in expected["buckets"].items() if name in Usage.__struct_fields__}
        assert answer.usage == Usage(**counts)


@pytest.mark.parametrize("recording", recordings("openai.completions"))
def test_recorded_completions(recording: Recording) -> None:
    if not recording.stream:
        check(COMPLETIONS_WIRE.read_answer(recording.body, PLAIN), recording)
        summary = COMPLETIONS_PROTOCOL.scan_answer(recording.body, PLAIN)
        assert (summary.finish_reason, summary.text) == (recording.expected["finish_reason"], "")
        return
    body = recording.body
    whole = decode(body)
    check(fold(whole), recording)
    for size in (1, 7, 61, 997):
        assert decode(*cuts(body, size)) == whole
    for at in range(1, len(body)):
        assert decode(body[:at], body[at:]) == whole
    for size in (1, 7, 61, len(body)):
        scanner = COMPLETIONS_PROTOCOL.open_scanner(view(stream=True, stream_options={"include_usage": True}), PLAIN)
        shown = b"".join(map(scanner.feed, cuts(body, size)))
        assert shown.rstrip() == body.rstrip() and scanner.is_finished
        assert (scanner.text(), scanner.finish_reason) == (
            recording.expected["text"],
            recording.expected["finish_reason"],
        )


# Answers


def test_the_scanner_reads_text_and_hides_unasked_usage() -> None:
    scanner = COMPLETIONS_PROTOCOL.open_scanner(view(stream=True), PLAIN)
    assert scanner.feed(event("")) == event("") and not scanner.has_content
    assert scanner.feed(event("x")) == event("x") and scanner.has_content
    assert scanner.feed(event(finish="stop") + USAGE_EVENT + DONE) == event(finish="stop") + DONE
    assert (scanner.usage, scanner.text()) == (Usage(input_tokens=10, output_tokens=5), "x")
    body = json.dumps({"choices": [{"text": "a"}, {"text": "b"}]}).encode()
    assert COMPLETIONS_PROTOCOL.scan_answer(body, PLAIN).text == "ab"


def test_events() -> None:
    raw = msgspec.Raw(json.dumps(USAGE).encode())
    expected = [
        Started("cmpl-1", "up", 1),
        TextDelta("hé"),
        TextDelta("llo"),
        Finished("stop", "stop"),
        UsageReported(Usage(input_tokens=10, output_tokens=5), raw),
    ]
    for whole in (GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD.rstrip(), GOOD.removesuffix(DONE)):
        assert decode(whole) == expected


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (b'data: {"error": {"message": "x"}}\n\n', StreamError),
        (b'data: {"object": "error", "message": "x"}\n\n', StreamError),
        (b'event: error\ndata: {"message": "x"}\n\n', StreamError),
        (b"data: nonsense\n\n", UpstreamProtocolError),
        (event("x", index=-1), UpstreamProtocolError),
        (event("x", index=2000), UpstreamProtocolError),
        (event(text=5), UpstreamProtocolError),  # type: ignore[arg-type]  # what a broken server sends
        (b"", UpstreamDisconnected),
    ],
)
def test_broken_streams(broken: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(event("x"), broken)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices": []}', b'{"choices": [{"text": 5}]}', b"[" * 9000])
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        COMPLETIONS_WIRE.read_answer(body, PLAIN)
    with pytest.raises(StreamError):
        COMPLETIONS_WIRE.read_answer(b'{"error": "x", "choices": [{"text": "x"}]}', PLAIN)
    with pytest.raises(UpstreamProtocolError):
        decode(DONE)


def test_an_answer_is_written() -> None:
    parts = [Reasoning("hm"), Text("a"), Refusal("b")]
    answer = Answer(choices=[Choice(list(parts), "length"), Choice([], "pause")], usage=Usage(input_tokens=1))
    written = Completion.model_validate_json(COMPLETIONS_PROTOCOL.write_answer(answer, read()))
    assert [(choice.text, choice.finish_reason) for choice in written.choices] == [("ab", "length"), ("", "stop")]
    assert written.usage is not None and written.usage.total_tokens == 1
    assert written.id.startswith("cmpl-") and written.model == "m" and written.object == "text_completion"


def chunk_of(line: bytes) -> Completion:
    """OpenAI's streams have null for a finish reason that is not known yet, its type of a whole answer has not."""
    fields = json.loads(line.removeprefix(b"data: "))
    told = [choice["finish_reason"] for choice in fields["choices"]]
    chunk = Completion.model_validate(
        {**fields, "choices": [{**choice, "finish_reason": "stop"} for choice in fields["choices"]]}
    )
    for choice, reason in zip(chunk.choices, told, strict=True):
        choice.finish_reason = reason
    return chunk


def test_a_stream_is_written() -> None:
    writer = COMPLETIONS_PROTOCOL.open_writer(read(stream=True))
    events = [Started("1", "up", 7), ReasoningDelta("hm"), TextDelta("a"), RefusalDelta("b"), Finished("refusal")]
    stream = b"".join([*map(writer.write, events), writer.end()])
    chunks = [chunk_of(line) for line in stream.split(b"\n\n")[:-2]]
    said = [
        (chunk.id, chunk.created, choice.text, choice.finish_reason) for chunk in chunks for choice in chunk.choices
    ]
    assert said == [("1", 7, "a", None), ("1", 7, "b", None), ("1", 7, "", "content_filter")]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ANSWERS = st.builds(
    Answer,
    choices=st.lists(
        st.builds(
            Choice,
            st.lists(st.builds(Text, TEXTS), max_size=1),
            st.sampled_from(["stop", "length", "content_filter"]),
        ),
        min_size=1,
        max_size=2,
    ),
    id=st.just("1"),
    model=st.just("up"),
    created=st.integers(1, 9),
    usage=st.none() | st.builds(Usage, input_tokens=st.integers(0, 9), output_tokens=st.integers(0, 9)),
    service_tier=st.none(),
)


def less_raw(answer: Answer) -> Answer:
    choices = [msgspec.structs.replace(choice, raw_finish=None) for choice in answer.choices]
    return msgspec.structs.replace(answer, choices=choices, raw_usage=None)


@given(answer=ANSWERS)
def test_what_is_written_is_read_back(answer: Answer) -> None:
    body = COMPLETIONS_PROTOCOL.write_answer(answer, read())
    assert less_raw(COMPLETIONS_WIRE.read_answer(body, PLAIN)) == answer
    writer = COMPLETIONS_PROTOCOL.open_writer(read(stream=True, stream_options={"include_usage": True}))
    stream = b"".join([*map(writer.write, unfold(answer)), writer.end()])
    assert less_raw(fold(decode(stream))) == answer


@given(pieces=st.lists(st.binary(max_size=30) | st.sampled_from([event("x"), DONE, b"data: ", b"\n\n"]), max_size=6))
def test_whatever_comes_only_upstream_errors_are_raised(pieces: list[bytes]) -> None:
    try:
        assert decode(*pieces)
    except UpstreamError:
        return


def test_errors_have_openai_s_shape() -> None:
    error = InvalidRequest("bad", code="c", param="p")
    expected = {"error": {"message": "bad", "type": "invalid_request_error", "param": "p", "code": "c"}}
    assert json.loads(COMPLETIONS_PROTOCOL.error_body(error)) == expected
    with pytest.raises(StreamError):
        decode(COMPLETIONS_PROTOCOL.error_event(error))
