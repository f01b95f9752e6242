"""Answers and streams for clients of this protocol, as OpenAI's own SDK reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIError

from gateway.canonical import (
    Answer,
    Choice,
    Citation,
    CitationAdded,
    Event,
    Finished,
    LogprobsAdded,
    Media,
    Opaque,
    OutputFormat,
    PartAdded,
    Reasoning,
    ReasoningDelta,
    ReasoningEnded,
    Refusal,
    RefusalDelta,
    Request,
    Seal,
    Started,
    Text,
    TextDelta,
    Thinking,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    ToolChoice,
    Turn,
    UsageReported,
)
from gateway.config.rows import PLAIN
from gateway.errors import InvalidRequest, UpstreamFailed
from gateway.folding import fold, unfold
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL, RESPONSES_WIRE
from gateway.types import Usage
from tests.protocols.responses.sdk import accumulate, check_answer, client, events_of
from tests.protocols.responses.shapes import CREATED, decode, delta, read

REQUEST = read()
USAGE = Usage(3, cache_read_tokens=2, cache_write_1h_tokens=1, output_tokens=4, reasoning_tokens=5)
TOKEN = {"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": []}
EVENTS: list[Event] = [
    Started("chatcmpl-1", "served", 17),
    ReasoningDelta("thin"),
    ReasoningDelta("king"),
    ReasoningEnded(Seal("sig", "messages")),
    TextDelta("Hel"),
    TextDelta("lo"),
    CitationAdded(Citation("http://x", "X", 0, 5)),
    CitationAdded(Citation("http://y")),
    LogprobsAdded(msgspec.Raw(json.dumps([TOKEN]).encode())),
    TextDelta("two", begins_part=True),
    RefusalDelta("no"),
    ToolCallStarted(0, "c1", "get", Seal("g", "gemini")),
    ToolCallStarted(1, "c2", "got"),
    ToolCallDelta(0, '{"a":'),
    ToolCallDelta(1, ""),
    ToolCallDelta(0, "1}"),
    PartAdded(Media("image", data="AAAA", media_type="image/png")),
    Finished("tool_calls", "tool_use"),
    UsageReported(None),
    UsageReported(USAGE, service_tier="standard"),
]
KINDS = [
    "created",
    "in_progress",
    "output_item.added",
    "reasoning_summary_part.added",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
    "output_item.done",
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.delta",
    "output_text.annotation.added",
    "output_text.annotation.added",
    "output_text.done",
    "content_part.done",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "content_part.added",
    "refusal.delta",
    "refusal.done",
    "content_part.done",
    "output_item.done",
    "output_item.added",
    "output_item.done",
    "output_item.added",
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.delta",
    "output_item.added",
    "output_item.done",
    "function_call_arguments.done",
    "output_item.done",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
    "completed",
]


def write(events: Iterable[Event], request: Request = REQUEST) -> bytes:
    writer = RESPONSES_PROTOCOL.open_writer(request)
    return b"".join([writer.write(event) for event in events]) + writer.end()


def write_answer(*parts: Any, finish: Any = "stop", request: Request = REQUEST, **fields: Any) -> Any:
    answer = Answer(choices=[Choice(list(parts), finish)], **fields)
    body = RESPONSES_PROTOCOL.write_answer(answer, request)
    check_answer(body)
    return json.loads(body)


def ended(*events: Event, request: Request = REQUEST) -> Any:
    """The response in the last event."""
    return events_of(write(events, request))[-1].response


# Streams


def test_the_events_of_a_stream() -> None:
    events = events_of(write(EVENTS))
    assert [event.type.removeprefix("response.") for event in events] == KINDS
    notes = [event for event in events if event.type == "response.output_text.annotation.added"]
    assert [(note.content_index, note.annotation_index) for note in notes] == [(0, 0), (0, 1)]
    created, progress, last = events[0].response, events[1].response, events[-1].response
    assert (created.status, progress.status, last.status) == ("in_progress", "in_progress", "completed")
    assert created.output == [] and created.usage is None and created.id == last.id == "chatcmpl-1"
    assert (last.model, last.created_at) == ("served", 17)
    done = [event.item.model_dump() for event in events if event.type == "response.output_item.done"]
    by_place = {event.output_index: event.item for event in events if event.type == "response.output_item.done"}
    assert [item.model_dump() for item in last.output] == [by_place[at].model_dump() for at in range(len(done))]


def test_what_the_sdk_makes_of_it() -> None:
    response = accumulate(write(EVENTS))
    thought, said, sealed, first, second, picture = response.output
    assert (thought.summary[0].text, thought.encrypted_content) == ("thinking", "hatchway.messages.sig")
    assert response.output_text == "Hellotwo"
    text, other, refusal = said.content
    assert [(note.url, note.title, note.start_index, note.end_index) for note in text.annotations] == [
        ("http://x", "X", 0, 5),
        ("http://y", "http://y", 5, 5),
    ]
    assert text.logprobs[0].token == "h" and other.logprobs == [] and refusal.refusal == "no"
    assert sealed.encrypted_content == "hatchway.call.hatchway.gemini.g" and sealed.summary == []
    assert (first.call_id, first.name, first.arguments) == ("c1", "get", '{"a":1}')
    assert (second.call_id, second.name, second.arguments) == ("c2", "got", "{}")
    assert picture.result == "AAAA"
    usage = response.usage
    assert usage is not None and (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (6, 9, 15)
    assert (usage.input_tokens_details.cached_tokens, usage.input_tokens_details.cache_write_tokens) == (2, 1)
    assert usage.output_tokens_details.reasoning_tokens == 5
    assert response.service_tier == "default"


def test_ids_are_never_alike() -> None:
    """Items of two answers come back in one conversation."""
    seen = [item.id for _ in range(3) for item in accumulate(write(EVENTS)).output]
    assert len(set(seen)) == len(seen)
    prefixes = ["rs_hatchway_", "msg_", "rs_hatchway_", "fc_", "fc_", "ig_hatchway_"]
    assert all(id.startswith(prefix) for id, prefix in zip(seen, prefixes * 3, strict=True))
    assert all(len(id) <= 64 for id in seen)


def test_events_come_as_they_happen() -> None:
    writer = RESPONSES_PROTOCOL.open_writer(REQUEST)
    assert writer.write(Started()).count(b"\n\n") == 2
    assert b'"delta":"a"' in writer.write(TextDelta("a"))
    assert writer.write(TextDelta("b")).count(b"\n\n") == 1
    assert writer.write(Finished("stop")) == writer.write(UsageReported(USAGE)) == b""
    assert b"response.completed" in writer.end()


def test_what_is_not_given_is_filled_in() -> None:
    response = ended(TextDelta("a"), Finished("stop"))
    assert response.id.startswith("resp_") and response.model == "m" and response.created_at > 1_700_000_000
    assert response.usage is None
    assert ended(ToolCallStarted(0, "", "f"), Finished("tool_calls")).output[0].call_id.startswith("call_")
    assert ended().output == []


@pytest.mark.parametrize(
    ("finish", "status", "reason", "items"),
    [
        ("stop", "completed", None, "completed"),
        ("tool_calls", "completed", None, "completed"),
        ("length", "incomplete", "max_output_tokens", "incomplete"),
        ("content_filter", "incomplete", "content_filter", "incomplete"),
        ("refusal", "incomplete", "content_filter", "completed"),
        ("pause", "completed", None, "completed"),
        ("unknown", "completed", None, "completed"),
    ],
)
def test_how_it_ended(finish: Any, status: str, reason: str | None, items: str) -> None:
    stream = events_of(write([TextDelta("a"), Finished(finish)]))
    assert stream[-1].type == f"response.{status}"
    response = stream[-1].response
    assert (response.status, response.output[0].status) == (status, items)
    assert (response.incomplete_details.reason if reason else response.incomplete_details) == reason
    whole = write_answer(Text("a"), finish=finish)
    assert whole["status"] == status and whole["incomplete_details"] == ({"reason": reason} if reason else None)


def test_a_refusal_in_words_is_complete() -> None:
    response = ended(RefusalDelta("no"), Finished("refusal"))
    assert response.status == "completed" and response.output[0].content[0].refusal == "no"


def test_a_cut_call_is_incomplete() -> None:
    events: list[Event] = [TextDelta("a"), ToolCallStarted(0, "c", "f"), ToolCallDelta(0, '{"a'), Finished("length")]
    said, call = ended(*events).output
    assert (said.status, call.status, call.arguments) == ("completed", "incomplete", '{"a')


def test_an_upstream_that_ends_with_an_error() -> None:
    stream = write([TextDelta("a"), Finished("error")])
    last = events_of(stream)[-1]
    assert last.type == "response.failed" and last.response.error.code == "server_error"
    with pytest.raises(APIError):
        accumulate(stream)
    assert write_answer(Text("a"), finish="error")["status"] == "failed"


def test_other_choices_have_no_place() -> None:
    response = ended(TextDelta("a"), TextDelta("b", 1), Finished("length", choice=1), Finished("stop"))
    assert response.output_text == "a" and response.status == "completed"


def test_reasoning_without_text_or_seal_is_nothing() -> None:
    assert ended(ReasoningEnded(), ReasoningDelta(""), Finished("stop")).output == []
    redacted = ended(ReasoningDelta("a"), ReasoningEnded(Seal("s", "messages"), is_redacted=True)).output
    assert [(item.summary != [], item.encrypted_content) for item in redacted] == [
        (True, None),
        (False, "hatchway.messages.s"),
    ]


def test_parts_without_a_form_are_left_out() -> None:
    own = Opaque(msgspec.Raw(b'{"type":"web_search_call","id":"ws_1","status":"completed","action":null}'), "responses")
    other = Opaque(msgspec.Raw(b'{"type":"server_tool_use"}'), "messages")
    events = [PartAdded(own), PartAdded(other), PartAdded(Media("audio", data="AA")), Finished("stop")]
    stream = write(events)
    assert [json.loads(line[6:])["type"] for line in stream.split(b"\n") if line.startswith(b"data: ")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.output_item.done",
        "response.completed",
    ]
    assert b'"web_search_call"' in stream and b"server_tool_use" not in stream


# Whole answers


def test_the_response_repeats_what_was_asked() -> None:
    request = Request(
        model="asked",
        turns=[Turn("system", [Text("be nice")]), Turn("user", [Text("hi")])],
        origin="responses",
        tools=[Tool("f", "d", msgspec.Raw(b'{"type":"object"}'), True)],
        tool_choice=ToolChoice("required", ("f",)),
        parallel_tool_calls=False,
        output_format=OutputFormat("json_schema", msgspec.Raw(b'{"type":"object"}'), "n", strict=True),
        thinking=Thinking(effort="low", summary="auto"),
        max_output_tokens=99,
        temperature=0.5,
        metadata={"a": "b"},
        verbosity="low",
        service_tier="flex",
    )
    whole = write_answer(Text("a"), request=request, usage=USAGE, id="x", created=5)
    assert whole["instructions"] == "be nice" and whole["model"] == "asked" and whole["id"] == "x"
    assert whole["tools"][0]["parameters"] == {"type": "object"} and whole["tools"][0]["strict"] is True
    assert whole["tool_choice"] == {"type": "function", "name": "f"} and whole["parallel_tool_calls"] is False
    assert whole["text"]["format"]["name"] == "n" and whole["text"]["verbosity"] == "low"
    assert whole["reasoning"] == {"effort": "low", "summary": "auto"} and whole["service_tier"] == "flex"
    assert (whole["max_output_tokens"], whole["temperature"], whole["metadata"]) == (99, 0.5, {"a": "b"})
    assert (whole["store"], whole["created_at"], whole["status"], whole["error"]) == (False, 5, "completed", None)


def test_an_answer_is_the_end_of_its_stream() -> None:
    whole = check_answer(RESPONSES_PROTOCOL.write_answer(fold(EVENTS), REQUEST))
    streamed = accumulate(write(EVENTS))
    assert _without_ids(whole.model_dump()) == _without_ids(streamed.model_dump())


def test_logprobs_are_in_the_text() -> None:
    """Of a whole answer they come after all of its parts, and are not said to be of one."""
    raw = msgspec.Raw(json.dumps([TOKEN]).encode())
    answer = Answer(choices=[Choice([Text("h"), ToolCall("c", "f", "{}")], "tool_calls", logprobs=raw)])
    said = json.loads(RESPONSES_PROTOCOL.write_answer(answer, REQUEST))["output"][0]
    assert said["content"][0]["logprobs"] == [TOKEN]
    nothing = Answer(choices=[Choice([], "stop", logprobs=raw)])
    assert json.loads(RESPONSES_PROTOCOL.write_answer(nothing, REQUEST))["output"] == []


def _without_ids(found: Any) -> Any:
    if isinstance(found, dict):
        return {
            key: _without_ids(value)
            for key, value in found.items()
            if key not in ("id", "parsed_arguments", "parsed", "logprobs")
        }
    return [_without_ids(value) for value in found] if isinstance(found, list) else found


def test_what_a_client_sends_back_is_understood() -> None:
    """Seals of other providers come back as they were; reasoning in words and pictures, too."""
    whole = json.loads(RESPONSES_PROTOCOL.write_answer(fold(EVENTS), REQUEST))
    again = read(input=[{"role": "user", "content": "hi"}, *whole["output"]])
    thought, *texts, refusal, first, second, picture = again.turns[1].parts
    assert isinstance(thought, Reasoning) and (thought.text, thought.seal) == ("thinking", Seal("sig", "messages"))
    assert texts == [
        Text("Hello", (Citation("http://x", "X", 0, 5), Citation("http://y", "http://y", 5, 5))),
        Text("two"),
    ]
    assert refusal == Refusal("no")
    assert (first, second) == (ToolCall("c1", "get", '{"a":1}', Seal("g", "gemini")), ToolCall("c2", "got", "{}"))
    assert picture == Media("image", data="AAAA")
    body = json.dumps({"model": "m", "input": [{"role": "user", "content": "hi"}, *whole["output"]]}).encode()
    view = RESPONSES_PROTOCOL.parse(body)
    assert view.native_feature() is None and view.kept_state() is None
    kept = json.loads(RESPONSES_PROTOCOL.rewrite(view, body, None, PLAIN))["input"]
    assert [item.get("type") for item in kept] == [None, "message", "function_call", "function_call"]


# Errors


def test_an_error_event_raises_in_the_sdk() -> None:
    error = UpstreamFailed("every attempt failed", code="upstream_failed")
    stream = CREATED + delta("output_text", "a", content_index=0) + RESPONSES_PROTOCOL.error_event(error)
    with client(stream) as api, pytest.raises(APIError, match="every attempt failed") as raised:
        list(api.responses.create(model="m", input="hi", stream=True))
    assert raised.value.code == "upstream_failed"
    data = json.loads(RESPONSES_PROTOCOL.error_event(error).split(b"data: ")[1])
    assert (data["type"], data["message"], data["code"], data["param"]) == (
        "error", "every attempt failed", "upstream_failed", None,
    )  # fmt: skip
    begun = RESPONSES_PROTOCOL.open_writer(REQUEST).write(TextDelta("a"))
    with pytest.raises(APIError):
        accumulate(begun + RESPONSES_PROTOCOL.error_event(error))


def test_an_error_body() -> None:
    error = InvalidRequest("`input` is empty", param="input", code="invalid_value")
    assert json.loads(RESPONSES_PROTOCOL.error_body(error)) == {
        "error": {
            "message": "`input` is empty",
            "type": "invalid_request_error",
            "param": "input",
            "code": "invalid_value",
        }
    }


# Any answer

WORDS = st.text(min_size=1, max_size=6)
PARTS = st.lists(
    st.builds(Text, WORDS)
    | st.builds(Refusal, WORDS)
    | st.builds(lambda text, seal: Reasoning(text, seal), WORDS, st.none() | st.just(Seal("s", "messages")))
    | st.builds(ToolCall, WORDS, WORDS, st.just('{"a":1}'), st.none() | st.just(Seal("g", "gemini"))),
    max_size=5,
    unique_by=lambda part: part.id if isinstance(part, ToolCall) else id(part),
)


@settings(max_examples=40, deadline=None)
@given(PARTS)
def test_any_answer_comes_back(parts: list[Any]) -> None:
    answer = Answer(choices=[Choice(parts, "stop")], id="x", model="m", created=1, usage=USAGE)
    stream = write(unfold(answer))
    for written in (
        fold(decode([stream])),
        RESPONSES_WIRE.read_answer(RESPONSES_PROTOCOL.write_answer(answer, REQUEST), PLAIN),
    ):
        assert _said(written.choices[0].parts) == _said(parts)
        assert written.usage == Usage(3, 2, 1, output_tokens=4, reasoning_tokens=5)


def _said(parts: list[Any]) -> list[Any]:
    """Refusals one after the other are one. Seals of calls travel before them, as reasoning."""
    said: list[Any] = []
    for part in parts:
        if isinstance(part, Refusal) and said and said[-1][0] is Refusal:
            said[-1] = (Refusal, said[-1][1] + part.text, None)
        elif isinstance(part, ToolCall):
            said.append(("call", part.id, part.name, part.arguments))
        elif part.text:
            said.append((type(part), part.text, getattr(part, "seal", None)))
    return said
