"""RMSNorm (https://arxiv.org/abs/1910.07467), with the residual stream added to before it.

x [..., n], weight [n], residual like x -> out like x. With a residual: residual <- residual + x, rounded to its type
and written in place; what is normed then is the residual. Without: x. The quotient is rounded to the type of what is
normed before the weight is applied, as Hugging Face models do, and the product to that of `out`; all else is fp32.

One program holds whole rows, several where they are short: the order of summation depends on the width alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.configurations import SHIPPED, Tables, architecture
from kernels.gpu.contract import FLOATS, check, check_tensor
from kernels.gpu.specimen import Specimen, Work

if TYPE_CHECKING:
    from kernels.gpu.tuning import Example

WIDEST = 16384  # elements of a row, held in the registers of one program


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    rows,
    inner,
    width,
    eps,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    out_outer,
    out_inner,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows of `width` elements, of `rows` in all; row r is number r % inner of block r // inner."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]  # [ROWS, BLOCK]
    first, second = (row // inner)[:, None], (row % inner)[:, None]
    read = tl.load(x + first * x_outer + second * x_inner + column[None, :], mask=inside, other=0.0)
    if residual is not None:
        places = residual + first * residual_outer + second * residual_inner + column[None, :]
        total = tl.load(places, mask=inside, other=0.0).to(tl.float32) + read.to(tl.float32)
        normed = total.to(residual.dtype.element_ty)
        tl.store(places, normed, mask=inside)
    else:
        normed = read
    wide = normed.to(tl.float32)
    mean = tl.sum(wide * wide, axis=1) / width  # [ROWS]
    quotient = (wide * tl.rsqrt(mean + eps)[:, None]).to(normed.dtype)
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    scaled = quotient.to(tl.float32) * factor[None, :]
    places = out + first * out_outer + second * out_inner + column[None, :]
    tl.store(places, scaled.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: Tensor,  # [..., n], up to three dimensions
    weight: Tensor,  # [n]
    eps: float,
    residual: Tensor | None = None,  # like x, of any float type; written
    out: Tensor | None = None,  # like x, of any float type; may be x
    *,
    tables: Tables = SHIPPED,
) -> Tensor:  # like x, of the type of `out`, else of `weight`
    """The norm of x's rows, or of residual + x, which the residual then is.

    Raises `ValueError` for shapes, strides and types that do not fit, and rows wider than 16,384.
    """
    check(1 <= x.dim() <= 3, "x", f"it must have 1 to 3 dimensions, not {x.dim()}")
    check_tensor("x", x, [None] * x.dim(), FLOATS)
    width = x.shape[-1]
    check(0 < width <= WIDEST, "x", f"its rows must have 1 to {WIDEST} elements, not {width}")
    check_tensor("weight", weight, [width], FLOATS, like=x)
    check(eps > 0, "eps", f"it must be above 0, not {eps}")
    if residual is not None:
        check_tensor("residual", residual, x.shape, FLOATS, like=x)
    if out is None:
        out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    check_tensor("out", out, x.shape, FLOATS, like=x)
    rows = x.numel() // width
    if rows == 0:
        return out
    chosen = tables.find("rms_norm", width, architecture(x.device))
    _rms_norm_kernel[(triton.cdiv(rows, chosen.sizes["ROWS"]),)](
        x,
        residual,
        weight,
        out,
        rows,
        x.shape[1] if x.dim() == 3 else 1,
        width,
        eps,
        *_strides(x),
        *(_strides(residual) if residual is not None else (0, 0)),
        *_strides(out),
        BLOCK=triton.next_power_of_2(width),
        **chosen.options,
    )
    return out


def _strides(x: Tensor) -> tuple[int, int]:
    """Of the outer and the inner row index; with one of them there is no inner one."""
    return (x.stride(0) if x.dim() > 1 else 0), (x.stride(1) if x.dim() == 3 else 0)


def specimens(arch: int, tables: Tables = SHIPPED) -> Iterator[Specimen]:
    """Each row of the table at its widest, with and without a residual."""
    for row in tables.rows("rms_norm", arch):
        width = min(row.up_to or WIDEST, WIDEST)
        kinds = [("fp16", None), ("fp16", "fp16"), ("bf16", "fp32")]
        for dtype, stream in [*kinds, ("fp32", "fp32")] if row.up_to == 8192 else kinds[1:]:
            types = {
                "x": f"*{dtype}",
                "residual": f"*{stream}",
                "weight": f"*{dtype}",
                "out": f"*{dtype}",
                "eps": "fp32",
            }
            constants: dict[str, int | None] = {**row.sizes, "BLOCK": triton.next_power_of_2(width), "inner": 1}
            constants |= dict.fromkeys(("x_inner", "residual_inner", "out_inner"), 0)
            if stream is None:
                constants |= {"residual": None, "residual_outer": 0}
            signature = {
                name: "constexpr" if name in constants else types.get(name, "i32")
                for name in _rms_norm_kernel.arg_names
            }
            whole = [name for name in signature if name not in constants and name not in ("rows", "eps")]
            traffic = (4 if dtype == "fp32" else 2) * 2 + {None: 0, "fp16": 4, "fp32": 8}[stream]
            yield Specimen(
                "rms_norm",
                f"{dtype}, {f'residual {stream}' if stream else 'no residual'}, {width} wide",
                _rms_norm_kernel,
                signature,
                constants,
                row.num_warps,
                row.num_stages,
                tuple(whole),
                Work(f"64 rows of {width}", 64 * width * traffic, 64 * width * 4, "fp32") if width > 256 else None,
            )


def examples(arch: int | None) -> Iterator[Example]:
    """What tuning launches: 64 rows of each size class's width, added to a residual in fp32."""
    from kernels.gpu.tuning import Example

    for row in SHIPPED.rows("rms_norm", arch):
        width = min(row.up_to or WIDEST, WIDEST)

        def make(device: torch.device, width: int = width) -> Callable[[Tables], object]:
            x, weight = torch.randn(64, width, device=device).half(), torch.ones(width, device=device).half()
            residual, out = torch.zeros(64, width, device=device), torch.empty_like(x)
            return lambda tables: rms_norm(x, weight, 1e-6, residual, out, tables=tables)

        yield Example(table="rms_norm", size=width, make=make)
