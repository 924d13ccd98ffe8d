"""The public functions, one generator each: it draws the arguments of a `Case`. No public name may be without."""

import inspect
import io
import pickle

import numpy as np

import fastdrop as fd
from fastdrop import layers

from .case import Twin, joint, with_backend
from .memory import FLOATS

GENERATORS = {}  # name -> (generator, weight)
SINGLE, DOUBLE = np.float32, np.float64


def generator(name, weight=1.0):
    def add(function):
        GENERATORS[name] = function, weight
        return function

    return add


def missing():
    """Public names that no generator serves."""
    served = {name.partition(".")[0] for name in GENERATORS}
    return [name for name in fd.__all__ if name not in served and not name.startswith("__")]


def takes(function, name):
    return name in inspect.signature(function).parameters


def eps(dtype):
    """Spacing of the numbers that sums and products of ``dtype`` are made in."""
    return 2.0**-53 if dtype == DOUBLE else 2.0**-24


def size_of(scale, *arrays):
    """Product of absolute values; 0 for what is not finite among them."""
    with np.errstate(all="ignore"):
        product = np.nan_to_num(np.asarray(scale, DOUBLE), nan=0.0, posinf=0.0)
        for a in arrays:
            product = product * np.nan_to_num(np.abs(np.asarray(a, DOUBLE)), nan=0.0, posinf=0.0)
        return np.nan_to_num(product, nan=0.0, posinf=1e300)


def scale_of(mask):
    with np.errstate(all="ignore"):
        p = np.asarray(mask.p, DOUBLE)
        scale = np.where(p < 1, 1 / (1 - p), 0)
    return scale.reshape(scale.shape + (1,) * (len(mask.shape) - scale.ndim)) if scale.ndim else scale


# -- elementwise -------------------------------------------------------------------------------------------------------


def first(c, name="x", values="wild"):
    """The first argument of an elementwise function, and perhaps ``dtype=`` for it."""
    dtype, shape = c.dtype(), c.shape()
    if c.draw.chance(c.bytes_chance) and not c.wants_overlap:
        c.as_bytes, shape = True, (c.draw.randint(1, 300),)
        c.arguments["dtype"] = c.draw.choice((dtype, dtype.name))
    x = c.array(name, shape, dtype, values, "in place")
    c.foreign_dtype(name, x)
    return x, shape, dtype


@generator("dropout", 4)
def dropout(c):
    _, shape, dtype = first(c)
    c.out("out", c.mask_source(shape, widens=not c.as_bytes), dtype)


@generator("dropout_backward")
def dropout_backward(c):
    _, shape, dtype = first(c, "dy")
    c.arguments["mask"] = c.mask(c.narrower(shape))
    c.out("out", shape, dtype)


@generator("Mask.apply", 2)
def mask_apply(c):
    _, shape, dtype = first(c)
    own = c.narrower(shape)
    if c.draw.chance(0.2) and not c.as_bytes and not c.large(shape):
        own = c.wider(own, shape)
    c.function = c.mask(own).apply
    c.out("out", joint(own, shape), dtype)


@generator("Mask.backward", 2)
def mask_backward(c):
    _, shape, dtype = first(c, "dy", "tame")
    own = shape if c.draw.chance(0.5) else c.narrower(shape)
    mask = c.mask(own)
    c.function = mask.backward
    if not c.draw.chance(0.6) or joint(own, shape) != shape:
        c.out("out", shape, dtype)
        return
    c.alone = c.alone or c.as_bytes
    x_shape = c.narrower(shape)
    if joint(own, x_shape) != shape:
        x_shape = shape
    c.arguments["x_shape"] = x_shape
    c.arguments["dy"].role = "in place" if x_shape == shape else "summed"
    c.out("out", x_shape, dtype)
    if x_shape != shape:
        sum_of(c, 0, dtype, lambda plain: with_backend("reference", mask.backward, np.abs(plain["dy"]), x_shape))


def sum_of(c, i, dtype, total):
    """Result ``i`` is a sum, right to a rounding of each term: ``total(plain)`` is that of absolute values."""
    c.close[i] = 64 * eps(dtype), lambda plain: size_of(1, total(plain))


