"""Tiles of weights in every format, decoded on the way into a matrix product.

What `Weights` of `kernels.gpu.matrices` holds is read here, for products with any rows of inputs: `linear.py` gives
rows that follow each other, `experts.py` gathered ones. A tile is TILE weights of each of BLOCK_N rows, stored in
runs of PIECE bytes; a run holds 1 (int8, fp8, plain), 2 (int4) or 4 (int3) pieces of PIECE weights, one above the
other in the bits, so that shifts and masks give each piece and nothing changes places. PIECE is at least 16, the
least depth of a matrix instruction, and no piece crosses a group:

  int8  TILE / PIECE runs           int4  runs of a low and a high half
  int3  two runs of four two-bit pieces, then one of the third bits: bit e belongs to piece e
  fp8   as int8, the bits of E4M3   float  plain numbers of the inputs' type

Products are transposed, weights [BLOCK_N, PIECE] times inputs [PIECE, BLOCK_M]: outputs, of which there are always
many, fill the 64 or 128 rows of a matrix instruction and decoded weights may stay in registers, while one token more
costs one column. Both operands lie along K in memory, as 8-bit instructions want them.

Integers become floating point by bits: in fp16 0x6400 | q is 1024 + q, in bf16 0x4300 | q is 128 + q, exactly
(https://arxiv.org/abs/2211.10017). The bits of E4M3 put under fp16's exponent are the number divided by 256,
subnormal ones too; NaN does not occur. Where scales come in:

  "row"     no scales here: one for each row, applied to the finished sum
  "sum"     groups of whole tiles: the fp32 sum of a tile is scaled, the product itself is of whole numbers
  "weight"  groups smaller than a tile, and minima: the weights are, in the inputs' type; the row's factor, a power of
            two taken out of its scales, keeps them near 1 whatever the matrix holds
"""

import triton
import triton.language as tl

from kernels.gpu import matrices

# Of Triton a function reads constants only as `tl.constexpr`.
FP8_SHIFT = tl.constexpr(matrices.FP8_SHIFT)


@triton.jit
def place(count, outputs, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Program 0 of the grid -> the block of rows and the block of outputs that it computes.

    Eight blocks of outputs at a time, all blocks of rows with each: what they read twice is still in the L2 cache.
    """
    program = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(count, BLOCK_M), tl.cdiv(outputs, BLOCK_N)
    first_n = program // (8 * blocks_m) * 8
    wide = tl.minimum(blocks_n - first_n, 8)
    inside = program % (8 * blocks_m)
    return inside // wide, first_n + inside % wide


@triton.jit
def numbers(low, high, PART: tl.constexpr, NAME: tl.constexpr, ZEROS: tl.constexpr, KIND: tl.constexpr):
    """low, high [A, B] of `runs` -> piece PART of that run in floating point of type KIND [A, B], without scales.

    high: of int3 only; PART counts on over both of its runs.
    """
    if NAME == "float":
        found = low.to(KIND)
    elif NAME == "fp8":
        bits = low.to(tl.uint16)
        found = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        if KIND != tl.float16:
            found = found.to(tl.float32).to(KIND)
    elif NAME == "int8":
        if KIND != tl.float16:
            found = low.to(tl.float32).to(KIND)
        elif ZEROS:
            found = (low.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1024.0
        else:
            found = ((low.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400).to(
                tl.float16, bitcast=True
            ) - 1152.0
    else:
        if NAME == "int4":
            codes = (low >> (4 * PART)) & 15
        else:
            codes = ((low >> (2 * (PART % 4))) & 3) | (((high >> PART) & 1) << 2)
        ZERO: tl.constexpr = 0.0 if ZEROS else 8.0 if NAME == "int4" else 4.0
        if KIND == tl.float16:
            found = (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + ZERO)
        elif KIND == tl.bfloat16:
            found = (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True) - (128.0 + ZERO)
        else:
            found = codes.to(tl.float32) - ZERO
    return found


@triton.jit
def multiply(
    x,
    x_rows,
    x_mask,
    columns,
    data,
    scale,
    minimum,
    rows,
    data_stride,
    scale_stride,
    first,
    last,
    NAME: tl.constexpr,
    ZEROS: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The products of rows of weights and rows of inputs over tiles first .. last - 1 of K, without the rows' factors.

    x: fp16, bf16 or fp32; x_rows int64 [BLOCK_M]: where each row of inputs begins, in elements; x_mask [BLOCK_M]:
    rows that are there, the others read as 0, and so do columns from `columns` on. data, scale, minimum: of the
    matrix that is meant, an expert's for instance; rows int64 [BLOCK_N]: rows of it, within its bounds.
    -> fp32 [BLOCK_N, BLOCK_M]. Each element is summed up in the order of K, whatever is computed beside it.
    """
    KIND: tl.constexpr = x.dtype.element_ty
    PARTS: tl.constexpr = 4 if NAME == "int3" else 2 if NAME == "int4" else 1
    TILE_STRIDE: tl.constexpr = 3 * PIECE if NAME == "int3" else TILE // PARTS
    scale_stride = tl.cast(scale_stride, tl.int64)
    k = tl.arange(0, PIECE)
    inputs = x + x_rows[None, :] + k[:, None]  # [PIECE, BLOCK_M]
    weights = data + rows[:, None] * data_stride + k[None, :]  # [BLOCK_N, PIECE]
    total = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    for tile in range(first, last):
        high = None
        if NAME == "int3":
            high = tl.load(weights + tile * TILE_STRIDE + 2 * PIECE)
        if SCALES == "sum":
            part_sum = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
        for run in tl.static_range(TILE // PIECE // PARTS):
            low = tl.load(weights + tile * TILE_STRIDE + run * PIECE)
            for part in tl.static_range(PARTS):
                start = tile * TILE + (run * PARTS + part) * PIECE
                there = x_mask[None, :] & (start + k < columns)[:, None]
                right = tl.load(inputs + start, mask=there, other=0.0)  # [PIECE, BLOCK_M]
                left = numbers(low, high, run * PARTS + part, NAME, ZEROS, KIND)  # [BLOCK_N, PIECE]
                if SCALES == "weight":
                    group = (start // GROUP) * scale_stride
                    left = left * tl.load(scale + group + rows).to(KIND)[:, None]
                    if ZEROS:
                        left += tl.load(minimum + group + rows).to(KIND)[:, None]
                if SCALES == "sum":
                    part_sum = tl.dot(left, right, part_sum, input_precision="ieee")
                else:
                    total = tl.dot(left, right, total, input_precision="ieee")
        if SCALES == "sum":
            group = (tile * TILE // GROUP) * scale_stride
            total += part_sum * tl.load(scale + group + rows).to(tl.float32)[:, None]
    return total
