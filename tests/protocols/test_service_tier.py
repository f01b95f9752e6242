"""The service tier that an upstream says it billed, out of whole answers and streams, passed through and translated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocols.base import StreamReader
from tests.protocols.test_matrix import ROWS, adapter, inbound

COUNTS = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
    "usage": COUNTS,
}
MESSAGE = {
    "type": "message",
    "id": "m",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "a"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 2},
}
ITEM = {"type": "message", "id": "i", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "m",
    "output": [ITEM],
    "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
}
TIERS = [
    # upstream, what its answer says, what we understand
    ("openai", "chat", {**CHAT, "service_tier": "priority"}, "priority"),
    ("openai", "chat", {**CHAT, "service_tier": "default"}, "default"),
    ("openai", "chat", {**CHAT, "service_tier": None}, None),
    ("openai", "chat", CHAT, None),
    ("openai", "responses", {**RESPONSE, "service_tier": "flex"}, "flex"),
    ("openai", "responses", RESPONSE, None),
    ("anthropic", "messages", {**MESSAGE, "usage": {**MESSAGE["usage"], "service_tier": "standard"}}, "default"),
    ("anthropic", "messages", {**MESSAGE, "usage": {**MESSAGE["usage"], "service_tier": "priority"}}, "priority"),
    (
        "anthropic",
        "messages",
        {**MESSAGE, "usage": {**MESSAGE["usage"], "service_tier": "standard", "speed": "fast"}},
        "fast",
    ),
    ("anthropic", "messages", MESSAGE, None),
    ("anthropic", "chat", {**MESSAGE, "usage": {**MESSAGE["usage"], "service_tier": "batch"}}, "batch"),
    ("openai", "messages", {**RESPONSE, "service_tier": "priority"}, "priority"),
]


@pytest.mark.parametrize(("name", "surface", "answer", "tier"), TIERS)
def test_of_a_whole_answer(name: str, surface: str, answer: dict[str, Any], tier: str | None) -> None:
    call = adapter(ROWS[name]).open(inbound(surface))
    _, summary = call.read_answer(json.dumps(_as_spoken(name, surface, answer)).encode())
    assert summary.service_tier == tier


def _as_spoken(name: str, surface: str, answer: dict[str, Any]) -> dict[str, Any]:
    """OpenAI is asked in its first wire format where the surface is none of its own."""
    if name == "openai" and surface == "messages" and ROWS[name].speaks[0] == "chat":
        return {**CHAT, "service_tier": answer["service_tier"]}
    return answer


def streamed(name: str, surface: str, *events: bytes) -> StreamReader:
    reader = adapter(ROWS[name]).open(inbound(surface, stream=True)).open_stream()
    for event in events:
        reader.feed(event)
    assert reader.is_finished and reader.usage is not None
    return reader


def chunk(**fields: Any) -> bytes:
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    return b"data: " + json.dumps({**frame, **fields}).encode() + b"\n\n"


def event(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: {json.dumps({'type': type, **fields})}\n\n".encode()


SAID = [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}]
STOPPED = [{"index": 0, "delta": {}, "finish_reason": "stop"}]


@pytest.mark.parametrize("surface", ["chat", "messages"])
@pytest.mark.parametrize(
    ("first", "last", "tier"),
    [
        ({"service_tier": "flex"}, {"service_tier": "flex"}, "flex"),
        ({"service_tier": "auto"}, {"service_tier": "default"}, "default"),  # the last word holds
        ({}, {"service_tier": "priority"}, "priority"),
        ({"service_tier": "priority"}, {}, "priority"),
        ({}, {}, None),
    ],
)
def test_of_a_stream_of_chunks(surface: str, first: dict[str, Any], last: dict[str, Any], tier: str | None) -> None:
    assert ROWS["mistral"].speaks[0] == "chat"
    reader = streamed(
        "mistral",
        surface,
        chunk(choices=SAID, **first),
        chunk(choices=STOPPED),
        chunk(usage=COUNTS, **last),
        b"data: [DONE]\n\n",
    )
    assert reader.service_tier == tier


@pytest.mark.parametrize("odd", [3, ["flex"], {"tier": "flex"}, False, ""])
def test_a_tier_that_is_no_text_does_not_end_a_stream(odd: Any) -> None:
    reader = streamed(
        "mistral",
        "chat",
        chunk(choices=SAID),
        chunk(choices=STOPPED, usage=COUNTS, service_tier=odd),
        b"data: [DONE]\n\n",
    )
    assert reader.service_tier is None


@pytest.mark.parametrize("surface", ["messages", "chat"])
@pytest.mark.parametrize(("said", "tier"), [({"service_tier": "priority"}, "priority"), ({}, None)])
def test_of_a_stream_of_messages(surface: str, said: dict[str, str], tier: str | None) -> None:
    start = {**MESSAGE, "content": [], "stop_reason": None, "usage": {"input_tokens": 1, "output_tokens": 1, **said}}
    reader = streamed(
        "anthropic",
        surface,
        event("message_start", message=start),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
        event("message_stop"),
    )
    assert reader.service_tier == tier


@pytest.mark.parametrize(("said", "tier"), [({"service_tier": "flex"}, "flex"), ({}, None)])
def test_of_a_stream_of_a_response(said: dict[str, str], tier: str | None) -> None:
    begun = {**RESPONSE, "status": "in_progress", "output": [], "usage": None, "service_tier": "auto"}
    reader = streamed(
        "openai",
        "responses",
        event("response.created", response=begun),
        event("response.output_text.delta", item_id="i", output_index=0, content_index=0, delta="a"),
        event("response.completed", response={**RESPONSE, **said}),
    )
    assert reader.service_tier == tier
