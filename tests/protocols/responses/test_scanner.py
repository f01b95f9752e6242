"""What is learned of streams and answers that pass through, whatever their framing, and that their bytes stay."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.rows import PLAIN
from gateway.errors import UpstreamDisconnected, UpstreamError, UpstreamProtocolError
from gateway.protocols.base import StreamError
from gateway.protocols.framing import MAX_EVENT_BYTES
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL
from gateway.types import Usage
from tests.protocols.responses.shapes import (
    CREATED,
    USAGE,
    added,
    body,
    call,
    completed,
    delta,
    done,
    event,
    message,
    reasoning,
)

VIEW = RESPONSES_PROTOCOL.parse(b'{"model":"m","input":"hi","stream":true}')
COUNTED = Usage(input_tokens=6, cache_read_tokens=4, output_tokens=5, reasoning_tokens=2)
PLACE = {"content_index": 0}
GOOD = b"".join(
    [
        CREATED,
        event("response.in_progress", response={}),
        added(0, message()),
        delta("output_text", "hé", **PLACE),
        delta("output_text", "llo", **PLACE),
        done(0, message("héllo")),
        completed(message("héllo")),
    ]
)


def scanner() -> Any:
    return RESPONSES_PROTOCOL.open_scanner(VIEW, PLAIN)


def feed(*pieces: bytes) -> tuple[bytes, Any]:
    reader = scanner()
    shown = [reader.feed(piece) for piece in pieces]
    if not reader.is_finished:
        shown.append(reader.finish())
    return b"".join(shown), reader


def variants(whole: bytes) -> dict[str, bytes]:
    data_first = [b"\n".join(reversed(block.split(b"\n"))) for block in whole.split(b"\n\n")]
    return {
        "as written": whole,
        "crlf": whole.replace(b"\n", b"\r\n"),
        "mixed": whole.replace(b"\n\n", b"\n\r\n", 2),
        "no space": whole.replace(b"data: ", b"data:"),
        "no event lines": b"\n".join(line for line in whole.split(b"\n") if not line.startswith(b"event:")),
        "data before event": b"\n\n".join(data_first),
        "ids": whole.replace(b"data: ", b"id: 1\nretry: 5\ndata: "),
        "comments": whole.replace(b"data: ", b": ping\ndata: ").replace(b"event: ", b": OPENROUTER\n\nevent: "),
        "more blank lines": whole.replace(b"\n\n", b"\n\n\n\n\n"),
        "leading blank lines": b"\n\n\r\n" + whole,
        "no final blank line": whole.rstrip(b"\n"),
        "with [DONE]": whole + b"data: [DONE]\n\n",
        "dense": whole.replace(b'": ', b'":'),
    }


@pytest.mark.parametrize("name", variants(GOOD))
def test_framing_does_not_matter(name: str) -> None:
    whole = variants(GOOD)[name]
    for size in (len(whole), 1, 2, 3, 5, 50):
        shown, reader = feed(*[whole[at : at + size] for at in range(0, len(whole), size)])
        assert shown.rstrip(b"\r\n") == whole.rstrip(b"\r\n")
        assert (reader.text(), reader.finish_reason, reader.is_finished) == ("héllo", "completed", True)
        assert reader.usage == COUNTED and json.loads(bytes(reader.raw_usage)) == USAGE


@pytest.mark.parametrize(
    "text",
    [
        "response.completed",
        '"response.failed"',
        'data: {"type":"response.completed"}\n\n',
        '{"type": "error"}',
        '"error": {"message": "x"}',
        "event: error",
        "[DONE]",
        '\n\nevent: response.failed\ndata: {"error":1}\n\n',
    ],
)
def test_text_is_never_taken_for_a_signal(text: str) -> None:
    stream = [CREATED, delta("output_text", "a", **PLACE), delta("output_text", text, **PLACE), completed(message())]
    shown, reader = feed(*stream)
    assert shown == b"".join(stream) and reader.text() == f"a{text}"
    assert (reader.usage, reader.finish_reason) == (COUNTED, "completed")


def test_content_is_the_first_delta_or_item() -> None:
    for first in (
        added(0, reasoning()),
        delta("output_text", "a", **PLACE),
        delta("function_call_arguments", "{"),
        completed(),
    ):
        reader = scanner()
        for piece in (b": ping\n\n", CREATED, event("response.in_progress", response={}), event("keepalive")):
            reader.feed(piece)
            assert not reader.has_content
        reader.feed(delta("output_text", "", **PLACE))
        assert not reader.has_content
        reader.feed(first)
        assert reader.has_content


def test_after_content_only_signals_are_parsed() -> None:
    """Anything may pass then that is JSON: the client is the judge of it."""
    odd = b'event: response.new\ndata: {"type":1,"x":2}\n\n'
    stream = [CREATED, delta("output_text", "a", **PLACE), odd, completed(message("a"))]
    assert feed(b"".join(stream))[0] == b"".join(stream)
    with pytest.raises(UpstreamProtocolError):
        scanner().feed(odd)


def test_a_broken_event_ends_the_stream_after_what_came_before_it() -> None:
    reader, said = scanner(), delta("output_text", "a", **PLACE)
    reader.feed(CREATED + said)
    with pytest.raises(UpstreamProtocolError) as failure:
        reader.feed(said + b'event: response.new\ndata: {"type":"response.new","x":\n\n' + said)
    assert failure.value.before == said


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"response.output_text.delta","delta":"x',
        b'{"type":"error","code":"server_error","message":"x"}',
        b'{"type":"response.output_text.delta","error":{"message":"x"}}',
        b'{"type":"response.output_text.delta",\n"delta":"x"}',
    ],
)
def test_a_failure_under_the_name_of_a_delta_is_none(data: bytes) -> None:
    """By itself or with others: a delta is passed on without being read where it comes alone."""
    said = delta("output_text", "a", **PLACE)
    bad = b"event: response.output_text.delta\ndata: %b\n\n" % data
    for piece, before in ((bad, b""), (said + bad, said)):
        reader = scanner()
        reader.feed(CREATED + said)
        assert reader.feed(said) == said
        with pytest.raises(UpstreamError) as failure:
            reader.feed(piece)
        assert failure.value.before == before


@pytest.mark.parametrize(("status", "reason"), [("incomplete", {"reason": "max_output_tokens"}), ("completed", None)])
def test_both_ends_are_normal(status: str, reason: Any) -> None:
    _, reader = feed(CREATED, completed(status=status, incomplete_details=reason))
    assert (reader.finish_reason, reader.usage, reader.is_finished) == (status, COUNTED, True)


@pytest.mark.parametrize(
    "piece",
    [
        event("error", code="server_error", message="sk-secret", param=None),
        b'data: {"type" : "error", "message":"sk-secret"}\n\n',
        b'event: error\ndata: {"message":"sk-secret"}\n\n',
        b'data: {"error":{"message":"sk-secret"}}\n\n',
        b'data: {"error" : "sk-secret"}\n\n',
        completed(status="failed", error={"message": "sk-secret"}),
    ],
)
def test_errors_inside_a_stream(piece: bytes) -> None:
    for before in ([], [CREATED], [CREATED, delta("output_text", "a", **PLACE)]):
        reader = scanner()
        for part in before:
            reader.feed(part)
        with pytest.raises(StreamError) as raised:
            reader.feed(piece)
        assert "secret" not in str(raised.value)
        assert reader.text() == ("a" if len(before) == 2 else "")
        assert not reader.is_finished


def test_what_a_failed_response_used_is_known() -> None:
    reader = scanner()
    with pytest.raises(StreamError):
        reader.feed(completed(status="failed", error={"code": "server_error", "message": "x"}))
    assert reader.usage == COUNTED and reader.finish_reason == "failed"


def test_an_item_that_failed_is_no_error_of_the_stream() -> None:
    item = {"type": "mcp_call", "error": {"message": "not found"}}
    shown, reader = feed(CREATED, added(0, item), done(0, item), completed(item))
    assert reader.is_finished


@pytest.mark.parametrize("end", range(0, len(GOOD) - 2, 37))
def test_a_stream_that_breaks_off(end: int) -> None:
    reader = scanner()
    reader.feed(GOOD[:end])
    with pytest.raises((UpstreamDisconnected, UpstreamProtocolError)):
        reader.finish()


def test_usage_that_is_missing_or_wrong() -> None:
    _, reader = feed(CREATED, completed(usage=None))
    assert (reader.usage, reader.raw_usage) == (None, None)
    _, reader = feed(CREATED, completed(usage={"input_tokens": 1, "output_tokens": -5}))
    assert reader.usage is None and json.loads(bytes(reader.raw_usage)) == {"input_tokens": 1, "output_tokens": -5}


@pytest.mark.parametrize("piece", [b"data: <html>\n\n", b'data: {"type":7}\n\n', b'data: {"type":"\xff"}\n\n'])
def test_bytes_that_are_no_stream(piece: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        scanner().feed(piece)


def test_events_are_bounded_and_pictures_fit() -> None:
    big = b'data: {"type":"response.image_generation_call.partial_image","partial_image_b64":"'
    reader = scanner()
    chunk = b"x" * MAX_EVENT_BYTES
    assert reader.feed(big) == reader.feed(chunk) == reader.feed(chunk) == b""
    assert len(reader.feed(b'"}\n\n')) > 2 * MAX_EVENT_BYTES
    with pytest.raises(UpstreamProtocolError):
        for _ in range(9):
            reader.feed(chunk)


def test_long_texts_are_all_kept() -> None:
    words = [f"{number} " for number in range(5000)]
    _, reader = feed(CREATED, *[delta("output_text", word, **PLACE) for word in words], completed(usage=None))
    assert reader.text() == "".join(words)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=8), st.data())
def test_any_text_in_any_pieces(words: list[str], data: st.DataObject) -> None:
    stream = b"".join([CREATED, *[delta("output_text", word, **PLACE) for word in words], completed()])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    shown, reader = feed(*pieces)
    assert shown == stream and reader.text() == "".join(words) and reader.usage == COUNTED


# Whole answers


def test_a_whole_answer_is_counted() -> None:
    summary = RESPONSES_PROTOCOL.scan_answer(body(message("hé"), call()), PLAIN)
    assert (summary.usage, summary.finish_reason, summary.text) == (COUNTED, "completed", "")
    assert json.loads(bytes(summary.raw_usage)) == USAGE


def test_its_text_is_read_where_usage_is_missing() -> None:
    answer = body(reasoning("why"), message("hé", {"type": "refusal", "refusal": "no"}), call(), usage=None)
    assert RESPONSES_PROTOCOL.scan_answer(answer, PLAIN).text == 'whyhénof{"a":1}'


def test_a_response_in_the_background_passes() -> None:
    summary = RESPONSES_PROTOCOL.scan_answer(body(status="queued", usage=None), PLAIN)
    assert (summary.usage, summary.finish_reason) == (None, "queued")


@pytest.mark.parametrize("found", [b"", b"{}", b"[]", b'{"output":7}', b"<html>"])
def test_what_is_no_answer(found: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        RESPONSES_PROTOCOL.scan_answer(found, PLAIN)


def test_a_failed_answer_is_an_error() -> None:
    with pytest.raises(StreamError):
        RESPONSES_PROTOCOL.scan_answer(body(status="failed"), PLAIN)
