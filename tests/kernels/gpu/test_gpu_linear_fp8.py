"""Products of FP8 and FP8, and the quantisation of their inputs, bit by bit."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels import reference
from kernels.gpu import linear, linear_fp8
from kernels.gpu.configurations import Tables
from kernels.gpu.matrices import GPUMatrix, Weights, prepare
from kernels.packed import Format, unpack
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near
from tests.kernels.gpu.prepared import INT8, guarded, inputs, packed, small_blocks

HALF, FULL, FP8 = torch.float16, torch.float32, torch.float8_e4m3fn
ROWS, GROUPS = Format("fp8", 8, 0), Format("fp8", 8, 128)
SMALL = Tables({"quantise_rows_fp8": {"default": [{"up_to": None, "BLOCK": 128, "num_warps": 4, "num_stages": 2}]}})


def _only(matrix: GPUMatrix) -> Weights:
    (part,) = matrix.parts
    assert isinstance(part, Weights)
    return part


def _every_number() -> torch.Tensor:
    """Every E4M3 from 0 to 448, and what lies between two of them: in the middle, and a little off it."""
    codes = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (codes[1:] + codes[:-1]) / 2
    return torch.cat([codes, middle, middle * (1 + 2**-20), middle * (1 - 2**-20)])


def check_rows(module: ModuleType) -> None:
    """Rows with scales of 1 hold every number, with either sign; others are of any size, zero, or below all normal."""
    every = _every_number()
    one = torch.ones(2, 1)
    some = torch.randn(4, len(every)) * torch.tensor([[3.0], [1e-5], [0.0], [1e30]])
    some[2, :9] = 1e-40
    for x in (torch.cat([torch.stack([every, -every]), one], dim=1), some, some[:2].to(HALF)):
        x = Guarded(x, (x.shape[1] + 30, 1)).tensor
        data = Guarded(torch.full(x.shape, 55, dtype=torch.uint8), (x.shape[1] + 3, 1))
        scale = Guarded.empty(len(x), dtype=FULL)
        module.quantise_rows(x, (data.tensor.view(FP8), scale.tensor), tables=SMALL)
        data.assert_intact()
        scale.assert_intact()
        wanted, wanted_scale = reference.quantise_rows_fp8(x.cpu())
        assert torch.equal(scale.tensor.cpu(), wanted_scale)
        assert torch.equal(data.tensor.cpu(), wanted.view(torch.uint8))


def _check_products(module: ModuleType, format: Format, count: int, rows: int, columns: int, tables: Tables) -> None:
    matrix = packed(format, rows, columns)
    weights = _only(guarded(matrix, HALF, FP8))
    weights.data[..., columns:] = 0x38  # what meets no inputs may be anything
    x, scale = reference.quantise_rows_fp8(torch.randn(count, columns) * 2)
    near = x.double() * scale.double()[:, None]
    x = Guarded(x.view(torch.uint8), (columns + 16, 1)).tensor.view(FP8)
    bias = Guarded(torch.randn(rows)).tensor
    out = Guarded.empty(count, rows, dtype=FULL, strides=(rows + 3, 1))
    module.multiply_rows(x, Guarded(scale).tensor, weights, out.tensor, bias, tables=tables)
    out.assert_intact()
    assert_near(out.tensor, near @ unpack(matrix).double().T + bias.cpu().double())


def check_sums(module: ModuleType) -> None:
    """Tails of everything, and more blocks of outputs than lie beside each other."""
    _check_products(module, ROWS, 5, 37, 70, small_blocks("linear_fp8", 4, 4, split=False))


def check_groups(module: ModuleType) -> None:
    _check_products(module, GROUPS, 3, 12, 384, small_blocks("linear_fp8", 4, 16, split=False))


def check_segments(module: ModuleType) -> None:
    for split in (True, False):
        _check_products(module, ROWS, 3, 12, 1080, small_blocks("linear_fp8", 4, 16, split=split))


def check_rows_alone(module: ModuleType) -> None:
    """A row gives the same bits alone, in few programs or many. Products of whole numbers: any library's are exact."""
    columns = 1152
    weights = _only(guarded(packed(GROUPS, 12, columns), HALF, FP8))
    weights.data[:] = torch.randint(-7, 8, (12, columns)).float().to(FP8).view(torch.uint8)
    x = torch.randint(-8, 9, (6, columns)).float().to(FP8).to(DEVICE)
    scale, found = torch.rand(6, device=DEVICE) + 0.5, []
    for rows, split in ((8, False), (4, True)):
        out = torch.empty(6, 12, device=DEVICE)
        tables = small_blocks("linear_fp8", rows, 16, split=split)
        found.append(module.multiply_rows(x, scale, weights, out, tables=tables))
    assert torch.equal(*found)
    alone = module.multiply_rows(x[5:], scale[5:], weights, torch.empty(1, 12, device=DEVICE))
    assert torch.equal(alone[0], found[0][5])


