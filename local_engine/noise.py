"""Random numbers by place instead of by turn: noise(key, position, token id) is a pure function.

A draw therefore does not depend on what was drawn before it, on the batch, on how a prompt was cut, on a preemption or
on speculation; and only the candidates that are looked at cost anything. The generator is SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", 2014; constants as in https://prng.di.unimi.it/splitmix64.c):
the number of token id i is output i of the stream that starts at a hash of key and position.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]

GAMMA = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
MASK = (1 << 64) - 1
BLOCK = 1 << 14  # ids at a time, so that their numbers stay in the processor's cache
RESOLUTION = 52  # bits of a number: (n + 1/2) / 2**52 is a float64 that is neither 0 nor 1


def key(seed: int, choice: int) -> int:
    """One answer's key in 0 .. 2**64 - 1. Seeds count modulo 2**64."""
    return _output(_output(seed & MASK) + choice & MASK)


def start(key: int, position: int) -> int:
    """Where the stream of one position begins."""
    return _output(key + position & MASK)


def bits(start: int | Bits, ids: npt.NDArray[np.integer]) -> Bits:
    """RESOLUTION random bits for each id, as an integer. `start` may be an array that broadcasts against `ids`."""
    return _outputs((ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA) + np.asarray(start, np.uint64))


def gumbel_of(bits: Bits) -> npt.NDArray[np.float64]:
    """Standard Gumbel numbers of `bits`, growing with them: from -3.7 to 36.8, never infinite."""
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-RESOLUTION
    return -np.log(-np.log(uniform))


def reaching(value: float, start: int, vocab_size: int) -> npt.NDArray[np.intp]:
    """The ids under `vocab_size` whose Gumbel number is at least `value`, ascending; perhaps a few just under it.

    Found by comparing bits, without logarithms.
    """
    bound = max(0, int(math.exp(-math.exp(min(-value, 700.0))) * 2.0**RESOLUTION) - 8)  # 8: rounding
    # what is left to do after `_mix` changes only the lower half: most ids are out by the upper one
    upper = np.uint64(bound << 64 - RESOLUTION >> 33 << 33)
    found = []
    strides = _strides(vocab_size)
    states, spare = np.empty((2, min(BLOCK, vocab_size)), np.uint64)
    for first in range(0, vocab_size, BLOCK):
        part = strides[first : first + BLOCK]
        z = np.add(part, np.uint64(start), out=states[: len(part)])
        _mix(z, spare[: len(part)])
        places = np.flatnonzero(z >= upper)
        found.append(places[_finished(z[places]) >= np.uint64(bound)] + first)
    return np.concatenate(found)


def gumbel(key: int, position: int, ids: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Independent standard Gumbel numbers, one for each token id [n] -> [n].

    argmax(log p + gumbel) is then a draw from p ("Gumbel-max", https://arxiv.org/abs/1411.0030).
    """
    return gumbel_of(bits(start(key, position), ids))


def _output(state: int) -> int:
    z = state + GAMMA & MASK
    z = (z ^ z >> 30) * FACTORS[0] & MASK
    z = (z ^ z >> 27) * FACTORS[1] & MASK
    return z ^ z >> 31


def _outputs(z: Bits) -> Bits:
    """What `_output` does to a state, from after the addition on; in place."""
    _mix(z, np.empty_like(z))
    return _finished(z)


def _mix(z: Bits, spare: Bits) -> None:
    z ^= np.right_shift(z, np.uint64(30), out=spare)
    z *= np.uint64(FACTORS[0])
    z ^= np.right_shift(z, np.uint64(27), out=spare)
    z *= np.uint64(FACTORS[1])


def _finished(z: Bits) -> Bits:
    z ^= z >> np.uint64(31)
    z >>= np.uint64(64 - RESOLUTION)
    return z


@lru_cache(maxsize=4)  # one model, its draft, and room for tests
def _strides(vocab_size: int) -> Bits:
    strides = (np.arange(vocab_size, dtype=np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
    strides.flags.writeable = False
    return strides
