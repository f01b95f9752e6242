"""Speculative verification by rejection sampling (https://arxiv.org/abs/2211.17192, algorithm 1).

S sequences, K guesses of each at most, R rows of logits, V columns, C chunks of a row. Row first_rows[s] + j is what
the model says where guess j of sequence s stands; p is what `sampling` would draw from there, q what the guess was
drawn from. Guess d counts if u * q(d) < p(d), u uniform; behind the first that does not comes a draw from
max(p - q, 0), behind the last guess what `sampling.sample` says of its row. The tokens are then distributed as p,
whatever q is. Guesses without probabilities were certain: q(d) = 1. Greedy rows take guesses as long as they are the
largest logit.

u, and the noise of draws after a rejection, belong to (key, position) but to a stream of their own: guesses may have
been drawn by the ordinary noise of the same key. Results do not depend on the other sequences. Five launches: those
of `sampling.look`; how many guesses of each sequence count; the draw of each chunk; the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Tables
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.noise import LN_2, fraction, gumbel, stream, uniform
from kernels.gpu.sampling import (
    MIN_TEMPERATURE,
    VOCABULARY,
    Sampling,
    drawn,
    is_kept,
    look,
    noisy,
    read,
    share,
    specimen,
)
from kernels.gpu.specimen import Specimen, Work

SPECULATION = tl.constexpr(0x5851F42D4C957F2D)  # as in `kernels.reference`
MOST_GUESSES = 128


@triton.jit
def _start(keys, positions, row, salt):
    """The stream of a row, or with SPECULATION as `salt` its other one. -> uint64 [1]"""
    first = tl.zeros([1], tl.int32)
    return stream(tl.load(keys + row + first) ^ salt, tl.load(positions + row + first).to(tl.int64))


@triton.jit
def _accept_kernel(
    logits,
    first_rows,
    drafts,
    guesses,
    temperatures,
    keys,
    positions,
    peaks,
    bests,
    bars,
    lasts,
    totals,
    accepted,
    rejected,
    rows,
    columns,
    most,
    logits_stride,
    drafts_stride,
    guesses_stride,
    guesses_row,
):
    """One sequence: how many of its guesses count, and whether one was turned down behind them."""
    sequence = tl.program_id(0).to(tl.int64)
    first = tl.load(first_rows + sequence)
    count = tl.full([], 0, tl.int32)
    turned_down = tl.full([], 0, tl.int32)
    goes_on = tl.full([], 1, tl.int32)
    while (goes_on == 1) & (count < most):
        row = (first + count).to(tl.int64)
        draft = tl.load(drafts + sequence * drafts_stride + count)
        goes_on = ((draft >= 0) & (row >= 0) & (row < rows)).to(tl.int32)
        if goes_on == 1:
            best = tl.load(bests + row)
            temperature = tl.load(temperatures + row)
            takes = draft == best
            if (temperature >= MIN_TEMPERATURE) & (best >= 0):
                x = read(logits + row * logits_stride, draft, columns)
                p = share(x, tl.load(peaks + row), temperature) / tl.load(totals + row)
                p = tl.where(is_kept(x, draft, tl.load(bars + row), tl.load(lasts + row)), p, 0.0)
                q = tl.full([], 1.0, tl.float32)
                if guesses is not None:
                    place = guesses + sequence * guesses_stride + count.to(tl.int64) * guesses_row + draft
                    q = tl.load(place, mask=draft < columns, other=1.0).to(tl.float32)
                u = tl.sum(uniform(fraction(_start(keys, positions, row, SPECULATION), tl.zeros([1], tl.int32) - 1)), 0)
                takes = u * q < p
            count += takes.to(tl.int32)
            goes_on = takes.to(tl.int32)
            turned_down = 1 - goes_on
    tl.store(accepted + sequence, count)
    tl.store(rejected + sequence, turned_down)


@triton.jit
def _redraw_kernel(
    logits,
    first_rows,
    drafts,
    guesses,
    temperatures,
    keys,
    positions,
    peaks,
    bests,
    bars,
    lasts,
    totals,
    accepted,
    rejected,
    scores,
    winners,
    rows,
    columns,
    chunks,
    logits_stride,
    drafts_stride,
    guesses_stride,
    guesses_row,
    CHUNK: tl.constexpr,
):
    """One chunk of the row behind a sequence's last guess that counts: its best candidate to go on with."""
    sequence = (tl.program_id(0) // chunks).to(tl.int64)
    slot = tl.program_id(0).to(tl.int64)
    count = tl.load(accepted + sequence)
    row = (tl.load(first_rows + sequence) + count).to(tl.int64)
    is_row = (row >= 0) & (row < rows)
    temperature = tl.load(temperatures + row, mask=is_row, other=0.0)
    score = tl.full([], float("-inf"), tl.float32)
    winner = tl.full([], 0, tl.int32)
    if (temperature >= MIN_TEMPERATURE) & (tl.load(bests + row, mask=is_row, other=-1) >= 0):
        place = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
        x = read(logits + row * logits_stride, place, columns)
        peak = tl.load(peaks + row)
        kept = is_kept(x, place, tl.load(bars + row), tl.load(lasts + row))
        if tl.load(rejected + sequence) == 1:
            start = _start(keys, positions, row, SPECULATION)
            if guesses is None:
                sums = noisy(x, place, start, peak, temperature)
                kept = kept & (place != tl.load(drafts + sequence * drafts_stride + count))
            else:
                guess = guesses + sequence * guesses_stride + count.to(tl.int64) * guesses_row + place
                q = tl.load(guess, mask=place < columns, other=0.0).to(tl.float32)
                left = share(x, peak, temperature) / tl.load(totals + row) - q
                kept = kept & (left > 0)
                sums = tl.log2(tl.where(kept, left, 1.0)) * LN_2 + gumbel(fraction(start, place))
        else:
            sums = noisy(x, place, _start(keys, positions, row, 0), peak, temperature)
        score, index = tl.max(tl.where(kept, sums, float("-inf")), axis=0, return_indices=True)
        winner = tl.program_id(0) % chunks * CHUNK + index
    tl.store(scores + slot, score)
    tl.store(winners + slot, winner)


@triton.jit
def _finish_kernel(
    first_rows,
    drafts,
    bests,
    accepted,
    scores,
    winners,
    out,
    counts,
    rows,
    most,
    chunks,
    drafts_stride,
    out_stride,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
):
    """One sequence: the guesses that count, the token behind them (none: its row is not finite), and -1."""
    sequence = tl.program_id(0)
    count = tl.load(accepted + sequence)
    row = (tl.load(first_rows + sequence) + count).to(tl.int64)
    best = tl.load(bests + row, mask=(row >= 0) & (row < rows), other=-1)
    # no candidate has anything left where only rounding has turned the guess down: p and q are equal
    token = drawn(scores, winners, sequence, chunks, best, CHUNKS)
    column = tl.arange(0, MOST)
    places = sequence.to(tl.int64) * drafts_stride + column
    tokens = tl.load(drafts + places, mask=column < count, other=-1)
    tokens = tl.where(column == count, token, tokens)
    tl.store(out + sequence.to(tl.int64) * out_stride + column, tokens, mask=column <= most)
    tl.store(counts + sequence, count + (token >= 0).to(tl.int32))


def verify(
    logits: Tensor,  # [R, V]
    first_rows: Tensor,  # int32 [S]
    drafts: Tensor,  # int32 [S, K], -1 from where there are none
    draft_probabilities: Tensor | None,  # [S, K, V] of any float type
    temperature: Tensor,  # [R] fp32
    top_k: Tensor,  # [R] int32, 0: off
    top_p: Tensor,  # [R] fp32, 1: off
    min_p: Tensor,  # [R] fp32, 0: off
    keys: Tensor,  # [R] int64, the bits of a uint64
    positions: Tensor,  # [R] int32 or int64, of the token to come
    vocab_size: int | None = None,  # columns that count
    out: tuple[Tensor, Tensor] | None = None,  # int32 [S, K + 1] and [S]
    *,
    tables: Tables = SHIPPED,
) -> tuple[Tensor, Tensor]:  # int32 [S, K + 1], int32 [S]
    """The tokens that each sequence goes on with, -1 behind them, and how many they are: at least one.

    Sequence s has the rows first_rows[s] .. + K, or fewer where it has fewer guesses. A row that is not finite, or not
    there, ends the sequence without a token of its own. Raises `ValueError` for shapes, strides and types that do not
    fit.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, keys, positions)
    check_tensor("first_rows", first_rows, [None], torch.int32, like=logits, contiguous=True)
    sequences = first_rows.shape[0]
    check_tensor("drafts", drafts, [sequences, None], torch.int32, like=logits)
    most = drafts.shape[1]
    check(most <= MOST_GUESSES, "drafts", f"at most {MOST_GUESSES} guesses, not {most}")
    guesses, strides = draft_probabilities, (0, 0)
    if guesses is not None:
        check_tensor("draft_probabilities", guesses, [sequences, most, None], FLOATS, like=logits)
        width = logits.shape[-1] if vocab_size is None else vocab_size
        rule = f"it must have a column for each of {width} tokens, not {guesses.shape[2]}"
        check(guesses.shape[2] >= width, "draft_probabilities", rule)
        strides = guesses.stride(0), guesses.stride(1)
    if out is None:
        tokens = torch.empty(sequences, most + 1, dtype=torch.int32, device=logits.device)
        out = tokens, torch.empty(sequences, dtype=torch.int32, device=logits.device)
    check_tensor("out[0]", out[0], [sequences, most + 1], torch.int32, like=logits)
    check_tensor("out[1]", out[1], [sequences], torch.int32, like=logits, contiguous=True)
    survey = look(logits, sampling, vocab_size, True, tables)
    if sequences == 0:
        return out
    state = torch.empty(2, sequences, dtype=torch.int32, device=logits.device)  # guesses that count; one turned down
    scores = torch.empty(sequences, survey.chunks, dtype=torch.float32, device=logits.device)
    winners = torch.empty(sequences, survey.chunks, dtype=torch.int32, device=logits.device)
    rows, chosen = logits.shape[0], survey.chosen
    known = (temperature, keys, positions, survey.peaks, survey.bests, survey.bars, survey.lasts, survey.totals)
    _accept_kernel[(sequences,)](
        logits, first_rows, drafts, guesses, *known, state[0], state[1], rows, survey.columns, most,
        logits.stride(0), drafts.stride(0), *strides, num_warps=1,
    )  # fmt: skip
    _redraw_kernel[(scores.numel(),)](
        logits, first_rows, drafts, guesses, *known, state[0], state[1], scores, winners, rows, survey.columns,
        survey.chunks, logits.stride(0), drafts.stride(0), *strides,
        CHUNK=chosen.sizes["CHUNK"], num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip
    _finish_kernel[(sequences,)](
        first_rows, drafts, survey.bests, state[0], scores, winners, out[0], out[1], rows, most, survey.chunks,
        drafts.stride(0), out[0].stride(0),
        CHUNKS=survey.padded, MOST=triton.next_power_of_2(most + 1), num_warps=1,
    )  # fmt: skip
    return out


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """The last three launches, with and without the guesses' probabilities; the first two are in `sampling`."""
    shared = {"first_rows": "*i32", "drafts": "*i32", "accepted": "*i32", "rejected": "*i32", "counts": "*i32"}
    for row in tables.rows("sampling", arch):
        columns = min(row.up_to or VOCABULARY, VOCABULARY)
        shape = f"64 sequences of 4 guesses and {columns:,} columns"
        for dtype in ("fp16", "bf16", "fp32") if row.up_to is None else ("fp16",):
            size, types = 4 if dtype == "fp32" else 2, {**shared, "logits": f"*{dtype}", "guesses": "*fp32"}
            for named, none, read_bytes in (("guesses drawn", (), size + 4), ("guesses certain", ("guesses",), size)):
                variant = f"{dtype}, {columns:,} columns, {named}"
                work = Work(shape, 64 * columns * read_bytes, 64 * columns * 80, "fp32")
                yield specimen("verification", _accept_kernel, row, f"accept, {variant}", types, none)
                yield specimen("verification", _redraw_kernel, row, f"redraw, {variant}", types, none, work)
        yield specimen("verification", _finish_kernel, row, f"finish, {columns:,} columns", shared)
