"""The reference operations against formulas written out in loops, in double precision."""

import math

import torch

from kernels.reference import attention, rms_norm, rope, rope_table, swiglu
from local_engine.weights import half_rotation_rows


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_is_the_formula() -> None:
    x, weight = random(5, 24), random(24, seed=1)
    for row, got in zip(x, rms_norm(x, weight, 1e-2), strict=True):
        size = math.sqrt(sum(v * v for v in row.tolist()) / 24 + 1e-2)
        expected = [v / size * w for v, w in zip(row.tolist(), weight.tolist(), strict=True)]
        assert torch.allclose(got, torch.tensor(expected), atol=1e-5)


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


def looped_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    tokens, heads, width = query.shape
    group, length = heads // len(key), key.shape[1]
    out = torch.zeros(tokens, heads, width, dtype=torch.float64)
    for t in range(tokens):
        for h in range(heads):
            seen = range(length - tokens + t + 1)
            scores = [float(query[t, h].double() @ key[h // group, p].double()) / math.sqrt(width) for p in seen]
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            for p in seen:
                out[t, h] += weights[p] * value[h // group, p].double()
    return out


def test_attention_is_causal_and_grouped() -> None:
    for tokens, length in [(1, 1), (1, 7), (5, 5), (3, 11)]:
        query, key, value = random(tokens, 6, 8), random(2, length, 8, seed=1), random(2, length, 8, seed=2)
        assert torch.allclose(attention(query, key, value).double(), looped_attention(query, key, value), atol=1e-5), (
            tokens,
            length,
        )


def test_swiglu_is_the_formula() -> None:
    x = random(3, 10)
    gate, up = x[:, :5].double(), x[:, 5:].double()
    assert torch.allclose(swiglu(x).double(), gate / (1 + (-gate).exp()) * up, atol=1e-6)
