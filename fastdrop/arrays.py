"""What every operation asks of its ndarrays, and does to them, before a kernel sees their memory."""

import numpy as np

from .arguments import joint_shape
from .dtypes import FLOATS, NAMES
from .memory import new_like


def as_array(x, name):
    """Return ``x`` if its dtype is one the kernels know; raise TypeError if not."""
    if x.dtype.char not in "fde" and x.dtype.name not in FLOATS:  # names are slow to make
        cure = f"; convert it, with np.asarray({name}, np.float32) say" if x.dtype.kind in "biu" else ""
        raise TypeError(f"{name} must be {NAMES}, got dtype {x.dtype}{cure}")
    return x


def check_out(out, name, shape, dtype):
    """Return ``out`` if it can take a result of ``shape`` and ``dtype``; raise if not."""
    if out.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise TypeError(f"{name} must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    return out


def check_places(out, name):
    """Raise ValueError if ``out`` is read-only, or two of its elements share memory: one would be lost to the other."""
    flags = out.flags
    if not flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    if flags.c_contiguous or flags.f_contiguous or not out.size:
        return
    reach, axes = out.itemsize, []
    for step, n in sorted((abs(step), n) for step, n in zip(out.strides, out.shape) if n > 1):
        axes.append((step, n))
        if step < reach:
            break
        reach += step * (n - 1)
    else:
        return
    if all(step for step, _ in axes) and not _meet(out):  # interleaved, as a sliding window of every other element
        return
    raise ValueError(f"{name} must have a place for each element, got strides {out.strides} for shape {out.shape}")


def _meet(array):
    """Do two elements of ``array`` share a byte? By looking at the place of each."""
    if array.size > 1 << 22:
        return True
    places = np.zeros(1, np.int64)
    for step, n in zip(array.strides, array.shape):
        places = np.add.outer(places, np.arange(n, dtype=np.int64) * step).ravel()
    places.sort()
    return bool((np.diff(places) < array.itemsize).any())


def check_overlap(out, x, name, out_name="out", same=True):
    """Raise ValueError if ``out`` shares memory with ``x`` in any way but (where that is allowed, by ``same``) being
    the same elements in the same places."""
    if (same and out is x) or not np.may_share_memory(out, x):
        return
    if (
        same
        and out.dtype == x.dtype
        and out.__array_interface__["data"][0] == x.__array_interface__["data"][0]
        and out.shape == x.shape  # an x still to be broadcast is read again after out has been written
        and all(a == b or n == 1 for a, b, n in zip(out.strides, x.strides, x.shape, strict=True))
    ):
        return
    try:
        shared = np.shares_memory(out, x, max_work=10_000)
    except np.exceptions.TooHardError:
        shared = True
    if shared:
        raise_overlap(name, out_name, same)


def raise_overlap(name, out_name, same):
    rule = f"be {name} itself or not overlap it" if same else f"not overlap {name}"
    raise ValueError(f"{out_name} must {rule}, got arrays that share memory")


def axis_last(x, axis):
    """np.moveaxis(x, axis, -1), which takes longer than a kernel on a small array."""
    return x if axis == x.ndim - 1 else np.moveaxis(x, axis, -1)


def sum_dtype(dtype):
    """Return the dtype in which sums of ``dtype`` are made: float32, or float64 for float64."""
    return np.dtype(FLOATS[dtype.name].computed_in)


def broadcast_to_mask(x, shape, name):
    """Return ``x`` broadcast with a mask's ``shape``: itself where that changes nothing."""
    as_array(x, name)
    if x.shape == shape:
        return x
    shape = joint_shape(x.shape, shape, x.itemsize, f"{name} of shape", "the mask's shape")
    return x if x.shape == shape else np.broadcast_to(x, shape)


def output_like(x, out):
    """Return the array to write: ``out`` if it can take the result for ``x``, a new one if it is None."""
    return new_like(x) if out is None else check_out(out, "out", x.shape, x.dtype)


def as_native(x):
    """Return ``x``, or a copy of it where it is unaligned or byte-swapped."""
    if x.flags.aligned and x.dtype.isnative:
        return x
    copy = new_like(x)
    copy[...] = x
    return copy
