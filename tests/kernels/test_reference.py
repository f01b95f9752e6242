"""The reference operations against formulas written out in loops, in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.reference import (
    attention,
    dequantise_kv,
    experts,
    gate,
    linear,
    narrow_kv,
    paged_attention,
    quantise_kv,
    rms_norm,
    rope,
    rope_table,
    swiglu,
)
from local_engine.files.checkpoint import half_rotation_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_is_the_formula() -> None:
    x, weight = random(5, 24), random(24, seed=1)
    for row, got in zip(x, rms_norm(x, weight, 1e-2), strict=True):
        size = math.sqrt(sum(v * v for v in row.tolist()) / 24 + 1e-2)
        expected = [v / size * w for v, w in zip(row.tolist(), weight.tolist(), strict=True)]
        assert torch.allclose(got, torch.tensor(expected), atol=1e-5)


def test_rms_norm_rounds_to_the_type_of_its_input_before_the_weight() -> None:
    x, weight = (random(64, 8) * 30).bfloat16(), random(8, seed=1).bfloat16()
    wide = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, wide.bfloat16() * weight)
    assert not torch.equal(got, (wide * weight.float()).bfloat16())  # the order can be seen in this type


def test_rope_table_carries_its_factor() -> None:
    frequencies = torch.tensor([1.0, 0.25])
    cos, sin = rope_table(4, frequencies, 1.5)
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.25], [2.0, 0.5], [3.0, 0.75]], dtype=torch.float64)
    assert torch.allclose(cos.double(), 1.5 * angles.cos()) and torch.allclose(sin.double(), 1.5 * angles.sin())


def test_rope_turns_element_i_with_its_partner() -> None:
    x, frequencies = random(3, 2, 8), torch.tensor([1.0, 0.5, 0.25, 0.1])
    cos, sin = rope_table(10, frequencies)
    positions = torch.tensor([0, 4, 9])
    got = rope(x, cos[positions], sin[positions])
    assert torch.allclose(got[0], x[0])  # position 0 does not turn
    for t, position in enumerate(positions.tolist()):
        for head in range(2):
            for i in range(4):
                a, b, angle = float(x[t, head, i]), float(x[t, head, i + 4]), position * float(frequencies[i])
                assert math.isclose(got[t, head, i], a * math.cos(angle) - b * math.sin(angle), abs_tol=1e-5)
                assert math.isclose(got[t, head, i + 4], b * math.cos(angle) + a * math.sin(angle), abs_tol=1e-5)


def test_reordered_rows_turn_like_interleaved_ones() -> None:
    """Projection with stored rows then interleaved rotation = reordered rows then half rotation, up to their order."""
    heads, width, dim = 2, 8, 6
    stored, x = random(heads * width, dim), random(1, dim, seed=1)
    cos, sin = rope_table(8, torch.tensor([1.0, 0.3, 0.1, 0.03]))
    y = (x @ stored.T).view(heads, width)
    interleaved = torch.empty(heads, width)
    interleaved[:, 0::2] = y[:, 0::2] * cos[5] - y[:, 1::2] * sin[5]
    interleaved[:, 1::2] = y[:, 1::2] * cos[5] + y[:, 0::2] * sin[5]
    half = rope((x @ half_rotation_rows(stored, heads).T).view(1, heads, width), cos[5:6], sin[5:6])[0]
    assert torch.allclose(half[:, :4], interleaved[:, 0::2], atol=1e-5)
    assert torch.allclose(half[:, 4:], interleaved[:, 1::2], atol=1e-5)


def looped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None = None
) -> torch.Tensor:
    tokens, heads, width = query.shape
    group, length = heads // len(key), key.shape[1]
    out = torch.zeros(tokens, heads, width, dtype=torch.float64)
    for t in range(tokens):
        own = length - tokens + t
        seen = [p for p in range(length) if p <= own and (window is None or p > own - window)]
        for h in range(heads):
            scores = [float(query[t, h].double() @ key[h // group, p].double()) / math.sqrt(width) for p in seen]
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            for p, weight in zip(seen, weights, strict=True):
                out[t, h] += weight * value[h // group, p].double()
    return out


@pytest.mark.parametrize("window", [None, 1, 2, 4, 11, 30])
@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (1, 7), (5, 5), (3, 11)])
def test_attention_is_causal_and_grouped_and_windowed(tokens: int, length: int, window: int | None) -> None:
    query, key, value = random(tokens, 6, 8), random(2, length, 8, seed=1), random(2, length, 8, seed=2)
    expected = looped_attention(query, key, value, window)
    assert torch.allclose(attention(query, key, value, window).double(), expected, atol=1e-5)


@pytest.mark.parametrize("kept", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_paged_attention_finds_each_sequence_in_its_blocks(window: int | None, kept: str) -> None:
    """Three sequences whose blocks lie mixed up; what no sequence has written is NaN and must never be read."""
    lengths, rows, tables, size = [9, 4, 12], [2, 4, 1], [[6, 0, 3], [5], [1, 7, 2]], 4
    memory, scales = torch.full((4, 8, size, 8), math.nan), None
    pages = [random(4, length, 8, seed=length) for length in lengths]
    for page, table in zip(pages, tables, strict=True):
        for position in range(page.shape[1]):
            memory[:, table[position // size], position % size] = page[:, position]
    if kept == "int8":
        memory, scales = quantise_kv(memory)
        pages = [dequantise_kv(*quantise_kv(page)) for page in pages]
    elif kept == "fp16":
        memory, pages = memory.half(), [page.half().float() for page in pages]
    query = random(sum(rows), 6, 8, seed=1)
    got = paged_attention(query, memory, scales, [0, 2, 6, 7], lengths, [torch.tensor(t) for t in tables], window)
    assert got.dtype == torch.float32
    for part, page in zip(torch.split(got, rows), pages, strict=True):
        start = {2: 0, 4: 2, 1: 6}[len(part)]
        expected = looped_attention(query[start : start + len(part)], page[:2], page[2:], window)
        assert torch.allclose(part.double(), expected, atol=1e-5)


def test_fp16_saturates_and_keeps_what_is_not_finite() -> None:
    x = torch.tensor([1.0, -65504.0, 65519.0, 65520.0, -1e38, 1e-9, math.inf, -math.inf, math.nan, 1.0006])
    got = narrow_kv(x)
    assert got.dtype == torch.float16 and bool(got[8].isnan())
    expected = [1.0, -65504.0, 65504.0, 65504.0, -65504.0, 0.0, math.inf, -math.inf]
    assert got[:8].tolist() == expected and float(got[9]) == 1 + 2**-10  # the nearest, not the one below


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=9))
@settings(max_examples=300, deadline=None)
def test_int8_vectors_are_off_by_half_a_step_at_most(values: list[float]) -> None:
    x = torch.tensor(values)
    data, scale = quantise_kv(x)
    assert data.dtype == torch.int8 and scale.shape == ()
    back = dequantise_kv(data, scale)
    largest = float(x.abs().max())
    assert float((back.double() - x.double()).abs().max()) <= largest / 254 * (1 + 1e-5) + 2e-38
    assert torch.equal(dequantise_kv(*quantise_kv(torch.zeros(3, 4))), torch.zeros(3, 4))


def test_int8_vectors_keep_what_is_not_finite() -> None:
    """A broken number must stay one, or its request would go on as if nothing had happened."""
    for broken in (math.nan, math.inf, -math.inf):
        x = torch.tensor([[1.0, broken, 2.0], [1.0, 2.0, 3.0]])
        back = dequantise_kv(*quantise_kv(x))
        assert not back[0].isfinite().any() and back[1].isfinite().all()


@pytest.mark.parametrize("normalise", [True, False])
def test_gate_takes_the_likeliest_of_all(normalise: bool) -> None:
    logits = random(20, 7) * 2
    ids, shares = gate(logits, 3, normalise)
    for row, chosen, parts in zip(logits.double(), ids.tolist(), shares.double(), strict=True):
        exponentials = [math.exp(v) for v in row.tolist()]
        order = sorted(range(7), key=lambda e: -exponentials[e])[:3]
        assert chosen == order
        total = sum(exponentials[e] for e in order) if normalise else sum(exponentials)
        assert torch.allclose(parts, torch.tensor([exponentials[e] / total for e in order]).double(), atol=1e-6)


def test_gate_takes_the_lower_of_equal_experts() -> None:
    ids, shares = gate(torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), 2, True)
    assert ids.tolist() == [[1, 2], [0, 1]] and shares.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    many, _ = gate(torch.zeros(50, 128), 8, False)
    assert many.tolist() == [list(range(8))] * 50


def looped_experts(
    x: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor, pairs: dict[int, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    out = torch.zeros(len(x), x.shape[1], dtype=torch.float64)
    for t, (chosen, parts) in enumerate(zip(ids.tolist(), shares.tolist(), strict=True)):
        for expert, share in zip(chosen, parts, strict=True):
            if expert in pairs:
                gate_up, down = (matrix.double() for matrix in pairs[expert])
                first, second = (gate_up @ x[t].double()).chunk(2)
                out[t] += share * (down @ (first / (1 + (-first).exp()) * second))
    return out


@pytest.mark.parametrize("here", [range(0, 5), range(0, 2), range(2, 5), range(3, 4)])
def test_experts_run_the_rows_that_are_theirs(here: range) -> None:
    gate_up, down = random(5, 12, 8, seed=3), random(5, 8, 6, seed=4)
    x, shares = random(9, 8), random(9, 2, seed=1).abs()
    uneven = torch.tensor([[0, 3], [3, 0], [4, 3], [3, 1], [1, 4], [0, 1], [3, 4], [3, 0], [4, 0]])  # none wants 2
    for ids in (uneven, torch.tensor([[3, 0]]).expand(9, 2), torch.tensor([[2, 4]]).expand(9, 2)):
        got = experts(x, ids, shares, list(gate_up[here.start : here.stop]), list(down[list(here)]), here.start)
        expected = looped_experts(x, ids, shares, {e: (gate_up[e], down[e]) for e in here})
        assert torch.allclose(got.double(), expected, atol=1e-5)
        alone = [
            experts(x[t : t + 1], ids[t : t + 1], shares[t : t + 1], list(gate_up), list(down)) for t in range(len(x))
        ]
        whole = experts(x, ids, shares, list(gate_up), list(down))
        assert torch.allclose(torch.cat(alone), whole, atol=1e-5)


def test_linear_adds_its_bias() -> None:
    x, matrix, bias = random(3, 5), random(4, 5, seed=1), random(4, seed=2)
    expected = x.double() @ matrix.double().T
    assert torch.allclose(linear(x, matrix).double(), expected, atol=1e-6)
    assert torch.allclose(linear(x, matrix, bias).double(), expected + bias.double(), atol=1e-6)


def test_swiglu_is_the_formula() -> None:
    x = random(3, 10)
    gate, up = x[:, :5].double(), x[:, 5:].double()
    assert torch.allclose(swiglu(x).double(), gate / (1 + (-gate).exp()) * up, atol=1e-6)
