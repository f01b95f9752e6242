"""Which tokens of which sequences run in the next step. Pure Python: no torch, no clock, no randomness.

One rule for prompts and answers alike: a sequence's `num_computed` chases the length of its tokens. A step has one
token budget, spent in this order:

1. Decoding sequences, one token each: an answer never stops for somebody's prompt.
2. Prompts. They stand in line by class, then (the ones that were preempted first) by how little is left to read, then
   by arrival. Each takes at most half of what the ones before it left, so that the next in line moves too, or all it
   still needs where that is little; what is then left over goes down the line once more.
3. Guesses of speculation, with what neither of them can use.

The class of a sequence is its priority less one for each `ageing_seconds` since its arrival (lower goes first). So a
sequence of priority p is passed, while it waits or reads its prompt, only by sequences of a priority q that arrived
less than `ageing_seconds * (p - q + 1)` seconds after it: nobody starves.

Admission needs blocks for the tokens there are, and one more for each that then runs; not for `max_tokens`. When a
decoding sequence then finds no free block, the last in rank is preempted, perhaps itself. Rank is arrival plus
`ageing_seconds` for each step of priority: a fixed order, so two sequences cannot displace each other in turn, and the
first in rank always finishes. A preempted sequence gives all its blocks back and is computed again later, with what
the prefix cache still has of it; after two preemptions it comes back only with all its blocks reserved. A waiting
sequence displaces running ones only of a larger `priority` and a later class, and nobody a third time.
"""

from collections.abc import Iterable
from math import ceil

from local_engine.errors import EngineError, QueueFull
from local_engine.kv_cache import BlockAllocator
from local_engine.sequence import Chunk, Sequence, Status

AGEING_SECONDS = 10.0
PREEMPTIONS_UNTIL_RESERVED = 2
SHARED_BLOCKS_WORTH_WAITING = 2  # fewer are computed twice rather than waited for
UNDIVIDED = 64  # tokens: a prompt with no more left is read as a whole, if it can be, before the next in line
MAX_DEFERRED = 64  # steps that a prompt waits for another's prefix
MAX_ROWS = 128  # tokens of a chunk whose every row is wanted: a row of logits is as long as the vocabulary
MAX_RETRY_AFTER = 60  # seconds


