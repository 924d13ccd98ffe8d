"""What the kernels take: memory as one dimension, axes joined where they can be, masks and thresholds as tuples."""

import math

import numpy as np

from ...rule import threshold
from ..numba_common.axes import join


def as_flat(array, dtype, writable=False):
    """All memory that ``array`` spans, as one dimension of ``dtype``, and where its first element is in it.

    Whether an array can be written is part of its type: no input can, so each kernel is compiled once.
    """
    low = tuple(-1 if step < 0 else 0 for step in array.strides)
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in reach if step < 0)
    after = sum(step for step in reach if step > 0)
    span = (before + after) // array.itemsize + 1
    first = array[(*[slice(at, None) if at else slice(0, 1) for at in low], ...)]
    flat = np.lib.stride_tricks.as_strided(first, (span,), (array.itemsize,), writeable=writable)
    return flat.view(dtype), before // array.itemsize


def read_only(array):
    array = array.view()
    array.flags.writeable = False
    return array


def steps_of(array):
    return tuple(step // array.itemsize for step in array.strides)


def walk(shape, *steps, dtype=np.int64):
    shape, *steps = join(shape, *steps)
    return np.array(shape, np.int64), [np.array(at, dtype) for at in steps]


_NOTHING_STORED = read_only(np.empty(0, np.uint8))


def source(mask, shape):
    """The kernels' `mask`, broadcast to ``shape``."""
    shape, (steps,) = walk(shape, mask.strides_for(shape), dtype=np.uint64)
    stored = _NOTHING_STORED if mask._stored is None else read_only(mask._stored)
    return np.uint64(mask.seed or 0), np.uint64(mask.stream or 0), np.uint64(mask._offset), shape, steps, stored


def thresholds_of(mask, shape):
    """The kernels' `thresholds`, broadcast to ``shape``."""
    p = mask.broadcast_p()
    if type(p) is float:
        steps = (0,) * len(shape)
    else:
        p = np.ascontiguousarray(p)
        steps = steps_of(np.broadcast_to(p, shape))
    thresholds = np.array([threshold(one) for one in np.ravel(p)], np.uint64)
    axes = max((axis + 1 for axis, step in enumerate(steps) if step), default=0)
    run = math.prod(shape[axes:])
    p_shape, (p_steps,) = walk(shape[:axes], steps[:axes])
    return thresholds, run, p_shape, p_steps
