"""How the engine runs a model: every limit that keeps it inside its memory and its time."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from local_engine.errors import EngineError
from local_engine.model_config import ModelConfig

if TYPE_CHECKING:
    from local_engine.kv_memory import KVType  # torch comes with it


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine runs: every limit that keeps it inside its memory and its time."""

    max_running: int = 8  # sequences that share a step
    max_waiting: int = 64  # requests queued behind them; beyond: `QueueFull`
    token_budget: int | None = None  # tokens of one step; None: chosen by measurement for `step_seconds`
    step_seconds: float = 0.15  # how long a step may hold up the running sequences
    context_length: int | None = None  # positions of one sequence; None: what the model allows
    block_size: int = 16  # positions of one KV cache block
    kv_tokens: int | None = None  # positions of the whole KV cache; None: four full contexts, within a quarter of RAM
    kernels: Literal["auto", "triton", "cpu", "reference"] = "auto"  # what computes: see `backend.py`
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where it computes
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"  # of what passes between operations; fp32 but with `triton`
    kernel_tables: Path | None = None  # `triton`'s launch configurations, as tuning found them; None: those shipped
    kv_type: Literal["auto", "fp32", "fp16", "bf16", "int8"] = "auto"  # how keys and values are kept
    prefix_cache: bool = True  # whether the blocks of a prompt seen before are used again
    quant: Literal["none", "int8", "int4", "int3", "fp8", "mixed"] = "mixed"  # see `quantisation.py`
    cache_folder: Path | None = None  # where quantised weights are kept between starts; None: nowhere
    draft: str = "ngram"  # who proposes tokens ahead: `off`, `ngram`, or the path of a small model
    draft_tokens: int = 4  # most tokens proposed at once
    processes: int = 1  # processes that run the model together (tensor parallelism)
    experts: Literal["split", "spread"] = "split"  # how those share the experts
    threads: int | None = None  # None: one for each core
    default_temperature: float = 0.0  # greedy when a request does not say: small models babble at 1.0
    default_max_tokens: int = 1024  # bound on the answer when a request does not say
    request_timeout: float | None = None  # seconds a request may take that names no deadline of its own; None: any
    drain_seconds: float = 20.0  # how long running requests may finish after a stop signal

    def __post_init__(self) -> None:
        for name in ("max_running", "block_size", "default_max_tokens", "draft_tokens", "processes"):
            if getattr(self, name) < 1:
                raise EngineError(f"`{name}` is {getattr(self, name)}, it must be at least 1")
        if self.max_waiting < 0:
            raise EngineError(f"`max_waiting` is {self.max_waiting}, it must not be negative")
        if self.token_budget is not None and self.token_budget < self.max_running:
            raise EngineError(
                f"`token_budget` is {self.token_budget}, less than `max_running` ({self.max_running})\n"
                "hint: every running sequence needs one token of each step"
            )

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def kv_number(self) -> "KVType":
        """The numbers of the KV cache. `auto` follows `kernels`: half as wide where the kernels read them directly."""
        if self.kv_type != "auto":
            return self.kv_type
        if self.kernels == "triton":
            return "fp16" if self.dtype == "auto" else self.dtype  # products take both sides in one type
        return "fp16" if self.kernels == "cpu" else "fp32"

    def sequence_limit(self, model: ModelConfig) -> int:
        """Positions one sequence may take."""
        return min(self.context_length or model.context_length, model.context_length)
