"""Rows looked up by tokens: the bits of the dequantised matrix."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels import reference
from kernels.gpu import embedding
from kernels.gpu.configurations import Tables
from kernels.gpu.matrices import prepare
from kernels.packed import Format, Matrix, Stack
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded
from tests.kernels.gpu.prepared import INT4, INT8, guarded, packed

HALF, FULL = torch.float16, torch.float32
FORMATS = [
    (INT8, 200),
    (Format("int8", 8, 16, zeros=True), 80),
    (Format("int8", 8, 128), 256),
    (INT4, 160),
    (Format("int4", 4, 128, zeros=True), 256),
    (Format("int4", 4, 96), 192),
    (Format("int3", 3, 32, zeros=True), 160),
    (Format("int3", 3, 0), 264),
    (Format("fp8", 8, 32), 96),
]
FEW_TILES = Tables({"embedding": {"default": [{"up_to": None, "TILES": 2, "num_warps": 4, "num_stages": 2}]}})


def _check(module: ModuleType, matrix: Matrix, tokens: torch.Tensor, dtype: torch.dtype) -> None:
    wanted = reference.embed(matrix, tokens.long()).to(dtype)
    out = Guarded.empty(*wanted.shape, dtype=dtype, strides=(wanted.shape[1] + 3, 1))
    ready = Guarded(matrix).tensor if isinstance(matrix, torch.Tensor) else guarded(matrix, HALF)
    module.embed(ready, tokens.to(DEVICE), out=out.tensor, tables=FEW_TILES)
    out.assert_intact()
    assert torch.equal(out.tensor.cpu(), wanted)


def check_formats(module: ModuleType) -> None:
    for format, columns in FORMATS:
        _check(module, packed(format, 7, columns), torch.tensor([6, 0, 3], dtype=torch.int32), FULL)
    _check(module, packed(INT8, 7, 40), torch.tensor([2]), HALF)


def check_plain(module: ModuleType) -> None:
    _check(module, torch.randn(7, 150), torch.tensor([6, 0]), FULL)
    _check(module, torch.randn(7, 150).to(HALF), torch.tensor([5]), FULL)


def check_parts(module: ModuleType) -> None:
    """Several formats, one below the other: every row from the part that has it."""
    plain = torch.randn(3, 64).to(HALF)
    _check(module, Stack((packed(INT4, 4, 64), plain, packed(INT8, 5, 64))), torch.arange(12), FULL)


def check_strangers(module: ModuleType) -> None:
    """Tokens that name no row get the nearest."""
    matrix = packed(INT8, 5, 40)
    tokens = torch.tensor([-1, 5, 2**31 - 1, -(2**31), 4], dtype=torch.int32, device=DEVICE)
    out = module.embed(guarded(matrix, HALF), tokens, FULL)
    assert torch.equal(out.cpu(), reference.embed(matrix, torch.tensor([0, 4, 4, 0, 4])))


CHECKS: list[Check] = [check_formats, check_plain, check_parts, check_strangers]
DEFECTS = [
    (check_formats, Defect("another token's row", "tl.load(tokens + token)", "tl.load(tokens)")),
    (check_formats, Defect("rows too close", "out + token * out_stride", "out + token * columns")),
    (check_formats, Defect("tiles of the first program", "tl.program_id(1) * TILES + tl.arange", "tl.arange")),
    (check_formats, Defect("third bits from a run", "of_row + 2 * PIECE", "of_row + PIECE")),
    (check_formats, Defect("pieces in one place", "(run * PARTS + part) * PIECE  #", "(run * PARTS) * PIECE  #")),
    (check_formats, Defect("the first group's scale", "(start // GROUP)", "(start // GROUP * 0)")),
    (check_formats, Defect("the first group's minimum", "minimum + group + row", "minimum + group * 0 + row")),
    (check_formats, Defect("no factor", "value = value * tl.load(factor + row)", "value = value + 0.0")),
    (check_formats, Defect("the first row's factor", "tl.load(factor + row)", "tl.load(factor)")),
    (check_formats, Defect("beyond the row's end", "mask=places < columns)", "mask=places < columns + 3)")),
    (check_formats, Defect("another row's scale", "tl.load(scale + group + row,", "tl.load(scale + group,")),
    (check_parts, Defect("rows of the first part", "vocabulary - 1) - first", "vocabulary - 1)")),
    (check_parts, Defect("parts that have the row not", "(row >= 0) & (row < rows)", "row < rows")),
    (
        check_strangers,
        Defect("beyond the last", "tl.minimum(tl.maximum(row, 0), vocabulary - 1)", "tl.maximum(row, 0)"),
    ),
    (check_strangers, Defect("before the first", "tl.maximum(row, 0)", "row")),
]


def _name(value: Check | Defect) -> str:
    return str(value) if isinstance(value, Defect) else value.__name__


@pytest.mark.parametrize("check", CHECKS, ids=_name)
def test_agrees_bit_by_bit(check: Check) -> None:
    check(embedding)


@pytest.mark.parametrize(("check", "defect"), DEFECTS, ids=_name)
def test_defects_are_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, embedding, [check], tmp_path)


def test_no_tokens_give_no_rows() -> None:
    tokens = torch.zeros(0, dtype=torch.int32, device=DEVICE)
    assert embedding.embed(prepare(packed(INT8, 5, 40), DEVICE, HALF), tokens, HALF).shape == (0, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(2)}, "`tokens`: the type must be int32 or int64, not float32"),
        ({"tokens": torch.zeros(2, 2, dtype=torch.int32)}, r"`tokens`: the shape must be \[any\]"),
        ({"dtype": None}, "`dtype`: it is needed where there is no `out`"),
        ({"out": torch.zeros(2, 41)}, r"`out`: the shape must be \[2, 40\], not \[2, 41\]"),
        ({"out": torch.zeros(2, 40)}, "`out`: the type must be float16, not float32"),
        ({"matrix": packed(INT8, 5, 40)}, "`matrix`: a tensor or a `GPUMatrix`, not a `Packed`"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "matrix": prepare(packed(INT8, 5, 40), DEVICE, HALF),
        "tokens": torch.zeros(2, dtype=torch.int32),
        "dtype": HALF,
    } | changes
    placed = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        embedding.embed(**placed)
