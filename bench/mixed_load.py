"""Short chats beside a long prompt and long answers: how long each waits, by the engine's rules and without them.

    python -m bench.mixed_load [--model MODEL.gguf] [--prompt 2000] [--chats 8] [--rounds N] [--only rules|plain]

Two long answers are being written when a long prompt arrives, and from then on short chats, spread over the time that
the prompt takes alone. Run twice: by the rules of `local_engine/scheduler.py` with a budget that follows the measured
time of steps, and plainly: first come first served, every prompt whole in one step. By the rules two bounds hold:
- the chats' 95th percentile of the time to the first token is at most three chunk times (the median time of a step
  that reads a part of the long prompt);
- no gap in a running answer is over twice the target (`EngineConfig.step_seconds`).
Prints a table, medians of all rounds, and one JSON object as the last line.
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `python -m local_engine` sets it

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from local_engine.config import EngineConfig  # noqa: E402 - after the path and the OpenMP setting
from local_engine.engine import Engine  # noqa: E402
from local_engine.request import Request  # noqa: E402
from local_engine.scheduler import Scheduler  # noqa: E402
from local_engine.sequence import Sequence  # noqa: E402

HOME = Path(os.environ.get("HATCHWAY_HOME") or Path.home() / ".hatchway")
BUNDLED = HOME / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT_PROMPT, CHAT_TOKENS = 30, 12
ANSWER_PROMPT, ANSWER_TOKENS = 20, 400  # ended when everything else has
CHUNKS = 3.0  # chunk times that a chat may wait for its first token
TARGETS = 2.0  # times the target that a gap may be


class PlainScheduler(Scheduler):
    """First come, first served: the line is in order of arrival, and a prompt takes all that it can use."""

    def _line(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        return sorted(sequences, key=lambda s: s.ticket)


@dataclass
class Timeline:
    """What happened to one request; seconds from its arrival."""

    arrival: float
    times: list[float] = field(default_factory=list)  # when each token was known

    @property
    def ttft(self) -> float:
        return self.times[0] - self.arrival

    @property
    def largest_gap(self) -> float:
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)


class Requests:
    """Of random ids, so that no prefix is shared and no guess is right; each runs to its `max_tokens`."""

    def __init__(self, engine: Engine, seed: str) -> None:
        self._dice = random.Random(seed)
        self._end = min(40_000, engine.runner.model.config.vocab_size)

    def make(self, id: int, prompt: int, max_tokens: int) -> Request:
        return Request([self._dice.randrange(100, self._end) for _ in range(prompt)], max_tokens, id, ignore_end=True)


def reading_seconds(engine: Engine, prompt: int, seed: str) -> float:
    """How long the long prompt takes alone."""
    began = time.monotonic()
    engine.add(Requests(engine, seed).make(0, prompt, 1))
    while engine.has_work:
        engine.step()
    return time.monotonic() - began


def play(engine: Engine, prompt: int, chats: int, spread: float, seed: str) -> dict[str, float]:
    """`spread`: seconds over which the chats arrive."""
    requests = Requests(engine, seed)
    timelines: dict[int, Timeline] = {}
    steps: list[float] = []
    chunk_steps: list[float] = []
    clock = time.monotonic

    def add(request: Request, arrival: float) -> None:
        timelines[request.id] = Timeline(arrival)
        engine.add(request)

    def step() -> None:
        read, began = engine.stats.prompt_tokens, clock()
        deltas = engine.step()
        now = clock()
        steps.append(now - began)
        if engine.stats.prompt_tokens > read and long in timelines and not timelines[long].times:
            chunk_steps.append(now - began)
        for delta in deltas:
            times = timelines[delta.request_id].times
            times += [now] * (delta.completion_tokens - len(times))

    answers, long, first = [0, 1], 2, 3
    for id in answers:
        add(requests.make(id, ANSWER_PROMPT, min(ANSWER_TOKENS, engine.context_length - ANSWER_PROMPT)), clock())
    while any(len(timelines[id].times) < 8 for id in answers):
        step()
    steps.clear()
    begin = clock()
    for id in answers:
        timelines[id].times = timelines[id].times[-1:]
    known = {id: engine_tokens(engine, id) for id in answers}
    todo = [(begin, requests.make(long, prompt, 4))]
    todo += [
        (begin + spread * (n + 0.5) / chats, requests.make(first + n, CHAT_PROMPT, CHAT_TOKENS)) for n in range(chats)
    ]
    while todo or engine.stats.running > len(answers) or engine.stats.waiting:
        while todo and todo[0][0] <= clock():
            arrival, due = todo.pop(0)
            add(due, arrival)
        step()
    seconds = clock() - begin
    written = sum(engine_tokens(engine, id) - known[id] for id in answers)
    for id in answers:
        engine.cancel(id)
    chat_ttft = sorted(timelines[first + n].ttft for n in range(chats))
    chat_p95 = chat_ttft[math.ceil(0.95 * chats) - 1]
    # by the rules the last step of a prompt reads what is left, and gives its first token
    chunk = statistics.median(chunk_steps)
    gap = max(timelines[id].largest_gap for id in answers)
    return {
        "chat_ttft_p50_s": statistics.median(chat_ttft),
        "chat_ttft_p95_s": chat_p95,
        "chat_done_p50_s": statistics.median(
            timelines[first + n].times[-1] - timelines[first + n].arrival for n in range(chats)
        ),
        "long_ttft_s": timelines[long].ttft,
        "largest_gap_s": gap,
        "chunk_p50_s": chunk,
        "chunks": len(chunk_steps),
        "step_p50_s": statistics.median(steps),
        "step_max_s": max(steps),
        "steps": len(steps),
        "seconds": seconds,
        "answer_tokens": written,
        "ttft_in_chunks": chat_p95 / chunk,
        "gap_in_targets": gap / engine.config.step_seconds,
    }


def engine_tokens(engine: Engine, id: int) -> int:
    """Tokens generated so far for an open request."""
    return next(sequence.completion_tokens for sequence, g in engine._open.items() if g.request.id == id)


def load(name: str, options: argparse.Namespace) -> Engine:
    """An engine that goes by the rules, or plainly."""
    config = EngineConfig(
        threads=options.threads, kernels=options.kernels, max_running=options.chats + 4, draft="off", cache_folder=None
    )
    if name == "rules":
        return Engine.load(options.model, config)
    limit = options.prompt + 8 * (options.chats + 4)
    engine = Engine.load(options.model, replace(config, token_budget=max(limit, 8192)))
    old = engine.scheduler
    engine.scheduler = PlainScheduler(old.blocks, max_running=old.max_running, max_waiting=old.max_waiting)
    return engine


def verdicts(rules: dict[str, float], target: float) -> dict[str, bool]:
    """Prints both figures beside their bounds."""
    kept = {"ttft": rules["ttft_in_chunks"] <= CHUNKS, "gap": rules["gap_in_targets"] <= TARGETS}
    ttft, chunk, gap = (1000 * rules[name] for name in ("chat_ttft_p95_s", "chunk_p50_s", "largest_gap_s"))
    print(
        f"p95 of the chats' first token {ttft:.0f} ms, {rules['ttft_in_chunks']:.2f} chunks of {chunk:.0f} ms; "
        f"bound {CHUNKS:.0f}: {'kept' if kept['ttft'] else 'BROKEN'}"
    )
    print(
        f"largest gap in an answer {gap:.0f} ms, {rules['gap_in_targets']:.2f} times the target of "
        f"{1000 * target:.0f} ms; bound {TARGETS:.0f}: {'kept' if kept['gap'] else 'BROKEN'}"
    )
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--kernels", default="auto", choices=("auto", "cpu", "reference"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of the long prompt")
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1, help="each way that many times, taking turns")
    parser.add_argument("--only", choices=["rules", "plain"])
    options = parser.parse_args()
    engines = {name: load(name, options) for name in ([options.only] if options.only else ["rules", "plain"])}
    played: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    any_engine = next(iter(engines.values()))
    spread = min(reading_seconds(any_engine, options.prompt, f"alone {turn}") for turn in range(2))
    for turn in range(options.rounds):
        for name, engine in engines.items():
            played[name].append(play(engine, options.prompt, options.chats, spread, f"{name} {turn}"))
    results = {
        name: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for name, runs in played.items()
    }
    print(f"{'':20}" + "".join(f"{name:>12}" for name in results))
    for key in next(iter(results.values())):
        print(f"{key:20}" + "".join(f"{result[key]:12.3f}" for result in results.values()))
    told: dict[str, Any] = {"bench": "mixed_load", "prompt": options.prompt, "chats": options.chats}
    told |= {"rounds": options.rounds, "kernels": any_engine.runner.model.backend.name, "spread_s": round(spread, 4)}
    if "rules" in results:
        target = engines["rules"].config.step_seconds
        told |= {"target_s": target, "kept": verdicts(results["rules"], target)}
        for key in ("ttft_in_chunks", "gap_in_targets"):
            told[key] = [round(one[key], 3) for one in played["rules"]]
    for engine in engines.values():
        engine.close()
    rounded = {name: {k: round(v, 4) for k, v in result.items()} for name, result in results.items()}
    print(json.dumps(told | rounded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
