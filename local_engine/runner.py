"""A step's chunks as tensors, through the model, back as one row of logits for each chunk that ends its sequence."""

import torch
from torch import Tensor

from local_engine.config import EngineConfig
from local_engine.model import Batch, KVMemory, Model, Span
from local_engine.scheduler import Chunk


class Runner:
    """Owns the KV cache memory; whoever owns the runner owns the model's state."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        self.model = model
        self.block_size = config.block_size
        self.num_blocks = config.num_blocks(model.config)
        self.memory = KVMemory(model.config, self.num_blocks, config.block_size)

    @torch.inference_mode()
    def run(self, chunks: list[Chunk]) -> list[Tensor | None]:
        """Logits [V] for each chunk, in order; None where the chunk does not reach its sequence's newest token.

        Running the same chunks again is safe: the same keys and values go to the same places.
        """
        rows = iter(self.model.forward(self._batch(chunks), self.memory).unbind())
        return [next(rows) if chunk.is_last else None for chunk in chunks]

    def _batch(self, chunks: list[Chunk]) -> Batch:
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans: list[Span] = []
        sampled: list[int] = []
        for chunk in chunks:
            end, table = chunk.start + chunk.count, chunk.sequence.block_table
            places = range(chunk.start, end)
            spans.append(
                Span(
                    start=len(tokens),
                    end=len(tokens) + chunk.count,
                    length=end,
                    blocks=torch.tensor(table[: -(-end // self.block_size)]),
                )
            )
            tokens += chunk.sequence.tokens[chunk.start : end]
            positions += places
            slots += [table[p // self.block_size] * self.block_size + p % self.block_size for p in places]
            if chunk.is_last:
                sampled.append(len(tokens) - 1)
        return Batch(
            tokens=torch.tensor(tokens),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            spans=spans,
            sampled_rows=torch.tensor(sampled, dtype=torch.long),
        )
