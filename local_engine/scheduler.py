"""Which tokens of which sequences run in the next step. Pure Python: no torch, no clock, no randomness.

One rule for prompts and answers alike: a sequence's `num_computed` chases the length of its tokens. A step has one
token budget. Decoding sequences go first, one token each, so an answer never stops for somebody's prompt; what is left
is shared among the sequences that still read their prompt, the shortest rest first, each at most an equal share, so
that a short prompt is not stuck behind a long one.

A sequence enters when blocks for all its tokens are free, and grows as it decodes. When a decoding sequence finds no
free block the youngest running one is preempted: it gives all its blocks back, waits at the head of the queue and is
computed again later. The oldest can always finish, because one full sequence fits the cache.
"""

from collections import deque
from dataclasses import dataclass

from local_engine.errors import EngineError, QueueFull
from local_engine.kv_cache import BlockAllocator
from local_engine.sequence import Sequence, Status


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of `sequence`, from position `start`, in one step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """True when the chunk reaches the newest token: its last logits give the next one."""
        return self.start + self.count == len(self.sequence.tokens)


class Scheduler:
    def __init__(self, blocks: BlockAllocator, *, max_running: int, max_waiting: int, token_budget: int) -> None:
        if token_budget < max_running:
            raise EngineError(f"a token budget of {token_budget} cannot serve {max_running} running sequences")
        self.blocks = blocks
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.token_budget = token_budget
        self.running: list[Sequence] = []  # oldest first
        self.waiting: deque[Sequence] = deque()
        self.num_preempted = 0

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. Raises `QueueFull`, or `EngineError` if the cache could never hold it."""
        longest = sequence.prompt_tokens + sequence.max_tokens
        if self.blocks.blocks_for(longest) > self.blocks.num_blocks:
            raise EngineError(f"a sequence of {longest} tokens does not fit the KV cache")
        open_requests = len(self.running) + len(self.waiting)
        if open_requests >= self.max_running + self.max_waiting:
            raise QueueFull(open_requests)
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, in whatever state it is, and frees its blocks. A second call does nothing."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.blocks.release(sequence.block_table)
        elif sequence.status is Status.WAITING and sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def schedule(self) -> list[Chunk]:
        """The next step's chunks, within the token budget; empty when nothing is open."""
        chunks = self._schedule_decodes()
        self._admit()
        decoding = {chunk.sequence for chunk in chunks}
        prompts = sorted((s for s in self.running if s not in decoding), key=lambda s: s.num_remaining)
        left = self.token_budget - len(chunks)  # at least one for each prompt: max_running <= token_budget
        for index, sequence in enumerate(prompts):
            count = min(sequence.num_remaining, left // (len(prompts) - index))
            chunks.append(Chunk(sequence, sequence.num_computed, count))
            left -= count
        return chunks

    def advance(self, chunk: Chunk, token: int | None) -> None:
        """Records that a chunk ran and, if it was the last of its sequence, the token sampled from it."""
        chunk.sequence.num_computed = chunk.start + chunk.count
        if token is not None:
            chunk.sequence.tokens.append(token)

    def _schedule_decodes(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in list(self.running):
            # preempted a moment ago, or still reading its prompt
            if sequence.status is not Status.RUNNING or sequence.num_remaining > 1:
                continue
            while not self.blocks.grow(sequence.block_table, len(sequence.tokens)):
                # The youngest is last in the list and so not scheduled yet; it may be this sequence itself.
                self._preempt(self.running[-1])
                if sequence.status is not Status.RUNNING:
                    break
            else:
                chunks.append(Chunk(sequence, sequence.num_computed, 1))
        return chunks

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            if not self.blocks.grow(sequence.block_table, len(sequence.tokens)):
                return
            self.waiting.popleft()
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence.block_table)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self.num_preempted += 1
