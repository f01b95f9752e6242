"""Every operation of the decoder in plain torch: the truth that faster kernels are compared with.

Dim letters: T tokens, D model width, H query heads, K key/value heads, G = H / K, d head width, L key positions,
F feed-forward width, E experts, k experts of a token, V vocabulary, N outputs of a matrix. All floating point is fp32.
Nothing here keeps state, and a row's result depends on its own inputs only (up to the rounding of a matrix product,
whose order of summation the library chooses by the number of rows).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.packed import Matrix, unpack

Linear = Callable[[Tensor, Matrix, Tensor | None], Tensor]


def linear(x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [T, D], matrix [N, D], bias [N] -> x @ matrix.T + bias [T, N]. A packed matrix is expanded anew each time."""
    return torch.nn.functional.linear(x, matrix if isinstance(matrix, Tensor) else unpack(matrix), bias)


def embed(matrix: Matrix, tokens: Tensor) -> Tensor:
    """The rows of matrix [V, D] that tokens [T] name -> [T, D]."""
    return (matrix if isinstance(matrix, Tensor) else unpack(matrix))[tokens]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., n], weight [n] -> like x: x / sqrt(mean(x^2) + eps) * weight (https://arxiv.org/abs/1910.07467).

    The mean is taken in fp32 and the quotient rounded to x's type before the weight, as Hugging Face models do.
    """
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rope_table(length: int, inverse_frequencies: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """factor * cos and factor * sin of position x frequency: [d/2] -> two tensors [length, d/2]."""
    positions = torch.arange(length, dtype=torch.float32, device=inverse_frequencies.device)
    angles = positions[:, None] * inverse_frequencies[None, :]
    return angles.cos() * factor, angles.sin() * factor


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-rotation form: element i turns with element i + d/2.

    x [T, any heads, d], cos and sin [T, d/2] -> like x (https://arxiv.org/abs/2104.09864).
    """
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, d/2]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(query: Tensor, key: Tensor, value: Tensor, window: int | None = None) -> Tensor:
    """Causal attention of the last T positions of one sequence over its last L positions.

    query [T, H, d], key and value [K, L, d], L >= T -> [T, H, d]. Query t stands at position L - T + t and sees the
    keys up to and including its own position; of these the last `window` where one is given. Query heads
    k*G .. k*G+G-1 share key/value head k.
    """
    tokens, heads, width = query.shape
    kv_heads, length, _ = key.shape
    grouped = query.view(tokens, kv_heads, heads // kv_heads, width).permute(1, 2, 0, 3)  # [K, G, T, d]
    flat = grouped.reshape(kv_heads, -1, width) * width**-0.5  # [K, G*T, d]
    scores = torch.bmm(flat, key.transpose(1, 2)).view(kv_heads, -1, tokens, length)  # [K, G, T, L]
    past_window = window is not None and window < length
    if tokens > 1 or past_window:
        hidden = torch.ones(tokens, length, dtype=torch.bool, device=query.device).triu(length - tokens + 1)  # [T, L]
        if window is not None and past_window:
            hidden |= torch.ones_like(hidden).tril(length - tokens - window)
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(-1).view(kv_heads, -1, length)  # [K, G*T, L]
    mixed = torch.bmm(weights, value).view(kv_heads, -1, tokens, width)  # [K, G, T, d]
    return mixed.permute(2, 0, 1, 3).reshape(tokens, heads, width)


def paged_attention(
    query: Tensor,
    memory: Tensor,
    scales: Tensor | None,
    starts: Sequence[int],
    lengths: Sequence[int],
    tables: Sequence[Tensor],
    window: int | None = None,
) -> Tensor:
    """`attention` of several sequences, each over keys and values that lie in blocks. -> [T, H, d]

    query [T, H, d]: sequence s has the rows starts[s] .. starts[s + 1]. memory [2K, blocks, block size, d], keys are
    heads 0 .. K-1 and values K .. 2K-1; int8 with scales [2K, blocks, block size], or fp32 or fp16 and scales None.
    Position p of sequence s is in block tables[s][p // block size]; lengths[s] positions are filled, the query's
    included. All arithmetic is fp32.
    """
    size = memory.shape[2]
    mixed = []
    for start, end, length, table in zip(starts, starts[1:], lengths, tables, strict=False):
        first = 0  # the first block that any row of the sequence sees
        if window is not None:
            first = max(0, length - (end - start) - window + 1) // size
        blocks, seen = table[first : -(-length // size)], length - first * size
        gathered = memory.index_select(1, blocks)  # [2K, n, block size, d]
        if scales is not None:
            gathered = dequantise_kv(gathered, scales.index_select(1, blocks))
        key, value = gathered.float().flatten(1, 2)[:, :seen].chunk(2)  # [K, L, d] each
        mixed.append(attention(query[start:end], key, value, window))
    return torch.cat(mixed)


def narrow_kv(x: Tensor) -> Tensor:
    """x -> fp16: the nearest one; a number beyond +-65504 becomes that. What is not finite stays so."""
    top = torch.finfo(torch.float16).max
    return torch.where(x.isinf(), x, x.clamp(-top, top)).to(torch.float16)


def quantise_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., d] -> int8 like x, and one scale for each vector of d [...], such that x is about int8 * scale.

    The scale is the largest magnitude / 127, so no element is off by more than half a scale: 1/254 of the largest
    magnitude of its vector. Vectors smaller than any normal fp32 number become zero; what is not finite stays so.
    Magnitudes above 2^127 may become infinite.
    """
    scale = x.abs().amax(-1) / 127.0
    steps = x / scale.clamp_min(torch.finfo(x.dtype).tiny)[..., None]
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def dequantise_kv(data: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `quantise_kv`: int8 [..., d] and scale [...] -> fp32 [..., d]."""
    return data * scale[..., None]


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] (gate first) -> silu(gate) * up [T, F] (https://arxiv.org/abs/2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def gate(logits: Tensor, per_token: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Which experts a token goes to: logits [T, E] -> ids [T, k], likeliest first, and their shares [T, k] fp32.

    The shares are of a softmax over all experts; `normalise` scales the chosen ones to sum 1 (Mixtral always,
    Qwen3-MoE where `norm_topk_prob` says so). Of equal experts the lower id goes first.
    """
    shares, ids = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    shares, ids = shares[:, :per_token], ids[:, :per_token]
    return ids, shares / shares.sum(-1, keepdim=True) if normalise else shares


def experts(
    x: Tensor,
    ids: Tensor,
    shares: Tensor,
    gate_up: Sequence[Matrix],
    down: Sequence[Matrix],
    first: int = 0,
    linear: Linear = linear,
) -> Tensor:
    """Each token through its experts, added up by their shares. x [T, D], ids and shares [T, k] -> [T, D].

    gate_up [2F, D] and down [D, F] are the experts first, first + 1, ...; of those that are not among them nothing is
    added. The rows of one expert run together. The sum goes in the order of `ids`, whatever else is in the batch.
    """
    tokens, per_token = ids.shape
    flat = ids.flatten()  # [T*k]
    order = flat.argsort(stable=True)
    results = x.new_zeros(tokens * per_token, x.shape[1])
    bounds = torch.searchsorted(flat[order], torch.arange(first, first + len(down) + 1, device=x.device)).tolist()
    for start, end, gate_up_matrix, down_matrix in zip(bounds, bounds[1:], gate_up, down, strict=False):
        if start < end:
            places = order[start:end]
            inner = swiglu(linear(x[places // per_token], gate_up_matrix, None))
            results[places] = linear(inner, down_matrix, None)
    return (results.view(tokens, per_token, -1) * shares[..., None]).sum(1)
