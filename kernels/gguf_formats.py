"""The storage formats of GGUF files, read in plain torch.

Source: the block structures of https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h and their reading in
ggml-quants.c of the same folder. Every quantised format comes down to the same thing: integers in groups of 32 (Q6_K:
16) consecutive inputs, each group with a scale and, in some formats, a minimum: w = q * scale + minimum. `split` takes
blocks apart that far, and `dequantise` multiplies out. Products and sums round separately, as everyone's readers do: a
fused multiply-add would differ in the last bit.

Notation of the layouts: a block holds consecutive elements of a row; sizes in bytes; numbers are little-endian; `f16`
is IEEE half precision. "Halves" means that a byte holds element i in its low and element i + 16 in its high four bits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 18  # elements taken apart at once: temporary tensors stay small, and in the cache


@dataclass(frozen=True, slots=True)
class Groups:
    """Blocks taken apart. All tensors are new ones; scale and minimum are exact in fp32."""

    q: Tensor  # [N, K] int8
    scale: Tensor  # [N, K / group] fp32
    minimum: Tensor | None  # like `scale`

    @property
    def group(self) -> int:
        return int(self.q.shape[1] // self.scale.shape[1])


PLAIN: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def split(kind: str, raw: Tensor) -> Groups:
    """Stored bytes, uint8 [N, bytes of a row], of a quantised format -> integers [N, K], scales and minima.

    Raises `KeyError` for a format that is not in `QUANTISED`.
    """
    block_bytes, take_apart = QUANTISED[kind]
    rows = raw.shape[0]
    q, scale, minimum = take_apart(raw.reshape(-1, block_bytes))
    return Groups(q.reshape(rows, -1), scale.reshape(rows, -1), None if minimum is None else minimum.reshape(rows, -1))


def dequantise(kind: str, raw: Tensor, out: Tensor) -> None:
    """Stored bytes, uint8 [N, bytes of a row] -> `out`, fp32 [N, K].

    Raises `KeyError` for a format that is neither in `PLAIN` nor in `QUANTISED`.
    """
    if kind in PLAIN:
        out.copy_(raw.contiguous().view(PLAIN[kind]))
        return
    rows = max(1, CHUNK // max(1, out.shape[1]))
    for start in range(0, out.shape[0], rows):
        groups = split(kind, raw[start : start + rows])
        part = out[start : start + rows].view(*groups.scale.shape, groups.group)  # [n, K / group, group]
        part.copy_(groups.q.view(part.shape)).mul_(groups.scale[:, :, None])
        if groups.minimum is not None:
            part.add_(groups.minimum[:, :, None])


def _halves(packed: Tensor) -> Tensor:
    """uint8 [n, 16] -> uint8 [n, 32]: the low four bits of all bytes, then the high ones."""
    return torch.cat((packed & 0x0F, packed >> 4), dim=-1)


def _f16(packed: Tensor) -> Tensor:
    """uint8 [n, 2 * m] -> fp32 [n, m]."""
    return packed.contiguous().view(torch.float16).float()


def _bits(packed: Tensor) -> Tensor:
    """uint8 [n, m] -> uint8 [n, 8 * m] of 0 and 1, lowest bit first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)


_Parts = tuple[Tensor, Tensor, Tensor | None]


def _q8_0(blocks: Tensor) -> _Parts:
    """34: scale f16, 32 x int8."""
    return blocks[:, 2:].contiguous().view(torch.int8), _f16(blocks[:, :2]), None


def _q4_0(blocks: Tensor) -> _Parts:
    """18: scale f16, 16 bytes in halves; the integers are 8 too large."""
    return _halves(blocks[:, 2:]).view(torch.int8) - 8, _f16(blocks[:, :2]), None


def _q4_1(blocks: Tensor) -> _Parts:
    """20: scale f16, minimum f16, 16 bytes in halves."""
    return _halves(blocks[:, 4:]).view(torch.int8), _f16(blocks[:, :2]), _f16(blocks[:, 2:4])


def _q5_0(blocks: Tensor) -> _Parts:
    """22: scale f16, 32 bits (the fifth of each integer, element 0 lowest), 16 bytes in halves; 16 too large."""
    q = _halves(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return q.view(torch.int8) - 16, _f16(blocks[:, :2]), None


def _q5_1(blocks: Tensor) -> _Parts:
    """24: scale f16, minimum f16, 32 bits (the fifth of each integer), 16 bytes in halves."""
    q = _halves(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return q.view(torch.int8), _f16(blocks[:, :2]), _f16(blocks[:, 2:4])


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [n, 12] -> eight scales and eight minima of six bits each, fp32 [n, 8] twice.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their low six bits; bytes 8-11 hold the low four bits of
    scales 4-7 (low half) and of minima 4-7 (high half), whose high two bits are on top of bytes 0-3 and 4-7.
    """
    low_scale, low_minimum, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = torch.cat((low_scale & 0x3F, (rest & 0x0F) | ((low_scale >> 2) & 0x30)), dim=1)
    minimum = torch.cat((low_minimum & 0x3F, (rest >> 4) | ((low_minimum >> 2) & 0x30)), dim=1)
    return scale.float(), minimum.float()


def _k_nibbles(packed: Tensor) -> Tensor:
    """uint8 [n, 128] -> uint8 [n, 8, 32]: each 32 bytes hold a group in their low halves and the next in the high."""
    quarters = packed.view(-1, 4, 32)
    return torch.stack((quarters & 0x0F, quarters >> 4), dim=2).view(-1, 8, 32)


def _q4_k(blocks: Tensor) -> _Parts:
    """144, 256 elements: scale f16, minimum f16, 12 (`_k_scales`), 128 (`_k_nibbles`).

    A group's scale is the block's times its own; its minimum likewise, and is subtracted.
    """
    scale, minimum = _k_scales(blocks[:, 4:16])
    q = _k_nibbles(blocks[:, 16:].contiguous())
    return q.view(torch.int8), _f16(blocks[:, :2]) * scale, -(_f16(blocks[:, 2:4]) * minimum)


def _q5_k(blocks: Tensor) -> _Parts:
    """176, 256 elements: like Q4_K, with 32 bytes before the nibbles: bit g of byte i is the fifth of q[g, i]."""
    scale, minimum = _k_scales(blocks[:, 4:16])
    shifts = torch.arange(8, dtype=torch.uint8)[None, :, None]
    high = (blocks[:, None, 16:48] >> shifts) & 1  # [n, 8, 32]
    q = _k_nibbles(blocks[:, 48:].contiguous()) | (high << 4)
    return q.view(torch.int8), _f16(blocks[:, :2]) * scale, -(_f16(blocks[:, 2:4]) * minimum)


def _q6_k(blocks: Tensor) -> _Parts:
    """210, 256 elements in two halves of 128: 2 x 64 low fours, 2 x 32 high twos, 16 x int8 scales, scale f16.

    Of a half, byte i of the 64 holds elements i (low) and i + 64 (high); byte i of the 32 holds, from the lowest bits
    up, the high twos of elements i, i + 32, i + 64, i + 96. The integers are 32 too large; groups are of 16.
    """
    nibbles = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat((nibbles & 0x0F, nibbles >> 4), dim=2).view(-1, 2, 4, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3  # [n, 2, 4, 32]
    scale = blocks[:, 192:208].contiguous().view(torch.int8).float()  # [n, 16]
    return (low | (high << 4)).view(torch.int8) - 32, _f16(blocks[:, 208:]) * scale, None


# format -> bytes of a block, and how to take blocks [n, bytes] apart
QUANTISED: dict[str, tuple[int, Callable[[Tensor], _Parts]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
