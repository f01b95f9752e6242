"""Tokens through their experts: as a loop over the experts in fp64 has it, on the same dequantised weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import experts as subject
from kernels.gpu.alignment import Alignment, align, most_blocks
from kernels.gpu.configurations import SHIPPED, Tables
from kernels.gpu.expert_stack import ExpertStack, Kin, prepare_experts
from kernels.gpu.gate import gate
from kernels.gpu.matrices import GPUMatrix
from kernels.packed import Format, Matrix, Stack, pack, unpack
from tests.kernels.gpu.defects import Check, Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near

NAN = float("nan")
ROWS = [
    {"up_to": 2, "BLOCK_M": 16, "BLOCK_N": 32, "ABREAST": 2, "num_warps": 4, "num_stages": 1},
    {"up_to": None, "BLOCK_M": 32, "BLOCK_N": 32, "ABREAST": 2, "num_warps": 4, "num_stages": 1},
]
SMALL = Tables({"experts": {"default": ROWS}, "experts_fp32": {"default": ROWS}})
INT4, INT8 = Format("int4", 4, 32), Format("int8", 8, 0)


def made(count: int, height: int, columns: int, formats: Sequence[Format | None] = (None,)) -> list[Matrix]:
    """Experts' matrices, in the formats in turn."""
    plain = torch.randn(count, height, columns) * columns**-0.5
    by_turns = [formats[index % len(formats)] for index in range(count)]
    return [weight if format is None else pack(weight, format) for weight, format in zip(plain, by_turns, strict=True)]


def wide(matrices: Sequence[Matrix], kind: torch.dtype = torch.float32) -> list[Tensor]:
    """fp64: plain weights as the activations' type has them."""
    return [(unpack(m) if not isinstance(m, Tensor) else m.to(kind)).double() for m in matrices]


def surrounded(tensor: Tensor | None) -> Tensor | None:
    """In the middle of much more of what must not be read."""
    if tensor is None:
        return None
    margin = 4 * tensor.numel() + 64
    fill = NAN if tensor.dtype.is_floating_point else 113
    memory = torch.full((tensor.numel() + 2 * margin,), fill, dtype=tensor.dtype, device=DEVICE)
    memory[margin:-margin] = tensor.flatten()
    return memory[margin:-margin].view(tensor.shape)


def apart(stack: ExpertStack) -> ExpertStack:
    def kin(one: Kin) -> Kin:
        found = {name: surrounded(getattr(one.weights, name)) for name in ("data", "scale", "minimum", "factor")}
        return Kin(replace(one.weights, **found), one.slots)  # type: ignore[arg-type]  # data is one

    return replace(stack, gate_up=tuple(map(kin, stack.gate_up)), down=tuple(map(kin, stack.down)))


def ordered(ids: Tensor, stack: ExpertStack, first: int, kind: torch.dtype) -> Alignment:
    """What is not in use holds blocks of the last expert and place 0, which would spoil what is."""
    block = subject.block_of(kind, ids.numel(), stack.count, None, SMALL)
    blocks = most_blocks(ids.numel(), stack.count, block)
    sorted_ids = torch.zeros(blocks * block, dtype=torch.int32, device=DEVICE)
    owners = torch.full((blocks,), stack.count - 1, dtype=torch.int32, device=DEVICE)
    return align(
        ids.int().to(DEVICE), stack.count, block, first, Alignment(sorted_ids, owners, owners.new_empty(1), block)
    )


