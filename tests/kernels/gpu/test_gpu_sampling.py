"""Sampling's kernels against their twin and the engine's own sampler, and what their checks notice."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import reference
from kernels.gpu import noise as noise_module
from kernels.gpu import sampling as module
from kernels.gpu.configurations import Tables
from local_engine import noise
from local_engine.request import MIN_TEMPERATURE, SamplingParams
from local_engine.sampler import Sampler
from tests.kernels.gpu.defects import Defect, assert_caught
from tests.kernels.gpu.device import DEVICE, Guarded
from tests.kernels.gpu.frequencies import g_test

V, WIDE = 100, 112  # tokens, columns: what is beyond belongs to no token
HIGH = 99.0
Row = tuple[float, int, float, float]  # temperature, top-k, top-p, min-p


def tables(chunk: int, ways: int) -> Tables:
    row = {"up_to": None, "CHUNK": chunk, "WAYS": ways, "num_warps": 4, "num_stages": 2}
    return Tables({"sampling": {"default": [row]}})


SMALL = tables(64, 64)  # two chunks, the second not full


def parameters(rows: list[Row]) -> dict[str, Tensor]:
    temperature, top_k, top_p, min_p = (list(column) for column in zip(*rows, strict=True))
    return {
        "temperature": torch.tensor(temperature, device=DEVICE),
        "top_k": torch.tensor(top_k, dtype=torch.int32, device=DEVICE),
        "top_p": torch.tensor(top_p, device=DEVICE),
        "min_p": torch.tensor(min_p, device=DEVICE),
    }


def places(rows: int) -> dict[str, Tensor]:
    """Keys with all their bits, and positions."""
    keys = torch.randint(-(2**63), 2**63 - 1, (rows,), device=DEVICE)
    return {"keys": keys, "positions": torch.randint(0, 4000, (rows,), dtype=torch.int32, device=DEVICE)}


def make_logits(rows: int, dtype: torch.dtype = torch.float32) -> Guarded:
    """Rows lie apart, and columns that belong to no token would win."""
    logits = torch.full((rows, WIDE), HIGH)
    logits[:, :V] = 3 * torch.randn(rows, V)
    return Guarded(logits.to(dtype), [WIDE + 8, 1])


@triton.jit
def _numbers_kernel(
    key, position, bits, numbers, uniforms, N: tl.constexpr, STREAM: tl.constexpr, FRACTION: tl.constexpr,
    GUMBEL: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    first = tl.zeros([1], tl.int32)
    found = FRACTION(STREAM(tl.load(key + first), tl.load(position + first)), tl.arange(0, N) - 1)
    tl.store(bits + tl.arange(0, N), found)
    tl.store(numbers + tl.arange(0, N), GUMBEL(found))
    tl.store(uniforms + tl.arange(0, N), UNIFORM(found))


def check_numbers(module: ModuleType) -> None:
    """The integers exactly, what is made of them to fp32's precision; from id -1 on."""
    count, ids = 4096, np.arange(-1, 4095)
    bits = torch.empty(count, dtype=torch.int64, device=DEVICE)
    numbers, uniforms = torch.empty(2, count, device=DEVICE)
    for key in (2**64 - 3, 12345):
        signed = torch.tensor([key]).to(torch.uint64).view(torch.int64) if key < 2**63 else torch.tensor([key - 2**64])
        _numbers_kernel[(1,)](
            signed.to(DEVICE), torch.tensor([77], device=DEVICE), bits, numbers, uniforms, count,
            module.stream, module.fraction, module.gumbel, module.uniform,
        )  # fmt: skip
        expected = noise.bits(noise.start(key, 77), ids)
        assert (bits.cpu().numpy() >> 1 == expected.astype(np.int64)).all() and bool((bits % 2 == 1).all())
        exact = torch.from_numpy(noise.gumbel_of(expected))
        assert float((numbers.cpu() - exact).abs().max()) < 2e-6
        exact = torch.from_numpy((expected + 0.5) * 2.0**-52)
        assert float((uniforms.cpu() - exact).abs().max()) < 1e-7 and bool((uniforms < 1).all())


def check_best(module: ModuleType) -> None:
    logits = make_logits(7, torch.float16)
    for row, token in ((0, 0), (1, 70), (2, V - 1)):
        logits.tensor[row, token] = 50
    logits.tensor[3, 90] = logits.tensor[3, 66] = logits.tensor[3, 20] = 60
    logits.tensor[4, 3], logits.tensor[5, 98] = float("nan"), float("-inf")
    out = Guarded.empty(7, dtype=torch.int32)
    module.best(logits.tensor, V, out.tensor, tables=SMALL)
    assert out.tensor.tolist() == [0, 70, V - 1, 20, -1, -1, int(logits.tensor[6, :V].argmax())]
    out.assert_intact()


