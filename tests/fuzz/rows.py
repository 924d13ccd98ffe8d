"""Generators of softmax, of several samples, max-norm, Monte Carlo and layers."""

import numpy as np

import fastdrop as fd
from fastdrop import layers

from .case import with_backend
from .elementwise import first
from .table import DOUBLE, SINGLE, eps, generator, scale_of, size_of, takes

# -- softmax -----------------------------------------------------------------------------------------------------------


def scores(c):
    draw = c.draw
    dtype, shape = c.dtype(), c.shape(1, 5)
    axis = draw.randrange(len(shape)) if draw.chance(0.3) else len(shape) - 1
    values = c.values(shape, dtype, "tame")
    if draw.chance(0.1) and values.size:
        values[draw.randrange(len(values))] = -np.inf
    x = c.array("scores", shape, dtype, values, "in place")
    c.foreign_dtype("scores", x)
    if axis != len(shape) - 1 or draw.chance(0.2):
        c.arguments["axis"] = draw.choice((axis, axis - len(shape)))
    if draw.chance(0.4):
        own = c.narrower(shape)
        if c.flaw("attention_mask does not fit", 0.1):
            own = (*shape, 2)
        if draw.chance(0.5):
            c.array("attention_mask", own, np.dtype(bool), draw.np.random(own) < draw.choice((0.0, 0.6, 0.9)))
        else:
            kind = np.dtype(draw.choice((dtype, dtype, SINGLE, DOUBLE)))
            low = draw.choice((-np.inf, -np.inf, -1e4))
            c.array("attention_mask", own, kind, np.where(draw.np.random(own) < 0.3, low, draw.np.standard_normal(own)))
    return x, shape, dtype, axis


@generator("softmax_dropout", 3)
def softmax_dropout(c):
    _, shape, dtype, axis = scores(c)
    c.mask_source(shape, exact=True, most=axis)
    if "mask" not in c.arguments:
        c.arguments.setdefault("p", 0.5)
    c.out("out", shape, dtype)
    c.close[0] = 40 * eps(dtype), lambda plain, results: size_of(scale_of(results[1]), 1 + spread_of(plain))
    c.close[2] = 40 * eps(dtype), lambda plain, results: 1 + spread_of(plain)


def spread_of(plain):
    """The largest finite score, to which their exponentials' errors are relative."""
    largest = size_of(1, plain["scores"]).max(initial=0)
    mask = plain.get("attention_mask")
    return largest + (0 if mask is None else size_of(1, mask).max(initial=0))


@generator("softmax_dropout_backward", 3)
def softmax_dropout_backward(c):
    x, shape, dtype, axis = scores(c)
    mask = c.arguments["mask"] = c.mask(shape, c.draw.choice((0.0, 0.5, 0.1, 1.0)))
    dy = c.array("dy", shape, dtype, "finite", "in place")
    if not c.refusals:
        plain = {
            k: v.plain if hasattr(v, "plain") else v for k, v in c.arguments.items() if k in ("axis", "attention_mask")
        }
        log_sum = with_backend("reference", fd.softmax_dropout, x.plain, 0.5, mask=mask, **plain)[2]
    else:
        log_sum = np.zeros(shape[:axis] + shape[axis + 1 :])
    c.array("log_sum", log_sum.shape, np.dtype(DOUBLE), log_sum, alone=True)
    c.out("out", shape, dtype)
    c.close[0] = (
        80 * eps(dtype),
        lambda plain: (1 + spread_of(plain)) * float(scale_of(mask)) * (size_of(1, dy.plain).max(initial=0)),
    )


# -- several samples, max-norm, inference ------------------------------------------------------------------------------


def samples_of(c):
    samples = c.arguments["samples"] = c.draw.choice((1, 2, 3, 5, 8, 17))
    if c.flaw("samples is none", 0.05):
        c.arguments["samples"] = c.draw.choice((0, -1, 1.5, None, "2", True))
    p = c.arguments["p"] = c.p((samples,))
    if np.ndim(p) and not c.refusals and len(p) != samples:
        c.arguments["p"] = 0.5
    c.arguments["rng"] = c.rng()
    return samples


