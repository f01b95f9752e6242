"""Records of requests as spans: one of kind SERVER for the request, one of kind CLIENT for each attempt.

They are plain data in the shape of OTLP's messages (opentelemetry/proto/trace/v1/trace.proto), which protobuf takes as
it is: the SDK's own spans, each attribute of which becomes two messages first, cost three times as much.

Source: OpenTelemetry's conventions for HTTP servers and for GenAI clients (`conventions.py`). What they do not have is
under `hatchway.`; where they have had two names for one thing within a year, the span has both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from opentelemetry.trace.span import TraceState

from gateway.config.model import Endpoint
from gateway.telemetry.conventions import OPERATIONS, PATHS, PROVIDERS
from gateway.telemetry.records import AttemptRecord, RequestRecord
from gateway.telemetry.trace import attempt_span
from gateway.types import Usage

Value = str | int | float | bool | list[str]
Message = dict[str, Any]
"""Fields of a message by their names."""
FIRST_CONTENT = "hatchway.first_content"
"""The event at which a stream's first content came from the upstream."""
_FAILED = ("error", "timeout")
_SERVER, _CLIENT = 2, 3
"""`Span.SpanKind`."""
_ERROR = 2
"""`Status.StatusCode`."""
_IS_KNOWN, _IS_REMOTE = 0x100, 0x200
"""`SpanFlags`: whether it is known that the parent is another process's, and whether it is."""
_FIELDS = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


def spans_of(record: RequestRecord, endpoints: Mapping[str, Endpoint]) -> Iterable[Message]:
    """`endpoints`: those of the configuration in force; one that has gone is named all the same."""
    common: Message = {"trace_id": bytes.fromhex(record.trace_id), "trace_state": _state(record.state)}
    own = _id(record.span_id)
    yield {
        **common,
        "span_id": own,
        "parent_span_id": _id(record.parent_id) if record.parent_id else b"",
        "flags": _IS_KNOWN | _IS_REMOTE if record.parent_id else _IS_KNOWN,
        "name": f"POST {PATHS[record.surface]}",
        "kind": _SERVER,
        "start_time_unix_nano": record.started_ns,
        "end_time_unix_nano": record.ended_ns,
        "attributes": attributes(_request_attributes(record)),
        "status": {"code": _ERROR} if record.status >= 500 else {},
    }
    for attempt in record.attempts:
        events = []
        if attempt.ttft is not None and record.streams:
            events.append({"name": FIRST_CONTENT, "time_unix_nano": attempt.started_ns + int(attempt.ttft * 1e9)})
        has_failed = attempt.status in _FAILED
        yield {
            **common,
            "span_id": _id(attempt_span(record.span_id, attempt.number)),
            "parent_span_id": own,
            "flags": _IS_KNOWN,
            "name": f"{OPERATIONS[record.surface]} {attempt.model}",
            "kind": _CLIENT,
            "start_time_unix_nano": attempt.started_ns,
            "end_time_unix_nano": attempt.started_ns + int(attempt.duration * 1e9),
            "attributes": attributes(_attempt_attributes(record, attempt, endpoints.get(attempt.endpoint))),
            "events": events,
            "status": {"code": _ERROR, "message": attempt.error_type} if has_failed else {},
        }


def attributes(found: Mapping[str, Value | None]) -> list[Message]:
    """Those that are known."""
    return [
        {
            "key": name,
            "value": {"array_value": {"values": [{"string_value": one} for one in value]}}
            if isinstance(value, list)
            else {_FIELDS[type(value)]: value},
        }
        for name, value in found.items()
        if value is not None
    ]


def _id(span_id: int) -> bytes:
    return span_id.to_bytes(8, "big")


def _state(given: str) -> str:
    """What is no `tracestate` in a client's is left out."""
    return TraceState.from_header([given]).to_header() if given else ""


