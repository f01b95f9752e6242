"""Attention in C++ against its twin, over keys and values of every type; and that a row's bits are its own.

Dim letters: H query heads, K key/value heads, d head width.
"""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu import library
from kernels.cpu.attention import KV, SIGNATURES, Attention, Batch, Heads
from kernels.reference import narrow_kv, quantise_kv, rms_norm, rope, rope_table

KV_TYPES = ("fp32", "fp16", "int8")
CLOSE = 1e-5  # of the largest element: sums of up to some hundred products in another order


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    loaded = library.load(tmp_path_factory.mktemp("kernels"))
    start = {"hatchway_start": (ctypes.c_void_p, (ctypes.c_int32,)), "hatchway_end": (None, (ctypes.c_void_p,))}
    loaded.declare({**SIGNATURES, **start})
    return loaded.functions


@pytest.fixture(scope="module")
def teams(functions: ctypes.CDLL) -> Iterator[list[Attention]]:
    """Of one, two and three threads."""
    handles = [functions.hatchway_start(threads) for threads in (1, 2, 3)]
    yield [Attention(functions, handle) for handle in handles]
    for handle in handles:
        functions.hatchway_end(handle)


@dataclass(frozen=True)
class Case:
    """Sequences by their lengths and the rows of each that ask, the last ones; and the shape of everything."""

    lengths: list[int]
    rows: list[int]
    heads: int = 6
    kv_heads: int = 2
    width: int = 64
    size: int = 16  # of a block
    window: int | None = None


@dataclass
class Filled:
    """A case with numbers in it. What no sequence owns is NaN."""

    case: Case
    query: Tensor  # [T, H, d], a part of wider rows
    memory: Tensor
    scales: Tensor | None
    tables: list[Tensor]

    @property
    def starts(self) -> list[int]:
        return [sum(self.case.rows[:s]) for s in range(len(self.case.rows) + 1)]

    def ask(self, by: Attention | None) -> Tensor:
        paged_attention = reference.paged_attention if by is None else by.paged_attention
        where = (self.starts, self.case.lengths, self.tables, self.case.window)
        return paged_attention(self.query, self.memory, self.scales, *where)

    def only(self, sequence: int, first: int, end: int) -> "Filled":
        """Some of the rows of one sequence, when it was as long as its last one sees."""
        case, start = self.case, self.starts[sequence]
        length = case.lengths[sequence] - case.rows[sequence] + end
        return Filled(
            replace(case, lengths=[length], rows=[end - first]),
            self.query[start + first : start + end],
            self.memory,
            self.scales,
            [self.tables[sequence]],
        )


