"""Generators of dropout and what is fused with it."""

import numpy as np

import fastdrop as fd
from fastdrop.operations import ACTIVATIONS, OPERATIONS

from .case import joint, with_backend
from .memory import BFLOAT16, FLOATS
from .table import DOUBLE, eps, generator, scale_of, size_of


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
    """Result ``i`` is a sum: ``total(plain)`` is that of absolute values. In float64 each of 1000 terms is rounded."""
    rounding = {2: 2.0**-8 if dtype == BFLOAT16 else 2.0**-11}.get(dtype.itemsize, 2e-6 if dtype != DOUBLE else 1e-13)
    c.close[i] = rounding, lambda plain: size_of(1, total(plain))


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


def activation(name):
    forward_op = ACTIVATIONS[name]
    backward_op = OPERATIONS[f"{forward_op.name}_backward"]

    @generator(name, 2)
    def forward(c):
        x, shape, dtype = first(c)
        c.mask_source(shape)
        c.out("out", shape, dtype)
        if forward_op.tolerance:
            c.close[0] = (
                forward_op.tolerance * eps(dtype),
                lambda plain, results: size_of(scale_of(results[1]), np.maximum(1, np.abs(x.plain.astype(DOUBLE)))),
            )

    @generator(name + "_backward", 2)
    def backward(c):
        dy, shape, dtype = first(c, "dy", "finite" if backward_op.tolerance else "wild")
        x = more(c, "x", "dy", shape, dtype, whole=True)
        mask = c.arguments["mask"] = c.mask(c.narrower(shape))
        c.out("out", shape, dtype)
        if backward_op.tolerance:
            c.close[0] = (
                backward_op.tolerance * eps(dtype),
                lambda plain: size_of(scale_of(mask), dy.plain, np.maximum(1, np.abs(x.plain.astype(DOUBLE)))),
            )


for each in ACTIVATIONS:
    activation(each)