CHECKS: list[Check] = [check_rows, check_sums, check_groups, check_segments, check_rows_alone]
DEFECTS = [
    (check_rows, Defect("digits cut off", "size + 0x7FFFF + ((size >> 20) & 1)", "size")),
    (check_rows, Defect("halves rounded up", "0x7FFFF + ((size >> 20) & 1)", "0x80000")),
    (check_rows, Defect("exponent", "(120 << 3)", "(121 << 3)")),
    (check_rows, Defect("small numbers as the others", "size < 0x3C800000", "size < 0")),
    (check_rows, Defect("small numbers cut off", "round_half_even(tl.abs(x) * 512.0)", "(tl.abs(x) * 512.0)")),
    (check_rows, Defect("no sign", "((bits >> 24) & 0x80)", "((bits >> 24) & 0x00)")),
    (check_rows, Defect("the largest number", "tl.abs(tl.load(", "(tl.load(")),
    (check_rows, Defect("another scale", "axis=0), 448.0)", "axis=0), 440.0)")),
    (check_rows, Defect("written beyond the row", "fp8_bits(value), mask=there", "fp8_bits(value)")),
    (check_rows, Defect("the first row's scale", "tl.store(scale + row, of_row)", "tl.store(scale, of_row)")),
    (check_sums, Defect("inputs beyond K", "(start + k < columns)", "(start + k < columns + TILE)")),
    (check_sums, Defect("the first tile again", "tl.load(lefts + start)", "tl.load(lefts)")),
    (check_sums, Defect("not divided", "* (1.0 / FP8_SHIFT)", "")),
    (check_sums, Defect("outputs beyond the last", "& (places < outputs)[:, None]", "")),
    (check_sums, Defect("rows beyond the last", "mask=there[None, :] & (places", "mask=(places")),
    (check_sums, Defect("no scale of the inputs", "finish(total, factor, x_scale", "finish(total, factor, None")),
    (check_groups, Defect("the first group's scale", "(start // GROUP)", "(start // GROUP * 0)")),
    (check_groups, Defect("no scale of groups", "of_tile * tl.load(scale", "of_tile + 0.0 * tl.load(scale")),
    (check_segments, Defect("all from the first tile", "first = tl.program_id(1) * segment", "first = 0")),
    (check_segments, Defect("segments in one place", "tl.program_id(1).to(tl.int64) * count", "0 * count")),
    (
        check_segments,
        Defect("the first segment skipped", "range(first, last, segment)", "range(segment, last, segment)"),
    ),
    (check_segments, Defect("a tile twice", "begin + segment, tiles", "begin + segment + 1, tiles")),
]


def _name(value: Check | Defect) -> str:
    return str(value) if isinstance(value, Defect) else value.__name__


@pytest.mark.parametrize("check", CHECKS, ids=_name)
def test_agrees(check: Check) -> None:
    check(linear_fp8)


@pytest.mark.parametrize(("check", "defect"), DEFECTS, ids=_name)
def test_defects_are_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, linear_fp8, [check], tmp_path)


def test_matrices_prepared_for_it_are_multiplied_so() -> None:
    matrix, x = packed(ROWS, 9, 96), inputs(3, 96, HALF)
    data, scale = reference.quantise_rows_fp8(x.cpu())
    wanted = (data.double() * scale.double()[:, None]) @ unpack(matrix).double().T
    out = linear.linear(x, guarded(matrix, HALF, FP8), out=torch.empty(3, 9, device=DEVICE))
    assert_near(out, wanted)
    assert float((out.cpu().double() - x.cpu().double() @ unpack(matrix).double().T).abs().mean()) > 1e-4


def test_an_older_gpu_decodes_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, x = packed(ROWS, 9, 96), inputs(3, 96, HALF)
    ready = guarded(matrix, HALF, FP8)
    monkeypatch.setattr(linear, "architecture", lambda device: 80)
    monkeypatch.setattr(linear_fp8, "architecture", lambda device: 80)
    assert_near(linear.linear(x, ready), x.cpu().double() @ unpack(matrix).double().T)
    data, scale = linear_fp8.quantise_rows(x)
    with pytest.raises(ValueError, match="`x`: sm_80 has no FP8 products, sm_89 is the first"):
        linear_fp8.multiply_rows(data, scale, _only(ready), torch.empty(3, 9, device=DEVICE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 128)}, "`x`: the type must be float8_e4m3fn, not float32"),
        ({"x": torch.zeros(2, 64).to(FP8)}, r"`x`: the shape must be \[any, 128\]"),
        ({"x_scale": torch.zeros(3)}, r"`x_scale`: the shape must be \[2\]"),
        ({"out": torch.zeros(2, 5)}, r"`out`: the shape must be \[2, 6\]"),
        ({"bias": torch.zeros(5)}, r"`bias`: the shape must be \[6\]"),
        ({"weights": packed(INT8, 6, 128)}, "`weights`: one matrix of fp8 with whole-row scales or groups of"),
        ({"weights": packed(Format("fp8", 8, 32), 6, 128)}, "`weights`: one matrix of fp8 with whole-row"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    def ready(matrix: object) -> Weights:
        found = prepare(matrix, DEVICE, HALF)  # type: ignore[arg-type]  # a `Packed`
        assert isinstance(found, GPUMatrix)
        return _only(found)

    arguments = {
        "x": torch.zeros(2, 128).to(FP8),
        "x_scale": torch.zeros(2),
        "weights": packed(ROWS, 6, 128),
        "out": torch.zeros(2, 6),
    } | changes
    placed = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        linear_fp8.multiply_rows(**placed | {"weights": ready(placed["weights"])})
