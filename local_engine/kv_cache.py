"""Bookkeeping of the KV cache: which block holds what, and for whom. No torch; the runner owns the memory itself.

The cache is cut into blocks of a fixed number of positions, so sequences of any length share it without holes and a
sequence takes memory only as it grows. A full block whose keys and values are computed is known by its chain hash: the
digest of its parent's hash and its token ids, with the salt at the root. Equal hashes mean equal tokens from the start
of the sequence on, so another sequence may read the block instead of computing it.

A block is in one of three states: held by one or more block tables; cached (free, but still findable by its hash); or
blank (free, and nothing worth finding). Blank ones are handed out first, then the cached one that was given back the
longest ago. A table gives its blocks back from the tail, so that of one prefix the tail is lost before the head, which
more sequences have in common. Every operation on one block takes constant time.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Items
from hashlib import blake2b

from local_engine.errors import EngineError

HASH_BYTES = 32  # a collision would show one request's text to another: nobody finds one in 256 bits


class BlockAllocator:
    """Hands out block ids 0 .. num_blocks - 1, counts who holds them, and finds them again by hash."""

    def __init__(self, num_blocks: int, block_size: int, *, caching: bool = True) -> None:
        """`caching`: whether a block is found again; without it every full block is forgotten when it is given back."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self.num_hits = 0  # blocks that a sequence looked for on its admission and found
        self.num_misses = 0  # and did not find
        self.num_evictions = 0  # cached blocks whose content was given up for new content
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack: the block used last is the warmest in cache
        self._cached: OrderedDict[int, None] = OrderedDict()  # given back the longest ago first
        self._holders = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Free blocks that can still be found by their hash."""
        return len(self._cached)

    @property
    def hit_tokens(self) -> int:
        """Positions that sequences found in the cache on their admission, after a preemption too."""
        return self.num_hits * self.block_size

    def blocks_for(self, positions: int) -> int:
        return -(-positions // self.block_size)

    def holders(self, block: int) -> int:
        """How many block tables hold the block."""
        return self._holders[block]

    def hash_of(self, block: int) -> bytes | None:
        """What the block can be found by; such a block must not be written."""
        return self._hash_of[block]

    def grow(self, block_table: list[int], positions: int) -> bool:
        """Extends `block_table` to hold `positions` positions; False, and nothing changed, when blocks run out."""
        missing = self.blocks_for(positions) - len(block_table)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            block = self._blank.pop() if self._blank else self._evict()
            self._holders[block] = 1
            block_table.append(block)
        return True

    def release(self, block_table: list[int]) -> None:
        """Gives back every block of the table and empties it. A block that is not held is a bug and raises."""
        while block_table:
            block = block_table.pop()
            if self._holders[block] == 0:
                raise EngineError(f"block {block} was released twice")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._hash_of[block] is None:
                    self._blank.append(block)
                else:
                    self._cached[block] = None

    def extend_hashes(self, hashes: list[bytes], tokens: list[int], positions: int, salt: bytes) -> None:
        """Extends the chain hashes of `tokens` to every full block of the first `positions`.

        The digest is BLAKE2b (RFC 7693) of the parent's digest and the ids as little 32-bit integers; the root is the
        digest of the salt, personalised so that no chain of blocks can equal it.
        """
        if not self.caching:
            return
        size = self.block_size
        for index in range(len(hashes), positions // size):
            parent = hashes[-1] if hashes else blake2b(salt, digest_size=HASH_BYTES, person=b"salt").digest()
            ids = array("I", tokens[index * size : (index + 1) * size]).tobytes()
            hashes.append(blake2b(parent + ids, digest_size=HASH_BYTES).digest())

    def find(self, hashes: Items[bytes]) -> list[int]:
        """The blocks of the longest prefix of `hashes` that the cache holds. Takes none of them."""
        found: list[int] = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_beside(self, blocks: Iterable[int]) -> int:
        """Free blocks if `blocks` (each named once) were held as well."""
        return self.num_free - sum(self._holders[block] == 0 for block in blocks)

    def share(self, block_table: list[int], found: Items[int], looked_for: int) -> None:
        """Appends blocks that `find` gave to an empty table, and counts hits and misses of `looked_for` blocks."""
        for block in found:
            if self._holders[block] == 0:
                del self._cached[block]
            self._holders[block] += 1
            block_table.append(block)
        self.num_hits += len(found)
        self.num_misses += looked_for - len(found)

    def publish(self, block: int, digest: bytes) -> None:
        """Makes a full and computed block findable. Where another block has the same content already, that one stays.

        From here on the block must not be written.
        """
        if self.caching and self._hash_of[block] is None and digest not in self._block_of:
            self._hash_of[block] = digest
            self._block_of[digest] = block

    def forget(self, block: int) -> None:
        """Makes a held block unfindable, for whoever holds it now keeps it: its content is not to be trusted."""
        digest = self._hash_of[block]
        if digest is not None:
            del self._block_of[digest]
            self._hash_of[block] = None

    def check_integrity(self, block_tables: Items[Items[int]]) -> None:
        """Raises `EngineError` unless every block is held as often as the tables say, or free exactly once; and every
        hash names one block and back."""
        held = Counter(block for table in block_tables for block in table)
        free = [*self._blank, *self._cached]
        if sorted([*held, *free]) != list(range(self.num_blocks)):
            raise EngineError(f"KV cache blocks leaked: {len(held)} held, {len(free)} free of {self.num_blocks}")
        if any(self._holders[block] != held[block] for block in range(self.num_blocks)):
            raise EngineError("KV cache blocks leaked: holders are counted wrong")
        if any(len(set(table)) != len(table) for table in block_tables):
            raise EngineError("a block table names one block twice")
        hashed = {digest: block for block, digest in enumerate(self._hash_of) if digest is not None}
        if hashed != self._block_of or len(hashed) != self.num_blocks - self._hash_of.count(None):
            raise EngineError("hashes and blocks of the prefix cache do not name each other")
        if any(self._hash_of[block] is None for block in self._cached) or any(
            self._hash_of[block] is not None for block in self._blank
        ):
            raise EngineError("a cached block has no hash, or a blank one has")

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        digest = self._hash_of[block]
        assert digest is not None  # or it would be blank
        del self._block_of[digest]
        self._hash_of[block] = None
        self.num_evictions += 1
        return block
