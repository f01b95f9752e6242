"""A model's files, whatever their format: configuration, tokenizer, tensors.

`open_checkpoint` reads a GGUF file or a folder of safetensors, and compares what is there with what a model of that
configuration needs, before anything is allocated. `Stored` is the seam between the files and quantisation: a matrix as
it lies in the file, which can be read as fp32 or, where its stored format is one of ours, be taken over as it is.

GGUF files of the llama family store the rows of the query and key projections for *interleaved* rotary embedding
(element 2i turns with 2i + 1), while the original checkpoints and `kernels.reference.rope` turn element i with i + d/2.
The rows are put back in the original order here; forgetting it gives fluent nonsense.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from kernels.gguf_formats import dequantise
from local_engine.errors import ModelFileError
from local_engine.files import gguf_config, hugging_face_config, tensor_names
from local_engine.files.gguf import TENSOR_TYPES, GGUFFile, TensorType
from local_engine.files.safetensors_folder import SafetensorsFolder
from local_engine.model_config import ModelConfig

_TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}
_INTERLEAVED = ("llama", "mixtral", "smollm3")  # architectures whose GGUF files are


class Stored(Protocol):
    """One matrix [N, K] (or its share of rows and columns), not read yet. Rows are in the order the model wants."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def kind(self) -> str:
        """Its format in the file: F32, F16, BF16, Q8_0, Q4_0, ... ; `mixed` where parts of it differ."""

    @property
    def size(self) -> int:
        """Bytes in the file."""

    @property
    def pieces(self) -> "tuple[Stored, ...]":
        """The same matrix as pieces of one kind each, one below the other."""

    def read(self) -> Tensor:
        """-> fp32 [N, K], the caller's own."""

    def raw(self) -> Tensor | None:
        """The stored bytes, uint8 [N, bytes of a row]; None where rows cannot be taken over whole.

        They may be a view of the mapped file: copy what is to stay.
        """


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Consecutive rows [N, K] of one tensor in a file; of a vector, [N, 1]."""

    name: str  # in the file
    shape: tuple[int, int]
    type: TensorType
    mapped: Callable[[], Tensor]  # -> the file's tensor, a view, of any type and shape
    first: int = 0  # row of the file's tensor that is row 0 here
    interleaved: int = 0  # rows of one head, where they lie in pairs for interleaved rotation; 0: they do not

    def part(self, first: int, rows: int) -> "StoredTensor":
        return dataclasses.replace(self, first=self.first + first, shape=(rows, self.shape[1]))

    def bytes(self, rows: range) -> Tensor:
        """uint8 [rows, bytes of a row], in the model's order; of interleaved rows, whole heads only."""
        row_bytes = self.shape[1] // self.type.block_size * self.type.block_bytes
        everything = self.mapped().reshape(-1).view(torch.uint8).view(-1, row_bytes)
        raw = everything[self.first + rows.start : self.first + rows.stop]
        return half_rotation_rows(raw, len(rows) // self.interleaved) if self.interleaved else raw


def half_rotation_rows(rows: Tensor, heads: int) -> Tensor:
    """[heads * d, anything] with rows for interleaved rotation -> the same rows ordered for half rotation.

    Stored row 2i of a head is original row i, stored row 2i + 1 is original row i + d/2. A row is moved whole, so its
    packed bytes will do.
    """
    count, size = rows.shape
    return rows.view(heads, count // heads // 2, 2, size).transpose(1, 2).reshape(count, size)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows and columns of a stored tensor."""

    tensor: StoredTensor
    rows: range
    columns: range

    @property
    def blocks(self) -> range:
        """The blocks of a row that hold the columns."""
        size = self.tensor.type.block_size
        return range(self.columns.start // size, -(-self.columns.stop // size))

    @property
    def is_whole(self) -> bool:
        """Whether no block is cut in two."""
        size = self.tensor.type.block_size
        return self.columns.start % size == 0 and self.columns.stop % size == 0

    def raw(self) -> Tensor:
        """Blocks that hold the part: uint8 [rows, bytes]."""
        each = self.tensor.type.block_bytes
        return self.tensor.bytes(self.rows)[:, self.blocks.start * each : self.blocks.stop * each]

    def read(self, out: Tensor) -> None:
        """Into `out`, fp32 [rows, columns]."""
        if self.is_whole:
            dequantise(self.tensor.type.name, self.raw(), out)
            return
        size = self.tensor.type.block_size
        blocks = torch.empty(len(self.rows), len(self.blocks) * size)
        dequantise(self.tensor.type.name, self.raw(), blocks)
        start = self.columns.start - self.blocks.start * size
        out.copy_(blocks[:, start : start + len(self.columns)])


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A `Stored` of parts of tensors, one below the other, all of as many columns."""

    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(part.rows) for part in self.parts), len(self.parts[0].columns)

    @property
    def kind(self) -> str:
        kinds = {part.tensor.type.name for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @property
    def size(self) -> int:
        return sum(len(part.rows) * len(part.blocks) * part.tensor.type.block_bytes for part in self.parts)

    @property
    def pieces(self) -> "tuple[StoredMatrix, ...]":
        runs: list[list[Part]] = []
        for part in self.parts:
            if runs and runs[-1][0].tensor.type == part.tensor.type:
                runs[-1].append(part)
            else:
                runs.append([part])
        return tuple(StoredMatrix(tuple(run)) for run in runs)

    def read(self) -> Tensor:
        out, at = torch.empty(self.shape), 0
        for part in self.parts:
            part.read(out[at : at + len(part.rows)])
            at += len(part.rows)
        return out

    def raw(self) -> Tensor | None:
        if self.kind == "mixed" or not all(part.is_whole for part in self.parts):
            return None
        if len(self.parts) == 1:
            return self.parts[0].raw()
        return torch.cat([part.raw() for part in self.parts])


class Checkpoint:
    """An open model; a context manager. One of `gguf` and `folder` is there: the tokenizer is read from it.

    `tensors` maps our names (see `tensor_names.py`) to what is stored: complete, and of the shapes that `config` asks
    for.
    """

    def __init__(self, path: Path, gguf: GGUFFile | None, safetensors: SafetensorsFolder | None) -> None:
        self.path = path
        self.gguf = gguf
        self.folder = safetensors.path if safetensors is not None else None
        self._safetensors = safetensors
        self.config: ModelConfig
        self.tensors: dict[str, StoredTensor] = {}
        if gguf is not None:
            self._names, self.config = tensor_names.GGUF, gguf_config.from_gguf(gguf)
            for name, info in gguf.tensors.items():
                self._add(name, info.shape, info.type, partial(_mapped_gguf, gguf, name))
        elif safetensors is not None:
            self._names, self.config = (
                tensor_names.HUGGING_FACE,
                hugging_face_config.from_hugging_face(safetensors.config),
            )
            if "lm_head.weight" in safetensors.tensors:  # then it counts, whatever `tie_word_embeddings` says
                self.config = dataclasses.replace(self.config, tied=False)
            for name, tensor in safetensors.tensors.items():
                self._add(name, tensor.shape, _TYPES[tensor.kind], partial(safetensors.read, name))
        self._compare()

    def _fail(self, what: str) -> NoReturn:
        raise ModelFileError(f"{self.path.name}: {what}")

    def _add(self, name: str, shape: tuple[int, ...], kind: TensorType, mapped: Callable[[], Tensor]) -> None:
        ours = self._names.place(name)
        if ours is None or (ours.startswith("layers.") and int(ours.split(".")[1]) >= self.config.num_layers):
            if self._names.is_ignored(name):
                return
            self._fail(
                f"tensor `{name[:200]}` has no place in the model\n"
                "hint: adapters, and layers of other kinds, are not supported"
            )
        if ".*." in ours:
            self._add_experts(ours, StoredTensor(name, _flat(shape), kind, mapped), shape)
        elif len(shape) > 2 or (len(shape) == 1 and kind.block_size > 1):
            self._fail(f"`{name[:200]}` has shape {shape} of {kind.name}, which no tensor of that name can have")
        else:
            rows, columns = shape if len(shape) == 2 else (shape[0], 1)
            tensor = StoredTensor(name, (rows, columns), kind, mapped)
            interleaved = self.gguf is not None and self.config.architecture in _INTERLEAVED
            if interleaved and ours.rsplit(".", 1)[-1] in ("query", "key", "query_bias", "key_bias"):
                tensor = dataclasses.replace(tensor, interleaved=self.config.head_dim)
            self._place(ours, tensor)

    def _add_experts(self, ours: str, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
        """One tensor [E, rows, columns] that holds a matrix of every expert, or, for `gate_up`, two."""
        experts = self.config.experts
        halves = ("gate", "up") if ours.endswith("gate_up") else (ours.rsplit(".", 1)[-1],)
        if experts is None or len(shape) != 3 or shape[0] != experts.count or shape[1] % len(halves):
            self._fail(f"`{tensor.name[:200]}` has shape {shape}, not one part for each expert")
        rows = shape[1] // len(halves)
        for expert in range(experts.count):
            for number, half in enumerate(halves):
                name = f"{ours.split('.*.')[0]}.{expert}.{half}"
                self._place(name, tensor.part(expert * shape[1] + number * rows, rows))

    def _place(self, ours: str, tensor: StoredTensor) -> None:
        if ours in self.tensors:
            self._fail(f"`{tensor.name[:200]}` and `{self.tensors[ours].name[:200]}` are the same part of the model")
        self.tensors[ours] = tensor

    def _compare(self) -> None:
        """What is there with what the configuration asks for."""
        expected = tensor_names.expected(self.config)
        if self.gguf is not None and "rope_factors" in self.tensors:
            expected = chain(expected, [("rope_factors", (self.config.head_dim // 2, 1))])
        left = set(self.tensors)
        for name, shape in expected:
            if name not in self.tensors:
                self._fail(f"the tensor `{self._names.theirs(name)}` is missing")
            if self.tensors[name].shape != shape:
                self._fail(f"`{self.tensors[name].name[:200]}` has shape {self.tensors[name].shape}, not {shape}")
            left.remove(name)
        if left:
            self._fail(
                f"{len(left)} tensors have no place in the model, the first is `{self.tensors[min(left)].name[:200]}`\n"
                "hint: the configuration and the weights are of different models"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a file does: its name, size, time, or anything before the tensors. Ask while it is open."""
        digest = hashlib.sha256()
        source = self.gguf if self.gguf is not None else self._safetensors
        assert source is not None
        headers: Iterable[tuple[Path, memoryview | bytes]] = source.headers()
        for path, header in headers:
            stat = path.stat()
            digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{len(header)}\0".encode())
            digest.update(header)
        return digest.hexdigest()

    def close(self) -> None:
        for source in (self.gguf, self._safetensors):
            if source is not None:
                source.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1]


def _mapped_gguf(file: GGUFFile, name: str) -> Tensor:
    return torch.frombuffer(file.raw(name), dtype=torch.uint8)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """A GGUF file (the first, of a model in several), or a folder with `config.json` and safetensors files.

    Raises `ModelFileError` when it is absent, damaged, or not a model that this engine runs.
    """
    path = Path(path)
    source: GGUFFile | SafetensorsFolder
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path.name}: one file of a model\nhint: give the folder, with its `config.json`")
    if path.is_dir():
        if not (path / "config.json").is_file() and next(path.glob("*.gguf"), None) is not None:
            raise ModelFileError(f"{path.name}: a folder of GGUF files\nhint: give the path of one of them")
        source = SafetensorsFolder(path)
    else:
        source = GGUFFile(path)
    try:
        if isinstance(source, GGUFFile):
            return Checkpoint(path, source, None)
        return Checkpoint(path, None, source)
    except BaseException:
        source.close()
        raise
