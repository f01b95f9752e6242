"""The whole of a simulation: traffic through one configuration or two, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gateway.accounting.prices import PriceBook
from gateway.config.model import Configuration
from gateway.simulation.comparison import Comparison
from gateway.simulation.profiles import Profile
from gateway.simulation.replay import Replay, recorded_outcome
from gateway.simulation.traffic import Arrival
from gateway.simulation.world import World

TICK = 500
"""Requests between two reports of progress."""


def simulate(
    arrivals: Iterable[Arrival],
    configuration: Configuration,
    *,
    baseline: Configuration | None = None,
    profiles: Mapping[str, Profile],
    prices: PriceBook,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """What `configuration` would have made of the requests, JSON-ready (`Comparison.to_dict`, with versions and notes).

    Compared with what `baseline` would have made of them, or, without one, with what was recorded. `profiles`: how
    endpoints are where nothing was recorded; their relative windows count from the first request. `progress`: is told
    how many requests are done. The same arguments give the same answer.
    """
    comparison: Comparison | None = None
    after: Replay | None = None
    before: Replay | None = None
    for arrival in arrivals:
        if comparison is None or after is None:
            started = {endpoint: profile.started(arrival.at) for endpoint, profile in profiles.items()}
            after = _replay(configuration, prices, started, seed)
            before = None if baseline is None else _replay(baseline, prices, started, seed)
            comparison = Comparison(has_before=before is not None or arrival.decision is not None)
        then = None
        if before is not None:
            then = before.take(arrival)
        elif arrival.decision is not None:
            then = recorded_outcome(arrival)
        comparison.add(arrival, then, after.take(arrival))
        if comparison.requests % TICK == 0:
            progress(comparison.requests)
    if comparison is None or after is None:
        return {"requests": 0}
    progress(comparison.requests)
    return {
        "version": configuration.version,
        "baseline": None if comparison.before is None else "recorded" if baseline is None else baseline.version,
        **comparison.to_dict(),
        "notes": _notes(comparison, after, profiles),
    }


def _notes(comparison: Comparison, replay: Replay, profiles: Mapping[str, Profile]) -> list[str]:
    """What a reader has to know before trusting the figures."""
    notes = []
    if replay.header_names:
        names = ", ".join(f"`{name}`" for name in sorted(replay.header_names))
        notes.append(f"headers are not recorded: routes that match on {names} never match here")
    if replay.without_keys:
        names = ", ".join(f"`{name}`" for name in replay.without_keys)
        notes.append(f"no key is set here for {names}: simulated as if it were")
    unknown = [
        endpoint
        for endpoint in sorted(comparison.after.requests_by_endpoint)
        if endpoint not in profiles or profiles[endpoint].usual.ttft is None
    ]
    if unknown and comparison.after.unmeasured:
        names = ", ".join(f"`{name}`" for name in unknown)
        notes.append(f"the latency of {names} is not known: `--profiles` states it")
    if comparison.estimated:
        notes.append(f"{comparison.estimated} requests have no counted tokens: what was expected of them is assumed")
    return notes


def _replay(configuration: Configuration, prices: PriceBook, profiles: Mapping[str, Profile], seed: int) -> Replay:
    """Each configuration has its own contracts."""
    agreed = prices.under(configuration)
    return Replay(configuration, agreed, World(profiles, agreed, seed), seed)
