"""Recorded traffic of many providers, read to what it says: whole, in any cut, and while it passes through."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator

import msgspec
import pytest

from gateway.canonical import (
    Answer,
    Reasoning,
    Refusal,
)
from gateway.folding import fold, tool_calls, visible_text
from gateway.protocols.base import StreamError
from gateway.protocols.chat.scanner import Scanner, scan_answer
from gateway.protocols.chat.wire import CHAT_WIRE
from gateway.types import BUCKETS, Usage
from tests.protocols.chat.dialects import dialect_of
from tests.protocols.chat.events import decode
from tests.recordings import Recording, cuts, recordings

GOOD = recordings("openai.chat")
MAX_CUT_EVERYWHERE = 2000  # bytes


def is_good(recording: Recording | None) -> bool:
    return recording is not None and not recording.expected.get("error")


WHOLE = [case for case in GOOD if is_good(case.values[0]) and not case.values[0].stream] or GOOD
STREAMS = [case for case in GOOD if is_good(case.values[0]) and case.values[0].stream] or GOOD


def answer_of(recording: Recording) -> Answer:
    dialect = dialect_of(recording.provider)
    if recording.stream:
        return fold(decode([recording.body], dialect))
    return CHAT_WIRE.read_answer(recording.body, dialect)


def check_usage(usage: Usage | None, recording: Recording) -> None:
    expected = recording.expected["buckets"]
    if recording.expected.get("doubtful") and recording.provider != "gemini":
        return
    if expected is None:
        assert usage is None
        return
    assert usage is not None
    counts = dict.fromkeys(BUCKETS, 0) | {name: count for name, count in expected.items() if name in BUCKETS}
    for name, count in expected.get("of_which", {}).items():
        plain = "output_tokens" if "output" in name else "input_tokens"
        counts[name] = min(count, counts[plain])  # pictures may be among the cached tokens
        counts[plain] -= counts[name]
    assert usage == Usage(**counts)


@pytest.mark.parametrize("recording", [case for case in GOOD if is_good(case.values[0])] or GOOD)
def test_an_answer_says_what_was_said(recording: Recording) -> None:
    answer, expected = answer_of(recording), recording.expected
    (choice,) = answer.choices
    assert visible_text(choice.parts) == expected["text"]
    calls = [(call.name, json.loads(call.arguments or "{}")) for call in tool_calls(choice.parts)]
    assert calls == [(call["name"], call["arguments"]) for call in expected["tool_calls"]]
    assert all(call.id for call in tool_calls(choice.parts))
    assert choice.raw_finish == expected["finish_reason"]
    assert (choice.finish == "tool_calls") is bool(calls)
    thoughts = [part for part in choice.parts if isinstance(part, Reasoning)]
    if "reasoning_text" in expected:
        assert "".join(thought.text for thought in thoughts) == expected["reasoning_text"]
    if "signatures" in expected:
        assert sum(thought.seal is not None for thought in thoughts) == expected["signatures"]
    refusal = "".join(part.text for part in choice.parts if isinstance(part, Refusal))
    assert refusal == expected.get("refusal", "")
    assert (choice.finish == "refusal") is bool(refusal)
    check_usage(answer.usage, recording)
    if answer.raw_usage is not None:
        assert json.loads(bytes(answer.raw_usage)) == expected["usage_raw"]


def cuts_of(body: bytes) -> Iterator[Iterable[bytes]]:
    if len(body) <= MAX_CUT_EVERYWHERE:
        yield from ((body[:at], body[at:]) for at in range(1, len(body)))
    yield from (list(cuts(body, size)) for size in (1, 7, 61, 997, 8191) if size > 1 or len(body) < 10_000)
    inside = [at for at, byte in enumerate(body) if byte & 0xC0 == 0x80][:5]  # of a character
    yield from ((body[:at], body[at:]) for at in inside)


@pytest.mark.parametrize("recording", STREAMS)
def test_no_cut_changes_what_a_stream_says(recording: Recording) -> None:
    dialect = dialect_of(recording.provider)
    whole = fold(decode([recording.body], dialect))
    for pieces in cuts_of(recording.body):
        assert fold(decode(pieces, dialect)) == whole


def test_an_error_inside_a_stream_is_raised() -> None:
    broken = [case.values[0] for case in GOOD if case.values[0] is not None and not is_good(case.values[0])]
    for recording in broken:
        with pytest.raises(StreamError) as caught:
            answer_of(recording)
        assert recording.expected["error"]["message"] not in str(caught.value)
    assert len(broken) == (1 if GOOD[0].values[0] is not None else 0)


# Passing through


def scan(recording: Recording, pieces: Iterable[bytes], *, shows_usage: bool = True) -> tuple[bytes, Scanner]:
    scanner = Scanner(dialect_of(recording.provider), shows_usage=shows_usage)
    shown = [scanner.feed(piece) for piece in pieces if not scanner.is_finished]
    if not scanner.is_finished:
        shown.append(scanner.finish())
    return b"".join(shown), scanner


def check_text(text: str, recording: Recording) -> None:
    expected = recording.expected
    if "signatures" not in expected:  # the text of what is sealed may stand in two places
        start = expected.get("reasoning_text", "") + expected["text"] + expected.get("refusal", "")
        assert text == start if not expected["tool_calls"] else text.startswith(start)
    assert all(call["name"] in text for call in expected["tool_calls"])


@pytest.mark.parametrize("recording", WHOLE)
def test_a_whole_answer_is_scanned(recording: Recording) -> None:
    summary = scan_answer(recording.body, dialect_of(recording.provider))
    assert summary.finish_reason == recording.expected["finish_reason"]
    check_usage(summary.usage, recording)
    fields = json.loads(recording.body)
    if summary.raw_usage is not None:
        assert json.loads(bytes(summary.raw_usage)) == fields["usage"]
    without = msgspec.json.encode({**fields, "usage": None, "x_groq": None})
    counted = scan_answer(without, dialect_of(recording.provider))
    assert counted.usage is None
    check_text(counted.text, recording)


@pytest.mark.parametrize("recording", STREAMS)
def test_a_stream_is_scanned(recording: Recording) -> None:
    shown, scanner = scan(recording, [recording.body])
    assert shown.rstrip(b"\n") == recording.body.rstrip(b"\n")
    assert scanner.finish_reason == recording.expected["finish_reason"]
    assert scanner.has_content and scanner.is_finished
    check_usage(scanner.usage, recording)
    check_text(scanner.text(), recording)


def facts_of(scanner: Scanner) -> tuple[object, ...]:
    return scanner.usage, scanner.raw_usage, scanner.finish_reason, scanner.has_content, scanner.text()


@pytest.mark.parametrize("recording", STREAMS)
@pytest.mark.parametrize("shows_usage", [True, False])
def test_no_cut_changes_what_is_scanned_or_shown(recording: Recording, shows_usage: bool) -> None:
    body = recording.body
    shown, scanner = scan(recording, [body], shows_usage=shows_usage)
    chosen = random.Random(7)
    for number in range(5):
        at = sorted(chosen.sample(range(1, len(body)), chosen.randint(1, 40))) if number else range(1, 2000)
        edges = [0, *at, len(body)]
        pieces = (body[start:end] for start, end in zip(edges, edges[1:], strict=False))
        again, other = scan(recording, pieces, shows_usage=shows_usage)
        assert (again, facts_of(other)) == (shown, facts_of(scanner))


@pytest.mark.parametrize("recording", STREAMS)
def test_only_unasked_usage_chunks_are_missing(recording: Recording) -> None:
    shown, scanner = scan(recording, [recording.body], shows_usage=False)
    left = shown.split(b"\n\n")
    hidden = [event for event in recording.body.split(b"\n\n") if event not in left]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in hidden]
    assert all(not chunk["choices"] and chunk["usage"] for chunk in chunks)
    assert len(hidden) <= 1
    check_usage(scanner.usage, recording)
