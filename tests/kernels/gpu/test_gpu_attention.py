"""Attention over blocks against its twin in fp64, a row's bits beside other rows, and what the checks notice.

Dim letters: T rows, S sequences, H query heads, K key/value heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from kernels import reference
from kernels.gpu import attention as module
from kernels.gpu.configurations import SHIPPED, Tables
from kernels.gpu.specimen import ARCHITECTURES
from tests.kernels.gpu.defects import Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near

TILE = {"up_to": None, "BLOCK_M": 16, "BLOCK_N": 16, "LENGTH": 32, "num_warps": 4, "num_stages": 2}
MERGE = {"up_to": None, "BLOCK_H": 4, "UNROLL": 2, "num_warps": 1, "num_stages": 1}
SMALL = Tables(
    {
        "attention": {"default": [TILE]},
        "attention_fp32": {"default": [TILE]},
        "attention_merge": {"default": [MERGE]},
    }
)


@dataclass
class Filled:
    """Sequences in shuffled blocks. What no sequence owns is NaN, or codes with scales of NaN."""

    query: Guarded  # [T, H, d]
    memory: Guarded  # [2K, blocks, block size, d]
    scales: Guarded | None
    starts: list[int]
    lengths: list[int]
    tables: Tensor  # [S, any]; names a block that nobody owns where a sequence has none

    def run(self, module: ModuleType, window: int | None = None, split: bool = False, tables: Tables = SMALL) -> Tensor:
        """The result [T, H, d], with NaN in rows that belong to nobody; nothing else is written."""
        rows, heads, width = self.query.tensor.shape
        out = Guarded.empty(rows, heads, width, dtype=self.query.tensor.dtype, strides=[heads * (width + 1), width, 1])
        enough, module.ENOUGH = module.ENOUGH, 1 << 30 if split else 0
        try:
            module.paged_attention(
                self.query.tensor,
                self.memory.tensor,
                None if self.scales is None else self.scales.tensor,
                torch.tensor(self.starts, dtype=torch.int32, device=DEVICE),
                torch.tensor(self.lengths, dtype=torch.int32, device=DEVICE),
                self.tables.to(DEVICE),
                window,
                out.tensor,
                tables=tables,
            )
        finally:
            module.ENOUGH = enough
        for guarded in (self.query, self.memory, out, *([] if self.scales is None else [self.scales])):
            guarded.assert_intact()
        owned = self.starts[-1]
        assert bool(out.tensor[owned:].isnan().all()), "rows of nobody were written"
        return out.tensor[:owned].clone()

    def truth(self, window: int | None = None) -> Tensor:
        memory = self.memory.tensor.cpu()
        if self.scales is None:
            memory = memory.double()
        scales = None if self.scales is None else self.scales.tensor.cpu()
        query = self.query.tensor.cpu().double()
        used = [s for s, length in enumerate(self.lengths) if length]
        starts, lengths = [self.starts[s] for s in used] + self.starts[-1:], [self.lengths[s] for s in used]
        blocks = [self.tables[s, : -(-self.lengths[s] // memory.shape[2])].long() for s in used]
        return reference.paged_attention(query, memory, scales, starts, lengths, blocks, window)

    def only(self, sequence: int, first: int, end: int) -> Filled:
        """Some rows of one sequence when it was as long as its last one sees, with as few blocks as it has then."""
        start, size = self.starts[sequence], self.memory.tensor.shape[2]
        rows = self.starts[sequence + 1] - start
        length = self.lengths[sequence] - rows + end
        query = Guarded(self.query.tensor[start + first : start + end].clone())
        table = self.tables[sequence : sequence + 1, : -(-length // size)]
        return Filled(query, self.memory, self.scales, [0, end - first], [length], table)


def fill(
    lengths: list[int],
    rows: list[int],
    *,
    heads: int = 6,
    kv_heads: int = 2,
    width: int = 20,
    size: int = 4,
    spare: int = 5,
    dtype: torch.dtype = torch.float32,
    memory_dtype: torch.dtype | None = None,
) -> Filled:
    """`spare`: rows beyond those of all sequences."""
    needed = [-(-length // size) for length in lengths]
    order = torch.randperm(sum(needed) + 1).tolist()
    nobody = order.pop()
    tables = torch.full((len(lengths), max(needed) + 8), nobody, dtype=torch.int32)
    memory = torch.full((2 * kv_heads, sum(needed) + 1, size, width), math.nan)
    for s, length in enumerate(lengths):
        for place in range(length):
            tables[s, place // size] = order[sum(needed[:s]) + place // size]
            memory[:, tables[s, place // size], place % size] = torch.randn(2 * kv_heads, width)
    starts = [sum(rows[:s]) for s in range(len(rows) + 1)]
    query = 2 * torch.randn(starts[-1] + spare, heads, width)
    query[starts[-1] :] = math.nan
    scales = None
    if memory_dtype == torch.int8:
        memory *= torch.rand(memory.shape[:3]).exp()[..., None]
        codes, scale = reference.quantise_kv(memory.nan_to_num(1.0))
        scales = Guarded(torch.where(memory.isnan().any(-1), math.nan, scale), [400, size, 1])
        memory = codes
    head = (sum(needed) + 1) * size * (width + 2) + 3
    stored = Guarded(memory.to(memory_dtype or dtype), [head, size * (width + 2), width + 2, 1])
    query_strides = [heads * width + 7, width, 1]
    return Filled(Guarded(query.to(dtype), query_strides), stored, scales, starts, lengths, tables)


def check_mixed(module: ModuleType) -> None:
    """One row, a whole prompt, part of one, and sequences without rows among them and behind them."""
    filled = fill([9, 0, 7, 38, 0], [1, 0, 7, 6, 0])
    assert_near(filled.run(module), filled.truth())


def check_split(module: ModuleType) -> None:
    """Segments in programs of their own: the same bits as in one program."""
    filled = fill([70, 33], [2, 1], kv_heads=1, heads=3)
    found = filled.run(module, split=True)
    assert_near(found, filled.truth())
    assert torch.equal(found, filled.run(module))


def check_window(module: ModuleType) -> None:
    """Windows that end within a tile, and hide whole tiles and segments; split and not."""
    filled = fill([75, 20], [3, 1], kv_heads=1, heads=3)
    for window, split in ((1, False), (18, True), (40, True)):
        assert_near(filled.run(module, window, split), filled.truth(window))


def check_int8(module: ModuleType) -> None:
    filled = fill([21, 6], [1, 6], memory_dtype=torch.int8)
    assert_near(filled.run(module), filled.truth())


def check_half(module: ModuleType) -> None:
    """fp16 throughout, fp32 over fp16, fp16 over int8; widths that fill a tile; one head for each, or for all."""
    for heads, kv_heads, width, query, memory in (
        (2, 2, 16, torch.float16, torch.float16),
        (5, 1, 24, torch.float32, torch.float16),
        (4, 2, 32, torch.float16, torch.int8),
    ):
        shape = {"heads": heads, "kv_heads": kv_heads, "width": width}
        filled = fill([19, 3], [2, 1], **shape, dtype=query, memory_dtype=memory)
        assert_near(filled.run(module), filled.truth())


def check_large_numbers(module: ModuleType) -> None:
    """Scores whose powers would overflow, the largest first and last, and such that are all far below zero."""
    filled = fill([40], [1], heads=1, kv_heads=1, width=4)
    for factor in (200.0, -200.0):
        filled.query.tensor.fill_(factor)
        places = torch.arange(40)
        keys = torch.linspace(1.0, 3.0, 40)[:, None].expand(40, 4)
        filled.memory.tensor[0, filled.tables[0, places // 4].long(), places % 4] = keys.to(DEVICE)
        assert_near(filled.run(module), filled.truth())


CHECKS: list[Callable[[ModuleType], None]] = [
    check_int8,
    check_window,
    check_split,
    check_mixed,
    check_half,
    check_large_numbers,
]

DEFECTS = [
    Defect("a row does not see itself", "key[None, :] <= position[:, None]", "key[None, :] < position[:, None]"),
    Defect("nothing hides later keys", " & (key[None, :] <= position[:, None])", ""),
    Defect("the window is one wider", "key[None, :] < WINDOW)", "key[None, :] <= WINDOW)"),
    Defect(
        "the window's first tile is passed over",
        "first = seen // BLOCK_N * BLOCK_N",
        "first = (seen + BLOCK_N - 1) // BLOCK_N * BLOCK_N",
    ),
    Defect("keys beyond the end are read", "(key >= seen) & (key < last)", "(key >= seen) & (key < last + 16)"),
    Defect("heads go round the groups", "kv_head * GROUP + pair % GROUP", "kv_head + pair % GROUP * KV_HEADS"),
    Defect("a tile has fewer rows", "row = first_row + pair // GROUP", "row = first_row + pair // BLOCK_Q"),
    Defect("values from the keys", "memory + (KV_HEADS + kv_head).to", "memory + kv_head.to"),
    Defect("the first place of each block", "(key % BLOCK_SIZE)[:, None] * memory_place", "0 * memory_place"),
    Defect("blocks of the first sequence", "sequence.to(tl.int64) * table_row", "0"),
    Defect("scores are not scaled", 'tl.dot(q, tl.trans(k), input_precision="ieee") * scale', "tl.dot(q, tl.trans(k))"),
    Defect("codes of keys are not scaled", "scores * k_scale[None, :]", "scores"),
    Defect("codes of values are not scaled", "v.to(tl.float32) * v_scale[:, None]", "v.to(tl.float32)"),
    Defect("sums of values are not rescaled", "own_mixed = own_mixed * factor[:, None]", "own_mixed = own_mixed"),
    Defect("sums of shares are not rescaled", "own_total * factor + ", "own_total + "),
    Defect("segments are folded as they are", "own_mixed * own_factor[:, None]", "own_mixed"),
    Defect("nothing is subtracted from scores", "tl.exp2(scores - base[:, None])", "tl.exp2(scores)"),
    Defect("segments are summed up in one", "if tile % LENGTH == 0:", "if tile < 0:"),
    Defect("the row's last segment is left out", "end = position // LENGTH + 1", "end = (position + 1) // LENGTH"),
    Defect(
        "the window's first segment is left out",
        "tl.maximum(position - WINDOW + 1, 0) // LENGTH",
        "(tl.maximum(position - WINDOW + 1, 0) + LENGTH - 1) // LENGTH",
    ),
    Defect("segments of the first head", "num_rows + row) * HEADS + head", "num_rows + row) * HEADS + head * 0"),
    Defect("rows behind the sequence's are written", " & (row < count)", ""),
    Defect("no room for blocks that are not full", "place - start // BLOCK_Q - sequence)", "place - start // BLOCK_Q)"),
    Defect("a block for each row", "tl.load(starts + middle) // BLOCK_Q", "tl.load(starts + middle)"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_attention(check: Callable[[ModuleType], None]) -> None:
    check(module)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_is_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, module, CHECKS, tmp_path)


@pytest.fixture
def products_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's products are a library's, to which a row's place makes a difference; to a GPU it makes none."""
    if DEVICE.type == "cuda":
        return
    whole = interpreter.InterpreterBuilder.create_dot

    def by_row(self: object, a: TensorHandle, b: TensorHandle, c: TensorHandle, *rest: object) -> TensorHandle:
        rows = [
            whole(self, TensorHandle(x[None], a.dtype), b, TensorHandle(z[None], c.dtype), *rest).data
            for x, z in zip(a.data, c.data, strict=True)
        ]
        return TensorHandle(np.concatenate(rows), c.dtype)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", by_row)


