"""A small network over a text's features: one hidden layer, one output for each class.

hidden = relu(sum of the features' rows), logits = hidden @ output: a bag of features as in Joulin et al., "Bag of
Tricks for Efficient Text Classification" (2016), with a nonlinearity. In each step some features and half of the
hidden units are left out at random (dropout). A feature's row learns at a rate of its own (Adagrad, one number for a
row), the small dense rest with Adam. Numpy is imported here: import this module only where a network is made.

Letters in shapes: N lines, F features, H hidden units, C classes, B lines of a batch, U features of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.routing.domain_features import Encoded, Vocabulary

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]

BATCH = 64
ROW_RATE = 0.05
DENSE_RATE = 0.005
KEPT_FEATURES = 0.6
KEPT_UNITS = 0.5
LENIENCE = 0.3
"""Of a line's target, the share that goes to classes of the same domain, as the network itself would divide it: to
take one intent for its neighbour is half a mistake."""

_MEAN_DECAY, _SQUARE_DECAY = 0.9, 0.999
_TINY = 1e-10


class Network:
    """Immutable. `rows` [F, H]: signed bytes, to be multiplied by `scales` [F]. `bias` [H], `output` [H, C],
    `output_bias` [C]."""

    __slots__ = ("_factors", "_squares", "bias", "output", "output_bias", "rows", "scales", "vocabulary")

    def __init__(
        self,
        vocabulary: Vocabulary,
        rows: npt.NDArray[np.int8],
        scales: Floats,
        bias: Floats,
        output: Floats,
        output_bias: Floats,
    ) -> None:
        self.vocabulary = vocabulary
        self.rows, self.scales, self.bias = rows, scales, bias
        self.output, self.output_bias = output, output_bias
        weights = np.array(vocabulary.weights, np.float32)
        self._squares = weights * weights
        self._factors = weights * scales

    def logits(self, encoded: Encoded) -> tuple[Floats, float]:
        """[C], and how much of the text is known: 0 to 1, by squared weights."""
        hidden, known = self.bias, 0.0
        if encoded.ids:
            ids = np.array(encoded.ids)
            known = float(self._squares[ids].sum())
            length = (known + encoded.unknown) ** 0.5
            hidden = hidden + (self._factors[ids] / np.float32(length)) @ self.rows[ids].astype(np.float32)
            known /= known + encoded.unknown
        return np.maximum(hidden, 0) @ self.output + self.output_bias, known


def fit(
    vocabulary: Vocabulary,
    texts: Sequence[Encoded],
    classes: Integers,
    domains: Integers,
    *,
    units: int,
    epochs: int,
    seed: int,
    on_epoch: Callable[[int], None],
) -> Network:
    """Train on texts [N] with their `classes` [N]. `domains` [C]: which domain each class belongs to."""
    random = np.random.default_rng(seed)
    lines = _Lines.of(vocabulary, texts)
    count = len(domains)
    rows = random.standard_normal((len(vocabulary.names), units), np.float32) / np.float32(units**0.5)
    output = random.standard_normal((units, count), np.float32) / np.float32((2 * units) ** 0.5)
    bias, output_bias = np.zeros(units, np.float32), np.zeros(count, np.float32)
    dense = [_Adam(bias), _Adam(output), _Adam(output_bias)]
    squares = np.full((len(rows), 1), _TINY, np.float32)
    siblings = (domains[:, None] == domains[None, :]).astype(np.float32)  # [C, C]
    steps, step = epochs * -(-len(texts) // BATCH), 0
    for epoch in range(epochs):
        for batch in _batches(random.permutation(len(texts))):
            rate = 1.0 - step / steps
            step += 1
            ids, values = lines.take(batch, random)  # [U], [B, U]
            used = rows[ids]  # [U, H]
            hidden = values @ used + bias
            kept = ((random.random(hidden.shape, np.float32) < KEPT_UNITS) & (hidden > 0)) / np.float32(KEPT_UNITS)
            hidden *= kept
            error = _error(hidden @ output + output_bias, classes[batch], siblings)  # [B, C]
            back = (error @ output.T) * kept  # [B, H]
            for part, gradient in zip(dense, (back.sum(0), hidden.T @ error, error.sum(0)), strict=True):
                part.step(gradient, rate * DENSE_RATE, step)
            gradient = values.T @ back  # [U, H]
            squares[ids] += np.einsum("uh,uh->u", gradient, gradient)[:, None] / np.float32(units)
            rows[ids] = used - np.float32(rate * ROW_RATE) * gradient / np.sqrt(squares[ids])
        on_epoch(epoch + 1)
    scales = np.abs(rows).max(1) / np.float32(127)
    return Network(vocabulary, np.rint(rows / scales[:, None]).astype(np.int8), scales, bias, output, output_bias)


def _error(logits: Floats, classes: Integers, siblings: Floats) -> Floats:
    """The gradient of the cross-entropy by the logits [B, C], with LENIENCE, divided by B."""
    logits = np.exp(logits - logits.max(1, keepdims=True))
    error: Floats = logits / logits.sum(1, keepdims=True)
    lenient = error * siblings[classes]
    lenient *= np.float32(LENIENCE) / lenient.sum(1, keepdims=True)
    error -= lenient
    error[np.arange(len(classes)), classes] -= np.float32(1.0 - LENIENCE)
    return error / np.float32(len(classes))


def _batches(order: Integers) -> Iterator[Integers]:
    return (order[start : start + BATCH] for start in range(0, len(order), BATCH))


class _Adam:
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015); changes `values` in place."""

    def __init__(self, values: Floats) -> None:
        self._values = values
        self._mean, self._square = np.zeros_like(values), np.zeros_like(values)

    def step(self, gradient: Floats, rate: float, step: int) -> None:
        self._mean += np.float32(1 - _MEAN_DECAY) * (gradient - self._mean)
        self._square += np.float32(1 - _SQUARE_DECAY) * (gradient * gradient - self._square)
        spread = np.sqrt(self._square / np.float32(1 - _SQUARE_DECAY**step)) + np.float32(1e-8)
        self._values -= np.float32(rate / (1 - _MEAN_DECAY**step)) * self._mean / spread


