"""Products in C++ against the same matrices expanded, in fp64; and that a row knows nothing of the others."""

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.backend import make
from kernels.cpu.tiles import BLAS, NARROW, WIDE, Tiles
from kernels.dispatch import Backend
from kernels.packed import Format, Matrix, Packed, Stack, pack, take_over, unpack
from local_engine.backend import folder, open_library
from local_engine.config import EngineConfig

FORMATS = [
    Format("int8", 8, 32),
    Format("int8", 8, 32, zeros=True),
    Format("int8", 8, 16),
    Format("int8", 8, 0),
    Format("int4", 4, 32),
    Format("int4", 4, 32, zeros=True),
    Format("int4", 4, 16, zeros=True),
    Format("int4", 4, 64),
    Format("int4", 4, 0),
    Format("int3", 3, 32),
    Format("int3", 3, 16),
    Format("int3", 3, 96, zeros=True),
]
SHAPES = [(48, 96), (37, 192), (5, 96), (16, 1248)]  # whole tiles and not; the last: three panels of columns
COUNTS = (1, 2, 3, 4, 5, 6, 7, 13, 200)  # of rows: every kernel, and more than one block of rows


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def cpu(request: pytest.FixtureRequest) -> Backend:
    return make(open_library(folder(EngineConfig())), request.param)


