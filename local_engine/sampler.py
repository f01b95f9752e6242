"""From logits to one token id, by a request's own parameters and its own random numbers.

Order: bias, penalties, mask, then (temperature 0) the largest logit, or temperature, min-p, top-k, top-p and the
largest of logit / temperature + Gumbel noise, which is a draw from what is left. The noise belongs to (seed, choice,
position, token id), so a token is a function of its logits, the parameters and the tokens before it, and of nothing
else: not of the batch, not of how the engine came to these logits. Speculation rests on that. Rounding of the logits
can matter only where the two largest sums are that close. Among equals the smallest id wins.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kernels.draw import Draw
from local_engine import noise
from local_engine.errors import GenerationError, RequestError
from local_engine.request import MIN_TEMPERATURE, SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from torch import Tensor

Row = npt.NDArray[np.float32]  # [V]
Rows = npt.NDArray[np.float32]  # [n, V]
Ids = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]  # [V] true: allowed

LARGEST = float(np.finfo(np.float32).max)
FEW = 1024  # ids whose noise costs less than finding out which of it is needed
NEAR = 6.0  # nats under the likeliest token; what is further needs so much noise that its bits alone tell


@dataclass(frozen=True, slots=True)
class Sampled:
    token: int
    logprobs: TokenLogprobs | None = None


class Sampler:
    """One request's sampling: its parameters, the key of its noise, and how often it has had which token.

    `end_ids` are not sampled before `min_tokens` tokens, unless the mask allows nothing else. Raises `RequestError`
    when `logit_bias` names a token that is not in the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        *,
        end_ids: Collection[int] = (),
        min_tokens: int = 0,
    ) -> None:
        for token in params.logit_bias:
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"`logit_bias` names token {token}, the vocabulary has {vocab_size} tokens", param="logit_bias"
                )
        self.params = params
        self.vocab_size = vocab_size
        self.key = noise.key(secrets.randbits(64) if params.seed is None else params.seed, params.choice)
        self.counts: Counter[int] = Counter()  # of the generated tokens
        self.num_generated = 0
        self._bias = _columns(params.logit_bias)
        self._prompt = set(prompt) if params.repetition_penalty != 1 else set()
        self._ends = _ids(sorted(token for token in end_ids if 0 <= token < vocab_size))
        self._min_tokens = min_tokens if len(self._ends) else 0
        is_plain = (
            params.logprobs is None
            and not params.logit_bias
            and params.repetition_penalty == 1
            and not params.presence_penalty
            and not params.frequency_penalty
        )
        # greedy and nothing else: then the largest logit is all there is to know, if nothing may not be sampled
        self._takes_best = is_plain and params.temperature < MIN_TEMPERATURE
        # likewise, where the model can draw: what is said to it; None: the logits have to be seen here
        self.draw: Draw | None = None
        if is_plain and not self._takes_best:
            self.draw = Draw(params.temperature, params.top_k, params.top_p, params.min_p, self.key, vocab_size)

    def takes_best(self, best: int, mask: Mask | None = None) -> bool:
        """Whether `best`, the place of a row's largest logit (-1: unknown), is what `sample` would say of that row."""
        return self._takes_best and self._is_free(best, mask)

    def takes_drawn(self, drawn: int, mask: Mask | None = None) -> bool:
        """Whether `drawn`, which a model said after `draw` (-1: unknown), is what `sample` would say of that row."""
        return self.draw is not None and self._is_free(drawn, mask)

    def _is_free(self, token: int, mask: Mask | None) -> bool:
        return 0 <= token < self.vocab_size and mask is None and self.num_generated >= self._min_tokens

    def sample(self, logits: Tensor | Row, position: int, mask: Mask | None = None) -> Sampled:
        """The token at `position` (its index among the sequence's tokens). Records nothing: `accept` does.

        logits [V] fp32 (further entries belong to no token and are left out), mask [V]. Raises `FloatingPointError`
        when the logits are not finite and `GenerationError` when the mask allows nothing.
        """
        row = self._row(logits)
        token = self._choose(row, position, (), mask)
        if self.params.logprobs is None:
            return Sampled(token)
        return Sampled(token, _logprobs(row, token, self.params.logprobs))

    def guess(self, logits: Tensor | Row, position: int, ahead: Sequence[int], mask: Mask | None = None) -> int:
        """What `sample` would say if the tokens `ahead` had been accepted; for the guesses of a draft model."""
        return self._choose(self._row(logits), position, ahead, mask)

    def accept(self, token: int) -> None:
        """Records that the answer goes on with `token`."""
        self.counts[token] += 1
        self.num_generated += 1

    def _row(self, logits: Tensor | Row) -> Row:
        row: Row = on_host(logits)[: self.vocab_size]
        # numpy: one pass on this thread, where torch would wake the others for more than the work takes
        if not (math.isfinite(row.max()) and math.isfinite(row.min())):
            raise FloatingPointError("the model produced logits that are not finite")
        return row

    def _choose(self, row: Row, position: int, ahead: Sequence[int], mask: Mask | None) -> int:
        row = self._masked(self._adjusted(row, ahead), len(ahead), mask)
        likeliest = int(row.argmax())
        if self.params.temperature < MIN_TEMPERATURE:
            return likeliest
        ids = self._candidates(row, likeliest)
        start = noise.start(self.key, position)
        if ids is None:
            ids = np.arange(len(row)) if len(row) <= FEW else self._contenders(row, likeliest, start)
        scores = (row[ids].astype(np.float64) - float(row[likeliest])) / self.params.temperature
        scores += noise.gumbel_of(noise.bits(start, ids))
        return int(ids[scores.argmax()])

    def _contenders(self, row: Row, likeliest: int, start: int) -> Ids:
        """The ids among which the largest sum must be, ascending; some perhaps twice.

        Those NEAR the likeliest, and of the others, which need that much more noise than it has, those that have it.
        """
        own = float(noise.gumbel_of(noise.bits(start, np.array([likeliest])))[0])
        near = np.flatnonzero(row >= self._cut(row[likeliest], -NEAR))
        far = noise.reaching(own + NEAR - 1e-3, start, len(row))
        return np.sort(np.concatenate((near, far)))  # one that is in both does no harm

    def _adjusted(self, row: Row, ahead: Sequence[int]) -> Row:
        """Bias, then repetition over prompt and answer, then presence and frequency over the answer."""
        p = self.params
        ids, values = self._bias
        if len(ids):
            row = row.copy()
            row[ids] += values
        if p.repetition_penalty == 1 and not p.presence_penalty and not p.frequency_penalty:
            return row
        counts = self.counts + Counter(ahead) if ahead else self.counts
        row = row.copy()
        if p.repetition_penalty != 1:
            seen = _ids(self._prompt.union(counts))
            old = row[seen].astype(np.float64)
            new = np.where(old > 0, old / p.repetition_penalty, old * p.repetition_penalty)
            row[seen] = new.clip(-LARGEST, LARGEST)
        ids, times = _columns(counts)
        row[ids] -= p.presence_penalty + p.frequency_penalty * times
        return row

    def _masked(self, row: Row, num_ahead: int, mask: Mask | None) -> Row:
        """`row`, or a copy of it with minus infinity for what may not be sampled."""
        if mask is not None:
            row = np.where(mask[: self.vocab_size], row, np.float32(-np.inf))
            if row.max() == -np.inf:
                raise GenerationError("the grammar allows no token at this point")
        if self.num_generated + num_ahead < self._min_tokens:
            without = row.copy()
            without[self._ends] = -np.inf
            if without.max() > -np.inf:
                return without
        return row

    def _candidates(self, row: Row, likeliest: int) -> Ids | None:
        """The ids that min-p, top-k and top-p leave, ascending; None: all of them."""
        p = self.params
        ids: Ids | None = None
        if p.min_p:
            ids = np.flatnonzero(row >= self._cut(row[likeliest], math.log(p.min_p)))
        if 0 < p.top_k < (len(row) if ids is None else len(ids)):
            ids = _largest(row, p.top_k) if ids is None else ids[_largest(row[ids], p.top_k)]
        if p.top_p < 1:
            kept = self._nucleus(row if ids is None else row[ids], row[likeliest])
            ids = kept if ids is None else ids[kept]
        return None if ids is None else np.sort(ids)

    def _nucleus(self, logits: Row, largest: np.float32) -> Ids:
        """Places of the fewest likeliest candidates whose probabilities reach top-p; at least one. In no order."""
        with np.errstate(over="ignore"):  # a difference of the largest numbers: minus infinity, whose share is 0
            shares = logits - largest
            shares /= np.float32(self.params.temperature)
            np.exp(shares, out=shares)
        total = float(shares.sum(dtype=np.float64))
        # What is in the nucleus has more than 1 - top_p of the mass at and below it, so at least an even part of that.
        bound = 0.99 * (1 - self.params.top_p) * total / len(shares)
        places = np.flatnonzero(shares >= np.float32(bound))
        shares = shares[places]
        falling = np.sort(shares)[::-1]  # of values: several times faster than of places
        count = int(np.searchsorted(falling.cumsum(dtype=np.float64), self.params.top_p * total)) + 1
        least = falling[min(count, len(falling)) - 1]
        above = places[shares > least]
        return np.concatenate((above, places[shares == least][: count - len(above)]))

    def _cut(self, largest: np.float32, nats: float) -> np.float32:
        """The logit that lies `nats` (negative) under the largest one after temperature; rounded down."""
        cut = np.float32(max(float(largest) + nats * self.params.temperature, -LARGEST))
        return cut if nats == 0 else np.nextafter(cut, np.float32(-np.inf))