class _Lines(NamedTuple):
    """All texts one behind the other: those of line n are at `starts[n]:starts[n + 1]`."""

    starts: Integers  # [N + 1]
    ids: Integers
    values: Floats
    places: Integers  # [F], room for `take`

    @classmethod
    def of(cls, vocabulary: Vocabulary, texts: Sequence[Encoded]) -> _Lines:
        weights = np.array(vocabulary.weights, np.float32)
        every_id = np.array([id for text in texts for id in text.ids], np.intp)
        line = np.repeat(np.arange(len(texts)), [len(text.ids) for text in texts])
        known = np.bincount(line, weights[every_id] ** 2, len(texts))
        length = np.sqrt(known + [text.unknown for text in texts])
        keys, counts = np.unique(line * len(weights) + every_id, return_counts=True)
        line, ids = np.divmod(keys, len(weights))
        values = (counts * weights[ids] / length[line]).astype(np.float32)
        starts = np.concatenate(([0], np.cumsum(np.bincount(line, minlength=len(texts)))))
        return cls(starts, ids, values, np.zeros(len(weights), np.intp))

    def take(self, batch: Integers, random: Any) -> tuple[Integers, Floats]:
        """The features of these lines without those that are left out, and their values: [U], [B, U]."""
        parts = [slice(start, end) for start, end in zip(self.starts[batch], self.starts[batch + 1], strict=True)]
        ids = np.concatenate([self.ids[part] for part in parts])
        line = np.repeat(np.arange(len(batch)), self.starts[batch + 1] - self.starts[batch])
        kept = random.random(len(ids), np.float32) < KEPT_FEATURES
        ids, line = ids[kept], line[kept]
        used = np.unique(ids)
        self.places[used] = np.arange(len(used))
        values = np.zeros((len(batch), len(used)), np.float32)
        values[line, self.places[ids]] = np.concatenate([self.values[part] for part in parts])[kept] / KEPT_FEATURES
        return used, values
