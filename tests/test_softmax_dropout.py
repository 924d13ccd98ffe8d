"""`softmax_dropout` and its backward: a plain NumPy formula in float64, central differences, torch; every engine."""

import math

import numpy as np
import pytest

import fastdrop as fd


def weights(scores, attention_mask=None, axis=-1):
    """Softmax in float64; zeros where nothing is allowed."""
    s = np.asarray(scores, np.float64)
    if attention_mask is not None:
        attention_mask = np.asarray(attention_mask)
        s = np.where(attention_mask, s, -np.inf) if attention_mask.dtype == bool else s + attention_mask
    top = s.max(axis, keepdims=True)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))
    total = e.sum(axis, keepdims=True)
    return e / np.where(total == 0, 1, total)


def formula(scores, mask, attention_mask=None, axis=-1):
    return np.where(mask.keep(), weights(scores, attention_mask, axis) * mask.scale, 0)


def normal(shape, dtype=np.float64, seed=0, size=2.0):
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 16, 17, 63, 64, 65, 200, 1000, 4096, 4097, 9000])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_forward_and_backward_are_the_formula(engine, dtype, n, p):
    scores, dy = normal((5, n), dtype, seed=n), normal((5, n), dtype, seed=n + 1)
    y, mask, log_sum = fd.softmax_dropout(scores, p, rng=fd.Rng(3, n))
    assert mask == fd.mask((5, n), p, rng=fd.Rng(3, n))
    assert y.dtype == dtype
    scale = mask.scale if p < 1 else 0.0
    probability = weights(scores)
    want = np.where(mask.keep(), probability * scale, 0)
    tolerance = 2e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(y, want, rtol=tolerance, atol=tolerance * probability.max())
    np.testing.assert_array_equal(y == 0, ~mask.keep())
    np.testing.assert_allclose(log_sum, np.log(np.exp(scores.astype(float)).sum(-1)), rtol=tolerance, atol=tolerance)
    dx = fd.softmax_dropout_backward(dy, scores, log_sum, mask)
    g = np.where(mask.keep(), dy * scale, 0)
    want = probability * (g - (probability * g).sum(-1, keepdims=True))
    np.testing.assert_allclose(dx, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-300))


def test_backward_is_the_central_difference(engine):
    scores, dy = normal((2, 3, 11)), normal((2, 3, 11), seed=1)
    _, mask, log_sum = fd.softmax_dropout(scores, 0.3, rng=1)
    dx = fd.softmax_dropout_backward(dy, scores, log_sum, mask)
    want = np.empty_like(dx)
    for at in np.ndindex(*scores.shape):
        pair = []
        for step in (1e-6, -1e-6):
            moved = scores.copy()
            moved[at] += step
            pair.append((fd.softmax_dropout(moved, 0.3, mask=mask)[0] * dy).sum())
        want[at] = (pair[0] - pair[1]) / 2e-6
    np.testing.assert_allclose(dx, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [bool, float])
@pytest.mark.parametrize("shape", [(70,), (9, 70), (1, 70), (3, 1, 1, 70), (2, 1, 1), (3, 2, 9, 70), (9, 1), ()])
def test_attention_masks_broadcast(engine, dtype, kind, shape):
    scores, dy = normal((3, 2, 9, 70), dtype), normal((3, 2, 9, 70), dtype, seed=1)
    rng = np.random.default_rng(5)
    attention = rng.random(shape) < 0.7 if kind is bool else rng.standard_normal(shape)
    y, mask, log_sum = fd.softmax_dropout(scores, 0.2, attention_mask=attention, rng=2)
    want = formula(scores, mask, attention)
    tolerance = 2e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(y, want, rtol=0, atol=tolerance)
    dx = fd.softmax_dropout_backward(dy, scores, log_sum, mask, attention_mask=attention)
    g, probability = np.where(mask.keep(), dy * mask.scale, 0), weights(scores, attention)
    want = probability * (g - (probability * g).sum(-1, keepdims=True))
    np.testing.assert_allclose(dx, want, rtol=0, atol=10 * tolerance)


