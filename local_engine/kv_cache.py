"""Bookkeeping of the KV cache: which block belongs to which sequence. No torch; the runner owns the memory itself.

The cache is cut into blocks of a fixed number of positions, so sequences of any length share it without holes and a
sequence takes memory only as it grows. The price on a CPU is one gather per layer and sequence before attention:
about 46 KB for each position of the bundled model, small beside the 540 MB of weights that each step reads. A kernel
that walks block tables itself can drop the gather without a change here.
"""

from collections.abc import Sequence as Items

from local_engine.errors import EngineError


class BlockAllocator:
    """Hands out block ids 0 .. num_blocks - 1; each is free or owned by exactly one holder."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the block used last is the warmest in cache
        self._taken = [False] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, positions: int) -> int:
        return -(-positions // self.block_size)

    def grow(self, block_table: list[int], positions: int) -> bool:
        """Extends `block_table` to hold `positions` positions; False, and nothing changed, when blocks run out."""
        missing = self.blocks_for(positions) - len(block_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.pop()
            self._taken[block] = True
            block_table.append(block)
        return True

    def release(self, block_table: list[int]) -> None:
        """Gives back every block of the table and empties it. A block that is not taken is a bug and raises."""
        while block_table:
            block = block_table.pop()
            if not self._taken[block]:
                raise EngineError(f"block {block} was released twice")
            self._taken[block] = False
            self._free.append(block)

    def check_integrity(self, block_tables: Items[Items[int]]) -> None:
        """Raises `EngineError` unless the given tables and the free list are, together, every block once."""
        held = [block for table in block_tables for block in table]
        if sorted(held + self._free) != list(range(self.num_blocks)):
            raise EngineError(f"KV cache blocks leaked: {len(held)} held, {len(self._free)} free of {self.num_blocks}")
