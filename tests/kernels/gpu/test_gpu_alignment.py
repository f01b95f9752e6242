"""The places of a step by expert, exactly as the twin has them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import alignment as subject
from kernels.gpu.alignment import Alignment, most_blocks
from kernels.gpu.configurations import SHIPPED, Tables
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded

UNTOUCHED = 113  # what guarded memory holds
SMALL = Tables({"alignment": {"default": [{"up_to": None, "BLOCK": 8, "num_warps": 1, "num_stages": 1}]}})


def compare(module: ModuleType, ids: Tensor, experts: int, block: int, first: int = 0) -> None:
    given = Guarded(ids.int())
    blocks = most_blocks(ids.numel(), experts, block)
    memory = [Guarded.empty(size, dtype=torch.int32) for size in (blocks * block, blocks, 1)]
    out = Alignment(memory[0].tensor, memory[1].tensor, memory[2].tensor, block)
    assert module.align(given.tensor, experts, block, first, out, tables=SMALL) is out
    for one in (given, *memory):
        one.assert_intact()
    places, owners = reference.align(ids, experts, block, first)
    used = len(places)
    assert out.num_padded.tolist() == [used]
    assert out.sorted_ids.tolist() == places.tolist() + [UNTOUCHED] * (blocks * block - used)
    assert out.expert_of_block.tolist() == owners.tolist() + [UNTOUCHED] * (blocks - used // block)


def check_order(module: ModuleType) -> None:
    """More places than are walked at once, in no multiple of anything; one expert without any."""
    ids = torch.randint(0, 5, (9, 3))
    ids[ids == 2] = 4
    compare(module, ids, 5, 4)


def check_slice(module: ModuleType) -> None:
    """Experts of one process among others: the one that guarded memory seems to name is the last of this process."""
    ids = torch.randint(106, 118, (3, 3))
    compare(module, ids, UNTOUCHED - 107, 2, first=108)


CHECKS: list[Check] = [check_order, check_slice]
DEFECTS = [
    Defect(
        "counts beyond the places",
        "found += (tl.load(ids + at, mask=at < places, other=-1) == first",
        "found += (tl.load(ids + at) == first",
    ),
    Defect(
        "places that are not there",
        "mine = (tl.load(ids + at, mask=at < places, other=-1) ==",
        "mine = (tl.load(ids + at) ==",
    ),
    Defect(
        "counts from expert 0",
        "other=-1) == first + expert).to(tl.int32)\n    tl",
        "other=-1) == expert).to(tl.int32)\n    tl",
    ),
    Defect(
        "places from expert 0",
        "other=-1) == first + expert).to(tl.int32)\n        rank",
        "other=-1) == expert).to(tl.int32)\n        rank",
    ),
    Defect("counts of the last walk only", "found += (tl.load", "found = (tl.load"),
    Defect("experts not filled up", "(count + BLOCK_M - 1) // BLOCK_M * BLOCK_M", "count"),
    Defect("a block more than needed", "(count + BLOCK_M - 1) // BLOCK_M", "(count + BLOCK_M) // BLOCK_M"),
    Defect("begins behind itself", "tl.where(every < expert, padded, 0)", "tl.where(every <= expert, padded, 0)"),
    Defect("the end of the last forgotten", "tl.store(num_padded, end)", "tl.store(num_padded, begin)"),
    Defect("used up to the first expert", "if expert == experts - 1:", "if expert == 0:"),
    Defect("rank counts itself", "tl.cumsum(mine, 0) - mine", "tl.cumsum(mine, 0)"),
    Defect("everyone's places", "mask=mine > 0", "mask=at < places"),
    Defect(
        "a walk's own places",
        "tl.store(sorted_ids + next_place + rank, at,",
        "tl.store(sorted_ids + next_place + rank, at - start,",
    ),
    Defect("each walk over the last", "next_place += tl.sum(mine, 0)", "next_place = begin + tl.sum(mine, 0)"),
    Defect("filled with place 0", "tl.zeros([BLOCK_M], tl.int32) + places", "tl.zeros([BLOCK_M], tl.int32)"),
    Defect("filled into the next expert's", "mask=rest < end)", "mask=rest < end + 1)"),
    Defect("blocks from the first", "range(begin // BLOCK_M, end // BLOCK_M)", "range(0, (end - begin) // BLOCK_M)"),
    Defect(
        "blocks name experts of all processes",
        "tl.store(expert_of_block + block, expert)",
        "tl.store(expert_of_block + block, first + expert)",
    ),
]


@pytest.mark.parametrize("check", CHECKS)
def test_align(check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_is_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, subject, CHECKS, tmp_path)


@pytest.mark.parametrize("block", [1, 2, 16])
def test_blocks(block: int) -> None:
    compare(subject, torch.randint(0, 3, (5, 2)), 3, block)


def test_all_places_on_one_expert() -> None:
    compare(subject, torch.full((11, 1), 3), 4, 4)


def test_one_token() -> None:
    compare(subject, torch.tensor([[5, 0, 3]]), 6, 8)


def test_the_most_blocks_that_there_can_be() -> None:
    compare(subject, torch.tensor([[0, 1, 2]] * 5), 3, 4)  # each expert one more than a block has


def test_padding_goes_nowhere() -> None:
    ids = torch.randint(0, 4, (6, 2))
    ids[3:] = 4  # as the gate leaves rows that are no token's
    compare(subject, ids, 4, 4)


def test_no_expert_of_this_process() -> None:
    compare(subject, torch.randint(0, 4, (3, 2)), 4, 4, first=8)


def test_no_tokens() -> None:
    compare(subject, torch.zeros(0, 2, dtype=torch.long), 4, 4)


def test_many_experts_in_one_walk() -> None:
    ids = torch.rand(20, 40).argsort(-1)[:, :8].int().to(DEVICE)
    found = subject.align(ids, 40, 16)
    places, owners = reference.align(ids.cpu(), 40, 16)
    assert found.num_padded.tolist() == [len(places)]
    assert found.sorted_ids[: len(places)].tolist() == places.tolist()
    assert found.expert_of_block[: len(owners)].tolist() == owners.tolist()


@pytest.mark.parametrize(("places", "experts", "block", "most"), [(1, 128, 16, 1), (8, 128, 16, 8), (16, 1, 16, 1)])
def test_room(places: int, experts: int, block: int, most: int) -> None:
    assert most_blocks(places, experts, block) == most


@pytest.mark.parametrize(
    ("message", "ids", "experts", "block", "first"),
    [
        ("`ids`: the type must be int32, not int64", torch.zeros(2, 2, dtype=torch.long), 4, 16, 0),
        (r"`ids`: the shape must be \[any, any\]", torch.zeros(4, dtype=torch.int32), 4, 16, 0),
        ("`ids`: it must be contiguous", torch.zeros(2, 4, dtype=torch.int32)[:, :2], 4, 16, 0),
        ("`experts`: 1 to 1024", torch.zeros(2, 2, dtype=torch.int32), 0, 16, 0),
        ("`experts`: 1 to 1024", torch.zeros(2, 2, dtype=torch.int32), 1025, 16, 0),
        ("`block`: a block has a power of two of places, not 12", torch.zeros(2, 2, dtype=torch.int32), 4, 12, 0),
        ("`block`: a block has a power of two of places, not 0", torch.zeros(2, 2, dtype=torch.int32), 4, 0, 0),
        ("`first`: experts are counted from 0, not from -1", torch.zeros(2, 2, dtype=torch.int32), 4, 16, -1),
    ],
)
def test_bad_input(message: str, ids: Tensor, experts: int, block: int, first: int) -> None:
    with pytest.raises(ValueError, match=message):
        subject.align(ids, experts, block, first)


def test_results_go_where_they_fit() -> None:
    ids = torch.zeros(2, 2, dtype=torch.int32, device=DEVICE)
    fitting = subject.align(ids, 4, 4)
    with pytest.raises(ValueError, match="`out`: its blocks must have 8 places, not 4"):
        subject.align(ids, 4, 8, out=fitting)
    short = Alignment(fitting.sorted_ids[:4], fitting.expert_of_block, fitting.num_padded, 4)
    with pytest.raises(ValueError, match=r"`out.sorted_ids`: the shape must be \[16\], not \[4\]"):
        subject.align(ids, 4, 4, out=short)


def test_tuning_has_an_example_of_each_row() -> None:
    sizes = [example.size for example in subject.examples(90)]
    assert [SHIPPED.find("alignment", size, 90) for size in sizes] == SHIPPED.rows("alignment", 90)
