"""What speculation brings: the same answers with and without it, on prompts that are copied from and on plain chat.

    python -m bench.speculation [--model MODEL] [--draft ngram|PATH] [--rounds N] [--together N]

Each prompt is answered in turn without and with guesses, in one engine, greedily; the tokens must be identical. Speeds
are of decoding only, from the first token on. CPU time is of all threads of this process: on a machine that others use
too, its ratio is the better one. Ends with one JSON object.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `python -m local_engine` sets it

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from local_engine.config import EngineConfig  # noqa: E402 - after the path and the OpenMP setting
from local_engine.engine import Engine  # noqa: E402
from local_engine.request import Request  # noqa: E402
from local_engine.speculation import Speculation  # noqa: E402

HOME = Path(os.environ.get("HATCHWAY_HOME") or Path.home() / ".hatchway")
BUNDLED = HOME / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"

CODE = """def area(shapes):
    total = 0
    for shape in shapes:
        if shape.kind == "circle":
            total += 3.14159 * shape.radius * shape.radius
        elif shape.kind == "square":
            total += shape.side * shape.side
        elif shape.kind == "rectangle":
            total += shape.width * shape.height
    return total
"""
LETTER = """Dear Mr. Thompson,
Thank you for your letter of 3 March. The delivery of the twelve oak chairs to our house in Bristol has been delayed
by the heavy snow on the northern roads. We expect the driver on Thursday morning between nine and eleven. Please let
us know by telephone if nobody is at home at that time, so that we can find another day.
With kind regards, Anna Petersen"""
TABLE = "\n".join(f"{name}, {year}, {city}" for name, year, city in [
    ("Amelia Carter", 1987, "Lisbon"), ("Benedict Shaw", 1991, "Toronto"), ("Clara Novak", 1979, "Prague"),
    ("Dmitri Orlov", 2001, "Helsinki"), ("Elena Ricci", 1995, "Bologna"), ("Farid Haddad", 1983, "Amman"),
    ("Grace Okafor", 1999, "Lagos"), ("Hugo Lindqvist", 1975, "Uppsala"),
])  # fmt: skip
PROMPTS = {
    "copy": [
        f"Repeat the following text word for word:\n\n{LETTER}",
        f"Copy this Python function exactly:\n\n```python\n{CODE}```",
        f"Repeat this list exactly, line by line:\n\n{TABLE}",
        f"Rename the variable `total` to `result` in this function and print all of it:\n\n```python\n{CODE}```",
    ],
    "chat": [
        "What are three good reasons to learn how to cook?",
        "Explain to a child why the sky is blue.",
        "Write a short story about a lighthouse keeper and a gull.",
        "How do I prepare for a job interview?",
    ],
}


@dataclass(slots=True)
class Measured:
    tokens: int = 0  # decoded, the first of each answer left out
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    steps: int = 0
    proposed: int = 0
    accepted: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "tok_s": round(self.tokens / self.seconds, 2),
            "tok_cpu_s": round(self.tokens / self.cpu_seconds, 2),
            "tokens_per_step": round(self.tokens / self.steps, 2),
            "proposed": self.proposed,
            "accepted": self.accepted,
        }


def answer(engine: Engine, prompts: list[list[int]], salt: str, into: Measured, max_tokens: int) -> list[list[int]]:
    """Answers the prompts together, and adds up what it took from where all have begun."""
    for index, prompt in enumerate(prompts):
        engine.add(Request(prompt, max_tokens, id=index, salt=salt.encode()))
    sequences = [generation.sequence for generation in engine._open.values()]
    while any(not sequence.completion_tokens for sequence in sequences):
        engine.step()
    stats = engine.stats
    before = stats.steps, stats.draft_tokens, stats.accepted_tokens, sum(s.completion_tokens for s in sequences)
    began, cpu = time.perf_counter(), time.process_time()
    while engine.has_work:
        engine.step()
    into.seconds += time.perf_counter() - began
    into.cpu_seconds += time.process_time() - cpu
    into.steps += stats.steps - before[0]
    into.proposed += stats.draft_tokens - before[1]
    into.accepted += stats.accepted_tokens - before[2]
    into.tokens += sum(s.completion_tokens for s in sequences) - before[3]
    return [sequence.tokens[sequence.prompt_tokens :] for sequence in sequences]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--draft", default="ngram", help="ngram, or the path of a draft model")
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="each prompt that many times, each way")
    parser.add_argument("--together", type=int, default=1, help="prompts answered at once")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    config = EngineConfig(draft=options.draft, draft_tokens=options.draft_tokens, threads=options.threads)
    engine = Engine.load(options.model, config)
    guessing, silent = engine.speculation, Speculation(None, 0, engine.pace.seconds_of)
    results: dict[str, Any] = {"draft": options.draft, "together": options.together, "load": os.getloadavg()[0]}
    same = True
    print(f"{'':6} {'':5} {'tok/s':>7} {'tok/CPU s':>10} {'tok/step':>9} {'proposed':>9} {'accepted':>9}")
    for kind, texts in PROMPTS.items():
        prompts = [engine.template.encode([{"role": "user", "content": text}]).ids for text in texts]
        measured = {"off": Measured(), "on": Measured()}
        for turn in range(options.rounds):
            for first in range(0, len(prompts), options.together):
                group = prompts[first : first + options.together]
                answers = []
                for way, speculation in (("off", silent), ("on", guessing)):
                    engine.speculation = speculation
                    salt = f"{kind} {turn} {first} {way}"
                    answers.append(answer(engine, group, salt, measured[way], options.max_tokens))
                same &= answers[0] == answers[1]
        for way, sums in measured.items():
            row = sums.as_dict()
            results[f"{kind}_{way}"] = row
            print(
                f"{kind:6} {way:5} " + " ".join(f"{v:{w}}" for v, w in zip(row.values(), (7, 10, 9, 9, 9), strict=True))
            )
        for unit in ("tok_s", "tok_cpu_s"):
            results[f"{kind}_ratio_{unit}"] = round(results[f"{kind}_on"][unit] / results[f"{kind}_off"][unit], 3)
    results["identical"] = same
    print(json.dumps(results))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
