"""Inputs times a quantised matrix: x [T, K] @ W[N, K].T + bias [N] -> [T, N], weights decoded in the product.

Dim letters: T rows of inputs (tokens), K inputs of a matrix, N its outputs, S segments of K. Inputs are fp16, bf16 or
fp32; sums are fp32 and rounded once. Formats, layouts and where scales come in: `kernels.gpu.weights`; what few rows
do differently, and why a row's result depends on nothing beside it: `kernels.gpu.segments`. Matrices of plain numbers
go to the library (cuBLAS), and so does that promise.

Matrices that were prepared for quantised inputs go on to `linear_int8` and `linear_fp8`. The twin is
`kernels.reference.linear`.
"""

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import linear_fp8, linear_int8, segments
from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.matrices import GPUMatrix, Tiling, Weights, parts_of, random_matrix, segment, takes, tiling_of
from kernels.gpu.segments import finish, merge
from kernels.gpu.specimen import NATIVE_FP8, Specimen, Work
from kernels.gpu.tuning import Example, Launch
from kernels.gpu.weights import multiply, place
from kernels.packed import Format, Matrix, num_columns, num_rows

OPERATION = "linear"


@triton.jit(do_not_specialize=["count"])
def linear_kernel(
    x,
    data,
    scale,
    minimum,
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
    NAME: tl.constexpr,
    ZEROS: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program (block, segment) where SPLIT, and `out` then takes sums, fp32 [S, T, N]; (block,) else.

    tiles: in a row of weights; segment: tiles in each but the last.
    """
    block_m, block_n = place(count, outputs, BLOCK_M, BLOCK_N)
    inputs = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    there = inputs < count
    inputs = tl.minimum(inputs, count - 1).to(tl.int64)
    places = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(places, outputs - 1).to(tl.int64)
    if SPLIT:
        start = tl.program_id(1) * segment
        total = multiply(
            x,
            inputs * x_stride,
            there,
            columns,
            data,
            scale,
            minimum,
            rows,
            data_stride,
            scale_stride,
            start,
            tl.minimum(start + segment, tiles),
            NAME,
            ZEROS,
            SCALES,
            GROUP,
            TILE,
            PIECE,
            BLOCK_M,
            BLOCK_N,
        )
        out += tl.program_id(1).to(tl.int64) * count * outputs
    else:
        total = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
        for start in range(0, tiles, segment):
            total += multiply(
                x,
                inputs * x_stride,
                there,
                columns,
                data,
                scale,
                minimum,
                rows,
                data_stride,
                scale_stride,
                start,
                tl.minimum(start + segment, tiles),
                NAME,
                ZEROS,
                SCALES,
                GROUP,
                TILE,
                PIECE,
                BLOCK_M,
                BLOCK_N,
            )
        total = finish(total, factor, None, bias, rows, inputs)
    at = out + inputs[None, :] * out_stride + places[:, None]
    tl.store(at, total.to(out.dtype.element_ty), mask=there[None, :] & (places < outputs)[:, None])


def linear(
    x: Tensor,  # [T, K] fp16, bf16 or fp32
    matrix: Matrix,  # [N, K], as `matrices.prepare` gives it
    bias: Tensor | None = None,  # [N]
    out: Tensor | None = None,  # [T, N] of any floating type
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """-> x @ matrix.T + bias [T, N], of x's type or in `out`. Raises `ValueError` for what does not fit."""
    parts = parts_of(matrix)
    outputs, columns = num_rows(matrix), num_columns(matrix)
    check_tensor("x", x, (None, columns), FLOATS)
    if bias is not None:
        check_tensor("bias", bias, (outputs,), FLOATS, like=x)
    if out is None:
        out = torch.empty(x.shape[0], outputs, dtype=x.dtype, device=x.device)
    check_tensor("out", out, (x.shape[0], outputs), FLOATS, like=x)
    activations = matrix.activations if isinstance(matrix, GPUMatrix) else None
    if activations == torch.float8_e4m3fn and (architecture(x.device) or NATIVE_FP8) < NATIVE_FP8:
        activations = None  # no such instructions: decode the weights instead
    quantised: tuple[Tensor, Tensor] | None = None
    first = 0
    for part in parts:
        last = first + int(part.shape[0])
        piece, of_bias = out[:, first:last], None if bias is None else bias[first:last]
        first = last
        if isinstance(part, Tensor):
            check(part.dtype == x.dtype, "x", f"the matrix was prepared for {part.dtype}, not {x.dtype}")
            check(part.device == x.device, "matrix", f"it must be on {x.device}, not on {part.device}")
            piece.copy_(torch.nn.functional.linear(x, part, None if of_bias is None else of_bias.to(x.dtype)))
        elif takes(part, activations):
            operation = linear_int8 if activations == torch.int8 else linear_fp8
            if quantised is None:
                quantised = operation.quantise_rows(x, tables=tables)
            operation.multiply_rows(*quantised, part, piece, of_bias, tables=tables)
        else:
            _multiply(x, part, piece, of_bias, tables)
    return out


def table_of(cut: Tiling, dtype: torch.dtype) -> str:
    """Its launch configurations: a sum for each tile takes registers, and so do products of fp32, which no matrix
    instruction makes; three bits, eight products a tile, take sm_100's tensor memory."""
    if dtype == torch.float32:
        return "linear_fp32"
    return "linear_int3" if cut.name == "int3" else "linear_sum" if cut.scales == "sum" else "linear"


def _multiply(x: Tensor, weights: Weights, out: Tensor, bias: Tensor | None, tables: Tables) -> None:
    check(weights.data.device == x.device, "matrix", f"it must be on {x.device}, not on {weights.data.device}")
    check(weights.count == 1, "matrix", f"it must be one, not a stack of {weights.count}")
    check(weights.format is not None, "matrix", "one of plain numbers is given as a tensor")
    (count, columns), outputs = x.shape, weights.shape[0]
    if not count:
        return
    row = tables.find(table_of(weights.tiling, x.dtype), count, architecture(x.device))
    steps = triton.cdiv(weights.tiles, weights.segment)
    options, split = row.options, bool(row.sizes["SPLIT"]) and steps > 1
    blocks = triton.cdiv(count, row.sizes["BLOCK_M"]) * triton.cdiv(outputs, row.sizes["BLOCK_N"])
    sums = segments.room(steps, count, outputs, torch.float32, x.device) if split else None
    target = out if sums is None else sums
    linear_kernel[(blocks, steps if split else 1)](
        x,
        weights.data,
        weights.scale,
        weights.minimum,
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
        **weights.constants,
        **{**options, "SPLIT": split},
    )
    if sums is not None:
        merge(sums, weights.factor, None, bias, out, tables)


SHAPE = (14_336, 4_096)  # N, K of the matrices on paper: those of an 8 B model's feed-forward layers
FORMATS = (
    (Format("int8", 8, 0), "fp16"),
    (Format("int8", 8, 32), "fp16"),
    (Format("int4", 4, 128), "fp16"),
    (Format("int4", 4, 32), "bf16"),
    (Format("int4", 4, 32, zeros=True), "fp16"),
    (Format("int3", 3, 32, zeros=True), "fp16"),
    (Format("int3", 3, 128), "bf16"),
    (Format("fp8", 8, 0), "fp16"),
)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    for format, kind in FORMATS:
        rows = tables.rows(table_of(tiling_of(format, SHAPE[1]), torch.float16), arch)
        for row in rows:
            yield _specimen(format, row, kind)
    for row in tables.rows("linear_fp32", arch):
        yield _specimen(Format("int4", 4, 128), row, "fp32")


def examples(arch: int | None) -> Iterator[Example]:
    def make(format: Format, dtype: torch.dtype, count: int) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            x = torch.randn(count, SHAPE[1], dtype=dtype, device=device)
            matrix, out = random_matrix(format, SHAPE, device, x.dtype), x.new_empty(count, SHAPE[0])
            return lambda tables: linear(x, matrix, None, out, tables=tables)

        return allocate

    formats = (Format("int4", 4, 32), Format("int4", 4, 128), Format("int3", 3, 32, zeros=True))
    for format, dtype in (*((format, torch.float16) for format in formats), (formats[0], torch.float32)):
        table = table_of(tiling_of(format, SHAPE[1]), dtype)
        for row in SHIPPED.rows(table, arch):
            count = row.up_to or 2048
            yield Example(table, count, make(format, dtype, count))


def _specimen(format: Format, row: Configuration, kind: str) -> Specimen:
    outputs, columns = SHAPE
    cut = tiling_of(format, columns)
    count = row.up_to or 2048
    split = bool(row.sizes["SPLIT"])
    codes = "*i8" if format.name == "int8" and not format.zeros else "*u8"
    signature = {
        "x": f"*{kind}",
        "data": codes,
        "scale": "*fp16" if cut.scales != "row" else "constexpr",
        "minimum": "*fp16" if format.zeros else "constexpr",
        "factor": "*fp32",
        "bias": "constexpr",
        "out": "*fp32" if split else f"*{kind}",
        **dict.fromkeys(("count", "outputs", "columns", "tiles", "segment"), "i32"),
        **dict.fromkeys(("x_stride", "data_stride", "scale_stride", "out_stride"), "i32"),
    }
    constants = {**{name: None for name, kind in signature.items() if kind == "constexpr"}, **cut.constants}
    constants |= {**row.sizes, "SPLIT": split}
    signature |= dict.fromkeys(("SPLIT", *cut.constants, "BLOCK_M", "BLOCK_N"), "constexpr")
    aligned = tuple(n for n in signature if n not in constants and n not in ("count", "tiles", "segment"))
    return Specimen(
        OPERATION,
        f"{format}, {kind}, up to {row.up_to or 'any number of'} rows",
        linear_kernel,
        signature,
        constants,
        row.num_warps,
        row.num_stages,
        aligned,
        _work(format, cut, count, 4 if kind == "fp32" else 2),
        ("cp.async",) if kind == "fp32" else ("cp.async", "mma"),
    )


def _work(format: Format, cut: Tiling, count: int, size: int) -> Work:
    outputs, columns = SHAPE
    steps = triton.cdiv(columns // cut.tile, segment(outputs, columns // cut.tile, cut.tile))
    weights = int(outputs * columns * format.bits_per_weight(columns) / 8) + 4 * outputs
    return Work(
        f"{count:,} rows, {outputs:,} x {columns:,} in {format}, {steps} segments",
        weights + count * (columns + outputs) * size,
        2 * count * outputs * columns,
        "fp16" if size == 2 else "fp32",
    )
