"""What is recorded of a request that is over, for its spans and its line in the access log.

Nothing is done for a request that is neither sampled nor logged; whether it is kept although it was not sampled is
decided here, when it is known how it ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from time import perf_counter, time_ns

import msgspec

from gateway.attempt import Attempt
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.telemetry.records import AttemptRecord, RequestRecord
from gateway.telemetry.trace import Trace, Tracer
from gateway.types import Surface

MAX_CONTENT = 64 * 1024
"""Bytes of content, as it is kept, that a record carries; more is left out as a whole."""
_LOOKED_AT = 4096
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,200})"')
_encode = msgspec.json.Encoder(decimal_format="number").encode


class _Asked(msgspec.Struct, omit_defaults=True):
    """Numbers that requests of several protocols may set, under the same names in all."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None


_decode_asked = msgspec.json.Decoder(_Asked).decode


def record_request(tracer: Tracer, exchange: Exchange) -> None:
    """Called once, when a request is over."""
    log = tracer.access_log
    if not tracer.is_on and log is None:
        return
    now = perf_counter()
    seconds = now - exchange.reply.received_at
    has_failed = bool(exchange.failures) or exchange.status >= 500
    trace = tracer.keep(exchange.trace, has_failed=has_failed, seconds=seconds)
    if trace is None and log is None:
        return
    record = _describe(exchange, trace or exchange.trace, now, seconds, has_content=tracer.settings.content)
    if trace is not None:
        tracer.add(record)
    if log is not None:
        log.write(record)


def record_refusal(
    tracer: Tracer,
    headers: Mapping[bytes, bytes],
    surface: Surface,
    error: GatewayError,
    request_id: str,
    received_at: float,
) -> None:
    """Of a request that was refused before it was routed: nobody knows whose it is, or where it would have gone."""
    trace = tracer.refuse(headers, has_failed=error.status >= 500)
    if trace is None:
        return
    ended_ns = time_ns()
    tracer.add(
        RequestRecord(
            trace_id=f"{trace.trace_id:032x}",
            span_id=trace.span_id,
            parent_id=trace.parent_id,
            state=trace.state.decode("ascii"),
            request_id=request_id,
            surface=surface,
            status=error.status,
            error=error.code or error.type,
            started_ns=ended_ns - int((perf_counter() - received_at) * 1e9),
            ended_ns=ended_ns,
        )
    )


def _describe(
    exchange: Exchange, trace: Trace | None, now: float, seconds: float, *, has_content: bool
) -> RequestRecord:
    context, inbound = exchange.context, exchange.inbound
    ended_ns = time_ns()
    return RequestRecord(
        trace_id="" if trace is None else f"{trace.trace_id:032x}",
        span_id=0 if trace is None else trace.span_id,
        parent_id=0 if trace is None else trace.parent_id,
        state="" if trace is None else trace.state.decode("ascii"),
        request_id=context.request_id,
        surface=inbound.protocol.surface,
        status=exchange.status,
        error=exchange.error,
        started_ns=ended_ns - int(seconds * 1e9),
        ended_ns=ended_ns,
        overhead=exchange.overhead,
        team=context.caller.team,
        project=context.caller.project,
        key_id=context.caller.key_id,
        model=inbound.model,
        streams=inbound.wants_stream,
        route=context.route,
        policy=context.policy,
        policy_version=context.policy_version,
        domain=context.domain,
        asked=_asked(exchange),
        attempts=tuple(
            _describe_attempt(attempt, inbound.model, ended_ns, now)
            for attempt in exchange.attempts
            if attempt.is_settled
        ),
        content=_content(exchange) if has_content else None,
    )


def _describe_attempt(attempt: Attempt, model: str, ended_ns: int, now: float) -> AttemptRecord:
    usage, opening = attempt.charge.usage, attempt.opening[:_LOOKED_AT]
    served, named = _MODEL.search(opening), _ID.search(opening)
    return AttemptRecord(
        number=attempt.number,
        endpoint=attempt.endpoint.id,
        model=attempt.endpoint.upstream_model(model),
        status=attempt.status or "error",
        error_type=attempt.error_type,
        started_ns=ended_ns - int((now - (attempt.asked_at or now)) * 1e9),
        ttft=attempt.ttft,
        duration=attempt.duration,
        tokens=None if usage is None else msgspec.structs.astuple(usage),
        cost=None if attempt.cost is None else f"{attempt.cost:f}",
        finish_reason=attempt.finish_reason,
        response_model=None if served is None else served[1].decode("utf-8", "replace"),
        response_id=None if named is None else named[1].decode("utf-8", "replace"),
    )


def _asked(exchange: Exchange) -> dict[str, float | int]:
    """What the client set, of numbers alone."""
    view = exchange.inbound.view
    found: dict[str, float | int] = {}
    if view.output_limit is not None:
        found["max_tokens"] = view.output_limit
    if view.choices != 1:
        found["choice.count"] = view.choices
    try:
        found |= msgspec.structs.asdict(_decode_asked(exchange.inbound.body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # whoever is asked will say what is wrong with it
    # Whoever reads the record has 64 bits for a number, and JSON has no limit.
    return {name: value for name, value in found.items() if value is not None and abs(value) < 1 << 63}


def _content(exchange: Exchange) -> str | None:
    """What the policy keeps of request and answer, redacted and bounded as it says; None: it keeps nothing."""
    record = None if exchange.keeping is None else exchange.keeping.record
    if record is None:
        return None
    content = _encode(record.body)
    return content.decode() if len(content) <= MAX_CONTENT else None
