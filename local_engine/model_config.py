"""What a model is: the shape that its files state, for every architecture that `model.py` runs.

`hugging_face_config.py` and `gguf_config.py` read it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from local_engine.errors import ModelFileError

Architecture = Literal["llama", "smollm3", "qwen2", "qwen3", "qwen3_moe", "mixtral"]

# Far above any real model: what is allocated or looped over before a tensor of the file backs it.
MAX_LAYERS = 1 << 10
MAX_EXPERTS = 1 << 17  # of all layers together
MAX_CONTEXT = 1 << 22
MAX_SIZE = 1 << 24  # of every other count: widths, heads, vocabulary


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: the base, and how long contexts stretch it."""

    theta: float = 10000.0
    scaling: str = "none"  # none | linear | llama3 | yarn
    parameters: dict[str, Any] = field(default_factory=dict)  # of the scaling, under Hugging Face's names


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts in place of the feed-forward network of some layers."""

    count: int  # experts of a layer
    per_token: int  # chosen for each token
    ffn_dim: int  # feed-forward width of one expert
    normalise: bool  # whether the chosen weights are scaled to sum 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: Architecture
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int  # of the layers without experts
    vocab_size: int  # rows of the embedding
    context_length: int  # positions the model was trained for
    norm_eps: float
    rope: RopeConfig = field(default_factory=RopeConfig)
    tied: bool = False  # the output matrix is the embedding
    qk_norm: bool = False  # queries and keys are normalised, head by head, before they turn
    experts: ExpertsConfig | None = None
    sparse_layers: frozenset[int] = frozenset()  # which layers have experts
    rotary_layers: frozenset[int] | None = None  # which layers turn queries and keys; None: all
    windows: tuple[int | None, ...] = ()  # sliding window of each layer; empty: none has one
    biases: frozenset[str] = frozenset()  # which projections have one: qkv, attention_out, ffn

    def turns(self, layer: int) -> bool:
        return self.rotary_layers is None or layer in self.rotary_layers

    def window(self, layer: int) -> int | None:
        """Positions a query sees, its own included; None: all before it."""
        return self.windows[layer] if self.windows else None


def check(config: ModelConfig, where: str) -> ModelConfig:
    """The same configuration. Raises `ModelFileError`, beginning with `where`, when it contradicts itself."""

    def demand(true: bool, what: str) -> None:
        if not true:
            raise ModelFileError(f"{where}: {what}")

    experts = config.experts
    limits = {"num_layers": MAX_LAYERS, "context_length": MAX_CONTEXT}
    for name in (
        "num_layers",
        "dim",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "ffn_dim",
        "vocab_size",
        "context_length",
    ):
        value, most = getattr(config, name), limits.get(name, MAX_SIZE)
        demand(value > 0, f"`{name}` is {value}, it must be positive")
        demand(value <= most, f"`{name}` is {value}, at most {most} is possible")
    demand(
        config.num_heads % config.num_kv_heads == 0,
        f"{config.num_heads} heads cannot share {config.num_kv_heads} key/value heads",
    )
    demand(config.head_dim % 2 == 0, f"`head_dim` is {config.head_dim}, rotary embedding needs an even width")
    demand(0 < config.norm_eps < 1, f"`norm_eps` is {config.norm_eps}, not between 0 and 1")
    demand(config.rope.theta > 1, f"the base of the rotary embedding is {config.rope.theta}, it must be above 1")
    demand(all(w is None or w > 0 for w in config.windows), "a sliding window must be positive")
    if experts is not None:
        every = experts.count * len(config.sparse_layers)
        demand(experts.count > 0, f"there are {experts.count} experts, it must be a positive number")
        demand(every <= MAX_EXPERTS, f"there are {every} experts in all layers, at most {MAX_EXPERTS} are possible")
        demand(
            0 < experts.per_token <= experts.count,
            f"{experts.per_token} experts for each token cannot be chosen from {experts.count}",
        )
        demand(0 < experts.ffn_dim <= MAX_SIZE, f"the width of an expert is {experts.ffn_dim}")
        demand(bool(config.sparse_layers), f"there are {experts.count} experts, but no layer has a router")
    return config
