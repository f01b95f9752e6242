"""How near the engine's default mode is to fp32 on the same weights, beside llama.cpp: greedy paths, and divergence.

    python -m bench.engine_text [--model MODEL] [--tokens 2000] [--peers-python PYTHON] [--kernels K] [--kv-type T]

Greedy: eight prompts whose fp32 tokens are known (`tests/local_engine/greedy_reference.json`), and the first token at
which each mode leaves them. Divergence: KL(fp32 || mode) over a text, this repository's documentation, read in windows
of 512 tokens of which the last 256 count; fp32 is the engine's reference kernels on the file's weights as they are.
llama.cpp takes part where it is installed, in this Python or in `--peers-python`; where it is not, its recorded first
differences are shown. Prints tables, and one JSON object as the last line.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ENVIRONMENT = dict(os.environ)  # as it was: a peer waits for its threads in its own way
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `python -m local_engine` sets it

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path and the OpenMP setting
from torch import Tensor  # noqa: E402

from bench.engine_greedy import BUNDLED, REFERENCE, TOKENS, Row, run  # noqa: E402
from local_engine.benchmark_child import Absent, Peer, PeerError  # noqa: E402
from local_engine.config import EngineConfig  # noqa: E402
from local_engine.engine import Engine  # noqa: E402
from local_engine.perplexity import Window, log_probabilities, reader, score, windows  # noqa: E402

RECORDED = (0, None, 8, 24, 0, 11, 24, 6)  # where llama.cpp leaves fp32 on the bundled model, with fp32 keys and values
END = 2  # the bundled model's end of a turn
Reader = Callable[[list[int]], Tensor]  # tokens -> logits [n, V]


def first_difference(tokens: list[int], truth: list[int]) -> int | None:
    """Index of the first token that differs; None where both are the same to the end."""
    if tokens == truth:
        return None
    pairs = zip(tokens, truth, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(tokens), len(truth)))


def documentation() -> str:
    """The README and the guides, in a fixed order."""
    return "\n\n".join(
        file.read_text() for file in [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
    )


def peer_reader(peer: Peer, folder: Path) -> Reader:
    def read(tokens: list[int]) -> Tensor:
        file = folder / "logits"
        rows, columns = peer.logits(tokens, file)
        found = torch.from_file(str(file), size=rows * columns, dtype=torch.float32).clone().view(rows, columns)
        file.unlink()
        return found

    return read


def compare(truth: list[Tensor], read: Reader, texts: list[Window]) -> dict[str, float]:
    found = score(read, texts, truth)
    assert found.kl is not None and found.agreement is not None, "a reference was given"
    return {"kl": found.kl, "perplexity": found.perplexity, "same_likeliest": found.agreement, "tokens": found.tokens}


def open_peer(options: argparse.Namespace, threads: int, work: Path) -> tuple[Peer | None, str]:
    """llama.cpp on the model as it is quantised; or None, and why not."""
    why = ""
    for python in filter(None, (options.peers_python, sys.executable)):
        try:
            return Peer("llama_cpp", options.model, threads, work, ENVIRONMENT, python), ""
        except (Absent, PeerError) as error:
            why = why or str(error)
    return None, why


def show_greedy(rows: list[Row], first: dict[str, list[int | None]]) -> None:
    print("first token that differs from fp32's (-: none)")
    print(f"{'prompt':50}" + "".join(f"{name:>12}" for name in first))
    for index, row in enumerate(rows):
        cells = (first[name][index] for name in first)
        print(f"{row['prompt'][:50]:50}" + "".join(f"{'-' if cell is None else cell:>12}" for cell in cells))


def later(ours: list[int | None], theirs: list[int | None]) -> dict[str, int]:
    """Prompts where ours stays with fp32 longer than theirs, as long, and less long."""
    at = [[float("inf") if index is None else index for index in one] for one in (ours, theirs)]
    pairs = list(zip(*at, strict=True))
    return {
        "later": sum(a > b for a, b in pairs),
        "same": sum(a == b for a, b in pairs),
        "earlier": sum(a < b for a, b in pairs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--tokens", type=int, default=2000, help="of text, whose predictions count")
    parser.add_argument("--quant", default="mixed")
    parser.add_argument("--kernels", default="auto", choices=("auto", "cpu", "reference"))
    parser.add_argument("--kv-type", default="auto", choices=("auto", "fp32", "fp16", "int8"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peers-python", help="a Python that has llama-cpp-python")
    options = parser.parse_args()
    config = EngineConfig(
        quant=options.quant,
        kernels=options.kernels,
        kv_type=options.kv_type,
        threads=options.threads,
        draft="off",
        prefix_cache=False,
    )
    rows: list[Row] = json.loads(REFERENCE.read_text())["rows"] if options.model == BUNDLED else []
    first: dict[str, list[int | None]] = {}
    divergence: dict[str, dict[str, float]] = {}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hatchway-text-")))
        plain = replace(config, quant="none", kernels="reference", kv_type="fp32")
        exact = Engine.load(options.model, plain)
        stack.callback(exact.close)
        engine = Engine.load(options.model, config)
        stack.callback(engine.close)
        model, kv_type = engine.runner.model, engine.runner.memory.kv_type
        length = min(512, engine.context_length)
        texts = windows(engine.vocabulary.encode(documentation())[: options.tokens + 1], length, length // 2)
        print(f"kernels `{model.backend.name}`, keys and values {kv_type}", file=sys.stderr)
        truth = list(log_probabilities(reader(exact.runner.model), texts))
        divergence["hatchway"] = compare(truth, reader(model, kv_type), texts)
        if rows:
            tokens = [run(engine, [row])[0][0] for row in rows]
            first["hatchway"] = [first_difference(a, row["tokens"]) for a, row in zip(tokens, rows, strict=True)]
            first["llama.cpp"] = list(RECORDED)
        peer, why = open_peer(options, config.num_threads, work)
        if peer is None:
            print(f"llama.cpp: {why}")
        else:
            stack.enter_context(peer)
            divergence["llama.cpp"] = compare(truth, peer_reader(peer, work), texts)
            paths = [peer.greedy(row["prompt_ids"], TOKENS, END) for row in rows]
            first["llama.cpp"] = [first_difference(a, row["tokens"]) for a, row in zip(paths, rows, strict=True)]
    result: dict[str, Any] = {"bench": "engine_text", "model": options.model.name, "quant": options.quant}
    result |= {"kernels": model.backend.name, "kv_type": kv_type, "peer": None if peer is None else peer.version}
    if rows:
        show_greedy(rows, first)
        result["first_difference"] = first
        result["than_llama_cpp"] = later(first["hatchway"], first["llama.cpp"])
        print("leaves fp32 than llama.cpp: " + ", ".join(f"{k} {v}" for k, v in result["than_llama_cpp"].items()))
    print(f"\n{'':12} {'KL to fp32':>12} {'perplexity':>11} {'same likeliest':>15} {'tokens':>7}")
    for name, one in divergence.items():
        same = f"{one['same_likeliest']:.2%}"
        print(f"{name:12} {one['kl']:12.3e} {one['perplexity']:11.4f} {same:>15} {one['tokens']:7.0f}")
    result["divergence"] = {n: {k: float(f"{v:.5g}") for k, v in one.items()} for n, one in divergence.items()}
    if "llama.cpp" in divergence and divergence["hatchway"]["kl"] > 0:
        result["kl_ratio"] = round(divergence["llama.cpp"]["kl"] / divergence["hatchway"]["kl"], 3)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
