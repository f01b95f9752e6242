"""A model as a folder in Hugging Face's layout: `config.json`, and tensors in one or more safetensors files.

Formats: https://github.com/safetensors/safetensors (its library parses the headers and maps the files) and, for models
in several files, `model.safetensors.index.json` with a `weight_map` from tensor names to file names. Nothing in a
folder is executed: pickled weights (`.bin`, `.pt`) and Python files are not opened. A damaged or hostile folder ends in
`ModelFileError`, in memory bounded by the limits below.
"""

import json
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from local_engine.errors import ModelFileError

MAX_JSON = 1 << 26  # bytes of one JSON file: a tokenizer of 250,000 tokens takes 20 million
MAX_HEADER = 1 << 25  # bytes of the header of one safetensors file: 36,000 tensors take 4 million
MAX_FILES = 1000
MAX_DIMS = 8

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class FolderTensor:
    """One tensor: which file it is in, its shape, and its element type: `F32`, `F16` or `BF16`."""

    name: str
    file: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.kind]


def read_json(path: Path) -> Any:
    """A JSON file of a model folder. Raises `ModelFileError` when it is absent, too large, or not JSON."""
    try:
        if not path.is_file():
            raise ModelFileError(f"cannot read `{path}`: there is no such file")
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be a path
        raise ModelFileError(f"cannot read `{path}`: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_JSON:
        raise ModelFileError(f"{path.name}: longer than {MAX_JSON} bytes")

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"`{constant}` is not a JSON number")

    try:
        return json.loads(data, parse_constant=refuse)
    except RecursionError as error:
        raise ModelFileError(f"{path.name}: nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, and integers of thousands of digits
        raise ModelFileError(f"{path.name}: not valid JSON: {error}") from error


class SafetensorsFolder:
    """The tensors and the configuration of a model folder; a context manager.

    `config` is what `config.json` says, `tensors` maps names to `FolderTensor`. Raises `ModelFileError`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        values = read_json(self.path / "config.json")
        if not isinstance(values, dict):
            raise ModelFileError("config.json: not a JSON object")
        self.config: dict[str, Any] = values
        self.tensors: dict[str, FolderTensor] = {}
        self._handles: dict[str, Any] = {}
        self._stack = ExitStack()
        try:
            index = self._read_index()
            for name in sorted(set(index.values())) if index is not None else [WHOLE]:
                self._open(name)
            if index is not None:
                self._compare(index)
        except BaseException:
            self.close()
            raise

    def _read_index(self) -> dict[str, str] | None:
        """Tensor name -> file name; None where the model is one file."""
        if (self.path / WHOLE).is_file():
            return None
        if not (self.path / INDEX).is_file():
            if any(next(self.path.glob(pattern), None) for pattern in _PICKLED):
                raise ModelFileError(
                    f"{self.path.name}: the weights are pickled, and unpickling runs what is in them\n"
                    "hint: convert them to safetensors, or take a repository that has them"
                )
            raise ModelFileError(f"{self.path.name}: neither `{WHOLE}` nor `{INDEX}` is in the folder")
        content = read_json(self.path / INDEX)
        index = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
            raise ModelFileError(f"{INDEX}: `weight_map` is not a map from tensor names to file names")
        names = set(index.values())
        if len(names) > MAX_FILES:
            raise ModelFileError(f"{INDEX}: {len(names)} files, at most {MAX_FILES} are allowed")
        for name in names:
            if not name.endswith(".safetensors") or name != Path(name).name or not name.isprintable():
                raise ModelFileError(
                    f"{INDEX}: {ascii(name[:200])} is not the name of a safetensors file in the folder"
                )
        return index

    def _open(self, file: str) -> None:
        path = self.path / file
        try:
            if not path.is_file():
                raise ModelFileError(f"{file}: there is no such file\nhint: the download may not be complete")
            with path.open("rb") as raw:
                length = int.from_bytes(raw.read(8), "little")
            if length > MAX_HEADER:
                raise ModelFileError(f"{file}: a header of {length} bytes, at most {MAX_HEADER} are allowed")
            handle = self._stack.enter_context(safe_open(path, framework="pt"))
            self._handles[file] = handle
            for name in handle.keys():
                self._add(handle, file, name)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(
                f"{file}: not a whole safetensors file: {error}\nhint: the download may not be complete"
            ) from error

    def _add(self, handle: Any, file: str, name: str) -> None:
        if not name.isprintable():  # it would stand in a message
            raise ModelFileError(f"{file}: a tensor is called {ascii(name[:200])}")
        part = handle.get_slice(name)
        kind, shape = str(part.get_dtype()), tuple(part.get_shape())
        if kind not in ELEMENT_BYTES:
            raise ModelFileError(
                f"{file}: tensor `{name[:200]}` is stored as {kind}\n"
                f"hint: this engine reads {', '.join(ELEMENT_BYTES)}, and GGUF files for what is quantised"
            )
        if not 1 <= len(shape) <= MAX_DIMS or 0 in shape:
            raise ModelFileError(f"{file}: tensor `{name[:200]}` has the shape {shape[:MAX_DIMS]}")
        if name in self.tensors:
            raise ModelFileError(f"{file}: tensor `{name[:200]}` is in `{self.tensors[name].file}` too")
        self.tensors[name] = FolderTensor(name, file, shape, kind)

    def _compare(self, index: dict[str, str]) -> None:
        """An index that names tensors that are not there is one of another model, or a shard was replaced."""
        for name, file in index.items():
            if name not in self.tensors or self.tensors[name].file != file:
                raise ModelFileError(f"{INDEX}: tensor {ascii(name[:200])} is not in `{file}`")

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored: a view of the mapped file, whose changes do not reach the file."""
        tensor = self.tensors[name]
        try:
            part: Tensor = self._handles[tensor.file].get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise ModelFileError(f"{tensor.file}: tensor `{name[:200]}` cannot be read: {error}") from error
        return part

    def headers(self) -> list[tuple[Path, bytes]]:
        """Each file that the weights depend on, and what stands in it before the tensors (of JSON: all)."""
        found = []
        for name in ("config.json", INDEX, *sorted(self._handles)):
            path = self.path / name
            if path.is_file():
                with path.open("rb") as file:
                    size = MAX_JSON
                    if name.endswith(".safetensors"):
                        size = min(MAX_HEADER, int.from_bytes(file.read(8), "little"))
                    found.append((path, file.read(size)))
        return found

    def close(self) -> None:
        self._handles.clear()
        self._stack.close()

    def __enter__(self) -> "SafetensorsFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
