"""Losses on logits: textbook formulas in long double, torch, central differences; every backend and instruction set."""

import decimal
import functools
import itertools
import math
from functools import partial

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.bench import accuracy
from fastdrop.operations import DIVERGENCES, LOSSES

OPS = list(LOSSES)
FLOATS = (np.float32, np.float64)


def softmax(x):
    x = x.astype(np.longdouble)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == 0, 0, p * (np.log(p) - np.log(q))).sum(-1)


def ce(p, y):
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(y == 0, 0, y * np.log(p)).sum(-1)


def smooth(labels, n, epsilon):
    y = np.eye(n)[labels] if labels.dtype.kind == "i" else labels.astype(np.longdouble)
    return y * (1 - epsilon) + epsilon / n


def textbook(op, a, b, labels=None, alpha=0.7, epsilon=0.0, temperature=1.0):
    """Loss of each row in long double."""
    p, q = softmax(a / np.longdouble(temperature)), softmax(b / np.longdouble(temperature))
    kind, m = LOSSES[op], (p + q) / 2
    if kind.sides == 1:
        return ce(p, smooth(labels, a.shape[-1], epsilon))
    parts = (kind.forward, p, q), (kind.reverse, q, p), (kind.middle / 2, p, m), (kind.middle / 2, q, m)
    divergence = sum(weight * kl(x, y) for weight, x, y in parts if weight)
    if not kind.labels:
        return divergence
    y = smooth(labels, a.shape[-1], epsilon)
    return (ce(p, y) + ce(q, y)) / 2 + alpha * divergence


def call(op, a, b, labels, alpha=accuracy.ALPHA, epsilon=0.0, **kwargs):
    """Return (loss, gradients...) of any of the five."""
    if op == "cross_entropy":
        return fd.cross_entropy(a, labels, label_smoothing=epsilon, **kwargs)
    if op == "r_drop":
        result = fd.r_drop(a, b, labels, alpha=alpha, label_smoothing=epsilon, **kwargs)
        return result.loss, result.da, result.db
    return getattr(fd, op)(a, b, **kwargs)


def logits(shape, dtype=np.float64, seed=0, apart=0.5, size=2.0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape) * size
    b = a + rng.standard_normal(shape) * apart
    labels = rng.integers(0, shape[-1], shape[:-1])
    return a.astype(dtype), b.astype(dtype), labels


