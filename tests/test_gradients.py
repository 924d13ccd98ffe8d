"""``Mask.backward`` against central differences, with broadcasting both ways; and the sums that broadcasting asks for.

The loss is ``sum(w * mask.apply(x))``, linear in x, so that central differences in float64 are exact up to rounding.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdrop as fd

CASES = {  # x's shape, mask's shape
    "same": ((4, 5), (4, 5)),
    "mask smaller: spatial": ((2, 3, 4, 5), (2, 3, 1, 1)),
    "mask smaller: locked": ((4, 3, 5), (1, 3, 5)),
    "mask smaller: fewer axes": ((4, 3, 5), (5,)),
    "mask of one element": ((4, 3), ()),
    "mask larger: samples": ((3, 4), (6, 3, 4)),
    "mask larger: along an axis of one": ((3, 1), (3, 7)),
    "mask larger: x of one element": ((), (2, 3)),
    "both: each larger along an axis": ((4, 1, 3), (2, 3)),
    "both: more axes and fewer": ((5, 1), (2, 1, 4)),
    "empty": ((3, 0), (2, 3, 0)),
    "summed over nothing": ((1, 4), (0, 4)),
}


def masks(shape):
    yield fd.mask(shape, 0.4, rng=1)
    yield fd.mask(shape, 0.0, rng=1)
    yield fd.mask(shape, 1.0, rng=1)
    yield fd.Mask.from_keep(np.random.default_rng(1).random(shape) < 0.5, 0.3)
    yield fd.mask((3, *shape), 0.4, rng=1)[1]
    if shape:
        yield fd.mask(shape, np.linspace(0, 1, shape[0]), rng=1)
        yield fd.mask(shape, np.random.default_rng(2).random(shape), rng=1)
        yield fd.mask((*shape[:-1], shape[-1] + 2), 0.4, rng=1)[..., 1:-1]


def central_differences(loss, x, h=0.5):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        gradient[i] = (loss(x + step) - loss(x - step)) / (2 * h)
    return gradient


@pytest.mark.parametrize(("x_shape", "mask_shape"), CASES.values(), ids=CASES)
def test_backward(engine, x_shape, mask_shape):
    draw = np.random.default_rng(0)
    x = draw.standard_normal(x_shape)
    for mask in masks(mask_shape):
        w = draw.standard_normal(np.broadcast_shapes(x_shape, mask_shape))
        want = central_differences(lambda x, w=w, mask=mask: np.sum(w * mask.apply(x)), x)
        dx = mask.backward(w, x_shape=x_shape)
        assert dx.shape == x_shape
        np.testing.assert_allclose(dx, want, rtol=1e-12, atol=1e-12)
        out = np.full(x_shape, np.nan)
        assert mask.backward(w, x_shape=x_shape, out=out) is out
        assert np.array_equal(out, dx)
        if w.shape == x_shape:
            assert np.array_equal(fd.dropout_backward(w, mask), dx)
            assert np.array_equal(mask.backward(w), dx)


def test_dropout_then_backward_through_a_network():
    """A hidden layer with dropout between two matrices, a squared loss: what a user of from-scratch code has."""
    draw = np.random.default_rng(0)
    x, w1, w2 = (draw.standard_normal(shape) for shape in ((5, 3), (3, 8), (8, 2)))
    mask = fd.mask((5, 8), 0.5, rng=0)

    def loss(w1):
        return 0.5 * np.sum((np.maximum(x @ w1, 0) * mask @ w2) ** 2)

    z = x @ w1
    a = np.maximum(z, 0) * mask
    dw1 = x.T @ (mask.backward((a @ w2) @ w2.T) * (z > 0))
    np.testing.assert_allclose(dw1, central_differences(loss, w1, 1e-6), rtol=1e-6, atol=1e-8)


def test_multi_sample_gradient_is_the_sum_over_samples(engine):
    mask = fd.mask((8, 20, 30), 0.3, rng=0)
    dy = np.random.default_rng(0).standard_normal((8, 20, 30))
    want = sum(mask[s].apply(dy[s]) for s in range(8))
    np.testing.assert_allclose(mask.backward(dy, x_shape=(20, 30)), want, rtol=1e-13, atol=1e-13)


def test_gradient_of_p_one_is_plus_zero(engine, dtype):
    dy = np.array([[np.nan, np.inf, -1.0], [-np.inf, -0.0, 1.0]], np.float32).astype(dtype)
    mask = fd.mask((2, 3), 1.0, rng=0)
    for dx in (mask.backward(dy), mask.backward(dy, x_shape=(3,)), mask.backward(dy, x_shape=(1,))):
        bits = dx.view(f"u{dx.itemsize}")
        assert not bits.any()


def test_dropped_nan_does_not_reach_the_sum(engine):
    mask = fd.Mask.from_keep([[True, False], [False, True]], 0.5)
    dy = np.array([[1.0, np.nan], [np.inf, 3.0]])
    assert np.array_equal(mask.backward(dy, x_shape=(2,)), [2, 6])


def test_sums_of_16_bits_are_made_in_32(engine, dtype):
    """4000 ones: a float16 counter stops at 2048, a bfloat16 one at 256."""
    mask = fd.Mask.from_keep(np.ones((4000, 3), bool), 0.0)
    assert np.array_equal(mask.backward(np.ones((4000, 3), dtype), x_shape=(3,)), np.full(3, 4000).astype(dtype))
    assert mask.backward(np.ones((4000, 3), dtype), x_shape=(3,)).dtype == dtype


def test_sum_is_close_to_the_exact_one(engine, dtype):
    dy = np.random.default_rng(0).standard_normal((3000, 7)).astype(dtype)
    mask = fd.mask((3000, 7), 0.5, rng=0)
    exact = (mask.keep() * dy.astype(np.float64) * 2).sum(axis=0)
    eps = {2: 2**-8, 4: 2**-23, 8: 2**-52}[dtype.itemsize]
    size = np.abs(dy.astype(np.float64)).sum(axis=0)
    error = np.abs(mask.backward(dy, x_shape=(7,)).astype(np.float64) - exact)
    assert np.all(error <= eps * np.abs(exact) + 2**-20 * size * (dtype.itemsize < 8) + eps * size)


@pytest.mark.parametrize("shape", [((1000, 300), (300,)), ((1000, 300), (1000, 1)), ((7, 100, 500), (100, 1))])
def test_sum_does_not_depend_on_threads(engine, shape):
    whole, x_shape = shape
    dy = np.random.default_rng(0).standard_normal(whole).astype(np.float32)
    mask = fd.mask(whole, 0.3, rng=0)
    with fd.threads(1):
        one = mask.backward(dy, x_shape=x_shape)
    for n in (2, 3, 4):
        with fd.threads(n):
            for _ in range(2):  # nor on when each of them comes to its part
                assert mask.backward(dy, x_shape=x_shape).tobytes() == one.tobytes()


@pytest.mark.parametrize("layout", ["F", "swapped", "unaligned", "reversed", "strided"])
def test_sum_over_any_layout(engine, layout):
    plain = np.random.default_rng(0).standard_normal((6, 4, 5)).astype(np.float32)
    raw = np.zeros(plain.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(plain.shape)
    raw[...] = plain
    dy = {
        "F": np.asfortranarray(plain),
        "swapped": plain.astype(plain.dtype.newbyteorder("S")),
        "unaligned": raw,
        "reversed": plain[::-1].copy()[::-1],
        "strided": np.repeat(plain, 2, axis=1)[:, ::2],
    }[layout]
    mask = fd.mask((6, 4, 5), 0.3, rng=0)
    for x_shape in ((5,), (4, 1), (1, 4, 5), (6, 1, 1), ()):
        dx = mask.backward(dy, x_shape=x_shape)
        assert dx.dtype == np.float32
        np.testing.assert_allclose(dx, mask.backward(plain, x_shape=x_shape), rtol=1e-6, atol=1e-6)


@given(st.data())
def test_sum_is_the_adjoint_of_apply(data):
    """<w, apply(x)> == <backward(w), x> for any two shapes that broadcast."""
    joint = data.draw(st.lists(st.integers(1, 4), max_size=4))
    shapes = []
    for _ in range(2):
        cut = data.draw(st.integers(0, len(joint)))
        shapes.append(tuple(1 if data.draw(st.booleans()) else n for n in joint[cut:]))
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    mask = fd.mask(shapes[0], 0.3, rng=int(draw.integers(1000)))
    x = draw.standard_normal(shapes[1])
    y = mask.apply(x)
    w = draw.standard_normal(y.shape)
    np.testing.assert_allclose(np.sum(w * y), np.sum(mask.backward(w, x_shape=x.shape) * x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"dy": np.ones((3, 4)), "x_shape": (7,)},
            ValueError,
            r"x_shape \(7,\) does not broadcast with the mask's shape",
        ),
        (
            {"dy": np.ones((3, 4)), "x_shape": "ab"},
            TypeError,
            "x_shape must be an integer or a tuple of integers, got 'ab'",
        ),
        ({"dy": np.ones((3, 4)), "x_shape": (-1,)}, ValueError, "x_shape must hold numbers from 0"),
        ({"dy": np.ones(4)}, ValueError, r"dy must have the shape of apply\(x\), \(3, 4\), got \(4,\)"),
        ({"dy": np.ones(5)}, ValueError, r"dy of shape \(5,\) does not broadcast with the mask's shape \(3, 4\)"),
        (
            {"dy": np.ones((2, 3, 4)), "x_shape": (4,)},
            ValueError,
            r"dy must have the shape of apply\(x\), \(3, 4\), got",
        ),
        ({"dy": np.ones((3, 4), int)}, TypeError, "dy must be float16, bfloat16, float32 or float64, got dtype int"),
        ({"dy": np.ones((3, 4), int), "x_shape": (4,)}, TypeError, "dy must be float16, .* got dtype int"),
        ({"dy": None}, TypeError, "dy must be an array, got None"),
        (
            {"dy": np.ones((3, 4)), "x_shape": (4,), "out": np.ones(3)},
            ValueError,
            r"out must have shape \(4,\), got \(3,\)",
        ),
        (
            {"dy": np.ones((3, 4)), "x_shape": (4,), "out": np.ones(4, "f4")},
            TypeError,
            "out must have dtype float64, got",
        ),
        ({"dy": np.ones((3, 4)), "x_shape": (4,), "out": b"1" * 32}, ValueError, "out must be writable"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fd.mask((3, 4), 0.5, rng=0).backward(**arguments)


def test_out_may_be_dy_only_where_nothing_is_summed():
    dy = np.ones((3, 4))
    mask = fd.mask((3, 4), 0.5, rng=0)
    with pytest.raises(ValueError, match="out must be dy itself or not overlap it"):
        mask.backward(dy, x_shape=(4,), out=dy[0])
    assert np.array_equal(dy, np.ones((3, 4)))
    assert mask.backward(dy, out=dy) is dy
    assert np.array_equal(dy, np.asarray(mask))
