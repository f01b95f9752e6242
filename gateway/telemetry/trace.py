"""Traces in a worker: the context that comes and goes in W3C's headers, what is sampled, and the records of requests
that are over. Spans are made of them by the control plane (`spans.py`); a worker never loads OpenTelemetry's SDK.

Source: W3C Trace Context, level 2 (`traceparent`, `tracestate`) and W3C Baggage.
"""

from __future__ import annotations

import random
import re
import sys
from collections import deque
from collections.abc import Collection, Mapping
from time import monotonic

import msgspec

from gateway.config.export import NO_TELEMETRY, Telemetry
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.records import MAX_RECORDS, AccessLog, RequestRecord

MAX_STATE = 512
"""Bytes of a `tracestate` that is passed on (section 3.3.1.5: at least so many)."""
MAX_BAGGAGE = 8192
"""Bytes of a `baggage` that is passed on (W3C Baggage, section 3.3.2: no more)."""

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
BAGGAGE = b"baggage"
SAMPLED, IS_RANDOM = 1, 2
"""Bits of the flags."""

_random = random.Random()  # ids need to be unique, not secret
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_VALUE = re.compile(rb"[\t\x20-\x7e]*")
_LOW_64 = (1 << 64) - 1


class Trace:
    """Where a request stands in a trace. `span_id` is its own span's; where no span is made of it (`is_recorded`), the
    client's, which then is the parent of whatever the upstream makes. `parent_id` 0: it is the first of its trace."""

    __slots__ = ("baggage", "flags", "is_recorded", "parent_id", "span_id", "state", "trace_id")

    def __init__(self, trace_id: int, span_id: int, parent_id: int, flags: int, is_recorded: bool) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.flags = flags
        self.is_recorded = is_recorded
        self.state = b""
        self.baggage = b""

    def header_lines(self, attempt: int, shown: Collection[str]) -> bytes:
        """For the upstream's request head. `attempt`: its number; `shown`: which of the three headers this upstream may
        see."""
        if "traceparent" not in shown:
            return b""
        span_id = attempt_span(self.span_id, attempt) if self.is_recorded else self.span_id
        lines = b"traceparent: 00-%032x-%016x-%02x\r\n" % (self.trace_id, span_id, self.flags)
        if self.state and "tracestate" in shown:
            lines += b"tracestate: %b\r\n" % self.state
        if self.baggage and "baggage" in shown:
            lines += b"baggage: %b\r\n" % self.baggage
        return lines


def attempt_span(span_id: int, attempt: int) -> int:
    """The span id of a request's attempt: it follows from the request's own, so that nobody has to keep it."""
    return (span_id + attempt) & _LOW_64 or 1


