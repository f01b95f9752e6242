"""One compilation of a kernel: what the report makes of it without a GPU, and what its launch costs on paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ARCHITECTURES = (80, 89, 90, 100, 120)
NATIVE_FP8 = 89  # the first architecture whose matrix units take FP8

Peak = Literal["fp32", "fp16", "fp8", "int8"]  # whose rate bounds the arithmetic; bf16 runs at fp16's


@dataclass(frozen=True, slots=True)
class Work:
    """What one launch of a typical shape touches and computes; the least any implementation could, padding aside."""

    shape: str  # in words: "64 sequences of 4,096 positions, 32 heads over 4, width 128"
    bytes: int  # of device memory, read and written
    flops: int  # or integer operations
    peak: Peak


@dataclass(frozen=True, slots=True)
class Specimen:
    """`signature` has every argument in order ("*fp16", "i32", "fp32", "constexpr"), `constants` those of constexpr
    and those that are None. `aligned`: arguments whose addresses or values are multiples of 16, as a launch finds
    them out; without that no wide loads would be compiled."""

    operation: str  # as its file: "attention"
    variant: str  # "fp16, int8 keys, decode"
    kernel: Any  # the function under @triton.jit
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...]
    work: Work | None  # None: none of its own, or not worth a figure
    markers: tuple[str, ...] = field(default=())  # instructions that must occur: "cp.async", "mma"
