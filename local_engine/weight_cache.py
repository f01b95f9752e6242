"""Quantised weights kept between starts, so that the search for scales is made once.

One safetensors file for each checkpoint, scheme and share of the model. Only what was quantised here is in it: what a
file stores in a format of ours is read from there as fast. A cache is never needed: one that is absent, damaged, of
another model or of another owner is passed over with one line in the log, and written again.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kernels.packed import LAYOUT_VERSION, Format, Matrix, Packed, Prepared, Stack, layout, nbytes
from local_engine.files.checkpoint import Stored
from local_engine.files.replacement import replacing
from local_engine.parallel import Shard
from local_engine.quantisation import Quantiser

log = logging.getLogger(__name__)

LIMIT = 32 << 30  # bytes of all files together; the ones unused for longest go first
ABANDONED_SECONDS = 24 * 3600.0  # after which another process's unfinished file is rubbish
SUFFIX = ".weights.safetensors"


class CachedQuantiser:
    """A `Quantiser` that looks into the cache first. Call `save` when all matrices are loaded, `close` in any case."""

    def __init__(
        self,
        quantiser: Quantiser,
        folder: Path | None,
        fingerprint: str,
        shard: Shard | None = None,
        limit: int = LIMIT,
    ) -> None:
        shard = shard or Shard()
        identity = [LAYOUT_VERSION, fingerprint, quantiser.key, shard.rank, shard.size, shard.experts]
        self.quantiser = quantiser
        self.path = (
            None if folder is None else folder / (hashlib.sha256(repr(identity).encode()).hexdigest()[:32] + SUFFIX)
        )
        self.limit = limit
        self.hits = 0
        self._made: dict[str, Matrix] = {}  # quantised in this run; with the hits, all that belongs into the file
        self._found: dict[str, Matrix] = {}
        self._file = None if self.path is None else _opened(self.path)

    def __call__(self, name: str, stored: Stored) -> Matrix:
        if self.path is None or self.quantiser.keeps(stored.kind):
            return self.quantiser(name, stored)
        key = f"{name} {stored.shape[0]}x{stored.shape[1]}"  # a tied output's share goes by the embedding's name too
        if self._file is not None:
            try:
                matrix = self._file.read(key, stored.shape)
            except (ValueError, SafetensorError) as error:
                self._pass_over(error)
            else:
                if matrix is not None:
                    self.hits += 1
                    self._found[key] = matrix
                    return matrix
        matrix = self.quantiser(name, stored)
        self._made[key] = matrix
        return matrix

    def save(self) -> None:
        """Writes the file if anything was quantised in this run. A failure is logged: the engine runs without."""
        if self.path is None or not self._made:
            return
        matrices = {**self._found, **self._made}
        try:
            if _write(self.path, matrices, self.limit):
                _prune(self.path, self.limit)
        except (OSError, SafetensorError) as error:
            log.warning("quantised weights are not kept: %s", error)

    def close(self) -> None:
        self._made, self._found, self._file = {}, {}, None

    def _pass_over(self, error: Exception) -> None:
        assert self.path is not None
        log.warning("the weight cache `%s` is not used, it is written again: %s", self.path.name, error)
        self._file = None


class _File:
    """A cache file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        tensors: Any = safe_open(path, framework="pt")  # untyped
        self.tensors = tensors
        document = json.loads((tensors.metadata() or {})["matrices"])
        self.matrices: dict[str, list[dict[str, Any]]] = dict(document)

    def read(self, name: str, shape: tuple[int, int]) -> Matrix | None:
        """None where the file has no such matrix. Raises `ValueError` where it is not what was written."""
        if name not in self.matrices:
            return None
        try:
            parts = [self._part(f"{name}#{index}", row) for index, row in enumerate(self.matrices[name])]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`{name}` is described wrongly: {type(error).__name__} {error}") from error
        if sum(part.shape[0] for part in parts) != shape[0] or any(part.shape[1] != shape[1] for part in parts):
            raise ValueError(f"`{name}` has another shape than {shape}")
        return parts[0] if len(parts) == 1 else Stack(tuple(parts))

    def _part(self, name: str, row: dict[str, Any]) -> Tensor | Packed:
        rows, columns = (int(n) for n in row["shape"])
        format = None if row["format"] is None else Format(**row["format"])
        found = {key: self._tensor(f"{name}.{key}", int(crc)) for key, crc in row["crc"].items()}
        types = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in found.items()}
        if format is None:
            if types != {"data": (torch.float32, (rows, columns))}:
                raise ValueError(f"`{name}` is no matrix of {rows} x {columns}")
            return found["data"]
        if types != layout(format, (rows, columns), found["scale"].dtype):
            raise ValueError(f"`{name}` is laid out wrongly")
        return Packed(format, (rows, columns), found["data"], found["scale"], found.get("minimum"))

    def _tensor(self, name: str, crc: int) -> Tensor:
        tensor: Tensor = self.tensors.get_tensor(name)
        if _crc(tensor) != crc:
            raise ValueError(f"`{name}` is damaged")
        return tensor


def _opened(path: Path) -> _File | None:
    try:
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError("others may write it")
        file = _File(path)
        os.utime(path)  # used now: the last to be removed
        return file
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("the weight cache `%s` is not used, it is written again: %s", path.name, error or type(error))
        return None


def _write(path: Path, matrices: dict[str, Matrix], limit: int) -> bool:
    """Whether the file was written; not, where it would not fit."""
    size = sum(nbytes(matrix) for matrix in matrices.values())
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if size > limit or size * 1.1 > shutil.disk_usage(path.parent).free:
        log.warning("quantised weights of %d MB are not kept: there is no room for them", size >> 20)
        return False
    tensors: dict[str, Tensor] = {}
    description: dict[str, list[dict[str, Any]]] = {}
    for name, matrix in matrices.items():
        rows = description[name] = []
        assert not isinstance(matrix, Prepared), "what is kept is what no backend has prepared"
        for index, part in enumerate(matrix.parts if isinstance(matrix, Stack) else (matrix,)):
            own = {"data": part} if isinstance(part, Tensor) else {"data": part.data, "scale": part.scale}
            if isinstance(part, Packed) and part.minimum is not None:
                own["minimum"] = part.minimum
            own = {key: tensor.contiguous() for key, tensor in own.items()}
            format = asdict(part.format) if isinstance(part, Packed) else None
            crc = {key: _crc(tensor) for key, tensor in own.items()}
            rows.append({"format": format, "shape": list(part.shape), "crc": crc})
            tensors |= {f"{name}#{index}.{key}": tensor for key, tensor in own.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"matrices": json.dumps(description)})
    return True


def _prune(kept: Path, limit: int) -> None:
    """Removes the files unused for longest until the rest is within the limit, and what others left unfinished."""
    for path in kept.parent.glob(f".*{SUFFIX}.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
    ages: list[tuple[float, int, Path]] = []
    for path in kept.parent.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):
            status = path.stat()
            ages.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in ages)
    for _, size, path in sorted(ages):
        if total <= limit:
            return
        if path != kept:
            path.unlink(missing_ok=True)
            total -= size


def _crc(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