@generator("multi_sample_dropout")
def multi_sample_dropout(c):
    dtype, shape = c.dtype(), c.shape(most_axes=5)
    x = c.array("x", shape, dtype)
    c.foreign_dtype("x", x)
    samples = samples_of(c)
    if takes(c.function, "out"):
        c.out("out", (samples, *shape), dtype)


@generator("multi_sample_mean")
def multi_sample_mean(c):
    dtype, shape = c.dtype(), c.shape(most_axes=5)
    x = c.array("x", shape, dtype, "wild", "in place")
    c.foreign_dtype("x", x)
    samples_of(c)
    if takes(c.function, "out"):
        c.out("out", shape, dtype)


def sample_mask(c, shape):
    samples = c.draw.choice((1, 2, 3, 5, 8))
    p = c.draw.choice((0.0, 0.5, 0.1, 1.0, c.draw.np.choice([0.0, 0.1, 0.5, 1.0], samples)))
    return c.mask((samples, *shape), p)


@generator("multi_sample_dropout_backward")
def multi_sample_dropout_backward(c):
    dtype, shape = c.dtype(), c.shape(most_axes=5)
    mask = c.arguments["mask"] = sample_mask(c, shape)
    dy = c.array("dy", mask.shape, dtype, "tame", "read")
    c.foreign_dtype("dy", dy)
    if takes(c.function, "out"):
        c.out("out", shape, dtype)


@generator("multi_sample_mean_backward")
def multi_sample_mean_backward(c):
    dtype, shape = c.dtype(), c.shape(most_axes=5)
    c.arguments["mask"] = sample_mask(c, shape)
    dy = c.array("dy", shape, dtype, "wild", "in place")
    c.foreign_dtype("dy", dy)
    if takes(c.function, "out"):
        c.out("out", shape, dtype)


def linear(c):
    dtype = c.dtype(SINGLE, DOUBLE)
    shape = c.shape(1, 4)
    classes = c.draw.choice((0, 1, 2, 10))
    c.array("x", shape, dtype, finite(c, shape))
    features = shape[-1]
    if c.flaw("W does not fit", 0.05):
        features += 1
    c.array("W", (features, classes), dtype, finite(c, (features, classes)))
    return shape, dtype, classes


def finite(c, shape):
    return c.draw.np.standard_normal(shape)


@generator("multi_sample_linear")
def multi_sample_linear(c):
    shape, dtype, classes = linear(c)
    if c.draw.chance(0.7):
        c.array("b", (classes,), dtype, finite(c, (classes,)))
    else:
        c.arguments["b"] = None
    samples_of(c)
    c.arguments["average"] = average = c.draw.choice(("losses", "logits"))
    if c.flaw("average is none", 0.05):
        c.arguments["average"] = "mean"
    if takes(c.function, "out"):
        c.out(
            "out",
            (c.arguments["samples"], *shape[:-1], classes) if average == "losses" else (*shape[:-1], classes),
            dtype,
        )
    c.close[0] = (
        50 * eps(dtype),
        lambda plain, results: (1 + products(plain["x"], plain["W"])) * scale_of(results[1]).max(initial=1),
    )


def products(x, W):
    return float(np.abs(x).max(initial=0) * np.abs(W).max(initial=0)) * (1 + x.shape[-1])


@generator("multi_sample_linear_backward")
def multi_sample_linear_backward(c):
    shape, dtype, classes = linear(c)
    mask = c.arguments["mask"] = c.mask((c.draw.choice((1, 2, 5)), *shape), c.draw.choice((0.0, 0.5, 0.1)))
    if mask._strides is not None:
        mask = c.arguments["mask"] = fd.mask(mask.shape, mask.p, rng=5)
    averaged = c.draw.chance(0.4)
    d_shape = (*shape[:-1], classes) if averaged else (*mask.shape[:-1], classes)
    dlogits = c.array("dlogits", d_shape, dtype, finite(c, d_shape))
    for i in range(3):
        c.close[i] = 100 * eps(dtype), lambda plain: (
            (1 + np.abs(plain["x"]).max(initial=0)) * (1 + np.abs(plain["W"]).max(initial=0))
            * (1 + np.abs(dlogits.plain).max(initial=0)) * (1 + np.sqrt(dlogits.plain.size + plain["x"].size) + classes)
            * len(mask) * float(np.max(scale_of(mask)))
        )  # fmt: skip


