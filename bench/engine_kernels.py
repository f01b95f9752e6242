"""Single kernels of the local engine on a model's own shapes, beside torch's: products by rows, and attention.

    python -m bench.engine_kernels [--model MODEL] [--rows 1,4,16,64,512] [--kernels K] [--kv-type T] [--only KIND]

Products: each kind of matrix, all layers in turn, so that weights come from memory as they do in a step; torch
multiplies the same weights in fp32. Attention: all layers over a paged cache; torch's scaled dot product attention has
its keys and values in fp32, one after the other, without pages. The two take turns, and each figure is the best of many
short runs: other work on the machine only ever makes a run slower. Prints tables, and one JSON object as the last line.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `python -m local_engine` sets it

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - after the path and the OpenMP setting
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from bench.engine_greedy import BUNDLED  # noqa: E402
from kernels.packed import Matrix, nbytes, num_columns, num_rows, unpack  # noqa: E402
from local_engine.config import EngineConfig  # noqa: E402
from local_engine.engine import Engine  # noqa: E402
from local_engine.kv_memory import KVMemory  # noqa: E402
from local_engine.model import Model  # noqa: E402
from local_engine.weights import DenseWeights  # noqa: E402

BLOCK = 16  # positions
LEAST_RUNS = 3


@dataclass(frozen=True, slots=True)
class Attention:
    """Sequences of one length, each with so many rows at its end."""

    sequences: int
    rows: int
    length: int

    @property
    def name(self) -> str:
        what = "decode" if self.rows == 1 else f"{self.rows} rows"
        return f"{self.sequences} x {what} of {self.length}"

    @property
    def pairs(self) -> int:
        """Of a query and a position that it sees."""
        return self.sequences * sum(range(self.length - self.rows + 1, self.length + 1))


ATTENTIONS = (
    Attention(1, 1, 32),
    Attention(1, 1, 512),
    Attention(1, 1, 2048),
    Attention(16, 1, 64),
    Attention(16, 1, 512),
    Attention(1, 4, 512),
    Attention(1, 64, 512),
    Attention(1, 512, 512),
)


def best_seconds(calls: dict[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """The quickest run of each, in turns, for about `budget` seconds."""
    for call in calls.values():
        call()
    best = dict.fromkeys(calls, float("inf"))
    until, runs = time.perf_counter() + budget, 0
    while runs < LEAST_RUNS or time.perf_counter() < until:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
        runs += 1
    return best


def kinds(model: Model) -> dict[str, list[Matrix]]:
    """The matrices by what they are, one of each layer; of experts all."""
    found: dict[str, list[Matrix]] = {}
    for layer in model.weights.layers:
        own: list[tuple[str, Matrix]] = [("qkv", layer.qkv), ("attention_out", layer.attention_out)]
        if isinstance(layer.ffn, DenseWeights):
            own += [("gate_up", layer.ffn.gate_up), ("down", layer.ffn.down)]
        else:
            own += [("expert gate_up", one) for one in layer.ffn.gate_up]
            own += [("expert down", one) for one in layer.ffn.down]
        for name, matrix in own:
            found.setdefault(name, []).append(matrix)
    return found | {"lm_head": [model.weights.lm_head]}


@torch.inference_mode()
def products(model: Model, rows: list[int], budget: float) -> list[dict[str, Any]]:
    print("products: G multiplications a second (GB of weights a second)")
    print(f"{'matrix':16} {'shape':>14} {'rows':>5} {model.backend.name:>20} {'torch fp32':>20} {'ratio':>7}")
    lines = []
    for name, matrices in kinds(model).items():
        floats = [unpack(matrix) for matrix in matrices]
        height, width = num_rows(matrices[0]), num_columns(matrices[0])
        for count in rows:
            line: dict[str, Any] = {"matrix": name, "rows_of_matrix": height, "columns": width, "rows": count}
            line |= product(model, matrices, floats, torch.randn(count, width), budget)
            lines.append(line)
            cells = (f"{line[f'{who}_gmac_s']:.1f} ({line[f'{who}_gb_s']:.1f})" for who in ("own", "torch"))
            own, other = cells
            print(f"{name:16} {f'{height}x{width}':>14} {count:5} {own:>20} {other:>20} {line['ratio']:7.2f}")
    return lines


def product(model: Model, matrices: list[Matrix], floats: list[Tensor], x: Tensor, budget: float) -> dict[str, float]:
    """All matrices of a kind, one after the other."""

    def own() -> None:
        for matrix in matrices:
            model.backend.linear(x, matrix, None)

    def other() -> None:
        for weight in floats:
            functional.linear(x, weight)

    best = best_seconds({"own": own, "torch": other}, budget)
    multiplications = len(x) * sum(weight.numel() for weight in floats)
    sizes = {"own": sum(map(nbytes, matrices)), "torch": sum(weight.nbytes for weight in floats)}
    return rates(best, multiplications, sizes, len(matrices))


def rates(best: dict[str, float], multiplications: int, sizes: dict[str, int], calls: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for who, seconds in best.items():
        found[f"{who}_gmac_s"] = round(multiplications / seconds / 1e9, 3)
        found[f"{who}_gb_s"] = round(sizes[who] / seconds / 1e9, 3)
        found[f"{who}_us"] = round(1e6 * seconds / calls, 2)
    return found | {"ratio": round(best["torch"] / best["own"], 3)}


@torch.inference_mode()
def attentions(model: Model, kv_type: Any, budget: float) -> list[dict[str, Any]]:
    print(f"\nattention of all layers, {kv_type}: G multiplications a second (GB of keys and values a second)")
    print(f"{'sequences':24} {model.backend.name:>20} {'torch fp32':>20} {'ratio':>7} {'own ms':>8}")
    lines = []
    for case in ATTENTIONS:
        if case.length <= model.max_length:
            line: dict[str, Any] = {"attention": case.name} | attention(model, kv_type, case, budget)
            lines.append(line)
            own, other = (f"{line[f'{who}_gmac_s']:.1f} ({line[f'{who}_gb_s']:.1f})" for who in ("own", "torch"))
            print(f"{case.name:24} {own:>20} {other:>20} {line['ratio']:7.2f} {line['own_us'] / 1000:8.3f}")
    return lines


def attention(model: Model, kv_type: Any, case: Attention, budget: float) -> dict[str, float]:
    heads, kept, width, layers = model.num_heads, model.num_kv_heads, model.config.head_dim, model.config.num_layers
    blocks = -(-case.length // BLOCK)
    memory = KVMemory(model.config, case.sequences * blocks, BLOCK, kv_type)
    slots = torch.arange(case.sequences * blocks * BLOCK)
    kept_numbers = torch.randn(len(slots), 2 * kept, width)
    for layer in range(layers):
        memory.write(layer, slots, kept_numbers)
    query = torch.randn(case.sequences * case.rows, heads, width)
    starts = [case.rows * index for index in range(case.sequences + 1)]
    lengths = [case.length] * case.sequences
    tables = list(torch.arange(case.sequences * blocks).view(case.sequences, blocks))

    def own() -> None:
        for layer in range(layers):
            keys, scales = memory.layers[layer], memory.scales[layer]
            model.backend.paged_attention(query, keys, scales, starts, lengths, tables, None)

    shape = case.sequences, kept, case.length, width
    plain = [(torch.randn(shape), torch.randn(shape)) for _ in range(layers)]
    rows = query.view(case.sequences, case.rows, heads, width).transpose(1, 2)  # [S, H, rows, d]
    mask: Tensor | None = None
    if 1 < case.rows < case.length:
        mask = torch.ones(case.rows, case.length, dtype=torch.bool).tril(case.length - case.rows)
    whole = case.rows > 1 and case.rows == case.length

    def other() -> None:
        for key, value in plain:
            functional.scaled_dot_product_attention(
                rows, key, value, attn_mask=mask, is_causal=whole, enable_gqa=heads != kept
            )

    best = best_seconds({"own": own, "torch": other}, budget)
    vector = memory.layers[0].element_size() * width + (0 if memory.scales[0] is None else 4)
    vectors = layers * case.sequences * 2 * kept * case.length
    sizes = {"own": vectors * vector, "torch": vectors * 4 * width}
    return rates(best, 2 * layers * heads * width * case.pairs, sizes, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default: the bundled model")
    parser.add_argument("--quant", default="mixed")
    parser.add_argument("--kernels", default="auto", choices=("auto", "cpu", "reference"))
    parser.add_argument("--kv-type", default="auto", choices=("auto", "fp32", "fp16", "int8"))
    parser.add_argument("--rows", default="1,4,16,64,512", help="of activations")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure, about")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=("products", "attention"))
    options = parser.parse_args()
    config = EngineConfig(
        quant=options.quant, kernels=options.kernels, kv_type=options.kv_type, threads=options.threads, draft="off"
    )
    engine = Engine.load(options.model, config)
    model, kv_type = engine.runner.model, engine.runner.memory.kv_type
    result: dict[str, Any] = {"bench": "engine_kernels", "model": options.model.name, "kernels": model.backend.name}
    result |= {"kv_type": kv_type, "threads": config.num_threads, "load": round(os.getloadavg()[0], 2)}
    if options.only != "attention":
        result["products"] = products(model, [int(count) for count in options.rows.split(",")], options.seconds)
    if options.only != "products":
        result["attention"] = attentions(model, kv_type, options.seconds)
    engine.close()
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
