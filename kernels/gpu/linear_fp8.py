"""Inputs of FP8 (E4M3) times weights of FP8 in the matrix units that take them: sm_89 and later.

Dim letters: T rows of inputs (tokens), K inputs of a matrix, N its outputs, S segments of K. `quantise_rows` gives each
row of inputs a scale. Some units keep fewer than fp32's digits while they add FP8 products, so the sum of each tile,
at most 128 of K, is taken by itself and added in fp32 (https://arxiv.org/abs/2412.19437, section 3.3.2); with groups
of whole tiles it is scaled then. A result is sum * factor of its output * scale of its row + bias, rounded once.
Twins: `kernels.reference.quantise_rows_fp8`, and `kernels.reference.linear` of the dequantised inputs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import segments
from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.linear_int8 import round_half_even
from kernels.gpu.matrices import Weights, random_matrix, segment, takes, tiling_of
from kernels.gpu.segments import finish, merge
from kernels.gpu.specimen import NATIVE_FP8, Specimen, Work
from kernels.gpu.tuning import Example, Launch
from kernels.gpu.weights import FP8_SHIFT, place
from kernels.packed import Format

OPERATION = "linear_fp8"
QUANTISATION = "quantise_rows_fp8"


@triton.jit
def fp8_bits(x):
    """fp32 within +-448 -> the bits of the nearest E4M3, uint8; of two equally near ones the even."""
    bits = x.to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # Normal numbers, from 2^-6 on: 20 digits fewer, half of the last that stays being added; 120 less in the exponent.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    small = round_half_even(tl.abs(x) * 512.0).to(tl.uint32)  # the others are multiples of 2^-9
    return (tl.where(size < 0x3C800000, small, normal) | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit(do_not_specialize=["columns"])
def quantise_rows_fp8_kernel(x, out, scale, columns, x_stride, out_stride, BLOCK: tl.constexpr):
    """Program (row). Twice over the row: for its largest magnitude, then for its numbers."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        there = start + places < columns
        largest = tl.maximum(
            largest, tl.abs(tl.load(x + row * x_stride + start + places, mask=there, other=0.0).to(tl.float32))
        )
    of_row = tl.div_rn(tl.max(largest, axis=0), 448.0)
    tl.store(scale + row, of_row)
    divisor = tl.maximum(of_row, 1.1754943508222875e-38)  # the least normal fp32: smaller rows become zero
    for start in range(0, columns, BLOCK):
        there = start + places < columns
        value = tl.load(x + row * x_stride + start + places, mask=there, other=0.0).to(tl.float32)
        value = tl.minimum(tl.maximum(tl.div_rn(value, divisor), -448.0), 448.0)
        tl.store(out + row * out_stride + start + places, fp8_bits(value), mask=there)


