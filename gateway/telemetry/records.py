"""What a worker records of a request that is over, and the access log that is written of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import BinaryIO

import msgspec

MAX_RECORDS = 2048
"""Requests that wait to be exported, in a worker; the control plane comes every second."""

_encode = msgspec.json.Encoder().encode


class AttemptRecord(msgspec.Struct, array_like=True, frozen=True):
    """One attempt that is over. Times in nanoseconds since 1970, `ttft` and `duration` in seconds, `cost` in USD.
    `tokens`: by the buckets of `Usage`; None: nobody knows."""

    number: int
    endpoint: str
    model: str
    status: str
    error_type: str | None
    started_ns: int
    ttft: float | None
    duration: float
    tokens: tuple[int, ...] | None
    cost: str | None
    finish_reason: str | None = None
    response_model: str | None = None
    response_id: str | None = None


class RequestRecord(msgspec.Struct, array_like=True, frozen=True):
    """One request that is over, for spans and the access log. `trace_id` empty: it has no trace. `error`: the code that
    the client was told. `asked`: what it set of `gen_ai.request.*`. `content`: as its policy keeps it (`prompts.py`),
    where telemetry may carry it. `route` empty: it was refused before it was routed, and only what has no default is
    known."""

    trace_id: str
    span_id: int
    parent_id: int
    state: str
    request_id: str
    surface: str
    status: int
    error: str | None
    started_ns: int
    ended_ns: int
    overhead: float | None = None  # seconds
    team: str = ""
    project: str | None = None
    key_id: str = ""
    model: str = ""
    streams: bool = False
    route: str = ""
    policy: str = ""
    policy_version: str = ""
    domain: str | None = None
    asked: dict[str, float | int] = {}
    attempts: tuple[AttemptRecord, ...] = ()
    content: str | None = None


class AccessLog:
    """A JSON line for each request, with what a span of it would have; neither content nor keys."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, record: RequestRecord) -> None:
        """A stream that cannot be written to is no reason to fail a request."""
        line = {
            "time": datetime.fromtimestamp(record.ended_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
            "event": "request",
            "request_id": record.request_id,
            "trace_id": record.trace_id or None,
            "span_id": f"{record.span_id:016x}" if record.span_id else None,
            "surface": record.surface,
            "status": record.status,
            "error": record.error,
            "milliseconds": round((record.ended_ns - record.started_ns) / 1e6, 3),
            "team": record.team,
            "project": record.project,
            "key_id": record.key_id,
            "model": record.model,
            "stream": record.streams,
            "route": record.route,
            "policy": record.policy,
            "policy_version": record.policy_version,
            "attempts": [
                {
                    "endpoint": one.endpoint,
                    "status": one.status,
                    "error": one.error_type,
                    "milliseconds": round(one.duration * 1000, 3),
                    "tokens": sum(one.tokens) if one.tokens is not None else None,
                    "cost_usd": one.cost,
                }
                for one in record.attempts
            ],
        }
        try:
            self._out.write(_encode(line) + b"\n")
            self._out.flush()
        except OSError:
            pass
