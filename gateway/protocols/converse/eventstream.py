"""Cutting `application/vnd.amazon.eventstream` into its messages. Bounded, checked, whatever comes.

A message: total length and headers' length (u32 each), CRC-32 of these eight bytes, headers, payload, CRC-32 of all
before it; big-endian. A header: length of its name (u8), name, type (u8), value.
Source: smithy.io/2.0/aws/amazon-eventstream.html.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from gateway.errors import UpstreamProtocolError
from gateway.protocols.framing import MAX_EVENT_BYTES

HeaderValue: TypeAlias = bool | int | bytes | str
"""A timestamp is an integer, in milliseconds since 1970; a UUID its 16 bytes."""
_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_LENGTH = struct.Struct(">H")
_OVERHEAD = _PRELUDE.size + _CRC.size
_MAX_HEADER_BYTES = 128 * 1024
_CONSTANTS = {0: True, 1: False}
_NUMBERS = {2: struct.Struct(">b"), 3: struct.Struct(">h"), 4: struct.Struct(">i"), 5: struct.Struct(">q")} | {
    8: struct.Struct(">q")
}
_BYTES, _TEXT, _UUID = 6, 7, 9
_UUID_SIZE = 16


class Message(NamedTuple):
    headers: Mapping[str, HeaderValue]
    payload: bytes

    def header(self, name: str) -> str:
        """A header that is text; empty where there is none."""
        value = self.headers.get(name, "")
        return value if isinstance(value, str) else ""


class MessageSplitter:
    """Messages out of bytes in any cut."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """Raises UpstreamProtocolError for a message that is too long, damaged or malformed."""
        rest = self._rest
        rest += chunk
        messages: list[Message] = []
        start = 0
        while (size := _size_of_first(rest, start)) is not None and len(rest) - start >= size:
            messages.append(_read_message(bytes(rest[start : start + size])))
            start += size
        if start:
            del rest[:start]
        return messages


def _size_of_first(rest: bytearray, start: int) -> int | None:
    """The size of the message that begins at `start`; None: too little has come to tell."""
    if len(rest) - start < _PRELUDE.size:
        return None
    size, header_size, crc = _PRELUDE.unpack_from(rest, start)
    if size > MAX_EVENT_BYTES or header_size > _MAX_HEADER_BYTES or size < header_size + _OVERHEAD:
        raise UpstreamProtocolError("a message of the event stream has an impossible length")
    if zlib.crc32(rest[start : start + _PRELUDE.size - _CRC.size]) != crc:
        raise UpstreamProtocolError("the checksum of a message's lengths is wrong")
    return int(size)


def _read_message(data: bytes) -> Message:
    _, header_size, _ = _PRELUDE.unpack_from(data)
    body, (crc,) = data[: -_CRC.size], _CRC.unpack_from(data, len(data) - _CRC.size)
    if zlib.crc32(body) != crc:
        raise UpstreamProtocolError("the checksum of a message is wrong")
    end = _PRELUDE.size + header_size
    return Message(_read_headers(body[_PRELUDE.size : end]), body[end:])


def _read_headers(data: bytes) -> dict[str, HeaderValue]:
    headers: dict[str, HeaderValue] = {}
    position = 0
    try:
        while position < len(data):
            name_end = position + 1 + data[position]
            name, kind = data[position + 1 : name_end].decode(), data[name_end]
            if name in headers:
                raise UpstreamProtocolError("a header stands twice in a message of the event stream")
            headers[name], position = _read_value(data, name_end + 1, kind)
    except (IndexError, struct.error, UnicodeDecodeError):
        raise UpstreamProtocolError("a header of the event stream is malformed") from None
    return headers


def _read_value(data: bytes, position: int, kind: int) -> tuple[HeaderValue, int]:
    """The value and where it ends. Raises IndexError, struct.error or UnicodeDecodeError for a malformed one."""
    if kind in _CONSTANTS:
        return _CONSTANTS[kind], position
    if kind in _NUMBERS:
        form = _NUMBERS[kind]
        return form.unpack_from(data, position)[0], position + form.size
    if kind == _UUID:
        size = _UUID_SIZE
    elif kind in (_BYTES, _TEXT):
        (size,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
    else:
        raise UpstreamProtocolError("a header of the event stream has an unknown type")
    value, end = data[position : position + size], position + size
    if len(value) != size:
        raise IndexError
    return (value.decode() if kind == _TEXT else value), end
