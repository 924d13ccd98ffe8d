"""Multi-sample dropout: every engine equals the reference to the bit, the rule of the mean is the one written down, the
gradients are the derivatives, and no array of S copies is made."""

import tracemalloc

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.backends import reference
from fastdrop.layers import MultiSampleDropout

SHAPES = [(), (1,), (63,), (64,), (4097,), (3, 5000), (2, 70, 257)]
CHANCES = [
    (1, 0.5),
    (8, 0.1),
    (3, 1.0),
    (5, np.linspace(0.1, 0.5, 5)),
    (4, np.array([0, 1, 0.3, 0.5])),
    pytest.param(70, 0.3, marks=pytest.mark.slow),
]


def eps_of(dtype):
    return {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}[dtype.name]


def normal(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("samples", "p"), CHANCES, ids=lambda v: str(np.ravel(v)[0]))
def test_mean_and_sum_equal_the_reference(engine, dtype, samples, p, threads, identical):
    """And the reference, which would else be compared with itself, the mean and the sum of the copies themselves."""
    near = {"rtol": 4 * eps_of(dtype), "atol": 4 * eps_of(dtype) * samples}
    for shape in SHAPES if samples < 70 else SHAPES[:4]:
        x = normal(shape, dtype)
        dy = normal((samples, *shape), dtype, 1)
        with fd.threads(threads):
            mean, mask = fd.multi_sample_mean(x, p, samples, rng=3)
            summed = fd.multi_sample_dropout_backward(dy, mask)
        if engine == "reference":
            copies = [mask[s].apply(x.astype(np.float64)) for s in range(samples)]
            np.testing.assert_allclose(mean.astype(np.float64), np.mean(copies, axis=0), **near)
            parts = [mask[s].apply(dy[s].astype(np.float64)) for s in range(samples)]
            np.testing.assert_allclose(summed.astype(np.float64), np.sum(parts, axis=0), **near)
            continue
        expected = np.empty_like(x)
        reference.sample_mean(expected, x, mask)
        identical(mean, expected)
        reference.sample_sum(expected, dy, mask)
        identical(summed, expected)


def test_parts_of_a_mask(engine, dtype, identical):
    """Rows and columns of a batch: what they give is a part of what the whole gives."""
    x = normal((40, 300), dtype)
    dy = normal((4, 40, 300), dtype, 1)
    mean, mask = fd.multi_sample_mean(x, 0.3, 4, rng=2)
    rows, columns = slice(3, 20), slice(7, 290)
    identical(fd.multi_sample_mean_backward(x[rows, columns], mask[:, rows, columns]), mean[rows, columns].copy())
    summed = fd.multi_sample_dropout_backward(dy, mask)
    part = fd.multi_sample_dropout_backward(dy[:, rows, columns], mask[:, rows, columns])
    identical(part, summed[rows, columns].copy())
    identical(fd.multi_sample_mean_backward(x[5], mask[:, 5]), mean[5])


def test_the_copies_are_those_of_one_mask(engine, identical):
    x = normal((5, 7), np.float32)
    y, mask = fd.multi_sample_dropout(x, np.linspace(0.1, 0.5, 6), 6, rng=4)
    assert y.shape == mask.shape == (6, 5, 7)
    for s, p in enumerate(np.linspace(0.1, 0.5, 6)):
        keep = fd.mask((6, 5, 7), p, rng=4).keep()[s]
        identical(y[s], np.where(keep, x * np.float32(1 / (1 - p)), np.float32(0)))


def test_the_rule_of_the_mean(engine, identical):
    x = normal(1000, np.float32)
    y, mask = fd.multi_sample_mean(x, 0.1, 7, rng=5)
    count = mask.keep().sum(axis=0).astype(np.float32)
    identical(y, x * (count * np.float32(1 / 0.9 / 7)) + np.float32(0))  # -0.0 where every sample drops
    np.testing.assert_allclose(y, fd.multi_sample_dropout(x, 0.1, 7, rng=5)[0].mean(axis=0), rtol=1e-6)

    p = np.array([0.5, 0.1])
    y, mask = fd.multi_sample_mean(x, p, 2, rng=5)
    a, b = (np.where(k, s, 0) for k, s in zip(mask.keep(), (1 / (1 - p)).astype(np.float32), strict=True))
    identical(y, x * ((a + b) * np.float32(0.5)) + np.float32(0))