@generator("Mask.multiply")
def mask_multiply(c):
    c.alone = True
    _, shape, dtype = first(c)
    if c.as_bytes:
        del c.arguments["dtype"]
        c.as_bytes = False
        c.arguments["x"].given = c.arguments["x"].view
    own = c.narrower(shape)
    mask = c.mask(own)
    c.out("out", shape, dtype)
    if "out" in c.arguments:
        c.function = lambda x, out: np.multiply(x, mask, out=out)
        c.plain_function = lambda x: np.multiply(x, mask)
    else:
        c.function = c.draw.choice((lambda x: x * mask, lambda x: mask * x, lambda x: np.multiply(mask, x)))


def more(c, name, x_name, shape, dtype, role="in place", whole=False):
    """A further argument of x's dtype that broadcasts to its shape."""
    own = shape if whole else c.narrower(shape)
    if c.flaw(f"{name} does not broadcast", 0.04):
        own = (*shape, 2, 3)
    if c.flaw(f"{name} has another dtype", 0.04):
        dtype = c.draw.choice([d for d in FLOATS if d != dtype])
    return c.array(name, own, dtype, "wild", role)


@generator("dropout_add", 3)
def dropout_add(c):
    _, shape, dtype = first(c)
    whole = c.as_bytes
    more(c, "residual", "x", shape, dtype, whole=whole or c.draw.chance(0.6))
    if c.draw.chance(0.5):
        more(c, "bias", "x", shape, dtype, whole=whole)
    c.mask_source(shape)
    c.out("out", shape, dtype)


@generator("dropout_add_backward", 2)
def dropout_add_backward(c):
    _, shape, dtype = first(c, "dy", "tame")
    own = c.narrower(shape)
    mask = c.arguments["mask"] = c.mask(own)
    if c.draw.chance(0.7):
        bias_shape = c.arguments["bias_shape"] = c.narrower(shape)
        sum_of(
            c, 1, dtype,
            lambda plain: with_backend(
                "reference", fd.dropout_add_backward, np.abs(plain["dy"]), mask, bias_shape=bias_shape
            )[1],
        )  # fmt: skip
    c.out("out", shape, dtype)


def activation(name, size):
    @generator(name, 2)
    def forward(c):
        x, shape, dtype = first(c)
        c.mask_source(shape)
        c.out("out", shape, dtype)
        if size:  # right to 2e-7 of max(1, |x|), 4e-16 in float64
            c.close[0] = (
                4 * eps(dtype),
                lambda plain, results: size_of(scale_of(results[1]), np.maximum(1, np.abs(x.plain.astype(DOUBLE)))),
            )

    @generator(name + "_backward", 2)
    def backward(c):
        dy, shape, dtype = first(c, "dy", "finite" if size else "wild")
        x = more(c, "x", "dy", shape, dtype, whole=True)
        mask = c.arguments["mask"] = c.mask(c.narrower(shape))
        c.out("out", shape, dtype)
        if size:
            c.close[0] = (
                8 * eps(dtype),
                lambda plain: size_of(scale_of(mask), dy.plain, np.maximum(1, np.abs(x.plain.astype(DOUBLE)))),
            )


activation("relu_dropout", size=False)
activation("gelu_dropout", size=True)


# -- masks -------------------------------------------------------------------------------------------------------------


def keys(c, shape):
    """Integers and slices for a mask or array of ``shape``."""
    draw, result = c.draw, []
    count = draw.randint(0, len(shape))
    last = draw.chance(0.2)  # an Ellipsis before them
    for n in shape[len(shape) - count :] if last else shape[:count]:
        if n and draw.chance(0.4):
            result.append(draw.randrange(-n, n))
        else:
            result.append(slice(*draw.choice(((None, None), (1, None), (None, -1), (-3, n + 3), (2, 1)))))
    return (..., *result) if last else tuple(result)


