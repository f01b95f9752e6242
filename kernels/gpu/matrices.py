"""Matrices as the GPU's kernels read them: rows of whole tiles, scales by group, a factor for each output.

`kernels.gpu.weights` says how a tile is stored. Rows lie one after the other as in `kernels.packed`, K contiguous:
both operands of a product then lie along K, as matrix instructions of 8 bits need them, a row of an embedding is one
stretch, and experts are stacked one upon the other. Rows are padded to whole tiles, with zeros of weights that only
meet inputs read as 0. A power of two is taken out of a row's scales and minima, its factor, so that weights scaled in
fp16 neither overflow nor lose digits; whole-row scales are the factor themselves. Nothing is rounded: `unpack` gives
what it gave before, bit by bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.gpu.contract import FLOATS, check
from kernels.packed import FP8_MAX, Format, Matrix, Packed, Prepared, Stack, layout, num_columns, num_rows, unpack

Scales = Literal["row", "sum", "weight"]

LEAST_PIECE = 16  # the least depth of a matrix instruction
WHOLE_TILE = 128  # groups from here on are summed up before they are scaled
FP8_SHIFT = 256.0  # what the bits of FP8, taken as fp16's, are too small by
PROGRAMS = 512  # about as many make the largest GPUs busy
LEAST_SEGMENT = 512  # weights
CHUNK = 1 << 24  # weights laid out at once
PARTS = {"int8": 1, "int4": 2, "int3": 4, "fp8": 1, "float": 1}  # pieces in a run


@dataclass(frozen=True, slots=True)
class Tiling:
    """How rows of K weights of a format are cut up."""

    name: str  # a format's, or "float"
    zeros: bool
    scales: Scales
    group: int  # as the kernels see it
    tile: int
    piece: int

    @property
    def constants(self) -> dict[str, Any]:
        """By the names that the kernels have for them."""
        return {
            "NAME": self.name,
            "ZEROS": self.zeros,
            "SCALES": self.scales,
            "GROUP": self.group,
            "TILE": self.tile,
            "PIECE": self.piece,
        }

    @property
    def stride(self) -> int:
        """Elements of `Weights.data` from tile to tile."""
        return 3 * self.piece if self.name == "int3" else self.tile // PARTS[self.name]


@dataclass(frozen=True, slots=True)
class Weights:
    """E matrices [N, K] of one format."""

    format: Format | None  # None: plain floating point
    tiling: Tiling
    count: int  # E
    shape: tuple[int, int]  # N, K
    data: Tensor  # [E, N, tiles * tiling.stride] int8, uint8, or floating point
    scale: Tensor | None = None  # [E, groups, N] fp16 or fp32; None where the factor is all there is
    minimum: Tensor | None = None  # like scale
    factor: Tensor | None = None  # fp32 [E, N]; None of plain floating point

    @property
    def constants(self) -> dict[str, Any]:
        return self.tiling.constants

    @property
    def tiles(self) -> int:
        """In a row."""
        return -(-self.shape[1] // self.tiling.tile)

    @property
    def segment(self) -> int:
        """Tiles that are summed up by themselves before the sums are added: enough programs for one row of inputs.

        By the matrix's shape alone, so that a result does not depend on how many rows are computed beside it.
        """
        return segment(self.shape[0], self.tiles, self.tiling.tile)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.data, self.scale, self.minimum, self.factor) if x is not None)

    def unpack(self) -> Tensor:
        """-> fp32 [E, N, K]."""
        return torch.stack([self._unpack(index) for index in range(self.count)])

    def _unpack(self, index: int) -> Tensor:
        rows, columns = self.shape
        codes = _numbers(self.tiling, self.data[index])[:, :columns]  # [N, K]
        if self.factor is None:
            return codes
        factor = self.factor[index][:, None]  # [N, 1]
        if self.tiling.name == "fp8":
            factor = factor / FP8_SHIFT
        if self.scale is None:
            return codes * factor
        groups = torch.arange(columns, device=codes.device) // self.tiling.group  # [K]
        out = codes * (self.scale[index].float().T * factor)[:, groups]
        if self.minimum is not None:
            out += (self.minimum[index].float().T * factor)[:, groups]
        return out


class GPUMatrix(Prepared):
    """A matrix [N, K] on a GPU, or where the interpreter finds it: parts, one below the other.

    activations: int8 or float8_e4m3fn where inputs are quantised, row by row, for the parts whose formats allow it
    (`takes`); None where they stay as they come.
    """

    def __init__(self, parts: Sequence[Tensor | Weights], activations: torch.dtype | None = None) -> None:
        self.parts = tuple(parts)
        self.activations = activations
        self.shape = (sum(part.shape[0] for part in self.parts), int(self.parts[0].shape[1]))
        self.nbytes = sum(part.nbytes for part in self.parts)

    def unpack(self) -> Tensor:
        return torch.cat([part.float() if isinstance(part, Tensor) else part.unpack()[0] for part in self.parts])


def parts_of(matrix: Matrix) -> tuple[Tensor | Weights, ...]:
    """Raises `ValueError` for a matrix that was not prepared for these kernels."""
    if isinstance(matrix, Tensor):
        return (matrix,)
    if not isinstance(matrix, GPUMatrix):
        raise ValueError(f"`matrix`: a tensor or a `GPUMatrix`, not a `{type(matrix).__name__}`\nhint: `prepare` it")
    return matrix.parts


def segment(rows: int, tiles: int, tile: int) -> int:
    """Tiles in a segment of a matrix [rows, tiles * tile]."""
    wanted = -(-PROGRAMS // -(-rows // 64))
    return max(-(-tiles // wanted), -(-LEAST_SEGMENT // tile))


def takes(part: Tensor | Weights, activations: torch.dtype | None) -> bool:
    """Whether inputs quantised to `activations` can be multiplied with the part as they are."""
    if isinstance(part, Tensor) or activations is None:
        return False
    tiling = part.tiling
    if activations == torch.int8:
        return tiling.name == "int8" and not tiling.zeros and tiling.scales == "row"
    return activations == torch.float8_e4m3fn and tiling.name == "fp8" and tiling.scales != "weight"


def prepare(
    matrix: Matrix, device: torch.device, dtype: torch.dtype, activations: torch.dtype | None = None
) -> Tensor | GPUMatrix:
    """A stored matrix for inputs of type `dtype`: one of plain numbers becomes a tensor of it, any other a `GPUMatrix`.

    activations: see `GPUMatrix`. Raises `ValueError` for groups that are no multiple of 16, and for what another
    backend has prepared.
    """
    check(dtype in FLOATS, "dtype", f"inputs are fp32, fp16 or bf16, not {dtype}")
    check(
        activations in (None, torch.int8, torch.float8_e4m3fn),
        "activations",
        f"they are quantised to int8 or float8_e4m3fn, not {activations}",
    )
    if isinstance(matrix, GPUMatrix):
        return matrix
    check(not isinstance(matrix, Prepared), "matrix", "it was prepared by another backend")
    if isinstance(matrix, Tensor):
        return matrix.to(device, dtype).contiguous()
    parts = [
        part.to(device, dtype).contiguous() if isinstance(part, Tensor) else stack([part], device, dtype)
        for part in (matrix.parts if isinstance(matrix, Stack) else (matrix,))
        if not isinstance(part, Prepared)  # there are none in a stack
    ]
    return GPUMatrix(parts, activations)


def stack(matrices: Sequence[Matrix], device: torch.device, dtype: torch.dtype) -> Weights:
    """Matrices of one format and shape, one upon the other; plain ones too, which get the type `dtype`.

    Raises `ValueError` where they differ, or are of several formats in themselves, and for groups that are no
    multiple of 16.
    """
    check(len(matrices) > 0, "matrices", "there must be one")
    shape, format = (num_rows(matrices[0]), num_columns(matrices[0])), _format(matrices[0])
    alike = all((num_rows(m), num_columns(m)) == shape and _format(m) == format for m in matrices)
    check(alike, "matrices", "all must have the shape and the format of the first")
    check(shape[0] > 0 and shape[1] > 0, "matrices", f"none may be empty, as {list(shape)} is")
    tiling = tiling_of(format, shape[1])
    if format is None:
        width = -(-shape[1] // tiling.tile) * tiling.tile
        data = torch.zeros(len(matrices), shape[0], width, dtype=dtype, device=device)
        for index, matrix in enumerate(matrices):
            assert isinstance(matrix, Tensor)
            data[index, :, : shape[1]] = matrix
        return Weights(None, tiling, len(matrices), shape, data)
    pieces = [_lay_out(matrix, tiling, device) for matrix in matrices if isinstance(matrix, Packed)]
    data, factor = torch.stack([piece[0] for piece in pieces]), torch.stack([piece[3] for piece in pieces])
    return Weights(format, tiling, len(matrices), shape, data, _pile(pieces, 1), _pile(pieces, 2), factor)


Laid = tuple[Tensor, Tensor | None, Tensor | None, Tensor]  # data, scale, minimum, factor


def _pile(pieces: Sequence[Laid], which: Literal[1, 2]) -> Tensor | None:
    found = [x for piece in pieces if (x := piece[which]) is not None]
    if not found:
        return None
    kind = torch.float16 if all(x.dtype == torch.float16 for x in found) else torch.float32
    return torch.stack([x.to(kind) for x in found])


def _format(matrix: Matrix) -> Format | None:
    check(not isinstance(matrix, Stack | Prepared), "matrices", "each must be of one format")
    return matrix.format if isinstance(matrix, Packed) else None


def tiling_of(format: Format | None, columns: int) -> Tiling:
    tile = WHOLE_TILE if columns % WHOLE_TILE == 0 else 64
    if format is None:
        return Tiling("float", False, "row", 0, 64, 64)
    group = 0 if format.group == columns else format.group
    check(
        group % LEAST_PIECE == 0,
        "format",
        f"{format}: the kernels take groups of a multiple of {LEAST_PIECE}\nhint: quantise with groups of 32",
    )
    if format.name == "int3":
        tile, piece = 128, LEAST_PIECE
    elif format.name == "int4":
        if group and group % tile:  # a low and a high half, neither of which crosses a group
            tile = 2 * math.gcd(group, tile // 2)
        piece = tile // 2
    else:
        piece = math.gcd(group, 64)  # as many of a row as keep registers free
        tile = min(tile, 4 * piece)  # and as many products a tile as sm_100's tensor memory has room for
    if not group:
        scales: Scales = "weight" if format.zeros else "row"
    else:
        scales = "weight" if format.zeros or group % tile or group < WHOLE_TILE else "sum"
    padded = -(-columns // tile) * tile
    return Tiling(format.name, format.zeros, scales, group or padded, tile, piece)


def _lay_out(matrix: Packed, tiling: Tiling, device: torch.device) -> Laid:
    rows, columns = matrix.shape
    padding = -columns % tiling.tile
    data = torch.cat([_tile(tiling, codes) for codes in _codes(matrix, padding, device)])
    scale = matrix.scale.to(device).float()  # [N, groups]
    minimum = None if matrix.minimum is None else matrix.minimum.to(device).float()
    if tiling.name == "fp8":
        scale = scale * FP8_SHIFT
    if tiling.scales == "row":
        return data, None, None, scale[:, 0].contiguous()
    largest = FP8_MAX / FP8_SHIFT if tiling.name == "fp8" else 2**matrix.format.bits
    bound = (scale.abs() * largest + (0.0 if minimum is None else minimum.abs())).amax(-1)  # [N]
    factor = torch.exp2(torch.frexp(bound).exponent.clamp(-100, 100) - 1.0)
    factor = torch.where(bound > 0, factor, 1.0)
    groups = (columns + padding) // tiling.group + ((columns + padding) % tiling.group > 0)
    return data, _normalised(scale, factor, groups), _normalised(minimum, factor, groups), factor


def _normalised(scale: Tensor | None, factor: Tensor, groups: int) -> Tensor | None:
    """[N, groups of the matrix] -> scale / factor [groups, N], in fp16 where that is exact."""
    if scale is None:
        return None
    wide = (scale / factor[:, None]).T  # [groups of the matrix, N]
    narrow = wide.to(torch.float16)
    exact = wide if bool((narrow.float() != wide).any()) else narrow
    padded = exact.new_zeros(groups, exact.shape[1])
    padded[: len(exact)] = exact
    return padded


def _codes(matrix: Packed, padding: int, device: torch.device) -> Iterator[Tensor]:
    """The stored numbers, int8 or uint8 [rows, K + padding], some rows at a time."""
    rows, columns = matrix.shape
    symmetric = 0 if matrix.format.zeros else {"int4": 8, "int3": 4}.get(matrix.format.name, 0)
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        data = matrix.data[start : start + step].to(device)
        if matrix.format.name not in ("int8", "fp8"):
            ones = torch.ones(len(data), matrix.scale.shape[1], device=device)
            zeros = torch.zeros_like(ones) if matrix.format.zeros else None
            plain = Packed(matrix.format, (len(data), columns), data, ones, zeros)
            data = (unpack(plain) + symmetric).to(torch.uint8)
        yield torch.nn.functional.pad(data, (0, padding))


def random_matrix(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> GPUMatrix:
    """One to measure with: its numbers are any, but none of FP8's code of NaN, its scales small."""
    found = {
        name: torch.randint(0, 100, size, dtype=kind, device=device)
        if not kind.is_floating_point
        else torch.rand(size, dtype=kind, device=device) * 0.01
        for name, (kind, size) in layout(format, shape, torch.float16).items()
    }
    matrix = prepare(Packed(format, shape, **found), device, dtype)
    assert isinstance(matrix, GPUMatrix)
    return matrix


