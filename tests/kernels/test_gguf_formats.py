"""Stored blocks of every GGUF format: equal to the `gguf` package's reading, bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from kernels import gguf_formats
from kernels.gguf_formats import PLAIN, QUANTISED, dequantise, split

KINDS = gguf.GGMLQuantizationType
# where the half-precision scales and minima of a block stand
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def blocks(kind: str, rows: int, per_row: int, scales: np.ndarray | None = None) -> np.ndarray:
    """Random bytes, with finite scales: `scales` where given, else of any sign and size, subnormal ones too."""
    rng = np.random.default_rng(len(kind) + ord(kind[1]))
    size = QUANTISED[kind][0]
    raw = rng.integers(0, 256, (rows * per_row, size), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        if scales is None:
            raw[:, at + 1] &= 0xFB  # an exponent that is not all ones
        else:
            raw[:, at : at + 2] = np.resize(scales, raw.shape[0]).view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, -1)


def ours(kind: str, raw: np.ndarray) -> np.ndarray:
    out = torch.full((raw.shape[0], expected(kind, raw).shape[1]), torch.nan)
    dequantise(kind, torch.from_numpy(raw), out)
    return out.numpy()


def expected(kind: str, raw: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(raw, KINDS[kind])


def test_every_format_that_is_asked_for_is_read() -> None:
    assert {*QUANTISED, *PLAIN} == {
        *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"),
    }


@pytest.mark.parametrize("kind", QUANTISED)
def test_any_block_content_is_read_bit_for_bit(kind: str) -> None:
    raw = blocks(kind, rows=64, per_row=8)
    assert ours(kind, raw).tobytes() == expected(kind, raw).tobytes()


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("scale", [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, -1.0, 65504.0, -65504.0])
def test_scales_at_the_edges_are_read_bit_for_bit(kind: str, scale: float) -> None:
    raw = blocks(kind, rows=2, per_row=4, scales=np.array([scale], dtype=np.float16))
    assert ours(kind, raw).tobytes() == expected(kind, raw).tobytes()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_every_half_precision_number_is_read_bit_for_bit(kind: str) -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).reshape(16, -1)
    out = torch.empty(16, 4096)
    dequantise(kind, torch.from_numpy(numbers.view(np.uint8)), out)
    wanted = expected(kind, numbers.view(np.uint8))
    is_number = ~np.isnan(wanted)
    assert np.array_equal(np.isnan(out.numpy()), ~is_number)
    assert out.numpy()[is_number].tobytes() == wanted[is_number].tobytes()


def test_fp32_stays_as_it_is() -> None:
    numbers = torch.randn(3, 5)
    out = torch.empty(3, 5)
    dequantise("F32", numbers.view(torch.uint8), out)
    assert torch.equal(out, numbers)


@pytest.mark.parametrize("kind", QUANTISED)
def test_split_blocks_multiply_out_to_the_same(kind: str) -> None:
    raw = blocks(kind, rows=4, per_row=2)
    groups = split(kind, torch.from_numpy(raw))
    whole = groups.q.float().view(4, -1, groups.group) * groups.scale[:, :, None]
    if groups.minimum is not None:
        whole = whole + groups.minimum[:, :, None]
    assert groups.q.dtype == torch.int8 and groups.group == (16 if kind == "Q6_K" else 32)
    assert np.array_equal(whole.view(4, -1).numpy(), expected(kind, raw))


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_matrix_larger_than_a_chunk_and_columns_of_a_wider_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = blocks(kind, rows=7, per_row=4)
    wanted = expected(kind, raw)
    monkeypatch.setattr(gguf_formats, "CHUNK", wanted.shape[1] * 3)
    assert ours(kind, raw).tobytes() == wanted.tobytes()
    half, out = raw.shape[1] // 2, torch.empty(7, wanted.shape[1] // 2)
    dequantise(kind, torch.from_numpy(raw)[:, half:], out)  # not contiguous
    assert np.array_equal(out.numpy(), wanted[:, wanted.shape[1] // 2 :])
