"""Answers in the protocols that clients and upstreams speak, so that one fault can be staged in each.

`WIRES[name]` makes bytes for either side; `Pair` is who speaks what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.gateway_fixtures import PRICE, UPSTREAM_KEY, Upstream

INPUT, OUTPUT = 10, 5
COST = "0.000020"
"""Of a whole answer at PRICE, in USD."""


def named(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def plain(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


class Chat:
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"
    adapter = "openai-compatible"
    usage = {"prompt_tokens": INPUT, "completion_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT}
    head = {"id": "chatcmpl-1", "created": 1, "model": "upstream-model"}

    def request(self, **fields: Any) -> dict[str, Any]:
        return {"model": "asked", "messages": [{"role": "user", "content": "hi"}], **fields}

    def whole(self, text: str, *, usage: bool = True) -> bytes:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body: dict[str, Any] = {**self.head, "object": "chat.completion", "choices": [choice]}
        return json.dumps(body | ({"usage": self.usage} if usage else {})).encode()

    def _chunk(self, delta: Mapping[str, Any] | None, finish: str | None = None, **fields: Any) -> bytes:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        return plain(**self.head, object="chat.completion.chunk", choices=choices, **fields)

    @property
    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def words(self, *texts: str) -> list[bytes]:
        return [self._chunk({"content": text}) for text in texts]

    def finish(self, *, usage: bool = True, texts: tuple[str, ...] = ()) -> bytes:
        return self._chunk({}, "stop") + (self._chunk(None, usage=self.usage) if usage else b"")

    @property
    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    @property
    def error(self) -> bytes:
        return plain(error={"message": "sk-other is overloaded", "type": "server_error", "code": "overloaded"})

    def refusal(self, message: str, code: str) -> bytes:
        return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode()

    def text_of_whole(self, body: bytes) -> str:
        return str(json.loads(body)["choices"][0]["message"]["content"])

    def text_of_stream(self, body: bytes) -> str:
        chunks = [data for data in events_of(body) if data.get("choices")]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)

    def begins(self, body: bytes) -> int:
        """How often an answer begins in this stream."""
        return sum("role" in data["choices"][0]["delta"] for data in events_of(body) if data.get("choices"))

    def has_ended(self, body: bytes) -> bool:
        return body.endswith(self.end)

    def error_in(self, body: bytes) -> Any:
        """The error object that a stream ends in; None: it does not."""
        return events_of(body)[-1].get("error") if events_of(body) else None


class Messages:
    """Anthropic's."""

    path = "/v1/messages"
    adapter = "anthropic"

    def request(self, **fields: Any) -> dict[str, Any]:
        return {"model": "asked", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}], **fields}

    def _message(self, **fields: Any) -> dict[str, Any]:
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "upstream-model"}
        return {**head, "content": [], "stop_reason": None, "stop_sequence": None, **fields}

    def whole(self, text: str, *, usage: bool = True) -> bytes:
        content = [{"type": "text", "text": text}] if text else []
        body = self._message(content=content, stop_reason="end_turn")
        return json.dumps(
            body | ({"usage": {"input_tokens": INPUT, "output_tokens": OUTPUT}} if usage else {})
        ).encode()

    @property
    def begin(self) -> bytes:
        start = named("message_start", message=self._message())
        return start + named("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def words(self, *texts: str) -> list[bytes]:
        return [named("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in texts]

    def finish(self, *, usage: bool = True, texts: tuple[str, ...] = ()) -> bytes:
        counts = {"usage": {"input_tokens": INPUT, "output_tokens": OUTPUT}} if usage else {}
        delta = {"stop_reason": "end_turn", "stop_sequence": None}
        return named("content_block_stop", index=0) + named("message_delta", delta=delta, **counts)

    @property
    def end(self) -> bytes:
        return named("message_stop")

    @property
    def error(self) -> bytes:
        return named("error", error={"type": "overloaded_error", "message": "sk-other is overloaded"})

    def refusal(self, message: str, code: str) -> bytes:
        kinds = {"context_length_exceeded": "invalid_request_error", "content_filter": "content_filter"}
        error = {"type": kinds.get(code, "api_error"), "message": message}
        return json.dumps({"type": "error", "error": error}).encode()

    def text_of_whole(self, body: bytes) -> str:
        return "".join(block["text"] for block in json.loads(body)["content"])

    def text_of_stream(self, body: bytes) -> str:
        deltas = [data["delta"] for data in events_of(body) if data.get("type") == "content_block_delta"]
        return "".join(delta["text"] for delta in deltas)

    def begins(self, body: bytes) -> int:
        return sum(data.get("type") == "message_start" for data in events_of(body))

    def has_ended(self, body: bytes) -> bool:
        return bool(events_of(body)) and events_of(body)[-1].get("type") == "message_stop"

    def error_in(self, body: bytes) -> Any:
        last = events_of(body)[-1] if events_of(body) else {}
        return last.get("error") if last.get("type") == "error" else None


class Responses:
    """OpenAI's Responses."""

    path = "/v1/responses"
    adapter = "openai"

    def request(self, **fields: Any) -> dict[str, Any]:
        return {"model": "asked", "input": "hi", **fields}

    def _response(self, text: str | None, *, usage: bool, status: str = "completed") -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        counts = {"input_tokens": INPUT, "output_tokens": OUTPUT, "total_tokens": INPUT + OUTPUT, **details}
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": "upstream-model",
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [item] if text else [],
            "usage": counts if usage else None,
        }

    def whole(self, text: str, *, usage: bool = True) -> bytes:
        return json.dumps(self._response(text, usage=usage)).encode()

    @property
    def begin(self) -> bytes:
        begun = {"type": "message", "id": "m", "role": "assistant", "status": "in_progress", "content": []}
        created = named("response.created", response=self._response(None, usage=False, status="in_progress"))
        return created + named("response.output_item.added", output_index=0, item=begun)

    def words(self, *texts: str) -> list[bytes]:
        place = {"item_id": "m", "output_index": 0, "content_index": 0}
        return [named("response.output_text.delta", **place, delta=text) for text in texts]

    def finish(self, *, usage: bool = True, texts: tuple[str, ...] = ()) -> bytes:
        return named("response.completed", response=self._response("".join(texts), usage=usage))

    end = b""

    @property
    def error(self) -> bytes:
        return named("error", code="server_error", message="sk-other is overloaded", param=None, sequence_number=9)

    def refusal(self, message: str, code: str) -> bytes:
        return Chat().refusal(message, code)

    def text_of_whole(self, body: bytes) -> str:
        return "".join(part["text"] for item in json.loads(body)["output"] for part in item["content"])

    def text_of_stream(self, body: bytes) -> str:
        return "".join(data["delta"] for data in events_of(body) if data.get("type") == "response.output_text.delta")

    def begins(self, body: bytes) -> int:
        return sum(data.get("type") == "response.created" for data in events_of(body))

    def has_ended(self, body: bytes) -> bool:
        return bool(events_of(body)) and events_of(body)[-1].get("type") == "response.completed"

    def error_in(self, body: bytes) -> Any:
        last = events_of(body)[-1] if events_of(body) else {}
        return last.get("error") if last.get("type") == "error" else None


AnyWire = Chat | Messages | Responses
CHAT, MESSAGES, RESPONSES = Chat(), Messages(), Responses()


class Pair(NamedTuple):
    """What the client and the upstreams speak."""

    client: AnyWire
    upstream: AnyWire

    def __str__(self) -> str:
        return f"{type(self.client).__name__}-{type(self.upstream).__name__}".lower()

    def endpoints(self, *upstreams: Upstream | int, timeouts: Any = None, **policy: Any) -> dict[str, Any]:
        """As `gateway_fixtures.endpoints`, for this protocol."""
        names = [chr(ord("a") + index) for index in range(len(upstreams))]
        urls = [u.url if isinstance(u, Upstream) else f"http://127.0.0.1:{u}/v1" for u in upstreams]
        adapter = self.upstream.adapter
        return {
            "providers": {
                f"p-{name}": {"adapter": adapter, "base_url": url, "api_key": UPSTREAM_KEY}
                for name, url in zip(names, urls, strict=True)
            },
            "endpoints": {
                name: {
                    "provider": f"p-{name}",
                    "model": f"model-{name}",
                    "price": PRICE,
                    "speaks": [type(self.upstream).__name__.lower()],
                }
                for name in names
            },
            "routes": [{"name": "all", "match": {"model": "*"}, "policy": "main"}],
            "policies": {"main": {"endpoints": names, "timeouts": dict(timeouts or {}), **policy}},
        }

    def text_of(self, body: bytes, *, streams: bool) -> str:
        return self.client.text_of_stream(body) if streams else self.client.text_of_whole(body)


PAIRS = [
    Pair(CHAT, CHAT),
    Pair(MESSAGES, MESSAGES),
    Pair(RESPONSES, RESPONSES),
    Pair(CHAT, MESSAGES),
    Pair(MESSAGES, CHAT),
]


def events_of(body: bytes) -> list[Any]:
    """The data of a stream's events, but for `[DONE]`. Nothing in it is malformed."""
    lines = [line[5:].strip() for line in body.decode().splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line and line != "[DONE]"]
