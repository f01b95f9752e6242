"""What a model runs in one step, as plain numbers. No torch: it is made beside the scheduler and sent to other ranks.

The tokens of all sequences lie one after another, whatever mix of prompts, decoded tokens and guesses they are.
"""

from dataclasses import dataclass, field

from kernels.draw import Draw
from local_engine.sequence import Chunk


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of S sequences. Sequence s has the rows starts[s] .. starts[s + 1]."""

    tokens: list[int] = field(default_factory=list)  # T
    positions: list[int] = field(default_factory=list)  # T, of each token in its own sequence
    slots: list[int] = field(default_factory=list)  # T, where its key and value go: block * block size + offset
    starts: list[int] = field(default_factory=lambda: [0])  # S + 1
    lengths: list[int] = field(default_factory=list)  # S, positions that the sequence's cache holds after the step
    tables: list[list[int]] = field(default_factory=list)  # S, the blocks of these positions
    logit_rows: list[int] = field(default_factory=list)  # rows whose logits are wanted, ascending
    hidden_rows: list[int] = field(default_factory=list)  # rows whose last hidden states are wanted, ascending
    draws: list[tuple[int, Draw]] = field(default_factory=list)  # places in `logit_rows` whose tokens are to be drawn

    @classmethod
    def of(cls, chunks: list[Chunk], block_size: int) -> "Batch":
        batch = cls()
        for chunk in chunks:
            tokens, table = chunk.tokens, chunk.sequence.block_table
            end = chunk.start + len(tokens)
            batch.tokens.extend(tokens)
            batch.positions.extend(range(chunk.start, end))
            batch.slots.extend(table[p // block_size] * block_size + p % block_size for p in range(chunk.start, end))
            batch.lengths.append(end)
            batch.tables.append(table[: -(-end // block_size)])
            rows = range(batch.starts[-1], batch.starts[-1] + len(tokens))
            batch.starts.append(rows.stop)
            if chunk.draw is not None:
                first = len(batch.logit_rows)
                batch.draws.extend((place, chunk.draw) for place in range(first, first + chunk.num_rows))
            batch.logit_rows.extend(rows[len(rows) - chunk.num_rows :])
            batch.hidden_rows.extend(rows if chunk.sequence.embed else ())
        return batch
