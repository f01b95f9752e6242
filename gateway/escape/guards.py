"""Whether a step of an escape may go on: the target's numbers against the source's, with what chance allows for.

Pure. Two kinds of evidence:

- Shares (errors, invalid answers) by a sequential test: the likelihood of what was seen under higher shares, averaged
  over several of them, divided by its likelihood under the allowed share (a mixture of probability ratios; A. Wald,
  "Sequential Tests of Statistical Hypotheses", 1945; H. Robbins, "Statistical Methods Related to the Law of the
  Iterated Logarithm", 1970). By Ville's inequality it passes 1/ALPHA with a probability below ALPHA while the share
  is allowed, however often one looks: the runner looks every second. The last `RECENT` are judged once more alone.
- Sizes (TTFT, cost, similarity) by intervals: of a median from its order statistics, of a mean from its deviation. A
  guard is broken only when the whole interval of the target is beyond what the source's allows.

Whatever is not broken passes when enough requests were seen and the measured value itself is within the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from math import exp, log, sqrt
from typing import Literal

import msgspec

ALPHA = 0.005
"""The chance that a step of a sound target is halted for its errors, over all looks at it."""
RECENT = 20
"""Requests whose errors are also judged for themselves: a target that turns bad is ejected after a few, and they would
be lost among the many that were good before."""
BURST = 10_000.0
"""What the evidence of the newest 1, 2, ... up to `RECENT` requests must pass. They are judged again with each request,
so that it must be strong: a sound target shows this much once in about as many requests (Page's test; E. S. Page,
"Continuous Inspection Schemes", 1954)."""
Z = 2.6
"""Half the width of an interval in standard errors: 1 in 100 lies outside, on both sides together."""
LEAST = 10
"""Requests below which nothing is judged by its size, and no step passes."""
LEAST_OF_SOURCE = 30
"""Requests of the source below which its own failures excuse none of the target's."""
PATIENCE = 10
"""After that many times the requests that a step needs, the measured value alone decides."""
_ODDS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""The higher shares of the sequential test, as multiples of the allowed odds."""

State = Literal["pass", "wait", "broken", "unknown"]
"""Of one guard. `unknown`: there is nothing to judge by (no price, an unused source); it holds nothing up."""


class Guards(msgspec.Struct, frozen=True, kw_only=True):
    """Limits. None: not guarded. Shares are from 0 to 1, ratios are the target's number by the source's.

    `max_error_rate` and `min_validity` also allow what the source itself has, where that is worse.
    """

    max_error_rate: float | None = 0.02
    max_ttft_ratio: float | None = 1.5
    min_validity: float | None = 0.98
    max_cost_ratio: float | None = 1.2
    min_similarity: float | None = None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One group's attempts. Times in milliseconds, costs in USD per request.

    `failures`: of `requests`, those that ended in an error or a timeout; those that the client gave up are in neither.
    `recent`: whether each of the last ones failed, the newest first. `ttft_low`, `ttft_high`: the bounds of the
    median's interval. `invalid`: of `judged`, answers that were not usable.
    """

    requests: int = 0
    failures: int = 0
    recent: tuple[bool, ...] = ()
    timed: int = 0
    ttft_median: float | None = None
    ttft_low: float | None = None
    ttft_high: float | None = None
    ttft_p95: float | None = None
    judged: int = 0
    invalid: int = 0
    priced: int = 0
    unpriced: int = 0
    cost_mean: Decimal | None = None
    cost_deviation: Decimal | None = None
    compared: int = 0
    similarity_mean: float | None = None
    similarity_deviation: float | None = None


class Finding(msgspec.Struct, frozen=True):
    """What one guard says. `measured` and `limit` in the guard's own unit; `detail` for people."""

    guard: str
    state: State
    measured: float | None
    limit: float
    detail: str


class Verdict(msgspec.Struct, frozen=True):
    """Of a step: `broken` halts the escape, `wait` keeps it where it is, `pass` lets it go on."""

    state: Literal["pass", "wait", "broken"]
    findings: tuple[Finding, ...]
    missing: int = 0
    """Requests of the target that are still needed."""


def judge(guards: Guards, target: Sample, source: Sample, needed: int) -> Verdict:
    """`needed`: requests of the target before a step may pass, at least `LEAST`."""
    needed = max(needed, LEAST)
    is_late = target.requests >= needed * PATIENCE
    findings = tuple(_settled(finding) if is_late else finding for finding in _findings(guards, target, source))
    missing = max(0, needed - target.requests)
    if any(finding.state == "broken" for finding in findings):
        return Verdict("broken", findings, missing)
    if missing or any(finding.state == "wait" for finding in findings):
        return Verdict("wait", findings, missing)
    return Verdict("pass", findings, 0)