@generator("Mask.arrays", 2)
def mask_arrays(c):
    """keep, bits, stored, parts, copies: all of them the same decisions."""
    shape = c.shape()
    mask = c.mask(shape)
    part = keys(c, shape)
    if c.flaw("step is not 1"):
        part = (slice(None, None, 2),) if shape else (0,)
    dtype = c.dtype()
    protocol = c.draw.choice((2, 4, 5))

    def arrays():
        copy = pickle.loads(pickle.dumps(mask, protocol))
        return (
            mask.keep(), mask.bits(), mask.stored().keep(), mask[part].keep(), mask[part].bits(), copy.keep(),
            np.asarray(mask, dtype), mask, copy, copy == mask, hash(copy) == hash(mask), repr(mask), mask[part].size,
        )  # fmt: skip

    def consistent(results):
        keep, bits, stored, sliced, _, copied, multipliers, *_ = results
        if not (np.array_equal(keep, stored) and np.array_equal(keep, copied) and np.array_equal(keep[part], sliced)):
            return "keep(), stored(), its part and its copy differ"
        if not np.array_equal(np.packbits(keep, bitorder="little"), bits):
            return "bits() is not keep() packed"
        return np.array_equal(multipliers != 0, keep & (scale_of(mask) != 0)) or "asarray(mask) is not keep() * scale"

    c.function = arrays
    c.checks.append(consistent)


@generator("Mask.from_keep")
def mask_from_keep(c):
    shape = c.shape()
    keep = c.draw.np.random(shape) < c.draw.choice((0.0, 0.5, 1.0))
    given = c.array("keep", shape, np.dtype(bool), keep, "copied").plain
    c.arguments["p"] = p = c.p(shape)
    if not c.refusals and (np.asarray(p) == 1).any():
        c.doubtful.append("p is 1 and something may be kept")
    c.function = lambda keep, p: (lambda m: (m, m.keep(), m.shape))(fd.Mask.from_keep(keep, p))
    c.checks.append(lambda results: np.array_equal(results[1], given) or "keep() is not what was given")


@generator("Mask.pickle")
def mask_damaged(c):
    """A pickle with one field changed is refused, or a mask that can be used."""
    draw = c.draw
    mask = c.mask(c.shape(most_axes=3))
    make, fields = mask.__reduce__()
    fields = list(fields)
    at = draw.randrange(len(fields))
    shorter = None if mask._stored is None else mask._stored[: draw.randint(0, mask._stored.size)]
    fields[at] = draw.choice(
        (None, -1, 2**64, 2**63, 0.5, "x", (), (1,), (2**70,), (5, 7, 11), (-1, 2), fields[draw.randrange(len(fields))],
         np.zeros(draw.choice((0, 1, 100)), np.uint8), np.zeros(3), shorter)
    )  # fmt: skip
    c.doubtful.append("damaged")

    def use():
        damaged = pickle.loads(pickle.dumps(Reduced(make, tuple(fields))))
        if np.prod(damaged.shape, dtype=float) > 1e6:
            return None
        return damaged.keep(), damaged.bits()

    c.function = use
    c.unnamed_errors = True


class Reduced:
    def __init__(self, make, fields):
        self.reduced = make, fields

    def __reduce__(self):
        return self.reduced


@generator("mask")
def mask(c):
    shape = c.shape()
    if c.flaw("shape is none"):
        shape = c.draw.choice(((-1,), 1.5, (2**40, 2**40), "3", (1,) * 65))
    c.arguments.update(shape=shape, p=0.5 if c.refusals else c.p(shape), rng=c.rng())


@generator("Rng", 0.5)
def rng(c):
    seed, stream = c.draw.getrandbits(64), c.draw.choice((0, 2**64 - 1, c.draw.getrandbits(64)))
    if c.flaw("seed is none"):
        seed = c.draw.choice((-1, 2**64, 1.5, "1", True, None))
    c.arguments.update(seed=seed, stream=stream)

    def use(seed, stream):
        rng = fd.Rng(seed, stream)
        copy = pickle.loads(pickle.dumps(rng))
        return rng.take(), rng.mask(5, 0.5), rng.stream, rng.spawn(2)[1].seed, copy.stream, copy.spawn(2)[1].seed

    c.function = use
    c.checks.append(
        lambda r: (r[0] == (seed, stream) and r[2] == (stream + 2) % 2**64) or "stream does not move on by 1"
    )


# -- losses ------------------------------------------------------------------------------------------------------------


