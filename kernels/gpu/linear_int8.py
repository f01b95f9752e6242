"""Inputs of int8 times weights of int8, both along K, with sums in int32: exact, whatever their order.

Dim letters: T rows of inputs (tokens), K inputs of a matrix, N its outputs, S segments of K. `quantise_rows` gives each
row of inputs a scale (per-token symmetric quantisation, https://arxiv.org/abs/2206.01861); a result is
sum * factor of its output * scale of its row + bias, in fp32, rounded once. For weights with whole-row scales.
Twins: `kernels.reference.quantise_rows` and `kernels.reference.linear_int8`.
"""

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import segments
from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.matrices import Weights, random_matrix, segment, takes, tiling_of
from kernels.gpu.segments import finish, merge
from kernels.gpu.specimen import Specimen, Work
from kernels.gpu.tuning import Example, Launch
from kernels.gpu.weights import place
from kernels.packed import Format

OPERATION = "linear_int8"
QUANTISATION = "quantise_rows"


@triton.jit
def round_half_even(x):
    """fp32 below 2^22 in magnitude -> the nearest whole number: beyond 2^23 there are no others."""
    return (x + 12582912.0) - 12582912.0


@triton.jit(do_not_specialize=["columns"])
def quantise_rows_kernel(x, out, scale, columns, x_stride, out_stride, BLOCK: tl.constexpr):
    """Program (row). Twice over the row: for its largest magnitude, then for its numbers."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        there = start + places < columns
        largest = tl.maximum(
            largest, tl.abs(tl.load(x + row * x_stride + start + places, mask=there, other=0.0).to(tl.float32))
        )
    of_row = tl.div_rn(tl.max(largest, axis=0), 127.0)
    tl.store(scale + row, of_row)
    divisor = tl.maximum(of_row, 1.1754943508222875e-38)  # the least normal fp32: smaller rows become zero
    for start in range(0, columns, BLOCK):
        there = start + places < columns
        value = tl.load(x + row * x_stride + start + places, mask=there, other=0.0).to(tl.float32)
        steps = round_half_even(tl.div_rn(value, divisor))
        steps = tl.minimum(tl.maximum(steps, -127.0), 127.0)
        tl.store(out + row * out_stride + start + places, steps.to(tl.int8), mask=there)


@triton.jit(do_not_specialize=["count"])
def linear_int8_kernel(
    x,
    x_scale,
    data,
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
    out_stride,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program (block, segment) where SPLIT, and `out` then takes sums, int32 [S, T, N]; (block,) else."""
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
    k = tl.arange(0, TILE)
    lefts = data + rows[:, None] * data_stride + k[None, :]  # [BLOCK_N, TILE]
    rights = x + inputs[None, :] * x_stride + k[:, None]  # [TILE, BLOCK_M]
    total = tl.full((BLOCK_N, BLOCK_M), 0, tl.int32)
    for tile in range(first, last):
        start = tile * TILE
        left = tl.load(lefts + start)
        right = tl.load(rights + start, mask=there[None, :] & (start + k < columns)[:, None], other=0)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
    at = out + inputs[None, :] * out_stride + places[:, None]
    mask = there[None, :] & (places < outputs)[:, None]
    if SPLIT:
        tl.store(at, total, mask=mask)
    else:
        tl.store(at, finish(total, factor, x_scale, bias, rows, inputs).to(out.dtype.element_ty), mask=mask)


def quantise_rows(
    x: Tensor,  # [T, K] fp16, bf16 or fp32
    out: tuple[Tensor, Tensor] | None = None,  # int8 [T, K], fp32 [T]
    *,
    tables: Tables = SHIPPED,
) -> tuple[Tensor, Tensor]:
    """-> int8 [T, K] and fp32 scale [T], such that x is about int8 * scale: see the twin."""
    check_tensor("x", x, (None, None), FLOATS)
    count, columns = x.shape
    if out is None:
        out = torch.empty(count, columns, dtype=torch.int8, device=x.device), x.new_empty(count, dtype=torch.float32)
    check_tensor("out[0]", out[0], (count, columns), torch.int8, like=x)
    check_tensor("out[1]", out[1], (count,), torch.float32, like=x)
    if count:
        options = tables.find(QUANTISATION, columns, architecture(x.device)).options
        quantise_rows_kernel[(count,)](x, *out, columns, x.stride(0), out[0].stride(0), **options)
    return out


