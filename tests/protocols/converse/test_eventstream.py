"""The framing: compared with botocore's own parser, cut anywhere, damaged anywhere."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamProtocolError
from gateway.protocols.converse.eventstream import Message, MessageSplitter
from gateway.protocols.framing import MAX_EVENT_BYTES
from tests.protocols.converse.frames import event, seal, write_header, write_message


def numbers(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)


values = st.one_of(
    st.tuples(st.just(0), st.just(True)),
    st.tuples(st.just(1), st.just(False)),
    *(st.tuples(st.just(kind), numbers(bits)) for kind, bits in ((2, 8), (3, 16), (4, 32), (5, 64), (8, 64))),
    st.tuples(st.just(6), st.binary(max_size=40)),
    st.tuples(st.just(7), st.text(st.characters(codec="utf-8"), max_size=40)),
    st.tuples(st.just(9), st.binary(min_size=16, max_size=16)),
)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
messages = st.tuples(st.dictionaries(names, values, max_size=6), st.binary(max_size=80))


def split(data: bytes, cut: int) -> list[Message]:
    splitter = MessageSplitter()
    return [message for at in range(0, len(data), cut) for message in splitter.feed(data[at : at + cut])]


def write(messages: list[Any]) -> bytes:
    return b"".join(
        write_message([(name, *value) for name, value in headers.items()], payload) for headers, payload in messages
    )


@given(st.lists(messages, max_size=4), st.integers(1, 50))
def test_reads_what_botocore_reads(sent: list[Any], cut: int) -> None:
    data = write(sent)
    theirs = EventStreamBuffer()
    theirs.add_data(data)
    found = split(data, cut)
    assert [(dict(message.headers), message.payload) for message in found] == [
        (message.headers, message.payload) for message in theirs
    ]
    assert [message.payload for message in found] == [payload for _, payload in sent]


@given(messages, st.data())
def test_damage_is_seen_wherever_it_is(sent: Any, data: st.DataObject) -> None:
    whole = bytearray(write([sent]))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    splitter = MessageSplitter()
    try:
        assert not splitter.feed(bytes(whole)), "a damaged message was taken"
    except UpstreamProtocolError:
        return
    # Only a larger length can leave it waiting, and that is what the first checksum is for.
    raise AssertionError("damage was not seen")


@pytest.mark.parametrize(
    "data",
    [
        seal(struct.pack(">II", MAX_EVENT_BYTES + 1, 0), b""),
        seal(struct.pack(">II", 15, 0), b""),
        seal(struct.pack(">II", 20, 5), b"abcd"),
        seal(struct.pack(">II", 300_000, 200_000), b""),
        b'{"message":"not a stream"}',
    ],
    ids=["too long", "too short", "headers past the end", "too many headers", "JSON"],
)
def test_impossible_lengths(data: bytes) -> None:
    with pytest.raises(UpstreamProtocolError, match="impossible length"):
        MessageSplitter().feed(data)


def test_a_wrong_length_is_not_waited_for() -> None:
    """The lengths' own checksum tells before the message would have come."""
    data = bytearray(event("messageStart", {}))
    data[2] ^= 1
    with pytest.raises(UpstreamProtocolError, match="lengths"):
        MessageSplitter().feed(bytes(data[:12]))


@pytest.mark.parametrize(
    "header",
    [
        b"\x05ab",
        b"\x02ab",
        b"\x02ab\x07\x00",
        b"\x02ab\x07\x00\x05abc",
        b"\x02ab\x09abc",
        b"\x02ab\x05abc",
        b"\x02\xff\xff\x00",
        b"\x02ab\x07\x00\x01\xff",
    ],
    ids=["name", "no type", "length", "text", "uuid", "number", "name not UTF-8", "value not UTF-8"],
)
def test_malformed_headers(header: bytes) -> None:
    with pytest.raises(UpstreamProtocolError, match="malformed"):
        MessageSplitter().feed(seal(struct.pack(">II", len(header) + 16, len(header)), header))


def test_unknown_and_doubled_headers() -> None:
    for headers, words in ((b"\x02ab\x0b", "unknown type"), (write_header("ab", 0, None) * 2, "twice")):
        with pytest.raises(UpstreamProtocolError, match=words):
            MessageSplitter().feed(seal(struct.pack(">II", len(headers) + 16, len(headers)), headers))


def test_only_text_is_a_texts_header() -> None:
    (message,) = MessageSplitter().feed(write_message([(":event-type", 4, 7), ("b", 7, "x")], b""))
    assert message.header(":event-type") == "" and message.header("b") == "x" and message.header("c") == ""