@triton.jit(do_not_specialize=["count"])
def linear_fp8_kernel(
    x,
    x_scale,
    data,
    scale,
    factor,
    bias,
    out,
    count,
    outputs,
    columns,
    tiles,
    segment,
    x_stride,
    data_stride,
    scale_stride,
    out_stride,
    SPLIT: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program (block, segment) where SPLIT, and `out` then takes sums, fp32 [S, T, N]; (block,) else.

    The scales of grouped weights were multiplied by 256 for the bits in fp16, and so were factors of whole rows.
    """
    block_m, block_n = place(count, outputs, BLOCK_M, BLOCK_N)
    inputs = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    there = inputs < count
    inputs = tl.minimum(inputs, count - 1).to(tl.int64)
    places = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(places, outputs - 1).to(tl.int64)
    first = 0
    last = tiles
    if SPLIT:
        first = tl.program_id(1) * segment
        last = tl.minimum(first + segment, tiles)
        out += tl.program_id(1).to(tl.int64) * count * outputs
    scale_stride = tl.cast(scale_stride, tl.int64)
    k = tl.arange(0, TILE)
    lefts = data + rows[:, None] * data_stride + k[None, :]  # [BLOCK_N, TILE]
    rights = x + inputs[None, :] * x_stride + k[:, None]  # [TILE, BLOCK_M]
    total = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    for begin in range(first, last, segment):
        total_here = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
        for tile in range(begin, tl.minimum(begin + segment, tiles)):
            start = tile * TILE
            left = tl.load(lefts + start).to(tl.float8e4nv, bitcast=True)
            right = tl.load(rights + start, mask=there[None, :] & (start + k < columns)[:, None], other=0)
            of_tile = tl.dot(left, right.to(tl.float8e4nv, bitcast=True)) * (1.0 / FP8_SHIFT)
            if SCALES == "sum":
                group = (start // GROUP) * scale_stride
                of_tile = of_tile * tl.load(scale + group + rows).to(tl.float32)[:, None]
            total_here += of_tile
        total += total_here
    if not SPLIT:
        total = finish(total, factor, x_scale, bias, rows, inputs)
    at = out + inputs[None, :] * out_stride + places[:, None]
    tl.store(at, total.to(out.dtype.element_ty), mask=there[None, :] & (places < outputs)[:, None])


def quantise_rows(
    x: Tensor,  # [T, K] fp16, bf16 or fp32
    out: tuple[Tensor, Tensor] | None = None,  # float8_e4m3fn [T, K], fp32 [T]
    *,
    tables: Tables = SHIPPED,
) -> tuple[Tensor, Tensor]:
    """-> float8_e4m3fn [T, K] and fp32 scale [T], such that x is about their product: see the twin."""
    check_tensor("x", x, (None, None), FLOATS)
    count, columns = x.shape
    if out is None:
        data = torch.empty(count, columns, dtype=torch.float8_e4m3fn, device=x.device)
        out = data, x.new_empty(count, dtype=torch.float32)
    check_tensor("out[0]", out[0], (count, columns), torch.float8_e4m3fn, like=x)
    check_tensor("out[1]", out[1], (count,), torch.float32, like=x)
    if count:
        options = tables.find(QUANTISATION, columns, architecture(x.device)).options
        quantise_rows_fp8_kernel[(count,)](
            x, out[0].view(torch.uint8), out[1], columns, x.stride(0), out[0].stride(0), **options
        )
    return out


def multiply_rows(
    x: Tensor,  # float8_e4m3fn [T, K]
    x_scale: Tensor,  # fp32 [T]
    weights: Weights,  # one matrix [N, K] of fp8 with whole-row scales, or groups of whole tiles
    out: Tensor,  # [T, N] of any floating type
    bias: Tensor | None = None,  # [N]
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """-> out = (x @ weights.T) * factor * x_scale + bias. Raises `ValueError` on GPUs without such instructions."""
    (outputs, columns), count = weights.shape, x.shape[0]
    fits = takes(weights, torch.float8_e4m3fn) and weights.count == 1
    check(fits, "weights", "one matrix of fp8 with whole-row scales or groups of a multiple of 128")
    check_tensor("x", x, (None, columns), torch.float8_e4m3fn)
    check_tensor("x_scale", x_scale, (count,), torch.float32, like=x)
    check_tensor("out", out, (count, outputs), FLOATS, like=x)
    if bias is not None:
        check_tensor("bias", bias, (outputs,), FLOATS, like=x)
    check(weights.data.device == x.device, "weights", f"they must be on {x.device}, not on {weights.data.device}")
    arch = architecture(x.device)
    check(arch is None or arch >= NATIVE_FP8, "x", f"sm_{arch} has no FP8 products, sm_{NATIVE_FP8} is the first")
    if not count:
        return out
    row = tables.find(OPERATION, count, arch)
    steps = triton.cdiv(weights.tiles, weights.segment)
    split = bool(row.sizes["SPLIT"]) and steps > 1
    blocks = triton.cdiv(count, row.sizes["BLOCK_M"]) * triton.cdiv(outputs, row.sizes["BLOCK_N"])
    sums = segments.room(steps, count, outputs, torch.float32, x.device) if split else None
    target = out if sums is None else sums
    linear_fp8_kernel[(blocks, steps if split else 1)](
        x.view(torch.uint8),
        x_scale,
        weights.data,
        weights.scale,
        weights.factor,
        bias,
        target,
        count,
        outputs,
        columns,
        weights.tiles,
        weights.segment,
        x.stride(0),
        weights.data.stride(1),
        0 if weights.scale is None else weights.scale.stride(1),
        target.stride(-2),
        SCALES=weights.tiling.scales,
        GROUP=weights.tiling.group,
        TILE=weights.tiling.tile,
        **{**row.options, "SPLIT": split},
    )
    if sums is not None:
        merge(sums, weights.factor, x_scale, bias, out, tables)
    return out


SHAPE = (14_336, 4_096)  # N, K of the matrices on paper: those of an 8 B model's feed-forward layers


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    if arch >= NATIVE_FP8:
        for row in tables.rows(OPERATION, arch):
            for format in (Format("fp8", 8, 0), Format("fp8", 8, 128)):
                yield _specimen(row, format, "fp16")
            yield _specimen(row, Format("fp8", 8, 0), "bf16")
    for row in tables.rows(QUANTISATION, arch):
        for kind, size in (("fp16", 2), ("bf16", 2), ("fp32", 4)):
            columns = row.up_to or 16_384
            yield Specimen(
                OPERATION,
                f"rows of {kind} quantised",
                quantise_rows_fp8_kernel,
                {
                    "x": f"*{kind}",
                    "out": "*u8",
                    "scale": "*fp32",
                    "columns": "i32",
                    "x_stride": "i32",
                    "out_stride": "i32",
                    "BLOCK": "constexpr",
                },
                dict(row.sizes),
                row.num_warps,
                row.num_stages,
                ("x", "out", "scale", "columns", "x_stride", "out_stride"),
                Work(f"2,048 rows of {columns:,}", 2048 * (columns * (size + 1) + 4), 2048 * columns * 10, "fp32"),
            )


def examples(arch: int | None) -> Iterator[Example]:
    def make(count: int) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            x = torch.randn(count, SHAPE[1], dtype=torch.float16, device=device)
            matrix, out = random_matrix(Format("fp8", 8, 0), SHAPE, device, x.dtype), x.new_empty(count, SHAPE[0])
            weights, quantised = matrix.parts[0], quantise_rows(x)
            assert isinstance(weights, Weights)
            return lambda tables: multiply_rows(*quantised, weights, out, tables=tables)

        return allocate

    def quantise(columns: int) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            x = torch.randn(2048, columns, dtype=torch.float16, device=device)
            return lambda tables: quantise_rows(x, tables=tables)

        return allocate

    for row in SHIPPED.rows(OPERATION, arch) if arch is None or arch >= NATIVE_FP8 else ():
        count = row.up_to or 2048
        yield Example(OPERATION, count, make(count))
    for row in SHIPPED.rows(QUANTISATION, arch):
        columns = row.up_to or 16_384
        yield Example(QUANTISATION, columns, quantise(columns))


def _specimen(row: Configuration, format: Format, kind: str) -> Specimen:
    outputs, columns = SHAPE
    cut = tiling_of(format, columns)
    count, split = row.up_to or 2048, bool(row.sizes["SPLIT"])
    signature = {
        "x": "*u8",
        "x_scale": "*fp32",
        "data": "*u8",
        "scale": "*fp16" if cut.scales == "sum" else "constexpr",
        "factor": "*fp32",
        "bias": "constexpr",
        "out": "*fp32" if split else f"*{kind}",
        **dict.fromkeys(("count", "outputs", "columns", "tiles", "segment"), "i32"),
        **dict.fromkeys(("x_stride", "data_stride", "scale_stride", "out_stride"), "i32"),
    }
    constants: dict[str, Any] = {name: None for name, kind in signature.items() if kind == "constexpr"}
    constants |= {"SCALES": cut.scales, "GROUP": cut.group, "TILE": cut.tile, **row.sizes, "SPLIT": split}
    signature |= dict.fromkeys(("SPLIT", "SCALES", "GROUP", "TILE", "BLOCK_M", "BLOCK_N"), "constexpr")
    steps = triton.cdiv(columns // cut.tile, segment(outputs, columns // cut.tile, cut.tile))
    weights = int(outputs * columns * format.bits_per_weight(columns) / 8) + 4 * outputs
    return Specimen(
        OPERATION,
        f"{format} to {kind}, up to {row.up_to or 'any number of'} rows",
        linear_fp8_kernel,
        signature,
        constants,
        row.num_warps,
        row.num_stages,
        tuple(n for n in signature if n not in constants and n not in ("count", "tiles", "segment")),
        Work(
            f"{count:,} rows, {outputs:,} x {columns:,}, {steps} segments",
            weights + count * (columns + 4 + 2 * outputs),
            2 * count * outputs * columns,
            "fp8",
        ),
        ("cp.async", "mma"),
    )
