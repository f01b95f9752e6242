"""Chunks of a chat completion stream, and how tests read one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.canonical import (
    Answer,
    Event,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.folding import fold
from gateway.protocols.chat.wire import CHAT_PROTOCOL, CHAT_WIRE

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
HI = [{"role": "user", "content": "hi"}]


def event(delta: Mapping[str, Any] | None = None, *, finish: str | None = None, **fields: Any) -> bytes:
    """One event of a stream; `delta` None: a chunk without choices."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}
    return b"data: " + json.dumps({**chunk, "choices": choices, **fields}).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
STOP = event({}, finish="stop")
USAGE_EVENT = event(usage=USAGE)
DONE = b"data: [DONE]\n\n"


def words(*texts: str) -> list[bytes]:
    return [event({"content": text}) for text in texts]


def decode(pieces: Iterable[bytes], dialect: Dialect = PLAIN) -> list[Event]:
    """All events of a whole stream."""
    decoder = CHAT_WIRE.open_decoder(dialect)
    events = [found for piece in pieces for found in decoder.feed(piece)]
    if not decoder.is_finished:
        events += decoder.finish()
    assert decoder.is_finished
    return events


def decode_answer(*pieces: bytes, dialect: Dialect = PLAIN) -> Answer:
    return fold(decode(pieces, dialect))


def read(**fields: Any) -> Any:
    """The canonical request of a chat request with these fields."""
    return CHAT_PROTOCOL.read_request(json.dumps({"model": "m", "messages": HI, **fields}).encode())


def write(request: Any, dialect: Dialect = PLAIN, model: str = "served") -> Any:
    """The JSON that is sent upstream."""
    return json.loads(CHAT_WIRE.write_request(request, model, dialect).body)
