"""The table of generators: one for each public function, which draws the arguments of a `Case`; what they share."""

import inspect

import numpy as np

GENERATORS = {}  # name -> (generator, weight)
SINGLE, DOUBLE = np.float32, np.float64


def generator(name, weight=1.0):
    def add(function):
        GENERATORS[name] = function, weight
        return function

    return add


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