def fill(case: Case, kv_type: str, seed: int = 0) -> Filled:
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // case.size) for length in case.lengths]
    blocks = sum(counts) + 2
    tables = list(torch.split(torch.randperm(blocks, generator=generator)[: sum(counts)], counts))
    memory = torch.full((2 * case.kv_heads, blocks, case.size, case.width), math.nan)
    for table, length in zip(tables, case.lengths, strict=True):
        for position in range(length):
            cell = memory[:, table[position // case.size], position % case.size]
            cell.copy_(torch.randn(cell.shape, generator=generator))
    query = torch.randn(sum(case.rows), case.heads + 2 * case.kv_heads, case.width, generator=generator)
    scales = None
    if kv_type == "int8":
        memory, scales = quantise_kv(memory)
    elif kv_type == "fp16":
        memory = narrow_kv(memory)
    return Filled(case, query[:, : case.heads] * 3, memory, scales, tables)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert float((got - expected).abs().max()) <= CLOSE * float(expected.abs().max())


CASES = {
    "one decodes": Case([577], [1]),
    "the first token": Case([1], [1]),
    "the end of a stretch": Case([64], [1]),
    "after the end of a stretch": Case([65], [1]),
    "some are verified": Case([300, 66], [4, 5]),
    "a prompt": Case([150], [150]),
    "a prompt's later part": Case([300], [70]),
    "a batch of everything": Case([200, 1, 64, 131, 90], [1, 1, 64, 7, 40]),
    "heads for themselves": Case([140, 33], [1, 33], heads=3, kv_heads=3),
    "seven share one": Case([140, 33], [2, 33], heads=7, kv_heads=1, width=32),
    "a hundred share one": Case([70, 9], [3, 2], heads=100, kv_heads=1, width=8),
    "narrow": Case([100, 70], [1, 70], width=8),
    "odd": Case([100, 70], [3, 70], width=72),
    "wide": Case([130, 20], [1, 20], width=256),
    "blocks of one": Case([67, 20], [2, 20], size=1),
    "blocks of five": Case([67, 20], [2, 20], size=5),
    "one block": Case([67, 20], [2, 20], size=100),
    "a window of one": Case([67, 20], [3, 20], window=1),
    "a window of nine": Case([300, 140], [1, 140], window=9, size=4),
    "a window of a stretch": Case([300, 140], [5, 100], window=64),
    "a window of many": Case([500, 140], [1, 140], window=250),
}


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_is_its_twin_and_a_row_has_bits_of_its_own(case: Case, kv_type: str, teams: list[Attention]) -> None:
    """Whatever is beside it in the step, however many rows of its sequence are read at once, on any team."""
    filled = fill(case, kv_type)
    got = filled.ask(teams[0])
    assert_close(got, filled.ask(None))
    for team in teams[1:]:
        assert torch.equal(filled.ask(team), got)
    for sequence, (start, rows) in enumerate(zip(filled.starts[:-1], case.rows, strict=True)):
        cuts = {
            (0, rows),
            (rows - 1, rows),
            (0, 1),
            (rows // 2, rows // 2 + 1),
            (0, -(-rows // 2)),
            (max(0, rows - 4), rows),
        }
        for first, end in cuts:
            assert torch.equal(filled.only(sequence, first, end).ask(teams[1]), got[start + first : start + end])


def test_attention_is_close_to_double_precision(teams: list[Attention]) -> None:
    filled = fill(Case([700], [2], width=128), "fp32", seed=3)
    wide = replace(filled, query=filled.query.double(), memory=filled.memory.double())
    key, value = wide.memory[:, wide.tables[0]].flatten(1, 2)[:, :700].chunk(2)
    expected = reference.attention(wide.query, key, value)
    own, plain = ((filled.ask(by).double() - expected).square().mean() for by in (teams[1], None))
    assert float(own) < 4 * float(plain)  # squares


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("window", [None, 20])
def test_what_a_row_does_not_see_it_does_not_read(kv_type: str, window: int | None, teams: list[Attention]) -> None:
    """Neither the positions after it nor, with a window, those before: NaN in them changes no bit."""
    filled = fill(Case([150], [12], window=window), kv_type)
    expected = filled.ask(teams[1])
    numbers = filled.memory if filled.scales is None else filled.scales
    hidden = [149] if window is None else [149, *range(150 - 12 + 5 - 20)]  # from rows 5 .. 10
    for position in hidden:
        numbers[:, filled.tables[0][position // 16], position % 16] = math.nan
    for team in teams:
        got = filled.ask(team)
        assert torch.equal(got[5:11], expected[5:11])
        assert got[11].isnan().all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kv_type", ["fp32", "fp16"])
def test_numbers_that_are_not_finite_stay_with_their_sequence(
    broken: float, kv_type: str, teams: list[Attention]
) -> None:
    filled = fill(Case([90, 100, 80], [1, 3, 80]), kv_type)
    expected = filled.ask(teams[1])
    filled.memory[2:, filled.tables[1][0], 3] = broken  # values of the second sequence
    for team in teams:
        got = filled.ask(team)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[4:], expected[4:])
        assert not got[1:4].isfinite().any()
    filled.query[0, 2, 5] = broken
    for team in teams:
        got = filled.ask(team)
        assert got[0, 2].isnan().all() and torch.equal(got[0, [0, 1, 3, 4, 5]], expected[0, [0, 1, 3, 4, 5]])


def test_scores_of_minus_infinity_weigh_nothing(teams: list[Attention]) -> None:
    """A whole stretch of them too."""
    filled = fill(Case([140], [2]), "fp32")
    filled.query.abs_()
    for position in range(3, 135):
        filled.memory[:2, filled.tables[0][position // 16], position % 16] = -math.inf
    expected = filled.ask(None)
    assert expected.isfinite().all()
    for team in teams:
        assert_close(filled.ask(team), expected)


def test_large_scores_do_not_overflow(teams: list[Attention]) -> None:
    filled = fill(Case([140], [2]), "fp32")
    filled.query *= 1e4
    for team in teams:
        assert_close(filled.ask(team), filled.ask(None))


def test_a_width_without_a_kernel_goes_to_the_reference(teams: list[Attention]) -> None:
    for width in (4, 12, 264):
        filled = fill(Case([30], [3], width=width), "fp32")
        assert torch.equal(filled.ask(teams[1]), filled.ask(None))


def test_a_batch_that_does_not_fit_is_refused(teams: list[Attention]) -> None:
    filled = fill(Case([30], [3]), "fp32")
    outside = replace(filled, tables=[torch.tensor([0, filled.memory.shape[1]])])
    short = replace(filled, tables=[filled.tables[0][:1]])
    longer = replace(filled, case=replace(filled.case, lengths=[2]))
    for wrong in (outside, short, longer):
        with pytest.raises(ValueError, match="block|fit"):
            wrong.ask(teams[1])


# ---- before attention


@dataclass
class Places:
    """Three tokens of K = 2 and H = 3 heads, and where they go."""

    qkv: Tensor  # [3, H + 2K, d]
    positions: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor


def some_tokens(width: int) -> Places:
    generator = torch.Generator().manual_seed(width)
    qkv = torch.randn(3, 7, width, generator=generator)
    cos, sin = rope_table(20, torch.rand(width // 2, generator=generator))
    return Places(qkv, torch.tensor([4, 19, 0]), torch.tensor([9, 2, 14]), cos, sin)


def place(
    functions: ctypes.CDLL,
    tokens: Places,
    memory: Tensor,
    scales: Tensor | None = None,
    norms: tuple[Tensor, Tensor] | None = None,
    turns: bool = True,
) -> Tensor:
    """qkv as it is afterwards."""
    qkv, positions = tokens.qkv.clone(), tokens.positions.int()
    batch = Batch(
        tokens=3,
        positions=positions.data_ptr(),
        slots=tokens.slots.data_ptr(),
        cos=tokens.cos.data_ptr(),
        sin=tokens.sin.data_ptr(),
    )
    heads = Heads(queries=3, keys=2, width=qkv.shape[2], turns=turns, eps=1e-5)
    if norms is not None:
        heads.query_norm, heads.key_norm = (norm.data_ptr() for norm in norms)
    functions.hatchway_place(qkv.data_ptr(), batch, heads, KV.of(memory, scales))
    return qkv


@pytest.mark.parametrize("width", [8, 24, 64, 256])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_queries_and_keys_are_normed_and_turned(width: int, normed: bool, turns: bool, functions: ctypes.CDLL) -> None:
    tokens, memory = some_tokens(width), torch.full((4, 2, 8, width), math.nan)
    norms = (torch.rand(width) + 0.5, torch.rand(width) + 0.5) if normed else None
    got = place(functions, tokens, memory, norms=norms, turns=turns)
    expected = tokens.qkv.clone()
    if norms is not None:
        expected[:, :3] = rms_norm(expected[:, :3], norms[0], 1e-5)
        expected[:, 3:5] = rms_norm(expected[:, 3:5], norms[1], 1e-5)
    if turns:
        expected[:, :5] = rope(expected[:, :5], tokens.cos[tokens.positions], tokens.sin[tokens.positions])
    assert_close(got, expected)
    assert torch.equal(got[:, 5:], tokens.qkv[:, 5:])  # values stay as they are
    flat = memory.flatten(1, 2)
    assert torch.equal(flat[:, tokens.slots], got[:, 3:].transpose(0, 1))
    others = [slot for slot in range(16) if slot not in tokens.slots.tolist()]
    assert flat[:, others].isnan().all()


EXTREMES = [0.0, -0.0, 65504.0, 65519.9, 65520.0, -7e4, 1e30, -3e38, 6e-8, 2.9e-8, 1e-40, 1.0009765625, 0.33325195]


def test_fp16_is_the_nearest_and_saturates(functions: ctypes.CDLL) -> None:
    tokens = some_tokens(16)
    tokens.qkv[0, 3:] = torch.tensor([*EXTREMES, math.inf, -math.inf, math.nan])
    memory = torch.zeros(4, 2, 8, 16, dtype=torch.float16)
    place(functions, tokens, memory, turns=False)
    got, expected = memory.flatten(1, 2)[:, tokens.slots], narrow_kv(tokens.qkv[:, 3:].transpose(0, 1))
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(0.0, math.inf, -math.inf), expected.nan_to_num(0.0, math.inf, -math.inf))
    assert got[0, 0, 3:8].tolist() == [65504.0, 65504.0, -65504.0, 65504.0, -65504.0]


def test_int8_has_the_bits_of_its_twin(functions: ctypes.CDLL) -> None:
    tokens = some_tokens(64)
    tokens.qkv[0, 3] = 0
    tokens.qkv[0, 4] *= 1e-39
    tokens.qkv[0, 5] *= 1e37
    tokens.qkv[0, 6] = torch.arange(64) - 31.5  # ties
    tokens.qkv[1, 3] = torch.arange(64) * 2.0 + 1  # steps of 1 exactly
    tokens.qkv[1, 4, 7], tokens.qkv[1, 5, 0], tokens.qkv[2, 3, 63] = math.nan, math.inf, -math.inf
    memory, scales = torch.zeros(4, 2, 8, 64, dtype=torch.int8), torch.zeros(4, 2, 8)
    place(functions, tokens, memory, scales, turns=False)
    numbers, steps = quantise_kv(tokens.qkv[:, 3:].transpose(0, 1))  # [4, 3, 64], [4, 3]
    got, sizes = memory.flatten(1, 2)[:, tokens.slots], scales.flatten(1)[:, tokens.slots]
    assert torch.equal(sizes.view(torch.int32)[steps.isfinite()], steps.view(torch.int32)[steps.isfinite()])
    assert torch.equal(sizes.isfinite(), steps.isfinite()) and int((~steps.isfinite()).sum()) == 3
    assert torch.equal(got[steps.isfinite()], numbers[steps.isfinite()])
    assert not (got * sizes[..., None])[~steps.isfinite()].isfinite().any()


@pytest.mark.parametrize("width", [6, 8, 64, 70])
def test_rope_is_its_twin(width: int, teams: list[Attention]) -> None:
    wide = torch.randn(5, 9, width, generator=torch.Generator().manual_seed(1))
    cos, sin = rope_table(30, torch.linspace(1, 0.01, width // 2))
    positions = torch.tensor([0, 29, 3, 4, 3])
    x = wide[:, 2:6]  # with gaps between the tokens
    before = wide.clone()
    assert_close(teams[0].rope(x, cos[positions], sin[positions]), rope(x, cos[positions], sin[positions]))
    assert torch.equal(wide, before)