def prompt_logprobs(
    logits: Tensor | npt.NDArray[np.float32], next_tokens: Sequence[int], n: int
) -> list[TokenLogprobs]:
    """logits [T, V] of prompt positions, and the prompt's token behind each -> that token's, and the n likeliest.

    Raises `FloatingPointError` when the logits are not finite.
    """
    rows = on_host(logits)
    if not np.isfinite(rows).all():
        raise FloatingPointError("the model produced logits that are not finite")
    return [_logprobs(row, token, n) for row, token in zip(rows, next_tokens, strict=True)]


def on_host(logits: Tensor | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same numbers, or from a GPU a copy, which waits until they are there."""
    return logits if isinstance(logits, np.ndarray) else logits.numpy(force=True)


def _logprobs(row: Row, token: int, n: int) -> TokenLogprobs:
    largest = float(row.max())
    total = largest + math.log(np.exp(row - np.float32(largest)).sum(dtype=np.float64))
    top = tuple((int(i), float(row[i]) - total) for i in _largest(row, n)) if n else ()
    return TokenLogprobs(token, float(row[token]) - total, top)


def _largest(row: Row, count: int) -> Ids:
    """Places of the `count` largest, largest first; among equals the smallest place first."""
    width = len(row) // max(4 * count, 256)
    if width > 1:
        # Each of `count` stretches has an entry of at least the bound: what is under it cannot be among the largest.
        maxima = row[: len(row) // width * width].reshape(width, -1).max(0)
        bound = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
        places = np.flatnonzero(row >= bound)
    else:
        places = np.arange(len(row))
    return places[np.argsort(-row[places], kind="stable")[:count]]


def _ids(tokens: Iterable[int]) -> Ids:
    return np.fromiter(tokens, np.intp)


def _columns(table: dict[int, float] | Counter[int]) -> tuple[Ids, npt.NDArray[np.float64]]:
    return np.fromiter(table, np.intp, len(table)), np.fromiter(table.values(), np.float64, len(table))
