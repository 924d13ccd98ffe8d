"""The floating-point dtypes that the kernels know, declared once: sizes, spacings, and what they are computed in."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Float:
    """A dtype. Its numbers are apart by 2**-digits of them; the smallest is 2**least."""

    name: str
    itemsize: int
    digits: int
    least: int
    largest: float
    computed_in: type  # what kernels turn it into, and make sums in
    stored: type  # what kernels that do not know it see its memory as
    rounded: Callable | None = None  # from what it is computed in, as what it is stored as; None: as `astype` does

    @property
    def dtype(self):
        """NumPy's dtype; what NumPy has not, the package ml_dtypes, an extra, has."""
        if hasattr(np, self.name):
            return np.dtype(self.name)
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, self.name))

    def narrow(self, a):
        """Round what was computed once, to nearest even."""
        return a.astype(self.dtype) if self.rounded is None else self.rounded(a).view(self.dtype)


def _bfloat16(a):
    """A NaN keeps sign and payload, as in every other conversion between floats; ml_dtypes makes all NaNs one."""
    bits = a.view(np.uint32)
    nearest = bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))
    quiet = bits | np.uint32(0x400000)
    return (np.where(np.isnan(a), quiet, nearest) >> np.uint32(16)).astype(np.uint16)


FLOATS = {
    each.name: each
    for each in (
        Float("float16", 2, 10, -24, 65504.0, np.float32, np.uint16),
        Float("bfloat16", 2, 7, -133, float.fromhex("0x1.FEp127"), np.float32, np.uint16, _bfloat16),
        Float("float32", 4, 23, -149, float.fromhex("0x1.FFFFFEp127"), np.float32, np.float32),
        Float("float64", 8, 52, -1074, float.fromhex("0x1.FFFFFFFFFFFFFp1023"), np.float64, np.float64),
    )
}
NAMES = " or ".join(", ".join(FLOATS).rsplit(", ", 1))  # in messages
