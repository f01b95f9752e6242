"""Norms, turning and what is written to the memory against the twin, and what the checks notice.

Dim letters: T rows, H query heads, K key/value heads, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu import rope as module
from kernels.gpu.configurations import Tables
from tests.kernels.gpu.defects import Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded, assert_near

H, K, D, SIZE, BLOCKS = 5, 2, 20, 4, 6
EPS = 0.05  # large enough to be seen
SLOTS = [5, 23, -1, 8]  # of four rows, one of which only pads
ROWS = [0, 1, 3]  # the others
TABLES = Tables({"rope": {"default": [{"up_to": None, "BLOCK_H": 4, "num_warps": 4, "num_stages": 1}]}})


@dataclass
class Stored:
    query: Tensor  # [T, H, d]
    memory: Tensor  # [2K, blocks, block size, d]
    scales: Tensor | None


def run(
    module: ModuleType,
    qkv: Tensor,
    memory_dtype: torch.dtype,
    norms: tuple[Tensor, Tensor] | None = None,
    turns: bool = True,
    index: torch.dtype = torch.int64,
) -> tuple[Stored, Stored]:
    """What the kernel makes of it, and what the twin does, in fp64 where that has no codes to find."""
    cos, sin = (turn.to(DEVICE) for turn in reference.rope_table(10, 0.3 ** torch.arange(D // 2)))
    tables = (cos, sin) if turns else (None, None)
    positions, slots = torch.tensor([3, 9, 0, 7], device=DEVICE), torch.tensor(SLOTS, device=DEVICE)
    query_norm, key_norm = norms if norms is not None else (None, None)
    shape = (2 * K, BLOCKS, SIZE, D)
    rows = Guarded(qkv, [qkv.shape[1] + 3, 1])
    out = Guarded.empty(len(SLOTS), H, D, dtype=qkv.dtype, strides=[H * D + 9, D, 1])
    memory = Guarded(torch.zeros(shape, dtype=memory_dtype), [SIZE * (D + 2), 2 * K * SIZE * (D + 2), D + 2, 1])
    scales = Guarded(torch.zeros(shape[:3]), [SIZE, 2 * K * SIZE, 1]) if memory_dtype == torch.int8 else None
    kept = None if scales is None else scales.tensor
    where = (positions.to(index), slots, *tables, memory.tensor, kept)
    norm = {"query_norm": query_norm, "key_norm": key_norm, "eps": EPS}
    module.turn_and_store(rows.tensor, *where, num_heads=H, **norm, out=out.tensor, tables=TABLES)
    for guarded in (rows, out, memory, *([] if scales is None else [scales])):
        guarded.assert_intact()
    assert bool(out.tensor[2].isnan().all()), "a row that only pads was written"
    found = Stored(out.tensor, memory.tensor, kept)

    exact = memory_dtype in (torch.int8, torch.float16)
    own = torch.zeros(shape, dtype=memory_dtype if exact else torch.float32, device=DEVICE)
    own_scales = None if scales is None else torch.zeros(shape[:3], device=DEVICE)
    query = reference.turn_and_store(qkv, positions, slots, *tables, own, own_scales, H, query_norm, key_norm, EPS)
    return found, Stored(query, own, own_scales)


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(len(SLOTS), (H + 2 * K) * D, device=DEVICE).to(dtype)


def check_codes(module: ModuleType) -> None:
    """int8, neither normed nor turned: the same codes and scales, of ties, zeros and numbers of every size too."""
    qkv = rows()
    heads = qkv.view(len(SLOTS), -1, D)
    heads[0, H] = 0.0
    heads[0, H + 1] = torch.arange(D, device=DEVICE) - 0.5  # ties: 127 is the largest
    heads[0, H + 1, 3] = 127.0
    heads[1, H:] *= torch.tensor([1e-30, 1e-40, 1e30, 3.0], device=DEVICE)[:, None]
    found, wanted = run(module, qkv, torch.int8, turns=False)
    assert torch.equal(found.memory, wanted.memory)
    assert found.scales is not None and wanted.scales is not None
    assert torch.equal(found.scales, wanted.scales)
    assert torch.equal(found.query[ROWS], wanted.query[ROWS])


def check_turned(module: ModuleType) -> None:
    """Queries and keys are, by their own positions; values are as they were."""
    qkv = rows()
    found, wanted = run(module, qkv, torch.float32, index=torch.int32)
    assert_near(found.query[ROWS], wanted.query[ROWS])
    assert_near(found.memory, wanted.memory)
    values = qkv.view(len(SLOTS), -1, D)[ROWS, H + K :].transpose(0, 1)
    places = torch.tensor(SLOTS, device=DEVICE)[ROWS]
    assert torch.equal(found.memory[K:, places // SIZE, places % SIZE], values)


def check_normed(module: ModuleType) -> None:
    """Queries and keys each by their own weights, before they are turned."""
    norms = (torch.randn(D, device=DEVICE), torch.randn(D, device=DEVICE))
    found, wanted = run(module, rows(), torch.float32, norms)
    assert_near(found.query[ROWS], wanted.query[ROWS])
    assert_near(found.memory, wanted.memory)


def check_half(module: ModuleType) -> None:
    """fp16 into fp16: the norm's quotient is rounded before the weight, the result once more and not before."""
    norms = (torch.randn(D, device=DEVICE).half(), torch.randn(D, device=DEVICE).half())
    found, wanted = run(module, rows(torch.float16), torch.float16, norms)
    assert_near(found.query[ROWS], wanted.query[ROWS].half(), 1e-6)
    assert_near(found.memory, wanted.memory, 1e-6)


