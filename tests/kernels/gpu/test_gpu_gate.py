"""Which experts a token goes to: the ids exactly as the twin has them, the shares as fp64 would."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import gate as subject
from kernels.gpu.configurations import SHIPPED, Tables
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near

NAN, INFINITY = float("nan"), float("inf")
SMALL = Tables({"gate": {"default": [{"up_to": None, "BLOCK_T": 4, "num_warps": 1, "num_stages": 1}]}})


def run(
    module: ModuleType, logits: Tensor, per_token: int, normalise: bool, live: int | None = None
) -> tuple[Tensor, Tensor]:
    """In guarded memory, rows three elements apart."""
    given = Guarded(logits, strides=(logits.shape[1] + 3, 1))
    shape = len(logits), per_token
    ids, shares = Guarded.empty(*shape, dtype=torch.int32), Guarded.empty(*shape, dtype=torch.float32)
    count = None if live is None else torch.tensor([live], dtype=torch.int32, device=DEVICE)
    found = module.gate(given.tensor, per_token, normalise, count, (ids.tensor, shares.tensor), tables=SMALL)
    for memory in (given, ids, shares):
        memory.assert_intact()
    return found[0].cpu(), found[1].cpu()


def truth(logits: Tensor, ids: Tensor, normalise: bool) -> Tensor:
    shares = logits.double().softmax(-1).gather(1, ids)
    return shares / shares.sum(-1, keepdim=True) if normalise else shares


def check_choice(module: ModuleType, kind: torch.dtype = torch.float32, tokens: int = 6, experts: int = 6) -> None:
    logits = 2 * torch.randn(tokens, experts)
    if kind == torch.float32:
        logits[0] -= 98  # whose powers by themselves would be below the least normal number
    logits = logits.to(kind)
    for normalise in (False, True):
        ids, shares = run(module, logits, 3, normalise)
        assert torch.equal(ids.long(), reference.gate(logits, 3, normalise)[0])
        assert_near(shares, truth(logits, ids.long(), normalise))


def check_equals(module: ModuleType) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 1.0, 3.0, 0.0], [0.0] * 6, [-INFINITY, 2.0, -INFINITY, 2.0, -INFINITY, 1.0]])
    ids, shares = run(module, logits, 5, False)
    expected, of = reference.gate(logits, 5, False)
    assert torch.equal(ids.long(), expected)
    assert_near(shares, of.double())


def check_padding(module: ModuleType) -> None:
    """What padding holds is nobody's."""
    logits = torch.randn(6, 6)
    whole = run(module, logits, 3, True)
    spoiled = logits.clone()
    spoiled[2:, 1:] = NAN
    ids, shares = run(module, spoiled, 3, True, live=2)
    assert torch.equal(ids[:2], whole[0][:2]) and torch.equal(shares[:2], whole[1][:2])
    assert ids[2:].tolist() == [[6] * 3] * 4, "padding has no expert"
    assert shares[2:].tolist() == [[0.0] * 3] * 4


def check_not_finite(module: ModuleType) -> None:
    """Such a row stays visible, and its ids within bounds."""
    logits = torch.randn(3, 6)
    logits[1, :4] = NAN
    ids, shares = run(module, logits, 4, True)
    assert all(sorted(set(row)) == sorted(row) and 0 <= min(row) and max(row) < 6 for row in ids.tolist())
    assert bool(shares[1].isnan().all()) and bool(shares[[0, 2]].isfinite().all())


