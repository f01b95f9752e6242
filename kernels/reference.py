"""Every operation of the decoder in plain torch: the truth that faster kernels are compared with.

Dim letters: T tokens, D model width, H query heads, K key/value heads, G = H / K, d head width, L key positions,
F feed-forward width. All floating point is fp32. Nothing here keeps state.
"""

import torch
from torch import Tensor

Q8_0_BLOCK_BYTES = 34  # fp16 scale, 32 x int8
Q4_1_BLOCK_BYTES = 20  # fp16 scale, fp16 minimum, 16 bytes: element i in the low, element i + 16 in the high nibble


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, D], weight [D] -> [T, D]: x / sqrt(mean(x^2) + eps) * weight (https://arxiv.org/abs/1910.07467)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rope_table(length: int, inverse_frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency: [d/2] -> two tensors [length, d/2]."""
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse_frequencies[None, :]
    return angles.cos(), angles.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-rotation form: element i turns with element i + d/2.

    x [T, any heads, d], cos and sin [T, d/2] -> like x (https://arxiv.org/abs/2104.09864).
    """
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, d/2]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last T positions of one sequence over all its L positions.

    query [T, H, d], key and value [K, L, d], L >= T -> [T, H, d]. Query t stands at position L - T + t and sees the
    keys up to and including its own position. Query heads k*G .. k*G+G-1 share key/value head k.
    """
    tokens, heads, width = query.shape
    kv_heads, length, _ = key.shape
    grouped = query.view(tokens, kv_heads, heads // kv_heads, width).permute(1, 2, 0, 3)  # [K, G, T, d]
    flat = grouped.reshape(kv_heads, -1, width) * width**-0.5  # [K, G*T, d]
    scores = torch.bmm(flat, key.transpose(1, 2)).view(kv_heads, -1, tokens, length)  # [K, G, T, L]
    if tokens > 1:
        hidden = torch.ones(tokens, length, dtype=torch.bool).triu(length - tokens + 1)  # [T, L]
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(-1).view(kv_heads, -1, length)  # [K, G*T, L]
    mixed = torch.bmm(weights, value).view(kv_heads, -1, tokens, width)  # [K, G, T, d]
    return mixed.permute(2, 0, 1, 3).reshape(tokens, heads, width)


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] (gate first) -> silu(gate) * up [T, F] (https://arxiv.org/abs/2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def dequantise_q8_0(raw: Tensor, out: Tensor) -> None:
    """Stored bytes, uint8 [n * 34] -> out, fp32 [n * 32]: scale * q."""
    blocks = raw.view(-1, Q8_0_BLOCK_BYTES)
    scale = blocks[:, :2].contiguous().view(torch.float16).float()  # [n, 1]
    out.view(-1, 32).copy_(blocks[:, 2:].view(torch.int8)).mul_(scale)


def dequantise_q4_1(raw: Tensor, out: Tensor) -> None:
    """Stored bytes, uint8 [n * 20] -> out, fp32 [n * 32]: scale * q + minimum, q in 0..15.

    Multiply and add round separately: a fused multiply-add would differ in the last bit from the usual reading.
    """
    blocks = raw.view(-1, Q4_1_BLOCK_BYTES)
    scale, minimum = blocks[:, :4].contiguous().view(torch.float16).float().chunk(2, dim=1)  # [n, 1] each
    nibbles = blocks[:, 4:]  # [n, 16]
    values = out.view(-1, 32)
    values[:, :16] = nibbles & 0x0F
    values[:, 16:] = nibbles >> 4
    values.mul_(scale).add_(minimum)