def check_large(module: ModuleType) -> None:
    """Numbers beyond fp16 become its largest; what is not finite stays so, in codes too."""
    qkv = rows()
    heads = qkv.view(len(SLOTS), -1, D)
    heads[0, H:, :4] = torch.tensor([7e4, -1e38, 65519.0, -65521.0], device=DEVICE)
    heads[1, H:, 15:18] = torch.tensor([math.inf, -math.inf, math.nan], device=DEVICE)
    heads[3, H, 2] = math.nan
    found, wanted = run(module, qkv, torch.float16, turns=False)
    assert torch.equal(found.memory.isnan(), wanted.memory.isnan())
    assert torch.equal(
        found.memory.nan_to_num(1.0, math.inf, -math.inf), wanted.memory.nan_to_num(1.0, math.inf, -math.inf)
    )
    found, wanted = run(module, qkv, torch.int8, turns=False)
    assert found.scales is not None and wanted.scales is not None
    assert torch.equal(found.scales.isfinite(), wanted.scales.isfinite())
    assert torch.equal(found.memory[found.scales.isfinite()], wanted.memory[wanted.scales.isfinite()])


CHECKS: list[Callable[[ModuleType], None]] = [check_codes, check_turned, check_normed, check_half, check_large]

DEFECTS = [
    Defect("a row that only pads is written", "    if slot < 0:\n        return\n", ""),
    Defect("slots are blocks", "block = slot // BLOCK_SIZE", "block = slot * 0"),
    Defect("the place in the block is forgotten", "offset * memory_place + column", "column"),
    Defect("scales have no place in the block", "block * scales_block + offset", "block * scales_block"),
    Defect("values go where keys do", "kv_head[:, None] * memory_head", "(kv_head % KV_HEADS)[:, None] * memory_head"),
    Defect("scales of values go where those of keys do", "kv_head * scales_head", "kv_head % KV_HEADS * scales_head"),
    Defect(
        "a scale is of half a head", "tl.max(tl.maximum(tl.abs(first), tl.abs(second)), 1)", "tl.max(tl.abs(first), 1)"
    ),
    Defect("scales are by 128", "tl.div_rn(top, 127.0)", "tl.div_rn(top, 128.0)"),
    Defect("codes are cut off", "(steps + 12582912.0) - 12582912.0", "steps"),
    Defect("codes are rounded up", "(steps + 12582912.0) - 12582912.0", "tl.floor(steps + 0.5)"),
    Defect("small numbers are cut off", "tl.maximum(scale, tiny)", "tl.maximum(scale, tiny * 1e10)"),
    Defect("NaN is passed over", 'tl.where(unsound > 0, float("inf"), top)', "top"),
    Defect("fp16's largest is another", '(x < float("inf")), 65504.0, x)', '(x < float("inf")), 65472.0, x)'),
    Defect("fp16 makes infinity finite", '(x < -65504.0) & (x > -float("inf"))', "x < -65504.0"),
    Defect("turned the other way", "first * c - second * s", "first * c + second * s"),
    Defect("neighbours turn together", "second * c + first * s", "second * c + second * s"),
    Defect("rows are positions", "tl.load(positions + row)", "row"),
    Defect("values turn", "first = tl.where(turns[:, None], turned_first, first)", "first = turned_first"),
    Defect("keys do not turn", "turns = head < HEADS + KV_HEADS", "turns = head < HEADS"),
    Defect(
        "a norm over half of the head",
        "tl.sum(first * first, 1) + tl.sum(second * second, 1)",
        "2 * tl.sum(first * first, 1)",
    ),
    Defect("a norm of the sum, not the mean", "square / WIDTH + eps", "square + eps"),
    Defect("eps goes into the mean", "square / WIDTH + eps", "(square + eps) / WIDTH"),
    Defect(
        "keys by the weight of queries", "q_second[None, :], k_second[None, :]", "q_second[None, :], q_second[None, :]"
    ),
    Defect("the quotient is not rounded", "(first * factor).to(qkv.dtype.element_ty).to(tl.float32)", "first * factor"),
    Defect("halves overlap", "qkv + places + HALF", "qkv + places + HALF - 1"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_rope(check: Callable[[ModuleType], None]) -> None:
    check(module)


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_a_defect_is_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, module, CHECKS, tmp_path)


def test_a_rows_bits_are_its_own_also_in_place() -> None:
    qkv = rows()
    positions, slots = torch.tensor([3, 9, 0, 7], device=DEVICE), torch.tensor([5, 23, 2, 8], device=DEVICE)
    cos, sin = (turn.to(DEVICE) for turn in reference.rope_table(10, 0.3 ** torch.arange(D // 2)))
    norms: dict[str, Any] = {"query_norm": torch.ones(D, device=DEVICE), "key_norm": torch.ones(D, device=DEVICE)}
    given = {"num_heads": H, "eps": EPS, **norms}
    memory, alone = (torch.zeros(2 * K, BLOCKS, SIZE, D, device=DEVICE) for _ in range(2))
    query = module.turn_and_store(qkv, positions, slots, cos, sin, memory, None, **given)
    own = module.turn_and_store(qkv[1:2], positions[1:2], slots[1:2], cos, sin, alone, None, **given)
    assert torch.equal(own, query[1:2])
    assert torch.equal(alone[:, 5, 3], memory[:, 5, 3])
    place = qkv.view(len(SLOTS), -1, D)[:, :H]
    assert module.turn_and_store(qkv, positions, slots, cos, sin, memory, None, **given, out=place) is place
    assert torch.equal(place, query)


def test_nothing_to_do() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    memory = torch.zeros(2 * K, BLOCKS, SIZE, D, device=DEVICE)
    found = module.turn_and_store(rows()[:0], none, none, None, None, memory, None, num_heads=H)
    assert found.shape == (0, H, D)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"qkv": torch.zeros(4, 9 * D + 1)}, r"`qkv`: the shape must be \[4, 180\]"),
        ({"qkv": torch.zeros(4, 9 * D, dtype=torch.int32)}, "`qkv`: the type must be"),
        ({"num_heads": 0}, "`num_heads`: it must be positive"),
        ({"memory": torch.zeros(3, BLOCKS, SIZE, D)}, "`memory`: 2K heads, not 3"),
        ({"memory": torch.zeros(4, BLOCKS, SIZE, 7)}, "`memory`: heads must be 2 to 256 wide and even"),
        ({"memory": torch.zeros(4, BLOCKS, SIZE, D, dtype=torch.int8)}, "`scales`: int8 memory has them"),
        ({"scales": torch.zeros(4, BLOCKS, SIZE)}, "`scales`: int8 memory has them, and no other"),
        ({"positions": torch.zeros(3, dtype=torch.int32)}, r"`positions`: the shape must be \[4\]"),
        ({"slots": torch.zeros(4, dtype=torch.int32)}, "`slots`: the type must be int64"),
        ({"sin": None}, "`sin`: it goes with `cos`"),
        ({"cos": torch.zeros(10, D)}, r"`cos`: the shape must be \[any, 10\]"),
        ({"sin": torch.zeros(9, D // 2)}, r"`sin`: the shape must be \[10, 10\]"),
        ({"query_norm": torch.zeros(D)}, "`key_norm`: it goes with `query_norm`"),
        ({"query_norm": torch.zeros(9), "key_norm": torch.zeros(D)}, r"`query_norm`: the shape must be \[20\]"),
        ({"out": torch.zeros(4, H, D, dtype=torch.float16)}, "`out`: the type must be float32"),
    ],
)
def test_bad_input(changes: dict[str, Any], rule: str) -> None:
    given: dict[str, Any] = {
        "qkv": torch.zeros(4, 9 * D),
        "positions": torch.zeros(4, dtype=torch.int64),
        "slots": torch.zeros(4, dtype=torch.int64),
        "cos": torch.zeros(10, D // 2),
        "sin": torch.zeros(10, D // 2),
        "memory": torch.zeros(4, BLOCKS, SIZE, D),
        "scales": None,
        "num_heads": H,
    }
    given |= changes
    moved = {name: one.to(DEVICE) if isinstance(one, Tensor) else one for name, one in given.items()}
    with pytest.raises(ValueError, match=rule):
        module.turn_and_store(**moved)
