"""The decoder's operations in C++, as a `Backend`: matrices in tiles, steps in one call."""

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu import attention, step, tiles
from kernels.cpu.arena import Arena
from kernels.cpu.attention import Attention
from kernels.cpu.choice import ROWS, Shape, choose
from kernels.cpu.library import Library
from kernels.cpu.step import CPUStepRunner
from kernels.cpu.tiles import BLAS, FEW_ROWS, FP32, NARROW, WIDE, MatrixStruct, Tiles
from kernels.decoder import Decoder, ExpertLayer, StepRunner
from kernels.dispatch import Backend
from kernels.packed import Matrix, Packed

Pointer = ctypes.c_void_p
Int32, Int64, Float = ctypes.c_int32, ctypes.c_int64, ctypes.c_float

SAME_BITS = 64  # rows up to which the library's product, whose sums have an order of their own, is not considered
TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"  # exports an fp32 matrix product


SIGNATURES = {
    "hatchway_start": (Pointer, (Int32,)),
    "hatchway_end": (None, (Pointer,)),
    "hatchway_rms_norm": (None, (Pointer, Pointer, Pointer, Int64, Int32, Float)),
    "hatchway_swiglu": (None, (Pointer, Pointer, Int64, Int32)),
}


def make(library: Library, threads: int) -> Backend:
    """The backend of one process. Raises `KernelsUnavailable` where the library is not the one that belongs to this."""
    for signatures in (SIGNATURES, tiles.SIGNATURES, attention.SIGNATURES, step.SIGNATURES):
        library.declare(signatures)
    library.check_sizes(tiles.STRUCTURES | step.STRUCTURES)
    library.set_sgemm(TORCH)
    operations = Operations(library, Team(library.functions, threads))
    kernels = Attention(library.functions, operations.team.handle)
    return Backend(
        "cpu",
        prepare=operations.prepare,
        linear=operations.linear,
        embed=operations.embed,
        rms_norm=operations.rms_norm,
        rope=kernels.rope,
        paged_attention=kernels.paged_attention,
        swiglu=operations.swiglu,
        experts=operations.experts,
        compile=operations.compile,
    )


class Team:
    """The threads of the kernels."""

    def __init__(self, functions: ctypes.CDLL, threads: int) -> None:
        self._functions = functions
        self.size = threads
        self.handle: int = functions.hatchway_start(threads)

    def __del__(self) -> None:
        if handle := getattr(self, "handle", None):
            self._functions.hatchway_end(handle)


class Operations:
    """The contract of each is the docstring of its twin in `kernels.reference`."""

    def __init__(self, library: Library, team: Team) -> None:
        self.library = library
        self.team = team
        self.arena = Arena()

    def prepare(self, matrix: Matrix) -> Matrix:
        return tiles.prepare(self.library.functions, self.team.handle, self.arena, matrix)

    def linear(self, x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> Tensor:
        if isinstance(matrix, Packed):
            matrix = self.prepare(matrix)
        return (
            matrix.product(self.team.handle, x, bias)
            if isinstance(matrix, Tiles)
            else reference.linear(x, matrix, bias)
        )

    def embed(self, matrix: Matrix, tokens: Tensor) -> Tensor:
        return matrix.rows(tokens) if isinstance(matrix, Tiles) else reference.embed(matrix, tokens)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        rows = x.numel() // x.shape[-1]
        self.library.functions.hatchway_rms_norm(
            x.data_ptr(), weight.contiguous().data_ptr(), out.data_ptr(), rows, x.shape[-1], eps
        )
        return out

    def swiglu(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        out = torch.empty(len(gate_up), gate_up.shape[1] // 2)
        self.library.functions.hatchway_swiglu(gate_up.data_ptr(), out.data_ptr(), len(out), out.shape[1])
        return out

    def experts(
        self,
        x: Tensor,
        ids: Tensor,
        shares: Tensor,
        gate_up: Sequence[Matrix],
        down: Sequence[Matrix],
        first: int = 0,
    ) -> Tensor:
        return reference.experts(x, ids, shares, gate_up, down, first, self.linear)

    def compile(self, decoder: Decoder) -> StepRunner | None:
        """None where a head has a width that the attention has no kernel for."""
        if decoder.head_dim not in attention.WIDTHS:
            return None
        self.choose(list(_matrices(decoder)))
        return CPUStepRunner(self.library.functions, self.team, decoder)

    def choose(self, matrices: list[Tiles]) -> None:
        """Measures, or remembers, which variant is fastest for each shape of part and number of rows."""
        groups: dict[Shape, list[MatrixStruct]] = {}
        for matrix in matrices:
            for part in matrix.parts:
                groups.setdefault(_shape(part), []).append(part)
        identity = f"{self.library.key} threads {self.team.size} few rows {FEW_ROWS}"
        table = choose(
            self.library.path.parent,
            identity,
            groups,
            variants=lambda part, rows: len(_variants(part, rows)),
            product=self._product,
            exact=lambda part: part.kind != FP32,
        )
        for matrix in matrices:
            matrix.choose(lambda part: _by_size(part, table[_shape(part)]))

    def _product(self, part: MatrixStruct, x: Tensor, number: int) -> Tensor:
        out = torch.empty(len(x), part.rows)
        self.library.functions.hatchway_product(
            self.team.handle,
            part,
            x.data_ptr(),
            len(x),
            out.data_ptr(),
            part.rows,
            None,
            _variants(part, len(x))[number],
        )
        return out


def _variants(part: MatrixStruct, rows: int) -> tuple[int, ...]:
    """What a part can be multiplied with. The first always works, and is what to expect to be the fastest."""
    if part.kind == FP32:
        return (NARROW, BLAS) if rows > SAME_BITS else (NARROW,)
    if part.span != 32 or part.scale_bytes != 2:
        return (WIDE,)
    return (NARROW, WIDE) if rows <= FEW_ROWS else (WIDE, NARROW)


def _shape(part: MatrixStruct) -> Shape:
    names = "fp32", "int4", "int8"
    return f"{names[part.kind]} {part.span} {part.scale_bytes} {part.has_minimum}", part.rows, part.columns


def _by_size(part: MatrixStruct, numbers: Sequence[int]) -> list[int]:
    """Of the numbers of rows that were measured, for those that a matrix has a variant for: the next below."""
    found = []
    for size in tiles.SIZES:
        index = max(index for index, measured in enumerate(ROWS) if measured <= size)
        found.append(_variants(part, ROWS[index])[numbers[index]])
    return found


def _matrices(decoder: Decoder) -> Iterator[Tiles]:
    found: dict[int, Matrix] = {id(m): m for m in (decoder.embedding, decoder.lm_head)}
    for layer in decoder.layers:
        own = [layer.qkv, layer.attention_out]
        if isinstance(layer.ffn, ExpertLayer):
            own += [*layer.ffn.gate_up, *layer.ffn.down]
        else:
            own += [layer.ffn.gate_up, layer.ffn.down]
        found |= {id(matrix): matrix for matrix in own}
    for matrix in found.values():
        assert isinstance(matrix, Tiles), "the matrices of a decoder are prepared by its backend"
        yield matrix
