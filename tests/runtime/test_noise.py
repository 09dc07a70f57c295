"""The noise: published vectors, independence of batching, agreement with float64, and the distributions."""

import hashlib
import math
import struct

import numpy as np
import pytest

from vae_runtime import ArgumentError, noise

GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
DRAWS = 200_000


def mix(z: int) -> int:
    """SplitMix64's output function in Python integers, after Steele, Lea and Flood (2014)."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def reference_words(seed: int, stream: int, row: int, count: int) -> list[int]:
    """The words of one row by the construction that `noise.words` documents, in Python integers."""
    state = mix(mix(mix(seed) + (stream + 1) * GAMMA & MASK) + (row + 1) * GAMMA & MASK)
    return [mix(state + i * GAMMA & MASK) for i in range(1, count + 1)]


def reference_normals(words: list[int]) -> np.ndarray:
    """Box and Muller (1958) in float64: the low half's logarithm is the radius, the high half the angle."""
    draws = []
    for word in words:
        low, high = word & 0xFFFFFFFF, word >> 32
        radius = np.sqrt(-2 * np.log((low + 0.5) / 2**32))
        angle = ((high >> 3) / 2**28 - 1) * np.pi / 4
        point = [np.cos(angle), np.sin(angle)]
        if high & 1:
            point.reverse()
        signs = [-1 if high >> bit & 1 else 1 for bit in (1, 2)]
        draws += [radius * coordinate * sign for coordinate, sign in zip(point, signs, strict=True)]
    return np.array(draws)


def test_splitmix64_gives_the_published_vectors():
    """Seed 1234567, advanced by the golden gamma before each output, gives the five published words."""
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(GAMMA)
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert noise.splitmix64(states).tolist() == published


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("stream", [noise.PRIOR, noise.BINARISATION])
def test_words_follow_the_documented_construction(seed: int, stream: int):
    """Seed, stream and row are folded in one after the other; a row's words are SplitMix64's sequence."""
    rows = [0, 7, 2**32]
    expected = [reference_words(seed, stream, row, 9) for row in rows]
    assert noise.words(seed, stream, rows, 0, 9).tolist() == expected
    assert noise.words(seed, stream, rows, 4, 9).tolist() == [row[4:] for row in expected]


@pytest.mark.parametrize("draw", [noise.uniform, noise.normal])
def test_rows_do_not_depend_on_batching_or_order(draw):
    """Row i is the same bits alone, in a chunk, in reverse, or repeated."""
    whole = draw(3, noise.PIXELS, np.arange(130), 37)
    assert whole.shape == (130, 37)
    assert whole.dtype == np.float32
    chunks = [draw(3, noise.PIXELS, np.arange(i, min(i + 64, 130)), 37) for i in range(0, 130, 64)]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    order = np.random.default_rng(0).permutation(130)
    np.testing.assert_array_equal(draw(3, noise.PIXELS, order, 37), whole[order])
    for row in (0, 64, 129):
        np.testing.assert_array_equal(draw(3, noise.PIXELS, row, 37), whole[[row]])


@pytest.mark.parametrize("draw", [noise.uniform, noise.normal])
@pytest.mark.parametrize("width", [1, 2, 3, 20, 21])
def test_a_narrower_row_is_a_prefix(draw, width: int):
    """The first draws of a row are the same whatever the width."""
    wide = draw(11, noise.PRIOR, np.arange(5), 64)
    np.testing.assert_array_equal(draw(11, noise.PRIOR, np.arange(5), width), wide[:, :width])


@pytest.mark.parametrize("draw", [noise.uniform, noise.normal])
@pytest.mark.parametrize("start", [0, 1, 2, 7, 20, 43])
@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_draws_continue_at_any_offset(draw, start: int, width: int):
    """`start` names the first draw, odd offsets too, where the two draws of a word are cut apart."""
    wide = draw(11, noise.POSTERIOR, np.arange(5), 64)
    part = draw(11, noise.POSTERIOR, np.arange(5), width, start=start)
    np.testing.assert_array_equal(part, wide[:, start : start + width])


