"""A run of the benchmark: targets take turns in each round, and every other round goes in the opposite order."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.benchmark import servers
from gateway.benchmark.client import Outcome, run_paced, run_unpaced
from gateway.benchmark.machine import (
    IS_LINUX,
    BenchmarkError,
    Processors,
    choose_processors,
    cpu_seconds,
    largest_resident_mb,
    pinned,
    proportional_mb,
    raise_descriptor_limit,
)
from gateway.benchmark.profile import profile
from gateway.benchmark.targets import (
    WARM_SECONDS,
    Named,
    Target,
    check_own_ledger,
    opened_named,
    opened_own,
    reference,
    translated,
    warm_up,
)
from gateway.benchmark.wire import KINDS, Kind
from gateway.benchmark.wrk import has_wrk, run_wrk

SCENARIOS = ("json-1", "json-32", "json-128", "sse-32", "paced-200@20", "paced-1000@100")
LONGEST_SECONDS = 20
"""Of one measurement of a target that is so slow that the usual time holds too few answers."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    """`tick_ms`: between two chunks of a paced stream."""

    name: str
    kind: Kind
    connections: int
    tick_ms: int = 0

    @classmethod
    def parse(cls, name: str) -> Scenario:
        """`json-N`, `sse-N` or `paced-N@MS`. Raises BenchmarkError."""
        found = re.fullmatch(r"(json|sse)-([1-9]\d{0,4})|paced-([1-9]\d{0,4})@([1-9]\d{0,2})", name)
        if found is None:
            raise BenchmarkError(
                f"there is no scenario `{name}`\n"
                "hint: `json-N` and `sse-N` have N connections, `paced-N@MS` has N streams with a chunk every MS ms"
            )
        if found[3]:
            return cls(name, "paced", int(found[3]), int(found[4]))
        return cls(name, "json" if found[1] == "json" else "sse", int(found[2]))


@dataclass(frozen=True)
class Plan:
    """`workers`, `telemetry`: of our own gateways, one for each pair. `seconds`: of one measurement."""

    scenarios: tuple[Scenario, ...]
    rounds: int = 3
    seconds: float = 2.0
    workers: tuple[int, ...] = (1,)
    telemetry: tuple[str, ...] = ("off",)
    others: tuple[Named, ...] = ()
    with_bare: bool = False
    with_translated: bool = False
    with_profile: bool = False
    is_pinned: bool = True
    has_own_load: bool = False
    upstream_port: int = 0

    @property
    def uses_wrk(self) -> bool:
        return has_wrk() and not self.has_own_load


def run(plan: Plan, folder: Path, say: Callable[[str], None], warn: Callable[[str], None]) -> dict[str, Any]:
    """Returns medians of every figure by scenario and target, ratios, ledger checks, and what was left out.

    `folder`: empty, for homes, logs and scripts. `say`: takes progress. Raises BenchmarkError.
    """
    processors = choose_processors(plan.is_pinned)
    if plan.is_pinned and processors.load is None:
        why = "there is only one processor" if IS_LINUX else "this system does not let them be pinned"
        warn(f"gateways, load and upstream share what there is: {why}. Compare rows with each other only")
    if not servers.has_nginx():
        warn("there is no `nginx` on the PATH: its row is missing (Debian: `apt-get install nginx-light`)")
    if not plan.uses_wrk and not plan.has_own_load:
        warn("there is no `wrk` on the PATH: our own client makes the load (Debian: `apt-get install wrk`)")
    raise_descriptor_limit()
    load_average = os.getloadavg()[0]
    with contextlib.ExitStack() as owned:
        owned.enter_context(pinned(processors.load))
        targets = _open_targets(plan, folder, processors, owned, say)
        kinds = [kind for kind in KINDS if any(scenario.kind == kind for scenario in plan.scenarios)]
        for target in targets:
            say(f"trying {target.name}")
            warm_up(target, kinds, min(WARM_SECONDS, plan.seconds), warn)
        rounds = _take_turns(plan, targets, folder, say)
        profiles = {}
        if plan.with_profile:
            own = next(target for target in targets if target.gateway is not None)
            profiles[own.name] = profile(
                own, _load_of(plan, Scenario("json-32", "json", 32), own, folder), plan.seconds
            )
        own_targets = [target for target in targets if target.gateway and not target.name.endswith("-translated")]
        ledgers = {target.name: check_own_ledger(target, targets).as_dict() for target in own_targets}
    names = [target.name for target in targets]
    figures = {
        scenario.name: {name: medians(rounds[scenario.name, name]) for name in names if rounds[scenario.name, name]}
        for scenario in plan.scenarios
    }
    for rows in figures.values():
        _add_latencies(rows)
    first = own_targets[0].name
    return {
        "benchmark": "gateway",
        "load": "wrk" if plan.uses_wrk else "own",
        "pinned": processors.load is not None,
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "scenarios": figures,
        "ratios": {name: ratios(rows, first) for name, rows in figures.items()},
        "ledger": ledgers,
        "left_out": {target.name: target.left_out for target in targets if target.left_out},
        "failed": _failed(figures, {target.name for target in targets if target.is_foreign}, ledgers),
        **({"profile": profiles} if profiles else {}),
        "cpus": os.cpu_count(),
        "load_average_before": round(load_average, 2),
        "python": sys.version.split()[0],
    }


def _open_targets(
    plan: Plan, folder: Path, processors: Processors, owned: contextlib.ExitStack, say: Callable[[str], None]
) -> list[Target]:
    say("starting the upstream")
    port_option = ("--port", str(plan.upstream_port))
    _, port = owned.enter_context(servers.module("upstream", *port_option, processor=processors.load))
    upstream = f"http://127.0.0.1:{port}"
    targets = [reference("direct", port)]
    if plan.with_bare:
        bare = servers.module("bare", "--upstream", str(port), processor=processors.gateway)
        process, bare_port = owned.enter_context(bare)
        targets.append(reference("bare", bare_port, process))
    if servers.has_nginx():
        process, nginx_port = owned.enter_context(servers.nginx(folder, port, processors.gateway))
        targets.append(reference("nginx", nginx_port, process))
    for workers in plan.workers:
        for telemetry in plan.telemetry:
            name = "hatchway"
            name += f"-{workers}w" if workers != plan.workers[0] else ""
            name += f"-{telemetry}" if telemetry != plan.telemetry[0] else ""
            say(f"starting {name}: {workers} worker{'s' * (workers > 1)}, telemetry {telemetry}")
            target = owned.enter_context(opened_own(name, folder, upstream, processors, workers, telemetry))
            targets.append(target)
            if plan.with_translated and target.name == "hatchway":
                targets.append(translated(target))
    for named in plan.others:
        say(f"starting {named.name}" if named.command else f"looking for {named.name}")
        targets.append(owned.enter_context(opened_named(named, folder, upstream, processors)))
    return targets


# -- measuring --------------------------------------------------------------------------------------------------------


def _take_turns(
    plan: Plan, targets: Sequence[Target], folder: Path, say: Callable[[str], None]
) -> dict[tuple[str, str], list[Figures]]:
    rounds: dict[tuple[str, str], list[Figures]] = collections.defaultdict(list)
    for number in range(plan.rounds):
        drowned: set[str] = set()  # a heavier load would only measure their backlog
        for scenario in plan.scenarios:
            for target in targets if number % 2 == 0 else targets[::-1]:
                if scenario.kind in target.left_out or (scenario.kind == "paced" and target.name in drowned):
                    continue
                figures = _measure(plan, scenario, target, folder, say)
                if figures.get("finished") == 0:
                    drowned.add(target.name)
                rounds[scenario.name, target.name].append(figures)
                text = " ".join(f"{name}={shown(value)}" for name, value in figures.items())
                say(f"round {number + 1} {scenario.name} {target.name}: {text}")
    return rounds


def _load_of(plan: Plan, scenario: Scenario, target: Target, folder: Path) -> Callable[[float], Outcome]:
    """The scenario's load on the target, for as many seconds as it is given."""
    place = target.place(scenario.kind)

    def go(seconds: float) -> Outcome:
        if scenario.kind == "paced":  # twice as long: its first second does not count
            return run_paced(place, scenario.connections, scenario.tick_ms, 2 * seconds)
        for_three_each = 3 * scenario.connections / target.rates.get(scenario.kind, math.inf)
        seconds = max(seconds, min(LONGEST_SECONDS, for_three_each))
        if plan.uses_wrk:
            return run_wrk(place, scenario.kind, scenario.connections, math.ceil(seconds), folder)
        return run_unpaced(place, scenario.kind, scenario.connections, seconds)

    return go


