"""Which format each matrix of a model is kept in, and why.

`none`, `int8`, `int4`, `int3` and `fp8` are one format for every matrix. `mixed`, the default, keeps what the file
has quantised already exactly as it is stored, and gives the rest four bits, or eight where it counts: where that is,
says a scheme measured on this model (`calibration.py`) if there is one, else the rule of `by_rule`.

Matrices have the names of `files/loading.py`; `layers.{i}.qkv` counts as two, `.qk` and `.value`, because values bear
less. Norms, biases and routers are never quantised.
"""

import base64
import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.packed import Format, Matrix, Packed, Prepared, Stack, num_columns, num_rows, pack, take_over
from local_engine.errors import ModelFileError
from local_engine.files.checkpoint import Stored, StoredMatrix
from local_engine.model_config import ModelConfig

log = logging.getLogger(__name__)

Quant = Literal["none", "int8", "int4", "int3", "fp8", "mixed"]

INT8 = Format("int8", 8, 32)
INT4 = Format("int4", 4, 32)
INT3 = Format("int3", 3, 32, zeros=True)
FP8 = Format("fp8", 8, 0)
UNIFORM: dict[str, Format] = {"int8": INT8, "int4": INT4, "int3": INT3, "fp8": FP8}
PLAIN_KINDS = frozenset({"F32", "F16", "BF16"})  # what `mixed` may quantise
SCHEME_VERSION = 1
MAX_SCHEME_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Choice:
    """One matrix of a measured scheme."""

    format: Format | None  # None: fp32
    shape: tuple[int, int]
    effect: float | None = None  # KL to fp32, nats a token, of this matrix alone in this format
    importance: Tensor | None = None  # fp32 [K], mean square of each input on the calibration text


