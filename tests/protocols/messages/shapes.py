"""Requests and answers that the tests of this folder begin with."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from anthropic.types import MessageCreateParams
from anthropic.types.beta.message_create_params import MessageCreateParams as BetaCreateParams
from pydantic import TypeAdapter

from gateway.canonical import (
    Event,
    Part,
    Request,
    Text,
    Turn,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.folding import fold
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL, MESSAGES_WIRE
from tests.recordings import cuts

SONNET = "claude-sonnet-4-5"
_PARAMS: TypeAdapter[Any] = TypeAdapter(MessageCreateParams)
_BETA_PARAMS: TypeAdapter[Any] = TypeAdapter(BetaCreateParams)


def asking(*parts: Part, **fields: Any) -> Request:
    """A request from a client of OpenAI's chat, unless `origin` says otherwise."""
    turns = fields.pop("turns", None) or [Turn("user", list(parts) or [Text("Hi")])]
    return Request(**{"model": "asked", "turns": turns, "origin": "chat", **fields})


def write(request: Request, model: str = SONNET, dialect: Dialect = PLAIN) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body that is sent, valid by the SDK's types, and what was left out."""
    written = MESSAGES_WIRE.write_request(request, model, dialect)
    body = json.loads(written.body)
    _PARAMS.validate_python(body)
    _BETA_PARAMS.validate_python(body)
    return body, written.dropped


def read(**fields: Any) -> Request:
    """A client's body, read; one user's turn unless `messages` says otherwise."""
    body = {"model": SONNET, "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return MESSAGES_PROTOCOL.read_request(json.dumps(body).encode())


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


# Streams

START = event(
    "message_start", message={"id": "msg_1", "model": "claude-x", "usage": {"input_tokens": 3, "output_tokens": 1}}
)
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}) + event("message_stop")


def begun(index: int, block: dict[str, Any]) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def ended(index: int) -> bytes:
    return event("content_block_stop", index=index)


def text_block(index: int, *pieces: str) -> bytes:
    body = begun(index, {"type": "text", "text": ""})
    return body + b"".join(delta(index, "text_delta", text=piece) for piece in pieces) + ended(index)


def decode(*pieces: bytes, size: int | None = None) -> list[Event]:
    body = b"".join(pieces)
    decoder = MESSAGES_WIRE.open_decoder(PLAIN)
    events = [found for chunk in cuts(body, size or len(body) or 1) for found in decoder.feed(chunk)]
    return events + decoder.finish()


def parts_of(*pieces: bytes) -> list[Part]:
    return fold(decode(START, *pieces, END)).choices[0].parts


def scan(*pieces: bytes, size: int | None = None) -> Any:
    body = b"".join(pieces)
    view = MESSAGES_PROTOCOL.parse(
        b'{"model":"m","max_tokens":1,"stream":true,"messages":[{"role":"user","content":"x"}]}'
    )
    scanner = MESSAGES_PROTOCOL.open_scanner(view, PLAIN)
    shown = [scanner.feed(chunk) for chunk in cuts(body, size or len(body) or 1)]
    assert all(not piece or piece.endswith((b"\n\n", b"\n\r\n")) for piece in shown)
    shown.append(scanner.finish())
    assert b"".join(shown).rstrip() == body.rstrip()
    return scanner
