"""What the model is (`ModelConfig`, from its file) and how the engine runs it (`EngineConfig`, from the operator)."""

import os
from dataclasses import dataclass

from local_engine.errors import EngineError, ModelFileError
from local_engine.gguf import GGUFFile

ARCHITECTURES = ("llama",)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a llama-family decoder."""

    architecture: str
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    context_length: int  # positions the model was trained for
    rope_theta: float
    norm_eps: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> "ModelConfig":
        """Raises `ModelFileError` when the file describes a model that this engine would run wrongly."""
        arch = file.string("general.architecture")
        if arch not in ARCHITECTURES:
            raise ModelFileError(
                f"{file.path.name}: the architecture `{arch}` is not supported\n"
                f"hint: this engine runs {', '.join(ARCHITECTURES)}"
            )
        if file.integer(f"{arch}.expert_count", 0):
            raise ModelFileError(f"{file.path.name}: `{arch}.expert_count` is set, but experts are not supported")
        scaling = file.string(f"{arch}.rope.scaling.type", "none")
        if scaling != "none":
            raise ModelFileError(f"{file.path.name}: the rope scaling `{scaling}` is not supported")
        dim, heads = file.integer(f"{arch}.embedding_length"), file.integer(f"{arch}.attention.head_count")
        head_dim = file.integer(f"{arch}.attention.key_length", dim // heads if heads > 0 else 0)
        config = cls(
            architecture=arch,
            num_layers=file.integer(f"{arch}.block_count"),
            dim=dim,
            num_heads=heads,
            num_kv_heads=file.integer(f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn_dim=file.integer(f"{arch}.feed_forward_length"),
            vocab_size=file.tensor("token_embd.weight").shape[0],
            context_length=file.integer(f"{arch}.context_length"),
            rope_theta=file.number(f"{arch}.rope.freq_base", 10000.0),
            norm_eps=file.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        )
        config._check(file)
        return config

    def _check(self, file: GGUFFile) -> None:
        def demand(true: bool, what: str) -> None:
            if not true:
                raise ModelFileError(f"{file.path.name}: {what}")

        for name in ("num_layers", "dim", "num_heads", "num_kv_heads", "head_dim", "ffn_dim", "context_length"):
            demand(getattr(self, name) > 0, f"`{name}` is {getattr(self, name)}, it must be positive")
        demand(self.num_heads % self.num_kv_heads == 0, f"{self.num_heads} heads cannot share {self.num_kv_heads}")
        demand(self.head_dim % 2 == 0, f"`head_dim` is {self.head_dim}, rotary embedding needs an even width")
        rotated = file.integer(f"{self.architecture}.rope.dimension_count", self.head_dim)
        demand(rotated == self.head_dim, f"only {rotated} of {self.head_dim} head dimensions rotate: not supported")
        # the rotary table is the one allocation that no tensor of the file backs
        demand(self.context_length <= 1 << 22, f"`context_length` is {self.context_length}, at most {1 << 22}")
        demand(self.norm_eps > 0 and self.rope_theta > 0, "`norm_eps` and `rope_theta` must be positive")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine runs: every limit that keeps it inside its memory and its time."""

    max_running: int = 8  # sequences that share a step
    max_waiting: int = 64  # requests queued behind them; beyond: `QueueFull`
    token_budget: int = 64  # tokens of one step; bounds how long a prompt can hold up the running sequences
    context_length: int | None = None  # positions of one sequence; None: what the model allows
    block_size: int = 16  # positions of one KV cache block
    kv_tokens: int | None = None  # positions of the whole KV cache; None: four full contexts, within a quarter of RAM
    threads: int | None = None  # None: one for each core
    default_temperature: float = 0.0  # greedy when a request does not say: small models babble at 1.0
    default_max_tokens: int = 1024  # bound on the answer when a request does not say
    drain_seconds: float = 20.0  # how long running requests may finish after a stop signal

    def __post_init__(self) -> None:
        for name in ("max_running", "token_budget", "block_size", "default_max_tokens"):
            if getattr(self, name) < 1:
                raise EngineError(f"`{name}` is {getattr(self, name)}, it must be at least 1")
        if self.max_waiting < 0:
            raise EngineError(f"`max_waiting` is {self.max_waiting}, it must not be negative")
        if self.token_budget < self.max_running:
            raise EngineError(
                f"`token_budget` is {self.token_budget}, less than `max_running` ({self.max_running})\n"
                "hint: every running sequence needs one token of each step"
            )

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    def sequence_limit(self, model: ModelConfig) -> int:
        """Positions one sequence may take."""
        return min(self.context_length or model.context_length, model.context_length)

    def num_blocks(self, model: ModelConfig) -> int:
        """Blocks of the KV cache; always enough for one full sequence.

        Raises `EngineError` when `kv_tokens` cannot hold one full sequence.
        """
        limit = self.sequence_limit(model)
        if self.kv_tokens is not None:
            if self.kv_tokens < limit:
                raise EngineError(
                    f"`kv_tokens` is {self.kv_tokens}, less than the context length {limit}\n"
                    "hint: lower `context_length` or raise `kv_tokens`"
                )
            return -(-self.kv_tokens // self.block_size)
        bytes_per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4  # K and V, fp32
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        tokens = max(limit, min(4 * limit, memory // 4 // bytes_per_token))
        return -(-tokens // self.block_size)
