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

MIN_TEMPERATURE = 1e-4  # below it a row of logits is one token; as in the engine's requests
SPECULATION = 0x5851F42D4C957F2D  # what a key is changed by for the noise of acceptance and of draws after a rejection


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
    included. All arithmetic is of query's type: fp32, or fp64 for a truth to compare with.
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
        key, value = gathered.to(query.dtype).flatten(1, 2)[:, :seen].chunk(2)  # [K, L, d] each
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


def turn_and_store(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    memory: Tensor,
    scales: Tensor | None,
    num_heads: int,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Queries and keys normed and turned; keys and values go to their slots. -> queries [T, H, d], fp32 or wider.

    qkv [T, (H + 2K) * d], positions and slots [T] (slot below 0: a row that only pads, which is not stored); cos and
    sin [positions, d/2] or None, norms [d] or None; memory [2K, blocks, block size, d], scales as `quantise_kv` has.
    """
    parts = qkv.view(len(qkv), num_heads + memory.shape[0], memory.shape[3])  # [T, H + 2K, d]
    kv_heads = memory.shape[0] // 2
    query, key, value = parts[:, :num_heads], parts[:, num_heads:-kv_heads], parts[:, -kv_heads:]
    if query_norm is not None and key_norm is not None:
        query, key = rms_norm(query, query_norm.float(), eps), rms_norm(key, key_norm.float(), eps)
    if cos is not None and sin is not None:
        query, key = rope(query, cos[positions], sin[positions]), rope(key, cos[positions], sin[positions])
    keys_values = torch.cat((key, value), dim=1).float()[slots >= 0].transpose(0, 1)  # [2K, stored rows, d]
    blocks, places = slots[slots >= 0] // memory.shape[2], slots[slots >= 0] % memory.shape[2]
    if scales is not None:
        keys_values, scales[:, blocks, places] = quantise_kv(keys_values)
    elif memory.dtype == torch.float16:
        keys_values = narrow_kv(keys_values)
    memory[:, blocks, places] = keys_values.to(memory.dtype)
    return query


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] of any floating type -> int8 [T, K] and fp32 scale [T]: `quantise_kv` of the fp32 row."""
    return quantise_kv(x.float())


def quantise_rows_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, K] of any floating type -> E4M3 [T, K] and fp32 scale [T], such that x is about their product.

    The scale is the largest magnitude / 448; ties go to the even number. As `quantise_kv` in all else.
    """
    wide = x.float()
    scale = wide.abs().amax(-1) / 448.0
    steps = wide / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return steps.clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def linear_int8(x: Tensor, x_scale: Tensor, weight: Tensor, factor: Tensor, bias: Tensor | None = None) -> Tensor:
    """int8 x [T, K], scale [T], int8 weight [N, K], factor [N], bias [N] -> fp32 [T, N].

    The sum of products is exact in int32 (for K up to 2^17): times factor, times scale, plus bias.
    """
    sums = (x.long() @ weight.long().T).to(torch.float32)
    found = sums * factor * x_scale[:, None]
    return found if bias is None else found + bias


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2F] (gate first) -> silu(gate) * up [T, F] (https://arxiv.org/abs/2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def noise_bits(keys: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """52 random bits for (key, position, token id): keys int64, the bits of a uint64; all broadcast -> int64.

    SplitMix64 (https://prng.di.unimi.it/splitmix64.c): output `id` of the stream that starts at a hash of key and
    position. Sums and products of int64 wrap around as those of uint64 do.
    """
    gamma, factors = 0x9E3779B97F4A7C15 - (1 << 64), (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))

    def shifted(z: Tensor, by: int) -> Tensor:
        return z >> by & (1 << 64 - by) - 1  # zeros come in, not the sign

    def mixed(z: Tensor) -> Tensor:
        z = (z ^ shifted(z, 30)) * factors[0]
        z = (z ^ shifted(z, 27)) * factors[1]
        return z ^ shifted(z, 31)

    return shifted(mixed(mixed(keys + positions.long() + gamma) + (ids.long() + 1) * gamma), 12)


def gumbel(bits: Tensor) -> Tensor:
    """Standard Gumbel numbers of `noise_bits`, fp64."""
    return -(-((bits.double() + 0.5) * 2.0**-52).log()).log()


def probabilities(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """What a token is drawn from: logits [R, V], parameters [R] -> [R, V] fp64, 0 for what may not be drawn.

    Temperature, min-p, top-k (0: off), then top-p: the fewest likeliest tokens that reach it. Of equal logits the lower
    id goes first. All mass is on the first of the largest logits where the temperature is below MIN_TEMPERATURE.
    """
    falling, ids = logits.double().sort(dim=-1, descending=True, stable=True)
    is_greedy = temperature.double() < MIN_TEMPERATURE
    scale = torch.where(is_greedy, 1.0, temperature.double())[:, None]
    nats = (falling - falling[:, :1]) / scale
    rank = torch.arange(logits.shape[1], device=logits.device)
    kept = nats >= min_p.double()[:, None].log() - 1e-7 * nats.abs()
    kept &= (rank < top_k[:, None]) | (top_k[:, None] <= 0)
    shares = torch.where(kept, nats.exp(), 0.0)
    before = shares.cumsum(-1) - shares
    goal = (1 - 2.0**-20) * top_p.double()[:, None] * shares.sum(-1, keepdim=True)
    shares *= (before < goal) | (rank == 0) | (top_p[:, None] >= 1)
    shares = torch.where(is_greedy[:, None], (rank == 0).double(), shares)
    return torch.zeros_like(shares).scatter(1, ids, shares / shares.sum(-1, keepdim=True))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    positions: Tensor,
) -> Tensor:
    """A draw from `probabilities` for each row, by its own noise: logits [R, V], the rest [R] -> [R] int32.

    The largest of log probability + Gumbel number (https://arxiv.org/abs/1411.0030), the lower id of equal ones; -1 for
    rows that are not finite.
    """
    is_finite = logits.isfinite().all(-1)
    shares = probabilities(logits.where(is_finite[:, None], 0), temperature, top_k, top_p, min_p)
    ids = torch.arange(logits.shape[1], device=logits.device)
    scores = shares.log() + gumbel(noise_bits(keys[:, None], positions[:, None], ids))
    return torch.where(is_finite, scores.argmax(-1), -1).int()


def verify(
    logits: Tensor,
    first_rows: Tensor,
    drafts: Tensor,
    draft_probabilities: Tensor | None,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Speculative sampling (https://arxiv.org/abs/2211.17192, algorithm 1): which guesses count, and what comes after.

    logits [R, V] and parameters [R] as for `sample`; sequence s has the rows first_rows[s] .. + K, drafts [S, K] (-1:
    there are no more), draft_probabilities [S, K, V] that they were drawn from (None: each was certain). -> int32
    [S, K + 1], behind the last token -1, and their numbers [S]. A guess d counts if u * q(d) < p(d); behind the first
    that does not comes a draw from max(p - q, 0), behind the last what `sample` says. Rows that are not finite end it.
    """
    sequences, most = drafts.shape
    shares = probabilities(logits.nan_to_num(0, 0, 0), temperature, top_k, top_p, min_p)
    bonus = sample(logits, temperature, top_k, top_p, min_p, keys, positions)
    ids = torch.arange(logits.shape[1], device=logits.device)
    tokens = drafts.new_full((sequences, most + 1), -1, dtype=torch.int32)
    goes_on = torch.ones(sequences, dtype=torch.bool, device=logits.device)
    own = keys ^ SPECULATION  # a stream that drafts were not drawn by
    for j in range(most + 1):
        rows = (first_rows + j).clamp(max=len(logits) - 1).long()
        draft = drafts[:, j].long() if j < most else torch.full_like(rows, -1)
        p, guess = shares[rows], draft.clamp(min=0)[:, None]
        certain = torch.zeros_like(p).scatter(1, guess, 1)
        q = certain if draft_probabilities is None or j == most else draft_probabilities[:, j].double()
        u = (noise_bits(own[rows], positions[rows], torch.tensor(-1)).double() + 0.5) * 2.0**-52
        is_finite = bonus[rows] >= 0
        accepted = (u * q.gather(1, guess)[:, 0] < p.gather(1, guess)[:, 0]) & (draft >= 0) & is_finite
        noise = gumbel(noise_bits(own[rows][:, None], positions[rows][:, None], ids))
        residual = (p - q).clamp(min=0)
        redrawn = (residual.log() + noise).argmax(-1).where(residual.sum(-1) > 0, p.argmax(-1))
        follows = torch.where((draft < 0) | ~is_finite, bonus[rows].long(), redrawn)
        tokens[:, j] = torch.where(goes_on, torch.where(accepted, draft, follows), -1).int()
        goes_on &= accepted
    return tokens, (tokens >= 0).sum(-1).int()


def gate(logits: Tensor, per_token: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Which experts a token goes to: logits [T, E] -> ids [T, k], likeliest first, and their shares [T, k] fp32.

    The shares are of a softmax over all experts; `normalise` scales the chosen ones to sum 1 (Mixtral always,
    Qwen3-MoE where `norm_topk_prob` says so). Of equal experts the lower id goes first.
    """
    shares, ids = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    shares, ids = shares[:, :per_token], ids[:, :per_token]
    return ids, shares / shares.sum(-1, keepdim=True) if normalise else shares


def align(ids: Tensor, count: int, block: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """The places of ids [T, k], by expert -> places [P] and the expert of each block of them [P / block].

    `count` experts from `first` on; the places of each ascend and are filled up to whole blocks with T * k, which is
    none. Blocks name their experts from 0 on.
    """
    flat = ids.flatten()  # [T*k]
    places, experts = [flat[:0].long()], [flat[:0].long()]
    for expert in range(count):
        own = (flat == first + expert).nonzero().flatten()
        filled = torch.nn.functional.pad(own, (0, -len(own) % block), value=len(flat))
        places.append(filled)
        experts.append(torch.full_like(filled[::block], expert))
    return torch.cat(places), torch.cat(experts)


def combine(parts: Tensor, ids: Tensor, count: int, first: int = 0) -> Tensor:
    """parts [T * k, D], ids [T, k] -> [T, D]: the sum of a token's parts by the experts first .. first + count - 1."""
    absent = (ids < first) | (ids >= first + count)
    return parts.view(*ids.shape, -1).masked_fill(absent[..., None], 0).sum(1)


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