def rows_of(count: int, columns: int, seed: int = 0) -> Tensor:
    """Some columns far larger than the rest, as activations have them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, columns, generator=generator)
    x[:, :: max(1, columns // 5)] *= 40
    return x


def matrix_of(format: Format, shape: tuple[int, int], seed: int = 1) -> Packed:
    return pack(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05, format)


def tiles_of(cpu: Backend, matrix: Matrix) -> Tiles:
    prepared = cpu.prepare(matrix)
    assert isinstance(prepared, Tiles)
    return prepared


def assert_close(found: Tensor, x: Tensor, matrix: Matrix, bias: Tensor | None = None) -> None:
    exact = torch.nn.functional.linear(x.double(), unpack(matrix).double(), None if bias is None else bias.double())
    # each number is off by at most half of the 65,534 steps of its block
    steps = x.abs().amax(-1, keepdim=True).double() / 65534 * unpack(matrix).abs().sum(-1).double() + 1e-5
    assert ((found - exact).abs() <= steps).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_of_every_format(cpu: Backend, format: Format, shape: tuple[int, int]) -> None:
    if not format.fits(shape[1]):
        shape = (shape[0], 192 * max(1, shape[1] // 192))
    matrix = matrix_of(format, shape)
    tiles = tiles_of(cpu, matrix)
    assert torch.equal(tiles.unpack(), unpack(matrix))
    x, bias = rows_of(max(COUNTS), shape[1]), torch.randn(shape[0], generator=torch.Generator().manual_seed(2))
    whole = cpu.linear(x, tiles, bias)
    assert_close(whole, x, matrix, bias)
    for count in COUNTS:
        assert torch.equal(cpu.linear(x[-count:], tiles, bias), whole[-count:])


@pytest.mark.parametrize("variant", [NARROW, WIDE])
def test_each_way_to_multiply_gives_the_same_bits(cpu: Backend, variant: int) -> None:
    for format in (Format("int4", 4, 32, zeros=True), Format("int4", 4, 32), Format("int8", 8, 32)):
        tiles = tiles_of(cpu, matrix_of(format, (50, 1248)))
        x = rows_of(20, 1248)
        tiles.choose(lambda part: [WIDE] * 9)
        expected = cpu.linear(x, tiles)
        tiles.choose(lambda part: [variant] * 9)
        assert torch.equal(cpu.linear(x, tiles), expected)


def test_the_blas_way_is_close_and_optional(cpu: Backend) -> None:
    matrix, x = matrix_of(Format("int4", 4, 32), (50, 96)), rows_of(9, 96)
    floats = torch.randn(50, 96, generator=torch.Generator().manual_seed(3))
    bias = torch.randn(50, generator=torch.Generator().manual_seed(4))
    for one in (matrix, floats):
        tiles = tiles_of(cpu, one)
        tiles.choose(lambda part: [BLAS] * 9)
        expected = reference.linear(x, unpack(one), bias)
        assert torch.allclose(cpu.linear(x, tiles, bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 64), (3, 17), (33, 5)])
def test_fp32_matrices(cpu: Backend, shape: tuple[int, int]) -> None:
    matrix, x = torch.randn(shape, generator=torch.Generator().manual_seed(5)), rows_of(11, shape[1])
    tiles = tiles_of(cpu, matrix)
    assert torch.equal(tiles.unpack(), matrix)
    whole = cpu.linear(x, tiles)
    assert torch.allclose(whole, (x.double() @ matrix.double().T).float(), rtol=1e-5, atol=1e-4)
    assert torch.equal(cpu.linear(x[4:5], tiles), whole[4:5])


def test_what_has_no_tiles_becomes_fp32(cpu: Backend) -> None:
    for format, columns in ((Format("fp8", 8, 32), 64), (Format("int8", 8, 24), 72), (Format("int4", 4, 8), 64)):
        matrix, x = matrix_of(format, (20, columns)), rows_of(3, columns)
        tiles = tiles_of(cpu, matrix)
        assert torch.equal(tiles.unpack(), unpack(matrix))
        assert torch.allclose(cpu.linear(x, tiles), reference.linear(x, matrix), rtol=1e-4, atol=1e-4)


def test_stacks_of_several_formats(cpu: Backend) -> None:
    parts = (matrix_of(Format("int4", 4, 32), (24, 96)), matrix_of(Format("int8", 8, 16), (10, 96)), torch.ones(3, 96))
    matrix, x = Stack(parts), rows_of(7, 96)
    bias = torch.randn(37, generator=torch.Generator().manual_seed(6))
    tiles = tiles_of(cpu, matrix)
    assert tiles.shape == (37, 96)
    assert_close(cpu.linear(x, tiles, bias), x, matrix, bias)
    tokens = torch.tensor([0, 36, 23, 24, 33, 5, 0])
    assert torch.equal(cpu.embed(tiles, tokens), unpack(matrix)[tokens])
    with pytest.raises(IndexError):
        cpu.embed(tiles, torch.tensor([37]))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_of_gguf_files_as_they_are(cpu: Backend, kind: str) -> None:
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    raw = torch.randint(0, 256, (20, 3, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    raw[..., 1] = raw[..., 1] % 16 + 32  # scales of ordinary size, and no infinities
    if kind == "Q4_1":
        raw[..., 3] = raw[..., 3] % 16 + 32
    if kind == "Q8_0":
        raw[..., 2:][raw[..., 2:] == 128] = 0
    matrix = take_over(kind, raw.flatten(1), (20, 96))
    assert matrix is not None
    tiles, x = tiles_of(cpu, matrix), rows_of(5, 96)
    assert torch.equal(tiles.unpack(), unpack(matrix))
    assert_close(cpu.linear(x, tiles), x, matrix)


def test_numbers_that_are_none_stay_in_their_row(cpu: Backend) -> None:
    tiles, x = tiles_of(cpu, matrix_of(Format("int4", 4, 32, zeros=True), (24, 96))), rows_of(6, 96)
    expected = cpu.linear(x, tiles)
    for row, value in ((1, float("nan")), (3, float("inf")), (4, -float("inf"))):
        x[row, 40] = value
    found = cpu.linear(x, tiles)
    assert not found[[1, 3, 4]].isfinite().any()
    assert torch.equal(found[[0, 2, 5]], expected[[0, 2, 5]])


def test_zeros_and_the_smallest_numbers(cpu: Backend) -> None:
    tiles = tiles_of(cpu, matrix_of(Format("int8", 8, 32), (24, 64)))
    assert not cpu.linear(torch.zeros(3, 64), tiles).any()
    assert not cpu.linear(torch.full((2, 64), 1e-38), tiles).any()
    large = rows_of(2, 64) * 1e30
    assert torch.allclose(cpu.linear(large, tiles) * 1e-30, cpu.linear(large * 1e-30, tiles), rtol=1e-3)


def test_norm_and_feed_forward(cpu: Backend) -> None:
    for width in (8, 24, 37, 576):
        x, weight = rows_of(5, 2 * width), torch.rand(2 * width, generator=torch.Generator().manual_seed(8))
        expected = reference.rms_norm(x, weight, 1e-5)
        assert torch.allclose(cpu.rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-6)
        x = rows_of(5, 2 * width) * 3
        assert torch.allclose(cpu.swiglu(x), reference.swiglu(x), rtol=1e-5, atol=1e-5)
