"""The product with decoded weights, in every format, between NaN, against fp64 products of the same weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.gpu import linear, segments, weights
from kernels.gpu.matrices import prepare
from kernels.packed import Format, Packed, Stack, pack, unpack
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near
from tests.kernels.gpu.prepared import INT4, INT8, guarded, inputs, packed, small_blocks

HALF, FULL = torch.float16, torch.float32

# Format and K; none fills its last tile, but for whole ones where groups are as large.
FORMATS = [
    (INT8, 200),
    (Format("int8", 8, 0, zeros=True), 72),
    (Format("int8", 8, 32), 96),
    (Format("int8", 8, 16, zeros=True), 80),
    (Format("int8", 8, 128), 256),
    (Format("int4", 4, 0), 130),
    (INT4, 160),
    (Format("int4", 4, 16), 48),
    (Format("int4", 4, 96), 192),
    (Format("int4", 4, 32, zeros=True), 96),
    (Format("int4", 4, 64, zeros=True), 320),
    (Format("int4", 4, 128), 384),
    (Format("int3", 3, 0), 72),
    (Format("int3", 3, 32, zeros=True), 160),
    (Format("int3", 3, 128), 256),
    (Format("fp8", 8, 0), 100),
    (Format("fp8", 8, 32), 96),
    (Format("fp8", 8, 128), 256),
]


def _check(
    module: ModuleType,
    matrix: Packed | Stack,
    count: int,
    dtype: torch.dtype,
    into: torch.dtype | None = None,
    biased: bool = True,
) -> None:
    truth = unpack(matrix).double()  # [N, K]
    rows, columns = truth.shape
    x = inputs(count, columns, dtype)
    bias = Guarded(torch.randn(rows).to(dtype)).tensor if biased else None
    out = Guarded.empty(count, rows, dtype=into or dtype, strides=(rows + 5, 1))
    module.linear(x, guarded(matrix, dtype), bias, out.tensor)
    out.assert_intact()
    wanted = x.cpu().double() @ truth.T
    assert_near(out.tensor, wanted if bias is None else wanted + bias.cpu().double())


def _check_formats(module: ModuleType, name: str) -> None:
    for format, columns in FORMATS:
        if format.name == name:
            _check(module, packed(format, 10, columns), 2, HALF)


def check_int8(module: ModuleType) -> None:
    _check_formats(module, "int8")


def check_int4(module: ModuleType) -> None:
    _check_formats(module, "int4")


def check_int3(module: ModuleType) -> None:
    _check_formats(module, "int3")


def check_fp8(module: ModuleType) -> None:
    _check_formats(module, "fp8")


def check_full(module: ModuleType) -> None:
    """Inputs of fp32."""
    for format, columns in FORMATS[1::3]:
        _check(module, packed(format, 5, columns), 2, FULL, biased=False)


def check_segments(module: ModuleType) -> None:
    """K in three parts, each with a program of its own, the last one shorter and with a tail. Nothing is rounded."""
    for format in (INT8, Format("int4", 4, 40 * 27)):
        _check(module, packed(format, 12, 1080), 3, HALF, into=FULL)


def check_blocks(module: ModuleType) -> None:
    """More blocks of outputs than lie beside each other, and several of rows."""
    matrix = packed(INT8, 75, 40)
    x, out = inputs(9, 40, FULL), Guarded.empty(9, 75, dtype=FULL)
    module.linear(x, guarded(matrix, FULL), None, out.tensor, tables=small_blocks("linear_fp32", 4, 8, split=False))
    out.assert_intact()
    assert_near(out.tensor, x.cpu().double() @ unpack(matrix).double().T)


def check_rows_alone(module: ModuleType) -> None:
    """A row gives the same bits alone, in few programs or many, with others or without.

    The inputs are small whole numbers, so that within a tile the order of a library's sums makes no difference.
    """
    columns = 1152  # nine tiles of 128, in segments of four
    matrix = guarded(packed(Format("int8", 8, 128), 12, columns), HALF)
    x = torch.randint(-8, 9, (6, columns), device=DEVICE).to(HALF)
    found = []
    for rows, split in ((8, False), (4, True)):
        out = torch.empty(6, 12, device=DEVICE)
        found.append(module.linear(x, matrix, None, out, tables=small_blocks("linear_sum", rows, 16, split=split)))
    assert torch.equal(*found)
    for row in (0, 5):
        alone = module.linear(x[row : row + 1], matrix, None, torch.empty(1, 12, device=DEVICE))
        assert torch.equal(alone[0], found[0][row])


def check_parts(module: ModuleType) -> None:
    """Matrices of several formats, one below the other, one of them of plain numbers."""
    plain = torch.randn(7, 64).to(HALF) * 0.05
    _check(module, Stack((packed(INT4, 6, 64), plain, packed(INT8, 9, 64))), 2, HALF)


def check_any_scale(module: ModuleType) -> None:
    """Weights far beyond what fp16 holds, at either end, and rows of zeros."""
    for size in (1e-9, 1e9):
        weight = torch.randn(6, 64) * size
        weight[2] = 0
        for format in (INT4, Format("int4", 4, 32, zeros=True), Format("fp8", 8, 32)):
            matrix = pack(weight, format)
            x, out = inputs(2, 64, HALF), Guarded.empty(2, 6, dtype=FULL)
            module.linear(x, guarded(matrix, HALF), None, out.tensor)
            assert_near(out.tensor, x.cpu().double() @ unpack(matrix).double().T, 1e-3)


CHECKS: list[Check] = [
    check_int8,
    check_int4,
    check_int3,
    check_fp8,
    check_full,
    check_segments,
    check_blocks,
    check_rows_alone,
    check_parts,
    check_any_scale,
]

OF_WEIGHTS = [
    (check_int8, Defect("sign of eight bits", "1152.0", "1151.0")),
    (check_int8, Defect("all runs are the first", "tile * TILE_STRIDE + run * PIECE", "tile * TILE_STRIDE")),
    (check_int8, Defect("inputs beyond K", "(start + k < columns)", "(start + k < columns + TILE)")),
    (check_int8, Defect("minima of the first group", "minimum + group + rows", "minimum + rows")),
    (check_int8, Defect("minima forgotten", "left += tl.load(minimum", "left += 0.0 * tl.load(minimum")),
    (check_int8, Defect("scale of another group", "(tile * TILE // GROUP)", "(tile * TILE // GROUP * 0)")),
    (check_int8, Defect("a tile's sum not begun anew", "part_sum = tl.full", "part_sum = total + tl.full")),
    (check_int8, Defect("a row too far", "rows[:, None] * data_stride", "(rows[:, None] ^ 1) * data_stride")),
    (check_int4, Defect("zero point of four bits", "else 8.0 if", "else 7.0 if")),
    (check_int4, Defect("high half not shifted down", "(low >> (4 * PART)) & 15", "low & 15")),
    (check_int4, Defect("inputs of the first piece", "(run * PARTS + part) * PIECE", "(run * PARTS) * PIECE")),
    (check_int4, Defect("group of the first piece", "(start // GROUP)", "(tile * TILE // GROUP)")),
    (check_int3, Defect("zero point of three bits", '"int4" else 4.0', '"int4" else 3.0')),
    (check_int3, Defect("two bits of another piece", "(2 * (PART % 4))", "(2 * (PART % 2))")),
    (check_int3, Defect("third bit of another piece", "(high >> PART)", "(high >> (PART ^ 1))")),
    (check_int3, Defect("third bits from a run", "tile * TILE_STRIDE + 2 * PIECE", "tile * TILE_STRIDE + PIECE")),
    (check_fp8, Defect("sign of FP8", "(bits & 0x80) << 8", "(bits & 0x00) << 8")),
    (check_fp8, Defect("exponent of FP8", "(bits & 0x7F) << 7", "(bits & 0x7F) << 6")),
    (check_blocks, Defect("blocks of outputs twice", "first_n + inside % wide", "inside % wide")),
    (check_blocks, Defect("blocks beyond the last", "tl.minimum(blocks_n - first_n, 8)", "8")),
]
OF_SEGMENTS = [
    (check_segments, Defect("the first left out", "in range(segments)", "in range(1, segments)")),
    (check_segments, Defect("the first again and again", "sums + index * sums_stride", "sums")),
    (check_rows_alone, Defect("last to first", "index * sums_stride", "(segments - 1 - index) * sums_stride")),
    (check_segments, Defect("sums of the first row", "sums_stride + row * outputs", "sums_stride")),
    (check_segments, Defect("factor forgotten", "found * tl.load(factor", "found + 0.0 * tl.load(factor")),
    (check_segments, Defect("bias forgotten", "found += tl.load(bias", "found += 0.0 * tl.load(bias")),
    (check_segments, Defect("bias of another output", "tl.load(bias + outputs)", "tl.load(bias + (outputs ^ 1))")),
    (check_segments, Defect("outputs beyond the last", "there = places < outputs", "there = places < outputs + 3")),
    (check_segments, Defect("rows too close", "out + row * out_stride", "out + row * outputs")),
]
OF_LINEAR = [
    (check_segments, Defect("one segment for all", "start = tl.program_id(1) * segment", "start = 0 * segment")),
    (check_segments, Defect("segments in one place", "tl.program_id(1).to(tl.int64) * count", "0 * count")),
    (
        check_rows_alone,
        Defect("the first segment skipped", "range(0, tiles, segment)", "range(segment, tiles, segment)"),
    ),
    (
        check_int4,
        Defect("no bias", "finish(total, factor, None, bias", "finish(total, factor, None, None"),
    ),
    (check_int4, Defect("no factor", "total = finish(total, factor", "total = finish(total, None")),
    (check_int4, Defect("outputs beyond the last", "& (places < outputs)[:, None]", "")),
    (check_int4, Defect("rows beyond the last", "mask=there[None, :] & (places", "mask=(places")),
    (check_int4, Defect("rows too close", "inputs[None, :] * out_stride", "inputs[None, :] * outputs")),
    (check_parts, Defect("every part in the first columns", "out[:, first:last]", "out[:, : last - first]")),
    (check_parts, Defect("the first part's bias", "bias[first:last]", "bias[: last - first]")),
]


def _name(value: Check | Defect) -> str:
    return str(value) if isinstance(value, Defect) else value.__name__


@pytest.mark.parametrize("check", CHECKS, ids=_name)
def test_agrees_with_fp64(check: Check) -> None:
    check(linear)


@pytest.mark.parametrize(("check", "defect"), OF_WEIGHTS, ids=_name)
def test_defects_of_the_weights_are_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, weights, [check], tmp_path, users=[linear])


@pytest.mark.parametrize(("check", "defect"), OF_SEGMENTS, ids=_name)
def test_defects_of_the_segments_are_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, segments, [check], tmp_path, users=[linear])


@pytest.mark.parametrize(("check", "defect"), OF_LINEAR, ids=_name)
def test_defects_of_the_launcher_are_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, linear, [check], tmp_path)


def test_whole_numbers_in_bf16_are_exact() -> None:
    """The interpreter has no bf16: that `0x4300 | q` is 128 + q, and the difference exact, is seen in torch."""
    codes = torch.arange(16, dtype=torch.int16)
    found = (codes | 0x4300).view(torch.bfloat16)
    for zero in (0, 4, 8):
        assert torch.equal((found - (128.0 + zero)).float(), codes.float() - zero)


def test_no_rows_give_no_rows() -> None:
    matrix = prepare(packed(INT4, 6, 64), DEVICE, HALF)
    assert linear.linear(torch.empty(0, 64, dtype=HALF, device=DEVICE), matrix).shape == (0, 6)


def test_plain_matrices() -> None:
    matrix = prepare(torch.randn(5, 33), DEVICE, FULL)
    x, bias = inputs(3, 33, FULL), torch.randn(5, device=DEVICE)
    out = linear.linear(x, matrix, bias)
    assert isinstance(matrix, torch.Tensor)
    assert_near(out, x.cpu().double() @ matrix.cpu().double().T + bias.cpu().double())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 65, dtype=HALF)}, r"`x`: the shape must be \[any, 64\], not \[2, 65\]"),
        ({"x": torch.zeros(64, dtype=HALF)}, r"`x`: the shape must be \[any, 64\], not \[64\]"),
        ({"x": torch.zeros(2, 64, dtype=torch.int32)}, "`x`: the type must be float32 or float16 or bfloat16"),
        ({"x": torch.zeros(64, 2, dtype=HALF).T}, "`x`: its last dimension must be dense, not of stride 2"),
        ({"bias": torch.zeros(7)}, r"`bias`: the shape must be \[6\]"),
        ({"bias": torch.zeros(6, dtype=torch.int8)}, "`bias`: the type must be"),
        ({"out": torch.zeros(3, 6)}, r"`out`: the shape must be \[2, 6\], not \[3, 6\]"),
        ({"out": torch.zeros(6, 2).T}, "`out`: its last dimension must be dense"),
        ({"matrix": packed(INT8, 6, 64)}, "`matrix`: a tensor or a `GPUMatrix`, not a `Packed`"),
        ({"matrix": torch.zeros(6, 64)}, "`x`: the matrix was prepared for torch.float32, not torch.float16"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"x": torch.zeros(2, 64, dtype=HALF), "matrix": prepare(packed(INT4, 6, 64), DEVICE, HALF)} | changes
    placed = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        linear.linear(**placed)
