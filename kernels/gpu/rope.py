"""What lies between the product that makes queries, keys and values, and attention, in one launch.

Dim letters: T rows, H query heads, K key/value heads, d head width.

Queries and keys are normed each over its own d elements (where a model does that) and turned by their positions: the
half-rotation form, element i with element i + d/2 (https://arxiv.org/abs/2104.09864). Queries go to a tensor of their
own, keys and values to their slots in the memory of blocks, in its type. A program takes one row and BLOCK_H of its
heads of all three kinds, and holds the halves of each head beside one another.

All arithmetic is fp32 and rounded once, when it is stored; but a norm's quotient is rounded to the rows' type before
the weight, as `reference.rms_norm` does it. The codes of an int8 memory are those of `reference.quantise_kv`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.specimen import Specimen, Work
from kernels.gpu.tuning import Example, Launch

TINY = torch.finfo(torch.float32).tiny


@triton.jit
def _narrow(x, TYPE: tl.constexpr):
    """fp32 as TYPE. As fp16, what is beyond its largest number becomes that; what is not finite stays so."""
    if TYPE == tl.float16:
        x = tl.where((x > 65504.0) & (x < float("inf")), 65504.0, x)
        x = tl.where((x < -65504.0) & (x > -float("inf")), -65504.0, x)
    return x.to(TYPE)


@triton.jit
def _code(x, divisor):
    """The whole number nearest to x / divisor as int8, the even one of two; 0 for what is not finite."""
    steps = tl.div_rn(tl.where(tl.abs(x) < float("inf"), x, 0.0), divisor)
    return ((steps + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2^23: fp32 has no fractions there


@triton.jit
def _turn_and_store(
    qkv,  # [T, (H + 2K) * d]
    positions,  # [T]
    slots,  # [T]
    cos,  # [positions, d / 2] or None
    sin,  # [positions, d / 2] or None
    query_norm,  # [d] or None
    key_norm,  # [d] or None
    memory,  # [2K, blocks, block size, d]
    scales,  # [2K, blocks, block size] or None
    out,  # [T, H, d]
    eps,
    tiny,  # the smallest normal fp32 number
    qkv_row,
    cos_row,
    sin_row,
    memory_head,
    memory_block,
    memory_place,
    scales_head,
    scales_block,
    out_row,
    out_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid: rows, blocks of heads. Heads come as in a row of qkv: queries, keys, values. BLOCK_D covers d / 2."""
    HALF: tl.constexpr = WIDTH // 2
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.arange(0, BLOCK_D)
    is_query = head < HEADS
    turns = head < HEADS + KV_HEADS
    held = (head < HEADS + 2 * KV_HEADS)[:, None] & (column < HALF)[None, :]
    places = row.to(tl.int64) * qkv_row + head[:, None] * WIDTH + column[None, :]
    first = tl.load(qkv + places, mask=held, other=0.0).to(tl.float32)  # [BLOCK_H, BLOCK_D]
    second = tl.load(qkv + places + HALF, mask=held, other=0.0).to(tl.float32)

    if query_norm is not None:
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        factor = tl.rsqrt(square / WIDTH + eps)[:, None]
        inside = column < HALF
        q_first = tl.load(query_norm + column, mask=inside, other=0.0).to(tl.float32)
        q_second = tl.load(query_norm + HALF + column, mask=inside, other=0.0).to(tl.float32)
        k_first = tl.load(key_norm + column, mask=inside, other=0.0).to(tl.float32)
        k_second = tl.load(key_norm + HALF + column, mask=inside, other=0.0).to(tl.float32)
        normed = (first * factor).to(qkv.dtype.element_ty).to(tl.float32)
        normed = normed * tl.where(is_query[:, None], q_first[None, :], k_first[None, :])
        first = tl.where(turns[:, None], normed, first)
        normed = (second * factor).to(qkv.dtype.element_ty).to(tl.float32)
        normed = normed * tl.where(is_query[:, None], q_second[None, :], k_second[None, :])
        second = tl.where(turns[:, None], normed, second)
    if cos is not None:
        position = tl.load(positions + row).to(tl.int64)
        c = tl.load(cos + position * cos_row + column, mask=column < HALF, other=0.0)[None, :]
        s = tl.load(sin + position * sin_row + column, mask=column < HALF, other=0.0)[None, :]
        turned_first = first * c - second * s
        turned_second = second * c + first * s
        first = tl.where(turns[:, None], turned_first, first)
        second = tl.where(turns[:, None], turned_second, second)

    places = row.to(tl.int64) * out_row + head[:, None] * out_head + column[None, :]
    tl.store(out + places, first.to(out.dtype.element_ty), mask=held & is_query[:, None])
    tl.store(out + places + HALF, second.to(out.dtype.element_ty), mask=held & is_query[:, None])

    block = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    kv_head = (head - HEADS).to(tl.int64)
    kept = held & (kv_head >= 0)[:, None]
    places = kv_head[:, None] * memory_head + block * memory_block + offset * memory_place + column[None, :]
    if scales is not None:
        top = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 1)
        unsound = tl.max(((first != first) | (second != second)).to(tl.int32), 1)  # maxima pass over NaN
        top = tl.where(unsound > 0, float("inf"), top)  # and 0 times an infinite scale is NaN again
        scale = tl.div_rn(top, 127.0)
        divisor = tl.maximum(scale, tiny)[:, None]
        tl.store(memory + places, _code(first, divisor), mask=kept)
        tl.store(memory + places + HALF, _code(second, divisor), mask=kept)
        of_heads = (kv_head >= 0) & (head < HEADS + 2 * KV_HEADS)
        tl.store(scales + kv_head * scales_head + block * scales_block + offset, scale, mask=of_heads)
    else:
        tl.store(memory + places, _narrow(first, memory.dtype.element_ty), mask=kept)
        tl.store(memory + places + HALF, _narrow(second, memory.dtype.element_ty), mask=kept)


