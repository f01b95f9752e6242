"""Greedy decoding of the local engine against the reference tokens: identical or not, and how fast.

    python -m bench.engine_greedy [--model MODEL.gguf] [--batch] [--threads N]

Runs each reference prompt alone (with --batch also all at once), prints a table, and one JSON object as the last line.
"""

import argparse
import json
import os
import statistics
import sys
import time
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


def run(engine: Engine, rows: list[dict[str, Any]]) -> tuple[list[list[int]], float, float]:
    """Generates for all rows at once. -> tokens of each, seconds to the first token, seconds in all."""
    tokens: list[list[int]] = [[] for _ in rows]
    started = time.perf_counter()
    first = 0.0
    for index, row in enumerate(rows):
        engine.add(Request(index, row["prompt_ids"], max_tokens=64))
    sequences = {generation.id: sequence for sequence, generation in engine._open.items()}
    while engine.has_work:
        if engine.step() and not first:
            first = time.perf_counter() - started
    for index, sequence in sequences.items():
        tokens[index] = sequence.tokens[sequence.prompt_tokens :]
    return tokens, first, time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", action="store_true", help="also all prompts at once")
    options = parser.parse_args()
    rows = json.loads(REFERENCE.read_text())["rows"]
    started = time.perf_counter()
    engine = Engine.load(options.model, EngineConfig(threads=options.threads))
    load = time.perf_counter() - started
    print(f"{'prompt':48} {'tokens':>6} {'first s':>8} {'tok/s':>7}  same")
    same, speeds = 0, []
    for row in rows:
        ids_same = engine.encode([{"role": "user", "content": row["prompt"]}]) == row["prompt_ids"]
        [tokens], first, seconds = run(engine, [row])
        identical = ids_same and tokens == row["tokens"]
        same += identical
        speeds.append((len(tokens) - 1) / (seconds - first))
        print(f"{row['prompt'][:48]:48} {len(tokens):6} {first:8.2f} {speeds[-1]:7.1f}  {'yes' if identical else 'NO'}")
    result = {
        "identical": same,
        "prompts": len(rows),
        "decode_tok_s_median": round(statistics.median(speeds), 2),
        "load_s": round(load, 2),
        "threads": engine.config.num_threads,
    }
    if options.batch:
        tokens, _, seconds = run(engine, rows)
        result["batch_identical"] = sum(t == row["tokens"] for t, row in zip(tokens, rows, strict=True))
        result["batch_tok_s"] = round(sum(map(len, tokens)) / seconds, 2)
        print(f"all at once: {result['batch_identical']} identical, {result['batch_tok_s']} tok/s with their prompts")
    print(json.dumps(result))
    return 0 if same == len(rows) and result.get("batch_identical", same) == same else 1


if __name__ == "__main__":
    sys.exit(main())