def test_what_every_sample_drops_is_zero(engine):
    x = np.full(4000, np.nan)
    y, mask = fd.multi_sample_mean(x, 0.7, 3, rng=6)
    dropped = ~mask.keep().any(axis=0)
    assert dropped.any()
    assert (y[dropped].view(np.uint64) == 0).all()
    assert np.isnan(y[~dropped]).all()
    assert (fd.multi_sample_mean(x, 1.0, 3, rng=6)[0].view(np.uint64) == 0).all()
    assert (fd.multi_sample_dropout_backward(np.full((3, 4000), np.inf), mask)[dropped] == 0).all()


def test_nothing_dropped():
    x = normal(49, np.float32)
    y, mask = fd.multi_sample_mean(x, 0, 49)
    assert y is x
    dy = normal(49, np.float32, 1)
    dx = fd.multi_sample_mean_backward(dy, mask)
    assert np.array_equal(dx, dy)
    assert not np.may_share_memory(dx, dy)


def test_any_layout_and_stored_bits(engine, identical):
    x = normal((30, 40), np.float32)
    mean, mask = fd.multi_sample_mean(x, 0.4, 3, rng=7)
    turned, other = fd.multi_sample_mean(np.asfortranarray(x), 0.4, 3, rng=7)
    assert turned.flags.f_contiguous
    assert other == mask
    identical(turned, mean)
    identical(fd.multi_sample_mean(np.repeat(x, 2, axis=1)[:, ::2], 0.4, 3, rng=7)[0], mean)
    identical(fd.multi_sample_mean(x.astype(">f4"), 0.4, 3, rng=7)[0], mean)
    identical(fd.multi_sample_mean_backward(x, fd.Mask.from_keep(mask.keep(), 0.4)), mean)
    assert fd.multi_sample_mean(np.empty((0, 3)), 0.4, 3, rng=7)[0].shape == (0, 3)


def central_difference(f, at, by, h=1e-6):
    """d f / d by[i] for every i, by moving it both ways."""
    gradient = np.empty_like(by)
    for i in np.ndindex(by.shape):
        old = by[i]
        by[i] = old + h
        up = f(at)
        by[i] = old - h
        gradient[i] = (up - f(at)) / (2 * h)
        by[i] = old
    return gradient


@pytest.mark.parametrize("p", [0.4, np.array([0.1, 0.3, 0.5])], ids=["one p", "three p"])
def test_gradients_are_the_derivatives(p):
    x, weight, apart = normal((3, 4)), normal((3, 4), seed=1), normal((3, 3, 4), seed=2)
    _, mask = fd.multi_sample_dropout(x, p, 3, rng=8)
    numeric = central_difference(lambda x: (fd.multi_sample_dropout(x, p, 3, rng=8)[0] * apart).sum(), x, x)
    np.testing.assert_allclose(fd.multi_sample_dropout_backward(apart, mask), numeric, atol=1e-8)
    numeric = central_difference(lambda x: (fd.multi_sample_mean(x, p, 3, rng=8)[0] * weight).sum(), x, x)
    np.testing.assert_allclose(fd.multi_sample_mean_backward(weight, mask), numeric, atol=1e-8)