def _measure(plan: Plan, scenario: Scenario, target: Target, folder: Path, say: Callable[[str], None]) -> Figures:
    """One round's figures of one target."""
    before, before_all = cpu_seconds(target.serving), cpu_seconds(target.roots)
    try:
        outcome = _load_of(plan, scenario, target, folder)(plan.seconds)
    except OSError as error:
        raise BenchmarkError(f"`{target.name}` cannot be reached any more: {error}") from None
    if target.gateway is not None or target.is_foreign:
        target.settle()
    target.count(outcome)
    if outcome.complaint:
        say(f"{scenario.name} {target.name}: {outcome.complaint}")
    figures = outcome.figures
    chunks = figures.pop("chunks", 0.0)
    if scenario.kind == "sse":
        figures["chunks_per_s"] = figures["per_s"] * target.events
    if target.serving and IS_LINUX:
        amount, scale = (chunks, 1e6) if scenario.kind == "paced" else (float(outcome.answered), 1e3)
        amount = amount or math.nan
        figures["cpu"] = (cpu_seconds(target.serving) - before) / amount * scale
        figures["cpu_all"] = (cpu_seconds(target.roots) - before_all) / amount * scale
        figures["rss_mb"] = largest_resident_mb(target.serving)
        figures["pss_all_mb"] = proportional_mb(target.roots)
    return figures


