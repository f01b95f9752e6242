"""What a model will take of the memory, counted before any of it is read; and the size of the KV cache.

Counted is what an engine can come to hold. Memory for keys and values is taken from the system page by page, as
sequences reach it, so the engine starts far below its plan. The model's file is not counted: its pages are the system's
cache, which gives way.

On GPUs their memory alone is counted. Nothing else wants it, so the cache takes what the rest leaves, and at once.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local_engine.config import EngineConfig
from local_engine.errors import EngineError
from local_engine.model_config import ModelConfig

if TYPE_CHECKING:
    from local_engine.files.checkpoint import Checkpoint

RUNTIME = 320 << 20  # bytes of one process before any model: Python, torch, tokenizer, server
RESERVE = 20  # a twentieth of what is available stays free
STEP_TOKENS = 512  # tokens of one step at most, where the budget is found by measurement
FULL_SEQUENCES = 4  # of the longest kind, that a cache of the default size holds
SHARE = 4  # a cache of the default size takes at most a quarter of what is available
FLOAT = 4  # bytes
GPU_RESERVE = 10  # a tenth of a GPU's memory stays free: for recorded steps, workspaces of libraries, and fragments
ATTENTION_WORKSPACE = 256 << 20  # bytes at most, of `kernels/gpu/attention.py`


@dataclass(frozen=True, slots=True)
class Available:
    """Memory that this process and its children may still take."""

    bytes: int
    source: str  # who sets the bound: `machine`, `control group` or `GPU`


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the model: its share in one process, and how it is stored."""

    name: str
    shape: tuple[int, ...]
    kind: str
    file_bytes: int
    packed_bytes: int = 0  # in the engine's own format, before a backend prepares it; 0: it has none
    tiled_bytes: int = 0  # as the C++ kernels multiply with it


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    bytes: int  # of all processes together
    note: str = ""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    lines: tuple[Line, ...]
    available: Available
    processes: int
    context_length: int  # positions of one sequence
    num_blocks: int
    block_size: int
    block_bytes: int  # of one process
    file_bytes: int

    @property
    def total(self) -> int:
        return sum(line.bytes for line in self.lines)

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def table(self) -> str:
        """For people: one line for each part, the total, and what there is."""
        rows = [(line.what, _amount(line.bytes), line.note) for line in self.lines]
        rows.append(("in all", _amount(self.total), f"at most; {self.processes} processes" * (self.processes > 1)))
        rows.append(("available", _amount(self.available.bytes), f"by the {self.available.source}"))
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(f"{what:{first}}  {amount:>{second}}  {note}".rstrip() for what, amount, note in rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "bytes": {line.what: line.bytes for line in self.lines},
            "total_bytes": self.total,
            "available_bytes": self.available.bytes,
            "available_by": self.available.source,
            "file_bytes": self.file_bytes,
            "processes": self.processes,
            "context_length": self.context_length,
            "kv_blocks": self.num_blocks,
            "kv_tokens": self.kv_tokens,
        }


