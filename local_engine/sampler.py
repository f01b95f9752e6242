"""From logits to one token id, with a request's own parameters and its own random numbers.

Order: bias, penalties, then (temperature 0) the largest logit, or temperature, min-p, top-k, top-p, one draw. Each
request draws from a generator of its own, one number for each token, by inverting the cumulative distribution in id
order. So a seeded request gives the same tokens whatever else runs beside it, and rounding differences between batch
sizes can matter only when the number falls within that rounding of a boundary.
"""

import math

import torch
from torch import Tensor

from local_engine.request import MIN_TEMPERATURE, SamplingParams

FIRST_LOOK = 1024  # candidates that usually cover top-p; sorting the whole vocabulary costs far more


class Sampler:
    """One request's sampling state: its random generator, and what it has generated so far."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.counts: dict[int, int] = {}  # generated tokens only: the prompt is not penalised
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)

    def sample(self, logits: Tensor) -> int:
        """logits [V] -> token id. Raises `FloatingPointError` when they are not finite."""
        logits = self._adjust(logits)
        # numpy: one pass on this thread, where torch would wake the others for more than the work takes
        token = int(logits.numpy().argmax())  # of the first NaN, if there is one
        if not math.isfinite(logits[token]):
            raise FloatingPointError("the model produced logits that are not finite")
        if self.params.temperature >= MIN_TEMPERATURE:
            token = self._draw(logits)
        self.counts[token] = self.counts.get(token, 0) + 1
        return token

    def _adjust(self, logits: Tensor) -> Tensor:
        p = self.params
        changes = dict(p.logit_bias)
        if p.presence_penalty or p.frequency_penalty:
            for token, count in self.counts.items():
                changes[token] = changes.get(token, 0.0) - p.presence_penalty - p.frequency_penalty * count
        if not changes:
            return logits
        logits = logits.clone()
        logits[list(changes)] += torch.tensor(list(changes.values()))
        return logits

    def _draw(self, logits: Tensor) -> int:
        p = self.params
        # The largest logit becomes 0 before the division, so that a tiny temperature cannot overflow.
        logits = (logits - logits.max()) / p.temperature
        if p.min_p:
            logits = logits.masked_fill(logits.exp() < p.min_p, float("-inf"))
        ids = None
        if p.top_k:
            logits, ids = logits.topk(min(p.top_k, len(logits)))
        if p.top_p < 1:
            logits, ids = self._nucleus(logits, ids)
        if ids is not None:
            ids, order = ids.sort()
            logits = logits[order]
        cumulative = logits.double().softmax(0).cumsum(0)
        point = torch.rand(1, dtype=torch.float64, generator=self.generator) * cumulative[-1]
        # `right`: the first entry whose cumulative probability exceeds the point, so never one of probability 0
        index = min(int(torch.searchsorted(cumulative, point, right=True)), len(cumulative) - 1)
        return index if ids is None else int(ids[index])

    def _nucleus(self, logits: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """The fewest likeliest candidates whose probabilities reach top_p; at least one. -> logits [n], ids [n]."""
        total = logits.exp().sum()
        for size in (FIRST_LOOK, len(logits)):
            largest, places = logits.topk(min(size, len(logits)))
            cumulative = (largest.exp() / total).cumsum(0)
            if cumulative[-1] >= self.params.top_p:
                break
        count = min(int(torch.searchsorted(cumulative, self.params.top_p)) + 1, len(largest))
        places = places[:count]
        return largest[:count], places if ids is None else ids[places]