class Scheduler:
    """Owns the queue and the block tables. `step_seconds`, set by its owner, is only used for `retry_after`."""

    def __init__(
        self,
        blocks: BlockAllocator,
        *,
        max_running: int,
        max_waiting: int,
        ageing_seconds: float = AGEING_SECONDS,
        undivided: int = UNDIVIDED,
    ) -> None:
        self.blocks = blocks
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.ageing_seconds = ageing_seconds
        self.undivided = undivided
        self.running: list[Sequence] = []  # in order of admission
        self.waiting: list[Sequence] = []
        self.num_preempted = 0
        self.step_seconds = 0.0
        self._next_ticket = 0

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. Raises `QueueFull`, or `EngineError` if the cache could never hold it."""
        if self.blocks.blocks_for(sequence.longest) > self.blocks.num_blocks:
            positions = self.blocks.num_blocks * self.blocks.block_size
            raise EngineError(
                f"a sequence of {sequence.longest} tokens does not fit the KV cache of {positions} positions\n"
                "hint: ask for a smaller `max_tokens`, or start the engine with a larger `kv_tokens`"
            )
        open_requests = len(self.running) + len(self.waiting)
        if open_requests >= self.max_running + self.max_waiting:
            raise QueueFull(open_requests, self.retry_after)
        self.blocks.extend_hashes(sequence.block_hashes, sequence.tokens, len(sequence.tokens), sequence.salt)
        sequence.ticket = self._next_ticket
        self._next_ticket += 1
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence, *, discard: bool = False) -> None:
        """Takes a sequence out, in whatever state it is, and frees its blocks. A second call does nothing.

        `discard`: its keys and values are not to be trusted, so nobody finds those that it wrote or that only it read.
        """
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            for index, block in enumerate(sequence.block_table):
                if discard and (index >= sequence.num_found or self.blocks.holders(block) == 1):
                    self.blocks.forget(block)
            self.blocks.release(sequence.block_table)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def expire(self, now: float) -> list[Sequence]:
        """Finishes the sequences whose deadline has come, and returns them."""
        expired = [s for s in [*self.running, *self.waiting] if s.deadline is not None and s.deadline <= now]
        for sequence in expired:
            self.finish(sequence)
        return expired

    @property
    def decoding(self) -> list[Sequence]:
        """The running sequences that need one token only: those whose step may carry guesses."""
        return [s for s in self.running if s.num_remaining == 1]

    @property
    def retry_after(self) -> int:
        """Whole seconds, 1 to 60, until the first answer will have reached its `max_tokens`, as steps go now."""
        steps = (max(1, s.max_tokens - s.completion_tokens) for s in self.running)
        seconds = min(steps, default=1) * self.step_seconds
        return max(1, min(MAX_RETRY_AFTER, ceil(seconds)))

    def schedule(self, now: float, budget: int) -> list[Chunk]:
        """The next step's chunks: at most `budget` tokens, guesses included; empty only when nothing is open.

        Call `advance` or `finish` for each chunk before the next call. A budget of `max_running` lets every running
        answer move in every step; below that the first in rank go first. Raises `EngineError` for a budget below 1.
        """
        if budget < 1:
            raise EngineError(f"a token budget of {budget} lets nothing move")
        if self._grow_decoding():  # otherwise memory is short: whoever comes in now would go out next
            self._admit(now)
        decodes = [Chunk(s, s.num_computed, 1) for s in sorted(self.decoding, key=self._rank)[:budget]]
        prompts = self._share(now, budget - len(decodes))
        self._leave_room_for_guesses(decodes, budget - len(decodes) - sum(chunk.count for chunk in prompts))
        return decodes + prompts

    def advance(self, chunk: Chunk, tokens: list[int]) -> None:
        """Records that a chunk ran, and the tokens sampled from it: the guesses that were right and the one after.

        None of them where the chunk was not the last of its sequence, or nothing was to be sampled. Positions of wrong
        guesses stay uncomputed. Does nothing for a finished sequence. Raises `EngineError` when the tokens cannot come
        from this chunk.
        """
        sequence = chunk.sequence
        if sequence.status is Status.FINISHED:
            return
        right = max(0, len(tokens) - 1)
        if chunk.start != sequence.num_computed or (tokens and not chunk.is_last) or tokens[:-1] != chunk.draft[:right]:
            raise EngineError(f"tokens {tokens} do not follow from positions {chunk.start} and {chunk.count} more")
        full = sequence.num_computed // self.blocks.block_size
        sequence.num_computed += chunk.count + right
        sequence.tokens += tokens
        self._publish(sequence, full)

    def check_integrity(self) -> None:
        """Raises `EngineError` unless blocks, tables, hashes and states agree. For tests: it looks at every block."""
        self.blocks.check_integrity([s.block_table for s in self.running])
        if any(s.block_table or s.num_computed or s.status is not Status.WAITING for s in self.waiting):
            raise EngineError("a waiting sequence holds blocks")
        for sequence in self.running:
            full = sequence.num_computed // self.blocks.block_size
            for index, block in enumerate(sequence.block_table):
                digest = self.blocks.hash_of(block)
                if digest is not None and (index >= full or digest != sequence.block_hashes[index]):
                    raise EngineError(f"block {block} is known by a hash that is not of its content")
                if index >= full and self.blocks.holders(block) > 1:
                    raise EngineError(f"block {block} is shared and will be written")

    # Order.

    def _rank(self, sequence: Sequence) -> tuple[float, int]:
        return sequence.arrival + self.ageing_seconds * sequence.priority, sequence.ticket

    def _class(self, sequence: Sequence, now: float) -> int:
        return sequence.priority - int((now - sequence.arrival) // self.ageing_seconds)

    def _line(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        return sorted(
            sequences,
            key=lambda s: (self._class(s, now), s.num_preempted == 0, s.num_remaining, s.arrival, s.ticket),
        )

    # Decoding sequences and preemption.

    def _grow_decoding(self) -> bool:
        """Gives every decoding sequence the block it needs; False when somebody was preempted for it."""
        before = self.num_preempted
        for sequence in sorted(self.decoding, key=self._rank):
            # the last in rank comes last here, so nobody is preempted after it was served
            while sequence.status is Status.RUNNING and not self.blocks.grow(
                sequence.block_table, len(sequence.tokens)
            ):
                self._preempt(max(self.running, key=self._rank))
        return self.num_preempted == before

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence.block_table)
        sequence.num_computed = 0
        sequence.num_preempted += 1
        sequence.num_deferred = 0
        sequence.status = Status.WAITING
        self.waiting.append(sequence)
        self.num_preempted += 1

    # Admission.

    def _admit(self, now: float) -> None:
        stuck: int | None = None  # class of the first in line that does not fit; only its own class may pass it
        for sequence in self._line(self.waiting, now):
            if stuck is not None and self._class(sequence, now) > stuck:
                return
            if len(self.running) >= self.max_running and not any(
                self._displaces(sequence, s, now) for s in self.running
            ):
                stuck = self._class(sequence, now)
                continue
            found = self._find_prefix(sequence)
            if self._is_being_read(sequence, len(found), now):
                sequence.num_deferred += 1
            elif self._make_room(sequence, found, now):
                self._start(sequence, found)
            else:
                stuck = self._class(sequence, now)  # as it was, if there was one already: the line is in order of class

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if not sequence.reads_cache:
            return []
        return self.blocks.find(sequence.block_hashes[: self._usable(sequence)])

    def _usable(self, sequence: Sequence) -> int:
        """How many cached blocks would do; at least one token is left to compute, for its logits."""
        return (len(sequence.tokens) - 1) // self.blocks.block_size if self.blocks.caching else 0

    def _is_being_read(self, sequence: Sequence, num_found: int, now: float) -> bool:
        """Whether a running sequence, not behind in class, is just computing the next blocks of the same prefix."""
        index = num_found + SHARED_BLOCKS_WORTH_WAITING - 1
        if not sequence.reads_cache or index >= self._usable(sequence) or sequence.num_deferred >= MAX_DEFERRED:
            return False
        digest, end = sequence.block_hashes[index], (index + 1) * self.blocks.block_size
        return any(
            len(other.block_hashes) > index
            and other.block_hashes[index] == digest
            and other.num_computed < end
            and self._class(other, now) <= self._class(sequence, now)
            for other in self.running
        )

    def _make_room(self, sequence: Sequence, found: list[int], now: float) -> bool:
        """Whether there is a place and blocks, after displacing others of lower priority if that is enough."""
        positions = self._positions(sequence)
        # one block to go on with; where nobody else runs, `longest` fits
        needed = self.blocks.blocks_for(min(positions + self.blocks.block_size, sequence.longest)) - len(found)
        free = self.blocks.num_free_beside(found)
        kept = set(found)
        victims: list[Sequence] = []
        candidates = sorted((s for s in self.running if self._displaces(sequence, s, now)), key=self._rank)
        while True:
            left = len(self.running) - len(victims)
            if left < self.max_running and needed + left <= free:  # each of them may need a block in the next step
                for victim in victims:
                    self._preempt(victim)
                return True
            if not candidates:
                return False
            victims.append(candidates.pop())
            table = victims[-1].block_table
            free += sum(self.blocks.holders(block) == 1 and block not in kept for block in table)

    def _displaces(self, sequence: Sequence, running: Sequence, now: float) -> bool:
        return (
            running.priority > sequence.priority
            and self._class(running, now) > self._class(sequence, now)  # then it is later in rank, too
            and running.num_preempted < PREEMPTIONS_UNTIL_RESERVED
        )

    def _positions(self, sequence: Sequence) -> int:
        reserved = sequence.num_preempted >= PREEMPTIONS_UNTIL_RESERVED
        return sequence.longest if reserved else len(sequence.tokens)

    def _start(self, sequence: Sequence, found: list[int]) -> None:
        self.waiting.remove(sequence)
        self.blocks.share(sequence.block_table, found, self._usable(sequence) if sequence.reads_cache else 0)
        has_grown = self.blocks.grow(sequence.block_table, self._positions(sequence))
        assert has_grown  # `_make_room` has counted
        sequence.num_found = len(found)
        sequence.num_computed = len(found) * self.blocks.block_size
        if sequence.num_preempted == 0:
            sequence.num_cached = sequence.num_computed
        sequence.status = Status.RUNNING
        self.running.append(sequence)

    # What a step is made of.

    def _share(self, now: float, budget: int) -> list[Chunk]:
        """The chunks of the prompts, in line."""
        line = self._line((s for s in self.running if s.num_remaining > 1), now)
        counts = dict.fromkeys(line, 0)
        for is_second_round in (False, True):
            for index, sequence in enumerate(line):
                takes_all = is_second_round or index == len(line) - 1 or sequence.num_remaining <= self.undivided
                share = budget if takes_all else -(-budget // 2)
                most = sequence.num_remaining if not sequence.every_row else min(sequence.num_remaining, MAX_ROWS)
                count = min(share, most - counts[sequence])
                counts[sequence] += count
                budget -= count
        return [Chunk(sequence, sequence.num_computed, count) for sequence, count in counts.items() if count]

    def _leave_room_for_guesses(self, decodes: list[Chunk], budget: int) -> None:
        """Sets `draft_room`, first in rank first. A block is taken only where everybody could still take one after."""
        size = self.blocks.block_size
        for chunk in decodes:
            sequence = chunk.sequence
            # the last token that may be sampled needs no guess after it
            most = sequence.max_tokens - sequence.completion_tokens - 1
            room = max(0, min(sequence.draft_limit, most, budget))
            end = len(sequence.tokens) + room
            missing = self.blocks.blocks_for(end) - len(sequence.block_table)
            if missing > 0 and self.blocks.num_free - missing < len(self.running):
                end = min(end, len(sequence.block_table) * size)
            self.blocks.grow(sequence.block_table, end)
            chunk.draft_room = end - len(sequence.tokens)
            budget -= chunk.draft_room

    def _publish(self, sequence: Sequence, full: int) -> None:
        """Makes findable what has become full and computed since there were `full` such blocks."""
        blocks, end = self.blocks, sequence.num_computed // self.blocks.block_size
        blocks.extend_hashes(sequence.block_hashes, sequence.tokens, sequence.num_computed, sequence.salt)
        for index in range(full, min(end, len(sequence.block_hashes))):
            blocks.publish(sequence.block_table[index], sequence.block_hashes[index])