def test_an_index_is_the_sha256_of_the_little_endian_floats():
    """8 bytes of the digest, the lowest first, of the values one after the other; any strides and byte order."""
    values = [0.0, 0.25, 1.0, 1 / 3, 0.5, 1e-40]
    x = np.array([values, values[::-1]], np.float32).reshape(2, 1, 2, 3)
    expected = [
        int.from_bytes(hashlib.sha256(b"".join(struct.pack("<f", v) for v in row)).digest()[:8], "little")
        for row in (values, values[::-1])
    ]
    assert noise.index(x).tolist() == expected
    assert noise.index(x).dtype == np.uint64
    for same in (x.astype(">f4"), np.asfortranarray(x), np.repeat(x, 2, axis=3)[..., ::2]):
        assert noise.index(same).tolist() == expected
    assert noise.index(x[:0]).shape == (0,)
    # pinned: black and white images of MNIST's size
    assert noise.index(np.stack([np.zeros((1, 28, 28)), np.ones((1, 28, 28))])).tolist() == [
        2024495185560865968,
        12073271772000922816,
    ]


def test_minus_zero_has_the_index_of_zero():
    """-0.0 equals 0.0, and so do the indices of images that differ in nothing else."""
    zeros = np.zeros((1, 1, 5, 6), np.float32)
    assert noise.index(-zeros) == noise.index(zeros)


def test_seeds_streams_and_rows_all_differ():
    """No two of 4 seeds x 4 streams x 50 rows share a single word in 2 draws, nor do shifted rows."""
    words = [noise.words(seed, stream, np.arange(50), 0, 2) for seed in (0, 1, 2, 2**64 - 1) for stream in range(4)]
    assert len(np.unique(np.stack(words))) == 4 * 4 * 50 * 2


def test_neighbouring_rows_seeds_and_streams_are_uncorrelated():
    """The correlation of 100,000 paired draws stays within 4 standard errors of 0."""
    base = noise.normal(0, noise.PRIOR, np.arange(50_000), 2)
    others = [
        noise.normal(0, noise.PRIOR, np.arange(1, 50_001), 2),
        noise.normal(1, noise.PRIOR, np.arange(50_000), 2),
        noise.normal(0, noise.PIXELS, np.arange(50_000), 2),
        base[:, ::-1],
    ]
    for other in others:
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(base.size)


def test_normal_is_box_muller_of_its_words():
    """Draws agree with a float64 Box-Muller of the same words to float32's precision."""
    got = noise.normal(42, noise.PRIOR, [0, 1, 2], 2000)
    expected = np.stack([reference_normals(reference_words(42, noise.PRIOR, row, 1000)) for row in range(3)])
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_logarithm_is_right_at_its_edges():
    """The polynomial logarithm holds 1e-6 relative at the ends of its range and around its branch points."""
    powers = [2**k + d for k in range(2, 33) for d in (-2, -1, 0, 1)]
    branches = [round(2**k * math.sqrt(0.5)) + d for k in range(8, 33) for d in (-1, 0, 1)]
    bits = np.array([b for b in {0, 1, *powers, *branches} if b < 2**32], np.uint64)
    u = np.maximum(bits.astype(np.float32), 0.5).astype(np.float64) / 2**32  # rounded to float32, as documented
    expected = np.where(u > 0.5, np.log1p(u - 1), np.log(u))
    np.testing.assert_allclose(noise._log_uniform(bits), expected, rtol=1e-6, atol=0)