def compare(
    module: ModuleType,
    ids: Tensor,
    gate_up: Sequence[Matrix],
    down: Sequence[Matrix],
    first: int = 0,
    kind: torch.dtype = torch.float32,
) -> None:
    """Both products by themselves, in guarded memory."""
    stack = apart(prepare_experts(gate_up, down, DEVICE, kind))
    tokens, per_token = ids.shape
    places = ids.numel()
    shares = torch.rand(tokens, per_token)
    x = torch.randn(tokens, stack.width).to(kind)
    order = ordered(ids, stack, first, kind)
    present = ((ids >= first) & (ids < first + len(down))).flatten()
    matrices = list(zip(wide(gate_up, kind), wide(down, kind), strict=True))

    inner = Guarded.empty(places, stack.inner, dtype=kind)
    memory = surrounded(torch.nn.functional.pad(x, (0, 4), value=NAN))
    assert memory is not None
    module.gate_up(memory[:, : stack.width], order, per_token, stack, inner.tensor, tables=SMALL)
    inner.assert_intact()
    assert bool(inner.tensor[~present].isnan().all()), "places of absent experts are left alone"
    true_inner = [
        reference.swiglu(x[place // per_token].double() @ matrices[expert - first][0].T[None])[0]
        for place, expert in enumerate(ids.flatten().tolist())
        if present[place]
    ]
    assert_near(inner.tensor[present], torch.stack(true_inner))

    parts = Guarded.empty(places, stack.width, dtype=kind)
    share_memory = surrounded(shares)
    assert share_memory is not None
    module.down(inner.tensor, order, share_memory, stack, parts.tensor, tables=SMALL)
    parts.assert_intact()
    assert bool(parts.tensor[~present].isnan().all()), "places of absent experts are left alone"
    true_parts = [
        inner.tensor[place].cpu().double() @ matrices[expert - first][1].T * shares.flatten()[place].double()
        for place, expert in enumerate(ids.flatten().tolist())
        if present[place]
    ]
    assert_near(parts.tensor[present], torch.stack(true_parts))


def check_plain(module: ModuleType) -> None:
    """Some of the ids are of other processes, or of nobody; two experts have no token, and two blocks no use."""
    ids = torch.tensor([[1, 3], [3, 0], [3, 1], [5, 3], [1, 0]])
    compare(module, ids, made(4, 80, 72), made(4, 72, 40), first=1)


def check_formats(module: ModuleType) -> None:
    """Neighbours in different formats, of which each launch must leave the others' blocks alone."""
    ids = torch.tensor([[0, 3], [1, 2], [3, 1]])
    compare(module, ids, made(4, 64, 64, (INT4, INT8)), made(4, 64, 32, (INT8, INT4, None)))


def check_tight(module: ModuleType) -> None:
    """As many blocks as there can be, an odd number of them."""
    compare(module, torch.tensor([[2, 0, 1]]), made(3, 64, 64), made(3, 64, 32))


CHECKS: list[Check] = [check_plain, check_formats, check_tight]
DEFECTS = [
    Defect("blocks that are not in use", "is_used = (block < blocks) & (tile < tiles)", "is_used = tile < tiles"),
    Defect("all groups are full", "tl.minimum(tl.maximum(blocks - first, 1), ABREAST)", "ABREAST"),
    Defect("the first group's blocks", "block = first + rest % together", "block = rest % together"),
    Defect("tiles by the wrong divisor", "tile = rest // together", "tile = rest // ABREAST"),
    Defect("every block the first expert", "tl.load(expert_of_block + block,", "tl.load(expert_of_block,"),
    Defect(
        "experts without slots",
        "slot = tl.load(slots + expert, mask=is_used, other=-1)",
        "slot = tl.where(is_used, expert, -1)",
    ),
    Defect("every block the first places", "at = block * BLOCK_M + tl.arange", "at = tl.arange"),
    Defect("every tile the first outputs", "return places, tile * BLOCK_N + ", "return places, tile * 0 + "),
    Defect("one expert's weights for all", "data += matrix * data_matrix", "data += matrix * 0"),
    Defect("one expert's scales for all", "scale += matrix * scale_matrix", "scale += matrix * 0"),
    Defect("one expert's factors for all", "factor + matrix * height + rows", "factor + rows"),
    Defect("one row's factor for all", "factor + matrix * height + rows)[:, None]", "factor + matrix * height)"),
    Defect("half as many rows of gate and up", "factor, rows, 2 * inner, last,", "factor, rows, inner, last,"),
    Defect("gate twice", "factor, rows + inner, 2 * inner, last,", "factor, rows, 2 * inner, last,"),
    Defect("rows of x by place", "(own // PER_TOKEN).to(tl.int64) * x_stride", "own.to(tl.int64) * x_stride"),
    Defect(
        "rows of x lie densely",
        "(own // PER_TOKEN).to(tl.int64) * x_stride",
        "(own // PER_TOKEN).to(tl.int64) * columns",
    ),
    Defect(
        "the last tile left out", "scale_stride, 0, last,\n        NAME", "scale_stride, 0, last - 1,\n        NAME"
    ),
    Defect("the first tile left out", "scale_stride, 0, last,\n        NAME", "scale_stride, 1, last,\n        NAME"),
    Defect("minus forgotten", "tl.exp2(gate * -1.4426950408889634)", "tl.exp2(gate * 1.4426950408889634)"),
    Defect("powers of two", "tl.exp2(gate * -1.4426950408889634)", "tl.exp2(gate * -1.0)"),
    Defect("no gate", "found = gate / (1.0 +", "found = 1.0 / (1.0 +"),
    Defect("no up", "-1.4426950408889634)) * up", "-1.4426950408889634))"),
    Defect(
        "inner state by token",
        "at = own.to(tl.int64)[None, :] * inner +",
        "at = (own // PER_TOKEN).to(tl.int64)[None, :] * inner +",
    ),
    Defect(
        "inner columns that are not there",
        "mask=is_place[None, :] & (outputs < inner)[:, None])",
        "mask=is_place[None, :])",
    ),
    Defect(
        "inner state of no place",
        "mask=is_place[None, :] & (outputs < inner)[:, None])",
        "mask=(outputs < inner)[:, None])",
    ),
    Defect("rows of the inner state", "x_rows = own.to(tl.int64) * columns", "x_rows = own.to(tl.int64) * width"),
    Defect("no shares", "found *= tl.load(shares + own, mask=is_place, other=0.0)[None, :]", "found *= 1.0"),
    Defect(
        "shares by output",
        "tl.load(shares + own, mask=is_place, other=0.0)",
        "tl.load(shares + tl.arange(0, BLOCK_M), mask=is_place, other=0.0)",
    ),
    Defect("parts that lie apart", "[None, :] * width + outputs[:, None]", "[None, :] * columns + outputs[:, None]"),
    Defect(
        "columns that are not there", "mask=is_place[None, :] & (outputs < width)[:, None])", "mask=is_place[None, :])"
    ),
    Defect(
        "parts of no place", "mask=is_place[None, :] & (outputs < width)[:, None])", "mask=(outputs < width)[:, None])"
    ),
]


@pytest.mark.parametrize("check", CHECKS)
def test_experts(check: Check) -> None:
    check(subject)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_is_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, subject, CHECKS, tmp_path)


@pytest.mark.parametrize(
    "format",
    [
        None,
        INT8,
        Format("int8", 8, 32),
        Format("int8", 8, 32, zeros=True),
        Format("int4", 4, 128),
        Format("int4", 4, 32, zeros=True),
        Format("int3", 3, 128),
        Format("fp8", 8, 0),
    ],
    ids=str,
)
def test_formats_and_half_precision(format: Format | None) -> None:
    compare(
        subject,
        torch.tensor([[0, 1], [1, 0]]),
        made(2, 256, 128, (format,)),
        made(2, 128, 128, (format,)),
        kind=torch.float16,
    )


def run(x: Tensor, ids: Tensor, shares: Tensor, stack: ExpertStack, first: int = 0) -> Tensor:
    found = subject.experts(x.to(DEVICE), ids.int().to(DEVICE), shares.to(DEVICE), stack, first, tables=SMALL)
    return found.cpu()


def truth(
    x: Tensor, ids: Tensor, shares: Tensor, gate_up: Sequence[Matrix], down: Sequence[Matrix], first: int = 0
) -> Tensor:
    return reference.experts(x.double(), ids, shares.double(), wide(gate_up, x.dtype), wide(down, x.dtype), first)


CHOICES: dict[str, Callable[[], Tensor]] = {
    "several blocks of each expert": lambda: torch.rand(37, 3).argsort(-1)[:, :2],
    "all tokens to one expert": lambda: torch.full((35, 1), 1),
    "experts without tokens": lambda: torch.tensor([[0, 2]] * 3),
    "one token": lambda: torch.tensor([[2, 1]]),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_whole_way(choice: str) -> None:
    ids = CHOICES[choice]()
    gate_up, down = made(3, 48, 40), made(3, 40, 24)
    x, shares = torch.randn(len(ids), 40), torch.rand(ids.shape)
    found = run(x, ids, shares, prepare_experts(gate_up, down, DEVICE, torch.float32))
    assert_near(found, truth(x, ids, shares, gate_up, down))


def test_half_precision() -> None:
    ids = torch.rand(6, 3).argsort(-1)[:, :2]
    gate_up, down = made(3, 48, 40), made(3, 40, 24)
    x, shares = torch.randn(6, 40).half(), torch.rand(6, 2)
    found = run(x, ids, shares, prepare_experts(gate_up, down, DEVICE, torch.float16))
    assert_near(found, truth(x, ids, shares, gate_up, down))


def test_padding_spoils_nothing() -> None:
    """From the gate on: rows that are no token's hold anything, and their results are zero."""
    gate_up, down = made(4, 48, 40), made(4, 40, 24)
    stack = prepare_experts(gate_up, down, DEVICE, torch.float32)
    x, logits = torch.randn(6, 40), torch.randn(6, 4)
    x[4:], logits[4:, 0] = NAN, NAN
    ids, shares = gate(logits.to(DEVICE), 2, True, torch.tensor([4], dtype=torch.int32, device=DEVICE))
    found = subject.experts(x.to(DEVICE), ids, shares, stack, tables=SMALL).cpu()
    true_ids, true_shares = reference.gate(logits[:4], 2, True)
    assert_near(found[:4], truth(x[:4], true_ids, true_shares, gate_up, down))
    assert found[4:].tolist() == [[0.0] * 40] * 2


def test_slices_of_the_experts_add_up() -> None:
    gate_up, down = made(4, 48, 40, (INT8, None)), made(4, 40, 24)
    ids, shares = torch.rand(5, 4).argsort(-1)[:, :3], torch.rand(5, 3)
    x = torch.randn(5, 40)
    slices = [
        run(x, ids, shares, prepare_experts(gate_up[a:b], down[a:b], DEVICE, torch.float32), a)
        for a, b in ((0, 1), (1, 4))
    ]
    assert_near(sum(slices, torch.zeros(5, 40)), truth(x, ids, shares, gate_up, down))


def test_a_row_of_a_product_is_its_own() -> None:
    """Bit by bit, in blocks of another size, among other experts' blocks.

    The inputs are whole numbers, so that within a tile the order of a library's sums makes no difference.
    """
    groups, kind = Format("int8", 8, 128), torch.float32  # two tiles, scaled before they are added
    first = prepare_experts(made(3, 64, 256, (groups,)), made(3, 256, 32), DEVICE, kind)
    second = prepare_experts(made(3, 512, 16), made(3, 16, 256, (groups,)), DEVICE, kind)
    ids = torch.rand(9, 3).argsort(-1)[:, :2].int().to(DEVICE)
    x, inner = (torch.randint(-8, 9, shape, device=DEVICE).float() for shape in ((9, 256), (18, 256)))
    shares = torch.rand(9, 2, device=DEVICE)
    order = align(ids, 3, 32)
    together = (
        subject.gate_up(x, order, 2, first, tables=SMALL),
        subject.down(inner, order, shares, second, tables=SMALL),
    )
    for row in (0, 4, 8):
        own, at = slice(row, row + 1), slice(2 * row, 2 * row + 2)
        order = align(ids[own], 3, 16)
        assert torch.equal(subject.gate_up(x[own], order, 2, first, tables=SMALL), together[0][at])
        assert torch.equal(subject.down(inner[at], order, shares[own], second, tables=SMALL), together[1][at])


def test_a_row_is_its_own() -> None:
    """Bit by bit, in blocks of one size: an interpreter's library sums differently for other sizes."""
    gate_up, down = made(3, 96, 128, (INT8, None, INT4)), made(3, 128, 48)
    stack = prepare_experts(gate_up, down, DEVICE, torch.float32)
    x, shares = torch.randn(9, 128, device=DEVICE), torch.rand(9, 2, device=DEVICE)
    ids = torch.rand(9, 3).argsort(-1)[:, :2].int().to(DEVICE)
    tables = Tables({"experts_fp32": {"default": [ROWS[0] | {"up_to": None}]}})
    together = subject.experts(x, ids, shares, stack, tables=tables)
    for row in (0, 8):
        own = slice(row, row + 1)
        assert torch.equal(subject.experts(x[own], ids[own], shares[own], stack, tables=tables)[0], together[row])


def test_an_expert_of_two_formats_is_expanded() -> None:
    whole = torch.randn(48, 64) / 8
    gate_up: list[Matrix] = [Stack((pack(whole[:24], INT4), pack(whole[24:], INT8))), pack(whole.flip(0), INT4)]
    down = made(2, 64, 24)
    stack = prepare_experts(gate_up, down, DEVICE, torch.float32)
    assert [(kin.weights.format, kin.slots.tolist()) for kin in stack.gate_up] == [(None, [0, -1]), (INT4, [-1, 0])]
    x, ids, shares = torch.randn(3, 64), torch.tensor([[0, 1], [1, 0], [0, 1]]), torch.rand(3, 2)
    assert_near(run(x, ids, shares, stack), truth(x, ids, shares, gate_up, down))


def test_a_stack_holds_what_was_stored() -> None:
    gate_up, down = made(3, 64, 64, (INT4, INT8)), made(3, 64, 32, (INT8,))
    stack = prepare_experts(gate_up, down, DEVICE, torch.float16)
    assert (stack.count, stack.width, stack.inner) == (3, 64, 32)
    assert [kin.slots.tolist() for kin in stack.gate_up] == [[0, -1, 1], [-1, 0, -1]]
    assert stack.nbytes == sum(kin.weights.nbytes for kin in (*stack.gate_up, *stack.down))
    for kin in stack.gate_up:
        for expert, slot in enumerate(kin.slots.tolist()):
            if slot >= 0:
                assert torch.equal(kin.weights.unpack()[slot].cpu(), unpack(gate_up[expert]))


def test_no_tokens() -> None:
    stack = prepare_experts(made(2, 48, 40), made(2, 40, 24), DEVICE, torch.float32)
    assert run(torch.zeros(0, 40), torch.zeros(0, 2), torch.zeros(0, 2), stack).shape == (0, 40)


def test_the_result_may_be_wider_than_the_inputs() -> None:
    gate_up, down = made(2, 48, 40), made(2, 40, 24)
    stack = prepare_experts(gate_up, down, DEVICE, torch.float16)
    x, ids, shares = torch.randn(2, 40).half(), torch.tensor([[0, 1], [1, 0]]), torch.rand(2, 2)
    out = torch.empty(2, 40, device=DEVICE)
    found = subject.experts(x.to(DEVICE), ids.int().to(DEVICE), shares.to(DEVICE), stack, out=out, tables=SMALL)
    assert found is out
    assert_near(out, truth(x, ids, shares, gate_up, down), 1e-3)


@pytest.mark.parametrize(
    ("message", "gate_up", "down"),
    [
        ("`gate_up`: there must be at least one expert", [], []),
        ("`down`: there must be 2 matrices, not 1", made(2, 48, 40), made(1, 40, 24)),
        (
            r"`gate_up`: every expert's must be \[48, 40\], not \[48, 32\]",
            [*made(1, 48, 40), *made(1, 48, 32)],
            made(2, 40, 24),
        ),
        (r"`down`: every expert's must be \[40, 24\], not \[40, 25\]", made(1, 48, 40), made(1, 40, 25)),
        (r"`gate_up`: every expert's must be \[48, 40\], not \[49, 40\]", made(1, 49, 40), made(1, 40, 24)),
        ("`down`: every expert's must be as it is stored", made(1, 48, 40), [GPUMatrix([torch.zeros(40, 24)])]),
        ("`gate_up`: it must have rows and columns", [torch.zeros(0, 40)], [torch.zeros(40, 0)]),
        (
            "`format`: int4-8: the kernels take groups of a multiple of 16",
            made(1, 48, 40, (Format("int4", 4, 8),)),
            made(1, 40, 24),
        ),
    ],
)
def test_experts_that_do_not_fit(message: str, gate_up: list[Matrix], down: list[Matrix]) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_experts(gate_up, down, DEVICE, torch.float32)


def test_bad_input() -> None:
    stack = prepare_experts(made(2, 48, 40), made(2, 40, 24), DEVICE, torch.float32)
    x, ids, shares = torch.zeros(3, 40), torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2)
    for message, given in {
        r"`x`: the shape must be \[3, 40\], not \[3, 48\]": (torch.zeros(3, 48), ids, shares),
        r"`x`: the shape must be \[3, 40\], not \[2, 40\]": (x[:2], ids, shares),
        "`x`: its last dimension must be dense": (torch.zeros(40, 3).T, ids, shares),
        "`ids`: the type must be int32, not int64": (x, ids.long(), shares),
        r"`shares`: the shape must be \[3, 2\], not \[3, 1\]": (x, ids, shares[:, :1]),
        "`shares`: the type must be float32, not float16": (x, ids, shares.half()),
        "`stack`: it was prepared for torch.float32, not for torch.float16": (x.half(), ids, shares),
    }.items():
        with pytest.raises(ValueError, match=message):
            subject.experts(*(tensor.to(DEVICE) for tensor in given), stack, tables=SMALL)
    with pytest.raises(ValueError, match="`first`: experts are counted from 0, not from -1"):
        subject.experts(x.to(DEVICE), ids.to(DEVICE), shares.to(DEVICE), stack, -1)


def test_products_by_themselves_take_what_fits() -> None:
    stack = prepare_experts(made(2, 48, 40), made(2, 40, 24), DEVICE, torch.float32)
    ids = torch.zeros(3, 2, dtype=torch.int32, device=DEVICE)
    x, inner, shares = (torch.zeros(shape, device=DEVICE) for shape in ((3, 40), (6, 24), (3, 2)))
    with pytest.raises(ValueError, match="`order`: its blocks must have 32 places, not 64"):
        subject.gate_up(x, align(ids, 2, 64), 2, stack, tables=SMALL)
    order = align(ids, 2, 32)
    with pytest.raises(ValueError, match=r"`out`: the shape must be \[6, 24\], not \[6, 40\]"):
        subject.gate_up(x, order, 2, stack, torch.zeros(6, 40, device=DEVICE), tables=SMALL)
    with pytest.raises(ValueError, match=r"`inner`: the shape must be \[6, 24\], not \[3, 40\]"):
        subject.down(x, order, shares, stack, tables=SMALL)
    with pytest.raises(ValueError, match=r"`out`: the shape must be \[6, 40\], not \[6, 24\]"):
        subject.down(inner, order, shares, stack, inner, tables=SMALL)
    wide_rows = torch.zeros(6, 48, device=DEVICE)
    with pytest.raises(ValueError, match="`inner`: it must be contiguous"):
        subject.down(wide_rows[:, :24], order, shares, stack, tables=SMALL)


def test_tuning_has_an_example_of_each_row() -> None:
    for table in ("experts", "experts_fp32"):
        sizes = [example.size for example in subject.examples(90) if example.table == table]
        assert [SHIPPED.find(table, size, 90) for size in sizes] == SHIPPED.rows(table, 90)


def test_an_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MODEL", (3, 2, 128, 128))
    stack = subject.random_experts(Format("int4", 4, 128), DEVICE, torch.float32)
    x, ids, shares = torch.randn(2, 128), torch.tensor([[0, 2], [1, 0]]), torch.rand(2, 2)
    gate_up, down = (list(kin.weights.unpack().cpu()) for (kin,) in (stack.gate_up, stack.down))
    assert_near(run(x, ids, shares, stack), truth(x, ids, shares, gate_up, down))
