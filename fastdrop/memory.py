"""New arrays for results: in recycled memory where they are large and the compiled extension is there."""

import numpy as np

from .compiled import _core


def with_room(make, *args):
    """Return ``make(*args)``, which allocates; if memory runs out, again without what is kept of freed outputs."""
    return make(*args) if _core is None else _core.with_room(make, *args)


def new_array(shape, dtype):
    """Return an empty array, in recycled memory where it is large."""
    return np.empty(shape, dtype) if _core is None else _core.new_array(shape, dtype)


def new_like(x):
    """Return an empty array in x's memory layout and native byte order."""
    if not x.dtype.isnative:
        return with_room(np.empty_like, x, x.dtype.newbyteorder("="))
    return np.empty_like(x) if _core is None else _core.new_like(x)
