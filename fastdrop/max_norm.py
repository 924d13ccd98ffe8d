"""``max_norm_``: the weight constraint that goes with dropout, in place."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

import numpy as np

from .arguments import check_number
from .arrays import as_array
from .backends import in_use
from .dispatch import operation
from .memory import allocate

if TYPE_CHECKING:
    from .typing import OutT, Shape

__all__ = ["max_norm_"]


@operation("W", into="W")
def max_norm_(W: OutT, limit: float, axis: Shape = 0) -> OutT:
    """Scale down, in place, the vectors of weights whose Euclidean norm is above a limit.

    Parameters
    ----------
    W : array_like of floats, writable
        Weights.
    limit : float
        The largest norm that is left alone, at least 0; 3 or 4 is common.
    axis : int or tuple of int, default 0
        The axes that a unit's incoming weights lie along: 0 for ``W`` of shape [inputs, outputs], 1 for
        [outputs, inputs], ``(1, 2, 3)`` for filters of shape [outputs, inputs, height, width].

    Returns
    -------
    W
        The same object.

    Raises
    ------
    TypeError
        If the dtype is none of the four.
    ValueError
        If ``limit`` is negative or NaN, an axis is not there, or ``W`` is read-only.

    Notes
    -----
    Memory is read once: a vector, or 64 of them side by side, are scaled while they are in cache. Vectors within the
    limit are not changed, nor those with a NaN. Arrays not in C order, and axes that are not neighbours, are copied.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014), section 5.1.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> fd.max_norm_(np.array([[3.0, 0.1], [4.0, 0.1]]), 1.0)
    array([[0.6, 0.1],
           [0.8, 0.1]])
    """
    w = as_array(W, "W")
    limit = check_number(limit, "limit")
    if not limit >= 0:
        raise ValueError(f"limit must be at least 0, got {limit}")
    axes = _axes(axis, w)
    if not w.size or limit == math.inf:
        return W
    first, last = axes[0], axes[-1]
    neighbours = last - first + 1 == len(axes)
    if neighbours and w.flags.c_contiguous and w.flags.aligned and w.dtype.isnative:
        in_use.backend.max_norm(_three(w, first, last), limit)
        return W
    front = np.moveaxis(w, axes, range(len(axes)))
    copy = allocate(np.ascontiguousarray, front, w.dtype.newbyteorder("="))
    copy = copy.copy() if copy is front or np.may_share_memory(copy, w) else copy
    in_use.backend.max_norm(_three(copy, 0, len(axes) - 1), limit)
    front[...] = copy
    return W


def _three(w, first, last):
    """``w`` as [before the axes, the axes, after them]."""
    shape = w.shape
    return w.reshape(math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :]))


def _axes(axis, w):
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    try:
        given = [operator.index(a) for a in given]
    except TypeError:
        raise TypeError(f"axis must be an integer or a tuple of integers, got {axis!r}") from None
    if not given or any(not -w.ndim <= a < w.ndim for a in given):
        raise ValueError(f"axis must name axes of W, whose shape is {w.shape}, got {axis}")
    axes = sorted({a % w.ndim for a in given})
    if len(axes) != len(given):
        raise ValueError(f"axis must not name an axis twice, got {axis}")
    return axes
