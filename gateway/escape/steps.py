"""What was asked for, and how an escape goes through its steps. Pure: time and measurements are given.

shadow -> ramp (one step for each share) -> finished, or out of any step: halted by a guard, stopped by somebody.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from gateway.errors import InvalidRequest
from gateway.escape.guards import LEAST, Guards, Sample, Verdict
from gateway.escape.plan import Pair
from gateway.types import Shift

STEP_SECONDS = 600.0
STEP_REQUESTS = 50
MAX_SECONDS = 30 * 86_400.0
MAX_REQUESTS = 10_000_000
MAX_STEPS = 50
MAX_EVENTS = 500

EscapeState = Literal["shadow", "ramp", "finished", "halted", "stopped", "closed"]
"""`finished`: all has moved, and stays so. `closed`: the configuration no longer sends anything to the source."""
ACTIVE: frozenset[EscapeState] = frozenset({"shadow", "ramp", "finished"})
"""States in which traffic is, or may be, moved."""
RUNNING: frozenset[EscapeState] = frozenset({"shadow", "ramp"})


class EscapeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`source`, `target`: ids of endpoints or providers. Shares from 0 to 1; a `shadow_share` of 0: no shadow step.

    A step lasts at least its seconds, and until its number of requests was seen. Neither is given: `STEP_SECONDS` and
    `STEP_REQUESTS`; only requests: no time of its own; only seconds: `STEP_REQUESTS` as well.
    """

    source: str
    target: str
    shadow_share: float = 0.05
    shadow_seconds: float | None = None
    shadow_requests: int | None = None
    ramp: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 1.0)
    step_seconds: float | None = None
    step_requests: int | None = None
    guards: Guards = Guards()

    def check(self) -> None:
        """Raises `InvalidRequest` with what is wrong and the remedy."""
        _demand(0 <= self.shadow_share <= 1, "shadow", "a share is between 0 % and 100 %", "write it as `5%`")
        _demand(bool(self.ramp) and len(self.ramp) <= MAX_STEPS, "ramp", f"a ramp has 1 to {MAX_STEPS} steps", RAMP)
        ascending = all(first < second for first, second in zip(self.ramp, self.ramp[1:], strict=False))
        _demand(ascending and all(0 < share <= 1 for share in self.ramp), "ramp", "a ramp rises, up to 100 %", RAMP)
        for name in ("shadow", "step"):
            seconds, requests = getattr(self, f"{name}_seconds"), getattr(self, f"{name}_requests")
            _demand(
                seconds is None or 0 <= seconds <= MAX_SECONDS, name, "a step lasts up to 30 days", "write it as `10m`"
            )
            _demand(
                requests is None or LEAST <= requests <= MAX_REQUESTS,
                f"{name}_requests",
                f"fewer than {LEAST} requests prove nothing" if (requests or 0) < LEAST else "too many requests",
                f"give a number from {LEAST} to {MAX_REQUESTS}",
            )
        for name, value in msgspec.structs.asdict(self.guards).items():
            most = 1.0 if name in ("max_error_rate", "min_validity", "min_similarity") else 1000.0
            _demand(value is None or 0 <= value <= most, name, f"it is between 0 and {most:g}", "`off` switches it off")


RAMP = "write it as `--ramp 1,5,25,50,100`"


def _demand(holds: bool, param: str, problem: str, hint: str) -> None:
    if not holds:
        raise InvalidRequest(f"`{param}`: {problem}\nhint: {hint}", code="escape_refused", param=param)


class Step(msgspec.Struct, frozen=True):
    """`share`: of the source's requests, those that go to the target (`ramp`), or that it gets copies of (`shadow`)."""

    kind: Literal["shadow", "ramp"]
    share: float
    seconds: float
    requests: int

    @property
    def role(self) -> str:
        """The tag of the target's attempts."""
        return "shadow" if self.kind == "shadow" else "escape"


def steps_of(request: EscapeRequest) -> tuple[Step, ...]:
    shadow = _length(request.shadow_seconds, request.shadow_requests)
    step = _length(request.step_seconds, request.step_requests)
    shadows = (Step("shadow", request.shadow_share, *shadow),) if request.shadow_share else ()
    return (*shadows, *(Step("ramp", share, *step) for share in request.ramp))