@generator("max_norm_", 2)
def max_norm_(c):
    draw = c.draw
    dtype, shape = c.dtype(), c.shape(1, 5)
    values = c.values(shape, dtype, draw.choice(("tame", "tame", "wild")))
    W = c.array("W", shape, dtype, values, "in place")
    c.foreign_dtype("W", W)
    c.writes("W", W)
    count = draw.choice((1, 1, 1, 2, len(shape)))
    axes = draw.sample(range(-len(shape), 0), min(count, len(shape)))
    c.arguments["axis"] = axes[0] if len(axes) == 1 and draw.chance(0.8) else tuple(axes)
    c.arguments["limit"] = draw.choice((3.0, 1, 0.5, 0.0, float("inf"), 1e-3))
    if c.flaw("limit is none"):
        c.arguments["limit"] = draw.choice((-1.0, float("nan"), "1", None))
    c.close[0] = 20 * eps(dtype), lambda plain, results: size_of(1, results[0])


@generator("mc_dropout", 0.5)
def mc_dropout(c):
    draw = c.draw
    dtype = c.dtype()
    shape = tuple(max(1, n) for n in c.shape(2, 3))
    if np.prod(shape) > 5000:
        shape = (3, 5)
    p = draw.choice((0.5, 0.1))
    c.array("x", shape, dtype, finite(c, shape))
    probabilities = c.arguments["probabilities"] = draw.chance(0.7)
    if c.arguments["x"].given is not c.arguments["x"].view:
        c.arguments["x"].given = c.arguments["x"].view
        c.refusals.clear()

    def predict(x, sample):
        h = sample.dropout(x, p).astype(DOUBLE)
        if not probabilities:
            return h
        e = np.exp(h - h.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    c.arguments["predict"] = predict
    c.arguments["samples"] = draw.choice((1, 3, 12))
    c.arguments["rng"] = c.rng()
    c.arguments["per_row"] = draw.chance(0.5)
    c.arguments["first_row"] = draw.choice((0, 5, 2**32))
    for i in range(4):
        c.close[i] = 1e-12, lambda plain, results: 100
    if draw.chance(0.5):
        c.arguments["batch_size"] = draw.choice((1, 2, 5))
    if draw.chance(0.3):
        c.arguments["tolerance"] = draw.choice((0.0, 0.1, 1.0))


# -- layers ------------------------------------------------------------------------------------------------------------


@generator("layers.Dropout")
def layer(c):
    c.alone = True
    x, shape, _ = first(c)
    c.arguments.pop("dtype", None)
    if c.as_bytes:
        x.given = x.view
    p, seed, order = c.p(shape), c.draw.getrandbits(64), c.draw.choice(("stack", "named"))

    def use(x):
        layer = layers.Dropout(p, rng=seed)
        ys, masks = [], []
        for training in (True, False, True):
            ys.append(layer(x, training=training))
            masks.append(layer.mask)
        if order == "named":
            return (*ys, layer.backward(x, mask=masks[0]), layer.backward(x), *masks)
        return (*ys, layer.backward(x), layer.backward(x), *masks)

    c.function = use


@generator("layers.MultiSampleDropout", 0.5)
def sample_layer(c):
    _, dtype, classes = linear(c)
    average, seed = c.draw.choice(("losses", "logits")), c.draw.getrandbits(64)

    def use(x, W):
        head = layers.MultiSampleDropout(W, None, p=0.5, samples=3, average=average, rng=seed)
        y = head(x)
        dx = head.backward(np.ones_like(y))
        return y, dx, head.dW, head.db

    c.alone = True
    for name in ("x", "W"):
        if c.arguments[name].given is not c.arguments[name].view:
            c.arguments[name].given = c.arguments[name].view
            c.refusals[:] = [r for r in c.refusals if "masked" not in r]
    c.function = use
    for i in range(4):
        c.close[i] = (
            200 * eps(dtype),
            lambda plain: (1 + products(plain["x"], plain["W"])) * (1 + plain["x"].size + classes),
        )
