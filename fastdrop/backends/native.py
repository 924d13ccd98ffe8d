"""The native backend: C kernels chosen for this CPU, behind the compiled extension."""

import numpy as np

from ..compiled import _core, why_not
from . import reference

if _core is None:
    raise ImportError(why_not)

NAME = "native"

fast_path = _core.fast_path
apply = _core.apply
elementwise = _core.elementwise
keep = _core.keep
max_norm = _core.max_norm
row_losses = _core.row_losses
softmax_dropout = _core.softmax_dropout


def keep_bits(out, mask):
    if mask._strides is None and type(mask.p) is float:
        _core.keep_bits(out, mask, mask.size)
    else:
        reference.keep_bits(out, mask)


def apply_sum(total, dy, mask, dx=None):
    n = dy.shape[-1] if dy.ndim else 0
    if (
        n >= 64
        and total.size == total.shape[-1] == n
        and dy.flags.c_contiguous
        and (dx is None or dx.flags.c_contiguous)
        and mask.shape == dy.shape
        and mask._strides is None
        and type(mask.p) is float
    ):
        _core.row_sums(total.reshape(n), None if dx is None else dx.reshape(-1, n), dy.reshape(-1, n), mask)
    else:
        reference.apply_sum(total, dy, mask, dx, apply)


def sample_mean(y, x, mask):
    if (rows := _rows(mask, y, x)) is None:
        reference.sample_mean(y, x, mask)
    else:
        _core.samples(*rows, mean=True)


def sample_sum(dx, dy, mask):
    if (rows := _rows(mask, dx, dy)) is None:
        reference.sample_sum(dx, dy, mask)
    else:
        _core.samples(*rows, mean=False)


def _rows(mask, y, x):
    """y as [rows, n], x as [rows, n] or [S, rows, n], mask as [S, rows, n]; None where there is no such view."""
    p = np.array(mask.p, np.float64, order="C")  # a part of a mask may have every n-th p of an array
    samples, strides = len(mask), mask.strides_for(mask.shape)
    if (mask._strides is None or mask[0]._strides is None) and y.flags.c_contiguous and x.flags.c_contiguous:
        lead = x.shape[: x.ndim - y.ndim]
        shape, strides = (1, y.size), (strides[0], 0, 1)
        y, x = y.reshape(shape), x.reshape(lead + shape)
    elif y.ndim != 2 or strides[2] != 1 or any(a.strides[-1] != a.itemsize for a in (y, x)):
        return None
    mask = type(mask)._make(mask._seed, mask._stream, (samples, *y.shape), mask._p, mask._offset, strides, mask._stored)
    return y, x, p, mask
