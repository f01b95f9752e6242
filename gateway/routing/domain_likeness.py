"""Likeness of a text to the examples of a configuration: cosine between weighted stems and neighbours.

A few examples cannot show what belongs to none of the domains. But examples of other domains are such texts for each
of them, so what they are taken for says how much likeness chance alone brings about; below that nothing is believed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from gateway.routing.domain_features import split_words

MIN_LIKENESS = 0.25
MAX_LIKENESS = 0.5
"""The least likeness that is believed: by chance's measure between these two, and the latter where there are fewer than
ENOUGH examples to measure it by."""
ENOUGH = 20
CHANCE = 0.9
"""Of the examples, those that are less like another domain than what is believed."""
MEASURED = 400

BEST, TOP = 0.7, 3
"""A domain's likeness: its most alike example has this share, the mean of its TOP most alike the rest."""

_NEIGHBOURS, _COMMON = 0.5, 0.3  # how much they count beside a word
_ENDINGS = ("ations", "ation", "ments", "ment", "ings", "ing", "ies", "ed", "es", "s", "e", "y")
_COMMON_WORDS = frozenset(
    """a about all also am an and any are as at be been but by can could did do does for from get give got had has have
    he help her him his how i if in into is it its just know let like make may me might more most must my need no not of
    on or our out please shall she should so some tell than that the their them then there these they this those to too
    up us very want was we were what when where which who whom whose why will with would you your again day days good
    hello hey hi last morning name new next now old really still thank thanks thing things time today tomorrow use way
    week work""".split()
)


class Likeness:
    """Immutable. `examples`: (domain, text); those without a word are left out."""

    def __init__(self, examples: Sequence[tuple[str, str]]) -> None:
        read = [(domain, features) for domain, text in examples if (features := _features(split_words(text)))]
        lines = Counter(name for _, features in read for name in features)
        self._rarity = {name: math.sqrt(1.0 + math.log((1 + len(read)) / (1 + count))) for name, count in lines.items()}
        self._unseen = math.sqrt(1.0 + math.log(1 + len(read)))
        self._domains = [domain for domain, _ in read]
        self._examples: dict[str, list[tuple[int, float]]] = defaultdict(list)  # by feature: number, weight
        for number, (_, features) in enumerate(read):
            for name, weight in self._weigh(features).items():
                self._examples[name].append((number, weight))
        self.threshold = self._measure_chance([features for _, features in read])

    def best(self, words: Sequence[str]) -> tuple[str | None, float]:
        """The domain that is most alike and its likeness, 0 to 1; of equals, the one whose examples come first."""
        likeness = self._by_domain(_features(words)) if self._domains else {}
        if not likeness:
            return None, 0.0
        best = max(likeness, key=lambda domain: likeness[domain])
        return best, likeness[best]

    def _by_domain(self, features: dict[str, float]) -> dict[str, float]:
        """In the order of the examples, as far as there is any likeness."""
        found: dict[int, float] = defaultdict(float)
        for name, weight in self._weigh(features).items():
            for number, its_weight in self._examples.get(name, ()):
                found[number] += weight * its_weight
        by_domain: dict[str, list[float]] = defaultdict(list)
        for number in sorted(found):
            by_domain[self._domains[number]].append(found[number])
        return {domain: _combine(values) for domain, values in by_domain.items()}

    def _weigh(self, features: dict[str, float]) -> dict[str, float]:
        weights = {name: weight * self._rarity.get(name, self._unseen) for name, weight in features.items()}
        length = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {name: weight / length for name, weight in weights.items()}

    def _measure_chance(self, examples: Sequence[dict[str, float]]) -> float:
        if len(examples) < ENOUGH:
            return MAX_LIKENESS
        by_chance = []
        for number in range(0, len(examples), -(-len(examples) // MEASURED)):
            likeness = self._by_domain(examples[number])
            others = (value for domain, value in likeness.items() if domain != self._domains[number])
            by_chance.append(max(others, default=0.0))
        by_chance.sort()
        return min(max(by_chance[int(CHANCE * (len(by_chance) - 1))], MIN_LIKENESS), MAX_LIKENESS)


def _combine(values: list[float]) -> float:
    top = sorted(values, reverse=True)[:TOP]
    return BEST * top[0] + (1.0 - BEST) * sum(top) / len(top)


def _features(words: Sequence[str]) -> dict[str, float]:
    """Stems and pairs of neighbouring stems, with what each counts. Signs are no words."""
    words = [word for word in words if word[0].isalnum()]
    features = {_stem(word): _COMMON if word in _COMMON_WORDS else 1.0 for word in words}
    for first, second in pairwise(words):
        are_common = first in _COMMON_WORDS and second in _COMMON_WORDS
        features[f"{_stem(first)} {_stem(second)}"] = _NEIGHBOURS * (_COMMON if are_common else 1.0)
    return features


def _stem(word: str) -> str:
    """Without an English ending, where three letters are left."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