def close(got, want, rtol):
    """Within rtol of each row's largest."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    limit = rtol * np.abs(want).max(-1, keepdims=True) if want.ndim else rtol * abs(want)
    assert np.all(np.abs(got - want) <= limit), np.max(np.abs(got - want) - limit)


# -- the numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 100, 4095, 4097, 9001])
@pytest.mark.parametrize("dtype", FLOATS)
def test_loss_equals_the_textbook_formula(engine, op, n, dtype):
    a, b, labels = logits((3, n), dtype, seed=n, apart=1.0)
    loss, *_ = call(op, a, b, labels, reduction="none")
    assert loss.dtype == dtype
    want = textbook(op, a, b, labels).astype(np.float64)
    np.testing.assert_allclose(loss, want, rtol=2e-6 if dtype == np.float32 else 1e-12, atol=1e-16)


OPTIONS = [{}, {"temperature": 2.5}, {"epsilon": 0.2}, {"temperature": 0.5, "epsilon": 1.0}]
CASES = [
    (op, options, probable)
    for op in OPS
    for options in OPTIONS
    for probable in (False, True)
    if LOSSES[op].labels or not ("epsilon" in options or probable)  # the others have no labels
]


@pytest.mark.parametrize(("op", "options", "probable"), CASES)
def test_gradients_are_central_differences(engine, op, options, probable):
    a, b, labels = logits((2, 19), seed=5)
    if probable:
        labels = np.random.default_rng(6).random((2, 19))
    _, *gradients = call(op, a, b, labels, reduction="sum", **options)
    step = 1e-5
    for i, got in enumerate(gradients):
        want = np.empty_like(got)
        for at in np.ndindex(*want.shape):
            pair = []
            for sign in (1, -1):
                moved = [a.copy(), b.copy()]
                moved[i][at] += sign * step
                pair.append(textbook(op, *moved, labels, **options).sum())
            want[at] = (pair[0] - pair[1]) / (2 * step)
        close(got, want, 1e-8)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(4, 1000), (2, 3, 257), (5,)])
def test_float32_is_near_float64(engine, op, shape):
    a, b, labels = logits(shape, np.float32, seed=3)
    loss, *gradients = call(op, a, b, labels, temperature=1.5, epsilon=0.1)
    want, *wanted = call(op, a.astype(np.float64), b.astype(np.float64), labels, temperature=1.5, epsilon=0.1)
    assert loss == pytest.approx(want, rel=1e-6)
    for got, good in zip(gradients, wanted):
        assert got.dtype == np.float32
        assert got.shape == shape
        close(got, good, 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_half_types_are_computed_with_in_float32(engine, op, dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    a, b, labels = logits((3, 77), dtype, seed=8)
    loss, *gradients = call(op, a, b, labels, reduction="sum", epsilon=0.1)
    want, *wanted = call(op, a.astype(np.float32), b.astype(np.float32), labels, reduction="sum", epsilon=0.1)
    assert loss == pytest.approx(want, rel=1e-6)
    for got, good in zip(gradients, wanted):
        assert got.dtype == dtype
        close(got, good, 2.0**-8 if dtype.name == "bfloat16" else 2.0**-10)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("apart", [0.5, 2.0])
def test_every_engine_is_near_the_truth(engine, op, apart):
    a, b, labels = logits((7, 3001), np.float32, seed=9, apart=apart)
    loss, *gradients = call(op, a, b, labels, reduction="none", epsilon=0.1, temperature=0.8)
    want, wanted = accuracy.exact(op, a, b, labels, 0.8, 0.1)
    np.testing.assert_allclose(loss, want.astype(float), rtol=1e-6)
    for got, good in zip(gradients, wanted):
        close(got, good, 2e-6)


@pytest.mark.parametrize("op", OPS)
def test_any_number_of_threads_gives_the_same_bits(op):
    a, b, labels = logits((101, 333), np.float32, seed=10)
    results = []
    for n in (1, 2, 3, 8):
        with fd.threads(n):
            results.append(call(op, a, b, labels, epsilon=0.1))
    for other in results[1:]:
        assert other[0] == results[0][0]
        for x, y in zip(other[1:], results[0][1:]):
            assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("n", [1, 2, 3, 17])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smoothing_counts_no_padding_of_16_bit_rows(engine, n, dtype):
    dtype = getattr(pytest.importorskip("ml_dtypes"), dtype, dtype)
    a, b, labels = logits((20, n), dtype, seed=13, apart=8, size=8)
    want = textbook("r_drop", a.astype(np.float64), b.astype(np.float64), labels, epsilon=0.1).mean()
    loss = fd.r_drop(a, b, labels, alpha=0.7, label_smoothing=0.1).loss
    assert loss == pytest.approx(float(want), rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_torch_agrees(op, epsilon):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    a, b, labels = logits((6, 50), seed=11)
    ta, tb = (torch.tensor(x, requires_grad=True) for x in (a, b))
    log_p, log_q = F.log_softmax(ta, -1), F.log_softmax(tb, -1)
    entropies = [F.cross_entropy(x, torch.tensor(labels), label_smoothing=epsilon) for x in (ta, tb)]
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    kind = LOSSES[op]
    parts = (
        (kind.forward, log_p, log_q), (kind.reverse, log_q, log_p), (kind.middle / 2, log_p, log_m),
        (kind.middle / 2, log_q, log_m),
    )  # fmt: skip
    kl = partial(F.kl_div, log_target=True, reduction="batchmean")
    want = sum(weight * kl(y, x) for weight, x, y in parts if weight)
    if kind.labels:
        want = sum(entropies[: kind.sides]) / kind.sides + 0.7 * want
    want.backward()
    loss, *gradients = call(op, a, b, labels, epsilon=epsilon)
    assert loss == pytest.approx(want.item(), rel=1e-12)
    for got, t in zip(gradients, (ta, tb)):
        close(got, t.grad.numpy(), 1e-11)


def test_r_drop_tells_its_parts():
    a, b, labels = logits((6, 50), seed=12)
    result = fd.r_drop(a, b, labels, alpha=3.0)
    assert result.kl == pytest.approx(fd.symmetric_kl(a, b)[0], rel=1e-12)
    assert result.ce == pytest.approx((fd.cross_entropy(a, labels)[0] + fd.cross_entropy(b, labels)[0]) / 2, rel=1e-12)
    assert result.loss == pytest.approx(result.ce + 3 * result.kl, rel=1e-12)


# -- logits at the edge ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_classes_masked_in_both_take_no_part(engine, op, dtype):
    a, b, _ = logits((5, 40), dtype, seed=13)
    labels = np.arange(5) * 3 + 1
    out = np.zeros(40, bool)
    out[::3] = True
    few = call(op, a[:, ~out].copy(), b[:, ~out].copy(), np.searchsorted(np.flatnonzero(~out), labels))
    a[:, out] = b[:, out] = -np.inf
    loss, *gradients = call(op, a, b, labels)
    assert loss == pytest.approx(few[0], rel=2e-6 if dtype == np.float32 else 1e-12)
    for got, want in zip(gradients, few[1:]):
        assert not got[:, out].any()
        close(got[:, ~out], want, 2e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_class_that_one_side_excludes(engine, dtype):
    a, b = np.zeros((1, 5), dtype), np.arange(5, dtype=dtype)[None]
    b[0, 2] = -np.inf
    loss, da, db = fd.kl_div(a, b)
    assert loss == math.inf
    assert not da.any()
    assert not db.any()
    loss, da, db = fd.kl_div(b, a)  # p is 0 there: finite
    assert loss == pytest.approx(float(textbook("kl_div", b, a).sum()), rel=1e-6)
    assert np.isfinite(da).all()
    assert np.isfinite(db).all()
    loss, da, db = fd.symmetric_kl(a, b)
    assert loss == math.inf
    assert not da.any()
    assert not db.any()
    loss, da, db = fd.js_div(a, b)
    assert loss == pytest.approx(float(textbook("js_div", a, b).sum()), rel=1e-6)
    assert np.isfinite(da).all()
    assert np.isfinite(db).all()
    result = fd.r_drop(a, b, [1], alpha=1.0)
    assert result.loss == result.kl == math.inf
    assert math.isfinite(result.ce)
    close(result.da, fd.cross_entropy(a, [1])[1] / 2, 1e-6)
    close(result.db, fd.cross_entropy(b, [1])[1] / 2, 1e-6)
    assert fd.r_drop(a, b, [1], alpha=0.0).loss == result.ce


def test_a_label_that_is_excluded_has_infinite_loss_and_a_finite_gradient(engine):
    a = np.zeros((1, 4), np.float32)
    a[0, 1] = -np.inf
    loss, da = fd.cross_entropy(a, [1])
    assert loss == math.inf
    np.testing.assert_allclose(da, [[1 / 3, -1, 1 / 3, 1 / 3]], rtol=1e-6)
    assert fd.cross_entropy(a, [0], label_smoothing=0.1)[0] == math.inf
    assert fd.cross_entropy(a, np.array([[0.5, 0.0, 0.5, 0]], np.float32))[0] == pytest.approx(math.log(3), rel=1e-6)
    assert fd.cross_entropy(a, np.array([[0.5, 0.1, 0.4, 0]], np.float32))[0] == math.inf


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [3, 16, 40])
def test_rows_without_any_class_cost_nothing(engine, op, dtype, n):
    a = np.full((2, n), -np.inf, dtype)
    loss, *gradients = call(op, a, a.copy(), np.zeros(2, int))
    assert loss == 0
    for g in gradients:
        assert not g.any()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("apart", [0.5, 1e4])
def test_large_logits(engine, op, dtype, apart):
    rng = np.random.default_rng(14)
    a = (rng.standard_normal((4, 100)) * 1e4).astype(dtype)
    b = (a + rng.standard_normal(a.shape) * apart).astype(dtype)
    b += dtype(4096)  # no difference to softmax
    labels = np.argmax(a, -1)
    loss, *gradients = call(op, a, b, labels, reduction="none")
    want, wanted = accuracy.exact(op, a, b, labels)
    smallest = np.finfo(dtype).smallest_subnormal
    np.testing.assert_allclose(loss, want.astype(float), rtol=3e-6, atol=smallest)
    for got, good in zip(gradients, wanted, strict=True):
        good = good.astype(float)
        assert np.all(np.abs(got - good) <= 3e-6 * np.abs(good).max(-1, keepdims=True) + smallest)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_class(engine, op, dtype):
    a = np.array([[3.0], [-7.0]], dtype)
    loss, *gradients = call(op, a, -a, np.zeros(2, int), epsilon=0.3)
    assert loss == 0
    for g in gradients:
        np.testing.assert_allclose(g, 0, atol=3 * np.finfo(dtype).eps)  # 1 - 0.7 - 0.3


@pytest.mark.parametrize("op", OPS)
def test_nan_is_not_hidden(engine, op):
    a, b, labels = logits((2, 20), np.float32)
    a[0, 3] = np.nan
    loss, *_ = call(op, a, b, labels, reduction="none")
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1])


@functools.cache
def adversarial_rows(judged, classes, dtype):
    """(name, arguments of `accuracy.errors`, its options): once for all engines."""
    op, probable, smoothing = accuracy.JUDGED[judged]
    found = []
    for i, (name, a, b, labels) in enumerate(accuracy.inputs(classes, dtype, 8, seed=classes)):
        options = {"temperature": (1.0, 0.5, 4.0)[i % 3]}
        if LOSSES[op].labels:
            options["smoothing"] = 0.0 if np.isneginf(a).any() else smoothing
        if probable:
            labels = accuracy.probabilities(labels, classes, dtype)
            labels = np.where(np.isneginf(a), 0, labels).astype(a.dtype)
        found.append((name, (op, a, b, labels, accuracy.truth(op, a, b, labels, **options)), options))
    return found


@pytest.mark.parametrize("judged", accuracy.JUDGED)
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_adversarial_rows_keep_their_digits(engine, judged, classes, dtype):
    """Within what the documentation says."""
    limit = accuracy.bound(dtype.name, engine.removeprefix("native-"))
    for name, arguments, options in adversarial_rows(judged, classes, dtype.name):
        loss, gradient = accuracy.errors(*arguments, **options)
        assert loss <= limit, name
        assert gradient <= limit, name


def mp_losses(op, a, b, label):
    """One row's loss and gradients by mpmath."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(400):
        logs = []
        for row in a, b:
            x = [mpmath.mpf(float(v)) for v in row]
            whole = mpmath.log(mpmath.fsum(map(mpmath.exp, x)))
            logs.append(np.array([v - whole for v in x], object))
        x, y = logs
        p, q = (np.array([mpmath.exp(v) for v in row], object) for row in logs)
        m = np.array([mpmath.log((s + t) / 2) for s, t in zip(p, q)], object)
        own = np.array([mpmath.mpf(int(i == label)) for i in range(len(a))], object)

        def kl(p, x, y):
            return (p * (x - y)).sum()

        def slope(p, x):
            return p * (x - (p * x).sum())

        kind = LOSSES[op]
        forward, reverse, middle = kind.forward, kind.reverse, kind.middle / 2
        loss = forward * kl(p, x, y) + reverse * kl(q, y, x) + middle * (kl(p, x, m) + kl(q, y, m))
        da = forward * slope(p, x - y) + reverse * (p - q) + middle * slope(p, x - m)
        db = reverse * slope(q, y - x) + forward * (q - p) + middle * slope(q, y - m)
        if kind.labels:
            loss, da, db = (accuracy.ALPHA * part for part in (loss, da, db))
            for side in (x, y)[: kind.sides]:
                loss -= side[label] / kind.sides
            da, db = da + (p - own) / kind.sides, db + (q - own) / kind.sides
        return float(loss), [g.astype(np.float64) for g in (da, db)[: kind.sides]]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("classes", [2, 5])
