"""Records of requests as spans: one of kind SERVER for the request, one of kind CLIENT for each attempt.

Source: OpenTelemetry's conventions for HTTP servers and for GenAI clients (`conventions.py`). What they do not have is
under `hatchway.`; where they have had two names for one thing within a year, the span has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from gateway.config.model import Endpoint
from gateway.telemetry.conventions import OPERATIONS, PATHS, PROVIDERS
from gateway.telemetry.records import AttemptRecord, RequestRecord
from gateway.telemetry.trace import attempt_span
from gateway.types import Usage

Attributes = dict[str, str | int | float | bool | list[str]]
FIRST_CONTENT = "hatchway.first_content"
"""The event at which a stream's first content came from the upstream."""
_FAILED = ("error", "timeout")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(decimal_format="number").encode
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def spans_of(
    record: RequestRecord, endpoints: Mapping[str, Endpoint], resource: Resource, scope: InstrumentationScope
) -> Iterable[ReadableSpan]:
    """`endpoints`: those of the configuration in force; one that has gone is named all the same."""
    state = TraceState.from_header([record.state]) if record.state else None
    trace_id = int(record.trace_id, 16)

    def context(span_id: int, *, is_remote: bool = False) -> SpanContext:
        return SpanContext(trace_id, span_id, is_remote, _SAMPLED, state)

    own = context(record.span_id)
    has_failed = record.status >= 500
    yield ReadableSpan(
        f"POST {PATHS[record.surface]}",
        context=own,
        parent=context(record.parent_id, is_remote=True) if record.parent_id else None,
        resource=resource,
        attributes=_request_attributes(record),
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR) if has_failed else Status(),
        start_time=record.started_ns,
        end_time=record.ended_ns,
        instrumentation_scope=scope,
    )
    for attempt in record.attempts:
        yield _attempt_span(record, attempt, endpoints.get(attempt.endpoint), own, context, resource, scope)


def _attempt_span(
    record: RequestRecord,
    attempt: AttemptRecord,
    endpoint: Endpoint | None,
    parent: SpanContext,
    context: Callable[[int], SpanContext],
    resource: Resource,
    scope: InstrumentationScope,
) -> ReadableSpan:
    events = []
    if attempt.ttft is not None and record.streams:
        events.append(Event(FIRST_CONTENT, timestamp=attempt.started_ns + int(attempt.ttft * 1e9)))
    return ReadableSpan(
        f"{OPERATIONS[record.surface]} {attempt.model}",
        context=context(attempt_span(record.span_id, attempt.number)),
        parent=parent,
        resource=resource,
        attributes=_attempt_attributes(record, attempt, endpoint),
        events=events,
        kind=SpanKind.CLIENT,
        status=Status(StatusCode.ERROR, attempt.error_type) if attempt.status in _FAILED else Status(),
        start_time=attempt.started_ns,
        end_time=attempt.started_ns + int(attempt.duration * 1e9),
        instrumentation_scope=scope,
    )


def _request_attributes(record: RequestRecord) -> Attributes:
    return _known(
        {
            "http.request.method": "POST",
            "http.route": PATHS[record.surface],
            "url.path": PATHS[record.surface],
            "http.response.status_code": record.status,
            "error.type": (record.error or str(record.status)) if record.status >= 500 else None,
            "gen_ai.request.model": record.model,
            "hatchway.request_id": record.request_id,
            "hatchway.surface": record.surface,
            "hatchway.route": record.route,
            "hatchway.policy": record.policy,
            "hatchway.policy_version": record.policy_version,
            "hatchway.domain": record.domain,
            "hatchway.team": record.team,
            "hatchway.project": record.project,
            "hatchway.key_id": record.key_id,
            "hatchway.refusal": record.error,
            "hatchway.attempts": len(record.attempts),
            "hatchway.overhead": record.overhead,
        }
    )


def _attempt_attributes(record: RequestRecord, attempt: AttemptRecord, endpoint: Endpoint | None) -> Attributes:
    found = {
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
    return _known(found)


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


def _known(found: Mapping[str, str | int | float | bool | list[str] | None]) -> Attributes:
    return {name: value for name, value in found.items() if value is not None}