def check_kept(module: ModuleType, logits: Guarded, rows: list[Row]) -> None:
    """What is left of each row, token by token, and how much it weighs."""
    known = parameters(rows)
    survey = module.look(logits.tensor, module.Sampling(**known, **places(len(rows))), V, True, SMALL)
    tokens = logits.tensor[:, :V] + 0.0
    bits = tokens.view(torch.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    bars, lasts = survey.bars[:, None], survey.lasts[:, None]
    kept = (order > bars) | ((order == bars) & (torch.arange(V, device=DEVICE) <= lasts))
    expected = reference.probabilities(tokens, **known)
    assert torch.equal(kept, expected > 0)
    assert torch.allclose(1 / survey.totals.double(), expected.amax(-1), rtol=1e-5)
    assert torch.equal(survey.bests, tokens.argmax(-1).int())


def check_top_k(module: ModuleType) -> None:
    """Of random logits; through equal ones of either sign, most in the first chunk; of seven levels."""
    logits = make_logits(3)
    logits.tensor[1, :V] = torch.where(torch.arange(V) % 2 == 0, -0.0, 0.0)
    logits.tensor[2, :V] = torch.randint(-3, 4, (V,)) * 0.5
    check_kept(module, logits, [(0.7, 70, 1.0, 0.0), (1.5, 80, 1.0, 0.0), (1.5, 40, 1.0, 0.0)])


def check_top_p(module: ModuleType) -> None:
    """Of all, of what the others leave, and through equals."""
    logits = make_logits(3)
    logits.tensor[2, :V] = torch.randint(-3, 4, (V,)) * 0.5
    check_kept(module, logits, [(1.5, 0, 0.8, 0.0), (2.0, 60, 0.7, 0.01), (1.5, 0, 0.7, 0.0)])


def check_min_p(module: ModuleType) -> None:
    logits = make_logits(3)
    logits.tensor[1, :V] = torch.randint(-3, 4, (V,)) * 0.5
    check_kept(module, logits, [(1.5, 0, 1.0, 0.1), (0.8, 0, 1.0, 1.0), (1.3, 0, 1.0, 0.0)])


def check_draws(module: ModuleType) -> None:
    """Tokens by their own noise: of all, of few, greedy ones between them, and one row that is not finite."""
    rows: list[Row] = [(2.0, 0, 1.0, 0.0)] * 3 + [(9.0, 0, 1.0, 0.95), (9e-5, 0, 1.0, 0.0), (9e-5, 0, 1.0, 0.0)]
    rows += [(9.0, 0, 1.0, 0.95), (2.0, 0, 1.0, 0.0)]
    logits = make_logits(len(rows))
    logits.tensor[4:6, 3::20] = 20.0  # equals, of which a draw would take any
    logits.tensor[7, 98] = float("nan")
    known, where, out = parameters(rows), places(len(rows)), Guarded.empty(len(rows), dtype=torch.int32)
    where["positions"] = where["positions"].long()
    module.sample(logits.tensor, **known, **where, vocab_size=V, out=out.tensor, tables=SMALL)
    expected = reference.sample(logits.tensor[:, :V], **known, **where)
    assert out.tensor.tolist() == expected.tolist()
    assert expected[7] == -1
    out.assert_intact()
    logits.assert_intact()


TOP_K_DEFECTS = [
    Defect("negative zero as a number of its own", ".to(tl.float32) + 0.0", ".to(tl.float32)"),
    Defect("columns of no token", "mask=place < columns, other=float", "mask=place < columns + 8, other=float"),
    Defect("one more than top-k", "(sums >= goal).to(tl.int32)", "(sums > goal).to(tl.int32)"),
    Defect("a step too far", "low += (met - 1) * step", "low += met * step"),
    Defect("equals without what is above them", "(goal - above) / each", "goal / each"),
    Defect("equals with all their ids", "(is_equal == 1) & (rank == wanted)", "(is_equal == 1) & (rank < 0)"),
    Defect("equals counted anew in each chunk", "rank = seen + tl.cumsum", "rank = tl.cumsum"),
    Defect("the last equal is out", "(bar_of(x) == bar) & (place <= last)", "(bar_of(x) == bar) & (place < last)"),
    Defect("the bar before top-k", "tl.store(bars + row, bar)", "tl.store(bars + row, LOWEST_BAR)"),
    Defect("an order for positive logits only", "return bits ^ ((bits >> 31) & 0x7FFFFFFF)", "return bits"),
]
TOP_P_DEFECTS = [
    Defect("a mass without its temperature", "share(x, largest, usable)", "share(x, largest, 1.0)"),
    Defect("masses of chunks not brought together", "mass * share(largest, peak, temperature)", "mass"),
    Defect(
        "the mass of all, not of what is kept",
        "tl.where(is_kept(x, place, bar, last), share(x, peak, temperature), 0.0)",
        "share(x, peak, temperature)",
    ),
    Defect("top-p of more than all", "top_p * total * SURE", "top_p * (total + 1.0) * SURE"),
    Defect("a floor above what is needed", "total * 0.5 / columns", "total * 50.0 / columns"),
    Defect("weights all the same", "share(x, peak, temperature) if BY_MASS else 1.0", "1.0"),
    Defect(
        "the sum before top-p",
        "if totals is not None:\n                total =",
        "if totals is None:\n                total =",
    ),
]
MIN_P_DEFECTS = [
    Defect(
        "min-p without temperature", "tl.minimum(min_p, 1.0)) * LN_2 * temperature", "tl.minimum(min_p, 1.0)) * LN_2"
    ),
    Defect("min-p in bits", "tl.log2(tl.minimum(min_p, 1.0)) * LN_2", "tl.log2(tl.minimum(min_p, 1.0))"),
    Defect("top-k 0 means none", "if (top_k > 0) & (top_k < columns):", "if top_k < columns:"),
    Defect("shares without temperature", "(1.0 / (temperature * LN_2))", "(1.0 / LN_2)"),
]
BEST_DEFECTS = [
    Defect("not finite, not noticed", "tl.where(all_sound == 1, start + index, -1)", "start + index"),
    Defect("only NaN is noticed", "(tl.abs(x) <= LARGEST) |", "(x == x) |"),
    Defect(
        "places within the chunk", "tl.where(all_sound == 1, start + index, -1)", "tl.where(all_sound == 1, index, -1)"
    ),
    Defect(
        "the last of equals",
        "tl.min(tl.where(largest == peak, place, 0x7FFFFFFF), axis=0)",
        "tl.max(tl.where(largest == peak, place, -1), axis=0)",
    ),
    Defect(
        "rows without their stride",
        "read(logits + row.to(tl.int64) * logits_stride, place, columns)\n    is_sound",
        "read(logits + row.to(tl.int64) * columns, place, columns)\n    is_sound",
    ),
]
DRAW_DEFECTS = [
    Defect("noise without temperature", "distance(x, peak) / temperature + gumbel", "distance(x, peak) + gumbel"),
    Defect("noise subtracted", "+ gumbel(fraction(start, place))", "- gumbel(fraction(start, place))"),
    Defect("one key for all rows", "tl.load(keys + row + first)", "tl.load(keys + first)"),
    Defect("positions left out", "tl.load(positions + row + first).to(tl.int64)", "first.to(tl.int64)"),
    Defect("drawn from all", "is_kept(x, place, bar, tl.load(lasts + row)), sums", "place < columns, sums"),
    Defect("winners within the chunk", "winner = tl.program_id(0) % chunks * CHUNK + index", "winner = index"),
    Defect(
        "greedy rows drawn",
        "if (temperature >= MIN_TEMPERATURE) & (tl.load(bests",
        "if (temperature > 0) & (tl.load(bests",
    ),
    Defect("the first chunk's winner", "tl.where(score == highest, winner", "tl.where(score > highest - 1e9, winner"),
    Defect("what is not finite drawn", "& (tl.load(bests + row) >= 0):", "& (tl.load(bests + row) >= -1):"),
]
NOISE_DEFECTS = [
    Defect("a shift of the mixing", "(z ^ (z >> 27))", "(z ^ (z >> 28))"),
    Defect("the sign shifted in", "(z >> 30)", "(z.to(tl.int64, bitcast=True) >> 30).to(tl.uint64, bitcast=True)"),
    Defect("output i - 1 of the stream", "(ids + 1).to(tl.uint64)", "ids.to(tl.uint64)"),
    Defect(
        "the first output without its step", "positions.to(tl.uint64, bitcast=True) + GAMMA", "positions.to(tl.uint64)"
    ),
    Defect("the lower bits", "mix(state) >> 12", "mix(state) & 0xFFFFFFFFFFFFF"),
    Defect("large numbers not mirrored", "tl.where(is_upper, (bits ^ ONES) + 1, bits)", "bits"),
    Defect("a term of the series", "s * (1.0 / 5 + s * series)", "s * (1.0 / 4 + s * series)"),
    Defect("half the artanh", "t * series * 2.0", "t * series"),
    Defect("the lower half in bits", "tl.log2(w) * -LN_2)", "tl.log2(w) * -1.0)"),
]
BY_CHECK = [
    (check_top_k, TOP_K_DEFECTS),
    (check_top_p, TOP_P_DEFECTS),
    (check_min_p, MIN_P_DEFECTS),
    (check_best, BEST_DEFECTS),
    (check_draws, DRAW_DEFECTS),
]
CHECKS = [check_best, check_top_k, check_top_p, check_min_p, check_draws]
DEFECTS = [pytest.param(defect, [check], id=str(defect)) for check, defects in BY_CHECK for defect in defects]


@pytest.mark.parametrize("check", CHECKS)
def test_sampling(check) -> None:
    check(module)


def test_numbers() -> None:
    check_numbers(noise_module)


@pytest.mark.parametrize(("defect", "checks"), DEFECTS)
def test_defects_are_caught(defect: Defect, checks: list, tmp_path: Path) -> None:
    assert_caught(defect, module, checks, tmp_path)


@pytest.mark.parametrize("defect", NOISE_DEFECTS, ids=str)
def test_defects_of_the_noise_are_caught(defect: Defect, tmp_path: Path) -> None:
    assert_caught(defect, noise_module, [check_numbers], tmp_path)


def on_host(logits: Tensor, known: dict[str, Tensor], where: dict[str, Tensor]) -> list[int]:
    """What the engine's own sampler says of each row."""
    tokens = []
    names = ("temperature", "top_k", "top_p", "min_p")
    for row in range(len(logits)):
        params = SamplingParams(**{name: known[name][row].item() for name in names})
        sampler = Sampler(params, [], logits.shape[1])
        sampler.key = int(where["keys"][row]) % 2**64
        tokens.append(sampler.sample(logits[row].cpu(), int(where["positions"][row])).token)
    return tokens


def random_rows(count: int) -> list[Row]:
    generator = np.random.default_rng(7)
    choices = [(0.0, 0.7, 1.0, 1.6), (0, 0, 1, 5, 40, 1000), (1.0, 1.0, 0.5, 0.9, 0.99), (0.0, 0.0, 0.05, 0.3)]
    drawn = [[options[i] for i in generator.integers(len(options), size=count)] for options in choices]
    return list(zip(*drawn, strict=True))


@triton.jit
def _draws_kernel(logits, temperatures, keys, positions, out, ROWS: tl.constexpr, V: tl.constexpr, STREAM: tl.constexpr,
                  NOISY: tl.constexpr):  # fmt: skip
    """Many rows at once, by the arithmetic that the kernels have for one: much quicker to interpret."""
    row, place = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, V)
    x = tl.load(logits + row[:, None] * V + place[None, :])
    start = STREAM(tl.load(keys + row), tl.load(positions + row).to(tl.int64))
    temperature = tl.load(temperatures + row)[:, None]
    sums = NOISY(x, place[None, :], start[:, None], tl.max(x, axis=1)[:, None], temperature)
    tl.store(out + row, tl.argmax(sums, axis=1))


