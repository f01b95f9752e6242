"""What a routing decision costs: matching a route, quoting and weighing 20 endpoints, ordering them.

    python -m bench.decision [--decisions 20000] [--against FOLDER]

Prints a table, and one JSON object as the last line. Everything that a policy can ask for is configured: 20 routes
(one with a window), requirements, data classes, a team's allow-list, limits on cost, price, TTFT and speed, a hard
budget, learned shares of cached input and lengths of output, stickiness, canaries, a hedge, a shadow, an escape.
The classifier and the reading of the request are not part of it. `cpu` is the thread's own time: a decision waits for
nothing, so that wall time beyond it is other work of the machine. Requests vary as they do in traffic: sizes, streams,
sessions, teams, tags, every twentieth with wishes. One decision after the other on one core, each timed on its own.
Nothing that was learned changes meanwhile. `--against`: the same with the `gateway` of another folder, by turns with
this one in processes of their own, and how many times as long it takes there at best.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from random import Random
from time import perf_counter_ns, thread_time_ns
from typing import Any

from gateway.accounting.prices import PriceBook
from gateway.config.compiler import compile_configuration
from gateway.config.document import Document
from gateway.config.model import Configuration
from gateway.routing.facts import Facts
from gateway.routing.placement import seed_of
from gateway.routing.planner import Planner
from gateway.routing.prospects import PriceTable, Quote, Target, Weighing
from gateway.routing.select import SELECTIONS, Asked
from gateway.routing.wishes import read_wishes
from gateway.types import EndpointHealth, Outlook, RouteHabits, Shift

ENDPOINTS = 20
TURNS = 4
CATALOGUE = ("gpt-4o-mini", "gpt-4o", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano")
"""Models whose prices are looked up; the other endpoints state theirs."""
AT = 1_780_000_000.0  # seconds since the epoch
NOW = 5_000.0  # of the loop's clock
SELECTS = ("cost", "latency", "balanced", "weighted", "priority")
TEAMS = ("payments", "search", "support")
SHIFT = Shift(escape_id="esc_1", source="e0", target="e7", share=0.1, shadow_share=0.1)


def configure(select: str) -> Configuration:
    ids = [f"e{number}" for number in range(ENDPOINTS)]
    policy: dict[str, Any] = {
        "endpoints": ids,
        "select": select,
        "require": {"region": ["eu", "us"], "freshness": "static"},
        "limits": {
            "max_cost_usd": Decimal("0.5"),
            "max_ttft": "5s",
            "max_price": {"input": 30, "output": 120},
            "min_tokens_per_second": 5,
        },
        "retry": {"attempts": 2},
        "hedge": {"after": "p95", "max_extra_cost": Decimal("0.03")},
        "sticky": "session",
        "canary": [{"endpoint": "e3", "percent": 5, "by": "session"}, {"endpoint": "e4", "percent": 1}],
        "shadow": {"endpoint": "e5", "percent": 1},
    }
    if select == "weighted":
        policy["weights"] = {id: number + 1 for number, id in enumerate(ids)}
    if select == "balanced":
        policy["balance"] = {"cost": 2, "latency": 1, "throughput": 1, "load": 1}
    routes: list[dict[str, Any]] = [
        {"match": {"model": f"team-{number}-*", "team": f"team-{number}"}, "policy": "main"} for number in range(16)
    ]
    routes += [
        {"match": {"domain": "finance", "tag": {"env": "test"}}, "policy": "main"},
        {"match": {"header": {"x-tier": "gold*"}, "stream": True}, "policy": "main"},
        {
            "match": {
                "model": "chat",
                "window": {"days": ["sat"], "from": "22:00", "to": "06:00", "zone": "Europe/Paris"},
            },
            "policy": "main",
        },
        {"match": {"model": "*"}, "policy": "main"},
    ]
    data = {
        "version": 1,
        "providers": {
            "openai": {"adapter": "openai", "api_key": "sk-bench"},
            "other": {"adapter": "openai-compatible", "base_url": "http://127.0.0.1:9/v1"},
        },
        "endpoints": {id: _endpoint(number) for number, id in enumerate(ids)},
        "policies": {"main": policy},
        "routes": routes,
        "domains": {"finance": {"keywords": ["invoice"]}},
        "teams": {
            "payments": {
                "data_class": "internal",
                "budget": {"usd": 500, "per": "month", "hard": True},
                "allow": {"endpoints": ["e*"], "regions": ["eu", "us"]},
            },
            "search": {"priority": 7},
        },
    }
    return compile_configuration(Document(data), {})


def _endpoint(number: int) -> dict[str, Any]:
    shared = {
        "region": ("eu", "us")[number % 2],
        "license": "apache-2.0",
        "freshness": "static",
        "data_classes": ["internal"],
        "context_window": 128_000,
    }
    if number % 4 == 0:
        return {"provider": "openai", "model": CATALOGUE[number // 4], **shared}
    price = {"input": Decimal(number) / 10, "output": Decimal(number) / 2, "cache_read": Decimal(number) / 40}
    return {"provider": "other", "model": f"m{number}", "price": price, **shared}


def look_out(rng: Random) -> Outlook:
    endpoints = {
        f"e{number}": EndpointHealth(
            ttft=rng.uniform(0.2, 2.0),
            in_flight=rng.randrange(20),
            ejected_until=NOW + 10 if number == 11 else 0.0,
            ttft_p95=3.0,
            seconds_per_token=rng.uniform(0.005, 0.03),
            cache_share=rng.random() * 0.8,
            admitted=0.5 if number == 12 else 1.0,
            samples=100.0,
        )
        for number in range(ENDPOINTS - 2)  # two were never used
    }
    routes = {
        f"route-{number}": RouteHabits(output_tokens=210.0, input_ratio=0.9, samples=500.0) for number in range(1, 21)
    }
    return Outlook(endpoints=endpoints, routes=routes, version="1")


def vary_facts(rng: Random, count: int) -> list[Facts]:
    wishes = [
        read_wishes(b'{"sort": "price", "ignore": ["e2"]}', None),
        read_wishes(b'{"order": ["e6", "other"], "max_price": {"prompt": 2}}', None),
        read_wishes(None, "nitro"),
    ]
    needs = [frozenset(chosen) for chosen in ((), ("stream",), ("stream", "tools"), ("json_schema",), ("vision",))]
    made = []
    for number in range(count):
        team = rng.choice(TEAMS)
        made.append(
            Facts(
                model=rng.choice(("chat", "gpt-4o", "auto")),
                stream=rng.random() < 0.6,
                input_tokens=int(rng.lognormvariate(6.5, 1.3)),
                needs=rng.choice(needs),  # type: ignore[arg-type] # words are capabilities
                team=team,
                key_id=f"key-{rng.randrange(50)}",
                output_limit=rng.choice((None, 256, 4096)),
                session=f"session-{rng.randrange(1000)}" if rng.random() < 0.8 else None,
                domain=rng.choice((None, "finance")),
                tags={"env": "prod", "app": f"app-{rng.randrange(9)}"},
                data_class="internal" if team == "payments" else None,
                headers={"x-tier": rng.choice(("gold-1", "silver"))},
                wishes=rng.choice(wishes) if number % 20 == 0 else None,
                budget_left=Decimal("120.5") if team == "payments" else None,
                at=AT + number * 0.01,
            )
        )
    return made


def decide(
    planner: Planner, outlook: Outlook, asked: Sequence[Facts], seed: int, clock: Callable[[], int] = perf_counter_ns
) -> list[int]:
    """Nanoseconds of each decision: the route and the plan."""
    rng, shifts = Random(seed), (SHIFT,)
    times = []
    for facts in asked:
        begin = clock()
        route = planner.match(facts)
        assert route is not None
        planner.plan(route, facts, outlook=outlook, now=NOW, rng=rng, shifts=shifts, with_costs=True)
        times.append(clock() - begin)
    return times


def percentile(times: Sequence[int], share: float) -> float:
    """In microseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] / 1000


