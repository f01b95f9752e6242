"""Passive health: what an endpoint's own traffic says of it. The one place where routing keeps state.

Each worker has its own book: counts are per worker, not global. Failures are slow, never fast: a 429 that comes back
in 40 ms enters the mean as `PENALTY_TTFT`, or it would draw more traffic to an endpoint that refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gateway.types import EndpointHealth

DECAY = 0.2
"""Share of the newest observation in the decayed mean."""
PENALTY_TTFT = 5.0
EJECT_AFTER = 3
"""Failures in a row."""
BASE_EJECTION = 5.0
MAX_EJECTION = 300.0


class _State(msgspec.Struct):
    ttft: float | None = None
    in_flight: int = 0
    failures_in_a_row: int = 0
    ejections: int = 0
    ejected_until: float = 0.0


class HealthBook:
    """Written by the pipeline after each attempt, read as a snapshot by the plan. `now`: loop clock, seconds."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def start(self, endpoint: str) -> None:
        self._states.setdefault(endpoint, _State()).in_flight += 1

    def finish(self, endpoint: str) -> None:
        self._states[endpoint].in_flight -= 1

    def succeed(self, endpoint: str, ttft: float) -> None:
        state = self._states.setdefault(endpoint, _State())
        _observe(state, ttft)
        state.failures_in_a_row = state.ejections = 0
        state.ejected_until = 0.0

    def fail(self, endpoint: str, now: float, *, retry_after: float | None = None) -> None:
        """`retry_after`: the upstream itself said when to come back (seconds); it is left alone until then."""
        state = self._states.setdefault(endpoint, _State())
        _observe(state, PENALTY_TTFT)
        state.failures_in_a_row += 1
        if retry_after is not None:
            state.ejected_until = max(state.ejected_until, now + min(retry_after, MAX_EJECTION))
        elif state.failures_in_a_row >= EJECT_AFTER:
            state.ejections += 1
            seconds = min(BASE_EJECTION * 2 ** (state.ejections - 1), MAX_EJECTION)
            state.ejected_until = max(state.ejected_until, now + seconds)

    def snapshot(self) -> Mapping[str, EndpointHealth]:
        return {
            endpoint: EndpointHealth(state.ttft, state.in_flight, state.failures_in_a_row, state.ejected_until)
            for endpoint, state in self._states.items()
        }


def _observe(state: _State, ttft: float) -> None:
    state.ttft = ttft if state.ttft is None else (1 - DECAY) * state.ttft + DECAY * ttft