def test_causal_mask(engine):
    allow = np.tril(np.ones((40, 40), bool))
    y, _, _ = fd.softmax_dropout(normal((2, 40, 40), np.float32), 0.0, attention_mask=allow, rng=0)
    assert not y[:, ~allow].any()
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("attention", ["bool", "-inf to add", "lowest to add", "-inf scores", "low scores"])
@pytest.mark.parametrize("n", [1, 16, 50])
def test_rows_fully_masked_give_zeros(engine, attention, n):
    scores, mask = normal((4, n), np.float32), None
    allow = np.ones((4, n), bool)
    allow[1] = allow[3] = False
    if attention == "bool":
        mask, scores[1] = allow, np.nan  # not allowed, not looked at
    elif attention == "-inf to add":
        mask = np.where(allow, 0, -np.inf)
    elif attention == "lowest to add":
        mask = np.where(allow, 0, np.finfo(np.float32).min)
    else:
        scores[~allow] = -np.inf if attention == "-inf scores" else -1e31
    y, drop, log_sum = fd.softmax_dropout(scores, 0.3, attention_mask=mask, rng=1)
    assert not y[1].any()
    assert not y[3].any()
    assert np.isfinite(y).all()
    assert log_sum[1] == math.inf
    dx = fd.softmax_dropout_backward(np.ones_like(y), scores, log_sum, drop, attention_mask=mask)
    assert not dx[1].any()
    assert not dx[3].any()
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores(engine, dtype):
    scores = (normal((6, 100), size=1.0) + 1e4).astype(dtype)
    y, mask, log_sum = fd.softmax_dropout(scores, 0.1, rng=1)
    np.testing.assert_allclose(y, formula(scores, mask), rtol=2e-6)
    dx = fd.softmax_dropout_backward(np.ones_like(y), scores, log_sum, mask)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(engine, dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    scores, dy = normal((4, 77), dtype), normal((4, 77), dtype, seed=1)
    y, mask, log_sum = fd.softmax_dropout(scores, 0.25, rng=1, attention_mask=normal((77,), np.float32))
    wide, _, _ = fd.softmax_dropout(scores.astype(np.float32), 0.25, rng=1, attention_mask=normal((77,), np.float32))
    assert y.dtype == dtype
    rtol = 2.0**-8 if dtype.name == "bfloat16" else 2.0**-10
    np.testing.assert_allclose(y.astype(np.float32), wide, rtol=rtol, atol=1e-7)
    dx = fd.softmax_dropout_backward(dy, scores, log_sum, mask, attention_mask=normal((77,), np.float32))
    good = fd.softmax_dropout_backward(
        dy.astype("f4"), scores.astype("f4"), log_sum, mask, attention_mask=normal((77,), np.float32)
    )
    np.testing.assert_allclose(dx.astype(np.float32), good, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@pytest.mark.parametrize("attention", [None, (5, 6, 7), (6, 1)])
def test_any_axis(engine, axis, attention):
    scores, dy = normal((5, 6, 7)), normal((5, 6, 7), seed=1)
    allow = None if attention is None else np.random.default_rng(0).random(attention) < 0.8
    y, mask, log_sum = fd.softmax_dropout(scores, 0.4, axis=axis, attention_mask=allow, rng=9)
    assert mask == fd.mask((5, 6, 7), 0.4, rng=9)
    np.testing.assert_allclose(y, formula(scores, mask, allow, axis), rtol=1e-12)
    dx = fd.softmax_dropout_backward(dy, scores, log_sum, mask, axis=axis, attention_mask=allow)
    g, probability = np.where(mask.keep(), dy * mask.scale, 0), weights(scores, allow, axis)
    np.testing.assert_allclose(dx, probability * (g - (probability * g).sum(axis, keepdims=True)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(33, 50), (3, 5000)])
def test_p_of_each_row_and_parts_of_masks(engine, shape):
    scores = normal(shape)
    p = np.linspace(0, 1, shape[0])
    y, mask, _ = fd.softmax_dropout(scores, p, rng=4)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_allclose(y, np.where(mask.keep(), weights(scores) * mask.scale[:, None], 0), rtol=1e-12)
    part = fd.mask((40, 6000), 0.3, rng=5)[2 : 2 + shape[0], 7 : 7 + shape[1]]
    y, same, _ = fd.softmax_dropout(scores, 0.3, mask=part)
    assert same is part
    np.testing.assert_allclose(y, formula(scores, part), rtol=1e-12)
    row = fd.mask((40, *shape), 0.3, rng=5)[3]
    np.testing.assert_allclose(fd.softmax_dropout(scores, 0.3, mask=row)[0], formula(scores, row), rtol=1e-12)


def test_any_number_of_threads_gives_the_same_bits():
    scores, dy = normal((7, 31, 129), np.float32), normal((7, 31, 129), np.float32, seed=1)
    results = []
    for n in (1, 2, 3, 8):
        with fd.threads(n):
            y, mask, log_sum = fd.softmax_dropout(scores, 0.1, rng=1)
            dx = fd.softmax_dropout_backward(dy, scores, log_sum, mask)
            results.append((y.tobytes(), log_sum.tobytes(), dx.tobytes()))
    assert len(set(results)) == 1


def test_out_and_layouts(engine):
    scores, dy = normal((4, 6, 10), np.float32), normal((4, 6, 10), np.float32, seed=1)
    want, mask, log_sum = fd.softmax_dropout(scores, 0.5, rng=1)
    dx = fd.softmax_dropout_backward(dy, scores, log_sum, mask)
    for lay in (np.asfortranarray, lambda x: np.repeat(x, 2, axis=-1)[..., ::2], lambda x: x.astype(">f4"), np.copy):
        x, out = lay(scores), lay(np.zeros_like(scores))
        y, _, _ = fd.softmax_dropout(x, 0.5, rng=1, out=out)
        assert y is out
        np.testing.assert_array_equal(out, want)
        np.testing.assert_array_equal(fd.softmax_dropout_backward(lay(dy), x, log_sum, mask, out=out), dx)
    inplace = dy.copy()
    assert fd.softmax_dropout_backward(inplace, scores, log_sum, mask, out=inplace) is inplace
    np.testing.assert_array_equal(inplace, dx)
    inplace = scores.copy()
    fd.softmax_dropout(inplace, 0.5, rng=1, out=inplace)
    np.testing.assert_array_equal(inplace, want)


def test_evaluation_drops_nothing_and_takes_no_mask():
    rng = fd.Rng(1)
    y, mask, _ = fd.softmax_dropout(normal((3, 5)), 0.9, rng=rng, training=False)
    assert rng.stream == 0
    assert mask.p == 0
    np.testing.assert_allclose(y.sum(-1), 1)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty(shape):
    y, mask, log_sum = fd.softmax_dropout(np.zeros(shape), 0.5, rng=0)
    assert y.shape == shape
    assert log_sum.shape == shape[:1]
    assert fd.softmax_dropout_backward(y, y, log_sum, mask).shape == shape


def test_torch_agrees():
    torch = pytest.importorskip("torch")
    scores, dy = normal((3, 4, 20)), normal((3, 4, 20), seed=1)
    y, mask, log_sum = fd.softmax_dropout(scores, 0.3, rng=1)
    t = torch.tensor(scores, requires_grad=True)
    z = torch.softmax(t, -1) * torch.tensor(np.asarray(mask))
    z.backward(torch.tensor(dy))
    np.testing.assert_allclose(y, z.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        fd.softmax_dropout_backward(dy, scores, log_sum, mask), t.grad.numpy(), rtol=0, atol=1e-14
    )


X = np.zeros((2, 3))
MASK = fd.mask((2, 3), 0.5, rng=0)


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda: fd.softmax_dropout(X, 1.5), ValueError, ["p", "[0, 1]", "1.5"]),
        (lambda: fd.softmax_dropout(X.astype(int), 0.5), TypeError, ["scores", "int64"]),
        (lambda: fd.softmax_dropout(X, 0.5, axis=2), ValueError, ["axis", "2"]),
        (lambda: fd.softmax_dropout(np.float64(0), 0.5), ValueError, ["axis", "()"]),
        (lambda: fd.softmax_dropout(X, X * 0.5), ValueError, ["p", "axis 1", "(2, 3)"]),
        (lambda: fd.softmax_dropout(X, 0.5, attention_mask=X.T > 0), ValueError, ["attention_mask", "(3, 2)"]),
        (lambda: fd.softmax_dropout(X, 0.5, attention_mask=[1, 0, 1]), TypeError, ["attention_mask", "int64"]),
        (lambda: fd.softmax_dropout(X, 0.5, mask=fd.mask(3, 0.5, rng=0)), ValueError, ["mask", "(2, 3)", "(3,)"]),
        (lambda: fd.softmax_dropout(X, 0.5, mask=7), TypeError, ["mask", "int"]),
        (lambda: fd.softmax_dropout(X, 0.5, out=X[:1].copy()), ValueError, ["out", "(2, 3)", "(1, 3)"]),
        (lambda: fd.softmax_dropout_backward(X[0], X, X[:, 0], MASK), ValueError, ["dy", "(3,)"]),
        (lambda: fd.softmax_dropout_backward(X, X, X, MASK), ValueError, ["log_sum", "(2,)"]),
    ],
)
def test_bad_input_is_named(function, error, words):
    with pytest.raises(error) as raised:
        function()
    for word in words:
        assert word in str(raised.value)


