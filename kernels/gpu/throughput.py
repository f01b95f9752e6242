"""Tokens a second of large models, on paper: a step of decoding as the sum of its launches' rooflines.

The launches are those of `step.py`, with the bytes and operations that no implementation can do without. Experts are
taken to be chosen evenly. Several GPUs share every matrix (tensor parallelism) and exchange a layer's sums twice.
Every figure is `estimated`: nothing here was measured, and real engines stay below (`PUBLISHED` beside it).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernels.gpu.configurations import SHIPPED, Tables
from kernels.gpu.hardware import GPU, GPUS
from kernels.gpu.roofline import ASSUMED, Assumptions, estimate
from kernels.gpu.specimen import Peak, Work

BATCHES = (1, 8, 64, 256)
CONTEXTS = (1024, 4096)
COUNTS = (1, 2, 4, 8)  # GPUs of one machine
USABLE = 0.9  # of a GPU's memory, for weights and the KV cache
EXCHANGE = 10e-6  # seconds that GPUs need to agree on anything, beside moving it; assumed
HALF, WIDE = 2, 4  # bytes of an activation, and of the residual stream and logits


@dataclass(frozen=True, slots=True)
class Experts:
    count: int
    per_token: int


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder, by the letters of `kernels.reference`."""

    name: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int  # of one expert, where there are some
    vocab: int
    experts: Experts | None = None

    @property
    def matrices(self) -> int:
        """Weights of all layers, without the embedding and the output matrix."""
        attention = self.dim * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        of_ffn = 3 * self.dim * self.ffn_dim * (1 if self.experts is None else self.experts.count)
        return self.layers * (attention + of_ffn)

    def memory(self, weight: float, batch: int, context: int, kv: float) -> float:
        """Bytes of the weights, and of the keys and values of `batch` sequences."""
        cache = batch * context * 2 * self.layers * self.kv_heads * self.head_dim * kv
        return self.matrices * weight + 2 * self.vocab * self.dim * HALF + cache


# Shapes from the models' own config.json.
MODELS = (
    Model("Qwen3-30B-A3B", 48, 2048, 32, 4, 128, 768, 151_936, Experts(128, 8)),
    Model("Mixtral-8x22B", 56, 6144, 48, 8, 128, 16_384, 32_768, Experts(8, 2)),
    Model("Llama-3.1-405B", 126, 16_384, 128, 8, 128, 53_248, 128_256),
)


@dataclass(frozen=True, slots=True)
class Weights:
    name: str
    size: float  # bytes of a weight, with a scale in fp16 for each 64
    peak: Peak


WEIGHTS = (Weights("fp16", 2.0, "fp16"), Weights("fp8", 1.03125, "fp8"), Weights("int4", 0.53125, "fp16"))


@dataclass(frozen=True, slots=True)
class Published:
    """What others say, to hold estimates against. None of it was measured by this project."""

    model: str
    figure: str
    setting: str
    source: str


