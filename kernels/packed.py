"""Quantised matrices: their formats, how they are packed, and the plain-torch reading that is the truth.

A weight w[n, k] of group g = k // group is `q * scale[n, g] + minimum[n, g]`, with q an integer of `bits` bits
(signed, and no minimum, where the format is symmetric) or an FP8 number; computed in fp32, a product, then a sum.

Layouts of `Packed.data`; a tile is one group, or the whole row where the group is 0, of t weights:
  int8  [N, K] int8; uint8 where the format has minima
  int4  [N, K / 2] uint8: byte j of a tile holds weight j in its low and weight j + t/2 in its high half, so that two
        shifts give two contiguous halves; symmetric numbers are stored with 8 added
  int3  [N, 3K / 8] uint8: of each tile first the low two bits, byte j holding weights j, j + t/4, j + t/2, j + 3t/4
        from its lowest bits up, then the third bit, byte j holding weights j, j + t/8, ..., j + 7t/8; symmetric
        numbers are stored with 4 added
  fp8   [N, K] uint8: the bits of E4M3 (https://arxiv.org/abs/2209.05433); the code of NaN does not occur
Scales and minima are fp16, or fp32 where fp16 would not hold them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import gguf_formats, rounding


@dataclass(frozen=True, slots=True)
class Format:
    """How the numbers of a matrix are stored."""

    name: str  # int8, int4, int3, fp8
    bits: int
    group: int  # consecutive inputs that share a scale; 0: a whole row
    zeros: bool = False  # whether each group has a minimum beside its scale

    def __str__(self) -> str:
        return f"{self.name}-{self.group or 'row'}{'z' if self.zeros else ''}"

    def tile(self, columns: int) -> int:
        """Weights that share a scale in a row of `columns`. Raises `ValueError` when the format does not fit it."""
        tile = self.group or columns
        if columns == 0 or columns % tile:
            raise ValueError(f"`format`: groups of {tile} do not divide rows of {columns}")
        if tile % TILE_STEP[self.name]:
            raise ValueError(f"`format`: {self.name} packs {TILE_STEP[self.name]} weights at once, not {tile}")
        return tile

    @property
    def is_known(self) -> bool:
        """Whether it is one of ours: what comes out of a file may be anything."""
        bits = {"int8": 8, "int4": 4, "int3": 3, "fp8": 8}.get(self.name)
        return (
            bits == self.bits
            and isinstance(self.group, int)
            and self.group >= 0
            and (self.zeros is False or (self.zeros is True and self.name != "fp8"))
        )

    def fits(self, columns: int) -> bool:
        tile = self.group or columns
        return columns > 0 and columns % tile == 0 and tile % TILE_STEP[self.name] == 0

    @property
    def levels(self) -> float:
        """The largest number of the format; with minima, the number of steps between them and the largest weight."""
        return FP8_MAX if self.name == "fp8" else 2**self.bits - 1 if self.zeros else 2 ** (self.bits - 1) - 1

    def bits_per_weight(self, columns: int) -> float:
        """Scales and minima included, taken as fp16."""
        return self.bits + 16 * (1 + self.zeros) / self.tile(columns)


TILE_STEP = {"int8": 1, "int4": 2, "int3": 8, "fp8": 1}  # a tile is a multiple of it
FP8_MAX = 448.0  # of E4M3
LAYOUT_VERSION = 1  # of what is below: raised when packed bytes would mean something else
WEIGHT_LIMIT = 2.0**50  # far beyond it the squares of errors would overflow fp32
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-12, 2.0**15  # where fp16 holds a matrix's scales with all their digits
CHUNK = 1 << 18  # weights fitted at once: they and what is computed from them stay in the processor's cache
MINIMUM_DIGITS = 256  # steps that a minimum in fp16 may be large
LEAST_SHARE = 1e-3  # of the mean importance


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [N, K] in a format. The layout of `data` is the format's."""

    format: Format
    shape: tuple[int, int]
    data: Tensor
    scale: Tensor  # [N, K / group]
    minimum: Tensor | None = None  # like `scale`


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of different formats, one below the other: [sum of rows, K]."""

    parts: tuple["Tensor | Packed", ...]


class Prepared(ABC):
    """A matrix [N, K] as one backend multiplies with it, and only that one can read."""

    shape: tuple[int, int]
    nbytes: int  # of memory

    @abstractmethod
    def unpack(self) -> Tensor:
        """-> fp32 [N, K]."""


Matrix = Tensor | Packed | Stack | Prepared

# Blocks of 32 weights of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h whose bytes are a tile's
# already: an fp16 scale, an fp16 minimum where the format has one, the numbers. Format, bytes of a block.
SIMPLE_BLOCKS = {
    "Q8_0": (Format("int8", 8, 32), 34),
    "Q4_0": (Format("int4", 4, 32), 18),
    "Q4_1": (Format("int4", 4, 32, zeros=True), 20),
}
HALF_SCALES = frozenset({"Q5_0", "Q5_1"})  # of the other kinds; the rest have products for scales, exact in fp32 only


def layout(
    format: Format, shape: tuple[int, int], scales: torch.dtype
) -> dict[str, tuple[torch.dtype, tuple[int, int]]]:
    """Type and shape of each tensor of a `Packed`. Raises `ValueError` when the format does not fit the shape."""
    count, columns = shape
    groups = (scales, (count, columns // format.tile(columns)))
    signed = format.name == "int8" and not format.zeros
    found = {
        "data": (torch.int8 if signed else torch.uint8, (count, columns * format.bits // 8)),
        "scale": groups,
    }
    if not format.is_known or scales not in (torch.float16, torch.float32):
        raise ValueError(f"`format`: there is no {format} with scales of {scales}")
    return found | {"minimum": groups} if format.zeros else found


def num_rows(matrix: Matrix) -> int:
    if isinstance(matrix, Stack):
        return sum(num_rows(part) for part in matrix.parts)
    return int(matrix.shape[0])


def num_columns(matrix: Matrix) -> int:
    return num_columns(matrix.parts[0]) if isinstance(matrix, Stack) else int(matrix.shape[1])


def nbytes(matrix: Matrix) -> int:
    """Bytes of memory: data, scales and minima."""
    if isinstance(matrix, Stack):
        return sum(nbytes(part) for part in matrix.parts)
    if isinstance(matrix, Packed):
        return matrix.data.nbytes + matrix.scale.nbytes + (0 if matrix.minimum is None else matrix.minimum.nbytes)
    return matrix.nbytes


def rows(matrix: Matrix, start: int, stop: int) -> Matrix:
    """Rows start .. stop - 1, as a view where the matrix allows it. Raises `ValueError` for rows that it has not."""
    if not 0 <= start <= stop <= num_rows(matrix):
        raise ValueError(f"`start`, `stop`: rows {start} to {stop} of a matrix of {num_rows(matrix)}")
    if isinstance(matrix, Tensor):
        return matrix[start:stop]
    if isinstance(matrix, Prepared):
        raise ValueError("`matrix`: a prepared matrix has no rows that could be taken out")
    if isinstance(matrix, Packed):
        minimum = None if matrix.minimum is None else matrix.minimum[start:stop]
        shape = (stop - start, matrix.shape[1])
        return Packed(matrix.format, shape, matrix.data[start:stop], matrix.scale[start:stop], minimum)
    parts: list[Tensor | Packed] = []
    for part in matrix.parts:
        count = num_rows(part)
        first, last = max(start, 0), min(stop, count)
        if first < last:
            piece = rows(part, first, last)
            assert not isinstance(piece, Stack | Prepared)
            parts.append(piece)
        start, stop = start - count, stop - count
    return parts[0] if len(parts) == 1 else Stack(tuple(parts) or (unpack(rows(matrix.parts[0], 0, 0)),))


def unpack(matrix: Matrix) -> Tensor:
    """-> fp32 [N, K]."""
    if isinstance(matrix, Stack):
        return torch.cat([unpack(part) for part in matrix.parts])
    if isinstance(matrix, Prepared):
        return matrix.unpack()
    if not isinstance(matrix, Packed):
        return matrix.float()
    tile = matrix.format.tile(matrix.shape[1])
    out = _decode(matrix.format, matrix.data, tile).view(*matrix.scale.shape, tile)  # [N, groups, tile]
    out *= matrix.scale.float()[..., None]
    if matrix.minimum is not None:
        out += matrix.minimum.float()[..., None]
    return out.view(matrix.shape)


def pack(weight: Tensor, format: Format, importance: Tensor | None = None) -> Packed:
    """The nearest matrix of the format, by squared error weighted with `importance`.

    weight [N, K] of any floating type; importance [K], how much an error in a column counts: the mean square of that
    input, where it is known. What was packed symmetrically or as FP8 is found again: `pack(unpack(p))` unpacks to the
    same values; with a minimum nothing moves by more than half a step.
    Raises `ValueError` for a matrix that is not finite or not two-dimensional, a group that does not divide its rows,
    and an importance that does not fit.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"`weight`: a matrix of floating point is packed, not {weight.dtype} {list(weight.shape)}")
    count, columns = int(weight.shape[0]), int(weight.shape[1])
    tile = format.tile(columns)
    limit = float(weight.abs().max()) if count else 0.0
    if not limit < WEIGHT_LIMIT:
        raise ValueError(f"`weight`: every value must be finite and below {WEIGHT_LIMIT:g}")
    kind = _scale_type(weight, limit, format, tile)
    shares = _shares(importance, columns).to(weight.device).view(1, -1, tile)
    step = max(1, CHUNK // max(columns, 1))
    data, scale, minimum = [], [], []
    for start in range(0, max(count, 1), step):
        chosen = weight[start : start + step].float()
        groups = chosen.reshape(len(chosen), columns // tile, tile)
        codes, s, m = rounding.fit(groups, shares, format.name, format.zeros, kind)
        data.append(_encode(format, codes))
        scale.append(s)
        minimum.append(m)
    lowest = torch.cat([m for m in minimum if m is not None]) if format.zeros else None
    return Packed(format, (count, columns), torch.cat(data), torch.cat(scale), lowest)


def _scale_type(weight: Tensor, limit: float, format: Format, tile: int) -> torch.dtype:
    if not SMALLEST_SCALE < limit / format.levels < LARGEST_SCALE:
        return torch.float32
    if format.zeros:  # a minimum must be exact to a part of its group's steps
        low, high = weight.reshape(len(weight), weight.shape[1] // tile, tile).float().aminmax(dim=-1)
        steps = (high - low) / format.levels
        if bool((low.abs() > steps * MINIMUM_DIGITS)[steps > 0].any()):
            return torch.float32
    return torch.float16


def _shares(importance: Tensor | None, columns: int) -> Tensor:
    """-> fp32 [K], mean about 1; never zero, for a column without inputs in the sample may have some elsewhere."""
    if importance is None:
        return torch.ones(columns)
    if importance.shape != (columns,) or not bool(torch.isfinite(importance).all()) or bool((importance < 0).any()):
        raise ValueError(f"`importance`: {columns} finite numbers are needed, none of them negative")
    wide = importance.double()
    return (wide / wide.mean().clamp(min=1e-300) + LEAST_SHARE).float()


def take_over(kind: str, raw: Tensor, shape: tuple[int, int]) -> Packed | None:
    """A matrix as a GGUF file stores it, without loss: `unpack` gives what dequantising the file gives, bit by bit.

    raw uint8 [N, bytes of a row]. None for a kind that none of the formats holds. Raises `ValueError` when the bytes
    do not make up the shape, or a scale is not finite.
    """
    if kind in SIMPLE_BLOCKS:
        packed = _take_blocks(kind, raw, shape)
    elif kind in gguf_formats.QUANTISED:
        packed = _take_groups(kind, raw, shape)
    else:
        return None
    if not all(bool(torch.isfinite(x).all()) for x in (packed.scale, packed.minimum) if x is not None):
        raise ValueError("`raw`: a scale is not finite")
    return packed


def _take_blocks(kind: str, raw: Tensor, shape: tuple[int, int]) -> Packed:
    format, size = SIMPLE_BLOCKS[kind]
    if shape[1] % 32 or raw.shape != (shape[0], shape[1] // 32 * size):
        raise ValueError(f"`raw`: {list(raw.shape)} bytes are no {kind} matrix of {list(shape)}")
    blocks = raw.reshape(shape[0], shape[1] // 32, size)
    head = 2 + 2 * format.zeros
    numbers = blocks[..., :head].contiguous().view(torch.float16)  # [N, groups, 1 or 2]
    data = blocks[..., head:].flatten(1)
    return Packed(
        format,
        shape,
        data.view(torch.int8) if format.name == "int8" else data,
        numbers[..., 0].contiguous(),
        numbers[..., 1].contiguous() if format.zeros else None,
    )


def _take_groups(kind: str, raw: Tensor, shape: tuple[int, int]) -> Packed:
    """Groups of five and six bits lie in bytes: more of them than in the file, but no weight changes."""
    size = gguf_formats.QUANTISED[kind][0]
    if raw.dim() != 2 or raw.shape[0] != shape[0] or raw.shape[1] % size:
        raise ValueError(f"`raw`: {list(raw.shape)} bytes are no {kind} matrix of {list(shape)}")
    groups = gguf_formats.split(kind, raw)
    if tuple(groups.q.shape) != shape:
        raise ValueError(f"`raw`: {list(raw.shape)} bytes are no {kind} matrix of {list(shape)}")
    zeros, four = groups.minimum is not None, kind.startswith("Q4")
    format = Format("int4", 4, groups.group, zeros) if four else Format("int8", 8, groups.group, zeros)
    codes = groups.q.view(torch.uint8) if zeros else groups.q
    scale, minimum = groups.scale, groups.minimum
    if kind in HALF_SCALES:
        scale, minimum = scale.half(), None if minimum is None else minimum.half()
    data = _encode(format, codes.reshape(*scale.shape, groups.group))
    return Packed(format, shape, data, scale, minimum)


def _encode(format: Format, codes: Tensor) -> Tensor:
    """Numbers [N, groups, t], int8 or (with minima, or FP8) uint8, -> `Packed.data`."""
    if format.name in ("int8", "fp8"):
        return codes.flatten(1)
    if not format.zeros:
        codes = (codes + 2 ** (format.bits - 1)).to(torch.uint8)
    if format.name == "int4":
        low, high = codes.chunk(2, dim=-1)
        return (low | high << 4).flatten(1)
    planes = [_gather_bits(codes & 3, 4, 2), _gather_bits(codes >> 2, 8, 1)]
    return torch.cat(planes, dim=-1).flatten(1)


def _gather_bits(codes: Tensor, parts: int, bits: int) -> Tensor:
    """[N, groups, t] -> bytes [N, groups, t / parts]: part i of the tile at bit `bits * i`."""
    pieces = codes.chunk(parts, dim=-1)
    out = pieces[0].clone()
    for index, piece in enumerate(pieces[1:], 1):
        out |= piece << bits * index
    return out


def _decode(format: Format, data: Tensor, tile: int) -> Tensor:
    """`Packed.data` -> fp32 [N, K]: the numbers themselves."""
    if format.name == "int8":
        return data.float()
    if format.name == "fp8":
        return data.view(torch.float8_e4m3fn).float()
    bytes_of_tile = tile * format.bits // 8
    tiles = data.view(len(data), data.shape[1] // bytes_of_tile, bytes_of_tile)
    if format.name == "int4":
        codes = torch.cat((tiles & 15, tiles >> 4), dim=-1)  # [N, groups, t]
    else:
        two, one = tiles[..., : tile // 4], tiles[..., tile // 4 :]
        low = torch.cat([two >> 2 * i & 3 for i in range(4)], dim=-1)
        codes = low | torch.cat([(one >> i & 1) << 2 for i in range(8)], dim=-1)
    out = codes.flatten(1).float()
    return out if format.zeros else out.sub_(2 ** (format.bits - 1))