def test_the_truth_is_the_truth(op, classes):
    """`accuracy.exact`, which judges all engines, against 400 digits."""
    for name, a, b, labels in accuracy.inputs(classes, "float64", 2, seed=7):
        if np.isneginf(a).any():
            continue
        loss, gradients = accuracy.exact(op, a, b, labels)
        for row in range(len(a)):
            want, wanted = mp_losses(op, a[row], b[row], labels[row])
            assert float(loss[row]) == pytest.approx(want, rel=1e-12, abs=0), name
            for got, good in zip(gradients, wanted, strict=True):
                np.testing.assert_allclose(
                    got[row].astype(float), good, rtol=0, atol=1e-10 * np.abs(good).max(), err_msg=name
                )


# Each was wrong once: the loss in more digits than float32 has.
@pytest.mark.parametrize(("op", "a", "b", "label", "want"), [
    ("cross_entropy", [90.0, 0.0, 1.0], None, 1, 90.0),
    ("cross_entropy", [95.5, 0.0], None, 1, 95.5),
    ("cross_entropy", [30.0, 19, 20], None, [1.0, 0, 0], 6.2099749e-5),
    ("cross_entropy", [40.0, 0.0], None, 0, 4.2483543e-18),
    ("symmetric_kl", [-1.69019615, 0.07826582], [-0.58806378, 1.17997682], None, None),
    ("symmetric_kl", [11.727616, 11.807467], [1000.0, 1000.0], None, 7.96584e-4),
    ("symmetric_kl", [88.0] + [0.0] * 63, [89.0] + [0.0] * 63, None, None),
    ("js_div", [88.0] + [0.0] * 63, [80.0] + [0.0] * 63, None, None),
    ("kl_div", [40.0, 0.0], [0.0, 40.0], None, None),
    ("js_div", [30.0, 0.0, 1.0], [14.0, 0.0, 1.0], None, None),
])  # fmt: skip
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_were_wrong(engine, op, a, b, label, want, dtype):
    a, b = (None if x is None else np.array([x], dtype) for x in (a, b))
    labels = None if label is None else np.array([label], dtype if isinstance(label, list) else int)
    loss, *gradients = call(op, a, b, labels, reduction="none")
    good, wanted = accuracy.exact(op, a, b, labels)
    if want is not None:
        assert float(good[0]) == pytest.approx(want, rel=1e-4)
    smallest = 2e-45 if dtype == np.float32 else 0
    assert float(loss[0]) == pytest.approx(float(good[0]), rel=2e-6, abs=smallest)
    for got, right in zip(gradients, wanted, strict=True):
        right = right.astype(float)
        np.testing.assert_allclose(got, right, rtol=0, atol=2e-6 * np.abs(right).max() + smallest)


