"""How an endpoint behaves, as far as a simulation needs it: its latency, speed, cache and failures, by time.

Stated in a file (`read_profiles`), or taken from what the ledger has of each hour (`recorded_profiles`). TTFT is
lognormal, given by its median and 95th percentile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

import msgspec

from gateway.config.document import read_document
from gateway.config.section import Report, Section
from gateway.errors import ConfigError
from gateway.store.decisions import Speed

P95 = 1.6448536269514722  # the standard normal distribution's 95th percentile
HOUR = 3600.0
MIN_ATTEMPTS = 20
"""Of one hour: with fewer, the endpoint's figures of the whole period hold."""

_KEYS = ("ttft", "tokens_per_second", "cache_share", "failures")
_MOST_TTFT = 3600.0


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """`since` <= t < `until`, in seconds since the epoch (or since the first request, see `Profile.started`).

    `ttft`: its median and 95th percentile in seconds; None: unknown. `cache_share`: of the input tokens, those read
    from the provider's cache; `failures`: share of the attempts that fail.
    """

    ttft: tuple[float, float] | None = None
    seconds_per_token: float | None = None
    cache_share: float = 0.0
    failures: float = 0.0
    since: float = -math.inf
    until: float = math.inf

    def draw_ttft(self, z: float) -> float | None:
        """`z`: a standard normal deviate."""
        if self.ttft is None:
            return None
        return self.ttft[0] * math.exp(self._sigma * z)

    @property
    def mean_ttft(self) -> float | None:
        """The expectation of the lognormal distribution."""
        return None if self.ttft is None else self.ttft[0] * math.exp(self._sigma**2 / 2)

    @property
    def _sigma(self) -> float:
        assert self.ttft is not None
        median, p95 = self.ttft
        return math.log(p95 / median) / P95


class Profile(msgspec.Struct, frozen=True):
    """An endpoint's behaviour: the first of `windows` that is open, else the usual one."""

    usual: Behaviour
    windows: tuple[Behaviour, ...] = ()

    def at(self, at: float) -> Behaviour:
        for window in self.windows:
            if window.since <= at < window.until:
                return window
        return self.usual

    def started(self, at: float) -> Profile:
        """With the windows of a profile that count from the first request, which was made at `at`."""
        moved = [
            msgspec.structs.replace(window, since=window.since + at, until=window.until + at)
            if _is_relative(window)
            else window
            for window in self.windows
        ]
        return Profile(self.usual, tuple(moved))


def read_profiles(path: Path) -> dict[str, Profile]:
    """Profiles by endpoint. Raises ConfigError with every mistake.

        on-prem:
          ttft: {p50: 300ms, p95: 900ms}
          tokens_per_second: 40
          cache_share: 30%
          failures: 1%
          windows:
            - {from: 20m, to: 40m, ttft: {p50: 3s, p95: 9s}}

    `from` and `to` are times, or how long after the first request; what a window does not say is as usual.
    """
    document = read_document(path)
    report = Report(document)
    whole = Section(report, (), document.data, None)
    profiles = {name: _profile(section) for name, section in whole.entries((*_KEYS, "windows"))}
    if report.mistakes():
        raise ConfigError(report.mistakes())
    return profiles


def recorded_profiles(speeds: Iterable[Speed]) -> dict[str, Profile]:
    """Profiles by endpoint from the hours of the ledger, sorted by endpoint."""
    return {endpoint: _recorded(list(hours)) for endpoint, hours in groupby(speeds, key=lambda speed: speed.endpoint)}


def _recorded(hours: list[Speed]) -> Profile:
    usual = _mean(hours, Behaviour())
    windows = []
    for hour in hours:
        if hour.attempts >= MIN_ATTEMPTS and hour.ttft_p50 is not None:
            since = hour.since.timestamp()
            windows.append(msgspec.structs.replace(_mean([hour], usual), since=since, until=since + HOUR))
    return Profile(usual, tuple(windows))


def _mean(hours: list[Speed], usual: Behaviour) -> Behaviour:
    """Weighted by attempts; what none of the hours knows is as `usual`."""

    def mean(values: Iterable[tuple[float | None, int]]) -> float | None:
        known = [(value, weight) for value, weight in values if value is not None and weight]
        total = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / total if total else None

    p50 = mean((hour.ttft_p50, hour.attempts) for hour in hours)
    p95 = mean((hour.ttft_p95, hour.attempts) for hour in hours)
    pace = mean((hour.seconds_per_token, hour.attempts) for hour in hours)
    cache = mean((hour.cache_share, hour.attempts) for hour in hours)
    attempts = sum(hour.attempts for hour in hours)
    return Behaviour(
        ttft=(max(p50, 1e-6), max(p95, p50, 1e-6)) if p50 is not None and p95 is not None else usual.ttft,
        seconds_per_token=usual.seconds_per_token if pace is None else pace,
        cache_share=usual.cache_share if cache is None else cache,
        failures=sum(hour.failures for hour in hours) / attempts if attempts else 0.0,
    )


def _profile(section: Section) -> Profile:
    usual = _behaviour(section, Behaviour())
    windows = []
    values = section.raw("windows") if "windows" in section else []
    if not isinstance(values, list):
        section.wrong((*section.path, "windows"), "a list", values, "write `- {from: 20m, to: 40m, ...}`")
        values = []
    for position, value in enumerate(values):
        path = (*section.path, "windows", position)
        window = Section(section.report, path, value, (*_KEYS, "from", "to"))
        since, until = _moment(window, "from"), _moment(window, "to")
        if since is not None and until is not None:
            if (since < _RELATIVE) != (until < _RELATIVE) or since >= until:
                window.add("to", "`to` has to be later than `from`, and both times or both durations", "correct them")
            windows.append(msgspec.structs.replace(_behaviour(window, usual), since=since, until=until))
    return Profile(usual, tuple(windows))


def _behaviour(section: Section, usual: Behaviour) -> Behaviour:
    ttft = usual.ttft
    if "ttft" in section:
        inner = section.section("ttft", ("p50", "p95"))
        p50, p95 = inner.seconds("p50", most=_MOST_TTFT), inner.seconds("p95", most=_MOST_TTFT)
        inner.require("p50", "write `ttft: {p50: 300ms, p95: 900ms}`")
        if p50 is not None and p95 is not None and p95 < p50:
            inner.add("p95", "`p95` is under `p50`", "swap the two")
        elif p50 is not None:
            ttft = (p50, p50 if p95 is None else p95)
    speed = section.number("tokens_per_second", least=0, most=10**6)
    cache, failures = section.share("cache_share"), section.share("failures")
    return Behaviour(
        ttft=ttft,
        seconds_per_token=1 / float(speed) if speed else usual.seconds_per_token,
        cache_share=usual.cache_share if cache is None else float(cache),
        failures=usual.failures if failures is None else float(failures),
    )


_RELATIVE = 366 * 86_400.0
"""What is less is no time since the epoch but a duration."""


def _is_relative(window: Behaviour) -> bool:
    return window.until < _RELATIVE


def _moment(section: Section, key: str) -> float | None:
    hint = "write a time (`2026-01-31T12:00:00Z`), or how long after the first request (`20m`)"
    if not section.require(key, hint):
        return None
    value = section.raw(key)
    if isinstance(value, str) and "-" in value:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            section.add(key, f"`{key}` is no time", hint)
            return None
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)
    if value in (0, "0", "0s", "0m"):
        return 0.0
    return section.seconds(key, most=_RELATIVE - 1)
