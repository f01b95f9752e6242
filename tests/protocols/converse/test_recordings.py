"""What Bedrock really sent, against what is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.canonical import (
    Answer,
    Opaque,
    Reasoning,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected
from gateway.folding import fold, tool_calls, unfold, visible_text
from gateway.protocols.base import StreamDecoder
from gateway.protocols.converse import invoke
from gateway.protocols.converse.usage import read_count
from gateway.protocols.converse.wire import BEDROCK_EMBEDDINGS, CONVERSE_WIRE
from tests.recordings import Recording, cuts, recordings

SHORT = 2_500  # bytes: streams up to it are cut at every byte


def invoked(*protocols: str, embeds: bool) -> list[Any]:
    """Bodies of InvokeModel are of many kinds: read are Claude's, and those of embedding models."""
    found = recordings(*protocols)
    return [case for case in found if case.values[0] is None or is_read(case.values[0], embeds=embeds)]


def is_read(recording: Recording, *, embeds: bool) -> bool:
    return b'"embedding' in recording.body if embeds else not recording.expected.get("unparsed")


def check(answer: Answer, recording: Recording) -> None:
    (choice,), expected = answer.choices, recording.expected
    assert visible_text(choice.parts) == expected["text"]
    assert [
        {"id": call.id, "name": call.name, "arguments": json.loads(call.arguments or "{}")}
        for call in tool_calls(choice.parts)
    ] == expected["tool_calls"]
    assert choice.raw_finish == expected["finish_reason"] and choice.finish != "unknown"
    thoughts = [part for part in choice.parts if isinstance(part, Reasoning)]
    assert "".join(part.text for part in thoughts) == expected.get("reasoning_text", "")
    assert sum(part.seal is not None for part in thoughts) == expected.get("signatures", 0)
    assert list(server_tools(answer)) == expected.get("server_tools", [])
    if not expected.get("doubtful"):
        assert answer.usage is not None and answer.raw_usage is not None
        buckets = msgspec.structs.asdict(answer.usage)
        assert {name: count for name, count in buckets.items() if count} == {
            name: count for name, count in expected["buckets"].items() if count
        }


def server_tools(answer: Answer) -> Iterator[str]:
    for part in answer.choices[0].parts:
        if isinstance(part, Opaque) and (call := json.loads(bytes(part.raw)).get("toolUse")):
            yield call["name"]


def read_stream(decoder: StreamDecoder, chunks: list[bytes]) -> Answer:
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    assert decoder.is_finished
    return fold(events + decoder.finish())


@pytest.mark.parametrize("recording", recordings("bedrock.converse"))
def test_answers(recording: Recording) -> None:
    answer = CONVERSE_WIRE.read_answer(recording.body, PLAIN)
    check(answer, recording)
    assert fold(unfold(answer)) == answer


@pytest.mark.parametrize("recording", recordings("bedrock.converse_stream"))
def test_streams(recording: Recording) -> None:
    body = recording.body
    answer = read_stream(CONVERSE_WIRE.open_decoder(PLAIN), [body])
    check(answer, recording)
    for size in (1, 101):
        assert read_stream(CONVERSE_WIRE.open_decoder(PLAIN), list(cuts(body, size))) == answer
    for place in range(1, len(body)) if len(body) <= SHORT else ():
        assert read_stream(CONVERSE_WIRE.open_decoder(PLAIN), [body[:place], body[place:]]) == answer


@pytest.mark.parametrize("recording", recordings("bedrock.converse_stream"))
def test_streams_that_end_early(recording: Recording) -> None:
    decoder = CONVERSE_WIRE.open_decoder(PLAIN)
    decoder.feed(recording.body[: len(recording.body) // 3])
    with pytest.raises(UpstreamDisconnected):
        decoder.finish()
    assert not decoder.is_finished


@pytest.mark.parametrize("recording", invoked("bedrock.invoke", "bedrock.invoke_stream", embeds=False))
def test_invoked_claudes(recording: Recording) -> None:
    if recording.stream:
        answer = read_stream(invoke.InvokeDecoder(), [recording.body])
        assert read_stream(invoke.InvokeDecoder(), list(cuts(recording.body, 7))) == answer
    else:
        answer = invoke.read_answer(recording.body)
    check(answer, recording)
    assert (answer.model, answer.id) == (recording.expected["model"], recording.expected["response_id"])


@pytest.mark.parametrize("recording", invoked("bedrock.invoke", embeds=True))
def test_embeddings(recording: Recording) -> None:
    answer = BEDROCK_EMBEDDINGS.read_answer(recording.body, PLAIN)
    body = json.loads(recording.body)
    assert answer.vectors == [body["embedding"]]
    assert answer.usage is not None and answer.usage.input_tokens == body["inputTextTokenCount"] == answer.usage.total


@pytest.mark.parametrize("recording", recordings("bedrock.count_tokens"))
def test_counts(recording: Recording) -> None:
    assert read_count(recording.body) == recording.expected["count_tokens"]