@pytest.mark.parametrize("op", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.4, 3.96])
@pytest.mark.parametrize("height", [0.0, 6.0])
def test_one_class_that_differs(engine, op, temperature, height):
    """All others differ by the same: what remains of them is their difference to the mean."""
    a = np.random.default_rng(3).standard_normal((24, 1000))
    a[:, 0] = a.max(-1) + height
    b = a.copy()
    b[:, 0] += np.linspace(-3, 3, 24)
    loss, gradient = accuracy.errors(op, a.astype("f"), b.astype("f"), None, temperature=temperature)
    assert max(loss, gradient) <= accuracy.bound("float32", engine.removeprefix("native-"))


@pytest.mark.parametrize("op", DIVERGENCES)
@pytest.mark.parametrize("apart", [1e-4, 1e-6])
def test_float64_rows_that_nearly_agree(engine, op, apart):
    """The difference of two logits has all its digits only if it is taken before each row's own maximum is."""
    rng = np.random.default_rng(12)
    a = 4 * rng.standard_normal((400, 2))
    b = a + apart * rng.standard_normal((400, 2))
    loss, gradient = accuracy.errors(op, a, b, None, temperature=4.0)
    assert max(loss, gradient) <= accuracy.bound("float64", engine.removeprefix("native-"))


def test_js_of_rows_apart_in_few_classes(engine):
    """Fewer classes than a vector holds, an offset that no float holds: every class has the same taken off."""
    rng = np.random.default_rng(3)
    a = 4 * rng.standard_normal((600, 15))
    b = a + 2 * rng.standard_normal((600, 15)) + 30.3
    loss, _ = accuracy.errors("js_div", a.astype("f"), b.astype("f"), None)
    assert loss <= 2.5e-6  # 3.1e-6 where some have more taken off than others


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [3, 10_000])
@pytest.mark.parametrize("apart", [1e-12, 3e-21])
def test_rows_that_differ_by_next_to_nothing(engine, apart, n, dtype):
    """Each class's share of the loss may be less than any float, and log(p / m) + log(q / m) cancel."""
    b = (apart * np.random.default_rng(5).standard_normal((1, n))).astype(dtype)
    variance = float(np.var(b, dtype=np.longdouble))
    smallest = 2e-45 if dtype == np.float32 else 0
    for op, share in ("kl_div", 2), ("symmetric_kl", 2), ("js_div", 8):
        loss, *_ = call(op, np.zeros_like(b), b, None)
        assert loss == pytest.approx(variance / share, rel=2e-6, abs=smallest), op


@pytest.mark.parametrize("op", OPS)
def test_the_formulas_that_cancel_nowhere_are_the_textbook_ones(op):
    a, b, labels = logits((5, 30), seed=21, apart=1.0)
    loss, _ = accuracy.exact(op, a, b, labels)
    np.testing.assert_allclose(loss.astype(float), textbook(op, a, b, labels, accuracy.ALPHA).astype(float), rtol=1e-14)


@pytest.mark.parametrize("op", OPS)
def test_a_label_with_all_probability(engine, op):
    """1 - p is what the other classes have, however little."""
    a = np.zeros((2, 40), np.float32)
    a[:, 7] = 8, 16
    b = a.copy()
    b[:, 7] += 1
    labels = np.full(2, 7)
    loss, *gradients = call(op, a, b, labels, reduction="none")
    want, wanted = accuracy.exact(op, a, b, labels)
    np.testing.assert_allclose(loss, want.astype(float), rtol=2e-6)
    for got, good in zip(gradients, wanted):
        close(got, good, 2e-6)