def logits(c, *names):
    draw = c.draw
    dtype, shape = c.dtype(), c.shape(1, 5)
    shape = (*shape[:-1], shape[-1] or 2)
    base = c.values(shape, DOUBLE, "tame")
    for i, name in enumerate(names):
        values = base + i * draw.choice((0.0, 0.01, 1.0)) * draw.np.standard_normal(shape)
        with np.errstate(all="ignore"):
            values = values.astype(dtype)
        own, other = shape, dtype
        if i and c.flaw(f"{name} has another shape", 0.04):
            own = (*shape[:-1], shape[-1] + 1)
        if i and c.flaw(f"{name} has another dtype", 0.04):
            other = draw.choice([d for d in FLOATS if d != dtype])
        x = c.array(
            name, own, other, values if own == shape else "tame", "in place" if len(names) == 1 else f"out[{i}]"
        )
        c.foreign_dtype(name, x)
    c.arguments["temperature"] = draw.choice((1.0, 1.0, 1.0, 2.5, 0.5, 4))
    if c.flaw("temperature is none", 0.05):
        c.arguments["temperature"] = draw.choice((0.0, -1.0, float("nan"), float("inf"), "1", None))
    if len(shape) > 1 and takes(c.function, "axis") and draw.chance(0.15):
        c.arguments["axis"] = -1
    c.arguments["reduction"] = draw.choice(("mean", "mean", "sum", "none", "batchmean"))
    if c.flaw("reduction is none", 0.05):
        c.arguments["reduction"] = draw.choice(("avg", None, 1))
    if draw.chance(0.3):
        rows = c.narrower(shape[:-1]) if draw.chance(0.5) else shape[:-1]
        if c.flaw("pad_mask does not fit", 0.05):
            rows = (*rows, 3, 4)
        pad = draw.np.random(rows) < 0.3
        c.array("pad_mask", rows, np.dtype(bool), pad, "copied")
    return shape, dtype


def losses_close(c, shape, dtype, *places, soft=False):
    """Places of the losses and of the gradients in the result: by what their row's largest logit is."""

    def size(plain, results):
        logits = [np.asarray(plain[k], DOUBLE) for k in ("a", "b") if k in plain]
        span = 1 + max(size_of(1, x).max(initial=0) for x in logits) / float(plain["temperature"])
        return span

    losses, gradients = places
    close = (1000 if dtype == DOUBLE else 30) * eps(dtype)
    for i in losses:
        c.close[i] = (
            close,
            lambda plain, results, i=i: (
                size(plain, results) * (1 + size_of(1, results[i])) * max(1, np.prod(shape[:-1]))
            ),
        )
    for i in gradients:

        def gradient_size(plain, results, i=i):
            want = size_of(1, results[i])
            largest = want.max(-1, keepdims=True, initial=0)
            weight = float(plain.get("alpha", 1) or 1) + 1
            return size(plain, results) * (largest + weight * (0.1 if soft else 1e-3))

        c.close[i] = close, gradient_size


def labels(c, shape, dtype):
    draw = c.draw
    n, lead = shape[-1], shape[:-1]
    if draw.chance(0.3):
        kind = np.dtype(draw.choice((dtype, dtype, dtype, DOUBLE, SINGLE)))
        values = draw.np.random(shape)
        values /= values.sum(-1, keepdims=True)
        if "pad_mask" not in c.arguments and values.size and c.flaw("labels are negative", 0.05):
            values.flat[draw.randrange(values.size)] = -0.5
        own = shape
        if draw.chance(0.3):
            values = (
                np.where(np.arange(n) == draw.np.integers(0, n, (*lead, 1)), 1.0, 0.0) if not c.refusals else values
            )
        c.array("labels", own, kind, values.astype(kind), "read" if kind == dtype else "copied")
        soft = True
    else:
        kind = np.dtype(draw.choice((np.int64, np.int64, np.int64, np.int32, np.uint8, np.int16, np.uint64)))
        values = draw.np.integers(0, min(n, 120), lead)
        ignore = -100
        if draw.chance(0.2) and kind.kind == "i":
            ignore = c.arguments["ignore_index"] = draw.choice((-100, -1, 0, n - 1 if n < 120 else 5))
            values = np.where(draw.np.random(lead) < 0.3, ignore, values)
        values = np.asarray(values)
        if values.size and "pad_mask" not in c.arguments and c.flaw("labels are out of range", 0.1):
            values = values.copy()
            values.flat[draw.randrange(values.size)] = draw.choice((n, n + 5, 127)) if n < 120 else 0
            if n >= 120 or values.max(initial=0) < n:
                c.refusals.clear()
        c.array("labels", lead, kind, values.astype(kind), "copied")
        soft = False
    if draw.chance(0.3):
        c.arguments["label_smoothing"] = draw.choice((0.0, 0.1, 1.0, 0.5))
        if c.flaw("label_smoothing is none", 0.1):
            c.arguments["label_smoothing"] = draw.choice((-0.1, 1.1, float("nan"), "x", None))
    return soft or "label_smoothing" in c.arguments  # p - y is small where neither is


