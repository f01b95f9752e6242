"""Products of int8 and int8, and the quantisation of their inputs: whole numbers bit by bit, the rest against fp64."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels import reference
from kernels.gpu import linear, linear_int8
from kernels.gpu.configurations import Tables
from kernels.gpu.matrices import GPUMatrix, Weights, prepare
from kernels.packed import Format, Stack, unpack
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near
from tests.kernels.gpu.prepared import INT4, INT8, guarded, inputs, packed, small_blocks

HALF, FULL = torch.float16, torch.float32
SMALL = Tables({"quantise_rows": {"default": [{"up_to": None, "BLOCK": 16, "num_warps": 4, "num_stages": 2}]}})


def _only(matrix: GPUMatrix) -> Weights:
    (part,) = matrix.parts
    assert isinstance(part, Weights)
    return part


def check_rows(module: ModuleType) -> None:
    """Ties, zeros, the largest magnitude at either end, one below any normal number; in stretches of 16."""
    for dtype in (HALF, FULL):
        x = torch.randn(6, 37).to(dtype) * 3
        x[1] = 0
        x[2, 0], x[3, 36] = 100, -200
        x[4] = torch.arange(37) - 18.5
        x[4, 5] = 127
        x[5] = 0 if dtype == HALF else 1e-40
        x = Guarded(x, (60, 1)).tensor
        data = Guarded(torch.full((6, 37), 55, dtype=torch.int8), (41, 1))
        scale = Guarded.empty(6, dtype=FULL)
        module.quantise_rows(x, (data.tensor, scale.tensor), tables=SMALL)
        data.assert_intact()
        scale.assert_intact()
        wanted, wanted_scale = reference.quantise_rows(x.cpu())
        assert torch.equal(data.tensor.cpu(), wanted)
        assert torch.equal(scale.tensor.cpu(), wanted_scale)


def _check_products(module: ModuleType, count: int, rows: int, columns: int, tables: Tables) -> None:
    matrix = guarded(packed(INT8, rows, columns), HALF, torch.int8)
    weights = _only(matrix)
    weights.factor.fill_(1.0)  # the sums themselves, exact in fp32 too
    weights.data[..., columns:] = 77  # what meets no inputs may be anything
    x = torch.randint(-127, 128, (count, columns), dtype=torch.int8)
    x = Guarded(x, (columns + 16, 1)).tensor
    scale, bias = Guarded(torch.full((count,), 2.0)).tensor, Guarded(torch.randint(-9, 9, (rows,)).to(FULL)).tensor
    out = Guarded.empty(count, rows, dtype=FULL, strides=(rows + 3, 1))
    module.multiply_rows(x, scale, weights, out.tensor, bias, tables=tables)
    out.assert_intact()
    sums = x.cpu().long() @ weights.data[0, :, :columns].cpu().long().T
    assert torch.equal(out.tensor.cpu().double(), (2 * sums).double() + bias.cpu().double())


def check_sums(module: ModuleType) -> None:
    """Tails of everything, more blocks of outputs than lie beside each other."""
    _check_products(module, 5, 37, 70, small_blocks("linear_int8", 4, 4, split=False))


def check_segments(module: ModuleType) -> None:
    _check_products(module, 3, 12, 1080, small_blocks("linear_int8", 4, 16, split=True))


def check_scales(module: ModuleType) -> None:
    weights = _only(guarded(packed(INT8, 9, 96), HALF, torch.int8))
    x, scale = reference.quantise_rows(torch.randn(4, 96))
    x, scale, bias = x.to(DEVICE), scale.to(DEVICE), torch.randn(9, device=DEVICE)
    for dtype in (HALF, FULL):
        out = module.multiply_rows(x, scale, weights, torch.empty(4, 9, dtype=dtype, device=DEVICE), bias)
        codes, factor = weights.data[0, :, :96].cpu(), weights.factor[0].cpu()
        wanted = reference.linear_int8(x.cpu(), scale.cpu().double(), codes, factor.double(), bias.cpu().double())
        assert_near(out, wanted)


CHECKS: list[Check] = [check_rows, check_sums, check_segments, check_scales]
DEFECTS = [
    (check_rows, Defect("rounded down", "(x + 12582912.0) - 12582912.0", "tl.floor(x)")),
    (check_rows, Defect("halves rounded up", "(x + 12582912.0) - 12582912.0", "tl.floor(x + 0.5)")),
    (check_rows, Defect("the largest number", "tl.abs(tl.load(", "(tl.load(")),
    (
        check_rows,
        Defect(
            "the last stretch's magnitude", "largest = tl.maximum(\n            largest, ", "largest = (\n            "
        ),
    ),
    (check_rows, Defect("steps of 128", "axis=0), 127.0)", "axis=0), 128.0)")),
    (check_rows, Defect("no least divisor", "1.1754943508222875e-38", "0.0 * of_row + 1e-45")),
    (check_rows, Defect("written beyond the row", "steps.to(tl.int8), mask=there", "steps.to(tl.int8)")),
    (check_rows, Defect("rows too close", "out + row * out_stride", "out + row * columns")),
    (check_rows, Defect("the first row's scale", "tl.store(scale + row, of_row)", "tl.store(scale, of_row)")),
    (check_sums, Defect("inputs beyond K", "(start + k < columns)", "(start + k < columns + TILE)")),
    (check_sums, Defect("the first tile again", "tl.load(lefts + start)", "tl.load(lefts)")),
    (check_sums, Defect("inputs of the first tile", "tl.load(rights + start", "tl.load(rights + start * 0")),
    (check_sums, Defect("outputs beyond the last", "& (places < outputs)[:, None]", "")),
    (check_sums, Defect("rows beyond the last", "mask = there[None, :] & (places", "mask = (places")),
    (
        check_segments,
        Defect("all from the first tile", "first = tl.program_id(1) * segment", "first = 0"),
    ),
    (check_segments, Defect("segments in one place", "tl.program_id(1).to(tl.int64) * count", "0 * count")),
    (check_segments, Defect("segments up to the last tile", "tl.minimum(first + segment, tiles)", "tiles")),
    (check_scales, Defect("no scale of the inputs", "finish(total, factor, x_scale", "finish(total, factor, None")),
    (check_scales, Defect("no factor", "finish(total, factor", "finish(total, None")),
]


def _name(value: Check | Defect) -> str:
    return str(value) if isinstance(value, Defect) else value.__name__


@pytest.mark.parametrize("check", CHECKS, ids=_name)
def test_agrees(check: Check) -> None:
    check(linear_int8)


@pytest.mark.parametrize(("check", "defect"), DEFECTS, ids=_name)
def test_defects_are_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, linear_int8, [check], tmp_path)


def test_matrices_prepared_for_it_are_multiplied_so() -> None:
    """The parts that it can: the others take the inputs as they are."""
    stack = Stack((packed(INT8, 5, 64), packed(INT4, 6, 64), packed(INT8, 4, 64)))
    x, bias = inputs(3, 64, HALF), torch.randn(15, device=DEVICE).to(HALF)
    out = linear.linear(x, guarded(stack, HALF, torch.int8), bias)
    data, scale = reference.quantise_rows(x.cpu())
    truth, near = unpack(stack).double().T, data.double() * scale.double()[:, None]
    of_int8 = torch.tensor([1] * 5 + [0] * 6 + [1] * 4, dtype=torch.bool)
    wanted = torch.where(of_int8, near @ truth, x.cpu().double() @ truth) + bias.cpu().double()
    assert_near(out, wanted)
    assert float((near @ truth - x.cpu().double() @ truth).abs().mean()) > 1e-4  # so that it shows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 64)}, "`x`: the type must be int8, not float32"),
        ({"x": torch.zeros(2, 63, dtype=torch.int8)}, r"`x`: the shape must be \[any, 64\]"),
        ({"x_scale": torch.zeros(3)}, r"`x_scale`: the shape must be \[2\]"),
        ({"x_scale": torch.zeros(2, dtype=HALF)}, "`x_scale`: the type must be float32"),
        ({"out": torch.zeros(2, 5)}, r"`out`: the shape must be \[2, 6\]"),
        ({"bias": torch.zeros(5)}, r"`bias`: the shape must be \[6\]"),
        ({"weights": packed(Format("int8", 8, 32), 6, 64)}, "`weights`: one matrix of int8 with whole-row scales"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    def ready(matrix: object) -> Weights:
        found = prepare(matrix, DEVICE, HALF)  # type: ignore[arg-type]  # a `Packed`
        assert isinstance(found, GPUMatrix)
        return _only(found)

    arguments = {
        "x": torch.zeros(2, 64, dtype=torch.int8),
        "x_scale": torch.zeros(2),
        "weights": packed(INT8, 6, 64),
        "out": torch.zeros(2, 6),
    } | changes
    placed = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        linear_int8.multiply_rows(**placed | {"weights": ready(placed["weights"])})


def test_rows_that_cannot_be_quantised_are_refused() -> None:
    with pytest.raises(ValueError, match="`x`: the type must be float32 or float16 or bfloat16, not int8"):
        linear_int8.quantise_rows(torch.zeros(2, 3, dtype=torch.int8, device=DEVICE))
    with pytest.raises(ValueError, match=r"`out\[1\]`: the shape must be \[2\]"):
        data = torch.zeros(2, 3, dtype=torch.int8, device=DEVICE)
        linear_int8.quantise_rows(torch.zeros(2, 3, device=DEVICE), (data, torch.zeros(3, device=DEVICE)))
