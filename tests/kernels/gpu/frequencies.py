"""Whether counts look like draws from a distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def g_test(counts: Tensor, probabilities: Tensor) -> float:
    """Probability of counts [n] at least that far from probabilities [n], if they were drawn from them; fp64.

    G = 2 * sum of O ln(O / E), about chi-square with one degree of freedom less than there are cells. Cells of
    probability 0 must be empty; those in which fewer than five are expected are put together.
    """
    counts, expected = counts.double(), probabilities.double() / probabilities.sum() * counts.sum()
    if bool(counts[probabilities <= 0].any()):
        return 0.0
    is_rare = expected < 5
    counts = torch.cat((counts[~is_rare], counts[is_rare].sum()[None]))
    expected = torch.cat((expected[~is_rare], expected[is_rare].sum()[None]))
    counts, expected = counts[expected > 0], expected[expected > 0]
    g = 2 * torch.special.xlogy(counts, counts / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), g / 2))
