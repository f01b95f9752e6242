"""What speculation brings: the same answers with and without it, where text is copied, edited, and in plain chat.

    python -m bench.speculation [--model MODEL] [--draft ngram|PATH] [--rounds N] [--together N]

Each prompt is answered without and with guesses right after each other, in one engine, greedily; which way goes first
alternates, and the tokens must be identical. Speeds are of decoding only, from the first token on. A kind's ratio
counts each prompt's median run; the second one its quickest run, which other work on the machine disturbs least. CPU
time is of all threads of this process. Aimed at: at least 1.3 times as fast on copying and editing, and on chat never
slower than without by more than 3 %. Prints a table, and one JSON object as the last line.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
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
CONFIG = """server:
  host: 0.0.0.0
  port: 8080
  workers: 4
  timeout: 30
database:
  url: postgres://app@db.internal:5432/orders
  pool: 10
logging:
  level: info
  file: /var/log/orders.log
"""
NOTES = """The board met on Tuesday at nine. The budget for the coming year was accepted with one change: the money for
the new roof was moved from June to September. Mrs. Okafor reported on the school garden, where forty children now grow
vegetables. The next meeting is on the second Tuesday of May, in the library."""
NOTICE = """The libary will be closed on Monday becuase of the holiday. Books that are due on that day can be returned
on Tuesday without a fee. The reading room on the second floor opens agian at nine on Tuesday morning. We wish all our
readers a plesant weekend."""
PROMPTS = {  # a model this small often sums up where it is to copy: these are ones that it follows
    "copy": [
        f"Repeat the following text word for word:\n\n{LETTER}",
        f"Repeat this list exactly, line by line:\n\n{TABLE}",
        f"Repeat the following text word for word:\n\n{NOTES}",
    ],
    "edit": [
        f"Rename the variable `total` to `result` in this function and print all of it:\n\n```python\n{CODE}```",
        f"Rename the function `area` to `total_area` and print all of it:\n\n```python\n{CODE}```",
        f"Rewrite this file with the level debug instead of info:\n\n```yaml\n{CONFIG}```",
        f"Correct the spelling mistakes in this text and write all of it again:\n\n{NOTICE}",
        f'Rewrite the following text, but with "Wednesday" in place of "Tuesday":\n\n{NOTES}',
    ],
    "chat": [
        "What are three good reasons to learn how to cook?",
        "Explain to a child why the sky is blue.",
        "Write a short story about a lighthouse keeper and a gull.",
        "How do I prepare for a job interview?",
    ],
}
BOUNDS = {"copy": 1.3, "edit": 1.3, "chat": 0.97}  # times as fast as without guesses, at least
WAYS = ("off", "on")


@dataclass(frozen=True, slots=True)
class Answer:
    """One run of some prompts together, counted from when all have begun."""

    tokens: int
    seconds: float
    cpu_seconds: float
    steps: int
    proposed: int
    accepted: int


@dataclass(slots=True)
class Prompt:
    """All runs of one prompt, or of some that are answered together."""

    answers: dict[str, list[Answer]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def seconds(self, way: str, *, quickest: bool) -> float:
        times = [answer.seconds for answer in self.answers[way]]
        return min(times) if quickest else statistics.median(times)


def answer(engine: Engine, prompts: list[list[int]], salt: str, max_tokens: int) -> tuple[Answer, list[list[int]]]:
    """Answers the prompts together. -> what it took, and the tokens of each."""
    for index, prompt in enumerate(prompts):
        engine.add(Request(prompt, max_tokens, id=index, salt=salt.encode()))
    sequences = [generation.sequence for generation in engine._open.values()]
    while any(not sequence.completion_tokens for sequence in sequences):
        engine.step()
    stats = engine.stats
    before = sum(s.completion_tokens for s in sequences), stats.steps, stats.draft_tokens, stats.accepted_tokens
    began, cpu = time.perf_counter(), time.process_time()
    while engine.has_work:
        engine.step()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    after = sum(s.completion_tokens for s in sequences), stats.steps, stats.draft_tokens, stats.accepted_tokens
    tokens, steps, proposed, accepted = (b - a for a, b in zip(before, after, strict=True))
    found = [sequence.tokens[sequence.prompt_tokens :] for sequence in sequences]
    return Answer(tokens, seconds, cpu_seconds, steps, proposed, accepted), found


def summary(prompts: list[Prompt]) -> dict[str, Any]:
    """One kind of prompts: both ways, and how many times as fast `on` is."""
    found: dict[str, Any] = {}
    for way in WAYS:
        answers = [answer for prompt in prompts for answer in prompt.answers[way]]
        tokens = sum(prompt.answers[way][0].tokens for prompt in prompts)
        found[way] = {
            "tok_s": round(tokens / sum(prompt.seconds(way, quickest=False) for prompt in prompts), 2),
            "tok_s_best": round(tokens / sum(prompt.seconds(way, quickest=True) for prompt in prompts), 2),
            "tok_cpu_s": round(sum(a.tokens for a in answers) / sum(a.cpu_seconds for a in answers), 2),
            "tokens_per_step": round(sum(a.tokens for a in answers) / sum(a.steps for a in answers), 3),
            "proposed": sum(a.proposed for a in answers),
            "accepted": sum(a.accepted for a in answers),
        }
    units = ("tok_s", "tok_s_best", "tok_cpu_s")
    return found | {f"ratio_{unit}": round(found["on"][unit] / found["off"][unit], 3) for unit in units}


def show(kind: str, found: dict[str, Any]) -> None:
    for way in WAYS:
        cells = zip(found[way].values(), (8, 8, 10, 9, 9, 9), strict=True)
        print(f"{kind:5} {way:4}" + "".join(f" {value:{width}}" for value, width in cells))
    bound, ratio, best = BOUNDS[kind], found["ratio_tok_s"], found["ratio_tok_s_best"]
    print(f"{kind:5} {ratio:.3f} times as fast, by the quickest runs {best:.3f}; at least {bound}: ", end="")
    print("kept" if ratio >= bound else "kept by the quickest runs only" if best >= bound else "BROKEN")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--draft", default="ngram", help="ngram, or the path of a draft model")
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--kernels", default="auto", choices=("auto", "cpu", "reference"))
    parser.add_argument("--rounds", type=int, default=3, help="each prompt that many times, each way")
    parser.add_argument("--together", type=int, default=1, help="prompts answered at once")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    config = EngineConfig(
        draft=options.draft, draft_tokens=options.draft_tokens, kernels=options.kernels, threads=options.threads
    )
    engine = Engine.load(options.model, config)
    speculations = {"off": Speculation(None, 0, engine.pace.seconds_of), "on": engine.speculation}
    results: dict[str, Any] = {"bench": "speculation", "draft": options.draft, "together": options.together}
    results |= {"kernels": engine.runner.model.backend.name, "rounds": options.rounds, "load": os.getloadavg()[0]}
    same = True
    print(f"{'':10} {'tok/s':>8} {'best':>8} {'tok/CPU s':>10} {'tok/step':>9} {'proposed':>9} {'accepted':>9}")
    for kind, texts in PROMPTS.items():
        ids = [engine.template.encode([{"role": "user", "content": text}]).ids for text in texts]
        groups = [ids[first : first + options.together] for first in range(0, len(ids), options.together)]
        prompts = [Prompt() for _ in groups]
        for turn in range(options.rounds):
            for index, (group, prompt) in enumerate(zip(groups, prompts, strict=True)):
                tokens = []
                for way in WAYS if (turn + index) % 2 == 0 else reversed(WAYS):
                    engine.speculation = speculations[way]
                    took, found = answer(engine, group, f"{kind} {turn} {index} {way}", options.max_tokens)
                    prompt.answers[way].append(took)
                    tokens.append(found)
                same &= tokens[0] == tokens[1]
        results[kind] = summary(prompts)
        show(kind, results[kind])
    engine.close()
    results["identical"] = same
    results["kept"] = {kind: results[kind]["ratio_tok_s"] >= bound for kind, bound in BOUNDS.items()}
    print("the same tokens both ways" if same else "DIFFERENT TOKENS")
    print(json.dumps(results))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
