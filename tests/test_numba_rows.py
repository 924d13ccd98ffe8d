"""The row kernels of the Numba backend on the CPU: losses against mpmath, and what a NaN or a masked class does."""

import numpy as np
import pytest

import fastdrop as fd

pytest.importorskip("numba", reason="numba is not installed")

pytestmark = pytest.mark.slow
DTYPES = ["float16", "bfloat16", "float32", "float64"]
ROUNDING = {"float16": 1e-3, "bfloat16": 5e-3, "float32": 1e-7, "float64": 2e-11}  # of gradients as they are written


@pytest.fixture(autouse=True)
def _numba():
    before = fd.get_backend()
    fd.use_backend("numba")
    yield
    fd.use_backend(before)


def losses(a, b, label):
    """The six numbers and arrays of `exact_losses`."""
    kl, da, db = fd.symmetric_kl(a[None], b[None])
    result = fd.r_drop(a[None], b[None], np.array([label]), alpha=0.0)
    return [np.asarray(one, np.float64).ravel() for one in (kl, da, db, result.ce, result.da, result.db)]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("case", range(12))
@pytest.mark.parametrize("label", [0, 3])
def test_losses_of_hard_rows(name, case, label, hard_pairs, exact_losses):
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    a, b = hard_pairs(dtype)[case]
    if (a == b).all():
        b[1] = np.nextafter(b[1], b.dtype.type(9)) if name != "bfloat16" else b[1] + 1
    for i, (want, got) in enumerate(zip(exact_losses(a, b, label), losses(a, b, label), strict=True)):
        size = np.abs(want).max()
        loss = i in (0, 3)  # in float64 for every dtype
        smallest = 0 if loss else {"float16": 6e-8, "bfloat16": 1e-40, "float32": 1.5e-45, "float64": 0}[name]
        assert np.abs(got - want).max() <= (2e-11 if loss else ROUNDING[name]) * size + smallest


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_nan_in_a_row_makes_its_losses_nan_and_no_other_s(at, bad, which):
    pair = np.array([[[0.0, 200, 1, -np.inf]] * 3] * 2)
    pair[which, 1, at] = bad
    a, b = pair
    nan = [False, True, False]
    for alpha in 0.0, 1.0:
        result = fd.r_drop(a, b, np.array([2, 2, 2]), alpha=alpha, reduction="none")
        np.testing.assert_array_equal(np.isnan(result.ce), nan)
        np.testing.assert_array_equal(np.isnan(result.loss), nan)
        np.testing.assert_array_equal(np.isnan((result.da, result.db)[which]).all(axis=1), nan)
    np.testing.assert_array_equal(np.isnan(fd.symmetric_kl(a, b, reduction="none")[0]), nan)
    np.testing.assert_array_equal(np.isnan(fd.softmax_dropout(pair[which], 0.0, rng=0)[0]).any(axis=1), nan)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_numbers_are_numbers(dtype):
    low = np.finfo(dtype).min
    equal = np.full((1, 3), low, dtype)
    loss, da, _ = fd.symmetric_kl(equal, np.zeros((1, 3), dtype))
    assert loss == 0
    assert not da.any()
    assert fd.r_drop(equal, equal, np.array([1]), alpha=1.0).loss == pytest.approx(np.log(3), rel=1e-15)
    one = np.array([[1, low]], dtype)
    result = fd.r_drop(one, one, np.array([0]), alpha=1.0)
    assert result.loss == 0
    assert not result.da.any()