class Tracer:
    """One for each worker. Begins traces, keeps the records of those that are sampled, and hands them out once."""

    def __init__(self, metrics: Metrics) -> None:
        self.settings: Telemetry = NO_TELEMETRY
        self.is_on = False
        """Spans are made of requests."""
        self.access_log: AccessLog | None = None
        self._metrics = metrics
        self._records: deque[RequestRecord] = deque()
        self._roots = _Allowance(0.0)
        self._failures = _Allowance(0.0)
        self._refusals = _Allowance(0.0)
        self._encode = msgspec.msgpack.Encoder().encode

    def configure(self, settings: Telemetry, workers: int = 1) -> None:
        """`workers`: how many share what is allowed in a second."""
        self.settings = settings
        self.is_on = settings.exports_traces
        self.access_log = AccessLog(sys.stderr.buffer) if settings.access_log else None
        share = settings.per_second / max(1, workers)
        self._roots, self._failures, self._refusals = _Allowance(share), _Allowance(share), _Allowance(share)
        if not self.is_on:
            self._records.clear()

    def begin(self, headers: Mapping[bytes, bytes]) -> Trace | None:
        """The trace that a request belongs to; None: none. Whoever is not sampled may still have one, that its client
        began and its upstream is told of."""
        given = headers.get(TRACEPARENT)
        if given is not None:
            trace = self._continue(given, headers)
            if trace is not None:
                return trace
        if not self.is_on or not self._is_drawn() or not self._roots.take():
            return None
        return _new_trace()

    def keep(self, trace: Trace | None, *, has_failed: bool, seconds: float) -> Trace | None:
        """At a request's end: the trace under which it is recorded; None: it is not. One that was not sampled is kept
        where it failed or took too long, as far as the allowance goes."""
        if not self.is_on:
            return None
        if trace is not None and trace.is_recorded:
            return trace
        settings = self.settings
        is_slow = settings.slower_than is not None and seconds >= settings.slower_than
        if not (is_slow or (has_failed and settings.errors)) or not self._failures.take():
            return None
        return _recorded(trace)

    def refuse(self, headers: Mapping[bytes, bytes], *, has_failed: bool) -> Trace | None:
        """As `begin` and `keep`, of a request that is refused before it is routed. Whoever has no key can send such, so
        they have an allowance of their own, whatever their `traceparent` says: they take nothing from the others."""
        if not self.is_on:
            return None
        given = headers.get(TRACEPARENT)
        trace = None if given is None else self._continue(given, headers)
        is_sampled = self._is_drawn() if trace is None else trace.is_recorded
        if not (is_sampled or (has_failed and self.settings.errors)) or not self._refusals.take():
            return None
        return _recorded(trace)

    def add(self, record: RequestRecord) -> None:
        """The oldest goes where there is no room."""
        if len(self._records) >= MAX_RECORDS:
            self._records.popleft()
            self._metrics.trace_dropped()
        self._records.append(record)

    @property
    def has_records(self) -> bool:
        return bool(self._records)

    def drain(self) -> bytes:
        """All records, as MessagePack; they are gone then."""
        records = list(self._records)
        self._records.clear()
        return self._encode(records)

    def _is_drawn(self) -> bool:
        ratio = self.settings.sample
        return ratio > 0 and (ratio >= 1 or _random.random() < ratio)

    def _continue(self, given: bytes, headers: Mapping[bytes, bytes]) -> Trace | None:
        """None where it is no `traceparent`: the trace begins anew then (section 3.2.2.5 of Trace Context)."""
        match = _PARENT.fullmatch(given)
        if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
            return None
        trace_id, parent_id, flags = int(match[2], 16), int(match[3], 16), int(match[4], 16)
        if not trace_id or not parent_id:
            return None
        is_recorded = self.is_on and self._takes_child(trace_id, flags)
        if is_recorded:
            trace = Trace(trace_id, _new_span_id(), parent_id, flags & IS_RANDOM | SAMPLED, is_recorded=True)
        else:
            passed = flags & (IS_RANDOM | SAMPLED)
            trace = Trace(trace_id, parent_id, 0, passed, is_recorded=False)
        trace.state = _passable(headers.get(TRACESTATE), MAX_STATE)
        trace.baggage = _passable(headers.get(BAGGAGE), MAX_BAGGAGE)
        return trace

    def _takes_child(self, trace_id: int, flags: int) -> bool:
        """By its parent's decision, or by the ratio: then of the id's lower half, as all who use the ratio do."""
        if self.settings.follows_parent:
            return bool(flags & SAMPLED)
        return trace_id & _LOW_64 < self.settings.sample * (1 << 64) and self._roots.take()


def _new_trace() -> Trace:
    return Trace(_random.getrandbits(128) or 1, _new_span_id(), 0, SAMPLED | IS_RANDOM, is_recorded=True)


def _recorded(trace: Trace | None) -> Trace:
    """One that has a span, in the same trace if there is any."""
    if trace is None:
        return _new_trace()
    if trace.is_recorded:
        return trace
    return Trace(trace.trace_id, _new_span_id(), trace.span_id, SAMPLED, is_recorded=True)


def _new_span_id() -> int:
    return _random.getrandbits(64) or 1


def _passable(value: bytes | None, limit: int) -> bytes:
    """A header's value that may be passed on; empty: it may not."""
    return value if value and len(value) <= limit and _VALUE.fullmatch(value) else b""


class _Allowance:
    """So many in a second, and no more than a second's worth saved up."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._left = max(per_second, 1.0) if per_second else 0.0
        self._at = monotonic()

    def take(self) -> bool:
        if self._left < 1:
            now = monotonic()
            self._left = min(max(self._rate, 1.0), self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                return False
        self._left -= 1
        return True
