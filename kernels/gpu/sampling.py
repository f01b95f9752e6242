"""From logits to tokens, row by row with the row's own parameters: R rows, V columns, C chunks of a row.

Order: temperature, min-p, top-k, top-p, then the largest logit / temperature + Gumbel noise, which is a draw from what
is left ("Gumbel-max", https://arxiv.org/abs/1411.0030). Rows with a temperature below 1e-4 take the largest logit. Of
equal logits the lower id goes first, everywhere. The noise is that of `kernels.gpu.noise`, by key, position and token
id: a row's token does not depend on the rows beside it, and is that of the engine's sampler on the host but for
rounding: sums of logit and noise within 2e-6 of each other may change places, and a logit within a few units in the
last place of min-p's cut, or a probability within a millionth of what top-p still needs, may count either way.

Nothing is sorted. What min-p, top-k and top-p leave is what comes before one place in the order of falling logits and
rising ids: a bar (a logit as an integer of the same order) and the last id that counts at the bar. It is found by
counting, or adding up probabilities, above WAYS bars at a time, which narrows 2**32 bars to one in at most 11 passes; a
pass reads only chunks whose largest logit reaches the lowest bar. Four launches: survey of each chunk; bars of each
row; draw of each chunk; the rows' winners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Configuration, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.noise import LN_2, fraction, gumbel, stream
from kernels.gpu.specimen import Specimen, Work

if TYPE_CHECKING:
    from kernels.gpu.tuning import Example

MIN_TEMPERATURE = tl.constexpr(1e-4)  # below it a row is greedy; as in the engine's requests
LARGEST = tl.constexpr(3.4028234663852886e38)
LOWEST_BAR = tl.constexpr(-2139095040)  # that of -LARGEST
FAR = tl.constexpr(-1e30)  # from the largest logit: no probability, and no overflow at any temperature
SURE = tl.constexpr(1 - 2.0**-20)  # of top-p: rounding of a sum must not add a candidate


@triton.jit
def read(row, place, columns):
    """Logits as fp32, minus infinity behind the last column; no negative zero, which would be a bar of its own."""
    return tl.load(row + place, mask=place < columns, other=float("-inf")).to(tl.float32) + 0.0


@triton.jit
def bar_of(x):
    """fp32 -> int32 of the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def distance(x, peak):
    """x - peak at most 0, without overflow."""
    return tl.maximum(x * 0.5 - peak * 0.5, FAR) * 2.0


@triton.jit
def share(x, peak, temperature):
    """exp((x - peak) / temperature)."""
    return tl.exp2(distance(x, peak) * (1.0 / (temperature * LN_2)))


@triton.jit
def is_kept(x, place, bar, last):
    """Whether a logit comes before the bar, or at it with an id up to `last`."""
    return (bar_of(x) > bar) | ((bar_of(x) == bar) & (place <= last))


@triton.jit
def _survey_kernel(logits, temperatures, maxima, places, masses, columns, chunks, logits_stride, CHUNK: tl.constexpr):
    """Of one chunk: the largest logit, its place (-1: something is not finite), and the sum of shares under it."""
    row = tl.program_id(0) // chunks
    start = tl.program_id(0) % chunks * CHUNK
    place = start + tl.arange(0, CHUNK)
    x = read(logits + row.to(tl.int64) * logits_stride, place, columns)
    is_sound = (tl.abs(x) <= LARGEST) | (place >= columns)
    all_sound = tl.min(is_sound.to(tl.int32), axis=0)
    largest, index = tl.max(x, axis=0, return_indices=True)
    slot = tl.program_id(0).to(tl.int64)
    tl.store(maxima + slot, largest)
    tl.store(places + slot, tl.where(all_sound == 1, start + index, -1))
    if temperatures is not None:
        if all_sound == 1:
            temperature = tl.load(temperatures + row)
            usable = tl.where(temperature >= MIN_TEMPERATURE, temperature, 1.0)
            tl.store(masses + slot, tl.sum(share(x, largest, usable), axis=0))