def turn_and_store(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    memory: Tensor,
    scales: Tensor | None,
    *,
    num_heads: int,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    out: Tensor | None = None,
    tables: Tables = SHIPPED,
) -> Tensor:
    """Queries normed and turned -> [T, H, d] of qkv's type; keys likewise, and values as they are, into the memory.

    qkv [T, (H + 2K) * d]; positions [T] int32 or int64; slots [T] int64: block * block size + offset, below 0 for a row
    that only pads: nothing of it is looked at or written. cos and sin [positions, d/2] fp32; None: nothing is turned.
    query_norm and key_norm [d], or None; eps goes with them. memory [2K, blocks, block size, d], keys are heads
    0 .. K-1 and values K .. 2K-1; int8 with scales [2K, blocks, block size] fp32. `out` may lie in qkv, as its first
    H * d columns. Raises `ValueError`.
    """
    check_tensor("qkv", qkv, (None, None), FLOATS)
    check_tensor("memory", memory, (None, None, None, None), (*FLOATS, torch.int8), like=qkv)
    width, kv_heads, rows = memory.shape[3], memory.shape[0] // 2, qkv.shape[0]
    check(memory.shape[0] % 2 == 0 and kv_heads > 0, "memory", f"2K heads, not {memory.shape[0]}")
    check(width % 2 == 0 and 0 < width <= 256, "memory", f"heads must be 2 to 256 wide and even, not {width}")
    check(num_heads > 0, "num_heads", f"it must be positive, not {num_heads}")
    check_tensor("qkv", qkv, (rows, (num_heads + 2 * kv_heads) * width), FLOATS)
    check_tensor("positions", positions, (rows,), (torch.int32, torch.int64), like=qkv)
    check_tensor("slots", slots, (rows,), torch.int64, like=qkv)
    check((scales is not None) == (memory.dtype == torch.int8), "scales", "int8 memory has them, and no other")
    if scales is not None:
        check_tensor("scales", scales, memory.shape[:3], torch.float32, like=qkv)
    check((cos is None) == (sin is None), "sin", "it goes with `cos`")
    if cos is not None and sin is not None:
        check_tensor("cos", cos, (None, width // 2), torch.float32, like=qkv)
        check_tensor("sin", sin, cos.shape, torch.float32, like=qkv)
    check((query_norm is None) == (key_norm is None), "key_norm", "it goes with `query_norm`")
    if query_norm is not None and key_norm is not None:
        check_tensor("query_norm", query_norm, (width,), FLOATS, like=qkv)
        check_tensor("key_norm", key_norm, (width,), FLOATS, like=qkv)
    if out is None:
        out = torch.empty(rows, num_heads, width, dtype=qkv.dtype, device=qkv.device)
    check_tensor("out", out, (rows, num_heads, width), qkv.dtype, like=qkv)
    if rows == 0:
        return out
    cut = tables.find("rope", rows, architecture(qkv.device))
    heads = num_heads + 2 * kv_heads
    _turn_and_store[(rows, triton.cdiv(heads, cut.sizes["BLOCK_H"]))](
        qkv,
        positions,
        slots,
        cos,
        sin,
        query_norm,
        key_norm,
        memory,
        scales,
        out,
        eps,
        TINY,
        qkv.stride(0),
        cos.stride(0) if cos is not None else 0,
        sin.stride(0) if sin is not None else 0,
        *memory.stride()[:3],
        *(scales.stride()[:2] if scales is not None else (0, 0)),
        *out.stride()[:2],
        HEADS=num_heads,
        KV_HEADS=kv_heads,
        WIDTH=width,
        BLOCK_SIZE=memory.shape[2],
        BLOCK_D=triton.next_power_of_2(width // 2),
        **cut.options,
    )
    return out


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """32 query heads over 4, 128 wide: with norms, without them, and where nothing turns."""
    for row in tables.rows("rope", arch):
        launch = 64 if row.up_to is not None else 8192
        yield _specimen("bf16, norms", "bf16", "bf16", row, True, True, launch)
        yield _specimen("bf16, int8 keys", "bf16", "i8", row, False, True, launch)
        yield _specimen("fp16", "fp16", "fp16", row, False, True, launch)
    row = tables.find("rope", 64, arch)
    yield _specimen("bf16, norms, int8 keys, not turned", "bf16", "i8", row, True, False, None)
    yield _specimen("fp32, norms", "fp32", "fp32", row, True, True, None)


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: as many rows as each size class has, 32 query heads over 4, 128 wide."""
    for row in SHIPPED.rows("rope", arch):
        yield Example("rope", row.up_to or 8192, partial(_example, row.up_to or 8192))


def _example(count: int, device: torch.device) -> Launch:
    qkv = torch.randn(count, 40 * 128, device=device).half()
    slots = torch.arange(count, device=device)
    cos, sin = torch.randn(2, count, 64, device=device)
    memory = torch.zeros(8, count // 16, 16, 128, dtype=torch.float16, device=device)
    return lambda tables: turn_and_store(qkv, slots, slots, cos, sin, memory, None, num_heads=32, tables=tables)


def _specimen(
    variant: str, kind: str, memory: str, row: Configuration, norms: bool, turns: bool, launch: int | None
) -> Specimen:
    heads, kv_heads, width = 32, 4, 128
    own: dict[str, Any] = {"HEADS": heads, "KV_HEADS": kv_heads, "WIDTH": width, "BLOCK_SIZE": 16, "BLOCK_D": 64}
    own |= row.sizes
    if not norms:
        own |= {"query_norm": None, "key_norm": None}
    if not turns:
        own |= {"cos": None, "sin": None}
    if memory != "i8":
        own["scales"] = None
    types = {"qkv": kind, "positions": "i32", "slots": "i64", "cos": "fp32", "sin": "fp32", "query_norm": kind}
    types |= {"key_norm": kind, "memory": memory, "scales": "fp32", "out": kind}
    types = {name: f"*{type_}" for name, type_ in types.items() if name not in own}
    strides = ["qkv_row", "cos_row", "sin_row", "memory_head", "memory_block", "memory_place", "scales_head"]
    strides += ["scales_block", "out_row", "out_head"]
    aligned = (*types, *strides)
    types |= {"eps": "fp32", "tiny": "fp32", **dict.fromkeys(strides, "i32")}
    work = None
    if launch is not None:
        size, stored = (4 if kind == "fp32" else 2), {"i8": 1 + 4 / width, "fp32": 4}.get(memory, 2)
        elements = size * (2 * heads + 2 * kv_heads) + stored * 2 * kv_heads
        shape = f"{launch:,} rows, {heads} heads over {kv_heads}, width {width}"
        work = Work(shape, launch * int(width * (elements + 4)), 6 * launch * width * (heads + kv_heads), "fp32")
    return Specimen(
        operation="rope",
        variant=f"{variant}, {row.sizes['BLOCK_H']} heads",
        kernel=_turn_and_store,
        signature={name: types.get(name, "constexpr") for name in _turn_and_store.arg_names},
        constants=own,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        aligned=aligned,
        work=work,
    )
