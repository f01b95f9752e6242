"""SwiGLU's kernels against the formula in fp64, and what their checks notice."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import swiglu as module
from kernels.gpu.configurations import Tables
from tests.kernels.gpu.defects import Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near

SMALL = Tables(
    {
        name: {"default": [{"up_to": None, "BLOCK": 64, "num_warps": 4, "num_stages": 1}]}
        for name in ("swiglu", "swiglu_int8")
    }
)


def make(rows: int, width: int, dtype: torch.dtype) -> Guarded:
    """Gates of both signs, some beyond what an exponential in fp32 can hold."""
    gate_up = 4 * torch.randn(rows, 2 * width)
    gate_up[0, 0], gate_up[0, 1] = 120.0, -120.0
    return Guarded(gate_up.to(dtype), [2 * width + 3, 1])


def check_product(module: ModuleType) -> None:
    for dtype in (torch.float32, torch.float16):
        gate_up, out = make(4, 150, dtype).tensor[:3], Guarded.empty(3, 150, dtype=dtype, strides=[151, 1])
        module.swiglu(gate_up, out.tensor, tables=SMALL)
        assert_near(out.tensor, reference.swiglu(gate_up.double()))
        out.assert_intact()


def check_int8(module: ModuleType) -> None:
    """The scale is the largest magnitude's, and each value within half a step of the truth, to the side of the even."""
    gate_up = make(4, 150, torch.float32)
    gate_up.tensor[2] = 0
    data, scale = Guarded.empty(4, 150, dtype=torch.int8, strides=[160, 1]), Guarded.empty(4, dtype=torch.float32)
    module.swiglu_int8(gate_up.tensor, (data.tensor, scale.tensor), tables=SMALL)
    truth = reference.swiglu(gate_up.tensor.double())
    assert_near(scale.tensor, truth.abs().amax(-1) / 127)
    steps = truth / scale.tensor.double().where(scale.tensor > 0, 1)[:, None]
    assert float((data.tensor - steps).abs().max()) < 0.5 + 1e-4
    assert not data.tensor[2].any() and float(scale.tensor[2]) == 0
    assert (data.tensor.abs().amax(-1) == torch.tensor([127, 127, 0, 127], device=DEVICE)).all()
    data.assert_intact()
    scale.assert_intact()


def check_halves(module: ModuleType) -> None:
    """Values that lie exactly between two integers go to the even one. A gate of 128 is a factor of 128 in fp32."""
    up = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -63.5])
    gate_up = torch.cat((torch.full((8,), 128.0), up))[None].to(DEVICE)
    data, scale = module.swiglu_int8(gate_up, tables=SMALL)
    assert float(scale) == 128.0
    assert data.tolist() == [[127, 0, 2, 2, 0, -2, -2, -64]]


def check_not_finite(module: ModuleType) -> None:
    gate_up = torch.randn(2, 20, device=DEVICE)
    gate_up[1, 3] = float("nan")
    _, scale = module.swiglu_int8(gate_up, tables=SMALL)
    assert scale.isnan().tolist() == [False, True]


