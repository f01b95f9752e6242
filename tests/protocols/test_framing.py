"""Cutting a stream into its events, whatever the cut and whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamProtocolError
from gateway.protocols.framing import MAX_EVENT_BYTES, LineSplitter, SseEvent, SseSplitter, as_utf8

STREAM = "\ufeffevent: a\ndata: é1\ndata: 2\n\n: comment\n\ndata:3\nid: 7\n\nevent: x\n\ndata: [DONE]\n\n".encode()
EVENTS = [SseEvent(b"a", "é1\n2".encode()), SseEvent(b"", b"3"), SseEvent(b"", b"[DONE]")]


def events(body: bytes, size: int) -> list[SseEvent]:
    splitter = SseSplitter()
    found = [event for at in range(0, len(body), size) for event in splitter.feed(body[at : at + size])]
    return found + splitter.finish()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [*range(1, 20), 1000])
def test_events_in_any_cut_and_with_any_line_end(end: bytes, size: int) -> None:
    assert events(STREAM.replace(b"\n", end), size) == EVENTS


def test_a_last_event_without_its_blank_line_counts() -> None:
    assert events(b"data: 1\n\ndata: 2", 3) == [SseEvent(b"", b"1"), SseEvent(b"", b"2")]
    assert events(b"data: 1\n\n: 2", 3) == [SseEvent(b"", b"1")]


@given(st.binary(max_size=200), st.integers(1, 20))
def test_any_bytes_in_any_cut(body: bytes, size: int) -> None:
    assert events(body, size) == events(body, max(1, len(body)))


def test_an_event_is_bounded() -> None:
    for line in (b"data: " + b"x" * 65_536, b"data: " + b"x" * 65_535 + b"\n"):
        splitter = SseSplitter()
        with pytest.raises(UpstreamProtocolError):
            for _ in range(MAX_EVENT_BYTES // 65_536 + 2):
                splitter.feed(line)


def test_lines() -> None:
    for size in (1, 3, 100):
        body, splitter = b'{"a":1}\n\n{"b":\r2}\r\nlast', LineSplitter()
        found = [line for at in range(0, len(body), size) for line in splitter.feed(body[at : at + size])]
        assert [line.strip() for line in found + splitter.finish()] == [b'{"a":1}', b'{"b":\r2}', b"last"]
    with pytest.raises(UpstreamProtocolError):
        LineSplitter().feed(b"x" * (MAX_EVENT_BYTES + 1))


def test_what_is_no_utf_8_is_replaced() -> None:
    """It goes on to clients as JSON, and the decoder does not look into what it skips."""
    assert as_utf8(b"plain") == b"plain" and as_utf8("é".encode()) == "é".encode()
    assert as_utf8(b"a\xff\xc3") == "a\ufffd\ufffd".encode()
    assert events(b"data: \xff\n\n", 1) == [SseEvent(b"", "\ufffd".encode())]
    assert LineSplitter().feed(b"\xff\n") == ["\ufffd".encode()]
