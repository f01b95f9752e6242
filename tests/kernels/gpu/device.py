"""Tensors for the kernels' tests: on the device under test, in the middle of memory that must not be touched."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
GUARD = 256  # elements before and behind
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}  # mean error / mean magnitude


class Guarded:
    """A tensor with guard zones: NaN where the type has it (what is read there spoils the result), else a pattern.

    `strides`: of the elements, for tensors that are not contiguous; the gaps are guards too.
    """

    def __init__(self, data: Tensor, strides: Sequence[int] | None = None) -> None:
        shape = list(data.shape)
        steps = list(data.contiguous().stride()) if strides is None else list(strides)
        extent = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True)) if data.numel() else 0
        is_float = data.dtype.is_floating_point
        fill = float("nan") if is_float else 113
        self.memory = torch.full((GUARD + extent + GUARD,), fill, dtype=data.dtype, device=DEVICE)
        self.tensor = self.memory.as_strided(shape, steps, GUARD)
        self.tensor.copy_(data)
        self._outside = torch.ones_like(self.memory, dtype=torch.bool)
        self._outside.as_strided(shape, steps, GUARD).fill_(False)
        self._before = self._bits().clone()

    @classmethod
    def empty(cls, *shape: int, dtype: torch.dtype, strides: Sequence[int] | None = None) -> Guarded:
        """For results: filled with NaN, or with the pattern, so that what is not written shows."""
        return cls(torch.full(shape, float("nan") if dtype.is_floating_point else 113, dtype=dtype), strides)

    def assert_intact(self) -> None:
        """Nothing outside of the tensor was written."""
        changed = (self._bits() != self._before) & self._outside
        assert not bool(changed.any()), f"written outside of the tensor at {changed.nonzero().flatten().tolist()[:5]}"

    def _bits(self) -> Tensor:
        sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return self.memory.view(sizes[self.memory.element_size()])


def assert_near(found: Tensor, truth: Tensor, limit: float | None = None) -> None:
    """Mean error over mean magnitude of the fp64 truth within `LIMITS` of the type, and no element far out."""
    assert found.shape == truth.shape, f"{list(found.shape)} is not {list(truth.shape)}"
    found64, truth64 = found.detach().cpu().double(), truth.detach().cpu().double()
    assert bool(torch.isfinite(found64).all()), "not all are finite"
    bound = LIMITS[found.dtype] if limit is None else limit
    error, magnitude = (found64 - truth64).abs(), float(truth64.abs().mean())
    assert float(error.mean()) <= bound * magnitude, f"mean error {float(error.mean()) / magnitude:.2e} > {bound:.0e}"
    worst = float((error / (truth64.abs() + magnitude)).max()) if error.numel() else 0.0
    assert worst <= 20 * bound, f"worst error {worst:.2e}"
