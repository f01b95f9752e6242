"""Attention and rotation in C++, called as their twins in `kernels.reference`; and the structures of cpu.h for them.

Dim letters: T tokens, H query heads, K key/value heads, d head width, S sequences.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import reference

WIDTHS = range(8, 257, 8)  # of heads
KV_TYPES = {torch.float32: 0, torch.float16: 1, torch.int8: 2}

Pointer = ctypes.c_void_p
Int32, Int64, Float = ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class KV(ctypes.Structure):
    """Keys and values of one layer."""

    _fields_ = (
        ("memory", Pointer),  # [2K, blocks, block size, d]
        ("scales", Pointer),  # [2K, blocks, block size], int8 only
        ("num_blocks", Int64),
        ("block_size", Int32),
        ("type", Int32),
    )

    @classmethod
    def of(cls, memory: Tensor, scales: Tensor | None) -> "KV":
        _, blocks, size, _ = memory.shape
        return cls(
            memory.data_ptr(), None if scales is None else scales.data_ptr(), blocks, size, KV_TYPES[memory.dtype]
        )


class Heads(ctypes.Structure):
    """Those of one layer."""

    _fields_ = (
        ("queries", Int32),
        ("keys", Int32),
        ("width", Int32),
        ("window", Int32),  # 0: none
        ("turns", Int32),
        ("eps", Float),
        ("query_norm", Pointer),  # [d]
        ("key_norm", Pointer),  # [d]
    )


class Batch(ctypes.Structure):
    """The tokens of a step."""

    _fields_ = (
        ("tokens", Int32),
        ("sequences", Int32),
        ("ids", Pointer),  # int32 [T]
        ("positions", Pointer),  # int32 [T]
        ("slots", Pointer),  # int64 [T]
        ("starts", Pointer),  # int32 [S + 1]
        ("lengths", Pointer),  # int32 [S]
        ("tables", Pointer),  # int32
        ("table_starts", Pointer),  # int32 [S + 1]
        ("cos", Pointer),  # [positions, d / 2]
        ("sin", Pointer),
    )


SIGNATURES = {
    "hatchway_attention": (
        ctypes.c_int,
        (Pointer, Pointer, Int64, Pointer, ctypes.POINTER(Batch), ctypes.POINTER(Heads), ctypes.POINTER(KV)),
    ),
    "hatchway_place": (None, (Pointer, ctypes.POINTER(Batch), ctypes.POINTER(Heads), ctypes.POINTER(KV))),
    "hatchway_rope": (None, (Pointer, Pointer, Pointer, Int64, Int64, Int64, Pointer)),
}


class Attention:
    """`functions`: the library with `SIGNATURES` declared; `team`: what `hatchway_start` gave, kept by the caller."""

    def __init__(self, functions: ctypes.CDLL, team: int) -> None:
        self._functions = functions
        self._team = team

    def paged_attention(
        self,
        query: Tensor,
        memory: Tensor,
        scales: Tensor | None,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Tensor],
        window: int | None = None,
    ) -> Tensor:
        """As `reference.paged_attention`, which answers itself where a head has a width that is not among `WIDTHS`.

        Raises `ValueError` for a batch that does not fit the memory.
        """
        tokens, heads, width = query.shape
        kept_heads, blocks, size, _ = memory.shape
        if width not in WIDTHS or query.dtype != torch.float32:
            return reference.paged_attention(query, memory, scales, starts, lengths, tables, window)
        if query.stride(2) != 1 or query.stride(1) != width:
            query = query.contiguous()
        assert memory.is_contiguous() and (scales is None or scales.is_contiguous()), "the memory has gaps"
        flat = torch.cat([*tables, torch.zeros(1, dtype=torch.long)]).int()  # one more, for a batch of nothing
        if int(flat.min()) < 0 or int(flat.max()) >= blocks:
            raise ValueError(f"a block that is not among the {blocks} of the memory")
        ends = [0]
        for table, length, start, end in zip(tables, lengths, starts[:-1], starts[1:], strict=True):
            if not 0 <= end - start <= length <= len(table) * size:
                raise ValueError(f"{end - start} tokens of {length} do not fit {len(table)} blocks of {size}")
            ends.append(ends[-1] + len(table))
        if starts[0] != 0 or starts[-1] != tokens:
            raise ValueError(f"{tokens} rows do not fit sequences that take {starts[0]} .. {starts[-1]}")
        numbers = torch.tensor([*starts, *lengths, *ends], dtype=torch.int32)
        count, step = len(lengths), numbers.element_size()
        at = numbers.data_ptr()
        batch = Batch(
            tokens=tokens,
            sequences=count,
            starts=at,
            lengths=at + (count + 1) * step,
            tables=flat.data_ptr(),
            table_starts=at + (2 * count + 1) * step,
        )
        layer = Heads(queries=heads, keys=kept_heads // 2, width=width, window=window or 0)
        mixed = torch.empty(tokens, heads, width)
        status = self._functions.hatchway_attention(
            self._team, query.data_ptr(), query.stride(0), mixed.data_ptr(), batch, layer, KV.of(memory, scales)
        )
        if status != 0:
            raise MemoryError("no memory for the attention of a step")
        return mixed

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """As `reference.rope`."""
        tokens, heads, width = x.shape
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        turned = torch.empty_like(x)
        self._functions.hatchway_rope(
            x.data_ptr(), cos.data_ptr(), sin.data_ptr(), tokens, heads, width, turned.data_ptr()
        )
        return turned
