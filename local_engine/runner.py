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
    best: list[int] | None = None  # the token of the largest logit of each row; -1: not all are finite; None: not known


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
        found: list[Rows] = []
        row = position = 0
        for chunk in chunks:
            logits = hidden = best = None
            if chunk.num_rows:
                logits = output.logits[row : row + chunk.num_rows]
                best = None if output.best is None else output.best[row : row + chunk.num_rows]
                row += chunk.num_rows
            if chunk.sequence.embed:
                hidden = output.hidden[position : position + len(chunk.tokens)]
                position += len(chunk.tokens)
            found.append(Rows(logits, hidden, best))
        return found

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