def _findings(guards: Guards, target: Sample, source: Sample) -> Iterator[Finding]:
    if guards.max_error_rate is not None:
        allowed = max(guards.max_error_rate, _own(source.failures, source.requests))
        yield _errors(target, allowed)
    if guards.min_validity is not None:
        allowed = max(1 - guards.min_validity, _own(source.invalid, source.judged))
        yield _share("validity", target.invalid, target.judged, allowed)
    if guards.max_ttft_ratio is not None:
        yield _ttft(target, source, guards.max_ttft_ratio)
    if guards.max_cost_ratio is not None:
        yield _cost(target, source, guards.max_cost_ratio)
    if guards.min_similarity is not None:
        yield _similarity(target, guards.min_similarity)


def _own(bad: int, seen: int) -> float:
    """The source's own share, where enough is known of it."""
    return bad / seen if seen >= LEAST_OF_SOURCE else 0.0


def _settled(finding: Finding) -> Finding:
    """No more waiting: close to the limit, on the wrong side of it, is over it."""
    return msgspec.structs.replace(finding, state="broken") if finding.state == "wait" else finding


def _errors(target: Sample, allowed: float) -> Finding:
    found = _share("errors", target.failures, target.requests, allowed)
    if found.state == "broken":
        return found
    bad = 0
    for seen, has_failed in enumerate(target.recent, 1):
        bad += has_failed
        if has_failed and evidence(bad, seen, allowed) >= BURST:
            detail = f"{bad} of the last {seen} failed, allowed {allowed:.1%}"
            return Finding("errors", "broken", bad / seen, allowed, detail)
    return found


def _share(guard: str, bad: int, seen: int, allowed: float) -> Finding:
    noun = {"errors": "failed", "validity": "not usable"}[guard]
    if seen == 0:
        return Finding(guard, "unknown", None, allowed, "nothing to judge by")
    measured = bad / seen
    state: State = "pass" if measured <= allowed else "wait"
    if evidence(bad, seen, allowed) >= 1 / ALPHA:
        state = "broken"
    return Finding(guard, state, measured, allowed, f"{bad} of {seen} {noun} ({measured:.1%}), allowed {allowed:.1%}")


def evidence(bad: int, seen: int, allowed: float) -> float:
    """How many times likelier `bad` of `seen` are under a higher share than under the allowed one."""
    if allowed <= 0:
        return float("inf") if bad else 1.0
    if allowed > 0.99:  # no share is much higher
        return 1.0
    odds = allowed / (1 - allowed)
    total = 0.0
    for factor in _ODDS:
        share = odds * factor / (1 + odds * factor)
        power = bad * log(share / allowed) + (seen - bad) * log((1 - share) / (1 - allowed))
        total += exp(min(power, 700.0))  # beyond that a float ends
    return total / len(_ODDS)


def _ttft(target: Sample, source: Sample, ratio: float) -> Finding:
    mine, theirs = target.ttft_median, source.ttft_median
    if mine is None or theirs is None or source.timed < LEAST or theirs <= 0:
        return Finding("ttft", "unknown", None, ratio, "nothing to compare with")
    measured = mine / theirs
    state: State = "pass" if measured <= ratio else "wait"
    low, high = target.ttft_low, source.ttft_high
    if target.timed >= LEAST and low is not None and high is not None and low > high * ratio:
        state = "broken"
    detail = f"median TTFT {mine:.0f} ms, the source's {theirs:.0f} ms ({measured:.2f} times, allowed {ratio:g})"
    return Finding("ttft", state, measured, ratio, detail)


def _cost(target: Sample, source: Sample, ratio: float) -> Finding:
    mine, theirs = _mean(target), _mean(source)
    if mine is None or theirs is None or source.priced < LEAST or theirs[0] <= 0:
        unpriced = "a price is unknown" if target.unpriced or source.unpriced else "nothing to compare with"
        return Finding("cost", "unknown", None, ratio, unpriced)
    measured = mine[0] / theirs[0]
    state: State = "pass" if measured <= ratio else "wait"
    if target.priced >= LEAST and mine[0] - Z * mine[1] > (theirs[0] + Z * theirs[1]) * ratio:
        state = "broken"
    shown = f"{target.cost_mean:.6f} USD a request, the source's {source.cost_mean:.6f}"
    return Finding("cost", state, measured, ratio, f"{shown} ({measured:.2f} times, allowed {ratio:g})")


def _mean(sample: Sample) -> tuple[float, float] | None:
    """Mean cost and its standard error. For ratios only: what is billed stays `Decimal`."""
    if sample.cost_mean is None or sample.priced == 0:
        return None
    return float(sample.cost_mean), float(sample.cost_deviation or 0) / sqrt(sample.priced)


def _similarity(target: Sample, least: float) -> Finding:
    mean = target.similarity_mean
    if mean is None or target.compared == 0:
        return Finding("similarity", "unknown", None, least, "nothing was compared")
    state: State = "pass" if mean >= least else "wait"
    error = (target.similarity_deviation or 0.0) / sqrt(target.compared)
    if target.compared >= LEAST and mean + Z * error < least:
        state = "broken"
    return Finding("similarity", state, mean, least, f"mean similarity {mean:.2f}, at least {least:g}")