def plan(checkpoint: "Checkpoint", config: EngineConfig, available: Available | None = None) -> MemoryPlan:
    """Reads no tensor. Raises `EngineError`, with the numbers and a remedy, when the model does not fit."""
    from local_engine.files.checkpoint import open_checkpoint  # torch comes with it
    from local_engine.files.loading import MATRICES, head_rows, layout
    from local_engine.kv_memory import bytes_per_block
    from local_engine.parallel import Shard
    from local_engine.quantisation import estimate

    def tensors_of(checkpoint: "Checkpoint", shard: Shard) -> list[Tensor]:
        found = []
        for name, stored in layout(checkpoint, shard).items():
            decided = config.quant != "none" and name.rsplit(".", 1)[-1] in MATRICES
            packed, tiled = (
                estimate(config.quant, checkpoint.config, name, stored, tiled) if decided else 0
                for tiled in (False, True)
            )
            found.append(Tensor(name, stored.shape, stored.kind, stored.size, packed, tiled))
        return found

    shard = Shard(0, config.processes, config.experts)
    draft: Draft | None = None
    if config.draft not in ("off", "ngram"):
        with open_checkpoint(Path(config.draft)) as small:
            block = bytes_per_block(small.config, config.block_size, "fp32", Shard())
            own = tensors_of(small, Shard())
            draft = Draft(sum(kept_bytes(tensor, config) for tensor in own), block)
    tensors = tensors_of(checkpoint, shard)
    model = checkpoint.config
    if model.tied and shard.size > 1:  # the embedding is whole in each rank, the output its rows
        rows = len(head_rows(model.vocab_size, shard))
        tiled = -(-tensors[0].tiled_bytes * rows // model.vocab_size)
        tensors.append(Tensor("lm_head", (rows, model.dim), "tied", 0, tiled_bytes=tiled))
    return arrange(
        model,
        tensors,
        config,
        bytes_per_block(checkpoint.config, config.block_size, config.kv_number, shard),
        available or (gpu_memory(config.processes) if config.device == "cuda" else available_memory()),
        draft,
    )


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft model: it lives in one process, with memory of its own for every block."""

    weights: int  # bytes
    block_bytes: int


def arrange(
    model: ModelConfig,
    tensors: Iterable[Tensor],
    config: EngineConfig,
    block_bytes: int,
    available: Available,
    draft: Draft | None = None,
) -> MemoryPlan:
    """The plan out of sizes alone. `tensors`, `block_bytes`: the share of one process. Raises `EngineError`."""
    tensors = list(tensors)
    processes = config.processes
    limit = config.sequence_limit(model)
    kinds = sorted(
        {tensor.kind for tensor in tensors if tensor.shape[-1] > 1 and tensor.file_bytes}
    )  # vectors have one column
    file_bytes = sum(tensor.file_bytes for tensor in tensors)
    embedding = sum(kept_bytes(tensor, config) for tensor in tensors if tensor.name == "embedding")
    weights = sum(kept_bytes(tensor, config) for tensor in tensors) - embedding
    kept = "fp32" if config.kernels == "reference" else f"as {config.quant}"
    on_gpu = config.device == "cuda"
    each = " for each process" if processes > 1 else ""
    lines = [
        Line("weights", weights * processes, f"{kept}; {_amount(file_bytes)} in the file{each}, {', '.join(kinds)}"),
        Line("embedding", embedding * processes),
        Line("one step", step_bytes(model, config, limit) * processes),
    ]
    if not on_gpu:
        note = f"{config.quant} weights, and one matrix"
        lines.insert(2, Line("while loading", loading_bytes(tensors) * processes, note))
        lines.append(Line("Python and torch", RUNTIME * processes))
    if draft is not None:
        lines.append(Line("draft model", draft.weights))
    block = block_bytes * processes + (draft.block_bytes if draft else 0)
    fixed = sum(line.bytes for line in lines)
    room = available.bytes - available.bytes // (GPU_RESERVE if on_gpu else RESERVE) - fixed
    blocks, note = cache_size(config, limit, block, room, available, fixed)
    note = f"{blocks * config.block_size} tokens in {blocks} blocks, {config.kv_number}" + note
    lines.insert(2 if on_gpu else 3, Line("keys and values", blocks * block, note))
    return MemoryPlan(
        tuple(lines), available, processes, limit, blocks, config.block_size, block_bytes, file_bytes * processes
    )


def cache_size(
    config: EngineConfig, limit: int, block_bytes: int, room: int, available: Available, fixed: int
) -> tuple[int, str]:
    """Blocks of the KV cache, and what is to be said of it. Always enough for one sequence of `limit` positions.

    Raises `EngineError` when they do not fit into `room` bytes (`fixed`: bytes of everything else).
    """
    one = -(-limit // config.block_size)
    fit = max(0, room) // block_bytes
    numbers = (
        f"{_amount(available.bytes)} are available (by the {available.source}), {_amount(fixed)} are needed besides"
    )
    if config.kv_tokens is not None:
        if config.kv_tokens < limit:
            raise EngineError(
                f"`kv_tokens` is {config.kv_tokens}, less than the context length {limit}\n"
                f"hint: lower it with `--context-length`, or give `--kv-tokens {limit}` or more"
            )
        blocks = -(-config.kv_tokens // config.block_size)
        if blocks > fit:
            raise EngineError(
                f"a KV cache of {config.kv_tokens} tokens takes {_amount(blocks * block_bytes)}, which does not fit: "
                f"{numbers}\nhint: {_remedy(config, limit, fit, one)}"
            )
        return blocks, ""
    if one > fit:
        raise EngineError(
            f"one sequence of {limit} tokens takes {_amount(one * block_bytes)} of keys and values, which do not fit: "
            f"{numbers}\nhint: {_remedy(config, limit, fit, one)}"
        )
    if config.device == "cuda":
        return fit, ""
    usual = max(one, min(FULL_SEQUENCES * one, available.bytes // SHARE // block_bytes))
    if usual > fit:
        return fit, f"; made smaller to fit, {usual * config.block_size} would be usual"
    return usual, ""


def _remedy(config: EngineConfig, limit: int, fit: int, one: int) -> str:
    """What would fit, most useful first."""
    tokens = fit * config.block_size
    half = "half", 1.5
    share, times = {"fp32": ("a quarter", 3), "fp16": half, "bf16": half, "int8": ("", 0)}[config.kv_number]
    smaller = f"`--kv-type int8` takes {share}"
    if fit >= one:
        return f"`--kv-tokens {tokens}` fits" + f", {smaller}" * bool(share)
    if tokens >= min(256, limit):
        return f"`--context-length {tokens}` fits" + f", {smaller}" * bool(share)
    if share and times * fit >= one:
        return smaller
    return "the model is too large for this machine: choose a smaller one, or end what else takes memory"


def step_bytes(model: ModelConfig, config: EngineConfig, limit: int) -> int:
    """Bytes of intermediate results of one process's largest step: whatever lives at the same time, generously."""
    tokens = max(config.token_budget or STEP_TOKENS, config.max_running)
    heads = -(-model.num_heads // config.processes)
    kv_heads = -(-model.num_kv_heads // config.processes)
    ffn = (
        model.ffn_dim if model.experts is None else max(model.ffn_dim, model.experts.ffn_dim * model.experts.per_token)
    )
    rows = tokens * (4 * model.dim + 3 * (heads + 2 * kv_heads) * model.head_dim + 3 * -(-ffn // config.processes))
    logits = 2 * tokens * model.vocab_size  # of every row, where a request wants the prompt's probabilities
    if config.kernels == "cpu":  # they read keys and values where they lie, some at a time
        return FLOAT * (rows + logits)
    if config.kernels == "triton":
        return FLOAT * (rows + logits) + ATTENTION_WORKSPACE
    return FLOAT * (rows + logits + _attention_floats(heads, kv_heads, model.head_dim, tokens, limit))


def _attention_floats(heads: int, kv_heads: int, width: int, tokens: int, limit: int) -> int:
    """What the reference holds of the longest sequence."""
    scores = 2 * heads * min(tokens, limit) * limit  # before and after the softmax
    return scores + 2 * 2 * kv_heads * width * limit  # its keys and values, gathered out of their blocks


def loading_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that one process takes beside the result: the packed matrices until all are prepared, and the largest one
    as it is read."""
    packed, largest = 0, 0
    for tensor in tensors:
        packed += tensor.packed_bytes
        largest = max(largest, _as_floats(tensor))
    return packed + 2 * largest


def kept_bytes(tensor: Tensor, config: EngineConfig) -> int:
    """Bytes in memory after loading: the reference multiplies with fp32."""
    if config.kernels == "triton":
        half = config.dtype in ("fp16", "bf16")
        return tensor.packed_bytes or _as_floats(tensor) // (2 if half else 1)
    return tensor.tiled_bytes if config.kernels == "cpu" and tensor.tiled_bytes else _as_floats(tensor)


def _as_floats(tensor: Tensor) -> int:
    return prod(tensor.shape) * FLOAT


def available_memory(root: Path = Path("/")) -> Available:
    """The least of what the machine has left and of what the control groups around this process leave it."""
    machine = _machine(root)
    group = _control_group(root)
    return Available(group, "control group") if group is not None and group < machine else Available(machine, "machine")


def gpu_memory(processes: int) -> Available:
    """Of the GPUs of that many processes together, each counted as the one that has least left."""
    import torch

    return Available(processes * min(torch.cuda.mem_get_info(index)[0] for index in range(processes)), "GPU")


def _machine(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no Linux: all there is


def _control_group(root: Path) -> int | None:
    """Bytes left under the tightest limit on the way up from this process's group; None: there is no limit.

    Source of the files: the kernel's cgroup-v2 and cgroup-v1/memory documentation.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(inside), -1, -1):
            rest = _left_in(top.joinpath(*inside[:depth]), *names)
            if rest is not None:
                left.append(rest)
    return min(left, default=None)


def _left_in(group: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    try:
        limit = (group / limit_name).read_text().strip()
        if not limit.isdigit() or int(limit) >= 1 << 60:  # `max`, or version 1's way to say it
            return None
        used = int((group / usage_name).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not there, not readable, or not ours to see
        return None
    return max(0, int(limit) - used + int(stat.get(cache_name, 0)))


def _amount(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
