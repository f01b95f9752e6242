"""The places of a step in the order of their experts, each expert's share filled up to whole blocks.

T tokens, k experts of a token, E experts of this process, B places of a block. Place p is token p // k on its way to
the expert ids.flatten()[p]. ids [T, k] int32 -> sorted_ids [P] int32: first expert 0's places in ascending order, then
T * k (none) up to a multiple of B, then expert 1's, and so on; expert_of_block [P / B] int32; num_padded [1] int32: how
much of both is in use, what is behind is left as it was. P is the most that T * k places can need, so that the sizes of
a step follow from its shapes alone. Ids outside of first .. first + E - 1 belong to other processes, or to nobody.

Two launches of one program for each expert, without atomics and without sorting: the first counts, the second knows
from all the counts where its expert begins, and walks the places once more to write them down.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import check, check_tensor
from kernels.gpu.specimen import Specimen, Work
from kernels.gpu.tuning import Example, Launch

MAX_EXPERTS = 1024


@dataclass(frozen=True, slots=True)
class Alignment:
    sorted_ids: Tensor  # [P]
    expert_of_block: Tensor  # [P / block], counted from the first that is this process's
    num_padded: Tensor  # [1]
    block: int


@triton.jit(do_not_specialize=["places", "first"])
def _count(ids, counts, places, first, BLOCK: tl.constexpr):
    """Program e: how many places go to expert first + e."""
    expert = tl.program_id(0)
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(0, places, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found += (tl.load(ids + at, mask=at < places, other=-1) == first + expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@triton.jit(do_not_specialize=["places", "first"])
def _place(
    ids,
    counts,  # [E]
    sorted_ids,
    expert_of_block,
    num_padded,
    places,
    experts,
    first,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,  # places of a block
    BLOCK_E: tl.constexpr,  # a power of two, at least E
):
    """Program e: writes down the places of expert first + e, and which blocks are its own."""
    expert = tl.program_id(0)
    every = tl.arange(0, BLOCK_E)
    count = tl.load(counts + every, mask=every < experts, other=0)
    padded = (count + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    begin = tl.sum(tl.where(every < expert, padded, 0), 0)
    end = begin + tl.sum(tl.where(every == expert, padded, 0), 0)
    if expert == experts - 1:
        tl.store(num_padded, end)
    next_place = begin
    for start in range(0, places, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = (tl.load(ids + at, mask=at < places, other=-1) == first + expert).to(tl.int32)
        rank = tl.cumsum(mine, 0) - mine
        tl.store(sorted_ids + next_place + rank, at, mask=mine > 0)
        next_place += tl.sum(mine, 0)
    rest = next_place + tl.arange(0, BLOCK_M)
    tl.store(sorted_ids + rest, tl.zeros([BLOCK_M], tl.int32) + places, mask=rest < end)
    for block in range(begin // BLOCK_M, end // BLOCK_M):
        tl.store(expert_of_block + block, expert)


def most_blocks(places: int, experts: int, block: int) -> int:
    """How many blocks so many places can need: all experts but their fill are whole, and no block is without places."""
    filled = min(places, experts)
    return min(places, (places + filled * (block - 1)) // block)


def align(
    ids: Tensor,
    experts: int,
    block: int,
    first: int = 0,
    out: Alignment | None = None,
    *,
    tables: Tables = SHIPPED,
) -> Alignment:
    """ids [T, k] int32, contiguous; `experts` of them are here, from `first` on; `block` is a power of two.

    Raises `ValueError`.
    """
    check_tensor("ids", ids, (None, None), torch.int32, contiguous=True)
    check(1 <= experts <= MAX_EXPERTS, "experts", f"1 to {MAX_EXPERTS} can be sorted by, not {experts}")
    check(block > 0 and block & (block - 1) == 0, "block", f"a block has a power of two of places, not {block}")
    check(first >= 0, "first", f"experts are counted from 0, not from {first}")
    places = ids.numel()
    blocks = most_blocks(places, experts, block)
    check(blocks * block < 2**31, "ids", f"{places} places are more than 32 bits can count")
    counts = torch.empty(experts, dtype=torch.int32, device=ids.device)
    if out is None:
        out = Alignment(counts.new_empty(blocks * block), counts.new_empty(blocks), counts.new_empty(1), block)
    check(out.block == block, "out", f"its blocks must have {block} places, not {out.block}")
    check_tensor("out.sorted_ids", out.sorted_ids, (blocks * block,), torch.int32, like=ids)
    check_tensor("out.expert_of_block", out.expert_of_block, (blocks,), torch.int32, like=ids)
    check_tensor("out.num_padded", out.num_padded, (1,), torch.int32, like=ids)
    options = tables.find("alignment", places, architecture(ids.device)).options
    _count[experts,](ids, counts, places, first, **options)
    _place[experts,](
        ids,
        counts,
        out.sorted_ids,
        out.expert_of_block,
        out.num_padded,
        places,
        experts,
        first,
        BLOCK_M=block,
        BLOCK_E=triton.next_power_of_2(experts),
        **options,
    )
    return out


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: 8 of 128 experts for each token."""
    for row in SHIPPED.rows("alignment", arch):
        places = row.up_to or 65_536

        def make(device: torch.device, places: int = places) -> Launch:
            ids = torch.randint(0, 128, (places // 8, 8), dtype=torch.int32, device=device)
            blocks = most_blocks(places, 128, 16)
            out = Alignment(ids.new_zeros(16 * blocks), ids.new_zeros(blocks), ids.new_zeros(1), 16)

            def launch(tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
                found = align(ids, 128, 16, out=out, tables=tables)
                return found.sorted_ids, found.expert_of_block, found.num_padded

            return launch

        yield Example("alignment", places, make)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """Qwen3-30B-A3B's 128 experts, 8 of a token."""
    for configuration in tables.rows("alignment", arch):
        places, experts = configuration.up_to or 65_536, 128
        yield _specimen("count", _count, configuration, {"ids": "*i32", "counts": "*i32"}, {}, places, experts)
        pointers = {"ids", "counts", "sorted_ids", "expert_of_block", "num_padded"}
        for block in (16, 128) if configuration.up_to is None else (16,):
            yield _specimen(
                f"place, blocks of {block}",
                _place,
                configuration,
                dict.fromkeys(sorted(pointers, key=_place.arg_names.index), "*i32"),
                {"BLOCK_M": block, "BLOCK_E": experts},
                places,
                experts,
            )


def _specimen(
    variant: str,
    kernel: triton.JITFunction,
    configuration: Configuration,
    pointers: dict[str, str],
    constants: dict[str, int],
    places: int,
    experts: int,
) -> Specimen:
    given = {**{name: size for name, size in configuration.sizes.items() if name in kernel.arg_names}, **constants}
    kinds = {name: pointers.get(name, "constexpr" if name in given else "i32") for name in kernel.arg_names}
    reads = 1 if kernel is _count else 2
    return Specimen(
        operation="alignment",
        variant=f"{variant}, {places:,} places",
        kernel=kernel,
        signature=kinds,
        constants=given,
        num_warps=configuration.num_warps,
        num_stages=configuration.num_stages,
        aligned=tuple(pointers),
        work=Work(
            f"{places:,} places, {experts} experts",
            bytes=4 * places * reads,  # the walks of all experts but one are served by the cache
            flops=2 * places * experts * reads,
            peak="fp32",
        ),
    )