@triton.jit
def _winner(maxima, places, row, chunks, CHUNKS: tl.constexpr):
    """A row's largest logit, and its place: the lowest one; -1 where something in the row is not finite."""
    chunk = tl.arange(0, CHUNKS)
    slot = row.to(tl.int64) * chunks + chunk
    largest = tl.load(maxima + slot, mask=chunk < chunks, other=float("-inf"))
    place = tl.load(places + slot, mask=chunk < chunks, other=0)
    peak = tl.max(largest, axis=0)
    found = tl.min(tl.where(largest == peak, place, 0x7FFFFFFF), axis=0)
    return peak, tl.where(tl.min(place, axis=0) < 0, -1, found)


@triton.jit
def _best_kernel(maxima, places, out, chunks, CHUNKS: tl.constexpr):
    """One row."""
    row = tl.program_id(0)
    _, best = _winner(maxima, places, row, chunks, CHUNKS)
    tl.store(out + row, best)


@triton.jit
def _mass(logits, maxima, columns, peak, temperature, bar, last, CHUNK: tl.constexpr):
    """The sum of shares of what is kept."""
    total = tl.zeros([CHUNK], tl.float32)
    for start in range(0, columns, CHUNK):
        if bar_of(tl.load(maxima + start // CHUNK)) >= bar:
            place = start + tl.arange(0, CHUNK)
            x = read(logits, place, columns)
            total += tl.where(is_kept(x, place, bar, last), share(x, peak, temperature), 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _narrow(
    logits, maxima, columns, peak, temperature, goal, low, bar, last, BY_MASS: tl.constexpr, CHUNK: tl.constexpr,
    WAYS: tl.constexpr,
):  # fmt: skip
    """The highest bar, and the last id at it, such that what is kept weighs at least `goal`; else what there was.

    Only what (bar, last) keeps counts, one each or by its share. What is under `low` must not be needed for `goal`.
    """
    way = tl.arange(0, WAYS)
    low = low.to(tl.int64)  # weighs at least `goal`
    high = bar_of(peak).to(tl.int64) + 1  # weighs less
    above = tl.full([], 0.0, tl.float32)  # the weight at and above `high`
    while high - low > 1:
        step = (high - low + WAYS - 1) // WAYS
        bars = tl.minimum(low + way * step, high).to(tl.int32)  # [WAYS]
        weights = tl.zeros([WAYS, CHUNK], tl.float32)
        for start in range(0, columns, CHUNK):
            if bar_of(tl.load(maxima + start // CHUNK)) >= low:
                place = start + tl.arange(0, CHUNK)
                x = read(logits, place, columns)
                weight = tl.where(is_kept(x, place, bar, last), share(x, peak, temperature) if BY_MASS else 1.0, 0.0)
                weights += tl.where(bar_of(x)[None, :] >= bars[:, None], weight[None, :], 0.0)
        sums = tl.sum(weights, axis=1)  # [WAYS], falling
        met = tl.sum((sums >= goal).to(tl.int32), axis=0)
        if met == 0:
            high = low + 1
            above = tl.full([], 0.0, tl.float32)
        else:
            low += (met - 1) * step
            high = tl.minimum(low + step, high)
            short = tl.max(tl.where(sums < goal, sums, -1.0), axis=0)
            above = tl.where(short >= 0, short, above)
            reached = tl.min(tl.where(sums >= goal, sums, float("inf")), axis=0)
            high = tl.where(reached == goal, low + 1, high)  # exactly enough: no bar does better
    found = low.to(tl.int32)
    each = tl.full([], 1.0, tl.float32)
    if BY_MASS:
        bits = found ^ ((found >> 31) & 0x7FFFFFFF)
        each = tl.maximum(share(bits.to(tl.float32, bitcast=True), peak, temperature), 1e-37)
    wanted = tl.ceil(tl.minimum(tl.maximum((goal - above) / each, 1.0), 1e9)).to(tl.int32)
    limit = tl.where(found == bar, last, columns - 1)
    seen = tl.full([], 0, tl.int32)
    for start in range(0, columns, CHUNK):
        if bar_of(tl.load(maxima + start // CHUNK)) >= found:
            place = start + tl.arange(0, CHUNK)
            x = read(logits, place, columns)
            is_equal = ((bar_of(x) == found) & is_kept(x, place, bar, last)).to(tl.int32)
            rank = seen + tl.cumsum(is_equal, axis=0)
            limit = tl.minimum(limit, tl.min(tl.where((is_equal == 1) & (rank == wanted), place, 0x7FFFFFFF), axis=0))
            seen += tl.sum(is_equal, axis=0)
    return found, limit


@triton.jit
def _bars_kernel(
    logits, temperatures, top_ks, top_ps, min_ps, maxima, places, masses, peaks, bests, bars, lasts, totals, columns,
    chunks, logits_stride, CHUNK: tl.constexpr, WAYS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One row: its largest logit, and what is kept of it. `totals`: where the sum of kept shares goes, or None."""
    row = tl.program_id(0)
    peak, best = _winner(maxima, places, row, chunks, CHUNKS)
    tl.store(peaks + row, peak)
    tl.store(bests + row, best)
    temperature = tl.load(temperatures + row)
    if (temperature >= MIN_TEMPERATURE) & (best >= 0):
        top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
        logits += row.to(tl.int64) * logits_stride
        maxima += row.to(tl.int64) * chunks
        masses += row.to(tl.int64) * chunks
        chunk = tl.arange(0, CHUNKS)
        largest = tl.load(maxima + chunk, mask=chunk < chunks, other=peak)
        bar = tl.full([], LOWEST_BAR, tl.int32)
        last = columns + 0
        if min_p > 0:
            cut = tl.maximum(peak + tl.log2(tl.minimum(min_p, 1.0)) * LN_2 * temperature, -LARGEST)
            bar = tl.maximum(tl.where(min_p < 1, bar_of(cut) - 1, bar_of(cut)), bar)  # one lower for rounding
        if (top_k > 0) & (top_k < columns):
            # as many candidates as chunks have the smallest of the chunks' largest
            low = tl.where(top_k <= chunks, tl.maximum(bar_of(tl.min(largest, axis=0)), bar), bar)
            goal = top_k.to(tl.float32)
            bar, last = _narrow(logits, maxima, columns, peak, temperature, goal, low, bar, last, False, CHUNK, WAYS)
        total = tl.full([], 0.0, tl.float32)
        if bar > LOWEST_BAR:
            total = _mass(logits, maxima, columns, peak, temperature, bar, last, CHUNK)
        else:
            mass = tl.load(masses + chunk, mask=chunk < chunks, other=0.0)
            total = tl.sum(mass * share(largest, peak, temperature), axis=0)
        if top_p < 1:
            # everything with less than half an even part of what top-p leaves out is left out
            part = tl.maximum((1.0 - top_p) * total * 0.5 / columns, 1e-30)
            floor = tl.maximum(peak + tl.log2(part) * LN_2 * temperature, -LARGEST)
            low = tl.maximum(bar_of(tl.minimum(floor, peak)), bar)
            bar, last = _narrow(
                logits, maxima, columns, peak, temperature, top_p * total * SURE, low, bar, last, True, CHUNK, WAYS
            )
            if totals is not None:
                total = _mass(logits, maxima, columns, peak, temperature, bar, last, CHUNK)
        tl.store(bars + row, bar)
        tl.store(lasts + row, last)
        if totals is not None:
            tl.store(totals + row, total)


@triton.jit
def noisy(x, place, start, peak, temperature):
    """What the largest of is a draw: logit / temperature + Gumbel noise."""
    return distance(x, peak) / temperature + gumbel(fraction(start, place))


@triton.jit
def _draw_kernel(
    logits, temperatures, keys, positions, maxima, peaks, bests, bars, lasts, scores, winners, columns, chunks,
    logits_stride, CHUNK: tl.constexpr,
):  # fmt: skip
    """One chunk: its largest noisy logit among what is kept, and whose it is."""
    row = tl.program_id(0) // chunks
    slot = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row)
    score = tl.full([], float("-inf"), tl.float32)
    winner = tl.full([], 0, tl.int32)
    if (temperature >= MIN_TEMPERATURE) & (tl.load(bests + row) >= 0):
        bar = tl.load(bars + row)
        if bar_of(tl.load(maxima + slot)) >= bar:
            first = tl.zeros([1], tl.int32)
            start = stream(tl.load(keys + row + first), tl.load(positions + row + first).to(tl.int64))
            place = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
            x = read(logits + row.to(tl.int64) * logits_stride, place, columns)
            sums = noisy(x, place, start, tl.load(peaks + row), temperature)
            sums = tl.where(is_kept(x, place, bar, tl.load(lasts + row)), sums, float("-inf"))
            score, index = tl.max(sums, axis=0, return_indices=True)
            winner = tl.program_id(0) % chunks * CHUNK + index
    tl.store(scores + slot, score)
    tl.store(winners + slot, winner)


@triton.jit
def drawn(scores, winners, row, chunks, best, CHUNKS: tl.constexpr):
    """The winner among a row's chunks; `best` where none has one."""
    chunk = tl.arange(0, CHUNKS)
    slot = row.to(tl.int64) * chunks + chunk
    score = tl.load(scores + slot, mask=chunk < chunks, other=float("-inf"))
    winner = tl.load(winners + slot, mask=chunk < chunks, other=0)
    highest = tl.max(score, axis=0)
    found = tl.min(tl.where(score == highest, winner, 0x7FFFFFFF), axis=0)
    return tl.where(highest > float("-inf"), found, best)


@triton.jit
def _choose_kernel(scores, winners, bests, out, chunks, CHUNKS: tl.constexpr):
    """One row. Of greedy rows and of those that are not finite no chunk has a winner."""
    row = tl.program_id(0)
    tl.store(out + row, drawn(scores, winners, row, chunks, tl.load(bests + row), CHUNKS))


@dataclass(frozen=True, slots=True)
class Sampling:
    """The parameters of R rows, on the device."""

    temperature: Tensor  # [R] fp32; below 1e-4: greedy
    top_k: Tensor  # [R] int32; 0: off
    top_p: Tensor  # [R] fp32; 1: off
    min_p: Tensor  # [R] fp32; 0: off
    keys: Tensor  # [R] int64, the bits of a uint64
    positions: Tensor  # [R] int32 or int64, of the token to come in its sequence

    def check(self, logits: Tensor) -> None:
        for name in ("temperature", "top_p", "min_p"):
            check_tensor(name, getattr(self, name), [logits.shape[0]], torch.float32, like=logits, contiguous=True)
        for name, types in (
            ("top_k", (torch.int32,)),
            ("keys", (torch.int64,)),
            ("positions", (torch.int32, torch.int64)),
        ):
            check_tensor(name, getattr(self, name), [logits.shape[0]], types, like=logits, contiguous=True)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of R rows before anything is drawn."""

    columns: int
    chunks: int
    chosen: Configuration
    maxima: Tensor  # [R, C] fp32
    peaks: Tensor  # [R] fp32, the largest logit
    bests: Tensor  # [R] int32, its lowest place; -1: not all of the row is finite
    bars: Tensor  # [R] int32, of rows that are drawn; likewise the others
    lasts: Tensor  # [R] int32
    totals: Tensor | None  # [R] fp32, the sum of kept shares

    @property
    def padded(self) -> int:
        return int(triton.next_power_of_2(self.chunks))


def look(logits: Tensor, sampling: Sampling, vocab_size: int | None, with_totals: bool, tables: Tables) -> Survey:
    """The first two launches. Raises `ValueError` for what does not fit."""
    columns = _columns(logits, vocab_size)
    sampling.check(logits)
    rows, chosen = logits.shape[0], tables.find("sampling", columns, architecture(logits.device))
    chunks = triton.cdiv(columns, chosen.sizes["CHUNK"])
    numbers = torch.empty(2, rows, chunks, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    floats = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
    whole = torch.empty(3, rows, dtype=torch.int32, device=logits.device)
    totals = floats[1] if with_totals else None
    survey = Survey(columns, chunks, chosen, numbers[0], floats[0], whole[0], whole[1], whole[2], totals)
    warps = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
    _survey_kernel[(rows * chunks,)](
        logits, sampling.temperature, numbers[0], places, numbers[1], columns, chunks, logits.stride(0),
        CHUNK=chosen.sizes["CHUNK"], **warps,
    )  # fmt: skip
    _bars_kernel[(rows,)](
        logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, numbers[0], places, numbers[1],
        survey.peaks, survey.bests, survey.bars, survey.lasts, totals, columns, chunks, logits.stride(0),
        CHUNKS=survey.padded, **chosen.options,
    )  # fmt: skip
    return survey


def best(
    logits: Tensor,  # [R, V]
    vocab_size: int | None = None,  # columns that count
    out: Tensor | None = None,  # int32 [R]
    *,
    tables: Tables = SHIPPED,
) -> Tensor:  # int32 [R]
    """The place of each row's largest logit, the lowest of equal ones; -1 where not all of the row is finite.

    Raises `ValueError` for shapes, strides and types that do not fit.
    """
    columns = _columns(logits, vocab_size)
    out = _tokens(logits, out)
    rows, chosen = logits.shape[0], tables.find("sampling", columns, architecture(logits.device))
    if rows == 0:
        return out
    chunks = triton.cdiv(columns, chosen.sizes["CHUNK"])
    maxima = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, chunks, dtype=torch.int32, device=logits.device)
    _survey_kernel[(rows * chunks,)](
        logits, None, maxima, places, None, columns, chunks, logits.stride(0),
        CHUNK=chosen.sizes["CHUNK"], num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip
    _best_kernel[(rows,)](maxima, places, out, chunks, CHUNKS=triton.next_power_of_2(chunks), num_warps=1)
    return out


def sample(
    logits: Tensor,  # [R, V]
    temperature: Tensor,  # [R] fp32
    top_k: Tensor,  # [R] int32, 0: off
    top_p: Tensor,  # [R] fp32, 1: off
    min_p: Tensor,  # [R] fp32, 0: off
    keys: Tensor,  # [R] int64, the bits of a uint64
    positions: Tensor,  # [R] int32 or int64
    vocab_size: int | None = None,  # columns that count
    out: Tensor | None = None,  # int32 [R]
    *,
    tables: Tables = SHIPPED,
) -> Tensor:  # int32 [R]
    """One token for each row; -1 where not all of the row is finite.

    Raises `ValueError` for shapes, strides and types that do not fit.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, keys, positions)
    out = _tokens(logits, out)
    if logits.shape[0] == 0:
        return out
    survey = look(logits, sampling, vocab_size, False, tables)
    scores, winners = torch.empty_like(survey.maxima), torch.empty_like(survey.maxima, dtype=torch.int32)
    _draw_kernel[(survey.maxima.numel(),)](
        logits, temperature, keys, positions, survey.maxima, survey.peaks, survey.bests, survey.bars, survey.lasts,
        scores, winners, survey.columns, survey.chunks, logits.stride(0), CHUNK=survey.chosen.sizes["CHUNK"],
        num_warps=survey.chosen.num_warps, num_stages=survey.chosen.num_stages,
    )  # fmt: skip
    _choose_kernel[(logits.shape[0],)](
        scores, winners, survey.bests, out, survey.chunks, CHUNKS=survey.padded, num_warps=1
    )
    return out


def _columns(logits: Tensor, vocab_size: int | None) -> int:
    check_tensor("logits", logits, [None, None], FLOATS)
    columns = logits.shape[1] if vocab_size is None else vocab_size
    check(0 < columns <= logits.shape[1], "vocab_size", f"it must be 1 to {logits.shape[1]} columns, not {columns}")
    return columns


def _tokens(logits: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        out = torch.empty(logits.shape[:1], dtype=torch.int32, device=logits.device)
    check_tensor("out", out, logits.shape[:1], torch.int32, like=logits)
    return out


VOCABULARY = 151_936  # columns of the specimens' logits, of 64 rows
STATISTICS = {name: "*fp32" for name in ("maxima", "masses", "peaks", "totals", "scores")}
STATISTICS |= {name: "*i32" for name in ("places", "bests", "bars", "lasts", "winners", "out")}
PARAMETERS = {name: "*fp32" for name in ("temperatures", "top_ps", "min_ps")}
PARAMETERS |= {"top_ks": "*i32", "keys": "*i64", "positions": "*i32"}


def specimen(
    operation: str,
    kernel: triton.JITFunction[..., None],
    row: Configuration,
    variant: str,
    types: dict[str, str],
    none: tuple[str, ...] = (),
    work: Work | None = None,
) -> Specimen:
    """One for the kernels here and in verification, whose arguments have the same names."""
    columns = min(row.up_to or VOCABULARY, VOCABULARY)
    constants: dict[str, int | None] = dict.fromkeys(none)
    constants |= {"CHUNKS": triton.next_power_of_2(triton.cdiv(columns, row.sizes["CHUNK"])), "MOST": 8, **row.sizes}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    known = {**STATISTICS, **PARAMETERS, **types}
    signature = {name: "constexpr" if name in constants else known.get(name, "i32") for name in kernel.arg_names}
    aligned = [name for name, of in signature.items() if of.startswith("*")]
    aligned += [name for name in ("columns", "logits_stride", "guesses_stride", "guesses_row") if name in signature]
    warps = row.num_warps if "CHUNK" in constants else 1
    return Specimen(operation, variant, kernel, signature, constants, warps, row.num_stages, tuple(aligned), work)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """The four launches of `sample` and the two of `best`."""
    for row in tables.rows("sampling", arch):
        columns = min(row.up_to or VOCABULARY, VOCABULARY)
        for dtype in ("fp16", "bf16", "fp32") if row.up_to is None else ("fp16",):
            size, types = 4 if dtype == "fp32" else 2, {"logits": f"*{dtype}"}

            def make(kernel: triton.JITFunction[..., None], name: str, none: tuple[str, ...] = (), passes: int = 1,
                     flops: int = 10, row: Configuration = row, types: dict[str, str] = types, size: int = size,
                     dtype: str = dtype, columns: int = columns) -> Specimen:  # fmt: skip
                work = Work(f"64 rows of {columns:,}", 64 * columns * size * passes, 64 * columns * flops, "fp32")
                return specimen("sampling", kernel, row, f"{name}, {dtype}, {columns:,} columns", types, none, work)

            yield make(_survey_kernel, "survey")
            yield make(_bars_kernel, "bars, 8 passes", ("totals",), 8, 8 * 30)
            yield make(_draw_kernel, "draw", (), 1, 80)
            if dtype == "fp16":
                yield make(_survey_kernel, "survey of best", ("temperatures", "masses"), 1, 4)
        yield specimen("sampling", _best_kernel, row, f"best, {columns:,} columns", {})
        yield specimen("sampling", _choose_kernel, row, f"choose, {columns:,} columns", {})


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: 64 rows of each size class, with everything on."""
    from kernels.gpu.tuning import Example

    for row in SHIPPED.rows("sampling", arch):
        columns = min(row.up_to or VOCABULARY, VOCABULARY)

        def make(device: torch.device, columns: int = columns) -> Callable[[Tables], object]:
            logits, ones = torch.randn(64, columns, device=device) * 3, torch.ones(64, device=device)
            top_k, keys = torch.full((64,), 50, device=device).int(), torch.arange(64, device=device)
            return lambda tables: sample(logits, ones, top_k, ones * 0.9, ones * 0.01, keys, keys, tables=tables)

        yield Example(table="sampling", size=columns, make=make)
