"""Recorded traffic of Cohere, read as it should be and in any cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.canonical import (
    Answer,
    Reasoning,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamError
from gateway.folding import fold, tool_calls, visible_text
from gateway.protocols.cohere.wire import COHERE_EMBEDDINGS, COHERE_WIRE
from gateway.types import BUCKETS, Usage
from tests.recordings import Recording, cuts, recordings

CHATS = ("cohere.v1.chat", "cohere.v2.chat")
EMBEDDINGS = ("cohere.embed", "cohere.v1.embed", "cohere.v2.embed")
SHORT = 20_000  # bytes of a stream that is cut at every byte


def whole(recording: Recording) -> Answer:
    if not recording.stream:
        return COHERE_WIRE.read_answer(recording.body, PLAIN)
    return streamed(recording, len(recording.body))


def streamed(recording: Recording, size: int) -> Answer:
    decoder = COHERE_WIRE.open_decoder(PLAIN)
    events = [event for chunk in cuts(recording.body, size) for event in decoder.feed(chunk)]
    events += decoder.finish()
    assert decoder.is_finished
    return fold(events)


def buckets(expected: dict[str, Any]) -> Usage | None:
    counts = expected["buckets"]
    if counts is None:
        return None
    found = {name: counts.get(name, 0) for name in BUCKETS}
    for name, count in counts.get("of_which", {}).items():
        found[name] += count
        found["output_tokens" if "output" in name else "input_tokens"] -= count
    return Usage(**found)


@pytest.mark.parametrize("recording", recordings(*CHATS, *EMBEDDINGS))
def test_answer(recording: Recording) -> None:
    if recording.protocol in EMBEDDINGS:
        embeddings = COHERE_EMBEDDINGS.read_answer(recording.body, PLAIN)
        assert len(embeddings.vectors) == recording.expected["vectors"]
        assert embeddings.usage == buckets(recording.expected)
    else:
        check_chat(recording)


def check_chat(recording: Recording) -> None:
    answer, expected = whole(recording), recording.expected
    (choice,) = answer.choices
    assert visible_text(choice.parts) == expected["text"]
    calls = [(call.name, json.loads(call.arguments or "{}")) for call in tool_calls(choice.parts)]
    assert calls == [(call["name"], call["arguments"]) for call in expected["tool_calls"]]
    ids = [call.id for call in tool_calls(choice.parts)]
    assert ids == [call["id"] for call in expected["tool_calls"]] and len(set(ids)) == len(ids)
    assert choice.raw_finish == expected["finish_reason"]
    assert answer.id == expected["response_id"]
    if "reasoning_text" in expected:
        thought = "".join(part.text for part in choice.parts if isinstance(part, Reasoning))
        assert thought == expected["reasoning_text"]
    if not expected.get("doubtful"):
        assert answer.usage == buckets(expected)
    kept = None if answer.raw_usage is None else json.loads(bytes(answer.raw_usage))
    assert kept == expected["usage_raw"]


@pytest.mark.parametrize("recording", [it for it in recordings(*CHATS) if it.values[0] is None or it.values[0].stream])
def test_any_cut(recording: Recording) -> None:
    expected = whole(recording)
    for size in (1, 2, 3, 7, 64, 1021) if len(recording.body) < SHORT else (7, 64, 1021):
        assert streamed(recording, size) == expected


@pytest.mark.parametrize("recording", recordings(*CHATS, ok=False))
def test_error_body_is_no_answer(recording: Recording) -> None:
    with pytest.raises(UpstreamError):
        COHERE_WIRE.read_answer(recording.body, PLAIN)
