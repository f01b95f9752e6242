"""The circuit breaker of one endpoint: when it is left alone, probed, and given its traffic back. Reads no clock.

    closed ──3 failures in a row, or most of the newest 10──▶ open ──its time is over──▶ half_open
      ▲                                                        ▲ ▲                          │  │
      └───10 s and 5 successes──── returning ──a failure───────┘ └────the probe failed──────┘  │
                                       ▲──────────────────the probe was served────────────────┘

Each opening in a row lasts twice as long as the one before. An upstream that says when to come back is left alone until
then, whatever its state. Each worker has its own breakers: they must be fast, and need nobody's consent.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal
from zlib import crc32

State = Literal["closed", "open", "half_open", "returning"]

OPEN_AFTER = 3
"""Failures in a row."""
WINDOW = 10
"""Newest attempts that are looked at; more than half of a full window failed: that opens it too."""
BASE_OPEN = 5.0
MAX_OPEN = 300.0
JITTER = 0.2
"""The share of its time by which an opening may be shorter, so that workers do not probe in step."""
PROBE_PATIENCE = 15.0
"""Seconds after which a probe that is still under way, as a long stream may be, no longer keeps the next one back."""
RETURN_SECONDS = 10.0
RETURN_SUCCESSES = 5
FIRST_SHARE = 0.1
"""Of its requests, what an endpoint gets at first when it returns."""
FORGET_AFTER = 60.0
"""Seconds without news after which the newest attempts say nothing any more, and a return is over. An endpoint that
was slow once is then unknown, and tried again; else a limit or a selection that avoids slow endpoints would never hear
of its recovery."""
_FAILED = math.inf
"""Among the times of the newest attempts: one that failed. It sorts behind all others."""


class Breaker:
    """`name`: of the endpoint and the worker, which the jitter depends on. `now`: loop clock, seconds, in every call.

    `open_until`: until when it is open; 0: it is not.
    """

    __slots__ = (
        "_name",
        "_opened_at",
        "_openings",
        "_outcomes",
        "_probed_at",
        "_probes",
        "_recent",
        "_returning_at",
        "_successes",
        "_was_probed",
        "failures_in_a_row",
        "heard_at",
        "open_until",
        "state",
    )

    def __init__(self, name: str) -> None:
        self.state: State = "closed"
        self.open_until = 0.0
        self.failures_in_a_row = 0
        self._name = name
        self._openings = 0
        self._opened_at = 0.0
        self._probes = 0
        self._probed_at = 0.0
        self._was_probed = False
        self._returning_at = 0.0
        self._successes = 0
        self.heard_at = 0.0  # when the newest of the outcomes came
        self._outcomes: deque[float] = deque(maxlen=WINDOW)  # seconds to the first content, or _FAILED
        # Worked out when asked; None: not since the last outcome.
        self._recent: tuple[float | None, float] | None = None

    def tick(self, now: float) -> None:
        """Lets time pass."""
        if self.state == "open" and now >= self.open_until:
            self.state, self.open_until = "half_open", 0.0
            self._probes, self._was_probed = 0, False
        elif self.state == "returning":
            since = now - self._returning_at
            if (since >= RETURN_SECONDS and self._successes >= RETURN_SUCCESSES) or since >= FORGET_AFTER:
                self.state = "closed"
                self._openings = 0
        if self._outcomes and now - self.heard_at >= FORGET_AFTER:
            self._outcomes.clear()

    def admitted(self, now: float) -> float:
        """The share of its requests that the endpoint may take, as far as this is not decided by `open_until`."""
        if self.state == "half_open":
            return 0.0 if self._probes and now - self._probed_at < PROBE_PATIENCE else 1.0
        if self.state == "returning":
            progress = min((now - self._returning_at) / RETURN_SECONDS, self._successes / RETURN_SUCCESSES, 1.0)
            return FIRST_SHARE + (1 - FIRST_SHARE) * max(progress, 0.0)
        return 1.0

    def recent(self) -> tuple[float | None, float] | None:
        """Of the newest attempts: the median time to first content, and the share that failed. None: there are none."""
        if not self._outcomes:
            return None
        if self._recent is None:
            times, failures = sorted(self._outcomes), 0.0
            if times[-1] == _FAILED:
                known = len(times) - times.count(_FAILED)
                failures = 1 - known / len(times)
                del times[known:]
            self._recent = times[len(times) // 2] if times else None, failures
        return self._recent

    def start(self, now: float) -> None:
        if self.state == "half_open":
            self._probes += 1
            self._probed_at, self._was_probed = now, True

    def finish(self) -> None:
        if self._probes:
            self._probes -= 1

    def go_on(self, now: float, ttft: float) -> None:
        """As `tick` and `succeed`, of one that is closed: nearly all that ever happens."""
        if now - self.heard_at >= FORGET_AFTER:
            self._outcomes.clear()
        self._outcomes.append(ttft)
        self.heard_at, self._recent, self.failures_in_a_row = now, None, 0

    def succeed(self, now: float, ttft: float, began_at: float) -> None:
        """`began_at`: what was sent before an endpoint failed, and ends well, does not show that it is back."""
        if self.state in ("open", "half_open"):
            if began_at < self._opened_at:
                return
            self.state, self.open_until = "returning", 0.0
            self._returning_at = now
            self._successes = 0
            self._outcomes.clear()
        if self.state == "returning":
            self._successes += 1
        self.failures_in_a_row = 0
        self._heard_of(now, ttft)

    def fail(self, now: float, retry_after: float | None) -> None:
        self.failures_in_a_row += 1
        if self.state == "closed":
            self._heard_of(now, _FAILED)
        said = 0.0 if retry_after is None else min(retry_after, MAX_OPEN)
        if self._opens(has_word=said > 0):
            self._open(now)
        if said > 0:
            self._leave_alone(now, now + said)

    def _heard_of(self, now: float, outcome: float) -> None:
        self._outcomes.append(outcome)
        self.heard_at = now
        self._recent = None

    def _opens(self, *, has_word: bool) -> bool:
        if self.state == "open":
            return False  # sent before it opened, or as the last resort: one outage is not many
        if self.state == "closed":
            if self.failures_in_a_row >= OPEN_AFTER:
                return True
            failures = self._outcomes.count(_FAILED)
            return len(self._outcomes) == WINDOW and 2 * failures > WINDOW
        if self.state == "half_open" and not self._was_probed:
            return False  # an attempt from before the opening has only now run into its timeout
        return not has_word  # it serves, but not so much: its own word is enough

    def _open(self, now: float) -> None:
        self._openings += 1
        longest = min(BASE_OPEN * 2.0 ** min(self._openings - 1, 30), MAX_OPEN)
        drawn = crc32(f"{self._name}:{self._openings}".encode()) / 2**32
        self._leave_alone(now, now + longest * (1 - JITTER * drawn))

    def _leave_alone(self, now: float, until: float) -> None:
        if self.state != "open":
            self.state = "open"
            self._opened_at = now
            self._outcomes.clear()
        self._probes = 0
        self.open_until = max(self.open_until, until)