# -- the rules for what is no ordinary row -----------------------------------------------------------------------------

INF = math.inf
RULES = {  # a, b: cross entropy with label 0, KL, symmetric KL, Jensen-Shannon; "low" is the dtype's lowest number
    "NaN beside a": ([0, math.nan, 1], [0, 1, 2], math.nan, math.nan, math.nan, math.nan),
    "NaN in b": ([0, 1, 1], [0, math.nan, 2], 1.861994804058251, math.nan, math.nan, math.nan),
    "NaN beside a large one": ([math.nan, 200, 0], [0, 0, 0], math.nan, math.nan, math.nan, math.nan),
    "+inf": ([0, INF, 1], [0, 1, 2], math.nan, math.nan, math.nan, math.nan),
    "none in either": ([-INF] * 3, [-INF] * 3, 0, 0, 0, 0),
    "none in a": ([-INF] * 3, [0, 0, 0], 0, 0, INF, math.log(2)),
    "none in b": ([0, 0, 0], [-INF] * 3, math.log(3), INF, INF, math.log(2)),
    "one excluded by b": ([0, 0, -INF], [0, -INF, -INF], math.log(2), INF, INF, 0.2157615543388356),
    "one excluded by a": ([0, -INF, -INF], [0, 0, -INF], 0, math.log(2), INF, 0.2157615543388356),
    "the label excluded": ([-INF, 0, 0], [-INF, 0, 0], INF, 0, 0, 0),
    "nothing but the lowest": (["low"] * 3, ["low"] * 3, math.log(3), 0, 0, 0),
    "the lowest against zeros": (["low"] * 3, [0] * 3, math.log(3), 0, 0, 0),
    "one against the lowest": ([1, "low", "low"], [1, "low", "low"], 0, 0, 0, 0),
    "the same large numbers": (["high", "high", 0], ["high", "high", 0], math.log(2), 0, 0, 0),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n", [3, 40])
def test_rules(engine, dtype, name, n):
    """The same on every engine, for every dtype; a row's neighbours feel nothing of it."""
    a, b, *wanted = RULES[name]
    low = np.nextafter(dtype.type(-INF), dtype.type(0))
    pair = np.full((2, 3, n), -INF)
    pair[:, ::2] = np.linspace(-1, 1, n) * np.array([[[1]], [[2]]])
    for x, row in zip(pair, (a, b)):
        x[1, :3] = [{"low": float(low), "high": -float(low)}.get(v, v) for v in row]
    a, b = pair.astype(dtype)
    labels = np.zeros(3, int)
    results = [
        fd.cross_entropy(a, labels, reduction="none"), fd.kl_div(a, b, reduction="none"),
        fd.symmetric_kl(a, b, reduction="none"), fd.js_div(a, b, reduction="none"),
    ]  # fmt: skip
    for (loss, *gradients), want in zip(results, wanted, strict=True):
        assert float(loss[1]) == pytest.approx(want, rel=1e-6, abs=1e-30, nan_ok=True)
        assert np.isfinite(loss[::2]).all()
        for g in gradients:
            g = g.astype(np.float64)
            assert np.isfinite(g[::2]).all()
            assert np.isnan(g[1]).all() if math.isnan(want) else np.isfinite(g[1]).all()
    for g in results[1][1:] * (wanted[1] == INF) + results[2][1:] * (wanted[2] == INF):
        assert not g[1].astype(np.float64).any()
    one_hot = np.zeros((3, n), dtype)
    one_hot[:, 0] = 1
    soft = fd.cross_entropy(a, one_hot, reduction="none")
    np.testing.assert_allclose(soft[0][1], wanted[0], rtol=1e-6)
    for alpha in (0.0, 0.5):
        both = fd.r_drop(a, b, labels, alpha=alpha, reduction="none")
        assert float(both.kl[1]) == pytest.approx(wanted[2], rel=1e-6, abs=1e-30, nan_ok=True)
        assert math.isnan(both.ce[1]) == math.isnan(wanted[2])
    ignored = fd.cross_entropy(a, np.array([0, -100, 0]), reduction="none")
    assert ignored[0][1] == 0
    assert not ignored[1][1].astype(np.float64).any()


# -- reductions and ignored rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_reductions(engine, op):
    a, b, labels = logits((3, 4, 9), seed=16)
    pad = np.zeros((3, 4), bool)
    pad[1, 2:] = True
    rows, *of_rows = call(op, a, b, labels, pad_mask=pad, reduction="none")
    assert rows.shape == (3, 4)
    assert not rows[pad].any()
    for g in of_rows:
        assert not g[pad].any()
    for reduction, divisor in (("sum", 1), ("mean", 10), ("batchmean", 3)):
        loss, *gradients = call(op, a, b, labels, pad_mask=pad, reduction=reduction)
        assert loss == pytest.approx(rows.sum() / divisor, rel=1e-12)
        for g, r in zip(gradients, of_rows):
            np.testing.assert_allclose(g, r / divisor, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("op", OPS)
def test_all_rows_ignored(engine, op):
    a, b, labels = logits((3, 4, 9))
    loss, *gradients = call(op, a * np.nan, b, labels, pad_mask=np.ones((3, 4), bool))
    assert loss == 0
    for g in gradients:
        assert not g.any()


@pytest.mark.parametrize("shape", [(4,), (3, 1), (3, 4), (3, 4, 1), ()])
def test_pad_mask_broadcasts(shape):
    a, b, _ = logits((3, 4, 9))
    pad = np.random.default_rng(1).random(shape) < 0.5
    whole = np.broadcast_to(pad[..., 0] if pad.ndim == 3 else pad, (3, 4))
    loss = fd.symmetric_kl(a, b, pad_mask=pad, reduction="none")[0]
    np.testing.assert_array_equal(loss == 0, whole)


def test_ignore_index_is_a_pad_mask(engine):
    a, b, labels = logits((8, 9))
    pad = np.arange(8) % 3 == 0
    want = fd.r_drop(a, b, labels, alpha=1.0, pad_mask=pad)
    for ignored in (-100, 2):
        marked = np.where(labels == ignored, 3, labels)
        want = fd.r_drop(a, b, marked, alpha=1.0, pad_mask=pad)
        got = fd.r_drop(a, b, np.where(pad, ignored, marked), alpha=1.0, ignore_index=ignored)
        assert got[:3] == want[:3]
        np.testing.assert_array_equal(got.da, want.da)
        np.testing.assert_array_equal(got.db, want.db)


# -- arrays of any kind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("arrange", ["fortran", "rows", "reversed", "columns", "swapped", "unaligned", "transposed"])
def test_any_layout(engine, op, arrange):
    a, b, labels = logits((6, 10), np.float32)
    want = call(op, a, b, labels)

    def lay(x):
        if arrange == "fortran":
            return np.asfortranarray(x)
        if arrange == "rows":
            return np.repeat(x, 2, axis=0)[::2]
        if arrange == "reversed":
            return x[::-1].copy()[::-1]
        if arrange == "columns":
            return np.repeat(x, 2, axis=1)[:, ::2]
        if arrange == "swapped":
            return x.astype(">f4")
        if arrange == "unaligned":
            return np.frombuffer(b"-" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
        return x.reshape(2, 3, 10).transpose(1, 0, 2).copy().transpose(1, 0, 2)

    x, y = lay(a), lay(b)
    labels = labels.reshape(x.shape[:-1])
    got = call(op, x, y, labels)
    assert got[0] == want[0]
    for g, w in zip(got[1:], want[1:]):
        np.testing.assert_array_equal(g.reshape(w.shape), w)
    out = tuple(lay(np.zeros_like(a)).copy("A") for _ in want[1:])
    out = tuple(o if o.flags.writeable else o.copy() for o in out)
    got = call(op, x, y, labels, out=out if len(out) == 2 else out[0])
    for g, o, w in zip(got[1:], out, want[1:]):
        assert g is o
        np.testing.assert_array_equal(o.reshape(w.shape), w)


@pytest.mark.parametrize("op", OPS)
def test_in_place(engine, op):
    a, b, labels = logits((6, 100), np.float32)
    want = call(op, a.copy(), b.copy(), labels, epsilon=0.1)
    got = call(op, a, b, labels, epsilon=0.1, out=a if op == "cross_entropy" else (a, b))
    assert got[0] == want[0]
    for g, mine, w in zip(got[1:], (a, b), want[1:]):
        assert g is mine
        np.testing.assert_array_equal(mine, w)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 3)])
