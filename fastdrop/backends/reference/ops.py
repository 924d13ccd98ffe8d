"""The elementwise operations, and the sum of one over axes."""

import numpy as np

from ...dtypes import FLOATS
from ...memory import new_array
from ...operations import OPERATIONS
from ...rule import scale_of
from .stream import CHUNK, decisions, part_of, pieces


def widen(x):
    """The precision that x is worked on in: float32 for the 16-bit dtypes."""
    return x.astype(FLOATS[x.dtype.name].computed_in, copy=False)


def select(keep, x, scale):
    """kept: x * scale, dropped: +0.0, for x as `widen` gives it; ``scale`` is a double or an array of them."""
    return np.where(keep, x * np.asarray(scale, np.float64).astype(x.dtype), x.dtype.type(0))


def fast_path(x, p, rng, out):
    """`fastdrop.dropout` on plain arrays in one step, (y, mask), where a backend has such a thing; None here."""


def elementwise(op, y, inputs, mask):
    """y = the operation of that name, chunk by chunk; ``y`` may be one of the inputs."""
    operation = OPERATIONS[op]
    for piece in pieces(y.shape):
        part = part_of(mask, y.shape, piece)
        keep, scale = decisions(part, part.shape), scale_of(part.broadcast_p())
        with np.errstate(all="ignore"):  # dropped NaN and Inf, p = 1, and overflow to Inf are all in the rule
            given = [widen(x[piece]) for x in inputs]
            wide = [x.astype(np.float64) for x in given] if operation.tolerance else given
            result = select(keep, operation.value(*wide).astype(given[0].dtype, copy=False), scale)
            y[piece] = FLOATS[y.dtype.name].narrow(result + given[1] if operation.residual else result)


def apply(y, x, mask):
    """y = drop(x): the forward pass, and on dy the backward pass."""
    elementwise("apply", y, (x,), mask)


def apply_sum(total, dy, mask, dx=None, apply=apply):
    """total = the sum of select(mask, dy) over the axes where total has length 1; dx, if given, gets what is summed.

    total is float32, float64 for float64, and has as many axes as dy.
    """
    total[...] = 0
    # In float64, since floats that are added one by one lose a digit for ten times as many; but no second large array.
    whole = total if total.size > CHUNK else np.zeros(total.shape)
    shared = tuple(a for a, n in enumerate(total.shape) if n == 1)
    rows = dy.shape[0] if dy.ndim else 1
    step = max(1, CHUNK // 4 * rows // dy.size)
    for start in range(0, rows, step):
        at = slice(start, start + step) if dy.ndim else ...  # dy[...] of a 0-d array is an array still, dy[()] a number
        part = mask if mask.ndim < dy.ndim or mask.shape[:1] == (1,) else mask[at]
        if dx is None or dx.dtype != total.dtype:  # products of 16-bit numbers are summed before they are rounded
            wide = dy[at].astype(total.dtype, copy=False)
            summed = new_array(wide.shape, wide.dtype)
            apply(summed, wide, part)
        if dx is not None:  # after that: dx may be dy
            apply(dx[at], dy[at], part)
            summed = dx[at] if dx.dtype == total.dtype else summed
        to = whole if 0 in shared or not dy.ndim else whole[at]
        to += summed.sum(axis=shared, dtype=whole.dtype, keepdims=True)
    total[...] = whole
