"""Streams of others, written for Anthropic's clients, and errors as they know them."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Part,
    PartAdded,
    ReasoningDelta,
    ReasoningEnded,
    RefusalDelta,
    Seal,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStarted,
    UsageReported,
)
from gateway.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unavailable,
    UpstreamFailed,
)
from gateway.folding import fold, unfold
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL
from gateway.types import Usage
from tests.protocols.messages.sdk import accumulate, serving
from tests.protocols.messages.shapes import (
    asking,
    decode,
    raw,
)
from tests.protocols.messages.test_answer import PARTS


def write(*events: Event) -> bytes:
    writer = MESSAGES_PROTOCOL.open_writer(asking())
    return b"".join(writer.write(found) for found in events) + writer.end()


def shown(*events: Event) -> list[dict[str, Any]]:
    items = write(*events).split(b"\n\n")
    assert items.pop() == b""
    found = []
    for item in items:
        name, data = item.split(b"\n")
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + found[-1]["type"].encode()
    return found


def blocks_in_order(events: list[dict[str, Any]]) -> None:
    """Each block is whole before the next begins, and their numbers count up."""
    under_way: int | None = None
    count = 0
    for item in events:
        if item["type"] == "content_block_start":
            assert under_way is None and item["index"] == count
            under_way, count = count, count + 1
        elif item["type"] == "content_block_delta":
            assert item["index"] == under_way
        elif item["type"] == "content_block_stop":
            assert item["index"] == under_way
            under_way = None
    assert under_way is None


def test_a_stream_is_written() -> None:
    events = shown(
        Started("chatcmpl-1", "gpt-x"),
        TextDelta("Hi"),
        TextDelta(""),
        TextDelta(" there"),
        Finished("length", "length"),
        UsageReported(Usage(input_tokens=3, output_tokens=4)),
    )
    assert [item["type"] for item in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert (events[0]["message"]["id"], events[0]["message"]["model"]) == ("chatcmpl-1", "gpt-x")
    assert events[0]["message"]["usage"]["input_tokens"] == 0
    assert events[5]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert (events[5]["usage"]["input_tokens"], events[5]["usage"]["output_tokens"]) == (3, 4)


def test_an_empty_stream_is_a_message_too() -> None:
    assert [item["type"] for item in shown()] == ["message_start", "message_delta", "message_stop"]
    assert accumulate(write()).stop_reason == "end_turn"


def test_the_sdk_reads_everything() -> None:
    message = accumulate(
        write(
            Started("msg_1", "m"),
            ReasoningDelta("Hm"),
            ReasoningDelta("."),
            ReasoningEnded(Seal("abc", "responses")),
            ReasoningEnded(Seal("enc", "chat"), is_redacted=True),
            ReasoningEnded(Seal("alone", "messages")),
            ReasoningDelta("unsigned"),
            ReasoningEnded(),
            TextDelta("a"),
            CitationAdded(Citation("https://x", "X")),
            TextDelta("b", begins_part=True),
            RefusalDelta("N"),
            RefusalDelta("o."),
            LogprobsAdded(raw([])),
            PartAdded(Media("image", data="AAAA")),
            PartAdded(Opaque(raw({"type": "y"}), "responses")),
            ToolCallStarted(0, "call:1", "f", Seal("z", "gemini")),
            ToolCallDelta(0, '{"a":'),
            ToolCallDelta(0, "1}"),
            ToolCallStarted(1, "call_2", "g"),
            ToolCallDelta(1, "{}"),
            TextDelta("other choice", choice=1),
            Finished("stop", "stop"),
            Finished("length", choice=1),
            UsageReported(Usage(input_tokens=3, output_tokens=4, cache_read_tokens=5), service_tier="default"),
        )
    )
    content = [block.model_dump(exclude_none=True) for block in message.content]
    call_id = content[8]["id"]
    assert content == [
        {"type": "thinking", "thinking": "Hm.", "signature": "hatchway.responses.abc"},
        {"type": "redacted_thinking", "data": "hatchway.chat.enc"},
        {"type": "thinking", "thinking": "", "signature": "alone"},
        {"type": "thinking", "thinking": "unsigned", "signature": ""},
        {
            "type": "text",
            "text": "a",
            "citations": [
                {
                    "type": "web_search_result_location",
                    "url": "https://x",
                    "title": "X",
                    "cited_text": "",
                    "encrypted_index": "",
                }
            ],
        },
        {"type": "text", "text": "b"},
        {"type": "text", "text": "No."},
        {"type": "redacted_thinking", "data": "hatchway.call.hatchway.gemini.z"},
        {"type": "tool_use", "id": call_id, "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
    ]
    assert call_id.startswith("call_1_") and message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens, message.usage.cache_read_input_tokens) == (3, 4, 5)


@pytest.mark.parametrize(
    "events",
    [
        # begun together, then written in turns
        [
            ToolCallStarted(0, "a", "f"),
            ToolCallStarted(1, "b", "g"),
            ToolCallDelta(0, '{"x"'),
            ToolCallDelta(1, '{"y"'),
            ToolCallDelta(0, ":1}"),
            ToolCallDelta(1, ":2}"),
        ],
        # the second is whole before the first
        [
            ToolCallStarted(0, "a", "f"),
            ToolCallDelta(0, '{"x"'),
            ToolCallStarted(1, "b", "g"),
            ToolCallDelta(1, '{"y":2}'),
            ToolCallDelta(0, ":1}"),
        ],
        # one after the other
        [
            ToolCallStarted(0, "a", "f"),
            ToolCallDelta(0, '{"x":1}'),
            ToolCallStarted(1, "b", "g"),
            ToolCallDelta(1, '{"y":2}'),
        ],
        # all at once
        [
            ToolCallStarted(0, "a", "f"),
            ToolCallStarted(1, "b", "g"),
            ToolCallDelta(1, '{"y":2}'),
            ToolCallDelta(0, '{"x":1}'),
        ],
    ],
)
@pytest.mark.parametrize("seal", [None, Seal("z", "gemini")])
def test_calls_side_by_side_are_written_one_after_the_other(events: list[Event], seal: Seal | None) -> None:
    sealed: list[Event] = [
        ToolCallStarted(found.index, found.id, found.name, seal) if isinstance(found, ToolCallStarted) else found
        for found in events
    ]
    items = shown(*sealed, TextDelta("after"), Finished("tool_calls"))
    blocks_in_order(items)
    calls = [block for block in accumulate(write(*sealed, Finished("tool_calls"))).content if block.type == "tool_use"]
    assert [(call.id, call.input) for call in calls] == [("a", {"x": 1}), ("b", {"y": 2})]


def test_a_call_that_waits_begins_as_soon_as_it_may() -> None:
    writer = MESSAGES_PROTOCOL.open_writer(asking())
    before: list[Event] = [ToolCallStarted(0, "a", "f"), ToolCallStarted(1, "b", "g"), ToolCallDelta(1, '{"y":')]
    assert b'"id":"b"' not in b"".join(writer.write(found) for found in before)
    assert b'"id":"b"' not in writer.write(ToolCallDelta(0, '{"x":{}'))
    assert b'"id":"b"' in writer.write(ToolCallDelta(0, "}"))
    assert b"2}" in writer.write(ToolCallDelta(1, "2}"))


def test_calls_without_input_wait_for_nobody_at_the_end() -> None:
    events: list[Event] = [
        ToolCallStarted(0, "a", "f"),
        ToolCallStarted(1, "b", "g"),
        ToolCallStarted(2, "c", "h"),
        Finished("tool_calls"),
    ]
    blocks_in_order(shown(*events))
    message = accumulate(write(*events))
    assert [(block.id, block.input) for block in message.content if block.type == "tool_use"] == [
        ("a", {}),
        ("b", {}),
        ("c", {}),
    ]
    items = shown(*events[:2], TextDelta("x"))
    assert [item["content_block"]["type"] for item in items if "content_block" in item] == [
        "tool_use",
        "tool_use",
        "text",
    ]


@given(st.lists(PARTS, max_size=6), st.sampled_from(["stop", "length", "tool_calls", "pause", "refusal"]))
@settings(max_examples=80)
def test_written_streams_read_alike(parts: list[Part], finish: Any) -> None:
    answer = Answer(choices=[Choice(parts, finish)], id="i", model="m", usage=Usage(input_tokens=1, output_tokens=2))
    body = write(*unfold(answer))
    blocks_in_order([json.loads(item.split(b"data: ")[1]) for item in body.split(b"\n\n")[:-1]])
    again = fold(decode(body))
    assert again.choices[0].parts == parts
    assert again.usage == answer.usage
    if not (finish == "stop" and any(isinstance(part, ToolCall) for part in parts)):
        assert again.choices[0].finish == finish


@given(st.lists(PARTS, max_size=4), st.integers(1, 50))
@settings(max_examples=40)
def test_any_cut_reads_alike(parts: list[Part], size: int) -> None:
    body = write(*unfold(Answer(choices=[Choice(parts, "stop")])))
    whole = fold(decode(body))
    assert fold(decode(body, size=size)) == whole


def test_half_a_surrogate_pair_can_be_written() -> None:
    assert accumulate(write(TextDelta("a\ud83d"))).content[0].text == "a\ufffd"  # type: ignore[union-attr]


def test_an_error_ends_a_stream_and_the_sdk_raises() -> None:
    writer = MESSAGES_PROTOCOL.open_writer(asking())
    body = writer.write(TextDelta("Hi")) + MESSAGES_PROTOCOL.error_event(
        UpstreamFailed("all failed", code="upstream_failed")
    )
    with pytest.raises(anthropic.APIStatusError) as raised:
        accumulate(body)
    assert raised.value.body == {
        "type": "error",
        "error": {"type": "api_error", "message": "all failed", "code": "upstream_failed"},
    }


def test_whole_errors_and_the_sdk() -> None:
    body = MESSAGES_PROTOCOL.error_body(UpstreamFailed("all failed", code="upstream_failed", param="model"))
    with (
        serving(body, status=502, media_type="application/json") as client,
        pytest.raises(anthropic.InternalServerError) as raised,
    ):
        client.messages.create(model="claude-opus-5", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert raised.value.type == "api_error" and raised.value.body == json.loads(body)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (AuthenticationFailed("x"), "authentication_error"),
        (PermissionDenied("x"), "permission_error"),
        (NotFound("x"), "not_found_error"),
        (MethodNotAllowed("x"), "invalid_request_error"),
        (BodyTooLarge("x"), "request_too_large"),
        (RateLimited("x"), "rate_limit_error"),
        (UpstreamFailed("x"), "api_error"),
        (Unavailable("x"), "overloaded_error"),
        (DeadlineExceeded("x"), "timeout_error"),
    ],
)
def test_types_of_errors(error: GatewayError, kind: str) -> None:
    assert json.loads(MESSAGES_PROTOCOL.error_body(error)) == {"type": "error", "error": {"type": kind, "message": "x"}}
