"""New arrays for results: in recycled memory where they are large and the compiled extension is there."""

import numpy as np

from .compiled import _core

if _core is not None:
    allocate, new_array, new_like = _core.allocate, _core.new_array, _core.new_like
else:

    def allocate(make, *args):
        """Return ``make(*args)``, which allocates; if memory runs out, again without what is kept of freed outputs."""
        return make(*args)

    def new_array(shape, dtype):
        """Return an empty array, in recycled memory where it is large."""
        return np.empty(shape, dtype)

    def new_like(x):
        """Return an empty array in x's memory layout and native byte order."""
        return np.empty_like(x, x.dtype.newbyteorder("=") if not x.dtype.isnative else None)
