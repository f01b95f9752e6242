"""A layer's experts in stacks, one for each format that they are stored in."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.gpu.contract import check
from kernels.gpu.matrices import Weights, stack
from kernels.packed import Format, Matrix, Packed, Stack, num_columns, num_rows, unpack


@dataclass(frozen=True, slots=True)
class Kin:
    """Those of a layer's matrices that are stored alike."""

    weights: Weights
    slots: Tensor  # [E] int32: which of the weights is an expert's; -1: it is not among them


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """A layer's experts as the kernels read them."""

    count: int  # E
    width: int  # D
    inner: int  # F
    gate_up: tuple[Kin, ...]  # of [2F, D]
    down: tuple[Kin, ...]  # of [D, F]

    @property
    def nbytes(self) -> int:
        return sum(kin.weights.nbytes for kin in (*self.gate_up, *self.down))


def prepare_experts(
    gate_up: Sequence[Matrix], down: Sequence[Matrix], device: torch.device, dtype: torch.dtype
) -> ExpertStack:
    """E matrices [2F, D], gate first, and E matrices [D, F], as they are stored. `dtype`: of the activations.

    An expert whose gate and up differ in format, which no file of ours has had, is expanded to `dtype`.
    Raises `ValueError`.
    """
    check(len(gate_up) > 0, "gate_up", "there must be at least one expert")
    check(len(down) == len(gate_up), "down", f"there must be {len(gate_up)} matrices, not {len(down)}")
    inner, width = num_rows(gate_up[0]) // 2, num_columns(gate_up[0])
    for name, matrices, shape in (("gate_up", gate_up, (2 * inner, width)), ("down", down, (width, inner))):
        for matrix in matrices:
            found = (num_rows(matrix), num_columns(matrix))
            check(found == shape, name, f"every expert's must be {list(shape)}, not {list(found)}")
            stored = isinstance(matrix, Tensor | Packed | Stack)
            check(stored, name, "every expert's must be as it is stored, not as a backend has prepared it")
    check(inner > 0 and width > 0, "gate_up", f"it must have rows and columns, not {[2 * inner, width]}")
    return ExpertStack(len(down), width, inner, _kin(gate_up, device, dtype), _kin(down, device, dtype))


def _kin(matrices: Sequence[Matrix], device: torch.device, dtype: torch.dtype) -> tuple[Kin, ...]:
    """By format, in the order in which the formats occur."""
    members: dict[Format | None, list[int]] = {}
    single = [matrix if isinstance(matrix, Tensor | Packed) else unpack(matrix) for matrix in matrices]
    for expert, matrix in enumerate(single):
        members.setdefault(matrix.format if isinstance(matrix, Packed) else None, []).append(expert)
    found = []
    for own in members.values():
        slots = torch.full((len(matrices),), -1, dtype=torch.int32)
        slots[own] = torch.arange(len(own), dtype=torch.int32)
        found.append(Kin(stack([single[expert] for expert in own], device, dtype), slots.to(device)))
    return tuple(found)
