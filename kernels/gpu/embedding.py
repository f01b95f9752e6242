"""Rows of a matrix by number, as an embedding looks tokens up.

Dim letters: T tokens, V rows of the matrix, D width of a row. Quantised rows are read as they are stored and decoded
to fp32, then rounded once. The twin is `kernels.reference.embed`.
"""

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.matrices import parts_of, random_matrix, tiling_of
from kernels.gpu.specimen import Specimen, Work
from kernels.gpu.tuning import Example, Launch
from kernels.gpu.weights import numbers
from kernels.packed import Format, Matrix, num_columns, num_rows

OPERATION = "embedding"


@triton.jit(do_not_specialize=["first", "rows", "vocabulary"])
def embedding_kernel(
    tokens,
    data,
    scale,
    minimum,
    factor,
    out,
    first,
    rows,
    vocabulary,
    columns,
    tiles,
    data_stride,
    scale_stride,
    out_stride,
    NAME: tl.constexpr,
    ZEROS: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
    TILES: tl.constexpr,
):
    """Program (token, TILES tiles of its row). data holds rows first .. first + rows - 1 of `vocabulary`."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(tokens + token).to(tl.int64)
    row = tl.minimum(tl.maximum(row, 0), vocabulary - 1) - first
    if (row >= 0) & (row < rows):
        PARTS: tl.constexpr = 4 if NAME == "int3" else 2 if NAME == "int4" else 1
        TILE_STRIDE: tl.constexpr = 3 * PIECE if NAME == "int3" else TILE // PARTS
        tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
        k = tl.arange(0, PIECE)
        of_row = data + row * data_stride + (tile * TILE_STRIDE)[:, None] + k[None, :]  # [TILES, PIECE]
        there = (tile < tiles)[:, None]
        high = None
        if NAME == "int3":
            high = tl.load(of_row + 2 * PIECE, mask=there, other=0)
        for run in tl.static_range(TILE // PIECE // PARTS):
            if NAME == "float":  # rows that are not padded
                inside = tile[:, None] * TILE + run * PIECE + k[None, :] < columns
                low = tl.load(of_row + run * PIECE, mask=inside, other=0)
            else:
                low = tl.load(of_row + run * PIECE, mask=there, other=0)
            for part in tl.static_range(PARTS):
                start = tile * TILE + (run * PARTS + part) * PIECE  # [TILES]
                value = numbers(low, high, run * PARTS + part, NAME, ZEROS, tl.float32)
                if SCALES != "row":
                    group = (start // GROUP).to(tl.int64) * scale_stride
                    value = value * tl.load(scale + group + row, mask=tile < tiles, other=0).to(tl.float32)[:, None]
                    if ZEROS:
                        value += tl.load(minimum + group + row, mask=tile < tiles, other=0).to(tl.float32)[:, None]
                if factor is not None:
                    value = value * tl.load(factor + row)
                places = start[:, None] + k[None, :]
                tl.store(out + token * out_stride + places, value.to(out.dtype.element_ty), mask=places < columns)


def embed(
    matrix: Matrix,  # [V, D], as `matrices.prepare` gives it
    tokens: Tensor,  # int32 or int64 [T], on the device
    dtype: torch.dtype | None = None,  # None: out's
    out: Tensor | None = None,  # [T, D] of any floating type
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """The rows that the tokens name -> [T, D]. A token that names none gets the nearest row, the first or the last."""
    parts = parts_of(matrix)
    vocabulary, columns = num_rows(matrix), num_columns(matrix)
    check_tensor("tokens", tokens, (None,), (torch.int32, torch.int64))
    check(dtype is not None or out is not None, "dtype", "it is needed where there is no `out`")
    if out is None:
        out = torch.empty(len(tokens), columns, dtype=dtype, device=tokens.device)
    check_tensor("out", out, (len(tokens), columns), FLOATS if dtype is None else dtype, like=tokens)
    first = 0
    for part in parts:
        if isinstance(part, Tensor):
            check_tensor("matrix", part, (None, columns), FLOATS, like=tokens)
            cut, data, scale, minimum, factor = tiling_of(None, columns), part, None, None, None
        else:
            check(part.data.device == tokens.device, "matrix", f"it must be on {tokens.device}")
            cut, data, scale, minimum, factor = part.tiling, part.data[0], part.scale, part.minimum, part.factor
        rows, tiles = int(part.shape[0]), triton.cdiv(columns, cut.tile)
        if len(tokens):
            row = tables.find(OPERATION, columns, architecture(tokens.device))
            embedding_kernel[(len(tokens), triton.cdiv(tiles, row.sizes["TILES"]))](
                tokens,
                data,
                scale,
                minimum,
                factor,
                out,
                first,
                rows,
                vocabulary,
                columns,
                tiles,
                data.stride(0),
                0 if scale is None else scale.stride(1),
                out.stride(0),
                **cut.constants,
                **row.options,
            )
        first += rows
    return out


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    formats = (
        None,
        Format("int8", 8, 32),
        Format("int4", 4, 32),
        Format("int4", 4, 128),
        Format("int3", 3, 32, zeros=True),
        Format("fp8", 8, 0),
    )
    for row in tables.rows(OPERATION, arch):
        for format in formats:
            yield _specimen(format, row, "fp16")
        yield _specimen(formats[1], row, "bf16")
        yield _specimen(formats[2], row, "fp32")


def examples(arch: int | None) -> Iterator[Example]:
    def make(columns: int) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            matrix = random_matrix(Format("int8", 8, 32), (32_000, columns), device, torch.float16)
            tokens = torch.randint(0, 32_000, (2048,), dtype=torch.int32, device=device)
            return lambda tables: embed(matrix, tokens, torch.float16, tables=tables)

        return allocate

    for row in SHIPPED.rows(OPERATION, arch):
        columns = row.up_to or 4_096
        yield Example(OPERATION, columns, make(columns))


def _specimen(format: Format | None, row: Configuration, kind: str) -> Specimen:
    columns, count = 4_096, 2_048
    cut = tiling_of(format, columns)
    zeros, name = cut.zeros, cut.name
    signature = {
        "tokens": "*i32",
        "data": f"*{kind}" if format is None else "*i8" if name == "int8" and not zeros else "*u8",
        "scale": "*fp16" if cut.scales != "row" else "constexpr",
        "minimum": "*fp16" if zeros else "constexpr",
        "factor": "constexpr" if format is None else "*fp32",
        "out": f"*{kind}",
        **dict.fromkeys(("first", "rows", "vocabulary", "columns", "tiles"), "i32"),
        **dict.fromkeys(("data_stride", "scale_stride", "out_stride"), "i32"),
    }
    constants = {**{name: None for name, kind in signature.items() if kind == "constexpr"}, **cut.constants}
    signature |= dict.fromkeys((*cut.constants, "TILES"), "constexpr")
    size = 4 if kind == "fp32" else 2
    bits = 8 * size if format is None else format.bits_per_weight(columns)
    return Specimen(
        OPERATION,
        f"{format or 'plain'} to {kind}",
        embedding_kernel,
        signature,
        {**constants, **row.sizes},
        row.num_warps,
        row.num_stages,
        tuple(n for n in ("tokens", "data", "scale", "minimum", "factor", "out") if n not in constants)
        + ("columns", "data_stride", "scale_stride", "out_stride"),
        Work(
            f"{count:,} tokens, rows of {columns:,} in {format or 'plain numbers'}",
            int(count * columns * (bits / 8 + size)),
            2 * count * columns,
            "fp32",
        ),
    )
