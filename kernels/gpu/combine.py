"""The sum of what a token's experts found.

T tokens, k experts of a token, D model width. parts [T * k, D], weighed by their shares already, and ids [T, k] int32
-> [T, D]: row t is the sum of the rows t * k .. t * k + k - 1 of parts in fp32, in this order whatever else is in the
batch, without atomics. Of ids outside of first .. first + E - 1 nothing is added, nor is their part read: other
processes have them, or nobody.
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


@triton.jit
def _combine(
    parts,  # [T * k, D]
    ids,  # [T, k]
    out,  # [T, D]
    width,
    first,
    experts,
    parts_stride,
    ids_stride,
    out_stride,
    PER_TOKEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (t, d): BLOCK_D columns of token t."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for place in tl.static_range(PER_TOKEN):
        expert = tl.load(ids + token * ids_stride + place) - first
        mask = (columns < width) & (expert >= 0) & (expert < experts)
        row = token * PER_TOKEN + place
        total += tl.load(parts + row * parts_stride + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * out_stride + columns, total.to(out.dtype.element_ty), mask=columns < width)


def combine(
    parts: Tensor,
    ids: Tensor,
    experts: int,
    first: int = 0,
    out: Tensor | None = None,
    *,
    tables: Tables = SHIPPED,
) -> Tensor:
    """parts [T * k, D], ids [T, k] int32 -> `out` [T, D], in the type of parts unless it is given.

    `experts` of them are here, from `first` on. Raises `ValueError`.
    """
    check_tensor("ids", ids, (None, None), torch.int32)
    tokens, per_token = ids.shape
    check_tensor("parts", parts, (tokens * per_token, None), FLOATS, like=ids)
    width = parts.shape[1]
    check(experts > 0, "experts", f"at least one is needed, not {experts}")
    check(first >= 0, "first", f"experts are counted from 0, not from {first}")
    if out is None:
        out = torch.empty(tokens, width, dtype=parts.dtype, device=parts.device)
    check_tensor("out", out, (tokens, width), FLOATS, like=ids)
    options = tables.find("combine", width, architecture(parts.device)).options
    if tokens and width:
        _combine[tokens, triton.cdiv(width, options["BLOCK_D"])](
            parts,
            ids,
            out,
            width,
            first,
            experts,
            parts.stride(0),
            ids.stride(0),
            out.stride(0),
            PER_TOKEN=per_token,
            **options,
        )
    return out


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: a prompt's tokens, 8 of 128 experts each."""
    for row in SHIPPED.rows("combine", arch):
        width = row.up_to or 2048

        def make(device: torch.device, width: int = width) -> Launch:
            parts = torch.randn(4096 * 8, width, dtype=torch.float16, device=device)
            ids = torch.randint(0, 128, (4096, 8), dtype=torch.int32, device=device)
            return lambda tables: combine(parts, ids, 128, tables=tables)

        yield Example("combine", width, make)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """Qwen3-30B-A3B and Mixtral 8x22B at 4,096 tokens."""
    tokens = 4096
    for width, per_token, kinds in ((512, 8, ("fp16",)), (2048, 8, ("fp16", "bf16", "fp32")), (6144, 2, ("fp16",))):
        configuration = tables.find("combine", width, arch)
        for kind in kinds:
            size = 4 if kind == "fp32" else 2
            given = {"PER_TOKEN": per_token, **configuration.sizes}
            pointers = {"parts": f"*{kind}", "ids": "*i32", "out": f"*{kind}"}
            yield Specimen(
                operation="combine",
                variant=f"{kind}, {per_token} of width {width:,}",
                kernel=_combine,
                signature={
                    name: pointers.get(name, "constexpr" if name in given else "i32") for name in _combine.arg_names
                },
                constants=given,
                num_warps=configuration.num_warps,
                num_stages=configuration.num_stages,
                aligned=("parts", "ids", "out", "width", "parts_stride", "out_stride"),
                work=Work(
                    f"{tokens:,} tokens of {width:,}, {per_token} experts of each",
                    bytes=tokens * (width * size * (per_token + 1) + 4 * per_token),
                    flops=tokens * width * per_token,
                    peak="fp32",
                ),
                markers=("ld.v4",) if size == 2 else (),
            )
