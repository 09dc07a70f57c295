"""Noise as a pure function of (seed, stream, index): the same bits for any chunking, thread count or machine.

What makes observations draws by position: index i is sample i. What takes observations draws by content: `index`.

Bits come from SplitMix64 (Steele, Lea and Flood 2014) used as a counter-based generator (as in Salmon et al. 2011),
normals from Box and Muller (1958). Logarithm, sine and cosine are polynomials made of float32 sums, products, quotients
and roots, which IEEE 754 defines to the last bit; a libm or SIMD log differs between processors. That costs 36 ns a
draw where NumPy's own functions take 17, on one core.
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime.errors import ArgumentError

Floats = NDArray[np.float32]

# streams: what the noise is for; SECOND of pixels too
PRIOR, PIXELS, POSTERIOR, BINARISATION, SECOND, TIES = range(6)

_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment, 2^64 / golden ratio
_MASK = 2**64 - 1


def check_seed(seed: int) -> int:
    """The seed as Python's integer. Raises ArgumentError unless 0 <= seed < 2^64."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= _MASK:
        raise ArgumentError("seed out of range", seed, "give an integer from 0 to 2^64 - 1")
    return int(seed)


def index(x: Floats) -> NDArray[np.uint64]:
    """The index of each observation's noise, of its content alone: uint64 [batch] from float32 [batch, ...].

    The first 8 bytes, little-endian, of the sha256 of its values as little-endian float32 in C order, -0.0 as 0.0.
    """
    values = np.ascontiguousarray(x, "<f4") + np.float32(0)  # which makes 0.0 of -0.0
    return np.frombuffer(b"".join(hashlib.sha256(row).digest()[:8] for row in values), "<u8").astype(np.uint64)


def splitmix64(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function of its state, elementwise: uint64 to uint64, a bijection."""
    shifted = counter >> np.uint64(30)
    z = counter ^ shifted
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= np.right_shift(z, np.uint64(27), out=shifted)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= np.right_shift(z, np.uint64(31), out=shifted)
    return z


def words(seed: int, stream: int, rows: ArrayLike, start: int, stop: int) -> NDArray[np.uint64]:
    """Random words start..stop-1 of each row: uint64 [len(rows), stop - start].

    Seed, stream and row are folded in one after the other, each through splitmix64; the words of a row are then
    SplitMix64's own sequence from that state. Raises ArgumentError unless 0 <= seed < 2^64.
    """
    key = splitmix64(np.array([check_seed(seed)], np.uint64))
    key = splitmix64(key + np.uint64((stream + 1) * _GAMMA & _MASK))
    gamma = np.uint64(_GAMMA)
    states = splitmix64(key + (np.atleast_1d(np.asarray(rows, np.uint64)) + np.uint64(1)) * gamma)  # [rows]
    steps = np.arange(start + 1, stop + 1, dtype=np.uint64) * gamma
    return splitmix64(states[:, None] + steps)


def uniform(seed: int, stream: int, rows: ArrayLike, width: int, start: int = 0) -> Floats:
    """Uniform draws start..start+width-1 of each row, multiples of 2^-24 in [0, 1): float32 [len(rows), width].

    A word gives two draws.
    """
    first = start // 2
    halves = words(seed, stream, rows, first, (start + width + 1) // 2).astype("<u8", copy=False).view("<u4")
    halves >>= np.uint32(8)
    draws = halves.astype(np.float32)
    draws *= np.float32(2**-24)
    return draws[:, start - 2 * first :][:, :width]


def normal(seed: int, stream: int, rows: ArrayLike, width: int, start: int = 0) -> Floats:
    """Standard normal draws start..start+width-1 of each row: float32 [len(rows), width], |value| < 6.8.

    A word gives two draws: its low half the radius, its high half the angle.
    """
    first = start // 2
    pairs = words(seed, stream, rows, first, (start + width + 1) // 2)
    radius = _log_uniform(pairs.astype(np.uint32))
    radius *= -2
    np.sqrt(radius, out=radius)
    draws = np.empty((*pairs.shape, 2), np.float32)
    for draw, coordinate in zip((draws[..., 0], draws[..., 1]), _point_on_circle(pairs >> np.uint64(32)), strict=True):
        np.multiply(radius, coordinate, out=draw)
    return draws.reshape(len(pairs), -1)[:, start - 2 * first :][:, :width]


def _polynomial(x: Floats, coefficients: list[float]) -> Floats:
    """Horner's rule in float32, highest power first."""
    result = x * np.float32(coefficients[0])
    for coefficient in coefficients[1:-1]:
        result += np.float32(coefficient)
        result *= x
    result += np.float32(coefficients[-1])
    return result


def _log_uniform(bits: NDArray[np.uint32]) -> Floats:
    """log(max(bits, 1/2) / 2^32), at most 0, within 2e-7 of it relative but for u near 1, where float32 rounds u."""
    u = np.maximum(bits.astype(np.float32), np.float32(0.5))
    # the exponent and mantissa of u = m 2^exponent, m in [0.71, 1.41], so that log m has no cancellation
    raw = u.view(np.uint32) + np.uint32(0x3F800000 - 0x3F3504F3)
    exponent = (raw >> np.uint32(23)).astype(np.float32)
    exponent -= 127 + 32
    raw &= np.uint32(0x007FFFFF)
    raw += np.uint32(0x3F3504F3)
    m = raw.view(np.float32)
    s = (m - 1) / (m + 1)  # log m = 2 atanh(s), |s| < 0.172
    log = _polynomial(s * s, [2 / 9, 2 / 7, 2 / 5, 2 / 3, 2])
    log *= s
    exponent *= np.float32(np.log(2))
    log += exponent
    return log


def _point_on_circle(high: NDArray[np.uint64]) -> tuple[Floats, Floats]:
    """Cosine and sine of a uniform angle: 29 bits choose it within an octant, three bits swap and sign the two."""
    bits = high.astype(np.uint32)
    angle = (bits >> np.uint32(3)).astype(np.float32)
    angle *= np.float32(np.pi / 2 * 2**-29)
    angle -= np.float32(np.pi / 4)
    square = angle * angle
    cosine = _polynomial(square, [1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1])
    sine = _polynomial(square, [1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1])
    sine *= angle
    swap = (bits & np.uint32(1)).astype(bool)
    pair = np.where(swap, sine, cosine), np.where(swap, cosine, sine)
    for coordinate, shift in zip(pair, (30, 29), strict=True):
        coordinate.view(np.uint32)[...] ^= (bits << np.uint32(shift)) & np.uint32(0x80000000)  # the sign bit
    return pair
