"""Memory for the tiles of a model: on huge pages where the system has them.

A token reads all of it. With pages of 4 KB the processor looks up a page for every few hundred multiplications and
cannot fetch ahead across their borders: reading the weights takes a quarter longer (`bench/LOG.md`).
"""

import ctypes
import mmap

import torch
from torch import Tensor

LINE = 64  # bytes of a cache line
HUGE_PAGE = 2 << 20
CHUNK = 64 << 20  # bytes asked of the system at once; what is not used yet costs no memory


class Arena:
    """Memory that is given out piece by piece, and goes back to the system with the last tensor that lies in it."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """`size` bytes [size] uint8, from the beginning of a cache line on. Raises `MemoryError`."""
        if size > len(self._rest):
            self._rest = _chunk(max(size, CHUNK))
        found, self._rest = self._rest[:size], self._rest[-(-size // LINE) * LINE :]
        return found


def _chunk(size: int) -> Tensor:
    try:
        memory = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes of weights: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a system without them has ordinary pages
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
    return torch.frombuffer(memory, dtype=torch.uint8)[start : start + -(-size // LINE) * LINE]  # which keeps it