def test_thousands_of_draws_are_the_host_samplers() -> None:
    """By noise and temperature alone. Of one distribution they also look like it."""
    count = 3072
    logits = 3 * torch.randn(count, 256, device=DEVICE)
    logits[:1024] = -40.0
    logits[:1024, 5:245:30] = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5], device=DEVICE)
    known, where = parameters([(1.0, 0, 1.0, 0.0)] * 2048 + [(0.6, 0, 1.0, 0.0)] * 1024), places(count)
    got = torch.empty(count, dtype=torch.int32, device=DEVICE)
    _draws_kernel[(count // 128,)](
        logits, known["temperature"], where["keys"], where["positions"], got, 128, 256, module.stream, module.noisy
    )
    assert got.tolist() == on_host(logits, known, where)
    assert g_test(torch.bincount(got[:1024].cpu(), minlength=256), logits[0].cpu().double().softmax(-1)) > 1e-3


def test_draws_of_all_kinds_are_the_host_samplers() -> None:
    logits, known, where = 3 * torch.randn(40, 300, device=DEVICE), parameters(random_rows(40)), places(40)
    got = module.sample(logits, **known, **where, tables=tables(512, 64))
    assert got.tolist() == on_host(logits, known, where)


def test_the_twin_draws_what_the_host_sampler_draws() -> None:
    """Thousands, which is quick: what the kernels are compared with stands for the engine's sampler."""
    logits, known, where = 3 * torch.randn(4000, 200), parameters(random_rows(4000)), places(4000)
    logits[::3] = (2 * logits[::3]).round() / 2  # many equals
    assert reference.sample(logits, **known, **where).tolist() == on_host(logits, known, where)


@pytest.mark.parametrize("row", [(1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.5, 0, 0.8, 0.0), (2.0, 6, 0.9, 0.1)])
def test_the_twins_frequencies(row: Row) -> None:
    logits = torch.randn(8).expand(50_000, 8)
    known, where = parameters([row] * 50_000), places(1)
    keys = torch.arange(50_000)  # one key each, as different answers have
    drawn = reference.sample(logits, **known, keys=keys, positions=where["positions"])
    shares = reference.probabilities(logits[:1], **{name: of[:1] for name, of in known.items()})[0]
    assert g_test(torch.bincount(drawn, minlength=8), shares) > 1e-3
    drawn = reference.sample(logits, **known, keys=where["keys"], positions=keys)  # one answer, place by place
    assert g_test(torch.bincount(drawn, minlength=8), shares) > 1e-3
    assert g_test(torch.bincount(drawn, minlength=8), 0.95 * shares + 0.05 * torch.eye(8)[shares.argmax()]) < 1e-3


def test_a_row_does_not_depend_on_the_others() -> None:
    rows: list[Row] = [(1.5, 0, 0.9, 0.0), (0.0, 0, 1.0, 0.0), (1.2, 20, 1.0, 0.0), (2.0, 0, 1.0, 0.0)]
    logits, known, where = make_logits(4).tensor, parameters(rows), places(4)
    together = module.sample(logits, **known, **where, vocab_size=V, tables=SMALL)
    for row in (0, 2, 3):
        alone = {name: of[row : row + 1] for name, of in (known | where).items()}
        assert module.sample(logits[row : row + 1], **alone, vocab_size=V, tables=SMALL)[0] == together[row]


def test_extremes() -> None:
    """The largest numbers, infinitely many steps apart; every logit equal; one column; parameters that say nothing."""
    top = torch.finfo(torch.float32).max
    logits = torch.zeros(4, V, device=DEVICE)
    logits[0], logits[0, 40] = -top, top
    logits[1] = torch.linspace(-1e-44, 1e-44, V)  # where floating point has no more digits
    known = parameters([(1.0, 3, 0.5, 0.0), (1e30, 10, 0.95, 0.0), (0.5, 0, 0.0, 0.0), (float("nan"), -5, 7.0, -1.0)])
    where = places(4)
    got = module.sample(logits, **known, **where, tables=tables(64, 8))
    assert got[0] == 40 and got[2] == 0 and got[3] == 0
    assert int((logits[1] > logits[1, got[1]]).sum()) < 10


def test_no_rows() -> None:
    none = torch.empty(0, 8, device=DEVICE)
    known, where = parameters([(1.0, 0, 1.0, 0.0)]), places(1)
    assert module.best(none).shape == (0,)
    assert module.sample(none, **{name: of[:0] for name, of in (known | where).items()}).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.ones(2, 8).int()}, "`logits`: the type must be float32 or float16 or bfloat16, not int32"),
        ({"logits": torch.ones(8, 2).T}, "`logits`: its last dimension must be dense, not of stride 2"),
        ({"vocab_size": 9}, "`vocab_size`: it must be 1 to 8 columns, not 9"),
        ({"vocab_size": 0}, "`vocab_size`: it must be 1 to 8 columns, not 0"),
        ({"temperature": torch.ones(3)}, "`temperature`: the shape must be [2], not [3]"),
        ({"temperature": torch.ones(2).half()}, "`temperature`: the type must be float32, not float16"),
        ({"top_k": torch.ones(2)}, "`top_k`: the type must be int32, not float32"),
        ({"top_p": torch.ones(4)[::2]}, "`top_p`: its last dimension must be dense, not of stride 2"),
        ({"keys": torch.ones(2).int()}, "`keys`: the type must be int64, not int32"),
        ({"positions": torch.ones(2)}, "`positions`: the type must be int32 or int64, not float32"),
        ({"out": torch.ones(2)}, "`out`: the type must be int32, not float32"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {"logits": torch.ones(2, 8), **parameters([(1.0, 0, 1.0, 0.0)] * 2), **places(2)} | changes
    with pytest.raises(ValueError) as caught:
        module.sample(**{k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in arguments.items()})
    assert str(caught.value) == message


def test_greedy_begins_where_the_engine_says() -> None:
    assert module.MIN_TEMPERATURE.value == reference.MIN_TEMPERATURE == MIN_TEMPERATURE
