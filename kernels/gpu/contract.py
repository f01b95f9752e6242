"""What a launcher checks before anything runs: a kernel reads wherever its numbers point it.

Every failure is a `ValueError` that names the argument and the rule.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check(holds: bool, name: str, rule: str) -> None:
    """`rule` says what must hold and what was found: "groups of 32 must divide its 100 columns"."""
    if not holds:
        raise ValueError(f"`{name}`: {rule}")


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    dtypes: torch.dtype | Sequence[torch.dtype],
    *,
    like: Tensor | None = None,
    contiguous: bool = False,
) -> None:
    """`shape`: None stands for any size. `like`: a tensor on whose device it must be.

    The last dimension must be dense in any case; `contiguous`: all of them.
    """
    known = (dtypes,) if isinstance(dtypes, torch.dtype) else tuple(dtypes)
    found = list(tensor.shape)
    fits = len(found) == len(shape) and all(b is None or a == b for a, b in zip(found, shape, strict=True))
    wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    check(fits, name, f"the shape must be {wanted}, not {found}")
    names = " or ".join(str(dtype).removeprefix("torch.") for dtype in known)
    check(tensor.dtype in known, name, f"the type must be {names}, not {str(tensor.dtype).removeprefix('torch.')}")
    if like is not None:
        check(tensor.device == like.device, name, f"it must be on {like.device}, not on {tensor.device}")
    dense = tensor.dim() == 0 or tensor.shape[-1] <= 1 or tensor.stride(-1) == 1
    check(dense, name, f"its last dimension must be dense, not of stride {tensor.stride(-1) if tensor.dim() else 0}")
    if contiguous:
        check(tensor.is_contiguous(), name, f"it must be contiguous, not of strides {list(tensor.stride())}")


def check_divides(name: str, part: int, whole: int, what: str) -> None:
    """`what`: the whole in words, as in "groups of 32 must divide 100 columns"."""
    check(part > 0 and whole % part == 0, name, f"{part} must divide {whole} {what}")
