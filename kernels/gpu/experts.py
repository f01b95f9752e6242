"""Each token through its experts: two products over matrices in stacks, one stack for each format.

T tokens, k experts of a token, E experts of this process, D model width, F feed-forward width of an expert, M places of
a block. A step's T * k places are brought into the order of their experts (`alignment.py`), so that a block of M of
them meets one matrix:
  1. silu(x @ gate.T) * (x @ up.T), [T * k, F], rounded once: gate and up of the same columns are summed up by the same
     program, so that the [T * k, 2F] of both are never written
  2. that @ down.T, times the place's share in fp32, [T * k, D], in the order of the places again
  3. the sum over the k of each token (`combine.py`)
The experts of a layer may be stored in different formats: each product is then one launch for each format, whose
programs leave the blocks of other experts alone. The sum over a matrix's inputs goes tile by tile in one program,
whatever M and the number of tokens are, so a row's result is its own.

The grid follows from the shapes alone. It is made for the most blocks that there can be; programs past the last one
that is in use end at once. The order of programs lets ABREAST blocks that are neighbours, often of one expert, share
each tile of weights in the GPU's cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.alignment import Alignment, align
from kernels.gpu.combine import combine
from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.expert_stack import ExpertStack, Kin
from kernels.gpu.expert_stack import prepare_experts as prepare_experts
from kernels.gpu.matrices import Weights, random_matrix, tiling_of
from kernels.gpu.specimen import Specimen, Work
from kernels.gpu.tuning import Example, Launch
from kernels.gpu.weights import multiply
from kernels.packed import Format


@triton.jit
def _assign(
    sorted_ids,
    expert_of_block,
    num_padded,
    slots,
    outputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ABREAST: tl.constexpr,
):
    """-> this program's places [BLOCK_M], its outputs [BLOCK_N], and the slot of their matrix; -1: nothing to do."""
    program = tl.program_id(0)
    blocks = tl.load(num_padded) // BLOCK_M
    tiles = tl.cdiv(outputs, BLOCK_N)
    first = program // (ABREAST * tiles) * ABREAST
    rest = program % (ABREAST * tiles)
    together = tl.minimum(tl.maximum(blocks - first, 1), ABREAST)
    block = first + rest % together
    tile = rest // together
    is_used = (block < blocks) & (tile < tiles)
    expert = tl.load(expert_of_block + block, mask=is_used, other=0)
    slot = tl.load(slots + expert, mask=is_used, other=-1)
    at = block * BLOCK_M + tl.arange(0, BLOCK_M)
    places = tl.load(sorted_ids + at, mask=is_used & (at >= 0), other=0)
    return places, tile * BLOCK_N + tl.arange(0, BLOCK_N), slot