def _length(seconds: float | None, requests: int | None) -> tuple[float, int]:
    if seconds is None:
        seconds = STEP_SECONDS if requests is None else 0.0
    return seconds, STEP_REQUESTS if requests is None else requests


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a step went. `verdict` None: it was not judged before it ended."""

    step: Step
    started_at: datetime
    ended_at: datetime
    target: Sample
    source: Sample
    verdict: Verdict | None


class Happening(msgspec.Struct, frozen=True):
    at: datetime
    what: str


class Escape(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state. `position`: of the step that it is at, or ended at. `reason`: why it ended before the end.

    `target`, `source`, `verdict`: of the present step, as measured last. `blind_since`: nothing could be measured since
    then; `is_paused`: for so long that nothing is moved until it can.
    """

    escape_id: str
    request: EscapeRequest
    pairs: tuple[Pair, ...]
    author: str
    state: EscapeState
    started_at: datetime
    step_started_at: datetime
    position: int = 0
    ended_at: datetime | None = None
    reason: str | None = None
    results: tuple[StepResult, ...] = ()
    events: tuple[Happening, ...] = ()
    target: Sample = Sample()
    source: Sample = Sample()
    verdict: Verdict | None = None
    blind_since: datetime | None = None
    is_paused: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        return steps_of(self.request)

    @property
    def step(self) -> Step:
        return self.steps[self.position]


def begin(escape_id: str, request: EscapeRequest, pairs: tuple[Pair, ...], author: str, now: datetime) -> Escape:
    first = steps_of(request)[0]
    escape = Escape(
        escape_id=escape_id,
        request=request,
        pairs=pairs,
        author=author,
        state=first.kind,
        started_at=now,
        step_started_at=now,
    )
    return tell(escape, now, f"started by {author}: {describe_step(first)}")


def shifts_of(escape: Escape) -> list[Shift]:
    """What workers are to do for it now. A paused one has shares of 0: its shifts say that it has not ended."""
    if escape.state not in ACTIVE:
        return []
    step = replace(escape.step, share=0.0) if escape.is_paused else escape.step
    is_shadow = step.kind == "shadow"
    return [
        Shift(
            escape_id=escape.escape_id,
            source=pair.source,
            target=pair.target,
            share=0.0 if is_shadow else step.share,
            shadow_share=step.share if is_shadow else 0.0,
        )
        for pair in escape.pairs
    ]


def advance(escape: Escape, target: Sample, source: Sample, verdict: Verdict, now: datetime) -> Escape:
    """After a measurement of the present step: the same step, the next one, finished or halted."""
    escape = replace(escape, target=target, source=source, verdict=verdict)
    if verdict.state == "broken":
        broken = "; ".join(finding.detail for finding in verdict.findings if finding.state == "broken")
        return end(escape, "halted", now, broken)
    lasted = now - escape.step_started_at
    if verdict.state == "wait" or lasted < timedelta(seconds=escape.step.seconds):
        return escape
    escape = _with_result(escape, now)
    if escape.position + 1 == len(escape.steps):
        return tell(replace(escape, state="finished", ended_at=now), now, "finished: all steps passed, the shift stays")
    escape = replace(escape, position=escape.position + 1)
    escape = replace(escape, state=escape.step.kind, **_fresh(now))
    return tell(escape, now, f"passed; now {describe_step(escape.step)}")


def end(escape: Escape, state: EscapeState, now: datetime, reason: str | None) -> Escape:
    """`halted`, `stopped` or `closed`: nothing is moved any more."""
    if escape.state in RUNNING:
        escape = _with_result(escape, now)
    escape = replace(escape, state=state, ended_at=now, reason=reason, blind_since=None, is_paused=False)
    return tell(escape, now, f"{state}, everything is back at the source" + (f": {reason}" if reason else ""))


def go_blind(escape: Escape, now: datetime, patience: float) -> Escape:
    """Nothing can be measured: the step is held, and after `patience` seconds nothing is moved any more."""
    if escape.blind_since is None:
        return tell(replace(escape, blind_since=now), now, "held: the ledger cannot be read")
    if not escape.is_paused and (now - escape.blind_since).total_seconds() >= patience:
        told = tell(escape, now, f"paused: nothing is moved, the ledger could not be read for {patience:.0f} s")
        return replace(told, is_paused=True)
    return escape


def see_again(escape: Escape, now: datetime) -> Escape:
    """Measuring works again. A step that was paused begins anew: its numbers are of two different times."""
    if escape.blind_since is None:
        return escape
    fresh = _fresh(now) if escape.is_paused else {}
    what = f"the ledger can be read again; {describe_step(escape.step)}"
    return tell(replace(escape, blind_since=None, is_paused=False, **fresh), now, what)


def tell(escape: Escape, now: datetime, what: str) -> Escape:
    return replace(escape, events=(*escape.events, Happening(now, what))[-MAX_EVENTS:])


def describe_step(step: Step) -> str:
    share = percent(step.share)
    return f"copies of {share} of the source's requests" if step.kind == "shadow" else f"{share} of the requests moved"


def percent(share: float) -> str:
    return f"{share * 100:.4g} %"


def _fresh(now: datetime) -> Mapping[str, Any]:
    return {"step_started_at": now, "target": Sample(), "source": Sample(), "verdict": None}


def _with_result(escape: Escape, now: datetime) -> Escape:
    result = StepResult(
        step=escape.step,
        started_at=escape.step_started_at,
        ended_at=now,
        target=escape.target,
        source=escape.source,
        verdict=escape.verdict,
    )
    return replace(escape, results=(*escape.results, result))