@dataclass(frozen=True, slots=True)
class Scheme:
    """The formats of a model's matrices as measurement chose them."""

    choices: Mapping[str, Choice]
    measured: Mapping[str, Any] = field(default_factory=dict)  # totals: bytes, perplexity, KL, agreement

    def to_json(self) -> str:
        rows = {
            name: {
                "format": None if choice.format is None else asdict(choice.format),
                "shape": list(choice.shape),
                "effect": choice.effect,
                "importance": None if choice.importance is None else _to_text(choice.importance),
            }
            for name, choice in self.choices.items()
        }
        return json.dumps({"version": SCHEME_VERSION, "measured": dict(self.measured), "matrices": rows}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Scheme":
        """Raises `ValueError` for anything but what `to_json` writes."""
        try:
            document = json.loads(text)
            if document["version"] != SCHEME_VERSION:
                raise ValueError(f"version {document['version']!r} is not {SCHEME_VERSION}")
            choices = {str(name): _choice(row) for name, row in document["matrices"].items()}
            return cls(choices, dict(document["measured"]))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a scheme: {type(error).__name__} {error}") from error


def _choice(row: dict[str, Any]) -> Choice:
    rows, columns = (int(n) for n in row["shape"])
    format = None if row["format"] is None else Format(**row["format"])
    if format is not None and not (format.is_known and format.fits(columns)):
        raise ValueError(f"format {row['format']} does not fit rows of {columns}")
    importance = None if row["importance"] is None else _from_text(row["importance"])
    if importance is not None and (importance.shape != (columns,) or not bool((importance >= 0).all())):
        raise ValueError(f"importance is not {columns} numbers")
    effect = None if row["effect"] is None else float(row["effect"])
    return Choice(format, (rows, columns), effect, importance)


def _to_text(importance: Tensor) -> str:
    """Relative to the largest, in fp16: who is important is all that counts."""
    shares = importance / importance.max().clamp(min=torch.finfo(torch.float32).tiny)
    return base64.b64encode(shares.half().numpy().tobytes()).decode()


def _from_text(text: str) -> Tensor:
    raw = base64.b64decode(text, validate=True)
    if len(raw) % 2:
        raise ValueError("importance is cut off")
    return torch.frombuffer(bytearray(raw), dtype=torch.float16).float() if raw else torch.empty(0)


def scheme_path(model: Path) -> Path:
    """Where a model's measured scheme lies: beside the file, or in the folder."""
    return model / "quantisation.json" if model.is_dir() else model.with_name(model.name + ".quantisation.json")


def find_scheme(model: Path, cache_folder: Path | None = None, fingerprint: str = "") -> Scheme | None:
    """The scheme measured for a model: beside it, else in the cache folder. A damaged one is reported and not used."""
    places = [scheme_path(model)]
    if cache_folder is not None and fingerprint:
        places.append(cache_folder / f"{fingerprint}.quantisation.json")
    for place in places:
        try:
            if not place.is_file():
                continue
            if place.stat().st_size > MAX_SCHEME_BYTES:
                raise ValueError(f"larger than {MAX_SCHEME_BYTES} bytes")
            return Scheme.from_json(place.read_text())
        except (OSError, ValueError) as error:
            log.warning("the measured scheme `%s` is not used: %s", place.name, error)
    return None


class Quantiser:
    """Decides what each stored matrix becomes; `load_weights` calls it with the name and the matrix.

    Raises `ModelFileError` for a matrix with values that are not finite. `key` names everything that its results
    depend on beside the file itself.
    """

    def __init__(self, quant: Quant, config: ModelConfig, scheme: Scheme | None = None) -> None:
        self.quant = quant
        self.config = config
        self.scheme = scheme if quant == "mixed" else None
        description = [quant, *(str(f) for f in UNIFORM.values()), self.scheme.to_json() if self.scheme else "rule"]
        self.key = hashlib.sha256("\n".join(description).encode()).hexdigest()[:16]

    def __call__(self, name: str, stored: Stored) -> Matrix:
        return self._kept(name, stored) if self.keeps(stored.kind) else self.quantised(name, stored.read())

    def keeps(self, kind: str) -> bool:
        """Whether a matrix stored so is taken over instead of quantised anew."""
        return self.quant == "none" or (self.quant == "mixed" and kind not in PLAIN_KINDS)

    def quantised(self, name: str, weight: Tensor) -> Matrix:
        """weight fp32 [N, K]."""
        count, columns = weight.shape
        parts: list[Tensor | Packed] = []
        start = 0
        for part_name, part_rows in sections(name, count, self.config):
            format, importance = self.format(part_name, (part_rows, columns))
            part = weight[start : start + part_rows]
            try:
                parts.append(part if format is None else pack(part, format, importance))
            except ValueError as error:
                raise ModelFileError(f"the matrix `{name}` cannot be quantised: {error}") from error
            start += part_rows
        return _stacked(parts)

    def format(self, name: str, shape: tuple[int, int]) -> tuple[Format | None, Tensor | None]:
        """Of one section: its format (None: fp32) and the importance of its columns where that is known."""
        if self.quant != "mixed":
            return (None if self.quant == "none" else fitting(UNIFORM[self.quant], shape[1])), None
        choice = self.scheme.choices.get(name) if self.scheme is not None else None
        if choice is None:
            return fitting(by_rule(name, self.config), shape[1]), None
        if choice.shape[1] == shape[1]:
            return choice.format, choice.importance
        return (None if choice.format is None else fitting(choice.format, shape[1])), None  # a part of the columns

    def _kept(self, name: str, stored: Stored) -> Matrix:
        if self.quant == "none" or stored.kind in PLAIN_KINDS:
            return stored.read()
        if stored.kind == "mixed":
            return _stacked([part for piece in stored.pieces for part in _parts(self._kept(name, piece))])
        raw = stored.raw()
        try:
            packed = None if raw is None else take_over(stored.kind, raw, stored.shape)
        except ValueError as error:
            raise ModelFileError(f"the matrix `{name}` cannot be read: {error}") from error
        return stored.read() if packed is None else packed


def scheme_of(quant: Quant, config: ModelConfig, scheme: Scheme | None = None) -> Quantiser:
    """What `load_weights` takes as `scheme`. The measured `scheme` counts for `mixed` only."""
    return Quantiser(quant, config, scheme)


def sections(name: str, count: int, config: ModelConfig) -> list[tuple[str, int]]:
    """The parts of a matrix of `count` rows that have formats of their own: their names and rows."""
    if not name.endswith(".qkv"):
        return [(name, count)]
    value = value_rows(count, config)
    stem = name.removesuffix("qkv")
    return [(stem + "qk", count - value), (stem + "value", value)]


def value_rows(count: int, config: ModelConfig) -> int:
    """Rows of values among the `count` rows of a process's query, key and value."""
    for size in range(1, config.num_heads + 1):
        kv_heads = max(config.num_kv_heads // size, 1)
        if (config.num_heads // size + 2 * kv_heads) * config.head_dim == count:
            return kv_heads * config.head_dim
    raise ModelFileError(f"{count} rows are no share of {config.num_heads} + 2 x {config.num_kv_heads} heads")


def by_rule(name: str, config: ModelConfig) -> Format:
    """Eight bits where errors are known to hurt, four elsewhere.

    Eight: the embedding and the output; values and `down` of the first and the last eighth of the layers and of every
    third between (the choice behind llama.cpp's Q4_K_M); attention in layers with experts, which every token passes,
    while each expert sees few.
    """
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match is None:
        return INT8
    layer, part = int(match[1]), match[2]
    if layer in config.sparse_layers:
        return INT4 if part.startswith("experts.") else INT8
    eighth = math.ceil(config.num_layers / 8)
    outer = layer < eighth or layer >= config.num_layers - eighth
    critical = part in ("value", "down") and (outer or (layer - eighth) % 3 == 2)
    return INT8 if critical else INT4


def fitting(format: Format, columns: int) -> Format | None:
    """The format, with groups that divide rows of `columns`; of more bits where it cannot be; None: fp32."""
    groups = [format.group, *(g for g in (128, 64, 32, 16) if g < (format.group or columns)), 0]
    for group in groups:
        candidate = Format(format.name, format.bits, group, format.zeros)
        if candidate.fits(columns):
            return candidate
    whole = Format("int8", 8, 0)
    return whole if whole.fits(columns) else None


def estimate(quant: Quant, config: ModelConfig, name: str, stored: StoredMatrix, tiled: bool = False) -> int:
    """Bytes that a matrix takes in memory, nothing read. A measured scheme may differ.

    `tiled`: as the C++ kernels lay it out, with rows up to a multiple of 16.
    """
    quantiser = Quantiser(quant, config)
    if quantiser.keeps(stored.kind):
        return sum(_kept_bytes(quant, piece, tiled) for piece in stored.pieces)
    count, columns = stored.shape
    total = 0.0
    for part_name, part_rows in sections(name, count, config):
        format, _ = quantiser.format(part_name, (part_rows, columns))
        if format is not None and tiled:
            total += _tiled_bytes(format, part_rows, columns)
        else:
            total += part_rows * columns * (32 if format is None else format.bits_per_weight(columns)) / 8
    return math.ceil(total)


def _kept_bytes(quant: Quant, piece: StoredMatrix, tiled: bool) -> int:
    """Of a matrix of one kind that is taken over."""
    count, columns = piece.shape
    bits = KEPT_BITS.get(piece.kind)
    if quant == "none" or bits is None or not all(part.is_whole for part in piece.parts):
        return 4 * count * columns
    return math.ceil((_whole_tiles(count) if tiled else count) * columns * bits / 8)


def _tiled_bytes(format: Format, count: int, columns: int) -> float:
    """Of `kernels/cpu/tiles.py`: a scale, and a minimum, for each 32 columns at most; three bits lie in four."""
    tile = format.tile(columns)
    span = 32 if tile % 32 == 0 or tile == columns else 16
    if format.name == "fp8" or tile % span and tile != columns:
        return 4 * count * columns
    bits = 8 if format.name == "int8" else 4
    return _whole_tiles(count) * -(-columns // span) * (span * bits / 8 + 2 * (1 + format.zeros))


def _whole_tiles(count: int) -> int:
    return -(-count // 16) * 16


# Bits of a weight taken over: its group's scale and minimum included.
KEPT_BITS = {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 8.5, "Q5_1": 9.0, "Q4_K": 6.0, "Q5_K": 10.0, "Q6_K": 10.0}


def _parts(matrix: Matrix) -> tuple[Tensor | Packed, ...]:
    assert not isinstance(matrix, Prepared), "a matrix is kept as it is stored before a backend prepares it"
    return matrix.parts if isinstance(matrix, Stack) else (matrix,)


def _stacked(parts: list[Tensor | Packed]) -> Matrix:
    """One matrix again where neighbours have the same format."""
    merged: list[Tensor | Packed] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(last, Tensor) and isinstance(part, Tensor):
            merged[-1] = torch.cat((last, part))
        elif isinstance(last, Packed) and isinstance(part, Packed) and _alike(last, part):
            lows = None if last.minimum is None or part.minimum is None else torch.cat((last.minimum, part.minimum))
            shape = (num_rows(last) + num_rows(part), num_columns(last))
            data, scale = torch.cat((last.data, part.data)), torch.cat((last.scale, part.scale))
            merged[-1] = Packed(last.format, shape, data, scale, lows)
        else:
            merged.append(part)
    return merged[0] if len(merged) == 1 else Stack(tuple(merged))


def _alike(first: Packed, second: Packed) -> bool:
    return first.format == second.format and first.scale.dtype == second.scale.dtype
