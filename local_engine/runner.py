"""A step's chunks through the model, and back as each chunk's own logits or hidden states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.draw import Draw
from local_engine.batch import Batch
from local_engine.kv_memory import KVMemory, KVType
from local_engine.model import Model, Output
from local_engine.sequence import Chunk, Sequence


@dataclass(frozen=True, slots=True)
class Rows:
    """What one chunk gets back. Numbers that are not finite are passed on: they are that request's affair.

    The tensors are where the model runs."""

    logits: Tensor | None  # [chunk.num_rows, V], of its last positions; None where no row was wanted
    hidden: Tensor | None  # [count, D], after the final norm; None unless its sequence embeds
    best: list[int] | None = None  # the token of the largest logit of each row; -1: not all are finite, or not known
    drawn: list[int] | None = None  # the token of each row that the chunk's `draw` gives; -1: not known


class Runner:
    """Owns the memory of the KV cache; whoever owns the runner owns the model's state."""

    def __init__(self, model: Model, num_blocks: int, block_size: int, kv_type: KVType = "fp32") -> None:
        self.model = model
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.memory = KVMemory(model.config, num_blocks, block_size, kv_type, model.shard, model.device)

    @property
    def draws(self) -> bool:
        """Whether tokens are sampled where the model runs: then chunks should say how."""
        return self.model.whole_step is not None and self.model.whole_step.draws

    @property
    def runs_to_warm(self) -> int:
        """How often a step of a new size has to run until it takes the time that it will take."""
        return 0 if self.model.whole_step is None else self.model.whole_step.runs_to_warm

    def warm_up(self, most: int, draw: Draw) -> None:
        """Runs steps of up to `most` answers, greedy and drawn, in every size. No block may be in use yet."""
        if self.model.whole_step is None:
            return
        for size in self.model.whole_step.sizes(min(most, self.num_blocks)):
            for draws in ([], [(row, draw) for row in range(size)]):
                one = [0] * size
                batch = Batch(
                    tokens=one,
                    positions=one,
                    slots=[row * self.block_size for row in range(size)],
                    starts=[*range(size + 1)],
                    lengths=[1] * size,
                    tables=[[row] for row in range(size)],
                    logit_rows=[*range(size)],
                    draws=draws,
                )
                for _ in range(self.runs_to_warm):
                    self.forward(batch)

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
            logits = hidden = best = drawn = None
            if chunk.num_rows:
                logits = output.logits[row : row + chunk.num_rows]
                best = None if output.best is None else output.best[row : row + chunk.num_rows]
                drawn = None if output.drawn is None else output.drawn[row : row + chunk.num_rows]
                row += chunk.num_rows
            if chunk.sequence.embed:
                hidden = output.hidden[position : position + len(chunk.tokens)]
                position += len(chunk.tokens)
            found.append(Rows(logits, hidden, best, drawn))
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