CHECKS: list[Check] = [check_choice, check_equals, check_padding, check_not_finite]
DEFECTS = [
    Defect("columns beyond the experts", "mask=live[:, None] & is_expert[None, :]", "mask=live[:, None]"),
    Defect("the last expert forgotten", "is_expert = columns < experts", "is_expert = columns < experts - 1"),
    Defect("rows lie densely", "[:, None] * logits_stride", "[:, None] * experts"),
    Defect("padding counts", "live = inside & (rows < tl.load(num_tokens))", "live = inside"),
    Defect("padding's experts", "tl.where(live[:, None], chosen, experts)", "tl.where(live[:, None], chosen, 0)"),
    Defect("rows that are not there", "mask = inside[:, None] & (places", "mask = (rows >= 0)[:, None] & (places"),
    Defect("no stable exponents", "tl.exp2((x - top[:, None])", "tl.exp2((x)"),
    Defect("powers of two", "* 1.4426950408889634)", "* 1.0)"),
    Defect(
        "the higher of equals",
        "tl.min(tl.where(left & (order == best[:, None]), columns[None, :], BLOCK_E), 1)",
        "tl.max(tl.where(left & (order == best[:, None]), columns[None, :], -1), 1)",
    ),
    Defect("the same expert again", "left = left & (columns[None, :] != expert[:, None])", "left = left"),
    Defect("not normalised", "weights = weights / tl.where(live, taken, 1.0)[:, None]", "weights = weights"),
    Defect("always normalised", "if NORMALISE:", "if PER_TOKEN:"),
    Defect(
        "shares of the chosen only",
        "total = tl.where(live, tl.sum(powers, 1), 1.0)",
        "total = tl.where(live, tl.max(powers, 1), 1.0)",
    ),
    Defect("rows as long as the block", "* PER_TOKEN + places", "* BLOCK_K + places"),
    Defect("places beyond k", "(places < PER_TOKEN)[None, :]", "(places < BLOCK_K)[None, :]"),
    Defect("what is no number compares", 'order = tl.where(x == x, x, float("-inf"))', "order = x"),
    Defect("the second block's rows", "rows = tl.program_id(0) * BLOCK_T +", "rows = tl.program_id(0) * 1 +"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_gate(check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_is_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, subject, CHECKS, tmp_path)


@pytest.mark.parametrize(("tokens", "experts"), [(1, 3), (5, 8), (3, 60), (2, 128)])
def test_sizes(tokens: int, experts: int) -> None:
    check_choice(subject, torch.float32, tokens, experts)


def test_half_precision_is_compared_exactly() -> None:
    check_choice(subject, torch.float16, 4, 32)


def test_all_experts_may_be_chosen() -> None:
    logits = torch.randn(2, 6)
    ids, shares = run(subject, logits, 6, False)
    assert torch.equal(ids.long(), logits.argsort(descending=True))
    assert_near(shares.sum(-1), torch.ones(2).double())


def test_a_row_is_its_own() -> None:
    logits = torch.randn(7, 12)
    ids, shares = run(subject, logits, 4, True)
    for row in range(7):
        alone = run(subject, logits[row : row + 1], 4, True)
        assert torch.equal(alone[0][0], ids[row]) and torch.equal(alone[1][0], shares[row])


def test_no_tokens() -> None:
    ids, shares = subject.gate(torch.zeros(0, 8, device=DEVICE), 2, True)
    assert ids.shape == shares.shape == (0, 2)


def test_without_out_it_allocates() -> None:
    logits = torch.randn(3, 8, device=DEVICE)
    ids, shares = subject.gate(logits, 2, True)
    assert (ids.dtype, shares.dtype) == (torch.int32, torch.float32)
    assert torch.equal(ids.cpu().long(), reference.gate(logits.cpu(), 2, True)[0])


@pytest.mark.parametrize(
    ("message", "logits", "per_token", "count"),
    [
        (r"`logits`: the shape must be \[any, any\]", torch.zeros(8), 2, None),
        ("`logits`: the type must be", torch.zeros(2, 8, dtype=torch.int32), 2, None),
        ("`logits`: its last dimension must be dense", torch.zeros(8, 2).T, 2, None),
        ("`logits`: 1 to 1024 experts", torch.zeros(2, 1025), 2, None),
        ("`per_token`: 1 to 8 of 8 experts can be chosen, not 9", torch.zeros(2, 8), 9, None),
        ("`per_token`: 1 to 8 of 8 experts can be chosen, not 0", torch.zeros(2, 8), 0, None),
        ("`num_tokens`: the type must be int32", torch.zeros(2, 8), 2, torch.tensor([2])),
    ],
)
def test_bad_input(message: str, logits: Tensor, per_token: int, count: Tensor | None) -> None:
    with pytest.raises(ValueError, match=message):
        subject.gate(logits, per_token, True, count)


def test_results_go_where_they_fit() -> None:
    ids, shares = torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"`out\[1\]`: the shape must be \[2, 2\], not \[2, 3\]"):
        subject.gate(torch.zeros(2, 8), 2, True, out=(ids, shares))


def test_tuning_has_an_example_of_each_row() -> None:
    sizes = [example.size for example in subject.examples(90)]
    assert [SHIPPED.find("gate", size, 90) for size in sizes] == SHIPPED.rows("gate", 90)
