"""Guesses from a small model with the same vocabulary, which reads along.

It has keys and values of its own for the engine's blocks: a sequence's block table holds for both models. For each
sequence it knows how many positions it has filled itself; what it was not there for (a prompt, a prefix that the
engine's cache gave, steps without speculation, everything before a preemption) it reads before it guesses. Blocks that
it once filled are known to it by the hash of their content, as the engine's own are.

A guess is drawn with the noise that will draw the token itself, so the two agree as often as the models do, and not
only as often as two independent draws would.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from local_engine.config import EngineConfig
from local_engine.errors import EngineError
from local_engine.proposer import Outlook
from local_engine.runner import Runner
from local_engine.sampler import Sampler
from local_engine.sequence import Chunk, Sequence

if TYPE_CHECKING:
    from local_engine.text.vocabulary import Vocabulary

CATCH_UP = 512  # tokens, of all sequences, that are read in one step before guessing


class DraftModel:
    """Proposes with `runner`, whose blocks must be as many and as large as the engine's."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._shadows: dict[Sequence, Sequence] = {}  # the same tokens, and behind them the last guesses
        self._contents: dict[int, bytes] = {}  # block -> hash of what this model has filled it with, where it is full

    @classmethod
    def load(cls, path: Path, config: EngineConfig, runner: Runner, vocabulary: Vocabulary) -> DraftModel:
        """From a model's files, for the model that `runner` runs. Raises `EngineError` when the two do not match."""
        # here, not at the top: an engine without a draft model reads no files twice
        from local_engine.files.checkpoint import open_checkpoint
        from local_engine.text.vocabulary import open_vocabulary
        from local_engine.workers import load_model

        with open_checkpoint(path) as checkpoint:
            check_vocabularies(vocabulary, open_vocabulary(checkpoint, checkpoint.config.vocab_size), path)
            model = load_model(path, checkpoint, config)
        return cls(Runner(model, runner.num_blocks, runner.block_size))

    def look(self, sequence: Sequence, room: int) -> Outlook | None:
        """Always something, up to the length that the draft model can turn."""
        if len(sequence.tokens) + room > self.runner.model.max_length:
            return None
        return Outlook(kind=0)

    def propose(self, chunks: list[Chunk], samplers: Mapping[Sequence, Sampler]) -> None:
        """Fills `draft` up to `draft_room`; not where there is more to read first than one step allows."""
        steps: list[tuple[Chunk, Chunk]] = []  # the engine's chunk and, beside it, what this model runs next
        left = CATCH_UP
        for chunk in chunks:
            shadow = self._follow(chunk.sequence)
            count = min(left, shadow.num_remaining)
            left -= count
            if count:
                steps.append((chunk, Chunk(shadow, shadow.num_computed, count)))
        while steps:
            following = []
            if self.runner.draws:
                for chunk, own in steps:
                    own.draw = samplers[chunk.sequence].draw
            for (chunk, own), rows in zip(steps, self.runner.run([own for _, own in steps]), strict=True):
                shadow = own.sequence
                self._wrote(own)
                if rows.logits is None:
                    continue  # not yet at the newest token
                sampler = samplers[chunk.sequence]
                try:
                    if rows.best is not None and sampler.takes_best(rows.best[-1]):
                        token = rows.best[-1]
                    elif rows.drawn is not None and sampler.takes_drawn(rows.drawn[-1]):
                        token = rows.drawn[-1]
                    else:
                        token = sampler.guess(rows.logits[-1], len(shadow.tokens), chunk.draft)
                except FloatingPointError:
                    continue  # the guesses so far may be right
                chunk.draft.append(token)
                shadow.tokens.append(token)
                if len(chunk.draft) < chunk.draft_room:
                    following.append((chunk, Chunk(shadow, shadow.num_computed, 1)))
            steps = following

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended. Unknown ones are ignored."""
        self._shadows.pop(sequence, None)

    def _follow(self, sequence: Sequence) -> Sequence:
        """The shadow with the sequence's tokens, and `num_computed` as far as this model has filled their positions."""
        shadow = self._shadows.get(sequence)
        table = sequence.block_table
        if shadow is None or shadow.num_preempted != sequence.num_preempted:
            shadow = self._shadows[sequence] = Sequence.of(sequence.tokens, 0)
            shadow.num_preempted = sequence.num_preempted
            shadow.num_found = self._count_filled(sequence)
            shadow.num_computed = min(shadow.num_found * self.runner.block_size, len(sequence.tokens) - 1)
        else:
            same = shadow.prompt_tokens  # tokens at the last look; behind them guesses
            while same < min(len(shadow.tokens), len(sequence.tokens)) and shadow.tokens[same] == sequence.tokens[same]:
                same += 1
            shadow.tokens[same:] = sequence.tokens[same:]
            shadow.num_computed = min(shadow.num_computed, same, len(sequence.tokens) - 1)
            shadow.prompt_tokens = len(sequence.tokens)
        shadow.block_table = list(table)
        full = min(shadow.num_computed // self.runner.block_size, len(sequence.block_hashes))
        for index in range(shadow.num_found, full):
            self._contents[table[index]] = sequence.block_hashes[index]
        shadow.num_found = max(shadow.num_found, full)
        return shadow

    def _count_filled(self, sequence: Sequence) -> int:
        """How many of the first blocks already hold what this model would write there."""
        count = 0
        for block, content in zip(sequence.block_table, sequence.block_hashes, strict=False):
            if self._contents.get(block) != content:
                break
            count += 1
        return count

    def _wrote(self, chunk: Chunk) -> None:
        """Records that a chunk ran: its blocks no longer hold what they held before."""
        shadow, size = chunk.sequence, self.runner.block_size
        shadow.num_computed = chunk.start + chunk.count
        first = chunk.start // size
        for block in shadow.block_table[first : -(-shadow.num_computed // size)]:
            self._contents.pop(block, None)
        shadow.num_found = min(shadow.num_found, first)


def check_vocabularies(target: Vocabulary, draft: Vocabulary, path: Path) -> None:
    """Raises `EngineError` unless both models mean the same by every token id."""
    hint = "hint: choose a model of the same family, or `ngram`"
    if draft.size != target.size:
        raise EngineError(f"the draft model `{path.name}` has {draft.size} tokens, the model has {target.size}\n{hint}")
    for token in range(target.size):
        mine, other = target.token_text(token), draft.token_text(token)
        if mine != other or target.mark(token) != draft.mark(token):
            raise EngineError(
                f"token {token} is {other!r} in the draft model `{path.name}`, {mine!r} in the model\n{hint}"
            )
