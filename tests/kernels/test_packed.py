"""Formats of quantised matrices: what they promise for any weights, and that stored blocks are taken over exactly."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.packed import (
    Format,
    Packed,
    Stack,
    layout,
    nbytes,
    num_columns,
    num_rows,
    pack,
    rows,
    take_over,
    unpack,
)

SYMMETRIC = [
    Format("int8", 8, 32),
    Format("int8", 8, 128),
    Format("int8", 8, 0),
    Format("int4", 4, 16),
    Format("int4", 4, 32),
    Format("int4", 4, 64),
    Format("int4", 4, 0),
    Format("int3", 3, 32),
    Format("int3", 3, 64),
]
RANGES = [
    Format("int8", 8, 32, True),
    Format("int4", 4, 32, True),
    Format("int4", 4, 64, True),
    Format("int3", 3, 32, True),
]
FLOATS = [Format("fp8", 8, 0), Format("fp8", 8, 64)]
EVERY = SYMMETRIC + RANGES + FLOATS
STORED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]


def random(count: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def nearest(weight: Tensor, format: Format) -> Tensor:
    """Plain rounding, with the scale that the group's largest weight gives, or its range."""
    tile = format.group or weight.shape[1]
    x = weight.view(len(weight), -1, tile).double()
    if format.zeros:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        step = (high - low) / (2**format.bits - 1)
        return (((x - low) / step).nan_to_num().round() * step + low).view(weight.shape)
    scale = x.abs().amax(-1, keepdim=True) / (2 ** (format.bits - 1) - 1)
    return ((x / scale).nan_to_num().round() * scale).view(weight.shape)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Matrices of very different rows: ordinary, tiny, huge, sparse, constant, zero, down to subnormal numbers."""
    count, columns = draw(st.integers(1, 5)), draw(st.sampled_from([128, 256]))
    weight = random(count, columns, draw(st.integers(0, 1 << 30)))
    for row in range(count):
        match draw(st.sampled_from(["plain", "scaled", "sparse", "constant", "zero", "steps"])):
            case "scaled":
                weight[row] *= 2.0 ** draw(st.integers(-145, 40))
            case "sparse":
                weight[row, draw(st.integers(1, 16)) :] = 0
            case "constant":
                weight[row] = draw(st.integers(-4096, 4096).map(lambda n: n / 1024))
            case "zero":
                weight[row] = 0
            case "steps":
                weight[row] = (weight[row] * 20).round() * draw(st.integers(1, 1024).map(lambda n: n / 1024))
    return weight


@pytest.mark.parametrize("format", EVERY, ids=str)
@settings(max_examples=5, deadline=None)
@given(weight=weights())
@example(weight=torch.full((1, 128), 1e-45))
@example(weight=torch.cat((torch.full((1, 128), 1e-45), torch.full((1, 128), 2.0**49))))
def test_what_was_packed_is_found_again(format: Format, weight: Tensor) -> None:
    packed = pack(weight, format)
    near = unpack(packed)
    assert near.shape == weight.shape and bool(torch.isfinite(near).all())
    assert not near[weight.abs().amax(-1) == 0].any()
    again = unpack(pack(near, format))
    if not format.zeros:
        assert torch.equal(again, near)
    else:
        # Where the first search left the ends of the range unused, the second finds a grid of its own on what is left;
        # nothing moves by more than rounding to it. A range's end is a product and a sum, rounded themselves.
        step = packed.scale.float().repeat_interleave(format.group, dim=1)
        assert bool(((again - near).abs() <= 0.51 * step + 2e-6 * near.abs() + 2e-7 * weight.abs().max()).all())


@pytest.mark.parametrize("format", EVERY, ids=str)
@settings(max_examples=5, deadline=None)
@given(weight=weights())
def test_the_layout_is_the_declared_one(format: Format, weight: Tensor) -> None:
    packed = pack(weight, format)
    tensors = {"data": packed.data, "scale": packed.scale, "minimum": packed.minimum}
    found = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items() if t is not None}
    assert found == layout(format, packed.shape, packed.scale.dtype)
    assert nbytes(packed) == sum(t.numel() * t.element_size() for t in tensors.values() if t is not None)
    if packed.scale.dtype == torch.float16:
        assert nbytes(packed) * 8 == round(weight.numel() * format.bits_per_weight(weight.shape[1]))
    if format.name == "fp8":
        assert not bool(((packed.data & 0x7F) == 0x7F).any()), "the code of NaN"


@pytest.mark.parametrize("format", SYMMETRIC + RANGES, ids=str)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1 << 30), spread=st.floats(0.1, 4), outliers=st.integers(0, 4))
def test_no_worse_than_rounding_to_the_largest(format: Format, seed: int, spread: float, outliers: int) -> None:
    weight = random(32, 128, seed) * spread
    weight[:, :outliers] *= 8
    kept = float((unpack(pack(weight, format)) - weight).double().square().sum())
    plain = float((nearest(weight, format) - weight).square().sum())
    assert kept <= plain * 1.01 + 1e-12  # another scale, another luck: of many numbers little is left of it


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_numbers_on_the_grid_are_exact(format: Format) -> None:
    generator = torch.Generator().manual_seed(3)
    tile = format.group or 128
    scale = (torch.rand(6, 256 // tile if format.group else 2, 1, generator=generator) + 0.1).half().float() / 8
    if format.name == "fp8":
        codes = torch.randint(0, 127, (6, len(scale[0]), tile), generator=generator, dtype=torch.uint8)
        codes[..., 0] = 126  # 448
        weight = codes.view(torch.float8_e4m3fn).float() * scale
    elif format.zeros:
        codes = torch.randint(0, 2**format.bits, (6, len(scale[0]), tile), generator=generator)
        codes[..., 0], codes[..., 1] = 0, 2**format.bits - 1
        weight = codes * scale + (torch.rand(scale.shape, generator=generator) - 0.5).half().float()
    else:
        top = 2 ** (format.bits - 1)
        codes = torch.randint(1 - top, top, (6, len(scale[0]), tile), generator=generator)
        codes[..., 0] = top - 1
        weight = codes * scale
    weight = weight.reshape(6, -1) if format.group else weight.reshape(12, 128)
    near = unpack(pack(weight, format))
    assert torch.allclose(near, weight, rtol=0, atol=1e-7) if format.zeros else torch.equal(near, weight)


@pytest.mark.parametrize("format", [Format("int4", 4, 32), Format("int3", 3, 32)], ids=str)
@pytest.mark.parametrize("largest", range(1, 8))
def test_grids_that_leave_levels_unused_are_exact_too(format: Format, largest: int) -> None:
    top = min(largest, 2 ** (format.bits - 1) - 1)
    codes = torch.randint(-top, top + 1, (8, 64), generator=torch.Generator().manual_seed(largest))
    weight = codes * 0.0625
    assert torch.equal(unpack(pack(weight, format)), weight)


def test_bits_lie_where_the_docstring_says() -> None:
    codes = torch.arange(32) % 16
    four = pack((codes - 8.0)[None], Format("int4", 4, 32))
    assert float(four.scale.abs()) == 1.0
    shown = four.data[0] if float(four.scale) > 0 else 16 - four.data[0]
    assert shown[:4].tolist() == [(c | c << 4) for c in (0, 1, 2, 3)]
    halves = Packed(
        Format("int4", 4, 4), (1, 4), torch.tensor([[0x2 | 0xF << 4, 0x8 | 0x0 << 4]]).byte(), torch.ones(1, 1)
    )
    assert unpack(halves).tolist() == [[-6.0, 0.0, 7.0, -8.0]]
    data = torch.tensor([[0b11_10_01_00, 0b00_00_00_11, 0b1000_0010]], dtype=torch.uint8)
    three = Packed(Format("int3", 3, 8, True), (1, 8), data, torch.ones(1, 1), torch.zeros(1, 1))
    # low bits: byte 0 holds weights 0, 2, 4, 6; byte 1 weights 1, 3, 5, 7; the third bits are weights 1 and 7
    assert unpack(three).tolist() == [[0.0, 3.0 + 4, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0 + 4]]


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    weight = random(64, 64, 5)
    importance = torch.ones(64)
    importance[::8] = 100.0
    for format in (Format("int4", 4, 32), Format("int4", 4, 32, True), Format("int3", 3, 32)):
        plain, weighted = (unpack(pack(weight, format, i)) - weight for i in (None, importance))
        assert (weighted.square() * importance).sum() < 0.8 * (plain.square() * importance).sum()
        assert weighted.square().sum() > plain.square().sum()


def test_columns_without_inputs_keep_a_share() -> None:
    weight = random(8, 64, 6)
    importance = torch.zeros(64)
    importance[0] = 1.0
    near = unpack(pack(weight, Format("int4", 4, 64), importance))
    assert (near - weight).square().mean() < 0.2 * weight.square().mean()
    assert torch.equal(
        unpack(pack(weight, Format("int4", 4, 64), torch.zeros(64))), unpack(pack(weight, Format("int4", 4, 64)))
    )


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_type_and_views(kind: torch.dtype) -> None:
    weight = random(64, 32, 7).to(kind).t()
    assert torch.equal(
        unpack(pack(weight, Format("int8", 8, 32))), unpack(pack(weight.float().contiguous(), Format("int8", 8, 32)))
    )


@pytest.mark.parametrize(
    ("weight", "format", "importance", "said"),
    [
        (torch.zeros(2, 48), Format("int8", 8, 32), None, "groups of 32 do not divide rows of 48"),
        (torch.zeros(2, 0), Format("int8", 8, 0), None, "do not divide rows of 0"),
        (torch.zeros(2, 36), Format("int3", 3, 0), None, "int3 packs 8 weights at once, not 36"),
        (torch.zeros(2, 33), Format("int4", 4, 0), None, "int4 packs 2 weights at once"),
        (torch.zeros(32), Format("int8", 8, 32), None, "`weight`: a matrix of floating point"),
        (torch.zeros(2, 32, dtype=torch.int32), Format("int8", 8, 32), None, "torch.int32"),
        (torch.full((1, 32), float("nan")), Format("int8", 8, 32), None, "`weight`: every value must be finite"),
        (torch.full((1, 32), float("inf")), Format("fp8", 8, 0), None, "`weight`: every value must be finite"),
        (torch.full((1, 32), 1e30), Format("int4", 4, 32), None, "`weight`: every value must be finite"),
        (torch.zeros(2, 32), Format("int8", 8, 32), torch.ones(31), "`importance`: 32 finite numbers"),
        (torch.zeros(2, 32), Format("int8", 8, 32), -torch.ones(32), "`importance`: 32 finite numbers"),
        (torch.zeros(2, 32), Format("int8", 8, 32), torch.full((32,), float("nan")), "`importance`: 32 finite"),
    ],
)
def test_what_cannot_be_packed(weight: Tensor, format: Format, importance: Tensor | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pack(weight, format, importance)


def test_no_rows() -> None:
    for format in EVERY:
        assert unpack(pack(torch.zeros(0, 128), format)).shape == (0, 128)


def test_rows_of_every_kind_of_matrix() -> None:
    weight = random(12, 64, 8)
    parts = (weight[:3], pack(weight[3:8], Format("int4", 4, 32, True)), pack(weight[8:], Format("int3", 3, 32)))
    stack = Stack(parts)
    whole = unpack(stack)
    assert num_rows(stack) == 12 and num_columns(stack) == 64
    assert nbytes(stack) == 3 * 64 * 4 + nbytes(parts[1]) + nbytes(parts[2])
    for matrix in (weight, parts[1], stack):
        count, full = num_rows(matrix), unpack(matrix)
        for start in range(count + 1):
            for stop in range(start, count + 1):
                assert torch.equal(unpack(rows(matrix, start, stop)), full[start:stop])
    assert isinstance(rows(stack, 3, 8), Packed), "one part needs no stack"
    assert torch.equal(whole[:3], weight[:3])
    for start, stop in ((-1, 3), (4, 3), (0, 13)):
        with pytest.raises(ValueError, match="rows"):
            rows(stack, start, stop)


def blocks(kind: str, count: int, columns: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random stored bytes whose scales are finite."""
    type_ = gguf.GGMLQuantizationType[kind]
    size, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (count * columns // size, block_bytes), dtype=np.uint8)
    halves = {"Q4_1": 2, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2}.get(kind, 1)
    numbers = generator.normal(0, 1, (len(raw), halves)) * 10.0 ** generator.integers(-7, 3, (len(raw), halves))
    view = numbers.astype(np.float16).view(np.uint8)
    if kind == "Q6_K":
        raw[:, -2:] = view
    else:
        raw[:, : 2 * halves] = view
    return raw.reshape(count, -1)


@pytest.mark.parametrize("kind", STORED)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 9))
def test_stored_blocks_are_taken_over_bit_by_bit(kind: str, seed: int, count: int) -> None:
    raw = blocks(kind, count, 512, seed)
    packed = take_over(kind, torch.from_numpy(raw), (count, 512))
    assert packed is not None
    oracle = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float32)
    assert np.array_equal(unpack(packed).numpy().view(np.uint32), oracle.view(np.uint32))
    tensors = {"data": packed.data, "scale": packed.scale, "minimum": packed.minimum}
    found = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items() if t is not None}
    assert found == layout(packed.format, packed.shape, packed.scale.dtype)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_simple_kinds_take_no_more_bytes_than_the_file_and_keep_nothing_of_it(kind: str) -> None:
    raw = torch.from_numpy(blocks(kind, 4, 128, 1))
    packed = take_over(kind, raw, (4, 128))
    assert packed is not None and nbytes(packed) == raw.numel()
    before = unpack(packed)
    raw.zero_()
    assert torch.equal(unpack(packed), before)


def test_kinds_that_are_not_ours() -> None:
    assert take_over("F16", torch.zeros(2, 128, dtype=torch.uint8), (2, 64)) is None
    assert take_over("Q2_K", torch.zeros(2, 84, dtype=torch.uint8), (2, 256)) is None


@pytest.mark.parametrize("kind", STORED)
def test_stored_bytes_that_are_none(kind: str) -> None:
    raw = torch.from_numpy(blocks(kind, 2, 512, 2))
    for broken, shape in ((raw[:1], (2, 512)), (raw[:, :-1], (2, 512)), (raw, (2, 256)), (raw, (2, 1024))):
        with pytest.raises(ValueError, match="`raw`"):
            take_over(kind, broken, shape)
    hostile = raw.clone()
    at = raw.shape[1] - 2 if kind == "Q6_K" else 0
    hostile[0, at : at + 2] = torch.tensor([0x00, 0x7C], dtype=torch.uint8)  # infinity
    with pytest.raises(ValueError, match="not finite"):
        take_over(kind, hostile, (2, 512))
