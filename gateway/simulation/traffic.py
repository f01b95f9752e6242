"""What was asked: requests with all that routing reads of them, and what is known of their answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from gateway.accounting.prices import total_input
from gateway.routing.explanation import Decision, read_decision
from gateway.routing.facts import Facts
from gateway.store.decisions import Recorded, RecordedAttempt
from gateway.types import Usage

SHADOW = "shadow"


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `at`: seconds since the epoch.

    `input_tokens`: all input as providers count it, `output_tokens`: of all choices, thoughts included; where nobody
    counted (`is_counted` is false) they are what was expected. `decision` and `attempts`: what was recorded of it; a
    trace has none. Attempts whose answers nobody saw (shadows), and rows of what was never sent, are not among them.
    """

    at: float
    request_id: str
    facts: Facts
    input_tokens: int
    output_tokens: int
    is_counted: bool = True
    decision: Decision | None = None
    attempts: tuple[RecordedAttempt, ...] = ()

    @property
    def turned_away(self) -> str | None:
        """The code of a refusal for which no policy was the reason: too much load, most of all."""
        if self.decision is None or not self.decision.candidates:
            return None
        return self.decision.refusal

    @property
    def served(self) -> RecordedAttempt | None:
        """The attempt that the client had its answer from, as far as it got: the one that ended well, else one that
        the client hung up on. None: all failed."""
        for status in ("ok", "cancelled"):
            for attempt in self.attempts:
                if attempt.status == status:
                    return attempt
        return None


class Traffic:
    """Arrivals out of what was recorded, in the order of time. `unreadable`: decisions of another version so far."""

    def __init__(self, recorded: Iterable[Recorded]) -> None:
        self.unreadable = 0
        self._recorded = recorded

    def __iter__(self) -> Iterator[Arrival]:
        for record in self._recorded:
            try:
                decision = read_decision(record.decision)
            except msgspec.DecodeError:
                self.unreadable += 1
                continue
            yield arrival_of(decision, record.attempts)


def arrival_of(decision: Decision, recorded: Iterable[RecordedAttempt]) -> Arrival:
    attempts = tuple(attempt for attempt in recorded if attempt.role != SHADOW and attempt.status != "shed")
    counted = [attempt for attempt in attempts if attempt.usage_source != "none"]
    best = max(counted, key=lambda attempt: (attempt.status == "ok", attempt.usage.total), default=None)
    return Arrival(
        at=decision.facts.at,
        request_id=decision.request_id,
        facts=decision.facts,
        input_tokens=decision.input_tokens if best is None else total_input(best.usage),
        output_tokens=decision.output_tokens if best is None else total_output(best.usage),
        is_counted=best is not None,
        decision=decision,
        attempts=attempts,
    )


def total_output(usage: Usage) -> int:
    return usage.output_tokens + usage.reasoning_tokens + usage.output_audio_tokens
