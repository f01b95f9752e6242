"""The operations of the decoder in C++ for one machine's processor, with nothing but the C library and threads.

`library` builds and loads them, `check` compares them with `kernels.reference`, `choice` measures which of several ways
is fastest here, `backend` is what a model runs on. Whoever cannot have them gets `KernelsUnavailable`, and the
reference serves instead.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from kernels.cpu.library import KernelsUnavailable, Library

if TYPE_CHECKING:
    from kernels.dispatch import Backend

__all__ = ["KernelsUnavailable", "Library", "open_backend", "open_library"]


def open_library(folder: Path) -> Library:
    """Built if need be, loaded, and compared with the reference once. Raises `KernelsUnavailable`."""
    from kernels.cpu import check, library

    loaded = library.load(folder)
    check.pass_once(loaded)
    return loaded


def open_backend(folder: Path, threads: int) -> "Backend":
    """The kernels on a team of `threads`. Raises `KernelsUnavailable`."""
    from kernels.cpu import backend  # torch comes with it

    return backend.make(open_library(folder), threads)