_TENSORRT = "TensorRT-LLM 1.0, performance overview"
_ARTICLE = "press article, itself an estimate"
PUBLISHED = (
    Published("Qwen3-30B-A3B", "39,827", "FP4, 1 x B200, 128 tokens in, 128 out", _TENSORRT),
    Published("Qwen3-30B-A3B", "25,828", "FP4, 1 x B200, 1,000 in, 1,000 out", _TENSORRT),
    Published("Qwen3-30B-A3B", "17,554", "FP4, 1 x B200, 2,048 in, 2,048 out", _TENSORRT),
    Published("Qwen3-30B-A3B", "about 103", "BF16, 1 x A100, one sequence", "a user's report to tenstorrent's vLLM"),
    Published("Qwen 3.6 Plus", "15,000-25,000 for each GPU", "not stated", _ARTICLE),
    Published(
        "Mixtral-8x22B",
        "968 (242 for each GPU)",
        "BF16, 4 GPUs, 256 at once, 2024-04",
        "lmdeploy's change that added it",
    ),
    Published("Mixtral-8x22B", "4,000-6,000 for each GPU", "not stated", _ARTICLE),
    Published("Llama-3.1-405B", "800-1,200 for each GPU", "not stated", _ARTICLE),
)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of decoding alone: prompts, sampling on the host and scheduling come on top."""

    model: str
    gpu: str
    weights: str
    batch: int
    context: int
    memory: float  # bytes
    gpus: int | None  # None: eight are not enough
    seconds: float | None  # of a step

    @property
    def tokens(self) -> float | None:
        """A second, of all sequences on all GPUs."""
        return None if self.seconds is None else self.batch / self.seconds


def throughput(
    model: Model,
    gpu: GPU,
    weights: Weights,
    batch: int,
    context: int,
    *,
    kv: float = HALF,
    gpus: int | None = None,
    assumptions: Assumptions = ASSUMED,
    exchange: float = EXCHANGE,
) -> Throughput:
    """kv: bytes of a key's element. gpus: None for as few as hold the weights and the KV cache."""
    memory = model.memory(weights.size, batch, context, kv)
    enough = [count for count in COUNTS if memory <= count * USABLE * gpu.memory] if gpus is None else [gpus]
    found = Throughput(model.name, gpu.name, weights.name, batch, context, memory, enough[0] if enough else None, None)
    if found.gpus is None:
        return found
    seconds = 0.0
    for work, times in launches(model, gpu, weights, batch, context, kv, found.gpus):
        one = estimate(work, gpu, assumptions)
        assert one is not None, f"{gpu.name} has no {work.peak}"  # `launches` asks for what there is
        seconds += times * one.seconds
    if found.gpus > 1:
        moved = 2 * batch * model.dim * HALF * (found.gpus - 1) / found.gpus  # a ring: once around to add, once to tell
        seconds += 2 * model.layers * (moved / gpu.link + exchange)
    return Throughput(model.name, gpu.name, weights.name, batch, context, memory, found.gpus, seconds)


