"""What real providers really sent and were sent, as far as recordings lie beside the project."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.canonical import (
    Answer,
    Opaque,
    Reasoning,
)
from gateway.config.rows import PLAIN
from gateway.errors import UpstreamError
from gateway.folding import fold, tool_calls, visible_text
from gateway.protocols.responses.answer import read_count
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL, RESPONSES_WIRE
from gateway.types import BUCKETS
from tests.protocols.responses.sdk import accumulate, check_answer, check_request, events_of
from tests.protocols.responses.shapes import decode, write
from tests.recordings import Recording, cuts, recordings

HAND_TRIMMED = frozenset({"openai/vai-openai-shell-container.1-stream/0"})
"""Its authors cut deltas out and left the whole: the text that was streamed is not the one that it ends with."""
LONG = 8_000


def answer_of(recording: Recording, size: int | None = None) -> Answer:
    if not recording.stream:
        return RESPONSES_WIRE.read_answer(recording.body, PLAIN)
    return fold(decode(cuts(recording.body, size or len(recording.body))))


def buckets(usage: Any) -> dict[str, int] | None:
    return None if usage is None else {name: getattr(usage, name) for name in BUCKETS}


def deltas_of(body: bytes) -> list[str]:
    data = [line[5:] for line in body.splitlines() if line.startswith(b"data:") and b"[DONE]" not in line]
    deltas = [event["delta"] for event in map(json.loads, data) if event["type"].endswith(".delta")]
    return [delta for delta in deltas if isinstance(delta, str)]


def arguments(text: str) -> Any:
    return json.loads(text) if text else {}


@pytest.mark.parametrize("recording", recordings("openai.responses", "openai.responses_compact"))
def test_an_answer_is_what_the_provider_meant(recording: Recording) -> None:
    expected = recording.expected
    answer = answer_of(recording)
    choice = answer.choices[0]
    text = visible_text(choice.parts)
    if recording.id in HAND_TRIMMED:
        assert text == "The command ran successfully." and expected["text"].startswith(text[:-1])
    else:
        assert text == expected["text"]
    calls = [(call.id, call.name, arguments(call.arguments)) for call in tool_calls(choice.parts)]
    assert calls == [(call["id"], call["name"], call["arguments"]) for call in expected["tool_calls"]]
    assert choice.raw_finish == expected["finish_reason"]
    reasoning = [part for part in choice.parts if isinstance(part, Reasoning)]
    assert "".join(part.text for part in reasoning) == (expected.get("reasoning_text") or "")
    assert sum(part.seal is not None for part in reasoning) == (expected.get("signatures") or 0)
    opaque = [json.loads(bytes(part.raw))["type"] for part in choice.parts if isinstance(part, Opaque)]
    assert [kind for kind in opaque if kind != "compaction"] == expected.get("server_tools", [])
    assert choice.finish == _finish(expected)
    assert answer.model == expected["model"]
    if not expected.get("doubtful"):
        assert buckets(answer.usage) == (expected["buckets"] and {**dict.fromkeys(BUCKETS, 0), **expected["buckets"]})


def _finish(expected: dict[str, Any]) -> str:
    if expected.get("incomplete_reason"):
        return {"max_output_tokens": "length", "content_filter": "content_filter"}[expected["incomplete_reason"]]
    if expected["tool_calls"]:
        return "tool_calls"
    return "refusal" if expected.get("refusal") else "stop"


@pytest.mark.parametrize("recording", recordings("openai.responses"))
def test_cuts_do_not_matter(recording: Recording) -> None:
    if not recording.stream:
        return
    whole = answer_of(recording)
    for size in (1, 2, 3, 7, 61) if len(recording.body) < LONG else (61, 4093):
        assert answer_of(recording, size) == whole, size


@pytest.mark.parametrize("recording", recordings("openai.responses"))
def test_what_passes_through_is_counted(recording: Recording) -> None:
    expected = recording.expected
    view = RESPONSES_PROTOCOL.parse(b'{"model":"m","input":"hi"}')
    if not recording.stream:
        summary = RESPONSES_PROTOCOL.scan_answer(recording.body, PLAIN)
        found = summary.usage, summary.raw_usage, summary.finish_reason
    else:
        for size in (13, 4096, len(recording.body)):
            reader = RESPONSES_PROTOCOL.open_scanner(view, PLAIN)
            shown = b"".join([reader.feed(piece) for piece in cuts(recording.body, size)])
            if not reader.is_finished:
                shown += reader.finish()
            assert shown.rstrip() == recording.body.rstrip() and reader.is_finished and reader.has_content
            found = reader.usage, reader.raw_usage, reader.finish_reason
        assert reader.text() == "".join(deltas_of(recording.body))
    usage, raw, finish = found
    assert finish == expected["finish_reason"]
    assert buckets(usage) == {**dict.fromkeys(BUCKETS, 0), **expected["buckets"]}
    assert raw is not None and json.loads(bytes(raw)) == expected["usage_raw"]


@pytest.mark.parametrize("recording", recordings("openai.responses", ok=False))
def test_an_error_is_no_answer(recording: Recording) -> None:
    """Also under status 200."""
    with pytest.raises(UpstreamError):
        RESPONSES_WIRE.read_answer(recording.body, PLAIN)
    with pytest.raises(UpstreamError):
        RESPONSES_PROTOCOL.scan_answer(recording.body, PLAIN)


@pytest.mark.parametrize("recording", recordings("openai.count_tokens"))
def test_a_count_is_read(recording: Recording) -> None:
    assert read_count(recording.body) == recording.expected["count_tokens"]


@pytest.mark.parametrize("recording", recordings("openai.responses"))
def test_an_answer_written_again_is_one_to_the_sdk(recording: Recording) -> None:
    """Read, written for a client, as a whole and as a stream: the same text, calls and usage come out of the SDK."""
    request = RESPONSES_PROTOCOL.read_request(b'{"model":"m","input":"hi"}')
    events = decode([recording.body]) if recording.stream and len(recording.body) < 5 * LONG else None
    answer = answer_of(recording)
    answer.choices[0].parts = [part for part in answer.choices[0].parts if not isinstance(part, Opaque)]
    whole = check_answer(RESPONSES_PROTOCOL.write_answer(answer, request))
    again = RESPONSES_WIRE.read_answer(RESPONSES_PROTOCOL.write_answer(answer, request), PLAIN)
    assert whole.output_text == visible_text(answer.choices[0].parts)
    assert (again.usage, again.choices[0].finish) == (answer.usage, answer.choices[0].finish)
    if events is not None:
        writer = RESPONSES_PROTOCOL.open_writer(request)
        kept = [event for event in events if type(event).__name__ != "PartAdded"]
        stream = b"".join([writer.write(event) for event in kept]) + writer.end()
        events_of(stream)
        assert accumulate(stream).output_text == visible_text(answer.choices[0].parts)


# Requests


def asked() -> list[Any]:
    found = []
    for param in recordings("openai.responses", ok=None):
        recording = param.values[0]
        if recording is None or isinstance(recording.request, dict):
            found.append(param)
    return found


def plain(request: dict[str, Any]) -> dict[str, Any]:
    """A request in one of its several ways of saying the same."""
    said = {name: value for name, value in request.items() if value is not None and name not in ("store", "stream")}
    said["input"] = [item for item in map(_plain_item, _items(said["input"])) if item is not None]
    first = said["input"][0] if said["input"] else {}
    if first.get("role") in ("system", "developer") and isinstance(first["content"], str) and len(said["input"]) > 1:
        said["instructions"] = first["content"]  # the first system turn
        said["input"] = said["input"][1:]
    said["include"] = sorted(said.get("include", []))
    said["tools"] = [{"description": None, **tool} for tool in said.get("tools", [])]
    if isinstance(said.get("reasoning"), dict):
        said["reasoning"] = {name: value for name, value in said["reasoning"].items() if value is not None}
    return said


def _items(given: Any) -> list[Any]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _plain_item(item: dict[str, Any]) -> dict[str, Any] | None:
    if item.get("type") not in (None, "message", "reasoning", "function_call", "function_call_output"):
        return item
    item = {name: value for name, value in item.items() if name not in ("id", "status", "phase", "namespace")}
    for field in ("content", "output"):
        parts = item.get(field)
        if isinstance(parts, list) and len(parts) == 1 and not parts[0].get("prompt_cache_breakpoint"):
            item[field] = parts[0].get("text", parts)
        elif isinstance(parts, list):
            item[field] = [{"detail": "auto", **part} if part["type"] == "input_image" else part for part in parts]
        if isinstance(item.get(field), list):
            item[field] = [{"detail": "auto", **p} if p["type"] == "input_image" else p for p in item[field]]
    if item.get("type") == "reasoning":
        if not item.get("encrypted_content"):
            return None
        return {"type": "reasoning", "encrypted_content": item["encrypted_content"]}
    if "role" in item:
        item.pop("type", None)
    return item


@pytest.mark.parametrize("recording", asked())
def test_a_request_survives_the_canonical_form(recording: Recording) -> None:
    """Everything that matters is still there, also what only this protocol has."""
    request = RESPONSES_PROTOCOL.read_request(msgspec.json.encode(recording.request))
    written = write(request, model=recording.request["model"])
    assert written.get("stream", False) == recording.request.get("stream", False)
    before, after = plain(recording.request), plain(written)
    if "include" not in recording.request:  # the model's name said that it reasons
        after["include"] = [name for name in after["include"] if name != "reasoning.encrypted_content"]
    assert after == before
    view = RESPONSES_PROTOCOL.parse(msgspec.json.encode(recording.request))
    if view.native_feature() is None and recording.provider == "openai" and recording.status == 200:
        check_request(written)


@pytest.mark.parametrize("recording", asked())
def test_native_features_are_known(recording: Recording) -> None:
    """Plain requests can go to any provider, those with tools and state of the provider's own cannot."""
    request = recording.request
    native = RESPONSES_PROTOCOL.parse(msgspec.json.encode(request)).native_feature()
    kinds = {tool["type"] for tool in request.get("tools", ())}
    kinds |= {item.get("type", "message") for item in _items(request["input"])}
    plain_kinds = {"function", "message", "reasoning", "function_call", "function_call_output"}
    state = any(request.get(name) for name in ("previous_response_id", "conversation", "moderation"))
    assert (native is not None) == bool(state or kinds - plain_kinds)


@pytest.mark.parametrize("recording", asked())
def test_a_request_that_passes_is_not_touched(recording: Recording) -> None:
    body = msgspec.json.encode(recording.request)
    view = RESPONSES_PROTOCOL.parse(body)
    assert RESPONSES_PROTOCOL.rewrite(view, body, None, PLAIN) is body
    changed = json.loads(RESPONSES_PROTOCOL.rewrite(view, body, "other", PLAIN))
    assert changed == {**recording.request, "model": "other"}