CHECKS = [check_product, check_int8, check_halves, check_not_finite]
DEFECTS = [
    Defect("up before gate", "gate = tl.load(gate_up + place", "gate = tl.load(gate_up + half + place"),
    Defect("the halves overlap", "tl.load(gate_up + half + place", "tl.load(gate_up + half - 1 + place"),
    Defect("a natural exponential of base 2", "tl.exp2(-tl.abs(gate) * LOG2_E)", "tl.exp2(-tl.abs(gate))"),
    Defect("negative gates as positive ones", "tl.where(gate >= 0, 1.0, small)", "1.0"),
    Defect("a sigmoid without its gate", "return gate * tl.where", "return tl.where"),
    Defect("written past the row", "inside = column < width", "inside = column < width + 8"),
    Defect("rows by the wrong stride", "out + row * out_stride + column", "out + row * width + column"),
    Defect("the first block again and again", "% blocks * BLOCK + tl.arange", "% blocks * 0 + tl.arange"),
    Defect("a scale of 128 steps", "axis=0), 127.0)", "axis=0), 128.0)"),
    Defect("only the last block's maximum", "tl.maximum(largest, tl.abs(found))", "tl.abs(found)"),
    Defect("the largest, not its magnitude", "tl.maximum(largest, tl.abs(found))", "tl.maximum(largest, found)"),
    Defect("cut off instead of rounded", "(steps + ROUNDER) - ROUNDER", "steps"),
    Defect("rounded half up", "(steps + ROUNDER) - ROUNDER", "tl.floor(steps + 0.5)"),
    Defect("NaN passed over", "+ tl.sum(taint, axis=0)", "+ 0.0 * tl.max(largest, axis=0)"),
    Defect("integers not moved along the row", "out_stride + start + column, steps", "out_stride + column, steps"),
    Defect("all scales in one place", "tl.store(scales + row, scale)", "tl.store(scales, scale)"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_swiglu(check) -> None:
    check(module)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_defects_are_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, module, CHECKS, tmp_path)


def test_a_row_does_not_depend_on_the_others() -> None:
    gate_up = torch.randn(5, 180, device=DEVICE)
    together, (data, scale) = module.swiglu(gate_up, tables=SMALL), module.swiglu_int8(gate_up, tables=SMALL)
    for row in (0, 3):
        alone = gate_up[row : row + 1]
        assert torch.equal(module.swiglu(alone, tables=SMALL)[0], together[row])
        assert torch.equal(module.swiglu_int8(alone, tables=SMALL)[0][0], data[row])
        assert torch.equal(module.swiglu_int8(alone, tables=SMALL)[1][0], scale[row])


def test_integers_are_those_of_quantised_rows() -> None:
    """`swiglu` and `quantise_rows` one after the other make the same integers, where nothing is rounded between."""
    gate_up = torch.randn(4, 120, device=DEVICE)
    data, scale = module.swiglu_int8(gate_up)
    expected, expected_scale = reference.quantise_rows(module.swiglu(gate_up))
    assert torch.equal(data, expected) and torch.equal(scale, expected_scale)


def test_no_rows() -> None:
    empty = torch.empty(0, 8, device=DEVICE)
    assert module.swiglu(empty).shape == (0, 4)
    assert [list(part.shape) for part in module.swiglu_int8(empty)] == [[0, 4], [0]]


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        ("swiglu", (torch.ones(2, 7),), "`gate_up`: a gate and an up half need an even number of columns, not 7"),
        ("swiglu", (torch.ones(8),), "`gate_up`: the shape must be [any, any], not [8]"),
        ("swiglu", (torch.ones(2, 8).double(),), "`gate_up`: the type must be float32 or float16 or bfloat16"),
        ("swiglu", (torch.ones(8, 2).T,), "`gate_up`: its last dimension must be dense, not of stride 2"),
        ("swiglu", (torch.ones(2, 8), torch.ones(2, 8)), "`out`: the shape must be [2, 4], not [2, 8]"),
        (
            "swiglu_int8",
            (torch.ones(2, 8), (torch.ones(2, 4), torch.ones(2))),
            "`out[0]`: the type must be int8, not float32",
        ),
        (
            "swiglu_int8",
            (torch.ones(2, 8), (torch.ones(2, 4).to(torch.int8), torch.ones(3))),
            "`out[1]`: the shape must be [2], not [3]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(operation: str, arguments: tuple[object, ...], message: str) -> None:
    def moved(argument: object) -> object:
        return argument.to(DEVICE) if isinstance(argument, Tensor) else tuple(part.to(DEVICE) for part in argument)

    with pytest.raises(ValueError) as caught:
        getattr(module, operation)(*(moved(argument) for argument in arguments))
    assert str(caught.value).startswith(message)
