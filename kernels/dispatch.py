"""Which implementation of the operations a model runs on.

A `Backend` is a value: whoever makes a model chooses it and passes it down; nothing here looks at the machine or at
the environment. A faster one than the reference names what it does itself and inherits the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import reference
from kernels.decoder import Decoder, StepRunner
from kernels.packed import Matrix, unpack

Matrices = tuple[Matrix, ...]


@dataclass(frozen=True, slots=True)
class Backend:
    """The operations of the decoder. The contract of each is the docstring of its twin in `kernels.reference`."""

    name: str
    device: torch.device = torch.device("cpu")  # where tensors lie that go in and come out
    dtype: torch.dtype = torch.float32  # of those tensors
    prepare: Callable[[Matrix], Matrix] = unpack  # a matrix as stored -> as `linear` and `embed` want it, once, at load
    linear: reference.Linear = reference.linear
    embed: Callable[[Matrix, Tensor], Tensor] = reference.embed
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = reference.rms_norm
    rope: Callable[[Tensor, Tensor, Tensor], Tensor] = reference.rope
    paged_attention: Callable[
        [Tensor, Tensor, Tensor | None, Sequence[int], Sequence[int], Sequence[Tensor], int | None], Tensor
    ] = reference.paged_attention
    swiglu: Callable[[Tensor], Tensor] = reference.swiglu
    gate: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]] = reference.gate
    experts: Callable[[Tensor, Tensor, Tensor, Sequence[Matrix], Sequence[Matrix], int], Tensor] = reference.experts
    prepare_experts: Callable[[Matrices, Matrices], tuple[Matrices, Matrices]] | None = None  # None: each by `prepare`
    compile: Callable[[Decoder], StepRunner | None] = lambda decoder: None  # a whole step in one call, where it can


REFERENCE = Backend("reference")  # plain torch, fp32: packed matrices are expanded at load


def prepare(matrix: Matrix, backend: Backend = REFERENCE) -> Matrix:
    """A stored matrix as the backend multiplies with it. Done once for each matrix; may copy it."""
    return backend.prepare(matrix)


def linear(x: Tensor, matrix: Matrix, bias: Tensor | None = None, backend: Backend = REFERENCE) -> Tensor:
    """x [T, D], matrix [N, D] (prepared or not; prepared is fast), bias [N] -> x @ matrix.T + bias [T, N]."""
    return backend.linear(x, matrix, bias)
