"""A product's sums over stretches of K, added up in their order: the same whether one program had them all or not.

Few rows of inputs leave a GPU idle unless several programs share the K of one block of outputs (split-K); each writes
the sums of its segment, and `merge` adds them, first to last. With many rows one program walks through all segments
and adds their sums likewise. So what a row gives does not depend on the rows beside it, and nothing is added in the
order in which programs happen to end.
"""

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Tables, architecture
from kernels.gpu.specimen import Specimen
from kernels.gpu.tuning import Example, Launch

OPERATION = "segments"


@triton.jit
def finish(total, factor, x_scale, bias, outputs, inputs):
    """Sums [N, M], int32 or fp32 -> fp32: times the factors of outputs [N] and of inputs [M], plus the bias [N]."""
    found = total.to(tl.float32)
    if factor is not None:
        found = found * tl.load(factor + outputs)[:, None]
    if x_scale is not None:
        found = found * tl.load(x_scale + inputs)[None, :]
    if bias is not None:
        found += tl.load(bias + outputs).to(tl.float32)[:, None]
    return found


@triton.jit(do_not_specialize=["segments"])
def merge_kernel(sums, factor, x_scale, bias, out, segments, outputs, sums_stride, out_stride, BLOCK: tl.constexpr):
    """Program (row, block of outputs). sums [segments, T, N], dense in T and N."""
    row = tl.program_id(0).to(tl.int64)
    sums_stride = tl.cast(sums_stride, tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = places < outputs
    within = tl.minimum(places, outputs - 1)  # reads stay inside
    total = tl.full((BLOCK,), 0, sums.dtype.element_ty)
    for index in range(segments):
        total += tl.load(sums + index * sums_stride + row * outputs + within)
    found = finish(total[:, None], factor, x_scale, bias, within, row + tl.arange(0, 1))  # [BLOCK, 1]
    tl.store(out + row * out_stride + places[:, None], found.to(out.dtype.element_ty), mask=there[:, None])


def merge(
    sums: Tensor, factor: Tensor | None, x_scale: Tensor | None, bias: Tensor | None, out: Tensor, tables: Tables
) -> None:
    """sums [segments, T, N] fp32 or int32, factor fp32 [N], x_scale fp32 [T], bias [N] -> out [T, N]."""
    segments, count, outputs = sums.shape
    row = tables.find(OPERATION, outputs, architecture(out.device))
    grid = (count, triton.cdiv(outputs, row.sizes["BLOCK"]))
    merge_kernel[grid](
        sums, factor, x_scale, bias, out, segments, outputs, sums.stride(0), out.stride(0), **row.options
    )


def room(segments: int, count: int, outputs: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-> [segments, count, outputs], for sums."""
    return torch.empty(segments, count, outputs, dtype=dtype, device=device)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    for row in tables.rows(OPERATION, arch):
        for sums, x_scale, out in (("*fp32", False, "*fp16"), ("*fp32", False, "*bf16"), ("*i32", True, "*fp16")):
            signature = {
                "sums": sums,
                "factor": "*fp32",
                "x_scale": "*fp32" if x_scale else "constexpr",
                "bias": out,
                "out": out,
                "segments": "i32",
                "outputs": "i32",
                "sums_stride": "i64",
                "out_stride": "i64",
                "BLOCK": "constexpr",
            }
            constants = {**row.sizes} if x_scale else {"x_scale": None, **row.sizes}
            aligned = tuple(name for name in signature if name != "segments" and name not in constants)
            variant = f"{sums[1:]} to {out[1:]}, {row.sizes['BLOCK']}"
            yield Specimen(
                OPERATION, variant, merge_kernel, signature, constants, row.num_warps, row.num_stages, aligned, None
            )


def examples(arch: int | None) -> Iterator[Example]:
    def make(outputs: int) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            sums = torch.randn(8, 16, outputs, device=device)
            factor, out = torch.rand(outputs, device=device), torch.empty(16, outputs, device=device)

            def launch(tables: Tables) -> Tensor:
                merge(sums, factor, None, None, out, tables)
                return out

            return launch

        return allocate

    for row in SHIPPED.rows(OPERATION, arch):
        outputs = row.up_to or 4_096
        yield Example(OPERATION, outputs, make(outputs))
