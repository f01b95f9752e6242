"""Streams whose bytes pass through."""

from __future__ import annotations

import json
import re

import pytest

from gateway.config.rows import PLAIN
from gateway.errors import UpstreamError
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL
from gateway.types import Usage
from tests.protocols.messages.shapes import (
    END,
    START,
    begun,
    delta,
    ended,
    event,
    scan,
    text_block,
)

VIEW = MESSAGES_PROTOCOL.parse(b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}')
STREAM = (
    START
    + event("ping")
    + begun(0, {"type": "thinking", "thinking": "", "signature": ""})
    + delta(0, "thinking_delta", thinking="Hm.")
    + ended(0)
    + text_block(1, "Grüße", ' "message_stop"', ' error"')
    + begun(2, {"type": "tool_use", "id": "t", "name": "f", "input": {}})
    + delta(2, "input_json_delta", partial_json='{"a":1}')
    + ended(2)
    + END
)


def test_usage_and_the_end_are_found_in_any_cut() -> None:
    for size in (*range(1, 40), 1000, None):
        for body in (STREAM, STREAM.replace(b"\n", b"\r\n")):
            scanner = scan(body, size=size)
            assert scanner.usage == Usage(input_tokens=3, output_tokens=9)
            assert json.loads(bytes(scanner.raw_usage)) == {"input_tokens": 3, "output_tokens": 9}
            assert (scanner.finish_reason, scanner.is_finished) == ("end_turn", True)
            assert scanner.text() == 'Hm.Grüße "message_stop" error"f{"a":1}'


def test_servers_that_send_no_event_lines_are_read_all_the_same() -> None:
    body = re.sub(rb"event: [a-z_]+\n", b"", STREAM)
    assert b"event:" not in body
    for size in (*range(1, 40), 1000, None):
        scanner = scan(body, size=size)
        assert (scanner.usage, scanner.finish_reason) == (Usage(input_tokens=3, output_tokens=9), "end_turn")


@pytest.mark.parametrize(
    ("content", "is_content"),
    [
        (b": comment\n\n", False),
        (event("ping"), False),
        (begun(0, {"type": "text", "text": ""}), False),
        (begun(0, {"type": "text", "text": ""}) + delta(0, "text_delta", text=""), False),
        (begun(0, {"type": "text", "text": "x"}), True),
        (begun(0, {"type": "text", "text": ""}) + delta(0, "text_delta", text="x"), True),
        (begun(0, {"type": "thinking", "thinking": "", "signature": ""}), True),
        (begun(0, {"type": "redacted_thinking", "data": "x"}), True),
        (begun(0, {"type": "tool_use", "id": "t", "name": "f", "input": {}}), True),
        (begun(0, {"type": "server_tool_use", "id": "t", "name": "f", "input": {}}), True),
        (event("message_delta", delta={"stop_reason": "refusal"}), True),
    ],
)
def test_what_is_content(content: bytes, is_content: bool) -> None:
    scanner = MESSAGES_PROTOCOL.open_scanner(VIEW, PLAIN)
    assert scanner.feed(START + content) == START + content
    assert scanner.has_content is is_content


def test_events_without_a_signal_are_not_read_once_there_is_content() -> None:
    """They go on as they are, whatever they say: reading them would cost most of the time."""
    for odd in (b'data: {"type": 1}\n\n', b'data: {"type": 1}\r\n\r\n', b": comment\n\n", b"event: new\n\n"):
        assert scan(START, text_block(0, "Hi"), odd, END).is_finished
        assert scan(START, text_block(0, "Hi"), odd, END.replace(b"\n", b"\r\n")).is_finished
    with pytest.raises(UpstreamError):
        scan(START, text_block(0, "Hi"), b'data: {"type": 1, "error": 1}\n\n', END)


@pytest.mark.parametrize("broken", [b"data: {not json\n\n", b"event: x\ndata: {not json\r\n\r\n"])
def test_a_broken_event_ends_the_stream_after_what_came_before_it(broken: bytes) -> None:
    scanner = MESSAGES_PROTOCOL.open_scanner(
        MESSAGES_PROTOCOL.parse(b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'), PLAIN
    )
    scanner.feed(START + text_block(0, "Hi"))
    with pytest.raises(UpstreamError) as failure:
        scanner.feed(text_block(1, "there") + broken + END)
    assert failure.value.before == text_block(1, "there")


@pytest.mark.parametrize(
    "data",
    [
        b'{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x}',
        b'{"type": "content_block_delta", "error": {"type": "api_error", "message": "x"}}',
        b'{"type": "error", "error": {"type": "api_error", "message": "x"}}',
        b'{"type": "content_block_delta",\n"index": 0}',
    ],
)
def test_a_failure_under_the_name_of_a_delta_is_none(data: bytes) -> None:
    """By itself or with others: a delta is passed on without being read where it comes alone."""
    said = delta(0, "text_delta", text="more")
    bad = b"event: content_block_delta\ndata: %b\n\n" % data
    for piece, before in ((bad, b""), (said + bad, said)):
        scanner = MESSAGES_PROTOCOL.open_scanner(VIEW, PLAIN)
        scanner.feed(START + text_block(0, "Hi"))
        assert scanner.feed(said) == said
        with pytest.raises(UpstreamError) as failure:
            scanner.feed(piece)
        assert failure.value.before == before


def test_a_stream_that_breaks_off_has_no_usage_but_what_was_said() -> None:
    scanner = MESSAGES_PROTOCOL.open_scanner(
        MESSAGES_PROTOCOL.parse(b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'), PLAIN
    )
    scanner.feed(START + text_block(0, "Hi"))
    assert scanner.usage is None and scanner.text() == "Hi"
    scanner.feed(event("message_delta", delta={}, usage={"output_tokens": 1}))
    assert scanner.usage is None
    assert json.loads(bytes(scanner.raw_usage or b"")) == {"input_tokens": 3, "output_tokens": 1}


def test_usage_is_known_as_soon_as_the_answer_has_ended() -> None:
    """A client that leaves before `message_stop` has cost what was counted."""
    scanner = MESSAGES_PROTOCOL.open_scanner(
        MESSAGES_PROTOCOL.parse(b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'), PLAIN
    )
    scanner.feed(START + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}))
    assert scanner.usage == Usage(input_tokens=3, output_tokens=9) and not scanner.is_finished


def test_the_end_without_a_blank_line_or_a_stop() -> None:
    stop = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
    assert scan(START, text_block(0, "x"), stop.rstrip()).usage == Usage(input_tokens=3, output_tokens=9)
    assert scan(
        START, text_block(0, "x"), event("message_delta", delta={"stop_reason": "end_turn"}), event("message_stop")
    ).usage == Usage(input_tokens=3, output_tokens=1)


def test_long_texts_are_kept_as_text() -> None:
    pieces = [f"{number:08d}" for number in range(6000)]
    scanner = scan(START, text_block(0, *pieces), END, size=65_536)
    assert scanner.text() == "".join(pieces)