def medians(rounds: Sequence[Figures]) -> Figures:
    """Of each figure. Errors are added up: one must not hide behind a median."""
    names = {name: None for one in rounds for name in one}
    found = {name: statistics.median(one[name] for one in rounds if name in one) for name in names}
    found["errors"] = sum(one["errors"] for one in rounds)
    return found


def _add_latencies(rows: dict[str, Figures]) -> None:
    """What a target adds to the upstream's own, reached directly by the same load."""
    direct = rows.get("direct", {})
    for name, row in rows.items():
        for field in ("p50_ms", "p99_ms", "ttft_p50_ms", "ttft_p99_ms"):
            if name != "direct" and field in row and field in direct:
                row[f"added_{field}"] = row[field] - direct[field]


def ratios(rows: dict[str, Figures], first: str) -> dict[str, dict[str, float]]:
    """`rate`: answers (or chunks of paced streams) a second of `first` as a multiple of each other target's. `cpu`: the
    same of the processor time of everything that runs for it."""
    own = rows.get(first)
    if own is None:
        return {}
    found: dict[str, dict[str, float]] = {"rate": {}, "cpu": {}}
    for name, row in rows.items():
        if name == first:
            continue
        main = "per_s" if "per_s" in own else "chunks_per_s"
        found["rate"][name] = own[main] / (row[main] or math.nan)
        if "cpu_all" in own and "cpu_all" in row:
            found["cpu"][name] = own["cpu_all"] / (row["cpu_all"] or math.nan)
    return found


def _failed(figures: dict[str, dict[str, Figures]], foreign: set[str], ledgers: dict[str, dict[str, Any]]) -> list[str]:
    """Why the run does not count; empty: it does. Other gateways' errors are their own."""
    wrong = [
        f"{row['errors']:.0f} requests of `{name}` failed in {scenario}"
        for scenario, rows in figures.items()
        for name, row in rows.items()
        if row["errors"] and name not in foreign
    ]
    return wrong + [f"the ledger of `{name}` is not exact" for name, ledger in ledgers.items() if not ledger["exact"]]


def shown(value: float | None) -> str:
    """Three digits, or all before the point."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
