"""The norm's kernel against its formula in fp64 and its twin, and what its checks notice."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import rms_norm as module
from kernels.gpu.configurations import Tables
from tests.kernels.gpu.defects import Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near

EPS = 0.05  # large enough to be seen


def truth(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def check_rows(module: ModuleType) -> None:
    """Short and long rows, more than one program's and not a multiple of them, with gaps between them."""
    for dtype in (torch.float32, torch.float16):
        for rows, width in ((11, 36), (3, 300)):
            x = Guarded(torch.randn(rows, width, device=DEVICE).to(dtype), [width + 5, 1])
            weight, out = Guarded(torch.randn(width).to(dtype)), Guarded.empty(rows, width, dtype=dtype)
            module.rms_norm(x.tensor, weight.tensor, EPS, out=out.tensor)
            assert_near(out.tensor, truth(x.tensor, weight.tensor))
            for guarded in (x, out):
                guarded.assert_intact()


def check_heads(module: ModuleType) -> None:
    """Three dimensions, whose strides have nothing to do with one another."""
    x = Guarded(torch.randn(3, 5, 24), [200, 30, 1])
    residual, out = (
        Guarded(torch.randn(3, 5, 24), [26, 90, 1]),
        Guarded.empty(3, 5, 24, dtype=torch.float32, strides=[24, 77, 1]),
    )
    weight = Guarded(torch.randn(24))
    total = residual.tensor + x.tensor
    module.rms_norm(x.tensor, weight.tensor, EPS, residual.tensor, out.tensor)
    assert torch.equal(residual.tensor, total)
    assert_near(out.tensor, truth(total, weight.tensor))
    for guarded in (x, residual, out):
        guarded.assert_intact()


def check_rounding(module: ModuleType) -> None:
    """Sum, quotient and product are rounded in the order of Hugging Face models."""
    x, residual = torch.randn(6, 256, device=DEVICE).half(), 8 * torch.randn(6, 256, device=DEVICE).half()
    weight = torch.randn(256, device=DEVICE).half()
    total = residual + x
    got = module.rms_norm(x, weight, EPS, residual)
    assert torch.equal(residual, total)
    assert float((got == reference.rms_norm(total, weight, EPS)).float().mean()) > 0.99


def check_wide_residual(module: ModuleType) -> None:
    """A residual in fp32 keeps what fp16 would lose, and the result has the type of the weight."""
    x, residual = torch.randn(2, 64, device=DEVICE).half(), 100 * torch.randn(2, 64, device=DEVICE)
    weight, total = torch.randn(64, device=DEVICE).half(), residual + x.float()
    got = module.rms_norm(x, weight, EPS, residual)
    assert got.dtype == torch.float16 and torch.equal(residual, total)
    assert_near(got, truth(total, weight))


CHECKS = [check_rows, check_heads, check_rounding, check_wide_residual]
DEFECTS = [
    Defect("rows read past their end", "(row < rows)[:, None] & (column < width)[None, :]", "(row < rows)[:, None]"),
    Defect("rows past the last one", "(row < rows)[:, None] & (column", "(row >= 0)[:, None] & (column"),
    Defect("mean over the padding too", "axis=1) / width", "axis=1) / BLOCK"),
    Defect("no eps", "tl.rsqrt(mean + eps)", "tl.rsqrt(mean + eps * 1e-3)"),
    Defect("sum of magnitudes", "tl.sum(wide * wide, axis=1)", "tl.sum(tl.abs(wide), axis=1)"),
    Defect("the weight one place off", "tl.load(weight + column, mask", "tl.load(weight + (column + 1) % width, mask"),
    Defect("the residual not written", "tl.store(places, normed, mask=inside)", "tl.static_assert(True)"),
    Defect("the sum not rounded", "normed = total.to(residual.dtype.element_ty)", "normed = total"),
    Defect("the quotient not rounded", "[:, None]).to(normed.dtype)", "[:, None])"),
    Defect("x alone is normed", ".to(tl.float32) + read.to(tl.float32)", ".to(tl.float32) * 0.0 + read.to(tl.float32)"),
    Defect("inner rows not moved", "first * x_outer + second * x_inner", "first * x_outer"),
    Defect(
        "the residual's strides confused",
        "residual + first * residual_outer + second * residual_inner",
        "residual + first * residual_inner + second * residual_outer",
    ),
    Defect(
        "the result by x's strides", "out + first * out_outer + second * out_inner", "out + row[:, None] * out_outer"
    ),
]


@pytest.mark.parametrize("check", CHECKS)
def test_norm(check) -> None:
    check(module)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_defects_are_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, module, CHECKS, tmp_path)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight = torch.randn(9, 200, device=DEVICE), torch.randn(200, device=DEVICE)
    together = module.rms_norm(x, weight, EPS)
    for row in (0, 5, 8):
        assert torch.equal(module.rms_norm(x[row], weight, EPS), together[row])


def test_the_result_may_take_the_place_of_the_input() -> None:
    x, weight = torch.randn(4, 40, device=DEVICE), torch.randn(40, device=DEVICE)
    apart = module.rms_norm(x, weight, EPS)
    assert module.rms_norm(x, weight, EPS, out=x) is x
    assert torch.equal(x, apart)


def test_no_rows() -> None:
    assert module.rms_norm(torch.empty(0, 8, device=DEVICE), torch.ones(8, device=DEVICE), EPS).shape == (0, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(4, 9)}, "`weight`: the shape must be [9], not [8]"),
        ({"x": torch.ones(4, 8).int()}, "`x`: the type must be float32 or float16 or bfloat16, not int32"),
        ({"x": torch.ones(8, 4).T}, "`x`: its last dimension must be dense, not of stride 4"),
        ({"x": torch.ones(1, 1, 4, 8)}, "`x`: it must have 1 to 3 dimensions, not 4"),
        ({"x": torch.ones(1, 16385), "weight": torch.ones(16385)}, "`x`: its rows must have 1 to 16384 elements"),
        ({"residual": torch.ones(3, 8)}, "`residual`: the shape must be [4, 8], not [3, 8]"),
        ({"out": torch.ones(4, 8).double()}, "`out`: the type must be float32 or float16 or bfloat16, not float64"),
        ({"eps": 0.0}, "`eps`: it must be above 0, not 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"x": torch.ones(4, 8), "weight": torch.ones(8), "eps": EPS} | changes
    with pytest.raises(ValueError) as caught:
        module.rms_norm(**{k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in arguments.items()})
    assert str(caught.value).startswith(message)


def test_specimens_cover_the_table() -> None:
    for arch in (80, 120):
        found = list(module.specimens(arch))
        for row in Tables().rows("rms_norm", arch):
            assert any(one.num_warps == row.num_warps and row.sizes.items() <= one.constants.items() for one in found)
        assert all(list(one.signature) == module._rms_norm_kernel.arg_names for one in found)
