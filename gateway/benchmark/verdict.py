"""Whether a soak held: what its last third of samples says against the middle third. Pure.

The first third is for warming up. Medians and means of many samples are compared, so that one bad second on a busy
machine says nothing, and a leak of 2 % over a third of the run does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One moment. Memory is resident, of the largest worker and of the control plane; descriptors and threads are those
    of all workers; `backlog_bytes` are spooled and not shipped; latencies are of answers that are not streamed, not a
    number when there were none since the last sample."""

    second: float  # since the beginning
    worker_mb: float
    control_mb: float
    descriptors: int
    threads: int
    backlog_bytes: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Finding:
    """`limit`: what `last` may be at most, given `middle`. `per_hour`: its slope over both thirds, by least squares."""

    name: str
    middle: float
    last: float
    limit: float
    per_hour: float

    @property
    def has_drifted(self) -> bool:
        return not self.last <= self.limit  # so that not a number has drifted, too


@dataclass(frozen=True)
class Rule:
    """`factor` and `slack`: how much the last third may have over the middle one."""

    name: str
    value: Callable[[Sample], float]
    summary: Callable[[Sequence[float]], float]
    factor: float
    slack: float


RULES = (
    Rule("worker_mb", lambda sample: sample.worker_mb, statistics.fmean, 1.02, 0.0),
    Rule("control_mb", lambda sample: sample.control_mb, statistics.fmean, 1.05, 0.0),
    Rule("descriptors", lambda sample: sample.descriptors, statistics.median, 1.1, 8.0),
    Rule("threads", lambda sample: sample.threads, statistics.median, 1.0, 1.0),
    Rule("backlog_bytes", lambda sample: sample.backlog_bytes, statistics.median, 1.5, 1_000_000.0),
    Rule("p50_ms", lambda sample: sample.p50_ms, statistics.median, 1.5, 1.0),
    Rule("p99_ms", lambda sample: sample.p99_ms, statistics.median, 2.0, 10.0),
)


def judge(samples: Sequence[Sample]) -> list[Finding]:
    """Raises ValueError for fewer samples than three thirds need."""
    third = len(samples) // 3
    if not third:
        raise ValueError(f"{len(samples)} samples are too few to compare thirds of them")
    middle, last = samples[third : 2 * third], samples[2 * third :]
    found = []
    for rule in RULES:
        before, after = (_known(rule, part) for part in (middle, last))
        reached = rule.summary([value for _, value in before]) if before else float("nan")
        now = rule.summary([value for _, value in after]) if after else float("nan")
        limit = reached * rule.factor + rule.slack
        found.append(Finding(rule.name, reached, now, limit, _slope([*before, *after]) * 3600))
    return found


def _known(rule: Rule, samples: Sequence[Sample]) -> list[tuple[float, float]]:
    pairs = [(sample.second, rule.value(sample)) for sample in samples]
    return [(second, value) for second, value in pairs if value == value]


def _slope(points: Sequence[tuple[float, float]]) -> float:
    if len({second for second, _ in points}) < 2:
        return float("nan")
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
