"""What goes over the wire in a measurement: the requests, and the answers of the upstream, ready to be written.

The upstream reads in the path what it is asked for, so that gateways that map a model to a base URL can be measured:

    /json/v1/chat/completions     one chat completion
    /sse/v1/chat/completions      a stream of `CHUNKS` events and `[DONE]`, all at once
    /paced/v1/chat/completions    a stream with a chunk every `max_tokens` ms for a second; each tells when it was sent
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["json", "sse", "paced"]
KINDS: tuple[Kind, ...] = ("json", "sse", "paced")

CHUNKS = 64
"""Events of an unpaced stream, its usage included, `[DONE]` not."""

PROMPT_TOKENS, COMPLETION_TOKENS = 42, 31
ANSWER_LIMIT = 256
"""`max_tokens` of requests for which it means what it says."""

_USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
}
_MESSAGES = [
    {"role": "system", "content": "Answer questions about the timetable of the ferries, briefly and politely."},
    {
        "role": "user",
        "content": "Which boat leaves the north pier after nine in the evening, and is there a later one?",
    },
]


def body_for(kind: Kind, tick_ms: int = 20) -> bytes:
    """A chat completion request for the model `bench-KIND`."""
    limit = tick_ms if kind == "paced" else ANSWER_LIMIT
    fields: dict[str, Any] = {"model": f"bench-{kind}", "messages": _MESSAGES, "temperature": 0.3, "max_tokens": limit}
    if kind != "json":
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(fields).encode()


@dataclass(frozen=True)
class Place:
    """Where a target answers one kind of request. `path` ends in `/chat/completions`, or in `/messages` for a client of
    that protocol."""

    host: str
    port: int
    path: str
    headers: Mapping[str, str]

    @property
    def usage(self) -> bytes:
        """A pattern for what a whole answer has, once."""
        if self.path.endswith("/messages"):
            return b'"output_tokens": ?%d' % COMPLETION_TOKENS
        return b'"total_tokens": ?%d' % _USAGE["total_tokens"]

    @property
    def ending(self) -> bytes:
        """The last event of a whole stream."""
        return b"event: message_stop" if self.path.endswith("/messages") else b"[DONE]"

    def request(self, body: bytes) -> bytes:
        fields = {"host": f"{self.host}:{self.port}", "content-type": "application/json", **self.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def chunks_of(tick_ms: int) -> int:
    """Stamped chunks of one paced stream."""
    return 1000 // tick_ms + 1


def framed(data: bytes) -> bytes:
    """As one chunk of an HTTP message (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _message(name: str, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
    fields = {"id": "chatcmpl-bench", "object": name, "created": 1_764_000_000, "model": "bench", "choices": choices}
    return json.dumps(fields | {"system_fingerprint": "fp_bench", "usage": usage}, separators=(",", ":")).encode()


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return b"data: " + _message("chat.completion.chunk", [choice], None) + b"\n\n"


def _completion() -> bytes:
    message = {"role": "assistant", "content": "The last boat leaves the north pier at 21:40. " * 3}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = _message("chat.completion", [choice], _USAGE)
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


_ENDING = (
    _event({}, "stop"),
    b"data: " + _message("chat.completion.chunk", [], _USAGE) + b"\n\n",
    b"data: [DONE]\n\n",
)

LAST = b"0\r\n\r\n"
"""The end of a chunked message."""

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"".join(map(framed, _ENDING)) + LAST
UNARY = _completion()
STREAM = STREAM_HEAD + b"".join(framed(_event({"content": f" word{n}"})) for n in range(CHUNKS - 2)) + STREAM_END

BEFORE_STAMP, AFTER_STAMP = _event({"content": "~~"}).split(b"~~")
BEFORE_STAMP, AFTER_STAMP = BEFORE_STAMP + b"~", b"~" + AFTER_STAMP
"""Around the time in ns at which a paced chunk was sent. A character that no JSON writer escapes."""
