"""Random numbers by place: a pure function of (key, position, token id), as the engine's own sampler has them.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014; constants as in
https://prng.di.unimi.it/splitmix64.c): the number of token id i is output i of the stream that starts at a hash of key
and position. The integers are exact. Twins: `reference.noise_bits` and `reference.gumbel`.

Everything here works on blocks, of one element where there is only one: a scalar's wrap-around is a fault in the
interpreter.
"""

import triton
import triton.language as tl

GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB)
LN_2 = tl.constexpr(0.6931471805599453)
HALF = tl.constexpr(1 << 52)
ONES = tl.constexpr((1 << 53) - 1)
UNIT = tl.constexpr(2.0**-53)


@triton.jit
def mix(z):
    """What SplitMix64 does to a state after its addition. uint64 -> uint64."""
    z = (z ^ (z >> 30)) * FIRST_FACTOR
    z = (z ^ (z >> 27)) * SECOND_FACTOR
    return z ^ (z >> 31)


@triton.jit
def stream(keys, positions):
    """Where the stream of a position begins. int64 [n] each -> uint64 [n]."""
    return mix(keys.to(tl.uint64, bitcast=True) + positions.to(tl.uint64, bitcast=True) + GAMMA)


@triton.jit
def fraction(start, ids):
    """53 random bits of which the last is set: u = that * 2**-53 is neither 0 nor 1. -> int64 like ids.

    start uint64 [1], ids int32 [n] from -1 on.
    """
    state = (ids + 1).to(tl.uint64) * GAMMA + start
    return ((mix(state) >> 12) << 1 | 1).to(tl.int64, bitcast=True)


@triton.jit
def uniform(bits):
    """Of `fraction`'s bits -> fp32 in (0, 1): what would be rounded to 1 is the number before it."""
    return tl.minimum(bits.to(tl.float32) * UNIT, 0.99999994)


@triton.jit
def gumbel(bits):
    """-log(-log(u)) of `fraction`'s bits, in fp32: from -3.6 to 36.8.

    Where u is above 1/2 its logarithm is taken from 1 - u, which the complement of the bits gives without cancellation,
    by the series of the inverse hyperbolic tangent: -log(1 - w) = 2 artanh(w / (2 - w)).
    """
    is_upper = bits > HALF
    w = tl.where(is_upper, (bits ^ ONES) + 1, bits).to(tl.float32) * UNIT  # at most 1/2
    t = w / (2.0 - w)  # at most 1/3
    s = t * t
    series = 1.0 / 15 + s * (1.0 / 17)
    series = 1.0 / 11 + s * (1.0 / 13 + s * series)
    series = 1.0 / 7 + s * (1.0 / 9 + s * series)
    series = 1.0 + s * (1.0 / 3 + s * (1.0 / 5 + s * series))
    waiting = tl.where(is_upper, t * series * 2.0, tl.log2(w) * -LN_2)  # -log(u), an exponential number
    return tl.log2(waiting) * -LN_2
