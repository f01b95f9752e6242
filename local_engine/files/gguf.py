"""Reading GGUF files (versions 2 and 3, little-endian): metadata, tensor directory, raw tensor bytes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is memory-mapped and every length, count and
offset is compared with what is left of the file before anything is read or allocated, so a damaged or hostile file
ends in `ModelFileError`. No torch here: `checkpoint.py` turns bytes into tensors.

A model may come in several files, `NAME-00001-of-00003.gguf` and so on: the first is opened, holds the metadata, and
brings the others with it.
"""

import contextlib
import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from local_engine.errors import ModelFileError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Ceilings well above any real model: they bound memory where the file size alone would not (a Python object costs
# several times the bytes that describe it).
MAX_ENTRIES = 1 << 16  # metadata keys, and tensors
MAX_ARRAY = 1 << 22  # elements of one metadata array
MAX_NAME = 1 << 10  # bytes of a key or a tensor name
MAX_DIMS = 4
MAX_FILES = 1000  # of one model

_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)

_STRING, _ARRAY, _BOOL = 8, 9, 7
# value type id -> numpy type, for everything of fixed size (a bool is one byte)
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_FEWEST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # name length, dims, one dim, type, offset
_FEWEST_ENTRY_BYTES = 8 + 4 + 1  # key length, value type, one byte of value


@dataclass(frozen=True, slots=True)
class TensorType:
    """A storage format: `block_bytes` bytes hold `block_size` consecutive elements of a row."""

    name: str
    block_size: int
    block_bytes: int


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. `shape` is row-major (outermost first; the file stores the reverse)."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int  # bytes from the start of the file
    size: int  # bytes
    part: int = 0  # which file of the model it lies in


