"""The numbers that the rule of the stream turns p into, and what all of the package counts by; imports nothing of it.

Which element is kept is decided in `src/stream.h` and its twins among the backends.
"""

import math

import numpy as np

STREAM_VERSION = 1
MASK64 = 2**64 - 1


def threshold(p):
    """Return T = round((1 - p) * 2**32), half to even, in whatever rounding mode the processor is.

    1 - p is a double there, a multiple of 2**-53; here it is an integer, and p * 2**53 is exact.
    """
    kept = 2**53 - round(p * 2.0**53)
    return (kept + 2**20 - 1 + (kept >> 21 & 1)) >> 21


def scale_of(p):
    """Return 1/(1-p) in double; inf where p == 1."""
    if type(p) is float:
        return 1.0 / (1.0 - p) if p != 1.0 else math.inf
    with np.errstate(divide="ignore"):
        return 1.0 / (1.0 - p)