def launches(
    model: Model,
    gpu: GPU,
    weights: Weights,
    batch: int,
    context: int,
    kv: float = HALF,
    gpus: int = 1,
    tables: Tables = SHIPPED,
) -> Iterator[tuple[Work, int]]:
    """Each kind of launch of a step on one of `gpus`, and how often it occurs."""
    peak: Peak = weights.peak if weights.peak in gpu.peaks else "fp16"  # FP8 below sm_89: decoded to fp16
    queries, keys = model.heads * model.head_dim / gpus, model.kv_heads * model.head_dim / gpus
    split = bool(tables.find("linear", batch, gpu.architecture).sizes["SPLIT"])

    def product(name: str, outputs: float, columns: float, size: float, kind: Peak, wide: int = HALF) -> Work:
        moved = outputs * columns * size + batch * (columns * HALF + outputs * wide)
        return Work(name, int(moved), int(2 * batch * outputs * columns), kind)

    def passing(name: str, moved: float) -> Work:
        return Work(name, int(moved), 0, "fp32")

    yield passing("embedding", batch * model.dim * (HALF + WIDE)), 1
    yield passing("norm", batch * model.dim * (2 * HALF + 2 * WIDE)), 2 * model.layers + 1
    yield product("queries, keys, values", queries + 2 * keys, model.dim, weights.size, peak), model.layers
    yield passing("turn and store", batch * (2 * queries * HALF + 2 * keys * (HALF + kv))), model.layers
    yield attention(batch, context, queries, keys, model.heads / model.kv_heads, kv), model.layers
    segments = -(-context // tables.find("attention", model.head_dim, gpu.architecture).sizes["LENGTH"])
    yield passing("merge of attention", batch * queries * (segments * WIDE + HALF)), model.layers
    yield product("attention's output", model.dim, queries, weights.size, peak), model.layers
    if model.experts is None:
        inner = model.ffn_dim / gpus
        yield product("gate and up", 2 * inner, model.dim, weights.size, peak), model.layers
        yield passing("SwiGLU", 3 * batch * inner * HALF), model.layers
        yield product("down", model.dim, inner, weights.size, peak), model.layers
        split_products = 4
    else:
        for work in _experts(model, model.experts, weights.size, batch, gpus):
            yield work, model.layers
        split_products = 2
    if split:  # what the merges move is in the products' caches: they cost a launch
        yield passing("merges of products", 0), split_products * model.layers
    yield product("output matrix", model.vocab / gpus, model.dim, HALF, "fp16", WIDE), 1
    yield passing("best", batch * model.vocab / gpus * WIDE), 1


def attention(batch: int, context: int, queries: float, keys: float, sharing: float, kv: float) -> Work:
    """queries, keys: their heads' widths together; sharing: query heads of a key head."""
    moved = 2 * batch * queries * HALF + 2 * batch * context * keys * kv
    return Work("attention", int(moved), int(4 * batch * context * keys * sharing), "fp16")


def hit(experts: Experts, batch: int) -> float:
    """Experts that at least one of `batch` tokens chooses, on average."""
    return experts.count * (1 - (1 - experts.per_token / experts.count) ** batch)


def _experts(model: Model, experts: Experts, size: float, batch: int, gpus: int) -> Iterator[Work]:
    """Experts' weights are decoded to fp16 in every format: that is the rate of their products."""
    places = batch * experts.per_token
    inner, wide = model.ffn_dim / gpus, model.dim
    used = hit(experts, batch)
    router = experts.count * wide * HALF + batch * (wide + experts.count) * HALF
    yield Work("router", int(router), 2 * batch * experts.count * wide, "fp16")
    yield Work("gate", batch * (experts.count * HALF + 8 * experts.per_token), 0, "fp32")
    yield Work("count places", 4 * places, 0, "fp32")
    yield Work("align places", 8 * places, 0, "fp32")
    moved = used * 2 * inner * wide * size + (batch * wide + places * inner) * HALF
    yield Work("experts' gate and up", int(moved), int(4 * places * inner * wide), "fp16")
    moved = used * inner * wide * size + places * (inner + wide) * HALF
    yield Work("experts' down", int(moved), int(2 * places * inner * wide), "fp16")
    yield Work("combine", batch * (wide * HALF * (experts.per_token + 1) + 4 * experts.per_token), 0, "fp32")


def table(
    models: Sequence[Model] = MODELS, gpus: Sequence[GPU] = GPUS, assumptions: Assumptions = ASSUMED
) -> list[Throughput]:
    """Every model, GPU, kind of weights, context and batch."""
    return [
        throughput(model, gpu, weights, batch, context, assumptions=assumptions)
        for model in models
        for gpu in gpus
        for weights in WEIGHTS
        for context in CONTEXTS
        for batch in BATCHES
    ]


def as_json(found: Sequence[Throughput], assumptions: Assumptions = ASSUMED) -> dict[str, Any]:
    return {
        "label": "estimated",
        "assumptions": {
            "bandwidth_share": assumptions.bandwidth,
            "arithmetic_share": assumptions.arithmetic,
            "launch_us": assumptions.launch * 1e6,
            "exchange_us": EXCHANGE * 1e6,
            "usable_memory": USABLE,
            "kv": "fp16",
        },
        "decoding": [
            {
                "model": one.model,
                "gpu": one.gpu,
                "weights": one.weights,
                "context": one.context,
                "batch": one.batch,
                "memory_gb": round(one.memory / 1e9, 1),
                "gpus": one.gpus,
                "estimated_tokens_per_second": None if one.tokens is None else round(one.tokens, 1),
                "estimated_step_ms": None if one.seconds is None else round(one.seconds * 1e3, 3),
            }
            for one in found
        ],
        "published": [
            {"model": one.model, "tokens_per_second": one.figure, "setting": one.setting, "source": one.source}
            for one in PUBLISHED
        ],
    }


def show(found: Sequence[Throughput], console: Console, assumptions: Assumptions = ASSUMED) -> None:
    """A line for each model, GPU, kind of weights and context; below it what others say."""
    lines: dict[tuple[str, str, str, int], dict[int, Throughput]] = {}
    for one in found:
        lines.setdefault((one.model, one.gpu, one.weights, one.context), {})[one.batch] = one
    batches = sorted({one.batch for one in found})
    heads = [f"{batch} at once" for batch in batches]
    estimates = Table(
        "model", "GPU", "weights", "context", *heads, title="decoding: tokens a second / GPUs (estimated)"
    )
    for (model, gpu, weights, context), by_batch in lines.items():
        cells = [_cell(by_batch[batch]) for batch in batches]
        estimates.add_row(model, gpu, weights, f"{context:,}", *cells)
    console.print(estimates)
    console.print(
        Text(f"estimated, never measured: {assumptions}, {EXCHANGE * 1e6:g} µs an exchange, KV cache in fp16")
    )
    others = Table("model", "tokens a second", "setting", "source", title="what others have published")
    for published in PUBLISHED:
        others.add_row(published.model, published.figure, published.setting, published.source)
    console.print(others)


def _cell(one: Throughput) -> str:
    if one.tokens is None:
        return f"needs {one.memory / 1e9:,.0f} GB"
    return f"{one.tokens:,.0f} / {one.gpus}"
