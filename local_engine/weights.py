"""The tensors of a decoder, named and laid out as `model.py` wants them; `files/loading.py` fills them.

D model width, H query heads, K key/value heads, d head width, F feed-forward width, E experts, V vocabulary; all of
them this process's share where several run one model together. Projections that read the same input are stacked into
one matrix (query, key, value; gate, up), because one large product is faster than several small ones. Query and key
rows are ordered for half rotation: element i turns with element i + d/2.
"""

from dataclasses import dataclass

from torch import Tensor

from kernels.packed import Matrix


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """One feed-forward network: down(silu(gate x) * (up x))."""

    gate_up: Matrix  # [2F, D], gate first
    down: Matrix  # [D, F]
    gate_up_bias: Tensor | None = None  # [2F]
    down_bias: Tensor | None = None  # [D]


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """A router and this process's experts, `first` .. `first + E - 1` of all of them."""

    router: Tensor  # [all experts, D] fp32
    gate_up: tuple[Matrix, ...]  # E matrices [2F, D]
    down: tuple[Matrix, ...]  # E matrices [D, F]
    first: int = 0


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: Tensor  # [D]
    qkv: Matrix  # [(H + 2K) * d, D]
    attention_out: Matrix  # [D, H * d]
    ffn_norm: Tensor  # [D]
    ffn: DenseWeights | ExpertWeights
    qkv_bias: Tensor | None = None  # [(H + 2K) * d]
    attention_out_bias: Tensor | None = None  # [D]
    query_norm: Tensor | None = None  # [d]
    key_norm: Tensor | None = None  # [d]


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: Matrix  # [V, D]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor  # [D]
    lm_head: Matrix  # [V, D]; the embedding itself where the model ties them; a share of the rows under a `Shard`
    inverse_frequencies: Tensor  # [d/2] radians a position, scaling applied
    rope_factor: float = 1.0  # what cosine and sine are multiplied by (yarn)
