"""Short chats beside a long prompt and long answers: how long each waits, by the engine's rules and without them.

    python -m bench.mixed_load [--model MODEL.gguf] [--threads N] [--prompt 2000] [--chats 8] [--only rules|plain]

Two long answers are being written when a long prompt arrives, and from then on a short chat every half second. Run
twice: by the rules of `local_engine/scheduler.py` with a budget that follows the measured time of steps, and plainly:
first come first served, every prompt whole in one step. Prints a table, and one JSON object as the last line.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
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
APART_SECONDS = 0.5  # between the chats


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


def request(dice: random.Random, id: int, prompt: int, max_tokens: int) -> Request:
    """Random ids, so that no prefix is shared and no guess is right; runs to its `max_tokens`."""
    return Request([dice.randrange(100, 40_000) for _ in range(prompt)], max_tokens, id=id, ignore_end=True)


def play(engine: Engine, prompt: int, chats: int) -> dict[str, Any]:
    dice = random.Random(1)
    timelines: dict[int, Timeline] = {}
    steps: list[float] = []
    clock = time.monotonic

    def add(request: Request, arrival: float) -> None:
        timelines[request.id] = Timeline(arrival)
        engine.add(request)

    def step() -> None:
        began = clock()
        deltas = engine.step()
        now = clock()
        steps.append(now - began)
        for delta in deltas:
            times = timelines[delta.request_id].times
            times += [now] * (delta.completion_tokens - len(times))

    answers = [0, 1]
    for id in answers:
        add(request(dice, id, ANSWER_PROMPT, ANSWER_TOKENS), clock())
    while any(len(timelines[id].times) < 8 for id in answers):
        step()
    steps.clear()
    begin = clock()
    for id in answers:
        timelines[id].times = timelines[id].times[-1:]
    known = {id: engine_tokens(engine, id) for id in answers}
    long, first = 2, 3
    todo = [(begin, request(dice, long, prompt, 4))]
    todo += [
        (begin + APART_SECONDS * (n + 0.2), request(dice, first + n, CHAT_PROMPT, CHAT_TOKENS)) for n in range(chats)
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
    return {
        "chat_ttft_p50_s": statistics.median(chat_ttft),
        "chat_ttft_p95_s": chat_ttft[min(chats - 1, int(0.95 * chats))],
        "chat_done_p50_s": statistics.median(
            timelines[first + n].times[-1] - timelines[first + n].arrival for n in range(chats)
        ),
        "long_ttft_s": timelines[long].ttft,
        "largest_gap_s": max(timelines[id].largest_gap for id in answers),
        "step_p50_s": statistics.median(steps),
        "step_max_s": max(steps),
        "steps": len(steps),
        "seconds": seconds,
        "answer_tokens": written,
    }


def engine_tokens(engine: Engine, id: int) -> int:
    """Tokens generated so far for an open request."""
    return next(sequence.completion_tokens for sequence, g in engine._open.items() if g.request.id == id)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of the long prompt")
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--only", choices=["rules", "plain"])
    options = parser.parse_args()
    config = EngineConfig(threads=options.threads, max_running=options.chats + 4, draft="off", cache_folder=None)
    results: dict[str, dict[str, Any]] = {}
    for name in [options.only] if options.only else ["rules", "plain"]:
        if name == "plain":
            limit = options.prompt + 8 * (options.chats + 4)
            config = EngineConfig(
                threads=options.threads,
                max_running=config.max_running,
                draft="off",
                cache_folder=None,
                token_budget=max(limit, 8192),
            )
        engine = Engine.load(options.model, config)
        if name == "plain":
            old = engine.scheduler
            engine.scheduler = PlainScheduler(old.blocks, max_running=old.max_running, max_waiting=old.max_waiting)
        results[name] = play(engine, options.prompt, options.chats)
        engine.close()
    print(f"{'':20}" + "".join(f"{name:>12}" for name in results))
    for key in next(iter(results.values())):
        print(f"{key:20}" + "".join(f"{result[key]:12.3f}" for result in results.values()))
    rounded = {name: {k: round(v, 4) for k, v in result.items()} for name, result in results.items()}
    print(json.dumps({"prompt": options.prompt, "chats": options.chats, **rounded}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
