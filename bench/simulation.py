"""How well `cost` and `latency` choose, beside oracles: two hours of production traffic through the planner itself.

    python -m bench.simulation --traces FOLDER [--seed 0]

FOLDER holds the Azure LLM inference traces of 2023 (`AzureLLMInferenceTrace_conv.csv`, `..._code.csv`; CC-BY 4.0,
github.com/Azure/AzurePublicDataset). Three synthetic endpoints: which one is cheapest depends on how much a request
reads and writes, and the usually fastest one degrades for twenty minutes. Prints a table, and one JSON object as the
last line.

    cost oracle      knows each answer's length, and takes the cheapest endpoint of each request
    latency oracle   knows how each endpoint is at each moment (its distribution), and takes the lowest expected TTFT
    clairvoyant      knows each draw, and takes the lowest TTFT of each request: nobody can
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.accounting.prices import PriceBook
from gateway.config.compiler import compile_configuration
from gateway.config.document import Document
from gateway.config.model import Configuration, Endpoint
from gateway.simulation.comparison import quantile
from gateway.simulation.profiles import Behaviour, Profile
from gateway.simulation.replay import Replay
from gateway.simulation.traffic import Arrival
from gateway.simulation.world import Answer, World
from gateway.traces import read_traces

FILES = {"conv": "AzureLLMInferenceTrace_conv.csv", "code": "AzureLLMInferenceTrace_code.csv"}
MINUTE = 60.0

PRICES = {  # USD per million tokens
    "reader": {"input": 0.15, "output": 0.60},  # as most providers: what is written costs four times what is read
    "flat": {"input": 0.25, "output": 0.25},
    "writer": {"input": 0.40, "output": 0.10},
}
PROFILES = {
    "reader": Profile(
        Behaviour(ttft=(0.25, 0.60), seconds_per_token=1 / 80),
        (Behaviour(ttft=(2.5, 6.0), seconds_per_token=1 / 20, since=20 * MINUTE, until=40 * MINUTE),),
    ),
    "flat": Profile(Behaviour(ttft=(0.40, 0.90), seconds_per_token=1 / 60)),
    "writer": Profile(Behaviour(ttft=(0.70, 1.50), seconds_per_token=1 / 40)),
}


class Run:
    """What one way of choosing came to. `choose` gives the answer that the client gets."""

    def __init__(self, name: str, choose: Callable[[Arrival], Answer]) -> None:
        self.name = name
        self.cost = Decimal(0)
        self.ttft = array("d")
        self.seconds = 0.0
        self._choose = choose

    def take(self, arrival: Arrival) -> None:
        started = time.perf_counter()
        answer = self._choose(arrival)
        self.seconds += time.perf_counter() - started
        assert answer.cost is not None and answer.ttft is not None
        self.cost += answer.cost
        self.ttft.append(answer.ttft)


def configuration(select: str) -> Configuration:
    """A route for each trace: each learns its own lengths."""
    return compile_configuration(
        Document(
            {
                "version": 1,
                "providers": {"p": {"adapter": "openai", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}},
                "endpoints": {name: {"provider": "p", "model": name, "price": price} for name, price in PRICES.items()},
                "routes": [{"name": name, "match": {"model": name}, "policy": "p"} for name in FILES],
                "policies": {"p": {"endpoints": list(PRICES), "select": select}},
            }
        ),
        {},
    )


def runs(world: World, prices: PriceBook, endpoints: list[Endpoint], seed: int) -> list[Run]:
    def planned(select: str) -> Callable[[Arrival], Answer]:
        replay = Replay(configuration(select), prices, world, seed)
        by_id = {endpoint.id: endpoint for endpoint in endpoints}

        def choose(arrival: Arrival) -> Answer:
            served = replay.take(arrival).endpoint
            assert served is not None
            return world.answer(arrival, by_id[served])

        return choose

    turns = iter(range(sys.maxsize))

    def in_turn(arrival: Arrival) -> Answer:
        return world.answer(arrival, endpoints[next(turns) % len(endpoints)])

    def cheapest(arrival: Arrival) -> Answer:
        return min((world.answer(arrival, endpoint) for endpoint in endpoints), key=cost_of)

    def fastest_expected(arrival: Arrival) -> Answer:
        return world.answer(arrival, min(endpoints, key=lambda e: world.profiles[e.id].at(arrival.at).mean_ttft or 0.0))

    def fastest(arrival: Arrival) -> Answer:
        return min((world.answer(arrival, endpoint) for endpoint in endpoints), key=lambda a: a.ttft or 0.0)

    return [
        Run("cost", planned("cost")),
        Run("cost oracle", cheapest),
        Run("latency", planned("latency")),
        Run("latency oracle", fastest_expected),
        Run("clairvoyant", fastest),
        Run("balanced", planned("balanced")),
        Run("priority", planned("priority")),
        Run("round robin", in_turn),
    ]


def cost_of(answer: Answer) -> Decimal:
    assert answer.cost is not None
    return answer.cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, help="the folder with the two files")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    arrivals = list(read_traces({model: options.traces / name for model, name in FILES.items()}))
    world = World(
        {name: profile.started(arrivals[0].at) for name, profile in PROFILES.items()}, PriceBook(), options.seed
    )
    endpoints = list(configuration("priority").endpoints.values())
    made = runs(world, PriceBook(), endpoints, options.seed)
    for arrival in arrivals:
        for run in made:
            run.take(arrival)
    figures = {run.name: figures_of(run, len(arrivals)) for run in made}
    print(f"{len(arrivals)} requests in {(arrivals[-1].at - arrivals[0].at) / MINUTE:.0f} minutes")
    print(f"{'':16}{'cost USD':>12}{'TTFT p50 s':>12}{'p95 s':>8}{'us/request':>12}")
    for name, row in figures.items():
        print(f"{name:16}{row['usd']:>12.4f}{row['p50_s']:>12.3f}{row['p95_s']:>8.3f}{row['us']:>12.0f}")
    result = {
        "benchmark": "simulation",
        "requests": len(arrivals),
        "seed": options.seed,
        "cost_over_oracle": round(figures["cost"]["usd"] / figures["cost oracle"]["usd"] - 1, 4),
        "ttft_p95_x_oracle": round(figures["latency"]["p95_s"] / figures["latency oracle"]["p95_s"], 3),
        "ttft_p95_x_clairvoyant": round(figures["latency"]["p95_s"] / figures["clairvoyant"]["p95_s"], 3),
        "runs": {name: {key: round(value, 6) for key, value in row.items()} for name, row in figures.items()},
    }
    over, times = result["cost_over_oracle"], result["ttft_p95_x_oracle"]
    print(f"cost: {over:+.2%} over its oracle; latency: p95 {times}x its oracle")
    print(json.dumps(result))


def figures_of(run: Run, requests: int) -> dict[str, Any]:
    p50, p95 = quantile(run.ttft, 0.5), quantile(run.ttft, 0.95)
    assert p50 is not None and p95 is not None
    return {"usd": float(run.cost), "p50_s": p50, "p95_s": p95, "us": run.seconds / requests * 1e6}


if __name__ == "__main__":
    main()
