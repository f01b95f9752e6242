"""A text as features: its words, pairs of neighbours, and pieces of words; with how much of it is not known.

Each feature weighs its inverse document frequency. A word that is not known counts as `<?>` beside its neighbours: in
training, the words of one line only play that part. So a text with many of them looks as unfamiliar as it is.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

MAX_WORDS = 96
"""Of a text; what comes behind them is not read: the time spent here is bounded."""
MAX_WORD_CHARACTERS = 24
PIECE_SIZES = (2, 3, 4)
MIN_LINES = 2
"""Lines that a feature must occur in to be known."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]")
_LONG_NUMBER = re.compile(r"\d{5,}")
_START, _END, _UNKNOWN = "<s>", "</s>", "<?>"  # no words: those are letters and digits, or one sign


class Encoded(NamedTuple):
    """`ids` of known features, as often as they occur. `unknown`: sum of the squared weights of all others."""

    ids: list[int]
    unknown: float


class Vocabulary:
    """The features that are known, in the order of their ids. `weights`: their inverse document frequencies."""

    def __init__(self, names: Sequence[str], weights: Sequence[float], unknown_weight: float) -> None:
        self.names = tuple(names)
        self.weights = tuple(weights)
        self.unknown_weight = unknown_weight
        self._ids = {name: id for id, name in enumerate(self.names)}
        # Of known words alone, so there is an end to them.
        self._known_words = {name[1:]: self._spell(name[1:]) for name in self.names if _is_word(name)}

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]], most: int) -> Vocabulary:
        """The features of these texts (given as their words), at most `most`: those of the most lines first."""
        lines = Counter(word for words in texts for word in set(words))
        known_words = {" " + word for word, count in lines.items() if count >= MIN_LINES}
        pieces = {word: _pieces(word) for word in lines}
        frequencies: Counter[str] = Counter()
        for words in texts:
            frequencies.update({*_phrases(words, known_words), *(piece for word in words for piece in pieces[word])})
        kept = [(count, name) for name, count in frequencies.items() if count >= MIN_LINES]
        kept.sort(key=lambda entry: (-entry[0], entry[1]))
        weights = [1.0 + math.log((1 + len(texts)) / (1 + count)) for count, _ in kept[:most]]
        return cls([name for _, name in kept[:most]], weights, 1.0 + math.log((1 + len(texts)) / 2))

    def encode(self, words: Sequence[str]) -> Encoded:
        ids: list[int] = []
        find, known_words = self._ids.get, self._known_words
        strange = 0  # occurrences of features that are not known
        for name in _phrases(words, self._ids):
            id = find(name)
            if id is None:
                strange += 1
            else:
                ids.append(id)
        for word in words:
            known, others = known_words.get(word) or self._spell(word)
            ids += known
            strange += others
        return Encoded(ids, strange * self.unknown_weight * self.unknown_weight)

    def _spell(self, word: str) -> tuple[tuple[int, ...], int]:
        """The pieces of a word that are known, and the number of those that are not."""
        found = [self._ids.get(piece) for piece in _pieces(word)]
        known = tuple(id for id in found if id is not None)
        return known, len(found) - len(known)


def split_words(text: str) -> list[str]:
    """Words and signs in lower case, up to MAX_WORDS. A number of five digits or more is any such number."""
    words = []
    for word in _WORD.findall(text.casefold())[:MAX_WORDS]:
        words.append("00000" if len(word) >= 5 and _LONG_NUMBER.fullmatch(word) else word[:MAX_WORD_CHARACTERS])
    return words


def _is_word(name: str) -> bool:
    return name[0] == " " and name[1:] != _UNKNOWN


def _phrases(words: Sequence[str], known: Container[str]) -> Iterator[str]:
    """Words, neighbours, and words with one between them; then neighbours of unknown words once more."""
    # A blank tells these from pieces, which have none: it stands before a word, between two, and twice over a gap.
    framed = [_START, *words, _END]
    named = [" " + word for word in words]
    yield from named
    yield from map(" ".join, pairwise(framed))
    yield from map("  ".join, zip(framed, framed[2:], strict=False))
    plain = [word if name in known else _UNKNOWN for word, name in zip(words, named, strict=True)]
    if _UNKNOWN in plain:
        for first, second in pairwise([_START, *plain, _END]):
            if first == _UNKNOWN:
                yield " " + _UNKNOWN
            if _UNKNOWN in (first, second):
                yield f"{first} {second}"


def _pieces(word: str) -> list[str]:
    framed = f"<{word}>"
    return [framed[at : at + size] for size in PIECE_SIZES for at in range(len(framed) - size + 1)]
