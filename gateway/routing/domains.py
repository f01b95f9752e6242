"""Which business domain a text belongs to, or none: keywords, a trained model, likeness to configured examples.

In that order, and the first that decides does. A keyword is exact. The model is what `hatchway domains train` made of
labelled lines. The examples of the configuration decide alone where there is no model, and after it where it says none.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.config.model import Domain
from gateway.routing.domain_features import split_words
from gateway.routing.domain_likeness import Likeness

if TYPE_CHECKING:  # numpy is loaded only where a model is
    from gateway.routing.domain_model import Learned, Model

MODEL_FILE = "domains.model"
"""In the state folder: what `hatchway domains train` writes and the gateway reads."""

OUT_OF_SCOPE = "oos"
"""How files of samples name what belongs to none of the domains."""

MAX_CHARACTERS = 4000
"""Only the start of a long text is read: the time spent here is bounded."""

MAX_SAMPLES = 1_000_000

_WORD = re.compile(r"[^\W_]+", re.UNICODE)


class Judgement(msgspec.Struct, frozen=True):
    """`domain` None: none of these. `confidence`: 0 to 1, of the best domain, also where it was not enough."""

    domain: str | None
    confidence: float


class Sample(msgspec.Struct, frozen=True):
    """A labelled text. `domain` None or `oos`: none of the domains. `intent`: a finer class within the domain."""

    text: str
    domain: str | None
    intent: str | None = None

    @property
    def is_out_of_scope(self) -> bool:
        return self.domain is None or self.domain == OUT_OF_SCOPE


class DomainClassifier:
    """Immutable. `version`: the first 12 hex digits of the SHA-256 of what it was made from. `domains`: all that it
    may answer. `learned`: what its model was made from; None: it has no model. `threshold`: the least confidence that
    it believes, of the model where there is one."""

    def __init__(self, domains: Sequence[Domain] = (), model: Model | None = None) -> None:
        """`domains`: of a configuration; empty: those of the model."""
        self._model = model
        self._keywords = [(domain.id, [_keyword(keyword) for keyword in domain.keywords]) for domain in domains]
        self._likeness = Likeness([(domain.id, example) for domain in domains for example in domain.examples])
        self.domains = tuple(domain.id for domain in domains) or (() if model is None else model.domains)
        self._allowed = frozenset(self.domains)
        self.version = _version(domains, model)

    @property
    def learned(self) -> Learned | None:
        return None if self._model is None else self._model.learned

    @property
    def threshold(self) -> float:
        return self._likeness.threshold if self._model is None else self._model.learned.threshold

    def judge(self, text: str) -> Judgement:
        """Reads at most MAX_CHARACTERS. Ties go to the domain that is defined first."""
        text = text[:MAX_CHARACTERS]
        by_keyword = self._most_keywords(text)
        if by_keyword is not None:
            return Judgement(by_keyword, 1.0)
        trained: Judgement | None = None
        if self._model is not None:
            domain, confidence, is_enough = self._model.judge(text)
            trained = Judgement(domain if is_enough and domain in self._allowed else None, confidence)
            if trained.domain is not None:
                return trained
        alike, likeness = self._likeness.best(split_words(text))
        if alike is not None and likeness > self._likeness.threshold:
            return Judgement(alike, min(likeness, 1.0))
        return trained or Judgement(None, min(likeness, 1.0))

    def classify(self, text: str) -> str | None:
        """The domain's id, or None: none of these."""
        return self.judge(text).domain

    def to_bytes(self) -> bytes:
        """The trained model alone: keywords and examples are the configuration's. Raises ValueError without one."""
        if self._model is None:
            raise ValueError("there is no trained model to write\nhint: `train` makes one")
        return self._model.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> DomainClassifier:
        """What `to_bytes` wrote. Raises ValueError for anything else, however it is made."""
        _ask_for_one_thread()
        from gateway.routing.domain_model import Model

        return cls(model=Model.from_bytes(data))

    def _most_keywords(self, text: str) -> str | None:
        joined = _keyword(text)
        best, best_hits = None, 0
        for domain, keywords in self._keywords:
            hits = sum(keyword in joined for keyword in keywords if keyword != "  ")
            if hits > best_hits:
                best, best_hits = domain, hits
        return best


def build_classifier(domains: Sequence[Domain], trained: DomainClassifier | None = None) -> DomainClassifier:
    """For a configuration. `trained`: of a model file; what it knows beyond the configured domains counts as none."""
    return DomainClassifier(domains, None if trained is None else trained._model)


def train(
    samples: Sequence[Sample], *, progress: Callable[[str, int, int], None] | None = None, seed: int = 0
) -> DomainClassifier:
    """Learn from labelled texts; the same samples and seed give the same classifier.

    `progress(what, done, total)` is called some dozens of times. Texts without a word are left out. Raises ValueError
    where fewer than two domains are left.
    """
    _ask_for_one_thread()
    from gateway.routing.domain_model import Learned, Model
    from gateway.routing.domain_training import Line, train_network

    if len(samples) > MAX_SAMPLES:
        raise ValueError(f"more than {MAX_SAMPLES} samples\nhint: leave some of them out")
    read = [(sample, words) for sample in samples if (words := split_words(sample.text[:MAX_CHARACTERS]))]
    domains = sorted({sample.domain for sample, _ in read if sample.domain and not sample.is_out_of_scope})
    if len(domains) < 2:
        raise ValueError(
            f"there must be lines of at least two domains, and there are {len(domains)}\n"
            f"hint: label the others by their domain, or `{OUT_OF_SCOPE}` where they belong to none"
        )
    number = {domain: at for at, domain in enumerate(domains)}
    lines = []
    for sample, words in read:
        domain = sample.domain or OUT_OF_SCOPE
        none_or_number = number.get(domain, len(domains))
        lines.append(Line(words, none_or_number, sample.intent or domain))
    made = train_network(lines, len(domains), progress or (lambda what, done, total: None), seed)
    learned = Learned(
        lines=len(lines),
        classes=len(made.scorer.groups),
        features=len(made.network.vocabulary.names),
        threshold=made.calibration.threshold,
        in_scope_accuracy=made.in_scope_accuracy,
        none_recall=made.none_recall,
    )
    return DomainClassifier(model=Model(domains, made.network, made.scorer, made.calibration, learned))


def _ask_for_one_thread() -> None:
    """Of numpy's BLAS, which otherwise starts one for each core when it is loaded: they wait for work by spinning, and
    on cores that have other work that makes everything slower. `OPENBLAS_NUM_THREADS` of the environment still wins."""
    os.putenv("OPENBLAS_DEFAULT_NUM_THREADS", "1")


def _keyword(text: str) -> str:
    """Words in lower case with one blank around each: a keyword is in a text as `" word word "` is in it."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _version(domains: Sequence[Domain], model: Model | None) -> str:
    digest = hashlib.sha256(msgspec.json.encode(domains))
    if model is not None:
        digest.update(model.to_bytes())
    return digest.hexdigest()[:12]
