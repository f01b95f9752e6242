"""Guesses from the text itself: what followed the last few tokens when they came before (prompt lookup decoding).

Source of the idea: https://github.com/apoorvumang/prompt-lookup-decoding. Each sequence has an index from its n-grams
to where they last ended, extended by the tokens that are new since the last look: constant work for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from local_engine.proposer import Outlook
from local_engine.sequence import Chunk, Sequence

if TYPE_CHECKING:
    from local_engine.sampler import Sampler

LENGTHS = (4, 3, 2)  # tokens that must repeat; the longest that does is taken
MAX_ENTRIES = 1 << 15  # of one sequence's index, about 5 MB; then the older half is dropped


@dataclass(slots=True)
class Index:
    """Where the n-grams of one sequence last ended. Two generations, so that dropping the older one costs nothing."""

    num_indexed: int = 0  # tokens that are the end of an n-gram in here
    young: dict[tuple[int, ...], int] = field(default_factory=dict)
    old: dict[tuple[int, ...], int] = field(default_factory=dict)

    def extend(self, tokens: list[int]) -> None:
        """Takes in all n-grams that end before the last token: the last one is what will be looked for."""
        for end in range(self.num_indexed + 1, len(tokens)):
            for n in LENGTHS:
                if n <= end:
                    self.young[tuple(tokens[end - n : end])] = end
            if len(self.young) >= MAX_ENTRIES // 2:
                self.young, self.old = {}, self.young
        self.num_indexed = max(self.num_indexed, len(tokens) - 1)

    def find(self, tokens: list[int]) -> tuple[int, int] | None:
        """The longest n of LENGTHS whose n last tokens came before, and where they last ended."""
        for n in LENGTHS:
            if n < len(tokens):
                gram = tuple(tokens[-n:])
                end = self.young.get(gram) or self.old.get(gram)
                if end is not None:
                    return n, end
        return None


class NgramProposer:
    """Prompt lookup for all sequences of an engine. `forget` each one when it ends."""

    def __init__(self) -> None:
        self._indexes: dict[Sequence, Index] = {}

    def look(self, sequence: Sequence, room: int) -> Outlook | None:
        """`room` guesses, their kind the number of tokens that repeat; None when nothing does."""
        tokens = sequence.tokens
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = Index()
        index.extend(tokens)
        found = index.find(tokens)
        if found is None or room < 1:
            return None
        n, end = found
        guesses = tokens[end : end + room]
        # What came after it may run into the present: then it is a loop, and goes on with its own guesses.
        period = len(tokens) - end
        while len(guesses) < room:
            guesses.append(guesses[-period])
        return Outlook(n, guesses)

    def propose(self, chunks: list[Chunk], samplers: Mapping[Sequence, Sampler]) -> None:
        """Fills `draft` of each chunk that has room, where something repeats."""
        for chunk in chunks:
            outlook = self.look(chunk.sequence, chunk.draft_room)
            if outlook is not None:
                chunk.draft = outlook.guesses

    def forget(self, sequence: Sequence) -> None:
        """A sequence that ended. Unknown ones are ignored."""
        self._indexes.pop(sequence, None)