@pytest.mark.parametrize("average", ["losses", "logits"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_linear_gradients_are_the_derivatives(average, lead):
    x, W, b = normal((*lead, 5)), normal((5, 4), seed=1), normal(4, seed=2)
    logits, mask = fd.multi_sample_linear(x, W, b, 0.4, 3, rng=9, average=average)
    assert logits.shape == ((3,) if average == "losses" else ()) + (*lead, 4)
    dlogits = normal(logits.shape, seed=3)

    def loss(_):
        return (fd.multi_sample_linear(x, W, b, 0.4, 3, rng=9, average=average)[0] * dlogits).sum()

    for analytic, by in zip(fd.multi_sample_linear_backward(dlogits, x, W, mask), (x, W, b), strict=True):
        np.testing.assert_allclose(analytic, central_difference(loss, x, by), atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_equals_the_copies_through_a_matrix(dtype):
    """Large enough for several blocks, forward and backward."""
    x, W, b = normal((96, 1100), dtype), normal((1100, 10), dtype, 1) / 33, normal(10, dtype, 2)
    p = np.linspace(0.1, 0.5, 8)
    copies, mask = fd.multi_sample_dropout(x, p, 8, rng=10)
    logits, same = fd.multi_sample_linear(x, W, b, p, 8, rng=10)
    assert same == mask
    dlogits = normal(logits.shape, dtype, 3)
    dx, dW, db = fd.multi_sample_linear_backward(dlogits, x, W, mask)
    near = {"rtol": 0, "atol": 2e-4 if dtype is np.float32 else 1e-12}
    np.testing.assert_allclose(logits, copies @ W + b, **near)
    np.testing.assert_allclose(dx, fd.multi_sample_dropout_backward(dlogits @ W.T, mask), **near)
    np.testing.assert_allclose(dW, np.einsum("sbf,sbc->fc", copies, dlogits), **near)
    np.testing.assert_allclose(db, dlogits.sum(axis=(0, 1)), **near)
    mean, _ = fd.multi_sample_linear(x, W, b, p, 8, rng=10, average="logits")
    np.testing.assert_allclose(mean, logits.mean(axis=0), **near)


def test_linear_on_a_shard_of_the_batch():
    x, W = normal((6, 5)), normal((5, 4), seed=1)
    logits, mask = fd.multi_sample_linear(x, W, None, 0.5, 3, rng=1)
    dx, _, _ = fd.multi_sample_linear_backward(logits, x, W, mask)
    part, _, _ = fd.multi_sample_linear_backward(logits[:, 2:4], x[2:4], W, mask[:, 2:4])
    np.testing.assert_allclose(part, dx[2:4], rtol=1e-12)


def peak(call):
    """Bytes that a call has had at most, less those of what it returns."""
    tracemalloc.start()
    result = call()
    bytes_ = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return bytes_ - sum(part.nbytes for part in result if isinstance(part, np.ndarray))


def test_memory():
    x, W, b = normal((256, 4096), np.float32), normal((4096, 10), np.float32), np.zeros(10, np.float32)
    copies = 8 * x.nbytes
    logits, mask = fd.multi_sample_linear(x, W, b, 0.5, 8, rng=0)
    assert peak(lambda: fd.multi_sample_linear(x, W, b, 0.5, 8, rng=0)) < copies / 4
    assert peak(lambda: fd.multi_sample_linear_backward(logits, x, W, mask)) < copies / 4
    if fd.get_backend() == "native":
        assert peak(lambda: fd.multi_sample_mean(x, 0.5, 8, rng=0)) < 100_000
        dy = np.empty((8, *x.shape), np.float32)
        assert peak(lambda: (fd.multi_sample_dropout_backward(dy, mask),)) < 100_000


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (ValueError, "samples must be an integer of at least 1, got 0", {"samples": 0}),
        (ValueError, "samples must be an integer of at least 1, got True", {"samples": True}),
        (TypeError, "samples must be an integer of at least 1, got 2.0", {"samples": 2.0}),
        (ValueError, "p must be one number or one for each of 3 samples, got an array of shape", {"p": [0.1, 0.2]}),
        (ValueError, r"must be in \[0, 1\], got nan", {"p": float("nan")}),
        (ValueError, r"must be in \[0, 1\], got 1.5", {"p": [0.1, 0.2, 1.5]}),
        (TypeError, "x must be .*float.*, got dtype int64", {"x": np.ones((2, 3), np.int64)}),
        (TypeError, "rng must be", {"rng": "seed"}),
    ],
)
def test_bad_input(error, message, changed):
    good = {"x": np.ones((2, 3)), "p": 0.5, "samples": 3, "rng": 0}
    given = good | changed
    for call in (fd.multi_sample_dropout, fd.multi_sample_mean):
        with pytest.raises(error, match=message):
            call(given["x"], given["p"], given["samples"], rng=given["rng"])
    with pytest.raises(error, match=message):
        fd.multi_sample_linear(given["x"], np.ones((3, 4)), None, given["p"], given["samples"], rng=given["rng"])


def test_bad_input_takes_no_mask():
    rng = fd.Rng(0)
    for call in (fd.multi_sample_dropout, fd.multi_sample_mean):
        with pytest.raises(ValueError, match="samples"):
            call(np.ones(3), 0.5, 0, rng=rng)
    with pytest.raises(ValueError, match="average"):
        fd.multi_sample_linear(np.ones((2, 3)), np.ones((3, 4)), None, 0.5, 3, rng=rng, average="both")
    assert rng.stream == 0


def test_bad_shapes_and_dtypes():
    x, W = np.ones((2, 3)), np.ones((3, 4))
    logits, mask = fd.multi_sample_linear(x, W, None, 0.5, 5, rng=0)
    for arguments, message in [
        ((x, np.ones((4, 3)), None), "x must have 4 features"),
        ((x, np.ones(3), None), "W must have the shape"),
        ((x, W, np.ones(3)), "b must have the shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            fd.multi_sample_linear(*arguments, 0.5, 5, rng=0)
    with pytest.raises(TypeError, match="W must have x's dtype"):
        fd.multi_sample_linear(x, W.astype(np.float32), None, 0.5, 5, rng=0)
    with pytest.raises(TypeError, match="x must be float32 or float64"):
        fd.multi_sample_linear(x.astype(np.float16), W, None, 0.5, 5, rng=0)
    with pytest.raises(ValueError, match="dlogits must have shape"):
        fd.multi_sample_linear_backward(logits[:3], x, W, mask)
    with pytest.raises(ValueError, match="mask must have the shape"):
        fd.multi_sample_linear_backward(logits, x[:1], W, mask)
    with pytest.raises(TypeError, match=r"mask must be a fastdrop\.Mask"):
        fd.multi_sample_mean_backward(x, mask.keep())
    with pytest.raises(ValueError, match="dy must have the mask's shape"):
        fd.multi_sample_dropout_backward(x, mask)
    with pytest.raises(ValueError, match="dy must have the shape"):
        fd.multi_sample_mean_backward(np.ones((5, 2, 3)), mask)


@pytest.mark.parametrize("average", ["losses", "logits"])
def test_layer(average):
    x, W, b = normal((6, 5)), normal((5, 4), seed=1), normal(4, seed=2)
    layer = MultiSampleDropout(W, b, p=0.4, samples=3, average=average, rng=11)
    first, second = layer(x), layer(2 * x)
    for logits, mask_x, stream in ((second, 2 * x, 1), (first, x, 0)):  # last in, first out
        expected, mask = fd.multi_sample_linear(mask_x, W, b, 0.4, 3, rng=fd.Rng(11, stream), average=average)
        assert np.array_equal(logits, expected)
        gradients = fd.multi_sample_linear_backward(logits, mask_x, W, mask)
        for mine, theirs in zip((layer.backward(logits), layer.dW, layer.db), gradients, strict=True):
            assert np.array_equal(mine, theirs)
    with pytest.raises(RuntimeError, match="no call"):
        layer.backward(first)
    assert np.array_equal(layer(x, training=False), x @ W + b)
    assert layer.rng.stream == 2
    layer(x)
    with pytest.raises(ValueError, match="dlogits"):
        layer.backward(np.ones(4))
    layer.backward(first)


def test_layer_checks_its_arguments():
    with pytest.raises(ValueError, match="average must be 'losses' or 'logits'"):
        MultiSampleDropout(np.ones((3, 2)), None, average="mean")
    with pytest.raises(ValueError, match="samples"):
        MultiSampleDropout(np.ones((3, 2)), None, samples=0)


def test_each_sample_has_its_own_p_in_a_part_of_a_mask():
    p = np.linspace(0, 0.9, 12).reshape(3, 4)
    mask = fd.mask((3, 4, 50), p, rng=0)[:, 1]  # every fourth p of the array
    dy = np.random.default_rng(0).standard_normal((3, 50))
    dropped = [mask[s].apply(dy[s]) for s in range(3)]
    assert np.allclose(fd.multi_sample_dropout_backward(dy, mask), sum(dropped), rtol=1e-12)
    expected = sum(mask[s].apply(dy[0]) for s in range(3)) / 3
    assert np.allclose(fd.multi_sample_mean_backward(dy[0], mask), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 0, 5)])
@pytest.mark.parametrize("classes", [4, 0])
def test_linear_of_nothing(engine, shape, classes):
    x, W = np.ones(shape), np.ones((shape[-1], classes))
    logits, mask = fd.multi_sample_linear(x, W, None, 0.5, 3, rng=0)
    assert logits.shape == (3, *shape[:-1], classes)
    assert not logits.any()
    dx, dW, db = fd.multi_sample_linear_backward(logits, x, W, mask)
    assert (dx.shape, dW.shape, db.shape) == (x.shape, W.shape, (classes,))
    assert not dW.any()


def test_more_samples_than_memory_can_count():
    for x in (np.ones(3), np.ones(1)):
        with pytest.raises(MemoryError, match="cannot allocate an array of shape"):
            fd.multi_sample_dropout(x, 0.5, 2**62)
        with pytest.raises(MemoryError, match="cannot allocate an array of shape"):
            fd.multi_sample_mean(x, 0.5, 2**62)


def test_mean_in_place(engine, dtype, identical):
    x = np.linspace(-1, 1, 70_001).astype(dtype)
    y, mask = fd.multi_sample_mean(x, 0.5, 4, rng=0)
    again = x.copy()
    assert fd.multi_sample_mean(again, 0.5, 4, rng=0, out=again)[0] is again
    identical(again, y)
    again = x.copy()
    assert fd.multi_sample_mean_backward(again, mask, out=again) is again
    identical(again, y)
