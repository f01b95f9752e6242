"""Matrices in the tiles of cpu.h: what the products read, and how they come from `kernels.packed`."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.cpu.arena import Arena
from kernels.packed import Matrix, Packed, Prepared, Stack, unpack

Pointer = ctypes.c_void_p
Int32, Int64, Float = ctypes.c_int32, ctypes.c_int64, ctypes.c_float

FP32, CODES4, CODES8 = range(3)  # `Kind` of cpu.h
NARROW, WIDE, BLAS = range(3)  # `Variant` of cpu.h
FEW_ROWS = 16  # up to here `NARROW` is expected to be the fastest, beyond it `WIDE`
INT8, UINT8, INT4, INT3 = range(4)  # `Layout` of pack.h
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows of activations that have a variant of their own; the last: and more


class MatrixStruct(ctypes.Structure):
    """`Matrix` of cpu.h."""

    _fields_ = (
        ("kind", Int32),
        ("rows", Int32),
        ("columns", Int32),
        ("span", Int32),
        ("scale_bytes", Int32),
        ("has_minimum", Int32),
        ("offset", Float),
        ("variants", ctypes.c_uint8 * 12),
        ("data", Pointer),
    )


class SourceStruct(ctypes.Structure):
    """`Source` of pack.h."""

    _fields_ = (
        ("layout", Int32),
        ("columns", Int32),
        ("group", Int32),
        ("scale_bytes", Int32),
        ("row_bytes", Int64),
        ("data", Pointer),
        ("scales", Pointer),
        ("minima", Pointer),
    )


class StackStruct(ctypes.Structure):
    """`Stack` of step.h."""

    _fields_ = (("parts", Pointer), ("count", Int32), ("rows", Int32))


SIGNATURES = {
    "hatchway_tiles_bytes": (Int64, (ctypes.POINTER(MatrixStruct),)),
    "hatchway_pack": (Int32, (Pointer, ctypes.POINTER(SourceStruct), ctypes.POINTER(MatrixStruct), Pointer)),
    "hatchway_expand": (None, (ctypes.POINTER(MatrixStruct), Int64, Pointer)),
    "hatchway_product": (
        Int32,
        (Pointer, ctypes.POINTER(MatrixStruct), Pointer, Int64, Pointer, Int64, Pointer, Int32),
    ),
}
STRUCTURES = {0: MatrixStruct, 1: SourceStruct, 2: StackStruct}


class Tiles(Prepared):
    """A matrix, or several one below the other, as the C++ products read them. Not changed once made but for
    `variants`."""

    def __init__(self, functions: ctypes.CDLL, parts: list[tuple[MatrixStruct, Tensor]]) -> None:
        self._functions = functions
        self._tensors = [tensor for _, tensor in parts]  # what `parts` points to
        self.parts = (MatrixStruct * len(parts))(*(part for part, _ in parts))
        self.shape = (sum(part.rows for part in self.parts), self.parts[0].columns)
        self.nbytes = sum(tensor.nbytes for tensor in self._tensors)
        self.stack = StackStruct(ctypes.addressof(self.parts), len(parts), self.shape[0])

    def product(self, team: int, x: Tensor, bias: Tensor | None, variant: int = -1) -> Tensor:
        """x fp32 [T, K], bias [N] -> [T, N]; `variant`: of all parts, below 0: what was chosen for each."""
        x = x.contiguous()
        out = torch.empty(len(x), self.shape[0])
        row = 0
        for part in self.parts:
            own_bias = None if bias is None else bias.data_ptr() + 4 * row
            status = self._functions.hatchway_product(
                team, part, x.data_ptr(), len(x), out.data_ptr() + 4 * row, self.shape[0], own_bias, variant
            )
            if status:
                raise MemoryError(f"no memory for {len(x)} rows of {x.shape[1]} numbers")
            row += part.rows
        return out

    def rows(self, tokens: Tensor) -> Tensor:
        """tokens [T] -> fp32 [T, K]. Raises `IndexError` for a row that is not there."""
        out = torch.empty(len(tokens), self.shape[1])
        for index, row in enumerate(tokens.tolist()):
            if not 0 <= row < self.shape[0]:
                raise IndexError(f"row {row} of a matrix of {self.shape[0]}")
            for part in self.parts:
                if row < part.rows:
                    self._functions.hatchway_expand(part, row, out[index].data_ptr())
                    break
                row -= part.rows
        return out

    def unpack(self) -> Tensor:
        return self.rows(torch.arange(self.shape[0]))

    def choose(self, choice: Callable[[MatrixStruct], list[int]]) -> None:
        """Sets which variant each part is multiplied with, for each of `SIZES`."""
        for part in self.parts:
            for index, variant in enumerate(choice(part)):
                part.variants[index] = variant


def prepare(functions: ctypes.CDLL, team: int, arena: Arena, matrix: Matrix) -> Tiles:
    """A stored matrix as `Tiles`. What no kernel reads as it is becomes fp32: FP8, and groups of odd sizes."""
    if isinstance(matrix, Tiles):
        return matrix
    assert not isinstance(matrix, Prepared), "a matrix is prepared by one backend"
    parts = matrix.parts if isinstance(matrix, Stack) else (matrix,)
    return Tiles(functions, [_part(functions, team, arena, part) for part in parts])


def _part(functions: ctypes.CDLL, team: int, arena: Arena, matrix: Tensor | Packed) -> tuple[MatrixStruct, Tensor]:
    if isinstance(matrix, Packed) and (span := _span(matrix)):
        return _packed(functions, team, arena, matrix, span)
    floats = unpack(matrix).contiguous()
    return _described(MatrixStruct(FP32, *floats.shape, 32, 4, 0, 0.0, data=floats.data_ptr())), floats


def _span(matrix: Packed) -> int:
    """Columns of a block; 0: there are no tiles for the format."""
    if matrix.format.name not in ("int8", "int4", "int3") or 0 in matrix.shape:
        return 0
    tile = matrix.format.tile(matrix.shape[1])
    # a scale for the whole row is repeated in each block, whatever is left over at its end
    if tile == matrix.shape[1] or tile % 32 == 0:
        return 32
    return 16 if tile % 16 == 0 else 0


def _packed(functions: ctypes.CDLL, team: int, arena: Arena, matrix: Packed, span: int) -> tuple[MatrixStruct, Tensor]:
    format = matrix.format
    eight = format.name == "int8"
    layout = {"int8": UINT8 if format.zeros else INT8, "int4": INT4, "int3": INT3}[format.name]
    # codes without a sign are what is stored: of bytes 128 less, of fewer bits the number and half its range
    offset = (128.0 if layout == UINT8 else 0.0) if eight else 0.0 if format.zeros else -(2.0 ** (format.bits - 1))
    data, scale = matrix.data.contiguous(), matrix.scale.contiguous()
    minimum = None if matrix.minimum is None else matrix.minimum.contiguous()
    source = SourceStruct(
        layout,
        matrix.shape[1],
        format.tile(matrix.shape[1]),
        scale.element_size(),
        data.shape[1] * data.element_size(),
        data.data_ptr(),
        scale.data_ptr(),
        None if minimum is None else minimum.data_ptr(),
    )
    part = MatrixStruct(
        CODES8 if eight else CODES4, *matrix.shape, span, scale.element_size(), int(minimum is not None), offset
    )
    tiles = arena.take(functions.hatchway_tiles_bytes(part))
    if functions.hatchway_pack(team, source, part, tiles.data_ptr()):
        raise MemoryError(f"no memory to pack {matrix.shape[0]} rows of {matrix.shape[1]} numbers")
    part.data = tiles.data_ptr()
    return _described(part), tiles


def _described(part: MatrixStruct) -> MatrixStruct:
    for index, rows in enumerate(SIZES):
        part.variants[index] = NARROW if rows <= FEW_ROWS or part.kind == FP32 else WIDE
    return part
