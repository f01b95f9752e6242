"""Kernels that must not be shipped, one for each fault that the report knows, and one that may."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import triton
import triton.language as tl

from kernels.gpu.configurations import SHIPPED, Tables
from kernels.gpu.specimen import Specimen, Work

WORK = Work("a million numbers", bytes=2_000_000, flops=1_000_000, peak="fp32")


@triton.jit
def share(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, numbers / tl.sum(numbers, 0), mask=at < n)


@triton.jit
def product(a, b, out, N: tl.constexpr, K: tl.constexpr):
    row = tl.arange(0, N)
    total = tl.zeros((N, N), tl.float32)
    for step in range(8):
        column = step * K + tl.arange(0, K)
        left = tl.load(a + row[:, None] * 8 * K + column[None, :])
        total = tl.dot(left, tl.load(b + column[:, None] * N + row[None, :]), total)
    tl.store(out + row[:, None] * N + row[None, :], total)


@triton.jit
def mismatched(a, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(a + tl.arange(0, 2 * N)) + at)


@triton.jit
def forgotten(x):
    tl.store(x, 0)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    yield _share("good", 1024, 4, ("ld.v4", "st.v4"), WORK)
    yield _share("spilling", 8192, 1)
    types = {"a": "*fp16", "b": "*fp16", "out": "*fp32", "N": "constexpr", "K": "constexpr"}
    pointers = ("a", "b", "out")
    yield Specimen("toy", "large", product, types, {"N": 128, "K": 128}, 8, 5, pointers, None, ("mma", "cp.async"))
    types = {"a": "*fp32", "out": "*fp32", "N": "constexpr"}
    yield Specimen("toy", "mismatched", mismatched, types, {"N": 128}, 4, 2, (), None)
    yield _share("unaligned", 1024, 4, ("ld.v4", "mma"), aligned=())
    yield Specimen("toy", "misnamed", share, {"y": "*fp32"}, {}, 4, 2, (), None)
    if multiprocessing.parent_process() is not None:
        os._exit(3)  # a compiler that crashes takes its process with it
    yield _share("crashing", 1024, 4)


def _share(
    variant: str,
    block: int,
    warps: int,
    markers: tuple[str, ...] = (),
    work: Work | None = None,
    aligned: tuple[str, ...] = ("x", "out", "n"),
) -> Specimen:
    types = {"x": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    return Specimen("toy", variant, share, types, {"BLOCK": block}, warps, 2, aligned, work, markers)