def parts(
    planner: Planner, configuration: Configuration, quote: Quote, outlook: Outlook, asked: Sequence[Facts]
) -> dict[str, float]:
    """Microseconds of the median decision's parts."""
    routes = [planner.match(facts) for facts in asked]
    policy = configuration.policies["main"]
    prices = PriceTable(quote)
    targets = [Target.of(one, 0, (policy,), seed_of(id)) for id, one in configuration.endpoints.items()]
    matching, weighing, ordering = [], [], []
    for facts, route in zip(asked, routes, strict=True):
        assert route is not None
        begin = perf_counter_ns()
        planner.match(facts)
        matched = perf_counter_ns()
        found = Weighing(facts, outlook, route.name, prices, NOW, Random(1))
        between = perf_counter_ns()
        pool, _, _ = found.weigh(targets)
        weighed = perf_counter_ns()
        SELECTIONS[policy.select](pool, Asked(policy, 200.0, Random(1)))
        ordering.append(perf_counter_ns() - weighed)
        matching.append(matched - begin)
        weighing.append(weighed - between)
    taken = {"match": matching, "weigh": weighing, "select": ordering}
    return {name: round(percentile(times, 0.5), 1) for name, times in taken.items()}


def main() -> int:
    reader = argparse.ArgumentParser(description="what a routing decision costs")
    reader.add_argument("--decisions", type=int, default=20_000)
    reader.add_argument("--against", metavar="FOLDER")
    given = reader.parse_args()
    count = given.decisions
    prices = PriceBook()
    prices.load()
    asked = vary_facts(Random(1), count)
    outlook = look_out(Random(2))
    print(f"{count} decisions over {ENDPOINTS} endpoints, in microseconds")
    print(f"{'select':10} {'p50':>7} {'p99':>7} {'cpu p50':>8} {'cpu p99':>8}   of which at p50")
    results: dict[str, Any] = {}
    walls: list[int] = []
    cpus: list[int] = []
    gc.collect()
    gc.freeze()  # as a worker does with what it has when it starts to serve
    for select in SELECTS:
        configuration = configure(select)
        planner = Planner(configuration, prices.quote)
        decide(planner, outlook, asked[:1000], seed=1)
        wall = decide(planner, outlook, asked, seed=3)
        cpu = decide(planner, outlook, asked, seed=3, clock=thread_time_ns)
        walls += wall
        cpus += cpu
        shares = parts(planner, configuration, prices.quote, outlook, asked[:2000])
        shares["rest"] = round(percentile(wall, 0.5) - sum(shares.values()), 1)
        results[select] = {**_row(wall, cpu), "parts_us": shares}
        _show(select, results[select], "  ".join(f"{name} {value:.1f}" for name, value in shares.items()))
    whole = _row(walls, cpus)
    _show("all", whole, "")
    found = {"bench": "decision", "endpoints": ENDPOINTS, "decisions": count, **whole, "selects": results}
    if given.against is not None:
        found["against"] = _compare(Path(given.against), count)
        for select, ratio in found["against"].items():
            print(f"{select:10} takes {ratio:.2f} times as long there")
    print(json.dumps(found))
    return 0