def test_no_rows(engine, op, shape):
    a = np.zeros(shape, np.float32)
    loss, *gradients = call(op, a, a.copy(), np.zeros(shape[:-1], int))
    assert loss == 0
    assert all(g.shape == shape for g in gradients)


@pytest.mark.parametrize("offset", range(0, 16, 5))
def test_gradients_stored_past_the_cache_are_the_same(offset):
    a, b, labels = logits((300, 4000), np.float32)
    want = call("r_drop", a[:7], b[:7], labels[:7], reduction="sum")
    out = tuple(np.zeros(a.size + 16, np.float32)[offset:][: a.size].reshape(a.shape) for _ in "ab")
    got = call("r_drop", a, b, labels, reduction="sum", out=out)
    for g, w in zip(got[1:], want[1:]):
        np.testing.assert_array_equal(g[:7], w)


def test_extra_memory_is_64_bytes_a_row():
    import tracemalloc

    a, b, labels = logits((20000, 30), np.float32)
    out = np.empty_like(a), np.empty_like(b)
    tracemalloc.start()
    fd.r_drop(a, b, labels, alpha=1.0, pad_mask=labels == 3, out=out)
    extra = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if fd.get_backend() == "native":
        assert extra <= 64 * len(a) + 10_000


def test_a_pair_is_one_mask():
    x = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    y, mask = fd.r_drop_pair(x, 0.5, rng=7)
    assert mask == fd.mask((2, 3, 4), 0.5, rng=7)
    np.testing.assert_array_equal(y, np.where(mask.keep(), x * 2, 0))
    assert (y[0] != y[1]).any()


# -- what is refused ---------------------------------------------------------------------------------------------------

A = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda: fd.kl_div(A, A[:1]), ValueError, ["b", "(2, 3)", "(1, 3)"]),
        (lambda: fd.kl_div(A, A.astype("f4")), TypeError, ["b", "float64", "float32"]),
        (lambda: fd.kl_div(A.astype(int), A), TypeError, ["a", "int64"]),
        (lambda: fd.kl_div(A[:, :0], A[:, :0]), ValueError, ["class", "(2, 0)"]),
        (lambda: fd.kl_div(np.float64(1), np.float64(1)), ValueError, ["axis", "()"]),
        (lambda: fd.kl_div(A, A, temperature=0), ValueError, ["temperature", "0"]),
        (lambda: fd.kl_div(A, A, temperature=math.nan), ValueError, ["temperature", "nan"]),
        (lambda: fd.kl_div(A, A, temperature="hot"), TypeError, ["temperature", "hot"]),
        (lambda: fd.kl_div(A, A, reduction="avg"), ValueError, ["reduction", "avg"]),
        (lambda: fd.kl_div(A, A, pad_mask=[1, 0]), TypeError, ["pad_mask", "int64"]),
        (lambda: fd.kl_div(A, A, pad_mask=np.zeros(3, bool)), ValueError, ["pad_mask", "(2,)", "(3,)"]),
        (lambda: fd.kl_div(A, A, out=A.copy()), TypeError, ["out", "pair"]),
        (lambda: fd.kl_div(A, A, out=(A.copy(), A[:1].copy())), ValueError, ["out[1]", "(1, 3)"]),
        (lambda: fd.kl_div(A, A.copy(), out=(A, A)), ValueError, ["out", "overlap"]),
        (lambda: fd.cross_entropy(A, [0, 3]), ValueError, ["labels", "[0, 3)", "3"]),
        (lambda: fd.cross_entropy(A, [0, -1]), ValueError, ["labels", "-1"]),
        (lambda: fd.cross_entropy(A, [0]), ValueError, ["labels", "(2,)", "(1,)"]),
        (lambda: fd.cross_entropy(A, [True, False]), TypeError, ["labels", "bool"]),
        (lambda: fd.cross_entropy(A, A[:1]), ValueError, ["labels", "(2, 3)", "(1, 3)"]),
        (lambda: fd.cross_entropy(A, A - 1), ValueError, ["labels", "-1"]),
        (lambda: fd.cross_entropy(A, [0, 1], label_smoothing=1.5), ValueError, ["label_smoothing", "1.5"]),
        (lambda: fd.r_drop(A, A, [0, 1], alpha=-1), ValueError, ["alpha", "-1"]),
        (lambda: fd.r_drop(A, A, [0, 1], alpha=math.nan), ValueError, ["alpha", "nan"]),
        (lambda: fd.r_drop(A, A, [0, 1], alpha=None), TypeError, ["alpha", "None"]),
    ],
)
def test_bad_input_is_named(function, error, words):
    with pytest.raises(error) as raised:
        function()
    for word in words:
        assert word in str(raised.value)


def test_labels_past_the_signed_integers_are_no_ignored_ones():
    """2**64 - 100 as a signed number is -100, the default ignore_index."""
    labels = np.array([0, 2**64 - 100], np.uint64)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        fd.cross_entropy(A, labels)
    assert fd.cross_entropy(A, np.array([0, 2], np.uint64))[0] == fd.cross_entropy(A, [0, 2])[0]
    with pytest.raises(TypeError, match="ignore_index must be an integer"):
        fd.cross_entropy(A, [0, 1], ignore_index=1.5)


def test_pad_masks_of_other_bytes_than_0_and_1():
    pad = np.array([0, 2], np.uint8)
    a = np.arange(6.0).reshape(2, 3)
    for got, wanted in zip(fd.kl_div(a, -a, pad_mask=pad.view(bool)), fd.kl_div(a, -a, pad_mask=pad != 0)):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("axis", [0, 1, -2, 3])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_classes_on_another_axis(engine, axis, layout):
    """Segmentation has its classes on axis 1 of (N, C, H, W); with sizes all alike no shape can tell."""
    a, b = (np.asarray(x, np.float32, order=layout) for x in np.random.default_rng(1).standard_normal((2, 3, 3, 3, 3)))
    labels = np.random.default_rng(0).integers(0, 3, (3, 3, 3))
    soft = np.abs(b) / np.abs(b).sum(axis=axis, keepdims=True)
    pad = labels == 1

    def last(x):
        return np.ascontiguousarray(np.moveaxis(x, axis, -1)) if np.ndim(x) == 4 else x

    for function, others in (
        (fd.kl_div, (b,)),
        (fd.symmetric_kl, (b,)),
        (fd.js_div, (b,)),
        (fd.cross_entropy, (labels,)),
        (fd.cross_entropy, (soft,)),
        (partial(fd.r_drop, alpha=0.5), (b, labels)),
    ):
        for reduction in ("mean", "none"):
            got = function(a, *others, axis=axis, pad_mask=pad, reduction=reduction)
            wanted = function(last(a), *map(last, others), pad_mask=pad, reduction=reduction)
            for g, w in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(last(g), w)
        out = np.empty_like(a) if function is fd.cross_entropy else (np.empty_like(a), np.empty_like(a))
        function(a, *others, axis=axis, pad_mask=pad, reduction="none", out=out)
        gradients = [out] if function is fd.cross_entropy else out
        for g, w in zip(gradients, wanted[-len(gradients) :], strict=True):
            np.testing.assert_array_equal(last(g), w)


def test_two_classes_at_the_top_share_the_gradient(engine):
    _, da, _ = fd.kl_div(np.array([[0, 0, -16]], np.float32), np.array([[0, 0, -64]], np.float32))
    np.testing.assert_allclose(da, [[-1.3504219e-06, -1.3504219e-06, 2.7008439e-06]], rtol=1e-6)


def test_r_drop_with_probabilities_that_are_nearly_one_hot(engine):
    """The gradient is the small difference of p and the label."""
    a, b, y = (np.array([x], np.float32) for x in ((32.4, 0), (19.4, 0), (0.9999925, 7.5e-6)))
    y[0, 1] = 1 - y[0, 0]
    got = fd.r_drop(a, b, y, alpha=0.0)
    for x, gradient in ((a, got.da), (b, got.db)):
        q = 1 / (1 + np.exp(np.float64(x[0, 0])))  # the probability of the second class
        np.testing.assert_allclose(gradient, [[(y[0, 1] - q) / 2, (q - y[0, 1]) / 2]], rtol=5e-6)