@generator("cross_entropy", 3)
def cross_entropy(c):
    shape, dtype = logits(c, "a")
    soft = labels(c, shape, dtype)
    c.out("out", shape, dtype)
    losses_close(c, shape, dtype, (0,), (1,), soft=soft)


def divergence(name):
    @generator(name, 1.5)
    def draw_it(c):
        shape, dtype = logits(c, "a", "b")
        c.outs_of("out", (shape, dtype), (shape, dtype))
        losses_close(c, shape, dtype, (0,), (1, 2))


for name in ("kl_div", "symmetric_kl", "js_div"):
    divergence(name)


@generator("r_drop", 3)
def r_drop(c):
    shape, dtype = logits(c, "a", "b")
    soft = labels(c, shape, dtype)
    c.arguments["alpha"] = c.draw.choice((0.0, 1.0, 0.7, 5))
    if c.flaw("alpha is none", 0.05):
        c.arguments["alpha"] = c.draw.choice((-1.0, float("nan"), float("inf"), None, "1"))
    c.outs_of("out", (shape, dtype), (shape, dtype))
    losses_close(c, shape, dtype, (0, 1, 2), (3, 4), soft=soft)


@generator("r_drop_pair")
def r_drop_pair(c):
    dtype, shape = c.dtype(), c.shape()
    x = c.array("x", shape, dtype)
    c.foreign_dtype("x", x)
    c.arguments.update(p=c.p((2, *shape)), rng=c.rng())
    c.out("out", (2, *shape), dtype)


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


# -- layers and settings -----------------------------------------------------------------------------------------------


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


@generator("layers", 0)
def layers_module(c):
    """The module itself; its classes have generators of their own."""
    c.function = lambda: None


def setting(name, good, bad):
    @generator(name, 0.1)
    def draw_it(c):
        if bad and c.flaw("a wrong value", 1.0):
            c.arguments.update(c.draw.choice(bad))
        else:
            c.arguments.update(c.draw.choice(good))


WRONG = [{"n": n} for n in (-1, 1.5, "2", None)]
setting("set_num_threads", [{"n": 1}, {"n": 2}, {"n": 3}], [*WRONG, {"n": 0}, {"n": 10**6}])
setting("set_buffer_limit", [{"n": 0}, {"n": 1 << 22}, {"n": 512 << 20}], [*WRONG, {"n": 2**70}])
setting("use_backend", [{"name": "reference"}], [{"name": "cuda"}, {"name": None}])
setting("release_buffers", [{}], [])
setting("get_num_threads", [{}], [])


@generator("get_backend", 0.1)
def get_backend(c):
    c.function = lambda: fd.get_backend() in ("native", "numba", "reference")


@generator("show_config", 0.05)
def show_config(c):
    c.arguments["file"] = Twin(io.StringIO, lambda file: None)


@generator("threads", 0.1)
def threads(c):
    def use(n):
        before = fd.get_num_threads()
        with fd.threads(n):
            inside = fd.get_num_threads()
        return inside, fd.get_num_threads() == before

    c.arguments["n"] = c.draw.randint(1, 4)
    if c.flaw("n is none"):
        c.arguments["n"] = c.draw.choice((0, -1, 1.5, None))
    c.function = use
