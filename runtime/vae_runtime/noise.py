"""Noise as a pure function of (seed, stream, row): row i is the same bits for any chunking, thread count or machine.

Bits come from SplitMix64 (Steele, Lea and Flood 2014) used as a counter-based generator (as in Salmon et al. 2011),
normals from Box and Muller (1958). Logarithm, sine and cosine are polynomials made of float32 additions and
multiplications, which IEEE 754 defines to the last bit; a libm or SIMD log differs between processors.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.errors import ArgumentError

PRIOR, PIXELS, POSTERIOR, BINARISATION = range(4)  # streams: what the noise is for

_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment, 2^64 / golden ratio
_MASK = 2**64 - 1


def check_seed(seed: int) -> None:
    """Raise ArgumentError unless seed is an integer, 0 <= seed < 2^64."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= _MASK:
        raise ArgumentError("seed out of range", seed, "give an integer from 0 to 2^64 - 1")


def splitmix64(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function of its state, elementwise: uint64 to uint64, a bijection."""
    z = (counter ^ (counter >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(seed: int, stream: int, rows: ArrayLike, start: int, stop: int) -> NDArray[np.uint64]:
    """Random words start..stop-1 of each row: uint64 [len(rows), stop - start].

    Seed, stream and row are folded in one after the other, each through splitmix64; the words of a row are then
    SplitMix64's own sequence from that state. Raises ArgumentError unless 0 <= seed < 2^64.
    """
    check_seed(seed)
    key = splitmix64(np.array([seed], np.uint64))
    key = splitmix64(key + np.uint64((stream + 1) * _GAMMA & _MASK))
    gamma = np.uint64(_GAMMA)
    states = splitmix64(key + (np.atleast_1d(np.asarray(rows, np.uint64)) + np.uint64(1)) * gamma)  # [rows]
    steps = np.arange(start + 1, stop + 1, dtype=np.uint64) * gamma
    return splitmix64(states[:, None] + steps)


def uniform(seed: int, stream: int, rows: ArrayLike, width: int) -> NDArray[np.float32]:
    """Uniform draws from the multiples of 2^-24 in [0, 1): float32 [len(rows), width]; two from each word."""
    halves = words(seed, stream, rows, 0, (width + 1) // 2).astype("<u8", copy=False).view("<u4")
    return ((halves >> np.uint32(8)).astype(np.float32) * np.float32(2**-24))[:, :width]


def normal(seed: int, stream: int, rows: ArrayLike, width: int, start: int = 0) -> NDArray[np.float32]:
    """Standard normal draws start..start+width-1 of each row: float32 [len(rows), width], |value| < 6.8.

    A word gives two draws: its low half the radius, its high half the angle.
    """
    first = start // 2
    pairs = words(seed, stream, rows, first, (start + width + 1) // 2)
    radius = np.sqrt(np.float32(-2) * _log_uniform(pairs & np.uint64(0xFFFFFFFF)))
    cosine, sine = _point_on_circle(pairs >> np.uint64(32))
    draws = np.stack([radius * cosine, radius * sine], axis=-1).reshape(len(pairs), -1)
    return draws[:, start - 2 * first :][:, :width]


def _polynomial(x: NDArray[np.float32], coefficients: list[float]) -> NDArray[np.float32]:
    """Horner's rule in float32, highest power first."""
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result *= x
        result += np.float32(coefficient)
    return result


def _log_uniform(bits: NDArray[np.uint64]) -> NDArray[np.float32]:
    """log((bits + 1/2) / 2^32) for 32-bit integers, at most 0, within 1e-6 relative of float64 away from 1."""
    # 2 bits + 1 is a 33-bit integer; float64 holds it exactly, and its exponent and mantissa are read from its bits
    raw = (2 * bits + np.uint64(1)).astype(np.float64).view(np.uint64)
    exponent = (raw >> np.uint64(52)).astype(np.int32) - np.int32(1023 + 33)  # value = m 2^exponent, m in [1, 2)
    mantissa = (raw & np.uint64(2**52 - 1) | np.uint64(1023 << 52)).view(np.float64)
    large = mantissa > 1.4142135
    mantissa = np.where(
        large, mantissa * 0.5, mantissa
    )  # in [0.71, 1.42], so that log(u) near u = 1 has no cancellation
    s = ((mantissa - 1) / (mantissa + 1)).astype(np.float32)  # log m = 2 atanh(s), |s| < 0.172
    series = s * _polynomial(s * s, [2 / 9, 2 / 7, 2 / 5, 2 / 3, 2])
    return series + (exponent + large).astype(np.float32) * np.float32(np.log(2))


def _point_on_circle(bits: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine of a uniform angle: three bits choose the octant's signs and swap, 29 the angle within it."""
    unit = (bits >> np.uint64(3)).astype(np.float32) * np.float32(2**-28) - np.float32(1)  # [-1, 1]
    angle = unit * np.float32(np.pi / 4)
    square = angle * angle
    cosine = _polynomial(square, [1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1])
    sine = angle * _polynomial(square, [1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1])
    swap = (bits & np.uint64(1)).astype(bool)
    cosine, sine = np.where(swap, sine, cosine), np.where(swap, cosine, sine)
    return cosine * _sign(bits, 1), sine * _sign(bits, 2)


def _sign(bits: NDArray[np.uint64], position: int) -> NDArray[np.float32]:
    """+1 or -1 by one bit."""
    return np.float32(1) - np.float32(2) * ((bits >> np.uint64(position)) & np.uint64(1)).astype(np.float32)
