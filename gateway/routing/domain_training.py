"""Training a domain classifier: which classes, how sure is sure enough, and what to expect of it.

A text's score is how far its best domain is ahead of "none of these", plus something for how much of the text is known.
The threshold is found by cross-validation, on texts that the judging network has not seen. Lines marked as none of the
domains take part in it; where there are no such lines, whole domains are left out of the training in turn and stand in
for them. So what is expected is measured, and a little pessimistic: the networks of the cross-validation have seen less
than the final one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.routing.domain_features import Vocabulary
from gateway.routing.domain_network import BATCH, Network, fit

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

FOLDS = 3
MAX_FEATURES = 43_000  # of UNITS bytes each in a model file
UNITS, EPOCHS = 192, 12
SMALL, SMALL_UNITS, SMALL_STEPS = 2_000, 64, 150
"""Below SMALL lines a smaller network learns, in at least as many steps."""

KNOWN_WEIGHT = 5.0
AIM_IN_SCOPE, AIM_NONE = 0.955, 0.80
NONE_MARGIN = 3.0
"""A point above the aim for texts inside the domains is worth three above the aim for none: the latter is measured on
far fewer lines, and moves more from one set of texts to the next."""
KEPT_WITHOUT_NONE = 0.95
"""Of the right judgements, those that the threshold lets pass where nothing can stand in for none."""

_CALIBRATION_STEPS = 300
_CANDIDATES, _SPREAD = 4_000, 500
_LEAST = 1e-30


class Line(NamedTuple):
    words: list[str]
    domain: int  # the number of domains: none of them
    label: str  # what it is trained to be told by: an intent, or the domain's name once more


class Scorer:
    """How logits become a domain and a score. `groups` [C]: the domain of each class, ascending; `domains`: how many
    there are, which is also the group of the classes that stand for none of them."""

    __slots__ = ("_domains", "_has_none", "_present", "_starts", "groups")

    def __init__(self, groups: Sequence[int], domains: int) -> None:
        self.groups = tuple(groups)
        present, self._starts = np.unique(np.array(groups, np.intp), return_index=True)
        self._has_none = int(present[-1]) == domains
        self._present = [int(domain) for domain in present]
        self._domains = len(present) - self._has_none

    def score(self, logits: npt.NDArray[np.float32], known: float) -> tuple[int, float]:
        """The best domain and its score, of logits [C] and the known share of the text."""
        top = float(logits.max())
        sums = np.add.reduceat(np.exp(logits - np.float32(top)), self._starts)
        best = int(sums[: self._domains].argmax())
        ahead = math.log(max(float(sums[best]), _LEAST))
        ahead += -math.log(max(float(sums[-1]), _LEAST)) if self._has_none else top
        return self._present[best], ahead + KNOWN_WEIGHT * known


class Calibration(NamedTuple):
    """`confidence` = 1 / (1 + exp(-(slope * score + shift))): how often such a score was right in cross-validation, if
    every other text belonged to none of the domains. `threshold`: of confidence."""

    slope: float
    shift: float
    threshold: float

    def confidence(self, score: float) -> float:
        return 1.0 / (1.0 + math.exp(-min(max(self.slope * score + self.shift, -60.0), 60.0)))


class Trained(NamedTuple):
    """`in_scope_accuracy`, `none_recall`: expected of the threshold, 0 to 1; None: nothing to measure it with."""

    network: Network
    scorer: Scorer
    calibration: Calibration
    in_scope_accuracy: float | None
    none_recall: float | None


class _Judged(NamedTuple):
    """Of the cross-validation's held-out lines. `right`: the best domain is the line's."""

    scores: Doubles
    right: Flags
    none: Flags


def train_network(lines: Sequence[Line], domains: int, progress: Callable[[str, int, int], None], seed: int) -> Trained:
    """Lines of at least two domains."""
    folds = _Folds(lines, domains, seed)
    plan, rounds = _plan(len(lines), domains, seed), folds.count + 1
    judged: list[tuple[float, bool, bool]] = []
    for fold in range(folds.count):
        trained_on, held_out = folds.split(fold)
        network, scorer = _fit(trained_on, plan, _Rounds(progress, "cross-validation", fold, rounds))
        for line, is_none in held_out:
            best, score = scorer.score(*network.logits(network.vocabulary.encode(line.words)))
            judged.append((score, best == line.domain, is_none))
    network, scorer = _fit(lines, plan, _Rounds(progress, "training", folds.count, rounds))
    held = _Judged(*(np.array(part) for part in zip(*judged, strict=True)))
    threshold = choose_threshold(held.scores, held.right, held.none)
    slope, shift = _calibrate(held)
    calibration = Calibration(slope, shift, 0.0)
    passed = held.scores > threshold
    return Trained(
        network,
        scorer,
        calibration._replace(threshold=calibration.confidence(threshold)),
        float((passed & held.right)[~held.none].mean()),
        float(1.0 - passed[held.none].mean()) if held.none.any() else None,
    )


def choose_threshold(scores: Doubles, right: Flags, none: Flags) -> float:
    """The score that is furthest above both aims, the nearer of which counts; scores above it pass.

    Where the best domain is wrong so often that no threshold reaches the aim, it may cost half as many lines again.
    """
    if not none.any():
        return float(np.quantile(scores[right], 1.0 - KEPT_WITHOUT_NONE)) if right.any() else 0.0
    candidates = np.quantile(scores, np.linspace(0.0, 1.0, _CANDIDATES))
    inside = np.sort(scores[right & ~none])
    accuracy = (len(inside) - np.searchsorted(inside, candidates, "right")) / max(1, int((~none).sum()))
    recall = _smooth_share_below(scores[none], candidates)
    reachable = len(inside) / max(1, int((~none).sum()))
    aim = min(AIM_IN_SCOPE, reachable - (1.0 - reachable) / 2)
    return float(candidates[np.minimum(accuracy - aim, (recall - AIM_NONE) / NONE_MARGIN).argmax()])


def _smooth_share_below(values: Doubles, at: Doubles) -> Doubles:
    """Of few values the share below a place moves in steps, to which a threshold must not fit: each value is spread
    out (Silverman's rule of thumb for a kernel's width; the logistic curve in place of the normal one)."""
    few = values if len(values) <= _SPREAD else np.quantile(values, np.linspace(0.0, 1.0, _SPREAD))
    width = 1.06 * float(few.std()) * len(few) ** -0.2 + 1e-9
    steps = np.clip(1.7 * (at[:, None] - few[None, :]) / width, -60.0, 60.0)
    shares: Doubles = (1.0 / (1.0 + np.exp(-steps))).mean(1)
    return shares


def _calibrate(judged: _Judged) -> tuple[float, float]:
    """Logistic regression on the score, lines of none weighing as much as all others together (Platt, "Probabilistic
    Outputs for Support Vector Machines", 1999), by steps under a fixed bound of the curvature, which cannot diverge
    (Boehning and Lindsay, "Monotonicity of Quadratic-Approximation Algorithms", 1988)."""
    target = (judged.right & ~judged.none).astype(np.float64)
    weight = np.where(judged.none, 0.5 / max(1, judged.none.sum()), 0.5 / max(1, (~judged.none).sum()))
    center, spread = float(judged.scores.mean()), float(judged.scores.std()) + 1e-9
    inputs = np.stack([(judged.scores - center) / spread, np.ones_like(judged.scores)], axis=1)  # [N, 2]
    bound = np.linalg.inv((inputs * weight[:, None]).T @ inputs / 4 + 0.001 * np.eye(2))
    found = np.zeros(2)
    for _ in range(_CALIBRATION_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(inputs @ found, -60, 60)))
        found -= bound @ (inputs.T @ (weight * (chance - target)) + 0.001 * found)
    slope = max(float(found[0]), 0.01) / spread
    return slope, float(found[1]) - slope * center


class _Folds:
    """Which lines are held out: of each label every n-th, and, where no line is of none, some of the domains."""

    def __init__(self, lines: Sequence[Line], domains: int, seed: int) -> None:
        self._lines, self._none = lines, domains
        self._leaves_out = domains >= 3 and not any(line.domain == domains for line in lines)
        self.count = min(FOLDS, domains) if self._leaves_out else FOLDS
        shuffled = np.random.default_rng(seed).permutation(len(lines))
        order = sorted(shuffled, key=lambda at: (lines[at].domain, lines[at].label))
        self._fold = [0] * len(lines)
        for number, at in enumerate(order):
            self._fold[at] = number % self.count

    def split(self, fold: int) -> tuple[list[Line], list[tuple[Line, bool]]]:
        """Lines to train on, and those to judge, each with whether it is of none."""
        trained_on: list[Line] = []
        held_out: list[tuple[Line, bool]] = []
        for line, its_fold in zip(self._lines, self._fold, strict=True):
            is_out = self._leaves_out and line.domain % self.count == fold
            if is_out or its_fold == fold:
                held_out.append((line, is_out or line.domain == self._none))
            else:
                trained_on.append(line)
        return trained_on, held_out


class _Rounds:
    """Reports the epochs of one training as part of all of them."""

    def __init__(self, progress: Callable[[str, int, int], None], what: str, number: int, rounds: int) -> None:
        self._progress, self._what, self._number, self._rounds = progress, what, number, rounds

    def __call__(self, done: int, total: int) -> None:
        self._progress(self._what, self._number * total + done, self._rounds * total)


class _Plan(NamedTuple):
    """The same for the networks of the cross-validation and the final one."""

    domains: int
    units: int
    epochs: int
    seed: int


def _plan(lines: int, domains: int, seed: int) -> _Plan:
    if lines >= SMALL:
        return _Plan(domains, UNITS, EPOCHS, seed)
    return _Plan(domains, SMALL_UNITS, max(EPOCHS, math.ceil(SMALL_STEPS / math.ceil(lines / BATCH))), seed)


def _fit(lines: Sequence[Line], plan: _Plan, progress: Callable[[int, int], None]) -> tuple[Network, Scorer]:
    classes = sorted({(line.domain, line.label) for line in lines})
    number = {one: at for at, one in enumerate(classes)}
    vocabulary = Vocabulary.of([line.words for line in lines], MAX_FEATURES)
    network = fit(
        vocabulary,
        [vocabulary.encode(line.words) for line in lines],
        np.array([number[line.domain, line.label] for line in lines], np.intp),
        np.array([domain for domain, _ in classes], np.intp),
        units=plan.units,
        epochs=plan.epochs,
        seed=plan.seed,
        on_epoch=lambda done: progress(done, plan.epochs),
    )
    return network, Scorer([domain for domain, _ in classes], plan.domains)