@triton.jit
def _product(
    x,
    x_rows,
    is_place,
    columns,
    matrix,
    data,
    scale,
    minimum,
    factor,
    rows,
    height,  # rows of a matrix
    last,
    data_matrix,
    data_stride,
    scale_matrix,
    scale_stride,
    NAME: tl.constexpr,
    ZEROS: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Rows of one of the matrices in a stack times rows of x -> fp32 [BLOCK_N, BLOCK_M]."""
    data += matrix * data_matrix
    if scale is not None:
        scale += matrix * scale_matrix
    if minimum is not None:
        minimum += matrix * scale_matrix
    total = multiply(
        x, x_rows, is_place, columns, data, scale, minimum, rows, data_stride, scale_stride, 0, last,
        NAME, ZEROS, SCALES, GROUP, TILE, PIECE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if factor is not None:
        total *= tl.load(factor + matrix * height + rows)[:, None]
    return total


@triton.jit(do_not_specialize=["places"])
def _gate_up(
    x,  # [T, D]
    sorted_ids,
    expert_of_block,
    num_padded,
    slots,  # [E]
    data,  # of the weights, [matrices, 2F, bytes of a row]
    scale,  # [matrices, groups, 2F], or None
    minimum,  # like scale, or None
    factor,  # [matrices, 2F], or None
    out,  # [T * k, F]
    places,
    columns,  # D
    inner,  # F
    last,  # tiles of a row
    x_stride,
    data_matrix,
    data_stride,
    scale_matrix,
    scale_stride,
    PER_TOKEN: tl.constexpr,
    NAME: tl.constexpr,
    ZEROS: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ABREAST: tl.constexpr,
):
    """A program: BLOCK_N of the F inner columns of one block's places."""
    own, outputs, slot = _assign(sorted_ids, expert_of_block, num_padded, slots, inner, BLOCK_M, BLOCK_N, ABREAST)
    if slot < 0:
        return
    is_place = own < places
    x_rows = (own // PER_TOKEN).to(tl.int64) * x_stride
    matrix = slot.to(tl.int64)
    rows = tl.minimum(outputs, inner - 1).to(tl.int64)
    gate = _product(
        x, x_rows, is_place, columns, matrix, data, scale, minimum, factor, rows, 2 * inner, last,
        data_matrix, data_stride, scale_matrix, scale_stride,
        NAME, ZEROS, SCALES, GROUP, TILE, PIECE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    up = _product(
        x, x_rows, is_place, columns, matrix, data, scale, minimum, factor, rows + inner, 2 * inner, last,
        data_matrix, data_stride, scale_matrix, scale_stride,
        NAME, ZEROS, SCALES, GROUP, TILE, PIECE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    found = gate / (1.0 + tl.exp2(gate * -1.4426950408889634)) * up  # [BLOCK_N, BLOCK_M]; log2(e)
    at = own.to(tl.int64)[None, :] * inner + outputs[:, None]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=is_place[None, :] & (outputs < inner)[:, None])


@triton.jit(do_not_specialize=["places"])
def _down(
    x,  # [T * k, F]
    sorted_ids,
    expert_of_block,
    num_padded,
    slots,  # [E]
    data,  # of the weights, [matrices, D, bytes of a row]
    scale,  # [matrices, groups, D], or None
    minimum,  # like scale, or None
    factor,  # [matrices, D], or None
    shares,  # [T, k]
    out,  # [T * k, D]
    places,
    columns,  # F
    width,  # D
    last,  # tiles of a row
    data_matrix,
    data_stride,
    scale_matrix,
    scale_stride,
    NAME: tl.constexpr,
    ZEROS: tl.constexpr,
    SCALES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ABREAST: tl.constexpr,
):
    """A program: BLOCK_N of the D columns of one block's places."""
    own, outputs, slot = _assign(sorted_ids, expert_of_block, num_padded, slots, width, BLOCK_M, BLOCK_N, ABREAST)
    if slot < 0:
        return
    is_place = own < places
    x_rows = own.to(tl.int64) * columns
    rows = tl.minimum(outputs, width - 1).to(tl.int64)
    found = _product(
        x, x_rows, is_place, columns, slot.to(tl.int64), data, scale, minimum, factor, rows, width, last,
        data_matrix, data_stride, scale_matrix, scale_stride,
        NAME, ZEROS, SCALES, GROUP, TILE, PIECE, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    found *= tl.load(shares + own, mask=is_place, other=0.0)[None, :]
    at = own.to(tl.int64)[None, :] * width + outputs[:, None]
    tl.store(out + at, found.to(out.dtype.element_ty), mask=is_place[None, :] & (outputs < width)[:, None])


def gate_up(
    x: Tensor,
    order: Alignment,
    per_token: int,
    stack: ExpertStack,
    out: Tensor | None = None,
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """x [T, D] -> `out` [T * k, F], contiguous and of x's type: the first product, for the places that `order` has.

    Rows of other places are left as they are. `order` has blocks as `block_of` says. Raises `ValueError`.
    """
    check_tensor("x", x, (None, stack.width), FLOATS)
    places = x.shape[0] * per_token
    options = _options(x, order, places, stack, tables)
    if out is None:
        out = torch.empty(places, stack.inner, dtype=x.dtype, device=x.device)
    check_tensor("out", out, (places, stack.inner), x.dtype, like=x, contiguous=True)
    for kin in stack.gate_up:
        weights = kin.weights
        _check_weights(weights, x)
        _gate_up[_programs(order, stack.inner, options),](
            x,
            order.sorted_ids,
            order.expert_of_block,
            order.num_padded,
            kin.slots,
            weights.data,
            weights.scale,
            weights.minimum,
            weights.factor,
            out,
            places,
            stack.width,
            stack.inner,
            weights.tiles,
            x.stride(0),
            *_strides(weights),
            PER_TOKEN=per_token,
            **weights.constants,
            **options,
        )
    return out


def down(
    inner: Tensor,
    order: Alignment,
    shares: Tensor,
    stack: ExpertStack,
    out: Tensor | None = None,
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """inner [T * k, F] and shares [T, k] fp32, both contiguous -> `out` [T * k, D], contiguous and of inner's type.

    The second product times the place's share, for the places that `order` has; rows of others are left as they are.
    Raises `ValueError`.
    """
    places = shares.numel()
    check_tensor("inner", inner, (places, stack.inner), FLOATS, contiguous=True)
    check_tensor("shares", shares, (None, None), torch.float32, like=inner, contiguous=True)
    options = _options(inner, order, places, stack, tables)
    if out is None:
        out = torch.empty(places, stack.width, dtype=inner.dtype, device=inner.device)
    check_tensor("out", out, (places, stack.width), inner.dtype, like=inner, contiguous=True)
    for kin in stack.down:
        weights = kin.weights
        _check_weights(weights, inner)
        _down[_programs(order, stack.width, options),](
            inner,
            order.sorted_ids,
            order.expert_of_block,
            order.num_padded,
            kin.slots,
            weights.data,
            weights.scale,
            weights.minimum,
            weights.factor,
            shares,
            out,
            places,
            stack.inner,
            stack.width,
            weights.tiles,
            *_strides(weights),
            **weights.constants,
            **options,
        )
    return out


def experts(
    x: Tensor,
    ids: Tensor,
    shares: Tensor,
    stack: ExpertStack,
    first: int = 0,
    out: Tensor | None = None,
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """x [T, D], ids [T, k] int32 and shares [T, k] fp32 of `gate` -> `out` [T, D], in x's type unless it is given.

    The stack has the experts first, first + 1, ...; of others nothing is added, nor of ids that are none (padding).
    Raises `ValueError`.
    """
    check_tensor("ids", ids, (None, None), torch.int32, like=x)
    tokens, per_token = ids.shape
    check_tensor("x", x, (tokens, stack.width), FLOATS)
    check_tensor("shares", shares, (tokens, per_token), torch.float32, like=x)
    block = block_of(x.dtype, ids.numel(), stack.count, architecture(x.device), tables)
    order = align(ids, stack.count, block, first, tables=tables)
    inner = gate_up(x, order, per_token, stack, tables=tables)
    parts = down(inner, order, shares, stack, tables=tables)
    return combine(parts, ids, stack.count, first, out, tables=tables)


def block_of(kind: torch.dtype, places: int, count: int, arch: int | None, tables: Tables = SHIPPED) -> int:
    """Places of a block, for `align`: from how many an expert has on average, in activations of that type."""
    return _find(kind, places, count, arch, tables).sizes["BLOCK_M"]


# Tiles for fp32 have 32 outputs: of 64 or more, Triton 3.7.1 makes tf32 products on sm_100 whatever it is told.
def _find(kind: torch.dtype, places: int, count: int, arch: int | None, tables: Tables) -> Configuration:
    table = "experts_fp32" if kind == torch.float32 else "experts"
    return tables.find(table, triton.cdiv(places, count), arch)


def _options(x: Tensor, order: Alignment, places: int, stack: ExpertStack, tables: Tables) -> dict[str, int]:
    configuration = _find(x.dtype, places, stack.count, architecture(x.device), tables)
    block = configuration.sizes["BLOCK_M"]
    check(order.block == block, "order", f"its blocks must have {block} places, not {order.block}")
    check_tensor("order.sorted_ids", order.sorted_ids, (None,), torch.int32, like=x)
    return configuration.options


def _check_weights(weights: Weights, x: Tensor) -> None:
    data = weights.data
    check(data.device == x.device, "stack", f"it must be on {x.device}, not on {data.device}")
    is_plain = weights.format is None
    check(not is_plain or data.dtype == x.dtype, "stack", f"it was prepared for {data.dtype}, not for {x.dtype}")


def _programs(order: Alignment, outputs: int, options: dict[str, int]) -> int:
    tiles: int = triton.cdiv(outputs, options["BLOCK_N"])
    return order.expert_of_block.numel() * tiles


def _strides(weights: Weights) -> tuple[int, int, int, int]:
    """Of data and of scales: from matrix to matrix, and from row to row or from group to group."""
    data, scale = weights.data, weights.scale
    return (
        data.stride(0),
        data.stride(1),
        0 if scale is None else scale.stride(0),
        0 if scale is None else scale.stride(1),
    )


MODEL = (128, 8, 2048, 768)  # E, k, D, F of Qwen3-30B-A3B, whose launches are on paper
MAIN = (None, Format("int4", 4, 128))
OTHERS = (
    Format("int8", 8, 0),
    Format("int8", 8, 32),
    Format("int4", 4, 32, zeros=True),
    Format("int3", 3, 128),
    Format("fp8", 8, 0),
)


def random_experts(format: Format, device: torch.device, dtype: torch.dtype) -> ExpertStack:
    """To measure with: a layer of `MODEL`."""
    count, _, width, inner = MODEL

    def kin(shape: tuple[int, int]) -> tuple[Kin]:
        (one,) = random_matrix(format, shape, device, dtype).parts
        assert isinstance(one, Weights)
        tensors = {name: getattr(one, name) for name in ("data", "scale", "minimum", "factor")}
        piled = {name: x.repeat(count, *[1] * (x.dim() - 1)) for name, x in tensors.items() if x is not None}
        return (Kin(replace(one, count=count, **piled), torch.arange(count, dtype=torch.int32, device=device)),)

    return ExpertStack(count, width, inner, kin((2 * inner, width)), kin((width, inner)))


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: the whole way, for as many tokens as give an expert that many places on average."""

    def make(format: Format, tokens: int, kind: torch.dtype) -> Callable[[torch.device], Launch]:
        def allocate(device: torch.device) -> Launch:
            count, per_token, width, _ = MODEL
            x = torch.randn(tokens, width, dtype=kind, device=device)
            ids = torch.rand(tokens, count, device=device).argsort(-1)[:, :per_token].int().contiguous()
            shares, stack = torch.rand(tokens, per_token, device=device), random_experts(format, device, kind)
            return lambda tables: experts(x, ids, shares, stack, tables=tables)

        return allocate

    for table, format, kind in (
        ("experts", Format("int4", 4, 128), torch.float16),
        ("experts_fp32", Format("int4", 4, 32), torch.float32),
    ):
        for row in SHIPPED.rows(table, arch):
            size = row.up_to or (512 if kind == torch.float16 else 16)
            yield Example(table, size, make(format, size * MODEL[0] // MODEL[1], kind))


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """Both products; what is compiled for one size only is compiled for the largest, which takes most registers."""
    rows = tables.rows("experts", arch)
    for row in rows:
        for format in MAIN:
            yield from _pair(format, "fp16", row)
    for format in OTHERS:
        yield from _pair(format, "fp16", rows[-1])
    for format in MAIN:
        yield from _pair(format, "bf16", rows[-1])
    for row in tables.rows("experts_fp32", arch):
        for format in (None, Format("int4", 4, 32)):
            yield from _pair(format, "fp32", row)


def _pair(format: Format | None, kind: str, row: Configuration) -> Iterator[Specimen]:
    count, per_token, width, inner = MODEL
    places = (row.up_to or 512) * count
    used = count * (1 - (1 - per_token / count) ** (places / per_token))  # of the experts, at random
    size = 4 if kind == "fp32" else 2
    for kernel, outputs, columns, matrices in ((_gate_up, inner, width, 2), (_down, width, inner, 1)):
        cut = tiling_of(format, columns)
        pointers = {
            "data": f"*{kind}" if format is None else "*i8" if format.name == "int8" and not format.zeros else "*u8",
            "scale": "*fp16" if cut.scales != "row" else None,
            "minimum": "*fp16" if cut.zeros else None,
            "factor": "*fp32" if format is not None else None,
            **dict.fromkeys(("x", "out"), f"*{kind}"),
            **dict.fromkeys(("sorted_ids", "expert_of_block", "num_padded", "slots"), "*i32"),
            "shares": "*fp32",
        }
        constants = {**{name: None for name, of in pointers.items() if of is None}, **cut.constants, **row.sizes}
        if kernel is _gate_up:
            constants["PER_TOKEN"] = per_token
        signature = {
            name: "constexpr" if name in constants else pointers.get(name) or "i32" for name in kernel.arg_names
        }
        bits = 8 * size if format is None else format.bits_per_weight(columns)
        rows = places / per_token if kernel is _gate_up else places
        yield Specimen(
            operation="experts",
            variant=f"{'gate and up' if matrices == 2 else 'down'}, {format or 'plain'}, {kind}, "
            f"{'up to ' if row.up_to else ''}{row.up_to or 'many'} of an expert",
            kernel=kernel,
            signature=signature,
            constants=constants,
            num_warps=row.num_warps,
            num_stages=row.num_stages,
            aligned=tuple(name for name in signature if name not in (*constants, "places", "last")),
            work=Work(
                f"{places:,} places on {used:.0f} experts of {count}, {matrices} x {outputs:,} x {columns:,}",
                bytes=int(used * matrices * outputs * columns * bits / 8 + (rows * columns + places * outputs) * size),
                flops=2 * places * matrices * outputs * columns,
                peak="fp32" if kind == "fp32" else "fp16",
            ),
            markers=("cp.async",) if kind == "fp32" else ("cp.async", "mma"),
        )
