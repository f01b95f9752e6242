"""One decoder for every architecture of `ModelConfig`, over packed tokens.

The tokens of all sequences of a step lie one after another in one matrix, so each projection runs once for the whole
batch, whatever mix of prompts and single decoded tokens it holds. Only attention goes sequence by sequence, each over
its own keys and values. Logits are computed for the rows that will be sampled, not for every token of a prompt.

Dim letters: T packed tokens, R rows of logits, D model width, H query heads, K key/value heads, d head width,
V vocabulary. H and K are this process's share where several run one model together.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.decoder import Decoder, DecoderLayer, DenseLayer, ExpertLayer, StepInput
from kernels.dispatch import REFERENCE, Backend
from kernels.packed import Matrix
from kernels.reference import rope_table
from local_engine.batch import Batch
from local_engine.kv_memory import ONE_PROCESS, KVMemory
from local_engine.model_config import ModelConfig
from local_engine.moe import mixture
from local_engine.parallel import Group, Shard
from local_engine.weights import DenseWeights, ExpertWeights, LayerWeights, Weights


@dataclass(frozen=True, slots=True)
class Output:
    logits: Tensor  # [R, V] of `Batch.logit_rows`
    hidden: Tensor  # [rows, D] of `Batch.hidden_rows`, after the final norm
    best: list[int] | None = None  # R: the token of the largest logit; -1: not all are finite, or not known
    drawn: list[int] | None = None  # R: the token drawn as `Batch.draws` says; -1: none was


@dataclass(frozen=True, slots=True)
class _Step:
    """What every layer of one step shares."""

    batch: Batch
    memory: KVMemory
    slots: Tensor  # [T]
    tables: list[Tensor]  # of each sequence, [its blocks]
    cos: Tensor  # [T, d/2]
    sin: Tensor  # [T, d/2]


class Model:
    """Weights and the arithmetic over them; keeps no state between steps.

    `max_length` is the number of positions that it can turn. `group` adds up the shares of a model that runs in
    several processes; each of them calls `forward` with the same batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        max_length: int,
        backend: Backend = REFERENCE,
        shard: Shard = ONE_PROCESS,
        group: Group | None = None,
    ) -> None:
        self.config = config
        self.backend = backend
        self.shard = shard
        self.group = group
        self.weights = _prepared(weights, backend)
        self.device = backend.device
        self.max_length = max_length
        self.num_heads = len(shard.part(config.num_heads, "attention heads"))
        self.num_kv_heads = len(shard.kv_part(config.num_kv_heads))
        cos, sin = rope_table(max_length, weights.inverse_frequencies, weights.rope_factor)
        self.cos, self.sin = cos.to(self.device), sin.to(self.device)  # [max, d/2] each
        # other processes have to be waited for in the middle of a step
        self.whole_step = backend.compile(self._describe()) if group is None else None

    def forward(self, batch: Batch, memory: KVMemory) -> Output:
        """Writes the batch's keys and values into `memory`; the same batch again writes the same ones."""
        if self.whole_step is not None:
            found = self.whole_step.run(
                StepInput(
                    batch.tokens,
                    batch.positions,
                    batch.slots,
                    batch.starts,
                    batch.lengths,
                    batch.tables,
                    batch.logit_rows,
                    batch.hidden_rows,
                    memory.layers,
                    memory.scales,
                    batch.draws,
                )
            )
            return Output(found.logits, found.hidden, found.best, found.drawn)
        positions = self._indices(batch.positions)
        step = _Step(
            batch=batch,
            memory=memory,
            slots=self._indices(batch.slots),
            tables=[self._indices(table) for table in batch.tables],
            cos=self.cos[positions],
            sin=self.sin[positions],
        )
        x = self.backend.embed(self.weights.embedding, self._indices(batch.tokens))  # [T, D]
        for index, layer in enumerate(self.weights.layers):
            x = x + self._attend(index, layer, self._norm(x, layer.attention_norm), step)
            x = x + self._feed_forward(layer, self._norm(x, layer.ffn_norm))
        logits = self._logits(self._final(x, batch.logit_rows))
        return Output(logits=logits, hidden=self._final(x, batch.hidden_rows))

    def _describe(self) -> Decoder:
        config, weights = self.config, self.weights

        def ffn(own: DenseWeights | ExpertWeights) -> DenseLayer | ExpertLayer:
            if isinstance(own, DenseWeights):
                return DenseLayer(own.gate_up, own.down, own.gate_up_bias, own.down_bias)
            assert config.experts is not None, "weights of experts for a model without"
            return ExpertLayer(own.router, own.gate_up, own.down, config.experts.per_token, config.experts.normalise)

        layers = (
            DecoderLayer(
                attention_norm=layer.attention_norm,
                qkv=layer.qkv,
                qkv_bias=layer.qkv_bias,
                query_norm=layer.query_norm,
                key_norm=layer.key_norm,
                attention_out=layer.attention_out,
                attention_out_bias=layer.attention_out_bias,
                ffn_norm=layer.ffn_norm,
                ffn=ffn(layer.ffn),
                turns=config.turns(index),
                window=config.window(index),
            )
            for index, layer in enumerate(weights.layers)
        )
        return Decoder(
            width=weights.final_norm.shape[0],
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.norm_eps,
            embedding=weights.embedding,
            lm_head=weights.lm_head,
            final_norm=weights.final_norm,
            cos=self.cos,
            sin=self.sin,
            layers=tuple(layers),
        )

    def _attend(self, index: int, layer: LayerWeights, x: Tensor, step: _Step) -> Tensor:
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv = self.backend.linear(x, layer.qkv, layer.qkv_bias)
        qkv = qkv.view(len(x), heads + 2 * kv_heads, self.config.head_dim)  # [T, H + 2K, d]
        turning, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]  # queries and keys turn alike
        if layer.query_norm is not None and layer.key_norm is not None:
            query = self._norm(turning[:, :heads], layer.query_norm)
            turning = torch.cat((query, self._norm(turning[:, heads:], layer.key_norm)), dim=1)
        if self.config.turns(index):
            turning = self.backend.rope(turning, step.cos, step.sin)
        memory = step.memory
        memory.write(index, step.slots, torch.cat((turning[:, heads:], value), dim=1))
        mixed = self.backend.paged_attention(
            turning[:, :heads],
            memory.layers[index],
            memory.scales[index],
            step.batch.starts,
            step.batch.lengths,
            step.tables,
            self.config.window(index),
        )  # [T, H, d]
        return self._sum(self.backend.linear(mixed.flatten(1), layer.attention_out, layer.attention_out_bias))

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> Tensor:
        ffn = layer.ffn
        if isinstance(ffn, DenseWeights):
            inner = self.backend.swiglu(self.backend.linear(x, ffn.gate_up, ffn.gate_up_bias))
            return self._sum(self.backend.linear(inner, ffn.down, ffn.down_bias))
        assert self.config.experts is not None, "weights of experts for a model without"
        return self._sum(mixture(x, ffn, self.config.experts, self.backend))

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.backend.linear(x, self.weights.lm_head, None).float()
        if self.group is not None and logits.shape[1] < self.config.vocab_size:
            return self.group.gather(logits)
        return logits

    def _final(self, x: Tensor, rows: list[int]) -> Tensor:
        return self._norm(x[self._indices(rows)], self.weights.final_norm)  # [rows, D]

    def _indices(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.backend.rms_norm(x, weight, self.config.norm_eps)

    def _sum(self, x: Tensor) -> Tensor:
        return x if self.group is None else self.group.sum(x)


def _prepared(weights: Weights, backend: Backend) -> Weights:
    """The same weights on the backend's device, each matrix as it wants it; a matrix in two places stays one."""
    seen: dict[int, Matrix] = {}

    def prepare(matrix: Matrix) -> Matrix:
        if id(matrix) not in seen:
            seen[id(matrix)] = backend.prepare(matrix)
        return seen[id(matrix)]

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(backend.device, backend.dtype)

    def move_if_any(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else move(tensor)

    def ffn(old: DenseWeights | ExpertWeights) -> DenseWeights | ExpertWeights:
        if isinstance(old, DenseWeights):
            return replace(
                old,
                gate_up=prepare(old.gate_up),
                down=prepare(old.down),
                gate_up_bias=move_if_any(old.gate_up_bias),
                down_bias=move_if_any(old.down_bias),
            )
        if backend.prepare_experts is None:
            gate_up, down = tuple(map(prepare, old.gate_up)), tuple(map(prepare, old.down))
        else:
            gate_up, down = backend.prepare_experts(old.gate_up, old.down)
        return replace(old, router=move(old.router), gate_up=gate_up, down=down)

    def layer(old: LayerWeights) -> LayerWeights:
        return replace(
            old,
            attention_norm=move(old.attention_norm),
            qkv=prepare(old.qkv),
            attention_out=prepare(old.attention_out),
            ffn_norm=move(old.ffn_norm),
            ffn=ffn(old.ffn),
            qkv_bias=move_if_any(old.qkv_bias),
            attention_out_bias=move_if_any(old.attention_out_bias),
            query_norm=move_if_any(old.query_norm),
            key_norm=move_if_any(old.key_norm),
        )

    return replace(
        weights,
        embedding=prepare(weights.embedding),
        lm_head=prepare(weights.lm_head),
        final_norm=move(weights.final_norm),
        layers=tuple(map(layer, weights.layers)),
    )