def test_out_may_not_overlap_log_sum():
    scores = normal((4, 4), np.float64)
    memory = np.zeros((5, 4))
    _, mask, log_sum = fd.softmax_dropout(scores, 0.5, rng=0)
    memory[4] = log_sum
    with pytest.raises(ValueError, match="out must not overlap log_sum"):
        fd.softmax_dropout_backward(np.ones_like(scores), scores, memory[4], mask, out=memory[1:])
    assert np.array_equal(memory[4], log_sum)


def test_out_may_not_overlap_the_attention_mask():
    scores = np.random.default_rng(0).standard_normal((4, 6))
    out = np.zeros((4, 6))
    with pytest.raises(ValueError, match="attention_mask"):
        fd.softmax_dropout(scores, 0.5, attention_mask=out[:1], rng=0, out=out)


def test_p_may_be_left_out_where_a_mask_is_given():
    np.testing.assert_array_equal(fd.softmax_dropout(X, mask=MASK)[0], fd.softmax_dropout(X, 0.1, mask=MASK)[0])


def test_axis_is_an_integer():
    with pytest.raises(TypeError, match=r"axis must be an integer, got 1\.0"):
        fd.softmax_dropout(X, 0.5, axis=1.0)


def test_bools_of_other_bytes_than_0_and_1(engine):
    """A byte of 2 was taken for the bit of the neighbour."""
    scores = normal((3, 70), np.float32)
    allow = np.random.default_rng(0).integers(0, 3, (3, 70), np.uint8)
    odd = (allow * 127).view(np.bool_)
    got = fd.softmax_dropout(scores, 0.0, attention_mask=odd)
    wanted = fd.softmax_dropout(scores, 0.0, attention_mask=allow != 0)
    np.testing.assert_array_equal(got[0], wanted[0])
    assert ((got[0] != 0) == (allow != 0)).all()


