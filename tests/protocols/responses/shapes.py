"""Events of a Responses stream, and how tests read and write one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gateway.canonical import (
    Answer,
    Event,
    Request,
)
from gateway.config.rows import PLAIN, Dialect
from gateway.folding import fold
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL, RESPONSES_WIRE

USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 17,
}


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def response(*output: Any, status: str = "completed", **fields: Any) -> dict[str, Any]:
    whole = {"id": "resp_1", "object": "response", "created_at": 17.0, "model": "served", "status": status}
    return {**whole, "error": None, "incomplete_details": None, "output": list(output), "usage": USAGE, **fields}


def body(*output: Any, **fields: Any) -> bytes:
    return json.dumps(response(*output, **fields)).encode()


def message(*contents: Any) -> dict[str, Any]:
    parts = [text(content) if isinstance(content, str) else content for content in contents]
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": parts}


def text(words: str, *annotations: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": words, "annotations": list(annotations), **fields}


def reasoning(*summary: str, content: Iterable[str] = (), encrypted: str | None = None) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": words} for words in summary],
        "content": [{"type": "reasoning_text", "text": words} for words in content],
        "encrypted_content": encrypted,
    }


def call(name: str = "f", arguments: Any = '{"a":1}', call_id: str = "call_1") -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": call_id, "name": name, "arguments": arguments}


CREATED = event("response.created", response=response(status="in_progress", usage=None))


def added(index: int, item: Any) -> bytes:
    return event("response.output_item.added", output_index=index, item=item)


def done(index: int, item: Any) -> bytes:
    return event("response.output_item.done", output_index=index, item=item)


def delta(kind: str, words: str, index: int = 0, **fields: Any) -> bytes:
    return event(f"response.{kind}.delta", output_index=index, delta=words, item_id="x", **fields)


def completed(*output: Any, status: str = "completed", **fields: Any) -> bytes:
    return event(f"response.{status}", response=response(*output, status=status, **fields))


def decode(pieces: Iterable[bytes]) -> list[Event]:
    """All events of a whole stream."""
    decoder = RESPONSES_WIRE.open_decoder(PLAIN)
    events = [found for piece in pieces for found in decoder.feed(piece)]
    if not decoder.is_finished:
        events += decoder.finish()
    assert decoder.is_finished
    return events


def decode_answer(*pieces: bytes) -> Answer:
    return fold(decode(pieces))


def read(**fields: Any) -> Request:
    """The canonical request of a request with these fields."""
    return RESPONSES_PROTOCOL.read_request(json.dumps({"model": "m", "input": "hi", **fields}).encode())


def write(request: Request, dialect: Dialect = PLAIN, model: str = "served") -> Any:
    """The JSON that is sent upstream."""
    return json.loads(RESPONSES_WIRE.write_request(request, model, dialect).body)


def dropped(request: Request, dialect: Dialect = PLAIN, model: str = "served") -> tuple[str, ...]:
    return RESPONSES_WIRE.write_request(request, model, dialect).dropped
