"""Messages of the AWS event stream, written for tests."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

_NUMBERS = {2: ">b", 3: ">h", 4: ">i", 5: ">q", 8: ">q"}


def write_message(headers: Iterable[tuple[str, int, Any]], payload: bytes) -> bytes:
    """`headers`: name, type, value."""
    head = b"".join(write_header(*header) for header in headers)
    return seal(struct.pack(">II", len(head) + len(payload) + 16, len(head)), head + payload)


def seal(lengths: bytes, rest: bytes) -> bytes:
    """Lengths and what follows them, with both checksums."""
    message = lengths + struct.pack(">I", zlib.crc32(lengths)) + rest
    return message + struct.pack(">I", zlib.crc32(message))


def write_header(name: str, kind: int, value: Any) -> bytes:
    start = bytes([len(name.encode())]) + name.encode() + bytes([kind])
    if kind in _NUMBERS:
        return start + struct.pack(_NUMBERS[kind], value)
    if kind in (6, 7):
        data = value.encode() if kind == 7 else value
        return start + struct.pack(">H", len(data)) + data
    return start + (value if kind == 9 else b"")


def event(name: str, body: Mapping[str, Any] | bytes) -> bytes:
    """One event as Bedrock sends it."""
    payload = body if isinstance(body, bytes) else json.dumps({**body, "p": "abcdef"}).encode()
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return write_message([(key, 7, value) for key, value in headers.items()], payload)


def exception(name: str, message: str) -> bytes:
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return write_message([(key, 7, value) for key, value in headers.items()], json.dumps({"message": message}).encode())


def delta(index: int, **content: Any) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": content})


def start(index: int, **content: Any) -> bytes:
    return event("contentBlockStart", {"contentBlockIndex": index, "start": content})


def stop(index: int) -> bytes:
    return event("contentBlockStop", {"contentBlockIndex": index})


BEGIN = event("messageStart", {"role": "assistant"})
USAGE = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}


def end(reason: str = "end_turn", **metadata: Any) -> bytes:
    metadata = {"usage": USAGE, "metrics": {"latencyMs": 7}, **metadata}
    return event("messageStop", {"stopReason": reason}) + event("metadata", metadata)
