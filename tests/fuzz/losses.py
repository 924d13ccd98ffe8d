"""Generators of the losses on logits."""

import numpy as np

from fastdrop.operations import DIVERGENCES

from .memory import FLOATS
from .table import DOUBLE, SINGLE, eps, generator, size_of, takes


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
    close = 1000 * eps(dtype) if dtype == DOUBLE else 1e-5  # what losses.py promises of every instruction set
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
        c.array("labels", own, kind, values.astype(kind), "read" if kind == dtype else "copied", alone=bool(c.refusals))
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
        c.array("labels", lead, kind, values.astype(kind), "copied", alone=bool(c.refusals))
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


for name in DIVERGENCES:
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
