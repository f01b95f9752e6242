"""Finding the scales: which numbers of few bits stand nearest to a group of weights.

Rounding to the group's largest weight wastes levels on one outlier. So several scales are tried, from grids as coarse
as the group allows to ones that clip its largest weights; then the best is refitted by least squares to the numbers
that it gave. Errors are weighted by how much each input counts (the idea of https://arxiv.org/abs/2306.00978 and of
the importance matrices of llama.cpp). Every candidate is rounded to the type in which it will be stored before its
error is taken, so nothing is promised that storage then breaks; and grids through the largest weight are among the
candidates, so weights that stand on a grid already are found exactly.
"""

import torch
from torch import Tensor

FP8_MAX = 448.0
REFITS = 2


def fit(x: Tensor, shares: Tensor, name: str, zeros: bool, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """x fp32 [N, groups, t], shares [1, groups, t] -> numbers like x, scale [N, groups], minimum [N, groups] | None.

    `name` is the format's, `kind` the type of scales and minima. Numbers are int8, or uint8 with minima and for the
    bits of FP8.
    """
    if name == "fp8":
        return _fit_fp8(x, kind)
    bits = int(name.removeprefix("int"))
    if zeros:
        return _fit_range(x, shares, 2**bits - 1, kind)
    return _fit_symmetric(x, shares, bits, kind)


def _fit_fp8(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, None]:
    scale = _stored(x.abs().amax(-1) / FP8_MAX, kind)
    near = (x * _inverse(scale)[..., None]).clamp(-FP8_MAX, FP8_MAX)
    return near.to(torch.float8_e4m3fn).view(torch.uint8), scale, None


def _fit_symmetric(x: Tensor, shares: Tensor, bits: int, kind: torch.dtype) -> tuple[Tensor, Tensor, None]:
    top = 2 ** (bits - 1)
    # Eight bits keep to -127 .. 127, whose magnitudes fit seven; fewer bits need the level that is to spare.
    lowest, highest = (-top if bits < 8 else 1 - top), top - 1
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))  # [N, groups, 1], with its sign
    best = torch.zeros_like(extreme)  # scale
    least = torch.full_like(extreme, float("inf"))
    for level in _levels(bits):
        scale = _stored(extreme.abs() / level if level > 0 else extreme / level, kind).float()
        error = _error(x, (x * _inverse(scale)).round_().clamp_(lowest, highest) * scale, shares)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    numbers = (x * _inverse(best)).round_().clamp_(lowest, highest)
    for _ in range(REFITS if bits < 8 else 0):
        weighted = numbers * shares
        scale = _stored((weighted * x).sum(-1, keepdim=True) / (weighted * numbers).sum(-1, keepdim=True), kind).float()
        scale = torch.where(torch.isfinite(scale), scale, best)
        refitted = (x * _inverse(scale)).round_().clamp_(lowest, highest)
        error = _error(x, refitted * scale, shares)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
        numbers = torch.where(better, refitted, numbers)
    return numbers.to(torch.int8), best[..., 0].to(kind), None


def _levels(bits: int) -> list[float]:
    """The numbers that the group's largest weight is tried at; below zero: as a negative one."""
    if bits == 8:
        return [127, 127.5, 128, 129.5]
    top = 2 ** (bits - 1)
    whole = [-float(top), *(float(level) for level in range(top - 1, 0, -1))]
    clipped = [top * factor for factor in (1.06, 1.12, 1.2, 1.3, 1.4)]
    return whole + [-level for level in clipped] + [top - 0.5, *clipped]


def _fit_range(x: Tensor, shares: Tensor, steps: int, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    best_scale, best_low = torch.zeros_like(low), _stored(low, kind).float()
    least = torch.full_like(low, float("inf"))
    total = shares.sum(-1, keepdim=True)
    numbers = torch.zeros_like(x)

    def attempt(scale: Tensor, bottom: Tensor) -> None:
        nonlocal best_scale, best_low, least, numbers
        scale, bottom = _stored(scale, kind).float(), _stored(bottom, kind).float()
        near = ((x - bottom) * _inverse(scale)).round_().clamp_(0, steps)
        error = _error(x, near * scale + bottom, shares)
        better = (error < least) & (near.amin(-1, keepdim=True) == 0)
        best_scale, best_low = torch.where(better, scale, best_scale), torch.where(better, bottom, best_low)
        least, numbers = torch.where(better, error, least), torch.where(better, near, numbers)

    for count in range(steps, max(steps - 16, 0), -1):
        attempt((high - low) / count, low)
    for factor in (0.94, 0.88, 0.82, 0.75) if steps < 255 else ():
        attempt((high - low) * factor / steps, low + (high - low) * (1 - factor) / 2)
    for _ in range(REFITS):
        weighted = numbers * shares
        mean_q, mean_x = weighted.sum(-1, keepdim=True) / total, (x * shares).sum(-1, keepdim=True) / total
        slope = (weighted * (x - mean_x)).sum(-1, keepdim=True) / (weighted * (numbers - mean_q)).sum(-1, keepdim=True)
        slope = torch.where(torch.isfinite(slope), slope, best_scale)
        attempt(slope, mean_x - slope * mean_q)
    return numbers.to(torch.uint8), best_scale[..., 0].to(kind), best_low[..., 0].to(kind)


def _error(x: Tensor, near: Tensor, shares: Tensor) -> Tensor:
    """-> [N, groups, 1]"""
    return near.sub_(x).square_().mul_(shares).sum(-1, keepdim=True)


def _stored(scale: Tensor, kind: torch.dtype) -> Tensor:
    """Rounded towards zero, so that the largest weight keeps the largest number, whatever digits the type has."""
    near = scale.to(kind)
    if kind == torch.float16:
        bits = near.view(torch.int16)  # of sign and magnitude: one less is one nearer to zero
        near = torch.where(near.float().abs() > scale.abs(), bits - 1, bits).view(torch.float16)
    return near


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale in fp32, 0 where there is none: a group of zeros has the scale 0."""
    inverse = scale.float().reciprocal()
    return inverse.masked_fill_(~torch.isfinite(inverse), 0.0)
