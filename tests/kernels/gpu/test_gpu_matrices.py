"""Matrices laid out for the GPU's kernels: nothing changes but the places of bytes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.gpu import matrices
from kernels.gpu.matrices import GPUMatrix, Weights
from kernels.packed import Format, Matrix, Packed, Prepared, Stack, nbytes, pack, unpack
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE

FORMATS = [
    (Format(name, bits, group, zeros), columns)
    for name, bits in (("int8", 8), ("int4", 4), ("int3", 3), ("fp8", 8))
    for group, columns in ((0, 72), (0, 256), (16, 48), (32, 96), (64, 320), (96, 192), (128, 256), (160, 640))
    for zeros in (False, True)
    if not (name == "fp8" and zeros)
]
HALF = torch.float16


def _weight(rows: int, columns: int) -> torch.Tensor:
    weight = torch.randn(rows, columns) * 0.05
    weight[1] = 0
    return weight


def check_round_trip(module: ModuleType) -> None:
    for format, columns in FORMATS:
        matrix = pack(_weight(5, columns), format)
        assert torch.equal(module.prepare(matrix, DEVICE, HALF).unpack().cpu(), unpack(matrix)), format


def check_scales_of_any_size(module: ModuleType) -> None:
    """Scales of fp32 and of fp16, of which no digit may be lost, and weights at which fp16 ends."""
    for format in (Format("int4", 4, 32), Format("int3", 3, 32, zeros=True), Format("fp8", 8, 32)):
        for size in (1e-12, 3e-6, 700.0, 1e12):
            matrix = pack(_weight(4, 64) * size, format)
            assert torch.equal(module.prepare(matrix, DEVICE, HALF).unpack().cpu(), unpack(matrix)), (format, size)


def check_factors(module: ModuleType) -> None:
    """Of grouped scales they leave weights of 1 to 2 at most, as the kernels scale them in fp16."""
    matrix = pack(_weight(6, 64) * 1e6, Format("int4", 4, 32, zeros=True))
    weights = module.prepare(matrix, DEVICE, HALF).parts[0]
    largest = (weights.scale.float().abs() * 15 + weights.minimum.float().abs()).amax()
    assert 0.5 <= float(largest) <= 2
    assert weights.scale.dtype == HALF or bool((weights.scale.half().float() != weights.scale).any())


def check_stack(module: ModuleType) -> None:
    """Experts: one upon the other, raised to fp32 where the scales of one need it."""
    format = Format("int4", 4, 32, zeros=True)
    some = [pack(_weight(3, 64) * size, format) for size in (1.0, 1.3e-7, 2.0)]
    weights = module.stack(some, DEVICE, HALF)
    assert weights.count == 3 and weights.shape == (3, 64)
    assert weights.data.shape == (3, 3, 32) and weights.scale.shape == (3, 2, 3) and weights.factor.shape == (3, 3)
    assert torch.equal(weights.unpack().cpu(), torch.stack([unpack(matrix) for matrix in some]))
    plain = [_weight(3, 70) for _ in range(2)]
    weights = module.stack(plain, DEVICE, torch.float32)
    assert weights.factor is None and weights.data.shape == (2, 3, 128)
    assert torch.equal(weights.unpack().cpu(), torch.stack(plain))
    assert not weights.data[..., 70:].any()


def check_many_rows(module: ModuleType) -> None:
    """Rows are laid out some at a time."""
    matrix, before = pack(_weight(10, 64), Format("int3", 3, 64)), module.CHUNK
    try:
        module.CHUNK = 128
        assert torch.equal(module.prepare(matrix, DEVICE, HALF).unpack().cpu(), unpack(matrix))
    finally:
        module.CHUNK = before


CHECKS: list[Check] = [check_round_trip, check_scales_of_any_size, check_factors, check_stack, check_many_rows]
DEFECTS = [
    (check_round_trip, Defect("halves changed places", "pieces[0] | pieces[1] << 4", "pieces[1] | pieces[0] << 4")),
    (check_round_trip, Defect("high half lost", "pieces[1] << 4", "pieces[1] << 3")),
    (check_round_trip, Defect("third bits mixed", "(piece >> 2) << index", "(piece >> 2) << (index ^ 1)")),
    (
        check_round_trip,
        Defect("minima without factor", "minimum[index].float().T * factor", "minimum[index].T"),
    ),
    (check_round_trip, Defect("another zero point", '{"int4": 8, "int3": 4}', '{"int4": 8, "int3": 3}')),
    (check_scales_of_any_size, Defect("scales cut to fp16", "exact = wide if", "exact = wide if False and")),
    (check_factors, Defect("no factor taken out", "torch.where(bound > 0, factor, 1.0)", "torch.ones_like(bound)")),
    (check_stack, Defect("the widest scales cut", "x.dtype == torch.float16 for x in found", "True for x in found")),
    (check_stack, Defect("padding not cleared", "torch.zeros(len(matrices)", "torch.ones(len(matrices)")),
    (check_many_rows, Defect("the first rows again", "matrix.data[start : start + step]", "matrix.data[:step]")),
]


def _name(value: Check | Defect) -> str:
    return str(value) if isinstance(value, Defect) else value.__name__


@pytest.mark.parametrize("check", CHECKS, ids=_name)
def test_nothing_changes(check: Check) -> None:
    check(matrices)


@pytest.mark.parametrize(("check", "defect"), DEFECTS, ids=_name)
def test_defects_are_caught(check: Check, defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, matrices, [check], tmp_path)


def test_parts_and_sizes() -> None:
    plain, four = torch.randn(3, 64), pack(_weight(5, 64), Format("int4", 4, 32))
    matrix = matrices.prepare(Stack((plain, four)), DEVICE, HALF, torch.int8)
    assert isinstance(matrix, GPUMatrix) and matrix.shape == (8, 64) and matrix.activations == torch.int8
    assert matrix.nbytes == 3 * 64 * 2 + nbytes(four) + 5 * 4  # plain ones in fp16, a factor for each row
    assert torch.equal(matrix.unpack().cpu(), torch.cat([plain.half().float(), unpack(four)]))
    assert matrices.prepare(matrix, DEVICE, HALF) is matrix


def test_segments_go_by_the_shape_alone() -> None:
    """Enough programs for one row of inputs, and no segment of less than 512 weights."""
    for rows, columns in ((4096, 4096), (14_336, 4096), (4096, 14_336), (152_000, 4096), (64, 640), (64, 65_536)):
        weights = Weights(None, matrices.tiling_of(Format("int4", 4, 128), columns), 1, (rows, columns), torch.empty(0))
        programs = -(-rows // 64) * -(-weights.tiles // weights.segment)
        assert weights.segment * 128 >= 512
        assert programs >= 384 or weights.segment * 128 == 512
    assert weights.segment == 4  # of the last: 128 programs are all that it has


def test_what_takes_quantised_inputs() -> None:
    def takes(format: Format, columns: int, activations: torch.dtype | None) -> bool:
        ready = matrices.prepare(pack(_weight(3, columns), format), DEVICE, HALF)
        assert isinstance(ready, GPUMatrix)
        return matrices.takes(ready.parts[0], activations)

    fp8 = torch.float8_e4m3fn
    assert takes(Format("int8", 8, 0), 64, torch.int8) and takes(Format("int8", 8, 64), 64, torch.int8)
    assert not takes(Format("int8", 8, 0), 64, None) and not takes(Format("int8", 8, 0), 64, fp8)
    assert not takes(Format("int8", 8, 32), 64, torch.int8) and not takes(Format("int4", 4, 0), 64, torch.int8)
    assert not takes(Format("int8", 8, 0, zeros=True), 64, torch.int8)
    assert takes(Format("fp8", 8, 0), 64, fp8) and takes(Format("fp8", 8, 128), 256, fp8)
    assert not takes(Format("fp8", 8, 32), 64, fp8) and not takes(Format("fp8", 8, 0), 64, torch.int8)
    assert not matrices.takes(torch.ones(2, 2), torch.int8)


class Foreign(Prepared):
    shape, nbytes = (3, 64), 0

    def unpack(self) -> torch.Tensor:
        return torch.zeros(3, 64)


def test_what_cannot_be_prepared_is_refused() -> None:
    four = Format("int4", 4, 32)
    eight = pack(_weight(3, 48), Format("int8", 8, 24))
    with pytest.raises(ValueError, match=r"`format`: int8-24: .* groups of a multiple of 16\nhint: "):
        matrices.prepare(eight, DEVICE, HALF)
    with pytest.raises(ValueError, match="`matrix`: it was prepared by another backend"):
        matrices.prepare(Foreign(), DEVICE, HALF)
    with pytest.raises(ValueError, match="`dtype`: inputs are fp32, fp16 or bf16, not torch.int8"):
        matrices.prepare(torch.ones(2, 2), DEVICE, torch.int8)
    with pytest.raises(ValueError, match="`activations`: .* not torch.int32"):
        matrices.prepare(torch.ones(2, 2), DEVICE, HALF, torch.int32)

    def refused(some: list[Matrix], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            matrices.stack(some, DEVICE, HALF)

    one = pack(_weight(3, 64), four)
    refused([], "`matrices`: there must be one")
    refused([one, pack(_weight(2, 64), four)], "the shape and the format of the first")
    refused([one, pack(_weight(3, 64), Format("int4", 4, 64))], "the shape and the format of the first")
    refused([one, torch.ones(3, 64)], "the shape and the format of the first")
    refused([Stack((one, one))], "each must be of one format")
    refused([torch.ones(0, 64)], "none may be empty")


def test_groups_as_long_as_rows_are_whole_rows() -> None:
    ready = matrices.prepare(pack(_weight(3, 72), Format("int8", 8, 72)), DEVICE, HALF)
    assert isinstance(ready, GPUMatrix) and isinstance(ready.parts[0], Weights)
    assert ready.parts[0].tiling.scales == "row" and ready.parts[0].scale is None
    assert isinstance(pack(_weight(3, 72), Format("int8", 8, 72)), Packed)
