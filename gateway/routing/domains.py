"""Which business domain a prompt belongs to: keywords first, then likeness to the configured examples.

Likeness is the cosine between binary word sets. It is small and predictable, and answers None rather than guess
when nothing is like enough.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gateway.config.model import Domain

MIN_LIKENESS = 0.5
MAX_CHARACTERS = 4000
"""Only the start of a long prompt is read: the time spent here is bounded."""

_WORD = re.compile(r"[^\W_]+", re.UNICODE)


class DomainClassifier:
    """Immutable after construction; one for each configuration."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        self._keywords = [(domain.id, [_words(keyword) for keyword in domain.keywords]) for domain in domains]
        self._examples = [
            (domain.id, frozenset(words))
            for domain in domains
            for example in domain.examples
            if (words := _words(example))
        ]

    def classify(self, text: str) -> str | None:
        """The domain's id, or None: none of these. Ties go to the domain that is defined first."""
        words = _words(text[:MAX_CHARACTERS])
        if not words:
            return None
        by_keyword = self._most_keywords(words)
        return by_keyword if by_keyword is not None else self._most_alike(frozenset(words))

    def _most_keywords(self, words: list[str]) -> str | None:
        joined = f" {' '.join(words)} "
        best, best_hits = None, 0
        for domain, keywords in self._keywords:
            hits = sum(f" {' '.join(keyword)} " in joined for keyword in keywords if keyword)
            if hits > best_hits:
                best, best_hits = domain, hits
        return best

    def _most_alike(self, words: frozenset[str]) -> str | None:
        best, best_likeness = None, MIN_LIKENESS
        for domain, example in self._examples:
            likeness = len(words & example) / math.sqrt(len(words) * len(example))
            if likeness > best_likeness:
                best, best_likeness = domain, likeness
        return best


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