def _compare(other: Path, count: int) -> dict[str, float]:
    """How many times as long a selection's median decision takes there: of the best of each side's turns."""
    here = Path(__file__).parent.parent
    best = {folder: dict.fromkeys(SELECTS, math.inf) for folder in (here, other)}
    for _ in range(TURNS):
        for folder, times in best.items():
            for select, row in _run_with(folder, count)["selects"].items():
                times[select] = min(times[select], row["cpu_p50_us"])
    return {select: round(best[other][select] / best[here][select], 3) for select in SELECTS}


def _run_with(folder: Path, count: int) -> dict[str, Any]:
    # -P: beside this file lies another `gateway`.
    command = [sys.executable, "-P", __file__, "--decisions", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(wall: Sequence[int], cpu: Sequence[int]) -> dict[str, Any]:
    return {
        "p50_us": percentile(wall, 0.5),
        "p99_us": percentile(wall, 0.99),
        "cpu_p50_us": percentile(cpu, 0.5),
        "cpu_p99_us": percentile(cpu, 0.99),
    }


def _show(name: str, row: dict[str, Any], told: str) -> None:
    wall, cpu = f"{row['p50_us']:7.1f} {row['p99_us']:7.1f}", f"{row['cpu_p50_us']:8.1f} {row['cpu_p99_us']:8.1f}"
    print(f"{name:10} {wall} {cpu}   {told}")


if __name__ == "__main__":
    sys.exit(main())