@pytest.mark.parametrize("n", [3, 16, 50])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_or_infinity_makes_its_row_nan_and_no_other(engine, dtype, n, bad):
    scores = normal((3, n), dtype)
    scores[1, n // 2] = bad
    y, mask, log_sum = fd.softmax_dropout(scores, 0.0, rng=0)
    dx = fd.softmax_dropout_backward(np.ones_like(scores), scores, log_sum, mask)
    for got in (y, dx):
        np.testing.assert_array_equal(np.isnan(got.astype(np.float64)), np.repeat([[False], [True], [False]], n, 1))
    np.testing.assert_array_equal(np.isnan(log_sum), [False, True, False])


@pytest.mark.parametrize("of_mask", ["float16", "bfloat16", "float32", "float64"])
def test_the_lowest_number_of_any_mask_dtype_masks(engine, dtype, of_mask):
    of_mask = np.dtype(getattr(pytest.importorskip("ml_dtypes"), of_mask, of_mask))
    lowest = np.nextafter(of_mask.type(-np.inf), of_mask.type(0))
    scores = normal((3, 20), dtype)
    allow = np.ones((3, 20), bool)
    allow[1], allow[2, ::2] = False, False
    bias = np.where(allow, of_mask.type(0), lowest)
    wanted, mask, wanted_sum = fd.softmax_dropout(scores, 0.3, rng=1, attention_mask=allow)
    got, _, log_sum = fd.softmax_dropout(scores, 0.3, rng=1, attention_mask=bias)
    assert not got[1].any()
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(log_sum, wanted_sum)
    dy = np.ones_like(scores)
    np.testing.assert_array_equal(
        fd.softmax_dropout_backward(dy, scores, log_sum, mask, attention_mask=bias),
        fd.softmax_dropout_backward(dy, scores, log_sum, mask, attention_mask=allow),
    )
