"""Causal attention over keys and values in blocks: prompts, parts of prompts, single tokens and guesses in one launch.

Dim letters: T rows, S sequences, H query heads, K key/value heads, G = H / K, d head width.

A program takes BLOCK_M pairs of a row and one of the G query heads that share a key/value head, so it reads each key
and value once for all of them. It finds its sequence by a binary search over `starts`: the grid follows from shapes
alone. One rule hides keys: a row sees those up to its own position, of these the last `window`. Softmax is computed as
keys come by (https://arxiv.org/abs/2205.14135), over powers of 2.

A row's bits must be the same whatever runs beside it, else guesses that a prompt's chunk is checked with would be
judged by other numbers than single tokens. Therefore:
- Tiles of BLOCK_N keys begin at multiples of BLOCK_N, segments of LENGTH keys at multiples of LENGTH; the tile's shape
  does not depend on the number of rows. (What it wastes on single tokens are products, not the memory traffic that
  they wait for.)
- Each segment is summed up from zero, then the segments are folded in ascending order. One program does that for all
  of its segments where there are programs enough. Where not, each has one segment ("split KV") and a second kernel
  folds them, by the same function. Neither adds atomically.
- Sums are relative to 2^m with a whole m, not less than the largest exponent so far. Rescaling is exact then: keys
  that a row does not see, and segments and tiles without any, change nothing; nor does fusing a multiplication with an
  addition.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_divides, check_tensor
from kernels.gpu.specimen import Specimen, Work
from kernels.gpu.tuning import Example, Launch

ENOUGH = 256  # programs: where there are fewer, segments are shared out
WORKSPACE = 1 << 28  # bytes of segments' results at most; a batch that needs more is not split
LOG2_E = 1.4426950408889634


@triton.jit
def _find(starts, num_sequences, place, BLOCK_Q: tl.constexpr, EACH: tl.constexpr):
    """The last s with starts[s] // BLOCK_Q + s * EACH <= place; num_sequences: beyond all of them.

    EACH 1 leaves room for one block of rows that is not full in each sequence. Of sequences without rows that begin
    at one place the last is found: the one that has them.
    """
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(starts + middle) // BLOCK_Q + middle * EACH <= place:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def _fold(top, total, mixed, own_top, own_total, own_mixed):
    """The sums so far and those of the next segment as one: [m] exponents, [m] of shares, [m, d] of values."""
    new = tl.maximum(top, own_top)
    base = tl.where(new == -float("inf"), 0.0, new)
    old_factor = tl.exp2(top - base)
    own_factor = tl.exp2(own_top - base)
    total = total * old_factor + own_total * own_factor
    return new, total, mixed * old_factor[:, None] + own_mixed * own_factor[:, None]


@triton.jit(do_not_specialize=["num_sequences"])
def _attend(  # noqa: C901 (its branches are constants, but for the early ends)
    query,  # [T, H, d]
    memory,  # [2K, blocks, block size, d]
    scales,  # [2K, blocks, block size] or None
    starts,  # [S + 1]
    lengths,  # [S]
    block_tables,  # [S, any]
    out,  # [T, H, d]
    parts,  # [segments, T, H, d] with SPLIT, else None
    tops,  # [segments, T, H] with SPLIT, else None
    totals,  # [segments, T, H] with SPLIT, else None
    scale,  # of the scores, times log2(e)
    num_sequences,
    num_rows,
    query_row,
    query_head,
    memory_head,
    memory_block,
    memory_place,
    scales_head,
    scales_block,
    table_row,
    out_row,
    out_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """Grid: blocks of rows, key/value heads, with SPLIT segments. BLOCK_M pairs: row i // GROUP, head i % GROUP."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    WIDE: tl.constexpr = query.dtype.element_ty == tl.float32 or memory.dtype.element_ty == tl.float32
    DOT: tl.constexpr = tl.float32 if WIDE else query.dtype.element_ty
    NOTHING: tl.constexpr = -float("inf")
    place = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = _find(starts, num_sequences, place, BLOCK_Q, 1)
    if sequence >= num_sequences:
        return
    start = tl.load(starts + sequence)
    count = tl.load(starts + sequence + 1) - start
    first_row = (place - start // BLOCK_Q - sequence) * BLOCK_Q
    if first_row >= count:
        return
    before = tl.load(lengths + sequence) - count  # positions before the sequence's first row
    end = before + tl.minimum(first_row + BLOCK_Q, count)  # of the keys that any row here sees
    seen = 0
    if WINDOW is not None:
        seen = tl.maximum(before + first_row - WINDOW + 1, 0)
    first = seen // BLOCK_N * BLOCK_N
    last = end
    if SPLIT:
        first = tl.maximum(first, tl.program_id(2) * LENGTH)
        last = tl.minimum(end, (tl.program_id(2) + 1) * LENGTH)
        if first >= last:
            return

    pair = tl.arange(0, BLOCK_M)
    row = first_row + pair // GROUP
    head = kv_head * GROUP + pair % GROUP
    columns = tl.arange(0, BLOCK_D)
    owned = (pair < BLOCK_Q * GROUP) & (row < count)
    held = owned[:, None] & (columns < WIDTH)[None, :]
    position = before + row
    row = (start + row).to(tl.int64)
    places = row[:, None] * query_row + head[:, None] * query_head + columns[None, :]
    q = tl.load(query + places, mask=held, other=0.0).to(DOT)  # [BLOCK_M, BLOCK_D]
    keys_memory = memory + kv_head.to(tl.int64) * memory_head
    values_memory = memory + (KV_HEADS + kv_head).to(tl.int64) * memory_head
    table = block_tables + sequence.to(tl.int64) * table_row

    top = tl.full([BLOCK_M], NOTHING, tl.float32)  # of all segments before this one
    total = tl.full([BLOCK_M], 0.0, tl.float32)
    mixed = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    own_top = tl.full([BLOCK_M], NOTHING, tl.float32)  # of this segment
    own_total = tl.full([BLOCK_M], 0.0, tl.float32)
    own_mixed = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
    for tile in range(first, last, BLOCK_N):
        if not SPLIT:
            if tile % LENGTH == 0:
                top, total, mixed = _fold(top, total, mixed, own_top, own_total, own_mixed)
                own_top = tl.full([BLOCK_M], NOTHING, tl.float32)
                own_total = tl.full([BLOCK_M], 0.0, tl.float32)
                own_mixed = tl.full([BLOCK_M, BLOCK_D], 0.0, tl.float32)
        key = tile + tl.arange(0, BLOCK_N)
        inside = (key >= seen) & (key < last)
        block = tl.load(table + key // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        key_places = block[:, None] * memory_block + (key % BLOCK_SIZE)[:, None] * memory_place + columns[None, :]
        filled = inside[:, None] & (columns < WIDTH)[None, :]
        k = tl.load(keys_memory + key_places, mask=filled, other=0.0).to(DOT)  # [BLOCK_N, BLOCK_D]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [BLOCK_M, BLOCK_N]
        if scales is not None:
            scale_places = block * scales_block + key % BLOCK_SIZE
            k_scale = tl.load(scales + kv_head.to(tl.int64) * scales_head + scale_places, mask=inside, other=0.0)
            scores = scores * k_scale[None, :]
        visible = inside[None, :] & (key[None, :] <= position[:, None])
        if WINDOW is not None:
            visible = visible & (position[:, None] - key[None, :] < WINDOW)
        scores = tl.where(visible, scores, NOTHING)
        new_top = tl.maximum(own_top, tl.ceil(tl.max(scores, 1)))
        base = tl.where(new_top == NOTHING, 0.0, new_top)
        shares = tl.exp2(scores - base[:, None])
        factor = tl.exp2(own_top - base)
        own_total = own_total * factor + tl.sum(shares, 1)
        v = tl.load(values_memory + key_places, mask=filled, other=0.0)  # [BLOCK_N, BLOCK_D]
        if scales is not None:
            v_head = (KV_HEADS + kv_head).to(tl.int64) * scales_head
            v_scale = tl.load(scales + v_head + scale_places, mask=inside, other=0.0)
            v = v.to(tl.float32) * v_scale[:, None]  # shares times scales could be too small for fp16
        own_mixed = own_mixed * factor[:, None]
        own_mixed = tl.dot(shares.to(DOT), v.to(DOT), own_mixed, input_precision="ieee")
        own_top = new_top

    if SPLIT:
        line = (tl.program_id(2).to(tl.int64) * num_rows + row) * (KV_HEADS * GROUP) + head
        tl.store(tops + line, own_top, mask=owned)
        tl.store(totals + line, own_total, mask=owned)
        tl.store(parts + line[:, None] * WIDTH + columns[None, :], own_mixed, mask=held)
    else:
        top, total, mixed = _fold(top, total, mixed, own_top, own_total, own_mixed)
        result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        places = row[:, None] * out_row + head[:, None] * out_head + columns[None, :]
        tl.store(out + places, result.to(out.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["num_sequences"])
def _merge(
    parts,  # [segments, T, H, d]
    tops,  # [segments, T, H]
    totals,  # [segments, T, H]
    starts,  # [S + 1]
    lengths,  # [S]
    out,  # [T, H, d]
    num_sequences,
    num_rows,
    out_row,
    out_head,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LENGTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Folds the segments that a row sees. Grid: rows, blocks of heads."""
    row = tl.program_id(0)
    sequence = _find(starts, num_sequences, row, 1, 0)
    if sequence >= num_sequences:
        return
    position = tl.load(lengths + sequence) - tl.load(starts + sequence + 1) + row
    end = position // LENGTH + 1
    first = 0
    if WINDOW is not None:
        first = tl.maximum(position - WINDOW + 1, 0) // LENGTH
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    columns = tl.arange(0, BLOCK_D)
    owned = head < HEADS
    held = owned[:, None] & (columns < WIDTH)[None, :]
    top = tl.full([BLOCK_H], -float("inf"), tl.float32)
    total = tl.full([BLOCK_H], 0.0, tl.float32)
    mixed = tl.full([BLOCK_H, BLOCK_D], 0.0, tl.float32)
    for group in range(first, end, UNROLL):
        for offset in tl.static_range(UNROLL):  # whose loads do not wait for one another
            segment = group + offset
            line = (segment.to(tl.int64) * num_rows + row) * HEADS + head
            inside = owned & (segment < end)
            own_top = tl.load(tops + line, mask=inside, other=-float("inf"))
            own_total = tl.load(totals + line, mask=inside, other=0.0)
            places = line[:, None] * WIDTH + columns[None, :]
            own_mixed = tl.load(parts + places, mask=held & (segment < end), other=0.0)
            top, total, mixed = _fold(top, total, mixed, own_top, own_total, own_mixed)
    result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    places = row.to(tl.int64) * out_row + head[:, None] * out_head + columns[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=held)


def paged_attention(
    query: Tensor,
    memory: Tensor,
    scales: Tensor | None,
    starts: Tensor,
    lengths: Tensor,
    block_tables: Tensor,
    window: int | None = None,
    out: Tensor | None = None,
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """Attention of several sequences over keys and values in blocks. -> [T, H, d] of query's type

    query [T, H, d]: sequence s has the rows starts[s] .. starts[s + 1], the last ones of its lengths[s] positions.
    memory [2K, blocks, block size, d], keys are heads 0 .. K-1 and values K .. 2K-1; int8 with scales
    [2K, blocks, block size] fp32. Position p of sequence s is in block block_tables[s, p // block size].
    starts [S + 1], lengths [S] and block_tables [S, any] are int32; a sequence that only pads has no rows. Rows from
    starts[S] on are not read, and left alone in `out`. Products are of fp32 where query or memory is, else of query's
    type; sums are fp32. (fp32 products of heads wider than 128 spill registers.) Raises `ValueError`.
    """
    rows, heads, width = query.shape if query.dim() == 3 else (None, None, None)
    check_tensor("query", query, (None, None, None), FLOATS)
    check_tensor("memory", memory, (None, None, None, width), (*FLOATS, torch.int8), like=query)
    check(memory.shape[0] % 2 == 0 and memory.shape[0] > 0, "memory", f"2K heads, not {memory.shape[0]}")
    num_sequences, kv_heads = starts.numel() - 1, memory.shape[0] // 2
    assert rows is not None and heads is not None and width is not None
    check_divides("memory", kv_heads, heads, "query heads")
    check(0 < width <= 256, "query", f"heads must be 1 to 256 wide, not {width}")
    if memory.dtype == torch.int8:
        check(scales is not None, "scales", "int8 memory needs them")
    else:
        check(scales is None, "scales", "only int8 memory has them")
    if scales is not None:
        check_tensor("scales", scales, memory.shape[:3], torch.float32, like=query)
    check_tensor("starts", starts, (None,), torch.int32, like=query)
    check(num_sequences >= 0, "starts", "one more than sequences, so never empty")
    check_tensor("lengths", lengths, (num_sequences,), torch.int32, like=query)
    check_tensor("block_tables", block_tables, (num_sequences, None), torch.int32, like=query)
    check(window is None or window > 0, "window", f"it must be positive, not {window}")
    if out is None:
        out = torch.empty(rows, heads, width, dtype=query.dtype, device=query.device)
    check_tensor("out", out, query.shape, query.dtype, like=query)
    if rows == 0 or num_sequences == 0:
        return out

    arch = architecture(query.device)
    cut, constants = _cut(query.dtype, memory.dtype, heads, kv_heads, width, memory.shape[2], arch, tables)
    block_q = constants["BLOCK_M"] // constants["GROUP"]
    blocks = rows // block_q + num_sequences
    segments = triton.cdiv(block_tables.shape[1] * memory.shape[2], cut.sizes["LENGTH"])
    part_bytes = segments * rows * heads * (width + 2) * 4
    split = segments > 1 and blocks * kv_heads < ENOUGH and part_bytes <= WORKSPACE
    parts = tops = totals = None
    if split:
        parts = torch.empty(segments, rows, heads, width, dtype=torch.float32, device=query.device)
        tops, totals = torch.empty(2, segments, rows, heads, dtype=torch.float32, device=query.device)
    _attend[(blocks, kv_heads, segments if split else 1)](
        query,
        memory,
        scales,
        starts,
        lengths,
        block_tables,
        out,
        parts,
        tops,
        totals,
        width**-0.5 * LOG2_E,
        num_sequences,
        rows,
        *query.stride()[:2],
        *memory.stride()[:3],
        *(scales.stride()[:2] if scales is not None else (0, 0)),
        block_tables.stride(0),
        *out.stride()[:2],
        **constants,
        WINDOW=window,
        SPLIT=split,
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
    )
    if split:
        merge = tables.find("attention_merge", width, arch)
        _merge[(rows, triton.cdiv(heads, merge.sizes["BLOCK_H"]))](
            parts,
            tops,
            totals,
            starts,
            lengths,
            out,
            num_sequences,
            rows,
            *out.stride()[:2],
            HEADS=heads,
            WIDTH=width,
            WINDOW=window,
            BLOCK_D=constants["BLOCK_D"],
            LENGTH=cut.sizes["LENGTH"],
            **merge.options,
        )
    return out


def _cut(
    query: torch.dtype,
    memory: torch.dtype,
    heads: int,
    kv_heads: int,
    width: int,
    block_size: int,
    arch: int | None,
    tables: Tables,
) -> tuple[Configuration, dict[str, int]]:
    """The configuration, and the constants of `_attend` that follow from shapes."""
    wide = torch.float32 in (query, memory)
    cut = tables.find("attention_fp32" if wide else "attention", width, arch)
    length, block_n = cut.sizes["LENGTH"], cut.sizes["BLOCK_N"]
    check(length % block_n == 0, "tables", f"LENGTH {length} of attention is no multiple of BLOCK_N {block_n}")
    group = heads // kv_heads
    return cut, {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "WIDTH": width,
        "BLOCK_SIZE": block_size,
        "BLOCK_M": max(cut.sizes["BLOCK_M"], triton.next_power_of_2(group)),
        "BLOCK_N": block_n,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
        "LENGTH": length,
    }


# variant, query's type, memory's type, split, window, the launch on paper
_Variant = tuple[str, str, str, bool, int | None, str | None]
_VARIANTS: tuple[_Variant, ...] = (
    ("fp16, prompts", "fp16", "fp16", False, None, "prompt"),
    ("bf16, int8 keys", "bf16", "i8", False, None, "decode"),
    ("bf16, window, split", "bf16", "bf16", True, 4096, None),
    ("bf16", "bf16", "bf16", False, None, "decode"),
    ("fp16, split", "fp16", "fp16", True, None, None),
)
_VARIANTS_FP32: tuple[_Variant, ...] = (
    ("fp32", "fp32", "fp32", False, None, None),
    ("fp32, int8 keys, split", "fp32", "i8", True, None, None),
)
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "i8": 1}
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8}


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """32 query heads over 4, as wide as each row of the tables allows; the most common width in more variants."""
    for row in tables.rows("attention", arch):
        width = row.up_to or 256
        for variant in _VARIANTS if width == 128 else _VARIANTS[:3]:
            yield _attend_specimen(variant, width, arch, tables)
    for row in tables.rows("attention_fp32", arch):
        for variant in _VARIANTS_FP32:
            yield _attend_specimen(variant, row.up_to or 128, arch, tables)
    yield _attend_specimen(("fp16, prompts", "fp16", "fp16", False, None, None), 64, arch, tables)
    for row in tables.rows("attention_merge", arch):
        for kind in ("fp16", "bf16", "fp32"):
            yield _merge_specimen(kind, row, arch, tables)


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: a row each of 64 sequences of 2,048, and of a single one, whose segments are merged."""
    tables = (("attention", torch.float16, 64), ("attention_fp32", torch.float32, 64))
    for table, kind, count in (*tables, ("attention_merge", torch.float16, 1)):
        for row in SHIPPED.rows(table, arch):
            yield Example(table, row.up_to or 128, partial(_example, kind, count, row.up_to or 128))


def _example(kind: torch.dtype, count: int, width: int, device: torch.device) -> Launch:
    query = torch.randn(count, 32, width, device=device).to(kind)
    memory = torch.randn(8, count * 128, 16, width, device=device).to(kind)
    starts = torch.arange(count + 1, dtype=torch.int32, device=device)
    lengths = torch.full((count,), 2048, dtype=torch.int32, device=device)
    blocks = torch.arange(count * 128, dtype=torch.int32, device=device).view(count, 128)
    return lambda tables: paged_attention(query, memory, None, starts, lengths, blocks, tables=tables)


def _attend_specimen(variant: _Variant, width: int, arch: int, tables: Tables) -> Specimen:
    name, query, memory, split, window, launch = variant
    heads, kv_heads, block_size = 32, 4, 16
    cut, constants = _cut(_TYPES[query], _TYPES[memory], heads, kv_heads, width, block_size, arch, tables)
    nothing: dict[str, Any] = {}
    if memory != "i8":
        nothing["scales"] = None
    if not split:
        nothing.update(parts=None, tops=None, totals=None)
    types = {"query": query, "memory": memory, "scales": "fp32", "starts": "i32", "lengths": "i32"}
    types |= {"block_tables": "i32", "out": query, "parts": "fp32", "tops": "fp32", "totals": "fp32"}
    types = {key: f"*{kind}" for key, kind in types.items() if key not in nothing}
    strides = ["query_row", "query_head", "memory_head", "memory_block", "memory_place", "scales_head", "scales_block"]
    aligned = (*types, *strides, "out_row", "out_head")
    types |= {"scale": "fp32", **dict.fromkeys((*strides, "out_row", "out_head"), "i32")}
    types |= dict.fromkeys(("num_sequences", "num_rows", "table_row"), "i32")
    own = {**constants, "WINDOW": window, "SPLIT": split}
    return Specimen(
        operation="attention",
        variant=f"{name}, {width} wide",
        kernel=_attend,
        signature={key: types.get(key, "constexpr") for key in _attend.arg_names},
        constants={**own, **nothing},
        num_warps=cut.num_warps,
        num_stages=cut.num_stages,
        aligned=aligned,
        work=_work(launch, heads, kv_heads, width, _BYTES[query], memory) if launch else None,
        markers=("mma", "cp.async") if query != "fp32" else (),
    )


def _merge_specimen(kind: str, row: Configuration, arch: int, tables: Tables) -> Specimen:
    length = tables.find("attention", 128, arch).sizes["LENGTH"]
    own = {"HEADS": 32, "WIDTH": 128, "WINDOW": None, "BLOCK_D": 128, "LENGTH": length, **row.sizes}
    pointers = {"parts": "*fp32", "tops": "*fp32", "totals": "*fp32", "starts": "*i32", "lengths": "*i32"}
    pointers |= {"out": f"*{kind}"}
    types = pointers | dict.fromkeys(("num_sequences", "num_rows", "out_row", "out_head"), "i32")
    return Specimen(
        operation="attention",
        variant=f"{kind}, merge",
        kernel=_merge,
        signature={key: types.get(key, "constexpr") for key in _merge.arg_names},
        constants=own,
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        aligned=(*pointers, "out_row", "out_head"),
        work=None,
    )


def _work(launch: str, heads: int, kv_heads: int, width: int, query_bytes: int, memory: str) -> Work:
    vector = width * _BYTES[memory] + (4 if memory == "i8" else 0)
    if launch == "prompt":
        rows = keys = 2048
        pairs = rows * (rows + 1) // 2
        shape = f"a prompt of 2,048, {heads} heads over {kv_heads}, width {width}"
    else:
        rows, keys = 64, 64 * 4096
        pairs = keys
        shape = f"64 sequences of 4,096, {heads} heads over {kv_heads}, width {width}"
    touched = 2 * rows * heads * width * query_bytes + 2 * keys * kv_heads * vector
    return Work(shape=shape, bytes=touched, flops=4 * pairs * heads * width, peak="fp16")