@pytest.mark.usefixtures("products_by_row")
@pytest.mark.parametrize("window", [None, 21])
def test_a_rows_bits_are_its_own(window: int | None) -> None:
    """Beside other rows and sequences, split or not, behind a prompt's other part, in a narrower table."""
    filled = fill([40, 37], [5, 1], kv_heads=1, heads=3)
    together = filled.run(module, window)
    assert torch.equal(filled.only(1, 0, 1).run(module, window, split=True), together[5:6])
    assert torch.equal(filled.only(0, 0, 2).run(module, window), together[:2])
    assert torch.equal(filled.only(0, 2, 5).run(module, window, split=True), together[2:5])


def test_shipped_tiles() -> None:
    """Prompts and single rows run the shipped tiles, and more keys than a segment of them has."""
    filled = fill([530], [2], heads=2, kv_heads=1, width=24, size=16)
    for split in (False, True):
        assert_near(filled.run(module, split=split, tables=SHIPPED), filled.truth())


def test_small_batches_are_split_and_large_ones_not(monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[int] = []
    real = module._merge

    class Counting:
        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            merged.append(grid[0])
            launch: Callable[..., None] = real[grid]
            return launch

    monkeypatch.setattr(module, "_merge", Counting())
    starts, lengths = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([40], dtype=torch.int32)
    blocks = torch.arange(10, dtype=torch.int32)[None]
    given = (torch.randn(1, 1, 8), torch.randn(2, 10, 4, 8), None, starts, lengths)
    arguments = [None if one is None else one.to(DEVICE) for one in (*given, blocks)]
    module.paged_attention(*arguments, tables=SMALL)
    assert merged == [1]
    monkeypatch.setattr(module, "WORKSPACE", 8 * 10 * 4)  # of two segments 2 * 10 * 4 are needed
    module.paged_attention(*arguments, tables=SMALL)
    assert merged == [1, 1]
    monkeypatch.setattr(module, "WORKSPACE", 2 * 10 * 4 - 1)
    module.paged_attention(*arguments, tables=SMALL)
    assert merged == [1, 1]


def test_nothing_to_do() -> None:
    filled = fill([5], [1])
    empty = filled.query.tensor[:0]
    numbers = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    tables = torch.zeros(0, 1, dtype=torch.int32, device=DEVICE)
    assert module.paged_attention(empty, filled.memory.tensor, None, numbers, numbers[:0], tables).shape == (0, 6, 20)


def test_shipped_segments_are_whole_tiles() -> None:
    for table in ("attention", "attention_fp32"):
        for arch in (None, *ARCHITECTURES):
            for row in SHIPPED.rows(table, arch):
                assert row.sizes["LENGTH"] % row.sizes["BLOCK_N"] == 0


def arguments(**changes: object) -> dict[str, object]:
    given: dict[str, object] = {
        "query": torch.zeros(3, 4, 8),
        "memory": torch.zeros(4, 5, 4, 8),
        "scales": None,
        "starts": torch.tensor([0, 1, 3], dtype=torch.int32),
        "lengths": torch.tensor([1, 2], dtype=torch.int32),
        "block_tables": torch.zeros(2, 5, dtype=torch.int32),
    }
    return {**given, **changes}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"query": torch.zeros(3, 32)}, r"`query`: the shape must be \[any, any, any\]"),
        ({"query": torch.zeros(3, 4, 8, dtype=torch.float64)}, "`query`: the type must be float32 or"),
        ({"query": torch.zeros(3, 8, 4).transpose(1, 2)}, "`query`: its last dimension must be dense"),
        ({"query": torch.zeros(3, 5, 8)}, "`memory`: 2 must divide 5 query heads"),
        ({"query": torch.zeros(3, 4, 300), "memory": torch.zeros(4, 5, 4, 300)}, "`query`: heads must be 1 to 256"),
        ({"memory": torch.zeros(3, 5, 4, 8)}, "`memory`: 2K heads, not 3"),
        ({"memory": torch.zeros(4, 5, 4, 16)}, r"`memory`: the shape must be \[any, any, any, 8\]"),
        ({"memory": torch.zeros(4, 5, 4, 8, dtype=torch.int8)}, "`scales`: int8 memory needs them"),
        ({"scales": torch.zeros(4, 5, 4)}, "`scales`: only int8 memory has them"),
        (
            {"memory": torch.zeros(4, 5, 4, 8, dtype=torch.int8), "scales": torch.zeros(4, 5, 8)},
            r"`scales`: the shape must be \[4, 5, 4\]",
        ),
        ({"starts": torch.tensor([0, 1, 3])}, "`starts`: the type must be int32"),
        ({"starts": torch.zeros(0, dtype=torch.int32)}, "`starts`: one more than sequences"),
        ({"lengths": torch.zeros(3, dtype=torch.int32)}, r"`lengths`: the shape must be \[2\]"),
        ({"block_tables": torch.zeros(1, 5, dtype=torch.int32)}, r"`block_tables`: the shape must be \[2, any\]"),
        ({"window": 0}, "`window`: it must be positive"),
        ({"out": torch.zeros(3, 4, 8, dtype=torch.float16)}, "`out`: the type must be float32"),
        ({"tables": Tables({"attention_fp32": {"default": [{**TILE, "LENGTH": 40}]}})}, "`tables`: LENGTH 40"),
    ],
)
def test_bad_input(changes: dict[str, object], rule: str) -> None:
    given = {name: one.to(DEVICE) if isinstance(one, Tensor) else one for name, one in arguments(**changes).items()}
    with pytest.raises(ValueError, match=rule):
        module.paged_attention(**given)
