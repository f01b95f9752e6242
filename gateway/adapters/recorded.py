"""Recorded exchanges, read as the gateway reads them: the wire format's own decoder, the provider's own dialect.

The form of a recording: `{provider, exchanges: [{protocol, request, response}]}`, a response being
`{status, headers, json | sse | base64 | text}`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gateway.adapters.endpoint import EndpointAdapter
from gateway.adapters.wires import EMBEDDINGS, WIRES
from gateway.canonical import Answer
from gateway.config.row_book import find_row
from gateway.config.rows import PLAIN, Dialect, Row
from gateway.errors import UpstreamError
from gateway.folding import Folding, tool_calls, visible_text
from gateway.protocols.base import ConversationProtocol, StreamDecoder
from gateway.protocols.chat.wire import CHAT_PROTOCOL
from gateway.protocols.complaint import read_complaint
from gateway.protocols.completions.wire import COMPLETIONS_PROTOCOL
from gateway.protocols.converse import invoke
from gateway.protocols.inbound import Inbound
from gateway.protocols.messages.wire import MESSAGES_PROTOCOL
from gateway.protocols.responses.wire import RESPONSES_PROTOCOL
from gateway.types import Usage, WireName
from gateway.upstream.request import Origin

_CONVERSATION: Mapping[str, WireName] = {
    "openai.chat": "chat",
    "openai.responses": "responses",
    "openai.responses_compact": "responses",
    "openai.completions": "completions",
    "anthropic.messages": "messages",
    "gemini.generateContent": "gemini",
    "gemini.streamGenerateContent": "gemini",
    "bedrock.converse": "converse",
    "bedrock.converse_stream": "converse",
    "cohere.v1.chat": "cohere",
    "cohere.v2.chat": "cohere",
    "ollama.chat": "ollama",
    "ollama.generate": "ollama",
}
_EMBEDDING: Mapping[str, WireName] = {
    "openai.embeddings": "embeddings",
    "voyage.embed": "embeddings",
    "gemini.batch_embed": "gemini",
    "gemini.embed": "gemini",
    "cohere.embed": "cohere",
    "ollama.embed": "ollama",
}
_COUNT_FIELDS = ("input_tokens", "inputTokens", "totalTokens")
_PROTOCOLS: Mapping[str, ConversationProtocol] = {
    "chat": CHAT_PROTOCOL,
    "responses": RESPONSES_PROTOCOL,
    "messages": MESSAGES_PROTOCOL,
    "completions": COMPLETIONS_PROTOCOL,
}


class RecordingError(Exception):
    """What was given is no recording, or nothing that can be read."""


def decode_recording(scenario: Any, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
    """One JSON-ready object for each exchange: `text`, `tool_calls`, `finish_reason`, `usage`; or `error`."""
    if not isinstance(scenario, dict) or not isinstance(scenario.get("exchanges"), list):
        raise RecordingError("it is no scenario: `exchanges` is missing")
    row = find_row(str(scenario.get("provider")), rows)
    for exchange in scenario["exchanges"]:
        try:
            yield _decode(exchange, PLAIN if row is None else row.dialect)
        except (RecordingError, UpstreamError) as error:
            yield {"error": str(error)}


def _decode(exchange: Any, dialect: Dialect) -> dict[str, Any]:
    try:
        protocol, response = exchange["protocol"], exchange["response"]
        status, headers = int(response["status"]), dict(response.get("headers") or {})
        body = _body(response)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise RecordingError("the exchange lacks `protocol`, `response` or its `status`") from None
    if status >= 400:
        pairs = [(name.lower().encode(), str(value).encode()) for name, value in headers.items()]
        complaint = read_complaint(status, pairs, body)
        return {"error": {"status": status, "code": complaint.code, "message": complaint.message}}
    if protocol.endswith("count_tokens"):
        return {"text": "", "tool_calls": [], "finish_reason": None, "usage": None, "count_tokens": _count(body)}
    if protocol in _EMBEDDING:
        embedded = EMBEDDINGS[_EMBEDDING[protocol]].read_answer(body, dialect)
        shown: dict[str, Any] = {"text": "", "tool_calls": [], "finish_reason": None, "usage": _buckets(embedded.usage)}
        return {**shown, "vectors": len(embedded.vectors)}
    return _read(protocol, response, body, dialect)


def _read(protocol: str, response: Mapping[str, Any], body: bytes, dialect: Dialect) -> dict[str, Any]:
    if protocol == "bedrock.invoke":
        return _shown(invoke.read_answer(body))
    if protocol == "bedrock.invoke_stream":
        return _fold(invoke.InvokeDecoder(), body)
    if protocol not in _CONVERSATION:
        raise RecordingError(f"the protocol `{protocol}` is not one that the gateway speaks")
    wire = WIRES[_CONVERSATION[protocol]]
    if _is_stream(response):
        return _fold(wire.open_decoder(dialect), body)
    return _shown(wire.read_answer(body, dialect))


def _fold(decoder: StreamDecoder, body: bytes) -> dict[str, Any]:
    """Of a stream that breaks off, what came before stands beside the error."""
    folding, error = Folding(), None
    try:
        for piece in body.splitlines(keepends=True):
            for event in decoder.feed(piece):
                folding.add(event)
        for event in () if decoder.is_finished else decoder.finish():
            folding.add(event)
    except UpstreamError as failure:
        error = str(failure)
    shown = _shown(folding.answer())
    return shown if error is None else {**shown, "error": error}


def _is_stream(response: Mapping[str, Any]) -> bool:
    if "json" in response:
        return False
    return "sse" in response or "base64" in response or "\n" in str(response.get("text", "")).strip()


def _body(response: Mapping[str, Any]) -> bytes:
    if "json" in response:
        return msgspec.json.encode(response["json"])
    if "base64" in response:
        return base64.b64decode(response["base64"], validate=True)
    return str(response.get("sse", response.get("text", ""))).encode()


def _count(body: bytes) -> int:
    try:
        fields = msgspec.json.decode(body)
        return next(int(fields[name]) for name in _COUNT_FIELDS if name in fields)
    except (msgspec.DecodeError, StopIteration, TypeError, ValueError):
        raise RecordingError("it is no count of tokens") from None


def _shown(answer: Answer) -> dict[str, Any]:
    choice = answer.choices[0] if answer.choices else None
    parts = [] if choice is None else choice.parts
    return {
        "text": visible_text(parts),
        "tool_calls": [{"name": call.name, "arguments": _arguments(call.arguments)} for call in tool_calls(parts)],
        "finish_reason": None if choice is None else choice.raw_finish,
        "usage": _buckets(answer.usage),
    }


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text) if text.strip() else {}
    except msgspec.DecodeError:
        return text


def _buckets(usage: Usage | None) -> dict[str, int] | None:
    return None if usage is None else msgspec.structs.asdict(usage)


def encode_request(
    request: Any, adapter: str, rows: Mapping[str, Row], *, model: str | None = None, surface: str | None = None
) -> dict[str, Any]:
    """What would be sent, less credentials: `{method, url, headers, body, translation}`. `request`: as an application
    sends it.

    Raises RecordingError for an unknown adapter or surface, InvalidRequest for what cannot be said to this provider.
    """
    row = find_row(adapter, rows)
    if row is None:
        raise RecordingError(f"unknown adapter `{adapter}`\nhint: one of {', '.join(sorted(rows))}")
    protocol = _PROTOCOLS.get(surface or _surface_of(request))
    if protocol is None:
        raise RecordingError(f"unknown surface `{surface}`\nhint: one of {', '.join(_PROTOCOLS)}")
    base_url = re.sub(r"[{}]", "", row.base_url or "http://provider")  # a region in braces stands for itself
    endpoint = EndpointAdapter(
        origin=Origin.parse(base_url),
        path=urlsplit(base_url).path.rstrip("/"),
        headers=list(row.headers.items()),
        upstream_model=model,
        speaks=row.speaks,
        capabilities=row.capabilities,
        dialect=row.dialect,
        paths=row.paths,
        counts_tokens=row.counts_tokens,
        takes_wishes=adapter == "openrouter" and model is None,
    )
    body = msgspec.json.encode(request)
    call = endpoint.open(Inbound(protocol, protocol.parse(body), body))
    sent = call.request
    if sent is None:
        raise RecordingError(f"nothing is sent to {row.title}: {call.note}")
    return {
        "method": sent.method.decode(),
        "url": f"{sent.origin}{sent.target.decode()}",
        "headers": sent.headers.decode().splitlines(),
        "body": msgspec.json.decode(sent.body),
        "translation": call.note or None,
    }


def _surface_of(request: Any) -> str:
    """Told apart by what each protocol alone has."""
    if not isinstance(request, dict):
        raise RecordingError("a request is a JSON object")
    if "input" in request:
        return "responses"
    if "prompt" in request:
        return "completions"
    anthropic = {"system", "stop_sequences", "thinking"} & request.keys()
    blocks = _block_types(request.get("messages"))
    if anthropic or blocks & {"tool_use", "tool_result", "image", "document"} or _has_input_schema(request):
        return "messages"
    return "chat"


def _block_types(messages: Any) -> set[str]:
    found: set[str] = set()
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict):
                found.add(str(block.get("type")))
    return found


def _has_input_schema(request: Mapping[str, Any]) -> bool:
    tools = request.get("tools")
    return isinstance(tools, list) and any(isinstance(tool, dict) and "input_schema" in tool for tool in tools)
