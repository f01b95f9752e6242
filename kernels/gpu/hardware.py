"""What GPUs offer, as data: limits of an architecture, rates of a product, and two formulas over them.

Limits are those of NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities". Rates are of the products' data sheets,
dense: without the doubling that they print for sparse matrices. Nothing here was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kernels.gpu.specimen import Peak

KB = 1024
WARP = 32  # threads
REGISTERS = 65_536  # of a multiprocessor, 32 bits each, in every architecture below
MOST_REGISTERS = 255  # of a thread
REGISTER_UNIT = 256  # registers are given to a warp in steps of this many
SCHEDULERS = 4  # of a multiprocessor: a warp lives in the registers of one of them
TENSOR_COLUMNS = 512  # of a multiprocessor's tensor memory, sm_100
SYSTEM_SHARED = 1 * KB  # of shared memory, that each block takes besides its own


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one multiprocessor."""

    shared: int  # bytes
    shared_per_block: int  # bytes that one block may ask for
    warps: int  # resident at once
    blocks: int


LIMITS: Mapping[int, Limits] = MappingProxyType(
    {
        80: Limits(164 * KB, 163 * KB, warps=64, blocks=32),  # A100
        89: Limits(100 * KB, 99 * KB, warps=48, blocks=24),  # L4, L40S, RTX 40
        90: Limits(228 * KB, 227 * KB, warps=64, blocks=32),  # H100, H200
        100: Limits(228 * KB, 227 * KB, warps=64, blocks=32),  # B200
        120: Limits(100 * KB, 99 * KB, warps=48, blocks=24),  # RTX PRO Blackwell, RTX 50
    }
)


@dataclass(frozen=True, slots=True)
class GPU:
    """One product. Rates of `peaks` in operations a second, a multiplication with its addition counted as two."""

    name: str
    architecture: int
    memory: int  # bytes, as sold (1 GB = 10^9)
    bandwidth: float  # bytes a second of the device memory
    peaks: Mapping[Peak, float]  # fp32 outside of the matrix units; a type that they do not take is missing
    multiprocessors: int
    l2: int  # bytes
    link: float  # bytes a second to other GPUs, in one direction: half of what the data sheets print for NVLink


GPUS = (
    # NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM; INT8 624 TOPS, no FP8.
    GPU("A100", 80, 80 * 10**9, 2.039e12, {"fp32": 19.5e12, "fp16": 312e12, "int8": 624e12}, 108, 40 * KB * KB, 300e9),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM5, halved where it says "with sparsity".
    GPU(
        "H100",
        90,
        80 * 10**9,
        3.35e12,
        {"fp32": 67e12, "fp16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
        132,
        50 * KB * KB,
        450e9,
    ),
    # NVIDIA H200 Tensor Core GPU data sheet, SXM: the H100's processor with other memory.
    GPU(
        "H200",
        90,
        141 * 10**9,
        4.8e12,
        {"fp32": 67e12, "fp16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
        132,
        50 * KB * KB,
        450e9,
    ),
    # NVIDIA HGX B200 figures of 8 GPUs, divided by 8 and halved for sparsity; 1,440 GB and 64 TB/s together.
    GPU(
        "B200",
        100,
        180 * 10**9,
        8.0e12,
        {"fp32": 75e12, "fp16": 2250e12, "fp8": 4500e12, "int8": 4500e12},
        148,
        126 * KB * KB,
        900e9,
    ),
)


def gpu(name: str) -> GPU:
    """Raises `ValueError` for one that is not in `GPUS`."""
    for one in GPUS:
        if one.name == name:
            return one
    raise ValueError(f"`{name}`: must be one of {', '.join(one.name for one in GPUS)}")


def resident_blocks(architecture: int, registers: int, shared: int, warps: int, columns: int = 0) -> int:
    """How many blocks a multiprocessor holds at once; 0: not even one.

    registers: of a thread; shared: bytes of a block; warps: of a block; columns: of tensor memory, of a block. The rule
    is that of NVIDIA's occupancy calculator: registers are given warp by warp, from the file of the scheduler that the
    warp belongs to.
    Raises `ValueError` for an architecture that is not in `LIMITS`.
    """
    limits = limits_of(architecture)
    if shared > limits.shared_per_block or registers > MOST_REGISTERS or warps < 1:
        return 0
    of_warp = -(-max(registers, 1) * WARP // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS // warps
    by_shared = limits.shared // (shared + SYSTEM_SHARED)
    by_columns = TENSOR_COLUMNS // columns if columns else limits.blocks
    return min(by_registers, by_shared, by_columns, limits.warps // warps, limits.blocks)


def limits_of(architecture: int) -> Limits:
    if architecture not in LIMITS:
        known = ", ".join(str(one) for one in LIMITS)
        raise ValueError(f"`architecture`: {architecture} must be one of {known}")
    return LIMITS[architecture]
