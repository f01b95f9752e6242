from __future__ import annotations

import pytest

from kernels.gpu.hardware import GPUS, KB, LIMITS, MOST_REGISTERS, gpu, resident_blocks
from kernels.gpu.specimen import ARCHITECTURES


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "warps", "blocks"),
    [
        (80, 32, 0, 8, 8),  # as many warps as there is room for
        (80, 64, 0, 8, 4),  # registers bound it
        (80, 63, 0, 8, 4),  # they are given in steps: 63 cost as much as 64
        (80, 65, 0, 8, 3),
        (80, 255, 0, 4, 2),
        (80, 16, 0, 1, 32),  # blocks bound it
        (80, 32, 96 * KB, 4, 1),  # shared memory bounds it, with what the system takes of it
        (80, 32, 81 * KB, 4, 2),
        (80, 32, 81 * KB + 1, 4, 1),
        (90, 32, 113 * KB, 4, 2),
        (90, 168, 0, 12, 1),  # three warps with 168 registers for each scheduler
        (80, 88, 0, 3, 6),  # five warps in each scheduler's registers, not 23 in those of all
        (89, 32, 0, 8, 6),  # fewer warps
        (89, 16, 0, 1, 24),  # and fewer blocks
        (120, 32, 99 * KB, 4, 1),
        (80, 32, 163 * KB, 4, 1),  # the most a block may have
        (80, 32, 163 * KB + 1, 4, 0),
        (89, 32, 99 * KB + 1, 4, 0),
        (90, MOST_REGISTERS + 1, 0, 4, 0),
        (90, 255, 0, 32, 0),  # more warps than their registers hold
    ],
)
def test_blocks_of_a_multiprocessor(architecture: int, registers: int, shared: int, warps: int, blocks: int) -> None:
    assert resident_blocks(architecture, registers, shared, warps) == blocks


@pytest.mark.parametrize(("columns", "blocks"), [(0, 16), (64, 8), (256, 2), (257, 1), (512, 1), (513, 0)])
def test_tensor_memory_bounds_blocks(columns: int, blocks: int) -> None:
    assert resident_blocks(100, 32, 0, 4, columns) == blocks


def test_shared_memory_of_a_block() -> None:
    assert {name: limits.shared_per_block // KB for name, limits in LIMITS.items()} == {
        80: 163,
        89: 99,
        90: 227,
        100: 227,
        120: 99,
    }
    assert tuple(LIMITS) == ARCHITECTURES


def test_unknown_architectures_and_gpus_are_named() -> None:
    with pytest.raises(ValueError, match="`architecture`: 75 must be one of 80, 89, 90, 100, 120"):
        resident_blocks(75, 32, 0, 4)
    with pytest.raises(ValueError, match="`V100`: must be one of A100, H100, H200, B200"):
        gpu("V100")


@pytest.mark.parametrize(("name", "ridge"), [("A100", 153), ("H100", 295), ("H200", 206), ("B200", 281)])
def test_ridges(name: str, ridge: int) -> None:
    """Operations a byte above which fp16 arithmetic is the bound, rounded as they are usually quoted."""
    found = gpu(name)
    assert round(found.peaks["fp16"] / found.bandwidth) == ridge
    assert ("fp8" in found.peaks) == (found.architecture >= 89)
    assert found.architecture in LIMITS and found in GPUS
