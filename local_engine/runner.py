"""A step's chunks through the model, and back as each chunk's own logits or hidden states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from local_engine.batch import Batch
from local_engine.kv_memory import KVMemory, KVType
from local_engine.model import Model, Output
from local_engine.sequence import Chunk, Sequence


@dataclass(frozen=True, slots=True)
class Rows:
    """What one chunk gets back. Numbers that are not finite are passed on: they are that request's affair."""

    logits: Tensor | None  # [chunk.num_rows, V], of its last positions; None where no row was wanted
    hidden: Tensor | None  # [count, D], after the final norm; None unless its sequence embeds


class Runner:
    """Owns the memory of the KV cache; whoever owns the runner owns the model's state."""

    def __init__(self, model: Model, num_blocks: int, block_size: int, kv_type: KVType = "fp32") -> None:
        self.model = model
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.memory = KVMemory(model.config, num_blocks, block_size, kv_type, model.shard, model.device)

    def run(self, chunks: list[Chunk]) -> list[Rows]:
        """One `Rows` for each chunk, in order.

        Running the same chunks again is safe: the same keys and values go to the same places.
        """
        if not chunks:
            return []
        output = self.forward(Batch.of(chunks, self.block_size))
        logits = torch.split(output.logits, [chunk.num_rows for chunk in chunks])
        hidden = torch.split(output.hidden, [len(chunk.tokens) if chunk.sequence.embed else 0 for chunk in chunks])
        return [
            Rows(logits=own if len(own) else None, hidden=states if chunk.sequence.embed else None)
            for chunk, own, states in zip(chunks, logits, hidden, strict=True)
        ]

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Output:
        """What each process of a model does in a step."""
        return self.model.forward(batch, self.memory)


def read_whole(model: Model, texts: list[list[int]]) -> list[Tensor]:
    """Logits [n, V] at every position of each list of n tokens, read at once and by itself.

    For measurements: the memory is made for this call and nothing is shared or scheduled.
    """
    chunks, blocks = [], 0
    for tokens in texts:
        sequence = Sequence.of(tokens, 0)
        sequence.every_row = True
        sequence.block_table = list(range(blocks, blocks := blocks + -(-len(tokens) // 16)))
        chunks.append(Chunk(sequence, 0, len(tokens)))
    runner = Runner(model, blocks, 16)
    return [rows.logits for rows in runner.run(chunks) if rows.logits is not None]