def test_points_lie_on_the_circle_in_every_octant():
    """Cosine and sine agree with float64 for each of the 8 octants, at the edges of an octant too."""
    within = np.array([0, 1, 2**28, 2**29 - 1, *np.random.default_rng(1).integers(0, 2**29, 500)], np.uint64)
    bits = (within[:, None] << np.uint64(3) | np.arange(8, dtype=np.uint64)).ravel()
    cosine, sine = noise._point_on_circle(bits)
    angle = ((bits >> np.uint64(3)).astype(np.float64) / 2**28 - 1) * np.pi / 4
    swap = (bits & np.uint64(1)) == 1
    signs = [1 - 2.0 * ((bits >> np.uint64(bit)) & np.uint64(1)).astype(np.float64) for bit in (1, 2)]
    np.testing.assert_allclose(cosine, np.where(swap, np.sin(angle), np.cos(angle)) * signs[0], rtol=0, atol=3e-7)
    np.testing.assert_allclose(sine, np.where(swap, np.cos(angle), np.sin(angle)) * signs[1], rtol=0, atol=3e-7)
    octants, counts = np.unique(np.floor(np.arctan2(sine, cosine) / (np.pi / 4) + 1e-6) % 8, return_counts=True)
    assert octants.tolist() == list(range(8))
    assert counts.min() > 400


def test_normal_has_the_normal_distributions_moments():
    """Mean, variance, skewness and kurtosis of 200,000 draws lie within 4 standard errors of 0, 1, 0 and 3."""
    draws = noise.normal(0, noise.PRIOR, np.arange(DRAWS // 20), 20).astype(np.float64).ravel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((draws**power).mean() - expected) < 4 * math.sqrt(variance / DRAWS), f"moment {power}"
    assert np.abs(draws).max() < 6.8


@pytest.mark.parametrize("order", ["along rows", "across rows"])
def test_normal_passes_kolmogorov_smirnov(order: str):
    """The distance of 200,000 draws to the normal distribution stays below its 0.1% critical value."""
    rows, width = (np.arange(10), DRAWS // 10) if order == "along rows" else (np.arange(DRAWS), 1)
    draws = np.sort(noise.normal(1, noise.POSTERIOR, rows, width).astype(np.float64).ravel())
    cdf = 0.5 * (1 + np.vectorize(math.erf)(draws / math.sqrt(2)))
    steps = np.arange(DRAWS + 1) / DRAWS
    distance = max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(DRAWS)


@pytest.mark.parametrize("order", ["along rows", "across rows"])
def test_uniform_is_uniform_on_multiples_of_two_to_the_minus_24(order: str):
    """Draws are multiples of 2^-24 in [0, 1), and chi-square over high and low bits lies within 5 deviations."""
    rows, width = (np.arange(10), DRAWS // 10) if order == "along rows" else (np.arange(DRAWS), 1)
    draws = noise.uniform(2, noise.PIXELS, rows, width).ravel()
    levels = draws.astype(np.float64) * 2**24
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_array_equal(levels, np.floor(levels))
    integers = levels.astype(np.int64)
    for name, bins in (("high byte", integers >> 16), ("low byte", integers & 255)):
        counts = np.bincount(bins, minlength=256)
        chi_square = ((counts - DRAWS / 256) ** 2 / (DRAWS / 256)).sum()
        assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255), name


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**70)])
@pytest.mark.parametrize("draw", [noise.uniform, noise.normal])
def test_a_seed_out_of_range_is_refused(draw, seed: int):
    """A seed below 0 or above 2^64 - 1 raises ArgumentError with the range in its text."""
    with pytest.raises(ArgumentError, match=r"seed out of range: -?\d+; give an integer from 0 to 2\^64 - 1"):
        draw(seed, noise.PRIOR, 0, 4)


@pytest.mark.parametrize(
    ("draw", "digest"),
    [
        (noise.normal, "906667fee9fa61402a8413f130346ea84d33fc9e59258e2c7b2de4f6c9e6ee2b"),
        (noise.uniform, "9b238aaca124220c70966be1895f418a664e7d89c8719c0f0f5a6dc2e5200fd8"),
    ],
)
def test_the_noise_never_changes(draw, digest: str):
    """The bytes are pinned: users' seeds mean the same images for ever, on every machine with IEEE 754 arithmetic.

    A failure here on one machine only is a portability bug; on every machine it is a change that breaks every seed.
    """
    draws = np.concatenate([draw(seed, stream, np.arange(100), 41) for seed in (0, 2**64 - 1) for stream in range(4)])
    assert hashlib.sha256(draws.astype("<f4").tobytes()).hexdigest() == digest
