"""Is it random?  Fixed seeds, so that a test fails always or never; what stands here is how often others would fail.

Every bound comes from the normal distribution by `sigmas`, so that one seed in a million fails a test, and one in ten
thousand any of them.  The kept fraction has the 5 sigma that the project promises: 6e-7 for each p.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.backends import reference

FALSE_ALARM = 1e-6  # of one test
LAGS = [1, 2, 3, 4, 15, 16, 63, 64, 65, 128, 192, 255, 256, 257, 512, 4095, 4096, 4097, 65536]


def sigmas(comparisons):
    """Bound that ``comparisons`` normal deviates all stay within, but for one time in 1 / FALSE_ALARM."""
    return NormalDist().inv_cdf(1 - FALSE_ALARM / comparisons / 2)


def deviates(shape, p, seed=0, stream=0):
    """Decisions as numbers of mean 0 and variance 1."""
    keep = fd.Rng(seed, stream).mask(shape, p).keep()
    return (keep - (1 - p)) / math.sqrt(p * (1 - p))


def correlations(rows):
    """Those of each pair of rows, as normal deviates."""
    n = rows.shape[1]
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)] / math.sqrt(n)


def assert_normal(z):
    z = np.ravel(z)
    assert np.max(np.abs(z)) < sigmas(z.size)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_kept_fraction(isas, p):
    """10**9 elements, on the native backend: within 5 sigma."""
    n = 10**9
    part = 1 << 26
    mask = fd.mask(n, p, rng=20)
    kept = sum(int.from_bytes(mask[i : i + part].bits().tobytes(), "little").bit_count() for i in range(0, n, part))
    assert abs(kept - n * (1 - p)) < 5 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_kept_fraction_of_every_engine(engine, p):
    n = 10**6
    assert abs(deviates(n, p, seed=21).sum()) < sigmas(1) * math.sqrt(n)


def test_fraction_is_exact_to_32_bits():
    """Rare events: at p = 2**-20 the kept fraction of 2**30 elements is not that of 8, 16 or 24 random bits."""
    n, p = 1 << 30, 3 * 2.0**-21
    mask = fd.mask(n, p, rng=22)
    if fd.get_backend() != "native":
        pytest.skip("takes minutes without the CPU kernels of the compiled extension")
    kept = int.from_bytes(mask.bits().tobytes(), "little").bit_count()
    assert abs((n - kept) - n * p) < sigmas(1) * math.sqrt(n * p)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_neighbours(p):
    """No correlation at any of the distances that the layout of the stream knows."""
    x = deviates(1 << 22, p, seed=1)
    assert_normal([x[:-lag] @ x[lag:] / math.sqrt(x.size - lag) for lag in LAGS])


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("columns", [64, 100, 256, 1000, 4096])
def test_rows(p, columns):
    assert_normal(correlations(deviates((64, columns * (65536 // columns)), p, seed=2)))
    x = deviates((65536 * 16 // columns, columns), p, seed=3)
    axis = int(columns >= 1000)  # the longer one, whose sums are nearly normal
    assert_normal((x[:-1] * x[1:]).sum(axis) / math.sqrt(x[1:].shape[axis]))
    assert_normal((x[:-1] * x[1:]).sum() / math.sqrt(x[1:].size))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("step", [1, 2**31, 2**32, 2**58])
def test_streams(p, step):
    assert_normal(correlations(np.array([deviates(1 << 16, p, 4, stream * step) for stream in range(64)])))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("step", [1, 2**31, 2**32, 2**58])
def test_seeds(p, step):
    assert_normal(correlations(np.array([deviates(1 << 16, p, seed * step, 5) for seed in range(64)])))


def test_seeds_and_streams_are_not_one_number():
    """(seed, stream) and (stream, seed), and pairs of one sum, are unrelated."""
    pairs = [(a, b) for a in range(8) for b in range(8)]
    assert_normal(correlations(np.array([deviates(1 << 16, 0.5, *pair) for pair in pairs])))


def test_children_of_spawn():
    rows = [(child.mask(1 << 16, 0.5).keep() - 0.5) * 2 for child in fd.Rng(6).spawn(64)]
    assert_normal(correlations(np.array(rows)))


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_places_in_a_block(p):
    """Each of the 256 places of a block, and of the 8 bits of a byte, is kept as often as the others."""
    x = deviates((1 << 15, 256), p, seed=7)
    assert_normal(x.sum(axis=0) / math.sqrt(len(x)))
    assert_normal(x.reshape(-1, 8).sum(axis=0) / math.sqrt(x.size / 8))


def test_runs():
    """Lengths of runs of kept elements are geometric: a chi-square that a generator with memory would fail."""
    n, p = 1 << 22, 0.25
    keep = np.concatenate([[False], fd.mask(n, p, rng=8).keep(), [False]])
    edges = np.flatnonzero(keep[1:] != keep[:-1])
    lengths = edges[1::2] - edges[::2]
    longest = 20
    seen = np.bincount(np.minimum(lengths, longest), minlength=longest + 1)[1:]
    k = np.arange(1, longest + 1)
    expected = len(lengths) * np.where(k < longest, p * (1 - p) ** (k - 1), (1 - p) ** (longest - 1))
    chi2 = np.sum((seen - expected) ** 2 / expected)
    dof = longest - 1
    z = ((chi2 / dof) ** (1 / 3) - (1 - 2 / (9 * dof))) / math.sqrt(2 / (9 * dof))  # Wilson and Hilferty
    assert z < sigmas(1)


def test_uniforms_are_uniform():
    """The 32-bit numbers themselves: each of their bits, each pair of bits, and their top byte by a chi-square."""
    u = reference.uniform32(9, 10, np.arange(1 << 17, dtype=np.uint64))
    bits = (u[None] >> np.arange(32, dtype=np.uint64)[:, None] & np.uint64(1)) * 2.0 - 1
    assert_normal(bits.sum(axis=1) / math.sqrt(u.size))
    assert_normal(correlations(bits))
    seen = np.bincount((u >> np.uint64(24)).astype(np.intp), minlength=256)
    chi2 = np.sum((seen - u.size / 256) ** 2) / (u.size / 256)
    assert abs(chi2 - 255) / math.sqrt(2 * 255) < sigmas(1) + 1  # a little wider than the normal distribution
