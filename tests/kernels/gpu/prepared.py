"""Matrices for the products' tests: prepared, with all that a kernel reads of them between guards."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from kernels.gpu.configurations import Tables
from kernels.gpu.matrices import GPUMatrix, Weights, prepare
from kernels.packed import Format, Matrix, Packed, pack
from tests.kernels.gpu.device import DEVICE, Guarded

INT8, INT4 = Format("int8", 8, 0), Format("int4", 4, 32)


def packed(format: Format, rows: int, columns: int) -> Packed:
    return pack(torch.randn(rows, columns) * 0.05, format)


def guarded(matrix: Matrix, dtype: torch.dtype, activations: torch.dtype | None = None) -> GPUMatrix:
    """Rows of its data lie 16 bytes further apart than they need."""
    ready = prepare(matrix, DEVICE, dtype, activations)
    assert isinstance(ready, GPUMatrix)
    return GPUMatrix([part if isinstance(part, Tensor) else _guarded(part) for part in ready.parts], activations)


def _guarded(weights: Weights) -> Weights:
    _, rows, width = weights.data.shape
    strides = (rows * (width + 16), width + 16, 1)
    tensors = {
        name: Guarded(tensor, strides if name == "data" else None).tensor
        for name in ("data", "scale", "minimum", "factor")
        if (tensor := getattr(weights, name)) is not None
    }
    return dataclasses.replace(weights, **tensors)


def inputs(count: int, columns: int, dtype: torch.dtype) -> Tensor:
    """[count, columns], rows further apart than they are long, with NaN between them."""
    return Guarded(torch.randn(count, columns, dtype=torch.float32).to(dtype), (columns + 24, 1)).tensor


def small_blocks(name: str, rows: int, outputs: int, *, split: bool) -> Tables:
    row = {"up_to": None, "BLOCK_M": rows, "BLOCK_N": outputs, "SPLIT": int(split), "num_warps": 4, "num_stages": 2}
    return Tables({name: {"default": [row]}})
