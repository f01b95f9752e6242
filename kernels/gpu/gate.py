"""Which experts each token goes to, and with what shares: softmax over all experts, then the k likeliest.

T tokens, E experts, k experts of a token. logits [T, E] in fp16, bf16 or fp32, rows of any stride -> ids [T, k] int32,
likeliest first and of equal ones the lower id, and shares [T, k] fp32, as Mixtral (https://arxiv.org/abs/2401.04088)
and Qwen3-MoE have it. A step is padded to a static size: rows from `num_tokens` on get ids E, which is no expert, and
shares 0. A row that is not finite gets some ids below E and shares of NaN: it stays visible.

Experts are compared by their logits, not by their rounded shares, so the choice is exact. One configuration serves all
T, because the order in which a row's shares are summed up follows from it.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.specimen import Specimen, Work
from kernels.gpu.tuning import Example, Launch

MAX_EXPERTS = 1024
SIZES = {"fp16": 2, "bf16": 2, "fp32": 4}  # bytes


@triton.jit(do_not_specialize=["tokens"])
def _gate(
    logits,  # [T, E]
    ids,  # [T, k]
    shares,  # [T, k]
    num_tokens,  # [1], or None: T
    tokens,
    experts,
    logits_stride,
    PER_TOKEN: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,  # a power of two, at least E
    BLOCK_K: tl.constexpr,  # likewise of k
):
    """Program t: BLOCK_T tokens, in k rounds of taking the largest logit that is left."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_E)
    inside = rows < tokens
    live = inside
    if num_tokens is not None:
        live = inside & (rows < tl.load(num_tokens))
    is_expert = columns < experts
    x = tl.load(
        logits + rows.to(tl.int64)[:, None] * logits_stride + columns[None, :],
        mask=live[:, None] & is_expert[None, :],
        other=float("-inf"),
    ).to(tl.float32)  # [BLOCK_T, BLOCK_E]
    top = tl.where(live, tl.max(x, 1), 0.0)  # padding: zeros by ones, not infinities and quotients of nothing
    powers = tl.exp2((x - top[:, None]) * 1.4426950408889634)  # log2(e)
    total = tl.where(live, tl.sum(powers, 1), 1.0)
    order = tl.where(x == x, x, float("-inf"))  # what is not a number goes last
    left = (columns < experts)[None, :] & (rows >= 0)[:, None]
    places = tl.arange(0, BLOCK_K)
    chosen = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    weights = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    taken = tl.zeros([BLOCK_T], tl.float32)
    for place in tl.static_range(PER_TOKEN):
        best = tl.max(tl.where(left, order, float("-inf")), 1)
        expert = tl.min(tl.where(left & (order == best[:, None]), columns[None, :], BLOCK_E), 1)
        is_it = columns[None, :] == expert[:, None]
        weight = tl.sum(tl.where(is_it, powers, 0.0), 1) / total
        left = left & (columns[None, :] != expert[:, None])
        here = (places == place)[None, :]
        chosen = tl.where(here, expert[:, None], chosen)
        weights = tl.where(here, weight[:, None], weights)
        taken += weight
    if NORMALISE:
        weights = weights / tl.where(live, taken, 1.0)[:, None]
    chosen = tl.where(live[:, None], chosen, experts)
    weights = tl.where(live[:, None], weights, 0.0)
    at = rows.to(tl.int64)[:, None] * PER_TOKEN + places[None, :]
    mask = inside[:, None] & (places < PER_TOKEN)[None, :]
    tl.store(ids + at, chosen, mask=mask)
    tl.store(shares + at, weights, mask=mask)


def gate(
    logits: Tensor,
    per_token: int,
    normalise: bool,
    num_tokens: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    *,
    tables: Tables = SHIPPED,
) -> tuple[Tensor, Tensor]:
    """logits [T, E] -> `out`: ids [T, k] int32 and shares [T, k] fp32, contiguous.

    `normalise`: the k shares of a token add up to 1. num_tokens [1] int32, on the device: rows from there on are
    padding. Raises `ValueError`.
    """
    check_tensor("logits", logits, (None, None), FLOATS)
    tokens, experts = logits.shape
    check(1 <= experts <= MAX_EXPERTS, "logits", f"1 to {MAX_EXPERTS} experts can be compared, not {experts}")
    check(1 <= per_token <= experts, "per_token", f"1 to {experts} of {experts} experts can be chosen, not {per_token}")
    if num_tokens is not None:
        check_tensor("num_tokens", num_tokens, (1,), torch.int32, like=logits)
    if out is None:
        ids = torch.empty(tokens, per_token, dtype=torch.int32, device=logits.device)
        out = ids, torch.empty(tokens, per_token, dtype=torch.float32, device=logits.device)
    ids, shares = out
    check_tensor("out[0]", ids, (tokens, per_token), torch.int32, like=logits, contiguous=True)
    check_tensor("out[1]", shares, (tokens, per_token), torch.float32, like=logits, contiguous=True)
    if tokens:
        options = tables.find("gate", experts, architecture(logits.device)).options
        _gate[triton.cdiv(tokens, options["BLOCK_T"]),](
            logits,
            ids,
            shares,
            num_tokens,
            tokens,
            experts,
            logits.stride(0),
            PER_TOKEN=per_token,
            NORMALISE=normalise,
            BLOCK_E=triton.next_power_of_2(experts),
            BLOCK_K=triton.next_power_of_2(per_token),
            **options,
        )
    return out


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: a prompt's tokens."""
    for row in SHIPPED.rows("gate", arch):
        experts = 128 if row.up_to else MAX_EXPERTS

        def make(device: torch.device, experts: int = experts) -> Launch:
            logits = torch.randn(4096, experts, device=device)
            return lambda tables: gate(logits, 8, True, tables=tables)

        yield Example("gate", experts, make)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """Routers of Qwen3-30B-A3B and Mixtral 8x22B, and one of 1,024 experts."""
    tokens = 4096
    for experts, per_token, kinds in ((128, 8, SIZES), (8, 2, ("fp16",)), (1024, 8, ("fp32",))):
        configuration = tables.find("gate", experts, arch)
        for kind in kinds:
            yield Specimen(
                operation="gate",
                variant=f"{kind}, {experts} experts",
                kernel=_gate,
                signature={
                    "logits": f"*{kind}",
                    "ids": "*i32",
                    "shares": "*fp32",
                    "num_tokens": "*i32",
                    "tokens": "i32",
                    "experts": "i32",
                    "logits_stride": "i32",
                    "PER_TOKEN": "constexpr",
                    "NORMALISE": "constexpr",
                    "BLOCK_T": "constexpr",
                    "BLOCK_E": "constexpr",
                    "BLOCK_K": "constexpr",
                },
                constants={
                    "PER_TOKEN": per_token,
                    "NORMALISE": experts < 1024,
                    "BLOCK_E": triton.next_power_of_2(experts),
                    "BLOCK_K": triton.next_power_of_2(per_token),
                    **configuration.sizes,
                },
                num_warps=configuration.num_warps,
                num_stages=configuration.num_stages,
                aligned=("logits", "ids", "shares", "num_tokens", "experts", "logits_stride")[
                    : 6 if experts > 8 else 4
                ],
                work=Work(
                    f"{tokens:,} tokens, {per_token} of {experts} experts",
                    bytes=tokens * (experts * SIZES[kind] + per_token * 8),
                    flops=tokens * experts * (4 + 3 * per_token),
                    peak="fp32",
                ),
            )
