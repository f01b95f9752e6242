"""A whole decoder and a step of it, described for backends that run a step in one call.

Dim letters: T tokens, S sequences, R rows of logits, D model width, H query heads, K key/value heads, d head width,
F feed-forward width, E experts, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kernels.draw import Draw
from kernels.packed import Matrix


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """Many feed-forward networks, of which each token passes a few."""

    router: Tensor  # [E, D]
    gate_up: tuple[Matrix, ...]  # E matrices [2F, D]
    down: tuple[Matrix, ...]  # E matrices [D, F]
    per_token: int
    normalise: bool


@dataclass(frozen=True, slots=True)
class DenseLayer:
    gate_up: Matrix  # [2F, D], gate first
    down: Matrix  # [D, F]
    gate_up_bias: Tensor | None  # [2F]
    down_bias: Tensor | None  # [D]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    attention_norm: Tensor  # [D]
    qkv: Matrix  # [(H + 2K) * d, D]
    qkv_bias: Tensor | None
    query_norm: Tensor | None  # [d]
    key_norm: Tensor | None  # [d]
    attention_out: Matrix  # [D, H * d]
    attention_out_bias: Tensor | None
    ffn_norm: Tensor  # [D]
    ffn: DenseLayer | ExpertLayer
    turns: bool  # whether queries and keys are turned by their positions
    window: int | None  # positions that a query sees; None: all


@dataclass(frozen=True, slots=True)
class Decoder:
    """Matrices are prepared by the backend that it is given to."""

    width: int  # D
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # d
    eps: float  # of every norm
    embedding: Matrix  # [V, D]
    lm_head: Matrix  # [V, D]
    final_norm: Tensor  # [D]
    cos: Tensor  # [positions, d/2]
    sin: Tensor
    layers: tuple[DecoderLayer, ...]


@dataclass(frozen=True, slots=True)
class StepInput:
    """As `local_engine.batch.Batch`, whose numbers these are, and the memory of keys and values of each layer."""

    tokens: Sequence[int]  # T
    positions: Sequence[int]  # T
    slots: Sequence[int]  # T
    starts: Sequence[int]  # S + 1
    lengths: Sequence[int]  # S
    tables: Sequence[Sequence[int]]  # S
    logit_rows: Sequence[int]
    hidden_rows: Sequence[int]
    memory: Sequence[Tensor]  # of each layer [2K, blocks, block size, d]
    scales: Sequence[Tensor | None]  # of each layer, int8 only
    draws: Sequence[tuple[int, Draw]] = ()  # places in `logit_rows` whose next token is drawn, where that can be done


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Tensors stay where the step ran. They are the caller's: no later step writes into them."""

    logits: Tensor  # [R, V] fp32
    hidden: Tensor  # [hidden rows, D] fp32, after the final norm
    best: list[int]  # R: the token of the largest logit, the lowest of equal ones; -1: not all are finite, or not known
    drawn: list[int] | None = None  # R: the token that was drawn; -1: none was. None: this runner draws none


class StepRunner(ABC):
    """A decoder made ready to run. Keeps nothing from step to step but memory to work in: one caller at a time."""

    draws: bool = False  # whether it draws tokens itself, as `StepInput.draws` says
    runs_to_warm: int = 0  # of a step of a new size, until nothing is compiled or recorded any more

    def sizes(self, most: int) -> Sequence[int]:
        """Up to `most`: the numbers of answers that are new sizes of a step. None where nothing has to be warmed."""
        return ()

    @abstractmethod
    def run(self, step: StepInput) -> StepOutput:
        """Writes the step's keys and values into the memory. Raises `MemoryError`, and `IndexError` for what is not in
        its vocabulary, its memory or the positions that it can turn."""
