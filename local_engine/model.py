"""A llama-family decoder over packed tokens.

The tokens of all sequences of a step lie one after another in one matrix, so each projection runs once for the whole
batch, whatever mix of prompts and single decoded tokens it holds. Only attention goes sequence by sequence, each over
its own keys and values. Logits are computed for the rows that will be sampled, not for every token of a prompt.

Dim letters: T packed tokens, S sequences sampled, D model width, H query heads, K key/value heads, d head width,
F feed-forward width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.reference import attention, rms_norm, rope, rope_table, swiglu
from local_engine.config import ModelConfig
from local_engine.weights import LayerWeights, Weights


class KVMemory:
    """Keys and values of every block, one tensor for each layer.

    [2K, blocks, block_size * d]: heads outermost, so that gathering a sequence's blocks gives contiguous
    [2K, L, d] in one operation. Keys are heads 0 .. K-1, values K .. 2K-1.
    """

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int) -> None:
        self.head_dim = config.head_dim
        self.num_kv_heads = config.num_kv_heads
        shape = (2 * config.num_kv_heads, num_blocks, block_size * config.head_dim)
        # `empty`: pages that no sequence has reached yet cost no memory, and a position is read only after its write
        self.layers = [torch.empty(shape) for _ in range(config.num_layers)]

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """slots [T] (block * block_size + offset), keys_values [T, 2K, d]."""
        memory = self.layers[layer]
        memory.view(len(memory), -1, self.head_dim).index_copy_(1, slots, keys_values.transpose(0, 1))

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` positions of a block table [n] -> keys and values, [K, length, d] each."""
        memory = self.layers[layer]
        gathered = memory.index_select(1, blocks).view(len(memory), -1, self.head_dim)[:, :length]
        return gathered[: self.num_kv_heads], gathered[self.num_kv_heads :]


@dataclass(frozen=True, slots=True)
class Span:
    """The rows start .. end of the packed tokens belong to one sequence, whose cache then holds `length` positions."""

    start: int
    end: int
    length: int
    blocks: Tensor  # [n] the sequence's block table


@dataclass(frozen=True, slots=True)
class Batch:
    tokens: Tensor  # [T]
    positions: Tensor  # [T] position of each token in its own sequence
    slots: Tensor  # [T] where its key and value go
    spans: list[Span]
    sampled_rows: Tensor  # [S]


class Model:
    def __init__(self, config: ModelConfig, weights: Weights, max_length: int) -> None:
        self.config = config
        self.weights = weights
        self.cos, self.sin = rope_table(max_length, weights.inverse_frequencies)  # [max_length, d/2] each

    def forward(self, batch: Batch, memory: KVMemory) -> Tensor:
        """Writes the batch's keys and values and returns logits [S, V]."""
        eps = self.config.norm_eps
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]  # [T, d/2]
        x = self.weights.embedding[batch.tokens]  # [T, D]
        for index, layer in enumerate(self.weights.layers):
            x = x + self._attend(index, layer, rms_norm(x, layer.attention_norm, eps), batch, memory, cos, sin)
            x = x + linear(swiglu(linear(rms_norm(x, layer.ffn_norm, eps), layer.gate_up)), layer.ffn_down)
        return linear(rms_norm(x[batch.sampled_rows], self.weights.final_norm, eps), self.weights.lm_head)

    def _attend(
        self, index: int, layer: LayerWeights, x: Tensor, batch: Batch, memory: KVMemory, cos: Tensor, sin: Tensor
    ) -> Tensor:
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = linear(x, layer.qkv).view(len(x), heads + 2 * kv_heads, self.config.head_dim)  # [T, H + 2K, d]
        turned = rope(qkv[:, : heads + kv_heads], cos, sin)  # queries and keys turn alike
        query = turned[:, :heads]
        memory.write(index, batch.slots, torch.cat((turned[:, heads:], qkv[:, heads + kv_heads :]), dim=1))
        mixed = [
            attention(query[span.start : span.end], *memory.read(index, span.blocks, span.length))
            for span in batch.spans
        ]  # [rows of the span, H, d] each
        return linear(torch.cat(mixed).view(len(x), -1), layer.attention_out)  # [T, D]
