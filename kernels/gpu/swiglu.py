"""SwiGLU (https://arxiv.org/abs/2002.05202): gate_up [T, 2F] (gate first) -> silu(gate) * up [T, F].

`swiglu_int8` hands on what W8A8 products take: int8 [T, F] and a scale for each row [T]. Scale = largest magnitude /
127; the integers are value / scale, rounded half to even. A row of zeros has scale 0; a row with anything that is not
finite has scale NaN. The value is not rounded before. All arithmetic is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.specimen import Specimen, Work

if TYPE_CHECKING:
    from kernels.gpu.tuning import Example

LOG2_E = tl.constexpr(1.4426950408889634)
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2**23: an fp32 of that size has no room for fractions, and rounds to even


@triton.jit
def _product(gate_up, half, place, inside):
    """silu(gate) * up of one block of columns, in fp32."""
    gate = tl.load(gate_up + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + half + place, mask=inside, other=0.0).to(tl.float32)
    small = tl.exp2(-tl.abs(gate) * LOG2_E)  # at most 1: nothing overflows
    return gate * tl.where(gate >= 0, 1.0, small) / (1.0 + small) * up


@triton.jit
def _swiglu_kernel(gate_up, out, width, gate_up_stride, out_stride, BLOCK: tl.constexpr):
    """One block of columns of one row; programs go along the row first."""
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    found = _product(gate_up + row * gate_up_stride, width, column, inside)
    tl.store(out + row * out_stride + column, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_int8_kernel(gate_up, out, scales, width, gate_up_stride, out_stride, BLOCK: tl.constexpr):
    """One row: its largest magnitude first, then, from the cache, its values again."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    taint = tl.zeros([BLOCK], tl.float32)  # a maximum passes over NaN, a sum does not
    for start in range(0, width, BLOCK):
        inside = start + column < width
        found = _product(gate_up + row * gate_up_stride, width, start + column, inside)
        largest = tl.maximum(largest, tl.abs(found))
        taint += found - found
    scale = tl.div_rn(tl.max(largest, axis=0), 127.0) + tl.sum(taint, axis=0)
    tl.store(scales + row, scale)
    divisor = tl.where(scale > 0, scale, 1.0)
    for start in range(0, width, BLOCK):
        inside = start + column < width
        found = _product(gate_up + row * gate_up_stride, width, start + column, inside)
        steps = tl.div_rn(found, tl.zeros([BLOCK], tl.float32) + divisor)
        steps = tl.where(steps == steps, tl.minimum(tl.maximum(steps, -127.0), 127.0), 0.0)
        steps = (steps + ROUNDER) - ROUNDER
        tl.store(out + row * out_stride + start + column, steps.to(tl.int8), mask=inside)


def swiglu(
    gate_up: Tensor,  # [T, 2F]
    out: Tensor | None = None,  # [T, F], of any float type
    *,
    tables: Tables = SHIPPED,
) -> Tensor:  # [T, F], of the type of `out`, else of gate_up
    """silu(gate) * up, rounded once. Raises `ValueError` for shapes, strides and types that do not fit."""
    rows, width = _check(gate_up)
    if out is None:
        out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    check_tensor("out", out, [rows, width], FLOATS, like=gate_up)
    if rows and width:
        chosen = tables.find("swiglu", width, architecture(gate_up.device))
        _swiglu_kernel[(rows * triton.cdiv(width, chosen.sizes["BLOCK"]),)](
            gate_up, out, width, gate_up.stride(0), out.stride(0), **chosen.options
        )
    return out


def swiglu_int8(
    gate_up: Tensor,  # [T, 2F]
    out: tuple[Tensor, Tensor] | None = None,  # int8 [T, F] and fp32 [T]
    *,
    tables: Tables = SHIPPED,
) -> tuple[Tensor, Tensor]:  # int8 [T, F], fp32 [T]
    """silu(gate) * up as integers and a scale for each row.

    Raises `ValueError` for shapes, strides and types that do not fit.
    """
    rows, width = _check(gate_up)
    if out is None:
        data = torch.empty(rows, width, dtype=torch.int8, device=gate_up.device)
        out = data, torch.empty(rows, dtype=torch.float32, device=gate_up.device)
    check_tensor("out[0]", out[0], [rows, width], torch.int8, like=gate_up)
    check_tensor("out[1]", out[1], [rows], torch.float32, like=gate_up)
    if rows:
        chosen = tables.find("swiglu_int8", width, architecture(gate_up.device))
        _swiglu_int8_kernel[(rows,)](
            gate_up, out[0], out[1], width, gate_up.stride(0), out[0].stride(0), **chosen.options
        )
    return out


def _check(gate_up: Tensor) -> tuple[int, int]:
    check_tensor("gate_up", gate_up, [None, None], FLOATS)
    rows, columns = gate_up.shape
    check(columns % 2 == 0, "gate_up", f"a gate and an up half need an even number of columns, not {columns}")
    return rows, columns // 2


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """Each row of both tables in each type; the sizes are of one 4,096 wide and one 14,336 wide."""
    aligned = ("gate_up", "out", "width", "gate_up_stride", "out_stride")
    for name, kernel in (("swiglu", _swiglu_kernel), ("swiglu_int8", _swiglu_int8_kernel)):
        for row in tables.rows(name, arch):
            width = row.up_to or 14336
            for dtype in ("fp16", "bf16", "fp32") if row.up_to is None else ("fp16",):
                narrow = name == "swiglu_int8"
                size = 4 if dtype == "fp32" else 2
                signature = {argument: "i32" for argument in kernel.arg_names}
                signature |= {"gate_up": f"*{dtype}", "out": "*i8" if narrow else f"*{dtype}", "BLOCK": "constexpr"}
                signature |= {"scales": "*fp32"} if narrow else {}
                traffic = 64 * width * (2 * size + (1 if narrow else size))
                yield Specimen(
                    "swiglu",
                    f"{dtype}{' to int8' if narrow else ''}, {width} wide",
                    kernel,
                    signature,
                    dict(row.sizes),
                    row.num_warps,
                    row.num_stages,
                    (*aligned, "scales") if narrow else aligned,
                    Work(f"64 rows of 2 x {width}", traffic, 64 * width * 8, "fp32"),
                )


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: 64 rows of each size class's width."""
    from kernels.gpu.tuning import Example

    for name, operation in (("swiglu", swiglu), ("swiglu_int8", swiglu_int8)):
        for row in SHIPPED.rows(name, arch):
            width = row.up_to or 14336

            def make(
                device: torch.device, width: int = width, operation: Callable[..., object] = operation
            ) -> Callable[[Tables], object]:
                gate_up = torch.randn(64, 2 * width, device=device).half()
                return lambda tables: operation(gate_up, tables=tables)

            yield Example(table=name, size=width, make=make)