class _Cursor:
    """Reads forward through the mapped file and never past its end."""

    def __init__(self, view: memoryview, path: Path) -> None:
        self.view = view
        self.path = path
        self.at = 0

    def fail(self, what: str) -> NoReturn:
        raise ModelFileError(f"{self.path.name}: {what} (at byte {self.at})")

    @property
    def left(self) -> int:
        return len(self.view) - self.at

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            self.fail(f"the file ends inside {what}: {size} bytes needed, {self.left} left")
        self.at += size
        return self.view[self.at - size : self.at]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> str:
        try:
            return str(self.take(self.u64(what), what), "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def strings(self, count: int, what: str) -> list[str]:
        """`string` that many times, in one loop: a vocabulary has a hundred thousand."""
        view, at, end, found = self.view, self.at, len(self.view), list[str]()
        for _ in range(count):
            first = at + 8
            past = first + int.from_bytes(view[at:first], "little")
            if past > end:
                break
            try:
                found.append(str(view[first:past], "utf-8"))
            except UnicodeDecodeError:
                break
            at = past
        self.at = at
        return found + [self.string(what) for _ in range(count - len(found))]  # which says what is wrong

    def name(self, what: str) -> str:
        """A string that may stand in a message."""
        size = int.from_bytes(self.view[self.at : self.at + 8], "little")
        if size > MAX_NAME:
            self.fail(f"{what} is {size} bytes long, at most {MAX_NAME} are allowed")
        name = self.string(what)
        if not name.isprintable():
            self.fail(f"{what} cannot be printed: {ascii(name[:100])}")
        return name

    def count(self, what: str, most: int, fewest_bytes: int) -> int:
        count = self.u64(what)
        if count > most or count * fewest_bytes > self.left:
            self.fail(f"{what} of {count} cannot be true: at most {most}, and {self.left} bytes are left")
        return count

    def value(self, what: str) -> Any:
        kind = self.u32(what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        return self.scalars(kind, 1, what)[0].item()

    def array(self, what: str) -> "list[str] | np.ndarray":
        kind = self.u32(what)
        if kind == _ARRAY:
            self.fail(f"{what} is a nested array, which no supported model uses")
        if kind == _STRING:
            count = self.count(f"array length of {what}", MAX_ARRAY, 8)
            return self.strings(count, what)
        if kind not in _SCALARS:
            self.fail(f"{what} has the unknown value type {kind}")
        return self.scalars(kind, self.count(f"array length of {what}", MAX_ARRAY, _SCALARS[kind].itemsize), what)

    def scalars(self, kind: int, count: int, what: str) -> np.ndarray:
        if kind not in _SCALARS:
            self.fail(f"{what} has the unknown value type {kind}")
        dtype = _SCALARS[kind]
        values: np.ndarray = np.frombuffer(
            self.take(count * dtype.itemsize, what), dtype
        ).copy()  # a copy outlives the mapping
        return values.astype(bool) if kind == _BOOL else values


class GGUFFile:
    """One mapped model, of one file or several; a context manager.

    `metadata` maps keys to `str`, `int`, `float`, `bool`, `list[str]` or a numpy array; `tensors` maps names to
    `TensorInfo`. What is behind a view from `raw` stays mapped until the last view is gone, `close` or not.

    Raises `ModelFileError` when a file is absent, damaged, or holds a tensor type this engine cannot read.
    """

    def __init__(self, path: Path | str, *, _part: int = 0) -> None:
        self.path = Path(path)
        try:
            if self.path.exists() and not self.path.is_file():  # a pipe would be waited for
                raise ModelFileError(f"`{self.path}` is not a file")
            with self.path.open("rb") as file:
                # A private mapping: views are writable (torch wants that) and nothing reaches the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped, a name cannot be a path
            reason = getattr(error, "strerror", None) or "the file is empty"
            raise ModelFileError(f"cannot read the model file `{self.path}`: {reason}") from error
        view = memoryview(self._map)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.header_bytes = 0  # what stands before the tensors
        self._parts: list[GGUFFile] = [self]
        cursor = _Cursor(view, self.path)
        try:
            self._read(cursor, _part)
            self._view = view
            self._read_parts(_part)
        except BaseException:
            cursor.view.release()
            self.close()
            raise

    def _read(self, cursor: _Cursor, part: int) -> None:
        if bytes(cursor.take(4, "the magic number")) != MAGIC:
            raise ModelFileError(f"{self.path.name}: not a GGUF file\nhint: the engine reads models in GGUF format")
        version = cursor.u32("the version")
        if version not in VERSIONS:
            swapped = struct.unpack(">I", struct.pack("<I", version))[0]
            note = ", written for a big-endian machine" if swapped in VERSIONS else ""
            cursor.fail(f"GGUF version {swapped if note else version}{note} is not supported, only {VERSIONS}")
        tensor_count = cursor.count("a tensor count", MAX_ENTRIES, _FEWEST_TENSOR_BYTES)
        entry_count = cursor.count("a metadata count", MAX_ENTRIES, _FEWEST_ENTRY_BYTES)
        for _ in range(entry_count):
            key = cursor.name("a metadata key")
            if key in self.metadata:
                cursor.fail(f"the metadata key `{key}` appears twice")
            self.metadata[key] = cursor.value(f"the value of `{key}`")
        alignment = self.integer("general.alignment", DEFAULT_ALIGNMENT)
        if alignment < 8 or alignment % 8 or alignment > 1 << 16:
            cursor.fail(f"the alignment {alignment} is not a multiple of 8 between 8 and 65536")
        infos = [self._read_info(cursor) for _ in range(tensor_count)]
        self.header_bytes = cursor.at
        data = -(-cursor.at // alignment) * alignment
        end = len(cursor.view)
        for info in infos:
            if info.offset % alignment:
                cursor.fail(f"tensor `{info.name}` starts at {info.offset}, not a multiple of {alignment}")
            if data + info.offset + info.size > end:
                cursor.fail(f"tensor `{info.name}` of {info.size} bytes at {data + info.offset} ends after the file")
            if info.name in self.tensors:
                cursor.fail(f"tensor `{info.name}` appears twice")
            self.tensors[info.name] = TensorInfo(info.name, info.shape, info.type, data + info.offset, info.size, part)
        ordered = sorted(self.tensors.values(), key=lambda info: info.offset)
        for info, following in zip(ordered, ordered[1:], strict=False):
            if info.offset + info.size > following.offset:  # a small file could claim to be an enormous model
                cursor.fail(f"tensors `{info.name}` and `{following.name}` overlap")

    def _read_parts(self, part: int) -> None:
        """Opens the other files of a split model, where this is the first."""
        count = self.integer("split.count", 0)
        if count <= 1 or part:
            return
        match = _SPLIT_NAME.fullmatch(self.path.name)
        if match is None or int(match[3]) != count or count > MAX_FILES:
            raise ModelFileError(
                f"{self.path.name}: one of {count} files of a model, but it is not called so\n"
                f"hint: the first is `NAME-00001-of-{count:05d}.gguf`, with the others beside it"
            )
        if int(match[2]) != 1 or self.integer("split.no", 0) != 0:
            raise ModelFileError(f"{self.path.name}: not the first file of the model\nhint: open the first one")
        for number in range(2, count + 1):
            other = GGUFFile(self.path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf"), _part=number - 1)
            self._parts.append(other)
            if (other.integer("split.no"), other.integer("split.count")) != (number - 1, count):
                raise ModelFileError(f"{other.path.name}: not file {number} of {count} of the model")
            if twice := sorted(set(other.tensors) & set(self.tensors)):
                raise ModelFileError(f"{other.path.name}: tensor `{twice[0]}` appears twice")
            self.tensors |= other.tensors

    @staticmethod
    def _read_info(cursor: _Cursor) -> TensorInfo:
        name = cursor.name("a tensor name")
        dims = cursor.u32(f"the dimensions of `{name}`")
        if not 1 <= dims <= MAX_DIMS:
            cursor.fail(f"tensor `{name}` has {dims} dimensions, 1 to {MAX_DIMS} are possible")
        shape = tuple(cursor.u64(f"the shape of `{name}`") for _ in range(dims))[::-1]
        if 0 in shape:
            cursor.fail(f"tensor `{name}` has an empty dimension: {shape}")
        type_id = cursor.u32(f"the type of `{name}`")
        kind = TENSOR_TYPES.get(type_id)
        if kind is None:
            known = ", ".join(t.name for t in TENSOR_TYPES.values())
            cursor.fail(f"tensor `{name}` has type id {type_id}\nhint: this engine reads {known}")
        if shape[-1] % kind.block_size:
            cursor.fail(f"tensor `{name}` has rows of {shape[-1]} elements, not whole blocks of {kind.block_size}")
        size = math.prod(shape) // kind.block_size * kind.block_bytes
        return TensorInfo(name, shape, kind, cursor.u64(f"the offset of `{name}`"), size)

    def raw(self, name: str) -> memoryview:
        """The stored bytes of a tensor, not copied."""
        info = self.tensor(name)
        return self._parts[info.part]._view[info.offset : info.offset + info.size]

    def headers(self) -> list[tuple[Path, memoryview]]:
        """Each file of the model, and what stands in it before the tensors."""
        return [(part.path, part._view[: part.header_bytes]) for part in self._parts]

    def tensor(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise ModelFileError(f"{self.path.name}: the tensor `{name}` is missing")
        return self.tensors[name]

    def close(self) -> None:
        for part in self._parts[1:]:
            part.close()
        # A tensor may still look into the file: then the mapping ends with the last of them.
        with contextlib.suppress(BufferError):
            if hasattr(self, "_view"):
                self._view.release()
            self._map.close()

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Typed access to metadata: a missing key without a default, or a value of another type, is a `ModelFileError`.

    def _get(self, key: str, default: Any, kinds: type | tuple[type, ...], name: str) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelFileError(f"{self.path.name}: the metadata key `{key}` is missing")
        # bool is an int to Python, but not to the format
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise ModelFileError(f"{self.path.name}: the metadata key `{key}` is not {name}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self._get(key, default, int, "an integer"))

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._get(key, default, (int, float), "a number"))

    def flag(self, key: str, default: bool | None = None) -> bool:
        return bool(self._get(key, default, bool, "a boolean"))

    def string(self, key: str, default: str | None = None) -> str:
        return str(self._get(key, default, str, "a string"))

    def strings(self, key: str) -> list[str]:
        return list(self._get(key, None, list, "an array of strings"))

    def integers(self, key: str) -> list[int]:
        values = self._get(key, None, np.ndarray, "an array of integers")
        if values.dtype.kind not in "iu":
            raise ModelFileError(f"{self.path.name}: the metadata key `{key}` is not an array of integers")
        return [int(v) for v in values.tolist()]
