"""Many draws at once from a sampler's own candidates and noise, and tests of what they are distributed like."""

import math

import numpy as np
import torch

from local_engine import noise
from local_engine.request import SamplingParams
from local_engine.sampler import Sampler


def starts(keys: list[int], position: int) -> np.ndarray:
    """[n] where the noise of each key begins at a position."""
    return np.array([noise.start(key, position) for key in keys], np.uint64)


def draw_at(sampler: Sampler, logits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """What `sampler` samples from logits [V] with the noise of each of `starts` [n] in place of its own -> [n].

    The same arithmetic in the same order, so equal to it token for token; callers make sure of that on some.
    """
    row = sampler._masked(sampler._adjusted(sampler._row(logits), ()), 0, None)
    likeliest = int(row.argmax())
    ids = sampler._candidates(row, likeliest)
    ids = np.arange(len(row)) if ids is None else ids
    scores = (row[ids].astype(np.float64) - float(row[likeliest])) / sampler.params.temperature
    return ids[(scores + noise.gumbel_of(noise.bits(starts[:, None], ids))).argmax(1)]


def exact(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution that a request's parameters ask for, by sorting everything. logits [V] -> float64 [V]."""
    scaled = logits.astype(np.float64) / params.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    p = np.where(p >= params.min_p * p.max(), p, 0.0)
    order = np.argsort(-p, kind="stable")
    if params.top_k:
        p[order[params.top_k :]] = 0.0
    p /= p.sum()
    before = p[order].cumsum() - p[order]  # the probability of everything likelier
    p[order[before >= params.top_p]] = 0.0
    return p / p.sum()


def g_test(observed: np.ndarray, expected: np.ndarray) -> float:
    """The p-value of counts [n] under probabilities [n]; 0 where something impossible was seen.

    Cells with fewer than 5 expected are put together, as the chi-square distribution needs it.
    """
    if observed[expected == 0].any():
        return 0.0
    total = observed.sum()
    small = expected * total < 5
    cells = [(o, e * total) for o, e in zip(observed[~small], expected[~small], strict=True)]
    if expected[small].sum() * total >= 5:
        cells.append((observed[small].sum(), expected[small].sum() * total))
    g = 2 * sum(o * math.log(o / e) for o, e in cells if o)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(g / 2, dtype=torch.float64)))
