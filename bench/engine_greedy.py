"""Greedy decoding of the local engine against the reference tokens: identical or not, and how fast.

    python -m bench.engine_greedy [--model MODEL.gguf] [--threads N] [--processes N] [--quant MODE]

Every reference prompt is run alone, all of them in one batch, with the prompt in small chunks and whole, with the
prefix cache cold and warm, and with guesses and without. Prints a table, and one JSON object as the last line.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `python -m local_engine` sets it

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from local_engine.config import EngineConfig  # noqa: E402 - after the path and the OpenMP setting
from local_engine.engine import Engine  # noqa: E402
from local_engine.request import Request  # noqa: E402

HOME = Path(os.environ.get("HATCHWAY_HOME") or Path.home() / ".hatchway")
BUNDLED = HOME / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
REFERENCE = ROOT / "tests" / "local_engine" / "greedy_reference.json"
TOKENS = 64

Row = dict[str, Any]


def run(engine: Engine, rows: list[Row], salt: bytes = b"") -> tuple[list[list[int]], float, float]:
    """Generates for all rows at once. -> tokens of each, seconds to the first token, seconds in all."""
    started = time.perf_counter()
    first = 0.0
    for index, row in enumerate(rows):
        engine.add(Request(row["prompt_ids"], max_tokens=TOKENS, id=index, salt=salt))
    sequences = {generation.request.id: sequence for sequence, generation in engine._open.items()}
    before = engine.stats.completion_tokens
    while engine.has_work:
        engine.step()
        if not first and engine.stats.completion_tokens > before:
            first = time.perf_counter() - started
    tokens = [sequences[index].tokens[sequences[index].prompt_tokens :] for index in range(len(rows))]
    return tokens, first, time.perf_counter() - started


def identical(tokens: list[list[int]], rows: list[Row]) -> int:
    return sum(found == row["tokens"] for found, row in zip(tokens, rows, strict=True))


def alone(engine: Engine, rows: list[Row]) -> dict[str, Any]:
    """Each prompt by itself, with the time it takes; then again, with its prefix in the cache."""
    print(f"{'prompt':48} {'tokens':>6} {'first s':>8} {'tok/s':>7}  same")
    same, warm, speeds = 0, 0, []
    for index, row in enumerate(rows):
        ids = engine.template.encode([{"role": "user", "content": row["prompt"]}]).ids
        [tokens], first, seconds = run(engine, [row], salt=bytes([index]))
        right = ids == row["prompt_ids"] and tokens == row["tokens"]
        same += right
        speeds.append((len(tokens) - 1) / (seconds - first))
        print(f"{row['prompt'][:48]:48} {len(tokens):6} {first:8.2f} {speeds[-1]:7.1f}  {'yes' if right else 'NO'}")
        hits = engine.stats.cached_tokens
        [again], _, _ = run(engine, [row], salt=bytes([index]))
        warm += again == row["tokens"] and engine.stats.cached_tokens > hits
    return {"alone": same, "prefix_hit": warm, "decode_tok_s_median": round(statistics.median(speeds), 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--quant", default="mixed")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    rows: list[Row] = json.loads(REFERENCE.read_text())["rows"]
    config = EngineConfig(
        quant=options.quant, threads=options.threads, processes=options.processes, draft="off", max_running=len(rows)
    )
    started = time.perf_counter()
    engine = Engine.load(options.model, config)
    result: dict[str, Any] = {"prompts": len(rows), "load_s": round(time.perf_counter() - started, 2)}
    result |= {"threads": config.num_threads, "processes": config.processes}
    try:
        result |= alone(engine, rows)
        tokens, _, seconds = run(engine, rows, salt=b"batch")
        result["batch"] = identical(tokens, rows)
        result["batch_tok_s"] = round(sum(map(len, tokens)) / seconds, 2)
        for name, budget in (("chunks_of_8", 8), ("whole", 512)):
            engine.config = replace(config, token_budget=budget)
            result[name] = identical([run(engine, [row], salt=name.encode())[0][0] for row in rows], rows)
    finally:
        engine.close()
    guessing = Engine.load(options.model, replace(config, draft="ngram"))
    try:
        result["guesses"] = identical(run(guessing, rows)[0], rows)
        result["guesses_accepted"] = guessing.stats.accepted_tokens
    finally:
        guessing.close()
    checks = ("alone", "prefix_hit", "batch", "chunks_of_8", "whole", "guesses")
    print("identical: " + ", ".join(f"{name} {result[name]} of {len(rows)}" for name in checks))
    print(json.dumps(result))
    return 0 if all(result[name] == len(rows) for name in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
