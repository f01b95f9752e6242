"""Passive health: what an endpoint's own traffic says of it. The one place where routing keeps state.

Each worker has its own book: counts are per worker, not global. Failures are slow, never fast: a 429 that comes back
in 40 ms enters the mean as `PENALTY_TTFT`, or it would draw more traffic to an endpoint that refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from gateway.types import EndpointHealth

DECAY = 0.2
"""Share of the newest observation in the decayed mean."""
PENALTY_TTFT = 5.0
EJECT_AFTER = 3
"""Failures in a row."""
BASE_EJECTION = 5.0
MAX_EJECTION = 300.0
FORGET_AFTER = 60.0
"""Seconds for which a mean holds without a new observation. An endpoint that was slow once is then unknown, and tried
again; else a limit or a selection that avoids slow endpoints would never hear of its recovery."""
SWEEP_EVERY = 5.0


class HealthBook:
    """Written by the pipeline after each attempt, read by the plan. `now`: loop clock, seconds."""

    def __init__(self) -> None:
        self._states: dict[str, EndpointHealth] = {}
        self._ejections: dict[str, int] = {}
        self._observed_at: dict[str, float] = {}
        self._sweep_at = 0.0

    def snapshot(self, now: float) -> Mapping[str, EndpointHealth]:
        """What is known now. It changes with the book: a decision that awaits nothing needs no copy."""
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY
            for endpoint, at in list(self._observed_at.items()):
                if now - at >= FORGET_AFTER:
                    del self._observed_at[endpoint]
                    self._states[endpoint] = replace(self._states[endpoint], ttft=None)
        return self._states

    def start(self, endpoint: str) -> None:
        state = self._states.get(endpoint, _UNUSED)
        self._states[endpoint] = replace(state, in_flight=state.in_flight + 1)

    def finish(self, endpoint: str) -> None:
        state = self._states[endpoint]
        self._states[endpoint] = replace(state, in_flight=state.in_flight - 1)

    def succeed(self, endpoint: str, now: float, ttft: float) -> None:
        self._observed_at[endpoint] = now
        state = self._states.get(endpoint, _UNUSED)
        self._states[endpoint] = EndpointHealth(ttft=_decayed(state.ttft, ttft), in_flight=state.in_flight)
        self._ejections.pop(endpoint, None)

    def fail(self, endpoint: str, now: float, *, retry_after: float | None = None) -> None:
        """`retry_after`: the upstream itself said when to come back (seconds); it is left alone until then at least."""
        self._observed_at[endpoint] = now
        state = self._states.get(endpoint, _UNUSED)
        failures = state.failures_in_a_row + 1
        ejected_until = state.ejected_until
        if retry_after is not None:
            ejected_until = max(ejected_until, now + min(retry_after, MAX_EJECTION))
        if failures >= EJECT_AFTER:
            ejections = self._ejections[endpoint] = self._ejections.get(endpoint, 0) + 1
            ejected_until = max(ejected_until, now + min(BASE_EJECTION * 2 ** (ejections - 1), MAX_EJECTION))
        self._states[endpoint] = EndpointHealth(
            ttft=_decayed(state.ttft, PENALTY_TTFT),
            in_flight=state.in_flight,
            failures_in_a_row=failures,
            ejected_until=ejected_until,
        )


_UNUSED = EndpointHealth()


def _decayed(mean: float | None, ttft: float) -> float:
    return ttft if mean is None else (1 - DECAY) * mean + DECAY * ttft