def _tile(tiling: Tiling, codes: Tensor) -> Tensor:
    """[N, tiles * tile] -> `Weights.data` [N, tiles * stride]."""
    if PARTS[tiling.name] == 1:
        return codes.contiguous()
    pieces = codes.view(len(codes), -1, tiling.tile // tiling.piece, tiling.piece).unbind(2)  # of [N, tiles, piece]
    if tiling.name == "int4":
        runs = [pieces[0] | pieces[1] << 4]
    else:
        runs = [torch.zeros_like(pieces[0]) for _ in range(3)]
        for index, piece in enumerate(pieces):
            runs[index // 4] |= (piece & 3) << 2 * (index % 4)
            runs[2] |= (piece >> 2) << index
    return torch.cat(runs, dim=-1).flatten(1)


def _numbers(tiling: Tiling, data: Tensor) -> Tensor:
    """`Weights.data` [N, tiles * stride] -> fp32 [N, tiles * tile]: the numbers without scales."""
    if tiling.name == "fp8":
        return data.view(torch.float8_e4m3fn).float()
    if PARTS[tiling.name] == 1:
        return data.float()
    runs = data.view(len(data), -1, tiling.stride // tiling.piece, tiling.piece).unbind(2)  # of [N, tiles, piece]
    if tiling.name == "int4":
        pieces, zero = [runs[0] & 15, runs[0] >> 4], 8
    else:
        pieces = [(runs[index // 4] >> 2 * (index % 4) & 3) | (runs[2] >> index & 1) << 2 for index in range(8)]
        zero = 4
    return torch.cat(pieces, dim=-1).flatten(1).float() - (0 if tiling.zeros else zero)
