"""Noise by place: its numbers, that they are uniform, and that neighbours have nothing to do with each other."""

import numpy as np
import pytest
import torch

from local_engine import noise

IDS = np.arange(1000)


def p_value(observed: np.ndarray) -> float:
    """Chi-square test that all cells are equally likely."""
    expected = observed.sum() / observed.size
    statistic = float(((observed - expected) ** 2 / expected).sum())
    half = torch.tensor([(observed.size - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def sixteenths(key: int, position: int, ids: np.ndarray = IDS) -> np.ndarray:
    """The upper four bits of each number."""
    return (noise.bits(noise.start(key, position), ids) >> np.uint64(noise.RESOLUTION - 4)).astype(np.int64)


def test_the_generator_is_splitmix64() -> None:
    """The first outputs for the seed 1234567, as published with the generator."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    shift = 64 - noise.RESOLUTION
    assert noise.bits(1234567, np.arange(4)).tolist() == [n >> shift for n in published]
    assert noise._output(1234567) == published[0]


def test_known_values_stay_what_they_are() -> None:
    """A seed must give the same answer in the next release too."""
    assert noise.key(0, 0) == 12035550249420947055
    assert noise.key(42, 1) == 18036798128018490698
    numbers = noise.gumbel(noise.key(42, 1), 7, np.array([0, 1, 49151]))
    assert numbers.tolist() == pytest.approx([0.8569149797267545, -0.5321643869576633, 1.8090434799444517], rel=1e-12)


def test_seeds_count_modulo_2_to_the_64() -> None:
    assert noise.key(-1, 0) == noise.key((1 << 64) - 1, 0)
    assert noise.key(1 << 64, 3) == noise.key(0, 3)
    assert 0 <= noise.key(-(1 << 63), 1 << 40) < 1 << 64


def test_numbers_do_not_depend_on_which_others_are_asked_for() -> None:
    whole = noise.gumbel(5, 3, IDS)
    assert np.array_equal(noise.gumbel(5, 3, IDS[::-7]), whole[::-7])
    assert noise.gumbel(5, 3, np.array([17])) == whole[17]


def test_the_extremes_are_finite() -> None:
    largest = np.array([0, (1 << noise.RESOLUTION) - 1], np.uint64)
    low, high = noise.gumbel_of(largest)
    assert -3.7 < low < -3.5 and 36.7 < high < 36.8


@pytest.mark.parametrize("value", [-50.0, -3.0, 0.0, 2.0, 8.0, 30.0])
def test_reaching_finds_every_number_of_that_size(value: float) -> None:
    size = 3 * noise.BLOCK + 5
    start = noise.start(9, 4)
    numbers = noise.gumbel_of(noise.bits(start, np.arange(size)))
    found = noise.reaching(value, start, size)
    assert set(np.flatnonzero(numbers >= value)) <= set(found)
    assert (numbers[found] >= value - 0.1).all()
    assert (np.diff(found) > 0).all()


def test_a_bound_is_not_missed_by_rounding() -> None:
    start, ids = noise.start(1, 1), np.arange(2000)
    for token, number in zip(ids, noise.gumbel_of(noise.bits(start, ids)), strict=True):
        assert token in noise.reaching(float(number), start, 2000)


@pytest.mark.parametrize("vary", ["id", "position", "seed", "choice"])
def test_numbers_are_uniform_and_neighbours_independent(vary: str) -> None:
    """64,000 pairs of numbers one step apart, in 16 x 16 cells; and two and 256 steps apart."""
    many = range(64_256)
    if vary == "id":
        numbers = sixteenths(noise.key(1, 0), 5, np.array(many))
    elif vary == "position":
        starts = np.array([noise.start(noise.key(1, 0), p) for p in many], np.uint64)
        numbers = sixteenths_of(starts, token=11)
    elif vary == "seed":
        starts = np.array([noise.start(noise.key(seed, 0), 5) for seed in many], np.uint64)
        numbers = sixteenths_of(starts, token=11)
    else:
        starts = np.array([noise.start(noise.key(1, choice), 5) for choice in many], np.uint64)
        numbers = sixteenths_of(starts, token=11)
    for distance in (1, 2, 256):
        pairs = numbers[:64_000] * 16 + numbers[distance : 64_000 + distance]
        assert p_value(np.bincount(pairs, minlength=256)) > 1e-4


def sixteenths_of(starts: np.ndarray, token: int) -> np.ndarray:
    numbers = noise.bits(starts, np.array([token]))
    return (numbers >> np.uint64(noise.RESOLUTION - 4)).astype(np.int64)


def test_low_bits_are_uniform_too() -> None:
    numbers = noise.bits(noise.start(3, 3), np.arange(64_000))
    assert p_value(np.bincount((numbers & np.uint64(255)).astype(np.int64), minlength=256)) > 1e-4


def test_gumbel_numbers_have_their_distribution() -> None:
    numbers = noise.gumbel(noise.key(8, 0), 0, np.arange(100_000))
    cells = (np.exp(-np.exp(-numbers)) * 100).astype(np.int64)
    assert p_value(np.bincount(cells, minlength=100)) > 1e-4
