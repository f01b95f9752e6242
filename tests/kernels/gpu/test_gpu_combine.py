"""The sum of what a token's experts found, in the order of its experts."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import combine as subject
from kernels.gpu.configurations import SHIPPED, Tables
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near

NAN = float("nan")
SMALL = Tables({"combine": {"default": [{"up_to": None, "BLOCK_D": 16, "num_warps": 1, "num_stages": 1}]}})


def compare(module: ModuleType, parts: Tensor, ids: Tensor, experts: int, first: int, out: torch.dtype) -> None:
    """In guarded memory with gaps. Parts of absent experts hold NaN: they were never written."""
    tokens, per_token = ids.shape
    width = parts.shape[1]
    absent = ((ids < first) | (ids >= first + experts)).flatten()
    parts = parts.masked_fill(absent[:, None], NAN)
    memory = Guarded(parts, strides=(width + 5, 1)), Guarded(ids.int(), strides=(per_token + 2, 1))
    found = Guarded.empty(tokens, width, dtype=out, strides=(width + 3, 1))
    module.combine(memory[0].tensor, memory[1].tensor, experts, first, found.tensor, tables=SMALL)
    for one in (*memory, found):
        one.assert_intact()
    assert_near(found.tensor, reference.combine(parts.double(), ids, experts, first))


def check_sum(module: ModuleType) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 0, 2], [9, 5, 1], [5, 6, 4], [1, 4, 0]])  # 5 and 0 are next to what is here
    compare(module, torch.randn(15, 37), ids, 4, 1, torch.float32)


def check_half(module: ModuleType) -> None:
    ids = torch.rand(3, 8).argsort(-1)[:, :2]
    compare(module, torch.randn(6, 16).half(), ids, 8, 0, torch.float16)


CHECKS: list[Check] = [check_sum, check_half]
DEFECTS = [
    Defect("the last of the k forgotten", "tl.static_range(PER_TOKEN)", "tl.static_range(PER_TOKEN - 1)"),
    Defect("experts behind the last", "(expert >= 0) & (expert < experts)", "(expert >= 0) & (expert <= experts)"),
    Defect("experts before the first", "(expert >= 0) & (expert < experts)", "(expert >= -1) & (expert < experts)"),
    Defect("experts counted from 0", "* ids_stride + place) - first", "* ids_stride + place)"),
    Defect("ids lie densely", "token * ids_stride + place", "token * PER_TOKEN + place"),
    Defect("parts lie densely", "row * parts_stride", "row * width"),
    Defect("results lie densely", "token * out_stride", "token * width"),
    Defect("the first part again", "row = token * PER_TOKEN + place", "row = token * PER_TOKEN"),
    Defect("parts of the wrong token", "row = token * PER_TOKEN + place", "row = token + place"),
    Defect("every program the first columns", "tl.program_id(1) * BLOCK_D +", "tl.program_id(1) * 0 +"),
    Defect(
        "columns that are not there",
        "total.to(out.dtype.element_ty), mask=columns < width)",
        "total.to(out.dtype.element_ty), mask=columns <= width)",
    ),
    Defect("the last column left out", "mask = (columns < width) &", "mask = (columns < width - 1) &"),
    Defect("only the last part", "total += tl.load", "total = tl.load"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_combine(check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_is_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, subject, CHECKS, tmp_path)


def test_one_token_of_one_expert() -> None:
    compare(subject, torch.randn(1, 1), torch.tensor([[0]]), 1, 0, torch.float32)


def test_half_precision_into_single() -> None:
    compare(subject, torch.randn(6, 20).half(), torch.tensor([[0, 1], [1, 0], [2, 2]]), 2, 0, torch.float32)


def test_the_sum_goes_in_the_order_of_the_ids() -> None:
    parts = torch.tensor([[1.0], [1e8], [-1e8], [1e8], [-1e8], [1.0]])
    found = subject.combine(parts.to(DEVICE), torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.int32, device=DEVICE), 3)
    assert found.tolist() == [[0.0], [1.0]]


def test_a_row_is_its_own() -> None:
    parts, ids = torch.randn(12, 40, device=DEVICE), torch.randint(0, 4, (4, 3), dtype=torch.int32, device=DEVICE)
    together = subject.combine(parts, ids, 4)
    for row in range(4):
        assert torch.equal(subject.combine(parts[3 * row : 3 * row + 3], ids[row : row + 1], 4)[0], together[row])


def test_tokens_of_no_expert_are_zero() -> None:
    parts = torch.full((4, 8), NAN, device=DEVICE)
    assert (
        subject.combine(parts, torch.full((2, 2), 4, dtype=torch.int32, device=DEVICE), 4).tolist() == [[0.0] * 8] * 2
    )


def test_no_tokens() -> None:
    ids = torch.zeros(0, 2, dtype=torch.int32, device=DEVICE)
    assert subject.combine(torch.zeros(0, 8, device=DEVICE), ids, 4).shape == (0, 8)


IDS = torch.zeros(2, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("message", "parts", "ids", "experts", "first", "out"),
    [
        ("`ids`: the type must be int32", torch.zeros(4, 8), IDS.long(), 4, 0, None),
        (r"`parts`: the shape must be \[4, any\], not \[3, 8\]", torch.zeros(3, 8), IDS, 4, 0, None),
        ("`parts`: the type must be", torch.zeros(4, 8, dtype=torch.int8), IDS, 4, 0, None),
        ("`parts`: its last dimension must be dense", torch.zeros(8, 4).T, IDS, 4, 0, None),
        ("`experts`: at least one is needed, not 0", torch.zeros(4, 8), IDS, 0, 0, None),
        ("`first`: experts are counted from 0, not from -2", torch.zeros(4, 8), IDS, 4, -2, None),
        (r"`out`: the shape must be \[2, 8\], not \[4, 8\]", torch.zeros(4, 8), IDS, 4, 0, torch.zeros(4, 8)),
    ],
)
def test_bad_input(message: str, parts: Tensor, ids: Tensor, experts: int, first: int, out: Tensor | None) -> None:
    with pytest.raises(ValueError, match=message):
        subject.combine(parts, ids, experts, first, out)


def test_tuning_has_an_example_of_each_row() -> None:
    sizes = [example.size for example in subject.examples(90)]
    assert [SHIPPED.find("combine", size, 90) for size in sizes] == SHIPPED.rows("combine", 90)