# -- max-norm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("shape", "axis"), [
    ((300, 130), 0), ((130, 300), 1), ((7, 5, 3, 3), (1, 2, 3)), ((3, 3, 5, 70), (0, 1, 2)), ((4, 5, 6), (0, 2)),
    ((9,), 0), ((5000, 3), -2), ((3, 5000), -1), ((2, 40, 65), 1),
])  # fmt: skip
def test_max_norm(engine, dtype, shape, axis):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    wide = np.random.default_rng(17).standard_normal(shape)
    w = wide.astype(dtype)
    norm = np.sqrt((w.astype(np.float64) ** 2).sum(axis, keepdims=True))
    limit = float(np.median(norm))
    want = w.astype(np.float64) * np.where(norm > limit, limit / norm, 1)
    got = w.copy()
    assert fd.max_norm_(got, limit, axis) is got
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 5e-7, "float64": 1e-15}[dtype.name]
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=1e-7 if dtype.itemsize == 2 else 0)
    within = np.broadcast_to(norm <= limit * (1 - 1e-6), shape)
    np.testing.assert_array_equal(got[within], w[within])


def test_max_norm_at_the_edges(engine):
    w = np.array([[1e30, 3e-30, 0.0], [1e30, 4e-30, 0.0]], np.float32)
    fd.max_norm_(w, 1.0)
    np.testing.assert_allclose(w, [[math.sqrt(0.5), 3e-30, 0], [math.sqrt(0.5), 4e-30, 0]], rtol=1e-6)
    fd.max_norm_(w, 0.0)
    assert not w.any()
    fortran = np.asfortranarray(np.full((3, 4), 2.0))
    fd.max_norm_(fortran[::-1], 1.0, axis=1)
    np.testing.assert_allclose(fortran, 0.5)
    for limit, axis, error, words in (
        (-1.0, 0, ValueError, "limit must be at least 0, got -1.0"),
        (math.nan, 0, ValueError, "limit must be at least 0, got nan"),
        (1.0, 2, ValueError, r"axis must name axes of W, whose shape is \(2, 3\), got 2"),
        ("x", 0, TypeError, "limit must be a number, got 'x'"),
    ):
        with pytest.raises(error, match=words):
            fd.max_norm_(w, limit, axis)
    w.flags.writeable = False
    with pytest.raises(ValueError, match="W must be writable"):
        fd.max_norm_(w, 1.0)


@pytest.mark.parametrize(("dtype", "size", "limit"), [
    ("float64", 1e200, 3.0), ("float64", 1e200, 1e210), ("float64", 1e-170, 1e-175), ("float64", 1e-170, 3.0),
    ("float64", 1.7e308, 3.0), ("float64", 1.7e308, 1.7e308), ("float64", 1e300, 1e-20), ("float64", 1e300, 1e-300),
    ("float64", 1e-320, 1e-322), ("float64", 1e-320, 1e-300), ("float64", 1e150, 0.0), ("float64", 1e-160, 0.0),
    ("float32", 3e38, 3.0), ("float32", 3e38, 1e-12), ("float32", 1e-30, 1e-33), ("float32", 1e-42, 1e-44),
    ("bfloat16", 3e38, 1e-12), ("bfloat16", 1e-35, 1e-37), ("float16", 6e4, 1e-6), ("float16", 6e-8, 1e-7),
])  # fmt: skip
@pytest.mark.parametrize(("n", "axis"), [(5, 0), (5, 1), (1000, 0), (1000, 1)])
def test_max_norm_of_numbers_of_every_size(engine, dtype, size, limit, n, axis):
    """The far vector stands beside an ordinary one, a zero one and one with a NaN, which stay as they are."""
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    w = np.zeros((n, 4), dtype)
    w[:, 0] = np.random.default_rng(3).uniform(0.4, 1, n) * size * np.resize([1, -1], n)
    w[:, 1] = np.resize([1, -2], n) if limit > 1e5 else 0
    w[:, 3] = w[:, 0]
    w[n // 2, 3] = np.nan
    with decimal.localcontext(prec=50, Emin=-(10**6), Emax=10**6):
        exact = [decimal.Decimal(float(v)) for v in w[:, 0]]
        norm = sum(v * v for v in exact).sqrt()
        factor = min(1, decimal.Decimal(limit) / norm)
        want = w.astype(np.float64)
        want[:, 0] = [float(v * factor) for v in exact]
    got = fd.max_norm_(np.ascontiguousarray(w if axis == 0 else w.T), limit, axis)
    got = got if axis == 0 else got.T
    relative, smallest = {
        "float16": (1e-3, 6e-8), "bfloat16": (8e-3, 1e-40), "float32": (5e-7, 1.5e-45), "float64": (4e-15, 5e-324)
    }[dtype.name]  # fmt: skip
    np.testing.assert_allclose(got[:, 0].astype(np.float64), want[:, 0], rtol=relative, atol=smallest)
    np.testing.assert_array_equal(got[:, 1:].astype(np.float64), want[:, 1:])


def test_the_list_of_reductions_is_whole():
    a, b, _ = logits((2, 3))
    for op, reduction in itertools.product(DIVERGENCES, fd.losses.REDUCTIONS):
        assert np.all(getattr(fd, op)(a, b, reduction=reduction)[0] >= 0)