def _request_attributes(record: RequestRecord) -> dict[str, Value | None]:
    return {
        "http.request.method": "POST",
        "http.route": PATHS[record.surface],
        "url.path": PATHS[record.surface],
        "http.response.status_code": record.status,
        "error.type": (record.error or str(record.status)) if record.status >= 500 or not record.route else None,
        "gen_ai.request.model": record.model or None,
        "hatchway.request_id": record.request_id,
        "hatchway.surface": record.surface,
        "hatchway.route": record.route or None,
        "hatchway.policy": record.policy or None,
        "hatchway.policy_version": record.policy_version or None,
        "hatchway.domain": record.domain,
        "hatchway.team": record.team or None,
        "hatchway.project": record.project,
        "hatchway.key_id": record.key_id or None,
        "hatchway.refusal": record.error,
        "hatchway.attempts": len(record.attempts),
        "hatchway.overhead": record.overhead,
    }


def _attempt_attributes(
    record: RequestRecord, attempt: AttemptRecord, endpoint: Endpoint | None
) -> dict[str, Value | None]:
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": OPERATIONS[record.surface],
        "gen_ai.provider.name": None,
        "gen_ai.request.model": attempt.model,
        "gen_ai.request.stream": True if record.streams else None,
        "gen_ai.response.model": attempt.response_model,
        "gen_ai.response.id": attempt.response_id,
        "gen_ai.response.finish_reasons": None if attempt.finish_reason is None else [attempt.finish_reason],
        "gen_ai.response.time_to_first_chunk": attempt.ttft if record.streams else None,
        "error.type": attempt.error_type,
        "hatchway.endpoint": attempt.endpoint,
        "hatchway.attempt": attempt.number,
        "hatchway.status": attempt.status,
        "hatchway.request_id": record.request_id,
        "hatchway.cost.usd": None if attempt.cost is None else float(attempt.cost),
        **{f"gen_ai.request.{name}": value for name, value in record.asked.items()},
    }
    if endpoint is not None:
        provider = endpoint.provider
        found["gen_ai.provider.name"] = PROVIDERS.get(provider.adapter, provider.adapter)
        found["hatchway.provider"] = provider.id
        if provider.base_url is not None:
            parts = urlsplit(provider.base_url)
            found["server.address"] = parts.hostname
            found["server.port"] = parts.port or (443 if parts.scheme == "https" else 80)
    if attempt.tokens is not None:
        found |= _usage(Usage(*attempt.tokens))
    if record.content is not None and attempt.status == "ok":
        found |= _content(record.content)
    return found


def _usage(usage: Usage) -> dict[str, int | None]:
    """Input and output tokens are totals, of which the others say more."""
    read, written = usage.cache_read_tokens, usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    output = usage.output_tokens + usage.reasoning_tokens + usage.output_audio_tokens
    return {
        "gen_ai.usage.input_tokens": usage.total - output,
        "gen_ai.usage.output_tokens": output,
        "gen_ai.usage.cache_read.input_tokens": read,
        "gen_ai.usage.cache_creation.input_tokens": written,
        "gen_ai.usage.cache_write.input_tokens": written,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
        "gen_ai.usage.audio.input_tokens": usage.input_audio_tokens or None,
        "gen_ai.usage.image.input_tokens": usage.input_image_tokens or None,
        "gen_ai.usage.audio.output_tokens": usage.output_audio_tokens or None,
    }


def _content(kept: str) -> dict[str, str]:
    """What a policy keeps, in the conventions' shape: messages of parts. What has no text is named by its type."""
    body = _decode(kept)
    request, answer = body.get("request"), body.get("answer")
    found: dict[str, str] = {}
    messages = request.get("messages") if isinstance(request, dict) else None
    if isinstance(messages, list):
        turns = [
            {"role": one.get("role"), "parts": _parts(one.get("content"))} for one in messages if isinstance(one, dict)
        ]
        found["gen_ai.input.messages"] = _encode(turns).decode()
    if isinstance(answer, list):
        turns = [
            {"role": "assistant", "parts": _parts(one.get("text")), "finish_reason": one.get("finish")}
            for one in answer
        ]
        found["gen_ai.output.messages"] = _encode(turns).decode()
    return found


def _parts(content: object) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    parts = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    return [
        {"type": "text", "content": one["text"]} if isinstance(one.get("text"), str) else {"type": str(one.get("type"))}
        for one in parts
    ]