def multiply_rows(
    x: Tensor,  # int8 [T, K]
    x_scale: Tensor,  # fp32 [T]
    weights: Weights,  # one matrix [N, K] of int8 with whole-row scales
    out: Tensor,  # [T, N] of any floating type
    bias: Tensor | None = None,  # [N]
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """-> out = (x @ weights.T) * factor * x_scale + bias."""
    (outputs, columns), count = weights.shape, x.shape[0]
    check(takes(weights, torch.int8) and weights.count == 1, "weights", "one matrix of int8 with whole-row scales")
    check_tensor("x", x, (None, columns), torch.int8)
    check_tensor("x_scale", x_scale, (count,), torch.float32, like=x)
    check_tensor("out", out, (count, outputs), FLOATS, like=x)
    if bias is not None:
        check_tensor("bias", bias, (outputs,), FLOATS, like=x)
    check(weights.data.device == x.device, "weights", f"they must be on {x.device}, not on {weights.data.device}")
    if not count:
        return out
    row = tables.find(OPERATION, count, architecture(x.device))
    steps = triton.cdiv(weights.tiles, weights.segment)
    split = bool(row.sizes["SPLIT"]) and steps > 1
    blocks = triton.cdiv(count, row.sizes["BLOCK_M"]) * triton.cdiv(outputs, row.sizes["BLOCK_N"])
    sums = segments.room(steps, count, outputs, torch.int32, x.device) if split else None
    target = out if sums is None else sums
    linear_int8_kernel[(blocks, steps if split else 1)](
        x,
        x_scale,
        weights.data,
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
        target.stride(-2),
        TILE=weights.tiling.tile,
        **{**row.options, "SPLIT": split},
    )
    if sums is not None:
        merge(sums, weights.factor, x_scale, bias, out, tables)
    return out


SHAPE = (14_336, 4_096)  # N, K of the matrices on paper: those of an 8 B model's feed-forward layers


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    for row in tables.rows(OPERATION, arch):
        for kind in ("fp16", "bf16"):
            yield _specimen(row, kind)
    for row in tables.rows(QUANTISATION, arch):
        for kind, size in (("fp16", 2), ("bf16", 2), ("fp32", 4)):
            columns = row.up_to or 16_384
            yield Specimen(
                OPERATION,
                f"rows of {kind} quantised",
                quantise_rows_kernel,
                {
                    "x": f"*{kind}",
                    "out": "*i8",
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
                Work(f"2,048 rows of {columns:,}", 2048 * (columns * (size + 1) + 4), 2048 * columns * 4, "fp32"),
            )


def examples(arch: int | None) -> Iterator[Example]:
    def make(count: int) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            x = torch.randn(count, SHAPE[1], dtype=torch.float16, device=device)
            matrix, out = random_matrix(Format("int8", 8, 0), SHAPE, device, x.dtype), x.new_empty(count, SHAPE[0])
            weights, quantised = matrix.parts[0], quantise_rows(x)
            assert isinstance(weights, Weights)
            return lambda tables: multiply_rows(*quantised, weights, out, tables=tables)

        return allocate

    def quantise(columns: int) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            x = torch.randn(2048, columns, dtype=torch.float16, device=device)
            return lambda tables: quantise_rows(x, tables=tables)

        return allocate

    for row in SHIPPED.rows(OPERATION, arch):
        count = row.up_to or 2048
        yield Example(OPERATION, count, make(count))
    for row in SHIPPED.rows(QUANTISATION, arch):
        columns = row.up_to or 16_384
        yield Example(QUANTISATION, columns, quantise(columns))


def _specimen(row: Configuration, kind: str) -> Specimen:
    outputs, columns = SHAPE
    tile = tiling_of(Format("int8", 8, 0), columns).tile
    count, split = row.up_to or 2048, bool(row.sizes["SPLIT"])
    signature = {
        "x": "*i8",
        "x_scale": "*fp32",
        "data": "*i8",
        "factor": "*fp32",
        "bias": "constexpr",
        "out": "*i32" if split else f"*{kind}",
        **dict.fromkeys(("count", "outputs", "columns", "tiles", "segment"), "i32"),
        **dict.fromkeys(("x_stride", "data_stride", "out_stride"), "i32"),
        **dict.fromkeys(("SPLIT", "TILE", "BLOCK_M", "BLOCK_N"), "constexpr"),
    }
    constants = {"bias": None, "TILE": tile, **row.sizes, "SPLIT": split}
    steps = triton.cdiv(columns // tile, segment(outputs, columns // tile, tile))
    return Specimen(
        OPERATION,
        f"to {kind}, up to {row.up_to or 'any number of'} rows",
        linear_int8_kernel,
        signature,
        constants,
        row.num_warps,
        row.num_stages,
        tuple(n for n in signature if n not in constants and n not in ("count", "tiles", "segment")),
        Work(
            f"{count:,} rows, {outputs:,} x {columns:,}, {steps} segments",
            outputs * columns + 4 * outputs + count * (columns + 4 + 2 * outputs),
            2 * count * outputs * columns,
            "int8",
        ),
        ("cp.async", "mma"),
    )
